"""Sound files to a store: decode and transform in threads, write in the files' order, restartable.

Decoding, resampling and the transform release the interpreter's lock, so threads fill all cores; the one writer
keeps the store the same for any number of them.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from melmask.audio.files import find_audio, read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram, LogMelStream
from melmask.audio.statistics import Moments, moments_of
from melmask.config import FrontEndConfig
from melmask.corpus.store import StoreWriter
from melmask.errors import AudioFileError, InputError
from melmask.system.files import claimed
from melmask.system.hardware import available_cores
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
) -> dict[str, Any]:
    """Write the log-mels of all sound files in `sources` to the store `folder`; returns store.json's content.

    Files already in the store are passed over, so a killed or extended job goes on where it was. Files that cannot
    be read are recorded in failed.csv with the reason.

    Raises:
        InputError: no sound files, or none of them readable.
        StoreError: the store was begun with another front end.
        OutputError: the folder cannot be written to, or another job is at it.
    """
    # resolve() would follow links.
    paths = dict.fromkeys(os.path.abspath(path) for path in find_audio(sources))  # noqa: PTH100
    workers = threads or available_cores()
    with claimed(folder), closing(StoreWriter(folder, front_end, shard_mb)) as writer:
        todo = [path for path in paths if path not in writer.done]
        for clip in track(_clips(todo, front_end, workers), len(todo), "prepare"):
            if clip.error is None:
                writer.add(clip.path, clip.blocks, clip.duration_s, clip.moments)
            else:
                writer.add_failure(clip.path, clip.error)
        facts = writer.finish()
    if not facts["files"]:
        raise InputError(
            f"none of the {facts['failed']} files could be read; the reasons are in {folder / 'failed.csv'}"
        )
    return facts


def _clips(paths: list[str], front_end: FrontEndConfig, workers: int) -> Iterator[Clip]:
    """Results in the order of `paths`, a bounded number of them in memory."""
    transform = LogMelSpectrogram(front_end)
    waiting: deque[Future[Clip]] = deque()
    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for path in paths:
            waiting.append(pool.submit(_clip, path, transform))
            if len(waiting) >= _WAITING_PER_THREAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


@torch.inference_mode()
def _clip(path: str, transform: LogMelSpectrogram) -> Clip:
    stream = LogMelStream(transform)
    blocks: list[np.ndarray] = []
    moments = Moments()
    samples = 0
    try:
        for block in read_audio_blocks(Path(path), transform.config.sample_rate_hz):
            samples += len(block)
            moments = moments.plus(_append(stream.push(block), blocks))
        moments = moments.plus(_append(stream.finish(), blocks))
    except AudioFileError as error:
        return Clip(path, [], 0.0, Moments(), str(error))
    return Clip(path, blocks, samples / transform.config.sample_rate_hz, moments, None)


def _append(logmel: torch.Tensor, blocks: list[np.ndarray]) -> Moments:
    if not logmel.shape[2]:
        return Moments()
    frames = logmel[0].T.numpy()
    blocks.append(frames.astype(np.float16))
    return moments_of(frames)
