"""`melmask few-labels`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.cli.options import ModelOptions
from melmask.cli.probe import LabelOptions, keywords_of
from melmask.embedding.choice import FeatureChoice


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show how a model's accuracy grows with the number of labels of each class."""

    labels: LabelOptions
    out: Path = Path("few-labels")
    """Folder for curves and pictures."""
    per_class: tuple[str, ...] = field(default=("1", "2", "5", "10", "all"), metadata={"metavar": "N"})
    """Numbers of labels of each class. The word all stands for all of them."""
    draws: int = 5
    """How many times each number of labels is drawn at random."""
    model: ModelOptions
    """The model."""
    features: FeatureChoice = field(default=FeatureChoice(), metadata={"without": ("hop_ms",)})
    """Which features of the model are taken."""


def run(options: Options) -> int:
    """Judge a model by how few labels it needs."""
    from melmask.downstream.few_labels import curves_text, few_label_curves

    model = options.model.load()
    report = few_label_curves(
        model,
        options.labels.labels,
        options.out,
        per_class=options.per_class,
        draws=options.draws,
        **keywords_of(options.labels, options.features, options.model),
    )
    print(curves_text(report))
    print(f"curves and pictures: {options.out}")
    return 0
