"""Embeddings of many files. Files are decoded ahead in threads and encoded in large batches; their order is kept."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
from torch import Tensor

from melmask.audio.files import readings_of
from melmask.audio.notes import Listener
from melmask.audio.parts import Sound, sounds_of
from melmask.config import Reading
from melmask.embedding.assemble import ClipVectors
from melmask.embedding.choice import ChoiceChanges, FeatureChoice
from melmask.embedding.encoder import FRAMES_TOGETHER, AudioEncoder, grouped
from melmask.errors import AudioFileError, NotFiniteError
from melmask.geometry import StepGrid
from melmask.system.hardware import map_ahead

_DECODERS = 2
"""Threads that decode files, while the other cores encode."""
_FILES_AHEAD = 32
_VALUES_PER_ROW = 1 << 22
"""A row of frame vectors has at most this many numbers: 16 MB, or 3 minutes of the base model."""


class FileEmbedding(NamedTuple):
    """One row of a sound's result: duration, scene (D,) and, with `keep_frames`, frames (steps, D); or the error.

    A sound is a file or a part of one. The frames of a long one come in several rows, each with the frames from step
    `first_step` on. Only the `last` row has the duration and the scene. If it has an error instead, the file broke off
    and its earlier rows are void.

    `channel` is the number of the channel where each gives a result, one after another, of which `channels_left` follow
    this one. `note` says what is to be known of the sound.
    """

    sound: Sound
    duration_s: float = 0.0
    scene: np.ndarray | None = None
    frames: np.ndarray | None = None
    error: str | None = None
    first_step: int = 0
    last: bool = True
    channel: int | None = None
    channels_left: int = 0
    note: str | None = None

    @property
    def path(self) -> Path:
        """The sound's file."""
        return self.sound.path


class Piece(NamedTuple):
    """A part of a file's log-mel, for one phase of the step grid. The `last` one may have the file's error instead."""

    sound: Sound
    phase: int
    logmel: Tensor | None
    last: bool
    error: str | None = None
    channel: int | None = None
    channels_left: int = 0
    note: str | None = None


def embed_files(
    model: AudioEncoder,
    paths: Sequence[Path | Sound],
    choice: FeatureChoice = FeatureChoice(),
    *,
    keep_frames: bool = False,
    **changes: Unpack[ChoiceChanges],
) -> Iterator[FileEmbedding]:
    """Embed `paths` in order; yield one result for each.

    The result of a file that cannot be read, or whose embedding is not finite, is its error.

    With `keep_frames` a long file has several results, one after another. Memory is bounded even if files last hours.

    Args:
        model: A loaded model.
        paths: Sound files, or parts of them.
        choice: Which features to take.
        keep_frames: Whether to return the frame vectors too, not only the scene vector.
        **changes: Fields of `FeatureChoice` that differ from `choice`, as in `AudioEncoder.embed`.

    Raises:
        ConfigError: the model has no such layer, pooling, hop or scene.
    """
    choice = choice.changed(**changes).of_model(model.card)
    # A scene vector needs the unshifted pass only, whatever the hop.
    grid = model.step_grid(choice if keep_frames else FeatureChoice())
    steps_per_row = max(1, _VALUES_PER_ROW // choice.frame_size(model.card.model))
    vectors, error = model.clip_vectors(choice, grid, keep_frames=keep_frames), None
    for pieces in decoded_groups(model, sounds_of(paths), grid):
        encoded = iter(model.embed_segments([piece.logmel for piece in pieces if piece.logmel is not None], choice))
        for piece in pieces:
            if piece.logmel is not None:
                vectors.add(piece.phase, next(encoded), piece.logmel.shape[1])
            try:
                rows = list(_rows_of(piece, vectors, model, steps_per_row if keep_frames else None))
            except NotFiniteError as reason:
                # The file goes on to its end, as its other pieces are decoded already, and then fails.
                where = "" if piece.channel is None else f", channel {piece.channel}"
                error, rows = f"{piece.sound}{where}: {reason}", []
            if error is None:
                yield from rows
            if piece.last:
                if error is not None:
                    yield FileEmbedding(
                        piece.sound, error=error, channel=piece.channel, channels_left=piece.channels_left
                    )
                vectors, error = model.clip_vectors(choice, grid, keep_frames=keep_frames), None


def _rows_of(
    piece: Piece, vectors: ClipVectors, model: AudioEncoder, steps_per_row: int | None
) -> Iterator[FileEmbedding]:
    """Yield the rows that are complete with this piece; without `steps_per_row`, frame vectors are not kept.

    Raises:
        NotFiniteError: the vectors are not finite.
    """
    # A row is cut off only when there is one vector more, so that the last row is never empty.
    while steps_per_row is not None and vectors.ready > steps_per_row:
        first_step, frames = vectors.taken, vectors.take(steps_per_row)
        yield FileEmbedding(piece.sound, frames=frames, first_step=first_step, last=False, channel=piece.channel)
    if piece.error is not None:
        yield FileEmbedding(piece.sound, error=piece.error, channel=piece.channel, channels_left=piece.channels_left)
    elif piece.last:
        # Frames are centered, and the first lies at 0 s: n frames span n - 1 hops.
        duration_s = (vectors.frames_seen - 1) * model.hop_ms / 1000
        first_step, rest = vectors.taken, None if steps_per_row is None else vectors.take()
        yield FileEmbedding(
            piece.sound,
            duration_s,
            vectors.scene(),
            rest,
            first_step=first_step,
            channel=piece.channel,
            channels_left=piece.channels_left,
            note=piece.note,
        )


def decoded_groups(model: AudioEncoder, sounds: Sequence[Sound], grid: StepGrid) -> Iterator[list[Piece]]:
    """Yield the log-mels of `sounds`, in order, in groups worth encoding together."""

    def frames_of(piece: Piece) -> int:
        return 0 if piece.logmel is None else piece.logmel.shape[1]

    files = map_ahead(lambda sound: _begin(model, sound, grid), sounds, _DECODERS, _FILES_AHEAD)
    return grouped(itertools.chain.from_iterable(files), frames_of, FRAMES_TOGETHER)


def _begin(model: AudioEncoder, sound: Sound, grid: StepGrid) -> Iterator[Piece]:
    """Return the pieces of a file, the first of them ready."""
    # Most files have one piece. The other pieces of long files are decoded when they are needed, to save memory.
    pieces = _pieces_of_file(model, sound, grid)
    return itertools.chain([next(pieces)], pieces)


def _pieces_of_file(model: AudioEncoder, sound: Sound, grid: StepGrid) -> Iterator[Piece]:
    readings = readings_of(sound.path, model.reading)
    for number, reading in enumerate(readings, 1):
        channel = None if reading == model.reading else reading.channel_number
        # A channel that cannot be used costs none of the others.
        for piece in _pieces_of_clip(model, sound, grid, reading):
            yield piece._replace(channel=channel, channels_left=len(readings) - number)


def _pieces_of_clip(model: AudioEncoder, sound: Sound, grid: StepGrid, reading: Reading) -> Iterator[Piece]:
    # Each piece waits for the next one. Only then it is clear that it is not the last.
    held, listener = None, Listener(reading, model.sample_rate_hz)
    try:
        for phase, logmel in model.segments_of_file(sound, grid, reading, listener):
            if held is not None:
                yield held
            held = Piece(sound, phase, logmel, last=False)
    except AudioFileError as error:
        yield Piece(sound, 0, None, last=True, error=str(error))
        return
    assert held is not None, "a readable file has at least one frame"
    yield held._replace(last=True, note=listener.note)
