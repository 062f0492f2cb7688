"""Estimate the level and the contrast of hidden patches from those of the visible ones.

A model of normalized targets predicts each patch without its mean and its standard deviation. To draw its prediction as
a log-mel, both are interpolated from the visible patches by Gaussian-process regression (Rasmussen and Williams 2006,
equation 2.25), in each resolution by itself. Nothing of a hidden patch reaches the estimate.
"""

import numpy as np
from jaxtyping import Bool, Float

from melmask.geometry import PatchGrid

# The covariance of two patches' levels, in normalized log-mel, fitted by maximum likelihood to clips of environment,
# speech and music with patches of 16 bands and 16 frames. Rows of patches differ throughout a clip, columns a little in
# all rows together, and near patches resemble each other. Lengths are in patches.
_OF_ROWS, _ROWS_LENGTH = 0.7, 9.0
_OF_COLUMNS, _COLUMNS_LENGTH = 0.17, 21.0
_OF_PATCHES, _PATCHES_ROWS, _PATCHES_COLUMNS = 0.13, 4.0, 2.2
NOISE = 0.001
"""Added to the covariance of a patch with itself."""
LEAST_VARIANCE = 1e-6
"""Added to the variance of a patch, as in the target of the training (`objectives/mae.py`)."""


def estimated_levels(
    values: Float[np.ndarray, "patches resolutions values"], masked: Bool[np.ndarray, " patches"], grid: PatchGrid
) -> tuple[Float[np.ndarray, "patches resolutions 1"], Float[np.ndarray, "patches resolutions 1"]]:
    """Return the mean and the standard deviation of each patch: true where it is visible, else estimated.

    The means are expected around 0, the corpus mean. The logarithms of the standard deviations are expected around
    their mean over the visible patches.

    Args:
        values: What the patches of a clip hold, in normalized log-mel.
        masked: Which of them are hidden; those are not looked at.
        grid: How the patches lie.
    """
    seen = values[~masked].astype(np.float64)
    levels = seen.mean(-1)
    contrasts = 0.5 * np.log(seen.var(-1, ddof=1) + LEAST_VARIANCE)
    center = contrasts.mean(0)
    # Both have the same covariance up to a factor, which the regression does not depend on.
    weights = _regression_weights(masked, grid)
    all_levels = np.empty((len(masked), levels.shape[1]))
    all_contrasts = np.empty_like(all_levels)
    all_levels[~masked], all_levels[masked] = levels, weights @ levels
    all_contrasts[~masked], all_contrasts[masked] = contrasts, center + weights @ (contrasts - center)
    return all_levels[..., None].astype(np.float32), np.exp(all_contrasts)[..., None].astype(np.float32)


def _regression_weights(masked: Bool[np.ndarray, " patches"], grid: PatchGrid) -> Float[np.ndarray, "hidden visible"]:
    """Return the matrix that turns what is known of the visible patches into what is expected of the hidden ones."""
    covariance = patch_covariance(grid)
    of_visible = covariance[np.ix_(~masked, ~masked)] + NOISE * np.eye(int((~masked).sum()))
    return np.linalg.solve(of_visible, covariance[np.ix_(~masked, masked)]).T


def patch_covariance(grid: PatchGrid) -> Float[np.ndarray, "patches patches"]:
    """Return the covariance of the levels of any two patches, which depends only on how far they lie apart."""
    row, column = np.divmod(np.arange(grid.patches), grid.columns)
    rows = np.abs(row[:, None] - row)
    columns = np.abs(column[:, None] - column)
    return (
        _OF_ROWS * np.exp(-rows / _ROWS_LENGTH)
        + _OF_COLUMNS * np.exp(-columns / _COLUMNS_LENGTH)
        + _OF_PATCHES * np.exp(-rows / _PATCHES_ROWS - columns / _PATCHES_COLUMNS)
    )
