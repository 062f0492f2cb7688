"""Folders of published data sets, and of users' own, read as the tables that they are."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonpath
from pathlib import Path

from melmask.audio.files import find_audio
from melmask.audio.folders import SCANNED_SUFFIXES
from melmask.errors import InputError
from melmask.labels.columns import SPLIT_NAMES, Columns, joined, read_columns
from melmask.labels.options import TableOptions
from melmask.system.reading import read_bytes

_ESC50 = Path("meta", "esc50.csv")
_URBANSOUND8K = Path("metadata", "UrbanSound8K.csv")
_FSD50K = Path("FSD50K.ground_truth")
_METADATA = ("metadata.csv", "metadata.jsonl")
"""Of Hugging Face's audiofolder."""
_SPEECH_COMMANDS = {"test": "testing_list.txt", "valid": "validation_list.txt"}
_SAME_SPEAKER = "_nohash_"
"""In Speech Commands, what is before it in a file's name stands for the speaker."""
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_MOST_TRIED = 20
_KNOWN = (
    "class folders, a table, annotations beside sounds, ESC-50, UrbanSound8K, FSD50K, Speech Commands or audiofolder"
)


def read_folder(folder: Path, options: TableOptions, *, several: bool | None = None) -> Columns:
    """Read a folder of labeled sounds: the first that fits of the layouts that docs/tables.md lists.

    Raises:
        InputError: none fits, or the one that does cannot be used.
    """
    for table in (_ESC50, _URBANSOUND8K, *map(Path, _METADATA)):
        if (folder / table).is_file():
            columns = read_columns(folder / table, options, several=several, roots=[folder])
            return _with_split_of_folders(columns, folder)
    if (folder / _FSD50K).is_dir():
        return _fsd50k(folder, options)
    parts = _split_folders(folder)
    if parts:
        return _joined_splits(folder, parts, options, several)
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in _TABLES and path.is_file())
    if len(tables) == 1:
        try:
            return read_columns(tables[0], options, several=several)
        except InputError:
            # Folders of classes may have a table about something else beside them.
            if (classes := _class_folders(folder)) is None:
                raise
            return classes
    found = _annotations(folder, options) or _class_folders(folder)
    if found is not None:
        return found
    if tables:
        raise InputError(f"{folder} holds {len(tables)} tables, {tables[0].name} and others; give one of them")
    raise InputError(f"{folder} is no folder of labeled sounds; expected {_KNOWN}")


def _fsd50k(folder: Path, options: TableOptions) -> Columns:
    """The development set with its official split, and the evaluation set as the test."""
    parts = []
    for name in ("dev.csv", "eval.csv"):
        if (folder / _FSD50K / name).is_file():
            part = read_columns(folder / _FSD50K / name, options, roots=[folder])
            values = {"split": ["test"] * len(part.paths)} if name == "eval.csv" else {}
            parts.append(replace(part, values={**part.values, **values}))
    if not parts:
        raise InputError(f"{folder / _FSD50K} has no dev.csv or eval.csv; unpack the data set whole")
    return joined(folder, parts)


def _with_split_of_folders(columns: Columns, folder: Path) -> Columns:
    """Audiofolder may say the split by the folder of a file alone."""
    splits = []
    for path in columns.paths:
        inside = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
        splits += [part.lower() for part in inside[:-1] if part.lower() in SPLIT_NAMES][:1]
    if "split" in columns.values or len(splits) < len(columns.paths):
        return columns
    note = "takes the split from the folders' names"
    return replace(columns, values={**columns.values, "split": splits}, notes=[*columns.notes, note])


def _split_folders(folder: Path) -> list[Path]:
    """The folders that are called train, test and the like, train among them."""
    for place in (folder, folder / "data"):
        found = sorted(p for p in place.iterdir() if p.name.lower() in SPLIT_NAMES) if place.is_dir() else []
        found = [path for path in found if path.is_dir()]
        if len(found) > 1 and any(SPLIT_NAMES[path.name.lower()] == "train" for path in found):
            return found
    return []


def _joined_splits(folder: Path, parts: Sequence[Path], options: TableOptions, several: bool | None) -> Columns:
    tables = []
    for part in parts:
        metadata = [part / name for name in _METADATA if (part / name).is_file()]
        table = read_columns(metadata[0], options, several=several, roots=[part]) if metadata else _class_folders(part)
        if table is None:
            raise InputError(f"{part} has neither {_METADATA[0]} nor a folder for each class; add one")
        split = [SPLIT_NAMES[part.name.lower()]] * len(table.paths)
        tables.append(replace(table, values={**table.values, "split": split}))
    columns = joined(folder, tables)
    return replace(columns, notes=[*columns.notes, "takes the split from the folders' names"])


def _annotations(folder: Path, options: TableOptions) -> Columns | None:
    """Tables of Raven or Audacity, each beside the sound that it is named after."""
    sounds = {(path.parent, path.stem) for path in folder.rglob("*") if path.suffix.lower() in SCANNED_SUFFIXES}
    texts = [
        path
        for path in sorted(folder.rglob("*.txt"))
        if any((path.parent, stem) in sounds for stem in _stems(path.name))
    ]
    tables: list[Columns] = []
    skipped: list[str] = []
    for path in texts:
        try:
            table = read_columns(path, options)
        except InputError as error:
            skipped.append(str(error))
            table = None
        if table is not None and "start_s" in table.values:
            tables.append(table)
        elif not tables and len(skipped) >= _MOST_TRIED:
            # Texts beside sounds may be transcripts, and there may be many.
            return None
    if not tables:
        return None
    columns = joined(folder, tables)
    notes = [f"takes {len(tables)} tables of annotations", *columns.notes]
    if skipped:
        notes.append(f"leaves out {len(skipped)} texts that are no such table; the first: {skipped[0]}")
    if silent := len(sounds) - len(set(columns.paths)):
        notes.append(f"leaves out {silent} sounds that no table is about")
    return replace(columns, notes=notes)


def _stems(name: str) -> list[str]:
    """'a.b.txt' -> 'a.b', 'a'."""
    dots = [found.start() for found in re.finditer(r"\.", name)]
    return [name[:dot] for dot in reversed(dots)]


def _class_folders(folder: Path) -> Columns | None:
    """A folder for each class, with Speech Commands' lists of what is held out where they are; None for fewer than two.

    Folders whose names begin with an underscore hold no class: Speech Commands has its noises in one.
    """
    try:
        sounds = find_audio([folder])
    except InputError:
        return None
    # Class folders may lie deeper than the folder that is given.
    top = Path(commonpath([path.parent for path in sounds]))
    rows = [(path, path.relative_to(top).parts) for path in sounds]
    notes = []
    left_out = Counter(parts[0] if len(parts) > 1 else "" for _, parts in rows if len(parts) < 2 or parts[0][0] == "_")
    for name, count in left_out.items():
        notes.append(f"leaves out {count} sounds {f'in {name}' if name else 'that are in no folder of a class'}")
    rows = [(path, parts) for path, parts in rows if len(parts) > 1 and parts[0][0] != "_"]
    labels = [parts[0] for _, parts in rows]
    if len(set(labels)) < 2:
        return None
    notes.append(f"takes the names of its {len(set(labels))} folders for labels")
    values = {"label": labels}
    lists = {split: top / name for split, name in _SPEECH_COMMANDS.items() if (top / name).is_file()}
    if lists:
        texts = {split: read_bytes(path).decode("utf-8", "replace") for split, path in lists.items()}
        of_file = {line.strip(): split for split, text in texts.items() for line in text.split("\n")}
        values["split"] = [of_file.get("/".join(parts), "train") for _, parts in rows]
        notes.append(f"takes the split from {' and '.join(path.name for path in lists.values())}")
    if all(_SAME_SPEAKER in path.name for path, _ in rows):
        values["group"] = [path.name.partition(_SAME_SPEAKER)[0] for path, _ in rows]
    return Columns(source=folder, values=values, paths=[path for path, _ in rows], notes=notes)
