"""Embeddings on disk: one Parquet or NumPy file, self-describing, written part by part so that a job can be resumed.

Parquet: a row a file - path, duration_s, scene (D float32) and, if kept, frames (steps x D); the settings are JSON in
the schema's metadata under `melmask`. npz: arrays path, duration_s, scene (files, D) and, if kept, frames (all steps,
D) with frame_offsets (files + 1,); the settings are a JSON string. Step k is centred at first_ms + k * step_ms.

While the job runs, `<name>.parts/part-*.parquet` hold what is done, `FILES_PER_PART` files each, failed ones too with
their `error`. A part appears whole or not at all; at the end the parts are merged and removed.
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask import __version__
from melmask.encoder import AudioEncoder
from melmask.errors import InputError, OutputError
from melmask.extract import FileEmbedding
from melmask.files import atomic_write, ensure_folder, write_json
from melmask.settings import to_dict

SUFFIXES = (".parquet", ".npz")
FILES_PER_PART = 512
_KEY = b"melmask"


def check_table_path(path: Path) -> None:
    """Raise OutputError unless the name ends in a known suffix and its folder can be written to."""
    if path.suffix not in SUFFIXES:
        raise OutputError(f"--out is {path}; expected a name ending in {' or '.join(SUFFIXES)}")
    ensure_folder(path.parent)


def settings_of(
    model: AudioEncoder,
    paths: Sequence[Path],
    layer: Sequence[int] | None = None,
    pooling: str = "concat",
    hop_ms: float | None = None,
    keep_frames: bool = False,
) -> dict[str, Any]:
    """What a reader of embeddings needs to know of how they were made, and what tells one job from another."""
    times_ms = model.step_grid(hop_ms).times_ms(2, model.card.front_end)
    return {
        "melmask": __version__,
        "model": model.name,
        "model_sha256": model.sha256,
        "layer": layer,
        "pooling": pooling,
        "precision": model.precision,
        "dimensions": model.embedding_size(pooling, layer),
        "frames": keep_frames,
        "first_ms": float(times_ms[0]),
        "step_ms": float(times_ms[1] - times_ms[0]),
        "front_end": to_dict(model.card.front_end),
        "statistics": to_dict(model.card.statistics),
        "files": len(paths),
        "files_sha256": hashlib.sha256("\n".join(str(path) for path in paths).encode()).hexdigest(),
    }


class TableJob:
    """The parts of one table: which are done, writing the others, merging all.

    Raises:
        OutputError: the place cannot be written to, or holds the parts of a job with other settings or files.
    """

    def __init__(self, path: Path, paths: Sequence[Path], settings: dict[str, Any]):
        check_table_path(path)
        self._path, self._paths, self._settings = path, paths, settings
        self._files_per_part = FILES_PER_PART  # carried along where a job is sent to other processes
        self._folder = path.with_name(path.name + ".parts")
        self.complete = path.exists() and read_settings(path) == settings
        if self.complete:
            return
        ensure_folder(self._folder)
        job = self._folder / "job.json"
        if not job.exists():
            write_json(job, settings)
        elif (begun := json.loads(job.read_text())) != settings:
            wrong = ", ".join(key for key in settings if begun.get(key) != settings[key])
            raise OutputError(f"{self._folder} belongs to a job with another {wrong}; delete it or use another --out")

    def todo(self) -> list[int]:
        """Numbers of the parts that are not there yet."""
        parts = range(-(-len(self._paths) // self._files_per_part))
        return [part for part in parts if not self._part(part).exists()]

    def paths_of(self, parts: Sequence[int]) -> list[Path]:
        """The files of some parts, in order."""
        size = self._files_per_part
        return [path for k in parts for path in self._paths[k * size : (k + 1) * size]]

    def write(self, parts: Sequence[int], results: Iterable[FileEmbedding]) -> None:
        """Write `parts`; `results` are those of `paths_of(parts)`, in order."""
        rows = iter(results)
        for part in parts:
            wanted = len(self.paths_of([part]))
            table = _arrow_table([next(rows) for _ in range(wanted)], self._settings)
            with atomic_write(self._part(part)) as file:
                pq.write_table(table, file)

    def merge(self) -> list[tuple[str, str]]:
        """Write the table from its parts and remove them; returns (path, reason) of the files that failed.

        `<name>.failed.csv` lists these too.

        Raises:
            InputError: no file could be read.
        """
        failed: list[tuple[str, str]] = []
        parts = [self._part(k) for k in range(-(-len(self._paths) // self._files_per_part))]
        for part in parts:
            rows = pq.read_table(part, columns=["path", "error"]).to_pylist()
            failed += [(row["path"], row["error"]) for row in rows if row["error"]]
        if len(failed) == len(self._paths):
            shutil.rmtree(self._folder)
            raise InputError(f"none of the {len(failed)} files could be read; the first: {failed[0][1]}")
        with atomic_write(self._path) as file:
            good = (_good_rows(part) for part in parts)
            (_merge_parquet if self._path.suffix == ".parquet" else _merge_npz)(file, good, self._settings)
        failures = self._path.with_name(self._path.name + ".failed.csv")
        failures.unlink(missing_ok=True)
        if failed:
            with atomic_write(failures, "w") as file:
                csv.writer(file).writerows([("path", "reason"), *failed])
        shutil.rmtree(self._folder)
        return failed

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.parquet"


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings in a table, None if it is no table of ours."""
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return json.loads(str(arrays["settings"]))
        return json.loads(pq.read_schema(path).metadata[_KEY])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def rows_of(path: Path) -> int:
    """How many files a table holds."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return len(arrays["path"])
    return pq.read_metadata(path).num_rows


def _schema(settings: dict[str, Any]) -> pa.Schema:
    vector = pa.list_(pa.float32(), settings["dimensions"])
    fields = [("path", pa.string()), ("duration_s", pa.float64()), ("scene", vector)]
    if settings["frames"]:
        fields.append(("frames", pa.list_(vector)))
    return pa.schema(fields).with_metadata({_KEY: json.dumps(settings)})


def _arrow_table(rows: list[FileEmbedding], settings: dict[str, Any]) -> pa.Table:
    """Rows of one part; failed files have zeros and no frames until the merge leaves them out."""
    schema = _schema(settings)
    dimensions = settings["dimensions"]

    def vectors(arrays: list[Any]) -> pa.Array:
        flat = np.concatenate([np.zeros(0, np.float32), *(np.reshape(a, -1) for a in arrays)])
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dimensions)

    columns = [
        pa.array([str(row.path) for row in rows], pa.string()),
        pa.array([row.duration_s for row in rows], pa.float64()),
        vectors([np.zeros(dimensions, np.float32) if row.scene is None else row.scene for row in rows]),
    ]
    if settings["frames"]:
        frames = [np.zeros((0, dimensions), np.float32) if row.frames is None else row.frames for row in rows]
        offsets = np.cumsum([0, *(len(f) for f in frames)], dtype=np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), vectors(frames)))
    table = pa.Table.from_arrays(columns, schema=schema)
    return table.append_column("error", pa.array([row.error for row in rows], pa.string()))


def _good_rows(part: Path) -> pa.Table:
    table = pq.read_table(part)
    return table.filter(table["error"].is_null()).drop_columns(["error"])


def _merge_parquet(file: Any, parts: Iterator[pa.Table], settings: dict[str, Any]) -> None:
    schema = _schema(settings)
    with pq.ParquetWriter(file, schema) as writer:
        for table in parts:
            writer.write_table(table.cast(schema))


def _merge_npz(file: Any, parts: Iterator[pa.Table], settings: dict[str, Any]) -> None:
    table = pa.concat_tables(list(parts)).combine_chunks()
    dimensions = settings["dimensions"]
    arrays = {
        "path": np.array(table["path"].to_pylist()),
        "duration_s": table["duration_s"].to_numpy(),
        "scene": table["scene"].combine_chunks().flatten().to_numpy().reshape(-1, dimensions),
        "settings": np.array(json.dumps(settings)),
    }
    if settings["frames"]:
        frames = table["frames"].combine_chunks()
        arrays["frames"] = frames.flatten().flatten().to_numpy().reshape(-1, dimensions)
        arrays["frame_offsets"] = np.cumsum([0, *frames.value_lengths().to_pylist()])
    np.savez(file, **arrays)
