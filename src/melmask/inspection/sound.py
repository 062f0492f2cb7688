"""Turn log-mels back into sound, and make sounds equally loud.

A log-mel has no phase, and a band holds the power of many frequencies. Both are found by the fast Griffin-Lim algorithm
(Perraudin, Balazs and Sondergaard, WASPAA 2013): start with noise, and again and again bring its spectrum nearer to the
target. Griffin-Lim sets the magnitude of each frequency. Here the power of each band is known instead, so each
frequency's power is multiplied by what its bands lack, as in the Richardson-Lucy algorithm. That needs no inverse of
the filters, and all resolutions of a front end take turns. `docs/how-to/look-inside.md` says how near it comes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from melmask.audio.logmel import mel_filterbank, padded_hann_window, resolution_filterbank
from melmask.config import LOG_EPSILON, FrontEndConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import ConfigError, InputError
from melmask.system.cores import one_thread_each
from melmask.system.finite import check_finite

_ROUNDS, _MOMENTUM = 30, 0.9
"""How often every resolution has its turn, and the share of the last change that is added once more."""
_LEAST_OVERLAP = 1.5
"""A window must be so many hops long; the sound between shorter ones is unknown."""
_LEAST_GAIN, _MOST_GAIN = 1e-6, 1e6
"""Bounds of how much the power of a frequency changes at once; without them, silence would overflow."""
_BLOCK_S, _STEP_S = 0.4, 0.1
_SILENT_LUFS, _QUIET_LU = -70.0, 10.0
_TARGET_LUFS, _HIGHEST_PEAK = -23.0, 0.99


class _Resolution(NamedTuple):
    """One spectrogram of a front end: its window, its filters (bands, bins), and the sum of the filters of each bin."""

    window: Tensor
    filters: Tensor
    sums: Tensor


def sound_of(
    logmel: Float[np.ndarray, "bands frames"], model: AudioEncoder, rounds: int = _ROUNDS
) -> Float[np.ndarray, " samples"]:
    """Return a sound whose log-mel is nearly the given one; the same log-mel always gives the same sound.

    Its rate is `model.card.front_end.sample_rate_hz`: a model of sound that is played slower (`reading.expand`) gives
    the slow sound, which can be heard.

    Args:
        logmel: Natural log, not normalized, as `AudioEncoder.logmel` returns it, of 2 frames or more.
        model: The model whose front end made it.
        rounds: How often the sound is brought nearer. Twice as many take twice as long.

    Returns:
        (frames - 1) * hop samples, float32; where the log-mel is loud, they may lie beyond 1.

    Raises:
        InputError: the log-mel is of another front end, or has a single frame.
        ConfigError: the frames of the front end leave out sound between them.
        NotFiniteError: the log-mel is NaN or infinite.
    """
    config = model.card.front_end
    if logmel.shape[0] != config.bands or logmel.shape[1] < 2:
        raise InputError(f"the log-mel is {logmel.shape}; expected ({config.bands}, frames) with 2 frames or more")
    check_finite(logmel, "the log-mel")
    target = torch.from_numpy(np.exp(logmel.astype(np.float32)))
    parts = [
        (resolution, power)
        for resolution, power in zip(_resolutions(config), target.split(config.mels), strict=True)
        if resolution is not None
    ]
    if not parts:
        raise ConfigError(
            f"a hop of {config.hop_samples} samples leaves out sound between windows of {config.win_samples}, so this "
            "front end cannot be made sound"
        )
    samples = (logmel.shape[1] - 1) * config.hop_samples
    start = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    # One thread: the spectra of a few seconds are too small to be divided, and two threads may round differently.
    with one_thread_each(1) as pool:
        made = pool.submit(_approached, torch.from_numpy(start), parts, config.hop_samples, rounds).result()
    return made.numpy()


@torch.inference_mode()
def _approached(sound: Tensor, parts: Sequence[tuple[_Resolution, Tensor]], hop: int, rounds: int) -> Tensor:
    """Bring the power of each band near its target, in one resolution after the other, `rounds` times."""
    previous = sound
    for number in range(rounds):
        nearer = sound
        for resolution, target in parts:
            nearer = _with_power(nearer, resolution, target, hop)
        # After the first round there is no earlier change, and the last one is the result.
        momentum = _MOMENTUM if 0 < number < rounds - 1 else 0.0
        sound, previous = nearer + momentum * (nearer - previous), nearer
    return sound


def _with_power(sound: Tensor, resolution: _Resolution, target: Tensor, hop: int) -> Tensor:
    """Multiply each frequency of each frame by what its bands lack in power."""
    window, filters, sums = resolution
    # A sound that is shorter than half a window cannot be mirrored at its ends.
    mode = "reflect" if len(sound) > len(window) // 2 else "constant"
    spectrum = torch.stft(sound, len(window), hop, window=window, pad_mode=mode, return_complex=True)
    lacking = target / (filters @ spectrum.abs().square() + LOG_EPSILON)
    gains = ((filters.T @ lacking) / sums[:, None]).clamp(_LEAST_GAIN, _MOST_GAIN).sqrt()
    # Frequencies beyond all bands are silent.
    gains[sums == math.inf] = 0
    return torch.istft(spectrum * gains, len(window), hop, window=window, length=len(sound))


def _resolutions(config: FrontEndConfig) -> list[_Resolution | None]:
    """Return the resolutions of a front end; None for one whose windows leave out sound between them."""
    windows = [(padded_hann_window(config.win_samples, config.n_fft), config.win_samples)]
    filters = [mel_filterbank(config)]
    for number, further in enumerate(config.further_resolutions, 1):
        samples = config.window_samples(further)
        windows.append((padded_hann_window(samples, config.fft_samples(further)), samples))
        filters.append(resolution_filterbank(config, number))
    found: list[_Resolution | None] = []
    for (window, samples), of_bands in zip(windows, filters, strict=True):
        matrix = torch.from_numpy(of_bands)
        sums = matrix.sum(0)
        usable = samples >= _LEAST_OVERLAP * config.hop_samples
        found.append(_Resolution(window, matrix, torch.where(sums > 0, sums, math.inf)) if usable else None)
    return found


def equally_loud(sounds: Sequence[Float[np.ndarray, " _"]], rate_hz: int) -> list[np.ndarray]:
    """Return the sounds with the same loudness, by ITU-R BS.1770, and without a sample beyond 1.

    The loudness is -23 LUFS, or lower if a peak would lie beyond 1. Silence stays silent.
    """
    levels = [loudness_lufs(sound, rate_hz) for sound in sounds]
    heard = [(sound, level) for sound, level in zip(sounds, levels, strict=True) if level > -math.inf]
    peaks_at_0_lufs = [float(np.abs(sound).max()) * 10 ** (-level / 20) for sound, level in heard]
    highest_lufs = 20 * math.log10(_HIGHEST_PEAK / max(peaks_at_0_lufs)) if heard else 0.0
    goal = min(_TARGET_LUFS, highest_lufs)
    gains = [10 ** ((goal - level) / 20) if level > -math.inf else 0.0 for level in levels]
    return [(sound * np.float32(gain)).astype(np.float32) for sound, gain in zip(sounds, gains, strict=True)]


def loudness_lufs(sound: Float[np.ndarray, " samples"], rate_hz: int) -> float:
    """Return the integrated loudness of a mono sound (ITU-R BS.1770-5), in LUFS; of silence, minus infinity.

    The gates of the recommendation leave out what is silent or much quieter than the rest. A sound shorter than a
    block of 400 ms is one block.
    """
    block = min(len(sound), round(_BLOCK_S * rate_hz))
    if not block:
        return -math.inf
    blocks = np.lib.stride_tricks.sliding_window_view(sound, block)[:: max(1, round(_STEP_S * rate_hz))]
    # By Parseval's theorem: the mean power of each block is that of its spectrum, and the filter is a factor there.
    power = np.abs(np.fft.rfft(blocks.astype(np.float64))) ** 2
    power[:, 1 : (block + 1) // 2] *= 2
    weighted = power @ _k_weights(np.fft.rfftfreq(block, 1 / rate_hz)) / block**2
    with np.errstate(divide="ignore"):
        levels = -0.691 + 10 * np.log10(weighted)
    # A quiet sound would lie below the absolute gate as a whole, so then only silence is left out.
    gate = _SILENT_LUFS if (levels > _SILENT_LUFS).any() else -math.inf
    weighted = weighted[levels > gate]
    if not len(weighted):
        return -math.inf
    mean = -0.691 + 10 * math.log10(weighted.mean())
    return -0.691 + 10 * math.log10(weighted[-0.691 + 10 * np.log10(weighted) > mean - _QUIET_LU].mean())


def _k_weights(frequencies_hz: Float[np.ndarray, " bins"]) -> Float[np.ndarray, " bins"]:
    """Return the factor of the power at each frequency: the two filters of BS.1770, which it gives for 48 kHz."""
    z = np.exp(-2j * np.pi * np.minimum(frequencies_hz, 24_000) / 48_000)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high_pass = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    return np.abs(shelf * high_pass) ** 2
