"""`melmask embed`: files and folders to one table, resumable, in shares for array jobs."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.extract import embed_files
from melmask.embedding.normalization import with_dataset_statistics
from melmask.embedding.options import EmbedOptions
from melmask.embedding.tables import TableJob, TableSettings, WriteParts, check_suffix, rows_of
from melmask.errors import ConfigError, InputError
from melmask.labels.sources import find_sounds
from melmask.system.files import ensure_folder
from melmask.system.hardware import keep_freed_memory
from melmask.system.progress import duration_text, track


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What one call did."""

    table: Path
    """Where the embeddings are."""
    files: int
    """Files in the table."""
    failed: int
    """Files that could not be read."""
    dimensions: int
    """Size of a scene vector."""
    sound_s: float = 0.0
    """Duration of the sound that this call embedded."""
    wall_s: float = 0.0
    """Time that it took; 0 where the table was there already."""
    newer: int = 0
    """Files that changed since a table that was there already."""

    def __str__(self) -> str:
        text = f"{self.table}: {self.files} files, {self.dimensions} dimensions"
        if not self.wall_s:
            text += "; the table was there already, with the same files and settings"
            text += f", {self.newer} of which have changed since" if self.newer else ""
            text += "; delete it to rebuild it"
        if self.sound_s:
            factor = self.sound_s / self.wall_s
            text += (
                f"; {duration_text(self.sound_s)} of sound in {duration_text(self.wall_s)}, {factor:.0f} x real time"
            )
        if self.failed:
            text += f"\n{self.failed} files could not be read; the reasons are in the table's .failed.csv"
        if self.failed and not self.wall_s:
            text += ", and they are tried again when the table is rebuilt"
        return text


def embed_sources(sources: Sequence[Path], model: Path, out: Path, options: EmbedOptions = EmbedOptions()) -> JobReport:
    """Write the embeddings of the sound files in `sources` to `out`; a killed job resumes after its last whole part.

    Args:
        sources: Sound files, folders and tables with paths.
        model: A run, a checkpoint folder, a .pth file or hub:owner/name.
        out: X.parquet or X.npz; a share of an array job has its number added to the name.
        options: What to take and where to compute.

    Raises:
        CheckpointError: no model can be loaded.
        ConfigError: the model has no such layer, pooling or hop, or the shard is no share.
        InputError: no file is found, or none can be read.
        OutputError: the place cannot be written to, or holds parts of another job.
        MissingExtraError: Ray is asked for and not installed.
    """
    # What cannot be written is refused before the model is loaded.
    check_suffix(out)
    ensure_folder(out.parent)
    every_path = find_sounds(sources, options.table)
    paths, table = shard_of(every_path, out, options.shard)
    write_parts: WriteParts | None = None
    device = options.device
    if options.engine == "ray":
        from melmask.embedding.on_ray import ray_writer

        write_parts = ray_writer(options.workers, "cpu" if device == "auto" else device)
        # The workers have the GPUs, and another working directory.
        device, paths, table = "cpu", [path.absolute() for path in paths], table.absolute()
    encoder = load(model, device, options.precision)
    if options.normalization == "dataset":
        # Of all files, not of this share, so that all shares of a job are normalized alike.
        encoder = with_dataset_statistics(encoder, every_path, out.with_suffix(".statistics.json"))
    return embed_table(encoder, paths, table, options.choice, keep_frames=options.frames, write_parts=write_parts)


def embed_table(
    model: AudioEncoder,
    paths: Sequence[Path],
    out: Path,
    choice: FeatureChoice = FeatureChoice(),
    *,
    keep_frames: bool = False,
    write_parts: WriteParts | None = None,
) -> JobReport:
    """Write the embeddings of `paths` to `out` (.parquet or .npz); a killed job resumes after its last whole part.

    Args:
        model: A loaded model.
        paths: Sound files.
        out: The table.
        choice: Which features to take.
        keep_frames: Whether the table holds the frame vectors too.
        write_parts: What writes the parts elsewhere; without it this process does.

    Raises:
        ConfigError: the model has no such layer, pooling or hop.
        InputError: no file could be read.
        OutputError: the place cannot be written to, or holds parts of another job.
    """
    keep_freed_memory()
    choice.check(model.card.model, model.card.front_end)
    settings = TableSettings.of(model, paths, choice, keep_frames=keep_frames)
    job = TableJob(out, paths, settings)
    dimensions = settings.scene_dimensions
    if job.complete:
        files, made_s = rows_of(out), out.stat().st_mtime
        newer = sum(path.stat().st_mtime > made_s for path in paths if path.exists())
        return JobReport(table=out, files=files, failed=len(paths) - files, dimensions=dimensions, newer=newer)
    start_s = time.monotonic()
    with job.claimed():
        if write_parts is not None:
            sound_s = write_parts(model, choice, job)
        else:
            todo = job.todo()
            left = job.paths_of(todo)
            # A long file gives several rows, which count once.
            by_file = itertools.groupby(embed_files(model, left, choice, keep_frames=keep_frames), lambda row: row.path)
            rows = itertools.chain.from_iterable(rows for _, rows in track(by_file, len(left), "embed"))
            sound_s = job.write(todo, rows)
        failed = len(job.merge())
    wall_s, files = time.monotonic() - start_s, len(paths) - failed
    return JobReport(table=out, files=files, failed=failed, dimensions=dimensions, sound_s=sound_s, wall_s=wall_s)


def shard_of(paths: list[Path], out: Path, shard: str | None) -> tuple[list[Path], Path]:
    """Return the share of files and the table's name for --shard I/N: every N-th file, `X-I-of-N.parquet`.

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
