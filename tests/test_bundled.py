"""The model in the box: how it is made, packed, checked and found, and the archives that bring it along."""

import importlib.util
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import melmask
from melmask.checkpoint import bundled
from melmask.checkpoint.locate import load_any
from melmask.cli import main
from melmask.errors import CheckpointError, InputError
from melmask.system.files import write_csv

ROOT = Path(__file__).parents[1]
HAS_BOX = (bundled.BUNDLED / bundled.SUMS).exists()
needs_box = pytest.mark.skipif(not HAS_BOX, reason="this build has no bundled model; tools/box/pack.py puts one in")


def tool(name):
    """A module of tools/box."""
    spec = importlib.util.spec_from_file_location(f"box_{name}", ROOT / "tools" / "box" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def box(run_folder, tmp_path, monkeypatch):
    """The toy run, packed, in the place of the model in the box."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "run").symlink_to(run_folder)
    header = ("path", "kind", "source", "original_name", "author", "origin", "license", "seconds")
    write_csv(made / "ATTRIBUTION.csv", [header, ("a.opus", "music", "s", "a", "A. Player", "web", "CC-BY-4.0", 3600)])
    write_csv(made / "HOLDERS.csv", [("source", "origin", "authors")])
    tool("pack").pack(made / "run", [], None, tmp_path / "box-files")
    monkeypatch.setattr(bundled, "BUNDLED", tmp_path / "box-files")
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return tmp_path / "box-files"


def test_the_packed_model_is_the_runs_in_half_precision_and_loads_as_float32(box, run_folder, sound):
    packed, run = melmask.load(), melmask.load(run_folder)
    assert packed.name == "box"
    assert {tensor.dtype for tensor in packed.model.state_dict().values()} == {torch.float32}
    parameters = sum(tensor.numel() for tensor in run.model.state_dict().values())
    assert (box / "model.safetensors").stat().st_size < 2.1 * parameters + 9000
    ours, theirs = packed.embed(sound(3, 1), 16000), run.embed(sound(3, 1), 16000, scene="mean+std")
    cosine = ours.scene @ theirs.scene / np.linalg.norm(ours.scene) / np.linalg.norm(theirs.scene)
    assert cosine > 0.9999
    # The box has a scene vector of its own; other models keep the mean.
    assert len(run.embed(sound(3, 1), 16000).scene) * 2 == len(ours.scene)
    assert len(packed.embed(sound(3, 1), 16000, scene="mean").scene) * 2 == len(ours.scene)


def test_the_card_has_the_hours_and_the_licenses_of_the_attribution(box):
    text = (box / "README.md").read_text()
    assert "| music | 1.00 |" in text and "| CC-BY-4.0 | 1.00 |" in text
    assert "{" not in text


def test_a_changed_file_is_not_loaded(box):
    (box / "README.md").write_text("something else")
    with pytest.raises(CheckpointError, match=r"README\.md is not the file that was packed"):
        melmask.load()


def test_a_box_that_lacks_a_file_is_damaged(box):
    (box / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged .*; install melmask again"):
        melmask.load()


def test_a_box_whose_sums_break_off_is_damaged(box):
    sums = (box / bundled.SUMS).read_bytes()
    (box / bundled.SUMS).write_bytes(sums[:-30].rpartition(b"  ")[0])
    with pytest.raises(CheckpointError, match=r"is damaged .*; install melmask again"):
        melmask.load()


def test_a_build_without_the_model_says_so_in_one_line(tmp_path, sound_folder, monkeypatch, capsys):
    monkeypatch.setattr(bundled, "BUNDLED", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(sound_folder)]) == 2
    assert "no bundled model; give a model, as --model RUN" in capsys.readouterr().err


def test_something_of_the_user_named_box_goes_first_and_is_reported(box, run_folder, capsys):
    assert load_any(Path("box"))[2] == Path("box")
    assert not capsys.readouterr().err
    Path("box").symlink_to(run_folder)
    assert load_any(Path("box"))[2].parent == Path("box/checkpoints")
    assert "for melmask's own model, name none" in capsys.readouterr().err
    assert melmask.load().card.scene == "mean+std"


def test_embed_takes_the_model_in_the_box_by_default(box, sound_folder):
    assert main(["embed", str(sound_folder)]) == 0
    table = pq.read_table("embeddings.parquet")
    assert len(table) == 6
    assert len(table["scene"][0]) == melmask.load().embedding_size() * 2


@pytest.mark.parametrize(
    ("words", "model", "labels", "settings"),
    [
        ("run l.csv --out c epochs=1", "run", "l.csv", ("epochs=1",)),
        ("run --out c l.csv", "run", "l.csv", ()),
        ("run --out c l.csv epochs=1", "run", "l.csv", ("epochs=1",)),
        ("l.csv --out c", None, "l.csv", ()),
        ("l.csv epochs=1 seed=2 --out c", None, "l.csv", ("epochs=1", "seed=2")),
        ("--out c l.csv --epochs 1", None, "l.csv", ("epochs=1",)),
    ],
)
def test_finetune_takes_a_single_place_for_the_labels(words, model, labels, settings, monkeypatch):
    from melmask.cli import finetune

    seen = []
    monkeypatch.setattr(finetune, "run", lambda options: seen.append(options) or 0)
    assert main(["finetune", *words.split()]) == 0
    assert (seen[0].model, str(seen[0].labels), seen[0].settings) == (model, labels, settings)


def shared_folder(folder, license_of_last="CC0-1.0"):
    """Tables as the box is built from, with one clip of each kind of row."""
    rows = [
        ("gunroar-data/a.opus", "gunroar-data", "music", "BSD-2-Clause", "a.ogg", 2.0),
        ("pax-britannica-data/b.opus", "pax-britannica-data", "effects", "Expat", "b.ogg", 1.0),
        ("freedoom/c.opus", "freedoom", "effects", license_of_last, "c.wav", 1.0),
    ]
    header = ("path", "source", "kind", "licence", "original_name", "seconds")
    write_csv(folder / "corpus" / "corpus.csv", [header, *rows])
    (folder / "corpus" / "ATTRIBUTIONS.md").write_text("## gunroar-data\ntext\nCopyright: Kenta  Cho\n")
    columns = ("path", "label", "group", "fold", "split", "seconds", "domain")
    esc = [(f"e{k}.opus", "dog", k, 1, split, 5.0, "env", ten) for k, (split, ten) in enumerate(_ESC)]
    write_csv(folder / "audio" / "esc50.csv", [(*columns, "esc10"), *esc])
    write_csv(folder / "audio" / "arabic_sc.csv", [columns, ("w.opus", "yes", "s1", 1, "test", 1.0, "speech")])
    return folder


_ESC = [("train", 1), ("val", 1), ("test", 1), ("train", 0)]


def test_the_box_is_built_of_allowed_clips_that_no_test_uses(tmp_path):
    build = tool("build")
    with pytest.raises(InputError, match="has the license 'GPL-2'"):
        list(build.read_clips(shared_folder(tmp_path / "bad", "GPL-2")))
    clips = {clip.path: clip for clip in build.read_clips(shared_folder(tmp_path / "good", "BSD-3-Clause"))}
    assert sorted(path for path in clips if path.startswith("audio")) == ["audio/e0.opus", "audio/e1.opus"]
    assert [path for path, clip in clips.items() if clip.held_out] == ["corpus/pax-britannica-data/b.opus"]
    assert clips["corpus/gunroar-data/a.opus"].author == "Kenta Cho"
    assert clips["audio/e0.opus"].license == "CC-BY-3.0"


@needs_box
def test_the_model_in_the_box_is_small_and_its_clips_are_free():
    model, card, _ = load_any(None)
    assert card.model.has_decoder
    assert sum(tensor.numel() for tensor in model.state_dict().values()) <= 6_000_000
    assert (bundled.BUNDLED / "model.safetensors").stat().st_size <= bundled.LARGEST_BYTES
    rows = [line for line in (bundled.BUNDLED / "ATTRIBUTION.csv").read_text().splitlines()[1:] if line]
    free = set(tool("build").ALLOWED.values())
    assert rows and all(row.rsplit(",", 2)[1] in free for row in rows)


def test_the_wheel_works_in_an_empty_environment(tmp_path, run_folder):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; pip install 'melmask[dev]'")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "melmask").rglob("*")]
    assert {name for name in sources if Path(name).suffix in (".py", ".j2", ".toml", ".safetensors", ".csv")} <= names
    assert list((tmp_path / "dist").glob("*.tar.gz"))

    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # The libraries are those of this environment; its own melmask comes after the installed one.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000) / 20), 16000)
    model = [] if HAS_BOX else ["--model", str(run_folder)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(home / "bin" / "melmask"), "embed", "a.wav", *model]
    subprocess.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True)
    assert len(pq.read_table(tmp_path / "embeddings.parquet")) == 1
    where = [str(python), "-c", "import melmask; print(melmask.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True).stdout
    assert Path(found).is_relative_to(home)
