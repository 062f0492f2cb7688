"""Mean and variance of a corpus, one part at a time, merged in any grouping (Chan et al., 1979)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from melmask.config import Statistics
from melmask.errors import InputError


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the values seen so far, for each resolution of a front end."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    further: "tuple[Moments, ...]" = ()
    """Those of further resolutions; the other fields are those of the first."""

    def plus(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        if not other.count or not self.count:
            return other if other.count else self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        squares = self.squares + other.squares + delta**2 * self.count * other.count / count
        further = tuple(own.plus(its) for own, its in zip(self.further, other.further, strict=True))
        return Moments(count, mean, squares, further)

    def as_dict(self) -> dict[str, Any]:
        """Return what a file holds; `from_dict` reads it back. A single resolution needs no word of others."""
        further = {"further": [part.as_dict() for part in self.further]} if self.further else {}
        return {"count": self.count, "mean": self.mean, "squares": self.squares, **further}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Moments":
        """Read what `as_dict` returned.

        Raises:
            TypeError: it is something else.
        """
        return cls(**{**values, "further": tuple(map(cls.from_dict, values.get("further", ())))})

    def statistics(self) -> Statistics:
        """The mean and standard deviation of each resolution.

        Raises:
            InputError: if all values are equal, as for digital silence.
        """
        std = (self.squares / self.count) ** 0.5 if self.count else 0.0
        if not std > 1e-6:
            raise InputError("the sound is all silent or too short, so there is nothing to learn from; check the files")
        others = [part.statistics() for part in self.further]
        further_means, further_stds = tuple(part.mean for part in others), tuple(part.std for part in others)
        return Statistics(mean=self.mean, std=std, further_means=further_means, further_stds=further_stds)


def moments_of(values: np.ndarray, resolutions: int = 1) -> Moments:
    """Moments of log-mel values (..., bands), or of any array, accumulated in float64."""
    first, *others = np.split(values, resolutions, axis=-1)
    mean = float(first.mean(dtype=np.float64))
    further = tuple(map(moments_of, others))
    return Moments(first.size, mean, float(np.square(first - mean, dtype=np.float64).sum()), further)
