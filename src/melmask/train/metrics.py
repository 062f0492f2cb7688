"""Numbers of a run as it goes: JSONL always, TensorBoard if it is installed, one line to the terminal."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from melmask.files import atomic_write
from melmask.progress import duration_text

METRICS = "metrics.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The run's metrics, a dictionary a log interval."""
    path = run / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        # A kill may cut the last line short.
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard's event files; resuming drops what lies beyond `first_step`."""

    def __init__(self, run: Path, first_step: int):
        kept = [row for row in read_metrics(run) if row["step"] <= first_step]
        self.last_loss: float = kept[-1]["loss"] if kept else float("nan")
        with atomic_write(run / METRICS, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._file = (run / METRICS).open("a")
        self._board = _tensorboard(run / "tensorboard", first_step)

    def write(self, row: dict[str, Any], steps: int) -> None:
        """Log one row; `row` has step, loss, learning_rate, crops_per_s and left_s among its keys."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(f"train/{name}", value, row["step"])
        text = (
            f"step {row['step']}/{steps}  loss {row['loss']:.4f}  rate {row['learning_rate']:.2e}  "
            f"{row['crops_per_s']:.0f} crops/s  {duration_text(row['left_s'])} left"
        )
        # On a terminal one line is written over and over.
        sys.stderr.write(f"\r{text:<78}" if sys.stderr.isatty() else text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
