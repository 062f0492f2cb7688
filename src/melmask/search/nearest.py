"""Exact search in a matrix of vectors, which may lie on disk: pure NumPy, block by block.

The similarity of two vectors is the cosine between them after the mean of all vectors is subtracted from both. Vectors
of a model share a large constant part, which would make any two look alike. Frame vectors also share what their
position in the model's unit adds to them, which is subtracted as well where the positions are known.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

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


class Positions(NamedTuple):
    """Where in the unit of the model the rows of a matrix lie, and what that adds to them."""

    of_rows: Int[np.ndarray, " rows"]
    """The number of each row's position."""
    offsets: Float[np.ndarray, "positions dims"]
    """What is subtracted from the rows of each position, beside the mean of all."""

    def of(self, rows: slice | Int64[np.ndarray, " some"]) -> "Positions":
        """Return the positions of some of the rows."""
        return Positions(self.of_rows[rows], self.offsets)


class Vectors:
    """Vectors in which the nearest ones are searched.

    Args:
        matrix: (rows, dims) float32, finite, one vector a row; it may be memory-mapped, and is never copied whole.
        mean: (dims,), what is subtracted from every vector; by default `mean_of` the matrix.
        lengths: (rows,) float32, what `lengths_of` returned for the matrix and the mean; by default it is computed.
        positions: What is subtracted further; by default nothing.

    Attributes: `matrix`, `mean` (dims,) float64, `lengths` (rows,) float32, `positions`.
    """

    def __init__(
        self,
        matrix: Matrix,
        mean: Float[np.ndarray, " dims"] | None = None,
        lengths: Float[np.ndarray, " rows"] | None = None,
        positions: Positions | None = None,
    ):
        self.matrix, self.positions = matrix, positions
        self.mean = mean_of(matrix) if mean is None else np.asarray(mean, np.float64)
        self.lengths = lengths_of(matrix, self.mean, positions) if lengths is None else lengths

    def part(self, rows: slice | Int64[np.ndarray, " some"]) -> "Vectors":
        """Return some of the rows, with the same mean."""
        positions = None if self.positions is None else self.positions.of(rows)
        return Vectors(self.matrix[rows], self.mean, self.lengths[rows], positions)

    def units(
        self, rows: slice | Int64[np.ndarray, " some"], dtype: type = np.float32
    ) -> Float[np.ndarray, "some dims"]:
        """Return some of the rows without what is subtracted from them, and with length 1."""
        positions = None if self.positions is None else self.positions.of(rows)
        return unit_rows(self.matrix[rows], center(self.mean, positions), dtype)

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
        shift: Any = np.float32(unit.astype(np.float64) @ self.mean)
        shifts = None if self.positions is None else shift + (self.positions.offsets @ unit).astype(np.float32)
        ids, best = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for start, block in _blocks(self.matrix):
            part = slice(start, start + len(block))
            if self.positions is not None and shifts is not None:
                shift = shifts[self.positions.of_rows[part]]
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
        rows = self.units(ids, np.float64)
        (unit,) = unit_rows(query[None], self.mean, np.float64)
        similarity = np.clip(rows @ unit, -1, 1).astype(np.float32)
        order = np.lexsort((ids, -similarity))[:count]
        return Found(ids[order], similarity[order])


def near_duplicates(
    vectors: Vectors,
    threshold: int | float,
    count: int,
    *,
    groups: Int64[np.ndarray, " rows"] | None = None,
    watch: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> Pairs:
    """Return the pairs of rows that are at least as similar as `threshold`, the most similar first.

    Every row is compared with every other one: 100,000 rows of 384 numbers take some minutes on two cores.

    Args:
        vectors: The vectors that are compared.
        threshold: The least similarity, from -1 to 1.
        count: The most pairs.
        groups: (rows,), the number of each row's group; rows of one group are not compared.
        watch: A function of the numbers of the parts of the work, and of how many there are, that yields the numbers.
    """
    found = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    total = len(vectors.matrix)
    parts = range(-(-total // _PAIR_ROWS))
    for part in parts if watch is None else watch(parts, len(parts)):
        start = part * _PAIR_ROWS
        rows = vectors.units(slice(start, start + _PAIR_ROWS))
        for other in range(start, total, _PAIR_ROWS):
            columns = rows if other == start else vectors.units(slice(other, other + _PAIR_ROWS))
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
    return with_exact_similarity(vectors, found, count)


def with_exact_similarity(vectors: Vectors, pairs: Pairs, count: int) -> Pairs:
    """Return the `count` most similar ones of some pairs, with similarities computed in float64."""
    left, right = (vectors.units(ids, np.float64) for ids in (pairs.first, pairs.second))
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


def offsets_of(
    matrix: Matrix,
    of_rows: Int[np.ndarray, " rows"],
    count: int,
    among: Bool[np.ndarray, " rows"] | None = None,
) -> Float[np.ndarray, "positions dims"]:
    """Return what each of `count` positions adds to the rows that count, (positions, dims) float64.

    That is the mean of its rows without the mean of all. A position that few rows have adds less: its mean is that of
    its rows and of ten that are as the mean of all.
    """
    totals, counts = np.zeros((count, matrix.shape[1])), np.zeros((count, 1))
    for start, block in _blocks(matrix):
        part = slice(start, start + len(block))
        numbers = of_rows[part] if among is None else np.where(among[part], of_rows[part], -1)
        for number in np.unique(numbers[numbers >= 0]):
            totals[number] += block[numbers == number].sum(axis=0, dtype=np.float64)
            counts[number] += (numbers == number).sum()
    mean = totals.sum(axis=0) / max(counts.sum(), 1)
    offsets: np.ndarray = (totals - counts * mean) / (counts + _ZEROS)
    return offsets


def lengths_of(
    matrix: Matrix, mean: Float[np.ndarray, " dims"], positions: Positions | None = None
) -> Float[np.ndarray, " rows"]:
    """Return the length of each row without what is subtracted, (rows,) float32; 0 if it is no more than rounding."""
    lengths = np.empty(len(matrix), np.float32)
    for start, block in _blocks(matrix):
        part = slice(start, start + len(block))
        lengths[part] = _without(block, center(mean, None if positions is None else positions.of(part)))[1]
    return lengths


def center(mean: Float[np.ndarray, " dims"], positions: Positions | None) -> np.ndarray:
    """Return what is subtracted: (dims,), or (rows, dims) if that depends on the position."""
    if positions is None:
        return mean
    centers: np.ndarray = (mean + positions.offsets)[positions.of_rows]
    return centers


def unit_rows(rows: Matrix, mean: Float[np.ndarray, "*rows dims"], dtype: type = np.float32) -> Matrix:
    """Return the rows without `mean`, one for all or one each, and with length 1; where nothing remains, a row is 0."""
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
