"""Sound files to a store: decode and transform in threads, write in the files' order, restartable.

Decoding, resampling and the transform release the interpreter's lock, so threads fill all cores; the one writer
keeps the store the same for any number of them.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram, logmel_blocks
from melmask.audio.statistics import Moments, moments_of
from melmask.config import FrontEndConfig
from melmask.corpus.store import StoreFacts, StoreWriter
from melmask.errors import AudioFileError
from melmask.labels.options import TableOptions
from melmask.labels.sources import find_sounds
from melmask.system.files import claimed
from melmask.system.hardware import available_cores, map_ahead
from melmask.system.progress import track

_WAITING_PER_THREAD = 4


class Clip(NamedTuple):
    """One file's log-mel: float16 blocks (frames, mels), or why there is none."""

    path: str
    blocks: list[np.ndarray]
    duration_s: float
    moments: Moments
    error: str | None


def prepare(
    sources: Iterable[Path],
    folder: Path,
    front_end: FrontEndConfig,
    threads: int | None = None,
    shard_mb: int = 256,
    table: TableOptions = TableOptions(),
) -> StoreFacts:
    """Write the log-mels of all sound files in `sources` to the store `folder`; return what store.json says.

    Files already in the store are skipped, so a killed or extended job resumes where it was. Files that cannot be read
    are recorded in failed.csv with the reason.

    Raises:
        InputError: no sound files, or none of them readable.
        StoreError: the store was begun with another front end.
        OutputError: the folder cannot be written to, or another job is at it.
    """
    # resolve() would follow links.
    paths = dict.fromkeys(os.path.abspath(path) for path in find_sounds(sources, table))  # noqa: PTH100
    workers, transform = threads or available_cores(), LogMelSpectrogram(front_end)
    with claimed(folder), closing(StoreWriter(folder, front_end, shard_mb)) as writer:
        todo = [path for path in paths if path not in writer.done]
        clips = map_ahead(lambda path: _clip(path, transform), todo, workers, _WAITING_PER_THREAD * workers)
        for clip in track(clips, len(todo), "prepare"):
            if clip.error is None:
                writer.add(clip.path, clip.blocks, clip.duration_s, clip.moments)
            else:
                writer.add_failure(clip.path, clip.error)
        return writer.finish()


@torch.inference_mode()
def _clip(path: str, transform: LogMelSpectrogram) -> Clip:
    rate_hz = transform.config.sample_rate_hz
    blocks: list[np.ndarray] = []
    moments = Moments()
    samples = 0

    def sound() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in read_audio_blocks(Path(path), rate_hz):
            samples += len(block)
            yield block

    try:
        for logmel in logmel_blocks(sound(), transform):
            # A short block may complete no frame.
            if logmel.shape[1]:
                frames = logmel.T.numpy()
                blocks.append(frames.astype(np.float16))
                moments = moments.plus(moments_of(frames))
    except AudioFileError as error:
        return Clip(path, [], 0.0, Moments(), str(error))
    return Clip(path, blocks, samples / rate_hz, moments, None)
