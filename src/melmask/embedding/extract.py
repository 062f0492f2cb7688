"""Embeddings of many files: decoded ahead in threads, encoded in large batches, in the files' order."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from melmask.embedding.assemble import FRAMES_TOGETHER, ClipVectors, StepGrid, grouped
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import AudioFileError

_DECODERS = 2
_FILES_AHEAD = 32
_VALUES_PER_ROW = 1 << 22
"""Frame vectors of a file come in rows of at most this many numbers: 16 MB, 3 minutes of the base model."""


class FileEmbedding(NamedTuple):
    """One file's result: duration, scene (D,) and, if they were asked for, frames (steps, D); or the error.

    The frames of a long file come in several rows, each with those from `first_step` on. Only the `last` row has the
    duration and the scene; if it has an error instead, the file broke off and the rows before it are void.
    """

    path: Path
    duration_s: float
    scene: np.ndarray | None
    frames: np.ndarray | None
    error: str | None
    first_step: int = 0
    last: bool = True


class Piece(NamedTuple):
    """Part of a file's log-mel, of one phase of the step grid; `last` closes the file, `error` says why it broke."""

    path: Path
    phase: int
    logmel: Tensor | None
    last: bool
    error: str | None = None


def embed_files(
    model: AudioEncoder,
    paths: Sequence[Path],
    *,
    layer: int | Sequence[int] | None = None,
    pooling: str = "concat",
    hop_ms: float | None = None,
    keep_frames: bool = False,
    scene: str = "mean",
) -> Iterator[FileEmbedding]:
    """Embed `paths`, one result each, in order; a file that cannot be read gives its error instead.

    With `keep_frames` a long file gives several rows, one after another. Memory is bounded, also for files of many
    hours.
    """
    model.check_choice(layer, pooling, hop_ms, scene)
    grid = model.step_grid(hop_ms if keep_frames else None)
    steps_per_row = max(1, _VALUES_PER_ROW // model.embedding_size(pooling, layer))
    vectors = ClipVectors(grid, keep_frames, scene)
    for pieces in decoded_groups(model, paths, grid):
        logmels = [piece.logmel for piece in pieces if piece.logmel is not None]
        encoded = iter(model.embed_segments(logmels, layer=layer, pooling=pooling))
        for piece in pieces:
            if piece.logmel is not None:
                vectors.add(piece.phase, next(encoded), piece.logmel.shape[1])
            # One more is left for the last row.
            while vectors.ready > steps_per_row:
                first_step, frames = vectors.taken, vectors.take(steps_per_row)
                yield FileEmbedding(piece.path, 0.0, None, frames, None, first_step, last=False)
            if piece.last:
                yield _result(model, piece, vectors, keep_frames)
                vectors = ClipVectors(grid, keep_frames, scene)


def _result(model: AudioEncoder, piece: Piece, vectors: ClipVectors, keep_frames: bool) -> FileEmbedding:
    if piece.error is not None:
        return FileEmbedding(piece.path, 0.0, None, None, piece.error)
    duration_s = (vectors.frames_seen - 1) * model.card.front_end.hop_ms / 1000
    first_step, frames = vectors.taken, vectors.take() if keep_frames else None
    return FileEmbedding(piece.path, duration_s, vectors.scene(), frames, None, first_step)


def decoded_groups(model: AudioEncoder, paths: Sequence[Path], grid: StepGrid) -> Iterator[list[Piece]]:
    """The log-mels of `paths`, in order, in groups worth encoding together."""

    def frames_of(piece: Piece) -> int:
        return 0 if piece.logmel is None else piece.logmel.shape[1]

    return grouped(_pieces(model, paths, grid), frames_of, FRAMES_TOGETHER)


def _pieces(model: AudioEncoder, paths: Sequence[Path], grid: StepGrid) -> Iterator[Piece]:
    """Pieces of all files in order, decoded ahead."""
    waiting: deque[tuple[Path, Future[_Begun]]] = deque()
    pool = ThreadPoolExecutor(_DECODERS, initializer=torch.set_num_threads, initargs=(1,))
    threads_before = torch.get_num_threads()
    ahead = iter(paths)
    try:
        while True:
            while len(waiting) < _FILES_AHEAD and (path := next(ahead, None)) is not None:
                waiting.append((path, pool.submit(_begin, model, path, grid)))
            if not waiting:
                return
            path, begun = waiting.popleft()
            yield from _rest(path, *begun.result())
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)


_Begun = tuple[Iterator[tuple[int, Tensor]], tuple[int, Tensor] | None, str | None]


def _begin(model: AudioEncoder, path: Path, grid: StepGrid) -> _Begun:
    # Only the first piece, which is the whole of most files, is made ahead: long files must not fill the memory.
    segments = model.segments_of_file(path, grid)
    try:
        return segments, next(segments), None
    except AudioFileError as error:
        return segments, None, str(error)


def _rest(
    path: Path, segments: Iterator[tuple[int, Tensor]], first: tuple[int, Tensor] | None, error: str | None
) -> Iterator[Piece]:
    if first is None:
        yield Piece(path, 0, None, True, error)
        return
    current = first
    try:
        for following in segments:
            yield Piece(path, *current, False)
            current = following
    except AudioFileError as broken:
        yield Piece(path, 0, None, True, str(broken))
        return
    yield Piece(path, *current, True)
