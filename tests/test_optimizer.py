"""Muon beside AdamW: which parameters it moves, how, and that a run with it resumes exactly."""

import pytest
import torch

from melmask.errors import ConfigError
from melmask.models.network import build_network
from melmask.train.optimizer import build_optimizer
from melmask.train.pretrain import pretrain

MUON = "optimizer.name=muon"


def moved_by(model, optimizer):
    """Parameter name -> kind of group that moves it; each name once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in kinds
            kinds[names[id(parameter)]] = "muon" if "ns_steps" in group else "adamw"
    return kinds


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(configure):
    config = configure(MUON)
    model = build_network(config.model)
    kinds = moved_by(model, build_optimizer(model, config.optimizer))
    assert set(kinds) == {name for name, _ in model.named_parameters()}
    by_muon = {name for name, kind in kinds.items() if kind == "muon"}
    assert {
        "encoder.blocks.0.attn.qkv.weight",
        "encoder.blocks.1.mlp.fc2.weight",
        "decoder.blocks.0.mlp.fc1.weight",
    } < (by_muon)
    assert all(".blocks." in name and name.endswith("weight") and "norm" not in name for name in by_muon)
    assert len(by_muon) == 4 * (config.model.depth + config.model.decoder_depth)


def test_an_update_of_muon_is_orthogonal_and_as_large_as_the_rate_says(configure):
    config = configure(MUON, "optimizer.weight_decay=0")
    model = build_network(config.model)
    optimizer = build_optimizer(model, config.optimizer)
    weight = model.encoder.blocks[0].mlp.fc1.weight
    before = weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    update = (before - weight.detach()) / (config.optimizer.learning_rate * 0.2 * max(weight.shape) ** 0.5)
    # Five steps of Newton and Schulz bring singular values between .5 and 1.5, not to 1 (Jordan et al.).
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_run_with_muon_stopped_at_every_step_equals_an_uninterrupted_one(store, configure, tmp_path):
    pretrain(store, tmp_path / "whole", configure(MUON))
    for _ in range(6):
        pretrain(store, tmp_path / "parts", configure(MUON, "run.max_minutes=1e-9"))
    whole, parts = (torch.load(tmp_path / name / "snapshot.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    momenta = [[m["momentum_buffer"] for m in s["optimizer"]["muon"]["state"].values()] for s in (whole, parts)]
    assert momenta[0]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


def test_muon_learns_otherwise_than_adamw(store, configure, tmp_path):
    losses = [pretrain(store, tmp_path / name, configure(f"optimizer.name={name}")).loss for name in ("adamw", "muon")]
    assert losses[0] != losses[1]


def test_muon_is_refused_where_matrices_are_cut_up_or_unknown(configure, monkeypatch):
    with pytest.raises(ConfigError, match=r"'muon' and hardware\.sharding 'fsdp', but Muon needs whole matrices"):
        configure(MUON, "hardware.sharding=fsdp")
    with pytest.raises(ConfigError, match=r"optimizer\.name is 'lion'; expected 'adamw' or 'muon'"):
        configure("optimizer.name=lion")
    monkeypatch.delattr(torch.optim, "Muon")
    config = configure(MUON)
    with pytest.raises(ConfigError, match=r"needs PyTorch 2\.9 or newer"):
        build_optimizer(build_network(config.model), config.optimizer)
