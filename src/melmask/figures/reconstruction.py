"""Draw what a model hears, what it is shown of that, and what it reconstructs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from melmask.audio.logmel import DB_PER_NATURAL_LOG
from melmask.config import FrontEndConfig, MaskingConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import InputError
from melmask.figures.figure import INK, MUTED, new_figure, save_figure
from melmask.figures.spectrogram import draw_spectrogram, time_edges_s
from melmask.geometry import PatchGrid, grid_of
from melmask.objectives.masking import draw_masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More rows would make the picture higher than a screen.
MAX_CLIPS = 6
_COLUMNS = (
    ("input", "log-mel spectrogram"),
    ("what the model sees", "gray: hidden"),
    ("what it reconstructs", "framed: kept from the input"),
)
_TITLE_CHARACTERS = 64
_HIDDEN = "#dde2e7"
_MIN_RANGE_DB, _MAX_RANGE_DB = 30.0, 70.0
_WIDTH_INCHES, _ROW_INCHES, _MARGIN_INCHES = 9.0, 1.55, 0.75


class _Row(NamedTuple):
    """What is drawn of one resolution of a clip."""

    title: str
    loss: float
    """The error over all resolutions of the clip."""
    resolution: int
    truth: np.ndarray
    """The input in dB, (mels, frames)."""
    shown: np.ndarray
    """The input with hidden patches replaced by the prediction, in dB, (mels, frames)."""
    masked: np.ndarray
    """(rows, columns) of patches, True where hidden; row 0 holds the lowest bands."""


def save_reconstruction_picture(
    path: Path,
    model: AudioEncoder,
    logmels: Float[np.ndarray, "clips mels frames"],
    titles: Sequence[str],
    *,
    mask_ratio: float = 0.75,
    seed: int = 0,
    masking: MaskingConfig | None = None,
) -> None:
    """Write a picture of what the model reconstructs of a few clips; see `reconstruction_figure`.

    Args:
        path: where to write; the suffix gives the format (.png, .svg, .pdf).
        model: a model with a decoder.
        logmels: natural log, not normalized, as `AudioEncoder.logmel` returns them.
        titles: one for each clip.
        mask_ratio: share of the patches that are hidden.
        seed: decides which patches are hidden.
        masking: the ratio and the strategy, such as those of a run, instead of `mask_ratio` hidden at random.

    Raises:
        ConfigError: the model has no decoder, or `mask_ratio` is not between 0 and 1.
        InputError: there are not 1 to 6 clips with a title each, or the clips are too short for two patches.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = reconstruction_figure(model, logmels, titles, mask_ratio=mask_ratio, seed=seed, masking=masking)
    save_figure(figure, path)


def reconstruction_figure(
    model: AudioEncoder,
    logmels: Float[np.ndarray, "clips mels frames"],
    titles: Sequence[str],
    *,
    mask_ratio: float = 0.75,
    seed: int = 0,
    masking: MaskingConfig | None = None,
) -> "Figure":
    """Draw a row for each clip: its log-mel, its visible patches, and the model's prediction of the hidden ones.

    A model of several resolutions has a row for each of them, one below the other.
    Only the first unit of a clip longer than the model's unit is drawn, and only the whole patches of a shorter one.
    The third picture keeps the visible patches of the input, framed, because a model is not trained to predict those.
    Values are in dB relative to a mel power of 1. Each row has one color scale, which reaches from the loudest value
    of its input down by at most 70 dB.

    The arguments and errors are those of `save_reconstruction_picture`, which writes the figure to a file.
    """
    rows = _rows(model, logmels, titles, masking or MaskingConfig(ratio=mask_ratio), seed)
    figure = new_figure(_WIDTH_INCHES, _MARGIN_INCHES + _ROW_INCHES * len(rows))
    grid = figure.subplots(len(rows), len(_COLUMNS), sharex=True, sharey="row", squeeze=False)
    for axes_of_row, row in zip(grid, rows, strict=True):
        _draw_row(figure, axes_of_row, row, model.card.front_end)
    for axes, (name, note) in zip(grid[0], _COLUMNS, strict=True):
        _head_column(axes, name, note)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", color=MUTED, fontsize=8)
    return figure


def _head_column(axes: "Axes", name: str, note: str) -> None:
    """Write what a column shows, above the title of its first picture."""
    for text, points_above, points_high, color in ((name, 34, 10, INK), (note, 23, 8, MUTED)):
        axes.annotate(
            text,
            (0.5, 1),
            (0, points_above),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            color=color,
            fontsize=points_high,
        )


def _rows(
    model: AudioEncoder, logmels: np.ndarray, titles: Sequence[str], masking: MaskingConfig, seed: int
) -> list[_Row]:
    """Hide patches of each clip and let the model predict them."""
    config = model.card.model
    if not 1 <= len(logmels) <= MAX_CLIPS or len(titles) != len(logmels):
        raise InputError(f"{len(logmels)} clips with {len(titles)} titles; give 1 to {MAX_CLIPS} and a title for each")
    columns = min(logmels.shape[2], config.frames) // config.patch_frames
    grid = PatchGrid(grid_of(config).rows, columns)
    if logmels.shape[1] != config.bands or grid.patches < 2:
        raise InputError(
            f"the log-mels are {logmels.shape[1:]}; give ({config.bands}, frames) with frames for two patches or more, "
            f"each ({config.patch_mels}, {config.patch_frames})"
        )
    logmels = logmels[:, :, : columns * config.patch_frames].astype(np.float32)
    # The step is always 0, so a picture drawn later hides the same patches and can be compared.
    masks = draw_masks(masking, grid, seed, 0, len(logmels)).numpy()
    rows = []
    for title, logmel, masked in zip(titles, logmels, masks, strict=True):
        # Clips are reconstructed one at a time, because each title needs the loss of its own clip.
        result = model.reconstruct(logmel[None], masked=masked[None])
        by_patch = masked.reshape(grid.rows, grid.columns)
        pairs = [np.split(values, config.resolutions) for values in (logmel, result.logmel[0])]
        for number, (truth, predicted) in enumerate(zip(*pairs, strict=True)):
            shown = np.where(_of_bands(by_patch, truth.shape), predicted, truth)
            name = title if config.resolutions == 1 else f"{title}, {window_text(model.card.front_end, number)}"
            decibels = (truth * DB_PER_NATURAL_LOG, shown * DB_PER_NATURAL_LOG)
            rows.append(_Row(name, result.loss, number, *decibels, by_patch))
    return rows


def window_text(config: FrontEndConfig, resolution: int) -> str:
    """Say which resolution of a front end is drawn, as in 'window of 25 ms'."""
    window_ms = 1000 * config.win_samples / config.sample_rate_hz
    if resolution:
        window_ms = config.further_resolutions[resolution - 1].window_ms
    return f"window of {window_ms:g} ms"


def _of_bands(by_patch: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the (rows, columns) values of patches for each band and frame of `shape` (mels, frames)."""
    rows, columns = by_patch.shape
    return by_patch.repeat(shape[0] // rows, axis=0).repeat(shape[1] // columns, axis=1)


def _draw_row(figure: "Figure", axes_of_row: np.ndarray, row: _Row, config: FrontEndConfig) -> None:
    """Draw the three pictures of a clip under its title, and the key to their colors."""
    heard, seen, made = axes_of_row
    limits = limits_db(row.truth)
    hidden = _of_bands(row.masked, row.truth.shape)
    draw = partial(draw_spectrogram, config=config, limits=limits, resolution=row.resolution)
    image = draw(heard, row.truth)
    # NaN stays transparent, so hidden patches show the color of the background.
    draw(seen, np.where(hidden, np.nan, row.truth))
    seen.set_facecolor(_HIDDEN)
    draw(made, row.shown)
    frames = row.truth.shape[1]
    _draw_grid(seen, PatchGrid(*row.masked.shape), config, frames)
    _outline_visible(made, row.masked, config, frames)
    title = row.title if len(row.title) <= _TITLE_CHARACTERS else row.title[: _TITLE_CHARACTERS - 1] + "…"
    heard.set_title(title, loc="left", pad=5, color=INK, fontsize=9, fontweight="bold", parse_math=False)
    made.set_title(f"loss {row.loss:.3f} on the hidden patches", loc="right", pad=5, color=MUTED, fontsize=8)
    heard.set_ylabel("frequency (Hz)", color=MUTED, fontsize=8)
    bar = figure.colorbar(image, ax=list(axes_of_row), aspect=14, pad=0.012, fraction=0.03)
    bar.ax.tick_params(length=2.5, width=0.6, color=MUTED, labelcolor=INK, labelsize=7.5, pad=2)
    bar.set_label("dB", color=MUTED, fontsize=8)
    bar.outline.set(edgecolor=MUTED, linewidth=0.6)


def limits_db(values: np.ndarray) -> tuple[float, float]:
    """Return the values of the first and the last color, 30 to 70 dB apart."""
    # A clip of digital silence has a range of 0 dB; with at least 30 dB it is drawn dark, not as amplified noise.
    loudest = float(values.max())
    lowest = max(float(values.min()), loudest - _MAX_RANGE_DB)
    return lowest, max(loudest, lowest + _MIN_RANGE_DB)


def _draw_grid(axes: "Axes", grid: PatchGrid, config: FrontEndConfig, frames: int) -> None:
    """Draw thin lines between patches."""
    x, y = _patch_edges(grid, config, frames)
    for time_s in x[1:-1]:
        axes.axvline(time_s, color="white", linewidth=0.5)
    for position in y[1:-1]:
        axes.axhline(position, color="white", linewidth=0.5)


def _outline_visible(
    axes: "Axes", masked: Bool[np.ndarray, "rows columns"], config: FrontEndConfig, frames: int
) -> None:
    """Draw a frame just inside each visible patch."""
    from matplotlib.collections import LineCollection

    x, y = _patch_edges(PatchGrid(*masked.shape), config, frames)
    # A common outline of several patches would not say which of its sides is the visible one.
    inset_s, inset_bands = 0.004 * (x[-1] - x[0]), 0.008 * (y[-1] - y[0])
    frames_of_patches = []
    for row, column in np.argwhere(~masked):
        left, right = x[column] + inset_s, x[column + 1] - inset_s
        low, high = y[row] + inset_bands, y[row + 1] - inset_bands
        frames_of_patches.append([(left, low), (right, low), (right, high), (left, high), (left, low)])
    # One collection is much faster than a patch object for each frame, and autolim keeps the axes' limits.
    axes.add_collection(LineCollection(frames_of_patches, colors="white", linewidths=0.8), autolim=False)


def _patch_edges(grid: PatchGrid, config: FrontEndConfig, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where patches begin and end: (columns + 1,) in s and (rows + 1,) in positions between bands."""
    x = np.linspace(*time_edges_s(frames, config), grid.columns + 1)
    return x, np.linspace(-0.5, config.mels - 0.5, grid.rows + 1)
