"""Which patches of a unit are hidden from the model: drawn at random, or a box in s and Hz. True means hidden."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from melmask.audio.logmel import band_edges_hz
from melmask.checkpoint.folder import ModelCard
from melmask.config import FrontEndConfig, MaskingConfig
from melmask.errors import ConfigError, InputError
from melmask.geometry import PatchGrid
from melmask.objectives.masking import draw_masks

_TOUCHING = 1e-6
"""A box that ends where a patch begins does not hide it, whatever the rounding of both."""


@dataclass(frozen=True)
class Box:
    """A part of a spectrogram: from `start_s` to `end_s`, and from `low_hz` to `high_hz`."""

    start_s: float
    end_s: float
    low_hz: float
    high_hz: float

    def __post_init__(self) -> None:
        if not (self.start_s < self.end_s and self.low_hz < self.high_hz):
            raise ConfigError(
                f"the box is {self.start_s:g} to {self.end_s:g} s and {self.low_hz:g} to {self.high_hz:g} Hz; give a "
                "start before its end, and a low frequency below a high one"
            )


def mask_of(grid: PatchGrid, masking: MaskingConfig, seed: int, unit: int = 0) -> Bool[np.ndarray, " patches"]:
    """Hide patches of a unit by the ratio and the strategy of `masking`; only the arguments decide which.

    Args:
        grid: The patches of the unit, numbered frequency-major.
        masking: Its ratio, strategy and blocks count.
        seed: Another seed hides other patches.
        unit: The number of the unit within its clip, so that each unit of a clip gets a mask of its own.

    Raises:
        InputError: the grid has a single patch, or the ratio hides none of them.
    """
    stripes = {"frequency": grid.rows, "time": grid.columns}.get(masking.strategy, 2)
    if stripes == 1:
        raise InputError(
            f"a grid of {grid.rows}x{grid.columns} patches has one stripe of {masking.strategy}; give another strategy"
        )
    if grid.visible_patches(masking.ratio) >= grid.patches:
        raise InputError(
            f"a ratio of {masking.ratio:g} hides none of {grid.patches} patches; give a larger one or a longer sound"
        )
    return draw_masks(masking, grid, seed, unit, 1)[0].numpy()


def box_mask(card: ModelCard, grid: PatchGrid, box: Box) -> Bool[np.ndarray, " patches"]:
    """Hide every patch that a box touches, in any resolution of the front end; times count from the unit's start.

    A patch has the bands of the same numbers of all resolutions, which are other frequencies in each. So that nothing
    within the box is seen, it is hidden in all of them.

    Raises:
        InputError: the box touches no patch.
    """
    first_column, last_column = columns_of_box(card, box)
    columns = np.arange(grid.columns)
    touched = (columns >= first_column) & (columns <= last_column)
    rows = np.zeros(grid.rows, dtype=bool)
    for resolution in range(card.front_end.resolutions):
        edges_hz = row_edges_hz(card.front_end, grid.rows, resolution)
        rows |= (edges_hz[1:] > box.low_hz * (1 + _TOUCHING)) & (edges_hz[:-1] < box.high_hz * (1 - _TOUCHING))
    if not touched.any() or not rows.any():
        raise InputError(
            f"no patch lies between {box.start_s:g} and {box.end_s:g} s and between {box.low_hz:g} and "
            f"{box.high_hz:g} Hz; give a box within the sound and within {card.front_end.min_hz:g} to "
            f"{card.front_end.max_hz:g} Hz"
        )
    return (rows[:, None] & touched).ravel()


def columns_of_box(card: ModelCard, box: Box) -> tuple[int, int]:
    """Return the first and the last column of patches that a box touches, counted from the start of the sound."""
    patch_s = card.model.patch_frames * card.front_end.hop_ms / 1000 / card.reading.expand
    # Frame i is centered at i hops, so a patch begins half a hop before its first frame.
    half_hop_s = 0.5 * card.front_end.hop_ms / 1000 / card.reading.expand
    first = (box.start_s + half_hop_s) / patch_s
    last = (box.end_s + half_hop_s) / patch_s
    return int(np.floor(first + _TOUCHING)), int(np.ceil(last - _TOUCHING)) - 1


def row_edges_hz(config: FrontEndConfig, rows: int, resolution: int = 0) -> np.ndarray:
    """Return where the rows of patches begin and end in a resolution, (rows + 1,) in Hz, ascending.

    Two rows meet in the middle between the peaks of their neighboring bands.
    """
    peaks_and_ends = band_edges_hz(config, resolution)
    between = (peaks_and_ends[:-1] + peaks_and_ends[1:]) / 2
    return between[:: config.mels // rows]
