"""Label tables: the CSV file that says which clip has which label, and what must not leak between splits."""

import csv
import difflib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64

from melmask.errors import InputError

T = TypeVar("T")

REQUIRED_COLUMNS = ("path", "label")
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}


@dataclass(frozen=True)
class LabelTable:
    """One labelled task, a list entry per clip; an optional column is None where the file has none.

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


def keep_rows(table: LabelTable, keep: np.ndarray) -> LabelTable:
    """The rows where `keep` (rows,) bool is true."""

    def kept(column: list[Any] | None) -> list[Any] | None:
        return None if column is None else [value for value, wanted in zip(column, keep, strict=True) if wanted]

    return LabelTable(*(kept(getattr(table, field.name)) for field in fields(LabelTable)))  # pyright: ignore


def sorted_names(names: list[str]) -> list[str]:
    """Distinct names in order: by value where all are whole numbers ("2" before "10"), else alphabetical."""
    distinct = set(names)
    if all(name.isdecimal() for name in distinct):
        # Of any length, where int refuses thousands of digits.
        return sorted(distinct, key=lambda name: (Decimal(name), name))
    return sorted(distinct)


def read_labels(path: Path, audio_root: Path | None = None) -> LabelTable:
    """Reads a label table from a CSV file with a header line.

    Columns `path` and `label` are needed; `group`, `fold` and `split` are optional, others are ignored. An
    optional column without any value counts as absent. A `fold` column that holds nothing but split names
    (train, valid, test) is no fold column: it serves as `split` where there is no other, and is else dropped.

    Args:
        path: the CSV file, UTF-8, columns separated by commas.
        audio_root: folder that relative paths start from. Without it, the first of the CSV's folder and that
            folder's parent under which the first relative path exists. Absolute paths are kept.

    Returns:
        The table, rows in the file's order; `val`, `validation` and `dev` are turned into `valid`.

    Raises:
        InputError: the file cannot be read as such a table, has a row without path or label, a path twice, an
            optional column filled for some rows only, or fewer than two classes.
    """
    columns = _read_columns(path)
    for name in REQUIRED_COLUMNS:
        check_filled(path, name, columns[name])
    paths = resolve_paths(path, columns["path"], audio_root)
    check_unique(path, paths)
    labels = columns["label"]
    if len(set(labels)) < 2:
        raise InputError(f"{path}: all {len(labels)} rows have label {labels[0]!r}; expected two or more")
    groups, folds, splits = (optional_column(path, name, columns) for name in ("group", "fold", "split"))
    if folds is not None and all(fold.lower() in SPLIT_NAMES for fold in folds):
        folds, splits = None, splits or folds
    return LabelTable(paths, labels, groups, folds, normalise_splits(path, splits))


def judged_tables(
    tables: Mapping[str, LabelTable], judge: Callable[[str, LabelTable], T], failed: dict[str, str]
) -> Iterator[tuple[str, T]]:
    """What `judge` says of each table, by name; tables that it refuses come into `failed`, with the reason.

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


def _read_columns(path: Path) -> dict[str, list[str]]:
    """The file's values by column name (lower case), each without surrounding blanks."""
    rows = read_rows(path)
    if not rows:
        raise InputError(f"{path}: the file is empty; expected a header with `path` and `label`, then rows")
    header = [name.strip().lower() for name in rows[0][1]]
    if {"start_s", "end_s"} <= set(header) or ("labels" in header and "label" not in header):
        raise InputError(
            f"{path} has events, or several labels a clip, and here each has one; melmask make-task and evaluate take "
            "them"
        )
    for name in REQUIRED_COLUMNS:
        if name not in header:
            raise InputError(f"{path}: no column `{name}`; {describe_header(name, header)}")
    if len(rows) == 1:
        raise InputError(f"{path}: a header but no rows; expected one row per clip")
    return columns_of(path, rows)


def columns_of(path: Path, rows: list[tuple[int, list[str]]]) -> dict[str, list[str]]:
    """The values of `read_rows` by column name (lower case), each without surrounding blanks."""
    header = [name.strip().lower() for name in rows[0][1]]
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f"{path}: {header.count(name)} columns are called `{name}`; keep or rename one")
    for line, values in rows:
        if len(values) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(values)} values for {len(header)} columns; quote values that hold a comma"
            )
    return {name: [values[i].strip() for _, values in rows[1:]] for i, name in enumerate(header)}


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and values of every line that is not blank, the header among them."""
    try:
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


def describe_header(missing: str, header: list[str]) -> str:
    """What columns there are, and which of them may be the missing one under another name."""
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        return f"the header is {header[0]!r}: separate the columns with commas"
    nearest = difflib.get_close_matches(missing, header, n=1)
    hint = f"; nearest is `{nearest[0]}`, rename it" if nearest else f"; add or rename one to `{missing}`"
    return "columns are " + ", ".join(header) + hint


def check_filled(path: Path, name: str, values: list[str]) -> None:
    """Refuses a column that has a value for some rows only."""
    empty = [row for row, value in enumerate(values, start=1) if not value]
    if empty:
        raise InputError(
            f"{path}: `{name}` is empty in {len(empty)} of {len(values)} rows, first in row {empty[0]} "
            "after the header; fill it or leave those rows out"
        )


def optional_column(path: Path, name: str, columns: dict[str, list[str]]) -> list[str] | None:
    """An optional column's values; None where the column is missing or has no value at all."""
    values = columns.get(name, [])
    if not any(values):
        return None
    check_filled(path, name, values)
    return values


def normalise_splits(path: Path, splits: list[str] | None) -> list[str] | None:
    """Maps the accepted spellings to train, valid and test."""
    if splits is None:
        return None
    unknown = sorted_names([split for split in splits if split.lower() not in SPLIT_NAMES])
    if unknown:
        raise InputError(f"{path}: split {unknown[0]!r} is not known; expected train, valid or test")
    return [SPLIT_NAMES[split.lower()] for split in splits]


def resolve_paths(path: Path, names: list[str], audio_root: Path | None) -> list[Path]:
    """Joins relative names to the root they start from."""
    relative = [name for name in names if not Path(name).is_absolute()]
    if not relative:
        return [Path(name) for name in names]
    roots = [audio_root] if audio_root is not None else [path.parent, path.absolute().parent.parent]
    for root in roots:
        # Any row will do: single missing files are reported where they are read.
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
        # A name that is too long, say.
        return False


def check_unique(path: Path, paths: list[Path]) -> None:
    """Refuses a clip that is listed twice, which could put it on both sides of a split."""
    seen: set[Path] = set()
    for clip in paths:
        if clip in seen:
            raise InputError(f"{path}: {clip} is listed twice; keep one row per clip")
        seen.add(clip)
