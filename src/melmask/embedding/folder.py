"""`melmask embed`: write the embeddings of files and folders to one table, in shares for array jobs if asked to."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from melmask import __version__
from melmask.audio.notes import summary
from melmask.audio.parts import Sound, shortened_text, sounds_of
from melmask.audio.video import missing_decoder
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.embedding.extract import FileEmbedding, embed_files
from melmask.embedding.normalization import with_dataset_statistics
from melmask.embedding.options import EmbedOptions
from melmask.embedding.reading import read_as
from melmask.embedding.tables import (
    TableJob,
    TableSettings,
    WriteParts,
    channels_without_rows,
    check_suffix,
    digest_of_sounds,
    notes_in,
    rows_of,
)
from melmask.errors import ConfigError, InputError
from melmask.labels.sources import find_sounds
from melmask.system.files import changed_since, check_not_read, ensure_folder
from melmask.system.hardware import keep_freed_memory
from melmask.system.progress import duration_text, track
from melmask.system.terminal import counted, note_below, shown

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """What one call of `embed_table` did."""

    table: Path
    """Where the embeddings are."""
    files: int
    """Files in the table."""
    failed: int
    """Files that could not be read."""
    failed_channels: int = 0
    """Channels that could not be embedded, of files that have others in the table."""
    dimensions: int
    """Size of a scene vector."""
    sound_s: float = 0.0
    """Duration of the sound that this call embedded."""
    wall_s: float = 0.0
    """Time that it took; 0 if the table was there already."""
    newer: int = 0
    """Files that changed after a table that was there already had been written."""
    segments: bool = False
    """Whether rows are parts of files, which then count instead of files."""
    notes: Sequence[str] = ()
    """Which of the failed files an extra would read, which parts of files were shortened, and how many files have
    something to know of."""

    def __str__(self) -> str:
        there_already, what = not self.wall_s, "segment" if self.segments else "file"
        text = f"{shown(self.table)}: {counted(self.files, what)}, {self.dimensions} dimensions"
        if there_already:
            text += f"; the table was there already, with the same {what}s and settings"
            text += f"; {self.newer} of the files have changed since" if self.newer else ""
            text += "; delete the table to rebuild it"
        if self.sound_s:
            sound, wall = duration_text(self.sound_s), duration_text(self.wall_s)
            text += f"; {sound} of sound in {wall}, {self.sound_s / self.wall_s:.0f} x real time"
        if self.failed:
            text += f"\n{counted(self.failed, what)} could not be embedded; the reasons are in the table's .failed.csv"
            text += "; they are tried again when the table is rebuilt" if there_already else ""
        if self.failed_channels:
            text += f"\n{counted(self.failed_channels, 'channel')} could not be embedded, and the others of the same "
            text += f"{what}s are in the table; the reasons are in the table's .failed.csv"
        return "\n".join((text, *self.notes))


def embed_sources(
    sources: Sequence[Path], model: Path | None, out: Path, options: EmbedOptions = EmbedOptions()
) -> JobReport:
    """Write the embeddings of the sound files in `sources` to `out`; a killed job resumes after its last whole part.

    Args:
        sources: Sound files, folders and tables with paths.
        model: A run, a checkpoint folder, a .pth file, hub:owner/name or box. None is the model in the box.
        out: X.parquet or X.npz. A share of an array job adds its number to the name.
        options: What to take and where to compute.

    Raises:
        CheckpointError: no model can be loaded.
        ConfigError: the model has no such layer, pooling or hop, or `options.shard` is not of the form I/N.
        InputError: no file is found, or none can be read.
        OutputError: `out` cannot be written to, is one of the sources, or holds parts of another job.
        MissingExtraError: Ray is asked for and not installed.
    """
    # A wrong place or share is refused before the model is loaded, which takes seconds.
    check_suffix(out)
    check_not_read(out, sources)
    ensure_folder(out.parent)
    every_sound = find_sounds(sources, options.table)
    sounds, table = shard_of(every_sound, out, options.shard)
    write_parts: WriteParts | None = None
    device = options.device
    if options.engine == "ray":
        from melmask.embedding.on_ray import ray_writer

        write_parts = ray_writer(options.workers, "cpu" if device == "auto" else device)
        # The GPUs are left to the workers. Their working directory is another, so they need absolute paths.
        sounds = [replace(sound, path=sound.path.absolute()) for sound in sounds]
        device, table = "cpu", table.absolute()
    encoder = load(model, device, options.precision)
    encoder = read_as(encoder, options.reading)
    if options.normalization == "dataset":
        # The statistics are those of all files, not of this share, so that all shares of a job are normalized alike.
        encoder = with_dataset_statistics(encoder, every_sound, out.with_suffix(".statistics.json"))
    return embed_table(encoder, sounds, table, options.choice, keep_frames=options.frames, write_parts=write_parts)


def embed_table(
    model: AudioEncoder,
    paths: Sequence[Path | Sound],
    out: Path,
    choice: FeatureChoice = FeatureChoice(),
    *,
    keep_frames: bool = False,
    write_parts: WriteParts | None = None,
) -> JobReport:
    """Write the embeddings of `paths` to `out` (.parquet or .npz); a killed job resumes after its last whole part.

    Args:
        model: A loaded model.
        paths: Sound files, or parts of them.
        out: The table.
        choice: Which features to take.
        keep_frames: Whether the table holds the frame vectors too.
        write_parts: A function that writes the parts elsewhere. Without it, this process writes them.

    Raises:
        ConfigError: the model has no such layer, pooling or hop.
        InputError: no file could be read.
        OutputError: `out` cannot be written to, or holds parts of another job.
    """
    keep_freed_memory()
    sounds = sounds_of(paths)
    settings = table_settings(model, sounds, choice, keep_frames=keep_frames)
    job, dimensions, segments = TableJob(out, sounds, settings), settings.scene_dimensions, settings.segments
    what = "segment" if segments else "file"
    if job.complete:
        files, made_s = rows_of(out) or 0, out.stat().st_mtime
        newer = sum(changed_since(path, made_s) for path in {sound.path for sound in sounds})
        return JobReport(
            table=out,
            files=files,
            failed=len(sounds) - files,
            failed_channels=channels_without_rows(out, len(sounds) - files),
            dimensions=dimensions,
            newer=newer,
            segments=segments,
            notes=summary(notes_in(out), "its column note", what),
        )
    start_s = time.monotonic()
    with job.claimed():
        if write_parts is not None:
            sound_s = write_parts(model, choice, job)
        else:
            todo = job.todo()
            left = job.sounds_of(todo)
            rows = embed_files(model, left, choice, keep_frames=keep_frames)
            rows = _reporting_contention(rows, model)
            # Progress counts files, and a long file has several rows.
            by_file = (rows_of_file for _, rows_of_file in itertools.groupby(rows, lambda row: row.sound))
            sound_s = job.write(todo, itertools.chain.from_iterable(track(by_file, len(left), "embed")))
        failed, shortened = job.merge()
    return JobReport(
        table=out,
        files=len(sounds) - len(failed),
        failed=len(failed),
        failed_channels=channels_without_rows(out, len(failed)),
        dimensions=dimensions,
        sound_s=sound_s,
        wall_s=time.monotonic() - start_s,
        segments=segments,
        notes=[
            *filter(None, (missing_decoder(str(sound.path) for sound in failed), shortened_text(shortened))),
            *summary(notes_in(out), "its column note", what),
        ],
    )


def _reporting_contention(rows: Iterator[FileEmbedding], model: AudioEncoder) -> Iterator[FileEmbedding]:
    """Yield the same rows; report when other programs slow this job down, and when they have ended."""
    for row in rows:
        news = model.contention.news() if model.device.type == "cpu" else None
        if news:
            note_below(f"melmask: {news}")
        yield row


def table_settings(
    model: AudioEncoder, paths: Sequence[Path | Sound], choice: FeatureChoice, *, keep_frames: bool = False
) -> TableSettings:
    """Return the settings of a table of `paths` with these features of `model`.

    Raises:
        ConfigError: the model has no such layer, pooling or hop.
    """
    card, sha256 = model.card, model.sha256
    choice = choice.of_model(card)
    first_ms, second_ms = model.times_ms(model.step_grid(choice), 2).tolist()
    return TableSettings(
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
        files_sha256=digest_of_sounds(paths),
        channel=model.reading.channel,
        expand=model.reading.expand,
        segments=any(sound.is_part for sound in sounds_of(paths)),
        unit_ms=card.model.frames * model.hop_ms if keep_frames else None,
    )


def shard_of(paths: list[T], out: Path, shard: str | None) -> tuple[list[T], Path]:
    """Return the share of sounds and the table's name for --shard I/N: every N-th one, `X-I-of-N.parquet`.

    Raises:
        ConfigError: `shard` is not of the form I/N with 0 <= I < N.
        InputError: the share is empty.
    """
    if shard is None:
        return paths, out
    number, _, count = shard.partition("/")
    # Python refuses to convert numbers of thousands of digits, so the length is checked, too.
    plain = number.isdecimal() and count.isdecimal() and len(shard) < 20
    if not (plain and int(number) < int(count)):
        raise ConfigError(f"--shard is {shard!r}; expected I/N with 0 <= I < N, as 0/8 to 7/8")
    share = paths[int(number) :: int(count)]
    if not share:
        raise InputError(f"--shard {shard} has no files: there are only {len(paths)}; use fewer shards")
    return share, out.with_name(f"{out.stem}-{int(number):05d}-of-{int(count):05d}{out.suffix}")
