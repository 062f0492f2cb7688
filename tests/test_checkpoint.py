import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import melmask
from melmask.checkpoint import folder as checkpoint_folder
from melmask.checkpoint import weights as checkpoint_weights
from melmask.checkpoint.folder import CONFIG, WEIGHTS, ModelCard, load_checkpoint, save_checkpoint
from melmask.config import FrontEndConfig, ModelConfig, Statistics
from melmask.errors import CheckpointError, ConfigError, OutputError
from melmask.models.network import build_network

TOY = ModelConfig(
    mels=40, frames=32, patch_mels=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
CARD = ModelCard(
    model=TOY,
    front_end=FrontEndConfig(sample_rate_hz=8000, n_fft=256, win_samples=200, mels=40, max_hz=4000.0),
    statistics=Statistics(mean=-6.123456789012345, std=3.3),
    training={"steps": 12, "minutes": 0.1, "config": {"masking": {"ratio": 0.75}}},
)


@pytest.fixture
def model():
    return build_network(TOY, seed=1)


@pytest.fixture
def saved(model, tmp_path):
    """A checkpoint to damage."""
    save_checkpoint(tmp_path / "checkpoint", model, CARD)
    return tmp_path / "checkpoint"


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def refusal(source):
    with pytest.raises(CheckpointError) as caught:
        melmask.load(source, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


def edit(folder, change):
    """Rewrite config.json with `change` made to its content."""
    content = json.loads((folder / CONFIG).read_text())
    change(content)
    (folder / CONFIG).write_text(json.dumps(content))


# ---- what is kept


@pytest.mark.parametrize("changes", [{}, {"cls_token": False}, {"decoder_width": 0, "decoder_depth": 0}])
def test_weights_and_card_come_back_bit_for_bit(changes, tmp_path):
    config = ModelConfig(**({name: getattr(TOY, name) for name in TOY.__dataclass_fields__} | changes))
    model = build_network(config, seed=2)
    card = ModelCard(model=config, front_end=CARD.front_end, statistics=CARD.statistics, training=CARD.training)
    save_checkpoint(tmp_path / "deep" / "checkpoint", model, card)
    again, card_again = load_checkpoint(tmp_path / "deep" / "checkpoint")
    assert card_again == card
    assert same(again.state_dict(), model.state_dict())


def test_a_checkpoint_is_two_files_of_data_with_the_same_permissions(saved):
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS]
    content = json.loads((saved / CONFIG).read_text())
    assert (content["format"], content["version"]) == ("melmask-model", 1)
    assert content["statistics"]["mean"] == CARD.statistics.mean
    modes = [path.stat().st_mode for path in saved.iterdir()]
    assert modes[0] == modes[1]


def test_weights_of_another_precision_are_kept_in_single(model, tmp_path):
    save_checkpoint(tmp_path / "half", model.bfloat16(), CARD)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / WEIGHTS).values()} == {torch.float32}


@pytest.mark.parametrize("inside", ["", CONFIG, WEIGHTS])
def test_the_folder_or_either_of_its_files_may_be_named(inside, saved):
    assert melmask.load(saved / inside, device="cpu").card == CARD


def test_a_renamed_and_moved_folder_is_the_same_model(saved, model, tmp_path):
    moved = tmp_path / "80x999p4x4 vit_huge" / "ünlike"
    moved.parent.mkdir()
    shutil.move(saved, moved)
    assert same(melmask.load(moved, device="cpu").model.state_dict(), model.state_dict())


def test_loading_executes_no_pickle(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_checkpoint(saved)


def test_loading_leaves_torchs_random_numbers_untouched(saved):
    before = torch.get_rng_state()
    load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), before)


# ---- what is refused


def test_a_place_without_checkpoint_says_what_to_give(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "holds no checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(name, saved):
    (saved / name).unlink()
    assert f"has no {name}" in refusal(saved)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_cut_short_is_named(name, share, saved):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(share * len(whole))])
    assert name in refusal(saved)


@pytest.mark.parametrize("content", ["", "[]", "5", '"text"', "null", "{}", "\x00\xff", '{"format": "other"}'])
def test_a_config_that_is_none_is_named(content, saved):
    (saved / CONFIG).write_text(content)
    assert CONFIG in refusal(saved)


@pytest.mark.parametrize(
    ("section", "written", "meant"),
    [
        ("model", "widht", "'model.width'"),
        ("model", "patch_size", "'model.patch_mels'"),
        ("front_end", "hop_length", "'front_end.hop_samples'"),
        ("statistics", "stdev", "'statistics.std'"),
    ],
)
def test_an_unknown_key_in_the_config_names_the_nearest(section, written, meant, saved):
    edit(saved, lambda content: content[section].update({written: 1}))
    message = refusal(saved)
    assert repr(f"{section}.{written}") in message
    assert meant in message


def test_an_unknown_section_in_the_config_names_the_nearest(saved):
    edit(saved, lambda content: content.update({"frontend": {}}))
    assert "'front_end'" in refusal(saved)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "width", "wide"),
        ("model", "width", 33),
        ("model", "patch_frames", 15),
        ("model", "mels", 80),
        ("front_end", "hop_samples", 0),
        ("front_end", "max_hz", 9000.0),
        ("statistics", "std", 0.0),
        ("statistics", "mean", float("nan")),
        ("statistics", "mean", None),
    ],
)
def test_a_value_in_the_config_that_cannot_be_is_refused(section, key, value, saved):
    edit(saved, lambda content: content[section].update({key: value}))
    assert CONFIG in refusal(saved)


@pytest.mark.parametrize("section", ["model", "front_end", "statistics", "training"])
def test_a_section_that_is_no_section_is_refused(section, saved):
    edit(saved, lambda content: content.update({section: 3}))
    assert section in refusal(saved)


def test_a_config_without_model_is_refused(saved):
    edit(saved, lambda content: content.pop("model"))
    assert "model" in refusal(saved)


def test_a_newer_format_is_refused_with_what_to_do(saved):
    edit(saved, lambda content: content.update(version=2))
    assert "update melmask" in refusal(saved)


@pytest.mark.parametrize("version", ["one", None, [1]])
def test_a_version_that_is_no_number_is_refused(version, saved):
    edit(saved, lambda content: content.update(version=version))
    refusal(saved)


@pytest.mark.parametrize("changes", [{"depth": 3}, {"width": 64}, {"cls_token": False}, {"decoder_width": 0}])
def test_weights_of_another_architecture_are_refused(changes, saved):
    edit(saved, lambda content: content["model"].update(changes))
    assert "architecture" in refusal(saved)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, saved):
    weights = load_file(saved / WEIGHTS)
    weights["encoder.blocks.1.mlp.fc1.bias"][3] = value
    save_file(weights, saved / WEIGHTS)
    assert "encoder.blocks.1.mlp.fc1.bias" in refusal(saved)


@pytest.mark.parametrize("change", [lambda w: w.pop("encoder.norm.bias"), lambda w: w.update(extra=torch.zeros(1))])
def test_a_missing_or_surplus_weight_is_refused(change, saved):
    weights = load_file(saved / WEIGHTS)
    change(weights)
    save_file(weights, saved / WEIGHTS)
    refusal(saved)


def test_a_card_whose_front_end_has_other_bands_than_its_model_is_refused():
    with pytest.raises(ConfigError, match="make them equal"):
        ModelCard(model=TOY, front_end=FrontEndConfig(mels=80))


# ---- an interrupted save


def fail(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("module", "step"), [(checkpoint_weights, "save_file"), (checkpoint_folder, "write_json")], ids=["weights", "card"]
)
def test_a_save_that_fails_leaves_the_old_checkpoint_as_it_was(module, step, saved, model, monkeypatch):
    monkeypatch.setattr(module, step, fail)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(saved, build_network(TOY, seed=9), CARD)
    assert same(load_checkpoint(saved)[0].state_dict(), model.state_dict())
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_save_that_fails_while_it_takes_the_old_ones_place_puts_it_back(failing, saved, model, monkeypatch):
    replace, calls = Path.replace, []

    def replace_but_once(path, target):
        if path.parent == saved.parent:
            calls.append(path)
        return fail() if len(calls) == failing and path is calls[-1] else replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_but_once)
    with pytest.raises(OutputError):
        save_checkpoint(saved, build_network(TOY, seed=9), CARD)
    assert same(load_checkpoint(saved)[0].state_dict(), model.state_dict())
    assert list(saved.parent.iterdir()) == [saved]


def test_what_a_killed_save_left_is_not_loaded_and_the_next_save_clears_it_away(saved, model):
    remains = saved.parent / f".{saved.name}.partial"
    remains.mkdir()
    (remains / WEIGHTS).write_bytes(b"half of the weights")
    assert same(load_checkpoint(saved)[0].state_dict(), model.state_dict())
    newer = build_network(TOY, seed=9)
    save_checkpoint(saved, newer, CARD)
    assert same(load_checkpoint(saved)[0].state_dict(), newer.state_dict())
    assert list(saved.parent.iterdir()) == [saved]


def test_a_save_killed_between_its_two_renames_lost_nothing(saved, model, monkeypatch):
    saved.replace(saved.parent / f".{saved.name}.old")
    with monkeypatch.context() as context:
        context.setattr(checkpoint_weights, "save_file", fail)
        with pytest.raises(OutputError):
            save_checkpoint(saved, build_network(TOY, seed=9), CARD)
    assert same(load_checkpoint(saved)[0].state_dict(), model.state_dict())
    assert list(saved.parent.iterdir()) == [saved]


def test_a_first_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_folder, "write_json", fail)
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "new", model, CARD)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_checkpoints_place_is_left_alone(model, tmp_path):
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "notes", model, CARD)
    assert (tmp_path / "notes").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1
