"""What README.md shows works, and what the documents say of the tree is so."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.cli import main
from melmask.config import ModelConfig
from melmask.models.network import build_network
from melmask.recipes import RECIPES, recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readmes_python_runs_and_gives_the_shapes_it_says(tmp_path, monkeypatch):
    config = ModelConfig(width=32, depth=6, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    save_checkpoint(tmp_path / "runs" / "tiny", build_network(config), ModelCard(model=config))
    soundfile.write(tmp_path / "dog.wav", np.random.default_rng(0).normal(0, 0.1, 40000), 22050)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    names = {
        "x": rng.normal(0, 0.1, (2, 30000)).astype(np.float32),
        "sr": 16000,
        "logmel": rng.normal(-7, 4, (2, 80, 208)).astype(np.float32),
        "m": rng.random((2, 65)) < 0.75,
    }
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(block, names)
    e, r, model = names["e"], names["r"], names["model"]
    assert (e.scene.shape, e.frames.shape, e.times_ms.shape) == ((160,), (12, 160), (12,))
    two = model.embed(names["x"], sample_rate_hz=16000, layer=6, pooling="concat")
    assert (two.scene.shape, two.frames.shape) == ((2, 160), (2, 12, 160))
    assert model.logmel(names["x"], sample_rate_hz=16000).shape == (2, 80, 188)
    assert r.prediction.shape == (2, 65, 256) and r.loss > 0


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert README.count("\n") <= 150
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("command", re.findall(r"^melmask (\w+)", README, re.M))
def test_the_readmes_commands_exist(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage: melmask" in capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_its_settings_can_be_listed(name, capsys):
    config = recipe(name)
    visible = {"msm_mae_512": 40, "msm_mae_608": 47}.get(name, 16)
    assert build_network(config.model).encoder.grid.visible_patches(config.masking.ratio) == visible
    assert main(["settings", name]) == 0
    assert f"optimizer.steps = {config.optimizer.steps}" in capsys.readouterr().out
