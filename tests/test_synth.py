"""Synthetic sound as training data: what the generator draws, and how a run mixes it with a store or does without."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from melmask.audio.bands import front_end_of, with_second_resolution
from melmask.audio.logmel import LogMelSpectrogram
from melmask.cli import main
from melmask.config import DataConfig, FrontEndConfig, ResolutionConfig
from melmask.corpus.stream import CropStream
from melmask.corpus.synthetic import SyntheticCorpus, synthetic_corpus
from melmask.errors import ConfigError
from melmask.pages.run import write_run_page
from melmask.synth import scenes
from melmask.synth.draw import Draw
from melmask.synth.scenes import SILENT_SHARE, draw_sound
from melmask.synth.sources import SOURCES, _rung
from melmask.train.bench import run_bench
from melmask.train.pretrain import pretrain
from melmask.train.record import read_run_file

FRAMES = 64
SPEECH = FrontEndConfig()
FRONT_ENDS = {
    "speech": SPEECH,
    "bats": front_end_of("bats"),
    "hydrophone": front_end_of("hydrophone"),
    "odd hop": replace(SPEECH, hop_samples=7, n_fft=128, win_samples=128, mels=10),
    "two resolutions": replace(SPEECH, further_resolutions=(ResolutionConfig(),)),
}
ONE_STEP = "run.max_minutes=1e-9"


def sounds(front_end, count, frames=FRAMES):
    return [draw_sound(front_end, frames, (0, number)) for number in range(count)]


def stream_of(store, share, batch_size=8, **ranks):
    return CropStream(store, DataConfig(batch_size=batch_size, synth_share=share), FRAMES, 0, **ranks)


def last_weights(run):
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_sounds_of_every_front_end_fill_their_crops_and_are_seldom_silent(name):
    front_end = FRONT_ENDS[name]
    drawn = sounds(front_end, 100)
    logmel = LogMelSpectrogram(front_end)
    torch.set_num_threads(1)
    for sound in drawn:
        assert sound.dtype == np.float32
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() <= 1
        assert logmel.of_padded(torch.from_numpy(sound)[None]).shape == (1, front_end.bands, FRAMES)
    # The seeds are fixed; of 100 sounds at a share of 1 %, more than 5 would be silent once in 1,000 times.
    assert sum(not sound.any() for sound in drawn) <= 100 * SILENT_SHARE + 4
    # What one cannot hear is not learned from: the level of the others is above -80 dB but for a few.
    assert np.quantile([np.square(sound).mean() for sound in drawn], 0.1) > 1e-8


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_draws_finite_sounds_that_all_differ(name):
    source, _ = SOURCES[name]
    drawn = [source(Draw.for_crop(SPEECH, FRAMES, (1, number))) for number in range(20)]
    assert all(np.isfinite(sound).all() and sound.dtype == np.float32 for sound in drawn)
    # A single event may be beyond the end.
    assert sum(not sound.any() for sound in drawn) < 5
    levels = {float(np.abs(sound).sum()) for sound in drawn if sound.any()}
    assert len(levels) == sum(sound.any() for sound in drawn)


def test_everything_lasts_longer_where_the_hop_is_longer():
    """Calls of whales are slow: at a hop of 40 ms, notes of the length of speech would be clicks."""
    speech, whales = (Draw.for_crop(FRONT_ENDS[name], FRAMES, (0, 0)) for name in ("speech", "hydrophone"))
    assert whales.slowness == 4
    assert whales.span_s(0.1, 1.0) == pytest.approx(4 * speech.span_s(0.1, 1.0))


def test_a_strike_begins_at_0_so_that_it_does_not_click():
    ring = _rung(Draw.for_crop(SPEECH, FRAMES, (0, 0)), np.array([200.0, 330.0]), np.array([0.2, 0.1]), np.ones(2))
    assert ring[0] == 0 and np.abs(ring).max() > 0.5


def test_sources_are_drawn_as_often_as_their_weights_say(monkeypatch):
    drawn = []

    def named(name):
        return lambda draw: drawn.append(name) or np.ones(draw.samples, np.float32)

    monkeypatch.setattr(scenes, "_SOUNDS", tuple(named(name) for name in SOURCES))
    for number in range(2000):
        scenes._mixed(Draw(np.random.default_rng(number), 16, 16000))
    weights = {name: weight for name, (_, weight) in SOURCES.items()}
    shares = {name: drawn.count(name) / len(drawn) for name in SOURCES}
    # Of about 3,900 layers, the share of a source is within 0.008 of its weight in two of three cases.
    assert shares == pytest.approx(weights, abs=0.025)


def test_the_sounds_cover_the_levels_and_spectra_of_real_ones():
    """The 10 and 90 % of 1,000 crops of real sound: -44 and -18 dB, 295 and 1499 Hz (docs/log.md)."""
    levels_db, centroids_hz = [], []
    for sound in sounds(SPEECH, 200):
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        if power.sum() > 0:
            hz = np.fft.rfftfreq(len(sound), 1 / SPEECH.sample_rate_hz)
            levels_db.append(10 * np.log10(np.square(sound).mean()))
            centroids_hz.append((power * hz).sum() / power.sum())
    for values, low, high in ((levels_db, -44, -18), (centroids_hz, 295, 1499)):
        assert 0.05 < np.mean(np.array(values) < low) < 0.4
        assert 0.05 < np.mean(np.array(values) > high) < 0.4


def test_a_crop_has_true_surroundings_instead_of_mirrored_edges():
    front_end = FRONT_ENDS["two resolutions"]
    assert len(draw_sound(front_end, FRAMES, (0, 0))) == (FRAMES - 1) * 160 + 2 * front_end.reach_samples


def test_the_share_of_each_batch_is_synthetic_and_the_others_are_the_stores_in_order(store):
    mixed, plain, pure = stream_of(store, 0.5), stream_of(store, 0.0, batch_size=4), stream_of(store, 1.0, batch_size=4)
    for step in (3, 0, 7):
        batch = mixed.batch(step)
        np.testing.assert_array_equal(batch[:4], plain.batch(step))
        np.testing.assert_array_equal(batch[4:], pure.batch(step))
    first, second = (mixed.batch(step)[4:] for step in (0, 1))
    assert len(np.unique(np.concatenate([first, second]).reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_synthetic_batches_depend_on_neither_processes_nor_readers_nor_where_one_starts(store, share):
    whole = list(stream_of(store, share).batches(0, 6, readers=1))
    np.testing.assert_array_equal(whole[4:], list(stream_of(store, share).batches(4, 2, readers=3)))
    for rank in range(4):
        (part,) = stream_of(store, share, rank=rank, processes=4).batches(5, 1, readers=1)
        np.testing.assert_array_equal(part, whole[5][rank::4])


def test_readers_leave_the_number_of_threads_as_it_was(store):
    torch.set_num_threads(2)
    try:
        next(stream_of(store, 1.0).batches(0, 1, readers=2))
        weight = torch.ones(1, requires_grad=True)
        # After a backward pass, a thread has the number that any thread has set last.
        weight.sum().backward()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_statistics_without_a_store_are_those_of_a_fixed_sample(configure):
    first, second = (SyntheticCorpus(FRONT_ENDS["two resolutions"], FRAMES) for _ in range(2))
    assert first.statistics == second.statistics
    clips = np.empty((len(first), FRAMES, 160), dtype="<f2")
    for number, clip in enumerate(clips):
        first.read_into(clip, number, 0)
    for values, mean, std in (
        (clips[..., :80], first.statistics.mean, first.statistics.std),
        (clips[..., 80:], first.statistics.further_means[0], first.statistics.further_stds[0]),
    ):
        assert values.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-3)
        assert values.std(dtype=np.float64) == pytest.approx(std, abs=1e-3)
    bats = synthetic_corpus(configure("data.synth_share=1", "data.synth_band=bats", "model.resolutions=2"))
    assert bats.front_end == with_second_resolution(front_end_of("bats"))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_run_stopped_at_every_step_equals_an_uninterrupted_one(store, configure, tmp_path, share):
    config = configure(f"data.synth_share={share}", "optimizer.steps=3")
    corpus = store if share < 1 else synthetic_corpus(config)
    pretrain(corpus, tmp_path / "whole", config)
    for step in range(1, 4):
        stops = configure(f"data.synth_share={share}", "optimizer.steps=3", ONE_STEP, f"hardware.readers={step}")
        assert pretrain(corpus, tmp_path / "parts", stops).step == step
    ours, theirs = last_weights(tmp_path / "parts"), last_weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_command_without_a_store_trains_is_resumed_and_says_what_it_learned_from(configure, tmp_path, capsys, store):
    run = tmp_path / "run"
    toy = ["model.width=32", "model.depth=1", "model.heads=2", "data.batch_size=4", "optimizer.steps=2"]
    toy += ["run.picture_interval_steps=0"]
    first = ["pretrain", "--synth", "1", "--recipe", "demo", "--out", str(run), *toy, ONE_STEP]
    assert main(first) == 0
    assert "resume with: melmask pretrain --out" in capsys.readouterr().out
    assert f"melmask pretrain --out {run}" in (run / "index.html").read_text()
    # The first setting stands where the store would.
    assert main(["pretrain", "run.max_minutes=0", "--out", str(run)]) == 0
    file = read_run_file(run)
    assert (file.store, file.frames, file.config().data.synth_share) == ("", None, 1.0)
    card = json.loads((sorted((run / "checkpoints").iterdir())[-1] / "config.json").read_text())
    assert card["training"]["sound"] == {"recorded_hours": 0.0, "synthetic_share": 1.0, "generator": 1}
    assert "Synthetic sound" in (run / "index.html").read_text()
    with pytest.raises(ConfigError, match="began without a store; leave out"):
        pretrain(store, run, configure("data.synth_share=1"))


def test_a_mixed_run_counts_only_the_stores_crops_as_epochs(store, configure, tmp_path):
    config = configure("data.synth_share=0.5", "optimizer.steps=2")
    pretrain(store, tmp_path, config)
    card = json.loads((sorted((tmp_path / "checkpoints").iterdir())[-1] / "config.json").read_text())
    hours = round(float(store.frames.sum()) / 360_000, 3)
    assert card["training"]["sound"] == {"recorded_hours": hours, "synthetic_share": 0.5, "generator": 1}
    assert "50 % <small>of the crops" in write_run_page(tmp_path).read_text().replace("\u00a0", " ")


def test_a_bench_draws_what_the_configuration_says(store, configure):
    assert run_bench(configure("data.synth_share=1"), None, 0.0).data == "synthetic"
    assert run_bench(configure("data.synth_share=0.5"), store, 0.0).data.endswith(", 4 of them synthetic")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--recipe", "demo"], "there is no STORE, but data.synth_share is 0; give a store"),
        (["--synth", "0.5"], "data.synth_share is 0.5; give a store"),
        (["--synth", "2"], "the value is '2'; give a number from 0 to 1"),
        (["--synth", "0.001"], "no whole crop of a batch of 128; give 0, 1, or from 0.0078 to 0.99"),
        (["--synth", "1", "data.synth_band=cats"], "--band is 'cats'; give a sample rate"),
        (["--synth", "1", "model.mels=64"], "prepare a store with another front end"),
        (["--synth", "1", "--recipe", "msm_mae_208"], "all crops are synthetic; add optimizer.epochs=0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, says, tmp_path, capsys):
    try:
        status = main(["pretrain", *words, "--out", str(tmp_path / "run")])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_configuration_without_synthetic_sound_is_written_as_before(run_folder):
    text = (run_folder / "run.json").read_text()
    assert "synth" not in text
    assert (
        "sound"
        not in json.loads((sorted((run_folder / "checkpoints").iterdir())[-1] / "config.json").read_text())["training"]
    )
