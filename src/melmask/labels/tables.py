"""Tables of labels: which clip has which label or events, and what must not leak between splits.

    one label    path,label                    one row a clip
    multilabel   path,labels                   one row a clip, several labels in a cell, none at all allowed; a column
                                               `label` with several in any row is such a one
    event        path,label,start_s,end_s      one row an event; a clip without events has one row with these empty
    segments     path,label,start,end          one row a part of a file, which is a clip with one label or several

Each may have the columns `group`, `fold` and `split`; others are ignored. A column without any value counts as absent.
A `fold` column that holds nothing but split names (train, valid, test) is no fold column: it serves as `split` where
there is no other, and is else dropped. Forms of files, other names of columns, where files are looked for and folders
of data sets are the matter of `read.py`, `columns.py`, `paths.py` and `layouts.py`; docs/tables.md is for users.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int64

from melmask.audio.parts import Sound, sounds_of
from melmask.errors import InputError
from melmask.labels.columns import SPLIT_NAMES, Columns, read_columns
from melmask.labels.layouts import read_folder
from melmask.labels.options import Kind, TableOptions
from melmask.labels.paths import resolved
from melmask.labels.read import report
from melmask.labels.segments import files_as_groups, has_times, identities, segments_note, sounds_of_rows
from melmask.system.terminal import note

_SEPARATOR = ";"
_EVENT_COLUMNS = ("label", "start_s", "end_s")
_IN_LIST = re.compile("'([^']*)'|\"([^\"]*)\"")
_LIST = re.compile("\\[\\s*(?:(?:'[^']*'|\"[^\"]*\")\\s*(?:,\\s*|(?=\\])))*\\]")
_SHARE_OF_LISTS = 0.2
"""In a column called `label`, commas separate labels only if so many cells hold any."""
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
        parts: what of its file each clip is, if the table has times; a path may then occur several times.
        label_sets: all labels of each clip, if a clip may have several or none; `labels` then has the first of each.
    """

    paths: list[Path]
    labels: list[str]
    groups: list[str] | None = None
    folds: list[str] | None = None
    splits: list[str] | None = None
    parts: list[Sound] | None = None
    label_sets: list[list[str]] | None = None

    @property
    def sounds(self) -> list[Sound]:
        """What each clip is: its file, or a part of it."""
        return sounds_of(self.paths) if self.parts is None else self.parts

    @property
    def names(self) -> list[list[str]]:
        """All labels of each clip."""
        return [[label] for label in self.labels] if self.label_sets is None else self.label_sets

    @property
    def class_names(self) -> list[str]:
        """The distinct labels in order: by value where all are whole numbers, else alphabetical."""
        return sorted_names([name for names in self.names for name in names])

    @property
    def label_indices(self) -> Int64[np.ndarray, " rows"]:
        """Index of each clip's label, or first label, among those of all clips, in the order of `class_names`."""
        index_of = {name: index for index, name in enumerate(sorted_names(self.labels))}
        return np.array([index_of[label] for label in self.labels], dtype=np.int64)

    @property
    def targets(self) -> Bool[np.ndarray, "rows classes"]:
        """Whether each clip has each label."""
        index_of = {name: index for index, name in enumerate(self.class_names)}
        targets = np.zeros((len(self.labels), len(index_of)), dtype=bool)
        for row, names in enumerate(self.names):
            targets[row, [index_of[name] for name in names]] = True
        return targets


@dataclass(frozen=True)
class ClipTable:
    """Clips with labels of any kind, a list entry per clip; an optional column is None where the table has none.

    Attributes:
        source: the file.
        kind: "multiclass", "multilabel" or "event".
        paths: where each clip lies; no path occurs twice.
        targets: each clip's labels, of an event table its events in the table's order.
        groups, folds, splits, parts: see `LabelTable`.
    """

    source: Path
    kind: Kind
    paths: list[Path]
    targets: list[list[Any]]
    groups: list[str] | None = None
    folds: list[str] | None = None
    splits: list[str] | None = None
    parts: list[Sound] | None = None

    @property
    def sounds(self) -> list[Sound]:
        """What each clip is: its file, or a part of it."""
        return sounds_of(self.paths) if self.parts is None else self.parts

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
        groups, folds, splits = (_taken(column, keep) for column in (self.groups, self.folds, self.splits))
        return ClipTable(self.source, self.kind, paths, targets, groups, folds, splits, _taken(self.parts, keep))


def keep_rows(table: LabelTable, keep: np.ndarray) -> LabelTable:
    """The rows where `keep` (rows,) bool is true."""
    rows = np.flatnonzero(keep).tolist()
    paths, labels = _taken(table.paths, rows) or [], _taken(table.labels, rows) or []
    groups, folds, splits = (_taken(column, rows) for column in (table.groups, table.folds, table.splits))
    parts, label_sets = _taken(table.parts, rows), _taken(table.label_sets, rows)
    return LabelTable(paths, labels, groups, folds, splits, parts, label_sets)


def _taken(column: list[T] | None, rows: Sequence[int]) -> list[T] | None:
    return None if column is None else [column[row] for row in rows]


def sorted_names(names: Sequence[str]) -> list[str]:
    """Distinct names in order: by value where all are whole numbers ("2" before "10"), else alphabetical."""
    distinct = set(names)
    if all(name.isdecimal() for name in distinct):
        # A Decimal has any length, where int refuses thousands of digits.
        return sorted(distinct, key=lambda name: (Decimal(name), name))
    return sorted(distinct)


def read_labels(path: Path, options: TableOptions = TableOptions(), *, several: bool = False) -> LabelTable:
    """Read a table with one label a clip, or with several if they are allowed.

    Args:
        path: The file, or the folder of a data set.
        options: Which columns count, and the folder that relative paths start from. Without it, that is the first of
            the file's folder and that folder's parent under which one of them exists. Absolute paths are kept.
        several: Whether a cell may hold several labels; else such a table is refused.

    Returns:
        The table, rows in the file's order; `val`, `validation` and `dev` are turned into `valid`.

    Raises:
        InputError: the file cannot be read as such a table, has a row without path or label, a path twice, an
            optional column filled for some rows only, or fewer than two classes.
    """
    columns = _columns(path, options, several=False)
    separator = _separator(columns)
    if separator is not None and not several:
        raise InputError(
            f"{columns.source} has several labels in a cell, separated by {separator!r}, and here each clip has one; "
            "melmask probe, pretrain --monitor, make-task and finetune take them"
        )
    table = _single_labels(columns) if separator is None else _several_labels(columns, separator)
    table, notes = _with_parts(columns, table)
    if separator not in (None, _SEPARATOR):
        notes.append(_separator_note(separator))
    if table.parts is not None:
        notes.insert(0, segments_note(table.parts))
    report(columns.source, [*columns.notes, *notes])
    return table


def read_clips(path: Path, kind: Kind | None = None, options: TableOptions = TableOptions()) -> ClipTable:
    """Read a table with labels of any kind; its columns tell the kind where `kind` is None.

    Args:
        path: The file, or the folder of a data set.
        kind: How the labels are read; "multiclass" takes a label with a ";" for one. Rows with times are events if it
            is "event", else segments. Where it is None, the names of the columns of times decide: those of DCASE,
            Raven, Audacity and of melmask itself (`start_s`, `end_s`) are events.
        options: Where relative paths start and which columns count, see `read_labels`.

    Raises:
        InputError: the file is no such table.
    """
    columns = _columns(path, options, several=None if kind is None else kind == "multilabel")
    separator = _separator(columns)
    notes = list(columns.notes)
    if kind is None:
        several = columns.several or separator is not None
        of_clips: Kind = "multilabel" if several else "multiclass"
        kind = "event" if has_times(columns) and columns.events else of_clips
        if has_times(columns):
            notes.append(_kind_note(kind, of_clips))
    targets: list[list[Any]]
    if kind == "multiclass":
        table = _single_labels(columns)
        targets = [[label] for label in table.labels]
    elif kind == "multilabel":
        table = _clips(columns)
        _check_unique(columns)
        # The semicolon is the documented one; others are a guess.
        if separator not in (None, _SEPARATOR):
            notes.append(_separator_note(separator))
        targets = [_parts(cell, separator or _SEPARATOR) for cell in columns.needed("label")]
    else:
        table, targets = _events(columns, _clips(columns))
    if not any(targets):
        raise InputError(f"{path}: no clip has a label; expected some, fill the column")
    if kind != "event":
        table, added = _with_parts(columns, table)
        notes += added
    report(columns.source, notes)
    return ClipTable(path, kind, table.paths, targets, table.groups, table.folds, table.splits, table.parts)


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
            note(f"{name} is left out: {error}")


def _columns(path: Path, options: TableOptions, several: bool | None) -> Columns:
    columns = (read_folder if path.is_dir() else read_columns)(path, options, several=several)
    cells = columns.values.get("label", [])
    if any(cells) and all(_LIST.fullmatch(cell) for cell in cells if cell):
        # pandas writes a list of labels as Python shows it: ['dog', 'cat'].
        lists = [_SEPARATOR.join(_quoted(cell)) for cell in cells]
        return replace(columns, values={**columns.values, "label": lists}, several=True)
    return columns


def _quoted(cell: str) -> list[str]:
    """The labels of a list as Python shows it, which are between quotation marks of either kind."""
    return [single or double for single, double in _IN_LIST.findall(cell)]


def _kind_note(kind: Kind, of_clips: Kind) -> str:
    """Say how rows with times are taken, and how they can be taken otherwise."""
    if kind == "event":
        return f"takes its rows for events within whole files; with --kind {of_clips} each row is a clip of its own"
    return "takes each row for a clip of its own; with --kind event the rows are events within whole files"


def _with_parts(columns: Columns, table: LabelTable) -> tuple[LabelTable, list[str]]:
    """Make each row with times a part of its file, and keep the parts of a file together; return notes on both."""
    sounds = sounds_of_rows(columns)
    if not any(sound.is_part for sound in sounds):
        return table, []
    table, notes = replace(table, parts=sounds), list[str]()
    if table.groups is None and table.folds is None and table.splits is None:
        groups, note = files_as_groups(sounds)
        table, notes = replace(table, groups=groups), notes + [note] * bool(note)
    return table, notes


def _separator(columns: Columns) -> str | None:
    """The sign between several labels in a cell, or None where every cell holds one."""
    cells = columns.values.get("label", [])
    for sign in (_SEPARATOR, "|"):
        if any(sign in cell for cell in cells):
            return sign
    lists = {cell for cell in cells if "," in cell}
    if not lists or columns.several:
        return "," if lists else None
    # A name may hold a comma, as "Crying, sobbing" does; parts of lists come back in other company.
    cells_of = Counter(part for cell in set(cells) for part in _parts(cell, ","))
    parts = {part for cell in lists for part in _parts(cell, ",")}
    come_back = sum(cells_of[part] > 1 for part in parts) > len(parts) / 2
    many = sum("," in cell for cell in cells) >= _SHARE_OF_LISTS * len(cells)
    return "," if many and come_back else None


def _parts(cell: str, separator: str) -> list[str]:
    """The different labels of a cell."""
    return list(dict.fromkeys(filter(None, (part.strip() for part in cell.split(separator)))))


def _clips(columns: Columns) -> LabelTable:
    """Everything but the labels, a row a row of the file."""
    groups, folds, splits = (columns.optional(name) for name in ("group", "fold", "split"))
    # Some data sets call their split "fold".
    if folds is not None and all(fold.lower() in SPLIT_NAMES for fold in folds):
        folds, splits = None, splits or folds
    for split in splits or ():
        if split.lower() not in SPLIT_NAMES:
            raise InputError(f"{columns.source}: split {split!r} is not known; expected train, valid or test")
    splits = None if splits is None else [SPLIT_NAMES[split.lower()] for split in splits]
    return LabelTable(columns.paths, [""] * len(columns.paths), groups, folds, splits)


def _single_labels(columns: Columns) -> LabelTable:
    labels = columns.filled("label")
    table = _clips(columns)
    _check_unique(columns)
    if len(set(labels)) < 2:
        raise InputError(
            f"{columns.source}: all {len(labels)} rows have label {labels[0]!r}; expected two or more labels"
        )
    return replace(table, labels=labels)


def _separator_note(separator: str | None) -> str:
    return f"holds several labels in a cell, separated by {separator!r}"


def _several_labels(columns: Columns, separator: str) -> LabelTable:
    _check_unique(columns)
    label_sets = [_parts(cell, separator) for cell in columns.needed("label")]
    # Splits spread the first labels evenly, for want of a way to do so for all.
    return replace(_clips(columns), labels=[(names or [""])[0] for names in label_sets], label_sets=label_sets)


def _events(columns: Columns, table: LabelTable) -> tuple[LabelTable, list[list[Any]]]:
    """The clips of a table with a row an event, and the events of each."""
    events: dict[str, list[Any]] = {}
    first_row: dict[str, int] = {}
    cells = zip(*(columns.needed(name) for name in _EVENT_COLUMNS), strict=True)
    for row, (clip, (label, start_s, end_s)) in enumerate(zip(resolved(table.paths), cells, strict=True)):
        found = events.setdefault(clip, [])
        first = first_row.setdefault(clip, row)
        for name, column in (("group", table.groups), ("fold", table.folds), ("split", table.splits)):
            if column is not None and column[row] != column[first]:
                both = f"{column[first]!r} and {column[row]!r}"
                raise InputError(
                    f"{columns.source}: {table.paths[row]} has {name} {both} in different rows; expected one {name} a "
                    "clip"
                )
        if label or start_s or end_s:
            found.append(_event(f"{columns.source}, row {row + 1} after the header", label, start_s, end_s))
    kept = keep_rows(table, np.isin(np.arange(len(table.paths)), list(first_row.values())))
    # Rows are kept in their order, which is that in which `events` met the clips.
    return kept, list(events.values())


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


def _check_unique(columns: Columns) -> None:
    """Refuse a clip that is listed twice, which could put it on both sides of a split."""
    seen: set[tuple[object, ...]] = set()
    sounds = sounds_of_rows(columns)
    # A set keeps this quick for millions of rows.
    for sound, identity in zip(sounds, identities(sounds), strict=True):
        if identity in seen:
            raise InputError(f"{columns.source}: {sound} is listed twice; keep one row per clip")
        seen.add(identity)
