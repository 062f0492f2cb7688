"""Partial whitening: damp the directions that scene vectors share, so that what tells sounds apart counts.

A few directions, such as level and background, hold most of the variance of scene vectors. They decide which sounds are
neighbors, and a linear classifier with a penalty prefers them. Whitening standardizes each number and scales the
strongest directions down towards a weaker one (after "All-but-the-Top", Mu and Viswanath, ICLR 2018, which removes
them, and arXiv 2103.15316, which whitens all). Its numbers come from the sound that the model was trained on, without
labels, and belong to the model. So a vector is still a pure function of the audio and the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

T = TypeVar("T", bound=Any)

SCENES_PER_DIRECTION = 8
"""So many scene vectors at least are needed for each direction, so that it is not one of the sample alone."""
_LEVEL = 2
"""The strength that K directions approach is that of the one whose number is this many times K."""
_STRENGTH = 1 / 3
"""A direction of variance v keeps (level / v) ** _STRENGTH of its amplitude. With 1/2 all would be equally strong; then
kinds as broad as speech and music, which the strongest directions tell apart, need many more labels (docs/log.md)."""
_LEAST_SHARE = 1e-6
_CONSTANT = 1e-4
"""A number whose deviation is below this share of the median deviation is constant but for rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """A linear map of scene vectors of S numbers, learned from many of them."""

    mean: Float[np.ndarray, " S"]
    deviation: Float[np.ndarray, " S"]
    directions: Float[np.ndarray, "K S"]
    """The strongest principal directions of the standardized vectors, each of length 1."""
    gains: Float[np.ndarray, " K"]
    """What remains of each of them, between 0 and 1."""

    def __call__(self, scenes: Float[np.ndarray, "*clips S"]) -> Float[np.ndarray, "*clips S"]:
        """Return the whitened vectors."""
        return whitened(scenes, **self.arrays())

    def undoing(self) -> Float[np.ndarray, "S S"]:
        """Return the matrix that turns whitened vectors back (vectors @ matrix), but for their mean.

        Principal components are those of the vectors as they were: whitened ones have no strongest direction.
        """
        amplified = self.directions.T @ ((1 / self.gains - 1)[:, None] * self.directions)
        matrix: np.ndarray = (np.eye(len(self.mean), dtype=np.float32) + amplified) * self.deviation
        return matrix

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the numbers by name, as files hold them."""
        return {name: getattr(self, name) for name in whitening_shapes(0, 0)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Whitening":
        """Return the whitening of these numbers; the directions may have any length and precision."""
        found = {name: np.ascontiguousarray(arrays[name], dtype=np.float32) for name in whitening_shapes(0, 0)}
        lengths = np.linalg.norm(found["directions"], axis=1, keepdims=True)
        found["directions"] /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return cls(**found)


def whitened(scenes: T, mean: T, deviation: T, directions: T, gains: T) -> T:
    """Return whitened vectors; NumPy's arrays and PyTorch's tensors, also those of an exported graph, will do."""
    x = (scenes - mean) / deviation
    return x + ((x @ directions.T) * (gains - 1)) @ directions


def whitening_shapes(directions: int, size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the numbers of a whitening, by name, for scene vectors of `size` numbers."""
    return {"mean": (size,), "deviation": (size,), "directions": (directions, size), "gains": (directions,)}


def fit_whitening(scenes: Float[np.ndarray, "clips S"], directions: int) -> Whitening | None:
    """Learn a whitening from scene vectors; None if they are too few for a single direction.

    Args:
        scenes: Scene vectors of many sounds.
        directions: How many directions to damp; fewer if there are not `SCENES_PER_DIRECTION` vectors for each.
    """
    count = min(directions, len(scenes) // SCENES_PER_DIRECTION, (scenes.shape[1] - 1) // _LEVEL)
    if count < 1:
        return None
    values = scenes.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    deviation[deviation <= _CONSTANT * np.median(deviation)] = 1.0
    standardized = (values - mean) / deviation
    # The products of the vectors with each other have the same spectrum as their covariance, and are fewer for a wide
    # network.
    variances, vectors = np.linalg.eigh(standardized @ standardized.T)
    strongest = np.arange(len(variances) - 1, len(variances) - 1 - count, -1)
    found = (standardized.T @ vectors[:, strongest]).T
    # Of fewer different sounds than directions, nothing else is left.
    level = max(_LEAST_SHARE * variances[-1], variances[-1 - _LEVEL * count])
    # A direction of less than that is of rounding errors, and stays as it is.
    gains = (level / np.maximum(variances[strongest], level)) ** _STRENGTH
    arrays = {"mean": mean, "deviation": deviation, "directions": found, "gains": gains}
    return Whitening.of_arrays(arrays)
