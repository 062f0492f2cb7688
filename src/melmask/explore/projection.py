"""Maps: two numbers for each point, from the vectors of a collection."""

import threading

import numpy as np
import torch

from melmask.explore.vectors import PointVectors

PCA = "pca"
_SAMPLE_ROWS = 50_000
_INNER = 0.995
"""Share of the points that lie within the map's square, on each axis; those beyond are moved to its edge."""


class Projections:
    """The maps of a collection, computed when they are asked for, and again when many points have been added."""

    def __init__(self, vectors: PointVectors):
        self._vectors, self._lock = vectors, threading.Lock()
        self._axes: np.ndarray | None = None
        self._fitted = 0

    @property
    def names(self) -> list[str]:
        """The maps that can be asked for."""
        return [PCA]

    def points(self, name: str) -> np.ndarray:
        """Return the map (points, 2) float32 in [-1, 1]; NaN where a point is not embedded.

        Raises:
            KeyError: there is no such map.
        """
        if name not in self.names:
            raise KeyError(name)
        with self._lock:
            return self._pca()

    def _pca(self) -> np.ndarray:
        known = np.flatnonzero(self._vectors.known)
        found = np.full((len(self._vectors.known), 2), np.nan, np.float32)
        if not len(known):
            return found
        rows = self._vectors.rows
        if self._axes is None or len(known) > 1.2 * self._fitted:
            self._axes, self._fitted = _principal_axes(rows, known, self._axes), len(known)
        for start in range(0, len(known), _SAMPLE_ROWS):
            some = known[start : start + _SAMPLE_ROWS]
            found[some] = rows[some] @ self._axes
        found[known] = in_square(found[known])
        return found


def _principal_axes(rows: np.ndarray, known: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Return the two axes (D, 2) of largest variance, turned so that a map that was shown before does not flip."""
    sample = known[:: max(1, len(known) // _SAMPLE_ROWS)]
    centered = rows[sample].astype(np.float64)
    centered -= centered.mean(axis=0)
    # Of few points with many dimensions, the products of the points are the smaller matrix.
    matrix = torch.from_numpy(centered)
    if len(sample) < centered.shape[1]:
        _, vectors = torch.linalg.eigh(matrix @ matrix.T)
        axes = (matrix.T @ vectors.flip(1)[:, :2]).numpy()
    else:
        axes = torch.linalg.eigh(matrix.T @ matrix)[1].flip(1)[:, :2].numpy()
    axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    axes = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    like = axes if before is None else before
    signs = np.sign((axes * like).sum(axis=0)) if before is not None else np.sign(axes.sum(axis=0))
    return (axes * np.where(signs == 0, 1.0, signs)).astype(np.float32)


def in_square(points: np.ndarray) -> np.ndarray:
    """Move and scale points (n, 2) into [-1, 1], both axes alike, so that distances keep their meaning."""
    low, high = np.quantile(points, [1 - _INNER, _INNER], axis=0)
    center = (low + high) / 2
    scale = float(((high - low) / 2).max()) or 1.0
    return np.clip((points - center) / (1.05 * scale), -1, 1).astype(np.float32)
