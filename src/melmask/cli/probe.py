"""`melmask probe`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import ModelOptions
from melmask.downstream.options import ProbeOptions
from melmask.system.terminal import say, say_lines


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
    """Score the model, and print its scores beside those of the baselines."""
    from melmask.downstream.probe import probe_tasks
    from melmask.downstream.records import table_text
    from melmask.system.extras import can_draw

    # It is said before the work if there will be no pictures.
    draws = can_draw()
    report = probe_tasks(options.model.load(), options.labels, options.out, options.job)
    say_lines(table_text(report))
    for name, task in report.tasks.items():
        for note in task.notes():
            say(f"{name}: {note}")
    # Clips with several labels have no confusion.
    drawn = draws and any(task.metric == "accuracy" for task in report.tasks.values())
    say(f"{'scores and confusion pictures' if drawn else 'scores'}: {options.out}")
    return 0
