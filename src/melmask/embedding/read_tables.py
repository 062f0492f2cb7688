"""The vectors of tables of embeddings, read back row by row; `tables.py` says what a table holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.embedding.tables import TableSettings
from melmask.errors import InputError
from melmask.system.arrays import names_of_arrays, read_arrays
from melmask.system.reading import DamagedFileError, open_file, reason_of

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


def read_rows(path: Path, settings: TableSettings, *, frames: bool) -> Iterator[TableRow]:
    """Yield the rows of a table, one row group of a Parquet file at a time; an npz file is read whole.

    Args:
        path: X.parquet or X.npz.
        settings: What `tables.read_settings` returned for it.
        frames: Whether to take the frame vectors. Otherwise each sound has one row, with its scene vector.

    Raises:
        InputError: the table is damaged, or a vector is NaN or infinite.
    """
    size = settings.dimensions if frames else settings.scene_dimensions
    groups = _npz_rows(path, frames, size) if path.suffix == ".npz" else _parquet_rows(path, frames, size)
    try:
        for row in groups:
            if not np.isfinite(row.vectors).all():
                raise InputError(f"{path}: a vector of {row.path} is NaN or infinite; embed the file again")
            yield row
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged ({reason_of(error)}); write it again with melmask embed") from error


def _parquet_rows(path: Path, frames: bool, size: int) -> Iterator[TableRow]:
    with open_file(path) as opened, pq.ParquetFile(opened) as file:
        names = [name for name in _NAMES if name in file.schema_arrow.names]
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, [*names, "frames" if frames else "scene"])
            vectors = table["frames" if frames else "scene"].combine_chunks()
            lengths = np.array(vectors.value_lengths().to_pylist()) if frames else np.ones(len(table), np.int64)
            flat = vectors.flatten().flatten() if frames else vectors.flatten()
            values = flat.to_numpy().reshape(-1, size)
            facts = {name: table[name].to_pylist() for name in names}
            yield from _rows(facts, values, np.cumsum([0, *lengths]), frames)


def _npz_rows(path: Path, frames: bool, size: int) -> Iterator[TableRow]:
    there = names_of_arrays(path)
    names = [name for name in _NAMES if name in there]
    facts = dict(zip(names, (array.tolist() for array in read_arrays(path, names)), strict=True))
    if frames:
        values, offsets = read_arrays(path, ["frames", "frame_offsets"])
    else:
        (values,) = read_arrays(path, ["scene"])
        offsets = np.arange(len(values) + 1)
    if values.dtype != np.float32 or values.shape[1:] != (size,):
        raise DamagedFileError("its vectors have another size or type")
    yield from _rows(facts, values, offsets, frames)


def _rows(facts: dict[str, list[Any]], values: np.ndarray, offsets: np.ndarray, frames: bool) -> Iterator[TableRow]:
    if len(values) != offsets[-1] or len(offsets) != len(facts["path"]) + 1:
        raise DamagedFileError("it lacks vectors")
    count = len(facts["path"])
    nothing: list[Any] = [None] * count
    columns = [facts.get(name, nothing) for name in _NAMES]
    for number, (path, channel, start_s, end_s, duration_s, first_step) in enumerate(zip(*columns, strict=True)):
        if not frames and first_step:
            # The further rows of a long file repeat its scene vector.
            continue
        # In npz files, the end of a part without an end of its own is NaN.
        end_s = None if end_s != end_s else end_s
        vectors = values[offsets[number] : offsets[number + 1]]
        yield TableRow(path, channel, start_s or 0.0, end_s, float(duration_s), first_step or 0, vectors)
