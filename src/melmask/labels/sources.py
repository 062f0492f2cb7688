"""The sounds that a command works on: files, folders, and tables of files."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from melmask.audio.files import find_audio
from melmask.labels.columns import read_columns
from melmask.labels.options import TableOptions
from melmask.labels.read import is_table, report


def find_sounds(sources: Iterable[Path], options: TableOptions = TableOptions()) -> list[Path]:
    """Return the sound files of `sources`, in order and without repeats: files, folders (searched), tables with paths.

    Two paths of one file count once, by the first, whichever sources they are from.

    Raises:
        InputError: a source does not exist, gives no file, or is a table that cannot be used.
    """
    found: dict[str, Path] = {}
    for source in sources:
        paths = _paths_of_table(source, options) if is_table(source) else find_audio([source])
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _paths_of_table(table: Path, options: TableOptions) -> list[Path]:
    columns = read_columns(table, replace(options, label_column=None), labels=False)
    notes = list(columns.notes)
    if "start_s" in columns.values:
        files, rows = len(set(columns.paths)), len(columns.paths)
        notes.append(f"its {rows} rows are parts of files, but whole files are taken, {files} of them")
    report(table, notes)
    # As for the files of a folder: a name that is not UTF-8 is spelled out, and leads to no file.
    return [Path(str(path).encode(errors="backslashreplace").decode()) for path in columns.paths]
