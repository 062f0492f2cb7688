"""A random generator and the facts of the sound that it draws: length, rate, band of frequency and scale of time.

A front end for bats hears other frequencies than one for speech, and its frames are shorter. So pitches are drawn
within the band, and times are multiplied by `slowness`. What changes slowly is computed once for each `step_samples`
and interpolated, which takes a tenth of the time.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

from melmask.config import FrontEndConfig
from melmask.geometry import samples_under_frames

Curve = Float[np.ndarray, " points"]
"""A value for each step, and one for the end of the last step."""
Signal32 = Float32[np.ndarray, " samples"]
Spectrum = Float32[np.ndarray, " bins"]

_STEPS_PER_HOP = 10
_USUAL_HOP_MS = 10.0
_LOWEST_PITCH_HZ = 20.0
SHAPE_POINTS = 256
"""Points at which the shape of a spectrum is drawn, evenly over the logarithm of the frequency."""


@dataclass(frozen=True)
class Draw:
    """The random generator of a sound, and what has to be known of the sound to make."""

    rng: np.random.Generator
    samples: int
    rate_hz: int
    step_samples: int = 16
    """Samples of a step; `samples` is a multiple of it."""
    band_hz: tuple[float, float] = (50.0, 8000.0)
    """The lowest and the highest frequency that the front end hears."""
    slowness: float = 1.0
    """How much longer everything lasts than in front ends with a hop of 10 ms."""

    @classmethod
    def for_crop(cls, front_end: FrontEndConfig, frames: int, key: tuple[int, ...]) -> "Draw":
        """Return the draw of a crop with this key: so many samples that all its frames have true surroundings."""
        step = max(1, front_end.hop_samples // _STEPS_PER_HOP)
        needed = samples_under_frames(frames, front_end)
        return cls(
            # The fastest of NumPy's generators: half of the time goes into random numbers.
            np.random.Generator(np.random.SFC64(key)),
            step * _smooth_number(-(-needed // step)),
            front_end.sample_rate_hz,
            step,
            (max(front_end.min_hz, front_end.max_hz / 1000), front_end.max_hz),
            front_end.hop_ms / _USUAL_HOP_MS,
        )

    @property
    def points(self) -> int:
        """Points of a curve."""
        return self.samples // self.step_samples + 1

    @property
    def step_s(self) -> float:
        """Length of a step."""
        return self.step_samples / self.rate_hz

    def uniform(self, low: float, high: float) -> float:
        """Draw a number."""
        return low + (high - low) * self.rng.random()

    def log_uniform(self, low: float, high: float) -> float:
        """Draw a number whose logarithm is uniform, because pitch and tempo are heard as ratios."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.rng.random() < probability

    def span_s(self, low_s: float, high_s: float) -> float:
        """Draw a length of time, log-uniform, given for a hop of 10 ms."""
        return self.slowness * self.log_uniform(low_s, high_s)

    def pitch_hz(self, low: float = 0.0, high: float = 0.6) -> float:
        """Draw a pitch; 0 and 1 are the ends of the band, on a logarithmic scale."""
        bottom, top = self.band_hz
        return bottom * (top / bottom) ** self.uniform(low, high)

    def walk(self, span_s: float) -> Curve:
        """Draw a curve that moves smoothly between numbers from -1 to 1, a new one about every `span_s`."""
        length_s = self.samples / self.rate_hz
        knots = 2 + int(min(length_s / span_s, self.points // 2))
        return np.interp(np.linspace(0, knots - 1, self.points), np.arange(knots), 2 * self.rng.random(knots) - 1)

    def noise(self, shape: Spectrum) -> Signal32:
        """Draw noise whose spectrum has this shape, and whose root mean square is 1."""
        # Bytes are quick to draw. A sample of the noise is the sum of thousands of them, so it is normally distributed.
        raw = np.frombuffer(self.rng.bytes(4 * len(shape)), dtype="<i2").astype(np.float32)
        sound = np.fft.irfft(raw.view(np.complex64) * shape, self.samples)
        return sound / np.float32(rms(sound))

    def spectral_shape(self, spread_db: float, tilt_db: tuple[float, float]) -> Spectrum:
        """Draw an amplitude for each bin of the whole sound: a slope over the octaves, and hills upon it."""
        octaves = np.linspace(0, np.log2(self.band_hz[1] / self.band_hz[0]), SHAPE_POINTS)
        knots = int(self.rng.integers(3, 9))
        hills = np.interp(np.linspace(0, knots - 1, SHAPE_POINTS), np.arange(knots), self.rng.random(knots) - 0.5)
        return self.over_bins(self.uniform(*tilt_db) * octaves + 2 * spread_db * hills)

    def over_bins(self, level_db: Curve) -> Spectrum:
        """Return the amplitude at each bin of the whole sound of a level over `SHAPE_POINTS` points of the band."""
        amplitudes = (10 ** (level_db / 20)).astype(np.float32)[_places(self.samples, self.rate_hz, *self.band_hz)]
        # What lies an octave below the band is not heard, but would count in every level.
        amplitudes[: int(self.band_hz[0] / 2 * self.samples / self.rate_hz)] = 0
        return amplitudes

    def over_samples(self, curve: Curve) -> Signal32:
        """Interpolate a curve linearly."""
        points = curve.astype(np.float32)
        ramp = np.arange(self.step_samples, dtype=np.float32) / self.step_samples
        return (points[:-1, None] + np.diff(points)[:, None] * ramp).reshape(-1)


@lru_cache(maxsize=8)
def _places(samples: int, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Return the nearest point of a spectral shape for each bin; bins beyond the band have its ends."""
    bins_hz = np.maximum(np.fft.rfftfreq(samples, 1 / rate_hz), low_hz)
    places = np.log(bins_hz / low_hz) / np.log(high_hz / low_hz) * (SHAPE_POINTS - 1)
    return np.clip(np.rint(places), 0, SHAPE_POINTS - 1).astype(np.int64)


def _smooth_number(least: int) -> int:
    """Return the next number that has no prime factor above 5: Fourier transforms of such lengths are fast."""
    number = least
    while True:
        rest = number
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 1


def rms(sound: np.ndarray) -> float:
    """Return the root mean square of a sound (samples,)."""
    # NumPy's own products would start threads, in which readers wait for each other.
    return float(np.sqrt(np.square(sound).mean() + 1e-20))
