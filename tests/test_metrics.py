"""Scores of clips against scikit-learn and the kit's own few lines, degenerate cases included."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from melmask.downstream.metrics import SCENE_METRICS, higher_is_better, scene_score


def case(name):
    """(probabilities, targets) of 60 rows and 14 classes, or few."""
    rng = np.random.default_rng(len(name))
    probabilities = rng.random((60, 14)).astype(np.float32)
    targets = rng.random((60, 14)) < 0.3
    if name == "one label a row":
        targets = np.eye(14, dtype=bool)[rng.integers(14, size=60)]
    elif name == "ties":
        probabilities = np.round(probabilities, 1)
    elif name == "all equal":
        probabilities[:] = 0.5
    elif name == "a class without positives":
        targets[:, 3] = False
    elif name == "a class without negatives":
        targets[:, 3] = True
    elif name == "perfect":
        probabilities = targets.astype(np.float32)
    elif name == "one row":
        probabilities, targets = probabilities[:1], np.eye(14, dtype=bool)[:1]
    elif name == "one class":
        probabilities, targets = probabilities[:, :1], targets[:, :1]
    elif name == "two classes":
        targets = np.eye(2, dtype=bool)[rng.integers(2, size=60)]
        probabilities = probabilities[:, :2]
    return probabilities, targets


CASES = [
    "random",
    "one label a row",
    "ties",
    "all equal",
    "a class without positives",
    "a class without negatives",
    "perfect",
    "one row",
    "one class",
    "two classes",
]


def kits(metric, predictions, targets):
    """heareval.score, with scikit-learn as it is used there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if metric == "mAP":
                return average_precision_score(targets, predictions, average="macro")
            if metric == "aucroc":
                return roc_auc_score(targets, predictions, average="macro")
            if metric == "d_prime":
                return np.mean(stats.norm().ppf(roc_auc_score(targets, predictions, average=None)) * np.sqrt(2.0))
        except ValueError:
            return np.nan
    step = 12 if metric == "chroma_acc" else 10**6
    right = [np.argmax(p) % step == np.argmax(t) % step for t, p in zip(targets, predictions, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("metric", SCENE_METRICS)
def test_scores_equal_the_kits(metric, name):
    probabilities, targets = case(name)
    expected = kits(metric, probabilities, targets)
    np.testing.assert_allclose(scene_score(metric, probabilities, targets), expected, rtol=1e-12)


def test_known_values():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]], dtype=np.float32)
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    assert scene_score("top1_acc", probabilities, targets) == 0.5
    assert scene_score("aucroc", probabilities, targets) == pytest.approx(0.75)
    assert scene_score("d_prime", probabilities, targets) == pytest.approx(math.sqrt(2) * stats.norm.ppf(0.75))
    # Ranked 1, 0, 1, 0 for the first class (precision 1 and 2/3) and 0, 1, 0, 1 reversed for the other.
    assert scene_score("mAP", probabilities, targets) == pytest.approx((1 + 2 / 3 + 1 + 2 / 3) / 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_have_no_area_under_the_curve(value):
    probabilities, targets = case("random")
    probabilities[3, 2] = value
    assert math.isnan(kits("aucroc", probabilities, targets))
    assert math.isnan(scene_score("aucroc", probabilities, targets))
    assert math.isnan(scene_score("d_prime", probabilities, targets))
    with pytest.raises(ValueError, match="Input contains"):
        scene_score("mAP", probabilities, targets)


def test_octave_errors_do_not_count_for_chroma():
    probabilities = np.eye(30, dtype=np.float32)[[0, 13, 5]]
    targets = np.eye(30, dtype=bool)[[24, 1, 6]]
    assert scene_score("chroma_acc", probabilities, targets) == pytest.approx(2 / 3)
    assert scene_score("pitch_acc", probabilities, targets) == 0


def test_only_error_rates_are_better_small():
    assert [higher_is_better(m) for m in ("top1_acc", "segment_1s_er", "event_onset_50ms_fms")] == [True, False, True]
