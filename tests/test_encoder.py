import io
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.embedding import encoder as encoder_module
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import load, untrained
from melmask.embedding.pooling import POOLINGS
from melmask.embedding.waveform import waveform_of
from melmask.errors import AudioFileError, CheckpointError, ConfigError, InputError

RATE_HZ = 16000
HOP = 160
UNIT_FRAMES, PATCH_FRAMES, ROWS, WIDTH = 64, 16, 5, 32
UNIT_SAMPLES = (UNIT_FRAMES - 1) * HOP
TOLERANCE = 1e-5


def assert_close(a, b, tolerance=TOLERANCE):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def steps_of(samples):
    return -(-(1 + samples // HOP) // PATCH_FRAMES)


@pytest.fixture(scope="module")
def make_encoder(configure, store):
    """An encoder with random weights and some fields of its ModelConfig changed."""

    def made(training=None, **changes):
        config = replace(configure().model, **changes)
        card = ModelCard(model=config, statistics=store.statistics, training=training or {})
        return untrained(card, device="cpu")

    return made


def test_an_embedding_does_not_depend_on_the_clips_beside_it(encoder, sound):
    clips = np.stack([sound(2.3, seed) for seed in range(5)])
    clips[1] *= 1e-3
    together = encoder.embed(clips, RATE_HZ)
    reordered = encoder.embed(clips[::-1], RATE_HZ)
    for number, clip in enumerate(clips):
        alone = encoder.embed(clip, RATE_HZ)
        for batch, place in ((together, number), (reordered, 4 - number)):
            assert_close(batch.scene[place], alone.scene)
            assert_close(batch.frames[place], alone.frames)


def test_an_embedding_does_not_depend_on_longer_and_shorter_clips_beside_it(encoder, sound):
    logmels = [torch.from_numpy(encoder.logmel(sound(s, 0), RATE_HZ)[0]) for s in (0.01, 0.4, 1.0, 5.0, 0.64, 2.7)]
    together = encoder.embed_segments(logmels)
    reordered = encoder.embed_segments(logmels[::-1])[::-1]
    for logmel, one, other in zip(logmels, together, reordered, strict=True):
        (alone,) = encoder.embed_segments([logmel])
        assert_close(one, alone)
        assert_close(other, alone)


def test_an_embedding_does_not_depend_on_the_size_of_the_batches(encoder, sound, monkeypatch):
    clips = np.stack([sound(3.3, seed) for seed in range(3)])
    expected = encoder.embed(clips, RATE_HZ)
    monkeypatch.setattr(encoder_module, "_LARGEST_ACTIVATION_BYTES", 40 * 4 * WIDTH * 4)
    assert_close(encoder.embed(clips, RATE_HZ).frames, expected.frames)


def test_embedding_twice_gives_the_same_bits(encoder, sound):
    clip = sound(1.7, 1)
    first, second = encoder.embed(clip, RATE_HZ), encoder.embed(clip, RATE_HZ)
    np.testing.assert_array_equal(first.scene, second.scene)
    np.testing.assert_array_equal(first.frames, second.frames)


def test_embedding_leaves_random_states_threads_and_the_input_as_they_were(encoder, sound):
    clip = sound(1, 0)
    copy, random_state, threads = clip.copy(), torch.random.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()
    encoder.embed(clip, RATE_HZ)
    encoder.embed(clip, 44100, layer=1, pooling="mean")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(clip, copy)


def test_the_time_of_a_step_is_the_center_of_its_patch(encoder, sound):
    embedding = encoder.embed(sound(3.3, 0), RATE_HZ)
    np.testing.assert_allclose(embedding.times_ms, 75 + 160 * np.arange(len(embedding.frames)))
    assert embedding.times_ms.dtype == np.float64
    assert embedding.times_ms[-1] - 80 < 3300


@pytest.mark.parametrize("samples", [16000, 23456])
def test_the_scene_is_the_mean_of_the_frames_weighted_by_true_audio(encoder, sound, samples):
    embedding = encoder.embed(sound(2, 3)[:samples], RATE_HZ)
    frames = 1 + samples // HOP
    weights = np.diff([*range(0, frames, PATCH_FRAMES), frames])
    assert_close(embedding.scene, weights @ embedding.frames / frames, 1e-6)


@pytest.mark.parametrize(
    "samples",
    [1, 2, 159, HOP, 200, 201, 399, UNIT_SAMPLES, UNIT_SAMPLES + HOP, int(3.3 * UNIT_FRAMES) * HOP],
)
def test_audio_of_any_length_gives_a_step_for_each_begun_patch(encoder, sound, samples):
    embedding = encoder.embed(sound(3, 0)[:samples], RATE_HZ)
    assert embedding.frames.shape == (steps_of(samples), ROWS * WIDTH)
    assert embedding.times_ms.shape == (steps_of(samples),)
    assert embedding.scene.shape == (ROWS * WIDTH,)
    assert np.isfinite(embedding.frames).all()


def test_what_is_missing_of_the_last_patch_is_taken_for_the_mean_of_the_corpus(encoder, sound):
    logmel = torch.from_numpy(encoder.logmel(sound(1, 0), RATE_HZ)[0])
    filled = torch.nn.functional.pad(logmel, (0, 11), value=encoder.card.statistics.mean)
    as_it_is, completed = encoder.embed_segments([logmel, filled])
    assert logmel.shape[1] % PATCH_FRAMES == 5
    assert_close(as_it_is, completed)


def test_a_longer_clip_begins_with_the_frames_of_its_first_units(encoder, sound):
    clip = sound(3, 0)
    whole = encoder.embed(clip, RATE_HZ).frames
    # Two units, and half a window more for the last frame of the second.
    begin = encoder.embed(clip[: 2 * UNIT_FRAMES * HOP + 200], RATE_HZ).frames
    assert_close(begin[:8], whole[:8])


@pytest.mark.parametrize("hop_ms", [10.0, 40.0, 80.0])
def test_dense_steps_hold_those_of_the_patches_and_lie_between_them(encoder, sound, hop_ms):
    clip = sound(2.2, 0)
    plain, dense = encoder.embed(clip, RATE_HZ), encoder.embed(clip, RATE_HZ, hop_ms=hop_ms)
    np.testing.assert_allclose(np.diff(dense.times_ms), hop_ms)
    assert 0 <= dense.times_ms[0] <= hop_ms
    assert 2200 - hop_ms - 10 < dense.times_ms[-1] <= 2200
    shared = np.isin(dense.times_ms.round(6), plain.times_ms.round(6))
    assert shared.sum() >= len(plain.frames) - 1
    assert_close(dense.frames[shared], plain.frames[: shared.sum()])
    assert_close(dense.scene, plain.scene, 1e-6)


def test_a_dense_step_is_that_of_the_audio_from_its_first_frame_on(encoder, sound):
    clip = sound(2.2, 0)
    dense = encoder.embed(clip, RATE_HZ, hop_ms=40.0)
    shifted = torch.from_numpy(encoder.logmel(clip, RATE_HZ)[0][:, 4:])
    (expected,) = encoder.embed_segments([shifted])
    # The steps start at frames -4, 0, 4, 8, 12, ...
    assert_close(dense.frames[2::4], expected[: len(dense.frames[2::4])])


@pytest.mark.parametrize("samples", [1, 200, 1000, 3000])
def test_dense_steps_of_a_clip_shorter_than_a_patch_are_finite(encoder, sound, samples):
    embedding = encoder.embed(sound(1, 0)[:samples], RATE_HZ, hop_ms=10.0)
    assert len(embedding.frames) == len(embedding.times_ms) >= 1
    assert np.isfinite(embedding.frames).all()


def test_shapes_of_one_clip_and_of_several(encoder, sound):
    clip = sound(1, 0)
    one, several = encoder.embed(clip, RATE_HZ), encoder.embed(np.stack([clip] * 3), RATE_HZ)
    assert (one.scene.shape, one.frames.shape) == ((160,), (7, 160))
    assert (several.scene.shape, several.frames.shape) == ((3, 160), (3, 7, 160))
    assert one.times_ms.shape == several.times_ms.shape == (7,)
    assert one.scene.dtype == one.frames.dtype == np.float32
    assert encoder.embed(clip[None], RATE_HZ).scene.shape == (1, 160)
    assert encoder.logmel(clip, RATE_HZ).shape == (1, 80, 101)


def test_a_file_and_its_array_give_the_same(encoder, good_paths):
    for path in good_paths:
        waveform, rate_hz = soundfile.read(path, dtype="float32")
        from_array, from_file = encoder.embed(waveform, rate_hz), encoder.embed(path)
        assert_close(from_file.frames, from_array.frames)
        assert_close(from_file.scene, from_array.scene)
        np.testing.assert_array_equal(from_file.times_ms, from_array.times_ms)
    assert_close(encoder.embed(str(good_paths[0])).scene, encoder.embed(good_paths[0]).scene)


def test_the_same_sound_at_another_rate_gives_nearly_the_same(encoder, sound):
    resample = pytest.importorskip("soxr").resample
    clip = sound(2, 4)
    expected = encoder.embed(clip, RATE_HZ)
    for rate_hz in (44100, 48000, 22050):
        other = encoder.embed(resample(clip, RATE_HZ, rate_hz).astype(np.float32), rate_hz)
        assert cosine(other.scene, expected.scene) > 0.99
        assert all(cosine(a, b) > 0.97 for a, b in zip(other.frames, expected.frames, strict=True))


@pytest.mark.parametrize("segment_frames", [1, UNIT_FRAMES, 3 * UNIT_FRAMES + 5])
def test_a_long_file_in_pieces_equals_the_whole(encoder, sound, tmp_path, monkeypatch, segment_frames):
    path = tmp_path / "long.wav"
    clip = sound(7.13, 2)
    soundfile.write(path, clip, RATE_HZ, subtype="FLOAT")
    expected = encoder.embed(clip, RATE_HZ)
    monkeypatch.setattr(encoder_module, "_SEGMENT_FRAMES", segment_frames)
    monkeypatch.setattr("melmask.audio.files._BLOCK_FRAMES", 5000)
    pieces = [piece.shape[1] for _, piece in encoder.segments_of_file(path, encoder.step_grid())]
    assert len(pieces) > 3
    assert all(frames % UNIT_FRAMES == 0 for frames in pieces[:-1])
    assert sum(pieces) == 1 + len(clip) // HOP
    in_pieces = encoder.embed(path)
    assert_close(in_pieces.frames, expected.frames)
    assert_close(in_pieces.scene, expected.scene)


def test_a_long_file_is_encoded_some_pieces_at_a_time(encoder, good_paths, monkeypatch):
    expected, encode, sizes = encoder.embed(good_paths[-1], hop_ms=40.0), encoder.embed_segments, []
    monkeypatch.setattr(encoder_module, "_SEGMENT_FRAMES", UNIT_FRAMES)
    monkeypatch.setattr(encoder_module, "FRAMES_TOGETHER", 2 * UNIT_FRAMES)
    monkeypatch.setattr(encoder, "embed_segments", lambda x, *choice: sizes.append(len(x)) or encode(x, *choice))
    assert_close(encoder.embed(good_paths[-1], hop_ms=40.0).frames, expected.frames)
    assert len(sizes) > 3 and max(sizes) <= 4


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda x: torch.from_numpy(x).double().requires_grad_()])
def test_a_tensor_gives_what_its_array_gives(encoder, sound, convert):
    clip = sound(1, 0)
    assert_close(encoder.embed(convert(clip), RATE_HZ).scene, encoder.embed(clip, RATE_HZ).scene)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors_are_taken(encoder, sound, dtype):
    clip = torch.from_numpy(sound(1, 0)).to(dtype)
    assert_close(encoder.embed(clip, RATE_HZ).scene, encoder.embed(clip.float(), RATE_HZ).scene)


def test_silence_gives_finite_vectors(encoder):
    for clip in (np.zeros(RATE_HZ, np.float32), np.zeros(1, np.float32), np.ones(RATE_HZ, np.float32)):
        assert np.isfinite(encoder.embed(clip, RATE_HZ).frames).all()


@pytest.mark.parametrize(
    ("clip", "rate_hz", "words"),
    [
        (np.zeros(100, np.int32), RATE_HZ, "holds int32; give floats in .-1, 1. .divide .* by 2147483648, and 16-bit"),
        (torch.zeros(100, dtype=torch.int64), RATE_HZ, "holds int64; give floats in .-1, 1. .divide by the largest"),
        (np.zeros(100, np.uint8), RATE_HZ, "holds uint8; .* .8-bit samples of a wav file are .x - 128. / 128"),
        (np.zeros(100, bool), RATE_HZ, "holds bool"),
        (np.zeros(100, complex), RATE_HZ, "holds complex128"),
        (np.full(100, 1e30), RATE_HZ, r"holds samples of 1e\+30; give floats"),
        (np.zeros((16000, 2)), RATE_HZ, r"looks like .samples, channels.; average the channels, as x.mean.1., or"),
        (torch.zeros(500, 1), RATE_HZ, "looks like .samples, channels."),
        ([np.zeros(10), np.zeros(20)], RATE_HZ, "a list of 2 arrays of 10 to 20 samples; embed each by itself"),
        ([torch.zeros(10), torch.zeros(20)], RATE_HZ, "a list of 2 arrays of 10 to 20 samples"),
        ([[0.0, 0.1], [0.2]], RATE_HZ, "a list of 2 arrays of 1 to 2 samples"),
        ([[[0.0], [0.1, 0.2]]], RATE_HZ, "unequal lengths"),
        ((np.zeros(10), 16000), None, r"a pair of an array and its rate; give them one by one"),
        (["a.wav", "b.wav"], None, "a list of 2 files; embed takes one, and melmask.embed_files takes many"),
        ({"array": np.zeros(9), "sampling_rate": 16000}, None, "a dict is no .*; give its 'array' and its 'sampl"),
        ({}, None, "a dict is no array of samples; give a path"),
        (None, None, "nothing is no array of samples; give a path"),
        (np.zeros(100), 1, "sample_rate_hz is 1; give .*, from 100 Hz to 10000000 Hz"),
        (np.zeros(100), 20_000_000, "sample_rate_hz is 20000000; give .*, from 100 Hz to"),
        (np.zeros(100), -16000, "sample_rate_hz is -16000; give the rate"),
        (np.zeros(100), math.nan, "sample_rate_hz is nan; give the rate"),
        (np.zeros(100), math.inf, "sample_rate_hz is inf; give the rate"),
        (np.full(100, np.nan), RATE_HZ, "NaN or infinite"),
        (np.array([0.1, np.inf]), RATE_HZ, "NaN or infinite"),
        (np.zeros(100), None, "sample_rate_hz is None; give the rate of the array"),
        (np.zeros(100), 0, "sample_rate_hz is 0; give the rate of the array"),
        (np.zeros(0), RATE_HZ, "at least one sample"),
        (np.zeros((3, 0)), RATE_HZ, "at least one sample"),
        (np.zeros((2, 3, 4)), RATE_HZ, "give .samples,. or .clips, samples."),
        (np.zeros(()), RATE_HZ, "give .samples,. or .clips, samples."),
        (np.zeros(1), 96000, "not one sample at 16000 Hz; give longer audio"),
    ],
)
def test_an_array_that_is_no_sound_is_refused_in_one_line(encoder, clip, rate_hz, words):
    with pytest.raises(InputError, match=words) as caught:
        encoder.embed(clip, rate_hz)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("convert", [lambda x: x, torch.from_numpy, np.ndarray.tolist, lambda x: [x], lambda x: [x, x]])
def test_lists_and_tensors_are_arrays(encoder, sound, convert):
    clip = sound(0.5, 0)
    scenes = np.atleast_2d(encoder.embed(convert(clip), float(RATE_HZ)).scene)
    for scene in scenes:
        assert_close(scene, encoder.embed(clip, RATE_HZ).scene)


def test_int16_samples_are_what_a_file_of_them_holds(encoder, sound, tmp_path):
    samples = np.round(sound(0.5, 0) * 32768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    for array in (samples, torch.from_numpy(samples)):
        assert_close(encoder.embed(array, RATE_HZ).frames, encoder.embed(tmp_path / "a.wav").frames)


def test_the_bytes_of_a_file_and_an_open_file_are_read_as_the_file(encoder, good_paths):
    for path in good_paths[:3]:
        expected, content = encoder.embed(path).frames, path.read_bytes()
        with path.open("rb") as file:
            for form in (content, bytearray(content), memoryview(content), io.BytesIO(content), file):
                np.testing.assert_array_equal(encoder.embed(form).frames, expected)
            with pytest.raises(AudioFileError, match=r"the sound is empty \(0 bytes\); .* seek\(0\)"):
                encoder.embed(file)
        with path.open("r", encoding="ascii") as file, pytest.raises(InputError, match="open it in the mode 'rb'"):
            encoder.embed(file)
    with pytest.raises(AudioFileError, match="the sound cannot be read as sound") as caught:
        encoder.embed(b"no sound" * 100)
    assert "/" not in str(caught.value)
    with pytest.raises(InputError, match="a str is no array of samples"):
        encoder.logmel("a.wav", RATE_HZ)
    with pytest.raises(InputError, match="sample_rate_hz is '16000'; give the rate of the array"):
        waveform_of(np.zeros(100), "16000", RATE_HZ)


def test_a_file_that_cannot_be_read_is_refused(encoder, sound_folder):
    with pytest.raises(AudioFileError, match=r"broken.wav cannot be read as sound"):
        encoder.embed(sound_folder / "broken.wav")


@pytest.mark.parametrize(("pooling", "size"), [("concat", 160), ("mean", 32), ("mean+max", 64), ("cls", 32)])
@pytest.mark.parametrize("layer", [None, 1, 2])
def test_layers_and_poolings_have_their_sizes(encoder, sound, pooling, size, layer):
    embedding = encoder.embed(sound(1, 0), RATE_HZ, layer=layer, pooling=pooling)
    assert embedding.frames.shape == (7, size)
    assert embedding.scene.shape == (size,)
    assert encoder.embedding_size(pooling=pooling) == size


def test_a_card_names_the_layer_that_users_get(encoder, sound, tmp_path):
    card = replace(encoder.card, layers=(1,), scene="mean+std")
    save_checkpoint(tmp_path / "middle", encoder.model, card)
    middle, clip = load(tmp_path / "middle", device="cpu"), sound(1, 0)
    expected = encoder.embed(clip, RATE_HZ, layer=1, scene="mean+std")
    assert np.array_equal(middle.embed(clip, RATE_HZ).scene, expected.scene)
    assert np.array_equal(middle.embed(clip, RATE_HZ, layer=2).frames, encoder.embed(clip, RATE_HZ, layer=2).frames)
    with pytest.raises(ConfigError, match="layers 1 to 2"):
        replace(card, layers=(3,))


def test_several_layers_are_put_side_by_side(encoder, sound):
    clip = sound(1, 0)
    single = [encoder.embed(clip, RATE_HZ, layer=layer, pooling="mean").frames for layer in (2, 1)]
    both = encoder.embed(clip, RATE_HZ, layer=[2, 1], pooling="mean").frames
    np.testing.assert_array_equal(both, np.concatenate(single, 1))
    assert encoder.embedding_size(pooling="mean", layer=[2, 1]) == 2 * WIDTH


def test_a_choice_and_keywords_that_change_it_say_the_same(encoder, sound):
    clip, choice = sound(1, 0), FeatureChoice(layers=(1,), pooling="mean", scene="mean+std")
    whole = encoder.embed(clip, RATE_HZ, choice)
    changed = encoder.embed(clip, RATE_HZ, choice.changed(layer=2), layer=1)
    in_words = encoder.embed(clip, RATE_HZ, layer=1, pooling="mean", scene="mean+std")
    for other in (changed, in_words):
        np.testing.assert_array_equal(whole.frames, other.frames)
        np.testing.assert_array_equal(whole.scene, other.scene)
    assert (whole.frames.shape[1], len(whole.scene)) == (
        choice.frame_size(encoder.card.model),
        choice.scene_size(encoder.card.model),
    )


def test_a_keyword_that_is_not_known_is_refused(encoder, sound):
    with pytest.raises(TypeError, match="unexpected keyword argument 'layers_'"):
        encoder.embed(sound(1, 0), RATE_HZ, layers_=1)


def test_poolings_are_made_of_the_same_tokens(encoder, sound):
    clip = sound(1, 0)
    frames = {pooling: encoder.embed(clip, RATE_HZ, pooling=pooling).frames for pooling in POOLINGS}
    by_row = frames["concat"].reshape(-1, ROWS, WIDTH)
    assert_close(frames["mean"], by_row.mean(1), 1e-6)
    assert_close(frames["mean+max"], np.concatenate([by_row.mean(1), by_row.max(1)], 1), 1e-6)
    # One CLS token a unit of four steps.
    assert_close(frames["cls"][:4], frames["cls"][:1].repeat(4, 0), 0)
    assert not np.allclose(frames["cls"][0], frames["cls"][4])


def test_by_default_the_last_layer_is_normalized(encoder, sound):
    clip = sound(1, 0)
    last = encoder.embed(clip, RATE_HZ, layer=2).frames.reshape(-1, ROWS, WIDTH)
    normalized = encoder.model.encoder.norm(torch.from_numpy(last)).numpy()
    assert_close(encoder.embed(clip, RATE_HZ).frames, normalized.reshape(-1, ROWS * WIDTH))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"layer": 0}, "layer is 0; this model has layers 1 to 2"),
        ({"layer": 3}, "layer is 3; this model has layers 1 to 2"),
        ({"layer": [1, 4]}, "layer is 4; this model has layers 1 to 2"),
        ({"pooling": "max"}, "pooling is 'max'; known are concat, mean, mean.max, cls"),
        ({"hop_ms": 30.0}, "hop_ms is 30; this model's steps allow 10, 20, 40, 80, 160"),
        ({"hop_ms": 0.0}, "hop_ms is 0; this model's steps allow"),
        ({"hop_ms": float("nan")}, "hop_ms is nan; this model's steps allow"),
        ({"hop_ms": 320.0}, "hop_ms is 320; this model's steps allow"),
    ],
)
def test_a_layer_pooling_or_hop_that_is_not_there_is_refused(encoder, sound, choice, words):
    with pytest.raises(ConfigError, match=words):
        encoder.embed(sound(1, 0), RATE_HZ, **choice)


def test_without_a_cls_token_there_is_no_cls_pooling(make_encoder, sound):
    plain = make_encoder(cls_token=False)
    assert plain.embed(sound(1, 0), RATE_HZ).frames.shape == (7, 160)
    with pytest.raises(ConfigError, match="has no CLS token; use 'concat'"):
        plain.embed(sound(1, 0), RATE_HZ, pooling="cls")
    with pytest.raises(ConfigError, match="has no CLS token; use 'concat'"):
        plain.embedding_size(pooling="cls")


def test_an_untrained_network_depends_on_its_seed_alone(encoder, sound):
    clip = sound(1, 0)
    before = torch.random.get_rng_state()
    first, again, other = (untrained(encoder.card, seed, "cpu").embed(clip, RATE_HZ).scene for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, encoder.embed(clip, RATE_HZ).scene)


def test_a_model_loads_from_its_run_and_from_its_checkpoint(encoder, run_folder, sound):
    expected = encoder.embed(sound(1, 0), RATE_HZ).scene
    checkpoint = max((run_folder / "checkpoints").iterdir())
    for source in (str(run_folder), checkpoint, checkpoint / "model.safetensors"):
        loaded = encoder_module.load(source, device="cpu")
        np.testing.assert_array_equal(loaded.embed(sound(1, 0), RATE_HZ).scene, expected)
        assert (loaded.name, loaded.sample_rate_hz) == (str(checkpoint), RATE_HZ)
    with pytest.raises(CheckpointError, match="does not exist"):
        encoder_module.load(run_folder / "nowhere")


def units(encoder, sound, frames=UNIT_FRAMES, clips=3):
    return np.concatenate([encoder.logmel(sound(1, seed), RATE_HZ)[:, :, :frames] for seed in range(clips)])


def masks(patches, hidden_counts):
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(np.arange(patches) < hidden) for hidden in hidden_counts])


def patches_by_hand(logmels, statistics):
    """(clips, patches, 256), normalized, numbered frequency-major, values ordered (mel in patch, frame in patch)."""
    clips, _, frames = logmels.shape
    normalized = (logmels - statistics.mean) / statistics.std
    grid = normalized.reshape(clips, ROWS, 16, frames // PATCH_FRAMES, PATCH_FRAMES)
    return grid.transpose(0, 1, 3, 2, 4).reshape(clips, -1, 256)


@pytest.mark.parametrize(("frames", "hidden"), [(64, (15, 15, 15)), (64, (1, 12, 19)), (32, (3, 7, 9))])
def test_a_reconstruction_has_the_shapes_and_the_loss_it_says(encoder, sound, frames, hidden):
    logmels = units(encoder, sound, frames)
    masked = masks(ROWS * frames // PATCH_FRAMES, hidden)
    result = encoder.reconstruct(logmels, masked=masked)
    target = patches_by_hand(logmels, encoder.card.statistics)
    assert result.prediction.shape == target.shape
    assert result.logmel.shape == logmels.shape
    assert result.loss == pytest.approx(np.square(result.prediction - target)[masked].mean(), rel=1e-5)
    assert_close(patches_by_hand(result.logmel, encoder.card.statistics), result.prediction)


def test_a_reconstruction_does_not_depend_on_the_other_clips(encoder, sound):
    logmels, masked = units(encoder, sound), masks(20, (15, 10, 5))
    together = encoder.reconstruct(logmels, masked=masked).prediction
    for clip in range(3):
        alone = encoder.reconstruct(logmels[[clip]], masked=masked[[clip]]).prediction
        assert_close(together[[clip]], alone)


def test_what_is_hidden_does_not_reach_the_reconstruction(encoder, sound):
    logmels, masked = units(encoder, sound, clips=1), masks(20, (15,))
    changed = logmels.copy()
    for patch in np.flatnonzero(masked[0]):
        row, column = divmod(patch, 4)
        changed[0, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 3
    expected = encoder.reconstruct(logmels, masked=masked).prediction
    np.testing.assert_array_equal(encoder.reconstruct(changed, masked=masked).prediction, expected)


def test_reconstruction_takes_tensors(encoder, sound):
    logmels, masked = units(encoder, sound), masks(20, (15,) * 3)
    expected = encoder.reconstruct(logmels, masked=masked)
    result = encoder.reconstruct(torch.from_numpy(logmels), masked=torch.from_numpy(masked))
    np.testing.assert_array_equal(result.prediction, expected.prediction)


def test_a_model_of_normalized_targets_is_judged_and_shown_accordingly(make_encoder, sound):
    model = make_encoder(training={"config": {"masking": {"normalize_target": True}}})
    logmels, masked = units(model, sound), masks(20, (15,) * 3)
    result = model.reconstruct(logmels, masked=masked, leak=True)
    truth = patches_by_hand(logmels, model.card.statistics)
    mean, std = truth.mean(-1, keepdims=True), np.sqrt(truth.var(-1, keepdims=True, ddof=1) + 1e-6)
    assert result.loss == pytest.approx(np.square(result.prediction - (truth - mean) / std)[masked].mean(), rel=1e-4)
    assert_close(patches_by_hand(result.logmel, model.card.statistics), result.prediction * std + mean, 1e-4)


@pytest.mark.parametrize(
    ("shape", "masked", "words"),
    [
        ((80, 64), masks(20, (15,)), r"the log-mel is \(80, 64\); expected \(clips, 80, frames\)"),
        ((1, 64, 64), masks(20, (15,)), "expected .clips, 80, frames. with frames a multiple of 16 up to 64"),
        ((1, 80, 60), masks(20, (15,)), "a multiple of 16 up to 64"),
        ((1, 80, 80), masks(25, (15,)), "a multiple of 16 up to 64"),
        ((1, 80, 0), masks(0, (0,)), "a multiple of 16 up to 64"),
        ((1, 80, 64), masks(19, (15,)), r"the mask is \(1, 19\); expected \(clips, patches\) = \(1, 20\)"),
        ((2, 80, 64), masks(20, (15,)), r"the mask is \(1, 20\); expected \(clips, patches\) = \(2, 20\)"),
        ((1, 80, 64), masks(20, (20,)), "hides all or none"),
        ((2, 80, 64), masks(20, (0, 5)), "hides all or none"),
    ],
)
def test_a_reconstruction_that_makes_no_sense_is_refused(encoder, shape, masked, words):
    with pytest.raises(InputError, match=words) as caught:
        encoder.reconstruct(np.zeros(shape, np.float32), masked=masked)
    assert "\n" not in str(caught.value)


def test_an_encoder_without_decoder_embeds_but_does_not_reconstruct(make_encoder, sound):
    model = make_encoder(decoder_width=0, decoder_depth=0)
    assert model.embed(sound(1, 0), RATE_HZ).frames.shape == (7, 160)
    with pytest.raises(ConfigError, match="encoder-only: it embeds but cannot reconstruct"):
        model.reconstruct(units(model, sound), masked=masks(20, (15,) * 3))


def test_an_encoder_keeps_no_gradients(encoder):
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training
