"""What may not change a step (parts, recomputation, compilation) and what must (masks a crop, averaging)."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from melmask.checkpoint.folder import load_checkpoint
from melmask.config import RunConfig, Statistics
from melmask.errors import ConfigError, TrainingError
from melmask.objectives.base import build_objective
from melmask.objectives.masking import random_masks
from melmask.train import shares
from melmask.train.divergence import Measured, find_fault
from melmask.train.engine import Engine
from melmask.train.optimizer import learning_rate
from melmask.train.pretrain import pretrain
from melmask.train.processes import Processes
from melmask.train.record import EVENTS, read_metrics
from melmask.train.shares import share_count
from melmask.train.snapshot import SNAPSHOT, checkpoints_of, superfluous

CPU = Processes(0, 1, torch.device("cpu"))
ROWS, PATCHES, VISIBLE = 8, 20, 5


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).normal(-7, 4, (ROWS, 64, 80)).astype(np.float16)


def engine_of(config):
    return Engine(build_objective(config), config, Statistics(), CPU)


def steps_of(engine, crops, masks_per_crop=1, steps=2):
    """Losses and gradient norms of some steps."""
    masks = [random_masks(0, step, ROWS * masks_per_crop, PATCHES, VISIBLE) for step in range(steps)]
    return [tuple(map(float, engine.step(crops, masked, 1e-3))) for masked in masks]


def weights_of(engine):
    return torch.cat([p.detach().flatten() for p in engine.model.parameters()])


@pytest.mark.parametrize(
    "hardware",
    [
        ("hardware.micro_batch=3",),
        ("hardware.micro_batch=1",),
        ("hardware.activation_checkpointing=true",),
        ("hardware.shares=2",),
        ("hardware.shares=3",),
        ("hardware.shares=2", "hardware.micro_batch=3", "hardware.activation_checkpointing=true"),
    ],
)
@pytest.mark.parametrize("masks_per_crop", [1, 2])
def test_how_a_step_is_computed_does_not_change_it(configure, crops, hardware, masks_per_crop):
    rest = ("optimizer.max_gradient_norm=0.5", f"masking.masks_per_crop={masks_per_crop}")
    plain, other = (
        engine_of(configure("hardware.shares=1", *rest)),
        engine_of(configure("hardware.shares=1", *rest, *hardware)),
    )
    np.testing.assert_allclose(
        steps_of(other, crops, masks_per_crop), steps_of(plain, crops, masks_per_crop), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(weights_of(other), weights_of(plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_in_shares_resumes_exactly(store, configure, tmp_path, optimizer):
    settings = (f"optimizer.name={optimizer}", "optimizer.ema_decay=0.5", "hardware.threads=2", "hardware.shares=3")
    settings += ("masking.strategy=time+frequency", "masking.masks_per_crop=2", "masking.ratio=0.7")
    settings += ("contrast.weight=0.1", "contrast.crops=2")
    pretrain(store, tmp_path / "whole", configure(*settings))
    for _ in range(6):
        pretrain(store, tmp_path / "parts", configure(*settings, "run.max_minutes=1e-9"))
    whole, parts = (torch.load(tmp_path / run / SNAPSHOT, weights_only=True) for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for kind in ("model", "averaged"):
        assert all(torch.equal(tensor, parts[kind][name]) for name, tensor in whole[kind].items())


@pytest.mark.parametrize(
    ("settings", "threads", "expected"),
    [
        ((), 2, 2),
        ((), 64, ROWS),
        ((), 1, 1),
        (("hardware.shares=1",), 2, 1),
        (("hardware.shares=4",), 1, 4),
        (("hardware.compile=true",), 2, 1),
    ],
)
def test_shares_follow_from_settings_threads_and_rows(configure, settings, threads, expected):
    config = configure(*settings)
    assert share_count(config, build_objective(config).module, CPU, threads) == expected


def test_a_large_network_has_fewer_shares(configure, monkeypatch):
    config = configure()
    module = build_objective(config).module
    monkeypatch.setattr(shares, "_MOST_GRADIENT_BYTES", 4 * 3 * sum(p.numel() for p in module.parameters()))
    assert share_count(config, module, CPU, 8) == 3


_COMPILED = """
import numpy as np, torch
from melmask.config import HardwareConfig, ModelConfig, PretrainConfig, Statistics
from melmask.objectives.base import build_objective
from melmask.objectives.masking import random_masks
from melmask.train.engine import Engine
from melmask.train.optimizer import learning_rate
from melmask.train.processes import Processes
model = ModelConfig(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, frames=64)
crops = np.random.default_rng(0).normal(-7, 4, (8, 64, 80)).astype(np.float16)
for compile in (False, True):
    hardware = HardwareConfig(precision="fp32", compile=compile)
    config = PretrainConfig(model=model, hardware=hardware)
    engine = Engine(build_objective(config), config, Statistics(), Processes(0, 1, torch.device("cpu")))
    print(*(float(engine.step(crops, random_masks(0, step, 8, 20, 5), 1e-3)[0]) for step in range(3)))
    print(*engine.state()["model"])
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_computes_the_same():
    # In a process of its own: the checks of shapes that tests add to every function cannot be compiled.
    done = subprocess.run([sys.executable, "-c", _COMPILED], capture_output=True, text=True, check=True)
    plain, names, compiled, compiled_names = done.stdout.splitlines()
    np.testing.assert_allclose([float(x) for x in plain.split()], [float(x) for x in compiled.split()], atol=1e-4)
    assert names == compiled_names


def test_checkpointed_blocks_keep_less_for_the_backward_pass(configure, crops):
    kept = []
    for setting in ("false", "true"):
        engine, saved = engine_of(configure(f"hardware.activation_checkpointing={setting}")), []
        note = saved.append
        with torch.autograd.graph.saved_tensors_hooks(lambda t, note=note: note(t.nelement()) or t, lambda t: t):
            steps_of(engine, crops, steps=1)
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def test_several_masks_of_a_crop_are_several_crops(configure, crops):
    several = engine_of(configure("masking.masks_per_crop=3"))
    repeated = engine_of(configure())
    masked = random_masks(0, 0, 3 * ROWS, PATCHES, VISIBLE)
    loss, norm = several.step(crops, masked, 1e-3)
    theirs = repeated.step(np.repeat(crops, 3, axis=0), masked, 1e-3)
    np.testing.assert_allclose([float(loss), float(norm)], [float(x) for x in theirs], rtol=1e-6)


def test_the_average_follows_the_weights(configure, crops):
    engine = engine_of(configure("optimizer.ema_decay=0.9"))
    expected = weights_of(engine)
    for step in range(3):
        engine.step(crops, random_masks(0, step, ROWS, PATCHES, VISIBLE), 1e-3)
        expected = 0.9 * expected + 0.1 * weights_of(engine)
    averaged = torch.cat([p.flatten() for p in engine.averaged.parameters()])
    torch.testing.assert_close(averaged, expected, rtol=0, atol=1e-6)
    assert engine.inference_model() is engine.averaged


def test_checkpoints_hold_the_average_and_resuming_goes_on_with_it(store, configure, tmp_path):
    config = configure("optimizer.ema_decay=0.5")
    pretrain(store, tmp_path / "whole", config)
    for _ in range(6):
        pretrain(store, tmp_path / "parts", configure("optimizer.ema_decay=0.5", "run.max_minutes=1e-9"))
    whole, parts = (torch.load(tmp_path / run / SNAPSHOT, weights_only=True) for run in ("whole", "parts"))
    saved, card = load_checkpoint(checkpoints_of(tmp_path / "whole")[-1])
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, whole["averaged"][name])
        assert torch.equal(tensor, parts["averaged"][name])
    assert any(not torch.equal(whole["averaged"][name], tensor) for name, tensor in whole["model"].items())
    assert "average" in card.training["weights"]


def test_the_scaled_rate_goes_with_the_views_of_a_batch(configure):
    settings = ("optimizer.learning_rate=1.5e-4", "optimizer.warmup_steps=0")
    scaled, plain = configure(*settings, "optimizer.learning_rate_batch=128"), configure(*settings)
    assert learning_rate(0, scaled.optimizer, 512) == pytest.approx(1.5e-4 * 512 / 128)
    assert learning_rate(0, plain.optimizer, 512) == 1.5e-4
    assert build_objective(configure("masking.masks_per_crop=2")).views_per_crop == 2


def test_fp16_is_not_for_cpus(configure):
    with pytest.raises(ConfigError, match=r"hardware.precision is fp16, which CPUs do not compute"):
        engine_of(configure("hardware.precision=fp16"))


def test_other_weights_can_be_started_from(configure):
    config, other = configure("optimizer.ema_decay=0.9"), engine_of(configure("run.seed=7"))
    engine = Engine(build_objective(config, other.model.state_dict()), config, Statistics(), CPU)
    assert torch.equal(weights_of(engine), weights_of(other))
    assert torch.equal(torch.cat([p.flatten() for p in engine.averaged.parameters()]), weights_of(other))


# What goes wrong.


@pytest.fixture
def spoilt_batch(monkeypatch):
    """spoil(batch, times) makes the loss of that batch number NaN or huge, each time or a few times only."""

    def spoil(number, value, times=10**9):
        step, count = Engine.step, [0]

        def spoilt(self, crops, masked, rate):
            loss, norm = step(self, crops, masked, rate)
            wanted = random_masks(0, number, len(masked), PATCHES, VISIBLE)
            if torch.equal(masked, wanted) and count[0] < times:
                count[0] += 1
                loss = loss * value
            return loss, norm

        monkeypatch.setattr(Engine, "step", spoilt)

    return spoil


@pytest.mark.parametrize("value", [float("nan"), 100.0])
def test_a_rollback_passes_over_the_batches_that_led_to_it(store, configure, tmp_path, spoilt_batch, value):
    spoilt_batch(4, value)
    # Losses are looked at after steps 2, 4 and 6: batch 4, the fifth, is noticed at 6.
    assert pretrain(store, tmp_path, configure("run.on_divergence=rollback", "run.spike_factor=5")).step == 6
    events = (tmp_path / EVENTS).read_text()
    assert '"event": "spike"' in events
    assert '"event": "rollback"' in events
    assert "skipping 6 batches" in events
    state = torch.load(tmp_path / SNAPSHOT, weights_only=True)
    assert state["skipped"] == 6, "back to the snapshot of step 0, behind the six batches since"
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path))


def test_what_follows_a_rollback_is_judged_by_what_came_before_its_snapshot(store, configure, tmp_path, monkeypatch):
    """The high losses of the beginning, run through again, are no spike after the low ones that led to the fault."""
    losses = iter([8.0, 4.0, 1.0, 1.0, 1.0, float("nan"), 8.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(Engine, "step", lambda *_: (torch.tensor(next(losses)), torch.ones(())))
    settings = ("run.on_divergence=rollback", "run.spike_factor=3", "run.log_interval_steps=1")
    assert pretrain(store, tmp_path, configure(*settings, "run.snapshot_interval_s=1e9")).step == 6
    assert (tmp_path / EVENTS).read_text().count('"rollback"') == 1


def test_damaged_lines_of_metrics_are_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": "x"}\n[]\n\xff\n{"step": 2.5}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_resumed_run_remembers_what_a_spike_is_judged_by(store, configure, tmp_path, monkeypatch):
    losses = iter([1.0, 1.0, 1.0, 5.0])
    monkeypatch.setattr(Engine, "step", lambda *_: (torch.tensor(next(losses)), torch.ones(())))
    settings = ("run.spike_factor=3", "run.log_interval_steps=2", "run.max_minutes=1e-9")
    for step in (1, 2, 3):
        assert pretrain(store, tmp_path, configure(*settings)).step == step
    with pytest.raises(TrainingError, match=r"step 4: a loss of 5 is 5\.0 times the usual 1"):
        pretrain(store, tmp_path, configure(*settings))
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0]


def test_a_run_rolled_back_and_stopped_goes_on_as_if_it_had_not(store, configure, tmp_path, spoilt_batch):
    spoilt_batch(2, float("nan"))
    settings = ("run.on_divergence=rollback", "run.log_interval_steps=1", "run.snapshot_interval_s=0")
    pretrain(store, tmp_path / "whole", configure(*settings))
    for _ in range(7):
        pretrain(store, tmp_path / "parts", configure(*settings, "run.max_minutes=1e-9"))
    whole, parts = (torch.load(tmp_path / run / SNAPSHOT, weights_only=True) for run in ("whole", "parts"))
    assert (whole["step"], whole["skipped"]) == (parts["step"], parts["skipped"]) == (6, 1)
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())


def test_rolling_back_again_and_again_ends_the_run(store, configure, tmp_path, monkeypatch):
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda *a: (step(*a)[0] * float("nan"), torch.ones(())))
    with pytest.raises(TrainingError, match="the loss is not finite"):
        pretrain(store, tmp_path, configure("run.on_divergence=rollback", "run.max_rollbacks=2"))
    assert (tmp_path / EVENTS).read_text().count('"event": "rollback"') == 2


def test_without_a_snapshot_to_return_to_a_fault_ends_the_run(store, configure, tmp_path, spoilt_batch):
    spoilt_batch(4, float("nan"))
    config = configure("run.on_divergence=rollback", "run.picture_interval_steps=3")
    with pytest.raises(TrainingError, match=r"the loss is not finite .*; nothing was saved yet: start another run"):
        pretrain(store, tmp_path, config, [lambda state: (tmp_path / SNAPSHOT).unlink()])
    assert '"event": "rollback"' not in (tmp_path / EVENTS).read_text()


def test_a_spike_stops_the_run_with_its_facts(store, configure, tmp_path, spoilt_batch):
    spoilt_batch(5, 100.0)
    with pytest.raises(TrainingError, match=r"step 6: a loss of .* times the usual .*learning rate .*gradient norm"):
        pretrain(store, tmp_path, configure("run.spike_factor=5"))


def test_only_a_jump_is_a_spike():
    recent = []
    for loss in (9.0, 1.0, 1.0, 1.0, 1.0, 2.9):
        assert find_fault(Measured(loss, loss, 1.0), recent, 3.0) is None
        recent.append(loss)
    assert "4.0 times" in find_fault(Measured(1.0, 4.0, 1.0), recent, 3.0)
    assert find_fault(Measured(1.0, 1.0, float("inf")), recent, 3.0) == "the gradient is not finite"
    assert find_fault(Measured(1.0, 1e9, 1.0), [], 0.0) is None


def test_old_checkpoints_go_by_rule(tmp_path):
    steps = [90, 100, 110, 190, 230, 240, 350, 360]
    checkpoints = [tmp_path / f"step-{step:07d}" for step in steps]

    def kept(**rules):
        gone = superfluous(checkpoints, RunConfig(**rules))
        return [step for step, path in zip(steps, checkpoints, strict=True) if path not in gone]

    assert kept() == [350, 360]
    assert kept(keep_checkpoints=1) == [360]
    assert kept(keep_checkpoints=1, keep_every_steps=100) == [100, 230, 350, 360]
