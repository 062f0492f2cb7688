"""Every command ends well without the optional libraries, and without what Windows and macOS lack."""

import csv
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import soundfile

from melmask.errors import MissingExtraError
from melmask.system import extras, memory

RATE_HZ = 16000


@pytest.fixture(scope="module")
def labeled_folder(sound, tmp_path_factory):
    """Sounds of three classes with names that few code pages have, and their labels."""
    folder = tmp_path_factory.mktemp("labeled")
    rows = []
    for number in range(24):
        soundfile.write(folder / f"{number:02d} 音.wav", sound(0.75, number % 3), RATE_HZ)
        rows.append(
            (f"{number:02d} 音.wav", "xyz"[number % 3], number % 4, ("train", "valid", "test")[number // 3 % 3])
        )
    for name, header, of_row in (
        ("labels.csv", "path label fold", lambda path, label, fold, _: (path, label, fold)),
        ("several.csv", "path label split", lambda path, label, _, split: (path, f"{label};all", split)),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header.split(), *(of_row(*row) for row in rows)])
    return folder


def outcomes(folder, what):
    """The exit status of each command and its lines on standard error and output."""
    command = [sys.executable, Path(__file__).with_name("every_command.py"), folder, what]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def copied(folder, to):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_without_extras_a_command_works_or_says_at_once_what_to_install(labeled_folder, tmp_path):
    found = outcomes(copied(labeled_folder, tmp_path), "extras")
    needed = {
        **dict.fromkeys(("few-labels", "evaluate", "finetune, several"), "eval"),
        **{"pretrain, wandb": "wandb", "embed, ray": "ray", "embed, hub": "hub", "push": "hub", "export": "onnx"},
        "show": "plot",
        "explore": "explore",
    }
    for name, (status, failed, _) in found.items():
        assert status == (2 if name in needed else 0), (name, status, failed)
        if name in needed:
            # One line, and nothing before it: no work was begun.
            (line,) = failed
            assert line.startswith("melmask: error: ") and f"pip install 'melmask[{needed[name]}]'" in line
    others = [failed for name, (_, failed, _) in found.items() if name != "show"]
    pictures = [line for failed in others for line in failed if "melmask[plot]" in line]
    assert pictures == ["melmask: matplotlib is not installed, so no pictures are drawn: pip install 'melmask[plot]'"]
    assert not (tmp_path / "run" / "pictures").exists() and (tmp_path / "run" / "index.html").exists()
    for folder in ("few", "results", "fine-2", "run-3", "explored"):
        assert not (tmp_path / folder).exists()


def test_without_what_windows_lacks_every_command_works(labeled_folder, tmp_path):
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    absent = [extra for extra in ("wandb", "ray", "hub") if not extras.available(extra)]
    for name, (status, failed, _) in outcomes(copied(labeled_folder, tmp_path), "unix").items():
        asked = {"pretrain, wandb": "wandb", "embed, ray": "ray", "embed, hub": "hub", "push": "hub"}.get(name)
        if asked is None:
            assert status == 0, (name, status, failed)
        elif asked in absent:
            assert status == 2 and f"melmask[{asked}]" in failed[-1]


@pytest.mark.parametrize("command", ["embed", "prepare"])
def test_a_console_that_cannot_print_a_name_shows_its_numbers(command, labeled_folder, tmp_path):
    out = tmp_path / "日本"
    arguments = {
        "prepare": ["prepare", labeled_folder, "--out", out],
        "embed": ["embed", out / "x.wav", "--model", out],
    }
    arguments["embed"] += ["--out", out / "x.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "melmask", *arguments[command]],
        capture_output=True,
        env={"PYTHONIOENCODING": "cp1252", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == (0 if command == "prepare" else 2)
    assert b"\\u65e5\\u672c" in shown and b"Traceback" not in shown


def test_an_installation_that_cannot_be_imported_counts_as_missing(tmp_path, monkeypatch, capsys):
    wandb = extras.available("wandb")
    (tmp_path / "ray.py").write_text("raise RuntimeError('broken')", encoding="utf-8")
    # Weights & Biases makes a folder of its name wherever a run starts.
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not extras.available("ray") and extras.available("wandb") == wandb
    with pytest.raises(MissingExtraError, match=r"needs ray, which is not installed; run pip install 'melmask\[ray\]'"):
        extras.require("ray")
    assert capsys.readouterr() == ("", "")


def test_every_extra_for_users_is_in_the_table():
    text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
    declared = set(tomllib.loads(text)["project"]["optional-dependencies"]) - {"docs", "dev"}
    # `av` has a check of its own (audio/video.py), as it is needed for videos alone.
    assert declared == set(extras.EXTRAS) | {"av"}


def test_memory_is_known_here():
    assert 50e6 < memory.current_bytes() <= 1.01 * memory.peak_bytes()
