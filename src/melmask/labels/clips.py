"""A user's own labels, of one of three kinds, as the clips of a task; and how they are divided into splits.

    multiclass   path,label                    one row a clip
    multilabel   path,labels                   one row a clip, labels separated by ";", none at all allowed; a column
                                               `label` with a ";" in any row is such a one
    event        path,label,start_s,end_s      one row an event; a clip without events has one row with these empty

Each with `group`, `fold` and `split` as in `melmask.labels.tables`.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from melmask.errors import ConfigError, InputError
from melmask.labels import tables
from melmask.labels.tables import SPLIT_NAMES, LabelTable, read_labels, sorted_names

KINDS = ("multiclass", "multilabel", "event")
SCHEMES = ("fold", "split", "new")
FEWEST_FOLDS = 3
"""One to test, one to choose the epoch by, and one to train on."""
_SEPARATOR = ";"
_EVENT_COLUMNS = ("label", "start_s", "end_s")
_VALID_PARTS = 5
"""Where a table has no validation rows, one part in so many of its training rows."""
# What pandas, by which the HEAR kit reads the vocabulary, takes for a missing value.
_MISSING = re.compile(r"#N/A( N/A)?|#NA|-?1\.#(IND|QNAN)|-?(NaN|nan)|<NA>|N/A|NA|NULL|None|n/a|null")


class Event(NamedTuple):
    """A sound within a clip, from `start_ms` to `end_ms`."""

    label: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class ClipTable:
    """Clips and what is in them, a list entry per clip; an optional column is None where the table has none.

    Attributes:
        source: the CSV file.
        kind: one of `KINDS`.
        paths: where each clip lies; no path occurs twice.
        targets: each clip's labels, of an event table its events in the table's order.
        groups, folds, splits: see `LabelTable`.
    """

    source: Path
    kind: str
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

    def rows(self, keep: list[int]) -> "ClipTable":
        """The clips with these indices."""

        def kept(column: list[Any] | None) -> Any:
            return None if column is None else [column[row] for row in keep]

        columns = (self.paths, self.targets, self.groups, self.folds, self.splits)
        return ClipTable(self.source, self.kind, *map(kept, columns))


def read_clips(path: Path, kind: str | None = None, audio_root: Path | None = None) -> ClipTable:
    """Read a table of labels; its columns tell the kind where `kind` is None.

    Args:
        path: the CSV file, see the head of this module.
        kind: one of `KINDS`; "multiclass" takes a label with a ";" for one.
        audio_root: where relative paths start, see `read_labels`.

    Raises:
        ConfigError: the kind is unknown.
        InputError: the file is no such table.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"the kind of labels is {kind!r}; expected one of {', '.join(KINDS)}")
    columns = _read_columns(path)
    kind = kind or _kind_of(path, columns)
    if kind == "multiclass":
        table = read_labels(path, audio_root)
        targets = [[label] for label in table.labels]
    elif kind == "multilabel":
        table, targets = _multilabel(path, columns, audio_root)
    else:
        table, targets = _events(path, columns, audio_root)
    if not any(targets):
        raise InputError(f"{path}: no clip has a label; expected some, fill the column")
    return ClipTable(path, kind, table.paths, targets, table.groups, table.folds, table.splits)


def _kind_of(path: Path, columns: dict[str, list[str]]) -> str:
    if "start_s" in columns or "end_s" in columns:
        return "event"
    if "labels" in columns and "label" in columns:
        raise InputError(
            f"{path} has columns `label` and `labels`; say which counts with --kind multiclass or multilabel"
        )
    several = "labels" in columns or any(_SEPARATOR in label for label in columns.get("label", ()))
    return "multilabel" if several else "multiclass"


def _read_columns(path: Path) -> dict[str, list[str]]:
    """The file's values by column name (lower case), each without surrounding blanks."""
    lines = tables.read_rows(path)
    if len(lines) < 2:
        raise InputError(f"{path}: no rows; expected a header with `path` and `label` or `labels`, then rows")
    return tables.columns_of(path, lines)


def _column(path: Path, columns: dict[str, list[str]], name: str) -> list[str]:
    if name not in columns:
        raise InputError(f"{path}: no column `{name}`; {tables.describe_header(name, list(columns))}")
    return columns[name]


def _table(path: Path, columns: dict[str, list[str]], audio_root: Path | None) -> LabelTable:
    """Everything but the labels, a row a row of the file."""
    names = _column(path, columns, "path")
    tables.check_filled(path, "path", names)
    groups, folds, splits = (tables.optional_column(path, name, columns) for name in ("group", "fold", "split"))
    if folds is not None and all(fold.lower() in SPLIT_NAMES for fold in folds):
        folds, splits = None, splits or folds
    paths = tables.resolve_paths(path, names, audio_root)
    return LabelTable(paths, [""] * len(names), groups, folds, tables.normalise_splits(path, splits))


def _multilabel(
    path: Path, columns: dict[str, list[str]], audio_root: Path | None
) -> tuple[LabelTable, list[list[str]]]:
    table = _table(path, columns, audio_root)
    tables.check_unique(path, table.paths)
    cells = _column(path, columns, "label" if "labels" not in columns and "label" in columns else "labels")
    return table, [
        list(dict.fromkeys(name.strip() for name in cell.split(_SEPARATOR) if name.strip())) for cell in cells
    ]


def _events(path: Path, columns: dict[str, list[str]], audio_root: Path | None) -> tuple[LabelTable, list[list[Event]]]:
    table = _table(path, columns, audio_root)
    events: dict[Path, list[Event]] = {}
    first_row: dict[Path, int] = {}
    cells = zip(*(_column(path, columns, name) for name in _EVENT_COLUMNS), strict=True)
    for row, (clip, (label, start_s, end_s)) in enumerate(zip(table.paths, cells, strict=True)):
        found = events.setdefault(clip, [])
        first = first_row.setdefault(clip, row)
        for name, column in (("group", table.groups), ("fold", table.folds), ("split", table.splits)):
            if column is not None and column[row] != column[first]:
                both = f"{column[first]!r} and {column[row]!r}"
                raise InputError(f"{path}: {clip} has {name} {both} in different rows; expected one {name} a clip")
        if label or start_s or end_s:
            found.append(_event(f"{path}, row {row + 1} after the header", label, start_s, end_s))
    kept = tables.keep_rows(table, np.isin(np.arange(len(table.paths)), list(first_row.values())))
    return kept, [events[clip] for clip in kept.paths]


def _event(where: str, label: str, start_s: str, end_s: str) -> Event:
    try:
        start, end = float(start_s), float(end_s)
    except ValueError:
        start = end = math.nan
    if not (label and 0 <= start <= end < math.inf):
        given = f"label {label!r} from {start_s!r} to {end_s!r}"
        raise InputError(f"{where}: {given}; expected a label, a start and an end in seconds, the start first")
    # Without rounding 1.1 s is 1100.0000000000002 ms.
    return Event(label, round(start * 1000, 6), round(end * 1000, 6))


def as_kit_reads(table: ClipTable) -> tuple[ClipTable, tuple[str, ...]]:
    """The table with labels that come back unchanged from the kit's table reader, and a note where it had to change.

    A vocabulary of numbers alone is read as numbers there: 007 comes back as 7, and a clip's "007" is unknown.

    Raises:
        InputError: a label is read as a missing value, or two become the same.
    """
    names = table.class_names
    if missing := [name for name in names if _MISSING.fullmatch(name)]:
        raise InputError(f"{table.source}: label {missing[0]!r} is read as a missing value by the HEAR kit; rename it")
    read = {name: name for name in names}
    if all(re.fullmatch(r"[+-]?\d+", name) for name in names):
        read = {name: str(int(name)) for name in names}
    elif all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", name) for name in names):
        read = {name: str(float(name)) for name in names}
    elif all(name.lower() in ("true", "false") for name in names):
        read = {name: name.capitalize() for name in names}
    if len(set(read.values())) < len(names):
        raise InputError(f"{table.source}: of {', '.join(names)} the HEAR kit takes some for the same; rename them")
    changed = [name for name in names if read[name] != name]
    if not changed:
        return table, ()
    targets = [
        [item._replace(label=read[item.label]) if isinstance(item, Event) else read[item] for item in items]
        for items in table.targets
    ]
    note = f"labels are written as the HEAR kit reads them, {changed[0]!r} as {read[changed[0]]!r}"
    return dataclasses.replace(table, targets=targets), (note,)


class Division(NamedTuple):
    """Clips in splits.

    Attributes:
        mode: the metadata's split_mode.
        splits: the names of the splits.
        split_of: each clip's split.
        notes: what the user should know of it.
    """

    mode: str
    splits: tuple[str, ...]
    split_of: list[str]
    notes: tuple[str, ...] = ()


def divide(table: ClipTable, scheme: str | None = None, folds: int = 5, seed: int = 0) -> Division:
    """Put each clip into a split.

    - `fold`: the table's folds, numbered in order: fold00, fold01, ...
    - `split`: the table's train, valid and test. Without valid, a fifth of train becomes it.
    - `new`: `folds` folds of about the same classes.
    - None: the first of these that the table has the columns for: at least three folds, train and test, neither.
      Folds go first as they test every clip.

    What is made here keeps groups whole and spreads the classes evenly (`spread`).

    Raises:
        ConfigError: the scheme is unknown, or `folds` is below three.
        InputError: the table lacks what the scheme needs, or has too few clips or groups.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"the scheme is {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if folds < FEWEST_FOLDS:
        raise ConfigError(f"{folds} folds were asked for; expected {FEWEST_FOLDS} or more")
    given = len(set(table.folds or ()))
    if scheme == "fold" or (scheme is None and given >= FEWEST_FOLDS):
        return _given_folds(table)
    if scheme == "split" or (scheme is None and table.splits is not None and {"train", "test"} <= set(table.splits)):
        return _given_splits(table, seed)
    part_of = spread(table, list(range(len(table.paths))), folds, seed)
    splits = _fold_names(folds)
    unused = f"the table's {given} folds are too few and were not used" if given and scheme is None else ""
    return Division("new_split_kfold", splits, [splits[part] for part in part_of], (unused,) if unused else ())


def _given_folds(table: ClipTable) -> Division:
    given = sorted_names(table.folds or [])
    if len(given) < FEWEST_FOLDS:
        raise InputError(
            f"{table.source} has {', '.join(given) or 'none'} as folds; expected {FEWEST_FOLDS} or more: to test, to "
            "validate and to train; choose --scheme new"
        )
    splits = _fold_names(len(given))
    name_of = dict(zip(given, splits, strict=True))
    return Division("presplit_kfold", splits, [name_of[fold] for fold in table.folds or []])


def _fold_names(folds: int) -> tuple[str, ...]:
    width = max(2, len(str(folds - 1)))
    return tuple(f"fold{number:0{width}d}" for number in range(folds))


def _given_splits(table: ClipTable, seed: int) -> Division:
    if table.splits is None or not {"train", "test"} <= set(table.splits):
        present = ", ".join(sorted(set(table.splits or ()))) or "none"
        raise InputError(f"{table.source}: splits are {present}; expected train and test, choose --scheme new")
    names = ("train", "valid", "test")
    if "valid" in table.splits:
        return Division("trainvaltest", names, list(table.splits))
    trained = [row for row, split in enumerate(table.splits) if split == "train"]
    units = len({table.groups[row] for row in trained}) if table.groups else len(trained)
    parts = max(2, min(_VALID_PARTS, units))
    split_of = list(table.splits)
    for row, part in zip(trained, spread(table, trained, parts, seed), strict=True):
        split_of[row] = "valid" if part == 0 else "train"
    kept = ", groups kept whole" if table.groups else ""
    made = f"the table has no validation rows: {split_of.count('valid')} of {len(trained)} training clips became valid"
    return Division("trainvaltest", names, split_of, (made + kept,))


def spread(table: ClipTable, rows: list[int], parts: int, seed: int) -> list[int]:
    """Part (0 to parts - 1) of each of `rows`, with every class and the clips spread evenly over the parts.

    Groups stay whole. The largest group first, each goes where the sum of squares of the parts' shares of each class,
    and of the clips, grows least; the seed orders equals. Unlike scikit-learn's splitters this takes any number of
    labels a clip.

    Raises:
        InputError: there are fewer groups, or clips, than parts.
    """
    keys = [table.groups[row] for row in rows] if table.groups else [str(row) for row in rows]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(number_of) < parts:
        what = "groups" if table.groups else "clips"
        raise InputError(
            f"{table.source}: {parts} splits are to be made of {len(number_of)} {what}; expected one each at least, "
            "ask for fewer folds or label more"
        )
    index_of = {name: index for index, name in enumerate(table.class_names)}
    counts = np.zeros((len(number_of), len(index_of) + 1))
    names = table.names
    for row, key in zip(rows, keys, strict=True):
        counts[number_of[key], [*(index_of[name] for name in names[row]), -1]] += 1
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = np.random.default_rng(seed).permutation(len(shares))
    order = order[np.argsort(-(shares[order] ** 2).sum(axis=1), kind="stable")]
    filled = np.zeros((parts, shares.shape[1]))
    part_of = np.zeros(len(shares), dtype=int)
    for unit in order:
        part_of[unit] = (filled @ shares[unit]).argmin()
        filled[part_of[unit]] += shares[unit]
    return [int(part_of[number_of[key]]) for key in keys]
