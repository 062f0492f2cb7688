"""What README.md and the documents show works: their code, their commands, their links; so do examples and recipes."""

import csv
import re
import runpy
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.cli import main
from melmask.config import ModelConfig
from melmask.embedding.encoder import load, untrained
from melmask.embedding.folder import embed_table
from melmask.models.network import build_network
from melmask.recipes import RECIPES, recipe

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


# Code


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder that holds what the documents speak of: toy models, sounds, labels and a table of embeddings."""
    place = tmp_path_factory.mktemp("documents")
    config = ModelConfig(width=32, depth=6, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    card = ModelCard(model=config)
    for run in ("tiny", "mine"):
        save_checkpoint(place / "runs" / run, untrained(card, device="cpu").model, card)
    rng = np.random.default_rng(0)
    soundfile.write(place / "dog.wav", rng.normal(0, 0.1, 40000), 22050)
    rows = []
    (place / "sounds").mkdir()
    for n in range(6):
        soundfile.write(place / "sounds" / f"{n}.wav", rng.normal(0, 0.1, 8000), 16000)
        rows.append((f"sounds/{n}.wav", f"label {n % 2}", "train" if n < 4 else "test"))
    (place / "sounds" / "broken.wav").write_text("this is no sound\n" * 50)
    with (place / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    paths = [place / path for path, *_ in rows]
    embed_table(load(place / "runs" / "mine", device="cpu"), paths, place / "embeddings.parquet")
    return place


def check_the_shapes_of_the_readme(names):
    e, r, model = names["e"], names["r"], names["model"]
    assert (e.scene.shape, e.frames.shape, e.times_ms.shape) == ((160,), (12, 160), (12,))
    two = model.embed(names["x"], sample_rate_hz=16000, layer=6, pooling="concat")
    assert (two.scene.shape, two.frames.shape) == ((2, 160), (2, 12, 160))
    assert model.logmel(names["x"], sample_rate_hz=16000).shape == (2, 80, 188)
    assert r.prediction.shape == (2, 65, 256) and r.loss > 0


@pytest.mark.parametrize("page", pages_with("python"), ids=name_of)
def test_the_python_of_a_page_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    rng = np.random.default_rng(1)
    names = {
        "x": rng.normal(0, 0.1, (2, 30000)).astype(np.float32),
        "sr": 16000,
        "logmel": rng.normal(-7, 4, (2, 80, 208)).astype(np.float32),
        "m": rng.random((2, 65)) < 0.75,
    }
    # The blocks of a page build on one another.
    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), names)
    if page == README:
        check_the_shapes_of_the_readme(names)


# Commands


def commands_of(page: Path) -> list[list[str]]:
    """The words of each `melmask ...` in the shell blocks of a page and in its running text."""
    lines = [line for block in blocks(page, "sh", "") for line in block.replace("\\\n", " ").splitlines()]
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(span.split()) for span in re.findall(r"`(melmask [a-z][^`]*)`", text)]
    calls = [re.sub(r"^.*?(?:python )?-m melmask ", "melmask ", line) for line in lines]
    return [shlex.split(call, comments=True)[1:] for call in calls if call.startswith("melmask ")]


# COMMAND and CMD stand for any of them.
COMMANDS = [(page, words) for page in PAGES for words in commands_of(page) if words[0] not in ("COMMAND", "CMD")]


@pytest.fixture(scope="session")
def help_of():
    """help_of("embed") -> what `melmask embed --help` prints, or "" if there is no such command."""
    known = {}

    def shown(name, capsys):
        if name not in known:
            with suppress(SystemExit):
                main([name, "--help"])
            known[name] = capsys.readouterr().out
        return known[name]

    return shown


def test_the_documents_show_every_command(capsys):
    with suppress(SystemExit):
        main(["--help"])
    names = re.findall(r"^    ([a-z][a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert len(names) >= 15
    assert set(names) <= {words[0] for _, words in COMMANDS}


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{name_of(page)}: {' '.join(words)}" for page, words in COMMANDS]
)
def test_a_command_in_a_document_exists_with_its_options(page, words, help_of, capsys):
    name, *rest = words
    text = help_of(name, capsys)
    assert text.startswith(f"usage: melmask {name}"), f"{name_of(page)} shows the unknown command {name}"
    for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}(?![\w-])", text), f"{name} has no option {option}"
    for key in (word.partition("=")[0] for word in rest if re.match(r"[a-z_.]+=", word)):
        # Settings of a recipe have a section; those of other commands are in the help.
        if "." in key:
            assert main(["settings", "tiny"]) == 0
            assert f"{key} = " in capsys.readouterr().out, f"{name_of(page)} shows the unknown setting {key}"
        else:
            assert key in text, f"{name} has no setting {key}"


# Links


def anchors_of(page: Path) -> set[str]:
    """The names that a code host and the site give to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors_of(aim), f"{name_of(page)} links to {target}, which has no such heading"


def test_every_page_is_in_a_menu():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = [line for menu in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for line in menu.split()]
    listed = {page for entry in entries if entry[0] != ":" for page in (ROOT / "docs").glob(f"{entry}.md")}
    assert listed == {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {ROOT / "docs" / "index.md"}


def test_the_readme_is_short():
    assert README.read_text(encoding="utf-8").count("\n") <= 150


# Examples and recipes

ARGUMENTS = {
    "01_embed_a_clip.py": "--model runs/mine dog.wav",
    "02_embed_a_folder.py": "--model runs/mine sounds",
    "03_pretrain_on_a_laptop.py": "sounds --out example model.depth=1 model.decoder_depth=1 data.batch_size=4 "
    "optimizer.steps=2 optimizer.warmup_steps=1 run.picture_interval_steps=0",
    "04_linear_probe.py": "--model runs/mine labels.csv",
    "05_look_inside.py": "--model runs/mine dog.wav --out picture.png",
}
SHOWN = {
    "01_embed_a_clip.py": "scene  (160,) one vector for the clip",
    "02_embed_a_folder.py": "skipped",
    "03_pretrain_on_a_laptop.py": "2 steps done",
    "04_linear_probe.py": "4 clips to train on, 2 to test on; chance is 0.500",
    "05_look_inside.py": "picture.png; ",
}


def run_example(name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_on_the_users_files(example, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    run_example(example.name, ARGUMENTS[example.name], monkeypatch)
    assert SHOWN[example.name] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["01_embed_a_clip.py", "05_look_inside.py"])
def test_an_example_needs_no_files(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_example(name, "", monkeypatch)
    assert capsys.readouterr().out


def test_an_example_makes_its_own_sounds(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    run_example("02_embed_a_folder.py", "--model runs/mine", monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 64


def test_an_example_is_short_and_says_how_to_run_it():
    assert len(EXAMPLES) == 5
    for example in EXAMPLES:
        text = example.read_text(encoding="utf-8")
        assert text.count("\n") < 60
        assert f"python examples/{example.name}" in text.split('"""')[1]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_its_settings_can_be_listed(name, capsys):
    config = recipe(name)
    visible = {"msm_mae_512": 40, "msm_mae_608": 47, "tiny": 13, "small": 13}.get(name, 16)
    assert build_network(config.model).encoder.grid.visible_patches(config.masking.ratio) == visible
    assert main(["settings", name]) == 0
    assert f"optimizer.steps = {config.optimizer.steps}" in capsys.readouterr().out
