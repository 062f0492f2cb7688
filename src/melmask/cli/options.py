"""Command lines from dataclasses: each field is one option, its docstring is the help, its default is the default.

A field `hop_ms: float | None = None` is the option `--hop-ms HOP_MS`, which takes one number. A field without default
is required. `bool` makes a switch, `Literal` makes choices, `tuple[T, ...]` takes several values. A field that is a
dataclass stands for that class's fields, and its docstring is the heading over them. What a type cannot say is in the
field's metadata:

    flag         the option's name, where it is not the field's: "--layer"
    metavar      what help shows for the value: "I/N"; several of a tuple of fixed length
    positional   the argument has no flag, and this metavar
    limits       least and most, for numbers
    without      which of a dataclass's fields the command does not take: ("hop_ms", "choice.scene")
    settings     the field takes what follows as KEY=VALUE: a configuration whose settings help lists, or None

This module does not import PyTorch, and neither do the modules that hold options, so that help is quick.
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin

from melmask.settings import entries, field_meanings, field_types, kind_name

if TYPE_CHECKING:
    from melmask.embedding.encoder import AudioEncoder

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128

THREADS = (1, 4096)

O = TypeVar("O")  # noqa: E741 - the options of a command


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how exactly a model computes."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps. With auto, melmask takes a GPU if there is one."""
    precision: str = "fp32"
    """Arithmetic of the network: fp32, fp32-fast or bf16."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model whose features a command computes."""

    model: Path
    """A run, a checkpoint folder, or an MSM-MAE .pth file."""
    compute: ComputeOptions = field(default=ComputeOptions())

    def load(self) -> "AudioEncoder":
        """Load the model.

        Raises:
            CheckpointError: there is no model, or it cannot be read.
            ConfigError: an unknown device or precision.
        """
        from melmask.embedding.encoder import load

        return load(self.model, self.compute.device, self.compute.precision)


class Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line, and lists settings below its help."""

    listed_settings: Any = None

    def error(self, message: str) -> NoReturn:
        """Leave with status 2 and that line on standard error."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def format_help(self) -> str:
        """Return the help page, with every setting that the command takes as KEY=VALUE."""
        page = super().format_help()
        if self.listed_settings is not None:
            for name, value, meaning in entries(self.listed_settings):
                page += f"  {name}={value}\n{textwrap.indent(textwrap.fill(meaning, 71), ' ' * 8)}\n"
        return page


def add_options(parser: Parser, cls: Any) -> None:
    """Add an option to `parser` for each field of the dataclass `cls`."""
    _add_fields(parser, parser, cls, "", ())


def _add_fields(parser: Parser, group: Any, cls: Any, prefix: str, without: Sequence[str]) -> None:
    meanings = field_meanings(cls)
    for option in dataclasses.fields(cls):
        # Dots keep the fields of one dataclass apart from those of another; `options_of` reads them back.
        place, facts, meaning = prefix + option.name, option.metadata, meanings.get(option.name, "")
        if option.name in without:
            continue
        if dataclasses.is_dataclass(option.type):
            start = f"{option.name}."
            deeper = [name.removeprefix(start) for name in without if name.startswith(start)]
            title, _, more = meaning.partition(". ")
            inner = parser.add_argument_group(title.rstrip("."), more or None) if meaning else group
            _add_fields(parser, inner, option.type, f"{place}.", [*facts.get("without", ()), *deeper])
        elif "settings" in facts:
            # This is no argument of argparse's, which does not find positional ones after options.
            parser.set_defaults(**{place: []})
            parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [KEY=VALUE ...]"
            parser.epilog = f"KEY=VALUE: {meaning}"
            parser.listed_settings = facts["settings"]
        else:
            _add_field(group, option, place, meaning)


def _add_field(group: Any, option: "dataclasses.Field[Any]", place: str, meaning: str) -> None:
    facts, required = option.metadata, option.default is dataclasses.MISSING
    assert option.default_factory is dataclasses.MISSING, f"{option.name} needs a plain default, which help can show"
    flag = facts.get("flag", f"--{option.name.replace('_', '-')}")
    metavar = facts.get("metavar", flag.removeprefix("--").upper().replace("-", "_"))
    keywords: dict[str, Any] = {"metavar": facts.get("positional", metavar)}
    # `float | None` is a number that may be left out; `float | str` is a number or else a text.
    union = get_origin(option.type) in (Union, UnionType)
    kinds = [kind for kind in get_args(option.type) if kind is not NoneType] if union else [option.type]
    if kinds == [bool]:
        keywords = {"action": "store_true"}
    elif get_origin(kinds[0]) is Literal:
        keywords = {"choices": get_args(kinds[0])}
    elif get_origin(kinds[0]) is tuple:
        first, *others = get_args(kinds[0])
        keywords |= {"nargs": "+" if others == [...] else 1 + len(others), "type": _reader([first], facts)}
    else:
        keywords["type"] = _reader(kinds, facts)
    keywords["help"] = meaning.replace("%", "%%")
    if not required:
        keywords["default"] = option.default
        # Help on an option that is off, empty or unknown until the command runs says in words what that means.
        if option.default not in (None, (), "") and kinds != [bool]:
            shown = option.default if isinstance(option.default, tuple) else (option.default,)
            keywords["help"] += f" (default: {' '.join(map(str, shown))})"
    if "positional" not in facts:
        group.add_argument(flag, dest=place, required=required, **keywords)
    else:
        group.add_argument(place, **({} if required else {"nargs": "?"}), **keywords)


def _reader(kinds: Sequence[Any], facts: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return what turns a word of the command line into the first of `kinds` that it can be."""
    wanted = " or ".join("a file or folder" if kind is Path else kind_name(kind) for kind in kinds)
    least, most = facts.get("limits", (None, None))
    if "limits" in facts:
        wanted += f" from {least} to {most}"

    def read(text: str) -> Any:
        for kind in kinds:
            try:
                value = kind(text)
            except ValueError:
                continue
            # An empty path, of a shell variable that is not set, would be the current folder.
            if (text or kind is not Path) and ("limits" not in facts or least <= value <= most):
                return value
        raise argparse.ArgumentTypeError(f"the value is {text!r}; give {wanted}")

    return read


def options_of(cls: type[O], values: Mapping[str, Any], prefix: str = "") -> O:
    """Build the dataclass `cls` from what a parser with its options has read.

    Raises:
        ConfigError: a value that the class itself refuses.
    """
    given: dict[str, Any] = {}
    for name, kind in field_types(cls).items():
        place = prefix + name
        if dataclasses.is_dataclass(kind):
            given[name] = options_of(cast("type", kind), values, f"{place}.")
        elif place in values:
            given[name] = tuple(values[place]) if isinstance(values[place], list) else values[place]
    return cls(**given)
