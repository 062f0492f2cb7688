"""What makes the sounds: oscillators, voices, frequency modulation, noise, impulses, modes and strings.

Each source draws its own settings, and returns a sound (samples,) of any level.
"""

from collections.abc import Callable

import numpy as np
import torch

from melmask.synth.draw import SHAPE_POINTS, Curve, Draw, Signal32, rms
from melmask.synth.events import Events, draw_events, envelope, melody

_TABLE_POINTS = 4096
_NYQUIST_SHARE = 0.48
_BLOCK = 128
_MOST_STRIKES = 24
_BAR, _MEMBRANE = (1.0, 2.756, 5.404, 8.933, 13.34), (1.0, 1.594, 2.136, 2.296, 2.653, 2.918, 3.156, 3.501)
"""Frequencies of the modes of a free bar and of a round membrane, as multiples of the lowest one (Fletcher and Rossing,
The Physics of Musical Instruments, sections 2.16 and 3.6)."""

Source = Callable[[Draw], Signal32]


def _pitch(draw: Draw, events: Events, low: float, high: float, octaves: float) -> Curve:
    center_hz = draw.pitch_hz(low, high)
    wanted = center_hz * 2 ** melody(draw, events, octaves)
    return np.clip(wanted, draw.band_hz[0] / 2, _NYQUIST_SHARE * draw.rate_hz)


def _cycles(draw: Draw, pitch_hz: Curve) -> Signal32:
    """Return the phase at each sample in cycles, without whole cycles of the past, which float32 cannot count."""
    advance = pitch_hz[:-1] * draw.step_s
    starts = (np.cumsum(advance) - advance + draw.rng.random()) % 1
    ramp = np.arange(draw.step_samples, dtype=np.float32) / draw.step_samples
    return (starts.astype(np.float32)[:, None] + advance.astype(np.float32)[:, None] * ramp).reshape(-1)


def _wave(draw: Draw, amplitudes: np.ndarray) -> np.ndarray:
    """Return a period of a wave of these harmonics, with its first point again at the end."""
    spectrum = np.zeros(_TABLE_POINTS // 2 + 1, dtype=np.complex64)
    # Harmonics in phase are pulses, as of vocal folds; others are as loud, but smoother.
    phases = draw.rng.random(len(amplitudes)) if draw.chance(0.6) else np.zeros(len(amplitudes))
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * phases)
    wave = np.fft.irfft(spectrum, _TABLE_POINTS)
    return np.append(wave, wave[:1]).astype(np.float32) / np.float32(rms(wave))


def _read(wave: np.ndarray, cycles: Signal32) -> Signal32:
    """Read a wave at fractional positions."""
    position = cycles * np.float32(_TABLE_POINTS)
    whole = np.floor(position)
    before = whole.astype(np.int64) & (_TABLE_POINTS - 1)
    return wave[before] + (position - whole) * np.diff(wave)[before]


def _harmonics(draw: Draw, pitch_hz: Curve) -> np.ndarray:
    """Return the numbers of the harmonics that stay below half the sample rate."""
    return np.arange(1, 1 + int(np.clip(_NYQUIST_SHARE * draw.rate_hz / pitch_hz.max(), 1, _TABLE_POINTS // 4)))


def _tone(draw: Draw) -> Signal32:
    """An instrument, an alarm, a machine, a bird: a wave with a melody."""
    events = draw_events(draw)
    pure = draw.chance(0.3)
    pitch_hz = _pitch(draw, events, 0.0, 0.95 if pure else 0.75, draw.log_uniform(0.02, 2.0))
    numbers = _harmonics(draw, pitch_hz)
    amplitudes = numbers ** -(draw.uniform(3.0, 6.0) if pure else draw.uniform(0.2, 2.5))
    amplitudes *= 10 ** (draw.uniform(0.0, 1.0) * draw.rng.standard_normal(len(numbers)) / 2)
    if draw.chance(0.3):
        amplitudes[1::2] *= draw.uniform(0.0, 0.3)
    sound = _read(_wave(draw, amplitudes), _cycles(draw, pitch_hz))
    return sound * draw.over_samples(envelope(draw, events))


def _voice(draw: Draw) -> Signal32:
    """A voice of a person or an animal: pulses through formants that move from one vowel to another, and breath."""
    events = draw_events(draw)
    pitch_hz = _pitch(draw, events, 0.05, 0.5, draw.log_uniform(0.05, 1.2))
    numbers = _harmonics(draw, pitch_hz)
    rolloff = numbers ** -draw.uniform(0.3, 1.5)
    size = draw.log_uniform(0.7, 1.6)
    waves = [_wave(draw, rolloff * _formants(draw, numbers * pitch_hz.mean(), size)) for _ in range(2)]
    cycles = _cycles(draw, pitch_hz)
    # Both vowels of a syllable are heard at its ends, and a mixture between them.
    vowel = draw.rng.random(len(events.onsets_s))[events.at(draw)] + 0.5 * draw.walk(draw.span_s(0.05, 0.4))
    mixture = draw.over_samples(np.clip(vowel, 0, 1))
    first, second = (_read(wave, cycles) for wave in waves)
    sound = first + (second - first) * mixture
    if draw.chance(0.5):
        shape = draw.over_bins(20 * np.log10(_formants(draw, _band_points_hz(draw), size) + 1e-3))
        sound = sound + draw.noise(shape) * np.float32(draw.log_uniform(0.02, 1.0))
    return sound * draw.over_samples(envelope(draw, events))


def _formants(draw: Draw, frequencies_hz: np.ndarray, size: float) -> np.ndarray:
    """Draw what a tract lets through at these frequencies: four resonances, and a little of everything."""
    bottom, top = draw.band_hz
    # In the band of speech, these are about 300 to 900, 800 to 2300, 2200 to 3300 and 3200 to 4500 Hz.
    places = (draw.uniform(0.36, 0.57), draw.uniform(0.55, 0.75), draw.uniform(0.74, 0.83), draw.uniform(0.82, 0.89))
    octaves = np.log2(np.maximum(frequencies_hz, 1e-3) / bottom)
    gain = np.full(len(frequencies_hz), 0.01)
    for number, place in enumerate(places):
        center = place * np.log2(top / bottom) - np.log2(size)
        gain = gain + 0.6**number * np.exp(-(((octaves - center) / draw.uniform(0.1, 0.25)) ** 2))
    return gain


def _band_points_hz(draw: Draw) -> np.ndarray:
    return np.geomspace(*draw.band_hz, SHAPE_POINTS)


def _frequency_modulation(draw: Draw) -> Signal32:
    """A bell, brass, an alarm: a sine whose phase another sine moves (Chowning 1973)."""
    events = draw_events(draw)
    pitch_hz = _pitch(draw, events, 0.05, 0.7, draw.log_uniform(0.02, 1.5))
    ratio = float(draw.rng.integers(1, 6)) if draw.chance(0.5) else draw.log_uniform(0.05, 7.0)
    loudness = envelope(draw, events)
    depth = draw.log_uniform(0.1, 8.0) * (
        loudness if draw.chance(0.5) else 0.5 + 0.5 * draw.walk(draw.span_s(0.1, 1.0))
    )
    turn = np.float32(2 * np.pi)
    swing = np.sin(turn * _cycles(draw, np.minimum(ratio * pitch_hz, _NYQUIST_SHARE * draw.rate_hz)))
    return np.sin(turn * _cycles(draw, pitch_hz) + draw.over_samples(depth) * swing) * draw.over_samples(loudness)


def _noise(draw: Draw) -> Signal32:
    """Wind, rain, a crowd, a fricative, a drum: noise of some color or band, with events or a texture of its own."""
    shape = draw.spectral_shape(draw.uniform(0.0, 15.0), (-12.0, 2.0))
    if draw.chance(0.4):
        shape = shape * draw.over_bins(_band_pass_db(draw))
    sound = draw.noise(shape)
    loudness = envelope(draw, draw_events(draw))
    if draw.chance(0.25):
        # Rain and crackle are uneven from one step to the next.
        loudness = loudness * draw.rng.random(draw.points) ** draw.log_uniform(0.5, 20.0)
    return sound * draw.over_samples(loudness)


def _band_pass_db(draw: Draw) -> Curve:
    octaves = np.log2(_band_points_hz(draw) / draw.pitch_hz(0.1, 1.0))
    distance = np.maximum(np.abs(octaves) - draw.log_uniform(0.05, 1.5), 0)
    return np.maximum(-draw.log_uniform(10.0, 100.0) * distance, -80.0)


def _impulses(draw: Draw) -> Signal32:
    """Clicks, crackle and steps: impulses, each of one sample, through a filter."""
    count = int(draw.log_uniform(1.0, 2000.0))
    sound = np.zeros(draw.samples, dtype=np.float32)
    if draw.chance(0.4):
        # Evenly spaced ones are heard as a buzz or a tick.
        gap = max(1, draw.samples // count)
        places = (np.arange(count) * gap + int(draw.rng.integers(gap))) % draw.samples
    else:
        places = draw.rng.integers(draw.samples, size=count)
    sound[places] = draw.rng.standard_normal(count) if draw.chance(0.7) else 1.0
    spectrum = np.fft.rfft(sound) * draw.spectral_shape(draw.uniform(0.0, 12.0), (-10.0, 1.0))
    if draw.chance(0.4):
        spectrum = spectrum * draw.over_bins(_band_pass_db(draw))
    return np.fft.irfft(spectrum, draw.samples)


def _struck(draw: Draw) -> Signal32:
    """A bar, a drum, a glass, a knock: modes that are struck together."""
    ratios = np.array(_BAR if draw.chance(0.4) else _MEMBRANE)
    if draw.chance(0.4):
        ratios = np.sort(draw.rng.uniform(1, draw.uniform(2.0, 20.0), int(draw.rng.integers(2, 24))))
    ratios = ratios * (1 + 0.02 * draw.rng.standard_normal(len(ratios)))
    decay_s = draw.span_s(0.005, 0.8) / ratios ** draw.uniform(0.0, 1.5)
    gains = draw.rng.standard_normal(len(ratios)) / ratios ** draw.uniform(0.0, 1.0)
    return _strikes(draw, lambda: _rung(draw, draw.pitch_hz(0.1, 0.8) * ratios, decay_s, gains))


def _plucked(draw: Draw) -> Signal32:
    """A string: harmonics, of which high ones die sooner, and those with a node where it is plucked are missing."""
    numbers = np.arange(1.0, 41.0)
    stiffness, place = draw.log_uniform(1e-5, 1e-3), draw.uniform(0.05, 0.5)
    ratios = numbers * np.sqrt(1 + stiffness * numbers**2)
    decay_s = draw.span_s(0.1, 2.0) / (1 + (numbers / draw.log_uniform(2.0, 30.0)) ** 2)
    gains = np.sin(np.pi * numbers * place) / numbers ** draw.uniform(0.3, 1.5)
    return _strikes(draw, lambda: _rung(draw, draw.pitch_hz(0.05, 0.55) * ratios, decay_s, gains))


def _rung(draw: Draw, frequencies_hz: np.ndarray, decay_s: np.ndarray, gains: np.ndarray) -> Signal32:
    """Return the sum of sines that decay.

    Sample i * 128 + j of a mode is the product of a number that depends on i and of one that depends on j. So all modes
    together are one product of matrices, which is many times faster than their sines.
    """
    heard = frequencies_hz < _NYQUIST_SHARE * draw.rate_hz
    rates = (-1 / decay_s + 2j * np.pi * frequencies_hz)[heard] / draw.rate_hz
    # What is 60 dB down is not computed.
    longest = int(min(draw.samples, 7 * decay_s.max() * draw.rate_hz))
    blocks = -(-longest // _BLOCK)
    coarse = np.exp(np.outer(np.arange(blocks) * _BLOCK, rates)) * gains[heard]
    fine = np.exp(np.outer(rates, np.arange(_BLOCK)))
    left = torch.from_numpy(np.concatenate([coarse.real, coarse.imag], axis=1).astype(np.float32))
    right = torch.from_numpy(np.concatenate([fine.imag, fine.real], axis=0).astype(np.float32))
    # This is the imaginary part of the product: sines begin at 0, so that a strike does not click. NumPy would start
    # threads for it, in which readers wait for each other.
    return (left @ right).reshape(-1).numpy()


def _strikes(draw: Draw, ring: Callable[[], Signal32]) -> Signal32:
    """Lay a sound at each of some events, at up to three pitches."""
    events = draw_events(draw)
    sounds = [ring() for _ in range(min(len(events.onsets_s), int(draw.rng.integers(1, 4))))]
    out = np.zeros(draw.samples, dtype=np.float32)
    which = draw.rng.integers(len(sounds), size=len(events.onsets_s))
    for onset_s, gain, number in zip(events.onsets_s[:_MOST_STRIKES], events.gains, which, strict=False):
        sound, start = sounds[number], round(onset_s * draw.rate_hz)
        first, last = max(start, 0), min(start + len(sound), draw.samples)
        if last > first:
            out[first:last] += np.float32(gain) * sound[first - start : last - start]
    return out


SOURCES: dict[str, tuple[Source, float]] = {
    "tone": (_tone, 0.2),
    "voice": (_voice, 0.24),
    "frequency modulation": (_frequency_modulation, 0.09),
    "noise": (_noise, 0.2),
    "impulses": (_impulses, 0.09),
    "struck": (_struck, 0.1),
    "plucked": (_plucked, 0.08),
}
"""The sources by name, and how often each is drawn."""
