"""Embeddings on disk: one Parquet or NumPy file, self-describing, written atomically.

Parquet: a row a file - path, duration_s, scene (D float32) and, if kept, frames (steps x D); the settings are JSON in
the schema's metadata under `melmask`. npz: arrays path, duration_s, scene (files, D) and, if kept, frames (all steps,
D) with frame_offsets (files + 1,); the settings are a JSON string. Step k is centred at first_ms + k * step_ms.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask import __version__
from melmask.encoder import AudioEncoder
from melmask.errors import OutputError
from melmask.extract import FileEmbedding
from melmask.files import atomic_write
from melmask.settings import to_dict

SUFFIXES = (".parquet", ".npz")
_ROWS_PER_GROUP = 512


def check_table_path(path: Path) -> None:
    """Raise OutputError unless the name ends in a known suffix."""
    if path.suffix not in SUFFIXES:
        raise OutputError(f"--out is {path}; expected a name ending in {' or '.join(SUFFIXES)}")


def settings_of(
    model: AudioEncoder, layer: Sequence[int] | None = None, pooling: str = "concat", hop_ms: float | None = None
) -> dict[str, Any]:
    """What a reader of embeddings needs to know of how they were made."""
    times_ms = model.step_grid(hop_ms).times_ms(2, model.card.front_end)
    return {
        "melmask": __version__,
        "model": model.name,
        "layer": layer,
        "pooling": pooling,
        "dimensions": model.embedding_size(pooling, layer),
        "first_ms": float(times_ms[0]),
        "step_ms": float(times_ms[1] - times_ms[0]),
        "front_end": to_dict(model.card.front_end),
        "statistics": to_dict(model.card.statistics),
    }


def write_embeddings(
    path: Path, results: Iterable[FileEmbedding], settings: dict[str, Any], keep_frames: bool
) -> list[FileEmbedding]:
    """Write the results as they come; returns those that failed, which `<path>.failed.csv` lists too.

    Raises:
        OutputError: another suffix, or a place that cannot be written to.
    """
    check_table_path(path)
    failed: list[FileEmbedding] = []

    def good() -> Iterable[FileEmbedding]:
        for result in results:
            if result.error is None:
                yield result
            else:
                failed.append(result)

    with atomic_write(path) as file:
        (_write_parquet if path.suffix == ".parquet" else _write_npz)(file, good(), settings, keep_frames)
    failures = path.with_name(path.name + ".failed.csv")
    failures.unlink(missing_ok=True)
    if failed:
        with atomic_write(failures, "w") as file:
            csv.writer(file).writerows([("path", "reason"), *((str(f.path), f.error) for f in failed)])
    return failed


def _write_parquet(file: Any, results: Iterable[FileEmbedding], settings: dict[str, Any], keep_frames: bool) -> None:
    vector = pa.list_(pa.float32(), settings["dimensions"])
    fields = [("path", pa.string()), ("duration_s", pa.float64()), ("scene", vector)]
    if keep_frames:
        fields.append(("frames", pa.list_(vector)))
    schema = pa.schema(fields).with_metadata({"melmask": json.dumps(settings)})
    with pq.ParquetWriter(file, schema) as writer:
        rows: list[FileEmbedding] = []
        for result in results:
            rows.append(result)
            if len(rows) == _ROWS_PER_GROUP:
                writer.write_table(_arrow_table(rows, schema))
                rows = []
        if rows:
            writer.write_table(_arrow_table(rows, schema))


def _arrow_table(rows: list[FileEmbedding], schema: pa.Schema) -> pa.Table:
    dimensions = schema.field("scene").type.list_size

    def vectors(arrays: list[Any]) -> pa.Array:
        flat = np.concatenate([np.reshape(a, -1) for a in arrays])
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dimensions)

    columns = [
        pa.array([str(row.path) for row in rows]),
        pa.array([row.duration_s for row in rows]),
        vectors([row.scene for row in rows]),
    ]
    if "frames" in schema.names:
        frames = [row.frames for row in rows if row.frames is not None]
        offsets = np.cumsum([0, *(len(f) for f in frames)], dtype=np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), vectors(frames)))
    return pa.Table.from_arrays(columns, schema=schema)


def _write_npz(file: Any, results: Iterable[FileEmbedding], settings: dict[str, Any], keep_frames: bool) -> None:
    rows = list(results)
    scenes = [row.scene for row in rows if row.scene is not None]
    arrays = {
        "path": np.array([str(row.path) for row in rows]),
        "duration_s": np.array([row.duration_s for row in rows]),
        "scene": np.stack(scenes) if scenes else np.zeros((0, settings["dimensions"]), np.float32),
        "settings": np.array(json.dumps(settings)),
    }
    if keep_frames:
        frames = [row.frames for row in rows if row.frames is not None]
        arrays["frames"] = np.concatenate(frames) if frames else np.zeros((0, settings["dimensions"]), np.float32)
        arrays["frame_offsets"] = np.cumsum([0, *(len(f) for f in frames)])
    np.savez(file, **arrays)
