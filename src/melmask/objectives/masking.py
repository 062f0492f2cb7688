"""Which patches are hidden. In `masked` (Bool), True means hidden; ids are positions in the flattened grid."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

_MASK_STREAM = 1
"""Separates the random numbers of the masks from those of the crops (corpus/stream.py), which have the same seed."""


def random_masks(seed: int, step: int, batch: int, patches: int, visible: int) -> Bool[Tensor, "batch patches"]:
    """Hide all but `visible` patches of each crop, uniformly at random; only the arguments decide which.

    One call draws the masks of the whole global batch, so that each process can take its rows.
    """
    noise = np.random.default_rng((_MASK_STREAM, seed, step)).random((batch, patches), dtype=np.float32)
    # The patches with the least noise stay visible. argpartition finds them without sorting all.
    masked = np.ones((batch, patches), dtype=bool)
    np.put_along_axis(masked, np.argpartition(noise, visible - 1, axis=1)[:, :visible], False, axis=1)
    return torch.from_numpy(masked)


def visible_and_hidden_ids(
    masked: Bool[Tensor, "batch patches"], visible: int
) -> tuple[Int[Tensor, "batch visible"], Int[Tensor, "batch hidden"]]:
    """Split each row's patch ids, in ascending order; every row must leave `visible` patches unhidden."""
    # A stable sort of False before True gives the visible ids, then the hidden ones, each in ascending order.
    ids = masked.to(torch.uint8).argsort(dim=1, stable=True)
    return ids[:, :visible], ids[:, visible:]
