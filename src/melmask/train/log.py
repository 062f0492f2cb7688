"""Where a run's numbers go while it trains: to its record, to boards (`boards.py`) and, in a line, to the terminal."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from melmask.system.progress import duration_text
from melmask.system.terminal import end_updates, note_below, update
from melmask.train.boards import Board
from melmask.train.record import Event, MetricsFile, MetricsRow, add_event, end_last_event


class Log:
    """Takes a run's numbers and events, and drops them: this is the log of every process but the first."""

    last_loss = float("nan")

    def write(self, row: MetricsRow, steps: int) -> None:
        """Log the numbers of an interval; the run has `steps` in all."""

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers that not every interval has, such as a k-NN score."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Record something that happened at `step`."""

    def say(self, text: str) -> None:
        """Tell the user something that is not recorded."""

    def close(self) -> None:
        """Flush everything."""


class MetricsLog(Log):
    """Writes the run's record and shows it on `boards`; a resumed run drops the numbers beyond `first_step`."""

    def __init__(self, run: Path, first_step: int, boards: Sequence[Board] = ()):
        self._run, self._boards = run, list(boards)
        self._metrics = MetricsFile(run, first_step)
        self.last_loss = self._metrics.last_loss
        end_last_event(run)

    def write(self, row: MetricsRow, steps: int) -> None:
        """Log the numbers of an interval; the run has `steps` in all."""
        # The file and the boards take the step apart from the numbers.
        numbers = asdict(row)
        self._add(numbers.pop("step"), numbers)
        text = (
            f"step {row.step}/{steps}  loss {row.loss:.4f}  rate {row.learning_rate:.2e}  "
            f"{row.crops_per_s:.0f} crops/s  {duration_text(row.left_s)} left"
        )
        update(text)

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers that not every interval has; `read_metrics` adds them to the step's row if there is one."""
        if not numbers:
            return
        self._add(step, numbers)
        named = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        note_below(f"step {step}: {named}")

    def event(self, step: int, kind: str, text: str) -> None:
        """Record something that happened at `step`; the terminal shows what went wrong, too."""
        add_event(self._run, Event(step, kind, text))
        if kind in ("rollback", "spike"):
            note_below(f"melmask: step {step}: {text}")

    def say(self, text: str) -> None:
        """Tell the user something that is not recorded."""
        note_below(f"melmask: {text}")

    def _add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._metrics.add(step, numbers)
        for board in list(self._boards):
            try:
                board.add(step, numbers)
            except Exception as error:
                # A board may be any service, and its failure must not stop the run.
                self._boards.remove(board)
                _close(board)
                reason = " ".join(str(error).split())
                note_below(f"melmask: {board.name} takes no more numbers ({reason}); the run continues without it")

    def close(self) -> None:
        """Flush everything."""
        self._metrics.close()
        for board in self._boards:
            _close(board)
        end_updates()


def _close(board: Board) -> None:
    # A board that has failed may fail again when it closes.
    with contextlib.suppress(Exception):
        board.close()
