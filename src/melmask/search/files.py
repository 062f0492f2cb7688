"""The files of an index. docs/formats.md describes them.

`index.json` is written last and names the others, so an index is always whole: what a killed job has written beside it
is not named, and the next job overwrites or removes it. Vectors are only ever appended to their file. Who has an index
open keeps what it has mapped.
"""

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int16, Int64

from melmask.embedding.tables import TableSettings
from melmask.errors import ConfigError, InputError
from melmask.system.arrays import read_arrays
from melmask.system.files import atomic_write, write_json
from melmask.system.parquet import open_parquet
from melmask.system.reading import (
    DamagedFileError,
    NewerVersionError,
    check_version,
    open_file,
    parse_json,
    read_json_object,
    reason_of,
)

FACTS = "index.json"
FORMAT, VERSION = "melmask-index", 1
_SCHEMA = pa.schema(
    {
        "collection": pa.string(),
        "path": pa.string(),
        "channel": pa.int64(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "duration_s": pa.float64(),
        "first_row": pa.int64(),
        "rows": pa.int64(),
        "live": pa.bool_(),
    }
)


class Item(NamedTuple):
    """A sound of an index, and where its vectors are."""

    collection: str
    path: str
    channel: int | None
    """The number of the channel, where each channel of a file is an item."""
    start_s: float
    end_s: float | None
    """Where the sound is in its file; None stands for the file's own end."""
    duration_s: float
    first_row: int
    rows: int
    """How many vectors it has, one after another."""
    live: bool = True
    """False once a later table has replaced it."""

    @property
    def key(self) -> tuple[str, str, int | None, float, float | None]:
        """What tells the sounds of an index apart."""
        return self.collection, self.path, self.channel, self.start_s, self.end_s


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What index.json holds."""

    frames: bool
    """Whether the vectors are frame vectors, and not one scene vector for each sound."""
    model: str
    """Where the model was: a path, `box` or hub:owner/name."""
    settings: TableSettings
    """Of the first table; those of the others differ in their files only."""
    vectors: str
    """The name of the file of vectors."""
    rows: int
    """How many vectors count; there may be more in the file."""
    items: str
    """The name of the table of items."""
    statistics: str | None = None
    """The name of the file with the vectors' mean and lengths; None if the last job was killed before it wrote them."""
    graph: str | None = None
    """The name of the file of the approximate index, if there is one; its mean is in a file of the same stem."""
    graph_rows: int = 0
    """How many vectors it has, the first ones."""

    @property
    def dimensions(self) -> int:
        """The size of a vector."""
        return self.settings.dimensions if self.frames else self.settings.scene_dimensions

    @property
    def positions(self) -> int:
        """How many positions vectors can have in the unit of the model; 0 if that is unknown, and for whole sounds."""
        return positions_in_unit(self.settings) if self.frames else 0

    @property
    def names(self) -> set[str]:
        """The names of the files that belong to the index."""
        graph = () if self.graph is None else (self.graph, mean_name(self.graph))
        statistics = () if self.statistics is None else (self.statistics,)
        return {FACTS, self.vectors, self.items, *statistics, *graph}


class Opened(NamedTuple):
    """An index as it was at one moment."""

    facts: IndexFacts
    items: pa.Table
    vectors: np.ndarray
    """(rows, dims) float32, mapped from their file."""
    statistics: "Statistics | None"


class Statistics(NamedTuple):
    """What a search needs to know of all vectors."""

    mean: np.ndarray
    """(dims,) float64."""
    offsets: np.ndarray
    """(positions, dims) float64, what each position in the unit of the model adds; there may be no positions."""
    lengths: np.ndarray
    """(rows,) float32, the vectors' lengths without all that."""


def mean_name(graph: str) -> str:
    """Return the name of the file with the mean that an approximate index was built with."""
    return f"{Path(graph).stem}.npz"


def open_index(folder: Path) -> Opened:
    """Open an index, also while a job adds to it.

    Raises:
        InputError: there is no index, or it is damaged.
    """
    facts = read_facts(folder)
    try:
        return _open(folder, facts)
    except InputError:
        # A job may have saved the next state, and removed the files of this one.
        later = read_facts(folder)
        if later == facts:
            raise
        return _open(folder, later)


def _open(folder: Path, facts: IndexFacts) -> Opened:
    return Opened(facts, read_items(folder, facts), map_vectors(folder, facts), read_statistics(folder, facts))


def read_facts(folder: Path) -> IndexFacts:
    """Return what the index in a folder says of itself.

    Raises:
        InputError: there is no index, or it is damaged.
    """
    if not (folder / FACTS).exists():
        raise InputError(f"{folder} is no search index; make one with melmask index EMBEDDINGS --out INDEX")
    try:
        values = read_json_object(folder / FACTS)
        check_version(values, FORMAT, VERSION)
        facts = IndexFacts(**{**values, "settings": TableSettings.from_json(json.dumps(values["settings"]))})
        _check(facts, folder)
    except NewerVersionError as error:
        raise InputError(f"{folder / FACTS}: {error}; install a newer melmask") from None
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        raise _damaged(folder, FACTS, error) from error
    return facts


def write_facts(folder: Path, facts: IndexFacts) -> None:
    """Make the files that `facts` name the index of the folder, and remove those of an earlier state."""
    settings = parse_json(facts.settings.to_json())
    values = {name: value for name, value in vars(facts).items() if name != "settings"}
    write_json(folder / FACTS, {"format": FORMAT, "version": VERSION, **values, "settings": settings})
    remove_others(folder, facts)


def remove_others(folder: Path, facts: IndexFacts) -> None:
    """Remove the files of earlier states, and of jobs that were killed; no other job may be writing to the index."""
    for path in files_of(folder):
        if path.name not in facts.names:
            # On Windows, a file that a search has open stays until the next job.
            with suppress(OSError):
                path.unlink(missing_ok=True)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that are named like those of an index, whether they belong to it or not."""
    patterns = (FACTS, "vectors-*.f32", "items-*.parquet", "statistics-*.npz", "graph-*.usearch", "graph-*.npz")
    return [path for pattern in patterns for path in folder.glob(pattern)]


def read_items(folder: Path, facts: IndexFacts) -> pa.Table:
    """Return the table of items.

    Raises:
        InputError: it is damaged.
    """
    try:
        with open_parquet(folder / facts.items) as stored:
            table = stored.read()
        if not table.schema.equals(_SCHEMA):
            raise DamagedFileError("it has other columns")
        first, rows = (table[name].to_numpy() for name in ("first_row", "rows"))
        # Each vector belongs to one item, and items lie one after another.
        if rows.sum() != facts.rows or (rows < 1).any() or (first != np.cumsum([0, *rows])[:-1]).any():
            raise DamagedFileError("its items do not fit the vectors")
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise _damaged(folder, facts.items, error) from error
    return table


def write_items(path: Path, items: list[Item]) -> None:
    """Write the table of items."""
    columns = zip(*items, strict=True) if items else ([] for _ in _SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    with atomic_write(path) as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), file)


def map_vectors(folder: Path, facts: IndexFacts) -> np.ndarray:
    """Return the vectors, (rows, dims) float32, mapped from their file.

    Raises:
        InputError: the file is missing, or shorter than it should be.
    """
    shape = (facts.rows, facts.dimensions)
    try:
        with open_file(folder / facts.vectors) as file:
            return np.memmap(file, np.dtype("<f4"), "r", shape=shape)
    except (OSError, ValueError) as error:
        raise _damaged(folder, facts.vectors, error) from error


def read_statistics(folder: Path, facts: IndexFacts) -> Statistics | None:
    """Return the mean and the lengths of the vectors; None if they have not been written.

    Raises:
        InputError: their file is damaged.
    """
    if facts.statistics is None:
        return None
    try:
        found = Statistics(*read_arrays(folder / facts.statistics, Statistics._fields))
        if (
            found.mean.shape != (facts.dimensions,)
            or found.lengths.shape != (facts.rows,)
            or found.offsets.shape != (facts.positions, facts.dimensions)
            or _kinds(found) != ["f8", "f8", "f4"]
        ):
            raise DamagedFileError("it does not fit the vectors")
        if not all(np.isfinite(array).all() for array in found):
            raise DamagedFileError("it is not finite")
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, facts.statistics, error) from error
    return found


def positions_in_unit(settings: TableSettings) -> int:
    """Return how many frame vectors begin within a unit of the model; 0 if the table does not say."""
    return 0 if settings.unit_ms is None else round(settings.unit_ms / settings.step_ms)


def positions_of(
    firsts: Int64[np.ndarray, " items"], rows: Int64[np.ndarray, " items"], count: int
) -> Int16[np.ndarray, " rows"]:
    """Return the position of each vector in the unit of the model, of `count`: a sound begins with a unit.

    Args:
        firsts: The number of the first vector of each item.
        rows: How many it has.
        count: How many positions a unit has, at least 1.
    """
    return ((np.arange(rows.sum()) - np.repeat(firsts, rows)) % count).astype(np.int16)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file, atomically."""
    values: dict[str, Any] = dict(arrays)
    with atomic_write(path) as file:
        np.savez(file, **values)


def free_name(folder: Path, kind: str, suffix: str) -> str:
    """Return the name of a file of an index, such as vectors-0.f32, that the folder does not have yet."""
    taken = {path.name for path in files_of(folder)}
    return next(name for number in itertools.count() if (name := f"{kind}-{number}.{suffix}") not in taken)


def _kinds(statistics: Statistics) -> list[str]:
    return [array.dtype.str[1:] for array in statistics]


def _check(facts: IndexFacts, folder: Path) -> None:
    """Raise ValueError or TypeError unless the facts can be those of an index."""
    values: dict[str, Any] = vars(facts)
    names = [values[name] for name in ("vectors", "items", "statistics", "graph") if values[name] is not None]
    # A crafted index must not lead to files elsewhere.
    if any(not isinstance(name, str) or folder / name not in files_of(folder) for name in names):
        raise DamagedFileError(f"one of its files is missing: {', '.join(map(str, names))}")
    if type(facts.rows) is not int or type(facts.graph_rows) is not int or not 0 <= facts.graph_rows <= facts.rows:
        raise DamagedFileError("its numbers of rows are none")
    if not facts.settings.step_ms > 0 or not 0 <= facts.positions < 1 << 15:
        raise DamagedFileError("its units are none")
    if facts.rows < 1 or not isinstance(facts.model, str) or not isinstance(facts.frames, bool):
        raise DamagedFileError("a value has another type")


def _damaged(folder: Path, name: str, error: Exception) -> InputError:
    return InputError(
        f"{folder / name} is damaged ({reason_of(error)}); delete {folder} and build the index again from its tables"
    )
