"""Approximate search in very many vectors: a graph of neighbors (HNSW), built and searched by usearch.

The graph holds the first vectors of an index, without their mean and what their positions add, with length 1, in half
precision. It proposes candidates, and `nearest.py` compares these exactly, so similarities are those of the exact
search; only a neighbor may be missing. Vectors that were added later are compared one by one until the graph is
extended. What is subtracted when the graph is begun stays the same. benchmarks/results/2026-11-29-search.md compares it
with other libraries.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from melmask.errors import InputError, OutputError
from melmask.search.files import (
    IndexFacts,
    free_name,
    map_vectors,
    mean_name,
    positions_of,
    read_items,
    read_statistics,
    write_arrays,
    write_facts,
)
from melmask.search.nearest import Positions, Vectors, center, unit_rows
from melmask.system.arrays import read_arrays
from melmask.system.extras import available, require
from melmask.system.files import atomic_write
from melmask.system.progress import track
from melmask.system.reading import DamagedFileError, reason_of
from melmask.system.terminal import counted

LEAST_ROWS = 1_000_000
"""Below this, comparing with every vector takes a tenth of a second of processor time, less than loading the model."""
_CHUNK_ROWS = 10_000
_ADDED_ALONE = 10_000
"""The first vectors are added by one thread: side by side, threads that meet in a small graph leave some unlinked."""
_ROWS_BETWEEN_SAVES = 500_000
"""The graph is saved as often, and a killed job resumes with what was saved."""
_NEIGHBORS, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 128
"""Links of each vector, and how many candidates usearch keeps while it adds or searches."""


def extended(folder: Path, facts: IndexFacts, least_rows: int) -> tuple[IndexFacts, list[str]]:
    """Build or extend the graph of an index that has at least so many vectors.

    Returns:
        The facts of the index now, which are written, and what a user should know.
    """
    if facts.graph_rows == facts.rows or (facts.graph is None and facts.rows < least_rows):
        return facts, []
    if not available("search"):
        return facts, [
            f"without usearch, a search compares with all of {counted(facts.rows, 'vector')}; for a faster one, pip "
            "install 'melmask[search]' and run the same command again"
        ]
    from usearch.index import Index

    matrix = map_vectors(folder, facts)
    if facts.graph is None:
        statistics = read_statistics(folder, facts)
        assert statistics is not None, "the statistics are written before the graph is begun"
        mean, offsets = statistics.mean, statistics.offsets
        index = Index(
            ndim=facts.dimensions,
            metric="cos",
            dtype="f16",
            connectivity=_NEIGHBORS,
            expansion_add=_EXPANSION_ADD,
        )
    else:
        index, mean, offsets = _opened(folder, facts, view=False)
        index.expansion_add = _EXPANSION_ADD
    positions = None
    if len(offsets):
        items = read_items(folder, facts)
        of_rows = positions_of(items["first_row"].to_numpy(), items["rows"].to_numpy(), len(offsets))
        positions = Positions(of_rows, offsets)
    starts = range(facts.graph_rows, facts.rows, _CHUNK_ROWS)
    for start in track(starts, len(starts), "approximate index", f"x {_CHUNK_ROWS:,} vector"):
        stop = min(start + _CHUNK_ROWS, facts.rows)
        part = slice(start, stop)
        centers = center(mean, None if positions is None else positions.of(part))
        threads = 1 if start < _ADDED_ALONE else 0  # 0: as many as there are cores
        index.add(np.arange(start, stop), unit_rows(matrix[part], centers), threads=threads)
        if stop == facts.rows or stop - facts.graph_rows >= _ROWS_BETWEEN_SAVES:
            facts = _saved(folder, replace(facts, graph_rows=stop), index, (mean, offsets))
    return facts, []


def _saved(folder: Path, facts: IndexFacts, index: Any, subtracted: tuple[np.ndarray, np.ndarray]) -> IndexFacts:
    name = free_name(folder, "graph", "usearch")
    write_arrays(folder / mean_name(name), dict(zip(("mean", "offsets"), subtracted, strict=True)))
    with atomic_write(folder / name) as file:
        # usearch opens the file by its name; it is made durable and renamed here. On a full disk it may say nothing.
        try:
            index.save(file.name)
            written = Path(file.name).stat().st_size
        except RuntimeError as error:
            raise OutputError(f"cannot write {folder / name}: {reason_of(error)}; check the free space") from error
        if written < index.serialized_length:
            raise OutputError(f"cannot write {folder / name}: it was cut off; check the free space")
    facts = replace(facts, graph=name)
    write_facts(folder, facts)
    return facts


class Graph:
    """The graph of an index, mapped from its file.

    Attributes: `rows`, how many vectors it has, the first ones of the index.

    Raises:
        MissingExtraError: usearch is not installed.
        InputError: the file is damaged.
    """

    def __init__(self, folder: Path, facts: IndexFacts):
        require("search")
        self.rows = facts.graph_rows
        self._index, self._mean, self._offsets = _opened(folder, facts, view=True)

    def candidates(
        self, query: Float[np.ndarray, " dims"], count: int, among: Bool[np.ndarray, " rows"] | None
    ) -> Int64[np.ndarray, " found"]:
        """Return about `count` rows that are probably the nearest to a vector, and are among those that count."""
        self._index.expansion_search = max(_EXPANSION_SEARCH, count)
        found = self._index.search(unit_rows(query[None], self._mean)[0], count).keys.astype(np.int64)
        return found if among is None else found[among[found]]

    def neighbors(self, vectors: Vectors, count: int) -> Int64[np.ndarray, "rows neighbors"]:
        """Return for each vector about `count` rows that are probably the nearest to it; -1 where there are fewer."""
        count = min(count, self.rows)
        self._index.expansion_search = max(_EXPANSION_SEARCH, count)
        of_rows = None if vectors.positions is None else Positions(vectors.positions.of_rows, self._offsets)
        units = unit_rows(vectors.matrix, center(self._mean, of_rows))
        # Of one vector, usearch returns the neighbors in another form.
        found = self._index.search(np.repeat(units, 2, axis=0) if len(units) == 1 else units, count)
        ids = np.where(np.arange(count) < found.counts[:, None], found.keys.astype(np.int64), -1)
        return ids[: len(units)]


def _opened(folder: Path, facts: IndexFacts, *, view: bool) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return the graph in the file of an index, and what was subtracted from its vectors: mean and offsets.

    Raises:
        InputError: the file is damaged.
    """
    from usearch.index import Index

    assert facts.graph is not None
    path = folder / facts.graph
    try:
        mean, offsets = read_arrays(folder / mean_name(facts.graph), ["mean", "offsets"])
        index = Index.restore(path, view=view)
        if index is None or index.ndim != facts.dimensions or len(index) != facts.graph_rows:
            raise DamagedFileError("it does not fit the index")
        if mean.shape != (facts.dimensions,) or offsets.shape != (facts.positions, facts.dimensions):
            raise DamagedFileError("its mean does not fit the index")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is damaged ({reason_of(error)}); search with --exact, or delete {folder} and build it again"
        ) from error
    return index, mean, offsets
