"""The graph that fills hidden patches in gives what `AudioEncoder.reconstruct` gives, for any length and mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from melmask.audio.logmel import normalize
from melmask.checkpoint.folder import ModelCard
from melmask.config import FrontEndConfig, ModelConfig, ResolutionConfig, Statistics
from melmask.embedding.encoder import untrained
from melmask.embedding.export_masked import export_masked
from melmask.errors import ConfigError

onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx", reason="the onnx extra is not installed")


def model_of(resolutions=1, normalize_target=True, **changes):
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2, frames=64)
    further = [ResolutionConfig(window_ms=128.0, scale="log")] * (resolutions - 1)
    statistics = Statistics(
        mean=-7.0, std=4.0, further_means=(-6.0,) * len(further), further_stds=(3.0,) * len(further)
    )
    card = ModelCard(
        model=replace(config, resolutions=resolutions, **changes),
        front_end=FrontEndConfig(further_resolutions=tuple(further)),
        statistics=statistics,
        training={"config": {"masking": {"normalize_target": normalize_target}}},
    )
    return untrained(card, device="cpu")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resolutions": 2},
        {"cls_token": True, "decoder_positions": "line"},
        {"normalize_target": False, "patch_mels": 80, "patch_frames": 4},
    ],
)
def test_the_graph_equals_reconstruct_for_any_length_and_mask(settings, half):
    model = model_of(**settings)
    made = export_masked(model, half=half)
    session = onnxruntime.InferenceSession(made.content, providers=["CPUExecutionProvider"])
    config, (rows, columns), rng = model.card.model, model.model.encoder.grid, np.random.default_rng(1)
    for width in (1 if rows > 1 else 2, 3, columns):
        logmel = rng.normal(-7, 4, (1, config.bands, width * config.patch_frames)).astype(np.float32)
        masked = np.ones((1, rows * width), bool)
        for visible in {1, rows * width // 2, rows * width - 1}:
            # In any order.
            ids = rng.permutation(rows * width)[:visible]
            masked[:] = True
            masked[0, ids] = False
            ours = model.reconstruct(logmel, masked=masked)
            prediction, loss = session.run(["prediction", "loss"], {"logmel": logmel[0], "visible_ids": ids})
            tolerance = 0.01 if half else 1e-4
            assert np.abs(prediction - ours.prediction[0]).max() < tolerance
            assert abs(loss[0] - ours.loss) < tolerance


def test_its_attention_is_that_of_the_encoder_with_nothing_hidden():
    model = model_of(cls_token=True)
    made = export_masked(model, half=False)
    assert made.attention
    session = onnxruntime.InferenceSession(made.content, providers=["CPUExecutionProvider"])
    logmel = np.random.default_rng(2).normal(-7, 4, (80, 64)).astype(np.float32)
    patches = model.model.encoder.grid.patches
    feeds = {"logmel": logmel, "visible_ids": np.arange(patches)}
    (weights,) = session.run(["attention"], feeds)
    assert weights.shape == (2, 2, patches + 1, patches + 1)
    assert np.abs(weights.sum(-1) - 1).max() < 1e-5
    # The first block's own query and key of its own input.
    with torch.inference_mode():
        encoder = model.model.encoder
        x = encoder.embed_all(normalize(torch.from_numpy(logmel)[None], model.card.statistics))
        block = encoder.blocks[0]
        layer = block.attn
        bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
        qkv = torch.nn.functional.linear(block.norm1(x), layer.qkv.weight, bias)
        query, key, _ = qkv.unflatten(2, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
        expected = ((query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5).softmax(-1)[0]
    assert np.abs(weights[0] - expected.numpy()).max() < 1e-5


def test_the_file_is_half_as_large_and_says_nothing_of_this_machine():
    model = model_of(width=64, depth=3)
    whole, half = (export_masked(model, half=half).content for half in (False, True))
    assert len(half) < 0.65 * len(whole)
    assert not any(trace in half for trace in (b"/tmp", b".py", b"site-packages"))


def test_an_encoder_alone_is_refused():
    with pytest.raises(ConfigError, match="encoder-only"):
        export_masked(model_of(decoder_width=0, decoder_depth=0))
