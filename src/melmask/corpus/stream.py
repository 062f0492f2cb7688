"""Batches of crops from a store, each a pure function of (store, configuration, step).

1. position = step * rows from the store + row; epoch, k = divmod(position, crops an epoch).
2. The order of an epoch is a permutation from (seed, epoch). Its entry k names a clip.
3. The crop's offset depends on its position alone, so it is the same for any number of processes and any batch size.
   One generator draws the offsets of a block of positions. A generator for each crop would take longer than reading it.
4. If a clip is shorter than the crop, crops of other clips follow until the crop is full. A generator of that position
   draws them. So the model never sees a constant, and no computation is spent on padding.
5. The last rows of a batch are synthetic sound, as many as `data.synth_share` says. Their number, counted over the
   whole run, is the key that they are drawn from.
6. Threads read batches (rows, frames, bands), float16, ahead of time. They come out in order.

So the position in the data is one integer, the step.
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future

import numpy as np

from melmask.config import DataConfig
from melmask.corpus.store import Corpus
from melmask.corpus.synthetic import SyntheticCrops
from melmask.system.cores import one_thread_each

_BATCHES_AHEAD_PER_READER = 2
# These numbers are part of the seeds, so that each purpose has random numbers of its own.
_ORDER_STREAM, _CROP_STREAM, _FILL_STREAM = 2, 3, 5
_BLOCK = 1024
"""One generator draws the offsets of this many positions."""


class CropStream:
    """Crops of `crop_frames` frames; this process takes rows `rank::processes` of each global batch."""

    def __init__(
        self, store: Corpus, config: DataConfig, crop_frames: int, seed: int, rank: int = 0, processes: int = 1
    ):
        assert config.batch_size % processes == 0
        self._store = store
        self._crop_frames = crop_frames
        self._seed = seed
        self._synthetic_rows = config.synth_crops
        self._store_rows = config.batch_size - config.synth_crops
        rows = np.arange(rank, config.batch_size, processes)
        self._rows, self._drawn = rows[rows < self._store_rows], rows[rows >= self._store_rows] - self._store_rows
        self._synthetic = SyntheticCrops(store.front_end, crop_frames, seed) if config.synth_crops else None
        # A clip is drawn once in an epoch, or as often as crops fit into it if sampling goes by time.
        crops = np.maximum(1, np.rint(store.frames / crop_frames).astype(np.int64))
        self._clip_of = np.arange(len(store)) if config.sampling == "clip" else np.repeat(np.arange(len(store)), crops)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0))

    @property
    def crops_per_epoch(self) -> int:
        """The number of crops in an epoch, in which every clip is drawn (by time: in proportion to its length)."""
        return len(self._clip_of)

    def batch(self, step: int) -> np.ndarray:
        """Return this process' crops of one step, (rows, crop_frames, bands) float16."""
        count = len(self._rows)
        out = np.empty((count + len(self._drawn), self._crop_frames, self._store.front_end.bands), dtype="<f2")
        if count:
            self._read(out[:count], step * self._store_rows + self._rows)
        if self._synthetic is not None:
            for crop, number in zip(out[count:], (step * self._synthetic_rows + self._drawn).tolist(), strict=True):
                self._synthetic.draw_into(crop, number)
        return out

    def _read(self, out: np.ndarray, positions: np.ndarray) -> None:
        """Fill `out` (crops, crop_frames, bands) with the crops at these positions."""
        clips = self._clips_at(positions)
        lengths = self._store.frames[clips]
        taken = np.minimum(lengths, self._crop_frames)
        firsts = (self._draws(positions) * (lengths - taken + 1)).astype(np.int64)
        places = zip(positions.tolist(), clips.tolist(), firsts.tolist(), taken.tolist(), strict=True)
        for crop, (position, clip, first, frames) in zip(out, places, strict=True):
            self._store.read_into(crop[:frames], clip, first)
            if frames < self._crop_frames:
                self._fill(crop[frames:], position)

    def batches(self, first_step: int, steps: int, readers: int) -> Generator[np.ndarray, None, None]:
        """Yield the batches of `steps` steps from `first_step` on. `readers` threads read them ahead of time."""
        pool = one_thread_each(readers)
        ahead: deque[Future[np.ndarray]] = deque()
        try:
            for step in range(first_step, first_step + steps):
                ahead.append(pool.submit(self.batch, step))
                if len(ahead) > _BATCHES_AHEAD_PER_READER * readers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _clips_at(self, positions: np.ndarray) -> np.ndarray:
        epochs, k = np.divmod(positions, self.crops_per_epoch)
        clips = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            clips[of_epoch] = self._clip_of[self._permutation(int(epoch))[k[of_epoch]]]
        return clips

    def _draws(self, positions: np.ndarray) -> np.ndarray:
        """Return a random number in [0, 1) for each of some ascending positions."""
        first, last = int(positions[0]) // _BLOCK, int(positions[-1]) // _BLOCK
        keys = ((_CROP_STREAM, self._seed, block) for block in range(first, last + 1))
        return np.concatenate([np.random.default_rng(key).random(_BLOCK) for key in keys])[positions - first * _BLOCK]

    def _fill(self, crop: np.ndarray, position: int) -> None:
        """Fill the rest of a crop, whose first clip was too short, with crops of other clips."""
        rng = np.random.default_rng((_FILL_STREAM, self._seed, position))
        filled = 0
        while filled < len(crop):
            clip = int(self._clip_of[rng.integers(self.crops_per_epoch)])
            frames = int(self._store.frames[clip])
            taken = min(frames, len(crop) - filled)
            first = int(rng.integers(frames - taken + 1))
            self._store.read_into(crop[filled : filled + taken], clip, first)
            filled += taken

    def _permutation(self, epoch: int) -> np.ndarray:
        # The pair is replaced as a whole, so that threads in neighboring epochs never mix the number of one with the
        # order of the other.
        known, order = self._order
        if known != epoch:
            order = np.random.default_rng((_ORDER_STREAM, self._seed, epoch)).permutation(self.crops_per_epoch)
            self._order = (epoch, order)
        return order
