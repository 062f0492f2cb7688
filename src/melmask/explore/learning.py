"""A probe of the labels that a user has given so far: its scores, its guesses, and what to label next."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from melmask.audio.parts import Sound
from melmask.downstream.linear_and_knn import PENALTY, logistic_predictions, standardize, wilson_interval
from melmask.downstream.regression import Regressions, Weights, fit_regressions
from melmask.errors import InputError
from melmask.explore.columns import ABSENT
from melmask.explore.similarity import Suggestion
from melmask.explore.vectors import PointVectors
from melmask.labels.segments import files_as_groups
from melmask.labels.splits import Split, make_splits
from melmask.labels.tables import LabelTable, sorted_names

_FOLDS = 5
_ROWS_AT_ONCE = 20_000
_MOST_POOLED = 1000
_UNCERTAIN = 30
"""Of so many times as many uncertain points as are asked for, those that differ most are suggested."""


class Probe(NamedTuple):
    """A classifier of all points that was fitted to the labeled ones.

    Attributes:
        labeled: points that it was fitted to.
        classes: the labels, in the order of the codes.
        accuracy: the share of labeled points that a probe of the others recognizes; None if that cannot be measured.
        interval_95: its 95 % interval.
        note: why there is no accuracy; else empty.
        codes: (points,) int32, the class of each point, -1 where it is not embedded.
        confidence: (points,) float32, the probability of that class, NaN where it is not embedded.
        second: (points,) int32, the second most probable class.
        margin: (points,) float32, how much more probable the first is.
    """

    labeled: int
    classes: list[str]
    accuracy: float | None
    interval_95: tuple[float, float] | None
    note: str
    codes: np.ndarray
    confidence: np.ndarray
    second: np.ndarray
    margin: np.ndarray


def fit_probe(vectors: PointVectors, table: LabelTable, points: np.ndarray) -> Probe:
    """Fit the linear probe of `melmask probe` to the labeled points, and let it guess the others.

    Args:
        vectors: Those of all points.
        table: The labels, with a row for each labeled point. Its groups stay on one side of a split.
        points: (rows,), the point of each row.

    Raises:
        InputError: fewer than two labels are given to points that are embedded.
    """
    classes = table.class_names
    if len(classes) < 2:
        labels = f"{len(classes)} label{'' if len(classes) == 1 else 's'}"
        raise InputError(f"{len(points)} labeled points have {labels}; label some with two")
    accuracy, interval, note = _cross_validated(vectors, table, points)
    train, *_ = standardize(vectors.rows[points])
    axes = _span(train)
    weights = _fitted(train @ axes, table.label_indices)
    count = len(vectors.known)
    codes, second = (np.full(count, ABSENT, np.int32) for _ in range(2))
    confidence, margin = (np.full(count, np.nan, np.float32) for _ in range(2))
    known = np.flatnonzero(vectors.known)
    for start in range(0, len(known), _ROWS_AT_ONCE):
        some = known[start : start + _ROWS_AT_ONCE]
        _, rows = standardize(vectors.rows[points], vectors.rows[some])
        shares, order = weights.logits(torch.from_numpy(rows @ axes))[0].softmax(-1).topk(2)
        codes[some], second[some] = order.numpy().T
        confidence[some] = shares[:, 0].numpy()
        margin[some] = (shares[:, 0] - shares[:, 1]).numpy()
    return Probe(len(points), classes, accuracy, interval, note, codes, confidence, second, margin)


def label_table(sounds: Sequence[Sound], labels: Mapping[int, str], known: np.ndarray) -> tuple[LabelTable, np.ndarray]:
    """Return the labels of the points that are embedded as a table, and the point of each of its rows."""
    points = np.array([point for point in sorted(labels) if known[point]], np.int64)
    own = [sounds[point] for point in points]
    groups, _ = files_as_groups(own) if any(sound.is_part for sound in own) else (None, "")
    return LabelTable([sound.path for sound in own], [labels[point] for point in points.tolist()], groups), points


def _cross_validated(
    vectors: PointVectors, table: LabelTable, points: np.ndarray
) -> tuple[float | None, tuple[float, float] | None, str]:
    """Return the accuracy on points that the probe was not fitted to, its interval, or why there is none."""
    units = table.labels if table.groups is None else sorted_names(table.groups)
    most = max(Counter(table.labels).values()) if table.groups is None else len(units)
    try:
        if most < 2:
            raise InputError("every label is given once; label more points")
        splits = make_splits(table, "auto", folds=min(_FOLDS, most))
    except InputError as error:
        return None, None, str(error)
    rows, *_ = standardize(vectors.rows[points])
    labels = table.label_indices
    drawn = np.stack([np.isin(np.arange(len(points)), split.train) for split in splits])
    predicted = logistic_predictions(rows, labels, drawn, rows)
    right, tested = _right(predicted, labels, splits)
    return right / tested, wilson_interval(right / tested, tested), ""


def _right(predicted: np.ndarray, labels: np.ndarray, splits: list[Split]) -> tuple[int, int]:
    right = sum(
        int((own[split.test] == labels[split.test]).sum()) for own, split in zip(predicted, splits, strict=True)
    )
    return right, sum(len(split.test) for split in splits)


def _span(rows: np.ndarray) -> np.ndarray:
    """Return axes (D, n) of the span of n rows, in which the optimum lies, or all axes if that saves nothing."""
    if len(rows) >= rows.shape[1]:
        return np.eye(rows.shape[1], dtype=np.float32)
    axes, _ = np.linalg.qr(rows.T)
    return axes


def _fitted(rows: np.ndarray, labels: np.ndarray) -> Weights:
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    return fit_regressions(
        Regressions(
            inputs=torch.from_numpy(np.ascontiguousarray(rows)),
            targets=torch.from_numpy(targets),
            trained=torch.ones(1, len(rows), dtype=torch.bool),
            penalties=torch.full((1, rows.shape[1]), PENALTY),
        )
    )


def suggestions(vectors: PointVectors, probe: Probe | None, labels: Mapping[int, str], count: int) -> list[Suggestion]:
    """Return points worth labeling next, uncertain and unlike each other; without a probe, only the latter."""
    open_ = vectors.known.copy()
    open_[list(labels)] = False
    points = np.flatnonzero(open_)
    if not len(points) or not count:
        return []
    if probe is None:
        pool = points[np.linspace(0, len(points) - 1, min(len(points), _MOST_POOLED)).astype(np.int64)]
        rows = vectors.rows[pool]
        # Without labels the first is the most usual one, and the next ones are far from it.
        seen = vectors.rows[list(labels)] if labels else rows.mean(axis=0, keepdims=True)
        far = _distances(rows, seen[:_MOST_POOLED])
        chosen = _apart(rows, far if labels else -far, count)
        return [Suggestion(int(pool[row]), "unlike what is labeled or suggested so far") for row in chosen]
    most = min(len(points), _UNCERTAIN * count)
    pool = points[np.argsort(probe.margin[points], kind="stable")[:most]]
    return [
        Suggestion(int(pool[row]), _doubt(probe, int(pool[row])))
        for row in _apart(vectors.rows[pool], -probe.margin[pool], count)
    ]


def _doubt(probe: Probe, point: int) -> str:
    first, second = (probe.classes[codes[point]] for codes in (probe.codes, probe.second))
    share, other = probe.confidence[point], probe.confidence[point] - probe.margin[point]
    return f"{first} ({share:.0%}) or {second} ({other:.0%})"


def _apart(rows: np.ndarray, first: np.ndarray, count: int) -> list[int]:
    """Choose `count` rows: the one of the largest value in `first`, then always the farthest from all chosen ones."""
    chosen = [int(first.argmax())]
    distances = np.full(len(rows), np.inf)
    while len(chosen) < min(count, len(rows)):
        distances = np.minimum(distances, _distances(rows, rows[chosen[-1:]]))
        # Of equal rows each is chosen once.
        distances[chosen] = -1.0
        chosen.append(int(distances.argmax()))
    return chosen


def _distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each row to the nearest of some others."""
    nearest = np.full(len(rows), np.inf)
    for other in others:
        nearest = np.minimum(nearest, np.linalg.norm(rows - other, axis=1))
    return nearest
