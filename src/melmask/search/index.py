"""An index that is open: the sounds that are nearest to a sound or to a vector, and those that are nearly the same."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from melmask.config import WHITENED
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import InputError, some_of
from melmask.search.approximate import Graph
from melmask.search.duplicates import likely_duplicates
from melmask.search.files import Item, Opened, open_index, positions_of
from melmask.search.nearest import Found, Pairs, Positions, Vectors, mean_of, near_duplicates, offsets_of
from melmask.search.query import choice_of, load_model, query_vector, without_positions
from melmask.system.extras import available
from melmask.system.finite import check_finite
from melmask.system.progress import track

_APART_S = 1.0
"""Moments of one recording that are found lie so far apart, as its next frame is nearly as similar as the best one."""
_CANDIDATES = 10
"""The graph proposes so many times as many vectors as are asked for, and at least `_FEWEST_CANDIDATES`."""
_FEWEST_CANDIDATES = 100
_MOST_COMPARED = 200_000
"""Vectors of which every one is compared with every other for duplicates, even if there is an approximate index."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A sound of an index that was found, or a moment of one."""

    similarity: float
    """1 for equal vectors; 0 for vectors that have nothing in common beyond the mean of all; -1 at least."""
    collection: str
    path: str
    channel: int | None = None
    """The number of the channel, where the index has each channel of a file."""
    start_s: float | None = None
    end_s: float | None = None
    """Where the sound is in its file; None for a whole file, and for the file's own end. A moment lasts one step."""
    row: int
    """The number of its vector in the index."""


class SearchIndex:
    """An index that `build_index` or `melmask index` wrote, open for searches. The model is loaded when it is needed.

    Args:
        path: The folder of the index.
        model: Where its model is now, if it is no longer where it was.
        device: The device of the model: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one.

    Attributes: `collections` (how many sounds each has), `vectors` (the vectors, `search.nearest.Vectors`), `frames`
    (whether they are of moments and not of sounds).

    Raises:
        InputError: there is no index, or it is damaged.
    """

    def __init__(self, path: Path | str, model: Path | str | None = None, device: str = "auto"):
        self.path = Path(path)
        self._place, self._device = model, device
        (self.facts, self._items, matrix, statistics), graph = _opened(self.path)
        if graph is not None:
            self._graph = graph
        self.frames = self.facts.frames
        self._firsts, self._counts = (self._items[name].to_numpy() for name in ("first_row", "rows"))
        self._live = self._items["live"].to_numpy()
        names = self._items["collection"].dictionary_encode().combine_chunks()
        self._collection_names = names.dictionary.to_pylist()
        self._collection_of = names.indices.to_numpy()
        counts = np.bincount(self._collection_of[self._live], minlength=len(self._collection_names))
        self.collections = {
            name: int(count) for name, count in zip(self._collection_names, counts, strict=True) if count
        }
        if statistics is None:
            # The job that built the index was killed after it had saved a part.
            among = self._among(None)
            mean, lengths, offsets = mean_of(matrix, among), None, np.zeros((0, matrix.shape[1]))
        else:
            mean, offsets, lengths = statistics
        positions = None
        if count := self.facts.positions:
            of_rows = positions_of(self._firsts, self._counts, count)
            offsets = offsets if len(offsets) else offsets_of(matrix, of_rows, count, among)
            positions = Positions(of_rows, offsets)
        self.vectors = Vectors(matrix, mean, lengths, positions)

    @functools.cached_property
    def model(self) -> AudioEncoder:
        """The model that the vectors were made with.

        Raises:
            CheckpointError: it is no longer where it was, or is another one.
        """
        return load_model(self.facts, self.path, self._place, self._device)

    @functools.cached_property
    def _graph(self) -> Graph | None:
        # Only what could not be opened with the rest is left for this, and then says why.
        return None if self.facts.graph is None else Graph(self.path, self.facts)

    def vector_of(
        self,
        audio: Any,
        sample_rate_hz: int | float | None = None,
        *,
        start_s: int | float | None = None,
        end_s: int | float | None = None,
    ) -> Float[np.ndarray, " dims"]:
        """Return the vector of a sound, (dims,) float32, made as those of the index.

        If the index has frames, it is the mean of the frame vectors, without what their positions in the unit add.

        Args:
            audio: A sound file, by its path, its bytes, or open for reading bytes; or an array (samples,).
            sample_rate_hz: The rate of an array.
            start_s: Where the part that is meant begins; by default at the sound's begin.
            end_s: Where it ends; by default with the sound.

        Raises:
            AudioFileError: the file cannot be read.
            InputError: the times are no part of the sound, or the sound is shorter than a patch of the model.
            CheckpointError: the model cannot be loaded.
        """
        vector, duration_s = query_vector(self.model, choice_of(self.facts), audio, sample_rate_hz, start_s, end_s)
        if self.vectors.positions is None:
            return vector
        return without_positions(vector, duration_s, self.vectors.positions.offsets, self.model)

    def search(
        self,
        audio: Any,
        top: int = 20,
        *,
        sample_rate_hz: int | float | None = None,
        start_s: int | float | None = None,
        end_s: int | float | None = None,
        collections: Sequence[str] = (),
        exact: bool = False,
    ) -> list[Hit]:
        """Return the sounds that are nearest to a sound, the most similar first; see `vector_of` and `nearest`."""
        vector = self.vector_of(audio, sample_rate_hz, start_s=start_s, end_s=end_s)
        return self.nearest(vector, top, collections=collections, exact=exact)

    def nearest(
        self,
        vector: Float[np.ndarray, " dims"],
        top: int = 20,
        *,
        collections: Sequence[str] = (),
        exact: bool = False,
    ) -> list[Hit]:
        """Return the sounds that are nearest to a vector, the most similar first.

        If the index has frames, moments of one recording lie at least one second apart.

        Args:
            vector: (dims,), made as those of the index, as `vector_of` does.
            top: How many to return.
            collections: The names of the collections that are searched; by default all.
            exact: Compare with every vector, even if there is an approximate index.

        Raises:
            InputError: a collection is unknown, `top` is below 1, or the vector is of another size.
            NotFiniteError: the vector is NaN or infinite.
        """
        if top < 1 or vector.shape != self.vectors.mean.shape:
            size = len(self.vectors.mean)
            raise InputError(f"{top} hits of a vector {vector.shape} are asked for; expected at least 1 and ({size},)")
        check_finite(vector, "the vector of the query")
        among, count = self._among(collections), top
        while True:
            found = self._found(vector, count, among, exact)
            hits = self._apart([self._hit(*pair) for pair in zip(*map(np.ndarray.tolist, found), strict=True)])
            # Of neighboring frames only the best is kept, so more of them may be needed.
            if len(hits) >= top or len(found.ids) < count:
                return hits[:top]
            count *= 4

    def _found(self, vector: np.ndarray, count: int, among: np.ndarray | None, exact: bool) -> Found:
        if exact or self._graph is None:
            return self.vectors.nearest(vector, count, among)
        graph = self._graph
        wanted = min(max(_CANDIDATES * count, _FEWEST_CANDIDATES), graph.rows)
        ids = graph.candidates(vector, wanted, among)
        later = self.vectors.part(slice(graph.rows, None))
        added = later.nearest(vector, count, None if among is None else among[graph.rows :]).ids + graph.rows
        # A small collection may have none of the candidates.
        if len(ids) + len(added) < count:
            return self.vectors.nearest(vector, count, among)
        return self.vectors.ordered(vector, np.concatenate([ids, added]), count)

    def duplicates(
        self,
        threshold: int | float | None = None,
        top: int = 1000,
        *,
        collections: Sequence[str] = (),
        exact: bool = False,
    ) -> list[tuple[Hit, Hit]]:
        """Return the pairs of sounds that are at least as similar as `threshold`, the most similar first.

        Both hits of a pair have its similarity. If the index has frames, moments of one recording are not compared.
        Every vector is compared with every other one, so the time grows with the square of their number, unless
        `duplicates_are_approximate`.

        Args:
            threshold: The least similarity of a pair, from -1 to 1; by default `duplicate_similarity`.
            top: The most pairs.
            collections: The names of the collections whose sounds are compared; by default all.
            exact: Compare every vector with every other one, even if there is an approximate index.

        Raises:
            InputError: a collection is unknown, or a number is out of its range.
        """
        threshold = self.duplicate_similarity if threshold is None else threshold
        if top < 1 or not -1 <= threshold <= 1:
            raise InputError(f"{top} pairs from {threshold} on are asked for; expected 1 at least, and -1 to 1")
        among = self._among(collections)
        groups = np.repeat(np.arange(len(self._counts)), self._counts) if self.frames else None
        if not exact and self.duplicates_are_approximate(collections):
            assert self._graph is not None
            pairs = likely_duplicates(
                self.vectors, self._graph, threshold, top, among=among, groups=groups, watch=_watched
            )
        else:
            rows = np.arange(self.facts.rows) if among is None else np.flatnonzero(among)
            compared = self.vectors if among is None else self.vectors.part(rows)
            groups = None if groups is None else groups[rows]
            pairs = near_duplicates(compared, threshold, top, groups=groups, watch=_watched)
            pairs = Pairs(rows[pairs.first], rows[pairs.second], pairs.similarity)
        found = zip(*(part.tolist() for part in pairs), strict=True)
        return [(self._hit(first, similarity), self._hit(second, similarity)) for first, second, similarity in found]

    @property
    def duplicate_similarity(self) -> float:
        """How similar two vectors of this index are at least if their sounds are probably copies of each other."""
        whitened = not self.frames and self.facts.settings.scene == WHITENED
        return 0.85 if whitened else 0.95

    def duplicates_are_approximate(self, collections: Sequence[str] = ()) -> bool:
        """Whether `duplicates` compares each vector only with those that an approximate index finds near it.

        That is so if there is an approximate index, and more than 200,000 vectors are to be compared.

        Raises:
            InputError: a collection is unknown.
        """
        among = self._among(collections)
        compared = self.facts.rows if among is None else int(among.sum())
        return self.facts.graph is not None and compared > _MOST_COMPARED

    def _among(self, collections: Sequence[str] | None) -> np.ndarray | None:
        """Return which vectors count, (rows,) bool; None for all.

        Raises:
            InputError: a collection is unknown.
        """
        wanted = self._live
        if collections:
            unknown = [name for name in collections if name not in self.collections]
            if unknown:
                known = some_of(list(self.collections))
                raise InputError(f"{self.path} has no collection {unknown[0]!r}; it has {known}")
            numbers = [self._collection_names.index(name) for name in collections]
            wanted = wanted & np.isin(self._collection_of, numbers)
        return None if wanted.all() else np.repeat(wanted, self._counts)

    def _hit(self, row: int, similarity: float) -> Hit:
        number = int(np.searchsorted(self._firsts, row, "right")) - 1
        (values,) = self._items.slice(number, 1).to_pylist()
        item = Item(**values)
        start_s, end_s = item.start_s, item.end_s
        if self.frames:
            settings = self.facts.settings
            center_s = item.start_s + (settings.first_ms + (row - item.first_row) * settings.step_ms) / 1000
            half_s = settings.step_ms / 2000
            start_s, end_s = max(item.start_s, center_s - half_s), center_s + half_s
        whole = not self.frames and start_s == 0 and end_s is None
        return Hit(
            similarity=similarity,
            collection=item.collection,
            path=item.path,
            channel=item.channel,
            start_s=None if whole else start_s,
            end_s=end_s,
            row=row,
        )

    def _apart(self, hits: list[Hit]) -> list[Hit]:
        """Leave moments out that are close to a more similar one of the same recording."""
        if not self.frames:
            return hits
        kept: list[Hit] = []
        times: dict[tuple[str, str, int | None], list[float]] = {}
        for hit in hits:
            assert hit.start_s is not None
            there = times.setdefault((hit.collection, hit.path, hit.channel), [])
            if all(abs(hit.start_s - other_s) >= _APART_S for other_s in there):
                there.append(hit.start_s)
                kept.append(hit)
        return kept


def _watched(parts: Iterable[int], count: int) -> Iterable[int]:
    return track(parts, count, "duplicates", "part", leave=False)


def _opened(folder: Path) -> tuple[Opened, Graph | None]:
    """Open an index with its graph, also while a job replaces both; no graph where it is of no use or damaged."""
    opened = open_index(folder)
    for _ in range(2):
        if opened.facts.graph is None or not available("search"):
            break
        try:
            return opened, Graph(folder, opened.facts)
        except InputError:
            # A job may have saved the next state, and removed the files of this one. If not, exact search works.
            opened = open_index(folder)
    return opened, None
