"""Embeddings on disk: one Parquet or NumPy file, self-describing, written part by part so that a job can be resumed.

Parquet: a row a file - path, duration_s, scene (D float32) and, if kept, first_step and frames (steps x D); the
settings are JSON in the schema's metadata under `melmask`. The frames of a long file lie in several rows, one after
another, each with the file's path, duration and scene; first_step is the number of a row's first step, 0 where a file
begins. npz: arrays path, duration_s, scene (files, D) and, if kept, frames (all steps, D) with frame_offsets
(files + 1,); the settings are a JSON string. Step k is centered at first_ms + k * step_ms.

While the job runs, `<name>.parts/part-*.parquet` hold what is done, `FILES_PER_PART` files each, failed ones too with
their `error`; duration and scene, or the error, are in a file's `last` row. A part appears whole or not at all; at the
end the parts are merged and removed. Parquet is written and read a row group at a time, so that frames of any length
fit in memory; npz has to be put together there.
"""

import csv
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask import __version__
from melmask.config import FrontEndConfig, Statistics
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import FileEmbedding
from melmask.errors import ConfigError, InputError, OutputError
from melmask.settings import from_dict
from melmask.system.files import atomic_write, claimed, ensure_folder, write_json

SUFFIXES = (".parquet", ".npz")
FILES_PER_PART = 512
_ROW_GROUP_BYTES = 12 << 20
"""Rows are written together once their vectors fill this, which a full row of a long file (16 MB) does alone."""
_KEY = b"melmask"


def check_suffix(path: Path) -> None:
    """Raise OutputError unless the name of a table ends in a known suffix."""
    if path.suffix not in SUFFIXES:
        raise OutputError(f"--out is {path}; expected a name ending in {' or '.join(SUFFIXES)}")


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """What a reader of embeddings needs to know of how they were made, and what tells one job from another.

    Tables and the parts of a job hold it as JSON, under these names and in this order.
    """

    melmask: str
    model: str
    model_sha256: str
    layer: list[int] | None
    pooling: str
    scene: str
    precision: str
    normalization: str
    dimensions: int
    scene_dimensions: int
    frames: bool
    first_ms: float
    step_ms: float
    front_end: FrontEndConfig
    statistics: Statistics
    files: int
    files_sha256: str

    @classmethod
    def of(
        cls,
        model: AudioEncoder,
        paths: Sequence[Path],
        choice: FeatureChoice,
        *,
        keep_frames: bool = False,
    ) -> "TableSettings":
        """Return the settings of a table of `paths` with these features of `model`."""
        card, sha256, grid = model.card, model.sha256, model.step_grid(choice)
        first_ms, second_ms = grid.times_ms(2, card.front_end).tolist()
        return cls(
            melmask=__version__,
            model=model.name,
            model_sha256=sha256,
            layer=list(choice.layers) or None,
            pooling=choice.pooling,
            scene=choice.scene,
            precision=model.precision,
            normalization=model.normalization,
            dimensions=choice.frame_size(card.model),
            scene_dimensions=choice.scene_size(card.model),
            frames=keep_frames,
            first_ms=first_ms,
            step_ms=second_ms - first_ms,
            front_end=card.front_end,
            statistics=card.statistics,
            files=len(paths),
            files_sha256=digest_of_paths(paths),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "TableSettings":
        """Read what `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError, ConfigError: the text is not that.
        """
        values = json.loads(text)
        front_end, statistics = (
            from_dict(FrontEndConfig, values["front_end"]),
            from_dict(Statistics, values["statistics"]),
        )
        return cls(**{**values, "front_end": front_end, "statistics": statistics})

    def to_json(self) -> str:
        """Return the settings as a JSON object."""
        return json.dumps(asdict(self))


class TableJob:
    """The parts of one table: it knows which are done, writes the others and merges all.

    Raises:
        OutputError: the place cannot be written to, or holds the parts of a job with other settings or files.
    """

    def __init__(self, path: Path, paths: Sequence[Path], settings: TableSettings):
        check_suffix(path)
        self._path, self._paths, self.settings = path, paths, settings
        self._files_per_part = FILES_PER_PART  # carried along where a job is sent to other processes
        self._folder, self._merged = path.with_name(path.name + ".parts"), False
        self.complete = path.exists() and read_settings(path) == settings
        if not self.complete:
            self._begin(ensure_folder(self._folder) / "job.json")

    def _begin(self, job: Path) -> None:
        """Write what the parts are of to `job`, or check that the job that is there already is this one."""
        if not job.exists():
            write_json(job, asdict(self.settings))
            return
        try:
            begun = dict(json.loads(job.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{job} is damaged ({error}); delete {self._folder} or use another --out") from error
        wrong = [key for key, value in asdict(self.settings).items() if begun.get(key) != value]
        if wrong and not any(self._folder.glob("part-*")):
            # That job has done nothing yet.
            write_json(job, asdict(self.settings))
        elif wrong:
            # The digest of the files differs as well where their number does: one word is enough.
            what = ", ".join(dict.fromkeys(key.removesuffix("_sha256") for key in wrong))
            raise OutputError(f"{self._folder} belongs to a job with another {what}; delete it or use another --out")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other jobs from the parts; remove the parts once they are merged.

        Raises:
            OutputError: another job has them.
        """
        try:
            with claimed(self._folder):
                yield
        finally:
            # Only after the lock is released: on network file systems a file that is open keeps its folder.
            if self._merged:
                shutil.rmtree(self._folder, ignore_errors=True)

    def todo(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        parts = range(-(-len(self._paths) // self._files_per_part))
        return [part for part in parts if not self._part(part).exists()]

    def paths_of(self, parts: Sequence[int]) -> list[Path]:
        """Return the files of some parts, in order."""
        size = self._files_per_part
        return [path for k in parts for path in self._paths[k * size : (k + 1) * size]]

    def write(self, parts: Sequence[int], results: Iterable[FileEmbedding]) -> float:
        """Write `parts`; return how many seconds of sound they hold.

        `results` are those of `paths_of(parts)`, in order, taken as they are needed.
        """
        rows, sound_s, schema = iter(results), 0.0, _part_schema(self.settings)
        for part in parts:
            with atomic_write(self._part(part)) as file, _parquet_writer(file, schema) as writer:
                group: list[FileEmbedding] = []
                size = 0
                for row in _rows_of_files(rows, len(self.paths_of([part]))):
                    group.append(row)
                    sound_s += row.duration_s
                    size += _bytes_of(row)
                    if size >= _ROW_GROUP_BYTES:
                        writer.write_table(_arrow_table(group, self.settings))
                        group, size = [], 0
                if group:
                    writer.write_table(_arrow_table(group, self.settings))
        return sound_s

    def merge(self) -> list[tuple[str, str]]:
        """Write the table from its parts; return (path, reason) of the files that failed.

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
            self._merged = True
            raise InputError(f"none of the {len(failed)} files could be read; the first: {failed[0][1]}")
        with atomic_write(self._path) as file:
            good = (table for part in parts for table in _good_rows(part, _schema(self.settings)))
            if self._path.suffix == ".parquet":
                with _parquet_writer(file, _schema(self.settings)) as writer:
                    for table in good:
                        # A table without rows would become a row group without rows.
                        if len(table):
                            writer.write_table(table)
            else:
                _write_npz(file, good, self.settings)
        failures = self._path.with_name(self._path.name + ".failed.csv")
        failures.unlink(missing_ok=True)
        if failed:
            with atomic_write(failures, "w") as file:
                csv.writer(file).writerows([("path", "reason"), *failed])
        self._merged = True
        return failed

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.parquet"


WriteParts = Callable[[AudioEncoder, FeatureChoice, TableJob], float]
"""Writes the parts of a job that are not there yet; returns how many seconds of sound they hold."""


def read_settings(path: Path) -> TableSettings | None:
    """Return the settings in a table, None if it is no table of ours."""
    try:
        if path.suffix == ".npz":
            # Of a damaged file NumPy leaves open what it has opened itself.
            with path.open("rb") as file, np.load(file) as arrays:
                return TableSettings.from_json(str(arrays["settings"]))
        return TableSettings.from_json(pq.read_schema(path).metadata[_KEY])
    except (OSError, ValueError, KeyError, TypeError, EOFError, ConfigError, zipfile.BadZipFile, pa.ArrowException):
        return None


def digest_of_paths(paths: Sequence[Path]) -> str:
    """Return a digest of a list of paths, which tells one list from another."""
    return hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()


def rows_of(path: Path) -> int:
    """Return how many files a table holds."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return len(arrays["path"])
    if "first_step" in pq.read_schema(path).names:
        return int(np.sum(pq.read_table(path, columns=["first_step"])["first_step"].to_numpy() == 0))
    return pq.read_metadata(path).num_rows


def _rows_of_files(rows: Iterator[FileEmbedding], files: int) -> Iterator[FileEmbedding]:
    """Yield the rows of the next `files` files."""
    while files:
        row = next(rows)
        files -= row.last
        yield row


def _bytes_of(row: FileEmbedding) -> int:
    return sum(array.nbytes for array in (row.scene, row.frames) if array is not None)


def _schema(settings: TableSettings) -> pa.Schema:
    vector, scene = (pa.list_(pa.float32(), size) for size in (settings.dimensions, settings.scene_dimensions))
    fields = [("path", pa.string()), ("duration_s", pa.float64()), ("scene", scene)]
    if settings.frames:
        fields += [("first_step", pa.int64()), ("frames", pa.list_(vector))]
    return pa.schema(fields).with_metadata({_KEY: settings.to_json()})


def _part_schema(settings: TableSettings) -> pa.Schema:
    return _schema(settings).append(pa.field("error", pa.string())).append(pa.field("last", pa.bool_()))


def _arrow_table(rows: list[FileEmbedding], settings: TableSettings) -> pa.Table:
    """Return rows of a part; until the merge those without a scene have zeros."""
    size, scene_size = settings.dimensions, settings.scene_dimensions

    def vectors(arrays: list[Any], dimensions: int) -> pa.Array:
        flat = np.concatenate([np.zeros(0, np.float32), *(np.reshape(a, -1) for a in arrays)])
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dimensions)

    columns = [
        pa.array([str(row.path) for row in rows], pa.string()),
        pa.array([row.duration_s for row in rows], pa.float64()),
        vectors([np.zeros(scene_size, np.float32) if row.scene is None else row.scene for row in rows], scene_size),
    ]
    if settings.frames:
        frames = [np.zeros((0, size), np.float32) if row.frames is None else row.frames for row in rows]
        offsets = np.cumsum([0, *(len(f) for f in frames)], dtype=np.int32)
        columns.append(pa.array([row.first_step for row in rows], pa.int64()))
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), vectors(frames, size)))
    columns.append(pa.array([row.error for row in rows], pa.string()))
    columns.append(pa.array([row.last for row in rows], pa.bool_()))
    return pa.Table.from_arrays(columns, schema=_part_schema(settings))


def _good_rows(part: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a part's readable files, a row group at a time, each row with its file's duration and scene."""
    with pq.ParquetFile(part) as file:
        numbers = range(file.num_row_groups)
        small = (file.read_row_group(number, ["duration_s", "scene", "error", "last"]) for number in numbers)
        files = pa.concat_tables(rows.filter(rows["last"]) for rows in small).combine_chunks()
        closed = 0
        for number in numbers:
            table = file.read_row_group(number)
            last = table["last"].to_numpy().astype(np.int64)
            of_file = files.take(pa.array(closed + np.cumsum(last) - last))
            closed += int(last.sum())
            for name in ("duration_s", "scene"):
                table = table.set_column(table.column_names.index(name), name, of_file[name])
            # Under the same name, so that what was read is not held while the next is read.
            table = table.filter(of_file["error"].is_null()).select(schema.names)
            yield table


def _parquet_writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    # A dictionary of floats that do not repeat costs twenty times the time and a gigabyte.
    return pq.ParquetWriter(file, schema, use_dictionary=["path"])


def _write_npz(file: IO[bytes], tables: Iterable[pa.Table], settings: TableSettings) -> None:
    table = pa.concat_tables(list(tables)).combine_chunks()
    frames = {}
    if settings.frames:
        begins = np.flatnonzero(table["first_step"].to_numpy() == 0)
        kept = table["frames"].combine_chunks()
        ends = np.cumsum([0, *kept.value_lengths().to_pylist()])
        frames["frames"] = kept.flatten().flatten().to_numpy().reshape(-1, settings.dimensions)
        frames["frame_offsets"] = np.append(ends[begins], ends[-1])
        table = table.drop_columns(["frames"]).take(pa.array(begins))
    arrays = {
        "path": np.array(table["path"].to_pylist()),
        "duration_s": table["duration_s"].to_numpy(),
        "scene": table["scene"].combine_chunks().flatten().to_numpy().reshape(-1, settings.scene_dimensions),
        "settings": np.array(settings.to_json()),
    }
    np.savez(file, **arrays, **frames)
