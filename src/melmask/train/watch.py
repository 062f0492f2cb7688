"""Has the training broken down? What is not finite, or a loss far above those before it."""

import math
import statistics
from collections import deque

_INTERVALS = 11
"""The median of so many log intervals is what a spike is measured by."""


class LossWatch:
    """Judges one log interval at a time."""

    def __init__(self, spike_factor: float):
        self._factor = spike_factor
        self._recent: deque[float] = deque(maxlen=_INTERVALS)

    def fault(self, mean_loss: float, worst_loss: float, gradient_norm: float) -> str | None:
        """What is wrong with an interval, None if nothing: its mean loss, its worst step's, its last gradient."""
        if not math.isfinite(mean_loss + worst_loss):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm):
            return "the gradient is not finite"
        usual = statistics.median(self._recent) if self._recent else math.inf
        if self._factor and worst_loss > self._factor * usual:
            return f"a loss of {worst_loss:.4g} is {worst_loss / usual:.1f} times the usual {usual:.4g}"
        self._recent.append(mean_loss)
        return None
