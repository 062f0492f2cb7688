"""What an objective is: the documented example really runs, and files of 0.1.0, which name none, are the MAE's."""

import dataclasses
import json
import re
import shutil
import sys
import types
from dataclasses import field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from melmask.config import ModelConfig, ObjectiveConfig, PretrainConfig, RunConfig
from melmask.config_text import with_overrides
from melmask.corpus.store import Store
from melmask.corpus.stream import CropStream
from melmask.embedding.encoder import load
from melmask.errors import ConfigError
from melmask.geometry import grid_of
from melmask.models.network import build_network
from melmask.objectives import base
from melmask.objectives.base import Objective, build_objective
from melmask.objectives.mae import predict_hidden
from melmask.objectives.masking import random_masks
from melmask.system.hardware import exact_float32_products
from melmask.train.optimizer import build_optimizer, learning_rate
from melmask.train.pretrain import pretrain
from melmask.train.record import RunNumbers, read_metrics, read_record, read_run_file
from melmask.train.resume import resolve_config
from melmask.train.snapshot import checkpoints_of

PAGE = Path(__file__).parents[1] / "docs" / "add-an-objective.md"
OLD = Path(__file__).parent / "reference" / "files-0.1.0"


@pytest.fixture
def teacher(monkeypatch, configure):
    """The objective of docs/add-an-objective.md, registered; gives a configuration of it at toy size."""
    section, objective, recipe = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    modules = [types.ModuleType(f"melmask.objectives.{name}") for name in ("settings_of_it", "teacher", "recipe_of_it")]
    for module, code in zip(modules, (section, objective, recipe), strict=True):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(code, vars(module))
    monkeypatch.setattr(base, "OBJECTIVES", (*base.OBJECTIVES, "teacher"))
    kind = modules[0].TeacherConfig
    # What a field added to PretrainConfig would do.
    extended = dataclasses.make_dataclass(
        "Extended", [("teacher", kind, field(default_factory=kind))], bases=(PretrainConfig,), frozen=True, kw_only=True
    )
    documented, toy = modules[2].config(), configure()
    config = extended(
        model=replace(toy.model, decoder_width=0, decoder_depth=0),
        **{name: getattr(toy, name) for name in ("data", "optimizer", "run", "hardware")},
        objective=documented.objective,
    )
    assert (documented.model.has_decoder, documented.objective.kind) == (False, "teacher")
    return with_overrides(config, ["teacher.noise=0.5", "teacher.decay=0.9"])


def test_the_documented_objective_trains_and_leaves_an_encoder(teacher, store, tmp_path, sound):
    assert isinstance(build_objective(teacher), Objective)
    seen = []
    config = with_overrides(teacher, ["run.picture_interval_steps=3"])
    assert pretrain(store, tmp_path, config, [lambda state: seen.append(state.model.decoder)]).step == 6
    assert all(np.isfinite(row["loss"]) and row["peak_share"] > 0 for row in read_metrics(tmp_path))
    assert seen == [None, None]
    state = torch.load(tmp_path / "snapshot.pt", weights_only=True)["model"]
    teachers = {name.removeprefix("teacher."): tensor for name, tensor in state.items() if name.startswith("teacher.")}
    trained = {name.removeprefix("network.encoder."): t for name, t in state.items() if name.startswith("network.")}
    fresh = build_network(config.model).encoder.state_dict()
    assert teachers.keys() == trained.keys() == fresh.keys()
    kernel = "patch_embed.weight"
    moved = (teachers[kernel] - fresh[kernel]).norm() / (trained[kernel] - fresh[kernel]).norm()
    assert 0 < moved < 1
    model = load(tmp_path, device="cpu")
    assert model.model.state_dict().keys() == {f"encoder.{name}" for name in fresh}
    assert model.embed(sound(1.0, 0), sample_rate_hz=16000).scene.shape == (5 * 32,)
    with pytest.raises(ConfigError, match="encoder-only"):
        model.reconstruct(np.zeros((1, 80, 64), np.float32), masked=np.eye(1, 20, dtype=bool))


def test_the_documented_objective_resumes_exactly(teacher, store, tmp_path):
    pretrain(store, tmp_path / "whole", teacher)
    for _ in range(6):
        pretrain(store, tmp_path / "parts", with_overrides(teacher, ["run.max_minutes=1e-9"]))
    whole, parts = (torch.load(tmp_path / run / "snapshot.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())


def test_the_documented_objective_draws_the_same_for_any_number_of_processes(teacher):
    objective = build_objective(teacher)
    whole = objective.draw(3, 0, 1)
    assert torch.equal(whole[1::2], objective.draw(3, 1, 2))
    assert not torch.equal(whole, objective.draw(4, 0, 1))


@pytest.mark.parametrize("name", ["mea", "os", "base"])
def test_an_unknown_objective_is_refused_by_its_name(store, configure, tmp_path, name):
    with pytest.raises(ConfigError, match=f"unknown objective '{name}'; .* 'mae'|unknown objective .*; known are mae"):
        pretrain(store, tmp_path, configure(f"objective.kind={name}"))


def test_only_reconstruction_needs_a_decoder_and_something_to_hide():
    whole = ModelConfig(patch_mels=80, patch_frames=208, decoder_width=0, decoder_depth=0)
    assert PretrainConfig(model=whole, objective=ObjectiveConfig(kind="other")).model == whole
    with pytest.raises(ConfigError, match=r"model\.decoder_width is 0, but the objective 'mae' reconstructs"):
        PretrainConfig(model=whole)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_loop_computes_what_its_description_says(store, configure, tmp_path, name):
    """The step written out once more, without engine, stream of batches or objective: losses are the same floats."""
    config = configure(
        f"optimizer.name={name}",
        "run.log_interval_steps=1",
        "masking.masks_per_crop=2",
        "masking.normalize_target=true",
    )
    pretrain(store, tmp_path, config)
    network = build_network(config.model, config.run.seed)
    optimizer = build_optimizer(network, config.optimizer)
    stream, grid = CropStream(store, config.data, config.model.frames, config.run.seed), grid_of(config.model)
    losses = []
    for step in range(config.optimizer.steps):
        crops = torch.from_numpy(stream.batch(step)).float().transpose(1, 2)
        logmel = ((crops - store.statistics.mean) / store.statistics.std).repeat_interleave(2, dim=0)
        masks = random_masks(config.run.seed, step, 2 * len(crops), grid.patches, grid.visible_patches(0.75))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.optimizer, 2 * len(crops))
        optimizer.zero_grad()
        with exact_float32_products(torch.device("cpu")):
            loss = predict_hidden(network, logmel, masks, config.masking).loss
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert [row["loss"] for row in read_metrics(tmp_path)] == losses


# Files of release 0.1.0, which had one objective and did not name it.


@pytest.fixture
def old_run(tmp_path):
    """A copy of a run of 0.1.0, and its store."""
    shutil.copytree(OLD / "run", tmp_path / "run")
    return tmp_path / "run", Store(OLD / "store")


def test_a_run_of_0_1_0_resumes(old_run):
    run, store = old_run
    weights = torch.load(run / "snapshot.pt", weights_only=True)["model"]
    before = read_metrics(run)
    config = resolve_config(run, None, [], store)
    assert config.objective.kind == "mae"
    assert pretrain(store, run, config).step == 6, "it was done"
    # As if it had been planned longer: the record says so, and the snapshot is that of its sixth step.
    facts = json.loads((run / "run.json").read_text())
    facts["pretrain"].pop("objective")
    facts["pretrain"]["optimizer"]["steps"] = 8
    (run / "run.json").write_text(json.dumps(facts))
    assert pretrain(store, run, resolve_config(run, None, [], store)).step == 8
    after = torch.load(run / "snapshot.pt", weights_only=True)
    assert (after["step"], after["model"].keys()) == (8, weights.keys())
    assert any(not torch.equal(tensor, after["model"][name]) for name, tensor in weights.items())
    assert read_metrics(run)[:-1] == before
    assert [path.name for path in checkpoints_of(run)] == ["step-0000008"]


def test_the_record_of_a_run_of_0_1_0_is_read(old_run):
    run, store = old_run
    file = read_run_file(run)
    assert (file.frames, file.store_sha256, file.hop_ms) == (store.frames.sum(), store.sha256, 10.0)
    assert file.config().run == RunConfig(log_interval_steps=2, picture_interval_steps=3, keep_checkpoints=1)
    record = read_record(run, RunNumbers(run))
    assert (record.step, record.state) == (6, "done")
    assert [event.kind for event in record.events] == ["start", "done"]
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [2, 4, 6]
