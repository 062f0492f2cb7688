"""Models go to the Hub and come back; a stand-in library keeps the folders, since tests have no network."""

import shutil
import sys
import types

import pytest
import torch

import melmask
from melmask.checkpoint.folder import ModelCard
from melmask.checkpoint.hub import model_card, push
from melmask.config import ModelConfig, Statistics
from melmask.errors import CheckpointError, MissingExtraError, OutputError
from melmask.models.network import build_network

CARD = ModelCard(
    model=ModelConfig(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, frames=64),
    statistics=Statistics(mean=-9.5, std=3.25),
    training={"step": 7, "loss": 0.5},
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub in a folder."""

    class HfApi:
        def create_repo(self, name, exist_ok):
            if name.startswith("forbidden/"):
                raise RuntimeError("403 Forbidden\nlong explanation")
            (tmp_path / name).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"stored/{repo_id}"

    def snapshot_download(name, allow_patterns):
        if not (tmp_path / name).exists():
            raise RuntimeError("404 Not Found\nlong explanation")
        return str(tmp_path / name)

    module = types.ModuleType("huggingface_hub")
    vars(module).update(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return tmp_path


def test_a_pushed_model_comes_back_by_its_name(hub):
    model = build_network(CARD.model, seed=3)
    assert push("hub:me/tones", model, CARD, "apache-2.0") == "stored/me/tones"
    assert sorted(p.name for p in (hub / "me/tones").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    back = melmask.load("hub:me/tones")
    assert back.card == CARD
    assert all(torch.equal(a, b) for a, b in zip(back.model.parameters(), model.parameters(), strict=True))


def test_the_model_card_says_how_to_use_it_and_how_it_was_made():
    text = model_card("me/tones", CARD, "cc-by-4.0")
    assert 'melmask.load("hub:me/tones")' in text and "license: cc-by-4.0" in text
    assert "mean\n  -9.5000" in text and "- step: 7" in text


def test_what_the_hub_refuses_is_one_line(hub):
    with pytest.raises(CheckpointError, match=r"hub:me/none cannot be fetched \(404 Not Found\); check") as caught:
        melmask.load("hub:me/none")
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="403 Forbidden"):
        push("hub:forbidden/x", build_network(CARD.model), CARD, "other")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'melmask\[hub\]'"):
        melmask.load("hub:me/tones")
