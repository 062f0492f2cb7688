"""Streamed frame vectors are those of the offline path, and come when their audio is complete."""

import numpy as np
import pytest

from melmask.checkpoint.folder import ModelCard
from melmask.config import ModelConfig
from melmask.embedding.encoder import untrained
from melmask.embedding.streaming import EmbeddingStream
from melmask.errors import InputError


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(width=32, depth=2, heads=2, decoder_width=0, decoder_depth=0, frames=64)
    return untrained(ModelCard(model=config), device="cpu")


def noise(samples):
    return 0.1 * np.random.default_rng(samples).normal(size=samples).astype(np.float32)


def streamed(stream, audio, sizes):
    parts, position = [], 0
    for size in sizes:
        parts.append(stream.push(audio[position : position + size]))
        position += size
    parts += [stream.push(audio[position:]), stream.finish()]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), parts


@pytest.mark.parametrize("hop_ms", [None, 40.0])
@pytest.mark.parametrize("samples", [1, 150, 1000, 10239, 10240, 10241, 30000])
def test_streamed_vectors_equal_the_offline_ones(model, samples, hop_ms):
    audio = noise(samples)
    offline = model.embed(audio, sample_rate_hz=16000, hop_ms=hop_ms)
    sizes = np.random.default_rng(1).integers(1, 3000, 8)
    frames, times_ms, _ = streamed(EmbeddingStream(model, 16000, hop_ms=hop_ms), audio, sizes)
    assert np.array_equal(times_ms, offline.times_ms)
    assert np.abs(frames - offline.frames).max() < 1e-5


def test_a_unit_comes_out_once_its_audio_is_complete(model):
    stream = EmbeddingStream(model, 16000)
    # Frame 63, the unit's last, needs samples up to 63 * 160 + 199.
    frames, _ = stream.push(noise(63 * 160 + 199))
    assert len(frames) == 0
    frames, times_ms = stream.push(noise(1))
    assert frames.shape == (4, 160) and times_ms.tolist() == [75, 235, 395, 555]


def test_another_rate_is_resampled_as_offline(model):
    audio = noise(44100)
    offline = model.embed(audio, sample_rate_hz=44100)
    frames, _, _ = streamed(EmbeddingStream(model, 44100), audio, [4410] * 9)
    assert frames.shape == offline.frames.shape and np.abs(frames - offline.frames).max() < 1e-3


def test_blocks_that_are_no_sound_are_refused(model):
    stream = EmbeddingStream(model, 16000)
    with pytest.raises(InputError, match="one channel"):
        stream.push(np.full(10, np.nan, np.float32))


def test_a_stream_without_sound_is_refused(model):
    with pytest.raises(InputError, match="without a sample"):
        EmbeddingStream(model, 44100).finish()
