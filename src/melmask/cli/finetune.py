"""`melmask finetune`."""

from dataclasses import dataclass, field
from pathlib import Path

from melmask.classifier.options import FinetuneConfig, FinetuneOptions
from melmask.config_text import with_overrides
from melmask.errors import ConfigError
from melmask.system.terminal import counted, say


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a classifier on labeled files. The same command resumes."""

    model: str | None = field(default=None, metadata={"positional": "MODEL"})
    """A run, a checkpoint folder, an MSM-MAE .pth file or hub:OWNER/NAME. It may be left out: a single argument is
    LABELS, and the classifier then starts from the model in the box."""
    labels: Path = field(metadata={"positional": "LABELS"})
    """A task folder, the folder of a data set, or a table with the columns path and label, several labels as a;b, and
    perhaps split, fold or group."""
    out: Path
    """Folder of the classifier."""
    job: FinetuneOptions = field(default=FinetuneOptions())
    settings: tuple[str, ...] = field(default=(), metadata={"settings": FinetuneConfig()})
    """change how the classifier is trained, such as epochs=10. These are the settings and their defaults:"""


def run(options: Options) -> int:
    """Train the classifier and print its scores."""
    from melmask.classifier.finetune import finetune
    from melmask.labels.read import is_table

    if options.model is not None and is_table(Path(options.model)):
        raise ConfigError(f"the model is {options.model}, a table; give the model first: melmask finetune MODEL LABELS")
    config = with_overrides(FinetuneConfig(), options.settings)
    report = finetune(options.model, options.labels, options.out, config, options.job)
    for part, scores in (("valid", report.valid), ("test", report.test)):
        if scores is not None:
            # A metric over labels has no value if no clip has one.
            value = "unknown, as no label occurs" if scores.value is None else f"{scores.value:.4f}"
            say(f"{part:<6}{scores.metric} {value} on {counted(scores.clips, 'clip')}")
    if report.unreadable:
        say(f"{counted(report.unreadable, 'file')} could not be read; the reasons are in {options.out / 'failed.csv'}")
    say(f"next: melmask predict FILES --model {options.out} --out X.csv")
    return 0
