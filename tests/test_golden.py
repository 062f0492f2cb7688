"""Parity with the published implementations, through the public interface; ../shared/golden/README.md says what of."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import melmask
from melmask.embedding.choice import FeatureChoice

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
TOLERANCE = 1e-3
RATE_HZ = 16000

pytestmark = pytest.mark.skipif(
    not (GOLDEN / "golden.py").exists(), reason=f"the published implementations' numbers are not at {GOLDEN}"
)


@pytest.fixture(scope="module")
def golden():
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(name):
    with np.load(GOLDEN / name) as held:
        return dict(held)


def loaded(state, folder):
    """The encoder of a file in the published form; the file is deleted again, for it has 340 MB."""
    path = folder / "weights.pth"
    torch.save({"model": {key: torch.from_numpy(value) for key, value in state.items()}}, path)
    encoder = melmask.load(path, device="cpu")
    path.unlink()
    return encoder


@pytest.fixture(scope="module")
def original(golden, tmp_path_factory):
    """The original's numbers, and the encoder with its weights."""
    state = golden.original_state_dict(208, (16, 16), cls=True, seed="a")
    return arrays("original_80x208p16x16.npz"), loaded(state, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def successor(golden, tmp_path_factory):
    state = golden.successor_state_dict(608, (16, 16), seed="m")
    return arrays("successor_80x608p16x16.npz"), loaded(state, tmp_path_factory.mktemp("successor"))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def embedding(golden, original):
    return original[1].embed(golden.audio(), RATE_HZ)


def test_the_logmel_is_the_originals(golden, original):
    theirs, encoder = original
    close(encoder.logmel(golden.audio(), RATE_HZ), theirs["lms"])


def test_frame_features_are_the_originals(original, embedding):
    # The original pads the last unit with zeros to full length, ours shortens it: the whole units are comparable.
    assert embedding.frames.shape == (3, 46, 3840)
    close(embedding.frames[:, :39, ::16], original[0]["frames"][:, :39])


def test_frame_features_of_a_unit_padded_as_the_original_does_are_the_originals(original):
    theirs, encoder = original
    normalized = (torch.from_numpy(theirs["lms"][:, :, 624:]) + 7.1) / 4.2
    padded = torch.nn.functional.pad(normalized, (0, 208 - normalized.shape[2]))
    with torch.inference_mode():
        tokens = list(encoder.model.encoder.encode_layers(padded))[-1][:, 1:]
    frames = tokens.unflatten(1, (5, 13)).transpose(1, 2).flatten(2)
    close(frames[:, :7, ::16].numpy(), theirs["frames"][:, 39:])


def test_features_of_a_middle_layer_are_the_originals(golden, original):
    theirs, encoder = original
    # The original counts blocks from 0.
    close(encoder.embed(golden.audio(), RATE_HZ, layer=7).frames[:, :39, ::64], theirs["layer6"][:, :39])


def test_the_scene_vector_is_the_mean_of_the_frame_vectors_weighted_by_their_audio(embedding):
    # Of the last step's 16 frames 11 are audio: 731 = 45 * 16 + 11.
    weights = np.array([16.0] * 45 + [11.0])
    close(embedding.scene, np.average(embedding.frames, axis=1, weights=weights))


def test_prediction_and_loss_are_the_originals(golden, original):
    theirs, encoder = original
    masked = theirs["mask"].astype(bool)
    np.testing.assert_array_equal(masked, golden.mask(3, 65).astype(bool))
    ours = encoder.reconstruct(theirs["lms"][:, :, :208], masked=masked)
    close(ours.prediction[:, :, ::8], theirs["pred"])
    close(ours.loss, theirs["loss"])


def test_position_tables_are_the_originals(original):
    theirs, encoder = original
    close(encoder.model.encoder.positions[:, ::16], theirs["pos_embed"].reshape(-1, 48)[-65:])
    close(encoder.model.decoder.positions[:, ::16], theirs["dec_pos"].reshape(-1, 24))


def test_frame_features_are_the_successors(golden, successor):
    theirs, encoder = successor
    assert (encoder.card.statistics.mean, encoder.card.statistics.std) == (-6.5, 3.9)
    close(encoder.logmel(golden.audio(), RATE_HZ), theirs["lms"])
    close(encoder.embed(golden.audio(), RATE_HZ).frames[:, :, ::16], theirs["frames"])


def test_the_successors_encoder_says_that_it_cannot_reconstruct(successor):
    theirs, encoder = successor
    with pytest.raises(melmask.MelmaskError, match="encoder-only"):
        encoder.reconstruct(theirs["lms"][:, :, :208], masked=np.ones((3, 65), dtype=bool))


@torch.inference_mode()
def scenes_normalized_by_batch(model, audio):
    """The original's clip embeddings (clips, rows * width), which change with the clips of the batch.

    The batch's own mean and standard deviation stand in for the corpus', zeros fill the last unit up to the trained
    length, and the steps count alike in the mean.
    """
    config = model.card.model
    logmel = torch.from_numpy(model.logmel(audio, RATE_HZ))
    steps = -(-logmel.shape[2] // config.patch_frames)
    x = (logmel - logmel.mean()) / logmel.std()
    x = torch.nn.functional.pad(x, (0, -x.shape[2] % config.frames))
    vectors = []
    for units in x.split(config.frames, dim=2):
        *_, tokens = model.model.encoder.encode_layers(units)
        vectors.append(FeatureChoice().pool(tokens, model.model.encoder.grid.rows, config.cls_token))
    return torch.cat(vectors, dim=1)[:, :steps].mean(1).numpy()


def test_the_batch_normalized_scenes_are_the_originals_defect_for_defect(golden, original):
    theirs, encoder = original
    ours = scenes_normalized_by_batch(encoder, golden.audio())
    close(ours, theirs["scene_batchnorm"])
    # What makes it a defect: the same clip in another batch has another vector.
    assert np.abs(scenes_normalized_by_batch(encoder, golden.audio()[:1]) - ours[:1]).max() > TOLERANCE
