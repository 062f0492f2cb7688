import numpy as np
import pytest
import torch
from reference.make_logmel_reference import DEFAULTS, FILE, SETTINGS, SHORT_SAMPLES, sound

from melmask.audio.logmel import LogMelSpectrogram, LogMelStream, hz_to_mel, mel_filterbank, mel_to_hz
from melmask.audio.statistics import Moments, moments_of
from melmask.config import FrontEndConfig
from melmask.errors import InputError
from melmask.geometry import frames_of_samples

TOLERANCE = 1e-3
SMALL = FrontEndConfig(sample_rate_hz=8000, n_fft=64, win_samples=64, hop_samples=20, mels=6, max_hz=4000.0)
LONG_HOP = FrontEndConfig(sample_rate_hz=8000, n_fft=32, win_samples=32, hop_samples=80, mels=4, max_hz=4000.0)


@pytest.fixture(scope="module")
def librosa_arrays():
    with np.load(FILE) as arrays:
        return dict(arrays)


def logmel(wave, config=FrontEndConfig()):  # noqa: B008 - frozen
    return LogMelSpectrogram(config)(torch.from_numpy(np.atleast_2d(wave))).numpy()


def random_sound(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def random_blocks(wave, largest, seed):
    """`wave` in consecutive pieces of 1 to `largest` samples."""
    rng, start = np.random.default_rng(seed), 0
    while start < len(wave):
        size = int(rng.integers(1, largest + 1))
        yield wave[start : start + size]
        start += size


def streamed(blocks, config):
    stream = LogMelStream(LogMelSpectrogram(config))
    parts = [stream.push(block) for block in blocks] + [stream.finish()]
    return torch.cat(parts, dim=2)[0].numpy()


def test_the_defaults_are_the_papers():
    assert FrontEndConfig() == FrontEndConfig(**DEFAULTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_mel_filters_are_librosas_bit_for_bit(librosa_arrays, name):
    ours = mel_filterbank(FrontEndConfig(**(DEFAULTS | SETTINGS[name])))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, librosa_arrays[f"{name}_filters"])


@pytest.mark.parametrize("name", SETTINGS)
def test_the_logmel_is_librosas(librosa_arrays, name):
    config = FrontEndConfig(**(DEFAULTS | SETTINGS[name]))
    ours = logmel(sound(int(0.613 * config.sample_rate_hz), config.sample_rate_hz), config)
    np.testing.assert_allclose(ours[0], librosa_arrays[f"{name}_logmel"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("samples", SHORT_SAMPLES)
def test_the_logmel_of_a_clip_shorter_than_a_window_is_librosas(librosa_arrays, samples):
    ours = logmel(sound(samples, 16000))[0]
    np.testing.assert_allclose(ours, librosa_arrays[f"short_{samples}"], rtol=0, atol=TOLERANCE)


def test_mel_scale_is_linear_to_1_khz_then_logarithmic_and_inverts():
    hz = np.array([0.0, 50, 999, 1000, 1001, 6400, 16000])
    np.testing.assert_allclose(hz_to_mel(hz[[3, 5]]), [15, 42], rtol=1e-12)
    np.testing.assert_allclose(hz_to_mel(np.array([500.0])), [7.5], rtol=1e-12)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, rtol=1e-12, atol=1e-9)


def test_silence_is_the_logarithm_of_epsilon():
    np.testing.assert_allclose(logmel(np.zeros(800, dtype=np.float32)), np.log(1.1920929e-07), rtol=1e-6)


def test_a_tone_is_loudest_in_the_band_that_holds_its_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000).astype(np.float32)
    bands = mel_filterbank(FrontEndConfig())[:, 25]
    assert (logmel(tone)[0, :, 10:-10].argmax(0) == bands.argmax()).all()


def test_a_batch_is_its_clips_one_by_one():
    waves = np.stack([random_sound(2345, seed) for seed in range(3)])
    one_by_one = np.concatenate([logmel(wave) for wave in waves])
    np.testing.assert_allclose(logmel(waves), one_by_one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [FrontEndConfig(), SMALL, LONG_HOP], ids=["paper", "small", "long_hop"])
def test_a_clip_of_any_length_from_one_sample_has_1_plus_samples_over_hop_finite_frames(config):
    edges = [config.n_fft // 2, config.n_fft, config.hop_samples, 3 * config.hop_samples]
    for samples in sorted({1, 2, 3, *(edge + d for edge in edges for d in (-1, 0, 1))}):
        ours = logmel(random_sound(samples), config)
        assert ours.shape == (1, config.mels, frames_of_samples(samples, config))
        assert frames_of_samples(samples, config) == 1 + samples // config.hop_samples
        assert np.isfinite(ours).all()


def test_a_single_sample_is_heard_as_a_constant():
    constant = logmel(np.full(4000, 0.25, dtype=np.float32))[0, :, 12]
    np.testing.assert_allclose(logmel(np.array([0.25], dtype=np.float32))[0, :, 0], constant, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("config", [SMALL, LONG_HOP], ids=["small", "long_hop"])
@pytest.mark.parametrize("largest", [1, 7, 50, 400])
def test_a_stream_of_blocks_of_any_size_gives_the_logmel_of_the_whole(config, largest):
    half, hop = config.n_fft // 2, config.hop_samples
    for samples in (1, 2, half - 1, half, half + 1, hop, 2 * half, 5 * hop - 1, 5 * hop, 701):
        wave = random_sound(samples, samples)
        ours = streamed(random_blocks(wave, largest, samples), config)
        np.testing.assert_allclose(ours, logmel(wave, config)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 150, 200, 201, 16000])
def test_a_stream_with_the_papers_settings_gives_the_logmel_of_the_whole(samples):
    wave = random_sound(samples)
    ours = streamed(random_blocks(wave, 5000, 3), FrontEndConfig())
    np.testing.assert_allclose(ours, logmel(wave)[0], rtol=0, atol=1e-5)


def test_a_stream_hands_out_frames_before_the_end_and_keeps_little():
    stream = LogMelStream(LogMelSpectrogram(FrontEndConfig()))
    counts = [stream.push(random_sound(1600, seed)).shape[2] for seed in range(20)]
    assert sum(counts) >= 20 * 10 - 2
    assert stream._pending.shape[1] < 2 * 400


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stream_works_on_the_device_of_its_front_end():
    wave = random_sound(5000)
    stream = LogMelStream(LogMelSpectrogram(FrontEndConfig()).cuda())
    ours = torch.cat([stream.push(wave[:100]), stream.push(wave[100:]), stream.finish()], dim=2)
    np.testing.assert_allclose(ours.cpu().numpy(), logmel(wave), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(5))
def test_moments_merged_in_any_grouping_are_those_of_all_values(seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(-7, 4, 5000) + np.linspace(0, 30, 5000)).astype(np.float32)
    parts = np.split(values, np.sort(rng.integers(0, 5001, 7)))
    moments = [moments_of(part) for part in parts if part.size]
    while len(moments) > 1:
        i, j = rng.permutation(len(moments))[:2]
        merged = moments[i].plus(moments[j])
        moments = [m for k, m in enumerate(moments) if k not in (i, j)] + [merged]
    assert moments[0].count == values.size
    statistics = moments[0].statistics()
    np.testing.assert_allclose(statistics.mean, values.mean(dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(statistics.std, values.std(dtype=np.float64), rtol=1e-9)


def test_moments_of_nothing_change_nothing():
    some = moments_of(np.array([[1.0, 2.0], [4.0, 5.0]]))
    assert some == Moments(4, 3.0, 10.0)
    assert some.plus(Moments()) == Moments().plus(some) == some


def test_moments_keep_their_precision_far_from_zero():
    values = 1e4 + np.random.default_rng(0).normal(0, 0.5, (50, 200))
    merged = Moments()
    for row in values:
        merged = merged.plus(moments_of(row))
    np.testing.assert_allclose(merged.statistics().std, values.std(), rtol=1e-6)


@pytest.mark.parametrize("moments", [Moments(), moments_of(np.full(9, -15.9))])
def test_silence_has_no_statistics(moments):
    with pytest.raises(InputError, match="silent"):
        moments.statistics()
