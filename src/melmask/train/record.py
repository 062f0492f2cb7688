"""The record of a run: run.json, metrics.jsonl and events.jsonl. No other module writes or reads these files.

`RunRecord` is what a run's folder holds at one moment, for pages and checks that show or judge the run.
"""

import contextlib
import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from melmask.config import FrontEndConfig, PretrainConfig
from melmask.config_text import from_dict, to_dict
from melmask.corpus.store import Corpus
from melmask.errors import CheckpointError
from melmask.system.files import atomic_write, output_error, write_json
from melmask.system.reading import (
    LARGE_FILE_BYTES,
    DamagedFileError,
    check_regular,
    open_file,
    parse_json,
    read_bytes,
    read_json_object,
    reason_of,
)

RUN_FILE, METRICS, EVENTS = "run.json", "metrics.jsonl", "events.jsonl"
CHECKPOINTS, PICTURES = "checkpoints", "pictures"
State = Literal["running", "stopped", "done"]


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """run.json: the configuration of a run, and the store that it began with."""

    pretrain: dict[str, object]
    """The configuration as JSON has it; `config` checks it."""
    store: str = ""
    """Empty if all crops are synthetic and there is none."""
    store_sha256: str | None = None
    """Digest of the store's content; runs of early versions lack it."""
    frames: int | None = None
    """Frames of sound in the store."""
    hop_ms: float | None = None
    """Time between frames."""

    def config(self) -> PretrainConfig:
        """Return the configuration, checked.

        Raises:
            ConfigError: it has settings that this version does not know.
        """
        return from_dict(PretrainConfig, self.pretrain)


def write_run_file(run: Path, config: PretrainConfig, store: Corpus) -> None:
    """Write the run's configuration, and the store that it is for.

    Raises:
        OutputError: it cannot be written.
    """
    file = RunFile(
        pretrain=to_dict(config),
        store=str(store.folder.resolve()) if store.folder is not None else "",
        store_sha256=store.sha256,
        frames=int(store.frames.sum()) if store.folder is not None else None,
        # Of the sound as it is, not as it is played: the run's page counts its hours.
        hop_ms=store.front_end.hop_ms / store.reading.expand,
    )
    write_json(run / RUN_FILE, asdict(file))


def update_run_file(run: Path, config: PretrainConfig) -> None:
    """Write the run's configuration anew, because the run has planned its steps.

    Raises:
        OutputError: it cannot be written.
    """
    file = read_run_file(run)
    assert file is not None, "a run writes the file when it begins"
    write_json(run / RUN_FILE, asdict(replace(file, pretrain=to_dict(config))))


def read_run_file(run: Path) -> RunFile | None:
    """Read the run's configuration and store; return None if the run has not begun.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (run / RUN_FILE).exists():
        return None
    try:
        content = read_json_object(run / RUN_FILE)
        # A newer melmask may have written more fields; they are not needed here.
        return RunFile(**{name: content[name] for name in RunFile.__dataclass_fields__ if name in content})
    except (OSError, DamagedFileError, TypeError) as error:
        raise CheckpointError(f"{run / RUN_FILE} is damaged ({reason_of(error)}); use another --out") from error


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """The numbers of one log interval: a line of metrics.jsonl.

    Other lines have a `step` and numbers that not every interval has, such as `feature_rank`.
    """

    step: int
    """Optimizer steps done."""
    loss: float
    """Mean loss over the steps of the interval."""
    learning_rate: float
    """Learning rate of the last step."""
    gradient_norm: float
    """Norm of the last step's gradient, before clipping."""
    crops_per_s: float
    """Crops trained on in a second; the time of pictures and saving does not count."""
    data_wait: float
    """Share of the time that the run spent waiting for data."""
    seconds: float
    """Training time of the whole run."""
    left_s: float
    """Estimate of the time until the last step."""
    peak_share: float
    """Operations a second, as a share of those of the machine's best matrix product."""
    memory_mb: float
    """The most memory that was in use at once."""


class MetricsFile:
    """metrics.jsonl, open to append; opening it drops the lines beyond `first_step`.

    Attribute: `last_loss`, the newest loss up to that step; NaN if there is none.
    """

    def __init__(self, run: Path, first_step: int):
        self._path = run / METRICS
        kept = [row for row in read_metrics(run) if row["step"] <= first_step]
        self.last_loss: float = next((row["loss"] for row in reversed(kept) if "loss" in row), float("nan"))
        # A resumed run trains and logs the steps beyond its snapshot again, so their previous lines are dropped.
        with atomic_write(self._path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append a line.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            # Each line is flushed, so that a killed run keeps its record and a page can follow it.
            self._file.flush()
        except OSError as error:
            raise output_error(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        # Closing flushes again, and a full disk has been reported already.
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(run: Path) -> list[dict[str, int | float]]:
    """Read the run's metrics in order, one dictionary for each step; only those of log intervals have a loss."""
    try:
        text = read_bytes(run / METRICS)
    except FileNotFoundError:
        return []
    except (OSError, DamagedFileError) as error:
        raise CheckpointError(f"{run / METRICS} cannot be read ({reason_of(error)}); use another --out") from error
    rows: dict[int, dict[str, int | float]] = {}
    for row in _json_lines(text):
        step = row.get("step")
        # A line without a whole number as its step is damaged. Values of other types are not melmask's.
        if type(step) is int:
            numbers = {name: value for name, value in row.items() if _number(value) is not None}
            # A step may have two lines: its log interval's, and one of numbers such as `feature_rank`.
            rows.setdefault(step, {}).update(numbers)
    return list(rows.values())


class Event(NamedTuple):
    """Something that happened to the run; `kind` is start, resume, stop, spike, rollback, skip, done or a new word."""

    step: int
    kind: str
    text: str


def add_event(run: Path, event: Event) -> None:
    """Append a line to events.jsonl.

    Raises:
        OutputError: it cannot be written.
    """
    path = run / EVENTS
    try:
        if path.exists():
            check_regular(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": event.step, "event": event.kind, "text": event.text}) + "\n")
    except OSError as error:
        raise output_error(path, error) from error


def end_last_event(run: Path) -> None:
    """End the last line of events.jsonl if a kill has cut it off, so that the next event gets its own line."""
    path = run / EVENTS
    if not path.exists():
        return
    with open_file(path) as file:
        file.seek(-1 if path.stat().st_size else 0, os.SEEK_END)
        ended = file.read() in (b"", b"\n")
    if not ended:
        with path.open("a", encoding="utf-8") as last:
            last.write("\n")


def read_events(run: Path) -> list[Event]:
    """Read what happened to the run, oldest first; skip damaged lines."""
    try:
        text = read_bytes(run / EVENTS)
    except (OSError, DamagedFileError):
        return []
    found = []
    for row in _json_lines(text):
        step = _step(row)
        if step is not None:
            found.append(Event(int(step), str(row.get("event", "")), str(row.get("text", ""))))
    return found


class Series(NamedTuple):
    """One of a run's numbers over its steps: two (rows,) float64 arrays. A value may be NaN or infinite."""

    steps: np.ndarray
    values: np.ndarray

    def finite(self) -> "Series":
        """Return the rows whose value is a finite number."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])


class RunNumbers:
    """The run's metrics, one series for each name; a call of `read` reads only the lines added since the last one."""

    def __init__(self, run: Path):
        self._path = run / METRICS
        self._forget()

    def read(self) -> dict[str, Series]:
        """Return everything written so far; skip lines that are not a JSON object with a step."""
        for row in self._new_rows():
            step = _step(row)
            if step is None:
                continue
            for name, value in row.items():
                # Nearly all values are floats, and a resumed run reads many: the fast test comes first.
                number = value if type(value) is float else _number(value)
                if number is not None and name != "step":
                    steps, values = self._columns.setdefault(name, (array("d"), array("d")))
                    steps.append(step)
                    values.append(number)
        return {name: Series(np.array(steps), np.array(values)) for name, (steps, values) in self._columns.items()}

    def _forget(self) -> None:
        # An inode of -1 belongs to no file, so the next look reads everything.
        self._inode, self._offset = -1, 0
        self._columns: dict[str, tuple[array[float], array[float]]] = {}

    def _new_rows(self) -> Iterator[Mapping[str, Any]]:
        try:
            with open_file(self._path) as file:
                status = os.fstat(file.fileno())
                # A resumed run rewrites the file without the lines beyond its snapshot, so read it from its beginning.
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._forget()
                file.seek(self._offset)
                # What is beyond this is left for the next call.
                added = file.read(LARGE_FILE_BYTES)
        except OSError:
            self._forget()
            return
        # The run may still be writing the last line, which is left for the next call.
        whole = added[: added.rfind(b"\n") + 1]
        self._inode, self._offset = status.st_ino, self._offset + len(whole)
        yield from _json_lines(whole)


class RunRecord(NamedTuple):
    """What a run's folder holds at one moment; what is missing or damaged in it is empty here."""

    folder: Path
    settings: dict[str, object]
    """The configuration with dotted keys, as the command line takes them."""
    facts: dict[str, object]
    """All else in run.json, with dotted keys."""
    series: dict[str, Series]
    events: list[Event]
    pictures: list[Path]
    """Oldest first."""
    checkpoints: list[str]
    written_s: float
    """When the metrics were last written, in s since 1970; 0 if never."""

    def setting(self, key: str) -> float:
        """Return a number of the configuration; 0 if it is missing."""
        value = _number(self.settings.get(key)) or 0.0
        return value if math.isfinite(value) else 0.0

    def last(self, name: str) -> float | None:
        """Return the newest value of one of the numbers; None if there is none."""
        series = self.series.get(name)
        return float(series.values[-1]) if series is not None else None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """Steps done, as far as the record shows."""
        loss = self.series.get("loss")
        # The other numbers of a run need not reach its newest step.
        logged = int(loss.steps[-1]) if loss is not None else 0
        # A run may stop between two lines of metrics.
        return max([logged] + [event.step for event in self.events[-1:] if event.kind in ("stop", "done")])

    @property
    def state(self) -> State:
        """Whether the run continues, judged by its last event and its steps; a killed run still counts as running."""
        last = self.events[-1].kind if self.events else ""
        if last == "done" or 0 < self.setting("optimizer.steps") <= self.step:
            return "done"
        # A spike is followed by a rollback, unless it has ended the run.
        return "stopped" if last in ("stop", "spike") else "running"

    @property
    def sound_hours(self) -> float:
        """Length of the store's sound."""
        return (_number(self.facts.get("frames")) or 0.0) * self.frame_s / 3600

    @property
    def epochs(self) -> float | None:
        """How often each moment of sound was drawn, on average; None if that cannot be known, as with crops by clip."""
        crop_s = self.setting("model.frames") * self.frame_s
        if self.settings.get("data.sampling") != "time" or not self.sound_hours or not crop_s:
            return None
        crops = self.setting("data.batch_size") * (1 - self.setting("data.synth_share"))
        return self.step * crops * crop_s / (3600 * self.sound_hours)

    @property
    def frame_s(self) -> float:
        """Time between the frames of the store; run files of early versions omit it."""
        return (_number(self.facts.get("hop_ms")) or FrontEndConfig().hop_ms) / 1000


def read_record(run: Path, numbers: RunNumbers) -> RunRecord:
    """Read a run's folder; nothing that is missing, half-written or damaged in it raises an error."""
    try:
        facts = read_json_object(run / RUN_FILE)
    except (OSError, DamagedFileError):
        facts = {}
    settings = facts.pop("pretrain", {})
    return RunRecord(
        folder=run,
        settings=flat(settings) if isinstance(settings, dict) else {},
        facts=flat(facts),
        series=numbers.read(),
        events=read_events(run),
        pictures=sorted((run / PICTURES).glob("step-*.png")),
        checkpoints=sorted(path.name for path in (run / CHECKPOINTS).glob("step-*")),
        written_s=_written_s(run / METRICS),
    )


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return the leaves of nested settings by their dotted keys, as the command line takes them."""
    leaves: dict[str, object] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def _number(value: object) -> float | None:
    # In Python a bool is an int; in a file it is not a number.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        # JSON may hold a whole number that is too large for a float.
        return float(value)
    except OverflowError:
        return None


def _step(row: Mapping[str, object]) -> float | None:
    step = _number(row.get("step"))
    return step if step is not None and math.isfinite(step) else None


def _json_lines(text: bytes) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        try:
            row = parse_json(line)
        # A kill may have cut off the line.
        except DamagedFileError:
            continue
        if isinstance(row, dict):
            yield row


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
