"""Exact search in a matrix of vectors, which may lie on disk: pure NumPy, block by block.

The similarity of two vectors is the cosine between them after the mean of all vectors is subtracted from both. Vectors
of a model share a large constant part, which would make any two look alike.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

_BLOCK_VALUES = 1 << 24
"""Numbers of the matrix that are looked at together: 64 MB."""
_PAIR_ROWS = 2048
"""Rows that are compared with each other at once; their similarities are 16 MB."""
_SMALLEST_LENGTH = 1e-6
"""A vector is similar to nothing if what remains of it, beside its own size, is no more than rounding."""
_ZEROS = 10
"""The mean is that of the rows and of this many zeros, so that the only two rows of a matrix can be near-duplicates."""

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
        mean: (dims,), what is subtracted from every vector; by default `mean_of` the matrix.
        lengths: (rows,) float32, what `lengths_of` returned for the matrix and the mean; by default it is computed.

    Attributes: `matrix`, `mean` (dims,) float64, `lengths` (rows,) float32.
    """

    def __init__(
        self,
        matrix: Matrix,
        mean: Float[np.ndarray, " dims"] | None = None,
        lengths: Float[np.ndarray, " rows"] | None = None,
    ):
        self.matrix = matrix
        self.mean = mean_of(matrix) if mean is None else np.asarray(mean, np.float64)
        self.lengths = lengths_of(matrix, self.mean) if lengths is None else lengths

    def nearest(
        self, query: Float[np.ndarray, " dims"], count: int, among: Bool[np.ndarray, " rows"] | None = None
    ) -> Found:
        """Return the `count` rows that are most similar to a vector, or all rows if there are fewer.

        Of rows that are equally similar, the earlier ones come first.

        Args:
            query: A vector as in the matrix, (dims,).
            count: How many rows to return, at least 1.
            among: Which rows count, (rows,); by default all.
        """
        (unit,) = unit_rows(query[None], self.mean)
        # The mean is subtracted after the product, so that no block is copied.
        shift = np.float32(unit.astype(np.float64) @ self.mean)
        ids, best = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for start, block in _blocks(self.matrix):
            part = slice(start, start + len(block))
            scores = _divided(block @ unit - shift, self.lengths[part])
            rows = np.arange(start, start + len(block)) if among is None else start + np.flatnonzero(among[part])
            ids, best = np.concatenate([ids, rows]), np.concatenate([best, scores[rows - start]])
            # A few more are kept than asked for, because rounding may have put neighbors in another order.
            if len(best) > 2 * count + 8:
                kept = np.argpartition(-best, 2 * count + 8)[: 2 * count + 8]
                ids, best = ids[kept], best[kept]
        return self.ordered(query, ids, count)

    def ordered(self, query: Float[np.ndarray, " dims"], ids: Int64[np.ndarray, " found"], count: int) -> Found:
        """Return the `count` most similar ones of some rows, with similarities from -1 to 1 computed in float64."""
        rows = unit_rows(self.matrix[ids], self.mean, np.float64)
        (unit,) = unit_rows(query[None], self.mean, np.float64)
        similarity = np.clip(rows @ unit, -1, 1).astype(np.float32)
        order = np.lexsort((ids, -similarity))[:count]
        return Found(ids[order], similarity[order])


def near_duplicates(
    matrix: Matrix,
    threshold: int | float,
    count: int,
    *,
    mean: Float[np.ndarray, " dims"] | None = None,
    groups: Int64[np.ndarray, " rows"] | None = None,
    watch: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> Pairs:
    """Return the pairs of rows that are at least as similar as `threshold`, the most similar first.

    Every row is compared with every other one: 100,000 rows of 384 numbers take some minutes on two cores.

    Args:
        matrix: (rows, dims) float32, finite; it may be memory-mapped.
        threshold: The least similarity, from -1 to 1.
        count: The most pairs.
        mean: (dims,), what is subtracted from every vector; by default `mean_of` the matrix.
        groups: (rows,), the number of each row's group; rows of one group are not compared.
        watch: A function of the numbers of the parts of the work, and of how many there are, that yields the numbers.
    """
    mean = mean_of(matrix) if mean is None else mean
    found = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    parts = range(-(-len(matrix) // _PAIR_ROWS))
    for part in parts if watch is None else watch(parts, len(parts)):
        start = part * _PAIR_ROWS
        rows = unit_rows(matrix[start : start + _PAIR_ROWS], mean)
        for other in range(start, len(matrix), _PAIR_ROWS):
            columns = rows if other == start else unit_rows(matrix[other : other + _PAIR_ROWS], mean)
            scores = rows @ columns.T
            # With `count` pairs in hand, a pair counts only if it is more similar than the last of them.
            least = found.similarity[-1] if len(found.similarity) == count else threshold
            near = scores >= least - 1e-6
            first, second = np.nonzero(np.triu(near, 1) if other == start else near)
            pairs = Pairs(first + start, second + other, np.minimum(scores[first, second], 1))
            if groups is not None:
                pairs = Pairs(*(part[groups[pairs.first] != groups[pairs.second]] for part in pairs))
            found = most_similar(Pairs(*map(np.concatenate, zip(found, pairs, strict=True))), count)
    # The products above are rounded to float32, which may hide that two rows are equal.
    return with_exact_similarity(matrix, mean, found, count)


def with_exact_similarity(matrix: Matrix, mean: Float[np.ndarray, " dims"], pairs: Pairs, count: int) -> Pairs:
    """Return the `count` most similar ones of some pairs, with similarities computed in float64."""
    left, right = (unit_rows(matrix[ids], mean, np.float64) for ids in (pairs.first, pairs.second))
    exact = np.clip(np.einsum("pd,pd->p", left, right), -1, 1).astype(np.float32)
    return most_similar(Pairs(pairs.first, pairs.second, exact), count)


def most_similar(pairs: Pairs, count: int) -> Pairs:
    """Return the `count` most similar ones of some pairs, the most similar first."""
    order = np.lexsort((pairs.second, pairs.first, -pairs.similarity))[:count]
    return Pairs(*(part[order] for part in pairs))


def mean_of(matrix: Matrix, among: Bool[np.ndarray, " rows"] | None = None) -> Float[np.ndarray, " dims"]:
    """Return the mean of the rows that count and of ten zeros, (dims,) float64."""
    total, count = np.zeros(matrix.shape[1]), _ZEROS
    for start, block in _blocks(matrix):
        counting = block if among is None else block[among[start : start + len(block)]]
        total += counting.sum(axis=0, dtype=np.float64)
        count += len(counting)
    return total / count


def lengths_of(matrix: Matrix, mean: Float[np.ndarray, " dims"]) -> Float[np.ndarray, " rows"]:
    """Return the length of each row without `mean`, (rows,) float32; 0 if it is no more than rounding."""
    lengths = np.empty(len(matrix), np.float32)
    for start, block in _blocks(matrix):
        lengths[start : start + len(block)] = _without(block, mean)[1]
    return lengths


def unit_rows(rows: Matrix, mean: Float[np.ndarray, " dims"], dtype: type = np.float32) -> Matrix:
    """Return the rows without `mean` and with length 1; a row of which nothing remains becomes 0."""
    centered, lengths = _without(rows, mean, dtype)
    return _divided(centered, lengths[:, None])


def _without(rows: np.ndarray, mean: np.ndarray, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows without the mean, and their lengths, which are 0 where they are no more than rounding."""
    centered: np.ndarray = rows.astype(dtype) - mean.astype(dtype)
    lengths = np.sqrt(np.einsum("rd,rd->r", centered, centered))
    own = np.sqrt(np.einsum("rd,rd->r", rows, rows))
    return centered, np.where(lengths > _SMALLEST_LENGTH * own, lengths, 0).astype(dtype)


def _divided(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)


def _blocks(matrix: Matrix) -> Iterator[tuple[int, Matrix]]:
    rows = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        yield start, matrix[start : start + rows]
