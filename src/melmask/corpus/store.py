"""The on-disk store of a corpus' log-mels (docs/formats.md): flat shards of frames plus an index a shard.

    store.json              front end, statistics, totals; written last
    shard-00000.f16         float16, little-endian, time-major (frames, mels), clips one after another
    shard-00000.parquet     a row a file: path, first_frame, frames, duration_s, error (null if it was read)
    failed.csv              path and reason of the files that could not be read

A shard counts once its index is there, and an index is written only after its data is safely on disk.
"""

import contextlib
import csv
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from melmask.audio.statistics import Moments
from melmask.config import FrontEndConfig, Statistics
from melmask.errors import ConfigError, InputError, StoreError
from melmask.settings import from_dict, to_dict
from melmask.system.files import atomic_write, output_error, write_json

FORMAT = "melmask-store"
VERSION = 1
_DTYPE = np.dtype("<f2")
_OPEN_SHARDS = 256
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("first_frame", pa.int64()),
        ("frames", pa.int64()),
        ("duration_s", pa.float64()),
        ("error", pa.string()),
    ]
)


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
            known = {field.name for field in fields(cls)}
            return from_dict(cls, {name: value for name, value in values.items() if name in known})
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise StoreError(f"{path} is damaged; delete it and run melmask prepare again") from error


class StoreWriter:
    """Appends clips to a store, shard by shard; what is in closed shards survives a kill.

    Shards whose data is missing or cut off are dropped, so that their files are done again.

    Raises:
        StoreError: if the folder holds shards made with another front end, or by a newer melmask.
        OutputError: when a shard cannot be written.
    """

    def __init__(self, folder: Path, front_end: FrontEndConfig, shard_mb: int):
        self._folder = folder
        self._front_end = front_end
        self._shard_bytes = shard_mb << 20
        indexes = read_indexes(folder)
        for path, table in indexes:
            _check_same(path, table, front_end)
        indexes = [(path, table) for path, table in indexes if _is_whole(path, table, front_end)]
        self.done = {p for _, t in indexes for p, f in zip(*_columns(t, "path", "frames"), strict=True) if f}
        self._known_failures = {
            (p, e) for _, t in indexes for p, e in zip(*_columns(t, "path", "error"), strict=True) if e
        }
        self._shard = 1 + max((int(path.stem.split("-")[1]) for path, _ in indexes), default=-1)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._file: Any = None
        self._frames = 0
        self._moments = Moments()
        self._rows: list[dict[str, Any]] = []

    def add(self, path: str, blocks: list[np.ndarray], duration_s: float, moments: Moments) -> None:
        """Append one clip: float16 blocks (frames, mels)."""
        first, frames = self._frames, sum(len(block) for block in blocks)
        data_path = self._data_path()
        try:
            if self._file is None:
                self._file = data_path.with_suffix(".partial").open("wb")
            for block in blocks:
                self._file.write(np.ascontiguousarray(block, dtype=_DTYPE))
        except OSError as error:
            raise output_error(data_path, error) from error
        self._frames += frames
        self._moments = self._moments.plus(moments)
        self._rows.append(
            {"path": path, "first_frame": first, "frames": frames, "duration_s": duration_s, "error": None}
        )
        if self._frames * self._front_end.mels * _DTYPE.itemsize >= self._shard_bytes:
            self.close_shard()

    def add_failure(self, path: str, reason: str) -> None:
        """Record a file that could not be read, unless it failed in the same way before."""
        if (path, reason) in self._known_failures:
            return
        row = {"path": path, "first_frame": self._frames, "frames": 0, "duration_s": 0.0, "error": reason}
        self._rows.append(row)

    def close_shard(self) -> None:
        """Put the shard's data on disk, then its index."""
        if not self._rows:
            return
        data_path = self._data_path()
        partial = data_path.with_suffix(".partial")
        try:
            if self._file is None:
                # Also over what a killed job has left there.
                self._file = partial.open("wb")
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
        }
        schema = _SCHEMA.with_metadata({FORMAT: json.dumps(facts)})
        with atomic_write(data_path.with_suffix(".parquet")) as file:
            pq.write_table(pa.Table.from_pylist(self._rows, schema), file)
        self._shard += 1
        self._begin_shard()

    def close(self) -> None:
        """Let go of a shard that an error has left unfinished."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def finish(self) -> StoreFacts:
        """Close the last shard, sum up, write store.json and failed.csv; return what store.json says.

        Raises:
            InputError: no file could be read, or all of them are silent.
        """
        self.close_shard()
        moments = Moments()
        good: dict[str, float] = {}
        bad: dict[str, str] = {}
        frames = 0
        for _, table in read_indexes(self._folder):
            moments = moments.plus(Moments(**_facts(table)["moments"]))
            for row in table.to_pylist():
                if row["error"] is None:
                    good[row["path"]] = row["duration_s"]
                    frames += row["frames"]
                else:
                    bad[row["path"]] = row["error"]
        bad = {path: reason for path, reason in bad.items() if path not in good}
        failures = self._folder / "failed.csv"
        _write_failures(failures, bad)
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


class Store:
    """A finished store, read by crop.

    Attributes: `front_end`, `statistics`, `frames` (clips,) frames of each clip.

    Raises:
        StoreError: if the folder is no finished store, or a shard is missing or cut off.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        facts = StoreFacts.read(folder)
        self.front_end, self.statistics, self.hours = facts.front_end, facts.statistics, facts.hours
        indexes = read_indexes(folder)
        shards, firsts, frames = [], [], []
        for number, (path, table) in enumerate(indexes):
            first, length = (np.asarray(c, dtype=np.int64) for c in _columns(table, "first_frame", "frames"))
            size, expected = _data_bytes(path, table, self.front_end)
            if size != expected:
                raise StoreError(
                    f"{path.with_suffix('.f16')} has {size} bytes, expected {expected}; prepare the store again"
                )
            shards.append(np.full(int((length > 0).sum()), number, dtype=np.int32))
            firsts.append(first[length > 0])
            frames.append(length[length > 0])
        self._paths = [path.with_suffix(".f16") for path, _ in indexes]
        present = sum(int(length.sum()) for length in frames)
        if not present or present != facts.frames:
            raise StoreError(
                f"{folder} has shards of {present} frames, expected {facts.frames} (shards lost, or more files "
                "being added); prepare it again"
            )
        self._shard_of, self._first_frame = np.concatenate(shards), np.concatenate(firsts)
        self.frames: np.ndarray = np.concatenate(frames)
        # Kept open, least recently used closed first: a store may have more shards than a process may have files.
        self._open = lru_cache(_OPEN_SHARDS)(_OpenShard)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def sha256(self) -> str:
        """Of what decides crops: front end, statistics, and the clips' lengths in their order."""
        facts = json.dumps([to_dict(self.front_end), to_dict(self.statistics)])
        return hashlib.sha256(facts.encode() + self.frames.astype("<i8").tobytes()).hexdigest()

    def read_into(self, out: np.ndarray, clip: int, first_frame: int) -> None:
        """Fill `out` (frames, mels) float16, C-contiguous, with the clip's frames from `first_frame` on."""
        start = (self._first_frame[clip] + first_frame) * out.shape[1] * _DTYPE.itemsize
        shard = self._open(self._paths[self._shard_of[clip]])
        if shard.read_into(out, int(start)) != out.nbytes:
            raise StoreError(f"{self._paths[self._shard_of[clip]]} is cut off; prepare the store again")


class _OpenShard:
    """Closed by whoever uses it last: a reader may still be at it when the cache lets go of it."""

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
    """The index of each closed shard, in order."""
    indexes = []
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            table = pq.read_table(path)
            table = table.select(_SCHEMA.names).cast(_SCHEMA.with_metadata(table.schema.metadata))
            _facts(table)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path} is not a shard's index ({type(error).__name__}); delete it and prepare again"
            ) from error
        indexes.append((path, table))
    return indexes


def _facts(table: pa.Table) -> dict[str, Any]:
    return json.loads(table.schema.metadata[FORMAT.encode()])


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table.column(name).to_pylist() for name in names]


def _data_bytes(index: Path, table: pa.Table, front_end: FrontEndConfig) -> tuple[int, int]:
    """Bytes of a shard's data: as they are, and as its index has them."""
    data = index.with_suffix(".f16")
    frames = sum(_columns(table, "frames")[0])
    return data.stat().st_size if data.exists() else 0, frames * front_end.mels * _DTYPE.itemsize


def _is_whole(index: Path, table: pa.Table, front_end: FrontEndConfig) -> bool:
    """Whether a shard's data is all there; if not, the shard is deleted."""
    size, expected = _data_bytes(index, table, front_end)
    if size != expected:
        index.unlink()
        index.with_suffix(".f16").unlink(missing_ok=True)
    return size == expected


def _check_same(path: Path, table: pa.Table, front_end: FrontEndConfig) -> None:
    version = _facts(table)["version"]
    if version > VERSION:
        raise StoreError(f"{path} is {FORMAT} version {version}; this writes {VERSION}: update melmask")
    found = from_dict(FrontEndConfig, _facts(table)["front_end"])
    if found != front_end:
        raise StoreError(
            f"{path.parent} was made with another front end ({differences(found, front_end)}); "
            "use the same settings or another --out"
        )


def differences(found: FrontEndConfig, expected: FrontEndConfig) -> str:
    """'hop_samples 160 there, 320 asked for': what differs between two front ends."""
    here = to_dict(expected)
    return ", ".join(f"{k} {v} there, {here[k]} asked for" for k, v in to_dict(found).items() if v != here[k])


def _write_failures(path: Path, failures: dict[str, str]) -> None:
    with atomic_write(path, "w") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "reason"])
        rows.writerows(failures.items())
