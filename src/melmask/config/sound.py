"""What a model hears: how files are read, the front end, and the statistics of its log-mels."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from melmask.config.checks import LEFT_OUT_AT_DEFAULT, MOST_MELS, check, check_choice, check_range

_LOWEST_HZ, _HIGHEST_HZ = 100, 10_000_000
_LONGEST_FFT = 1 << 15
_MOST_OVERLAP = 128
_MOST_EXPANDED = 1000.0
LONGEST_WINDOW_MS = 10_000
LOG_EPSILON = 1.1920929e-07
"""Added to the mel power before the logarithm: float32 machine epsilon (spec of the published models)."""
MEAN, EACH = "mean", "each"
"""All channels averaged, and every channel by itself."""


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig:
    """A further spectrogram of the same sound, with a window of its own. It has as many bands as the first one has."""

    window_ms: float = 256.0
    """Length of the Hann window, in ms. A longer one resolves pitch, a shorter one resolves time."""
    scale: Literal["log", "mel"] = "log"
    """'log' has the same number of bands in each octave, up to `max_hz`. 'mel' has the range of the first one."""
    bands_per_octave: float = 12.0
    """Bands in an octave, for the scale 'log'; 12 are semitones. 80 of them reach from 79 Hz to 8 kHz."""
    max_hz: float = 0.0
    """Upper edge of the last band, in Hz, for the scale 'log'; 0: that of the first spectrogram."""

    def __post_init__(self) -> None:
        check_range(self, "further_resolutions.window_ms", 1, LONGEST_WINDOW_MS)
        check_choice(self, "further_resolutions.scale")
        check_range(self, "further_resolutions.bands_per_octave", 1, 1000)
        check_range(self, "further_resolutions.max_hz", 0)


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """How a waveform becomes a log-mel. The defaults are MSM-MAE's (PMLR 166, section 4.1), at 16 kHz."""

    sample_rate_hz: int = 16000
    """Rate that the audio is resampled to."""
    n_fft: int = 400
    """FFT length in samples."""
    win_samples: int = 400
    """Hann window length in samples, centered in the FFT; 400 is 25 ms at 16 kHz."""
    hop_samples: int = 160
    """Samples between frames; 160 is 10 ms at 16 kHz."""
    mels: int = 80
    """Number of mel bands."""
    min_hz: float = 50.0
    """Lower edge of the first band, in Hz."""
    max_hz: float = 8000.0
    """Upper edge of the last band, in Hz; at most half the sample rate."""
    further_resolutions: tuple[ResolutionConfig, ...] = field(default=(), metadata=LEFT_OUT_AT_DEFAULT)
    """Further spectrograms with other windows, at the same frames. As JSON, a list of objects with `window_ms`,
    `scale`, `bands_per_octave` and `max_hz`; those that are left out have their defaults."""

    def __post_init__(self) -> None:
        # From seismometers to laboratories of ultrasound.
        check_range(self, "front_end.sample_rate_hz", _LOWEST_HZ, _HIGHEST_HZ)
        # Longer than a second at the highest rate, a hop would leave sound out everywhere.
        check_range(self, "front_end.hop_samples", 1, _HIGHEST_HZ)
        # Half of an even FFT length is whole, which centers the frames. 2 to the 15 is 2 s at 16 kHz.
        check_range(self, "front_end.n_fft", 2, _LONGEST_FFT)
        check(self.n_fft % 2 == 0, f"front_end.n_fft is {self.n_fft}; give an even number")
        # Memory grows with the frames that share a sample; published front ends have 2 to 8 of them.
        check(
            self.n_fft <= _MOST_OVERLAP * self.hop_samples,
            f"front_end.hop_samples is {self.hop_samples}; give at least n_fft / {_MOST_OVERLAP} = "
            f"{math.ceil(self.n_fft / _MOST_OVERLAP)}",
        )
        check(
            1 < self.win_samples <= self.n_fft,
            f"front_end.win_samples is {self.win_samples}; give 2 to n_fft = {self.n_fft}",
        )
        # Published front ends have 40 to 256 bands.
        check_range(self, "front_end.mels", 1, MOST_MELS)
        check(
            0 <= self.min_hz < self.max_hz <= self.sample_rate_hz / 2,
            f"front_end.min_hz and max_hz are {self.min_hz} and {self.max_hz}; give 0 <= min < max <= half the "
            f"sample rate, {self.sample_rate_hz / 2}",
        )
        check(len(self.further_resolutions) < 8, "front_end.further_resolutions has 8 or more; give 7 at most")
        for further in self.further_resolutions:
            check(
                further.max_hz <= self.sample_rate_hz / 2 and further.window_ms * self.sample_rate_hz >= 2000,
                f"front_end.further_resolutions has window_ms {further.window_ms} and max_hz {further.max_hz}; at "
                f"{self.sample_rate_hz} Hz give a window of 2 samples or more, and at most {self.sample_rate_hz / 2}",
            )

    @property
    def resolutions(self) -> int:
        """Number of spectrograms, one above the other in a log-mel; the first has the settings of this class."""
        return 1 + len(self.further_resolutions)

    @property
    def bands(self) -> int:
        """Rows of a log-mel: the bands of all resolutions."""
        return self.resolutions * self.mels

    @property
    def reach_samples(self) -> int:
        """How far the longest FFT reaches to either side of a frame's center."""
        return max([self.n_fft, *map(self.fft_samples, self.further_resolutions)]) // 2

    def window_samples(self, further: ResolutionConfig) -> int:
        """Return the window length of a further resolution."""
        return round(further.window_ms * self.sample_rate_hz / 1000)

    def fft_samples(self, further: ResolutionConfig) -> int:
        """Return the FFT length of a further resolution: the next even number from its window's on."""
        return -(-self.window_samples(further) // 2) * 2

    @property
    def hop_ms(self) -> float:
        """Time between frames, in ms."""
        return 1000 * self.hop_samples / self.sample_rate_hz


FRONT_END_32_KHZ = FrontEndConfig(sample_rate_hz=32000, n_fft=800, win_samples=800, hop_samples=320, max_hz=16000.0)
"""The front end of the successor's 32-kHz models."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How sound files are read, before everything else."""

    channel: str = field(default=MEAN, metadata={"metavar": "N|mean|each"})
    """Which channel of each file is taken: the mean of all, the number of one from 1 on, or each as a clip of its
    own."""
    expand: float = field(default=1.0, metadata={"metavar": "FACTOR"})
    """Play the sound this many times slower, which lowers ultrasound to where a model hears. Times in the results stay
    those of the file."""

    def __post_init__(self) -> None:
        plain = self.channel.isascii() and self.channel.isdecimal() and len(self.channel) <= 4
        check(
            self.channel in (MEAN, EACH) or (plain and int(self.channel) > 0),
            f"the channel is {self.channel!r}; give {MEAN}, the number of a channel from 1 on, or {EACH}",
        )
        check(
            1 <= self.expand <= _MOST_EXPANDED,
            f"expand is {self.expand:g}; give how many times slower to play, 1 to {_MOST_EXPANDED:g}",
        )

    @property
    def channel_number(self) -> int | None:
        """The number of the channel that is taken, from 1 on; None if there is not one."""
        return int(self.channel) if self.channel.isdecimal() else None

    def rate_hz(self, front_end: FrontEndConfig) -> int:
        """Return the rate that files are resampled to, in Hz.

        `expand` times as many samples a second, taken as samples at the front end's rate, last that much longer.
        """
        return round(front_end.sample_rate_hz * self.expand)

    def changed_facts(self) -> dict[str, object]:
        """Return the fields that differ from the defaults, which files of earlier versions do not have."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a command that has a model reads sound files; `embedding/reading.py` compares it with the model's own."""

    channel: str = field(default=MEAN, metadata={"metavar": "N|mean|each"})
    """Which channel of each file is taken: the mean of all, or the number of one, from 1 on. With `embed` and `predict`
    also each, which gives a row for each channel."""
    expand: float | None = field(default=None, metadata={"metavar": "FACTOR"})
    """Play the sound this many times slower, which lowers ultrasound to where the model hears. Times in the results
    stay those of the file. The default is what the model was trained with."""

    def __post_init__(self) -> None:
        self.of(Reading())

    def of(self, trained: Reading) -> Reading:
        """Return how files are read for a model that was trained as `trained` says."""
        return Reading(channel=self.channel, expand=trained.expand if self.expand is None else self.expand)

    def check_one_clip(self) -> None:
        """Raise ConfigError if a file gives several clips: a row of labels is about one."""
        check(
            self.channel != EACH,
            f"the channel is {EACH}, but a file has one row of labels; give {MEAN} or the number of a channel",
        )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of all log-mel values of a corpus, one number each. The defaults are AudioSet's."""

    mean: float = -7.1
    """Mean of ln(power + eps)."""
    std: float = 4.2
    """Standard deviation of ln(power + eps)."""
    further_means: tuple[float, ...] = field(default=(), metadata=LEFT_OUT_AT_DEFAULT)
    """The means of further resolutions; `mean` is that of the first."""
    further_stds: tuple[float, ...] = field(default=(), metadata=LEFT_OUT_AT_DEFAULT)
    """The standard deviations of further resolutions."""

    def __post_init__(self) -> None:
        check(
            len(self.further_means) == len(self.further_stds),
            f"statistics have {len(self.further_means)} further means and {len(self.further_stds)} further standard "
            "deviations; give one of each for each further resolution",
        )
        for mean, std in zip(self.further_means, self.further_stds, strict=True):
            Statistics(mean=mean, std=std)
        check(math.isfinite(self.mean), f"statistics.mean is {self.mean}; give a finite number")
        check(0 < self.std < math.inf, f"statistics.std is {self.std}; a standard deviation is above 0 and finite")

    @property
    def resolutions(self) -> int:
        """Number of resolutions that have a mean and a standard deviation here."""
        return 1 + len(self.further_means)
