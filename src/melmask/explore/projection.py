"""Maps: two numbers for each point, from the vectors of a collection."""

import hashlib
import threading
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from melmask.explore.vectors import PointVectors
from melmask.system.arrays import read_arrays
from melmask.system.extras import require
from melmask.system.files import atomic_write
from melmask.system.terminal import note

PCA, UMAP = "pca", "umap"
_DIMENSIONS, _MOST_FITTED, _NEAREST = 50, 50_000, 3
_FEWEST_UMAP = 10
"""Of fewer points UMAP finds no neighborhoods; they are shown by PCA."""
_SAMPLE_ROWS = 20_000
_ITERATIONS, _MORE_AXES = 8, 8
_INNER = 0.995
"""Share of the points that lie within the map's square, on each axis; those beyond are moved to its edge."""


class Projections:
    """The maps of a collection, computed when they are asked for, and again when many points have been added."""

    def __init__(self, vectors: PointVectors, folder: Path):
        self._vectors, self._folder = vectors, folder
        # A map that takes minutes does not keep others waiting.
        self._lock, self._slow_lock = threading.Lock(), threading.Lock()
        self._axes: np.ndarray | None = None
        self._fitted = 0
        self._made: tuple[int, np.ndarray] | None = None

    @property
    def names(self) -> list[str]:
        """The maps that can be asked for."""
        return [PCA, UMAP] if find_spec("umap") else [PCA]

    def points(self, name: str) -> np.ndarray:
        """Return the map (points, 2) float32 in [-1, 1]; NaN where a point is not embedded.

        Raises:
            KeyError: there is no such map.
            MissingExtraError: what computes it cannot be imported.
        """
        if name not in self.names:
            raise KeyError(name)
        if name == UMAP:
            with self._slow_lock:
                return self._umap()
        with self._lock:
            return self._pca()

    def _pca(self) -> np.ndarray:
        known = np.flatnonzero(self._vectors.known)
        found = np.full((len(self._vectors.known), 2), np.nan, np.float32)
        if not len(known):
            return found
        if self._made is not None and self._made[0] == len(known):
            return self._made[1]
        rows = self._vectors.rows
        if self._axes is None or len(known) > 1.2 * self._fitted:
            axes = principal_axes(rows, known, 2, self._vectors.plain)
            self._axes = axes if self._axes is None else _turned_like(axes, self._axes)
            self._fitted = len(known)
        for start in range(0, len(known), _SAMPLE_ROWS):
            some = known[start : start + _SAMPLE_ROWS]
            found[some] = rows[some] @ self._axes
        found[known] = in_square(found[known])
        self._made = len(known), found
        return found

    def _umap(self) -> np.ndarray:
        """Compute the map, or read the one of an earlier start with the same points."""
        known = np.flatnonzero(self._vectors.known)
        if len(known) < _FEWEST_UMAP:
            return self.points(PCA)
        found = np.full((len(self._vectors.known), 2), np.nan, np.float32)
        rows = reduced(self._vectors, known)
        digest = hashlib.sha256(rows.tobytes()).hexdigest()
        kept = self._folder / f"{UMAP}.npz"
        with suppress(OSError, ValueError, KeyError):
            of, points = read_arrays(kept, ["digest", "points"])
            if str(of) == digest and points.shape == (len(known), 2) and np.isfinite(points).all():
                found[known] = points
                return found
        found[known] = in_square(_by_umap(rows))
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as file:
            np.savez(file, digest=np.array(digest), points=found[known])
        return found


def reduced(vectors: PointVectors, known: np.ndarray) -> np.ndarray:
    """Return the first 50 principal components (n, 50) float32 of the known points."""
    rows = vectors.rows
    axes = principal_axes(rows, known, _DIMENSIONS, vectors.plain)
    parts = np.array_split(known, 1 + len(known) // _SAMPLE_ROWS)
    return np.concatenate([rows[some] @ axes for some in parts])


def _by_umap(rows: np.ndarray) -> np.ndarray:
    """Return the map (n, 2) of n points; of very many, some are placed by UMAP and the others at their neighbors."""
    require("map")
    import umap

    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _MOST_FITTED)).astype(np.int64)
    note(f"melmask: UMAP of {len(chosen):,} points, which takes a while")
    with warnings.catch_warnings():
        # They speak of settings that nobody here can change.
        warnings.simplefilter("ignore")
        placed = umap.UMAP(n_neighbors=min(15, len(chosen) - 1), random_state=0, n_jobs=1).fit_transform(rows[chosen])
    if len(chosen) == len(rows):
        return np.asarray(placed, np.float32)
    fitted, positions = torch.from_numpy(rows[chosen]), torch.from_numpy(np.asarray(placed, np.float32))
    squares = fitted.square().sum(1)
    found = np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), 1024):
        some = torch.from_numpy(rows[start : start + 1024])
        nearest = (squares - 2 * some @ fitted.T).topk(_NEAREST, largest=False).indices
        found[start : start + 1024] = positions[nearest].mean(1).numpy()
    found[chosen] = positions.numpy()
    return found


def principal_axes(rows: np.ndarray, known: np.ndarray, count: int, plain: np.ndarray | None = None) -> np.ndarray:
    """Return the `count` axes (D, count) float32 of largest variance of the known rows, the largest first.

    With `plain`, they are those of rows @ plain, in the coordinates of the rows.

    They are found by subspace iteration (Halko, Martinsson and Tropp, SIAM Review 53, 2011), a fraction of the time of
    all axes. The same rows give the same axes.
    """
    sample = torch.from_numpy(rows[known[:: max(1, len(known) // _SAMPLE_ROWS)]])
    centered = sample - sample.mean(0)
    if plain is not None:
        centered = centered @ torch.from_numpy(plain)
    dims = centered.shape[1]
    start = np.random.default_rng(0).standard_normal((dims, min(count + _MORE_AXES, dims))).astype(np.float32)
    axes = torch.from_numpy(start)
    for _ in range(_ITERATIONS):
        axes, _ = torch.linalg.qr(centered.T @ (centered @ axes))
    # Within the subspace, the axes are exact.
    within = centered @ axes
    turned = torch.linalg.eigh(within.T @ within)[1].flip(1)[:, :count]
    found = np.zeros((dims, count), np.float32)
    found[:, : turned.shape[1]] = (axes @ turned).numpy()
    found = _turned_like(found, np.ones_like(found))
    return found if plain is None else plain @ found


def _turned_like(axes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Turn axes that point away from earlier ones, so that a map that was shown does not flip."""
    signs = np.sign((axes * before).sum(axis=0))
    return (axes * np.where(signs == 0, 1.0, signs)).astype(np.float32)


def in_square(points: np.ndarray) -> np.ndarray:
    """Move and scale points (n, 2) into [-1, 1], both axes alike, so that distances keep their meaning."""
    low, high = np.quantile(points, [1 - _INNER, _INNER], axis=0)
    center = (low + high) / 2
    scale = float(((high - low) / 2).max()) or 1.0
    return np.clip((points - center) / (1.05 * scale), -1, 1).astype(np.float32)
