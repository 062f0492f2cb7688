"""What the columns of a table mean: the names that programs and data sets give them become those of melmask.

Every column that is used under another name, and every one that would change what a row means and is not used, is a
note for the user.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from melmask.errors import InputError
from melmask.labels.options import TableOptions
from melmask.labels.paths import find_paths, sound_of
from melmask.labels.read import Sheet, read_sheet

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# The names of columns, without blanks, capitals and units: see `_key`. The first that is there counts.
_PATHS = (
    *("path", "filename", "file_name", "filepath", "file_path", "file", "fname", "slice_file_name", "audio"),
    *("audio_file", "audio_filename", "audio_path", "audio_filepath", "wav", "wav_file", "wav_path", "clip"),
    *("begin_path", "begin_file", "notated_path"),
)
_SEVERAL_LABELS = ("labels", "tags", "event_labels")
_LABELS_OF_EVENTS = ("event_label", "event_labels")
_LABELS = (
    *("label", "labels", "category", "class", "class_name", "event_label", "event_labels", "species", "common_name"),
    *("primary_label", "annotation", "tag", "tags"),
)
_OPTIONAL = {
    "group": ("group", "speaker", "speaker_id", "client_id", "src_file", "fsid"),
    "fold": ("fold",),
    "split": ("split", "subset", "set", "partition"),
}
_TIMES = (
    *(("start_s", "end_s"), ("start", "end"), ("onset", "offset"), ("onset_s", "offset_s"), ("begin_time", "end_time")),
    *(("start_time", "end_time"), ("start_time_s", "end_time_s"), ("start_sec", "end_sec"), ("begin", "end")),
    *(("start_seconds", "end_seconds"), ("start_ms", "end_ms"), ("onset_ms", "offset_ms")),
)
_STARTS = (*(start for start, _ in _TIMES if not start.endswith("_ms")), "offset")
_LENGTHS = ("duration_s", "duration")
"""A start and a duration are times, too; `offset` is a start where there is no `onset`."""
_TIMES_OF_EVENTS = frozenset(("start_s", "onset", "onset_s", "onset_ms", "begin_time"))
"""melmask's own event tables, those of DCASE, and those of Raven; other names are of segments."""
# A row may be about a part of the sound, or about what is not there; nothing here reads these.
_MEANINGFUL = frozenset(
    (
        *("low_freq", "high_freq", "min_freq", "max_freq", "confidence", "score", "probability"),
        *("present", "presence"),
    )
)
_MS_PER_S = 1000.0
_Names = dict[str, int]
"""Index of each column by its key."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table by what they mean, a list entry per row.

    Attributes:
        source: The table, or the folder of a data set.
        values: By meaning: label, group, fold, split, start_s, end_s, as far as the table has them.
        paths: Where each row's file lies.
        several: Whether the label column is one of several labels by its name.
        events: Whether the names of its columns are those of a table of events, if it has times.
        missing: What to say where a column is needed that is not there, by meaning.
        notes: What was assumed, a line each.
    """

    source: Path
    values: dict[str, list[str]]
    paths: list[Path]
    several: bool = False
    events: bool = False
    missing: Callable[[str], str] = field(default=lambda name: f"no column `{name}`", repr=False)
    notes: list[str] = field(default_factory=list)

    def needed(self, name: str) -> list[str]:
        """A column that has to be there."""
        if name not in self.values:
            raise InputError(f"{self.source}: {self.missing(name)}")
        return self.values[name]

    def filled(self, name: str) -> list[str]:
        """A column that has to be there, with a value in each row."""
        values = self.needed(name)
        check_filled(self.source, name, values)
        return values

    def optional(self, name: str) -> list[str] | None:
        """A column with a value in each row; None where it is missing or has no value at all."""
        return self.filled(name) if any(self.values.get(name, ())) else None


def check_filled(source: Path, name: str, values: Sequence[str]) -> None:
    """Raise InputError if a value is missing."""
    empty = [row for row, value in enumerate(values, start=1) if not value]
    if empty:
        raise InputError(
            f"{source}: `{name}` is empty in {len(empty)} of {len(values)} rows, first in row {empty[0]} "
            "after the header; fill it or leave those rows out"
        )


def read_columns(
    path: Path,
    options: TableOptions,
    *,
    several: bool | None = None,
    labels: bool = True,
    roots: Sequence[Path] = (),
) -> Columns:
    """Read a table and find the files of its rows.

    Args:
        path: The table.
        options: Where its files are, and which columns count.
        several: Of the columns `label` and `labels`, whether `labels` counts; None refuses a table with both.
        labels: Whether more counts than paths and times. A list of files may have rows without any, which are skipped.
        roots: Folders where relative paths may start, unless the options say so: the table's folder and its parent.

    Raises:
        InputError: it cannot be read, its columns cannot be told apart, or its files are not found.
    """
    columns = name_columns(read_sheet(path, options.encoding), options, several=several, labels=labels)
    return _with_paths(columns, path, options, roots)


def read_every_column(path: Path, options: TableOptions) -> tuple[Columns, dict[str, list[str]]]:
    """Read a table for its files and times, and return all its columns but the paths too, under their own names.

    Rows without a path are left out.

    Raises:
        InputError: as `read_columns`.
    """
    sheet = read_sheet(path, options.encoding)
    names, found = _keys(sheet), dict[str, str]()
    _find_column(sheet, names, found, "path", options.path_column or _path_key(sheet, names))
    sheet = _used_rows(sheet, names, found.get("path"))
    columns = name_columns(sheet, replace(options, label_column=None), labels=False)
    every = {sheet.header[index]: sheet.column(index) for key, index in names.items() if key != found.get("path")}
    return _with_paths(columns, path, options), every


def _with_paths(columns: Columns, path: Path, options: TableOptions, roots: Sequence[Path] = ()) -> Columns:
    """Find the files of the rows, as `read_columns` says."""
    if options.audio_root is not None:
        roots = [options.audio_root]
    # Without a name of its own, a folder has no parent to look in.
    roots = list(roots) or [path.parent, path.absolute().parent.parent]
    names = columns.values.pop("path")
    if columns.paths:
        return columns
    paths, notes = find_paths(path, names, roots)
    return replace(columns, paths=paths, notes=[*columns.notes, *notes])


def name_columns(sheet: Sheet, options: TableOptions, *, several: bool | None = None, labels: bool = True) -> Columns:
    """Return the columns of a sheet under melmask's names, `path` among them; a table beside its sound has paths.

    Raises:
        InputError: there is no path, a column is asked for that is not there, or several could be the label.
    """
    names = _keys(sheet)
    found: dict[str, str] = {}
    _find_column(sheet, names, found, "path", options.path_column or _path_key(sheet, names))
    sheet = _used_rows(sheet, names, None if labels else found.get("path"))
    if labels and sheet.label_track:
        sheet = _with_text(sheet, names)
    if labels:
        _find_column(sheet, names, found, "label", options.label_column or _label_key(sheet, names, several))
        for name, keys in _OPTIONAL.items():
            key = next((key for key in keys if key in names), None)
            if key is not None and _serves(name, key, sheet.column(names[key])):
                found[name] = key
    values = {name: sheet.column(names[key]) for name, key in found.items()}
    times, notes = _times(sheet, names, found)
    values |= times
    notes = [*sheet.notes, *_renaming_notes(sheet, names, found), *notes]
    if unused := [f"`{sheet.header[index]}`" for key, index in names.items() if key in _MEANINGFUL]:
        notes.append(f"has {', '.join(unused)}, not used here: every row counts in full")
    if "channel" in names:
        notes.append(f"has `{sheet.header[names['channel']]}`, which is not used: every row is about all channels")
    paths: list[Path] = []
    if "path" in values:
        check_filled(sheet.path, "path", values["path"])
    elif "start_s" in values:
        # Tables of annotation programs are about the sound beside them.
        paths = [sound_of(sheet.path)] * len(sheet.rows)
        values["path"] = [paths[0].name] * len(sheet.rows)
        notes.append(f"has no column of paths, so it is about {paths[0].name}")
    else:
        raise InputError(f"{sheet.path}: {_missing_text(sheet, 'path')}")
    return Columns(
        source=sheet.path,
        values=values,
        paths=paths,
        several=found.get("label") in _SEVERAL_LABELS,
        events=found.get("label") in _LABELS_OF_EVENTS or not _TIMES_OF_EVENTS.isdisjoint(names),
        missing=lambda name: _missing_text(sheet, name),
        notes=notes,
    )


def _find_column(sheet: Sheet, names: _Names, found: dict[str, str], name: str, written: str | None) -> None:
    """Note the key of the column `written`, which somebody asked for or which has a known name."""
    if written is None:
        return
    if _key(written) not in names:
        raise InputError(f"{sheet.path}: no column `{written}`, as --{name}-column says; {_columns_text(sheet)}")
    found[name] = _key(written)


def _used_rows(sheet: Sheet, names: _Names, path_key: str | None) -> Sheet:
    """Leave out rows without a path, if there is `path_key`, and Raven's second rows of a selection."""
    rows = sheet.rows
    if {"selection", "view"} <= set(names):
        # Raven writes a row for each view in which a selection is seen.
        view = names["view"]
        rows = list({(*row[:view], *row[view + 1 :]): row for row in reversed(rows)}.values())[::-1]
    if path_key is not None:
        rows = [row for row in rows if row[names[path_key]]]
    if not rows:
        raise InputError(f"{sheet.path}: a header but no rows; expected one row per clip")
    return replace(sheet, rows=rows)


def _with_text(sheet: Sheet, names: _Names) -> Sheet:
    """Leave out what a label track marks without saying what it is."""
    rows = [row for row in sheet.rows if row[names["label"]]]
    if not rows:
        raise InputError(f"{sheet.path}: none of its {len(sheet.rows)} labels has a text; write some in Audacity")
    left_out = len(sheet.rows) - len(rows)
    notes = [f"leaves out {left_out} labels without text"] if left_out else []
    return replace(sheet, rows=rows, notes=[*sheet.notes, *notes])


def _renaming_notes(sheet: Sheet, names: _Names, found: Mapping[str, str]) -> list[str]:
    own = {("label", "labels"), *((name, name) for name in found)}
    renamed = [f"{name} from `{sheet.header[names[key]]}`" for name, key in found.items() if (name, key) not in own]
    return [f"takes {', '.join(renamed)}"] if renamed else []


def joined(source: Path, parts: Sequence[Columns]) -> Columns:
    """Put tables one below the other.

    Rows of tables without times are whole files. Any other column that one of the tables lacks is left out, which is
    noted.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.values))
    filled = {"start_s", "end_s"} & set(names)
    lacking = [name for name in names if name not in filled and not all(name in part.values for part in parts)]
    shared = [name for name in names if name not in lacking]
    notes = [f"some of its tables have no `{name}`, so it is not used" for name in lacking]
    return Columns(
        source=source,
        values={
            name: [value for part in parts for value in part.values.get(name, [""] * len(part.paths))]
            for name in shared
        },
        paths=[path for part in parts for path in part.paths],
        several=any(part.several for part in parts),
        events=any(part.events for part in parts),
        missing=parts[0].missing,
        notes=[*(note for part in parts for note in part.notes), *notes],
    )


def _key(name: str) -> str:
    """'Begin Time (s)' -> 'begin_time': what programs add to a name does not change its meaning."""
    plain = re.sub(r"\s*\((s|sec|seconds|hz)\)$", "", name.strip().lower())
    return re.sub(r"[\s-]+", "_", plain)


def _keys(sheet: Sheet) -> _Names:
    names: _Names = {}
    for index, name in enumerate(sheet.header):
        key = _key(name)
        if key and key in names:
            count = sum(_key(other) == key for other in sheet.header)
            raise InputError(f"{sheet.path}: {count} columns are called `{key}`; keep or rename one")
        if key:
            names[key] = index
    return names


def _path_key(sheet: Sheet, names: _Names) -> str | None:
    known = [key for key in _PATHS if key in names]
    # Raven writes the file's name beside its path.
    if known[:1] == ["path"] or known == ["begin_path", "begin_file"]:
        return known[0]
    if len(known) > 1:
        raise InputError(f"{sheet.path}: {_either(sheet, names, known)} could be the paths; say which: --path-column")
    return known[0] if known else None


def _label_key(sheet: Sheet, names: _Names, several: bool | None) -> str | None:
    known = [key for key in _LABELS if key in names]
    if known[:2] == ["label", "labels"]:
        if several is None:
            raise InputError(
                f"{sheet.path} has columns `label` and `labels`; say which counts with --kind multiclass or multilabel"
            )
        return "labels" if several else "label"
    if len(known) > 1 and known[0] not in ("label", "labels"):
        raise InputError(f"{sheet.path}: {_either(sheet, names, known)} could be the label; say which: --label-column")
    return known[0] if known else None


def _either(sheet: Sheet, names: _Names, keys: Sequence[str]) -> str:
    return " or ".join(f"`{sheet.header[names[key]]}`" for key in keys)


def _serves(name: str, key: str, values: Sequence[str]) -> bool:
    """Whether a column with a name that is not melmask's own has what it promises."""
    if key == name:
        return True
    return all(values) and (name != "split" or all(value.lower() in SPLIT_NAMES for value in values))


def _times(sheet: Sheet, names: _Names, found: Mapping[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return start_s and end_s where a pair of columns has them, and notes on times that are not used."""
    pair = next((pair for pair in _TIMES if set(pair) <= set(names)), None)
    start, length = (next((key for key in keys if key in names), None) for keys in (_STARTS, _LENGTHS))
    if pair is None and start and length:
        return _times_by_duration(sheet, names[start], names[length])
    if pair is None:
        lone = [key for key in names if any(key in pair for pair in _TIMES)]
        own = {key: sheet.column(names[key]) for key in lone if key in ("start_s", "end_s")}
        rest = [f"`{sheet.header[names[key]]}`" for key in lone if key not in own]
        return own, [f"has {name} without its counterpart, so it is not used" for name in rest]
    written = " and ".join(f"`{sheet.header[names[key]]}`" for key in pair)
    starts, ends = (sheet.column(names[key]) for key in pair)
    if found.get("path") == "slice_file_name" and "fsid" in names:
        return {}, [f"has {written}, which are times in the original recordings: whole files are taken"]
    if pair != _TIMES[0]:
        if not any((*starts, *ends)):
            return {}, []
        if not _are_times((*starts, *ends)):
            return {}, [f"has {written}, which are no times in seconds, so they are not used"]
        if pair == ("begin_time", "end_time") and "file_offset" in names:
            # Raven counts these times over all files of a sequence, and the offset within the row's own file.
            offsets = sheet.column(names["file_offset"])
            ends = [_end_in_file(*cells) for cells in zip(offsets, starts, ends, strict=True)]
            starts = offsets
    scale = _MS_PER_S if pair[0].endswith("_ms") else 1.0
    times = {"start_s": [_seconds(cell, scale) for cell in starts], "end_s": [_seconds(cell, scale) for cell in ends]}
    return times, [] if pair == _TIMES[0] else [f"takes {written} for the start and end of each row"]


def _times_by_duration(sheet: Sheet, start: int, length: int) -> tuple[dict[str, list[str]], list[str]]:
    starts, lengths = sheet.column(start), sheet.column(length)
    written = f"`{sheet.header[start]}` and `{sheet.header[length]}`"
    if not any(starts):
        return {}, []
    if not _are_times(starts) or not _are_times(lengths):
        return {}, [f"has {written}, which are no times in seconds, so they are not used"]
    ends = [_end_in_file(at, "0", duration) for at, duration in zip(starts, lengths, strict=True)]
    times = {"start_s": [_seconds(cell, 1.0) for cell in starts], "end_s": ends}
    return times, [f"takes {written} for the start and the duration of each row"]


def _are_times(cells: Sequence[str]) -> bool:
    """Whether most cells are numbers; a few others are mistakes, and fail where they are read."""
    filled = [cell for cell in cells if cell]
    return sum(map(_is_number, filled)) * 2 >= len(filled)


def _seconds(cell: str, scale: float) -> str:
    if not cell or (scale == 1.0 and "," not in cell):
        return cell
    return repr(time_of(cell) / scale) if _is_number(cell) else cell


def _end_in_file(offset: str, start: str, end: str) -> str:
    if not all(map(_is_number, (offset, start, end))):
        return end
    return repr(round(time_of(offset) + time_of(end) - time_of(start), 6))


def _is_number(cell: str) -> bool:
    try:
        time_of(cell)
    except ValueError:
        return False
    return True


def time_of(cell: str) -> float:
    """Return the number in a cell; raise ValueError if there is none."""
    # Programs in many languages write a decimal comma.
    return float(cell.replace(",", "."))


def _missing_text(sheet: Sheet, name: str) -> str:
    return f"no column `{name}`; {_columns_text(sheet, name)}"


def _columns_text(sheet: Sheet, missing: str = "") -> str:
    """Say which columns there are, and which of them may be the missing one under another name."""
    named = f"columns are {', '.join(sheet.header)}"
    if missing not in ("path", "label"):
        return f"{named}; add or rename one to `{missing}`" if missing else named
    near = get_close_matches(missing, [name.lower() for name in sheet.header], n=1)
    hint = f"nearest is `{near[0]}`, rename it" if near else f"add or rename one to `{missing}`"
    return f"{named}; {hint}, or name it with --{missing}-column"
