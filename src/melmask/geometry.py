"""Samples, frames, patches and milliseconds: the only place that converts between them.

With centered frames, frame i is the spectrum around sample i * hop. A patch of p frames starting at frame s
covers frames s .. s + p - 1, so its center in time is (s + (p - 1) / 2) * hop.
"""

from typing import NamedTuple

import numpy as np

from melmask.config import FrontEndConfig, ModelConfig


def frames_of_samples(samples: int, config: FrontEndConfig) -> int:
    """Frames of a log-mel of `samples` samples: 1 + samples // hop."""
    return 1 + samples // config.hop_samples


def step_times_ms(first_frames: np.ndarray, patch_frames: int, config: FrontEndConfig) -> np.ndarray:
    """Centers, in ms from the start of the audio, of patches that start at `first_frames` (steps,)."""
    return ((first_frames + (patch_frames - 1) / 2) * config.hop_ms).astype(np.float64)


class PatchGrid(NamedTuple):
    """Patches of one unit: `rows` over frequency (0 the lowest band), `columns` over time.

    Tokens are numbered frequency-major: token = row * columns + column.
    """

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.rows * self.columns

    def visible_patches(self, ratio: float) -> int:
        """Patches left visible when `ratio` of them is hidden: int(patches * (1 - ratio)), at least 1."""
        # Rounded first: 65 * (1 - 0.8) is 12.999999999999998 in floating point.
        return max(1, int(round(self.patches * (1 - ratio), 6)))


def grid_of(config: ModelConfig, frames: int | None = None) -> PatchGrid:
    """Return the patch grid of a full unit, or of one of `frames` frames, a multiple of the patch width."""
    return PatchGrid(config.mels // config.patch_mels, (frames or config.frames) // config.patch_frames)


def unit_lengths(frames: int, unit_frames: int, patch_frames: int) -> list[int]:
    """Cut `frames` frames into units of the trained length, the last one shortened to whole patches.

    The lengths are multiples of `patch_frames`; their sum is `frames` rounded up to whole patches.
    """
    padded = -(-frames // patch_frames) * patch_frames
    full, rest = divmod(padded, unit_frames)
    return [unit_frames] * full + [rest] * (rest > 0)


def step_durations_frames(frames: int, patch_frames: int) -> np.ndarray:
    """Frames of true audio in each step, (steps,): `patch_frames`, less in the last step."""
    steps = -(-frames // patch_frames)
    durations = np.full(steps, patch_frames, dtype=np.float64)
    durations[-1] = frames - (steps - 1) * patch_frames
    return durations


class StepGrid(NamedTuple):
    """Steps of `patch_frames` frames, one each `hop_frames`, a divisor of it."""

    patch_frames: int
    hop_frames: int

    @property
    def first_frame(self) -> int:
        """Where the first step starts: its center is the first one of the grid that is not before the audio."""
        return -((self.patch_frames - 1) // 2 // self.hop_frames) * self.hop_frames

    @property
    def phases(self) -> list[int]:
        """First frame of each shifted pass; the unshifted one, 0, is among them."""
        return [self.first_frame + k * self.hop_frames for k in range(self.patch_frames // self.hop_frames)]

    def steps(self, frames: int) -> int:
        """Steps of a clip of `frames` frames.

        Undivided patches cover the clip, the last one partly; dense steps end with the last center inside it.
        """
        if self.hop_frames == self.patch_frames:
            return -(-frames // self.patch_frames)
        last_start = frames - 1 - (self.patch_frames - 1) / 2
        return max(1, int((last_start - self.first_frame) // self.hop_frames) + 1)

    def times_ms(self, steps: int, config: FrontEndConfig) -> np.ndarray:
        """Centers of the steps, (steps,) float64, in ms from the start of the audio."""
        return step_times_ms(self.first_frame + np.arange(steps) * self.hop_frames, self.patch_frames, config)
