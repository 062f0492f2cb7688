"""Exact search in a matrix of vectors, which may lie on disk: pure NumPy, block by block.

The similarity of two vectors is the cosine between them after the mean of all vectors is subtracted from both. Vectors
of a model share a large constant part, which would make any two look alike.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

_BLOCK_VALUES = 1 << 24
"""Numbers of the matrix that are looked at together: 64 MB."""
_PAIR_ROWS = 2048
"""Rows that are compared with each other at once; their similarities are 16 MB."""
_SMALLEST_LENGTH = 1e-6
"""A vector is compared with nothing if what remains of it, beside its own size, is no more than rounding."""

Matrix = Float[np.ndarray, "rows dims"]


class Found(NamedTuple):
    """Rows of a matrix, the most similar first, and how similar each one is: (found,) int64, (found,) float32."""

    ids: np.ndarray
    similarity: np.ndarray


class Pairs(NamedTuple):
    """Pairs of rows, the most similar first: (pairs,) int64, (pairs,) int64 and larger, (pairs,) float32."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


class Vectors:
    """Vectors in which the nearest ones are searched.

    Args:
        matrix: (rows, dims) float32, finite, one vector a row; it may be memory-mapped, and is never copied whole.
        mean: (dims,), what is subtracted from every vector; by default the mean of the rows.

    Attributes: `matrix`, `mean` (dims,) float64.
    """

    def __init__(self, matrix: Matrix, mean: Float[np.ndarray, " dims"] | None = None):
        self.matrix = matrix
        self.mean = mean_of(matrix) if mean is None else np.asarray(mean, np.float64)
        self._lengths = np.empty(len(matrix), np.float32)
        for start, block in _blocks(matrix):
            self._lengths[start : start + len(block)] = _lengths(block, self.mean)

    def nearest(self, query: Float[np.ndarray, " dims"], count: int) -> Found:
        """Return the `count` rows that are most similar to a vector, or all rows if there are fewer.

        Of rows that are equally similar, the earlier ones come first.
        """
        (found,) = self.nearest_of(query[None], count)
        return found

    def nearest_of(self, queries: Float[np.ndarray, "queries dims"], count: int) -> list[Found]:
        """Return the same for each of several vectors; they share one pass over the matrix."""
        units = unit_rows(queries, self.mean)
        # The mean is subtracted after the product, so that no block is copied.
        shifts = (units.astype(np.float64) @ self.mean).astype(np.float32)
        ids = np.zeros((len(queries), 0), np.int64)
        best = np.zeros((len(queries), 0), np.float32)
        for start, block in _blocks(self.matrix):
            lengths = self._lengths[start : start + len(block)]
            with np.errstate(divide="ignore", invalid="ignore"):
                scores = np.where(lengths > 0, (units @ block.T - shifts[:, None]) / lengths, 0)
            numbers = np.broadcast_to(np.arange(start, start + len(block)), scores.shape)
            ids, best = np.concatenate([ids, numbers], 1), np.concatenate([best, scores], 1)
            # A few more are kept than asked for, because rounding may have put neighbors in another order.
            kept = min(2 * count + 8, best.shape[1])
            chosen = np.argpartition(-best, kept - 1, axis=1)[:, :kept] if kept else np.zeros((len(best), 0), np.int64)
            ids, best = np.take_along_axis(ids, chosen, 1), np.take_along_axis(best, chosen, 1)
        return [self._ordered(query, found, count) for query, found in zip(queries, ids, strict=True)]

    def _ordered(self, query: np.ndarray, ids: np.ndarray, count: int) -> Found:
        similarity = self.similarity(query, ids)
        order = np.lexsort((ids, -similarity))[:count]
        return Found(ids[order], similarity[order])

    def similarity(self, query: Float[np.ndarray, " dims"], ids: Int64[np.ndarray, " found"]) -> np.ndarray:
        """Return how similar some rows are to a vector, (found,) float32 from -1 to 1, computed in float64."""
        rows = unit_rows(self.matrix[ids], self.mean, np.float64)
        (unit,) = unit_rows(query[None], self.mean, np.float64)
        return np.clip(rows @ unit, -1, 1).astype(np.float32)


def near_duplicates(
    matrix: Matrix, threshold: float, count: int, *, groups: Int64[np.ndarray, " rows"] | None = None
) -> Pairs:
    """Return the pairs of rows that are at least as similar as `threshold`, the most similar first.

    Every row is compared with every other one: 100,000 rows of 384 numbers take some minutes on two cores.

    Args:
        matrix: (rows, dims) float32, finite; it may be memory-mapped.
        threshold: The least similarity, from -1 to 1; vectors of one sound in two formats have 0.99 or more.
        count: The most pairs.
        groups: (rows,), the number of each row's group; rows of one group are not compared.
    """
    mean, found = mean_of(matrix), Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    for start in range(0, len(matrix), _PAIR_ROWS):
        rows = unit_rows(matrix[start : start + _PAIR_ROWS], mean)
        for other in range(start, len(matrix), _PAIR_ROWS):
            columns = rows if other == start else unit_rows(matrix[other : other + _PAIR_ROWS], mean)
            scores = rows @ columns.T
            # With `count` pairs in hand, a pair counts only if it is more similar than the last of them.
            least = found.similarity[-1] if len(found.similarity) == count else threshold
            near = scores >= np.float32(least - 1e-6)
            first, second = np.nonzero(np.triu(near, 1) if other == start else near)
            pairs = Pairs(first + start, second + other, np.minimum(scores[first, second], 1))
            found = _most_similar(found, pairs, threshold, count, groups)
    return found


def _most_similar(found: Pairs, more: Pairs, threshold: float, count: int, groups: np.ndarray | None) -> Pairs:
    first, second, similarity = (np.concatenate(parts) for parts in zip(found, more, strict=True))
    # Rounding must not hide a pair of equal vectors from a threshold of 1.
    kept = similarity >= threshold - 1e-6
    if groups is not None:
        kept &= groups[first] != groups[second]
    first, second, similarity = first[kept], second[kept], similarity[kept]
    order = np.lexsort((second, first, -similarity))[:count]
    return Pairs(first[order], second[order], similarity[order])


def mean_of(matrix: Matrix) -> Float[np.ndarray, " dims"]:
    """Return the mean of the rows, (dims,) float64; zeros if there are no rows."""
    total = np.zeros(matrix.shape[1])
    for _, block in _blocks(matrix):
        total += block.sum(axis=0, dtype=np.float64)
    return total / max(1, len(matrix))


def unit_rows(rows: Matrix, mean: np.ndarray, dtype: type = np.float32) -> Matrix:
    """Return the rows without `mean` and with length 1; a row of which nothing remains becomes 0."""
    lengths = _lengths(rows, mean)[:, None]
    centered = rows.astype(np.float64) - mean
    exact = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.divide(centered, exact, out=np.zeros_like(centered), where=lengths > 0).astype(dtype)


def _lengths(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the length of each row without `mean`; 0 if it is no more than rounding."""
    lengths = np.linalg.norm(rows.astype(np.float64) - mean, axis=1)
    return np.where(lengths > _SMALLEST_LENGTH * np.linalg.norm(rows, axis=1), lengths, 0)


def _blocks(matrix: Matrix) -> Iterator[tuple[int, Matrix]]:
    rows = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        yield start, matrix[start : start + rows]
