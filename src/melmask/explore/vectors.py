"""The scene vectors of a collection in memory, filled while it is embedded, and small enough for a million points."""

import threading

import numpy as np

from melmask.models.whitening import Whitening

_MOST_BYTES = 1 << 30
_FEWEST_KEPT = 64
_SAMPLE_ROWS = 2048


class PointVectors:
    """One vector for each point, float32.

    The vectors of a very large collection are turned onto the principal axes of its first ones, and only so many
    numbers of each are kept that all of them fill one gigabyte. That changes the similarity of two vectors little.

    Whitened vectors are kept as they are. `plain` turns them back, for maps.

    Attributes: `known` (points,) bool, `durations_s` (points,) float32 (NaN where unknown), `failed`, the reasons by
    point.
    """

    def __init__(self, count: int, dimensions: int, whitening: Whitening | None = None):
        self.dimensions = min(dimensions, max(_FEWEST_KEPT, _MOST_BYTES // (4 * max(1, count))))
        self.known = np.zeros(count, bool)
        self.durations_s = np.full(count, np.nan, np.float32)
        self.failed: dict[int, str] = {}
        # The operating system gives memory to rows of zeros only when they are filled.
        self._rows = np.zeros((count, self.dimensions), np.float32)
        self._axes: np.ndarray | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._reduces = self.dimensions < dimensions
        self._plain = None if whitening is None else whitening.undoing()
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """Number of points that are embedded, or failed."""
        return int(self.known.sum()) + len(self.failed)

    @property
    def rows(self) -> np.ndarray:
        """(points, dimensions) float32; zeros where a point is not known."""
        return self._rows

    @property
    def plain(self) -> np.ndarray | None:
        """The matrix (dimensions, D) that turns rows into vectors before whitening, but for their mean, or None."""
        return self._plain if self._plain is None or self._axes is None else self._axes.T @ self._plain

    def add(self, points: np.ndarray, vectors: np.ndarray, durations_s: np.ndarray) -> None:
        """Take in the vectors (n, D) of the points (n,)."""
        with self._lock:
            self.durations_s[points] = durations_s
            if not self._reduces:
                self._keep(points, vectors)
                return
            if self._axes is None:
                self._waiting.append((points, vectors))
                if sum(len(some) for some, _ in self._waiting) >= min(_SAMPLE_ROWS, len(self.known)):
                    self._settle()
                return
            self._keep(points, vectors @ self._axes)

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Bring other vectors (n, D) into the form of `rows`."""
        return vectors if self._axes is None else vectors @ self._axes

    def finish(self) -> None:
        """Take in what still waits for axes: no more vectors will come."""
        with self._lock:
            if self._waiting:
                self._settle()

    def _settle(self) -> None:
        sample = np.concatenate([vectors for _, vectors in self._waiting])
        # Axes of the second moment, not of the variance: inner products are what they have to keep.
        _, axes = np.linalg.eigh(sample.T.astype(np.float64) @ sample)
        self._axes = np.ascontiguousarray(axes[:, ::-1][:, : self.dimensions].astype(np.float32))
        for points, vectors in self._waiting:
            self._keep(points, vectors @ self._axes)
        self._waiting = []

    def _keep(self, points: np.ndarray, vectors: np.ndarray) -> None:
        self._rows[points] = vectors
        self.known[points] = True
