import dataclasses

import literal
import numpy as np
import pytest
import torch

from melmask.checkpoint.folder import ModelCard
from melmask.config import MaskingConfig, ModelConfig
from melmask.embedding.encoder import untrained
from melmask.errors import ConfigError
from melmask.geometry import grid_of
from melmask.models import layers
from melmask.models.layers import grid_positions, line_positions
from melmask.models.network import Network, build_network, patchify, unpatchify
from melmask.models.presets import PRESETS, preset
from melmask.objectives.mae import predict_hidden, reconstruct
from melmask.objectives.masking import random_masks, visible_and_hidden_ids

TOY = ModelConfig(
    mels=8,
    frames=12,
    patch_mels=4,
    patch_frames=2,
    width=24,
    depth=2,
    heads=3,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
)
VARIANTS = {
    "square_patches_and_cls": TOY,
    "no_cls": dataclasses.replace(TOY, cls_token=False),
    "wide_patches": dataclasses.replace(TOY, patch_mels=2, patch_frames=6),
    "full_height": dataclasses.replace(TOY, patch_mels=8, patch_frames=2),
    "one_frame_wide_no_cls": dataclasses.replace(TOY, patch_mels=8, patch_frames=1, cls_token=False),
    "grid_decoder": dataclasses.replace(TOY, decoder_positions="grid"),
    "grid_decoder_no_cls": dataclasses.replace(TOY, decoder_positions="grid", cls_token=False),
    "paper_height_80x4": dataclasses.replace(TOY, mels=80, frames=24, patch_mels=80, patch_frames=4),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
MASKING = MaskingConfig()


def network(config, seed=0, dtype=torch.float64):
    """A model none of whose parameters is at a special value (norms 1, biases 0) that could hide a mistake."""
    model = Network(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter.add_(noise, alpha=0.3 if parameter.ndim == 1 else 0.05)
    return model


def logmels(config, clips=2, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, config.mels, config.frames, generator=generator, dtype=dtype)


def masks(config, clips=2, seed=2):
    grid = grid_of(config)
    return random_masks(seed, 0, clips, grid.patches, grid.visible_patches(MASKING.ratio))


def literal_shape(config):
    return literal.Shape(
        config.mels,
        config.frames,
        (config.patch_mels, config.patch_frames),
        config.heads,
        config.decoder_heads,
        config.cls_token,
        config.decoder_positions,
    )


def literal_forward(model, x, masked, normalize=False):
    """Loss and predictions (clips, patches, values) by the slow version, with gradients to the model's parameters."""
    w, shape = literal.published(model.named_parameters()), literal_shape(model.config)
    predictions, targets = [], []
    for clip, hidden in zip(x, masked.tolist(), strict=True):
        predictions.append(literal.decode(literal.encode(clip, hidden, w, shape)[-1], hidden, w, shape))
        targets.append(literal.targets(clip, shape, normalize))
    return literal.loss(predictions, targets, masked.tolist()), torch.stack(predictions)


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, model.parameters()), strict=True))


def close(ours, expected, tolerance):
    torch.testing.assert_close(ours.double(), expected.double(), rtol=tolerance, atol=tolerance)


# ---- against the slow version


@variants
def test_the_tokens_of_every_layer_are_those_of_the_literal_network(config):
    model, x = network(config), logmels(config)
    w, shape = literal.published(model.named_parameters()), literal_shape(config)
    ours = list(model.encoder.encode_layers(x))
    assert len(ours) == config.depth + 1
    for clip in range(2):
        expected = literal.encode(x[clip], [False] * shape.rows * shape.columns, w, shape)
        for layer, tokens in zip(ours, expected, strict=True):
            # Positions are kept in single precision.
            close(layer[clip], tokens, 1e-5)


@variants
def test_the_tokens_of_visible_patches_are_those_of_the_literal_network(config):
    model, x, masked = network(config), logmels(config), masks(config)
    w, shape = literal.published(model.named_parameters()), literal_shape(config)
    visible_ids, _ = visible_and_hidden_ids(masked, int((~masked[0]).sum()))
    ours = model.encoder.encode_visible(model.encoder.patches_of(x), visible_ids)
    for clip in range(2):
        close(ours[clip], literal.encode(x[clip], masked[clip].tolist(), w, shape)[-1], 1e-5)


@variants
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_prediction_and_gradient_are_those_of_the_literal_network(config, normalize):
    model, x, masked = network(config), logmels(config), masks(config)
    output = predict_hidden(model, x, masked, MaskingConfig(normalize_target=normalize))
    expected_loss, expected = literal_forward(model, x, masked, normalize)
    close(output.loss, expected_loss, 1e-5)
    close(output.prediction, torch.stack([p[m] for p, m in zip(expected, masked, strict=True)]), 1e-5)
    ours, theirs = gradients(model, output.loss), gradients(model, expected_loss)
    for name, gradient in theirs.items():
        assert gradient.abs().max() > 0, name
        close(ours[name], gradient, 1e-5)


@variants
def test_reconstruction_predicts_every_patch_and_has_the_loss_of_training(config):
    model, x, masked = network(config), logmels(config), masks(config)
    output = reconstruct(model, x, masked)
    _, expected = literal_forward(model, x, masked)
    close(output.prediction, expected, 1e-5)
    close(output.target, model.encoder.patches_of(x), 1e-12)
    close(output.loss, predict_hidden(model, x, masked, MASKING).loss, 1e-6)


def test_the_attention_of_long_and_short_inputs_agrees(monkeypatch):
    model, x, masked = network(TOY), logmels(TOY), masks(TOY)
    results = []
    for plain_up_to in (0, 10_000):
        monkeypatch.setattr(layers, "_PLAIN_ATTENTION_TOKENS", plain_up_to)
        output = predict_hidden(model, x, masked, MASKING)
        results.append((output.prediction, gradients(model, output.loss)))
    (fused, fused_gradients), (plain, plain_gradients) = results
    close(fused, plain, 1e-6)
    for name, gradient in plain_gradients.items():
        close(fused_gradients[name], gradient, 1e-6)


@pytest.mark.parametrize("tokens", [3, layers._PLAIN_ATTENTION_TOKENS, layers._PLAIN_ATTENTION_TOKENS + 1])
def test_attention_is_a_softmax_weighted_mean(tokens):
    query, key, value = torch.randn(3, 2, 2, tokens, 8, generator=torch.Generator().manual_seed(0))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / 8**0.5
    expected = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)
    close(layers.attend(query, key, value), expected, 1e-5)


def test_attention_leaves_out_keys_that_are_not_seen():
    query, key, value = torch.randn(3, 2, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    ours = layers.attend(query, key, value, seen)
    close(ours[:1], layers.attend(query[:1], key[:1], value[:1]), 1e-5)
    close(ours[1:], layers.attend(query[1:], key[1:, :, :5], value[1:, :, :5]), 1e-5)


# ---- patches, tokens, positions


def test_a_patchs_values_run_over_frames_then_mels_and_tokens_over_time_then_frequency():
    mel, frame = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    patches = patchify((100 * mel + frame)[None], 2, 3)
    assert patches.shape == (1, 4, 6)
    assert patches[0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert patches[0, 1].tolist() == [3, 4, 5, 103, 104, 105]
    assert patches[0, 2].tolist() == [200, 201, 202, 300, 301, 302]


@pytest.mark.parametrize("patch", [(16, 16), (16, 4), (8, 16), (80, 4), (80, 1), (1, 1)])
def test_unpatchify_undoes_patchify(patch):
    x = torch.randn(2, 80, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpatchify(patchify(x, *patch), 80 // patch[0], patch[0]), x)


@pytest.mark.parametrize("cls_token", [False, True])
def test_position_tables_follow_the_papers_formulas(cls_token):
    config = ModelConfig(frames=48)
    grid, first = grid_of(config), int(cls_token)
    on_grid, on_line = grid_positions(32, grid, cls_token), line_positions(32, grid, cls_token)
    assert on_grid.shape == on_line.shape == (15 + first, 32)
    for table in (on_grid, on_line):
        assert table.dtype == torch.float32
        assert not table[:first].any()
    for token in range(grid.patches):
        f, t = divmod(token, grid.columns)
        close(on_grid[first + token], literal.grid_position(32, f, t), 1e-6)
        close(on_line[first + token], literal.line_position(32, token), 1e-6)


@variants
def test_a_shorter_unit_uses_the_first_columns_of_the_positions(config):
    model = network(config)
    x = logmels(config)[:, :, : config.frames // 2 // config.patch_frames * config.patch_frames]
    w, shape = literal.published(model.named_parameters()), literal_shape(config)
    for clip in range(2):
        patches = shape.rows * x.shape[2] // config.patch_frames
        expected = literal.encode(x[clip], [False] * patches, w, shape)
        close(list(model.encoder.encode_layers(x))[-1][clip], expected[-1], 1e-5)


@pytest.mark.parametrize("positions", ["line", "grid"])
@pytest.mark.parametrize("cls_token", [False, True])
def test_the_decoder_of_a_shorter_unit_uses_each_patchs_trained_position(positions, cls_token):
    config = dataclasses.replace(TOY, decoder_positions=positions, cls_token=cls_token)
    decoder, first = Network(config).decoder, int(cls_token)
    short = decoder._positions_for(grid_of(dataclasses.replace(config, frames=6)))
    kept = [f * 6 + t for f in range(2) for t in range(3)]
    assert torch.equal(short[first:], decoder.positions[first:][kept])
    assert torch.equal(short[:first], decoder.positions[:first])


def test_positions_are_neither_stored_nor_learned():
    model = Network(TOY)
    assert not [name for name in model.state_dict() if "positions" in name]


# ---- masks


@pytest.mark.parametrize(
    ("patches", "visible"),
    [(65, 16), (160, 40), (190, 47), (130, 32), (260, 65), (250, 62), (52, 13), (104, 26), (208, 52)],
)
def test_masks_are_a_partition_that_hides_three_quarters(patches, visible):
    masked = random_masks(0, 3, 50, patches, visible)
    assert masked.dtype == torch.bool
    assert masked.shape == (50, patches)
    assert (masked.sum(1) == patches - visible).all()
    visible_ids, hidden_ids = visible_and_hidden_ids(masked, visible)
    assert not masked.gather(1, visible_ids).any()
    assert masked.gather(1, hidden_ids).all()
    both = torch.cat([visible_ids, hidden_ids], dim=1)
    assert torch.equal(both.sort(1).values, torch.arange(patches).expand(50, -1))
    assert (visible_ids.diff(dim=1) > 0).all()
    assert (hidden_ids.diff(dim=1) > 0).all()


def test_masks_are_a_function_of_seed_and_step_and_differ_between_crops():
    one = random_masks(1, 2, 8, 65, 16)
    assert torch.equal(one, random_masks(1, 2, 8, 65, 16))
    assert not torch.equal(one, random_masks(1, 3, 8, 65, 16))
    assert not torch.equal(one, random_masks(2, 2, 8, 65, 16))
    assert len({tuple(row.tolist()) for row in one}) == 8


def test_every_patch_is_hidden_equally_often():
    hidden = random_masks(0, 0, 20_000, 65, 16).float().mean(0)
    # Five standard deviations of a share of 20,000 draws.
    assert (hidden - 49 / 65).abs().max() < 5 * (0.25 * 0.75 / 20_000) ** 0.5


# ---- what the network may see


def hide(x, masked, config, value):
    patches = patchify(x, config.patch_mels, config.patch_frames)
    replaced = torch.where(masked[:, :, None], torch.full_like(patches, value), patches)
    return unpatchify(replaced, grid_of(config).rows, config.patch_mels)


@variants
@pytest.mark.parametrize("value", [1e30, float("nan")])
def test_what_is_hidden_does_not_reach_the_encoder(config, value):
    model, x, masked = network(config), logmels(config), masks(config)
    prediction = predict_hidden(model, x, masked, MASKING).prediction
    assert torch.equal(predict_hidden(model, hide(x, masked, config, value), masked, MASKING).prediction, prediction)


@variants
def test_the_encoding_has_gradients_to_visible_patches_only(config):
    model, x, masked = network(config), logmels(config).requires_grad_(), masks(config)
    visible_ids, _ = visible_and_hidden_ids(masked, int((~masked[0]).sum()))
    encoded = model.encoder.encode_visible(model.encoder.patches_of(x), visible_ids)
    (gradient,) = torch.autograd.grad((encoded * torch.randn_like(encoded)).sum(), x)
    reached = patchify(gradient, config.patch_mels, config.patch_frames).abs().amax(-1) > 0
    assert torch.equal(reached, ~masked)


def test_only_visible_patches_are_embedded():
    model, x, masked = network(TOY), logmels(TOY), masks(TOY)
    embedded = []
    model.encoder.patch_embed.register_forward_hook(lambda _, inputs, __: embedded.append(inputs[0].shape[1]))
    predict_hidden(model, x, masked, MASKING)
    assert embedded == [3]


@variants
def test_the_loss_counts_hidden_patches_only(config):
    model, x, masked = network(config), logmels(config), masks(config)
    output = reconstruct(model, x, masked)
    errors = (output.prediction - output.target).square().mean(-1)
    close(output.loss, errors[masked].mean(), 1e-6)
    trained = predict_hidden(model, x, masked, MASKING)
    assert torch.equal(trained.predicted_ids, visible_and_hidden_ids(masked, int((~masked[0]).sum()))[1])
    assert trained.target.shape == trained.prediction.shape == (2, int(masked[0].sum()), output.target.shape[2])


def test_a_normalized_target_has_zero_mean_and_unit_variance_in_each_patch():
    x = 5 + 3 * logmels(TOY)
    target = reconstruct(Network(TOY).double(), x, masks(TOY), normalize_target=True).target
    close(target.mean(-1), torch.zeros(2, 12), 1e-9)
    close(target.var(-1), torch.ones(2, 12), 1e-4)


def test_a_normalized_target_of_a_constant_patch_is_finite():
    x = torch.zeros(1, TOY.mels, TOY.frames)
    output = predict_hidden(Network(TOY), x, masks(TOY, clips=1), MaskingConfig(normalize_target=True))
    assert torch.isfinite(output.loss)


def test_a_clips_tokens_do_not_depend_on_its_batch():
    model, x = network(TOY, dtype=torch.float32), logmels(TOY, clips=5, dtype=torch.float32)
    together = list(model.encoder.encode_layers(x))[-1]
    for clip in range(5):
        close(list(model.encoder.encode_layers(x[clip : clip + 1]))[-1][0], together[clip], 1e-5)


# ---- sizes and first weights


def parameters_of(config):
    with torch.device("meta"):
        model = Network(config)
    return [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]


@pytest.mark.parametrize(
    ("name", "encoder_millions"), [("tiny", 5.4), ("small", 21.4), ("base", 85.2), ("large", 302.6)]
)
def test_presets_have_their_published_sizes(name, encoder_millions):
    encoder, decoder = parameters_of(preset(name))
    assert encoder / 1e6 == pytest.approx(encoder_millions, rel=0.01)
    assert decoder < 0.15 * encoder


def test_the_base_preset_is_the_papers_network():
    assert preset("base") == ModelConfig()
    assert parameters_of(preset("base"))[1] / 1e6 == pytest.approx(7.5, rel=0.02)


def test_a_preset_takes_changes_and_an_unknown_one_names_the_nearest():
    assert preset("tiny", frames=512).frames == 512
    with pytest.raises(ConfigError, match="the nearest is 'small'"):
        preset("smal")
    assert set(PRESETS) == {"tiny", "small", "base", "large"}


def initial_weights(seed):
    return build_network(TOY, seed).state_dict()


def test_initial_weights_depend_on_the_seed_alone():
    first = initial_weights(3)
    torch.rand(5)
    np.random.default_rng().random(5)
    again, other = initial_weights(3), initial_weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if name.endswith("qkv.weight"))


@pytest.mark.parametrize("build", [lambda: initial_weights(7), lambda: untrained(card_of(TOY), seed=7, device="cpu")])
def test_building_a_model_leaves_torchs_random_numbers_untouched(build):
    before = torch.get_rng_state()
    build()
    assert torch.equal(torch.get_rng_state(), before)


def card_of(config):
    return ModelCard(model=config, front_end=dataclasses.replace(ModelCard(model=ModelConfig()).front_end, mels=8))


def test_initial_weights_are_distributed_as_in_the_paper():
    config = dataclasses.replace(TOY, width=192, heads=3, decoder_width=128)
    for name, parameter in build_network(config).state_dict().items():
        if "token" in name:
            assert 0.015 < float(parameter.std()) < 0.025, name
        elif "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name
        elif "bias" in name:
            assert not parameter.any(), name
        else:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert 0.9 * bound < float(parameter.abs().max()) <= bound, name
