"""What happens to a sound on its way: a room, a microphone, a narrow line."""

import numpy as np

from melmask.synth.draw import SHAPE_POINTS, Draw, Signal32


def transmitted(draw: Draw, sound: Signal32) -> Signal32:
    """Draw a way of the sound, and return what arrives; with a probability of a quarter the sound itself."""
    room, colored, narrow = draw.chance(0.4), draw.chance(0.4), draw.chance(0.2)
    if not (room or colored or narrow):
        return sound
    spectrum = np.fft.rfft(sound)
    if room:
        spectrum = spectrum * _room(draw)
    if colored:
        spectrum = spectrum * draw.spectral_shape(draw.uniform(0.0, 6.0), (-5.0, 1.0))
    if narrow:
        spectrum = spectrum * draw.over_bins(_line_db(draw))
    # The end of the sound wraps around to its beginning, where it is the reverberation of what came before.
    return np.fft.irfft(spectrum, draw.samples)


def _room(draw: Draw) -> np.ndarray:
    """Draw the spectrum (bins,) complex64 of a room: the direct sound, six echoes, and a tail that decays."""
    decay_s = draw.span_s(0.02, 0.4)
    length = min(draw.samples, int(7 * decay_s * draw.rate_hz))
    tail = np.frombuffer(draw.rng.bytes(2 * length), dtype="<i2").astype(np.float32)
    tail *= np.exp(np.arange(length, dtype=np.float32) / np.float32(-decay_s * draw.rate_hz))
    tail *= np.float32(draw.log_uniform(0.1, 3.0) / np.sqrt(np.square(tail).sum() + 1.0))
    response = np.zeros(draw.samples, dtype=np.float32)
    response[:length] = tail
    reach = min(length, max(2, int(0.03 * draw.slowness * draw.rate_hz)))
    response[draw.rng.integers(1, reach, 6)] += np.float32(0.4) * draw.rng.standard_normal(6).astype(np.float32)
    # Air and walls take more of the high frequencies, but not of the direct sound.
    darkness = draw.over_bins(np.linspace(0, draw.uniform(-30.0, 0.0), SHAPE_POINTS))
    return np.float32(1) + np.fft.rfft(response) * darkness


def _line_db(draw: Draw) -> np.ndarray:
    """Draw a line that cuts off: a telephone, a file of a low rate, a small loudspeaker."""
    places = np.linspace(0, 1, SHAPE_POINTS)
    high = draw.uniform(0.65, 0.97)
    low = draw.uniform(0.1, 0.4) if draw.chance(0.4) else 0.0
    # From one point of the shape to the next are a few hundredths of an octave.
    return np.maximum(-2000 * np.maximum(np.maximum(places - high, low - places), 0), -100.0)
