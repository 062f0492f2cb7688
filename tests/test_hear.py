"""The HEAR API as the validator checks it: sizes, types, and times in ms with a hop of at most 50 ms."""

import numpy as np
import pytest
import torch

from melmask.adapters import hear
from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.config import ModelConfig
from melmask.errors import CheckpointError, ConfigError
from melmask.models.network import build_network

RATE_HZ = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64)
    path = tmp_path_factory.mktemp("model") / "any name"
    save_checkpoint(path, build_network(config), ModelCard(model=config))
    return path


def noise(clips, seconds):
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (clips, int(seconds * RATE_HZ))).astype("f4"))


def test_a_model_has_the_attributes_the_kit_reads(folder):
    model = hear.load_model(str(folder))
    assert isinstance(model, torch.nn.Module)
    sizes = (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size)
    assert sizes == (RATE_HZ, 160, 160) and all(type(size) is int for size in sizes)


@pytest.mark.parametrize("seconds", [0.1, 1.07, 1.98, 2.74, 4.0])
def test_times_are_even_and_reach_from_the_first_hop_to_the_last(folder, seconds):
    model = hear.load_model(str(folder))
    frames, times_ms = hear.get_timestamp_embeddings(noise(2, seconds), model)
    assert frames.dtype == times_ms.dtype == torch.float32 and frames.shape[:2] == times_ms.shape
    hops_ms = times_ms.diff()
    assert torch.all(hops_ms == 40) and model.choice.hop_ms == 40
    assert times_ms.min() <= 40 and 1000 * seconds - 40 <= times_ms.max() <= 1000 * seconds


def test_a_clip_is_the_same_alone_and_among_others(folder):
    model = hear.load_model(str(folder))
    audio = noise(70, 0.7)
    scenes = hear.get_scene_embeddings(audio, model)
    alone = hear.get_scene_embeddings(audio[66:67], model)
    assert scenes.shape == (70, 160) and torch.isfinite(scenes).all()
    assert (scenes[66] - alone[0]).abs().max() < 1e-5


def test_the_environment_names_the_model_and_its_choices(folder, monkeypatch):
    monkeypatch.setenv("MELMASK_MODEL", str(folder))
    monkeypatch.setenv("MELMASK_HOP_MS", "20")
    monkeypatch.setenv("MELMASK_LAYER", "1")
    monkeypatch.setenv("MELMASK_POOLING", "mean")
    model = hear.load_model()
    assert model.scene_embedding_size == 32
    _, times_ms = hear.get_timestamp_embeddings(noise(1, 1.0), model)
    assert torch.all(times_ms.diff() == 20)


def test_what_cannot_be_used_is_refused(folder, monkeypatch):
    monkeypatch.delenv("MELMASK_MODEL", raising=False)
    with pytest.raises(CheckpointError, match="missing"):
        hear.load_model(str(folder / "missing"))
    monkeypatch.setenv("MELMASK_HOP_MS", "30")
    with pytest.raises(ConfigError, match="hop_ms is 30; this model's steps allow 10, 20, 40, 80, 160"):
        hear.load_model(str(folder))
    monkeypatch.setenv("MELMASK_HOP_MS", "often")
    with pytest.raises(ConfigError, match="MELMASK_HOP_MS is 'often'"):
        hear.load_model(str(folder))
    for number in ("nan", "inf", "1.5"):
        monkeypatch.setenv("MELMASK_LAYER", number)
        with pytest.raises(ConfigError, match=f"MELMASK_LAYER is {number}; give a whole number"):
            hear.load_model(str(folder))
