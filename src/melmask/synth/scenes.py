"""Whole sounds as a microphone would record them: several sources, a room, noise, a level, and sometimes silence.

The same key gives the same sound. On another machine, or with another release of NumPy, it may be another one.
"""

import numpy as np

from melmask.config import FrontEndConfig
from melmask.geometry import samples_under_frames
from melmask.synth.draw import Draw, Signal32, rms
from melmask.synth.rooms import transmitted
from melmask.synth.sources import SOURCES

GENERATOR = 1
"""Number of the generator: a change that gives other sounds gets the next one."""
SILENT_SHARE = 0.01
"""Share of the sounds that are digital silence, which files hold too."""

_SOUNDS = tuple(source for source, _ in SOURCES.values())
_EDGES = np.cumsum([weight for _, weight in SOURCES.values()])
_EMPTY = 1e-6
_LAYERS = (0.4, 0.75, 0.92)
"""A sound has one source with the first probability, at most two with the second, and so on."""


def draw_sound(front_end: FrontEndConfig, frames: int, key: tuple[int, ...]) -> Signal32:
    """Draw the sound (samples,) of a crop of so many frames, within [-1, 1], with all that its frames reach.

    Args:
        front_end: Decides the rate, the band of the pitches and the scale of time.
        frames: The length of the crop.
        key: Chooses the sound; numbers of 0 or more.
    """
    draw = Draw.for_crop(front_end, frames, key)
    samples = samples_under_frames(frames, front_end)
    if draw.chance(SILENT_SHARE):
        return np.zeros(samples, dtype=np.float32)
    return _recorded(draw, _mixed(draw))[:samples]


def _mixed(draw: Draw) -> Signal32:
    """Return the sum of some layers, whose levels differ by up to 30 dB."""
    mixture = np.zeros(draw.samples, dtype=np.float32)
    for _ in range(1 + int(np.searchsorted(_LAYERS, draw.rng.random()))):
        source = _SOUNDS[int(np.searchsorted(_EDGES[:-1] / _EDGES[-1], draw.rng.random()))]
        layer = source(draw)
        mixture += layer * np.float32(10 ** (-draw.uniform(0.0, 30.0) / 20) / rms(layer))
    return mixture


def _recorded(draw: Draw, mixture: Signal32) -> Signal32:
    """Return the mixture as a recording: through a room, with noise, at some level, maybe clipped or cut."""
    sound = transmitted(draw, mixture)
    level = rms(sound)
    # A single event may lie beyond the end, and a recording of nothing has noise.
    empty = level < _EMPTY
    if empty:
        level, sound = 1.0, np.zeros_like(sound)
    if draw.chance(0.78) or empty:
        noise = draw.noise(draw.spectral_shape(4.0, (-7.0, 0.0)))
        sound = sound + noise * np.float32(level * 10 ** (-draw.uniform(5.0, 80.0) / 20))
    wanted = 10 ** (np.clip(-26 + 11 * draw.rng.standard_normal(), -75, -8) / 20)
    sound = sound * np.float32(wanted / rms(sound))
    if draw.chance(0.1):
        # Beside the recording, files are padded with zeros.
        edges = np.sort(draw.rng.integers(draw.samples, size=2))
        sound[: edges[0] if draw.chance(0.5) else 0] = 0
        sound[edges[1] :] = 0
    return np.clip(sound, -1, 1)
