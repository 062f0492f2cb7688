"""Embeddings of sound as it arrives: blocks in, frame vectors out.

A frame vector depends on its whole unit, so the vectors of a unit come out together when the unit is complete. The
latency is at most the trained length, and half of the front end's longest window: 12.5 ms, or 128 ms for a second
resolution of 256 ms. The vectors are equal to those of the offline path.
"""

from collections import deque
from typing import Unpack

import numpy as np
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from melmask.audio.files import RESAMPLER_QUALITY
from melmask.audio.logmel import LogMelStream
from melmask.embedding.assemble import Segmenter
from melmask.embedding.choice import ChoiceChanges, FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import InputError
from melmask.system.finite import check_finite


class EmbeddingStream:
    """A stream of one sound: push its blocks as they arrive, and get frame vectors back.

        stream = melmask.EmbeddingStream(melmask.load("runs/tiny"), sample_rate_hz=48000)
        for block in microphone:
            frames, times_ms = stream.push(block)
        frames, times_ms = stream.finish()

    Args:
        model: A loaded model.
        sample_rate_hz: The sample rate of the blocks.
        choice: Which features to take; a stream has no scene vector.
        **changes: Fields of `FeatureChoice` that differ from `choice`, as in `AudioEncoder.embed`.

    Raises:
        ConfigError: the model has no such layer, pooling or hop.
    """

    def __init__(
        self,
        model: AudioEncoder,
        sample_rate_hz: int,
        choice: FeatureChoice = FeatureChoice(),
        **changes: Unpack[ChoiceChanges],
    ):
        self._model = model
        self._choice = choice.changed(**changes).of_model(model.card)
        self._grid = model.step_grid(self._choice)
        self._logmel = LogMelStream(model.front_end)
        self._resampler = None
        if sample_rate_hz != model.sample_rate_hz:
            self._resampler = soxr.ResampleStream(
                sample_rate_hz, model.sample_rate_hz, 1, dtype="float32", quality=RESAMPLER_QUALITY
            )
        unit, fill = model.card.model.frames, model.corpus_mean
        self._cutters = {phase: Segmenter(phase, unit, fill) for phase in self._grid.phases}
        self._ready: dict[int, deque[np.ndarray]] = {phase: deque() for phase in self._grid.phases}
        self._samples = self._frames = self._steps = 0

    def push(self, block: Float[np.ndarray, " samples"]) -> tuple[np.ndarray, np.ndarray]:
        """Take in samples in [-1, 1]; return the next (frames (steps, D), times_ms (steps,)), of zero steps or more.

        Raises:
            InputError: the block is not one-dimensional or not finite.
            NotFiniteError: the vectors are not finite.
        """
        if block.ndim != 1 or not np.isfinite(block).all():
            raise InputError(f"the block is {block.shape}; expected finite samples (samples,) of one channel")
        samples = block.astype(np.float32)
        self._samples += len(samples)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._take(self._logmel.push(samples)[0])
        return self._emit(None)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rest of the vectors, as `push` does. After this, the stream cannot be used any more.

        Raises:
            InputError: no sound was pushed.
            NotFiniteError: the vectors are not finite.
        """
        if not self._samples:
            raise InputError("the stream ended without a sample; push at least one block of sound")
        if self._resampler is not None:
            # The resampler holds back a few samples until it knows that these are the last.
            rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            self._take(self._logmel.push(rest)[0])
        self._take(self._logmel.finish()[0])
        for phase, cutter in self._cutters.items():
            self._encode(phase, cutter.finish())
        return self._emit(self._grid.steps(self._frames))

    @torch.inference_mode()
    def _take(self, logmel: Tensor) -> None:
        self._frames += logmel.shape[1]
        for phase, cutter in self._cutters.items():
            self._encode(phase, cutter.push(logmel))

    def _encode(self, phase: int, pieces: list[Tensor]) -> None:
        for vectors in self._model.embed_segments(pieces, self._choice):
            check_finite(vectors, "the embedding")
            self._ready[phase].extend(vectors)

    def _emit(self, end: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors in order of time, until a phase has none ready or step `end` is reached."""
        # Step k of the grid comes from phase k modulo the number of phases.
        phases = list(self._ready.values())
        vectors: list[np.ndarray] = []
        while (end is None or self._steps < end) and (ready := phases[self._steps % len(phases)]):
            vectors.append(ready.popleft())
            self._steps += 1
        size = self._choice.frame_size(self._model.card.model)
        times_ms = self._model.times_ms(self._grid, self._steps)[self._steps - len(vectors) :]
        return np.array(vectors, dtype=np.float32).reshape(-1, size), times_ms
