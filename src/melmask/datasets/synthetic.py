"""Synthesize the labeled sounds of `melmask demo`, whose classes averages over time cannot tell apart.

The sixteen classes come in eight pairs. The two classes of a pair have the same distribution of pitch and timbre. They
differ only in the direction of time (one is the other played backwards) or in the rate at which something happens:

    sweep_rising, sweep_falling         chirps that go up, chirps that go down
    arpeggio_rising, arpeggio_falling   three to five steps up, or down
    decay, swell                        notes that start sharply and die away, notes that grow and stop
    clicks_speeding, clicks_slowing     bursts that follow each other faster and faster, or slower and slower
    vibrato_slow, vibrato_fast          a pitch that swings about a center
    trill_slow, trill_fast              a pitch that jumps between two notes
    tremolo_slow, tremolo_fast          a loudness that swings
    rhythm_even, rhythm_gallop          three bursts a bar, evenly spaced, or hurried and followed by a rest

Pitch, timbre, tempo, level, background noise, onset and duration are random for each clip, and their ranges overlap
between pairs. So the mean and the spread of a log-mel over time hint at the pair, but say next to nothing about which
of its two classes it is. Only the structure over 0.1 to 2 s tells them apart.

With the same release of NumPy, the same arguments give the same samples. On another machine the last bit of a sample
may differ. If a release of NumPy changes how it draws random numbers, all samples differ.
"""

import csv
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float, Float32

from melmask.errors import ConfigError
from melmask.synth.draw import Draw
from melmask.system.files import output_error, write_csv
from melmask.system.reading import SMALL_FILE_BYTES, read_text

CLIP_S = 3.0
SAMPLE_RATE_HZ = 16000

Signal = Float[np.ndarray, " samples"]
Times = Float[np.ndarray, " onsets"]

_TABLE_POINTS = 2048
_MAX_HARMONICS = 16
_FADE_S = 0.01
_NOISE_EXPONENTS = (0.0, 1.0, 2.0)
"""The power of the noise falls as 1 / f ** exponent: white, pink, brown."""
_LOWEST_NOISE_HZ = 20.0
_FFT_MULTIPLE = 1024
"""Transforms have a multiple of this length, because lengths with large prime factors are several times slower."""
_SPLIT_CYCLE = "tetvttettetvttettevt"
"""The splits of a class's clips in turn: of 20, 12 train, 3 validate and 5 test. The first four fill all splits."""
_SPLIT_NAMES = {"t": "train", "v": "valid", "e": "test"}
_MIN_CLIPS_PER_CLASS = 4
_MAX_CLIPS_PER_CLASS = 100_000
_PCM_STEP = 2.0**-15


Renderer = Callable[[Draw], Signal]


@dataclass(frozen=True)
class _Voice:
    """The ranges of pitch and timbre of a pair of classes; those of two pairs overlap."""

    pitch_hz: tuple[float, float]
    rolloff: tuple[float, float]
    """Harmonic n has the amplitude n ** -rolloff."""
    noise_share: tuple[float, float] = (0.0, 0.0)


def _draw_waveform(voice: _Voice, draw: Draw, harmonics: int) -> Signal:
    """Draw one period of a random timbre, with its first point repeated at the end."""
    numbers = np.arange(1, harmonics + 1)
    weights = numbers ** -draw.rng.uniform(*voice.rolloff)
    # Weak even harmonics sound hollow, like a clarinet.
    weights[1::2] *= draw.rng.uniform(0.1, 1.0)
    angles = 2 * np.pi * np.outer(np.arange(_TABLE_POINTS + 1) / _TABLE_POINTS, numbers)
    return np.sin(angles + draw.rng.uniform(0, 2 * np.pi, harmonics)) @ weights


def _tone(voice: _Voice, draw: Draw, pitch_hz: Signal) -> Signal:
    """Make a harmonic tone of root mean square 1 that follows `pitch_hz` and stays below half the sample rate."""
    # A harmonic above half the sample rate would be aliased to a wrong pitch, so a high tone has fewer harmonics.
    harmonics = int(np.clip(0.45 * draw.rate_hz / pitch_hz.max(), 1, _MAX_HARMONICS))
    waveform = _draw_waveform(voice, draw, harmonics)
    waveform /= np.sqrt(np.mean(waveform[:-1] ** 2))
    position = np.cumsum(pitch_hz) * (_TABLE_POINTS / draw.rate_hz)
    # Read the waveform at fractional positions, by linear interpolation between its points.
    whole = position.astype(np.int64)
    before = whole % _TABLE_POINTS
    return waveform[before] + (position - whole) * np.diff(waveform)[before]


@lru_cache(maxsize=64)
def _noise_shape(samples: int, sample_rate_hz: int, exponent: float) -> Float[np.ndarray, " frequencies"]:
    """Return the amplitude over frequency of noise whose power falls as 1 / f ** exponent."""
    frequency_hz = np.fft.rfftfreq(samples, 1 / sample_rate_hz)
    return np.maximum(frequency_hz, _LOWEST_NOISE_HZ) ** (-exponent / 2)


def _colored_noise(draw: Draw) -> Signal:
    """Draw white, pink or brown noise of root mean square 1."""
    # This rounds up to a multiple; the surplus is cut off below.
    block_samples = -(-draw.samples // _FFT_MULTIPLE) * _FFT_MULTIPLE
    shape = _noise_shape(block_samples, draw.rate_hz, float(draw.rng.choice(_NOISE_EXPONENTS)))
    spectrum = draw.rng.standard_normal((2, len(shape)))
    noise = np.fft.irfft(shape * (spectrum[0] + 1j * spectrum[1]), block_samples)[: draw.samples]
    return noise / np.sqrt(np.mean(noise**2))


def _carrier(voice: _Voice, draw: Draw) -> Signal:
    """Draw a steady sound between a pure tone and pure noise."""
    tone = _tone(voice, draw, np.full(draw.samples, draw.log_uniform(*voice.pitch_hz)))
    noise_share = draw.rng.uniform(*voice.noise_share)
    return (1 - noise_share) * tone + noise_share * _colored_noise(draw)


def _cycles(draw: Draw, rate_hz: float) -> Signal:
    """Count the cycles at each sample from a random start, at a rate that drifts by up to 10 % about `rate_hz`."""
    time_s = np.arange(draw.samples) / draw.rate_hz
    drift_hz = draw.rng.uniform(0.2, 0.6)
    drift = draw.rng.uniform(0, 0.1) * np.sin(2 * np.pi * (drift_hz * time_s + draw.rng.uniform()))
    return draw.rng.uniform() + np.cumsum(1 + drift) * (rate_hz / draw.rate_hz)


def _melody(voice: _Voice, draw: Draw, octaves: Signal) -> Signal:
    """Make a tone whose pitch moves by this many octaves from a pitch of the voice."""
    return _tone(voice, draw, draw.log_uniform(*voice.pitch_hz) * 2**octaves)


def _rounded_gate(position: Signal) -> Signal:
    """Return 1 for positions from 0 to 1 and 0 outside, with ramps that are a tenth long."""
    # The gate is symmetric, so only the pitch tells a sound from its reverse.
    return np.clip(10 * np.minimum(position, 1 - position), 0, 1)


def _sweep(voice: _Voice, draw: Draw) -> Signal:
    cycles = _cycles(draw, draw.log_uniform(1.4, 3.0))
    # Each cycle is a chirp and a pause.
    position = (cycles % 1) / draw.rng.uniform(0.6, 0.85)
    octaves = draw.rng.uniform(0.7, 1.8) * (np.clip(position, 0, 1) - 0.5)
    tone = _melody(voice, draw, octaves)
    return tone * _rounded_gate(position)


def _arpeggio(voice: _Voice, draw: Draw) -> Signal:
    steps = int(draw.rng.integers(3, 6))
    notes = _cycles(draw, draw.log_uniform(5.0, 9.0))
    step = np.floor(notes) % steps - (steps - 1) / 2
    semitones = step * draw.rng.uniform(2.5, 5.0)
    tone = _melody(voice, draw, semitones / 12)
    return tone * _rounded_gate(notes % 1)


def _decay(voice: _Voice, draw: Draw) -> Signal:
    position = _cycles(draw, draw.log_uniform(2.0, 4.5)) % 1
    envelope = np.minimum(position / 0.04, 1) * np.exp(-draw.rng.uniform(4.0, 8.0) * position)
    return _carrier(voice, draw) * envelope


def _vibrato(voice: _Voice, draw: Draw, rate_range_hz: tuple[float, float]) -> Signal:
    cycles = _cycles(draw, draw.log_uniform(*rate_range_hz))
    semitones = draw.rng.uniform(1.5, 3.5) * np.sin(2 * np.pi * cycles)
    return _melody(voice, draw, semitones / 12)


def _trill(voice: _Voice, draw: Draw, rate_range_hz: tuple[float, float]) -> Signal:
    cycles = _cycles(draw, draw.log_uniform(*rate_range_hz))
    semitones = draw.rng.uniform(3.0, 9.0) * (cycles % 1 < 0.5)
    return _melody(voice, draw, semitones / 12)


def _tremolo(voice: _Voice, draw: Draw, rate_range_hz: tuple[float, float]) -> Signal:
    cycles = _cycles(draw, draw.log_uniform(*rate_range_hz))
    depth = draw.rng.uniform(0.6, 0.95)
    return _carrier(voice, draw) * (1 + depth * np.sin(2 * np.pi * cycles))


def _bursts(voice: _Voice, draw: Draw, onsets_s: Times) -> Signal:
    """Make bursts of 15 to 40 ms at the given times, all cut from one carrier."""
    window = np.hanning(round(draw.rng.uniform(0.015, 0.04) * draw.rate_hz))
    envelope = np.zeros(draw.samples)
    for start in np.round(onsets_s * draw.rate_hz).astype(int):
        if 0 <= start <= draw.samples - len(window):
            envelope[start : start + len(window)] = window
    return _carrier(voice, draw) * envelope


def _repeat_onsets(draw: Draw, bar_s: float, onsets: Float[np.ndarray, " n"]) -> Times:
    """Return the times in s of `onsets` (fractions of a bar), bar after bar from a random start."""
    bars = np.arange(np.ceil(draw.samples / (draw.rate_hz * bar_s)) + 1) - draw.rng.uniform()
    times_s = (bars[:, None] + onsets).ravel() * bar_s
    # Up to 4 ms of unevenness, as if a person played.
    return times_s + draw.rng.uniform(-0.004, 0.004, len(times_s))


def _speeding_clicks(voice: _Voice, draw: Draw) -> Signal:
    count = int(draw.rng.integers(8, 14))
    # The exponent is below 1, so the gaps between onsets shrink toward the end of a bar.
    onsets = (np.arange(count) / count) ** (1 / draw.rng.uniform(1.6, 2.2))
    onsets_s = _repeat_onsets(draw, draw.rng.uniform(1.0, 1.6), onsets)
    return _bursts(voice, draw, onsets_s)


def _rhythm(voice: _Voice, draw: Draw, spacing_bars: float) -> Signal:
    onsets_s = _repeat_onsets(draw, draw.log_uniform(0.45, 0.75), spacing_bars * np.arange(3))
    return _bursts(voice, draw, onsets_s)


def _backwards(renderer: Renderer, draw: Draw) -> Signal:
    return renderer(draw)[::-1]


_SWEEP = partial(_sweep, _Voice((250.0, 1000.0), (1.0, 2.5)))
_ARPEGGIO = partial(_arpeggio, _Voice((200.0, 700.0), (0.3, 1.3)))
_DECAY = partial(_decay, _Voice((150.0, 600.0), (0.8, 2.0), (0.0, 0.5)))
_CLICKS = partial(_speeding_clicks, _Voice((500.0, 2000.0), (0.5, 2.0), (0.4, 1.0)))
_VIBRATO = partial(_vibrato, _Voice((250.0, 900.0), (0.4, 1.2)))
_TRILL = partial(_trill, _Voice((500.0, 1600.0), (1.0, 2.5)))
_TREMOLO = partial(_tremolo, _Voice((120.0, 400.0), (0.3, 1.5), (0.2, 0.9)))
_RHYTHM = partial(_rhythm, _Voice((200.0, 1000.0), (0.3, 1.5), (0.0, 0.6)))

_RENDERERS: dict[str, Renderer] = {
    "sweep_rising": _SWEEP,
    "sweep_falling": partial(_backwards, _SWEEP),
    "arpeggio_rising": _ARPEGGIO,
    "arpeggio_falling": partial(_backwards, _ARPEGGIO),
    "decay": _DECAY,
    "swell": partial(_backwards, _DECAY),
    "clicks_speeding": _CLICKS,
    "clicks_slowing": partial(_backwards, _CLICKS),
    "vibrato_slow": partial(_VIBRATO, rate_range_hz=(2.0, 3.5)),
    "vibrato_fast": partial(_VIBRATO, rate_range_hz=(6.0, 9.5)),
    "trill_slow": partial(_TRILL, rate_range_hz=(1.5, 3.0)),
    "trill_fast": partial(_TRILL, rate_range_hz=(5.5, 9.0)),
    "tremolo_slow": partial(_TREMOLO, rate_range_hz=(2.5, 4.5)),
    "tremolo_fast": partial(_TREMOLO, rate_range_hz=(8.0, 13.0)),
    "rhythm_even": partial(_RHYTHM, spacing_bars=1 / 3),
    "rhythm_gallop": partial(_RHYTHM, spacing_bars=1 / 6),
}

CLASSES: tuple[str, ...] = tuple(_RENDERERS)
"""The labels; the two classes of a pair stand next to each other."""


def _foreground(label: str, rng: np.random.Generator, sample_rate_hz: int) -> Signal:
    """Make a sound at a random onset in a silent clip; its root mean square is 1 while it lasts."""
    samples = round(CLIP_S * sample_rate_hz)
    active = round(rng.uniform(0.65, 0.95) * samples)
    onset = int(rng.integers(samples - active + 1))
    sound = _RENDERERS[label](Draw(rng, active, sample_rate_hz))
    # Both ends are faded, so that no sound starts or stops with a click.
    from_edge_s = np.minimum(np.arange(active), np.arange(active)[::-1]) / sample_rate_hz
    sound = sound * np.minimum(from_edge_s / _FADE_S, 1)
    clip = np.zeros(samples)
    clip[onset : onset + active] = sound / np.sqrt(np.mean(sound**2))
    return clip


def synthesize(label: str, seed: int, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Float32[np.ndarray, " samples"]:
    """Synthesize one clip of a class; the same arguments give the same clip.

    Args:
        label: one of `CLASSES`.
        seed: chooses the clip among those of the class, 0 or more.
        sample_rate_hz: samples per second, 8000 or more.

    Returns:
        `CLIP_S` seconds of sound, shape (samples,), within [-1, 1]. The peak is 0 to 30 dB below full scale, and the
        background noise is 5 to 30 dB below the sound.

    Raises:
        ConfigError: there is no such class, or the seed is negative.
    """
    if label not in _RENDERERS:
        raise ConfigError(f"no class of sounds is called {label!r}; use one of {', '.join(CLASSES)}")
    if seed < 0:
        raise ConfigError(f"the seed of the sounds is {seed}; give 0 or more")
    # The label is part of the seed, so that classes do not share random numbers; Python's hash() varies between runs.
    rng = np.random.default_rng((seed, zlib.crc32(label.encode())))
    sound = _foreground(label, rng, sample_rate_hz)
    noise = _colored_noise(Draw(rng, len(sound), sample_rate_hz))
    clip = sound + noise * 10 ** (-rng.uniform(5.0, 30.0) / 20)
    peak = 10 ** (rng.uniform(-30.0, 0.0) / 20)
    return (clip * (peak / np.abs(clip).max())).astype(np.float32).clip(-1, 1)


def _table_rows(clips_per_class: int) -> list[tuple[str, str, str]]:
    """Return (path, label, split) of each clip; the split of a clip does not depend on how many clips there are."""
    return [
        (f"{label}/{label}_{n:03d}.wav", label, _SPLIT_NAMES[_SPLIT_CYCLE[n % len(_SPLIT_CYCLE)]])
        for label in CLASSES
        for n in range(clips_per_class)
    ]


def _clip_seed(seed: int, n: int) -> int:
    """Return the seed of the n-th clip of a class, which no other set has."""
    return seed * _MAX_CLIPS_PER_CLASS + n


def _holds_set(folder: Path, rows: list[tuple[str, str, str]], seed: int) -> bool:
    """Return whether the folder already holds all these clips."""
    try:
        text = read_text(folder / "labels.csv", SMALL_FILE_BYTES)
        listed = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""))][1:]
        if listed != rows or not all((folder / path).is_file() for path, _, _ in rows):
            return False
        # Comparing one clip of each class is enough to tell this seed's clips from another seed's.
        for label in CLASSES:
            found, _ = soundfile.read(folder / label / f"{label}_000.wav", dtype="float32")
            wanted = synthesize(label, _clip_seed(seed, 0))
            if found.shape != wanted.shape or np.abs(found - wanted).max() > 2 * _PCM_STEP:
                return False
    except (OSError, ValueError, csv.Error, soundfile.LibsndfileError):
        return False
    return True


def write_sound_set(folder: Path, clips_per_class: int, seed: int = 0) -> Path:
    """Write a labeled set of clips, about 60 % for training, 15 % for validation and 25 % for testing.

    The clips are at `<folder>/<label>/<label>_<nnn>.wav` (16-bit PCM, 16 kHz, `CLIP_S` seconds). The table
    `<folder>/labels.csv` has the columns path (relative to the folder), label and split (train, valid or test). It is
    written last, so a killed run leaves no table. If the folder already holds the whole set, nothing changes.
    Otherwise the set is written again.

    Args:
        folder: where to write; it is created if it does not exist.
        clips_per_class: 4 to 100000; with 4, each split already has a clip of each class.
        seed: chooses the set, 0 or more; sets of two seeds share no clip.

    Returns:
        The path of `labels.csv`.

    Raises:
        ConfigError: `clips_per_class` is out of range, or the seed is negative.
        OutputError: the folder cannot be written to.
    """
    if not _MIN_CLIPS_PER_CLASS <= clips_per_class <= _MAX_CLIPS_PER_CLASS:
        raise ConfigError(
            f"clips_per_class is {clips_per_class}; give a number from {_MIN_CLIPS_PER_CLASS} to {_MAX_CLIPS_PER_CLASS}"
        )
    rows = _table_rows(clips_per_class)
    table = folder / "labels.csv"
    if _holds_set(folder, rows, seed):
        return table
    try:
        # A table of another set must not outlive that set's sounds.
        table.unlink(missing_ok=True)
        for label in CLASSES:
            (folder / label).mkdir(parents=True, exist_ok=True)
        for index, (path, label, _) in enumerate(rows):
            clip = synthesize(label, _clip_seed(seed, index % clips_per_class))
            soundfile.write(folder / path, clip, SAMPLE_RATE_HZ, subtype="PCM_16")
        write_csv(table, [("path", "label", "split"), *rows])
    except (OSError, soundfile.LibsndfileError) as error:
        raise output_error(folder, error if isinstance(error, OSError) else OSError(str(error))) from error
    return table
