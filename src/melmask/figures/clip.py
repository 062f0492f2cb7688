"""What the figures of one clip share: its spectrogram with the times of its file, titles, and the keys to colors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from melmask.embedding.encoder import AudioEncoder
from melmask.figures.figure import INK, MUTED
from melmask.figures.spectrogram import COLORMAP, draw_spectrogram, time_edges_s
from melmask.inspection.clips import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

HIDDEN, ALARM = "#dde2e7", "#b3261e"
"""The colors of what is not known or not there, and of a line that must not be overlooked."""
_NARROWEST_INCHES, _WIDEST_INCHES, _INCHES_PER_UNIT = 5.0, 15.0, 4.0
_TITLE_CHARACTERS = 70


def clip_width_inches(clip: Clip, model: AudioEncoder, columns: int = 1) -> float:
    """Return the width of a spectrogram of the clip, one of `columns` side by side: longer ones are wider."""
    units = clip.logmel.shape[1] / model.card.model.frames
    widest = max(_NARROWEST_INCHES, _WIDEST_INCHES / columns)
    return float(np.clip(_INCHES_PER_UNIT * units, _NARROWEST_INCHES, widest))


def clip_edges_s(clip: Clip, model: AudioEncoder) -> tuple[float, float]:
    """Return where the picture of a clip begins and ends, in s of its file."""
    left, right = time_edges_s(clip.logmel.shape[1], model.card.front_end)
    return clip.start_s + left / model.reading.expand, clip.start_s + right / model.reading.expand


def draw_clip(
    axes: "Axes",
    values: Float[np.ndarray, "mels frames"],
    of: tuple[Clip, AudioEncoder],
    limits: tuple[float, float],
    colormap: str = COLORMAP,
    resolution: int = 0,
) -> "AxesImage":
    """Draw one resolution of a clip as `draw_spectrogram` does, with the times and frequencies of its file.

    Sound that the model hears slower (`reading.expand`) has its own times and frequencies in the picture.
    """
    clip, model = of
    image = draw_spectrogram(axes, values, model.card.front_end, limits, colormap, resolution)
    left, right = clip_edges_s(clip, model)
    _, _, low, high = image.get_extent()
    image.set_extent((left, right, low, high))
    axes.set_xlim(left, right)
    if model.reading.expand != 1:
        played_hz = [float(label.get_text().replace(",", "")) for label in axes.get_yticklabels()]
        axes.set_yticks(axes.get_yticks(), [f"{hz * model.reading.expand:,.0f}" for hz in played_hz])
    return image


def draw_patches(
    axes: "Axes", weights: Float[np.ndarray, "rows columns"], of: tuple[Clip, AudioEncoder], **colors: Any
) -> "AxesImage":
    """Draw a value for each patch of a unit, where `draw_clip` draws the patch; `colors` are those of `imshow`."""
    clip, model = of
    left, right = clip_edges_s(clip, model)
    extent = (left, right, -0.5, model.card.front_end.mels - 0.5)
    return axes.imshow(weights, origin="lower", aspect="auto", interpolation="nearest", extent=extent, **colors)


def write_title(axes: "Axes", left: str, right: str = "") -> None:
    """Write what a picture shows above it, on the left, and a note on the right."""
    short = left if len(left) <= _TITLE_CHARACTERS else left[: _TITLE_CHARACTERS - 1] + "…"
    axes.set_title(short, loc="left", pad=4, color=INK, fontsize=8.5, fontweight="bold", parse_math=False)
    axes.set_title(right, loc="right", pad=4, color=MUTED, fontsize=8, parse_math=False)


def head_column(axes: "Axes", text: str) -> None:
    """Write what a column of pictures shows, above the title of its first one."""
    axes.annotate(
        text,
        (0.5, 1),
        (0, 18),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        color=INK,
        fontsize=9,
    )


def draw_key(figure: "Figure", image: Any, axes: Sequence["Axes"], unit: str) -> Any:
    """Draw the key to the colors of `axes`, labeled with their unit."""
    bar = figure.colorbar(image, ax=list(axes), aspect=16, pad=0.012, fraction=0.05)
    bar.ax.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=7.5, pad=2)
    bar.set_label(unit, color=MUTED, fontsize=8)
    bar.outline.set(edgecolor=MUTED, linewidth=0.6)
    return bar


def label_outer(grid: np.ndarray) -> None:
    """Label the axes at the left and at the bottom of a grid of spectrograms, and leave out the ticks of the others."""
    for axes in grid[:-1].ravel():
        axes.tick_params(labelbottom=False)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", color=MUTED, fontsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("frequency (Hz)", color=MUTED, fontsize=8)
