"""What a model hears, what it is shown of it, and what it makes of that."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from melmask.config import FrontEndConfig, MaskingConfig
from melmask.encoder import AudioEncoder
from melmask.errors import InputError
from melmask.geometry import PatchGrid, grid_of
from melmask.models.masking import random_masks
from melmask.viz.figure import INK, MUTED, new_figure, save_figure
from melmask.viz.spectrogram import DB_PER_NATURAL_LOG, draw_spectrogram, time_edges_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLIPS = 6
_COLUMNS = ("input", "what the model sees", "what it reconstructs")
_HIDDEN = "#dde2e7"
_DYNAMIC_RANGE_DB = 70.0
_WIDTH_INCHES, _ROW_INCHES, _MARGIN_INCHES = 9.0, 1.55, 0.75


class _Row(NamedTuple):
    """One clip. truth, shown: (mels, frames) dB; masked: (rows, columns) of patches, row 0 the lowest bands."""

    title: str
    loss: float
    truth: np.ndarray
    shown: np.ndarray
    masked: np.ndarray


def save_reconstruction_picture(
    path: Path,
    model: AudioEncoder,
    logmels: Float[np.ndarray, "clips mels frames"],
    titles: Sequence[str],
    *,
    mask_ratio: float = 0.75,
    seed: int = 0,
) -> None:
    """Draw what the model reconstructs of a few clips; see `reconstruction_figure`.

    Args:
        path: where to write; the suffix gives the format (.png, .svg, .pdf).
        model: with a decoder.
        logmels: natural log, not normalised, as `AudioEncoder.logmel` gives it.
        titles: one a clip.
        mask_ratio: share of patches hidden.
        seed: decides which.

    Raises:
        ConfigError: the model has no decoder, or `mask_ratio` is not between 0 and 1.
        InputError: not 1 to 6 clips, too few titles, or clips too short to hide a patch and show another.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    save_figure(reconstruction_figure(model, logmels, titles, mask_ratio=mask_ratio, seed=seed), path)


def reconstruction_figure(
    model: AudioEncoder,
    logmels: Float[np.ndarray, "clips mels frames"],
    titles: Sequence[str],
    *,
    mask_ratio: float = 0.75,
    seed: int = 0,
) -> "Figure":
    """A row a clip: the log-mel; its visible patches; and the model's prediction of the others.

    Of a clip longer than the model's unit the first unit is drawn; of a shorter one, its whole patches. The third
    picture shows visible patches, outlined, as they came: a model is not trained to predict those. Values are dB
    relative to a mel power of 1; a row has one colour scale, from the loudest value of its input to 70 dB below.

    The arguments and errors are those of `save_reconstruction_picture`, which writes the figure to a file.
    """
    rows = _rows(model, logmels, titles, mask_ratio, seed)
    figure = new_figure(_WIDTH_INCHES, _MARGIN_INCHES + _ROW_INCHES * len(rows))
    grid = figure.subplots(len(rows), len(_COLUMNS), sharex=True, sharey=True, squeeze=False)
    for axes_of_row, row in zip(grid, rows, strict=True):
        _draw_row(figure, axes_of_row, row, model.card.front_end)
    for axes, name in zip(grid[0], _COLUMNS, strict=True):
        axes.annotate(
            name,
            (0.5, 1),
            (0, 24),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=10,
        )
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", color=MUTED, fontsize=8)
    return figure
