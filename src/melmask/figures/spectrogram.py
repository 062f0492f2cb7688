"""Draw log-mels with axes: time in s, frequency in Hz on the scale of the bands, values in dB.

Each mel band is a row of the figure, and the lowest band is at the bottom. A band's center frequency is the peak of its
filter, so a tone is brightest at the tick of its frequency.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from melmask.audio.logmel import band_edges_hz, hz_to_mel
from melmask.config import FrontEndConfig
from melmask.figures.figure import INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

COLORMAP = "magma"
_MIN_TICK_GAP = 0.085
"""The labels of ticks that are closer than this share of the axis would overlap."""


def band_positions(
    frequencies_hz: Float[np.ndarray, " frequencies"], config: FrontEndConfig, resolution: int = 0
) -> Float[np.ndarray, " frequencies"]:
    """Return where frequencies lie on the axis of bands: 0.0 is the peak of the lowest filter, 1.0 of the next one."""
    further = config.further_resolutions[resolution - 1] if resolution else None
    if further is not None and further.scale == "log":
        lowest_hz = band_edges_hz(config, resolution)[1]
        return np.log2(frequencies_hz / lowest_hz) * further.bands_per_octave
    first, last = hz_to_mel(np.array([config.min_hz, config.max_hz]))
    # The filters' peaks divide the mel range into mels + 1 equal parts.
    return (hz_to_mel(frequencies_hz) - first) / (last - first) * (config.mels + 1) - 1


def frequency_ticks_hz(config: FrontEndConfig, resolution: int = 0) -> Float[np.ndarray, " ticks"]:
    """Return the round frequencies (1, 2, 5 times a power of ten) in the figure whose labels do not overlap."""
    candidates = np.array([step * 10.0**power for power in range(1, 6) for step in (1, 2, 5)])
    positions = band_positions(candidates, config, resolution)
    inside = (positions >= -0.5) & (positions <= config.mels - 0.5)
    ticks: list[float] = []
    last = -np.inf
    for frequency_hz, position in zip(candidates[inside], positions[inside], strict=True):
        if position - last >= _MIN_TICK_GAP * config.mels:
            ticks.append(frequency_hz)
            last = position
    return np.array(ticks)


def time_edges_s(frames: int, config: FrontEndConfig) -> tuple[float, float]:
    """Return the left and right edge, in s, of a figure of `frames` frames."""
    # Frame i is centered at i * hop, and its pixels extend half a hop to both sides.
    hop_s = config.hop_ms / 1000
    return -0.5 * hop_s, (frames - 0.5) * hop_s


def draw_spectrogram(
    axes: "Axes",
    values: Float[np.ndarray, "mels frames"],
    config: FrontEndConfig,
    limits: tuple[float, float],
    colormap: str = COLORMAP,
    resolution: int = 0,
) -> "AxesImage":
    """Draw (mels, frames) values, low frequencies at the bottom, with ticks in s and Hz.

    Args:
        axes: where to draw. The x axis becomes time in s, and the y axis the position between bands.
        values: one for each band and frame, in the unit of `limits`; NaN stays transparent.
        config: the front end that the values came from.
        limits: the values of the first and the last color.
        colormap: a matplotlib color map.
        resolution: which resolution of the front end the values are of; 0 is the first.
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
    ticks_hz = frequency_ticks_hz(config, resolution)
    axes.set_yticks(band_positions(ticks_hz, config, resolution), [f"{tick:,.0f}" for tick in ticks_hz])
    axes.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=7.5, pad=2)
    for spine in axes.spines.values():
        spine.set(edgecolor=MUTED, linewidth=0.6)
    return image
