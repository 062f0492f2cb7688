"""Segments: rows of a table with a start and an end, each of them a clip of its own."""

import math
from collections.abc import Sequence
from pathlib import Path

from melmask.audio.parts import Sound
from melmask.labels.columns import Columns, time_of
from melmask.labels.paths import resolved

_FEWEST_FILES = 5
"""Of fewer files, no fold of whole files can be held out in each of five turns."""


def has_times(columns: Columns) -> bool:
    """Whether a table has a column of starts or ends."""
    return not {"start_s", "end_s"}.isdisjoint(columns.values)


def sounds_of_rows(columns: Columns) -> list[Sound]:
    """Return what each row is about: its file, or the part of the file that its times give.

    A row without a start begins with its file, and one without an end ends with it. Times that are none become the
    `fault` of the sound, which fails when it is read, and no other row with it.
    """
    if not has_times(columns):
        return [Sound(path) for path in columns.paths]
    empty = [""] * len(columns.paths)
    starts, ends = (columns.values.get(name, empty) for name in ("start_s", "end_s"))
    return [_part(path, start, end) for path, start, end in zip(columns.paths, starts, ends, strict=True)]


def _part(path: Path, start: str, end: str) -> Sound:
    try:
        start_s = time_of(start) if start else 0.0
        end_s = time_of(end) if end else None
    except ValueError:
        start_s = end_s = math.nan
    # Comparisons with NaN are false.
    if 0 <= start_s < math.inf and (end_s is None or start_s < end_s < math.inf):
        return Sound(path, start_s, end_s)
    return Sound(
        path,
        fault=f"{path}: a segment cannot be from {start!r} to {end!r}; expected seconds, at least 0, and the start "
        "before the end",
    )


def identities(sounds: Sequence[Sound]) -> list[tuple[str, float, float | None, str]]:
    """Return what tells each sound from others: its times and its real file, so that links make no difference."""
    real = resolved([sound.path for sound in sounds])
    return [(file, sound.start_s, sound.end_s, sound.fault) for file, sound in zip(real, sounds, strict=True)]


def segments_note(sounds: Sequence[Sound]) -> str:
    """Say that rows are parts of files, each of them a clip."""
    files = len({sound.path for sound in sounds})
    return f"takes each of its {len(sounds)} rows for a segment of its file, of which there are {files}"


def files_as_groups(sounds: Sequence[Sound]) -> tuple[list[str] | None, str]:
    """Return the groups of segments whose table names none, and a note: a file must not be on both sides of a split.

    There are no groups where each file has one segment, or where there are too few files to hold whole ones out.
    """
    files = resolved([sound.path for sound in sounds])
    count = len(set(files))
    if count == len(files):
        return None, ""
    # A task folder keeps the names of groups, and says nothing of the folders here if it need not.
    names = [Path(file).name for file in files]
    files = names if len(set(names)) == count else files
    if count < _FEWEST_FILES:
        return None, (
            f"its segments are of too few files to hold whole ones out ({count}): segments of one file may be both "
            "trained and tested on, unless a column `split`, `fold` or `group` says otherwise"
        )
    return files, "has no column of groups, so segments of one file stay on one side of a split"
