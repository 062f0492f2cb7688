"""Mean and variance of a corpus, one part at a time, merged in any grouping (Chan et al., 1979)."""

from dataclasses import dataclass

import numpy as np

from melmask.config import Statistics
from melmask.errors import InputError


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the values seen so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def plus(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        if not other.count or not self.count:
            return other if other.count else self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Moments(count, mean, self.squares + other.squares + delta**2 * self.count * other.count / count)

    def statistics(self) -> Statistics:
        """The scalar mean and standard deviation.

        Raises:
            InputError: if all values are equal, as for digital silence.
        """
        std = (self.squares / self.count) ** 0.5 if self.count else 0.0
        if not std > 1e-6:
            raise InputError("the sound is all silent or too short, so there is nothing to learn from; check the files")
        return Statistics(mean=self.mean, std=std)


def moments_of(values: np.ndarray) -> Moments:
    """Moments of an array of any shape, accumulated in float64."""
    mean = float(values.mean(dtype=np.float64))
    return Moments(values.size, mean, float(np.square(values - mean, dtype=np.float64).sum()))
