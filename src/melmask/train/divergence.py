"""Has the training broken down? What is not finite, or a loss far above those before it."""

import math
import statistics
from collections import deque
from collections.abc import Sequence

_INTERVALS = 11
"""The median of so many log intervals is what a spike is measured by."""


class LossWatch:
    """Judges losses by those of the log intervals before; `recent` is all its state, mean losses, oldest first."""

    def __init__(self, spike_factor: float, recent: Sequence[float] = ()):
        self._factor = spike_factor
        self.recent: deque[float] = deque(recent, maxlen=_INTERVALS)

    def fault(self, mean_loss: float, worst_loss: float, gradient_norm: float) -> str | None:
        """What is wrong with the steps since the last log, None if nothing: mean and worst loss, the last gradient."""
        if not math.isfinite(mean_loss + worst_loss):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm):
            return "the gradient is not finite"
        usual = statistics.median(self.recent) if self.recent else math.inf
        if self._factor and worst_loss > self._factor * usual:
            return f"a loss of {worst_loss:.4g} is {worst_loss / usual:.1f} times the usual {usual:.4g}"
        return None
