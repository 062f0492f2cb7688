"""Log-mels of sounds that are drawn: crops for training, and a corpus of them for runs without any recording.

A crop is a pure function of its key. It passes through the front end by itself, because a batch of crops does not fit
the processor's caches and takes 1.5 to 3 times as long.
"""

import hashlib
import json
from functools import cached_property

import numpy as np
import torch

from melmask.audio.bands import front_end_of, with_second_resolution
from melmask.audio.logmel import LogMelSpectrogram
from melmask.audio.statistics import Moments, moments_of
from melmask.config import FrontEndConfig, PretrainConfig, Reading, Statistics
from melmask.config_text import to_dict
from melmask.errors import ConfigError
from melmask.synth.scenes import GENERATOR, draw_sound
from melmask.system.hardware import available_cores, map_ahead

# Numbers of the seeds, as in `corpus/stream.py`: one for the crops of a run, one for the sounds that are always the
# same.
_CROP_STREAM, _SAMPLE_STREAM = 7, 11
_SAMPLE_CLIPS = 512
_AHEAD = 16
_DIGITS = 4
"""The statistics of the sample are rounded, so that they do not depend on the machine."""


class SyntheticCrops:
    """Crops of synthetic sound, each of `frames` frames and from its own number; many threads may draw them at once."""

    def __init__(self, front_end: FrontEndConfig, frames: int, seed: int, stream: int = _CROP_STREAM):
        self._front_end, self._frames = front_end, frames
        self._key = (stream, seed)
        self._logmel = LogMelSpectrogram(front_end)

    @torch.inference_mode()
    def draw_into(self, out: np.ndarray, number: int) -> None:
        """Fill `out` (frames, bands), float16, with the log-mel of a sound."""
        sound = draw_sound(self._front_end, self._frames, (*self._key, number))
        out[:] = self._logmel.of_padded(torch.from_numpy(sound)[None])[0].T.numpy()


class SyntheticCorpus:
    """A fixed sample of synthetic sounds in the place of a store, for runs whose crops are all synthetic.

    The statistics of the log-mels and everything that a run is watched with come from it. The run itself draws others.
    """

    folder = None
    reading = Reading()

    def __init__(self, front_end: FrontEndConfig, clip_frames: int):
        self.front_end = front_end
        self.frames: np.ndarray = np.full(_SAMPLE_CLIPS, clip_frames)
        self._clips = SyntheticCrops(front_end, clip_frames, 0, _SAMPLE_STREAM)

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of all log-mel values, for each resolution."""
        moments = Moments()
        # They are added up in order, whatever thread drew them.
        for part in map_ahead(self._moments_of, range(len(self)), available_cores(), _AHEAD):
            moments = moments.plus(part)
        found = moments.statistics()
        return Statistics(
            mean=round(found.mean, _DIGITS),
            std=round(found.std, _DIGITS),
            further_means=tuple(round(mean, _DIGITS) for mean in found.further_means),
            further_stds=tuple(round(std, _DIGITS) for std in found.further_stds),
        )

    def _moments_of(self, number: int) -> Moments:
        clip = np.empty((int(self.frames[0]), self.front_end.bands), dtype="<f2")
        self._clips.draw_into(clip, number)
        return moments_of(clip.astype(np.float32), self.front_end.resolutions)

    @property
    def sha256(self) -> str:
        """A digest of what the crops depend on: the front end, the generator, and the crops' length."""
        facts = json.dumps([to_dict(self.front_end), GENERATOR, int(self.frames[0])])
        return hashlib.sha256(facts.encode()).hexdigest()

    def read_into(self, out: np.ndarray, clip: int, first_frame: int) -> None:
        """Fill `out` (frames, bands), float16, with the clip's frames from `first_frame` on."""
        whole = np.empty((int(self.frames[clip]), self.front_end.bands), dtype="<f2")
        self._clips.draw_into(whole, clip)
        out[:] = whole[first_frame : first_frame + len(out)]


def synthetic_corpus(config: PretrainConfig) -> SyntheticCorpus:
    """Return what a run without a store learns from; its front end is that of `data.synth_band`.

    Raises:
        ConfigError: not all of the run's crops are synthetic, no such band exists, or the network does not fit its
            front end.
    """
    if config.data.synth_share < 1:
        raise ConfigError(
            f"there is no STORE, but data.synth_share is {config.data.synth_share:g}; give a store made by melmask "
            "prepare, or --synth 1 to train on synthetic sound alone"
        )
    front_end = front_end_of(config.data.synth_band)
    if config.model.mels != front_end.mels or config.model.resolutions > 2:
        raise ConfigError(
            f"model.mels and resolutions are {config.model.mels} and {config.model.resolutions}, but synthetic sound "
            f"without a store has {front_end.mels} bands in at most 2 resolutions; prepare a store with another front "
            "end, and give it beside --synth 1"
        )
    if config.model.resolutions == 2:
        front_end = with_second_resolution(front_end)
    return SyntheticCorpus(front_end, config.model.frames)
