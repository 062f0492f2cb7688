"""Near-duplicates among very many vectors: only the neighbors that the approximate index gives each of them.

Comparing all pairs, which `nearest.near_duplicates` does, takes hours for a million vectors. Here a pair is missing if
the approximate index gives neither of its vectors the other one. Those that are found have their exact similarity.
"""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Float, Int64

from melmask.search.approximate import Graph
from melmask.search.nearest import Pairs, Vectors, most_similar, near_duplicates, with_exact_similarity

_ROWS_TOGETHER = 4096
_FIRST_NEIGHBORS, _MOST_NEIGHBORS = 32, 512
"""How many neighbors each vector is compared with: four times as many again while all of them are near enough."""
_COMPARED_VALUES = 1 << 24
"""Numbers of the neighbors that are looked at together: 64 MB."""


def likely_duplicates(
    vectors: Vectors,
    graph: Graph,
    threshold: int | float,
    count: int,
    *,
    among: Bool[np.ndarray, " rows"] | None = None,
    groups: Int64[np.ndarray, " rows"] | None = None,
    watch: Callable[[Iterable[int], int], Iterable[int]] | None = None,
) -> Pairs:
    """Return nearly all pairs of rows that are at least as similar as `threshold`, the most similar first.

    Args:
        vectors: The vectors of an index.
        graph: Its approximate index. Rows that this does not have yet are compared with each other exactly.
        threshold: The least similarity, from -1 to 1.
        count: The most pairs.
        among: Which rows count, (rows,); by default all.
        groups: (rows,), the number of each row's group; rows of one group are not compared.
        watch: A function of the numbers of the parts of the work, and of how many there are, that yields the numbers.
    """
    rows = np.arange(len(vectors.matrix)) if among is None else np.flatnonzero(among)
    later = rows[rows >= graph.rows]
    own_groups = None if groups is None else groups[later]
    first, second, similarities = near_duplicates(vectors.part(later), threshold, count, groups=own_groups)
    found = Pairs(later[first], later[second], similarities)
    parts = range(-(-len(rows) // _ROWS_TOGETHER))
    for part in parts if watch is None else watch(parts, len(parts)):
        wanted, neighbors = rows[part * _ROWS_TOGETHER : (part + 1) * _ROWS_TOGETHER], _FIRST_NEIGHBORS
        while len(wanted) and neighbors <= _MOST_NEIGHBORS:
            ids = graph.neighbors(vectors.part(wanted), neighbors)
            similarity = _similarities(vectors, wanted, ids)
            near = (similarity >= _least(found, threshold, count) - 1e-6) & (ids != wanted[:, None])
            if among is not None:
                near &= among[ids]
            if groups is not None:
                near &= groups[ids] != groups[wanted, None]
            numbers, columns = np.nonzero(near)
            ends = np.sort(np.stack([wanted[numbers], ids[numbers, columns]]), axis=0)
            found = _together(found, Pairs(ends[0], ends[1], similarity[numbers, columns]), count)
            # Where all neighbors are near enough, there may be more, perhaps behind those of the same group. Once there
            # are pairs enough, only nearer ones are of use, so equal sounds such as silences do not go on for ever.
            margin = 1e-6 if len(found.first) == count else -1e-6
            wanted = wanted[similarity.min(axis=1) >= _least(found, threshold, count) + margin]
            neighbors *= 4
    return with_exact_similarity(vectors, found, count)


def _least(found: Pairs, threshold: int | float, count: int) -> float:
    """Return how similar a further pair must be: with `count` pairs in hand, more than the last of them."""
    return float(found.similarity[-1] if len(found.similarity) == count else threshold)


def _similarities(
    vectors: Vectors, rows: Int64[np.ndarray, " rows"], ids: Int64[np.ndarray, "rows neighbors"]
) -> Float[np.ndarray, "rows neighbors"]:
    """Return how similar each row is to each of its neighbors; -2, less than any, where there is none."""
    similarity = np.empty(ids.shape, np.float32)
    at_once = max(1, _COMPARED_VALUES // (ids.shape[1] * vectors.matrix.shape[1]))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        own = vectors.units(rows[part])
        # Neighbors that there are not have the number -1, and are taken for the last row.
        others = vectors.units(ids[part].ravel()).reshape(*ids[part].shape, -1)
        similarity[part] = np.einsum("rd,rnd->rn", own, others)
    return np.where(ids >= 0, np.minimum(similarity, 1), -2).astype(np.float32)


def _together(found: Pairs, pairs: Pairs, count: int) -> Pairs:
    """Return the most similar ones of two lists, in which a pair may occur twice: once from each of its ends."""
    both = Pairs(*map(np.concatenate, zip(found, pairs, strict=True)))
    _, once = np.unique(np.stack([both.first, both.second]), axis=1, return_index=True)
    return most_similar(Pairs(*(part[once] for part in both)), count)
