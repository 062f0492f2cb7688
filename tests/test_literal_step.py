"""The literal training step, that the benchmark compares with, computes what melmask computes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from melmask.config import MaskingConfig, ModelConfig
from melmask.models.network import build_network
from melmask.objectives.mae import predict_hidden
from melmask.objectives.masking import random_masks

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the source package comes without the benchmarks")


@pytest.fixture(scope="module")
def literal():
    # By its path: the tests have another module of this name.
    spec = importlib.util.spec_from_file_location("benchmarks_literal", BENCHMARKS / "literal.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[True, False], ids=["with CLS", "without CLS"])
def model(request):
    sizes = {"width": 32, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
    model = build_network(ModelConfig(**sizes, frames=64, cls_token=request.param))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases are zero and norms one at first, which would hide the loss of one.
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def logmel():
    return torch.randn(3, 80, 64, generator=torch.Generator().manual_seed(1))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_loss_and_gradients_are_those_of_melmask(literal, model, logmel):
    masked = random_masks(0, 0, 3, 20, 5)
    theirs = literal.literal_loss(model, logmel, masked.float(), 5)
    ours = predict_hidden(model, logmel, masked, MaskingConfig()).loss
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-5)
    wanted, got = gradients(model, ours), gradients(model, theirs)
    assert min(gradient.norm() for gradient in wanted.values()) > 0
    assert {n: g for n, g in got.items() if (g - wanted[n]).norm() > 1e-4 * wanted[n].norm()} == {}


def test_the_literal_step_trains(literal, model, logmel):
    step = literal.LiteralStep(model, logmel, 5, torch.device("cpu"), learning_rate=3e-3)
    losses = [float(step()) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert 0 < step.gradient_norm < 100


def compare(folder, *options):
    """What the benchmark prints, and its cases."""
    smallest = ["--size", "tiny", "--batch", "8", "--rounds", "1", "--threads", "1"]
    script = [sys.executable, BENCHMARKS / "train.py", *smallest, *options, "--out", folder / "result.json"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    return printed, json.loads((folder / "result.json").read_text())["cases"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_one_command_compares_the_steps_on_a_gpu(tmp_path):
    _, cases = compare(tmp_path, "--device", "cuda")
    assert [case["input"] for case in cases] == ["80x208", "80x608"]
    for case in cases:
        assert case["steps"].keys() == {"literal", "fp32", "auto", "fp32 compiled", "auto compiled"}
        assert case["loss_difference"] < 1e-4


def test_one_command_compares_the_steps(tmp_path):
    printed, (case,) = compare(tmp_path)
    assert (case["input"], case["batch"]) == ("80x208", 8)
    assert case["steps"].keys() == {"literal", "fp32", "auto"}
    for name, result in case["steps"].items():
        assert len(result["step_ms"]) == 1
        assert 0 < result["share_of_peak"] < 1
        assert result["times_faster_than_literal"] == pytest.approx(
            case["steps"]["literal"]["step_ms"][0] / result["step_ms"][0], rel=0.01
        )
        assert name in printed
    assert case["loss_difference"] < 1e-4
