"""Starting from another model, and lengths in epochs: what a new run's configuration means."""

import pytest
import torch

import melmask
from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.cli import main
from melmask.config import FrontEndConfig, ResolutionConfig, Statistics
from melmask.config_text import with_overrides
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.corpus.stream import CropStream
from melmask.errors import CheckpointError, ConfigError
from melmask.models.network import build_network
from melmask.train.initial import initial_weights, resized_embedding
from melmask.train.record import write_run_file
from melmask.train.resume import resolve_config
from melmask.train.snapshot import checkpoints_of


@pytest.fixture(scope="module")
def source(configure, tmp_path_factory):
    """A checkpoint of the toy network with other weights."""
    folder = tmp_path_factory.mktemp("source") / "model"
    config = configure().model
    save_checkpoint(folder, build_network(config, seed=11), ModelCard(model=config))
    return folder


FRONT_END = FrontEndConfig()


def state(config, seed):
    return build_network(config.model, seed).state_dict()


def test_encoder_and_decoder_are_taken_for_units_of_any_length(source, configure):
    config = configure("model.frames=96")
    weights, text = initial_weights(source, config, FRONT_END)
    expected = state(configure(), 11)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert text.endswith("its encoder and its decoder, units of 80x96 instead of 80x64")
    # The longer model's first columns are where the shorter one had them.
    short, long = build_network(configure().model), build_network(config.model)
    assert torch.equal(long.encoder.positions_for(4), short.encoder.positions)


@pytest.mark.parametrize("deeper", ["model", "run"])
def test_a_decoder_of_another_depth_is_not_taken_in_part(source, configure, tmp_path, deeper):
    deep = configure("model.decoder_depth=2")
    save_checkpoint(tmp_path, build_network(deep.model, seed=11), ModelCard(model=deep.model))
    given, config = (tmp_path, configure()) if deeper == "model" else (source, deep)
    weights, text = initial_weights(given, config, FRONT_END)
    assert text.endswith("its encoder and a new decoder")
    new = state(config, config.run.seed)
    assert all(torch.equal(weights[name], tensor) for name, tensor in new.items() if name.startswith("decoder."))


def test_another_front_end_is_said(source, configure):
    _, text = initial_weights(source, configure(), FrontEndConfig(hop_samples=320, max_hz=4000.0))
    differs = "hop_samples 160 there and 320 here, max_hz 8000 there and 4000 here"
    assert text.endswith(f"its log-mels differ from the store's: {differs}")


def test_a_further_resolution_that_differs_is_said(configure, tmp_path):
    two = configure("model.resolutions=2")
    first, second = (FrontEndConfig(further_resolutions=(ResolutionConfig(window_ms=ms),)) for ms in (128.0, 256.0))
    card = ModelCard(model=two.model, front_end=first, statistics=Statistics(further_means=(0.0,), further_stds=(1.0,)))
    save_checkpoint(tmp_path, build_network(two.model), card)
    _, text = initial_weights(tmp_path, two, second)
    assert text.endswith("further_resolutions: window_ms 128 there and 256 here")


def test_another_number_of_mel_bands_is_another_number_of_rows_from_the_lowest_band_on(source, configure):
    config = configure("model.mels=128")
    weights, text = initial_weights(source, config, FrontEndConfig(mels=128))
    assert "units of 128x64 instead of 80x64; its log-mels differ from the store's: mels 80 there and 128 here" in text
    tall, low = build_network(config.model), build_network(configure().model)
    tall.load_state_dict(weights)
    assert torch.equal(tall.encoder.positions[: 5 * 4], low.encoder.positions)
    assert len(tall.encoder.positions) == 8 * 4


@pytest.mark.parametrize(
    "change",
    ["model.decoder_depth=2", "model.decoder_positions=grid", "model.decoder_width=32", "model.decoder_heads=1"],
)
def test_another_decoder_starts_at_random(source, configure, change):
    config = configure(change)
    weights, text = initial_weights(source, config, FRONT_END)
    trained, fresh = state(configure(), 11), state(config, 0)
    for name, tensor in weights.items():
        assert torch.equal(tensor, (trained if name.startswith("encoder.") else fresh)[name])
    assert "a new decoder" in text


def test_patches_may_have_another_shape(source, configure):
    weights, text = initial_weights(source, configure("model.patch_frames=8"), FRONT_END)
    assert "its encoder and a new decoder, patches of 16x8 instead of 16x16" in text
    trained = state(configure(), 11)
    assert weights["encoder.patch_embed.weight"].shape == (32, 16 * 8)
    for name, tensor in weights.items():
        if name.startswith("encoder.") and name != "encoder.patch_embed.weight":
            assert torch.equal(tensor, trained[name])


@pytest.mark.parametrize("after", [(16, 8), (4, 4), (20, 24), (16, 16)])
def test_a_resized_embedding_says_the_same_of_resized_patches(after):
    generator = torch.Generator().manual_seed(0)
    patches, weight = torch.randn(3, 256, generator=generator), torch.randn(5, 256, generator=generator)
    if after < (16, 16):
        # Of a smaller patch only what is smooth can be told.
        ramp = torch.linspace(-1, 1, 16)
        smooth = torch.stack([torch.ones(256), ramp.repeat(16), ramp.repeat_interleave(16)])
        patches, weight = patches[:, :3] @ smooth, weight[:, :3] @ smooth
    images = patches.unflatten(1, (1, 16, 16))
    resized_patches = torch.nn.functional.interpolate(images, size=after, mode="bilinear", antialias=True)
    said = resized_patches.flatten(1) @ resized_embedding(weight, (16, 16), after).T
    expected = patches @ weight.T
    assert (said - expected).norm() < (0.06 if after < (16, 16) else 1e-5) * expected.norm()


def test_a_cls_token_is_dropped_or_made(source, configure):
    without = configure("model.cls_token=false")
    weights, _ = initial_weights(source, without, FRONT_END)
    assert "encoder.cls_token" not in weights
    assert torch.equal(weights["encoder.patch_embed.weight"], state(configure(), 11)["encoder.patch_embed.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.width=64", r"model.width is 64, but .* has 32; set model.width=32"),
        ("model.depth=3", r"model.depth is 3, but .* has 2; set model.depth=2"),
        ("model.heads=4", r"model.heads is 4, but .* has 2; set model.heads=2"),
    ],
)
def test_another_encoder_is_refused_in_one_line(source, configure, change, message):
    with pytest.raises(ConfigError, match=message):
        initial_weights(source, configure(change), FRONT_END)
    with pytest.raises(CheckpointError, match="does not exist"):
        initial_weights(source / "nowhere", configure(), FRONT_END)


def test_a_run_starts_from_the_weights_and_resumes_from_its_own(source, store_folder, configure, tmp_path, capsys):
    run = tmp_path / "run"
    # The decoder is that of the model, which no recipe has.
    model = [f"model.{key}={value}" for key, value in vars(configure().model).items() if "decoder" not in key]
    quick = ["data.batch_size=2", "run.picture_interval_steps=0", "hardware.precision=fp32", "hardware.threads=1"]
    # Steps so short that the weights hardly move.
    length = ["optimizer.steps=2", "optimizer.warmup_steps=1", "optimizer.learning_rate=1e-9"]
    command = ["pretrain", str(store_folder), "--out", str(run), "--init", str(source), *model, *quick, *length]
    assert main([*command, "run.max_minutes=1e-9"]) == 0
    assert "starting from" in capsys.readouterr().out
    assert main([*command, "run.max_minutes=0"]) == 0
    assert [path.name for path in checkpoints_of(run)] == ["step-0000001", "step-0000002"]
    ours = melmask.load(run, device="cpu").model.state_dict()
    for name, tensor in state(configure(), 11).items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_a_run_without_its_record_or_with_anothers_does_not_go_on(store, tmp_path):
    (tmp_path / "snapshot.pt").touch()
    with pytest.raises(CheckpointError, match=r"run\.json is missing, but snapshot\.pt is there; put it back"):
        resolve_config(tmp_path, "tiny", [], store)
    (tmp_path / "run.json").write_text('{"pretrain": {"optimizer": {"newthing": 1}}}')
    with pytest.raises(CheckpointError, match=r"run\.json is damaged or of another melmask .unknown configuration key"):
        resolve_config(tmp_path, "tiny", [], store)


def test_epochs_become_steps(store, tmp_path):
    settings = ["optimizer.epochs=3", "optimizer.warmup_epochs=1", "data.batch_size=2", "model.frames=64"]
    config = resolve_config(tmp_path / "run", "tiny", settings, store)
    crops = CropStream(store, config.data, 64, 0).crops_per_epoch
    assert crops > 6
    assert config.optimizer.steps == round(3 * crops / 2)
    assert config.optimizer.warmup_steps == round(crops / 2)
    plain = resolve_config(tmp_path / "run", "tiny", ["optimizer.steps=77", "optimizer.warmup_steps=7"], store)
    assert (plain.optimizer.steps, plain.optimizer.warmup_steps) == (77, 7)
    with pytest.raises(ConfigError, match=r"optimizer.warmup_epochs is 4.0; give 0 to epochs = 3"):
        with_overrides(config, ["optimizer.warmup_epochs=4"])


def test_a_store_that_has_grown_is_told_as_such_not_as_other_steps(store, sound_folder, tmp_path):
    settings = ["optimizer.epochs=3", "optimizer.warmup_epochs=1", "data.batch_size=2", "model.frames=64"]
    run = tmp_path / "run"
    write_run_file(run, resolve_config(run, "tiny", settings, store), store)
    assert resolve_config(run, None, [], store).optimizer.epochs == 3
    small = tmp_path / "small"
    prepare(sorted(sound_folder.glob("*.wav"))[:1], small, store.front_end)
    with pytest.raises(ConfigError, match=r"began with a store of \d+ frames; .*small has \d+ and other clips"):
        resolve_config(run, None, [], Store(small))


def test_a_run_keeps_its_seed_without_which_it_could_not_be_made_again(store, tmp_path):
    write_run_file(tmp_path, resolve_config(tmp_path, "tiny", [], store), store)
    assert resolve_config(tmp_path, None, ["run.log_interval_steps=7"], store).run.log_interval_steps == 7
    with pytest.raises(ConfigError, match=r"began with run\.seed = 0, not 1"):
        resolve_config(tmp_path, None, ["run.seed=1"], store)


def test_steps_are_not_silently_computed_anew(store, tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer.steps=20000 does not fit optimizer.epochs"):
        resolve_config(tmp_path / "run", "msm_mae_208", ["optimizer.steps=20000"], store)
    off = ["optimizer.epochs=0", "optimizer.warmup_epochs=0", "optimizer.steps=100", "optimizer.warmup_steps=1"]
    assert resolve_config(tmp_path / "run", "msm_mae_208", off, store).optimizer.steps == 100
