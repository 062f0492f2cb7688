"""Make command lines from dataclasses: a field becomes an option, with the field's docstring as its help.

A field `hop_ms: float | None = None` becomes the option `--hop-ms HOP_MS`, which takes one number. A field without a
default is required. `bool` makes a switch, `Literal` makes choices, and `tuple[T, ...]` takes several values. A field
whose type is a dataclass adds the fields of that class, under the field's docstring as a heading. The field's metadata
say what a type cannot:

    flag         the option's name, if it differs from the field's: "--layer"
    metavar      what help shows for the value: "I/N", or a tuple of texts for a tuple of fixed length
    positional   the metavar of an argument without a flag
    limits       the least and the largest number
    names        the names that the option knows, for its help
    without      fields of a dataclass that the command does not take: ("hop_ms", "choice.scene")
    settings     the field takes words KEY=VALUE: the configuration whose settings help lists, or None

Neither this module nor the modules that hold options import PyTorch, so that help is quick.
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin

from melmask.config_text import entries, field_meanings, field_types, kind_name
from melmask.system.terminal import shown

if TYPE_CHECKING:
    from melmask.embedding.encoder import AudioEncoder

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128

# A mistyped number of decoding threads must not exhaust the machine.
THREADS = (1, 4096)

O = TypeVar("O")  # noqa: E741 - the options of a command


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """The device and the precision of a model."""

    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1 or mps. Auto uses a GPU if there is one."""
    precision: str = "fp32"
    """Precision of the network: fp32, fp32-fast or bf16."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model whose features a command computes."""

    model: Path | None = None
    """A run, a checkpoint folder, or an MSM-MAE .pth file. The default is the model in the box."""
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
    """A parser that reports a wrong call in one line, and lists settings below its help."""

    listed_settings: Any = None
    """The configuration whose settings help lists."""
    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the words, and keep them: `error` looks for misspelt options in them."""
        self._words = [str(word) for word in args or ()]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line on standard error."""
        message += self._misspelt(message)
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {shown(message)}; see {self.prog} --help\n")

    def places(self) -> list[str]:
        """Return the names of the arguments that are given by their place."""
        return [str(action.metavar) for action in self._actions if not action.option_strings and action.metavar]

    def placed(self, values: argparse.Namespace, rest: Sequence[str]) -> list[str]:
        """Place the words of a command whose first or last argument can be left out, as `finetune [MODEL] LABELS`.

        argparse gives each place what it meets first: a setting, if it comes before the options, or the first of two
        words that options separate. Return the words that have no place.
        """
        positional = [action for action in self._actions if not action.option_strings]
        optional = [action for action in positional if action.nargs == "?"]
        if len(positional) < 2 or len(optional) != 1:
            return list(rest)
        places = [action.dest for action in positional]
        given = [str(getattr(values, place)) for place in places if getattr(values, place) is not None]
        words = [*given, *rest]
        plain = [word for word in words if _is_place(word)]
        lacking = len(places) - len(plain)
        # An unknown option may own the words after it, so they are left to its message.
        if lacking not in (0, 1) or any(word.startswith("-") and word != "-" for word in rest):
            return list(rest)
        texts = [None] * lacking + plain if optional[0] is positional[0] else plain + [None] * lacking
        for action, text in zip(positional, texts, strict=True):
            setattr(values, action.dest, None if text is None else self._get_value(action, text))
        return [word for word in words if word not in plain]

    def _misspelt(self, message: str) -> str:
        """Return which unknown words may stand for the required options that argparse misses; else nothing."""
        _, found, names = message.partition("arguments are required: ")
        missing = [name for name in names.split(", ") if name.startswith("--")] if found else []
        # argparse takes the beginning of an option for the option.
        known = [name for action in self._actions for name in action.option_strings]
        given = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        unknown = [word for word in given if not any(name.startswith(word) for name in known)]
        pairs = ((word, get_close_matches(word, missing, 1)) for word in unknown)
        return "".join(f"; {word!r} is unknown, the nearest is {near[0]}" for word, near in pairs if near)

    def format_help(self) -> str:
        """Return the help page, with every setting that the command takes as KEY=VALUE."""
        page = super().format_help()
        if self.listed_settings is not None:
            for name, value, meaning in entries(self.listed_settings):
                page += f"  {name}={value}\n{textwrap.indent(textwrap.fill(meaning, 71), ' ' * 8)}\n"
        return page


def _is_place(word: str) -> bool:
    """Whether a word can be an argument without a flag: a path, or - for standard input, but no option or setting."""
    return word == "-" or (not word.startswith("-") and ("=" not in word or Path(word).exists()))


class CommandList(argparse.HelpFormatter):
    """Help with every command and its text on one line."""

    def add_argument(self, action: argparse.Action) -> None:
        """Make room for the longest name."""
        super().add_argument(action)
        # argparse forgets the indentation of commands when it measures their names, and breaks the line of a long one.
        if isinstance(action.choices, dict):
            self._action_max_length = max(map(len, action.choices)) + 2 * self._indent_increment


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
            # "choice.scene" leaves out the field `scene` of the dataclass in the field `choice`.
            start = f"{option.name}."
            deeper = [name.removeprefix(start) for name in without if name.startswith(start)]
            # The first sentence becomes the heading, and the others stand under it.
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
    # `float | None` is a number that can be left out. `float | str` is a number, or a text if it is none.
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
    if "names" in facts:
        meaning += f" Known names are {', '.join(facts['names'])}."
    # argparse formats help with the % operator, so a percent sign is doubled.
    keywords["help"] = meaning.replace("%", "%%")
    if not required:
        keywords["default"] = option.default
        # Where the default is None or empty, the option's help says in words what that means.
        if option.default not in (None, (), "") and kinds != [bool]:
            shown = option.default if isinstance(option.default, tuple) else (option.default,)
            keywords["help"] += f" (default: {' '.join(map(str, shown))})"
    if "positional" not in facts:
        group.add_argument(flag, dest=place, required=required, **keywords)
    else:
        group.add_argument(place, **({} if required else {"nargs": "?"}), **keywords)


def _reader(kinds: Sequence[Any], facts: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a function that reads a word of the command line as the first of `kinds` that accepts it."""
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
            # Path("") is the current folder, but an empty word comes from a shell variable that is not set.
            if (text or kind is not Path) and ("limits" not in facts or least <= value <= most):
                return value
        raise argparse.ArgumentTypeError(f"the value is {text!r}; give {wanted}")

    return read


def options_of(cls: type[O], values: Mapping[str, Any], prefix: str = "") -> O:
    """Build the dataclass `cls` from the values that a parser with its options has read.

    Raises:
        ConfigError: the class itself refuses a value.
    """
    given: dict[str, Any] = {}
    for name, kind in field_types(cls).items():
        # A field that the command does not take has no value here, and keeps its default.
        place = prefix + name
        if dataclasses.is_dataclass(kind):
            given[name] = options_of(cast("type", kind), values, f"{place}.")
        elif place in values:
            # argparse collects several values in a list, but a frozen dataclass must hold what cannot change.
            given[name] = tuple(values[place]) if isinstance(values[place], list) else values[place]
    return cls(**given)
