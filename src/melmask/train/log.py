"""Numbers of a run as it goes: JSONL always, boards (`boards.py`) as wanted, one line to the terminal."""

import contextlib
import json
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melmask.system.files import atomic_write, output_error
from melmask.system.progress import duration_text
from melmask.train.boards import Board

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The run's metrics in order, a dictionary a step that has some; only rows of log intervals have a loss."""
    path = run / METRICS
    if not path.exists():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines():
        # A kill may cut the last line short.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            rows.setdefault(operator.index(row["step"]), {}).update(row)
    return list(rows.values())


class Log:
    """Where a run's numbers and events go: nowhere, in processes that are not the first."""

    last_loss = float("nan")

    def write(self, row: dict[str, Any], steps: int) -> None:
        """Log one row; `row` has step, loss, learning_rate, crops_per_s and left_s among its keys."""

    def note(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers that are not there each interval, such as a k-NN score."""

    def event(self, step: int, event: str, text: str) -> None:
        """Note something that happened at `step`."""

    def close(self) -> None:
        """Flush everything."""


class MetricsLog(Log):
    """Appends to metrics.jsonl and to `boards`; resuming drops what lies beyond `first_step`."""

    def __init__(self, run: Path, first_step: int, boards: Sequence[Board] = ()):
        self._run, self._boards = run, list(boards)
        kept = [row for row in read_metrics(run) if row["step"] <= first_step]
        self.last_loss: float = next((row["loss"] for row in reversed(kept) if "loss" in row), float("nan"))
        with atomic_write(run / METRICS, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = (run / METRICS).open("a")
        _end_line(run / EVENTS)

    def write(self, row: dict[str, Any], steps: int) -> None:
        """Log one row; `row` has step, loss, learning_rate, crops_per_s and left_s among its keys."""
        self._append(row)
        text = (
            f"step {row['step']}/{steps}  loss {row['loss']:.4f}  rate {row['learning_rate']:.2e}  "
            f"{row['crops_per_s']:.0f} crops/s  {duration_text(row['left_s'])} left"
        )
        # On a terminal one line is written over and over.
        _say(f"\r{text:<78}" if sys.stderr.isatty() else text + "\n")

    def note(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers of their own, without a loss; `read_metrics` joins them to the step's row if it has one."""
        if not numbers:
            return
        self._append({"step": step, **numbers})
        named = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        _say(f"\n{named}\n" if sys.stderr.isatty() else f"step {step}: {named}\n")

    def event(self, step: int, event: str, text: str) -> None:
        """Note something that happened at `step` in events.jsonl; what went wrong is said on the terminal too."""
        try:
            with (self._run / EVENTS).open("a") as file:
                file.write(json.dumps({"step": step, "event": event, "text": text}) + "\n")
        except OSError as error:
            raise output_error(self._run / EVENTS, error) from error
        if event in ("rollback", "spike"):
            _say(f"\nmelmask: step {step}: {text}\n")

    def _append(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise output_error(self._run / METRICS, error) from error
        for board in list(self._boards):
            try:
                board.add(row["step"], {name: value for name, value in row.items() if name != "step"})
            except Exception as error:
                # A board may be any service; a run is worth more than what others show of it.
                self._boards.remove(board)
                _close(board)
                reason = " ".join(str(error).split())
                _say(f"\nmelmask: {board.name} takes no more numbers ({reason}); the run goes on without it\n")

    def close(self) -> None:
        """Flush everything."""
        # What a full disk did not take has been reported.
        with contextlib.suppress(OSError):
            self._file.close()
        for board in self._boards:
            _close(board)
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def _end_line(path: Path) -> None:
    """Where a kill has cut the last line short, the next one begins anew."""
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        with path.open("a") as file:
            file.write("\n")


def _close(board: Board) -> None:
    # One that failed may fail again.
    with contextlib.suppress(Exception):
        board.close()


def _say(text: str) -> None:
    """To standard error, if anybody still reads it: a run is worth more than its log."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
