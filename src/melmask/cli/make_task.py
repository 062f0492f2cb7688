"""`melmask make-task`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from melmask.cli.options import SEED, THREADS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn labeled files into a task folder in HEAR's layout."""

    labels: Path = field(metadata={"positional": "CSV"})
    """Table of labeled files. The columns are path, label, and group, fold or split; events also have start_s and
    end_s."""
    out: Path = field(metadata={"metavar": "TASKS"})
    """Folder of tasks, in which the task's folder is made."""
    name: str | None = None
    """Name of the task. Without it, that is the table's name."""
    version: str = "v1"
    """Version of the task."""
    mode: str = "full"
    """Last part of the task folder's name."""
    kind: Literal["multiclass", "multilabel", "event"] | None = None
    """What the labels are. Without it, the table decides."""
    scheme: Literal["fold", "split", "new"] | None = None
    """Which splits to use: those of a column, or new folds. Without it, the table decides."""
    folds: int = 5
    """Number of new folds."""
    seed: int = field(default=0, metadata={"limits": SEED})
    """Seed of new folds."""
    rates: tuple[int, ...] = field(default=(16000,), metadata={"metavar": "HZ"})
    """Sample rates of the sounds that are written, in Hz."""
    duration_s: float | str = "auto"
    """Length of every clip: auto, native, or a number of seconds."""
    audio_root: Path | None = None
    """Folder in which relative paths start. Without it, that is the table's folder or its parent."""
    threads: int | None = field(default=None, metadata={"limits": THREADS})
    """Number of decoding threads. Without it, there is one for each core."""
    overwrite: bool = False
    """Replace a task of that name."""


def run(options: Options) -> int:
    """Write a task folder from a table of labels."""
    from melmask.evaluate.make_task import make_task

    report = make_task(
        options.labels,
        options.out,
        name=options.name,
        version=options.version,
        mode=options.mode,
        kind=options.kind,
        scheme=options.scheme,
        folds=options.folds,
        seed=options.seed,
        rates_hz=options.rates,
        duration_s=options.duration_s,
        audio_root=options.audio_root,
        threads=options.threads,
        overwrite=options.overwrite,
    )
    print(report)
    return 0
