"""The labels that a user gives to points: saved at each change, as the table that `melmask finetune` takes."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from melmask.audio.parts import Sound
from melmask.errors import InputError
from melmask.labels.read import read_sheet
from melmask.system.files import csv_text, locked, write_csv
from melmask.system.terminal import shown

_HEADER = ("path", "label", "start", "end")
"""Columns called `start_s` and `end_s` would be those of a table of events."""
_LONGEST = 200
_SEPARATORS = ";|"


class Labels:
    """The label of each labeled point. Rows of the file about other collections' sounds are kept as they are.

    The file is what counts: it is read again before each change, as another page may have labeled sounds since.

    Raises:
        InputError: the file is there and is no such table.
    """

    def __init__(self, sounds: Sequence[Sound], path: Path):
        self.path, self._sounds, self._lock = path, sounds, threading.Lock()
        self._of: dict[int, str] = self._read()[0]

    def _read(self) -> tuple[dict[int, str], list[tuple[str, str, str, str]]]:
        """Return the labels by point, and the rows of other sounds."""
        of_points: dict[int, str] = {}
        others: list[tuple[str, str, str, str]] = []
        if not self.path.exists():
            return of_points, others
        sheet = read_sheet(self.path)
        if tuple(sheet.header) != _HEADER:
            raise InputError(
                f"{self.path} has the columns {', '.join(map(shown, sheet.header))}; expected {', '.join(_HEADER)}: "
                "move the file away, or give another --out"
            )
        points = {_row_of(sound): point for point, sound in enumerate(self._sounds)}
        for path, label, start, end in sheet.rows:
            point = points.get((path, start, end))
            if point is None:
                others.append((path, label, start, end))
            else:
                of_points[point] = label
        return of_points, others

    def all(self) -> dict[int, str]:
        """Return a copy of the labels by point."""
        with self._lock:
            return dict(self._of)

    def put(self, points: Iterable[int], label: str | None) -> None:
        """Label points, or take their labels away, and save.

        Raises:
            InputError: the label cannot be one, or the file has been changed and is no such table any more.
            OutputError: the file cannot be written, or another page is writing it; the labels are then as they were.
        """
        label = None if label is None else checked_label(label)
        lock = self.path.with_name(f".{self.path.name}.lock")
        with self._lock, locked(lock, self.path):
            labels, others = self._read()
            for point in points:
                if label is None:
                    labels.pop(point, None)
                else:
                    labels[point] = label
            write_csv(self.path, self._rows(labels, others))
            self._of = labels

    def csv_text(self) -> str:
        """Return the labels of this collection as the CSV that `melmask finetune` takes."""
        return csv_text(self._rows(self.all(), []))

    def _rows(
        self, labels: Mapping[int, str], others: Iterable[tuple[str, str, str, str]]
    ) -> Iterable[tuple[str, ...]]:
        yield _HEADER
        for point in sorted(labels):
            path, start, end = _row_of(self._sounds[point])
            yield path, labels[point], start, end
        yield from others


def checked_label(label: str) -> str:
    """Return a label as it is saved, without blanks around it.

    Raises:
        InputError: it is empty or too long, or has signs that would be lost or misread in a table.
    """
    label = label.strip()
    if not 0 < len(label) <= _LONGEST or shown(label) != label:
        raise InputError(f"the label is {shown(repr(label[:60]))}; give 1 to {_LONGEST} visible letters on one line")
    if any(sign in label for sign in _SEPARATORS):
        raise InputError(
            f"the label {shown(label)!r} has ; or |, which separate several labels in tables; leave it out"
        )
    return label


def _row_of(sound: Sound) -> tuple[str, str, str]:
    """Return a point's path, start and end as they are written."""
    if not sound.is_part:
        return str(sound.path), "", ""
    return str(sound.path), repr(sound.start_s), "" if sound.end_s is None else repr(sound.end_s)
