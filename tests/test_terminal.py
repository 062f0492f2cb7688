"""Names from files act on no terminal and no page: control characters and marks of direction are spelled out."""

import csv
import io
import re
import sys

import pytest
import soundfile

from melmask.cli import main
from melmask.pages.render import environment
from melmask.system import progress
from melmask.system.terminal import counted, end_updates, note, note_below, say, say_lines, shown, update

RATE_HZ = 16000
EVIL = "\x1b]0;x\x07\x9b31m\u202e\u2066\u200f\r\nFORGED\u2028x\x85"
CELL = "\x9b31m\u202e\u2066\u200fFORGED\u2028x\x85x"
"""Tables with the control characters of ASCII are refused."""
ACTING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EVIL, r"\x1b]0;x\x07\x9b31m\u202e\u2066\u200f\r\nFORGED\u2028x\x85"),
        ("\udc80\ufeff\u200b\U000e0041", r"\udc80\ufeff\u200b\U000e0041"),
        ("Übung 音\u3000한국 हिन्दी क्\u200dष 👨\u200d👩\u200d👧 עברית", None),
    ],
)
def test_what_acts_is_spelled_out_and_letters_stay(text, expected):
    assert shown(text) == (text if expected is None else expected)


def test_a_note_is_one_line_and_what_is_said_is_its_own_lines(capsys):
    note(f"a {EVIL}")
    say_lines(f"b \x1b\n{shown(EVIL)}")
    say(EVIL)
    said = capsys.readouterr()
    assert said.err == f"a {shown(EVIL)}\n" and said.out == f"b \\x1b\n{shown(EVIL)}\n{shown(EVIL)}\n"
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [(True, "\ra" + 77 * " " + "\rb" + 77 * " " + "\nc\n\n"), (False, "a\nb\nc\n")],
)
def test_lines_of_numbers_replace_each_other_on_a_terminal_alone(terminal, expected, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    update("a")
    update("b")
    note_below("c")
    end_updates()
    assert stream.getvalue() == expected


@pytest.fixture(scope="module")
def named(sound, tmp_path_factory):
    """Sounds, a table, classes and a folder with such names, and a file that is no sound."""
    folder = tmp_path_factory.mktemp("named") / f"in {EVIL}".replace("\n", "")
    (folder / "sounds").mkdir(parents=True)
    rows = []
    for number in range(24):
        name = f"{number}{CELL}.wav"
        soundfile.write(folder / "sounds" / name, sound(0.75, number % 2), RATE_HZ)
        rows.append((f"sounds/{name}", f"{'xy'[number % 2]}{CELL}", ("train", "valid", "test")[number // 2 % 3]))
    (folder / "sounds" / f"broken{EVIL}.wav").write_bytes(b"no sound")
    rows.append((f"sounds/none{CELL}.wav", f"x{CELL}", "train"))
    with (folder / f"table{EVIL}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder


COMMANDS = {
    "prepare": ["prepare", "{}/sounds", "--out", "{out}"],
    "pretrain": ["pretrain", "{store}", "--out", "{out}", "--monitor", "{table}", "recipe"],
    "embed": ["embed", "{}/sounds", "--model", "{run}", "--out", "{out}.parquet"],
    "probe": ["probe", "--model", "{run}", "--labels", "{table}", "--out", "{out}"],
    "few-labels": ["few-labels", "--model", "{run}", "--labels", "{table}", "--out", "{out}", "--draws", "1"],
    "make-task": ["make-task", "{table}", "--out", "{out}", "--name", "toy"],
    "finetune": ["finetune", "{run}", "{table}", "--out", "{out}", "epochs=1"],
    "predict": ["predict", "{}/sounds", "--model", "{classifier}", "--out", "{out}.csv"],
    "convert": ["convert", "{run}", "{out}"],
    "nothing there": ["embed", "{}/none\n", "--model", "{run}", "--out", "{out}.parquet"],
    "no option": ["embed", "x", "--model", "y", "--out", "z.npz", "--none\x1b\u202e"],
}
SMALL = [
    *("model.width=32", "model.depth=2", "model.heads=2", "model.decoder_width=16", "model.decoder_depth=1"),
    *("model.decoder_heads=2", "model.frames=64", "data.batch_size=8", "optimizer.steps=1", "optimizer.warmup_steps=0"),
    *("hardware.device=cpu", "hardware.readers=1"),
]


@pytest.fixture(scope="module")
def classifier(named, run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("classifier")
    assert main(["finetune", str(run_folder), str(named / f"table{EVIL}.csv"), "--out", str(out), "epochs=1"]) == 0
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_shows_a_name_that_acts(
    name, named, run_folder, store_folder, classifier, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0.0)
    places = {
        "{}": named,
        "{run}": run_folder,
        "{store}": store_folder,
        "{table}": named / f"table{EVIL}.csv",
        "{classifier}": classifier,
        "{out}": tmp_path / f"out{EVIL}",
    }
    words = []
    for word in COMMANDS[name]:
        for place, path in places.items():
            word = word.replace(place, str(path))
        words += SMALL if word == "recipe" else [word]
    capfd.readouterr()
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    said = capfd.readouterr()
    assert status == (2 if name.startswith("no") else 0), said.err
    text = said.out + said.err
    assert not ACTING.findall(text) and not re.search("^FORGED", text, re.MULTILINE)
    assert r"\x1b" in text


def test_pages_spell_names_out_as_well():
    page = environment().from_string("<p>{{ name }}</p>{{ 0.5 }}{{ page }}").render(name=EVIL + "<b>", page="x")
    assert page == f"<p>{shown(EVIL)}&lt;b&gt;</p>0.5x"
