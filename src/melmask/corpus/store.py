"""The on-disk store of a corpus' log-mels (docs/formats.md): flat shards of frames plus an index a shard.

    store.json              front end, statistics, totals; it is written last
    shard-00000.f16         float16, little-endian, time-major (frames, mels), clips one after another
    shard-00000.parquet     a row for each file: path, first_frame, frames, duration_s, error (null if it was read);
                            where the shard has parts of files, also start_s and end_s
    failed.csv              path and reason of the files that could not be read

A shard counts when its index is there. An index is written only after its data is safely on disk.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.audio.files import MEAN
from melmask.audio.parts import Sound
from melmask.audio.statistics import Moments
from melmask.config import FrontEndConfig, Statistics
from melmask.config_text import from_dict, to_dict
from melmask.errors import ConfigError, InputError, StoreError
from melmask.system.files import atomic_write, output_error, write_csv, write_json

FORMAT = "melmask-store"
VERSION = 1
_DTYPE = np.dtype("<f2")
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
_TIMES = pa.schema([("start_s", pa.float64()), ("end_s", pa.float64())])
"""Columns of indexes with parts of files; null for whole files, and for the end of a part that ends with its file."""


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
    """Mean and standard deviation of all log-mel values."""

    def write(self, folder: Path) -> None:
        """Write store.json."""
        write_json(folder / "store.json", {"format": FORMAT, "version": VERSION, **to_dict(self)})

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
            values = json.loads(path.read_text(encoding="utf-8"))
            kind, version = values.pop("format"), values.pop("version")
            if kind != FORMAT or version > VERSION:
                raise StoreError(f"{path} is {kind} version {version}; this reads {FORMAT} to {VERSION}")
            # Later versions may add facts, which this one ignores.
            known = {field.name for field in fields(cls)}
            return from_dict(cls, {name: value for name, value in values.items() if name in known})
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise StoreError(f"{path} is damaged; delete it and run melmask prepare again") from error


class StoreWriter:
    """Appends clips to a store, shard by shard. If the job is killed, closed shards are kept.

    Shards whose data is missing or cut off are deleted, so that their files are read again.

    Attributes: `done` (the keys of the sounds that the store has already).

    Raises:
        StoreError: the folder has shards of another front end or channel, or of a newer melmask.
        OutputError: a shard cannot be written.
    """

    def __init__(self, folder: Path, front_end: FrontEndConfig, shard_mb: int, channel: str = MEAN):
        self._folder = folder
        self._front_end, self._channel = front_end, channel
        self._shard_bytes = shard_mb << 20
        indexes = read_indexes(folder)
        for path, table in indexes:
            _check_same(path, table, front_end, channel)
        indexes = [(path, table) for path, table in indexes if _is_whole(path, table, front_end)]
        rows = [row for _, table in indexes for row in table.to_pylist()]
        self.done = {_sound_of(row).key for row in rows if row["frames"]}
        self._known_failures = {(_sound_of(row), row["error"]) for row in rows if row["error"]}
        self._shard = 1 + max((int(path.stem.split("-")[1]) for path, _ in indexes), default=-1)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._file: IO[bytes] | None = None
        self._frames = 0
        self._moments = Moments()
        self._rows: list[dict[str, Any]] = []

    def add(self, source: Sound | str, blocks: Iterable[np.ndarray], duration_s: float, moments: Moments) -> None:
        """Append one clip, a part of a file or the file of this path: float16 blocks (frames, mels)."""
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
        self._rows.append(
            {**_names(sound), "first_frame": first, "frames": frames, "duration_s": duration_s, "error": None}
        )
        if self._frames * self._front_end.mels * _DTYPE.itemsize >= self._shard_bytes:
            self.close_shard()

    def add_failure(self, sound: Sound, reason: str) -> None:
        """Record a sound that could not be read, unless it failed in the same way before."""
        row = {**_names(sound), "first_frame": self._frames, "frames": 0, "duration_s": 0.0, "error": reason}
        if (_sound_of(row), reason) not in self._known_failures:
            self._rows.append(row)

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
            "moments": asdict(self._moments),
            "version": VERSION,
            # Versions that know no channels read the mean, and need no word of it.
            **({} if self._channel == MEAN else {"channel": self._channel}),
        }
        segments = any(row["start_s"] is not None for row in self._rows)
        schema = pa.schema([*_SCHEMA, *(_TIMES if segments else ())]).with_metadata({FORMAT: json.dumps(facts)})
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
        """Close the last shard, add up, write store.json and failed.csv; return what store.json says.

        Raises:
            InputError: no file could be read, or all of them are silent.
        """
        self.close_shard()
        moments = Moments()
        good: dict[Sound, float] = {}
        bad: dict[Sound, str] = {}
        frames = 0
        for _, table in read_indexes(self._folder):
            moments = moments.plus(Moments(**_facts(table)["moments"]))
            for row in table.to_pylist():
                if row["error"] is None:
                    good[_sound_of(row)] = row["duration_s"]
                    frames += row["frames"]
                else:
                    bad[_sound_of(row)] = row["error"]
        # A file that failed in an earlier job may have been repaired since.
        bad = {sound: reason for sound, reason in bad.items() if sound not in good}
        failures = self._folder / "failed.csv"
        times = ("start_s", "end_s") if any(sound.is_part for sound in (*good, *bad)) else ()
        rows = ((sound.path, *sound.times[: len(times)], reason) for sound, reason in bad.items())
        write_csv(failures, [("path", *times, "reason"), *rows])
        if not good:
            raise InputError(f"none of the {len(bad)} files could be read; the reasons are in {failures}")
        facts = StoreFacts(
            front_end=self._front_end,
            files=len(good),
            failed=len(bad),
            frames=frames,
            hours=sum(good.values()) / 3600,
            statistics=moments.statistics(),
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


class Store:
    """A finished store, from which crops of clips are read.

    Attributes: `front_end`, `statistics`, `frames` (clips,), the number of frames of each clip.

    Raises:
        StoreError: the folder is not a finished store, or a shard is missing or cut off.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        facts = StoreFacts.read(folder)
        self.front_end, self.statistics = facts.front_end, facts.statistics
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
        """Fill `out` (frames, mels), float16 and C-contiguous, with the clip's frames from `first_frame` on.

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
        StoreError: an index is damaged.
    """
    indexes = []
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            table = pq.read_table(path)
            known = pa.schema([*_SCHEMA, *_TIMES]).with_metadata(table.schema.metadata)
            for name in _TIMES.names:
                # Indexes without parts of files do not have these.
                if name not in table.column_names:
                    table = table.append_column(name, pa.nulls(len(table), pa.float64()))
            table = table.select(known.names).cast(known)
            _facts(table)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} is not a shard's index ({type(error).__name__}); delete it and prepare again"
            ) from error
        indexes.append((path, table))
    return indexes


def _facts(table: pa.Table) -> dict[str, Any]:
    return json.loads(table.schema.metadata[FORMAT.encode()])


def _data_bytes(index: Path, table: pa.Table, front_end: FrontEndConfig) -> tuple[int, int]:
    """Return the size of a shard's data in bytes: the true one, and the one that its index implies."""
    data = index.with_suffix(".f16")
    frames = int(table["frames"].to_numpy().sum())
    return data.stat().st_size if data.exists() else 0, frames * front_end.mels * _DTYPE.itemsize


def _is_whole(index: Path, table: pa.Table, front_end: FrontEndConfig) -> bool:
    """Return whether a shard's data is complete. If it is not, the shard is deleted."""
    size, expected = _data_bytes(index, table, front_end)
    if size != expected:
        index.unlink()
        index.with_suffix(".f16").unlink(missing_ok=True)
    return size == expected


def _check_same(path: Path, table: pa.Table, front_end: FrontEndConfig, channel: str) -> None:
    version = _facts(table)["version"]
    if version > VERSION:
        raise StoreError(f"{path} is {FORMAT} version {version}; this writes {VERSION}: update melmask")
    found = from_dict(FrontEndConfig, _facts(table)["front_end"])
    if found != front_end:
        raise StoreError(
            f"{path.parent} was made with another front end ({differences(found, front_end)}); "
            "use the same settings or another --out"
        )
    if (there := _facts(table).get("channel", MEAN)) != channel:
        raise StoreError(f"{path.parent} was made of channel {there}, not {channel}; use the same or another --out")


def differences(found: FrontEndConfig, expected: FrontEndConfig) -> str:
    """Say what differs between two front ends: 'hop_samples 160 there, 320 asked for'."""
    here = to_dict(expected)
    return ", ".join(f"{k} {v} there, {here[k]} asked for" for k, v in to_dict(found).items() if v != here[k])
