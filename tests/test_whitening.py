"""Whitening of scene vectors: what it does to them, how it is learned, kept and exported."""

import json

import numpy as np
import pytest
import soundfile
import torch

from melmask.checkpoint.folder import load_checkpoint, save_checkpoint
from melmask.classifier import network
from melmask.classifier.network import Head
from melmask.config import FrontEndConfig
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load, untrained
from melmask.embedding.export import export_onnx
from melmask.embedding.extract import embed_files
from melmask.embedding.whitening import _read, _stretches, set_features, whitened_card
from melmask.errors import CheckpointError, ConfigError, InputError
from melmask.models.network import build_network
from melmask.models.whitening import fit_whitening
from melmask.train.pretrain import build_card, pretrain
from melmask.train.snapshot import checkpoints_of

TONE_HZ = 440


@pytest.fixture(scope="module")
def whitened(store, configure):
    """A random network whose card has learned a whitening from the store; two directions, whatever the clips are."""
    config = configure()
    model = build_network(config.model, seed=3)
    many = store_of_parts(store)
    return AudioEncoder(model, whitened_card(model, build_card(store, config), many, 2, config.hardware))


def store_of_parts(store):
    """The store's clips, each many times, as whitening needs more clips than tests need elsewhere."""

    class Parts:
        folder, front_end, reading, statistics = store.folder, store.front_end, store.reading, store.statistics
        sha256, frames = store.sha256, np.tile(store.frames // 2, 20)

        def __len__(self):
            return len(self.frames)

        def read_into(self, out, clip, first_frame):
            store.read_into(out, clip % len(store), first_frame + clip // len(store))

    return Parts()


def sound(seconds=1.3):
    times_s = np.arange(int(16000 * seconds)) / 16000
    return (
        0.1 * np.sin(2 * np.pi * TONE_HZ * times_s) + 0.01 * np.random.default_rng(0).normal(size=len(times_s))
    ).astype(np.float32)


def test_the_strongest_directions_approach_one_further_on_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 30)) * 5
    scenes = shared + rng.normal(size=(400, 30)) + 7
    whitening = fit_whitening(scenes, 2)
    standardized = (scenes - scenes.mean(0)) / scenes.std(0)
    before, after = (np.linalg.svd(x, compute_uv=False) for x in (standardized, whitening(scenes)))
    # Variances are squares of these.
    damped = before[:2] * (before[4] / before[:2]) ** (2 / 3)
    expected = np.sort([*damped, *before[2:]])[::-1]
    np.testing.assert_allclose(after, expected, rtol=1e-3)
    assert before[1] > 3 * before[2]


def test_it_can_be_undone_for_maps():
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 30)) * 5 + rng.normal(size=(400, 30)) + 7
    whitening = fit_whitening(scenes, 4)
    undone = whitening(scenes) @ whitening.undoing()
    np.testing.assert_allclose(undone - undone.mean(0), scenes - scenes.mean(0), atol=1e-3)


@pytest.mark.parametrize(("clips", "directions", "expected"), [(7, 4, None), (17, 4, 2), (400, 4, 4), (400, 99, 9)])
def test_as_many_directions_as_the_vectors_can_tell(clips, directions, expected):
    whitening = fit_whitening(np.random.default_rng(0).normal(size=(clips, 20)), directions)
    assert (None if whitening is None else len(whitening.gains)) == expected


def test_a_number_that_never_changes_is_not_blown_up():
    scenes = np.random.default_rng(0).normal(size=(80, 6))
    scenes[:, 2] = 3.0
    assert np.abs(fit_whitening(scenes, 2)(scenes + 1e-6 * np.eye(80, 6))).max() < 10


def of_three_sounds():
    """A whitening that was learned from many copies of three different vectors, which have two directions."""
    return fit_whitening(np.random.default_rng(0).normal(size=(3, 40))[np.arange(80) % 3], 8)


def test_copies_of_few_sounds_leave_every_direction_a_hundredth_of_its_amplitude():
    assert len(of_three_sounds().gains) == 8
    assert (of_three_sounds().gains > 0.0099).all()


def test_copies_of_few_sounds_make_nothing_stronger():
    assert (of_three_sounds().gains <= 1).all()


def test_long_clips_are_cut_into_equal_stretches_and_few_of_many_are_drawn():
    assert sorted(_stretches(np.array([2500, 900]))) == [(0, 0, 833), (0, 833, 1666), (0, 1666, 2500), (1, 0, 900)]
    assert len(set(_stretches(np.full(3000, 10)))) == 2048


def test_a_stretch_is_read_from_its_first_frame_on(store):
    clip = len(store) - 1
    whole = np.empty((store.frames[clip], 80), np.float16)
    store.read_into(whole, clip, 0)
    (logmel,) = _read(store, [(clip, 23, 33)])
    np.testing.assert_array_equal(logmel.T, whole[23:33])


def test_scene_vectors_are_whitened_wherever_they_are_made(whitened, tmp_path):
    plain = whitened.embed(sound(), 16000, scene="mean+std").scene
    expected = whitened.card.whitening(plain)
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(whitened.embed(sound(), 16000).scene, expected, atol=1e-4)
    soundfile.write(tmp_path / "a.wav", sound(), 16000, subtype="FLOAT")
    (row,) = embed_files(whitened, [tmp_path / "a.wav"])
    np.testing.assert_allclose(row.scene, expected, atol=1e-4)


def test_other_features_than_those_it_was_learned_from_are_not_whitened(whitened, store, configure):
    with pytest.raises(ConfigError, match=r"features\.whiten"):
        FeatureChoice(scene="whitened", layers=(1,)).of_model(whitened.card)
    assert FeatureChoice(layers=(1,)).of_model(whitened.card).scene == "mean+std"
    assert FeatureChoice(pooling="mean").of_model(whitened.card).scene == "mean+std"
    with pytest.raises(ConfigError, match="whiten"):
        FeatureChoice(scene="whitened").of_model(build_card(store, configure()))
    assert FeatureChoice().of_model(untrained(whitened.card).card).scene == "mean+std"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0), (torch.float16, 1e-2)])
def test_a_checkpoint_keeps_it_and_another_whitening_is_another_model(whitened, tmp_path, dtype, tolerance):
    save_checkpoint(tmp_path / "model", whitened.model, whitened.card, dtype)
    model = load(tmp_path / "model")
    np.testing.assert_allclose(model.embed(sound(), 16000).scene, whitened.embed(sound(), 16000).scene, atol=tolerance)
    bare = AudioEncoder(*load_checkpoint(tmp_path / "model"))
    assert bare.sha256 == model.sha256
    assert AudioEncoder(bare.model, untrained(bare.card).card).sha256 != model.sha256


@pytest.mark.parametrize("directions", [0, 1, 3, 10**9])
def test_a_card_that_lies_about_its_whitening_is_refused(whitened, tmp_path, directions):
    save_checkpoint(tmp_path / "model", whitened.model, whitened.card)
    path = tmp_path / "model/config.json"
    facts = json.loads(path.read_text())
    assert facts["whitened_directions"] == 2
    path.write_text(json.dumps({**facts, "whitened_directions": directions}))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "model")


def test_a_card_cannot_bring_a_whitening_of_its_own(whitened, tmp_path):
    save_checkpoint(tmp_path / "model", whitened.model, whitened.card)
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "whitening": {"mean": [0.0]}}))
    with pytest.raises(CheckpointError, match="unknown configuration key 'whitening'"):
        load_checkpoint(tmp_path / "model")


def test_a_run_learns_it_at_its_end_and_only_then(store, configure, tmp_path):
    config = configure("features.whiten=2")
    run, many = tmp_path / "run", store_of_parts(store)
    pretrain(store, run, config)
    assert load(run).card.whitening is None
    set_features(run, many, config)
    first = load(run).sha256
    assert load(run).card.scene == "whitened"
    # Called again, as a resumed command does, it leaves the model alone.
    written = (checkpoints_of(run)[-1] / "model.safetensors").stat().st_mtime_ns
    set_features(run, many, config)
    assert (checkpoints_of(run)[-1] / "model.safetensors").stat().st_mtime_ns == written
    # Features that were changed since are those of users.
    set_features(run, many, configure("features.whiten=2", "features.depth_share=0.5"))
    assert load(run).card.layers == (1,) and load(run).card.scene == "whitened" and load(run).sha256 != first
    set_features(run, many, configure("features.whiten=0"))
    card = load(run).card
    assert (card.layers, card.scene, card.whitening) == ((), "mean", None)
    assert len(checkpoints_of(run)) == 1


def test_too_little_sound_says_so_and_another_front_end_is_refused(store, configure, whitened, capsys):
    model, config = build_network(configure().model), configure()
    few = store_of_parts(store)
    few.frames = few.frames[:3]
    card = whitened_card(model, build_card(store, config), few, 2, config.hardware)
    assert (card.scene, card.whitening) == ("mean+std", None)
    assert "not whitened" in capsys.readouterr().err
    few.front_end = FrontEndConfig(mels=64)
    with pytest.raises(InputError, match="front end"):
        whitened_card(model, build_card(store, config), few, 2, config.hardware)


def test_the_first_head_of_a_classifier_is_chosen_among_probes_of_whitened_vectors_too(monkeypatch):
    rng = np.random.default_rng(1)
    classes = rng.integers(4, size=400)
    # What tells the classes apart is weak beside what all clips share.
    scenes = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 24)) * 20 + rng.normal(size=(400, 24))
    scenes[np.arange(400), classes] += 1.0
    vectors, targets = torch.from_numpy(scenes.astype(np.float32)), torch.eye(4)[classes]
    train, valid = (vectors[:200], targets[:200]), (vectors[200:], targets[200:])
    losses = []
    for directions, whitening in ((3, None), (0, fit_whitening(scenes, 3)), (0, None)):
        monkeypatch.setattr(network, "_DIRECTIONS", directions)
        head = Head(24, 4)
        network.fit_head(head, "multiclass", train, valid, whitening)
        losses.append(torch.nn.functional.cross_entropy(head(valid[0]), valid[1]).item())
    assert max(losses[:2]) < losses[2] - 0.02


@pytest.mark.filterwarnings("ignore")
def test_an_exported_graph_gives_the_whitened_vector(whitened, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(whitened, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    scene = session.run(["scene"], {"waveform": sound()[None]})[0][0]
    np.testing.assert_allclose(scene, whitened.embed(sound(), 16000).scene, atol=1e-2)
