"""Masking strategies: exactly as many visible patches as the ratio says, in the shapes that the strategy promises."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from melmask.config import MaskingConfig
from melmask.errors import ConfigError
from melmask.geometry import PatchGrid, grid_of
from melmask.objectives.base import build_objective
from melmask.objectives.masking import check_masking, draw_masks, random_masks

GRIDS = (PatchGrid(5, 13), PatchGrid(5, 4), PatchGrid(10, 13), PatchGrid(2, 40))
STRATEGIES = ("inverse-blocks", "time", "frequency", "time+frequency", "random+inverse-blocks")


def masks_of(strategy, grid, views=200, seed=0, step=0, **settings):
    masking = MaskingConfig(strategy=strategy, **settings)
    return draw_masks(masking, grid, seed, step, views).unflatten(1, (grid.rows, grid.columns)).numpy()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ratio", [0.75, 0.3, 0.9])
def test_every_view_has_the_visible_patches_of_the_ratio(grid, strategy, ratio):
    masked = masks_of(strategy, grid, ratio=ratio)
    assert masked.dtype == bool
    assert set((~masked).sum((1, 2)).tolist()) == {grid.visible_patches(ratio)}


def test_the_default_draws_what_it_always_drew():
    grid = PatchGrid(5, 13)
    assert torch.equal(draw_masks(MaskingConfig(), grid, 3, 7, 20), random_masks(3, 7, 20, 65, 16))
    drawn = [4, 5, 8, 14, 18, 19, 28, 30, 33, 37, 40, 42, 46, 50, 57, 63]
    # The draws of version 0.1.0, so that its seeded losses stay.
    assert np.flatnonzero(~draw_masks(MaskingConfig(), grid, 0, 0, 1)[0].numpy()).tolist() == drawn


def test_blocks_are_drawn_as_they_always_were():
    masking = MaskingConfig(strategy="inverse-blocks")
    drawn = draw_masks(masking, PatchGrid(5, 13), 0, 0, 1)[0].numpy()
    # A run that is resumed with a later version goes on as it began.
    assert np.flatnonzero(~drawn).tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 28, 29, 30, 41, 42, 43]


@pytest.mark.parametrize(("strategy", "axis"), [("time", 2), ("frequency", 1)])
def test_stripes_are_whole_but_for_one(strategy, axis):
    grid = PatchGrid(5, 13)
    hidden = masks_of(strategy, grid).sum(3 - axis)
    length, count = (5, 13) if strategy == "time" else (13, 5)
    assert (hidden == length).sum(1).min() >= count - 4
    assert ((hidden != 0) & (hidden != length)).sum(1).max() == 1
    # Any stripe may be a visible one.
    assert ((hidden == 0).sum(0) > 0).all()


def test_wider_stripes_stay_side_by_side():
    masked = masks_of("time", PatchGrid(4, 20), ratio=0.5, stripe=5)
    seen = ~masked.all(1)
    runs = [[len(list(run)) for value, run in itertools.groupby(row) if value] for row in seen.tolist()]
    assert max(map(len, runs)) <= 5
    assert np.mean([max(lengths) for lengths in runs]) > 5


def _neighbors(masked):
    """The mean share of a visible patch's neighbors in time that are visible too."""
    pairs = ~masked[:, :, 1:] & ~masked[:, :, :-1]
    return pairs.sum() / (~masked).sum()


def test_visible_blocks_hold_together():
    grid = PatchGrid(8, 64)
    masked = masks_of("inverse-blocks", grid, ratio=0.8, block_rows=5, block_columns=5)
    assert _neighbors(masked) > 0.75 > 0.3 > _neighbors(masks_of("random", grid, ratio=0.8))
    # A whole block is visible in every view that has one away from the edges.
    windows = np.lib.stride_tricks.sliding_window_view(~masked, (5, 5), axis=(1, 2)).all((-2, -1)).any((1, 2))
    assert windows.mean() > 0.9


def test_blocks_leave_no_place_out():
    grid = PatchGrid(5, 13)
    visible = (~masks_of("inverse-blocks", grid, views=20_000)).mean(0)
    # Blocks that hang over an edge are smaller, so more of them are put down: not exactly equal.
    assert visible.min() > 0.8 * 16 / 65
    assert visible.max() < 1.2 * 16 / 65


def test_masks_are_a_function_of_seed_and_step_alone(configure):
    grid = PatchGrid(5, 13)
    for strategy in STRATEGIES:
        one = masks_of(strategy, grid, seed=1, step=2)
        np.testing.assert_array_equal(one, masks_of(strategy, grid, seed=1, step=2))
        assert not (one == masks_of(strategy, grid, seed=1, step=3)).all()
        assert not (one == masks_of(strategy, grid, seed=2, step=2)).all()
        # Rows of a large batch are not the same mask again and again.
        assert len({row.tobytes() for row in one}) > 15
    objective = build_objective(configure("masking.strategy=time", "masking.masks_per_crop=2"))
    whole = objective.draw(3, 0, 1).unflatten(0, (-1, 2))
    for rank in range(2):
        assert torch.equal(whole[rank::2], objective.draw(3, rank, 2).unflatten(0, (-1, 2)))


_OTHER_PROCESS = """
from melmask.config import MaskingConfig
from melmask.geometry import PatchGrid
from melmask.objectives.masking import draw_masks
mask = draw_masks(MaskingConfig(strategy="time+inverse-blocks"), PatchGrid(5, 13), 5, 6, 7)
__import__("sys").stdout.write(mask.numpy().tobytes().hex())
"""


def test_another_process_draws_the_same_masks():
    drawn = subprocess.run([sys.executable, "-c", _OTHER_PROCESS], capture_output=True, text=True, check=True).stdout
    masking = MaskingConfig(strategy="time+inverse-blocks")
    assert drawn == draw_masks(masking, PatchGrid(5, 13), 5, 6, 7).numpy().tobytes().hex()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strategy": "inverse_blocks"},
            "masking.strategy is 'inverse_blocks'; give random, inverse-blocks, time, freq",
        ),
        ({"strategy": ""}, "masking.strategy is ''; give random"),
        ({"strategy": "time+"}, "masking.strategy is 'time.'; give random"),
        ({"block_rows": 0}, "masking.block_rows is 0; give 1 to"),
        ({"strategy": "inverse-blocks", "block_rows": 6, "block_columns": 1}, "pieces of 6x1 patches visible, but 16"),
        ({"strategy": "inverse-blocks", "block_columns": 6}, "pieces of 3x6 .* a smaller masking.block_rows or"),
        ({"strategy": "time+frequency", "ratio": 0.9}, "'frequency' leaves pieces of 1x13 .* but 6 of the 5x13"),
        ({"strategy": "time", "stripe": 4}, "pieces of 5x4 patches .* give masking.stripe=1, or a smaller"),
        ({"ratio": 1e-9}, "hides none of 65 patches; give a larger one"),
    ],
)
def test_masks_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_masking(MaskingConfig(**settings), PatchGrid(5, 13))


def test_the_default_fits_every_strategy(configure):
    for strategy in STRATEGIES:
        for frames in (208, 304, 512):
            check_masking(MaskingConfig(strategy=strategy), PatchGrid(5, frames // 16))
    with pytest.raises(ConfigError, match="pieces of 3x3 patches visible, but 5 of the 5x4"):
        build_objective(configure("masking.strategy=inverse-blocks"))
    assert grid_of(configure().model) == (5, 4)
