"""`melmask finetune`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.classifier.options import FinetuneConfig
from melmask.cli.options import ComputeOptions
from melmask.settings import with_overrides


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a classifier on labeled files. The same command resumes."""

    model: str = field(metadata={"positional": "MODEL"})
    """A run, a checkpoint folder, an MSM-MAE .pth file or hub:OWNER/NAME."""
    labels: Path = field(metadata={"positional": "LABELS"})
    """A task folder, or a CSV with the columns path and label, several labels as a;b, and perhaps split, fold or
    group."""
    out: Path
    """Folder of the classifier."""
    audio_root: Path | None = None
    """Folder in which relative paths start. Without it, that is the table's folder or its parent."""
    fold: str = ""
    """The fold to test on, of a table with folds. The next one is for validation. Without it, the first is taken."""
    compute: ComputeOptions = field(default=ComputeOptions(), metadata={"without": ("precision",)})
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FinetuneConfig()})
    """change how the classifier is trained, as epochs=10. These are the settings and their defaults:"""


def run(options: Options) -> int:
    """Train a classifier."""
    from melmask.classifier.finetune import finetune

    config = with_overrides(FinetuneConfig(), options.settings)
    scores = finetune(
        options.model,
        options.labels,
        options.out,
        config,
        audio_root=options.audio_root,
        fold=options.fold,
        device=options.compute.device,
    )
    for part in ("valid", "test"):
        if part in scores:
            metric = "accuracy" if "accuracy" in scores[part] else "mAP"
            value = "unknown, as no label occurs" if scores[part][metric] is None else f"{scores[part][metric]:.4f}"
            print(f"{part:<6}{metric} {value} on {scores[part]['clips']} clips")
    if scores["unreadable"]:
        print(f"{scores['unreadable']} files could not be read; the reasons are in {options.out / 'failed.csv'}")
    print(f"next: melmask predict FILES --model {options.out} --out X.csv")
    return 0
