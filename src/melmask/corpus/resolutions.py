"""A store seen with fewer resolutions, so that recipes of one resolution learn from stores of two."""

from dataclasses import replace

import numpy as np

from melmask.corpus.store import Corpus


def first_resolutions(store: Corpus, count: int) -> Corpus:
    """Return the corpus with its first `count` resolutions alone; one that has no more of them is returned as it is."""
    return FirstResolutions(store, count) if store.front_end.resolutions > count else store


class FirstResolutions:
    """A corpus without its last resolutions.

    It keeps the digest of the whole: which resolutions a run hears is among the run's own settings.
    """

    def __init__(self, store: Corpus, count: int):
        self._store, whole, scales = store, store.front_end, store.statistics
        self.folder, self.reading, self.frames = store.folder, store.reading, store.frames
        self.front_end = replace(whole, further_resolutions=whole.further_resolutions[: count - 1])
        self.statistics = replace(
            scales, further_means=scales.further_means[: count - 1], further_stds=scales.further_stds[: count - 1]
        )

    def __len__(self) -> int:
        return len(self._store)

    @property
    def sha256(self) -> str:
        """The digest of the whole corpus."""
        return self._store.sha256

    def read_into(self, out: np.ndarray, clip: int, first_frame: int) -> None:
        """Fill `out` (frames, bands), float16, with the clip's frames from `first_frame` on."""
        whole = np.empty((len(out), self._store.front_end.bands), dtype=out.dtype)
        self._store.read_into(whole, clip, first_frame)
        out[:] = whole[:, : out.shape[1]]
