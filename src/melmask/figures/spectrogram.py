"""Axes for log-mels: time in s, frequency in Hz on the mel scale, values in dB.

A band is a row of the picture, the lowest at the bottom. Its centre frequency is the peak of its filter, so that a
tone of some frequency is brightest at that frequency's tick.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from melmask.audio.logmel import hz_to_mel
from melmask.config import FrontEndConfig
from melmask.figures.figure import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DB_PER_NATURAL_LOG = float(10 / np.log(10))
"""Multiplies the natural logarithm of a power to give decibels."""
COLORMAP = "magma"
_MIN_TICK_GAP = 0.085
"""Ticks closer than this share of the axis would print their labels over each other."""


def band_positions(
    frequencies_hz: Float[np.ndarray, " frequencies"], config: FrontEndConfig
) -> Float[np.ndarray, " frequencies"]:
    """Where frequencies lie between the bands: 0.0 is the peak of the lowest filter, 1.0 of the next."""
    first, last = hz_to_mel(np.array([config.min_hz, config.max_hz]))
    # The filters' peaks divide the mel range into mels + 1 equal parts.
    return (hz_to_mel(frequencies_hz) - first) / (last - first) * (config.mels + 1) - 1


def frequency_ticks_hz(config: FrontEndConfig) -> Float[np.ndarray, " ticks"]:
    """Round frequencies (1, 2, 5 times a power of ten) inside the picture, far enough apart to be labelled."""
    candidates = np.array([step * 10.0**power for power in range(1, 6) for step in (1, 2, 5)])
    positions = band_positions(candidates, config)
    inside = (positions >= -0.5) & (positions <= config.mels - 0.5)
    ticks: list[float] = []
    last = -np.inf
    for frequency_hz, position in zip(candidates[inside], positions[inside], strict=True):
        if position - last >= _MIN_TICK_GAP * config.mels:
            ticks.append(frequency_hz)
            last = position
    return np.array(ticks)


def time_edges_s(frames: int, config: FrontEndConfig) -> tuple[float, float]:
    """Left and right edge of a picture of `frames` frames, in s: frame i is centred at i * hop."""
    hop_s = config.hop_ms / 1000
    return -0.5 * hop_s, (frames - 0.5) * hop_s


def draw_spectrogram(
    axes: "Axes",
    values: Float[np.ndarray, "mels frames"],
    config: FrontEndConfig,
    limits: tuple[float, float],
    colormap: str = COLORMAP,
) -> "AxesImage":
    """Draw (mels, frames) values, low frequencies at the bottom, with ticks in s and Hz.

    Args:
        axes: where to draw; its x axis becomes time in s, its y axis the position between bands.
        values: one a band and frame, in whatever unit `limits` has; NaN is left transparent.
        config: the front end that the values came from.
        limits: the values of the first and the last colour.
        colormap: a matplotlib colour map.
    """
    left, right = time_edges_s(values.shape[1], config)
    image = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=colormap,
        vmin=limits[0],
        vmax=limits[1],
        extent=(left, right, -0.5, config.mels - 0.5),
    )
    ticks_hz = frequency_ticks_hz(config)
    axes.set_yticks(band_positions(ticks_hz, config), [f"{tick:,.0f}" for tick in ticks_hz])
    axes.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=7.5, pad=2)
    for spine in axes.spines.values():
        spine.set(edgecolor=MUTED, linewidth=0.6)
    return image
