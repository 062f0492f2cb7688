"""Sound files to a store: decode and transform in threads, write in the files' order, restartable.

Decoding, resampling and the transform release the interpreter's lock, so threads fill all cores; the one writer
keeps the store the same for any number of them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

import numpy as np
import torch

from melmask.audio.bands import check_filters
from melmask.audio.files import read_audio_blocks, readings_of
from melmask.audio.logmel import LogMelSpectrogram, logmel_blocks
from melmask.audio.notes import Listener
from melmask.audio.parts import Sound, shortened_text
from melmask.audio.statistics import Moments, moments_of
from melmask.config import FrontEndConfig, Reading
from melmask.corpus.store import StoreFacts, StoreWriter
from melmask.errors import AudioFileError
from melmask.labels.options import TableOptions
from melmask.labels.sources import find_sounds
from melmask.system.files import changed_since, claimed, output_error
from melmask.system.hardware import available_cores, map_ahead
from melmask.system.progress import track
from melmask.system.terminal import counted, note

_WAITING_PER_THREAD = 4
_SPOOL_BYTES, _FRAMES_READ = 1 << 24, 1 << 14
"""What a waiting file may take of the memory (about 17 minutes of sound), and frames read back at once."""


class Clip(NamedTuple):
    """The log-mel of a sound or of one of its channels: float16 blocks (frames, bands), or why there is none."""

    sound: Sound
    blocks: Iterable[np.ndarray] = ()
    duration_s: float = 0.0
    moments: Moments = Moments()
    channel: int | None = None
    channels_left: int = 0
    note: str | None = None
    error: str | None = None


def prepare(
    sources: Iterable[Path],
    folder: Path,
    front_end: FrontEndConfig,
    threads: int | None = None,
    shard_mb: int = 256,
    reading: Reading = Reading(),
    table: TableOptions = TableOptions(),
) -> StoreFacts:
    """Write the log-mels of all sounds in `sources` to the store `folder`; return what store.json says.

    A row of a table that has times is a clip of its own, a part of its file.

    Files already in the store are skipped, so a killed or extended job resumes where it was. Files that have changed
    since they were taken stay in the store as they were, which a line says. Files that cannot be read are recorded in
    failed.csv with the reason.

    `reading` says which channel of a file becomes a clip, or whether each does, and how much slower it is played. The
    store records it, and so do the models trained on it.

    Raises:
        ConfigError: a band of the front end is empty.
        InputError: no sound files, or none of them readable.
        StoreError: the store was begun with another front end or reading.
        OutputError: the folder cannot be written to, or another job is at it.
    """
    check_filters(front_end)
    sounds = dict.fromkeys(replace(s, path=Path(_absolute(s.path))) for s in find_sounds(sources, table))
    shortened: dict[Sound, None] = {}
    workers, transform = threads or available_cores(), LogMelSpectrogram(front_end)
    with claimed(folder), closing(StoreWriter(folder, front_end, shard_mb, reading)) as writer:
        todo = [sound for sound in sounds if sound.key not in writer.done_s]
        _note_changed(sounds, writer.done_s, folder)
        found = map_ahead(
            lambda sound: _clips(sound, transform, folder, reading), todo, workers, _WAITING_PER_THREAD * workers
        )
        for clips in track(found, len(todo), "prepare"):
            for clip in clips:
                if clip.error is not None:
                    writer.add_failure(clip.sound, clip.error, clip.channel)
                    continue
                facts = (clip.channel, clip.channels_left, clip.note)
                writer.add(clip.sound, clip.blocks, clip.duration_s, clip.moments, *facts)
                if clip.sound.shortened(clip.duration_s):
                    shortened[clip.sound] = None
        if text := shortened_text(shortened):
            note(text)
        return writer.finish()


def _note_changed(sounds: Iterable[Sound], done_s: Mapping[str, float], folder: Path) -> None:
    """Say how many files were changed after the store took them."""
    done = (sound for sound in sounds if sound.key in done_s)
    if changed := {sound.path for sound in done if changed_since(sound.path, done_s[sound.key])}:
        note(
            f"{counted(len(changed), 'file')} changed after {folder} was prepared, which keeps the earlier sound; "
            "prepare another store to take the new one"
        )


def _absolute(path: Path) -> str:
    """The path that the store knows a file by: its links are kept, unless `..` leads out of one."""
    plain, real = os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - resolve() would follow links.
    return plain if os.path.realpath(plain) == real else real


def _clips(sound: Sound, transform: LogMelSpectrogram, folder: Path, reading: Reading) -> list[Clip]:
    """Return the clip of a sound, or those of its channels; of a channel or sound that cannot be read, why."""
    readings = readings_of(sound.path, reading)
    clips = [_clip(sound, transform, folder, one) for one in readings]
    if reading in readings:
        return clips
    clips = [clip._replace(channel=number) for number, clip in enumerate(clips, 1)]
    failed = [clip for clip in clips if clip.error is not None]
    if len(failed) == len(clips):
        return [Clip(sound, error="; ".join(dict.fromkeys(str(clip.error) for clip in failed)))]
    good = [clip for clip in clips if clip.error is None]
    # A shard may be closed after the last channel, so those that failed come first.
    return [*failed, *(clip._replace(channels_left=len(good) - number) for number, clip in enumerate(good, 1))]


@torch.inference_mode()
def _clip(sound: Sound, transform: LogMelSpectrogram, folder: Path, reading: Reading) -> Clip:
    rate_hz = reading.rate_hz(transform.config)
    # Whoever asks for another band than that of speech knows what it leaves out.
    usual = transform.config.sample_rate_hz == FrontEndConfig.sample_rate_hz
    listener = Listener(reading, rate_hz if usual else None)
    moments = Moments()
    samples = 0

    def waveform() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in read_audio_blocks(sound, rate_hz, reading, listener):
            samples += len(block)
            yield block

    spool = _Spool(folder, transform.config.bands)
    try:
        for logmel in logmel_blocks(waveform(), transform):
            # A short block may complete no frame.
            if logmel.shape[1]:
                frames = logmel.T.numpy()
                spool.add(frames)
                moments = moments.plus(moments_of(frames, transform.config.resolutions))
    except AudioFileError as error:
        return Clip(sound, error=str(error))
    return Clip(sound, spool, samples / rate_hz, moments, note=listener.note)


class _Spool:
    """Frames that wait to be written to a shard; those of a long file wait on the disk."""

    def __init__(self, folder: Path, bands: int):
        self._folder, self._bands = folder, bands
        # Closed below, by whoever lets go of it last: an interrupted job drops what it has not written.
        self._file: IO[bytes] = SpooledTemporaryFile(_SPOOL_BYTES, dir=str(folder))  # noqa: SIM115

    def add(self, frames: np.ndarray) -> None:
        """Append (frames, bands) in half precision."""
        try:
            self._file.write(frames.astype(np.float16).tobytes())
        except OSError as error:
            raise output_error(self._folder, error) from error

    def __iter__(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while part := self._file.read(_FRAMES_READ * self._bands * np.dtype(np.float16).itemsize):
            yield np.frombuffer(part, np.float16).reshape(-1, self._bands)

    def __del__(self) -> None:
        self._file.close()
