"""`melmask probe`, and the options that it has in common with `melmask few-labels`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melmask.cli.options import SEED, ModelOptions
from melmask.embedding.choice import FeatureChoice


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """The labeled files on which a model is judged."""

    labels: tuple[Path, ...] = field(metadata={"metavar": "CSV"})
    """Tables of labeled files, one for each task. The columns are path, label, and group, fold or split."""
    scheme: str = "auto"
    """How rows are held out: fold, split, group or random. With auto, the table's columns decide."""
    audio_root: Path | None = None
    """Folder in which relative paths start. Without it, that is the table's folder or its parent."""
    seed: int = field(default=0, metadata={"limits": SEED})
    """Seed of the untrained network and of random splits."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score a model on labeled files by k-NN and a linear probe, beside two baselines."""

    labels: LabelOptions
    out: Path = Path("probe")
    """Folder for scores and pictures."""
    model: ModelOptions
    """The model."""
    features: FeatureChoice = field(default=FeatureChoice(), metadata={"without": ("hop_ms",)})
    """Which features of the model are taken."""


def run(options: Options) -> int:
    """Judge a model on labeled files."""
    from melmask.downstream.probing import probe_tasks, table_text

    model = options.model.load()
    labeled = keywords_of(options.labels, options.features, options.model)
    report = probe_tasks(model, options.labels.labels, options.out, **labeled)
    print(table_text(report))
    for name, task in report["tasks"].items():
        if task["unreadable"]:
            print(f"{name}: {len(task['unreadable'])} files could not be read and were left out")
        if task["leaking_groups"]:
            print(f"{name}: {task['leaking_groups']} groups have clips on both sides of a split")
    print(f"scores and confusion pictures: {options.out}")
    return 0


def keywords_of(labels: LabelOptions, features: FeatureChoice, model: ModelOptions) -> dict[str, Any]:
    """The keyword arguments that `probe_tasks` and `few_label_curves` have in common."""
    return {
        "scheme": labels.scheme,
        "audio_root": labels.audio_root,
        "layer": features.layers or None,
        "pooling": features.pooling,
        "scene": features.scene,
        "seed": labels.seed,
        "dataset_statistics": model.normalization == "dataset",
    }
