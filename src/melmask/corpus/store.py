"""The on-disk store of a corpus' log-mels (docs/formats.md): flat shards of frames plus an index a shard.

    store.json              front end, statistics, totals; it is written last
    shard-00000.f16         float16, little-endian, time-major (frames, bands), clips one after another
    shard-00000.parquet     a row for each clip: path, first_frame, frames, duration_s, error (null if it was read), and
                            where they are needed: start_s and end_s (of parts of files), channel (of files that give a
                            clip for each), note
    failed.csv              path and reason of the files that could not be read
    notes.csv               path and note of the files with something to know of, if there are any

A shard counts when its index is there. An index is written only after its data is safely on disk.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.audio.parts import Sound
from melmask.audio.statistics import Moments
from melmask.config import FrontEndConfig, Reading, Statistics
from melmask.config_text import differing, from_dict, to_dict
from melmask.errors import ConfigError, InputError, StoreError
from melmask.system.files import atomic_write, check_nobodys, output_error, write_csv, write_json
from melmask.system.parquet import open_parquet
from melmask.system.reading import (
    DamagedFileError,
    NewerVersionError,
    check_regular,
    check_version,
    parse_json,
    read_json_object,
    reason_of,
)
from melmask.system.terminal import counted, note

FORMAT = "melmask-store"
VERSION = 1
NOTES = "notes.csv"
_DTYPE = np.dtype("<f2")
_MOST_ROWS = 1 << 24
"""Rows of a shard: a gigabyte of clips of one frame has fewer."""
_MOST_FRAMES = 1 << 36
"""Frames of a clip: 20 years at a hop of 10 ms. Sums of such numbers fit 64 bits."""
_OPEN_SHARDS = 256
"""Many systems let a process open 1,024 files."""
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("first_frame", pa.int64()),
        ("frames", pa.int64()),
        ("duration_s", pa.float64()),
        ("error", pa.string()),
    ]
)
_OPTIONAL = {"start_s": pa.float64(), "end_s": pa.float64(), "channel": pa.int64(), "note": pa.string()}
"""Columns of a shard in which at least one row needs them; earlier versions ignore them. The times are null for whole
files, and the end is null for a part that ends with its file."""
_INDEX = pa.schema([*_SCHEMA, *_OPTIONAL.items()])
"""An index as it is read, with empty optional columns where it lacks them."""


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """What store.json says of a store."""

    front_end: FrontEndConfig
    files: int = 0
    failed: int = 0
    """Files that could not be read."""
    frames: int
    hours: float
    statistics: Statistics
    """Mean and standard deviation of all log-mel values, for each resolution."""
    reading: Reading = Reading()
    """How the files were read; a store of earlier versions does not say it."""

    def write(self, folder: Path) -> None:
        """Write store.json."""
        values = {**to_dict(self), "reading": self.reading.changed_facts()}
        if not values["reading"]:
            del values["reading"]
        write_json(folder / "store.json", {"format": FORMAT, "version": VERSION, **values})

    @classmethod
    def read(cls, folder: Path) -> "StoreFacts":
        """Read store.json.

        Raises:
            StoreError: the folder is no finished store, or the file is damaged or of a newer melmask.
        """
        path = folder / "store.json"
        if not path.exists():
            unfinished = any(folder.glob("shard-*")) if folder.is_dir() else False
            what = (
                "is an unfinished store; run melmask prepare again to finish it"
                if unfinished
                else "is not a store (no store.json in it); make one with melmask prepare"
            )
            raise StoreError(f"{folder} {what}")
        try:
            values = read_json_object(path)
            check_version(values, FORMAT, VERSION)
            # Later versions may add facts, which this one ignores.
            known = {field.name for field in fields(cls)}
            return from_dict(cls, {name: value for name, value in values.items() if name in known})
        except NewerVersionError as error:
            raise StoreError(f"{path}: {error}; update melmask") from error
        except (OSError, DamagedFileError, TypeError, ConfigError) as error:
            raise StoreError(
                f"{path} is damaged ({reason_of(error)}); delete it and run melmask prepare again"
            ) from error


class StoreWriter:
    """Appends clips to a store, shard by shard. If the job is killed, closed shards are kept.

    Shards whose data is missing or cut off are deleted, so that their files are read again.

    Attributes: `done_s` (the keys of the sounds that the store has already, and when it took them, in s since 1970).

    Raises:
        StoreError: the folder has shards of another front end or reading, or of a newer melmask.
        OutputError: a shard cannot be written.
    """

    def __init__(self, folder: Path, front_end: FrontEndConfig, shard_mb: int, reading: Reading = Reading()):
        self._folder = folder
        self._front_end, self._reading = front_end, reading
        self._shard_bytes = shard_mb << 20
        indexes = read_indexes(folder)
        for path, table in indexes:
            _check_same(path, table, front_end, reading)
        if not indexes and not (folder / "store.json").exists():
            check_nobodys(folder, (NOTES,))
        indexes = [(path, table) for path, table in indexes if _is_whole(path, table, front_end)]
        self.done_s: dict[str, float] = {}
        self._known_failures: set[tuple[Sound, str]] = set()
        for path, table in indexes:
            written_s = path.stat().st_mtime
            for row in table.to_pylist():
                if row["frames"]:
                    self.done_s[_sound_of(row).key] = written_s
                if row["error"]:
                    self._known_failures.add((_sound_of(row), row["error"]))
        self._shard = 1 + max((int(path.stem.split("-")[1]) for path, _ in indexes), default=-1)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._file: IO[bytes] | None = None
        self._frames = 0
        self._moments = Moments()
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        source: Sound | str,
        blocks: Iterable[np.ndarray],
        duration_s: float,
        moments: Moments,
        channel: int | None = None,
        channels_left: int = 0,
        note: str | None = None,
    ) -> None:
        """Append one clip: float16 blocks (frames, bands), of a sound, of the file of this path, or of one channel.

        Channels of a sound come one after another, `channels_left` after this one, and share a shard. So a killed job
        repeats all of them or none.
        """
        sound = source if isinstance(source, Sound) else Sound(Path(source))
        first, frames = self._frames, 0
        data_path = self._data_path()
        try:
            if self._file is None:
                self._file = data_path.with_suffix(".partial").open("wb")
            for block in blocks:
                self._file.write(np.ascontiguousarray(block, dtype=_DTYPE).data)
                frames += len(block)
        except OSError as error:
            raise output_error(data_path, error) from error
        self._frames += frames
        self._moments = self._moments.plus(moments)
        row = {**_names(sound), "first_frame": first, "frames": frames, "duration_s": duration_s, "error": None}
        self._rows.append({**row, "channel": channel, "note": note})
        if not channels_left and self._frames * self._front_end.bands * _DTYPE.itemsize >= self._shard_bytes:
            self.close_shard()

    def add_failure(self, sound: Sound, reason: str, channel: int | None = None) -> None:
        """Record a sound, or one of its channels, that could not be read, unless it failed in the same way before."""
        row = {**_names(sound), "first_frame": self._frames, "frames": 0, "duration_s": 0.0, "error": reason}
        if (_sound_of(row), reason) not in self._known_failures:
            self._rows.append({**row, "channel": channel})

    def close_shard(self) -> None:
        """Write the shard's data to disk, then its index."""
        if not self._rows:
            return
        data_path = self._data_path()
        partial = data_path.with_suffix(".partial")
        try:
            if self._file is None:
                # A shard of failures alone has no data, but a killed job may have left some under its name.
                self._file = partial.open("wb")
            # The data has to be on disk before the index, which vouches for it.
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            partial.replace(data_path)
        except OSError as error:
            raise output_error(data_path, error) from error
        facts = {
            "front_end": to_dict(self._front_end),
            "moments": self._moments.as_dict(),
            "version": VERSION,
            # Earlier versions read the mean at normal speed, and need no word of it.
            **self._reading.changed_facts(),
        }
        schema = _SCHEMA
        for name, kind in _OPTIONAL.items():
            if any(row.get(name) is not None for row in self._rows):
                schema = schema.append(pa.field(name, kind))
        schema = schema.with_metadata({FORMAT: json.dumps(facts)})
        with atomic_write(data_path.with_suffix(".parquet")) as file:
            pq.write_table(pa.Table.from_pylist(self._rows, schema), file)
        self._shard += 1
        self._begin_shard()

    def close(self) -> None:
        """Close the file of a shard that an error has left unfinished."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def finish(self) -> StoreFacts:
        """Close the last shard, add up, write store.json, failed.csv and notes.csv; return what store.json says.

        Raises:
            InputError: no file could be read, or all of them are silent.
        """
        self.close_shard()
        moments = Moments()
        good: dict[tuple[Sound, int | None], float] = {}
        bad: dict[tuple[Sound, int | None], str] = {}
        notes: dict[Sound, str] = {}
        frames = 0
        for _, table in read_indexes(self._folder):
            moments = moments.plus(Moments.from_dict(_facts(table)["moments"]))
            for row in table.to_pylist():
                if row["error"] is None:
                    good[_sound_of(row), row["channel"]] = row["duration_s"]
                    frames += row["frames"]
                    if row["note"]:
                        notes[_sound_of(row)] = row["note"]
                else:
                    bad[_sound_of(row), row["channel"]] = row["error"]
        sounds = {sound for sound, _ in good}
        # A file that failed in an earlier job may have been repaired since, but not a channel beside good ones.
        reasons = [(sound, why) for (sound, channel), why in bad.items() if channel is not None or sound not in sounds]
        failures = self._folder / "failed.csv"
        times = ("start_s", "end_s") if any(sound.is_part for sound, _ in (*good, *bad)) else ()

        def rows(of: Iterable[tuple[Sound, str]]) -> Iterator[tuple[object, ...]]:
            return ((sound.path, *sound.times[: len(times)], text) for sound, text in of)

        write_csv(failures, [("path", *times, "reason"), *rows(reasons)])
        (self._folder / NOTES).unlink(missing_ok=True)
        if notes:
            write_csv(self._folder / NOTES, [("path", *times, "note"), *rows(notes.items())])
        failed = {sound for sound, _ in reasons} - sounds
        if not good:
            raise InputError(f"none of {counted(len(failed), 'file')} could be read; the reasons are in {failures}")
        facts = StoreFacts(
            front_end=self._front_end,
            files=len(sounds),
            failed=len(failed),
            frames=frames,
            hours=sum(good.values()) / 3600,
            statistics=moments.statistics(),
            reading=self._reading,
        )
        facts.write(self._folder)
        return facts

    def _data_path(self) -> Path:
        return self._folder / f"shard-{self._shard:05d}.f16"


def _names(sound: Sound) -> dict[str, Any]:
    """What a row of an index says of its sound; a start that is no number stands for times that are none."""
    start_s, end_s = sound.times if sound.is_part else (None, None)
    return {"path": str(sound.path), "start_s": math.nan if sound.fault else start_s, "end_s": end_s}


def _sound_of(row: dict[str, Any]) -> Sound:
    path, start_s = Path(row["path"]), row["start_s"] or 0.0
    return Sound(path, fault=row["error"]) if math.isnan(start_s) else Sound(path, start_s, row["end_s"])


@runtime_checkable
class Corpus(Protocol):
    """Clips of log-mels that a run learns from: a `Store`, or sounds that are drawn (`corpus/synthetic.py`)."""

    @property
    def folder(self) -> Path | None:
        """Where it lies, if it lies anywhere."""

    @property
    def front_end(self) -> FrontEndConfig:
        """How its log-mels were made."""

    @property
    def reading(self) -> Reading:
        """How its files were read."""

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of its log-mels."""

    @property
    def frames(self) -> np.ndarray:
        """The number of frames of each clip, (clips,)."""

    @property
    def sha256(self) -> str:
        """A digest of what its crops depend on."""

    def __len__(self) -> int: ...

    def read_into(self, out: np.ndarray, clip: int, first_frame: int) -> None:
        """Fill `out` (frames, bands), float16, with the clip's frames from `first_frame` on."""


class Store:
    """A finished store, from which crops of clips are read.

    Attributes: `front_end`, `reading`, `statistics`, `frames` (clips,), the number of frames of each clip.

    Raises:
        StoreError: the folder is not a finished store, or a shard is missing or cut off.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        facts = StoreFacts.read(folder)
        self.front_end, self.reading, self.statistics = facts.front_end, facts.reading, facts.statistics
        indexes = read_indexes(folder)
        for path, table in indexes:
            size, expected = _data_bytes(path, table, self.front_end)
            if size != expected:
                raise StoreError(
                    f"{path.with_suffix('.f16')} has {size} bytes, expected {expected}; prepare the store again"
                )
        self._paths = [path.with_suffix(".f16") for path, _ in indexes]
        shards = np.repeat(np.arange(len(indexes)), np.array([len(table) for _, table in indexes], dtype=np.int64))
        rows = pa.concat_tables([_SCHEMA.empty_table(), *(table.select(_SCHEMA.names) for _, table in indexes)])
        # Files that could not be read have rows of zero frames, and are no clips.
        frames = rows["frames"].to_numpy()
        clips = frames > 0
        self._shard_of, self._first_frame = shards[clips], rows["first_frame"].to_numpy()[clips]
        self.frames: np.ndarray = frames[clips]
        present = int(self.frames.sum())
        if not present or present != facts.frames:
            raise StoreError(
                f"{folder} has shards of {present} frames, expected {facts.frames} (shards lost, or more files "
                "being added); prepare it again"
            )
        # Shards stay open for the next crop. A store may have more shards than a process may have open files, so the
        # least recently used shard is closed first.
        self._open = lru_cache(_OPEN_SHARDS)(_OpenShard)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def sha256(self) -> str:
        """A digest of what the crops depend on: front end, statistics, and the clips' lengths in their order."""
        facts = json.dumps([to_dict(self.front_end), to_dict(self.statistics)])
        return hashlib.sha256(facts.encode() + self.frames.astype("<i8").tobytes()).hexdigest()

    def read_into(self, out: np.ndarray, clip: int, first_frame: int) -> None:
        """Fill `out` (frames, bands), float16 and C-contiguous, with the clip's frames from `first_frame` on.

        Raises:
            StoreError: the shard is shorter than its index says.
        """
        # `preadv` takes the place as an argument, so that threads can share an open file.
        start = (self._first_frame[clip] + first_frame) * out.shape[1] * _DTYPE.itemsize
        shard = self._open(self._paths[self._shard_of[clip]])
        if shard.read_into(out, int(start)) != out.nbytes:
            raise StoreError(f"{self._paths[self._shard_of[clip]]} is cut off; prepare the store again")


class _OpenShard:
    """An open file that closes itself after its last use. A reader may still use it when the cache drops it."""

    def __init__(self, path: Path):
        check_regular(path)
        self._file = path.open("rb", buffering=0)
        self._seeking = threading.Lock()

    def read_into(self, out: np.ndarray, start: int) -> int:
        """Fill `out` with the bytes from `start` on; return how many there were. Many threads may call this at once."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [out.data], start)
        # Windows reads from the file's one position only, which a thread must have for itself.
        with self._seeking:
            self._file.seek(start)
            return self._file.readinto(out.data.cast("B"))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def read_indexes(folder: Path) -> list[tuple[Path, pa.Table]]:
    """Return the path and the index of each closed shard, in order.

    Raises:
        StoreError: an index is damaged, or says what cannot be.
    """
    indexes = []
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            indexes.append((path, _read_index(path)))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise StoreError(
                f"{path} is not a shard's index ({reason_of(error)}); delete it and prepare again"
            ) from error
    return indexes


def _read_index(path: Path) -> pa.Table:
    """Read the index of a shard, whose rows must follow each other in the data file as `StoreWriter` puts them."""
    if not path.stem.removeprefix("shard-").isdecimal():
        raise DamagedFileError("its name has no number")
    with open_parquet(path) as stored:
        # A row of a small file may unpack to any number of equal rows.
        if stored.metadata.num_rows > _MOST_ROWS:
            raise DamagedFileError(f"it has {stored.metadata.num_rows} rows")
        table = stored.read(columns=[name for name in _INDEX.names if name in stored.schema_arrow.names])
    for name in _OPTIONAL.keys() - set(table.schema.names):
        table = table.append_column(name, pa.nulls(len(table)))
    table = table.select(_INDEX.names).cast(_INDEX.with_metadata(table.schema.metadata))
    if empty := [name for name in _SCHEMA.names if name != "error" and table[name].null_count]:
        raise DamagedFileError(f"its column {empty[0]} has empty values")
    frames, durations_s = table["frames"].to_numpy(), table["duration_s"].to_numpy()
    if not (np.all((frames >= 0) & (frames <= _MOST_FRAMES)) and np.all(np.isfinite(durations_s) & (durations_s >= 0))):
        raise DamagedFileError("its counts of frames or its durations cannot be")
    ends = np.cumsum(frames)
    if not np.array_equal(table["first_frame"].to_numpy(), ends - frames):
        raise DamagedFileError("its clips do not follow each other")
    facts = _facts(table)
    moments = Moments.from_dict(facts["moments"])
    parts = (moments, *moments.further)
    numbers = [value for part in parts for value in (part.count, part.mean, part.squares)]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise DamagedFileError("its statistics are not finite numbers")
    if any(part.count < 0 or part.squares < 0 or (part.count > 0) != bool(ends[-1:].sum()) for part in parts):
        raise DamagedFileError("its statistics do not fit its frames")
    if type(facts["version"]) is not int:
        raise DamagedFileError("its version is no whole number")
    # A shard without a readable file has the moments of none.
    if len(parts) != from_dict(FrontEndConfig, facts["front_end"]).resolutions and moments.count:
        raise DamagedFileError("its statistics are not those of its resolutions")
    return table


def _facts(table: pa.Table) -> dict[str, Any]:
    facts = parse_json((table.schema.metadata or {})[FORMAT.encode()])
    if not isinstance(facts, dict):
        raise DamagedFileError("its facts are no JSON object")
    return facts


def _data_bytes(index: Path, table: pa.Table, front_end: FrontEndConfig) -> tuple[int, int]:
    """Return the size of a shard's data in bytes: the true one, and the one that its index implies."""
    data = index.with_suffix(".f16")
    frames = int(table["frames"].to_numpy().sum())
    return data.stat().st_size if data.is_file() else 0, frames * front_end.bands * _DTYPE.itemsize


def _is_whole(index: Path, table: pa.Table, front_end: FrontEndConfig) -> bool:
    """Return whether a shard's data is complete. If it is not, the shard is deleted."""
    size, expected = _data_bytes(index, table, front_end)
    if size != expected:
        note(
            f"{index.with_suffix('.f16')} has {size:,} bytes instead of {expected:,}, so its "
            f"{counted(table.num_rows, 'clip')} must be prepared again: give all sources of the store"
        )
        index.unlink()
        index.with_suffix(".f16").unlink(missing_ok=True)
    return size == expected


def begun_front_end(folder: Path) -> FrontEndConfig | None:
    """Return the front end of a store that has been begun or finished; None if there is none yet.

    Raises:
        StoreError: the index of a shard is damaged.
    """
    for _, table in read_indexes(folder)[:1]:
        return from_dict(FrontEndConfig, _facts(table)["front_end"])
    return None


def _check_same(path: Path, table: pa.Table, front_end: FrontEndConfig, reading: Reading) -> None:
    version = _facts(table)["version"]
    if version > VERSION:
        raise StoreError(f"{path} is {FORMAT} version {version}; this writes {VERSION}: update melmask")
    found = from_dict(FrontEndConfig, _facts(table)["front_end"])
    if found != front_end:
        raise StoreError(
            f"{path.parent} was made with another front end ({differences(found, front_end)}); "
            "use the same settings or another --out"
        )
    for name, wanted in to_dict(reading).items():
        if (there := _facts(table).get(name, getattr(Reading(), name))) != wanted:
            raise StoreError(
                f"{path.parent} was made with --{name} {there}, not {wanted}; use the same, or another --out"
            )


def differences(found: FrontEndConfig, expected: FrontEndConfig) -> str:
    """Say what differs between two front ends: 'hop_samples 160 there, 320 asked for'."""
    return ", ".join(f"{name} {own} there, {its} asked for" for name, own, its in differing(found, expected))
