"""How well a classifier does: one number that chooses the best epoch, and the scores that are reported at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from melmask.classifier.head import Kind
from melmask.downstream.metrics import scene_score
from melmask.errors import InputError

Metric = Literal["accuracy", "mAP"]

_PER_CLASS: dict[Metric, str] = {"accuracy": "recall", "mAP": "average_precision"}
"""What the score of a single class is called in classifier.json."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one part (validation or test), between 0 and 1."""

    metric: Metric
    """Accuracy with one label per clip, else mean average precision over the classes."""
    value: float | None
    """None if no class occurs in the part."""
    per_class: Mapping[str, float]
    """Recall or average precision of each class that occurs."""
    clips: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as classifier.json holds them."""
        return {self.metric: self.value, _PER_CLASS[self.metric]: dict(self.per_class), "clips": self.clips}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Scores":
        """Read what `to_dict` returned; raise KeyError if a key is missing."""
        metric: Metric = "accuracy" if "accuracy" in values else "mAP"
        per_class, clips = values[_PER_CLASS[metric]], values["clips"]
        return Scores(metric=metric, value=values[metric], per_class=per_class, clips=clips)


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What came of a fine-tuning."""

    epoch: int
    """The best epoch, whose weights were kept; 0 is the linear probe."""
    unreadable: int
    """Number of files that could not be read."""
    valid: Scores
    test: Scores | None = None
    """None if there is no readable test clip."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as classifier.json holds it."""
        test = {} if self.test is None else {"test": self.test.to_dict()}
        return {"epoch": self.epoch, "unreadable": self.unreadable, "valid": self.valid.to_dict(), **test}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "FinetuneReport":
        """Read what `to_dict` returned; raise KeyError or TypeError if a key is missing."""
        scores = {part: Scores.from_dict(values[part]) for part in ("valid", "test") if part in values}
        return FinetuneReport(epoch=values["epoch"], unreadable=values["unreadable"], **scores)


def metric_of(kind: Kind) -> Metric:
    """Return what the classifiers of a kind are scored by."""
    return "accuracy" if kind == "multiclass" else "mAP"


def validation_score(
    kind: Kind, probabilities: Float[np.ndarray, "rows classes"], targets: Float[np.ndarray, "rows classes"]
) -> float:
    """Return the score that chooses the best epoch; the larger, the better.

    Raises:
        InputError: no row has a label, so there is no mean average precision.
    """
    found = targets > 0.5
    if kind == "multiclass":
        return scene_score("top1_acc", probabilities, found)
    # A class that does not occur among these clips says nothing about the classifier.
    occurring = found.any(0)
    if not occurring.any():
        raise InputError("nothing to validate on has a label; mark clips with labels `valid` in a column `split`")
    return scene_score("mAP", probabilities[:, occurring], found[:, occurring])


def scores_of(
    kind: Kind,
    classes: Sequence[str],
    clips: int,
    probabilities: Float[np.ndarray, "rows classes"],
    targets: Float[np.ndarray, "rows classes"],
) -> Scores:
    """Score what was predicted for `clips` clips; classes that do not occur have no score of their own."""
    found = targets > 0.5
    occurring = [(number, label) for number, label in enumerate(classes) if found[:, number].any()]
    if kind == "multiclass":
        right = probabilities.argmax(1) == targets.argmax(1)
        recall = {label: float(right[found[:, number]].mean()) for number, label in occurring}
        return Scores(metric="accuracy", value=float(right.mean()), per_class=recall, clips=clips)
    precision = {
        label: scene_score("mAP", probabilities[:, [number]], found[:, [number]]) for number, label in occurring
    }
    mean = float(np.mean(list(precision.values()))) if precision else None
    return Scores(metric="mAP", value=mean, per_class=precision, clips=clips)
