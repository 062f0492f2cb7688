"""Tables of labels: which clip has which label or events, and what must not leak between splits.

    one label    path,label                    one row a clip
    multilabel   path,labels                   one row a clip, labels separated by ";", none at all allowed; a column
                                               `label` with a ";" in any row is such a one
    event        path,label,start_s,end_s      one row an event; a clip without events has one row with these empty

Each may have the columns `group`, `fold` and `split`; others are ignored. A column without any value counts as absent.
A `fold` column that holds nothing but split names (train, valid, test) is no fold column: it serves as `split` where
there is no other, and is else dropped. The file is UTF-8, its columns are separated by commas, or by tabs in a .tsv.
"""

import csv
import difflib
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64

from melmask.errors import InputError

_SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
_SEPARATOR = ";"
_EVENT_COLUMNS = ("label", "start_s", "end_s")
Kind = Literal["multiclass", "multilabel", "event"]
T = TypeVar("T")


class Event(NamedTuple):
    """A sound within a clip, from `start_ms` to `end_ms`."""

    label: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class LabelTable:
    """Clips with one label each, a list entry per clip; an optional column is None where the file has none.

    Attributes:
        paths: where each clip lies; no path occurs twice.
        labels: class name of each clip, never empty; at least two differ.
        groups: what must not be on both sides of a split (a speaker, a source recording).
        folds: name of the fold each clip is tested in.
        splits: "train", "valid" or "test" for each clip.
    """

    paths: list[Path]
    labels: list[str]
    groups: list[str] | None = None
    folds: list[str] | None = None
    splits: list[str] | None = None

    @property
    def class_names(self) -> list[str]:
        """The distinct labels in order: by value where all are whole numbers, else alphabetical."""
        return sorted_names(self.labels)

    @property
    def label_indices(self) -> Int64[np.ndarray, " rows"]:
        """Index into `class_names` of each clip's label."""
        index_of = {name: index for index, name in enumerate(self.class_names)}
        return np.array([index_of[label] for label in self.labels], dtype=np.int64)


@dataclass(frozen=True)
class ClipTable:
    """Clips with labels of any kind, a list entry per clip; an optional column is None where the table has none.

    Attributes:
        source: the file.
        kind: "multiclass", "multilabel" or "event".
        paths: where each clip lies; no path occurs twice.
        targets: each clip's labels, of an event table its events in the table's order.
        groups, folds, splits: see `LabelTable`.
    """

    source: Path
    kind: Kind
    paths: list[Path]
    targets: list[list[Any]]
    groups: list[str] | None = None
    folds: list[str] | None = None
    splits: list[str] | None = None

    @property
    def names(self) -> list[list[str]]:
        """Each clip's labels, events or not, each once."""
        if self.kind != "event":
            return self.targets
        return [list(dict.fromkeys(event.label for event in events)) for events in self.targets]

    @property
    def class_names(self) -> list[str]:
        """The distinct labels in order: by value where all are whole numbers, else alphabetical."""
        return sorted_names([name for names in self.names for name in names])

    def rows(self, keep: Sequence[int]) -> "ClipTable":
        """The clips with these indices."""
        paths, targets = (_taken(column, keep) or [] for column in (self.paths, self.targets))
        optional = (_taken(column, keep) for column in (self.groups, self.folds, self.splits))
        return ClipTable(self.source, self.kind, paths, targets, *optional)


def keep_rows(table: LabelTable, keep: np.ndarray) -> LabelTable:
    """The rows where `keep` (rows,) bool is true."""
    rows = np.flatnonzero(keep).tolist()
    paths, labels = _taken(table.paths, rows) or [], _taken(table.labels, rows) or []
    return LabelTable(paths, labels, *(_taken(column, rows) for column in (table.groups, table.folds, table.splits)))


def _taken(column: list[T] | None, rows: Sequence[int]) -> list[T] | None:
    return None if column is None else [column[row] for row in rows]


def sorted_names(names: Sequence[str]) -> list[str]:
    """Distinct names in order: by value where all are whole numbers ("2" before "10"), else alphabetical."""
    distinct = set(names)
    if all(name.isdecimal() for name in distinct):
        # A Decimal has any length, where int refuses thousands of digits.
        return sorted(distinct, key=lambda name: (Decimal(name), name))
    return sorted(distinct)


def read_labels(path: Path, audio_root: Path | None = None) -> LabelTable:
    """Read a table with one label a clip.

    Args:
        path: the file, see the head of this module.
        audio_root: folder that relative paths start from. Without it, the first of the file's folder and that
            folder's parent under which one of the relative paths exists. Absolute paths are kept.

    Returns:
        The table, rows in the file's order; `val`, `validation` and `dev` are turned into `valid`.

    Raises:
        InputError: the file cannot be read as such a table, has a row without path or label, a path twice, an
            optional column filled for some rows only, or fewer than two classes.
    """
    return _single_labels(_read_columns(path), audio_root)


def read_clips(path: Path, kind: Kind | None = None, audio_root: Path | None = None) -> ClipTable:
    """Read a table with labels of any kind; its columns tell the kind where `kind` is None.

    Args:
        path: the file, see the head of this module.
        kind: how the labels are read; "multiclass" takes a label with a ";" for one.
        audio_root: where relative paths start, see `read_labels`.

    Raises:
        InputError: the file is no such table.
    """
    columns = _read_columns(path)
    kind = kind or _kind_of(columns)
    targets: list[list[Any]]
    if kind == "multiclass":
        table = _single_labels(columns, audio_root)
        targets = [[label] for label in table.labels]
    elif kind == "multilabel":
        table = _clips(columns, audio_root)
        _check_unique(path, table.paths)
        cells = columns.needed("label" if "labels" not in columns.values and "label" in columns.values else "labels")
        parts = [[name.strip() for name in cell.split(_SEPARATOR)] for cell in cells]
        targets = [list(dict.fromkeys(filter(None, names))) for names in parts]
    else:
        table, targets = _events(columns, _clips(columns, audio_root))
    if not any(targets):
        raise InputError(f"{path}: no clip has a label; expected some, fill the column")
    return ClipTable(path, kind, table.paths, targets, table.groups, table.folds, table.splits)


def judged_tables(
    tables: Mapping[str, LabelTable], judge: Callable[[str, LabelTable], T], failed: dict[str, str]
) -> Iterator[tuple[str, T]]:
    """Give what `judge` says of each table, by name; tables that it refuses go to `failed`, with the reason.

    Raises:
        InputError: it refuses all of them.
    """
    for name, table in tables.items():
        try:
            yield name, judge(name, table)
        except InputError as error:
            if len(failed) == len(tables) - 1:
                raise
            failed[name] = str(error)
            sys.stderr.write(f"{name} is left out: {error}\n")


class _Columns(NamedTuple):
    """A file's values by column name (lower case), each without surrounding blanks."""

    path: Path
    values: dict[str, list[str]]

    def needed(self, name: str) -> list[str]:
        """A column that has to be there."""
        if name not in self.values:
            raise InputError(f"{self.path}: no column `{name}`; {_describe_header(name, list(self.values))}")
        return self.values[name]

    def filled(self, name: str) -> list[str]:
        """A column that has to be there, with a value in each row."""
        values = self.needed(name)
        empty = [row for row, value in enumerate(values, start=1) if not value]
        if empty:
            raise InputError(
                f"{self.path}: `{name}` is empty in {len(empty)} of {len(values)} rows, first in row {empty[0]} "
                "after the header; fill it or leave those rows out"
            )
        return values

    def optional(self, name: str) -> list[str] | None:
        """A column with a value in each row; None where it is missing or has no value at all."""
        return self.filled(name) if any(self.values.get(name, ())) else None


def _read_columns(path: Path) -> _Columns:
    rows = _read_rows(path)
    if not rows:
        raise InputError(f"{path}: the file is empty; expected a header with `path` and `label`, then rows")
    header = [name.strip().lower() for name in rows[0][1]]
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f"{path}: {header.count(name)} columns are called `{name}`; keep or rename one")
    for line, values in rows:
        if len(values) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(values)} values for {len(header)} columns; quote values that hold a comma"
            )
    return _Columns(path, {name: [values[i].strip() for _, values in rows[1:]] for i, name in enumerate(header)})


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return line number and values of every line that is not blank, the header among them."""
    try:
        # Spreadsheets write a mark before the first column's name, which utf-8-sig drops.
        text = path.read_text(encoding="utf-8-sig")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, values) for values in reader if values]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a CSV table with `path` and `label`") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a CSV table") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8 ({error}); save it as one") from None
    if "\0" in text:
        raise InputError(f"{path}: not a CSV table in UTF-8 (it holds NUL bytes); save it as one")
    return rows


def _describe_header(missing: str, header: list[str]) -> str:
    """Say which columns there are, and which of them may be the missing one under another name."""
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        return f"the header is {header[0]!r}: separate the columns with commas"
    nearest = difflib.get_close_matches(missing, header, n=1)
    hint = f"; nearest is `{nearest[0]}`, rename it" if nearest else f"; add or rename one to `{missing}`"
    return "columns are " + ", ".join(header) + hint


def _kind_of(columns: _Columns) -> Kind:
    names = columns.values
    if "start_s" in names or "end_s" in names:
        return "event"
    if "labels" in names and "label" in names:
        raise InputError(
            f"{columns.path} has columns `label` and `labels`; say which counts with --kind multiclass or multilabel"
        )
    several = "labels" in names or any(_SEPARATOR in label for label in names.get("label", ()))
    return "multilabel" if several else "multiclass"


def _clips(columns: _Columns, audio_root: Path | None) -> LabelTable:
    """Everything but the labels, a row a row of the file."""
    path, names = columns.path, columns.filled("path")
    if not names:
        raise InputError(f"{path}: a header but no rows; expected one row per clip")
    groups, folds, splits = (columns.optional(name) for name in ("group", "fold", "split"))
    # Some data sets call their split "fold".
    if folds is not None and all(fold.lower() in _SPLIT_NAMES for fold in folds):
        folds, splits = None, splits or folds
    for split in splits or ():
        if split.lower() not in _SPLIT_NAMES:
            raise InputError(f"{path}: split {split!r} is not known; expected train, valid or test")
    splits = None if splits is None else [_SPLIT_NAMES[split.lower()] for split in splits]
    return LabelTable(_resolve_paths(path, names, audio_root), [""] * len(names), groups, folds, splits)


def _single_labels(columns: _Columns, audio_root: Path | None) -> LabelTable:
    path, names = columns.path, columns.values
    if {"start_s", "end_s"} <= set(names) or ("labels" in names and "label" not in names):
        raise InputError(
            f"{path} has events, or several labels a clip, and here each has one; melmask make-task and evaluate take "
            "them"
        )
    columns.needed("path")
    labels = columns.filled("label")
    table = _clips(columns, audio_root)
    _check_unique(path, table.paths)
    if len(set(labels)) < 2:
        raise InputError(f"{path}: all {len(labels)} rows have label {labels[0]!r}; expected two or more")
    return replace(table, labels=labels)


def _events(columns: _Columns, table: LabelTable) -> tuple[LabelTable, list[list[Any]]]:
    """The clips of a table with a row an event, and the events of each."""
    events: dict[Path, list[Any]] = {}
    first_row: dict[Path, int] = {}
    cells = zip(*(columns.needed(name) for name in _EVENT_COLUMNS), strict=True)
    for row, (clip, (label, start_s, end_s)) in enumerate(zip(table.paths, cells, strict=True)):
        found = events.setdefault(clip, [])
        first = first_row.setdefault(clip, row)
        for name, column in (("group", table.groups), ("fold", table.folds), ("split", table.splits)):
            if column is not None and column[row] != column[first]:
                both = f"{column[first]!r} and {column[row]!r}"
                raise InputError(
                    f"{columns.path}: {clip} has {name} {both} in different rows; expected one {name} a clip"
                )
        if label or start_s or end_s:
            found.append(_event(f"{columns.path}, row {row + 1} after the header", label, start_s, end_s))
    kept = keep_rows(table, np.isin(np.arange(len(table.paths)), list(first_row.values())))
    return kept, [events[clip] for clip in kept.paths]


def _event(where: str, label: str, start_s: str, end_s: str) -> Event:
    try:
        start, end = float(start_s), float(end_s)
    except ValueError:
        start = end = math.nan
    if not (label and 0 <= start <= end < math.inf):
        given = f"label {label!r} from {start_s!r} to {end_s!r}"
        raise InputError(f"{where}: {given}; expected a label, a start and an end in seconds, the start first")
    # Without rounding, 1.1 s would become 1100.0000000000002 ms.
    return Event(label, round(start * 1000, 6), round(end * 1000, 6))


def _resolve_paths(path: Path, names: list[str], audio_root: Path | None) -> list[Path]:
    """Join relative names to the root they start from."""
    relative = [name for name in names if not Path(name).is_absolute()]
    if not relative:
        return [Path(name) for name in names]
    roots = [audio_root] if audio_root is not None else [path.parent, path.absolute().parent.parent]
    for root in roots:
        # One file is enough to find the root: files that are missing are reported where they are read.
        if any(_exists(root / name) for name in relative):
            return [root / name for name in names]
    looked = " or ".join(str(root) for root in roots)
    raise InputError(
        f"{path}: neither {relative[0]!r} nor any other file of it is below {looked}; say with --audio-root where "
        "the paths start"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # The system may refuse a name, for example one that is too long.
        return False


def _check_unique(path: Path, paths: list[Path]) -> None:
    """Refuse a clip that is listed twice, which could put it on both sides of a split."""
    seen: set[Path] = set()
    # A set keeps this quick for millions of rows.
    for clip in paths:
        if clip in seen:
            raise InputError(f"{path}: {clip} is listed twice; keep one row per clip")
        seen.add(clip)
