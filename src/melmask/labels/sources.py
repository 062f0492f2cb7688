"""The sounds that a command works on: files, folders, and tables of files."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from melmask.audio.files import find_audio
from melmask.audio.parts import Sound, sounds_of
from melmask.labels.columns import read_columns
from melmask.labels.options import TableOptions
from melmask.labels.read import is_table, report
from melmask.labels.segments import identities, segments_note, sounds_of_rows


def find_sounds(sources: Iterable[Path], options: TableOptions = TableOptions()) -> list[Sound]:
    """Return the sounds of `sources`, in order and without repeats: files, folders (searched), tables with paths.

    A row of a table that has times is a part of its file. Two paths of one file, or of the same part of one, count
    once, by the first, whichever sources they are from.

    Raises:
        InputError: a source does not exist, gives no file, or is a table that cannot be used.
    """
    found: dict[tuple[object, ...], Sound] = {}
    for source in sources:
        sounds = _of_table(source, options) if is_table(source) else sounds_of(find_audio([source]))
        for identity, sound in zip(identities(sounds), sounds, strict=True):
            found.setdefault(identity, sound)
    return list(found.values())


def _of_table(table: Path, options: TableOptions) -> list[Sound]:
    columns = read_columns(table, replace(options, label_column=None), labels=False)
    sounds, notes = sounds_of_rows(replace(columns, paths=list(map(_spelled, columns.paths)))), list(columns.notes)
    if any(sound.is_part for sound in sounds):
        notes.append(segments_note(sounds))
    report(table, notes)
    return sounds


def _spelled(path: Path) -> Path:
    """As for the files of a folder: spell out a name that is not UTF-8, which then leads to no file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Path(str(path).encode(errors="backslashreplace").decode())
    return path
