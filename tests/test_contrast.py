"""The contrast between the masks of a crop: its formula, and that nothing but the batch decides it."""

import numpy as np
import pytest
import torch

from melmask.config import ContrastConfig, Statistics
from melmask.errors import ConfigError
from melmask.objectives.base import build_objective
from melmask.objectives.contrast import contrast
from melmask.train.engine import Engine
from melmask.train.pretrain import pretrain
from melmask.train.processes import Processes

ROWS = 8
SETTINGS = ("masking.masks_per_crop=2", "masking.strategy=time", "contrast.weight=0.5", "contrast.crops=2")


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).normal(-7, 4, (ROWS, 64, 80)).astype(np.float16)


def engine_of(config):
    return Engine(build_objective(config), config, Statistics(), Processes(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("views", [2, 3])
def test_contrast_is_the_cross_entropy_of_finding_the_other_views(views):
    config = ContrastConfig(crops=4, temperature=0.3)
    tokens = torch.randn(8 * views, 5, 16, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(tokens.mean(1), dim=1).double()
    losses = []
    for one in range(len(vectors)):
        crop = one // views
        group = [other for other in range(len(vectors)) if other // views // 4 == crop // 4 and other != one]
        shares = torch.softmax(vectors[group] @ vectors[one] / 0.3, 0)
        found = [shares[at] for at, other in enumerate(group) if other // views == crop]
        losses.append(-torch.stack(found).log().mean())
    torch.testing.assert_close(contrast(tokens, views, config).double(), torch.stack(losses).mean(), rtol=0, atol=1e-6)


def test_contrast_is_least_where_crops_are_apart_and_their_views_together():
    config = ContrastConfig(crops=4)
    apart = torch.eye(4).repeat_interleave(2, 0)[:, None]
    alike = torch.ones(8, 1, 4)
    mixed = torch.eye(4).repeat(2, 1)[:, None]
    assert contrast(apart, 2, config) < 0.1 < contrast(alike, 2, config) < contrast(mixed, 2, config)
    # All vectors alike: each of the 7 others is as likely.
    torch.testing.assert_close(contrast(alike, 2, config), torch.tensor(7.0).log())
    tokens = torch.randn(8, 3, 4, requires_grad=True)
    contrast(tokens, 2, config).backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert contrast(tokens, 2, config).dtype == torch.float32


@pytest.mark.parametrize(
    "hardware",
    [
        ("hardware.micro_batch=2",),
        ("hardware.micro_batch=4", "hardware.activation_checkpointing=true"),
        ("hardware.shares=3",),
        ("hardware.shares=8", "hardware.micro_batch=2"),
    ],
)
def test_how_a_step_is_computed_does_not_change_what_is_compared(configure, crops, hardware):
    steps, weights = [], []
    for settings in ((), hardware):
        engine = engine_of(configure("hardware.shares=1", *SETTINGS, *settings))
        drawn = [engine.objective.draw(step, 0, 1) for step in range(2)]
        steps.append([tuple(map(float, engine.step(crops, masks, 1e-3))) for masks in drawn])
        weights.append(torch.cat([p.detach().flatten() for p in engine.model.parameters()]))
    np.testing.assert_allclose(steps[1], steps[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("processes", [2, 4])
def test_every_number_of_processes_compares_the_same_crops(configure, processes):
    engine = engine_of(configure(*SETTINGS))
    rows = np.arange(ROWS)[:, None, None]

    def groups_of(rank, count):
        own, drawn = engine._in_groups(rows[rank::count], torch.arange(2 * ROWS).view(-1, 2)[rank::count].flatten())
        # What was drawn for a crop stays with it.
        assert drawn.view(-1, 2)[:, 0].tolist() == [2 * row for row in own.ravel()]
        return {tuple(group) for group in own.reshape(-1, 2).tolist()}

    assert len(groups_of(0, 1)) == ROWS // 2
    assert set().union(*(groups_of(rank, processes) for rank in range(processes))) == groups_of(0, 1)


def test_its_gradient_moves_crops_apart_and_their_views_together():
    config = ContrastConfig(crops=4)
    tokens = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = contrast(tokens, 2, config)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("masking.masks_per_crop=1",), "masking.masks_per_crop is 1; give 2 masks or more"),
        (("contrast.crops=3",), "data.batch_size is 8, but the contrast compares groups of 3 crops; give a multiple"),
        (("hardware.micro_batch=3",), "hardware.micro_batch is 3, but the contrast compares groups of 2 crops"),
        (("contrast.crops=1",), "contrast.crops is 1; give 2 to"),
        (("contrast.weight=nan",), "contrast.weight is nan; give 0 to 1000"),
        (("contrast.temperature=0",), "contrast.temperature is 0.0; give 0.001 to"),
        (("objective.kind=other",), "the objective 'other' has no contrast; set contrast.weight=0 or"),
    ],
)
def test_a_contrast_that_cannot_be_computed_is_refused(configure, settings, message):
    with pytest.raises(ConfigError, match=message):
        configure(*SETTINGS, *settings)


def test_processes_that_cannot_share_the_groups_are_refused(store, configure, tmp_path, monkeypatch):
    config = configure(*SETTINGS, "contrast.crops=8")

    class Two:
        def __enter__(self):
            return Processes(0, 2, torch.device("cpu"))

        def __exit__(self, *_):
            return None

    monkeypatch.setattr("melmask.train.pretrain.joined_processes", lambda _: Two())
    with pytest.raises(ConfigError, match=r"2 processes cannot share equally in groups of 8 crops .* multiple of 16"):
        pretrain(store, tmp_path, config)
