"""Samples, frames, patches and milliseconds: the only place that converts between them.

Frames are centered: frame i is the spectrum around sample i * hop. A patch of p frames that starts at frame s covers
the frames s .. s + p - 1, so its center in time is (s + (p - 1) / 2) * hop.
"""

from typing import NamedTuple

import numpy as np

from melmask.config import FrontEndConfig, ModelConfig


def frames_of_samples(samples: int, config: FrontEndConfig) -> int:
    """Return the number of frames of a log-mel of `samples` samples: 1 + samples // hop."""
    return 1 + samples // config.hop_samples


def samples_under_frames(frames: int, config: FrontEndConfig) -> int:
    """Return how many samples `frames` frames are computed from, none of them beyond the ends of the sound."""
    return (frames - 1) * config.hop_samples + 2 * config.reach_samples


def step_times_ms(first_frames: np.ndarray, patch_frames: int, config: FrontEndConfig) -> np.ndarray:
    """Return the centers, in ms from the start of the audio, of patches that start at `first_frames` (steps,)."""
    return ((first_frames + (patch_frames - 1) / 2) * config.hop_ms).astype(np.float64)


class PatchGrid(NamedTuple):
    """The patches of one unit: `rows` over frequency (row 0 is the lowest), `columns` over time.

    Tokens are numbered frequency-major: token = row * columns + column.
    """

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.rows * self.columns

    def visible_patches(self, ratio: float) -> int:
        """Return how many patches stay visible if `ratio` of them is hidden: int(patches * (1 - ratio)), at least 1."""
        # The product is rounded first: 65 * (1 - 0.8) is 12.999999999999998 in floating point.
        return max(1, int(round(self.patches * (1 - ratio), 6)))


def grid_of(config: ModelConfig, frames: int | None = None) -> PatchGrid:
    """Return the patch grid of a full unit, or of one of `frames` frames, a multiple of the patch width."""
    return PatchGrid(config.mels // config.patch_mels, (frames or config.frames) // config.patch_frames)


def context_frames(config: FrontEndConfig) -> int:
    """Return how many frames on either side of a cut have windows that reach over it."""
    return -(-config.reach_samples // config.hop_samples) + 1


def unit_lengths(frames: int, unit_frames: int, patch_frames: int) -> list[int]:
    """Cut `frames` frames into units of the trained length, the last one shortened to whole patches.

    The lengths are multiples of `patch_frames`; their sum is `frames` rounded up to whole patches.
    """
    # -(-a // b) divides and rounds up.
    padded = -(-frames // patch_frames) * patch_frames
    full, rest = divmod(padded, unit_frames)
    return [unit_frames] * full + [rest] * (rest > 0)


def step_durations_frames(frames: int, patch_frames: int) -> np.ndarray:
    """Return how many frames of each step are audio, (steps,): `patch_frames`, fewer in a last step with padding."""
    # The scene vector weighs each step by its duration, so padding does not count.
    steps = -(-frames // patch_frames)
    durations = np.full(steps, patch_frames, dtype=np.float64)
    durations[-1] = frames - (steps - 1) * patch_frames
    return durations


class StepGrid(NamedTuple):
    """Steps of `patch_frames` frames that begin `hop_frames` apart, which is a divisor of `patch_frames`."""

    patch_frames: int
    hop_frames: int

    @property
    def first_frame(self) -> int:
        """The first frame of the first step: its center is the first one of the grid that is not before the audio."""
        return -((self.patch_frames - 1) // 2 // self.hop_frames) * self.hop_frames

    @property
    def phases(self) -> list[int]:
        """The first frame of each shifted pass of the encoder; the unshifted pass, 0, is among them."""
        return [self.first_frame + k * self.hop_frames for k in range(self.patch_frames // self.hop_frames)]

    def steps(self, frames: int) -> int:
        """Return the number of steps of a clip of `frames` frames.

        Undivided patches cover the clip, and the last one may be padded. Dense steps end at the last center inside it.
        """
        if self.hop_frames == self.patch_frames:
            return -(-frames // self.patch_frames)
        # A step's center is (patch_frames - 1) / 2 frames after its start; the last frame is frames - 1.
        last_start = frames - 1 - (self.patch_frames - 1) / 2
        return max(1, int((last_start - self.first_frame) // self.hop_frames) + 1)

    def times_ms(self, steps: int, config: FrontEndConfig) -> np.ndarray:
        """Return the centers of the steps, (steps,) float64, in ms from the start of the audio."""
        return step_times_ms(self.first_frame + np.arange(steps) * self.hop_frames, self.patch_frames, config)
