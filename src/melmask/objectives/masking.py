"""Which patches are hidden. In `masked` (Bool), True means hidden; ids are positions in the flattened grid.

A strategy puts the patches of a view in an order, and the first int(patches * (1 - ratio)) of them stay visible. So all
views have equally many visible patches, whatever the strategy: of the last block or stripe, only a random part stays.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melmask.config import MaskingConfig
from melmask.errors import ConfigError
from melmask.geometry import PatchGrid

_MASK_STREAM = 1
"""Separates the random numbers of the masks from those of the crops (corpus/stream.py), which have the same seed."""


def random_masks(seed: int, step: int, batch: int, patches: int, visible: int) -> Bool[Tensor, "batch patches"]:
    """Hide all but `visible` patches of each crop, uniformly at random; only the arguments decide which.

    One call draws the masks of the whole global batch, so that each process can take its rows.
    """
    noise = np.random.default_rng((_MASK_STREAM, seed, step)).random((batch, patches), dtype=np.float32)
    return _hide_all_but(visible, noise)


def draw_masks(
    masking: MaskingConfig, grid: PatchGrid, seed: int, step: int, batch: int
) -> Bool[Tensor, "batch patches"]:
    """Hide the patches of each crop by the strategy of the settings; only the arguments decide which.

    One call draws the masks of the whole global batch, so that each process can take its rows. A grid that is smaller
    than a block, such as that of a short clip, is one block.
    """
    visible, names = grid.visible_patches(masking.ratio), masking.strategies
    if names == ("random",):
        return random_masks(seed, step, batch, grid.patches, visible)
    generator = np.random.default_rng((_MASK_STREAM, seed, step))
    chosen = generator.integers(len(names), size=batch)
    # Noise decides between patches of the same block; without blocks, it decides alone.
    order = generator.random((batch, grid.patches))
    for number, name in enumerate(names):
        rows = np.flatnonzero(chosen == number)
        if name != "random":
            order[rows] += _first_blocks(generator, len(rows), grid, _block_of(masking, grid, name))
    return _hide_all_but(visible, order)


def check_masking(masking: MaskingConfig, grid: PatchGrid) -> None:
    """Check that the masks of a full unit hide something, and leave a whole block or stripe visible.

    Raises:
        ConfigError: they do not.
    """
    visible = grid.visible_patches(masking.ratio)
    # Without a hidden patch the loss would be a mean over nothing, NaN.
    if visible >= grid.patches:
        raise ConfigError(
            f"masking.ratio is {masking.ratio:g}, which hides none of {grid.patches} patches; give a larger one"
        )
    for name in masking.strategies:
        rows, columns = (1, 1) if name == "random" else _block_of(masking, grid, name)
        if rows * columns > visible or rows > grid.rows or columns > grid.columns:
            size = "a smaller masking.block_rows or block_columns" if name == "inverse-blocks" else "masking.stripe=1"
            raise ConfigError(
                f"masking.strategy {name!r} leaves pieces of {rows}x{columns} patches visible, but {visible} of the "
                f"{grid.rows}x{grid.columns} patches stay visible in all; give {size}, or a smaller masking.ratio"
            )


def _block_of(masking: MaskingConfig, grid: PatchGrid, strategy: str) -> tuple[int, int]:
    """Return the rows and columns of a piece that stays visible as a whole."""
    blocks = {
        "inverse-blocks": (masking.block_rows, masking.block_columns),
        "time": (grid.rows, masking.stripe),
        "frequency": (masking.stripe, grid.columns),
    }
    return blocks[strategy]


def _first_blocks(
    generator: np.random.Generator, batch: int, grid: PatchGrid, block: tuple[int, int]
) -> Int[np.ndarray, "batch patches"]:
    """Put blocks down one after another, in a random order of all places; number each patch by the first upon it."""
    # Blocks may hang over the edges, so that every patch lies in equally many places. Where a block spans the grid, it
    # has one place.
    size = [1 if side >= whole else side for side, whole in zip(block, grid, strict=True)]
    places = [1 if side >= whole else whole + side - 1 for side, whole in zip(block, grid, strict=True)]
    numbers = generator.permuted(np.tile(np.arange(places[0] * places[1]), (batch, 1)), axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(numbers.reshape(batch, *places), size, axis=(1, 2))
    return np.broadcast_to(windows.min(axis=(-2, -1)), (batch, *grid)).reshape(batch, grid.patches)


def _hide_all_but(visible: int, order: Float[np.ndarray, "batch patches"]) -> Bool[Tensor, "batch patches"]:
    # The patches with the least numbers stay visible. argpartition finds them without sorting all.
    masked = np.ones(order.shape, dtype=bool)
    np.put_along_axis(masked, np.argpartition(order, visible - 1, axis=1)[:, :visible], False, axis=1)
    return torch.from_numpy(masked)


def visible_and_hidden_ids(
    masked: Bool[Tensor, "batch patches"], visible: int
) -> tuple[Int[Tensor, "batch visible"], Int[Tensor, "batch hidden"]]:
    """Split each row's patch ids, in ascending order; every row must leave `visible` patches unhidden."""
    # A stable sort of False before True gives the visible ids, then the hidden ones, each in ascending order.
    ids = masked.to(torch.uint8).argsort(dim=1, stable=True)
    return ids[:, :visible], ids[:, visible:]
