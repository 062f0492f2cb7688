"""Adapters of mteb and X-ARES: what each project passes and checks, without its library, and with it if installed."""

import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from melmask.adapters import mteb, xares
from melmask.adapters.clips import embed_clips
from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.config import ModelConfig
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import load
from melmask.errors import ConfigError, InputError, MissingExtraError
from melmask.models.network import build_network

RATE_HZ = 16000
TASK = SimpleNamespace(name="Local")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64)
    path = tmp_path_factory.mktemp("model") / "toy"
    save_checkpoint(path, build_network(config), ModelCard(model=config))
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load(folder)


def library(name):
    """Import a library, or skip the test with the reason; its own imports may warn."""
    try:
        return import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def noise(seconds, seed=0, rate_hz=RATE_HZ):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate_hz)).astype(np.float32)


def batch(*clips, rate_hz=RATE_HZ):
    return {"audio": [{"array": clip, "sampling_rate": rate_hz} for clip in clips]}


def test_clips_of_different_lengths_and_rates_get_the_vectors_that_each_gets_alone(encoder):
    clips = [(noise(0.31), RATE_HZ), (noise(2.2, 1, 44100), 44100), (noise(1.0, 2), RATE_HZ)]
    choice = FeatureChoice(scene="mean+std", hop_ms=40.0)
    for (clip, rate_hz), made in zip(clips, embed_clips(encoder, clips, choice, keep_frames=True), strict=True):
        alone = encoder.embed(clip, rate_hz, choice)
        np.testing.assert_allclose(made.scene(), alone.scene, atol=1e-5)
        np.testing.assert_allclose(made.take(), alone.frames, atol=1e-5)


def test_mteb_gets_a_mean_and_a_deviation_for_each_clip_of_all_batches(folder, encoder):
    model = mteb.MtebModel("melmask/toy", model=str(folder))
    stereo = np.stack([noise(0.7, 3), noise(0.7, 4)])
    batches = [batch(noise(0.5), noise(1.4, 1)), batch(noise(0.9, 2, 8000), rate_hz=8000), batch(stereo)]
    scenes = model.encode(batches, task_metadata=TASK, hf_split="test", hf_subset="default", batch_size=2)
    assert scenes.shape == (4, 320) and scenes.dtype == np.float32 and model.size == 320
    for row, (array, rate_hz) in enumerate(
        [(noise(0.5), RATE_HZ), (noise(1.4, 1), RATE_HZ), (noise(0.9, 2, 8000), 8000)]
    ):
        np.testing.assert_allclose(scenes[row], encoder.embed(array, rate_hz, scene="mean+std").scene, atol=1e-5)
    np.testing.assert_allclose(scenes[3], encoder.embed(stereo.mean(0), RATE_HZ, scene="mean+std").scene, atol=1e-5)
    as_integers = model.encode([batch((stereo * 32768).astype(np.int16))])
    np.testing.assert_allclose(as_integers[0], scenes[3], atol=0.02)
    assert mteb.MtebModel("melmask/toy", model=str(folder), scene="mean", layer=1, pooling="mean").size == 32


def test_what_mteb_may_pass_that_is_no_clip_is_reported_with_its_number(folder, capsys):
    model = mteb.MtebModel("melmask/toy", model=str(folder))
    with pytest.raises(InputError, match="Local gives text and no audio"):
        model.encode([{"text": ["a dog barks"]}], task_metadata=TASK)
    with pytest.raises(InputError, match="clip 2 of Local holds NaN"):
        model.encode([batch(noise(0.3)), batch(np.full(900, np.nan))], task_metadata=TASK)
    with pytest.raises(InputError, match="clip 1 of Local has no sampling rate"):
        model.encode([batch(noise(0.3), rate_hz=None)], task_metadata=TASK)
    scenes = model.encode([batch(np.zeros(0), noise(0.3))], task_metadata=TASK)
    assert np.isfinite(scenes).all() and len(scenes) == 2
    assert "clip 1 of Local is shorter than a sample of the model" in capsys.readouterr().err


def test_without_mteb_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"melmask\[mteb\]"):
        mteb.load_model(folder)


@pytest.mark.filterwarnings("ignore")
def test_mteb_runs_a_task_and_files_each_model_and_choice_apart(folder, tmp_path, sound):
    library("mteb")
    from datasets import Dataset, DatasetDict
    from mteb import ResultCache, evaluate
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.models_protocols import EncoderProtocol

    class Pitches(AbsTaskClassification):
        metadata = TaskMetadata(
            name="Pitches",
            description="Gliding tones of two pitches",
            reference=None,
            dataset={"path": "local/pitches", "revision": "1"},
            type="AudioClassification",
            category="a2c",
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score="accuracy",
            modalities=["audio"],
        )
        input_column_name, label_column_name, n_experiments = "audio", "label", 2

        def load_data(self, **_):
            rows = [(sound(0.3 + 0.05 * k, 4 * (k % 2)), k % 2) for k in range(20)]
            clips = [{"array": clip, "sampling_rate": RATE_HZ} for clip, _ in rows]
            whole = Dataset.from_dict({"audio": clips, "label": [label for _, label in rows]})
            self.dataset = DatasetDict(train=whole, test=whole)
            self.data_loaded = True

    model, other = mteb.load_model(folder), mteb.load_model(folder, scene="mean")
    assert isinstance(model, EncoderProtocol) and model.mteb_model_meta.name == "melmask/toy"
    assert model.mteb_model_meta.embed_dim == 320 and model.mteb_model_meta.modalities == ["audio"]
    cache = ResultCache(tmp_path)
    for each in (model, other):
        assert evaluate(each, Pitches(), cache=cache).task_results[0].get_score() > 0.9
    assert len(list(tmp_path.rglob("Pitches.json"))) == 2
    with pytest.raises(ConfigError, match="owner/name"):
        mteb.load_model(folder, "toy")


def test_xares_finds_one_encoder_that_passes_its_checks(folder, monkeypatch):
    # What `attr_from_py_path` and `check_audio_encoder` of X-ARES 0.1.3 look at.
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["MelmaskEncoder"]
    monkeypatch.setenv("MELMASK_MODEL", str(folder))
    model = xares.MelmaskEncoder()
    assert isinstance(model, torch.nn.Module) and type(model).__name__.endswith("Encoder")
    assert (model.sampling_rate, model.output_dim, model.hop_size_in_ms) == (RATE_HZ, 160, 40)
    frames = model(torch.from_numpy(np.stack([noise(3.125), noise(3.125, 1)])))
    assert frames.shape[0] == 2 and frames.shape[2] == 160 and abs(frames.shape[1] * 40 - 3125) <= 80
    np.testing.assert_allclose(model(torch.from_numpy(noise(3.125)))[0], frames[0], atol=1e-5)
    with pytest.raises(InputError, match="give \\(clips, samples\\)"):
        model(torch.zeros(1, 2, 100))


@pytest.mark.parametrize("hop_ms", [None, 20.0, 160.0])
def test_the_padding_of_xares_is_not_heard(encoder, hop_ms):
    model = xares.MelmaskEncoder(encoder, FeatureChoice(hop_ms=hop_ms))
    clips = [noise(0.5), noise(2.3, 1), np.zeros(RATE_HZ, np.float32)]
    padded = torch.zeros(3, int(2.3 * RATE_HZ))
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    frames = model(padded)
    alone = encoder.embed(clips[0], RATE_HZ, model.choice).frames
    np.testing.assert_allclose(frames[0, : len(alone)], alone, atol=1e-5)
    # The mean over all steps, as X-ARES takes it, is the mean of the clip.
    np.testing.assert_allclose(frames[0].mean(0), alone.mean(0), atol=1e-5)
    assert frames.shape[1] == len(encoder.embed(clips[1], RATE_HZ, model.choice).frames)
    # A clip of nothing but zeros is silence. With lengths, its end is known.
    lengths = torch.tensor([len(clip) for clip in clips])
    np.testing.assert_allclose(model(padded, lengths)[:2], frames[:2], atol=1e-5)
    silence = encoder.embed(clips[2], RATE_HZ, model.choice).frames
    np.testing.assert_allclose(model(padded, lengths)[2].mean(0), silence.mean(0), atol=1e-5)
    with pytest.raises(InputError, match="one for each clip"):
        model(padded, lengths + RATE_HZ * 9)


def test_xares_files_each_model_and_choice_under_a_name_of_its_own(encoder):
    names = [
        type(xares.MelmaskEncoder(encoder, FeatureChoice(hop_ms=hop_ms))).__name__ for hop_ms in (40.0, 40.0, 80.0)
    ]
    assert names[0] == names[1] != names[2]


@pytest.mark.filterwarnings("ignore")
def test_xares_accepts_the_encoder(encoder):
    checker = library("xares.audio_encoder_checker")
    assert checker.check_audio_encoder(xares.MelmaskEncoder(encoder))
