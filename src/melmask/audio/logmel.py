"""The log-mel front end (spec: PMLR 166, section 4.1): Hann STFT, Slaney mel bands, natural logarithm.

Equal to librosa's `melspectrogram` with the same settings to single-precision noise, which tests hold.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from melmask.axes import LogMel, Waveform
from melmask.config import LOG_EPSILON, FrontEndConfig

_LINEAR_HZ_PER_MEL = 200 / 3
_LOG_START_HZ = 1000.0
_LOG_START_MEL = _LOG_START_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27


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


class LogMelSpectrogram(nn.Module):
    """Waveforms (batch, samples) in [-1, 1] to ln(mel power + eps), (batch, mels, 1 + samples // hop)."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, config: FrontEndConfig):
        super().__init__()
        self.config = config
        window = torch.hann_window(config.win_samples, periodic=True, dtype=torch.float64)
        left = (config.n_fft - config.win_samples) // 2
        window = F.pad(window, (left, config.n_fft - config.win_samples - left)).float()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filterbank(config)).T, persistent=False)

    def forward(self, waveform: Waveform) -> LogMel:
        """Log-mel of whole clips; any length from one sample."""
        return self.of_padded(_reflect_pad(waveform, self.config.n_fft // 2))

    def of_padded(self, padded: Waveform) -> LogMel:
        """Log-mel of audio that already holds n_fft / 2 samples of context on either side."""
        # Framed here, not by torch.stft, so that a clip shorter than the padding works too.
        frames = padded.unfold(1, self.config.n_fft, self.config.hop_samples)
        spectrum = torch.fft.rfft(frames * self.window)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.filters + LOG_EPSILON).log().transpose(1, 2)


class LogMelStream:
    """The log-mel of audio that arrives in blocks, equal to that of the whole, in bounded memory."""

    def __init__(self, front_end: LogMelSpectrogram):
        self._front_end = front_end
        self._half = front_end.config.n_fft // 2
        self._pending = torch.zeros(1, 0, device=front_end.window.device)
        self._next = 0  # where in the pending samples the next frame begins; beyond them if the hop is long
        self._started = False

    def push(self, block: np.ndarray) -> torch.Tensor:
        """Frames (1, mels, frames), maybe none, whose audio is complete after `block` (samples,)."""
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
        if not self._started or self._pending.shape[1] < self._next + config.n_fft:
            return self._pending.new_zeros(1, config.mels, 0)
        frames = self._front_end.of_padded(self._pending[:, self._next :])
        self._next += frames.shape[2] * config.hop_samples
        # The mirrored end needs the last n_fft / 2 + 1 samples, whatever the hop.
        spent = min(self._next, self._pending.shape[1] - self._half - 1)
        self._pending, self._next = self._pending[:, spent:], self._next - spent
        return frames


@torch.inference_mode()
def logmel_blocks(blocks: Iterable[np.ndarray], front_end: LogMelSpectrogram) -> Iterator[torch.Tensor]:
    """Yield the log-mel (mels, frames) of consecutive blocks (samples,) of one sound, some of it maybe empty.

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
