"""Vectors that are small enough for a page: turned onto their principal axes, cut, and rounded to 8 bits."""

from typing import NamedTuple

import numpy as np

from melmask.explore.vectors import PointVectors
from melmask.search.nearest import Vectors, mean_of, unit_rows

_MOST_BYTES = 8 << 20
_MOST_DIMENSIONS, _FEWEST_DIMENSIONS = 256, 16
_ROWS_AT_ONCE = 20_000
_QUERIES, _NEAREST = 50, 10


class Reduced(NamedTuple):
    """`rows` (points, dims) int8 and `scales` (points,) float32; a point without a vector has a scale of 0.

    The similarity of two points is the product of their rows and of their scales. `found` is how many of the ten
    nearest points it finds, as a share.
    """

    rows: np.ndarray
    scales: np.ndarray
    found: float


def reduced_vectors(vectors: PointVectors) -> Reduced | None:
    """Reduce the vectors of a collection to at most 8 MB; None if too little would be left of each."""
    count = len(vectors.known)
    kept = min(vectors.rows.shape[1], _MOST_DIMENSIONS, _MOST_BYTES // count)
    if kept < min(_FEWEST_DIMENSIONS, vectors.rows.shape[1]):
        return None
    known = np.flatnonzero(vectors.known)
    # As the search of the server: the cosine after the mean of all vectors is subtracted.
    mean = mean_of(vectors.rows) * (count / len(known))
    size = vectors.rows.shape[1]
    moment = np.zeros((size, size))
    for start in range(0, len(known), _ROWS_AT_ONCE):
        units = unit_rows(vectors.rows[known[start : start + _ROWS_AT_ONCE]], mean, np.float64)
        moment += units.T @ units
    # Of all axes, those of the largest second moment keep the products of vectors best.
    axes = np.linalg.eigh(moment)[1][:, ::-1][:, :kept]
    rows, scales = np.zeros((count, kept), np.int8), np.zeros(count, np.float32)
    for start in range(0, len(known), _ROWS_AT_ONCE):
        some = known[start : start + _ROWS_AT_ONCE]
        turned = unit_rows(vectors.rows[some], mean, np.float64) @ axes
        largest = np.abs(turned).max(axis=1)
        scales[some] = largest / 127
        rows[some] = np.rint(turned / np.maximum(largest[:, None], 1e-12) * 127)
    return Reduced(rows, scales, _share_found(vectors.rows[known], rows[known], scales[known]))


def _share_found(exact: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> float:
    """Return which share of the nearest points of some points is found among as many by the reduced vectors."""
    queries = np.unique(np.linspace(0, len(exact) - 1, min(_QUERIES, len(exact))).astype(int))
    searched, shares = Vectors(exact), []
    for query in queries:
        true = [row for row in searched.nearest(exact[query], _NEAREST + 1).ids if row != query][:_NEAREST]
        similarity = (rows @ rows[query].astype(np.float32)) * scales * scales[query]
        similarity[query] = -np.inf
        ours = np.argsort(-similarity, kind="stable")[: len(true)]
        shares.append(len(np.intersect1d(ours, true)) / max(1, len(true)) if true else 1.0)
    return float(np.mean(shares))
