"""Draw a clip, its visible part, its reconstruction, and where the reconstruction is wrong."""

from typing import TYPE_CHECKING

import numpy as np

from melmask.audio.logmel import DB_PER_NATURAL_LOG
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.reconstruction import predicts_normalized
from melmask.figures.clip import (
    ALARM,
    HIDDEN,
    clip_edges_s,
    clip_width_inches,
    draw_clip,
    draw_key,
    head_column,
    label_outer,
    write_title,
)
from melmask.figures.figure import INK, MUTED, new_figure
from melmask.figures.reconstruction import limits_db, window_text
from melmask.figures.spectrogram import COLORMAP
from melmask.inspection.clips import Clip
from melmask.inspection.reconstruction import ClipReconstruction, Predictability, over_bands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW_INCHES, _MARGIN_INCHES = 1.55, 0.9
_ERROR_LIMITS, _ERRORS = (0.0, 20.0), "cividis"
"""What is further off has the last color. A patch of silence for a loud one is further off than that."""
_GAIN_LIMITS, _GAINS = (-10.0, 10.0), "RdBu"


def error_map_figure(model: AudioEncoder, made: ClipReconstruction) -> "Figure":
    """Draw four spectrograms, one below the other: input, visible part, reconstruction, and error.

    A model of several resolutions has a column for each. The first three share a color scale in dB relative to a mel
    power of 1; the error is in dB, and gray where nothing was hidden. The reconstruction keeps the visible patches.

    Args:
        model: The model that made the reconstruction.
        made: What `inspection.reconstruction.reconstruct_clip` returned.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    clip, over = made.clip, over_bands(made.masked, model.card.model)
    truth, shown = clip.logmel * DB_PER_NATURAL_LOG, made.logmel * DB_PER_NATURAL_LOG
    rows = (truth, np.where(over, np.nan, truth), shown, np.where(over, np.abs(shown - truth), np.nan))
    figure, grid = _panels(model, clip, len(rows))
    figure.supxlabel(_summary(model, made), x=0.01, ha="left", color=ALARM if made.leak else MUTED, fontsize=8)
    for number, column in enumerate(grid.T):
        parts = [np.split(row, model.card.model.resolutions)[number] for row in rows]
        limits = limits_db(parts[0])
        images = [
            draw_clip(axes, part, (clip, model), limits, resolution=number)
            for axes, part in zip(column[:3], parts, strict=False)
        ]
        of_error = draw_clip(column[3], parts[3], (clip, model), _ERROR_LIMITS, _ERRORS, number)
        for axes, title in zip(column, ("input", "what the model sees", "what it reconstructs"), strict=False):
            write_title(axes, title)
        for unit, _ in clip.units(model):
            # Units are reconstructed independently of each other.
            if unit.start:
                column[1].axvline(_unit_starts_s(model, clip, unit), color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        write_title(column[3], "error of the reconstruction", f"mean {np.nanmean(parts[3]):.1f} dB")
        draw_key(figure, images[0], column[:3], "dB")
        draw_key(figure, of_error, column[3:], "dB off")
    return figure


def _unit_starts_s(model: AudioEncoder, clip: Clip, unit: slice) -> float:
    left, right = clip_edges_s(clip, model)
    return left + (right - left) * unit.start * model.card.model.patch_frames / clip.logmel.shape[1]


def _summary(model: AudioEncoder, made: ClipReconstruction) -> str:
    """Say in one line what is hidden, how far off the reconstruction is, and where its levels are from."""
    text = (
        f"{100 * made.masked.mean():.0f} % hidden; mean error {made.error_db:.1f} dB, and {made.filled_db:.1f} dB if "
        "each hidden patch were filled with the level of its neighbors"
    )
    if not predicts_normalized(model.card):
        return text
    if made.leak:
        return (
            f"{text}; LEAKED: hidden patches are drawn with their own level and contrast, which the model did not see"
        )
    return f"{text}; levels are estimated from the visible patches"


def predictability_figure(model: AudioEncoder, found: Predictability) -> "Figure":
    """Draw a clip, the mean error of the model over many masks, and how much better it is than a filled patch.

    In the last picture, blue is what the model knows beyond the level of the neighboring patches, and red is where
    that level would have been nearer. A model of several resolutions has a column for each.

    Args:
        model: The model that made the reconstructions.
        found: What `inspection.reconstruction.predictability` returned.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    clip = found.clip
    truth, gains = clip.logmel * DB_PER_NATURAL_LOG, found.filled_db - found.errors_db
    figure, grid = _panels(model, clip, 3)
    for number, column in enumerate(grid.T):
        of_input, of_errors, of_gains = (
            np.split(part, model.card.model.resolutions)[number] for part in (truth, found.errors_db, gains)
        )
        panels = (
            (of_input, limits_db(of_input), COLORMAP, "input", "", "dB"),
            (
                *(of_errors, _ERROR_LIMITS, _ERRORS, f"mean error over {found.masks} masks"),
                *(f"mean {np.nanmean(of_errors):.1f} dB", "dB off"),
            ),
            (
                *(of_gains, _GAIN_LIMITS, _GAINS, "nearer than the level of the neighbors"),
                *(f"mean {np.nanmean(of_gains):+.1f} dB", "dB nearer"),
            ),
        )
        for axes, (values, limits, colors, title, note, unit) in zip(column, panels, strict=True):
            image = draw_clip(axes, values, (clip, model), limits, colors, resolution=number)
            write_title(axes, title, note)
            draw_key(figure, image, [axes], unit)
    return figure


def _panels(model: AudioEncoder, clip: Clip, rows: int) -> tuple["Figure", np.ndarray]:
    """Return an empty figure with a row for each picture and a column for each resolution, and its axes."""
    columns = model.card.model.resolutions
    figure = new_figure((clip_width_inches(clip, model, columns) + 1.0) * columns, _MARGIN_INCHES + _ROW_INCHES * rows)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
    figure.suptitle(clip.name, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold", parse_math=False)
    label_outer(grid)
    for axes in grid.ravel():
        # What is NaN stays transparent, so the background shows where nothing is hidden, or all.
        axes.set_facecolor(HIDDEN)
    if columns > 1:
        for number, axes in enumerate(grid[0]):
            head_column(axes, window_text(model.card.front_end, number))
    return figure, grid
