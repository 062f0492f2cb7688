"""How the patch tokens of a time step become one vector. To add a pooling, add one entry to `POOLINGS`.

This module imports PyTorch only when a pooling needs it, so that help is quick.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


def _mean_and_max(grid: "torch.Tensor", _cls: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([grid.mean(2), grid.amax(2)], dim=-1)


class Pooling(NamedTuple):
    """One way to turn the tokens of a time step into its vector.

    size: computes the vector's length from (rows, width).  pool: turns the patches' tokens (batch, steps, rows, width)
    and the CLS tokens (batch, 1, width) into vectors (batch, steps, size).
    """

    size: Callable[[int, int], int]
    pool: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    needs_cls: bool = False


POOLINGS = {
    "concat": Pooling(lambda rows, width: rows * width, lambda grid, _: grid.flatten(2)),
    "mean": Pooling(lambda _, width: width, lambda grid, _: grid.mean(2)),
    "mean+max": Pooling(lambda _, width: 2 * width, _mean_and_max),
    "cls": Pooling(lambda _, width: width, lambda grid, cls: cls.expand(-1, grid.shape[1], -1), needs_cls=True),
}
"""How the frequency patches of a time step become its vector: they are put side by side (rows * width), or it is their
mean (width), their mean and maximum (2 * width), or the CLS token of the step's unit (width)."""
