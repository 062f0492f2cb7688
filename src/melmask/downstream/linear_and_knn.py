"""Probes: how much a simple classifier gets out of frozen features."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64, Shaped

from melmask.errors import InputError, MissingExtraError
from melmask.labels.splits import Split

# L-BFGS stops when the largest entry of the mean loss's gradient is below this. With scikit-learn's own 1e-4 and 960
# correlated features, the fit was 1 point of accuracy and 6 % of the predictions away from the optimum. With 1e-5 it
# was 0.3 points and 1 % away, in float32 as in float64.
GRADIENT_TOLERANCE = 1e-5
MAX_ITERATIONS = 2000
# A feature that varies by no more than float32 rounding is constant: scaling it up would make noise count.
CONSTANT_RELATIVE_STD = 1e-6
# Neighbors of negative similarity vote with this weight, so that a row without a near neighbor gets a label too.
MIN_VOTE = 1e-6
# This many test rows are compared at a time. The similarities of 100,000 rows with each other would fill 40 GB.
KNN_CHUNK_ROWS = 1024
# Between minus and plus this many standard deviations lies 95 % of a normal distribution.
NORMAL_QUANTILE_95 = 1.959964

Classify = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class ProbeScore(NamedTuple):
    """Top-1 accuracy of one probe on held-out rows; accuracies are shares between 0 and 1.

    Attributes:
        accuracies: the accuracy on each split's test rows, in the order of the splits.
        mean: the mean of `accuracies`; each split counts alike.
        std: the standard deviation of `accuracies` (divided by splits - 1); None for a single split.
        predictions: the predicted class index of each row, -1 where no split tests it.
        tested: how many rows were tested. A row counts once for each split that tests it.
    """

    accuracies: tuple[float, ...]
    mean: float
    std: float | None
    predictions: Int64[np.ndarray, " rows"]
    tested: int

    @property
    def interval_95(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy: Wilson's, from the binomial, so it is never empty or outside [0, 1].

        A single split has one too, although its `std` is None. The formula assumes that the tested rows are
        independent. Where rows come in groups (takes of one speaker), the true interval is wider.
        """
        return wilson_interval(self.mean, self.tested)


def wilson_interval(share: float, tested: int) -> tuple[float, float]:
    """Return the 95 % interval for a share of right answers among `tested` independent ones (Wilson, 1927)."""
    z2 = NORMAL_QUANTILE_95**2 / tested
    center = share + z2 / 2
    half_width = math.sqrt(z2 * (share * (1.0 - share) + z2 / 4))
    low, high = (center - half_width) / (1 + z2), (center + half_width) / (1 + z2)
    return max(0.0, low), min(1.0, high)


def t_interval(values: Float[np.ndarray, " values"]) -> tuple[float, float] | None:
    """Return the 95 % interval for the mean of independent values (Student, 1908); None for a single one.

    Raises:
        MissingExtraError: scikit-learn, with which SciPy comes, is not installed.
    """
    try:
        from scipy.stats import t
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None
    if len(values) < 2:
        return None
    half_width = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half_width, mean + half_width


def linear_probe(
    features: Float[np.ndarray, "rows dims"], labels: Int[np.ndarray, " rows"], splits: list[Split]
) -> ProbeScore:
    """Judge features by multinomial logistic regression, fitted to each split.

    Features are standardized by the split's training rows. The penalty is fixed, so nothing is chosen on rows marked
    valid, and they are not trained on either. The fit has one optimum and no randomness, so it repeats exactly on one
    machine.

    Args:
        features: one row per clip, finite.
        labels: class index of each row, from 0.
        splits: as from `make_splits`.

    Returns:
        The score over all splits.

    Raises:
        InputError: features are not finite or do not fit the labels.
        MissingExtraError: scikit-learn is not installed.
    """
    return _score(features, labels, splits, logistic_predictions)


def logistic_predictions(
    train: Float[np.ndarray, "train dims"],
    train_labels: Int[np.ndarray, " train"],
    test: Float[np.ndarray, "test dims"],
) -> Int[np.ndarray, " test"]:
    """Fit multinomial logistic regression (C = 1) to standardized rows, and return the class of each test row.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    return np.asarray(logistic_fit(train, train_labels).predict(test))


def logistic_fit(train: Float[np.ndarray, "train dims"], labels: Shaped[np.ndarray, " train"]) -> Any:
    """Return scikit-learn's multinomial logistic regression (C = 1), fitted to standardized rows.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None
    model = LogisticRegression(C=1.0, tol=GRADIENT_TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # A fit that reaches the limit of iterations is good enough: its predictions stopped changing long before.
        warnings.simplefilter("ignore", category=ConvergenceWarning)
        # Scikit-learn suspects regression targets where each row has a class of its own. Few labels look like that.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        model.fit(train, labels)
    return model


def knn_probe(
    features: Float[np.ndarray, "rows dims"],
    labels: Int[np.ndarray, " rows"],
    splits: list[Split],
    neighbors: int = 10,
) -> ProbeScore:
    """Judge features by the labels of the nearest training rows.

    Features are standardized by the split's training rows, then scaled to length 1. The neighbors are the rows of
    largest cosine similarity, which is also the weight of their votes (a negative one counts as next to nothing). If
    votes are equal, the lower class index wins.

    Args:
        features: one row per clip, finite.
        labels: class index of each row, from 0.
        splits: as from `make_splits`; rows marked valid are neither neighbors nor tested.
        neighbors: how many vote, at least 1; at most all training rows do.

    Returns:
        The score over all splits.

    Raises:
        InputError: features are not finite or do not fit the labels, or `neighbors` is below 1.
    """
    if neighbors < 1:
        raise InputError(f"{neighbors} neighbors were asked for; expected at least 1")
    classes = int(labels.max(initial=0)) + 1

    def classify(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
        return neighbor_votes(train, test, np.eye(classes)[train_labels], neighbors).argmax(axis=1)

    return _score(features, labels, splits, classify)


def neighbor_votes(
    train: Float[np.ndarray, "train dims"],
    test: Float[np.ndarray, "test dims"],
    targets: Float[np.ndarray, "train classes"],
    neighbors: int,
) -> Float[np.ndarray, "test classes"]:
    """Return the mean of the nearest training rows' targets for each test row, weighted by cosine similarity.

    A neighbor with a negative similarity has nearly no vote.
    """
    train, test = _unit_rows(train), _unit_rows(test)
    votes = np.zeros((len(test), targets.shape[1]))
    for start in range(0, len(test), KNN_CHUNK_ROWS):
        similarities = test[start : start + KNN_CHUNK_ROWS] @ train.T
        # A stable sort takes the earlier of equally near rows, so the result does not depend on the machine.
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :neighbors]
        weights = np.maximum(np.take_along_axis(similarities, nearest, axis=1), MIN_VOTE)
        weights = weights / weights.sum(axis=1, keepdims=True)
        votes[start : start + KNN_CHUNK_ROWS] = np.einsum("rn,rnc->rc", weights, targets[nearest])
    return votes


def _score(features: np.ndarray, labels: np.ndarray, splits: list[Split], classify: Classify) -> ProbeScore:
    """Run one classifier over the splits and gather its predictions."""
    check_features(features, len(labels))
    predictions = np.full(len(labels), -1, dtype=np.int64)
    accuracies = []
    for split in splits:
        train, test = standardize(features[split.train], features[split.test])
        predicted = classify(train, labels[split.train], test)
        predictions[split.test] = predicted
        accuracies.append(float(np.mean(predicted == labels[split.test])))
    std = float(np.std(accuracies, ddof=1)) if len(splits) > 1 else None
    tested = sum(len(split.test) for split in splits)
    return ProbeScore(tuple(accuracies), float(np.mean(accuracies)), std, predictions, tested)


def check_features(features: np.ndarray, labels: int) -> None:
    """Raise InputError for features that no classifier can use, or of another number than the labels."""
    if len(features) != labels:
        raise InputError(f"{len(features)} rows of features for {labels} labels; expected one row per label")
    bad_rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad_rows):
        raise InputError(
            f"{len(bad_rows)} of {len(features)} rows of features hold NaN or infinity, first row "
            f"{bad_rows[0]}; expected finite numbers: check the model and that clip"
        )


def standardize(
    train: Float[np.ndarray, "train dims"], *others: Float[np.ndarray, "_ dims"]
) -> list[Float[np.ndarray, "_ dims"]]:
    """Scale `train` and the others to mean 0 and std 1 of the training rows, float32; constant features become 0."""
    # In float32 the mean of many rows would lose digits.
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    varies = std > CONSTANT_RELATIVE_STD * np.abs(mean)
    scale = np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0)
    return [((rows - mean) * scale).astype(np.float32) for rows in (train, *others)]


def earlier_equals(values: np.ndarray) -> Int64[np.ndarray, " values"]:
    """Return how many equal values stand before each of `values` (one axis): 0 for the first of its kind."""
    # Sorted, equal values are neighbors; `searchsorted` finds where each kind begins.
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    earlier = np.empty(len(values), dtype=np.int64)
    earlier[by_value] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return earlier


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale each row to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
