"""From the log-mel of a clip to its vectors, in pieces: cutting before the encoder, putting together after it.

Steps lie on a grid of `hop_frames`. If the hop is the patch width, one pass over the clip gives all steps. If it is a
part of the patch width, the clip is encoded several times. Each pass is a *phase*, which is shifted by one more hop,
and the steps of the phases are interleaved. This gives dense frame vectors from a model with wide patches. The scene
vector always comes from the unshifted phase.
"""

import numpy as np
import torch
from torch import Tensor

from melmask.geometry import StepGrid, step_durations_frames
from melmask.models.whitening import Whitening
from melmask.system.finite import check_finite


class Segmenter:
    """Cut one phase of a clip's log-mel, which arrives in blocks, into pieces of `length` frames or less.

    What lies before the audio gets the value `fill`, a number or a column (bands, 1).
    """

    def __init__(self, phase: int, length: int, fill: float | Tensor):
        self._length = length
        self._fill = fill
        # A phase is the frame where the first step starts. Before the audio, frames are missing; after its start, some
        # are left out.
        self._lead, self._drop = max(0, -phase), max(0, phase)
        self._pending: list[Tensor] = []
        self._frames = 0

    def push(self, block: Tensor) -> list[Tensor]:
        """Take in (bands, frames); return the pieces that are complete."""
        # Missing frames get the corpus mean, which is 0 after normalization.
        if self._lead:
            missing = block.new_zeros((block.shape[0], self._lead)) + self._fill
            block = torch.cat([missing, block], dim=1)
            self._lead = 0
        dropped = min(self._drop, block.shape[1])
        self._drop -= dropped
        self._pending.append(block[:, dropped:])
        self._frames += block.shape[1] - dropped
        if self._frames < self._length:
            return []
        pieces = torch.cat(self._pending, dim=1).split(self._length, dim=1)
        whole = self._frames // self._length
        self._frames -= whole * self._length
        self._pending = list(pieces[whole:])
        return list(pieces[:whole])

    def finish(self) -> list[Tensor]:
        """Return the last, shorter piece, if anything is left."""
        return [torch.cat(self._pending, dim=1)] if self._frames else []


class ClipVectors:
    """Put the vectors of a clip together: its scene vector and, with `keep_frames`, the frame vectors of all phases.

    Frame vectors may be taken out before the clip ends, so that long clips fit in memory.

    Attributes: `frames_seen` (log-mel frames of the clip so far), `taken` (how many frame vectors were taken, which is
    the number of the step that the next `take` begins with).
    """

    def __init__(self, grid: StepGrid, keep_frames: bool, scene: str = "mean", whitening: Whitening | None = None):
        self._grid = grid
        self._scene, self._whitening = scene, whitening
        self._kept: dict[int, list[np.ndarray]] = {phase: [] for phase in grid.phases} if keep_frames else {}
        self._reached = dict.fromkeys(self._kept, 0)
        self.frames_seen = self.taken = self._dimensions = 0
        self._sum: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def add(self, phase: int, vectors: np.ndarray, logmel_frames: int) -> None:
        """Take in the vectors (steps, D) of one piece, `logmel_frames` frames long, of one phase."""
        # The unshifted phase covers all audio once, so the scene vector does not depend on the hop. Sums are in float64
        # because a day of sound has half a million steps.
        if phase == 0:
            # `scene` refuses what is not finite, so NumPy need not warn of it on standard error.
            weights = step_durations_frames(logmel_frames, self._grid.patch_frames)
            values = vectors.astype(np.float64)
            with np.errstate(invalid="ignore"):
                self._sum = self._sum + weights @ values
                if self._scene != "mean":
                    self._squares = self._squares + weights @ values**2
            self.frames_seen += logmel_frames
        if self._kept:
            self._kept[phase].append(vectors)
            self._reached[phase] += len(vectors)
            self._dimensions = vectors.shape[1]

    def scene(self) -> np.ndarray:
        """Return the clip's scene vector, (D,) or (2 D,) float32, each step weighted by its true audio.

        Raises:
            NotFiniteError: the vectors are NaN or infinite.
        """
        check_finite(self._sum, "the embedding")
        mean = np.asarray(self._sum / self.frames_seen)
        if self._scene == "mean":
            return mean.astype(np.float32)
        # Rounding may leave a variance of constant sound just below 0.
        variance = np.maximum(self._squares / self.frames_seen - mean**2, 0)
        scene = np.concatenate([mean, np.sqrt(variance)])
        return np.asarray(self._whitening(scene) if self._whitening else scene).astype(np.float32)

    @property
    def ready(self) -> int:
        """How many frame vectors can be taken: those before the first gap, and before the end of the clip."""
        if not self._kept:
            return 0
        # Phase k has step k, k + phases and so on. Its first missing step is the first gap of the phase.
        gaps = [k + len(self._kept) * count for k, count in enumerate(self._reached.values())]
        # A phase may reach one step further than the grid, with a center after the clip's end.
        return min(*gaps, self._grid.steps(self.frames_seen)) - self.taken

    def take(self, most: int | None = None) -> np.ndarray:
        """Return the next frame vectors, (steps, D) float32, in order of time: all that are `ready`, or `most` of them.

        Taken to the end, they are all frame vectors of the clip.

        Raises:
            NotFiniteError: they are NaN or infinite.
        """
        steps = self.ready if most is None else min(most, self.ready)
        out = np.empty((steps, self._dimensions), dtype=np.float32)
        # Each phase fills every n-th row of `out`. The rows of phase k begin at its next step after those taken.
        for k, parts in enumerate(self._kept.values()):
            rows = out[(k - self.taken) % len(self._kept) :: len(self._kept)]
            while len(rows):
                # What is left of a part that is longer than the rows waits for the next call.
                part = parts.pop(0)
                rows[: len(part)] = part[: len(rows)]
                if len(part) > len(rows):
                    parts.insert(0, part[len(rows) :])
                rows = rows[len(part) :]
        self.taken += steps
        check_finite(out, "the embedding")
        return out
