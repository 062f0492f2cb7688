"""`melmask few-labels`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import ModelOptions
from melmask.downstream.options import FewLabelsOptions
from melmask.system.terminal import say, say_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show how a model's accuracy grows with the number of labels of each class."""

    model: ModelOptions
    labels: tuple[Path, ...] = field(metadata={"metavar": "CSV"})
    """Labeled files: a table, or the folder of a data set, for each task. Tables have the columns path, label, and
    perhaps group, fold or split."""
    out: Path = Path("few-labels")
    """Folder for curves and pictures."""
    job: FewLabelsOptions = field(default=FewLabelsOptions(), metadata={"without": ("choice.hop_ms",)})


def run(options: Options) -> int:
    """Measure the curves and print them."""
    from melmask.downstream.few_labels import few_label_curves
    from melmask.downstream.records import curves_text
    from melmask.system.extras import can_draw, require

    require("eval")
    drawn = "curves and pictures" if can_draw() else "curves"
    report = few_label_curves(options.model.load(), options.labels, options.out, options.job)
    say_lines(curves_text(report.tasks))
    say(f"{drawn}: {options.out}")
    return 0
