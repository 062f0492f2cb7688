"""Embeddings of many files: decoded ahead in threads, encoded in large batches, in the files' order."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from melmask.encoder import AudioEncoder, SceneMean
from melmask.errors import AudioFileError

_DECODERS = 2
_FRAMES_TOGETHER = 60_000
"""Log-mel frames encoded at once: enough units of each length to fill batches, 20 MB."""


class FileEmbedding(NamedTuple):
    """One file's result: scene (D,), frames (steps, D) if they were asked for, or the error."""

    path: Path
    duration_s: float
    scene: np.ndarray | None
    frames: np.ndarray | None
    error: str | None


class Piece(NamedTuple):
    """Part of a file's log-mel; `last` closes the file; `error` stands for a file that broke."""

    path: Path
    logmel: Tensor | None
    last: bool
    error: str | None = None


def embed_files(
    model: AudioEncoder,
    paths: Sequence[Path],
    *,
    layer: int | None = None,
    pooling: str = "concat",
    keep_frames: bool = False,
) -> Iterator[FileEmbedding]:
    """Embed `paths`, one result each, in order; a file that cannot be read gives its error instead.

    Memory is bounded, also for files of many hours, unless `keep_frames` is set.
    """
    model.check_choice(layer, pooling)
    patch_frames = model.card.model.patch_frames
    hop_s = model.card.front_end.hop_ms / 1000
    mean, kept, frames_seen = SceneMean(patch_frames), [], 0
    for pieces in decoded_groups(model, paths):
        whole = [piece.logmel for piece in pieces if piece.logmel is not None]
        vectors = iter(model.embed_segments(whole, layer=layer, pooling=pooling) if whole else [])
        for piece in pieces:
            if piece.logmel is not None:
                part = mean.add(next(vectors), piece.logmel.shape[1])
                frames_seen += piece.logmel.shape[1]
                if keep_frames:
                    kept.append(part)
            if not piece.last:
                continue
            if piece.error is not None:
                yield FileEmbedding(piece.path, 0.0, None, None, piece.error)
            else:
                frames = np.concatenate(kept) if keep_frames else None
                yield FileEmbedding(piece.path, (frames_seen - 1) * hop_s, mean.result(), frames, None)
            mean, kept, frames_seen = SceneMean(patch_frames), [], 0


def decoded_groups(model: AudioEncoder, paths: Sequence[Path]) -> Iterator[list[Piece]]:
    """The log-mels of `paths`, in order, in groups worth encoding together."""
    group: list[Piece] = []
    frames = 0
    for piece in _pieces(model, paths):
        group.append(piece)
        frames += 0 if piece.logmel is None else piece.logmel.shape[1]
        if frames >= _FRAMES_TOGETHER:
            yield group
            group, frames = [], 0
    if group:
        yield group


def _pieces(model: AudioEncoder, paths: Sequence[Path]) -> Iterator[Piece]:
    """Pieces of all files in order, decoded ahead."""
    waiting: deque[Future[tuple[Iterator[Tensor], Tensor | None, str | None]]] = deque()
    pool = ThreadPoolExecutor(_DECODERS, initializer=torch.set_num_threads, initargs=(1,))
    threads_before = torch.get_num_threads()
    ahead = iter(paths)
    try:
        names: deque[Path] = deque()
        while True:
            while len(waiting) < 16 * _DECODERS and (path := next(ahead, None)) is not None:
                waiting.append(pool.submit(_first_piece, model, path))
                names.append(path)
            if not waiting:
                return
            yield from _rest(names.popleft(), *waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


def _first_piece(model: AudioEncoder, path: Path) -> tuple[Iterator[Tensor], Tensor | None, str | None]:
    # Only the first piece, which is the whole of most files, is made ahead: long files must not fill the memory.
    segments = model.segments_of_file(path)
    try:
        return segments, next(segments), None
    except AudioFileError as error:
        return segments, None, str(error)


def _rest(path: Path, segments: Iterator[Tensor], first: Tensor | None, error: str | None) -> Iterator[Piece]:
    if first is None:
        yield Piece(path, None, True, error)
        return
    current = first
    try:
        for following in segments:
            yield Piece(path, current, False)
            current = following
    except AudioFileError as broken:
        yield Piece(path, None, True, str(broken))
        return
    yield Piece(path, current, True)
