"""The vectors of tables of embeddings, and of the parts of jobs, read back; `tables.py` says what a table holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from melmask.audio.parts import Sound
from melmask.embedding.tables import TableSettings
from melmask.errors import InputError
from melmask.system.arrays import names_of_arrays, read_arrays
from melmask.system.parquet import open_parquet
from melmask.system.reading import DamagedFileError, reason_of

_NAMES = ("path", "channel", "start_s", "end_s", "duration_s", "first_step")
"""Columns that say what a row is about, as far as a table has them."""


class TableRow(NamedTuple):
    """The vectors of one sound, or of a stretch of a long one, which has several rows."""

    path: str
    channel: int | None
    """The number of the channel, if each channel of a file has rows of its own."""
    start_s: float
    """Where the sound begins in its file; 0 for whole files."""
    end_s: float | None
    """Where it ends; None for the file's own end."""
    duration_s: float
    first_step: int
    """The number of the first frame vector; 0 where a sound begins."""
    vectors: np.ndarray
    """(1, D) float32, the scene vector, or (steps, D) float32, frame vectors."""

    @property
    def sound(self) -> tuple[str, int | None, float, float | None]:
        """What tells the sounds of a table apart."""
        return self.path, self.channel, self.start_s, self.end_s


class Scenes(NamedTuple):
    """Some sounds of a table, or clips of its channels; a sound whose frames lie in several rows is there once."""

    keys: list[str]
    """What tells each sound from others, as `Sound.key`."""
    durations_s: np.ndarray
    """(sounds,) float64."""
    vectors: np.ndarray
    """(sounds, D) float32."""


class _Rows(NamedTuple):
    """Some rows as a file has them: its columns, all vectors of the rows, and how many of these each row has."""

    facts: dict[str, list[Any]]
    vectors: np.ndarray
    lengths: np.ndarray


def read_rows(path: Path, settings: TableSettings, *, frames: bool) -> Iterator[TableRow]:
    """Yield the rows of a table, one row group of a Parquet file at a time; an npz file is read whole.

    Args:
        path: X.parquet or X.npz.
        settings: What `tables.read_settings` returned for it.
        frames: Whether to take the frame vectors. Otherwise each sound has one row, with its scene vector.

    Raises:
        InputError: the table is damaged, or a vector is NaN or infinite.
    """
    with _damage_named(path):
        for columns, all_vectors, lengths in _groups(path, settings, frames):
            begin = 0
            for length, *facts in zip(lengths, *(columns[name] for name in _NAMES), strict=True):
                name, channel, start_s, end_s, duration_s, first_step = facts
                vectors = all_vectors[begin : (begin := begin + length)]
                if not np.isfinite(vectors).all():
                    raise InputError(f"{path}: a vector of {name} is NaN or infinite; embed the file again")
                # In npz files, the end of a part without an end of its own is NaN.
                end_s = None if end_s != end_s else end_s
                yield TableRow(name, channel, start_s or 0.0, end_s, float(duration_s), first_step or 0, vectors)


def read_scenes(path: Path, settings: TableSettings) -> Iterator[Scenes]:
    """Yield the scene vectors of a table, or of a part of a job, as arrays, one for each row group.

    Sounds that failed are left out. In a damaged table, vectors may be NaN or infinite.

    Raises:
        InputError: the table is damaged.
    """
    with _damage_named(path):
        for facts, vectors, _ in _groups(path, settings, frames=False):
            sounds = zip(facts["path"], facts["start_s"], facts["end_s"], strict=True)
            keys = [name if start is None else Sound(Path(name), start, end).key for name, start, end in sounds]
            yield Scenes(keys, np.array(facts["duration_s"], np.float64), vectors)


def count_scenes(path: Path) -> int:
    """Return how many sounds `read_scenes` gives of a finished Parquet table; 0 if it is damaged."""
    try:
        with open_parquet(path) as file:
            if "first_step" not in file.schema_arrow.names:
                return int(file.metadata.num_rows)
            return int((file.read(columns=["first_step"])["first_step"].to_numpy() == 0).sum())
    except (pa.ArrowException, OSError, ValueError):
        return 0


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged ({reason_of(error)}); write it again with melmask embed") from error


def _groups(path: Path, settings: TableSettings, frames: bool) -> Iterator[_Rows]:
    """Yield the rows of a table by row group, with their frame vectors or, one row for each sound, its scene vector."""
    size = settings.dimensions if frames else settings.scene_dimensions
    for facts, vectors, lengths in _in_npz(path, frames) if path.suffix == ".npz" else _in_parquet(path, size, frames):
        count = len(facts["path"])
        if vectors.dtype != np.float32 or vectors.shape[1:] != (size,):
            raise DamagedFileError("its vectors have another size or type")
        if len(lengths) != count or len(vectors) != lengths.sum():
            raise DamagedFileError("it lacks vectors")
        yield _Rows({name: facts.get(name, [None] * count) for name in _NAMES}, vectors, lengths)


def _in_parquet(path: Path, size: int, frames: bool) -> Iterator[_Rows]:
    with open_parquet(path) as file:
        names = [name for name in (*_NAMES, "error", "last") if name in file.schema_arrow.names]
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number, [*names, "frames" if frames else "scene"])
            if not frames and "error" in names:
                # A part of a job has the vector in a sound's last row; a table has it in all of them.
                rows = rows.filter(pc.and_(rows["error"].is_null(), rows["last"]))
            elif not frames and "first_step" in names:
                rows = rows.filter(pc.equal(rows["first_step"], 0))
            lists = rows[rows.column_names[-1]].combine_chunks()
            lengths = np.array(lists.value_lengths().to_pylist() if frames else [1] * len(rows), np.int64)
            flat = lists.flatten().flatten() if frames else lists.flatten()
            vectors = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, size)
            yield _Rows({name: rows[name].to_pylist() for name in names}, vectors, lengths)


def _in_npz(path: Path, frames: bool) -> Iterator[_Rows]:
    there = names_of_arrays(path)
    names = [name for name in _NAMES if name in there]
    facts = dict(zip(names, (array.tolist() for array in read_arrays(path, names)), strict=True))
    if frames:
        vectors, offsets = read_arrays(path, ["frames", "frame_offsets"])
        lengths = np.diff(offsets)
    else:
        (vectors,) = read_arrays(path, ["scene"])
        lengths = np.ones(len(vectors), np.int64)
    yield _Rows(facts, vectors, lengths)
