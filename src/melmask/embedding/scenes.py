"""The scene vectors of tables, read back row group by row group: of a finished table, or of a part of a job."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.audio.parts import Sound
from melmask.errors import InputError
from melmask.system.reading import open_file, reason_of


class Scenes(NamedTuple):
    """Some rows of a table. A file whose frames lie in several rows is there once, with its last one.

    keys: what tells each sound from others, as `Sound.key`.  durations_s: (rows,) float64.  vectors: (rows, D) float32.
    """

    keys: list[str]
    durations_s: np.ndarray
    vectors: np.ndarray


def read_scenes(path: Path) -> Iterator[Scenes]:
    """Yield the rows of a Parquet table that `melmask embed` wrote, or of a part of its job, by row group.

    Sounds that failed are left out. In a damaged table, vectors may be NaN or infinite.

    Raises:
        InputError: the table is damaged, or no such table.
    """
    try:
        with open_file(path) as opened, pq.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            wanted = [
                name
                for name in ("path", "start_s", "end_s", "duration_s", "scene", "first_step", "error", "last")
                if name in names
            ]
            for number in range(file.num_row_groups):
                yield _scenes(file.read_row_group(number, wanted))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as a table of embeddings ({reason_of(error)}); embed again") from None


def count_scenes(path: Path) -> int:
    """Return how many rows `read_scenes` gives of a finished table; 0 if it is damaged."""
    try:
        with open_file(path) as opened, pq.ParquetFile(opened) as file:
            if "first_step" not in file.schema_arrow.names:
                return int(file.metadata.num_rows)
            return int((file.read(columns=["first_step"])["first_step"].to_numpy() == 0).sum())
    except (pa.ArrowException, OSError, ValueError):
        return 0


def _scenes(rows: pa.Table) -> Scenes:
    keep = np.ones(len(rows), bool)
    if "error" in rows.column_names:
        # A part of a job has the vector in a sound's last row; a table has it in all of them.
        keep = rows["error"].is_null().to_numpy() & rows["last"].to_numpy()
    elif "first_step" in rows.column_names:
        keep = rows["first_step"].to_numpy() == 0
    kept = rows.filter(pa.array(keep)).combine_chunks()
    empty: list[float | None] = [None] * len(kept)
    starts, ends = (kept[name].to_pylist() if name in kept.column_names else empty for name in ("start_s", "end_s"))
    parts = zip(kept["path"].to_pylist(), starts, ends, strict=True)
    keys = [path if start is None else Sound(Path(path), start, end).key for path, start, end in parts]
    scene = kept["scene"].combine_chunks()
    flat = scene.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return Scenes(keys, kept["duration_s"].to_numpy().astype(np.float64), flat.reshape(len(kept), -1))
