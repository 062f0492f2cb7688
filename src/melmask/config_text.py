"""Configuration as text: strict dictionaries, dotted overrides (`optimizer.learning_rate=1e-3`), help.

An error about a key or a type names the key, the nearest known key, or the expected type.
"""

import ast
import copy
import dataclasses
import difflib
import inspect
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from melmask.errors import ConfigError
from melmask.system.reading import parse_json

C = TypeVar("C")

_LONGEST_SHOWN = 200
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a group of facts",
    tuple: "a list",
}


def from_dict(cls: type[C], values: Any, prefix: str = "") -> C:
    """Build the dataclass `cls` from a (nested) mapping; missing keys take their defaults.

    Raises:
        ConfigError: there is a key that `cls` does not have, a value of another type, or one that the class refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or cls.__name__} is {_short(values)}; expected a group of settings")
    fields = field_types(cls)
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(_unknown(prefix + str(name), [prefix + known for known in fields]))
        kind = fields[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            built[name] = from_dict(kind, value, f"{prefix}{name}.")
        elif get_origin(kind) is tuple:
            built[name] = _tuple_of(get_args(kind)[0], value, prefix + name)
        else:
            built[name] = _typed(prefix + name, kind, value)
    return cls(**built)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the nested dictionary that `from_dict` reads back. It can be written as JSON."""
    return cast("dict[str, Any]", _plain(config))


def differing(one: Any, other: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the name and both values, as text, of each field in which two settings of one kind differ.

    Of tuples with as many settings, it is the fields of these that are compared.
    """
    for name in (field.name for field in dataclasses.fields(one)):
        own, its = getattr(one, name), getattr(other, name)
        if own == its:
            continue
        if isinstance(own, tuple) and len(own) == len(its):
            for pair in zip(own, its, strict=True):
                yield from ((f"{name}: {inner}", text, its_text) for inner, text, its_text in differing(*pair))
        else:
            yield name, _text(own), _text(its)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    """Return `value` made of dictionaries and lists, without the fields that files do not hold at their defaults."""
    if dataclasses.is_dataclass(value):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: _plain(v) for f, v in fields if not (f.metadata.get("left_out_at_default") and v == f.default)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return copy.deepcopy(value)


def with_overrides(config: C, overrides: Sequence[str]) -> C:
    """Return a copy of `config` with `key.path=value` strings applied; each value is parsed to its field's type.

    Raises:
        ConfigError: there is a key that `config` does not have, a value of another type, or one that the class refuses.
    """
    values, known = to_dict(config), _leaves(type(config))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"{override!r} is not a setting; write section.name=value, as optimizer.steps=2000")
        if path not in known:
            raise ConfigError(_unknown(path, known))
        *groups, name = path.split(".")
        reduce(getitem, groups, values)[name] = _parsed(path, known[path], text)
    # The copy is built once, at the end, because some settings are valid only together.
    return from_dict(type(config), values)


def describe(config: Any) -> str:
    """Return all settings of `config`, each as a line `key = value  # meaning`."""
    return "\n".join(f"{name} = {value}  # {meaning}" for name, value, meaning in entries(config))


def entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the dotted name, the value and the meaning of each setting of `config`."""
    meanings = field_meanings(type(config))
    for name in field_types(type(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from entries(value, f"{prefix}{name}.")
        else:
            shown = json.dumps(_plain(value)) if isinstance(value, tuple) else value
            yield prefix + name, shown, meanings.get(name, "")


def field_meanings(cls: Any) -> dict[str, str]:
    """Return the docstring under each field of the dataclass `cls`, on one line.

    `melmask settings` and the help of every command print them, so that the meaning of a field is written once. Python
    does not keep the docstrings of fields, so this reads the source.
    """
    meanings: dict[str, str] = {}
    # A class also has the fields of its bases.
    for base in reversed(cls.__mro__):
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):
            # `object` has no source, and a program may be installed without its own.
            continue
        (definition,) = ast.parse(source).body
        for statement, after in itertools.pairwise(cast("ast.ClassDef", definition).body):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                meanings[ast.unparse(statement.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return meanings


def field_types(cls: Any) -> dict[str, Any]:
    """Return the type of each field of the dataclass `cls`."""
    return {f.name: f.type for f in dataclasses.fields(cls)}


def _leaves(cls: Any, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, kind in field_types(cls).items():
        nested = dataclasses.is_dataclass(kind)
        leaves |= _leaves(kind, f"{prefix}{name}.") if nested else {prefix + name: kind}
    return leaves


def _unknown(path: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    # Users often omit the section, as in `learning_rate` for `optimizer.learning_rate`, so the last parts are compared
    # too.
    tails = {key.rsplit(".", 1)[-1]: key for key in known}
    # `lr` is short for `learning_rate`, but has too few letters in common with it for difflib.
    initials = {"".join(word[:1] for word in tail.split("_")): key for tail, key in tails.items() if "_" in tail}
    tail = path.rsplit(".", 1)[-1]
    exact = tails.get(tail) or initials.get(tail)
    near = [exact] if exact else difflib.get_close_matches(path, list(known), 1)
    near = near or [tails[close] for close in difflib.get_close_matches(tail, list(tails), 1)]
    hint = f"the nearest is {near[0]!r}" if near else f"known are {', '.join(known)}"
    return f"unknown configuration key {path!r}; {hint}"


def _parsed(path: str, kind: Any, text: str) -> Any:
    if get_origin(kind) is tuple:
        try:
            return parse_json(text)
        except ValueError:
            raise ConfigError(f"{path} is {text!r}; expected {kind_name(kind)}, as JSON") from None
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{path} is {_short(text)}; expected {kind_name(kind)}") from None
    return _typed(path, kind, text)


def _tuple_of(kind: Any, values: Any, path: str) -> tuple[Any, ...]:
    """Return the items of a list, each checked as `kind`, a dataclass or a plain type."""
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"{path} is {values!r}; expected a list in square brackets")
    if dataclasses.is_dataclass(kind):
        return tuple(from_dict(cast("type", kind), value, f"{path}.") for value in values)
    return tuple(_typed(path, kind, value) for value in values)


def _typed(path: str, kind: Any, value: Any) -> Any:
    # Some programs write 3.0 as 3 in JSON. The exact type is compared, because a bool is an int in Python.
    if kind is float and type(value) is int:
        return float(value)
    accepted = value in get_args(kind) if get_origin(kind) is Literal else type(value) is (get_origin(kind) or kind)
    if not accepted:
        raise ConfigError(f"{path} is {_short(value)}; expected {kind_name(kind)}")
    return value


def _short(value: Any) -> str:
    """Return a value as Python shows it, cut to fit an error: a file may hold megabytes for a number."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def kind_name(kind: Any) -> str:
    """Return what a value of type `kind` is, in the words of errors: "a whole number"."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(value) for value in get_args(kind))
    return _KINDS[get_origin(kind) or kind]
