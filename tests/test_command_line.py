"""The surface of the command line: what release 0.1.0 took is taken, and help says what every option means."""

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

from melmask.cli import COMMANDS, build_parser, main
from melmask.cli.options import Parser, add_options, options_of
from melmask.config import FrontEndConfig
from melmask.config_text import field_meanings
from melmask.recipes import RECIPES

REFERENCE = Path(__file__).parent / "reference"
RELEASED = json.loads((REFERENCE / "command_line.json").read_text())

# What differs from release 0.1.0 on purpose, with its reason.
DIFFERENCES = {
    # Help said `--version VERSION_NAME`, which was the name of a variable.
    ("make-task", "--version"): {"metavar": "VERSION"},
    # The model in the box is the default of every command that takes a model.
    **{(command, "--model"): {"required": False} for command in ("embed", "probe", "few-labels", "export")},
    ("evaluate", "--model"): {"required": False, "default": ["box"]},
    ("finetune", "MODEL"): {"required": False, "takes": "?"},
    ("embed", "--out"): {"required": False, "default": "embeddings.parquet"},
    # A model says which scene vector its users get.
    **{(command, "--scene"): {"default": "auto"} for command in ("embed", "probe", "few-labels", "evaluate")},
    # One description of features serves all commands; `export_onnx` refuses more than one layer.
    ("export", "--layer"): {"takes": "+"},
    # Synthetic sound needs no store.
    ("pretrain", "STORE"): {"required": False, "takes": "?"},
}

# Options that the release did not have.
ADDED = {("prepare", "--band"), ("pretrain", "--minutes"), ("pretrain", "--synth")}
ADDED |= {
    (command, option)
    for command in ("prepare", "embed", "probe", "few-labels", "finetune", "predict")
    for option in ("--channel", "--expand")
}
# Every command that takes a table can say where its files are and which columns count.
ADDED |= {
    (command, option)
    for option in ("--path-column", "--encoding")
    for command in ("prepare", "pretrain", "embed", "probe", "few-labels", "make-task", "finetune", "predict")
}
ADDED |= {(command, "--label-column") for command in ("pretrain", "probe", "few-labels", "make-task", "finetune")}
ADDED |= {("finetune", "--kind")}
ADDED |= {(command, "--audio-root") for command in ("prepare", "embed", "predict")}
ADDED |= {("prepare", "--resolutions"), ("convert", "--whiten"), ("convert", "--directions"), ("export", "--scene")}


@pytest.fixture
def described(monkeypatch):
    """Describe a command's parser as the reference does."""
    monkeypatch.syspath_prepend(REFERENCE)
    reference = import_module("make_command_line")
    return lambda name: json.loads(json.dumps(reference.options_of(reference.commands_of(build_parser(name))[name])))


def test_every_command_of_the_release_is_still_there():
    assert set(RELEASED) <= set(COMMANDS)


@pytest.mark.parametrize("name", RELEASED)
def test_a_command_takes_what_it_took_in_the_release(name, described):
    expected = RELEASED[name]
    for (command, option), changes in DIFFERENCES.items():
        if command == name:
            expected["options"][option] |= changes
    found = described(name)
    for command, option in ADDED:
        if command == name:
            del found["options"][option]
    assert found == expected


def help_of(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def fields_of(cls):
    """The name and the meaning of each field of a dataclass of options and of those in it; no settings."""
    for option in dataclasses.fields(cls):
        if dataclasses.is_dataclass(option.type):
            yield from fields_of(option.type)
        elif "settings" not in option.metadata:
            yield option.name, field_meanings(cls).get(option.name, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal_and_says_in_sentences_what_every_option_means(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, help_of(name, capsys).splitlines())) <= 80
    options = import_module(f"melmask.cli.{name.replace('-', '_')}").Options
    odd = [(field, meaning) for field, meaning in fields_of(options) if not re.fullmatch(r"[A-Z].*\.", meaning)]
    assert odd == []
    assert re.fullmatch(r"[A-Z].*\.", options.__doc__)


def test_help_names_every_recipe(capsys):
    for name in ("pretrain", "bench", "settings"):
        page = help_of(name, capsys)
        assert [recipe for recipe in RECIPES if recipe not in page] == []


def test_help_lists_the_settings_of_a_command_with_their_meanings(capsys):
    page = help_of("prepare", capsys)
    assert "\n  hop_samples=160\n        Samples between frames; 160 is 10 ms at 16 kHz.\n" in page


_IMPORT_ALL = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
    if {"torch", "numpy"} & set(sys.modules):
        sys.exit(f"{name} brings one in")
"""


def test_no_module_of_a_command_waits_for_torch_or_numpy():
    names = ["melmask.cli", *(f"melmask.cli.{name.replace('-', '_')}" for name in COMMANDS)]
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@dataclass(frozen=True, kw_only=True)
class Innermost:
    """A group in a group."""

    width: int = 4
    """How wide, in m."""
    secret: int = 8
    """Not taken by the command."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a group extends."""

    depth: int = field(default=3, metadata={"limits": (1, 9)})
    """How deep, in m."""


@dataclass(frozen=True, kw_only=True)
class Inner(Base):
    """A group."""

    hidden: int = 7
    """Not taken by the command."""
    innermost: Innermost = field(default_factory=Innermost)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Options of each kind."""

    files: tuple[Path, ...] = field(metadata={"positional": "FILE"})
    """Files to read: 100 % of them."""
    rate: float
    """Rate in Hz."""
    mode: Literal["slow", "fast"] | None = None
    """How fast."""
    pair: tuple[float, float] | None = field(default=None, metadata={"metavar": ("A", "B")})
    """Two numbers."""
    length: float | str = "auto"
    """Seconds, or a word."""
    names: tuple[str, ...] = ()
    """Some names."""
    quiet: bool = False
    """Say nothing."""
    inner: Inner = field(default=Inner(), metadata={"without": ("hidden", "innermost.secret")})
    """What is inside."""
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FrontEndConfig()})
    """change something."""


@pytest.fixture
def parser():
    parser = Parser(prog="do")
    add_options(parser, Outer)
    return parser


def test_options_become_their_dataclass(parser):
    words = "a b --rate 2 --mode fast --pair 1 2 --length 3.5 --names x y --quiet --depth 9 --width 5"
    assert options_of(Outer, vars(parser.parse_args(words.split()))) == Outer(
        files=(Path("a"), Path("b")),
        rate=2.0,
        mode="fast",
        pair=(1.0, 2.0),
        length=3.5,
        names=("x", "y"),
        quiet=True,
        inner=Inner(depth=9, innermost=Innermost(width=5)),
    )
    assert options_of(Outer, vars(parser.parse_args(["a", "--rate", "2"]))) == Outer(files=(Path("a"),), rate=2.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a --rate fast", "argument --rate: the value is 'fast'; give a number; see do --help"),
        ("a --rate 1 --depth 10", "argument --depth: the value is '10'; give a whole number from 1 to 9"),
        ("a --rate 1 --depth x", "argument --depth: the value is 'x'; give a whole number from 1 to 9"),
        ("a --rate 1 --mode quick", "argument --mode: invalid choice: 'quick' (choose from"),
        ("a", "the following arguments are required: --rate"),
        ("a --rate 1 --hidden 3", "unrecognized arguments: --hidden 3"),
    ],
)
def test_a_wrong_word_is_named_with_what_was_expected(parser, words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words.split())
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("do: error: ") and err.count("\n") == 1


def test_help_is_the_fields_docstrings(parser):
    page = parser.format_help()
    assert "Files to read: 100 % of them." in page and "What is inside:" in page
    assert "How deep, in m. (default: 3)" in page and "How wide, in m. (default: 4)" in page
    assert "hidden" not in page and "secret" not in page and "KEY=VALUE: change something." in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["embd", "x"], "unknown command 'embd'; the nearest is 'embed'; see melmask --help"),
        (["tiny", "embed"], "unknown command 'tiny'; known are demo, prepare, "),
        (["--fast"], "the following arguments are required: COMMAND; see melmask --help"),
        ([], "the following arguments are required: COMMAND; see melmask --help"),
        (["push", "m", "hub:a/b", "x=1"], "melmask push: error: unrecognized argument 'x=1'; see melmask push --help"),
    ],
)
def test_a_wrong_command_names_the_nearest_or_all(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and err.count("\n") == 1


def test_settings_may_be_anywhere_and_with_dashes(capsys):
    outputs = set()
    for words in (["run.seed=5"], ["tiny", "--run.seed=5"], ["tiny", "--run.seed", "5"]):
        assert main(["settings", *words]) == 0
        outputs.add(capsys.readouterr().out)
    assert main(["--run.seed=5", "settings", "tiny"]) == 0
    assert outputs == {capsys.readouterr().out}


def test_an_unknown_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["embed", "x", "--model", "m", "--out", "x.npz", "--pooing", "mean"])
    assert "unrecognized argument '--pooing=mean'; the nearest is --pooling; see melmask embed --help" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("predict x --modle m --out y.csv", "required: --model; '--modle' is unknown, the nearest is --model"),
        ("predict x --modle=m --ot y.csv", "'--modle' is unknown, the nearest is --model; '--ot' is unknown"),
        ("predict x --mod m", "required: --out; see"),
        ("finetune labels.csv --model m --out o", "give it by its place: melmask finetune MODEL LABELS; see"),
        ("finetune r --MODEL=m l --out o", "'--MODEL' is no option here; give it by its place"),
        ("convert --model m --out o", "give it by its place: melmask convert MODEL OUT; see"),
        ("push --model m hub:a/b", "give it by its place: melmask push MODEL hub:OWNER/NAME; see"),
        ("pretrain --store s", "give it by its place: melmask pretrain STORE; see"),
        ("pretrain s --minutes 0", "the value is '0'; give a number from 0.001"),
        ("settings --recipe tiny", "give it by its place: melmask settings RECIPE; see"),
    ],
)
def test_an_option_that_is_misspelt_or_has_a_place_instead_is_told(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and says in line
