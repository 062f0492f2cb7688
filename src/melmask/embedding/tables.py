"""Embeddings on disk: one Parquet or NumPy file, self-describing, written part by part so that a job can be resumed.

Parquet: a file has one row, with path, duration_s, scene (D float32), note and, if kept, first_step and frames (steps x
D). If each channel is a clip, it has a row for each, with the channel's number. If any sound of the job is a part of a
file, all rows also have start_s and end_s (null for the file's own end). What is said of files below then holds of
parts.

The settings are JSON in the schema's metadata under `melmask`. The frames of a long file lie in several rows, one after
another, and each row has the file's path, duration and scene. first_step is the number of a row's first step; it is 0
where a file begins.

npz: the arrays are path, duration_s, scene (files, D), note, and, where needed, channel, and frames (all steps, D) with
frame_offsets (files + 1,). The settings are a JSON string. In both formats, step k is centered at first_ms + k *
step_ms.

While the job runs, `<name>.parts/part-*.parquet` hold what is done. A part has `FILES_PER_PART` files, also those that
failed, with their `error`. A file's `last` row has its duration and scene, or the error. A part appears whole or not at
all. At the end the parts are merged and removed. Parquet is written and read one row group at a time, so that frames of
any length fit in memory. An npz file has to be put together in memory.
"""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.audio.parts import Sound, sounds_of
from melmask.config import EACH, MEAN, FrontEndConfig, Reading, Statistics
from melmask.config_text import from_dict, to_dict
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import FileEmbedding
from melmask.errors import ConfigError, InputError, OutputError
from melmask.system.arrays import names_of_arrays, read_arrays
from melmask.system.files import (
    atomic_write,
    changed_since,
    claimed,
    ensure_folder,
    remove_partial,
    write_csv,
    write_json,
)
from melmask.system.parquet import open_parquet
from melmask.system.reading import (
    DamagedFileError,
    parse_json,
    read_json_object,
    read_text,
    reason_of,
)
from melmask.system.terminal import counted, note

SUFFIXES = (".parquet", ".npz")
FILES_PER_PART = 512
_ROW_GROUP_BYTES = 12 << 20
"""Rows are written together once their vectors fill this. A full row of a long file (16 MB) fills it alone."""
_KEY = b"melmask"
"""Where Parquet's metadata hold the settings."""


def check_suffix(path: Path) -> None:
    """Raise OutputError unless the name of a table ends in a known suffix."""
    if path.suffix not in SUFFIXES:
        raise OutputError(f"--out is {path}; expected a name ending in {' or '.join(SUFFIXES)}")


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """How embeddings were made. Two jobs with equal settings would write equal tables.

    Tables and the parts of a job hold the settings as JSON, under these names and in this order.
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
    channel: str = MEAN
    expand: float = 1.0
    segments: bool = False
    """Whether any sound is a part of a file."""
    unit_ms: float | None = field(default=None, compare=False)
    """How long the units are that the model hears at once, which the first frame vector begins; None without frame
    vectors, and in tables of earlier versions, which are as good otherwise."""

    @property
    def reading(self) -> Reading:
        """How the files are read."""
        return Reading(channel=self.channel, expand=self.expand)

    @classmethod
    def from_json(cls, text: str | bytes) -> "TableSettings":
        """Read what `to_json` returned.

        Raises:
            ValueError, TypeError, KeyError, ConfigError: the text is something else.
        """
        values = dict(parse_json(text))
        values["front_end"] = from_dict(FrontEndConfig, values["front_end"])
        values["statistics"] = from_dict(Statistics, values["statistics"])
        return cls(**values)

    def to_json(self) -> str:
        """Return the settings as a JSON object, without what earlier versions did not know, unless it is used."""
        return json.dumps({k: v for k, v in to_dict(self).items() if k not in _LATER or v != _LATER[k]})


_LATER = {**to_dict(Reading()), "segments": False, "unit_ms": None}
"""Settings that earlier versions did not have and whose values for them are these."""


class TableJob:
    """The parts of one table. The job knows which parts are done, writes the others and merges all of them.

    Attributes: `complete` (whether the whole table is there already), `settings`.

    Raises:
        OutputError: `path` cannot be written to, or has the parts of a job with other settings or files.
    """

    def __init__(self, path: Path, paths: Sequence[Path | Sound], settings: TableSettings):
        check_suffix(path)
        self._path, self._sounds, self.settings = path, sounds_of(paths), settings
        # Kept here, because a job may be sent to other processes.
        self._files_per_part = FILES_PER_PART
        self._folder, self._merged = path.with_name(path.name + ".parts"), False
        self.complete = path.exists() and read_settings(path) == settings and rows_of(path) is not None
        if not self.complete:
            self._begin(ensure_folder(self._folder) / "job.json")

    def _begin(self, job: Path) -> None:
        """Write the settings of the parts to `job`, or check that the settings that are there already are the same."""
        if not job.exists():
            write_json(job, to_dict(self.settings))
            return
        try:
            begun = {**_LATER, "unit_ms": self.settings.unit_ms, **read_json_object(job)}
        except (OSError, DamagedFileError) as error:
            raise OutputError(
                f"{job} is damaged ({reason_of(error)}); delete {self._folder} or use another --out"
            ) from error
        wrong = [key for key, value in to_dict(self.settings).items() if begun.get(key) != value]
        if wrong and not any(self._folder.glob("part-*")):
            # That job has done nothing yet.
            write_json(job, to_dict(self.settings))
        elif wrong:
            # Where the number of files differs, their digest differs as well. One word is enough for both.
            what = ", ".join(dict.fromkeys(key.removesuffix("_sha256") for key in wrong))
            raise OutputError(f"{self._folder} belongs to a job with another {what}; delete it or use another --out")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other jobs from writing the parts; remove the parts once they are merged.

        Raises:
            OutputError: another job is writing them.
        """
        try:
            with claimed(self._folder):
                # A kill during the merge has left a table that is as large as this one.
                for name in (self._path.name, f"{self._path.name}.failed.csv"):
                    remove_partial(self._path.parent, name)
                yield
        finally:
            # The lock is released before this. On network file systems an open file keeps its folder.
            if self._merged:
                shutil.rmtree(self._folder, ignore_errors=True)

    def todo(self) -> list[int]:
        """Return the numbers of the parts that are not there yet.

        Parts that are damaged, and parts with files that have changed since, are set aside and reported.
        """
        for number, part in enumerate(self._parts()):
            if not part.exists():
                continue
            if not self._is_whole(number):
                self._set_aside(part)
                note(f"{part} is damaged or cut off; it is set aside, and its files are embedded again")
            elif changed := self._changed_since(part, number):
                self._set_aside(part)
                note(f"{counted(changed, 'file')} of {part} have changed since; its files are embedded again")
        return [number for number, part in enumerate(self._parts()) if not part.exists()]

    def _changed_since(self, part: Path, number: int) -> int:
        made_s = part.stat().st_mtime
        return sum(changed_since(path, made_s) for path in {sound.path for sound in self.sounds_of([number])})

    def _is_whole(self, number: int) -> bool:
        """Tell whether a part can be opened and has the results of its sounds; their vectors are not read."""
        sounds = self.sounds_of([number])
        try:
            # A last row for each sound, and as many others as its frames need: no bound for these is known.
            return len(self._ends(self._part(number), sounds)) == len(sounds)
        except (OSError, ValueError, pa.ArrowException):
            return False

    def _ends(self, part: Path, sounds: Sequence[Sound]) -> list[list[dict[str, Any]]]:
        """Return the last row of each channel of each sound in a part, without their vectors.

        Raises:
            OSError, ValueError, pa.ArrowException: the part is damaged, or has other sounds.
        """
        with open_parquet(part) as stored:
            if not stored.schema_arrow.equals(_part_schema(self.settings)):
                raise DamagedFileError("it has other columns")
            channel = ["channel"] if self.settings.channel == EACH else []
            rows = stored.read(columns=["path", "duration_s", "error", "last", *channel]).to_pylist()
        ends: list[list[dict[str, Any]]] = []
        for row in rows:
            if row["last"] is None:
                raise DamagedFileError("a row does not say whether it is a last one")
            if row["last"]:
                # Where each channel gives a row, a sound begins with channel 1.
                if row.get("channel", 1) == 1:
                    ends.append([])
                ends[-1].append(row)
        if [of_sound[0]["path"] for of_sound in ends] != [str(sound.path) for sound in sounds]:
            raise DamagedFileError("it has other files")
        return ends

    def _set_aside(self, part: Path) -> None:
        part.replace(part.with_name(f"damaged-{part.name}"))

    def sounds_of(self, parts: Sequence[int]) -> list[Sound]:
        """Return the sounds of some parts, in order."""
        size = self._files_per_part
        return [sound for k in parts for sound in self._sounds[k * size : (k + 1) * size]]

    def write(self, parts: Sequence[int], results: Iterable[FileEmbedding]) -> float:
        """Write `parts`; return how many seconds of sound they hold.

        `results` are those of `sounds_of(parts)`, in the same order. They are taken one at a time, as they are written.
        """
        rows, sound_s, schema = iter(results), 0.0, _part_schema(self.settings)
        for part in parts:
            files, group, size = len(self.sounds_of([part])), [], 0
            with atomic_write(self._part(part)) as file, _parquet_writer(file, schema) as writer:
                while files:
                    group.append(row := next(rows))
                    files -= row.last and not row.channels_left
                    sound_s += row.duration_s
                    size += sum(array.nbytes for array in (row.scene, row.frames) if array is not None)
                    if size >= _ROW_GROUP_BYTES or not files:
                        writer.write_table(_arrow_table(group, self.settings))
                        group, size = [], 0
        return sound_s

    def merge(self) -> tuple[list[Sound], list[Sound]]:
        """Write the table from its parts; return the sounds that failed, and the parts that their file cut short.

        The file `<name>.failed.csv` lists those that failed, with the reason. If each channel is a clip, a sound has
        failed if all of its channels have; of another one, the file lists each channel that failed.

        Raises:
            InputError: no file could be embedded.
            OutputError: a part is damaged; it is set aside, so that the next job embeds its files again.
        """
        ends: list[list[dict[str, Any]]] = []
        for number, part in enumerate(self._parts()):
            with self._damage_set_aside(part):
                ends += self._ends(part, self.sounds_of([number]))
        failed: list[Sound] = []
        reasons: list[tuple[Sound, str]] = []
        for sound, of_sound in zip(self._sounds, ends, strict=True):
            errors = [row["error"] for row in of_sound if row["error"]]
            if len(errors) == len(of_sound):
                failed.append(sound)
                errors = ["; ".join(dict.fromkeys(errors))]
            reasons += [(sound, error) for error in errors]
        if len(failed) == len(ends):
            # Without its parts the job starts afresh when the files have been repaired.
            self._merged = True
            raise InputError(f"none of {counted(len(failed), 'file')} could be embedded; the first: {reasons[0][1]}")
        with atomic_write(self._path) as file:
            good = (table for part in self._parts() for table in self._good_rows(part))
            if self._path.suffix == ".parquet":
                with _parquet_writer(file, _schema(self.settings)) as writer:
                    for table in good:
                        # A table without rows, all of whose files failed, would become an empty row group.
                        if len(table):
                            writer.write_table(table)
            else:
                _write_npz(file, good, self.settings)
        failures = _failures_of(self._path)
        failures.unlink(missing_ok=True)
        if reasons:
            times = ("start_s", "end_s") if self.settings.segments else ()
            rows_of_failed = ((sound.path, *sound.times[: len(times)], reason) for sound, reason in reasons)
            write_csv(failures, [("path", *times, "reason"), *rows_of_failed])
        self._merged = True
        # Embeddings count time in hops, which last less where the sound was played slower.
        hop_s = self.settings.front_end.hop_ms / self.settings.expand / 1000
        read = [
            (sound, row["duration_s"])
            for sound, of_sound in zip(self._sounds, ends, strict=True)
            for row in of_sound
            if not row["error"]
        ]
        return failed, list(dict.fromkeys(sound for sound, s in read if sound.shortened(s, hop_s)))

    def _good_rows(self, part: Path) -> Iterator[pa.Table]:
        rows = _good_rows(part, _schema(self.settings))
        while True:
            with self._damage_set_aside(part):
                table = next(rows, None)
            if table is None:
                return
            yield table

    @contextmanager
    def _damage_set_aside(self, part: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            self._set_aside(part)
            raise OutputError(
                f"{part} is damaged ({reason_of(error)}) and is set aside; run the same command again to embed its "
                "files again"
            ) from error

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.parquet"

    def _parts(self) -> list[Path]:
        return [self._part(number) for number in range(-(-len(self._sounds) // self._files_per_part))]


WriteParts = Callable[[AudioEncoder, FeatureChoice, TableJob], float]
"""A function that writes the parts of a job that are not there yet, and returns how many seconds of sound they hold."""


def read_settings(path: Path) -> TableSettings | None:
    """Return the settings in a table; None if melmask did not write it, or it is damaged."""
    try:
        if path.suffix == ".npz":
            (text,) = read_arrays(path, ["settings"])
            return TableSettings.from_json(str(text))
        with open_parquet(path) as stored:
            return TableSettings.from_json((stored.schema_arrow.metadata or {})[_KEY])
    except (OSError, ValueError, KeyError, TypeError, ConfigError, pa.ArrowException):
        return None


def digest_of_sounds(paths: Sequence[Path | Sound]) -> str:
    """Return a digest of a list of files and parts of files. It tells whether two jobs have the same."""
    return hashlib.sha256("\n".join(sound.key for sound in sounds_of(paths)).encode()).hexdigest()


_NAMES = ("path", "start_s", "end_s")
"""Columns that tell the sounds of a table apart, as far as it has them."""


def rows_of(path: Path) -> int | None:
    """Return how many sounds a table holds; None if it is damaged."""
    try:
        return len(set(_columns_of(path, _NAMES)))
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return None


def channels_without_rows(path: Path, failed: int) -> int:
    """Return how many channels failed of sounds that have others in the table, which lacks `failed` whole sounds."""
    try:
        lines = sum(1 for _ in csv.reader(io.StringIO(read_text(_failures_of(path)), newline="")))
    except (OSError, ValueError, csv.Error):
        # Without failures there is no such file.
        return 0
    return max(lines - 1 - failed, 0)


def _failures_of(path: Path) -> Path:
    return path.with_name(path.name + ".failed.csv")


def notes_in(path: Path) -> list[str]:
    """Return the notes in a table, one of each sound that has one; tables of earlier versions have none."""
    try:
        rows = _columns_of(path, (*_NAMES, "note"))
    except KeyError:
        return []
    return list({tuple(name): note for *name, note in rows if note}.values())


def _columns_of(path: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows of some columns, those of `_NAMES` only as far as the table has them.

    Raises:
        KeyError: another column is missing.
        OSError, ValueError, TypeError, pa.ArrowException: the table is damaged.
    """
    if path.suffix == ".npz":
        there = names_of_arrays(path)
    else:
        with open_parquet(path) as stored:
            there = stored.schema_arrow.names
    if missing := [name for name in names if name not in (*there, "start_s", "end_s")]:
        raise KeyError(missing[0])
    wanted = [name for name in names if name in there]
    if path.suffix == ".npz":
        rows = zip(*(array.tolist() for array in read_arrays(path, wanted)), strict=True)
        # The end of a part without an end of its own is NaN, which no two rows would share.
        return [tuple(None if cell != cell else cell for cell in row) for row in rows]
    with open_parquet(path) as stored:
        table = stored.read(columns=wanted)
    return list(zip(*(table[name].to_pylist() for name in wanted), strict=True))


def _schema(settings: TableSettings) -> pa.Schema:
    vector, scene = (pa.list_(pa.float32(), size) for size in (settings.dimensions, settings.scene_dimensions))
    times = [("start_s", pa.float64()), ("end_s", pa.float64())] if settings.segments else []
    fields = [("path", pa.string()), *times, ("duration_s", pa.float64()), ("scene", scene)]
    if settings.channel == EACH:
        fields.insert(1, ("channel", pa.int64()))
    if settings.frames:
        fields += [("first_step", pa.int64()), ("frames", pa.list_(vector))]
    fields.append(("note", pa.string()))
    return pa.schema(fields).with_metadata({_KEY: settings.to_json()})


def _part_schema(settings: TableSettings) -> pa.Schema:
    return _schema(settings).append(pa.field("error", pa.string())).append(pa.field("last", pa.bool_()))


def _arrow_table(rows: list[FileEmbedding], settings: TableSettings) -> pa.Table:
    """Return rows of a part. A row without a scene gets zeros, which `_good_rows` replaces."""
    size, scene_size = settings.dimensions, settings.scene_dimensions

    def vectors(arrays: list[np.ndarray], dimensions: int) -> pa.Array:
        flat = np.concatenate([np.zeros(0, np.float32), *(np.reshape(a, -1) for a in arrays)])
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dimensions)

    columns = [
        pa.array([str(row.path) for row in rows], pa.string()),
        *(pa.array([row.sound.times[k] for row in rows], pa.float64()) for k in range(2 * settings.segments)),
        pa.array([row.duration_s for row in rows], pa.float64()),
        vectors([np.zeros(scene_size, np.float32) if row.scene is None else row.scene for row in rows], scene_size),
    ]
    if settings.frames:
        frames = [np.zeros((0, size), np.float32) if row.frames is None else row.frames for row in rows]
        # Arrow keeps the frames of all rows in one array, and where each row's begin.
        offsets = np.cumsum([0, *(len(f) for f in frames)], dtype=np.int32)
        columns.append(pa.array([row.first_step for row in rows], pa.int64()))
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), vectors(frames, size)))
    if settings.channel == EACH:
        columns.insert(1, pa.array([row.channel for row in rows], pa.int64()))
    columns.append(pa.array([row.note for row in rows], pa.string()))
    columns += [pa.array([row.error for row in rows], pa.string()), pa.array([row.last for row in rows], pa.bool_())]
    return pa.Table.from_arrays(columns, schema=_part_schema(settings))


def _good_rows(part: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a part's readable clips by row group. Each row gets its clip's duration, scene and note."""
    with open_parquet(part) as file:
        numbers = range(file.num_row_groups)
        # Parts of earlier versions have no notes.
        of_clip = [name for name in ("duration_s", "scene", "note") if name in file.schema_arrow.names]
        small = (file.read_row_group(number, [*of_clip, "error", "last"]) for number in numbers)
        files = pa.concat_tables(rows.filter(rows["last"]) for rows in small).combine_chunks()
        closed = 0
        for number in numbers:
            table = file.read_row_group(number)
            # The file of a row is the number of files that ended in earlier rows.
            last = table["last"].to_numpy().astype(np.int64)
            of_file = files.take(pa.array(closed + np.cumsum(last) - last))
            closed += int(last.sum())
            for name in of_clip:
                table = table.set_column(table.column_names.index(name), name, of_file[name])
            if "note" not in of_clip:
                table = table.append_column("note", pa.nulls(len(table), pa.string()))
            # The same name is used again, so that these rows are freed before the next are read.
            table = table.filter(of_file["error"].is_null()).select(schema.names)
            yield table


def _parquet_writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    # Floats do not repeat. A dictionary of them would take twenty times as long, and a gigabyte.
    return pq.ParquetWriter(file, schema, use_dictionary=["path"])


def _write_npz(file: IO[bytes], tables: Iterable[pa.Table], settings: TableSettings) -> None:
    table = pa.concat_tables(list(tables)).combine_chunks()
    frames = {}
    if settings.frames:
        # `begins` are the rows where a file begins; `ends` are the steps where a row begins, and the end of all.
        begins = np.flatnonzero(table["first_step"].to_numpy() == 0)
        kept = table["frames"].combine_chunks()
        ends = np.cumsum([0, *kept.value_lengths().to_pylist()])
        frames["frames"] = kept.flatten().flatten().to_numpy().reshape(-1, settings.dimensions)
        frames["frame_offsets"] = np.append(ends[begins], ends[-1])
        table = table.drop_columns(["frames"]).take(pa.array(begins))
    arrays = {
        "path": np.array(table["path"].to_pylist()),
        # The end of a part without an end of its own is NaN.
        **{name: table[name].to_numpy() for name in ("start_s", "end_s") if settings.segments},
        "duration_s": table["duration_s"].to_numpy(),
        "scene": table["scene"].combine_chunks().flatten().to_numpy().reshape(-1, settings.scene_dimensions),
        "note": np.array([note or "" for note in table["note"].to_pylist()]),
        "settings": np.array(settings.to_json()),
    }
    if settings.channel == EACH:
        arrays["channel"] = table["channel"].to_numpy()
    np.savez(file, **arrays, **frames)
