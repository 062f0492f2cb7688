"""The files in the folder of a fine-tuning, beside the classifier itself.

OUT/
    classifier/       the result (docs/formats.md), written at the end
    finetune.pt       the state after the last epoch, from which a killed job resumes
    finetune.json     what the job is: a `FinetuneJob`
    metrics.jsonl     a line per epoch: an `EpochMetrics`
    failed.csv        files that could not be read, and why
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from melmask.classifier.options import FinetuneConfig
from melmask.errors import CheckpointError, ConfigError, InputError
from melmask.settings import from_dict
from melmask.system.files import atomic_write

CLASSIFIER, SNAPSHOT, JOB = "classifier", "finetune.pt", "finetune.json"
METRICS, FAILED = "metrics.jsonl", "failed.csv"


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """What tells one fine-tuning from another."""

    model: str
    """SHA-256 of the model that training starts from."""
    config: FinetuneConfig
    fold: str
    labels: str
    """SHA-256 of the examples."""
    unreadable: Sequence[str] = ()
    """Absolute paths of the files that could not be read, sorted."""

    def check_same(self, previous: "FinetuneJob", out: Path) -> None:
        """Raise InputError unless `previous`, which began in `out`, trains the same, whatever could be read."""
        for key in ("model", "config", "fold", "labels"):
            if getattr(self, key) != getattr(previous, key):
                raise InputError(f"{out} has begun with another {key}; choose another --out, or delete it")

    def check_same_files(self, previous: "FinetuneJob", out: Path) -> None:
        """Raise InputError unless the same files could be read as in `previous`, which began in `out`.

        A classifier that learned without some files must not be scored as if it had them, or the other way round.
        """
        changed = sorted(set(previous.unreadable) ^ set(self.unreadable))
        if changed:
            now = "cannot be read now, but could" if changed[0] in self.unreadable else "can be read now, but could not"
            raise InputError(
                f"{changed[0]} {now} when {out} began ({len(changed)} such files); put it back as it was, or choose "
                "another --out"
            )


def read_job(out: Path) -> FinetuneJob | None:
    """Read what was begun in `out`; None if nothing has been trained there yet.

    Raises:
        CheckpointError: finetune.json is damaged.
    """
    path = out / JOB
    if not path.exists() or not ((out / SNAPSHOT).exists() or (out / CLASSIFIER).exists()):
        return None
    try:
        facts = dict(json.loads(path.read_text(encoding="utf-8")))
        config, unreadable = from_dict(FinetuneConfig, facts["config"]), [str(name) for name in facts["unreadable"]]
        return FinetuneJob(**facts | {"config": config, "unreadable": unreadable})
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete {out} to begin anew, or choose another") from error


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What came of an epoch: a line of metrics.jsonl."""

    epoch: int
    """The number of epochs done; 0 is the linear probe."""
    loss: float | None = None
    """Mean loss of the epoch's batches; the linear probe has none."""
    score: float
    """Validation score: accuracy, or mean average precision."""


def add_metrics(out: Path, metrics: EpochMetrics) -> None:
    """Add an epoch to metrics.jsonl; lines of this epoch and of later ones, which a killed job wrote, go.

    Raises:
        OutputError: it cannot be written.
    """
    path = out / METRICS
    # The file is written anew for each epoch: it is short, and a kill leaves either the old or the new one.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    line = {key: value for key, value in asdict(metrics).items() if value is not None}
    kept = [text for text in lines if _epoch_of(text) < metrics.epoch]
    with atomic_write(path, "w") as file:
        file.writelines(text + "\n" for text in [*kept, json.dumps(line)])


def _epoch_of(line: str) -> float:
    """The epoch of a line of metrics.jsonl; infinity if it is damaged, so that it goes."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf
