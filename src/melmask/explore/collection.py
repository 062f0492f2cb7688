"""A collection: the sounds below a folder or of a table, their vectors, and the columns that they are colored by."""

import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from melmask.audio.parts import Sound, seconds_text
from melmask.config import EACH
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.reading import read_as
from melmask.errors import ConfigError
from melmask.explore.columns import ABSENT, Column, column_of, numbers, texts
from melmask.explore.embedding import EmbeddingJob, modified_s
from melmask.explore.labels import Labels
from melmask.explore.options import ExploreOptions
from melmask.explore.projection import Projections, reduced
from melmask.explore.similarity import Similarity
from melmask.explore.vectors import PointVectors
from melmask.labels.columns import read_every_column
from melmask.labels.read import is_table, report
from melmask.labels.segments import identities, sounds_of_rows
from melmask.labels.sources import find_sounds
from melmask.system.terminal import counted, note

FOLDER, DURATION, MODIFIED, CLUSTER, START = "folder", "duration", "modified", "cluster", "start"
_MOST_CLUSTERS = 20
_CLUSTER_SAMPLE = 50_000


class Collection:
    """What the page shows: points with numbers from 0, each of them a file or a segment of one.

    Attributes: `name`, `sounds` (absolute paths), `segments` (whether points are parts of files), `model`, `vectors`,
    `projections`, `similarity`, `labels` (those that the user gives), `job` (the embedding of what is missing).
    """

    def __init__(self, source: Path, model: AudioEncoder, options: ExploreOptions):
        self.source, self.model = source, model
        found = find_sounds([source], options.table)
        # The folder for embeddings and labels is used from wherever melmask is started.
        self.sounds = [replace(sound, path=sound.path.absolute()) for sound in found]
        self.segments = any(sound.is_part for sound in self.sounds)
        self._root = (source if source.is_dir() else source.parent).absolute()
        self.name = self._root.name if source.is_dir() else source.name
        self._modified_s = modified_s(self.sounds)
        self.job = EmbeddingJob(model, self.sounds, self._modified_s, options.out / "embeddings", source)
        self.vectors = self.job.vectors
        self.projections, self.similarity = Projections(self.vectors, options.out / "maps"), Similarity(self.vectors)
        self.labels = Labels(self.sounds, options.out / "labels.csv")
        self._table_columns = _columns_of_tables(source, self.sounds, self.segments, options)
        self._own_columns = self._simple_columns()
        self._clusters: tuple[int, Column] | None = None
        self._lengths: tuple[int, Column] | None = None
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.sounds)

    def names(self, first: int, count: int) -> list[str]:
        """Return the names of some points: paths below the collection's folder, with the times of segments."""
        return [self._name(sound) for sound in self.sounds[first : first + count]]

    def _name(self, sound: Sound) -> str:
        path = os.path.relpath(sound.path, self._root) if sound.path.is_relative_to(self._root) else str(sound.path)
        if not sound.is_part or sound.fault:
            return path
        end = "end" if sound.end_s is None else f"{seconds_text(sound.end_s)} s"
        return f"{path} {seconds_text(sound.start_s)} s - {end}"

    def columns(self) -> list[Column]:
        """Return the columns that are known now; clusters only once they were asked for."""
        computed = [self._durations()] + ([self._clusters[1]] if self._clusters else [])
        return list({column.name: column for column in (*self._own_columns, *computed, *self._table_columns)}.values())

    def described(self) -> list[dict[str, Any]]:
        """Return the name, the kind and the number of different values of each column that can be asked for."""
        columns = {column.name: column for column in self.columns()}
        found = [{"name": name, "kind": one.kind, "distinct": one.distinct} for name, one in columns.items()]
        known = int(self.vectors.known.sum())
        if known and CLUSTER not in columns:
            found.append({"name": CLUSTER, "kind": "category", "distinct": _cluster_count(known)})
        return found

    def column(self, name: str) -> Column:
        """Return a column.

        Raises:
            KeyError: there is none of this name.
        """
        # The table of a user goes first, whatever its columns are called.
        if name == CLUSTER and all(column.name != CLUSTER for column in self._table_columns):
            if not self.vectors.known.any():
                raise KeyError(name)
            return self._clustered()
        return {column.name: column for column in self.columns()}[name]

    def total_s(self, point: int) -> float | None:
        """Return how long a point's sound is, in s; None while that is not known."""
        duration_s = float(self.vectors.durations_s[point])
        return duration_s if np.isfinite(duration_s) else None

    def _simple_columns(self) -> list[Column]:
        folders: dict[Path, str] = {}
        for sound in self.sounds:
            if sound.path.parent not in folders:
                folders[sound.path.parent] = self._folder(sound.path)
        columns = [
            texts(FOLDER, [folders[sound.path.parent] for sound in self.sounds]),
            numbers(MODIFIED, self._modified_s, "time"),
        ]
        if self.segments:
            columns.append(numbers(START, np.array([sound.start_s for sound in self.sounds])))
        # A folder without folders, and files copied all at once, have nothing to show.
        return [column for column in columns if column.distinct > 1]

    def _folder(self, path: Path) -> str:
        return os.path.relpath(path.parent, self._root) if path.is_relative_to(self._root) else str(path.parent)

    def _durations(self) -> Column:
        """Return the durations; a column is made anew only when there are more of them."""
        done = self.vectors.done
        if self._lengths is None or self._lengths[0] != done:
            self._lengths = done, numbers(DURATION, self.vectors.durations_s)
        return self._lengths[1]

    def _clustered(self) -> Column:
        """Group the points by k-means; while they are being embedded, again when there are many more."""
        with self._lock:
            known = np.flatnonzero(self.vectors.known)
            before = self._clusters[0] if self._clusters else 0
            complete = self.vectors.done == self.count
            if self._clusters is None or len(known) > before * (1.0 if complete else 1.2):
                self._clusters = len(known), _clusters(self.vectors, known)
            return self._clusters[1]


def open_collection(source: Path, model: Path | None, options: ExploreOptions, device: str = "auto") -> Collection:
    """Load the model and find the sounds of `source`.

    Raises:
        InputError: nothing is found, or a table cannot be used.
        CheckpointError: no model can be loaded.
        ConfigError: each channel is asked for, which gives several points a file.
    """
    if options.reading.channel == EACH:
        raise ConfigError(f"the channel is {EACH}; explore shows one point for a file: give the number of a channel")
    return Collection(source, read_as(load(model, device), options.reading), options)


def _cluster_count(points: int) -> int:
    """Return about sqrt(n / 2), an old rule of thumb: few clusters for few sounds."""
    return int(min(_MOST_CLUSTERS, max(1, round((points / 2) ** 0.5))))


def _clusters(vectors: PointVectors, known: np.ndarray) -> Column:
    """Return the k-means clusters of the known points as a column, the largest first."""
    codes = np.full(len(vectors.known), ABSENT, np.int32)
    count = _cluster_count(len(known))
    if len(known):
        rows = reduced(vectors, known)
        sample = rows[:: max(1, len(rows) // _CLUSTER_SAMPLE)]
        # Threads that wait for each other beside the embedding would take many times as long as one.
        with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
            # Where there are fewer different sounds than clusters, some clusters stay empty.
            warnings.simplefilter("ignore")
            means = MiniBatchKMeans(count, batch_size=4096, n_init=3, random_state=0).fit(sample)
            codes[known] = means.predict(rows)
        order = np.argsort(-np.bincount(codes[known], minlength=count), kind="stable")
        rank = np.empty(count, np.int32)
        rank[order] = np.arange(count)
        codes[known] = rank[codes[known]]
    return Column(name=CLUSTER, kind="category", codes=codes, categories=[f"cluster {k + 1}" for k in range(count)])


def _columns_of_tables(source: Path, sounds: Sequence[Sound], segments: bool, options: ExploreOptions) -> list[Column]:
    """Return the columns of the table that is explored, and of the one with labels."""
    found: dict[str, Column] = {}
    for table in (source if is_table(source) else None, options.labels):
        if table is not None:
            for column in _columns_of(table, sounds, segments, options):
                found[column.name] = column
    return list(found.values())


def _columns_of(table: Path, sounds: Sequence[Sound], segments: bool, options: ExploreOptions) -> list[Column]:
    columns, every = read_every_column(table, options.table)
    report(table, columns.notes)
    rows = sounds_of_rows(columns)
    if not segments:
        rows = [Sound(sound.path) for sound in rows]
    point_of = {identity: point for point, identity in enumerate(identities(sounds))}
    # Of several rows about one point, the first counts.
    row_of: dict[int, int] = {}
    for row, identity in enumerate(identities(rows)):
        if (point := point_of.get(identity)) is not None:
            row_of.setdefault(point, row)
    if len(row_of) < len(sounds):
        what = "segment" if segments else "file"
        note(f"{table}: has no row for {counted(len(sounds) - len(row_of), what)} of {len(sounds):,}")
    if not row_of:
        return []
    taken = []
    for name, cells in every.items():
        own = [cells[row_of[point]] if point in row_of else "" for point in range(len(sounds))]
        column = column_of(name, own)
        # Paths and other texts that are all different name the points, which have names already.
        if name and column.distinct and not (column.kind == "text" and column.distinct >= len(row_of)):
            taken.append(column)
    return taken
