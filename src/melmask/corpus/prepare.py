"""Sound files to a store: decode and transform in threads, write in the files' order, restartable.

Decoding, resampling and the transform release the interpreter's lock, so threads fill all cores; the one writer
keeps the store the same for any number of them.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

import numpy as np
import torch

from melmask.audio.files import MEAN, channel_number, read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram, logmel_blocks
from melmask.audio.parts import Sound, shortened_text
from melmask.audio.statistics import Moments, moments_of
from melmask.config import FrontEndConfig
from melmask.corpus.store import StoreFacts, StoreWriter
from melmask.errors import AudioFileError
from melmask.labels.options import TableOptions
from melmask.labels.sources import find_sounds
from melmask.system.files import claimed, output_error
from melmask.system.hardware import available_cores, map_ahead
from melmask.system.progress import track

_WAITING_PER_THREAD = 4
_SPOOL_BYTES, _FRAMES_READ = 1 << 24, 1 << 14
"""What a waiting file may take of the memory (about 17 minutes of sound), and frames read back at once."""


class Clip(NamedTuple):
    """A sound's log-mel: float16 blocks (frames, mels), or why there is none."""

    sound: Sound
    blocks: Iterable[np.ndarray] = ()
    duration_s: float = 0.0
    moments: Moments = Moments()
    error: str | None = None


def prepare(
    sources: Iterable[Path],
    folder: Path,
    front_end: FrontEndConfig,
    threads: int | None = None,
    shard_mb: int = 256,
    channel: str = MEAN,
    table: TableOptions = TableOptions(),
) -> StoreFacts:
    """Write the log-mels of all sounds in `sources` to the store `folder`; return what store.json says.

    A row of a table that has times is a clip of its own, a part of its file.

    Files already in the store are skipped, so a killed or extended job resumes where it was. Files that cannot be read
    are recorded in failed.csv with the reason.

    The store holds the mean of each file's channels, or the channel whose number `channel` is, from 1 on.

    Raises:
        ConfigError: the channel is neither a number nor `mean`.
        InputError: no sound files, or none of them readable.
        StoreError: the store was begun with another front end or channel.
        OutputError: the folder cannot be written to, or another job is at it.
    """
    channel_number(channel)
    sounds = dict.fromkeys(replace(s, path=Path(_absolute(s.path))) for s in find_sounds(sources, table))
    shortened: list[Sound] = []
    workers, transform = threads or available_cores(), LogMelSpectrogram(front_end)
    with claimed(folder), closing(StoreWriter(folder, front_end, shard_mb, channel)) as writer:
        todo = [sound for sound in sounds if sound.key not in writer.done]
        clips = map_ahead(
            lambda sound: _clip(sound, transform, folder, channel), todo, workers, _WAITING_PER_THREAD * workers
        )
        for clip in track(clips, len(todo), "prepare"):
            if clip.error is None:
                writer.add(clip.sound, clip.blocks, clip.duration_s, clip.moments)
                shortened += [clip.sound] * clip.sound.shortened(clip.duration_s)
            else:
                writer.add_failure(clip.sound, clip.error)
        if note := shortened_text(shortened):
            sys.stderr.write(f"{note}\n")
        return writer.finish()


def _absolute(path: Path) -> str:
    """The path that the store knows a file by: its links are kept, unless `..` leads out of one."""
    plain, real = os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - resolve() would follow links.
    return plain if os.path.realpath(plain) == real else real


@torch.inference_mode()
def _clip(sound: Sound, transform: LogMelSpectrogram, folder: Path, channel: str) -> Clip:
    rate_hz = transform.config.sample_rate_hz
    moments = Moments()
    samples = 0

    def waveform() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in read_audio_blocks(sound, rate_hz, channel):
            samples += len(block)
            yield block

    spool = _Spool(folder, transform.config.mels)
    try:
        for logmel in logmel_blocks(waveform(), transform):
            # A short block may complete no frame.
            if logmel.shape[1]:
                frames = logmel.T.numpy()
                spool.add(frames)
                moments = moments.plus(moments_of(frames))
    except AudioFileError as error:
        return Clip(sound, error=str(error))
    return Clip(sound, spool, samples / rate_hz, moments)


class _Spool:
    """Frames that wait to be written to a shard; those of a long file wait on the disk."""

    def __init__(self, folder: Path, mels: int):
        self._folder, self._mels = folder, mels
        # Closed below, by whoever lets go of it last: an interrupted job drops what it has not written.
        self._file: IO[bytes] = SpooledTemporaryFile(_SPOOL_BYTES, dir=str(folder))  # noqa: SIM115

    def add(self, frames: np.ndarray) -> None:
        """Append (frames, mels) in half precision."""
        try:
            self._file.write(frames.astype(np.float16).tobytes())
        except OSError as error:
            raise output_error(self._folder, error) from error

    def __iter__(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while part := self._file.read(_FRAMES_READ * self._mels * np.dtype(np.float16).itemsize):
            yield np.frombuffer(part, np.float16).reshape(-1, self._mels)

    def __del__(self) -> None:
        self._file.close()
