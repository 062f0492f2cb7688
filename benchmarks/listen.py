"""Measure how near the sound of a log-mel comes to it, beside librosa's inversion: `inspection/sound.py`.

    python benchmarks/listen.py SOUND... [--seconds 2]

Prints a table: the mean distance in dB of the log-mel of the sound from the one that was inverted, in each resolution
of the model in the box, down to 70 dB below the loudest value, and the seconds of processor time that it took. librosa
is measured if it is installed.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import melmask
from melmask.audio.files import read_audio
from melmask.audio.logmel import DB_PER_NATURAL_LOG, mel_filterbank, resolution_filterbank
from melmask.config import LOG_EPSILON
from melmask.embedding.encoder import AudioEncoder
from melmask.inspection import sound

RANGE_DB = 70.0


def distances_db(model: AudioEncoder, samples: np.ndarray, logmel: np.ndarray) -> list[float]:
    """Return the mean distance of the log-mel of `samples` from `logmel` in each resolution."""
    again = model.logmel(samples, model.card.front_end.sample_rate_hz)[0][:, : logmel.shape[1]] * DB_PER_NATURAL_LOG
    wanted = logmel[:, : again.shape[1]] * DB_PER_NATURAL_LOG
    pairs = zip(*(np.split(part, model.card.front_end.resolutions) for part in (again, wanted)), strict=True)
    floors = [(found, true, true.max() - RANGE_DB) for found, true in pairs]
    return [float(np.abs(np.maximum(f, low) - np.maximum(t, low)).mean()) for f, t, low in floors]


def of_some(model: AudioEncoder, logmel: np.ndarray, resolutions: list[int]) -> np.ndarray:
    """Invert these resolutions as melmask does it."""
    config, all_of = model.card.front_end, sound._resolutions(model.card.front_end)
    powers = np.split(np.exp(logmel), config.resolutions)
    parts = [(all_of[number], torch.from_numpy(powers[number])) for number in resolutions]
    start = np.random.default_rng(0).standard_normal((logmel.shape[1] - 1) * config.hop_samples).astype(np.float32)
    return sound._approached(torch.from_numpy(start), parts, config.hop_samples, sound._ROUNDS).numpy()


def by_librosa(model: AudioEncoder, logmel: np.ndarray, resolution: int, iterations: int = 32) -> np.ndarray:
    """Invert by non-negative least squares and fast Griffin-Lim, as `librosa.feature.inverse.mel_to_audio` does it."""
    import librosa

    config = model.card.front_end
    filters = resolution_filterbank(config, resolution) if resolution else mel_filterbank(config)
    power = np.maximum(np.exp(np.split(logmel, config.resolutions)[resolution]) - LOG_EPSILON, 0)
    spectrum = np.sqrt(librosa.util.nnls(filters, power))
    samples = (filters.shape[1] - 1) * 2
    length = (logmel.shape[1] - 1) * config.hop_samples
    return librosa.griffinlim(
        spectrum, n_iter=iterations, hop_length=config.hop_samples, n_fft=samples, random_state=0, length=length
    )


def main() -> None:
    """Measure all ways on all sounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = melmask.load(device="cpu")
    config = model.card.front_end
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "melmask, both windows": lambda logmel: of_some(model, logmel, [0, 1]),
        "melmask, window of 25 ms": lambda logmel: of_some(model, logmel, [0]),
        "melmask, window of 128 ms": lambda logmel: of_some(model, logmel, [1]),
    }
    try:
        import librosa
    except ImportError:
        pass
    else:
        # The first call compiles.
        librosa.griffinlim(np.ones((201, 4), np.float32), n_iter=1)
        ways["librosa, window of 25 ms"] = lambda logmel: by_librosa(model, logmel, 0)
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for path in options.sounds:
        samples = read_audio(path, config.sample_rate_hz)[: round(options.seconds * config.sample_rate_hz)]
        logmel = model.logmel(samples, config.sample_rate_hz)[0]
        for name, way in ways.items():
            start = time.process_time()
            made = way(logmel)
            found[name].append([*distances_db(model, made, logmel), time.process_time() - start])
    for name, rows in found.items():
        *distances, seconds = np.mean(rows, axis=0)
        cells = [f"{value:.2f} dB" for value in distances]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} s (most {max(row[-1] for row in rows):.0f}) |")


if __name__ == "__main__":
    main()
