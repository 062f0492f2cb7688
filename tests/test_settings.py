import dataclasses
import json
import re
from dataclasses import fields

import pytest

from melmask.checkpoint.folder import ModelCard
from melmask.config import ModelConfig, OptimizerConfig, PretrainConfig, RunConfig
from melmask.config_text import describe, from_dict, to_dict, with_overrides
from melmask.errors import ConfigError

CHANGED = PretrainConfig(
    model=ModelConfig(frames=512, patch_frames=8, cls_token=False, decoder_positions="grid", resolutions=2),
    optimizer=OptimizerConfig(learning_rate=1e-3, steps=77, warmup_steps=5),
    run=RunConfig(seed=3, max_minutes=1.5),
)


def leaves(config):
    groups = [(group.name, getattr(config, group.name)) for group in fields(config)]
    return [f"{group}.{field.name}" for group, values in groups for field in fields(values)]


def message_of(action):
    with pytest.raises(ConfigError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("config", [PretrainConfig(), CHANGED])
def test_a_config_survives_json(config):
    assert from_dict(PretrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_missing_settings_take_their_defaults():
    assert from_dict(PretrainConfig, {}) == PretrainConfig()
    assert from_dict(PretrainConfig, {"run": {"seed": 5}}) == PretrainConfig(run=RunConfig(seed=5))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.steps=123456", 123456),
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("optimizer.weight_decay=1", 1.0),
        ("model.cls_token=false", False),
        ("masking.normalize_target=True", True),
        ("hardware.device=cuda:1", "cuda:1"),
        ("hardware.precision=bf16", "bf16"),
        ("data.sampling=clip", "clip"),
        ("model.decoder_positions=grid", "grid"),
    ],
)
def test_an_override_is_parsed_to_its_settings_type(override, expected):
    config = with_overrides(PretrainConfig(), [override])
    group, name = override.split("=")[0].split(".")
    value = getattr(getattr(config, group), name)
    assert value == expected
    assert type(value) is type(expected)


def test_overrides_change_nothing_else_and_the_last_one_wins():
    config = with_overrides(CHANGED, ["run.seed=1", "run.seed=2", "model.depth=3"])
    model, run = dataclasses.replace(CHANGED.model, depth=3), dataclasses.replace(CHANGED.run, seed=2)
    assert config == dataclasses.replace(CHANGED, model=model, run=run)
    assert with_overrides(CHANGED, []) == CHANGED


def test_overrides_that_are_valid_only_together_may_be_given_together():
    config = with_overrides(PretrainConfig(), ["model.frames=100", "model.patch_frames=10"])
    assert (config.model.frames, config.model.patch_frames) == (100, 10)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("lerning_rate", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("optimiser.steps", "optimizer.steps"),
        ("training.batch_size", "data.batch_size"),
        ("model.patch_size", "model.patch_mels"),
        ("masking.normalise_target", "masking.normalize_target"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(written, meant):
    message = message_of(lambda: with_overrides(PretrainConfig(), [f"{written}=1"]))
    assert repr(written) in message
    assert f"the nearest is {meant!r}" in message


def test_a_key_without_its_section_names_the_whole_key():
    for path in leaves(PretrainConfig()):
        name = path.rsplit(".", 1)[1]
        with pytest.raises(ConfigError, match=re.escape(f"the nearest is {path!r}")):
            with_overrides(PretrainConfig(), [f"{name}=1"])


def test_a_key_like_no_other_lists_what_there_is():
    message = message_of(lambda: with_overrides(PretrainConfig(), ["zzz=1"]))
    assert all(path in message for path in leaves(PretrainConfig()))


def test_an_unknown_key_in_a_file_names_the_nearest_with_its_section():
    assert "'optimizer.steps'" in message_of(lambda: from_dict(PretrainConfig, {"optimizer": {"step": 1}}))
    assert "'optimizer'" in message_of(lambda: from_dict(PretrainConfig, {"optimiser": {"steps": 1}}))


@pytest.mark.parametrize("text", ["optimizer.steps", "--steps", ""])
def test_an_override_without_an_equals_sign_shows_how_to_write_one(text):
    assert "section.name=value" in message_of(lambda: with_overrides(PretrainConfig(), [text]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.steps=many", "optimizer.steps is 'many'; expected a whole number"),
        ("optimizer.steps=1.5", "optimizer.steps is '1.5'; expected a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate is 'fast'; expected a number"),
        ("model.cls_token=perhaps", "model.cls_token is 'perhaps'; expected true or false"),
        ("hardware.precision=fp8", "hardware.precision is 'fp8'; expected 'auto' or 'fp32' or 'bf16' or 'fp16'"),
    ],
)
def test_a_value_that_cannot_be_read_says_what_was_expected(override, expected):
    assert message_of(lambda: with_overrides(PretrainConfig(), [override])) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"optimizer": {"steps": 1.5}}, "optimizer.steps is 1.5; expected a whole number"),
        ({"optimizer": {"steps": True}}, "optimizer.steps is True; expected a whole number"),
        ({"optimizer": {"steps": None}}, "optimizer.steps is None; expected a whole number"),
        ({"model": {"cls_token": 1}}, "model.cls_token is 1; expected true or false"),
        ({"hardware": {"device": 0}}, "hardware.device is 0; expected text"),
        ({"optimizer": {"learning_rate": "1e-3"}}, "optimizer.learning_rate is '1e-3'; expected a number"),
        ({"optimizer": 5}, "optimizer is 5; expected a group of settings"),
        ([], "PretrainConfig is []; expected a group of settings"),
    ],
)
def test_a_file_with_a_value_of_another_type_says_what_was_expected(values, expected):
    assert message_of(lambda: from_dict(PretrainConfig, values)) == expected


def test_a_free_form_group_that_is_no_group_is_an_error():
    values = {"model": {}, "training": "three days"}
    assert message_of(lambda: from_dict(ModelCard, values)).startswith("training is 'three days'; expected ")


@pytest.mark.parametrize(
    "override",
    [
        "model.patch_frames=15",
        "model.heads=7",
        "model.depth=0",
        "model.decoder_width=-4",
        "model.decoder_width=0",
        "masking.ratio=1",
        "data.batch_size=0",
        "optimizer.learning_rate=nan",
        "optimizer.learning_rate=-1",
        "optimizer.warmup_steps=20000",
        "run.seed=-1",
        "hardware.readers=0",
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_name(override):
    assert override.split("=")[0] in message_of(lambda: with_overrides(PretrainConfig(), [override]))


def test_a_single_patch_cannot_be_both_hidden_and_seen():
    overrides = ["model.patch_mels=80", "model.patch_frames=208"]
    assert "model.patch_mels" in message_of(lambda: with_overrides(PretrainConfig(), overrides))


def test_a_whole_number_is_read_where_a_number_is_expected():
    rate = from_dict(PretrainConfig, {"optimizer": {"learning_rate": 1}}).optimizer.learning_rate
    assert rate == 1.0
    assert type(rate) is float


def test_the_description_has_every_setting_its_value_and_its_meaning():
    lines = describe(CHANGED).splitlines()
    assert [line.split(" = ")[0] for line in lines] == leaves(CHANGED)
    assert all(line.split("  # ")[1].strip() for line in lines)
    assert "run.seed = 3  # Decides weights, crops, masks and order." in lines
    assert [line for line in lines if line.startswith("model.decoder_positions = grid  # 1-D sinusoid")]


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.max_gradient_norm=-1",
        "optimizer.weight_decay=nan",
        "optimizer.weight_decay=-5",
        "optimizer.epochs=inf",
        "optimizer.learning_rate=inf",
        "run.seed=99999999999999999999999",
    ],
)
def test_numbers_that_no_run_can_use_are_refused(setting):
    name, value = setting.split("=")
    with pytest.raises(ConfigError, match=rf"{name} is {value}.*; give "):
        with_overrides(PretrainConfig(), [setting])
