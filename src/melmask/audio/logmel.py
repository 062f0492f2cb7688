"""The log-mel front end (spec: PMLR 166, section 4.1): Hann STFT, Slaney mel bands, natural logarithm.

Equal to librosa's `melspectrogram` with the same settings to single-precision noise, which tests hold.

A front end may have further resolutions: spectrograms with other windows, whose frames have the same centers. They lie
one above the other in a log-mel, first the bands of the first resolution, then those of the second, and so on.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from melmask.axes import LogMel, Waveform
from melmask.config import LOG_EPSILON, FrontEndConfig, Statistics

DB_PER_NATURAL_LOG = float(10 / np.log(10))
"""Multiplied by this, the natural logarithm of a power is in decibels."""
_LINEAR_HZ_PER_MEL = 200 / 3
_LOG_START_HZ = 1000.0
_LOG_START_MEL = _LOG_START_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27
_POINTS_PER_SLOPE = 64
"""Where the triangle of a further resolution's filter is sampled, on either side of its peak."""
_FRAMES_TOGETHER, _FRAMES_TOGETHER_ON_CPU = 1024, 64
"""A long window makes 13 numbers of each sample, so only this many frames of it are in memory at once. On a CPU, 64 of
them stay in the cache, which is 4 times as fast as 1000 (docs/log.md)."""


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above (Auditory Toolbox, 1998)."""
    log_part = _LOG_START_MEL + np.log(np.maximum(hz, _LOG_START_HZ) / _LOG_START_HZ) / _LOG_STEP
    return np.where(hz < _LOG_START_HZ, hz / _LINEAR_HZ_PER_MEL, log_part)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    log_part = _LOG_START_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _LOG_START_MEL) - _LOG_START_MEL))
    return np.where(mel < _LOG_START_MEL, mel * _LINEAR_HZ_PER_MEL, log_part)


def mel_edges_hz(config: FrontEndConfig) -> np.ndarray:
    """Return where the bands begin, peak and end, (mels + 2,): band k from edge k to edge k + 2."""
    ends = hz_to_mel(np.array([config.min_hz, config.max_hz]))
    return mel_to_hz(np.linspace(ends[0], ends[1], config.mels + 2))


def empty_filters(config: FrontEndConfig) -> int:
    """Return how many bands hold no frequency of the FFT, and so give the same number for every sound."""
    edges = mel_edges_hz(config) * config.n_fft / config.sample_rate_hz
    return int(np.sum(np.ceil(edges[2:]) - np.floor(edges[:-2]) <= 1))


def mel_filterbank(config: FrontEndConfig) -> np.ndarray:
    """Triangular filters of equal area, (mels, n_fft // 2 + 1) float32; multiplies a power spectrum."""
    bins_hz = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate_hz)
    edges_hz = mel_edges_hz(config)
    slopes = edges_hz[:, None] - bins_hz[None, :]
    widths_hz = np.diff(edges_hz)
    rising = -slopes[:-2] / widths_hz[:-1, None]
    falling = slopes[2:] / widths_hz[1:, None]
    # float32 before the area normalization: librosa's order, so the filters are equal bit for bit.
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters *= (2 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return filters


def band_edges_hz(config: FrontEndConfig, resolution: int) -> np.ndarray:
    """Where the filters of a resolution begin, peak and end, (mels + 2,): band k has its peak at entry k + 1.

    Resolution 0 is the first. The peaks of a logarithmic scale are 1 / `bands_per_octave` octaves apart, and the last
    filter ends at `max_hz`.
    """
    further = config.further_resolutions[resolution - 1] if resolution else None
    if further is None or further.scale == "mel":
        return mel_edges_hz(config)
    return (further.max_hz or config.max_hz) * 2 ** (np.arange(-config.mels - 1, 1) / further.bands_per_octave)


def resolution_filterbank(config: FrontEndConfig, resolution: int) -> np.ndarray:
    """The filters of a further resolution, (mels, bins of its FFT) float32; multiplies its power spectrum.

    A filter is the mean of the power under a triangle, with the power between two bins interpolated linearly. So a
    band that is narrower than the distance of two bins has a filter, too. White noise has the same level in all
    resolutions, so that the constant in the logarithm means the same loudness in each.
    """
    further = config.further_resolutions[resolution - 1]
    edges_hz, samples = band_edges_hz(config, resolution), config.fft_samples(further)
    shares = (np.arange(_POINTS_PER_SLOPE) + 0.5) / _POINTS_PER_SLOPE
    low, peak, high = (edges_hz[k : len(edges_hz) - 2 + k, None] for k in range(3))
    points_hz = np.concatenate([low + shares * (peak - low), high - shares * (high - peak)], axis=1)
    weights = np.concatenate([shares * (peak - low), shares * (high - peak)], axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    bins, between = np.divmod(points_hz * samples / config.sample_rate_hz, 1)
    filters = np.zeros((config.mels, samples // 2 + 1))
    rows = np.arange(config.mels)[:, None]
    np.add.at(filters, (rows, bins.astype(int)), weights * (1 - between))
    np.add.at(filters, (rows, bins.astype(int) + 1), weights * between)
    # A Hann window's energy goes with its length, and the sum of a mel filter with the density of its bins.
    level = config.win_samples * config.n_fft / config.sample_rate_hz / config.window_samples(further)
    return (filters * level).astype(np.float32)


def scales(
    statistics: Statistics, mels: int, device: torch.device | str = "cpu"
) -> tuple[float, float] | tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation that a log-mel is normalized with.

    They are two numbers or, for several resolutions of `mels` bands each, two columns (bands, 1).
    """
    if not statistics.further_means:
        return statistics.mean, statistics.std
    pairs = zip((statistics.mean, *statistics.further_means), (statistics.std, *statistics.further_stds), strict=True)
    columns = torch.tensor(list(pairs), device=device).repeat_interleave(mels, dim=0)
    return columns[:, :1], columns[:, 1:]


def normalize(logmel: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    """Bring each resolution of a log-mel (..., bands, frames) to mean 0 and deviation 1 over the corpus."""
    mean, std = scales(statistics, logmel.shape[-2] // statistics.resolutions, logmel.device)
    return (logmel - mean) / std


def denormalize(logmel: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    """Undo `normalize`."""
    mean, std = scales(statistics, logmel.shape[-2] // statistics.resolutions, logmel.device)
    return logmel * std + mean


def padded_hann_window(window_samples: int, fft_samples: int) -> torch.Tensor:
    """A periodic Hann window in the middle of an FFT, (fft_samples,) float32."""
    window = torch.hann_window(window_samples, periodic=True, dtype=torch.float64)
    left = (fft_samples - window_samples) // 2
    return F.pad(window, (left, fft_samples - window_samples - left)).float()


class LogMelSpectrogram(nn.Module):
    """Waveforms (batch, samples) in [-1, 1] to ln(mel power + eps), (batch, bands, 1 + samples // hop)."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, config: FrontEndConfig):
        super().__init__()
        self.config = config
        self.register_buffer("window", padded_hann_window(config.win_samples, config.n_fft), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filterbank(config)).T, persistent=False)
        for number, further in enumerate(config.further_resolutions, 1):
            window = padded_hann_window(config.window_samples(further), config.fft_samples(further))
            self.register_buffer(f"window_{number}", window, persistent=False)
            filters = torch.from_numpy(resolution_filterbank(config, number)).T
            self.register_buffer(f"filters_{number}", filters, persistent=False)

    def forward(self, waveform: Waveform) -> LogMel:
        """Log-mel of whole clips; any length from one sample."""
        return self.of_padded(_reflect_pad(waveform, self.config.reach_samples))

    def of_padded(self, padded: Waveform) -> LogMel:
        """Log-mel of audio that already holds `config.reach_samples` of context on either side."""
        first = self._frames_of(padded, self.window)
        logmels = [_log_power(first, self.window, self.filters)]
        for number in range(1, self.config.resolutions):
            window, filters = self.get_buffer(f"window_{number}"), self.get_buffer(f"filters_{number}")
            together = _FRAMES_TOGETHER_ON_CPU if padded.device.type == "cpu" else _FRAMES_TOGETHER
            parts = self._frames_of(padded, window).split(together, dim=1)
            logmels.append(torch.cat([_log_power(part, window, filters) for part in parts], dim=1))
        return torch.cat(logmels, dim=2).transpose(1, 2) if len(logmels) > 1 else logmels[0].transpose(1, 2)

    def _frames_of(self, padded: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Return (batch, frames, window's samples): frames of all resolutions have the same centers."""
        # Framed here, not by torch.stft, so that a clip shorter than the padding works too.
        unused = self.config.reach_samples - len(window) // 2
        return padded[:, unused : padded.shape[1] - unused].unfold(1, len(window), self.config.hop_samples)


def _log_power(frames: torch.Tensor, window: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Return (batch, frames, bands) of frames (batch, frames, samples)."""
    spectrum = torch.fft.rfft(frames * window)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ filters + LOG_EPSILON).log()


class LogMelStream:
    """The log-mel of audio that arrives in blocks, equal to that of the whole, in bounded memory."""

    def __init__(self, front_end: LogMelSpectrogram):
        self._front_end = front_end
        self._half = front_end.config.reach_samples
        self._pending = torch.zeros(1, 0, device=front_end.window.device)
        self._next = 0  # where in the pending samples the next frame begins; beyond them if the hop is long
        self._started = False

    def push(self, block: np.ndarray) -> torch.Tensor:
        """Frames (1, bands, frames), maybe none, whose audio is complete after `block` (samples,)."""
        return self._push(torch.from_numpy(block)[None].to(self._pending.device))

    def finish(self) -> torch.Tensor:
        """The last frames, which need the mirrored end of the audio."""
        if not self._started:
            return self._front_end(self._pending)
        return self._push(self._pending[:, -self._half - 1 : -1].flip(1))

    def _push(self, block: torch.Tensor) -> torch.Tensor:
        config = self._front_end.config
        self._pending = torch.cat([self._pending, block], dim=1)
        if not self._started and self._pending.shape[1] > self._half:
            self._pending = torch.cat([self._pending[:, 1 : self._half + 1].flip(1), self._pending], dim=1)
            self._started = True
        if not self._started or self._pending.shape[1] < self._next + 2 * self._half:
            return self._pending.new_zeros(1, config.bands, 0)
        frames = self._front_end.of_padded(self._pending[:, self._next :])
        self._next += frames.shape[2] * config.hop_samples
        # The mirrored end needs the last samples, as far as a frame reaches and one more, whatever the hop.
        spent = min(self._next, self._pending.shape[1] - self._half - 1)
        self._pending, self._next = self._pending[:, spent:], self._next - spent
        return frames


@torch.inference_mode()
def logmel_blocks(blocks: Iterable[np.ndarray], front_end: LogMelSpectrogram) -> Iterator[torch.Tensor]:
    """Yield the log-mel (bands, frames) of consecutive blocks (samples,) of one sound, some of it maybe empty.

    The parts make up the log-mel of the whole sound, in bounded memory.
    """
    stream = LogMelStream(front_end)
    for block in blocks:
        yield stream.push(block)[0]
    yield stream.finish()[0]


def _reflect_pad(waveform: torch.Tensor, half: int) -> torch.Tensor:
    """Mirror at both ends, as often as a clip shorter than `half` needs."""
    samples = waveform.shape[1]
    if samples > half:
        return F.pad(waveform, (half, half), mode="reflect")
    ids = torch.arange(-half, samples + half, device=waveform.device)
    period = max(1, 2 * (samples - 1))
    ids = ids.remainder(period)
    return waveform[:, torch.minimum(ids, period - ids)] if samples > 1 else waveform.expand(-1, 2 * half + 1)
