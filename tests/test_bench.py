"""What `melmask bench` measures is the training step, and its parts are told apart."""

import itertools
import json
import math
import time

import pytest
import torch

from melmask.errors import ConfigError
from melmask.models.flops import step_flops
from melmask.system import hardware
from melmask.system.hardware import matmul_peak
from melmask.train import bench
from melmask.train.bench import TrainingStep, run_bench
from melmask.train.pretrain import StepState, pretrain

PARTS = ["data", "encoder", "decoder and loss", "backward", "optimizer"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(bench, "matmul_peak", lambda device, kind: matmul_peak(device, kind, 128))


def test_the_step_measured_is_the_step_of_training(store, configure, tmp_path):
    weights = {}

    def keep(state: StepState) -> None:
        weights.update({name: p.detach().clone() for name, p in state.model.named_parameters()})

    config = configure("optimizer.steps=4", "optimizer.max_gradient_norm=0.1")
    pretrain(store, tmp_path / "run", config, [keep])
    step = TrainingStep(config, store)
    step()
    step.timed()
    step()
    step.timed()
    step.close()
    trained = dict(step.engine.model.named_parameters())
    assert weights.keys() == trained.keys()
    assert {name for name in weights if not torch.equal(weights[name], trained[name])} == set()


def test_a_report_s_figures_follow_from_what_was_measured(configure):
    config = configure()
    report = run_bench(config, seconds=0.0)
    assert len(report.steps_s) == 3
    assert min(report.steps_s) <= report.step_s <= max(report.steps_s)
    assert report.crops_per_s == pytest.approx(8 / report.step_s)
    flops = step_flops(config.model, 0.75, 8)
    assert report.share_of_peak == pytest.approx(flops / report.step_s / max(report.peaks))
    assert list(report.parts_s) == PARTS
    assert all(s > 0 for s in report.parts_s.values())
    assert 100e6 < report.memory_bytes["now"] <= 1.01 * report.memory_bytes["at most"] < 64e9


def test_a_report_is_json_and_a_page_of_text(configure):
    report = run_bench(configure(), seconds=0.0)
    facts = json.loads(json.dumps(report.as_dict()))
    assert (facts["precision"], facts["threads"]) == ("fp32", 1)
    assert facts["config"]["model"]["width"] == 32
    # 20 patches, of which 5 are visible.
    assert facts["patches_per_s"] == pytest.approx(20 * facts["crops_per_s"], rel=1e-2)
    assert facts["visible_patches_per_s"] == pytest.approx(5 * facts["crops_per_s"], rel=1e-2)
    page = str(report)
    assert "5 of 20 visible; 8 crops a step, random numbers" in page
    assert f"{report.share_of_peak:.1%}" in page
    assert all(f"\n{part} " in page for part in PARTS)


def test_it_goes_on_for_the_seconds_given(configure):
    start_s = time.perf_counter()
    report = run_bench(configure(), seconds=1.0)
    assert time.perf_counter() - start_s >= 1
    assert len(report.steps_s) > 3


def test_crops_can_come_from_a_store(store, configure):
    report = run_bench(configure(), store, seconds=0.0)
    assert report.data == f"from {store.folder}"
    with pytest.raises(ConfigError, match=r"model\.mels is 40 but"):
        run_bench(configure("model.mels=40", "model.patch_mels=8"), store, seconds=0.0)


def slow(work, seconds):
    def slowed(*arguments):
        time.sleep(seconds)
        return work(*arguments)

    return slowed


def test_shares_side_by_side_have_the_same_parts_and_the_sum_of_their_gradients(configure):
    step = TrainingStep(configure("hardware.shares=2"))
    step()
    assert sorted(step.timed()) == sorted([*PARTS, "sum of gradients"])


@pytest.mark.parametrize("part", PARTS)
def test_time_is_put_down_to_the_part_that_took_it(configure, monkeypatch, part):
    step = TrainingStep(configure("hardware.shares=1"))
    step()
    place, name = {
        "data": (step, "batch"),
        "encoder": (step.engine.model.encoder, "encode_visible"),
        "decoder and loss": (step.engine.model.decoder.embed, "forward"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (step.engine.optimizer, "step"),
    }[part]
    monkeypatch.setattr(place, name, slow(getattr(place, name), 0.5))
    laps_s = step.timed()
    assert list(laps_s) == PARTS
    assert max(laps_s, key=laps_s.get) == part
    assert laps_s[part] >= 0.5


def test_the_peak_is_the_best_product(monkeypatch):
    times_s = itertools.chain([0.5, 0.25], itertools.repeat(1.0))
    monkeypatch.setattr(hardware, "seconds_of", lambda work, times, device: next(times_s))
    assert matmul_peak(CPU, torch.float32, 128) == 2 * 128**3 / 0.25
    before = torch.get_float32_matmul_precision()
    matmul_peak(CPU, torch.bfloat16, 128)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("seconds", [math.nan, -3.0, math.inf])
def test_a_time_to_measure_that_is_none_is_refused(configure, seconds):
    with pytest.raises(ConfigError, match=r"the time to measure for is .* seconds; give 0 or more"):
        run_bench(configure(), seconds=seconds)
