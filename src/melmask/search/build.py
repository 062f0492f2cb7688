"""`melmask index`: add tables of embeddings to an index.

Vectors are appended to one file. A sound that is in the index already, with the same vectors, adds nothing; with others
it is replaced. Its earlier vectors stay in the file until they are more than half of it.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from melmask.embedding.read_tables import TableRow, read_rows
from melmask.embedding.tables import TableSettings, read_settings, rows_of
from melmask.errors import InputError
from melmask.search import approximate
from melmask.search.files import (
    FACTS,
    IndexFacts,
    Item,
    files_of,
    free_name,
    map_vectors,
    positions_in_unit,
    positions_of,
    read_facts,
    read_items,
    remove_others,
    write_arrays,
    write_facts,
    write_items,
)
from melmask.search.nearest import Positions, lengths_of, mean_of, offsets_of
from melmask.system.files import claimed, output_error
from melmask.system.progress import track
from melmask.system.terminal import counted, shown

DEFAULT_COLLECTION = "default"
_ROWS_BETWEEN_SAVES = 200_000
"""A killed job loses at most so many vectors, and one table of items is written for each."""
_COPIED_ROWS = 1 << 14
_UNKNOWN_POSITIONS = (
    "these tables do not say where in the model's unit each frame vector lies, and moments are also found by that; for "
    "better hits, write the tables and the index again with this version"
)
_ROUNDING = 1e-4
"""Relative to the largest number of a vector. A sound that is embedded again, in another batch, differs by less."""


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What one call of `build_index` did."""

    index: Path
    added: int
    """Sounds that are new."""
    replaced: int
    """Sounds whose vectors are others than before."""
    unchanged: int
    """Sounds that were there already."""
    vectors: int
    """Vectors in the index now, without those that were replaced."""
    collections: dict[str, int]
    """How many sounds each collection has now."""
    approximate: bool
    """Whether the index can be searched approximately."""
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        done = f"{self.added:,} added, {self.replaced:,} replaced, {self.unchanged:,} unchanged"
        sounds = counted(sum(self.collections.values()), "sound")
        lines = [f"{shown(self.index)}: {counted(self.vectors, 'vector')} of {sounds}; {done}"]
        if len(self.collections) > 1:
            named = ", ".join(f"{shown(name)} {count:,}" for name, count in self.collections.items())
            lines.append(f"collections: {named}")
        if self.approximate:
            lines.append("searches are approximate; melmask search --exact compares with every vector")
        return "\n".join((*lines, *self.notes))


class _Table(NamedTuple):
    path: Path
    settings: TableSettings


def build_index(
    tables: Iterable[Path | str],
    out: Path | str,
    *,
    collection: str = DEFAULT_COLLECTION,
    frames: bool = False,
    model: Path | str | None = None,
    least_approximate: int = approximate.LEAST_ROWS,
) -> IndexReport:
    """Add tables of embeddings to the index `out`, which is made if there is none.

    A killed job resumes when it is called again. Sounds that an index has and a table has not stay in the index.

    Args:
        tables: What `melmask embed` wrote: X.parquet or X.npz, also the tables of shards.
        out: The folder of the index.
        collection: The name of the collection that the sounds belong to. A sound of the same path in another collection
            is another sound.
        frames: Whether to index every frame vector, and not one vector for each sound. It is decided by the first call.
        model: Where the model is now, if it is no longer where the tables say.
        least_approximate: An approximate index is made from so many vectors on.

    Raises:
        InputError: a table is missing, damaged or empty, has vectors that are not finite or do not fit the index; or
            `out` holds something else, or is damaged.
        OutputError: `out` cannot be written to, or another job is writing to it.
    """
    folder, paths = Path(out), [Path(path) for path in tables]
    opened = [_Table(path, _settings_of(path)) for path in paths]
    if not opened:
        raise InputError("there is no table to index; give what melmask embed wrote")
    if not collection.strip():
        raise InputError("the name of the collection is empty; give one")
    _checked(folder, opened, frames)
    with claimed(folder):
        # Another job may have written to the index in the meantime.
        facts = _checked(folder, opened, frames)
        first, frames = (opened[0].settings, frames) if facts is None else (facts.settings, facts.frames)
        with _Writer(folder, facts, first, frames) as writer:
            if facts is None or model is not None:
                writer.model = _place_of(first.model if model is None else model)
            for table in opened:
                rows = read_rows(table.path, table.settings, frames=frames)
                sounds = itertools.groupby(rows, lambda row: row.sound)
                for _, of_sound in track(sounds, rows_of(table.path) or 0, f"index {table.path.name}", "sound"):
                    writer.add(collection, of_sound)
            writer.finish(least_approximate)
            return writer.report()


def _checked(folder: Path, tables: Sequence[_Table], frames: bool) -> IndexFacts | None:
    """Return the facts of the index that is there, if any, after a check that the tables can be added to it.

    Raises:
        InputError: a table does not fit, or there is something else than an index.
    """
    facts = read_facts(folder) if (folder / FACTS).exists() else None
    if facts is None:
        _check_place(folder)
    elif frames and not facts.frames:
        raise InputError(f"{folder} has a vector for each sound, and none for frames; use another --out")
    first = tables[0] if facts is None else _Table(folder, facts.settings)
    for table in tables:
        _check_fits(table, first, frames or (facts is not None and facts.frames))
    return facts


def _settings_of(path: Path) -> TableSettings:
    """Return the settings of a table.

    Raises:
        InputError: it is missing, empty, or no table of embeddings.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give a table that melmask embed wrote")
    settings = read_settings(path)
    if settings is None:
        raise InputError(f"{path} is no table of embeddings, or is damaged; make one with melmask embed")
    if not rows_of(path):
        raise InputError(f"{path} has no rows, or is damaged; write it again with melmask embed")
    return settings


def _check_fits(table: _Table, first: _Table, frames: bool) -> None:
    """Raise InputError unless the vectors of a table can be compared with those of the index, or of the first table."""
    one, other = table.settings, first.settings
    if one.model_sha256 != other.model_sha256:
        raise InputError(
            f"{table.path} was made with another model ({one.model}, {one.model_sha256[:8]}) than {first.path} "
            f"({other.model}, {other.model_sha256[:8]}); use another --out"
        )
    of_rows = ("first_ms", "step_ms", "dimensions") if frames else ("scene", "scene_dimensions")
    for name in ("layer", "pooling", "channel", "expand", *of_rows):
        if getattr(one, name) != getattr(other, name):
            raise InputError(
                f"{table.path} has {name} {getattr(one, name)}, and {first.path} has {getattr(other, name)}; use "
                "another --out"
            )
    if frames and not one.frames:
        raise InputError(f"{table.path} has no frame vectors; write it again with melmask embed --frames")


def _check_place(folder: Path) -> None:
    """Raise InputError if there is something else than an index, or than what a killed job has left of one."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the index")
    others = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others -= {path.name for path in files_of(folder)}
    if foreign := sorted(name for name in others if not name.startswith(".")):
        raise InputError(f"{folder} is no index and holds {foreign[0]}; give an empty or a new folder")


def _place_of(model: Path | str) -> str:
    """Return where a model is, so that it is found from another working directory."""
    return str(Path(model).absolute()) if Path(model).exists() else str(model)


class _Writer:
    """Adds sounds to an index, and makes it whole at the end."""

    def __init__(self, folder: Path, facts: IndexFacts | None, settings: TableSettings, frames: bool):
        self._folder, self._facts = folder, facts
        self._settings, self._frames = settings, frames
        self.model = settings.model if facts is None else facts.model
        found = read_items(folder, facts).to_pylist() if facts is not None else []
        self._items = [Item(**values) for values in found]
        self._numbers = {item.key: number for number, item in enumerate(self._items) if item.live}
        self._rows = self._saved_rows = 0 if facts is None else facts.rows
        self._vectors = free_name(folder, "vectors", "f32") if facts is None else facts.vectors
        self._counts: Counter[str] = Counter()
        self._notes: list[str] = []
        # Set when the index has to be written: something has changed, or the last job was killed.
        self._changed = facts is None or facts.statistics is None
        if facts is not None:
            # A file that was cut off would be filled up with zeros.
            map_vectors(folder, facts)
            remove_others(folder, facts)
        path = folder / self._vectors
        self._file: IO[bytes] = path.open("w+b") if facts is None else path.open("r+b")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        # What has not been saved is of no use. If the disk is full, that has been reported.
        with suppress(OSError):
            if self._facts is not None and self._facts.vectors == self._vectors:
                self._file.truncate(self._facts.rows * self._dimensions * 4)
        with suppress(OSError):
            self._file.close()
        if self._facts is None:
            # Nothing has been saved: a table was refused.
            (self._folder / self._vectors).unlink(missing_ok=True)

    @property
    def _dimensions(self) -> int:
        return self._settings.dimensions if self._frames else self._settings.scene_dimensions

    def add(self, collection: str, pieces: Iterable[TableRow]) -> None:
        """Add a sound, whose vectors come in one or several pieces.

        Raises:
            OutputError: the disk is full.
        """
        begin, same, known, row = self._rows, True, None, None
        for row in pieces:
            if row.first_step == 0:
                number = self._numbers.get((collection, *row.sound))
                known = None if number is None else self._items[number]
            same = same and known is not None and self._is_there(known, row)
            self._write(row.vectors)
        assert row is not None
        if self._rows == begin:
            # A sound without frames, such as one of a single sample, has nothing to be found by.
            return
        item = Item(collection, *row.sound, row.duration_s, begin, self._rows - begin)
        if same and known is not None and item.rows == known.rows:
            # What has just been written is overwritten by the next sound.
            self._rows = begin
            self._counts["unchanged"] += 1
            return
        self._counts["added" if known is None else "replaced"] += 1
        if known is not None:
            self._items[self._numbers[item.key]] = known._replace(live=False)
        self._numbers[item.key] = len(self._items)
        self._items.append(item)
        self._changed = True
        if self._rows - self._saved_rows >= _ROWS_BETWEEN_SAVES:
            self._save(None)

    def _is_there(self, known: Item, row: TableRow) -> bool:
        """Whether the vectors of this piece are those that the index has of the sound, up to rounding."""
        if row.first_step + len(row.vectors) > known.rows:
            return False
        self._file.seek((known.first_row + row.first_step) * self._dimensions * 4)
        there = np.frombuffer(self._file.read(row.vectors.nbytes), "<f4").reshape(row.vectors.shape)
        return bool(np.abs(there - row.vectors).max() <= _ROUNDING * np.abs(row.vectors).max())

    def _write(self, vectors: np.ndarray) -> None:
        try:
            self._file.seek(self._rows * self._dimensions * 4)
            self._file.write(vectors.astype("<f4").tobytes())
        except OSError as error:
            raise output_error(self._folder / self._vectors, error) from error
        self._rows += len(vectors)

    def finish(self, least_approximate: int) -> None:
        """Write the index, if anything has changed, and its approximate index, if it is large."""
        if not self._items:
            raise InputError("the tables have no vectors; embed sounds that last longer")
        if self._changed:
            live = np.repeat([item.live for item in self._items], [item.rows for item in self._items])
            if 2 * live.sum() < self._rows:
                live = self._compact(live)
            matrix = self._matrix()
            mean, positions = mean_of(matrix, live), self._positions(matrix, live)
            statistics = free_name(self._folder, "statistics", "npz")
            offsets = np.zeros((0, self._dimensions)) if positions is None else positions.offsets
            lengths = lengths_of(matrix, mean, positions)
            write_arrays(self._folder / statistics, {"mean": mean, "offsets": offsets, "lengths": lengths})
            self._save(statistics)
        elif self._facts is not None and self._facts.model != self.model:
            self._facts = replace(self._facts, model=self.model)
            write_facts(self._folder, self._facts)
        assert self._facts is not None
        self._facts, notes = approximate.extended(self._folder, self._facts, least_approximate)
        self._notes += notes

    def _positions(self, matrix: np.ndarray, live: np.ndarray) -> Positions | None:
        """Return what the positions of frame vectors in the unit of the model add to them, if they are known."""
        count = positions_in_unit(self._settings) if self._frames else 0
        if not count:
            if self._frames:
                self._notes.append(_UNKNOWN_POSITIONS)
            return None
        firsts, rows = np.array([(item.first_row, item.rows) for item in self._items]).T
        of_rows = positions_of(firsts, rows, count)
        return Positions(of_rows, offsets_of(matrix, of_rows, count, live))

    def _matrix(self) -> np.ndarray:
        """Return the vectors that have been written, (rows, dims), mapped from their file."""
        self._flush()
        return np.memmap(self._folder / self._vectors, "<f4", "r", shape=(self._rows, self._dimensions))

    def _compact(self, live: np.ndarray) -> np.ndarray:
        """Copy the vectors that count to a new file, so that the others need no room."""
        matrix = self._matrix()
        name = free_name(self._folder, "vectors", "f32")
        file = (self._folder / name).open("w+b")
        try:
            for start in range(0, len(matrix), _COPIED_ROWS):
                part = slice(start, start + _COPIED_ROWS)
                file.write(matrix[part][live[part]].tobytes())
        except OSError as error:
            raise output_error(self._folder / name, error) from error
        self._file.close()
        self._file, self._vectors = file, name
        self._items = [item for item in self._items if item.live]
        firsts = np.cumsum([0, *(item.rows for item in self._items)]).tolist()
        self._rows = firsts.pop()
        self._items = [item._replace(first_row=first) for item, first in zip(self._items, firsts, strict=True)]
        return np.ones(self._rows, bool)

    def report(self) -> IndexReport:
        """Return what was done."""
        assert self._facts is not None
        live = [item for item in self._items if item.live]
        counts = {name: self._counts[name] for name in ("added", "replaced", "unchanged")}
        return IndexReport(
            index=self._folder,
            **counts,
            vectors=sum(item.rows for item in live),
            collections=dict(Counter(item.collection for item in live)),
            approximate=self._facts.graph is not None,
            notes=self._notes,
        )

    def _save(self, statistics: str | None) -> None:
        """Make what has been added so far the index, with a file of statistics or, in between, without."""
        self._flush()
        items = free_name(self._folder, "items", "parquet")
        write_items(self._folder / items, self._items)
        # Another file of vectors has them in other places.
        kept = self._facts if self._facts is not None and self._facts.vectors == self._vectors else None
        self._facts = IndexFacts(
            frames=self._frames,
            model=self.model,
            settings=self._settings,
            vectors=self._vectors,
            rows=self._rows,
            items=items,
            statistics=statistics,
            graph=None if kept is None else kept.graph,
            graph_rows=0 if kept is None else kept.graph_rows,
        )
        write_facts(self._folder, self._facts)
        self._saved_rows = self._rows

    def _flush(self) -> None:
        """Make sure that the vectors are on the disk, and nothing after them."""
        try:
            self._file.truncate(self._rows * self._dimensions * 4)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise output_error(self._folder / self._vectors, error) from error
