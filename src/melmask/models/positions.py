"""Fixed sine-cosine position tables, computed from the grid and never stored or learned."""

import numpy as np
import torch

from melmask.geometry import PatchGrid


def grid_positions(width: int, grid: PatchGrid, cls_token: bool) -> torch.Tensor:
    """Return a 2-D table, ([1 +] patches, width) float32: the first half encodes time, the second frequency.

    Each half is [sin, cos] of position / 10000 ** (i / (width / 4)); the CLS row is zeros (MAE, arXiv 2111.06377).
    """
    row, column = np.meshgrid(np.arange(grid.rows), np.arange(grid.columns), indexing="ij")
    table = np.concatenate([_sine_cosine(width // 2, column.ravel()), _sine_cosine(width // 2, row.ravel())], axis=1)
    return _with_cls_row(table, cls_token)


def line_positions(width: int, grid: PatchGrid, cls_token: bool) -> torch.Tensor:
    """Return a 1-D table over the tokens, ([1 +] patches, width) float32: even columns sin, odd columns cos."""
    angle = np.arange(grid.patches)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    table = np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle))
    return _with_cls_row(table, cls_token)


def _sine_cosine(width: int, position: np.ndarray) -> np.ndarray:
    angle = np.outer(position, 1 / 10000 ** (np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _with_cls_row(table: np.ndarray, cls_token: bool) -> torch.Tensor:
    table = np.concatenate([np.zeros((int(cls_token), table.shape[1])), table])
    return torch.from_numpy(table.astype(np.float32))
