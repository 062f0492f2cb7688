"""Which points are like others: search by example, duplicates, and labeled points among neighbors of another label."""

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

from melmask.explore.vectors import PointVectors
from melmask.search.nearest import Vectors, near_duplicates, unit_rows

_NEIGHBORS = 10
_SUSPICIOUS_SHARE = 0.5
_QUERIES_AT_ONCE = 256
_DUPLICATE_SIMILARITY, _WHITENED_DUPLICATE_SIMILARITY = 0.99, 0.9
"""Whitened vectors of different sounds are less similar, and so are those of copies."""
_MOST_COMPARED = 30_000
"""Points of which every one is compared with every other for duplicates, in less than a minute."""


class Suggestion(NamedTuple):
    """A point worth a look, why, and the other point of a pair."""

    point: int
    why: str
    other: int | None = None


class Similarity:
    """Compares the points of a collection by the cosine of their vectors, from which the mean is subtracted."""

    def __init__(self, vectors: PointVectors):
        self._vectors, self._lock = vectors, Lock()
        self._searched: tuple[np.ndarray, Vectors] | None = None

    def _known(self) -> tuple[np.ndarray, Vectors]:
        """Return the points that are embedded, and their vectors to search in."""
        with self._lock:
            points = np.flatnonzero(self._vectors.known)
            if self._searched is None or len(self._searched[0]) != len(points):
                rows = self._vectors.rows
                # While all are not known, the rows of the others are zeros, which must not be found.
                self._searched = points, Vectors(rows if len(points) == len(rows) else rows[points])
            return self._searched

    def nearest(self, vector: np.ndarray, count: int) -> list[tuple[int, float]]:
        """Return the points that are most similar to a vector (D,) as `rows` has them, and how similar each one is."""
        points, searched = self._known()
        if not len(points):
            return []
        found = searched.nearest(vector, count)
        return [
            (int(points[row]), float(similarity)) for row, similarity in zip(found.ids, found.similarity, strict=True)
        ]

    def suspects(self, labels: Mapping[int, str], count: int) -> list[Suggestion]:
        """Return the labeled points whose nearest labeled neighbors have another label, the clearest first."""
        points = np.array([point for point in sorted(labels) if self._vectors.known[point]], np.int64)
        if len(points) < 3:
            return []
        units = unit_rows(self._vectors.rows[points], self._known()[1].mean)
        found: list[tuple[float, Suggestion]] = []
        for start in range(0, len(points), _QUERIES_AT_ONCE):
            scores = torch.from_numpy(units[start : start + _QUERIES_AT_ONCE] @ units.T)
            # A point is no neighbor of itself.
            scores.diagonal(start).fill_(-1)
            weights, rows = scores.topk(min(_NEIGHBORS, len(points) - 1))
            for row, pairs in enumerate(zip(rows.tolist(), weights.tolist(), strict=True), start):
                # Points that are unlike this one say nothing about it, however few are labeled.
                votes = [(labels[int(points[k])], weight) for k, weight in zip(*pairs, strict=True) if weight > 0]
                if suspicion := _other_label(labels[int(points[row])], votes):
                    found.append((suspicion[0], Suggestion(int(points[row]), suspicion[1])))
        return [suggestion for _, suggestion in sorted(found, key=lambda item: -item[0])[:count]]

    def duplicates(self, count: int) -> list[Suggestion]:
        """Return pairs of points whose vectors are nearly the same, the most similar first."""
        points, searched = self._known()
        if len(points) < 2:
            return []
        whitened = self._vectors.plain is not None
        least = _WHITENED_DUPLICATE_SIMILARITY if whitened else _DUPLICATE_SIMILARITY
        if len(points) <= _MOST_COMPARED:
            pairs = near_duplicates(searched, least, count)
            triples = list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), strict=True))
        else:
            triples = _duplicates_within_cells(searched, least, count)
        return [
            Suggestion(int(points[first]), f"similarity {similarity:.4f}", int(points[second]))
            for first, second, similarity in triples
        ]


def _other_label(own: str, votes: Sequence[tuple[str, float]]) -> tuple[float, str] | None:
    """Return the share of the votes for another label than a point's own, if it is most of them, and words for it."""
    weights = Counter[str]()
    for label, weight in votes:
        weights[label] += weight  # type: ignore[assignment]
    if not weights:
        return None
    (label, most), *_ = weights.most_common(1)
    share = most / sum(weights.values())
    if label == own or share <= _SUSPICIOUS_SHARE:
        return None
    number = sum(voter == label for voter, _ in votes)
    return share, f"labeled {own}, but {number} of its {len(votes)} nearest labeled sounds are {label}"


def _duplicates_within_cells(searched: Vectors, least: float, count: int) -> list[tuple[int, int, float]]:
    """Compare only points that are nearest to the same one of many pivots: of a pair that is alike, both mostly are."""
    matrix, mean = searched.matrix, searched.mean
    pivots = unit_rows(matrix[:: max(1, len(matrix) // int(len(matrix) ** 0.5))], mean)
    cells = np.empty(len(matrix), np.int32)
    for start in range(0, len(matrix), _MOST_COMPARED):
        cells[start : start + _MOST_COMPARED] = (
            unit_rows(matrix[start : start + _MOST_COMPARED], mean) @ pivots.T
        ).argmax(1)
    order = np.argsort(cells, kind="stable")
    found: list[tuple[int, int, float]] = []
    for rows in np.split(order, np.flatnonzero(np.diff(cells[order])) + 1):
        units = unit_rows(matrix[rows], mean)
        for start in range(0, len(rows), _QUERIES_AT_ONCE):
            scores = np.triu(units[start : start + _QUERIES_AT_ONCE] @ units.T, start + 1)
            first, second = np.nonzero(scores >= least)
            similar = np.minimum(scores[first, second], 1.0)
            found += zip(rows[first + start].tolist(), rows[second].tolist(), similar.tolist(), strict=True)
        found = sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:count]
    return found
