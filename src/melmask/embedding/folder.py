"""`melmask embed`: many files to one table, resumable, in shares for array jobs."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import embed_files
from melmask.embedding.tables import TableJob, rows_of, settings_of
from melmask.errors import ConfigError, InputError
from melmask.system.hardware import keep_freed_memory
from melmask.system.progress import duration_text, track


class JobReport(NamedTuple):
    """What one call did: files in the table, failed ones, D, and the sound and time spent in this call.

    `newer` is the number of files that were changed since a table that was there already.
    """

    files: int
    failed: int
    dimensions: int
    sound_s: float
    wall_s: float
    newer: int = 0

    def __str__(self) -> str:
        text = f"{self.files} files, {self.dimensions} dimensions"
        if not self.wall_s:
            text += "; the table was there already, of the same files and settings"
            text += f", {self.newer} of which were changed since" if self.newer else ""
            text += ": delete it to make it anew"
        if self.sound_s:
            factor = self.sound_s / self.wall_s
            text += (
                f"; {duration_text(self.sound_s)} of sound in {duration_text(self.wall_s)}, {factor:.0f} x real time"
            )
        if self.failed:
            text += f"\n{self.failed} files could not be read; the reasons are in the table's .failed.csv"
        if self.failed and not self.wall_s:
            text += ", and they are tried again when the table is made anew"
        return text


def embed_table(
    model: AudioEncoder,
    paths: Sequence[Path],
    out: Path,
    *,
    layer: Sequence[int] | None = None,
    pooling: str = "concat",
    hop_ms: float | None = None,
    keep_frames: bool = False,
    scene: str = "mean",
) -> JobReport:
    """Write the embeddings of `paths` to `out` (.parquet or .npz); a killed job goes on after its last whole part.

    Raises:
        ConfigError: no such layer, pooling or hop.
        InputError: no file could be read.
        OutputError: the place cannot be written to, or holds parts of another job.
    """
    keep_freed_memory()
    model.check_choice(layer, pooling, hop_ms, scene)
    settings = settings_of(model, paths, layer, pooling, hop_ms, keep_frames, scene)
    job = TableJob(out, paths, settings)
    if job.complete:
        return report_of_finished(out, paths, settings["scene_dimensions"])
    start_s, sound_s = time.monotonic(), 0.0
    choice = {"layer": layer, "pooling": pooling, "hop_ms": hop_ms, "keep_frames": keep_frames, "scene": scene}

    def counted(remaining: Sequence[Path]):
        nonlocal sound_s
        rows_of_files = itertools.groupby(embed_files(model, remaining, **choice), key=lambda row: row.path)
        for _, rows in track(rows_of_files, len(remaining), "embed"):
            for row in rows:
                sound_s += row.duration_s
                yield row

    with job.claimed():
        todo = job.todo()
        job.write(todo, counted(job.paths_of(todo)))
        failed = job.merge()
    wall_s = time.monotonic() - start_s
    return JobReport(len(paths) - len(failed), len(failed), settings["scene_dimensions"], sound_s, wall_s)


def report_of_finished(table: Path, paths: Sequence[Path], dimensions: int) -> JobReport:
    """Of a call that found its table finished."""
    files, made_s = rows_of(table), table.stat().st_mtime
    newer = sum(path.stat().st_mtime > made_s for path in paths if path.exists())
    return JobReport(files, len(paths) - files, dimensions, 0.0, 0.0, newer)


def shard_of(paths: list[Path], out: Path, shard: str | None) -> tuple[list[Path], Path]:
    """The share of files and the table's name for --shard I/N: every N-th file, `X-I-of-N.parquet`.

    Raises:
        ConfigError: not of the form I/N with 0 <= I < N.
        InputError: the share is empty.
    """
    if shard is None:
        return paths, out
    number, _, count = shard.partition("/")
    plain = number.isdecimal() and count.isdecimal() and len(shard) < 20
    if not (plain and int(number) < int(count)):
        raise ConfigError(f"--shard is {shard!r}; give I/N with 0 <= I < N, as 0/8 to 7/8")
    share = paths[int(number) :: int(count)]
    if not share:
        raise InputError(f"--shard {shard} has no files: there are only {len(paths)}; use fewer shards")
    return share, out.with_name(f"{out.stem}-{int(number):05d}-of-{int(count):05d}{out.suffix}")
