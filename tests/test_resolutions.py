"""A front end of several resolutions, from the waveform to the embedding; with one, all files stay what they were."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from melmask.audio.bands import front_end_of, with_second_resolution
from melmask.audio.logmel import (
    LogMelSpectrogram,
    band_edges_hz,
    denormalize,
    logmel_blocks,
    normalize,
    resolution_filterbank,
)
from melmask.audio.statistics import moments_of
from melmask.checkpoint.convert import to_msm_mae
from melmask.checkpoint.folder import ModelCard, load_checkpoint, save_checkpoint
from melmask.cli import main
from melmask.config import FrontEndConfig, ModelConfig, ResolutionConfig, Statistics
from melmask.config_text import from_dict, to_dict, with_overrides
from melmask.corpus.prepare import prepare
from melmask.corpus.resolutions import first_resolutions
from melmask.corpus.store import Store
from melmask.corpus.stream import CropStream
from melmask.embedding.encoder import load, untrained
from melmask.embedding.normalization import with_dataset_statistics
from melmask.embedding.streaming import EmbeddingStream
from melmask.errors import ConfigError
from melmask.figures.reconstruction import reconstruction_figure
from melmask.figures.spectrogram import band_positions, frequency_ticks_hz
from melmask.models.network import build_network, patchify, unpatchify
from melmask.objectives.mae import reconstruct
from melmask.recipes import recipe, with_settings
from melmask.train.initial import initial_weights
from melmask.train.pretrain import pretrain
from melmask.train.resume import resolve_config

RATE_HZ = 16000
ONE = FrontEndConfig()
TWO = FrontEndConfig(further_resolutions=(ResolutionConfig(),))
# A long mel window, and one that is shorter than the first one's, whose bins are far apart.
THREE = FrontEndConfig(
    further_resolutions=(
        ResolutionConfig(window_ms=64.0, scale="mel"),
        ResolutionConfig(window_ms=10.07, max_hz=4000.0),
    )
)
STATISTICS = Statistics(mean=-8.0, std=3.0, further_means=(-6.0,), further_stds=(5.0,))


def noise(samples):
    return torch.from_numpy(0.1 * np.random.default_rng(samples).normal(size=(1, samples)).astype(np.float32))


@pytest.fixture(scope="module")
def two_store(sound_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "store"
    prepare([sound_folder], folder, TWO, threads=1)
    return Store(folder)


@pytest.fixture(scope="module")
def two_run(two_store, configure, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    pretrain(two_store, folder, configure("model.resolutions=2", "masking.normalize_target=true"))
    return folder


@pytest.fixture(scope="module")
def two(two_run):
    return load(two_run, device="cpu")


@pytest.mark.parametrize("scale", ["log", "mel"])
def test_a_tone_is_loudest_in_the_band_that_it_is_the_center_of(scale):
    config = replace(ONE, further_resolutions=(ResolutionConfig(scale=scale),))
    centers_hz = band_edges_hz(config, 1)[1:-1]
    time_s = np.arange(RATE_HZ) / RATE_HZ
    tones = torch.from_numpy(np.sin(2 * np.pi * centers_hz[:, None] * time_s).astype(np.float32))
    loudest = LogMelSpectrogram(config)(tones)[:, 80:, 50].argmax(1)
    assert loudest.tolist() == list(range(80))
    if scale == "log":
        assert centers_hz[12::12] / centers_hz[:-12:12] == pytest.approx(2.0)
        assert centers_hz[0] == pytest.approx(8000 / 2 ** (80 / 12))


def test_the_bands_of_a_resolution_end_where_its_settings_say():
    assert band_edges_hz(THREE, 2)[-1] == 4000.0


@pytest.mark.parametrize("config", [TWO, THREE], ids=["two", "three"])
def test_every_band_hears_white_noise_at_the_same_level(config):
    power = LogMelSpectrogram(config)(noise(160_000))[0].exp().mean(1)
    levels = [part.mean() for part in power.chunk(config.resolutions)]
    assert torch.stack(levels) / levels[0] == pytest.approx(np.ones(config.resolutions), rel=0.05)
    for number in range(1, config.resolutions):
        filters = resolution_filterbank(config, number)
        # The lowest bands are closer to each other than two bins of the FFT.
        assert filters.sum(1) == pytest.approx(np.full(80, filters.sum(1).mean()), rel=1e-4)
        assert (filters >= 0).all()


@pytest.mark.parametrize("config", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("samples", [1, 3, 100, 1023, 1024, 1025, 1026, 5000, 40_000])
def test_frames_of_all_resolutions_have_the_same_centers_also_in_blocks(config, samples):
    sound = noise(samples)
    transform = LogMelSpectrogram(config)
    whole = transform(sound)
    assert whole.shape == (1, config.bands, 1 + samples // 160)
    assert torch.allclose(whole[:, :80], LogMelSpectrogram(ONE)(sound), atol=1e-5)
    for number, further in enumerate(config.further_resolutions, 1):
        window = config.window_samples(further)
        alone = FrontEndConfig(win_samples=window, n_fft=config.fft_samples(further))
        alone_transform = LogMelSpectrogram(alone)
        alone_transform.filters = torch.from_numpy(resolution_filterbank(config, number)).T
        part = whole[:, 80 * number : 80 * (number + 1)]
        assert torch.allclose(part, alone_transform(sound), atol=1e-4)
    blocks = torch.cat(list(logmel_blocks([part.numpy() for part in sound[0].split(333)], transform)), dim=1)
    assert torch.allclose(blocks, whole[0], atol=1e-3)


def test_a_click_is_in_the_middle_of_its_frames():
    sound = torch.zeros(1, RATE_HZ)
    sound[0, 8000] = 1.0
    logmel = LogMelSpectrogram(TWO)(sound)[0]
    for part in logmel.chunk(2):
        level = part.mean(0)
        assert int(level.argmax()) == 50
        assert torch.allclose(level, level.flip(0), atol=1e-3)


def test_files_of_one_resolution_say_nothing_of_others():
    card = ModelCard(model=ModelConfig())
    assert not {"resolutions", "further_resolutions", "further_means", "further_stds"} & set(
        json.dumps(to_dict(card)).replace('"', " ").split()
    )
    moments = moments_of(np.arange(8.0).reshape(2, 4))
    assert set(moments.as_dict()) == {"count", "mean", "squares"}
    assert from_dict(FrontEndConfig, to_dict(ONE)) == ONE


def test_settings_of_resolutions_are_read_from_json_and_checked():
    text = 'further_resolutions=[{"window_ms": 64, "scale": "mel"}, {}]'
    config = with_overrides(ONE, [text])
    assert config.further_resolutions == (ResolutionConfig(window_ms=64.0, scale="mel"), ResolutionConfig())
    assert from_dict(FrontEndConfig, json.loads(json.dumps(to_dict(config)))) == config
    for value, words in [
        ("3", "expected a list"),
        ("[3]", "expected a group"),
        ("[{", "as JSON"),
        ('[{"window": 3}]', "nearest is 'further_resolutions.window_ms'"),
        ('[{"window_ms": 0}]', "give 1 to 10000"),
        ('[{"scale": "bark"}]', "expected 'log' or 'mel'"),
        ('[{"max_hz": 9000}]', "at most 8000"),
        ('[{"bands_per_octave": NaN}]', "give 1 to 1000"),
    ]:
        with pytest.raises(ConfigError, match=words):
            with_overrides(ONE, [f"further_resolutions={value}"])


def test_a_store_holds_the_log_mels_and_the_statistics_of_both(two_store, store):
    assert two_store.front_end == TWO and list(two_store.frames) == list(store.frames)
    clip = int(np.argmax(store.frames))
    crops = [np.empty((64, bands), dtype="<f2") for bands in (160, 80)]
    clips = [np.empty((frames, 160), dtype="<f2") for frames in two_store.frames]
    for number, out in enumerate(clips):
        two_store.read_into(out, number, 0)
    values = np.concatenate(clips)
    for one, crop in zip((two_store, store), crops, strict=True):
        one.read_into(crop, clip, 3)
    assert np.array_equal(crops[0][:, :80], crops[1])
    statistics = two_store.statistics
    first = (store.statistics.mean, store.statistics.std)
    assert (statistics.mean, statistics.std) == pytest.approx(first, rel=1e-7)
    further = values[:, 80:].astype(np.float64)
    assert statistics.further_means == pytest.approx((further.mean(),), abs=1e-3)
    assert statistics.further_stds == pytest.approx((further.std(),), abs=1e-3)


def test_a_patch_holds_the_same_bands_and_frames_of_each_resolution():
    rows = torch.arange(160.0)[:, None] * 1000 + torch.arange(32.0)
    patches = patchify(rows[None], 16, 16, 2)
    assert patches.shape == (1, 10, 512)
    # Patch 3: row 1, column 1. Its values are ordered (resolution, mel, frame).
    expected = [rows[80 * resolution + 16 : 80 * resolution + 32, 16:].flatten() for resolution in (0, 1)]
    assert torch.equal(patches[0, 3], torch.cat(expected))
    assert torch.equal(unpatchify(patches, 5, 16, 2), rows[None])


def test_each_resolution_is_normalized_by_its_own_statistics():
    logmel = torch.cat([torch.full((80, 4), -8.0), torch.full((80, 4), 4.0)])
    assert torch.equal(normalize(logmel, STATISTICS), torch.cat([torch.zeros(80, 4), torch.full((80, 4), 2.0)]))
    assert torch.equal(denormalize(normalize(logmel, STATISTICS), STATISTICS), logmel)


def test_targets_are_normalized_in_each_resolution_by_itself(configure):
    config = configure("model.resolutions=2").model
    masked = torch.arange(20)[None] % 2 == 0
    logmel = torch.randn(1, 160, 64, generator=torch.Generator().manual_seed(0))
    louder = logmel + torch.cat([torch.zeros(80, 1), torch.full((80, 1), 7.0)])
    targets = [reconstruct(build_network(config), x, masked, normalize_target=True).target for x in (logmel, louder)]
    assert torch.allclose(*targets, atol=1e-4)


def test_a_run_of_two_resolutions_is_saved_and_embeds_as_offline_in_a_stream(two_run, two, two_store, good_paths):
    assert two.card.front_end == TWO and two.card.statistics == two_store.statistics
    sound = noise(30_000)[0].numpy()
    offline = two.embed(sound, RATE_HZ, hop_ms=40.0)
    stream = EmbeddingStream(two, RATE_HZ, hop_ms=40.0)
    parts = [stream.push(part)[0] for part in np.split(sound, 10)] + [stream.finish()[0]]
    assert np.abs(np.concatenate(parts) - offline.frames).max() < 1e-4
    # The tokens are as many as with one resolution, so the vectors have the same size.
    assert offline.scene.shape == (5 * 32,)
    own = with_dataset_statistics(two, good_paths).card.statistics
    assert own.further_means == pytest.approx(two_store.statistics.further_means, abs=1e-6)
    again = two_run.parent / "again"
    save_checkpoint(again, two.model, two.card)
    assert load_checkpoint(again)[1] == two.card


def test_a_reconstruction_keeps_the_level_of_each_resolution(two):
    logmel = two.logmel(noise(64 * 160)[0].numpy(), RATE_HZ)[:, :, :64]
    masked = np.arange(20)[None] % 2 == 0
    made = two.reconstruct(logmel, masked=masked).logmel
    assert made.shape == logmel.shape
    for part in (slice(0, 80), slice(80, 160)):
        assert made[:, part].mean() == pytest.approx(logmel[:, part].mean(), abs=0.5)
    pytest.importorskip("matplotlib")
    figure = reconstruction_figure(two, logmel, ["noise"])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == ["noise, window of 25 ms", "noise, window of 256 ms"]
    # Each row has the frequencies of its own resolution.
    for number, axes in enumerate([axes for axes in figure.axes if axes.get_ylabel() == "frequency (Hz)"]):
        positions = band_positions(frequency_ticks_hz(TWO, number), TWO, number)
        assert np.allclose(axes.get_yticks(), positions)


def test_a_model_of_one_resolution_starts_one_of_two_that_hears_the_same(run_folder, configure):
    config = configure("model.resolutions=2")
    weights, text = initial_weights(run_folder, config, TWO)
    assert "its encoder and a new decoder, 2 instead of 1 resolutions" in text
    network = build_network(config.model)
    network.load_state_dict(weights)
    one, _ = load_checkpoint(sorted((run_folder / "checkpoints").iterdir())[-1])
    x = torch.randn(1, 160, 64, generator=torch.Generator().manual_seed(0))
    *_, expected = one.encoder.encode_layers(x[:, :80])
    *_, tokens = network.encoder.encode_layers(x)
    assert torch.allclose(tokens, expected, atol=1e-5)


def test_and_one_of_two_starts_one_of_one(two_run, configure):
    weights, text = initial_weights(two_run, configure(), ONE)
    assert "1 instead of 2 resolutions" in text and weights["encoder.patch_embed.weight"].shape == (32, 256)


def test_a_network_of_one_resolution_learns_from_a_store_of_two_as_from_one_of_one(two_store, store, configure):
    seen = first_resolutions(two_store, 1)
    assert first_resolutions(store, 1) is store and first_resolutions(two_store, 2) is two_store
    assert seen.front_end == store.front_end and seen.statistics.resolutions == 1
    assert (seen.statistics.mean, seen.statistics.std) == pytest.approx((store.statistics.mean, store.statistics.std))
    data = configure("data.batch_size=16").data
    assert np.array_equal(CropStream(seen, data, 64, 0).batch(3), CropStream(store, data, 64, 0).batch(3))


def test_the_recipe_is_the_one_for_the_store(two_store, store, tmp_path, capsys):
    assert resolve_config(tmp_path, None, [], two_store) == with_settings(recipe("tiny"), [])
    assert resolve_config(tmp_path, None, [], store) == with_settings(recipe("tiny_025"), [])
    small = ("model.width=32", "model.depth=1", "model.heads=2", "data.batch_size=2", "optimizer.steps=2")
    command = ["pretrain", str(two_store.folder), "--recipe", "tiny_025", "--out", str(tmp_path / "run"), *small]
    # The second call finds the run done: it began with the same store.
    for _ in range(2):
        assert main(command) == 0
        assert "has 2 resolutions, and this network hears 1 of them" in capsys.readouterr().out
    assert load(tmp_path / "run").card.front_end == ONE


def test_a_new_store_has_two_resolutions_and_an_old_one_keeps_its_own(sound_folder, tmp_path):
    sound = str(sorted(sound_folder.glob("*.wav"))[0])
    for options, resolutions in [([], 2), (["--resolutions", "1"], 1)]:
        out = tmp_path / str(resolutions)
        for again in (options, []):
            assert main(["prepare", sound, "--out", str(out), *again]) == 0
            assert Store(out).front_end.resolutions == resolutions
    assert main(["prepare", sound, "--out", str(tmp_path / "1"), "--resolutions", "2"]) == 2


@pytest.mark.parametrize(("band", "window_ms"), [("speech", 256), ("wide", 256), ("bats", 16), ("hydrophone", 1024)])
def test_the_second_window_of_a_band_is_long_beside_its_first(band, window_ms):
    (second,) = with_second_resolution(front_end_of(band)).further_resolutions
    assert second.window_ms == window_ms


@pytest.mark.parametrize("rate_hz", [100, 1000, 7999, 8000, 22050, 48000, 48001, 384000, 2_000_000])
def test_every_band_has_a_second_resolution_that_hears(rate_hz):
    front_end = with_second_resolution(front_end_of(str(rate_hz)))
    logmel = LogMelSpectrogram(front_end)(noise(4 * front_end.fft_samples(front_end.further_resolutions[0])))
    assert torch.isfinite(logmel).all() and (logmel[:, 80:].std(-1) > 0).all()


def test_what_does_not_fit_is_refused_with_what_to_type(store, two, tmp_path, capsys):
    assert main(["pretrain", str(store.folder), "--recipe", "tiny", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--resolutions 2, or set model.resolutions=1" in line
    with pytest.raises(ConfigError, match="room for only one"):
        to_msm_mae(two.model, two.card)
    with pytest.raises(ConfigError, match="2, 2 and 1 resolutions"):
        replace(two.card, statistics=Statistics())


@pytest.mark.filterwarnings("ignore")
def test_the_exported_graph_has_both_resolutions(tmp_path):
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    from jaxtyping import config as jaxtyping_config

    from melmask.embedding.export import export_onnx

    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64, resolutions=2)
    model = untrained(ModelCard(model=config, front_end=TWO, statistics=STATISTICS), device="cpu")
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        export_onnx(model, tmp_path / "x.onnx")
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    for samples in (1, 100, 1024, 33_333):
        audio = noise(samples).numpy()
        scene, frames, _ = session.run(None, {"waveform": audio})
        ours = model.embed(audio, RATE_HZ)
        assert np.abs(scene - ours.scene).max() < 2e-3 and np.abs(frames - ours.frames).max() < 2e-3
