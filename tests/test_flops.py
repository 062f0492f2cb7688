"""The counted operations are those that torch dispatches, exactly."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from melmask.config import MaskingConfig, ModelConfig
from melmask.geometry import grid_of
from melmask.models.flops import decoder_forward_flops, encoder_forward_flops, step_flops
from melmask.models.network import build_network
from melmask.models.presets import preset
from melmask.objectives.mae import predict_hidden
from melmask.objectives.masking import random_masks

SHAPES = {
    "with CLS": {},
    "without CLS": {"cls_token": False},
    "tall patches": {"patch_mels": 80, "patch_frames": 8},
    "one decoder block": {"decoder_depth": 1, "decoder_width": 24, "decoder_heads": 1},
}


def small(**changes):
    sizes = {"width": 32, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 3, "decoder_heads": 2}
    return ModelConfig(**{**sizes, "frames": 64, **changes})


def dispatched(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def masked_crops(config, ratio, crops):
    grid = grid_of(config)
    masked = random_masks(0, 0, crops, grid.patches, grid.visible_patches(ratio))
    return torch.zeros(crops, config.mels, config.frames), masked, MaskingConfig(ratio=ratio)


@pytest.mark.parametrize("shape", SHAPES)
def test_inference_is_counted_exactly(shape):
    config = small(**SHAPES[shape])
    encoder, logmel = build_network(config).encoder, torch.zeros(3, config.mels, config.frames)
    counted = dispatched(lambda: list(encoder.encode_layers(logmel)))
    assert counted == 3 * encoder_forward_flops(config, grid_of(config).patches) > 0


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_training_step_is_counted_exactly(shape, ratio):
    config, crops = small(**SHAPES[shape]), 2
    model, inputs = build_network(config), masked_crops(config, ratio, crops)
    visible = grid_of(config).visible_patches(ratio)
    forward = encoder_forward_flops(config, visible) + decoder_forward_flops(config, visible)
    assert dispatched(lambda: predict_hidden(model, *inputs)) == crops * forward
    assert dispatched(lambda: predict_hidden(model, *inputs).loss.backward()) == step_flops(config, ratio, crops)


def test_the_paper_s_network_needs_the_operations_that_one_counts_by_hand():
    # Nothing hidden: 12 blocks of 12 * 768 ** 2 weights and two products with the 66 tokens for each of them.
    assert encoder_forward_flops(preset("base"), 65) == 2 * (66 * 12 * (12 * 768**2 + 2 * 66 * 768) + 65 * 256 * 768)
    # 49 of 65 hidden: 3.9 GFLOP forward, of which the decoder has a quarter.
    decoder = 2 * (17 * 768 * 384 + 66 * 4 * (12 * 384**2 + 2 * 66 * 384) + 49 * 384 * 256)
    encoder = 2 * (17 * 12 * (12 * 768**2 + 2 * 17 * 768) + 16 * 256 * 768)
    assert decoder_forward_flops(preset("base"), 16) == decoder
    assert step_flops(preset("base"), 0.75, 64) == 64 * (3 * (encoder + decoder) - 2 * 16 * 256 * 768)
