"""`melmask probe`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import ModelOptions
from melmask.downstream.options import ProbeOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score a model on labeled files by k-NN and a linear probe, beside two baselines."""

    model: ModelOptions
    labels: tuple[Path, ...] = field(metadata={"metavar": "CSV"})
    """Labeled files: a table, or the folder of a data set, for each task. Tables have the columns path, label, and
    perhaps group, fold or split."""
    out: Path = Path("probe")
    """Folder for scores and pictures."""
    job: ProbeOptions = field(default=ProbeOptions(), metadata={"without": ("choice.hop_ms",)})


def run(options: Options) -> int:
    """Judge a model on labeled files."""
    from melmask.downstream.probing import probe_tasks, table_text

    report = probe_tasks(options.model.load(), options.labels, options.out, options.job)
    print(table_text(report))
    for name, task in report.tasks.items():
        if task.unreadable:
            print(f"{name}: {len(task.unreadable)} files could not be read and were left out")
        if task.leaking_groups:
            print(f"{name}: {task.leaking_groups} groups have clips on both sides of a split")
    print(f"scores and confusion pictures: {options.out}")
    return 0
