"""Clips of different lengths and rates, embedded together: what benchmarks pass, on melmask's one inference path."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from melmask.embedding.assemble import ClipVectors
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import FRAMES_TOGETHER, AudioEncoder
from melmask.system.cores import Cores


def embed_clips(
    encoder: AudioEncoder, clips: Sequence[tuple[Any, int | float]], choice: FeatureChoice, *, keep_frames: bool
) -> list[ClipVectors]:
    """Embed clips, each (array (samples,), rate in Hz); return what gives their scene and frame vectors.

    No clip is padded to the length of another one. Units of equal length are encoded together, whatever clip they come
    from, so a clip's vectors do not depend on the others, except for rounding.

    Raises:
        InputError: an array is empty, not finite, of another shape or type, or has no rate.
        ConfigError: the model has no such layer, pooling or hop.
    """
    # The scene vector comes from the unshifted pass, which is all that a hop of a whole patch needs.
    choice = (choice if keep_frames else choice.changed(hop_ms=None)).of_model(encoder.card)
    grid = encoder.step_grid(choice)
    made = [encoder.clip_vectors(choice, grid, keep_frames=keep_frames) for _ in clips]

    # Clips share the cores as the encoder's batches do. Threads that divide an operation wait for each other, and for a
    # long time if the benchmark or another program takes one of the cores.
    cores = Cores(torch.get_num_threads() if encoder.device.type == "cpu" else 1, contention=encoder.contention)

    def pieces_of(array: Any, rate_hz: int | float) -> list[tuple[int, Tensor]]:
        with cores.engaged():
            logmel = torch.from_numpy(encoder.logmel(array, rate_hz)[0]).to(encoder.device)
            return list(encoder.segments_of([logmel], grid))

    def pieces() -> Iterator[list[tuple[int, Tensor]]]:
        for first in range(0, len(clips), cores.count):
            yield from cores.run([partial(pieces_of, *clip) for clip in clips[first : first + cores.count]])

    with closing(cores):
        encoder.fill(made, pieces(), choice, FRAMES_TOGETHER)
    return made
