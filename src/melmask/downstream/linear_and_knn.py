"""Probes: how much a simple classifier gets out of frozen features."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64

from melmask.downstream.regression import Regressions, fit_regressions
from melmask.errors import InputError
from melmask.labels.splits import Split
from melmask.system.extras import require
from melmask.system.hardware import available_cores, map_ahead
from melmask.system.progress import track

PENALTY = 1.0
"""Of the linear probe: C = 1 in scikit-learn's words."""
_SIMILAR_SCALES = 4.0
"""Splits are fitted together if no feature's deviation in one of them is this many times that in another."""
# A feature that varies by no more than float32 rounding is constant: scaling it up would make noise count.
CONSTANT_RELATIVE_STD = 1e-6
# Neighbors of negative similarity vote with this weight, so that a row without a near neighbor gets a label too.
MIN_VOTE = 1e-6
# This many test rows are compared at a time. The similarities of 100,000 rows with each other would fill 40 GB.
KNN_CHUNK_ROWS = 1024
# Between minus and plus this many standard deviations lies 95 % of a normal distribution.
NORMAL_QUANTILE_95 = 1.959964


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
    if len(values) < 2:
        return None
    require("eval")
    from scipy.stats import t

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
    """
    check_features(features, len(labels))
    shared = _together(features, splits)
    groups = [splits] if shared else [[split] for split in splits]
    tests = [predicted for group in groups for predicted in _linear_predictions(features, labels, group)]
    return _score(labels, splits, tests)


def _together(features: np.ndarray, splits: list[Split]) -> bool:
    """Return whether the features have similar scales in the training rows of all splits, as those of folds have."""
    deviations = np.array([features[split.train].std(axis=0, dtype=np.float64) for split in splits])
    means = np.array([features[split.train].mean(axis=0, dtype=np.float64) for split in splits])
    varies = deviations > CONSTANT_RELATIVE_STD * np.abs(means)
    similar = deviations.max(axis=0) < _SIMILAR_SCALES * deviations.min(axis=0)
    return bool((~varies.any(axis=0) | (varies.all(axis=0) & similar)).all())


def _linear_predictions(features: np.ndarray, labels: np.ndarray, splits: list[Split]) -> list[np.ndarray]:
    """Fit all splits at once, and return the predicted classes of each split's test rows."""
    rows = np.unique(np.concatenate([split.train for split in splits]))
    # All fits get the same numbers, standardized over all their rows. Other scales in a split's own training rows
    # change nothing but how much a weight costs: the optimum is that of features standardized by the split.
    standardized, tested = standardize(features[rows], features)
    trained = np.array([np.isin(rows, split.train) for split in splits])
    variances = np.array([standardized[own].var(axis=0, dtype=np.float64) for own in trained])
    # A feature that is constant is 0 everywhere, so any penalty keeps its weight at 0.
    penalties = PENALTY * np.where(variances > 0, variances, 1.0)
    found = fit_regressions(_regressions(standardized, labels[rows], trained, penalties))
    return [
        np.asarray((torch.from_numpy(tested[split.test]) @ weight + bias).argmax(1))
        for split, weight, bias in zip(splits, found.weight, found.bias, strict=True)
    ]


def _regressions(rows: np.ndarray, labels: np.ndarray, trained: np.ndarray, penalties: np.ndarray) -> Regressions:
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    return Regressions(
        inputs=torch.from_numpy(rows),
        targets=torch.from_numpy(targets),
        trained=torch.from_numpy(trained),
        penalties=torch.from_numpy(penalties.astype(np.float32)),
    )


def logistic_predictions(
    train: Float[np.ndarray, "train dims"],
    labels: Int[np.ndarray, " train"],
    drawn: Bool[np.ndarray, "fits train"],
    test: Float[np.ndarray, "test dims"],
) -> Int[np.ndarray, "fits test"]:
    """Fit the linear probe to several draws of standardized rows at once, and return the class of each test row."""
    used = drawn.any(axis=0)
    train, labels, drawn = train[used], labels[used], drawn[:, used]
    if len(train) < train.shape[1]:
        # The optimum's weights lie in the span of the training rows. Turning that span onto the first axes leaves the
        # predictions as they are, and 100 rows of 960 features take a fifth of the time.
        axes, _ = np.linalg.qr(train.T)
        train, test = train @ axes, test @ axes
    penalties = np.full((len(drawn), train.shape[1]), PENALTY)
    found = fit_regressions(_regressions(train, labels, drawn, penalties))
    return np.asarray(found.logits(torch.from_numpy(test)).argmax(2))


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
    check_features(features, len(labels))
    targets = np.eye(int(labels.max(initial=0)) + 1)[labels]
    tests = []
    for split in splits:
        train, test = standardize(features[split.train], features[split.test])
        tests.append(neighbor_votes(train, test, targets[split.train], neighbors).argmax(axis=1))
    return _score(labels, splits, tests)


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
    neighbors = min(neighbors, len(train))
    columns = torch.from_numpy(train).T
    votes = np.zeros((len(test), targets.shape[1]))
    for start in range(0, len(test), KNN_CHUNK_ROWS):
        similarities = torch.from_numpy(test[start : start + KNN_CHUNK_ROWS]) @ columns
        nearest = _nearest(similarities, neighbors)
        weights = np.maximum(np.take_along_axis(similarities.numpy(), nearest, axis=1), MIN_VOTE)
        weights = weights / weights.sum(axis=1, keepdims=True)
        votes[start : start + KNN_CHUNK_ROWS] = np.einsum("rn,rnc->rc", weights, targets[nearest])
    return votes


def _nearest(similarities: Float[torch.Tensor, "test train"], neighbors: int) -> Int64[np.ndarray, "test neighbors"]:
    """Return the columns of each row's largest values, the largest first, and the earlier one of equals."""
    values, nearest = similarities.topk(neighbors, dim=1)
    # Which of equal values `topk` takes depends on the machine. Rows where that matters are few, so they are sorted.
    more = (similarities >= values[:, -1:]).sum(1) > neighbors
    equal = more | (values[:, 1:] == values[:, :-1]).any(1)
    if equal.any():
        ordered = similarities[equal].sort(dim=1, descending=True, stable=True)
        nearest[equal] = ordered.indices[:, :neighbors]
    return nearest.numpy()


def _score(labels: np.ndarray, splits: list[Split], tests: list[np.ndarray]) -> ProbeScore:
    """Compare the predictions for each split's test rows with the labels."""
    predictions = np.full(len(labels), -1, dtype=np.int64)
    accuracies = []
    for split, predicted in zip(splits, tests, strict=True):
        predictions[split.test] = predicted
        accuracies.append(float(np.mean(predicted == labels[split.test])))
    std = float(np.std(accuracies, ddof=1)) if len(splits) > 1 else None
    tested = sum(len(split.test) for split in splits)
    return ProbeScore(tuple(accuracies), float(np.mean(accuracies)), std, predictions, tested)


CLASSIFIERS = {"linear": linear_probe, "k-NN": knn_probe}


def probe_features(
    features: Mapping[str, Float[np.ndarray, "rows _"]],
    labels: Int[np.ndarray, " rows"],
    splits: list[Split],
    title: str = "fit",
) -> dict[str, dict[str, ProbeScore]]:
    """Return the scores of each representation and classifier; `title` names the progress on standard error.

    Each classifier of each representation has one thread, as many side by side as there are cores. So the numbers do
    not depend on the number of threads, and no thread waits for another on a busy machine.

    Raises:
        InputError: features are not finite or do not fit the labels.
    """
    # The widest features take longest, so they begin.
    jobs = [(name, judge) for judge in CLASSIFIERS for name in sorted(features, key=lambda n: -features[n].shape[1])]

    def score(job: tuple[str, str]) -> ProbeScore:
        name, judge = job
        return CLASSIFIERS[judge](features[name], labels, splits)

    threads = min(len(jobs), available_cores())
    scores = track(map_ahead(score, jobs, threads, len(jobs)), len(jobs), title, "probe", leave=False)
    found = dict(zip(jobs, scores, strict=True))
    return {name: {judge: found[name, judge] for judge in CLASSIFIERS} for name in features}


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
