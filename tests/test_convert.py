import argparse
import pickle
import sys
from pathlib import Path

import literal
import pytest
import torch

import melmask
from melmask.checkpoint.convert import convert, read_foreign, to_msm_mae
from melmask.checkpoint.folder import ModelCard
from melmask.cli import main
from melmask.config import ModelConfig, Statistics
from melmask.errors import CheckpointError
from melmask.models.network import build_network
from melmask.objectives.mae import reconstruct
from melmask.objectives.masking import random_masks

SHAPES = [
    (208, (16, 16)),
    (512, (16, 16)),
    (608, (16, 16)),
    (208, (16, 8)),
    (200, (16, 4)),
    (208, (8, 16)),
    (208, (80, 4)),
    (200, (80, 2)),
]
WIDTH, DECODER_WIDTH = 128, 64
SOURCE = Path("published.pth")


def tables(width, rows, columns, cls_token, line=False):
    places = [(f, t) for f in range(rows) for t in range(columns)]
    table = [
        literal.line_position(width, token) if line else literal.grid_position(width, *place)
        for token, place in enumerate(places)
    ]
    return torch.stack([torch.zeros(width, dtype=torch.float64)] * cls_token + table)[None].float()


def block_shapes(prefix, depth, width, successor):
    bias = {"attn.qkv.bias": (3 * width,)} if successor else {"attn.q_bias": (width,), "attn.v_bias": (width,)}
    shapes = bias | {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {f"{prefix}.{i}.{name}": shape for i in range(depth) for name, shape in shapes.items()}


def published_state(frames=208, patch=(16, 16), cls_token=True, successor=False, decoder=True, line=None, outputs=None):
    """A state dict as the original or its successor saves it, small, with random values."""
    rows, columns = 80 // patch[0], frames // patch[1]
    shapes = {"cls_token": (1, 1, WIDTH)} if cls_token else {}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 1, *patch), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= block_shapes("blocks", 2, WIDTH, successor) | {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    if decoder:
        values = outputs or patch[0] * patch[1]
        shapes |= {"mask_token": (1, 1, DECODER_WIDTH)}
        shapes |= {"decoder_embed.weight": (DECODER_WIDTH, WIDTH), "decoder_embed.bias": (DECODER_WIDTH,)}
        shapes |= block_shapes("decoder_blocks", 1, DECODER_WIDTH, successor)
        shapes |= {"decoder_norm.weight": (DECODER_WIDTH,), "decoder_norm.bias": (DECODER_WIDTH,)}
        shapes |= {"decoder_pred.weight": (values, DECODER_WIDTH), "decoder_pred.bias": (values,)}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["pos_embed"] = tables(WIDTH, rows, columns, cls_token)
    if decoder:
        line = not successor if line is None else line
        state["decoder_pos_embed"] = tables(DECODER_WIDTH, rows, columns, cls_token, line)
    return state


@pytest.fixture(scope="module")
def original():
    return published_state()


def literal_weights(state):
    """A published state dict as the literal network takes it."""
    weights = {}
    for name, tensor in state.items():
        if name.endswith("qkv.bias"):
            q_bias, _, v_bias = tensor.chunk(3)
            weights |= {name.replace("qkv.bias", "q_bias"): q_bias, name.replace("qkv.bias", "v_bias"): v_bias}
        else:
            one_axis = "token" in name
            weights[name] = tensor.flatten() if one_axis else tensor.flatten(1) if "proj.weight" in name else tensor
    return {name: tensor.double() for name, tensor in weights.items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def saved(content, tmp_path, name="weights.pth"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- what a file becomes


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize(("frames", "patch"), SHAPES)
def test_the_architecture_comes_from_the_tensors_shapes(frames, patch, cls_token):
    card, _ = convert(published_state(frames, patch, cls_token), SOURCE)
    assert card.model == ModelConfig(
        frames=frames,
        patch_mels=patch[0],
        patch_frames=patch[1],
        width=WIDTH,
        depth=2,
        heads=2,
        cls_token=cls_token,
        decoder_width=DECODER_WIDTH,
        decoder_depth=1,
        decoder_heads=1,
    )


@pytest.mark.parametrize("successor", [False, True])
@pytest.mark.parametrize(
    ("frames", "patch", "cls_token"), [(96, (16, 16), True), (64, (8, 16), False), (20, (80, 4), True)]
)
def test_a_converted_network_computes_what_its_file_means(frames, patch, cls_token, successor, tmp_path):
    state = published_state(frames, patch, cls_token, successor)
    model, card = read_foreign(saved({"model": state}, tmp_path))
    grid = model.encoder.grid
    x = torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(1))
    masked = random_masks(0, 0, 1, grid.patches, grid.visible_patches(0.75))
    w = literal_weights(state)
    shape = literal.Shape(80, frames, patch, 2, 1, cls_token, card.model.decoder_positions)
    tokens = literal.encode(x[0].double(), [False] * grid.patches, w, shape)
    for ours, expected in zip(model.encoder.encode_layers(x), tokens, strict=True):
        torch.testing.assert_close(ours[0].double(), expected, rtol=1e-3, atol=1e-3)
    hidden = masked[0].tolist()
    expected = literal.decode(literal.encode(x[0].double(), hidden, w, shape)[-1], hidden, w, shape)
    torch.testing.assert_close(reconstruct(model, x, masked).prediction[0].double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("successor", "positions"), [(False, "line"), (True, "grid")])
def test_the_decoders_positions_are_recognized(successor, positions):
    card, _ = convert(published_state(successor=successor), SOURCE)
    assert card.model.decoder_positions == positions


def test_the_large_decoder_has_sixteen_heads():
    state = published_state(decoder=False) | {
        "decoder_embed.weight": torch.zeros(512, WIDTH),
        "decoder_pos_embed": tables(512, 5, 13, True, line=True),
    }
    assert convert(state, SOURCE)[0].model.decoder_heads == 16


def test_the_bias_of_the_key_changes_nothing():
    state = published_state(successor=True)
    without = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in without.items():
        if name.endswith("qkv.bias"):
            tensor.chunk(3)[1].zero_()
    assert same(convert(state, SOURCE)[1], convert(without, SOURCE)[1])


# ---- the forms that files come in


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 99, "optimizer": {"lr": 1.0}, "args": argparse.Namespace(epochs=100)},
        lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"module.ar.runtime.backbone.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["bare", "model", "state_dict", "with_args", "backbone", "module", "runtime"],
)
def test_every_published_wrapping_gives_the_same_network(wrap, original, tmp_path):
    model, card = read_foreign(saved(wrap(original), tmp_path))
    expected_card, expected = convert(original, SOURCE)
    assert same(model.state_dict(), expected)
    assert card == expected_card


def test_the_legacy_torch_format_is_read(original, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"model": original}, path, _use_new_zipfile_serialization=False)
    assert same(read_foreign(path)[0].state_dict(), convert(original, SOURCE)[1])


def test_half_precision_files_are_read_as_single_precision(original, tmp_path):
    halved = {name: tensor if "pos_embed" in name else tensor.half() for name, tensor in original.items()}
    weights = read_foreign(saved(halved, tmp_path))[0].state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert same(weights, {name: tensor.half().float() for name, tensor in convert(original, SOURCE)[1].items()})


def test_the_name_of_file_and_folder_does_not_matter(original, tmp_path):
    expected = convert(original, SOURCE)[1]
    for name in ("a b/random", "m2d_vit_large-80x96p4x4/checkpoint-1.pt", "80x1001p16x4-ünï/weights_ep.bin"):
        assert same(read_foreign(saved(original, tmp_path, name))[0].state_dict(), expected)


def test_statistics_are_the_files_or_audiosets(tmp_path):
    state = published_state(successor=True)
    assert convert(state, SOURCE)[0].statistics == Statistics(mean=-7.1, std=4.2)
    for prefix in ("", "backbone."):
        held = {f"{prefix}{name}": tensor for name, tensor in state.items()}
        held[f"{prefix}norm_stats"] = torch.tensor([-6.5, 3.9])
        assert read_foreign(saved(held, tmp_path))[1].statistics == Statistics(mean=-6.5, std=3.9)


@pytest.mark.parametrize("leftover", [[], ["mask_token", "decoder_pos_embed"]])
def test_an_encoder_without_decoder_embeds_but_does_not_reconstruct(leftover, tmp_path):
    whole = published_state(successor=True)
    state = published_state(successor=True, decoder=False) | {name: whole[name] for name in leftover}
    encoder = melmask.load(saved(state, tmp_path), device="cpu")
    assert not encoder.card.model.has_decoder
    assert encoder.embed(torch.zeros(8000), 16000).scene.shape == (5 * WIDTH,)


def test_a_decoder_of_features_is_left_out(tmp_path):
    state = published_state(successor=True, outputs=WIDTH)
    model, _ = read_foreign(saved(state, tmp_path))
    assert model.decoder is None
    expected = convert(published_state(successor=True), SOURCE)[1]
    assert same(model.state_dict(), {name: t for name, t in expected.items() if name.startswith("encoder.")})


def test_what_only_training_needed_is_left_out(original):
    extra = ("target_blocks.0.norm1.weight", "projector.0.weight", "head.weight", "module.head.mlp.0.bias")
    expected = convert(original, SOURCE)
    card, weights = convert(original | {name: torch.zeros(3) for name in extra}, SOURCE)
    assert card == expected[0]
    assert same(weights, expected[1])


# ---- what is refused


@pytest.mark.parametrize(
    "key", ["blocks.0.gamma_1", "relative_positions", "decoder_blocks.0.attn.k_bias", "embed.weight", "xnorm.weight"]
)
def test_an_unknown_key_is_refused_by_its_name(key, original, tmp_path):
    assert key in refusal(saved({"model": original | {key: torch.zeros(2)}}, tmp_path))


def test_something_among_the_weights_that_is_no_tensor_is_refused_by_its_name(original, tmp_path):
    assert "thresholds" in refusal(saved({"model": original | {"thresholds": [1, 2]}}, tmp_path))


@pytest.mark.parametrize(
    "key",
    [
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "pos_embed",
        "norm.weight",
        "blocks.0.attn.q_bias",
        "blocks.1.mlp.fc2.weight",
        "mask_token",
        "decoder_embed.weight",
        "decoder_pos_embed",
        "decoder_pred.weight",
    ],
)
def test_a_missing_weight_is_an_error(key, original, tmp_path):
    refusal(saved({name: tensor for name, tensor in original.items() if name != key}, tmp_path))


def test_a_missing_block_is_an_error(original, tmp_path):
    kept = {name: tensor for name, tensor in original.items() if not name.startswith("blocks.0.")}
    assert "blocks.0" in refusal(saved(kept, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("cls_token", "cls_token"),
        ("blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2.weight"),
        ("decoder_pred.bias", "decoder.predict.bias"),
        ("pos_embed", "pos_embed"),
    ],
)
def test_a_weight_that_is_not_finite_is_an_error(key, named, value, original, tmp_path):
    broken = original[key].clone()
    broken.view(-1)[-1] = value
    assert named in refusal(saved(original | {key: broken}, tmp_path))


@pytest.mark.parametrize("stats", [[float("nan"), 4.2], [-7.1, 0.0], [-7.1], [1.0, 2.0, 3.0]])
def test_statistics_that_cannot_be_are_an_error(stats, original, tmp_path):
    refusal(saved(original | {"norm_stats": torch.tensor(stats)}, tmp_path))


@pytest.mark.parametrize("shape", [(), (3,), (WIDTH,), (1, WIDTH), (WIDTH, 1, 100, 100), (100, 1, 16, 16)])
@pytest.mark.parametrize(
    "key", ["patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "decoder_embed.weight"]
)
def test_a_weight_of_another_shape_is_an_error(key, shape, original, tmp_path):
    refusal(saved(original | {key: torch.zeros(shape)}, tmp_path))


def test_positions_of_another_table_are_an_error(original, tmp_path):
    assert "pos_embed" in refusal(saved(original | {"pos_embed": original["pos_embed"].flip(1)}, tmp_path))


def test_an_image_models_three_channels_are_an_error(original, tmp_path):
    kernel = original["patch_embed.proj.weight"].expand(-1, 3, -1, -1).clone()
    assert "3 channels" in refusal(saved(original | {"patch_embed.proj.weight": kernel}, tmp_path))


def test_two_networks_in_one_file_are_an_error(original, tmp_path):
    both = original | {f"backbone.{name}": tensor for name, tensor in original.items()}
    assert "two models" in refusal(saved(both, tmp_path))


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {}, {"model": {}}, torch.zeros(3), 5, {"weights": torch.zeros(1)}]
)
def test_a_torch_file_of_something_else_is_an_error(content, tmp_path):
    refusal(saved(content, tmp_path))


@pytest.mark.parametrize("content", [b"", b"these are no weights\n" * 20, b"PK\x03\x04", bytes(range(256)) * 40])
def test_a_file_that_is_no_torch_file_is_an_error(content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_an_error(share, zipped, original, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": original}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refusal(path)


class Bomb:
    """Unpickling this writes the file it names."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [lambda bomb: {"model": bomb}, lambda bomb: {"args": argparse.Namespace(a=bomb)}])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(inside, zipped, original, tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "weights.pth"
    torch.save({"model": original} | inside(Bomb(mark)), path, _use_new_zipfile_serialization=zipped)
    assert "run code" in refusal(path)
    assert not mark.exists()


def test_a_bare_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = pickle.dumps(Bomb(mark))
    path.write_bytes(content)
    refusal(path)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists(), "the bomb is a dud, so the test above shows nothing"


def test_what_was_allowed_for_one_file_is_not_allowed_afterwards(original, tmp_path):
    # In any order, and but for what torch itself adds when it imports more of itself.
    before = set(torch.serialization.get_safe_globals())
    read_foreign(saved({"model": original, "args": argparse.Namespace(epochs=1)}, tmp_path))
    after = set(torch.serialization.get_safe_globals())
    assert before <= after
    assert argparse.Namespace not in after
    assert all(found.__module__.startswith("torch") for found in after - before)


def test_loading_leaves_torchs_random_numbers_untouched(original, tmp_path):
    before = torch.get_rng_state()
    read_foreign(saved(original, tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


# ---- and back


def our_model(**changes):
    sizes = {"width": 64, "depth": 2, "heads": 1, "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 1}
    config = ModelConfig(**(sizes | changes))
    return build_network(config, seed=1), ModelCard(model=config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cls_token": False},
        {"patch_mels": 80, "patch_frames": 4},
        {"frames": 96, "patch_frames": 8, "decoder_positions": "grid"},
    ],
)
def test_our_weights_survive_the_way_to_the_originals_form_and_back(changes, tmp_path):
    model, card = our_model(**changes)
    path = saved({"model": to_msm_mae(model, card)}, tmp_path)
    again, card_again = read_foreign(path)
    assert same(again.state_dict(), model.state_dict())
    assert (card_again.model, card_again.statistics) == (card.model, card.statistics)


@pytest.mark.parametrize("cls_token", [True, False])
def test_the_originals_form_has_the_originals_keys_and_shapes(cls_token):
    state = published_state(208, (16, 8), cls_token)
    model, card = our_model(
        patch_frames=8, cls_token=cls_token, width=WIDTH, heads=2, decoder_width=DECODER_WIDTH, decoder_heads=1
    )
    ours = to_msm_mae(model, card)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in state.items()}
    for table in ("pos_embed", "decoder_pos_embed"):
        torch.testing.assert_close(ours[table], state[table])


def test_a_published_file_survives_the_way_to_our_form_and_back(original, tmp_path):
    model, card = read_foreign(saved(original, tmp_path))
    ours = to_msm_mae(model, card)
    assert ours.keys() == original.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, original[name], rtol=0, atol=1e-6 if "pos_embed" in name else 0)


def test_the_originals_form_shares_no_memory_with_the_model():
    model, card = our_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in to_msm_mae(model, card).values():
        tensor.zero_()
    assert same(model.state_dict(), before)
    assert model.decoder.positions.any()


def test_a_files_front_end_and_statistics_can_be_told(tmp_path):
    """Others' files hold no front end: the successor's 32-kHz models look like its 16-kHz ones."""
    path, out = tmp_path / "m2d.pth", tmp_path / "ours"
    torch.save(published_state(successor=True), path)
    as_16_khz = melmask.load(path, device="cpu")
    as_32_khz = melmask.load(path, device="cpu", front_end=melmask.FRONT_END_32_KHZ)
    assert (as_16_khz.sample_rate_hz, as_32_khz.sample_rate_hz) == (16000, 32000)
    told = ["sample_rate_hz=32000", "n_fft=800", "win_samples=800", "hop_samples=320", "max_hz=16000"]
    assert main(["convert", str(path), str(out), "--statistics", "-6.5", "3.5", *told]) == 0
    card = melmask.load(out, device="cpu").card
    assert card.front_end == melmask.FRONT_END_32_KHZ
    assert card.statistics == melmask.Statistics(mean=-6.5, std=3.5)
    assert main(["convert", str(path), str(out), "--statistics", "-6.5", "0"]) == 2
    assert main(["convert", str(path), str(out), "sample_rat_hz=1"]) == 2


def test_a_whole_file_of_another_kind_of_model_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", 96)
    with pytest.raises(
        CheckpointError, match="its width is 96, and the number of heads is only known where 64"
    ) as said:
        convert(published_state(), SOURCE)
    assert "copy" not in str(said.value)
