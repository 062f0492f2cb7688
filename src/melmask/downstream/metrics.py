"""Scores of whole clips, as the HEAR kit computes them (heareval 2021.1.3, score.py)."""

import math
import warnings

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from melmask.system.extras import require

SCENE_METRICS = ("top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc")
_SMALLER_IS_BETTER = ("segment_1s_er",)
_SEMITONES = 12


def scene_score(
    metric: str, probabilities: Float[np.ndarray, "rows classes"], targets: Bool[np.ndarray, "rows classes"]
) -> float:
    """Return one metric of multiclass or multilabel predictions.

    top1_acc, pitch_acc: the share of rows whose largest probability is at the (first) target.  chroma_acc: the same
    with class numbers modulo 12.  mAP: the average precision, mean over classes; a class without positives counts 0.
    aucroc: the area under the ROC curve, mean over classes.  d_prime: the mean over classes of sqrt(2) times the probit
    of the area.

    Returns:
        The score. aucroc and d_prime are NaN if a class has no positives or no negatives, or a probability is not
        finite. d_prime is infinite if a class is separated perfectly.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: mAP is asked of probabilities that are not finite. The kit raises it, too.
    """
    assert metric in SCENE_METRICS, metric
    if metric in ("top1_acc", "pitch_acc"):
        return float(np.mean(probabilities.argmax(1) == targets.argmax(1)))
    if metric == "chroma_acc":
        return float(np.mean(probabilities.argmax(1) % _SEMITONES == targets.argmax(1) % _SEMITONES))
    require("eval")
    from scipy.special import ndtri
    from sklearn.metrics import average_precision_score, roc_auc_score

    with warnings.catch_warnings():
        # Scikit-learn warns of classes without positives; the docstring says how they count.
        warnings.simplefilter("ignore")
        if metric == "mAP":
            return float(average_precision_score(targets, probabilities, average="macro"))
        # A class without positives or without negatives has no area, so the mean is undefined as well.
        if not (targets.any(0) & ~targets.all(0)).all() or not np.isfinite(probabilities).all():
            return math.nan
        if metric == "aucroc":
            return float(roc_auc_score(targets, probabilities, average="macro"))
        # For a single class scikit-learn returns a number instead of an array.
        areas = np.atleast_1d(roc_auc_score(targets, probabilities, average=None))
        return float(np.mean(ndtri(areas) * math.sqrt(2)))


def higher_is_better(metric: str) -> bool:
    """Return whether a larger value of a scene or event metric is better, which holds for all but error rates."""
    return metric not in _SMALLER_IS_BETTER


def confusion_counts(
    truth: Int[np.ndarray, " rows"], predicted: Int[np.ndarray, " rows"], classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """Count the rows by true class (row of the result) and predicted class (column).

    Rows with the prediction -1 were not tested and are left out.
    """
    tested = predicted >= 0
    # Each pair of classes has a number of its own, so that one `bincount` counts all pairs.
    cells = truth[tested] * classes + predicted[tested]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
