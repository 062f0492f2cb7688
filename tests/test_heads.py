"""The heads of the HEAR protocol: their layers, and when training stops, compared with the kit's rules."""

import math
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from melmask.evaluate import evaluation
from melmask.evaluate.evaluation import head_precision
from melmask.evaluate.heads import (
    Adam,
    HeadConfig,
    Rows,
    SeededDropout,
    StoppedError,
    TrainingRules,
    Validation,
    better,
    build_head,
    train_head,
)

SMALL = HeadConfig(hidden_dim=16, batch_size=32, max_epochs=30, validate_every_epochs=3, patience=4)
KIT = TrainingRules(maximize=True)


def rows_of(seed, count=96, classes=3):
    """Blobs that a network can tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    vectors = np.eye(classes, 8)[labels] * 3 + rng.standard_normal((count, 8))
    return Rows(torch.from_numpy(vectors).float(), torch.from_numpy(np.eye(classes)[labels]).float())


class Script:
    """A judge that gives prepared scores, the last one for ever, and counts its calls."""

    def __init__(self, *scores):
        self.scores, self.calls = list(scores), 0

    def __call__(self, probabilities, loss):
        self.calls += 1
        return Validation(self.scores[min(self.calls, len(self.scores)) - 1], self.calls)


def train(config=SMALL, judge=None, rules=KIT, seed=0, multilabel=False, rows=None):
    rules = rules._replace(multilabel=multilabel)
    return train_head(rows or rows_of(0), rows_of(1), config, judge or Script(0.5), rules, seed)


def weights(head):
    return torch.cat([value.flatten().float() for value in head.network.state_dict().values()])


def test_a_head_is_linear_norm_dropout_relu_and_a_linear():
    network = build_head(8, 3, HeadConfig(hidden_layers=2, hidden_dim=16), 0)
    kinds = [nn.Linear, nn.BatchNorm1d, SeededDropout, nn.ReLU]
    assert all(map(isinstance, network, [*kinds, *kinds, nn.Linear])) and len(network) == 9
    assert network[2].p == 0.1
    assert (network[-1].in_features, network[-1].out_features) == (16, 3)
    (linear,) = build_head(8, 3, HeadConfig(hidden_layers=0), 0)
    assert isinstance(linear, nn.Linear)


@pytest.mark.parametrize("name", ["xavier_uniform", "xavier_normal"])
def test_weights_have_the_spread_of_the_kit(name):
    network = build_head(300, 200, HeadConfig(hidden_layers=2, hidden_dim=400, initialization=name), 0)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer, gain in zip(linear, (1.0, math.sqrt(2), math.sqrt(2)), strict=True):
        expected = gain * math.sqrt(2 / (layer.in_features + layer.out_features))
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        largest = layer.weight.abs().max().item() / expected
        assert largest <= math.sqrt(3) + 1e-6 if name == "xavier_uniform" else largest > 2.5
        limit = 1 / math.sqrt(layer.in_features)
        assert limit * 0.9 < layer.bias.abs().max().item() <= limit


def test_a_trained_head_tells_the_classes_apart():
    def accuracy(probabilities, loss):
        return Validation(float((probabilities.argmax(1) == rows_of(1).targets.argmax(1).numpy()).mean()))

    head = train(replace(SMALL, learning_rate=1e-2), accuracy)
    assert head.best.score > 0.9
    probabilities = head.probabilities(rows_of(1).vectors)
    assert accuracy(probabilities, 0.0).score == head.best.score
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_a_step_is_that_of_pytorchs_adam_and_the_compiler_is_not_imported():
    ours, theirs = (build_head(8, 3, HeadConfig(hidden_dim=16), 0) for _ in range(2))
    steps = Adam(ours.parameters(), 1e-2), torch.optim.Adam(theirs.parameters(), 1e-2, fused=True)
    for seed in range(3):
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
        for network, optimizer in zip((ours, theirs), steps, strict=True):
            network.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    code = (
        "import sys, torch\nfrom melmask.evaluate.heads import *\n"
        "rows = Rows(torch.randn(20, 8), torch.eye(4)[torch.arange(20) % 4])\n"
        "judge = lambda probabilities, loss: Validation(-loss)\n"
        "train_head(rows, rows, HeadConfig(max_epochs=3), judge, TrainingRules(True), 0)\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_validates_each_third_epoch_and_stops_after_so_many_without_a_better_score():
    judge = Script(0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9)
    head = train(judge=judge)
    # The best is the second validation, epoch 5 from 0; four follow it, of which an equal one is not better.
    assert (head.best.score, head.best.detail, head.epoch) == (0.5, 2, 5)
    assert (judge.calls, head.epochs) == (6, 18)


def test_the_weights_kept_are_those_of_the_best_validation():
    best_early, best_late = train(judge=Script(0.9, 0.1)), train(judge=Script(0.1, 0.9))
    stopped = train(replace(SMALL, max_epochs=3), judge=Script(0.5))
    assert torch.equal(weights(best_early), weights(stopped))
    assert not torch.equal(weights(best_early), weights(best_late))


def test_training_ends_with_the_last_epoch():
    judge = Script(*np.linspace(0, 1, 20))
    head = train(judge=judge)
    assert (judge.calls, head.epochs, head.epoch) == (10, 30, 29)


def test_a_loss_is_better_the_smaller():
    head = train(judge=Script(0.9, 0.3, 0.6), rules=TrainingRules(maximize=False))
    assert (head.best.score, head.epoch) == (0.3, 5)


def test_a_score_that_is_no_number_ends_the_kits_training_but_not_the_fixed_one():
    kit = train(judge=Script(0.2, math.nan, 0.8))
    assert (kit.best.score, kit.epochs) == (0.2, 6)
    fixed = train(judge=Script(math.nan, 0.2, math.nan, 0.8), rules=TrainingRules(maximize=True, nan_stops=False))
    assert (fixed.best.score, fixed.epoch) == (0.8, 11)


def test_better_is_strict_in_float32_and_nan_is_worst():
    assert better(0.5, 0.4, True)
    assert not better(0.4, 0.4, True)
    assert not better(0.4 + 1e-12, 0.4, True)
    assert better(0.4, 0.5, False)
    assert better(0.0, math.nan, True)
    assert not better(math.nan, math.nan, True)
    assert not better(math.nan, 0.0, False)


def test_all_chance_comes_from_the_seed_and_none_is_left_behind():
    state = torch.random.get_rng_state()
    one, same, other = train(seed=1), train(seed=1), train(seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))


def test_the_order_of_the_rows_is_drawn_anew_only_where_asked_for():
    config = replace(SMALL, dropout=0.0, max_epochs=3)
    kept, drawn = (train(config, rules=TrainingRules(True, reshuffle=reshuffle)) for reshuffle in (False, True))
    assert not torch.allclose(weights(kept), weights(drawn))


def test_a_last_batch_of_one_row_is_left_out():
    rows = rows_of(0, count=65)
    config = replace(SMALL, dropout=0.0, max_epochs=3)
    whole, without = (train(config, rows=Rows(*(t[:n] for t in rows))) for n in (65, 64))
    assert torch.equal(weights(whole), weights(without))


def test_the_classes_of_a_multilabel_task_are_independent():
    rows = rows_of(0)
    both = Rows(rows.vectors, (rows.targets + rows.targets.roll(1, 1)).clamp(max=1))
    head = train(multilabel=True, rows=both)
    sums = head.probabilities(rows.vectors).sum(1)
    assert sums.max() > 1.2


def test_fewer_epochs_than_a_validation_takes_still_give_a_head():
    head = train(replace(SMALL, max_epochs=2), judge=Script(0.7))
    assert (head.best.score, head.epoch, head.epochs) == (0.7, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(p, dtype):
    dropout = SeededDropout(p, torch.Generator().manual_seed(0))
    x = torch.ones(1001, 333, requires_grad=True, dtype=dtype)
    dropped = dropout(x)
    assert dropped.dtype == dtype
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.01)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    # Each place of a 64-bit draw is a fair one, and the next draw is another.
    if p:
        places = [(dropped.flatten()[i::4] == 0).float().mean().item() for i in range(4)]
        assert places == pytest.approx([p] * 4, abs=0.01)
        assert not torch.equal(dropped, dropout(x))
    assert dropout.eval()(x) is x


def test_bf16_trains_a_head_as_good_and_a_linear_one_is_never_rounded():
    def accuracy(probabilities, loss):
        return Validation(float((probabilities.argmax(1) == rows_of(1).targets.argmax(1).numpy()).mean()))

    exact, rounded = (train(replace(SMALL, learning_rate=1e-2, precision=name), accuracy) for name in ("fp32", "bf16"))
    assert rounded.best.score == pytest.approx(exact.best.score, abs=0.05)
    assert not torch.equal(weights(exact), weights(rounded))
    assert rounded.probabilities(rows_of(1).vectors).dtype == np.float32
    assert all(value.dtype == torch.float32 for value in rounded.network.parameters())
    linear = HeadConfig(hidden_layers=0, batch_size=32, max_epochs=6)
    assert torch.equal(*(weights(train(replace(linear, precision=name))) for name in ("fp32", "bf16")))


def test_the_precision_is_what_the_processor_multiplies(monkeypatch):
    cpu = torch.device("cpu")
    for native, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(evaluation, "cpu_computes_bf16", lambda native=native: native)
        assert head_precision("auto", cpu) == expected
    assert head_precision("auto", torch.device("cuda")) == "fp32"
    assert head_precision("bf16", cpu) == "bf16"


def test_training_ends_when_it_is_asked_to():
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        train_head(rows_of(0), rows_of(1), SMALL, Script(0.5), KIT, 0, stop)
