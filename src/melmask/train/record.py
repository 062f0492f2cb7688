"""What a run's folder holds while the run goes on, as far as it is written."""

import json
import math
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from melmask.config import FrontEndConfig
from melmask.train.log import EVENTS, METRICS
from melmask.train.snapshot import CHECKPOINTS, RUN_FILE

PICTURES = "pictures"
State = Literal["running", "stopped", "done"]


class Series(NamedTuple):
    """One of a run's numbers. steps, values: (rows,) float64, in the order written; a value may be NaN or infinite."""

    steps: np.ndarray
    values: np.ndarray

    def finite(self) -> "Series":
        """Without the rows whose value is no finite number."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])


class Event(NamedTuple):
    """Something that happened to the run once: start, resume, stop, spike, rollback, skip, done, or another word."""

    step: int
    kind: str
    text: str


class RunNumbers:
    """The run's metrics, a series a name; kept between two looks, it reads only the lines added since the first."""

    def __init__(self, run: Path):
        self._path = run / METRICS
        self._forget()

    def read(self) -> dict[str, Series]:
        """Everything written so far; lines that are no JSON object with a step are passed over."""
        for row in self._new_rows():
            step = _step(row)
            if step is None:
                continue
            for name, value in row.items():
                # Nearly all are floats: a resumed run reads many at once.
                number = value if type(value) is float else _number(value)
                if number is not None and name != "step":
                    steps, values = self._columns.setdefault(name, (array("d"), array("d")))
                    steps.append(step)
                    values.append(number)
        return {name: Series(np.array(steps), np.array(values)) for name, (steps, values) in self._columns.items()}

    def _forget(self) -> None:
        self._inode, self._offset = -1, 0
        self._columns: dict[str, tuple[array[float], array[float]]] = {}

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                # A run that resumes writes the file anew, without the lines beyond its snapshot.
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget()
                file.seek(self._offset)
                added = file.read()
        except OSError:
            self._forget()
            return
        # The last line may still be growing: it is left for the next look.
        whole = added[: added.rfind(b"\n") + 1]
        self._inode, self._offset = status.st_ino, self._offset + len(whole)
        yield from _json_lines(whole)


class RunRecord(NamedTuple):
    """A run's folder at one moment; what is missing or damaged in it is empty here."""

    folder: Path
    settings: dict[str, Any]
    """The configuration with dotted keys, as the command line takes them."""
    facts: dict[str, Any]
    """What else run.json says, with dotted keys."""
    series: dict[str, Series]
    events: list[Event]
    pictures: list[Path]
    """Oldest first."""
    checkpoints: list[str]
    written_s: float
    """When the metrics were last written, in s since 1970; 0 if never."""

    def setting(self, key: str) -> float:
        """A number of the configuration; 0 if it is not known."""
        value = _number(self.settings.get(key)) or 0.0
        return value if math.isfinite(value) else 0.0

    def last(self, name: str) -> float | None:
        """The newest value of one of the numbers, None if there is none."""
        series = self.series.get(name)
        return float(series.values[-1]) if series is not None else None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """Steps done, as far as known."""
        loss = self.series.get("loss")
        logged = int(loss.steps[-1]) if loss is not None else 0
        # A run may stop between two lines of metrics.
        return max([logged] + [event.step for event in self.events[-1:] if event.kind in ("stop", "done")])

    @property
    def state(self) -> State:
        """Whether it goes on, judged by its last event and its steps; of a killed run the record cannot tell."""
        last = self.events[-1].kind if self.events else ""
        if last == "done" or 0 < self.setting("optimizer.steps") <= self.step:
            return "done"
        # After a spike comes a rollback, or the run has ended.
        return "stopped" if last in ("stop", "spike") else "running"

    @property
    def sound_hours(self) -> float:
        """Length of the store's sound."""
        return (_number(self.facts.get("frames")) or 0.0) * self.frame_s / 3600

    @property
    def epochs(self) -> float | None:
        """How often each moment of sound was drawn, on average; None where crops are drawn by clip."""
        crop_s = self.setting("model.frames") * self.frame_s
        if self.settings.get("data.sampling") != "time" or not self.sound_hours or not crop_s:
            return None
        return self.step * self.setting("data.batch_size") * crop_s / (3600 * self.sound_hours)

    @property
    def frame_s(self) -> float:
        """Time between the frames of the store; runs of older versions do not say it."""
        return (_number(self.facts.get("hop_ms")) or FrontEndConfig().hop_ms) / 1000


def read_record(run: Path, numbers: RunNumbers) -> RunRecord:
    """Look at a run's folder; never raises for what is missing, half-written or damaged in it."""
    try:
        content = json.loads((run / RUN_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        content = {}
    facts = dict(content) if isinstance(content, dict) else {}
    settings = facts.pop("pretrain", {})
    return RunRecord(
        folder=run,
        settings=_flat(settings) if isinstance(settings, dict) else {},
        facts=_flat(facts),
        series=numbers.read(),
        events=_events(run / EVENTS),
        pictures=sorted((run / PICTURES).glob("step-*.png")),
        checkpoints=sorted(path.name for path in (run / CHECKPOINTS).glob("step-*")),
        written_s=_written_s(run / METRICS),
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _step(row: dict[str, Any]) -> float | None:
    step = _number(row.get("step"))
    return step if step is not None and math.isfinite(step) else None


def _json_lines(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _events(path: Path) -> list[Event]:
    try:
        text = path.read_bytes()
    except OSError:
        return []
    found = []
    for row in _json_lines(text):
        step = _step(row)
        if step is not None:
            found.append(Event(int(step), str(row.get("event", "")), str(row.get("text", ""))))
    return found


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
