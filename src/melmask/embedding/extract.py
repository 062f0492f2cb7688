"""Embeddings of many files: decoded ahead in threads, encoded in large batches, in the files' order."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
from torch import Tensor

from melmask.embedding.assemble import FRAMES_TOGETHER, ClipVectors, grouped
from melmask.embedding.choice import ChoiceChanges, FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import AudioFileError
from melmask.geometry import StepGrid
from melmask.system.hardware import map_ahead

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
    duration_s: float = 0.0
    scene: np.ndarray | None = None
    frames: np.ndarray | None = None
    error: str | None = None
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
    choice: FeatureChoice = FeatureChoice(),
    *,
    keep_frames: bool = False,
    **changes: Unpack[ChoiceChanges],
) -> Iterator[FileEmbedding]:
    """Embed `paths` in order, one result each; a file that cannot be read gives its error instead.

    With `keep_frames` a long file gives several rows, one after another. Memory is bounded, also for files of many
    hours.

    Args:
        model: A loaded model.
        paths: Sound files.
        choice: Which features to take.
        keep_frames: Whether to give the frame vectors too, not only the scene vector.
        **changes: Fields of `FeatureChoice` that differ from `choice`, as in `AudioEncoder.embed`.

    Raises:
        ConfigError: the model has no such layer, pooling, hop or scene.
    """
    choice = choice.changed(**changes).check(model.card.model, model.card.front_end)
    # The scene vector needs no shifted passes.
    grid = model.step_grid(choice if keep_frames else FeatureChoice())
    steps_per_row = max(1, _VALUES_PER_ROW // choice.frame_size(model.card.model))
    vectors = ClipVectors(grid, keep_frames, choice.scene)
    for pieces in decoded_groups(model, paths, grid):
        encoded = iter(model.embed_segments([piece.logmel for piece in pieces if piece.logmel is not None], choice))
        for piece in pieces:
            if piece.logmel is not None:
                vectors.add(piece.phase, next(encoded), piece.logmel.shape[1])
            # One vector more is left, so that the last row is never empty.
            while vectors.ready > steps_per_row:
                first_step, frames = vectors.taken, vectors.take(steps_per_row)
                yield FileEmbedding(piece.path, frames=frames, first_step=first_step, last=False)
            if piece.last:
                if piece.error is not None:
                    yield FileEmbedding(piece.path, error=piece.error)
                else:
                    duration_s = (vectors.frames_seen - 1) * model.card.front_end.hop_ms / 1000
                    first_step, rest = vectors.taken, vectors.take() if keep_frames else None
                    yield FileEmbedding(piece.path, duration_s, vectors.scene(), rest, first_step=first_step)
                vectors = ClipVectors(grid, keep_frames, choice.scene)


def decoded_groups(model: AudioEncoder, paths: Sequence[Path], grid: StepGrid) -> Iterator[list[Piece]]:
    """Yield the log-mels of `paths`, in order, in groups worth encoding together."""

    def frames_of(piece: Piece) -> int:
        return 0 if piece.logmel is None else piece.logmel.shape[1]

    return grouped(_pieces(model, paths, grid), frames_of, FRAMES_TOGETHER)


def _pieces(model: AudioEncoder, paths: Sequence[Path], grid: StepGrid) -> Iterator[Piece]:
    """Yield the pieces of all files in order, decoded ahead."""
    # Only the first piece, which is the whole of most files, is made ahead: long files must not fill the memory.
    for pieces in map_ahead(lambda path: _begin(model, path, grid), paths, _DECODERS, _FILES_AHEAD):
        yield from pieces


def _begin(model: AudioEncoder, path: Path, grid: StepGrid) -> Iterator[Piece]:
    """Return the pieces of a file, the first of them ready."""
    pieces = _pieces_of_file(model, path, grid)
    return itertools.chain([next(pieces)], pieces)


def _pieces_of_file(model: AudioEncoder, path: Path, grid: StepGrid) -> Iterator[Piece]:
    # A piece is held back until the next one is there, as only then it is known not to be the last.
    held = None
    try:
        for phase, logmel in model.segments_of_file(path, grid):
            if held is not None:
                yield held
            held = Piece(path, phase, logmel, last=False)
    except AudioFileError as error:
        yield Piece(path, 0, None, last=True, error=str(error))
        return
    assert held is not None, "a readable file has a frame"
    yield held._replace(last=True)
