"""Bands of frequency: one number, or a name, sets the whole front end."""

from dataclasses import replace

from melmask.audio.logmel import empty_filters
from melmask.config import LONGEST_WINDOW_MS, FrontEndConfig, ResolutionConfig
from melmask.errors import ConfigError

BANDS = {"speech": 16_000, "wide": 32_000, "bats": 256_000, "hydrophone": 2_000}
"""Sample rates in Hz by name.

speech      Voices; the front end of MSM-MAE, which is the default.
wide        Birds, insects, frogs, music and scenes, up to 16 kHz; the front end of the successor's 32-kHz models.
bats        Echolocation of bats, at 10 to 128 kHz: the rate that BatDetect2 resamples to (Mac Aodha et al. 2022), with
            its lowest frequency. Mice and rats call in this band, too.
hydrophone  Blue, fin, sei and right whales, at 12.5 Hz to 1 kHz: the rate of the buoys that listen for right whales
            (Spaulding et al. 2009). Toothed whales need more: 24000 for orcas, 96000 for the whistles of dolphins.
"""
_LOWEST_HZ, _HIGHEST_HZ = 100, 2_000_000
_LONG_WINDOWS_HZ = (8_000, 48_000)
"""From one to the other the windows last 25 ms, as usual for speech, music and birds. Calls of large animals, below it,
are longer, and those of bats, above it, are shorter: there the windows keep their number of samples."""
_LOW_SAMPLES, _HIGH_SAMPLES = (200, 80), (400, 160)
"""Samples of a window and of a hop below and above these rates: those of 25 and 10 ms at 8 and 16 kHz."""
_LOW_SECOND_SAMPLES, _HIGH_SECOND_SAMPLES = 2048, 4096
_LOWEST_BAT_HZ = 10_000.0
_LONGEST_FFT = 1 << 15


def front_end_of(band: str) -> FrontEndConfig:
    """Return the front end for a band: a name in `BANDS`, or a sample rate in Hz.

    All have 80 bands up to half the rate, so every recipe fits. FFTs are lengthened until no band is empty.

    Raises:
        ConfigError: the band is neither a known name nor a rate from 100 Hz to 2 MHz.
    """
    plain = band.isascii() and band.isdecimal() and len(band) < 10
    if band not in BANDS and not (plain and _LOWEST_HZ <= int(band) <= _HIGHEST_HZ):
        raise ConfigError(
            f"--band is {band!r}; give a sample rate from {_LOWEST_HZ} to {_HIGHEST_HZ} Hz, or {', '.join(BANDS)}"
        )
    rate_hz = BANDS.get(band) or int(band)
    first, last = _LONG_WINDOWS_HZ
    if rate_hz < first:
        (window, hop), lowest_hz = _LOW_SAMPLES, rate_hz / 160
    elif rate_hz <= last:
        window, hop, lowest_hz = rate_hz // 40, rate_hz // 100, FrontEndConfig.min_hz
    else:
        (window, hop), lowest_hz = _HIGH_SAMPLES, min(rate_hz / 25.6, _LOWEST_BAT_HZ)
    return with_long_enough_fft(
        FrontEndConfig(
            sample_rate_hz=rate_hz,
            n_fft=window + window % 2,
            win_samples=window,
            hop_samples=hop,
            min_hz=lowest_hz,
            max_hz=rate_hz / 2,
        )
    )


def with_second_resolution(front_end: FrontEndConfig) -> FrontEndConfig:
    """Return the front end with a second spectrogram, whose window resolves pitch.

    The window lasts 256 ms. Below 8 kHz and above 48 kHz it has 2048 and 4096 samples instead, as 256 ms have at 8 and
    at 16 kHz: there the first window does not last 25 ms either.
    """
    rate_hz = front_end.sample_rate_hz
    first, last = _LONG_WINDOWS_HZ
    usual = ResolutionConfig()
    if not first <= rate_hz <= last:
        samples = _LOW_SECOND_SAMPLES if rate_hz < first else _HIGH_SECOND_SAMPLES
        usual = replace(usual, window_ms=min(samples * 1000 / rate_hz, float(LONGEST_WINDOW_MS)))
    return replace(front_end, further_resolutions=(usual,))


def with_long_enough_fft(front_end: FrontEndConfig) -> FrontEndConfig:
    """Return the front end with its FFT doubled, by zeros around the window, until every band holds a frequency of it.

    The window stays as long as it is. Bands that are too narrow for any sensible FFT stay empty.
    """
    while empty_filters(front_end) and front_end.n_fft < _LONGEST_FFT:
        front_end = replace(front_end, n_fft=2 * front_end.n_fft)
    return front_end


def check_filters(front_end: FrontEndConfig) -> None:
    """Raise ConfigError if a band holds no frequency of the FFT, so that it is the same number for every sound."""
    empty = empty_filters(front_end)
    if empty:
        longer = with_long_enough_fft(front_end)
        way_out = "fewer mels or a wider range" if empty_filters(longer) else f"n_fft={longer.n_fft} or fewer mels"
        raise ConfigError(
            f"{empty} of the {front_end.mels} mel bands hold no frequency of an FFT of {front_end.n_fft} samples at "
            f"{front_end.sample_rate_hz} Hz; give --band {front_end.sample_rate_hz} alone, which sets all, or {way_out}"
        )
