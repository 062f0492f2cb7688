"""What synthetic sound is like: a picture of 24 draws, quantiles beside those of real sound, and its speed on one core.

python benchmarks/synthetic_sound.py --picture drawn.png --compare FOLDER
"""

import argparse
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from melmask.audio.files import find_audio, read_audio
from melmask.audio.logmel import LogMelSpectrogram
from melmask.config import FrontEndConfig
from melmask.corpus.synthetic import SyntheticCrops
from melmask.synth.scenes import draw_sound

FRONT_END, FRAMES, SOUNDS = FrontEndConfig(), 208, 1000
SAMPLES = (FRAMES - 1) * FRONT_END.hop_samples + 2 * FRONT_END.reach_samples
QUANTILES = (1, 10, 25, 50, 75, 90, 99)


def drawn(number: int) -> np.ndarray:
    """Return a synthetic sound of a crop's length."""
    return draw_sound(FRONT_END, FRAMES, (7, 0, number))


def facts(sound: np.ndarray, logmel: LogMelSpectrogram) -> dict[str, float]:
    """Measure a sound (samples,): its level, how it changes, and where in frequency its power is."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 512)[::160] * np.hanning(512).astype(np.float32)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean(0) + 1e-12
    blocks = np.square(sound[: len(sound) // 160 * 160]).reshape(-1, 160).mean(1)
    level = np.sqrt(np.square(sound).mean()) + 1e-7
    values = logmel(torch.from_numpy(sound)[None])[0].numpy()
    return {
        "level, dB": 20 * np.log10(level),
        "crest factor, dB": 20 * np.log10((np.abs(sound).max() + 1e-7) / level),
        "level spread of 10 ms, dB": (10 * np.log10(blocks + 1e-10)).std(),
        "spectral centroid, Hz": (power * np.fft.rfftfreq(512, 1 / FRONT_END.sample_rate_hz)).sum() / power.sum(),
        "spectral flatness, dB": 10 * np.log10(np.exp(np.log(power).mean()) / power.mean()),
        "log-mel mean": values.mean(),
        "log-mel deviation": values.std(),
        "change from frame to frame": np.abs(np.diff(values, axis=1)).mean(),
    }


def real_sounds(folder: Path) -> list[np.ndarray]:
    """Return as many crops of the folder's files, each from a random place; a shorter file is taken as it is."""
    rng, files = np.random.default_rng(0), find_audio([folder])
    sounds = []
    for number in rng.integers(len(files), size=SOUNDS):
        sound = read_audio(files[number], FRONT_END.sample_rate_hz)
        first = int(rng.integers(max(1, len(sound) - SAMPLES)))
        if len(sound) > 1000:
            sounds.append(sound[first : first + SAMPLES])
    return sounds


def draw_picture(path: Path, logmel: LogMelSpectrogram) -> None:
    """Write the log-mels of the first 24 draws."""
    figure, axes = plt.subplots(4, 6, figsize=(15, 7.5))
    for number, axis in enumerate(axes.flat):
        values = logmel.of_padded(torch.from_numpy(drawn(number))[None])[0].numpy()
        axis.imshow(values, origin="lower", aspect="auto", vmin=-16, vmax=2)
        axis.set_axis_off()
    figure.tight_layout(pad=0.5)
    figure.savefig(path, dpi=64)


@torch.inference_mode()
def main() -> None:
    """Draw, compare and measure, as the options say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, help="where to write the picture")
    parser.add_argument("--compare", type=Path, help="a folder of real sound")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logmel = LogMelSpectrogram(FRONT_END)
    if options.picture:
        draw_picture(options.picture, logmel)
    sets = {"synthetic": [drawn(number) for number in range(SOUNDS)]}
    if options.compare:
        sets["real"] = real_sounds(options.compare)
    for name, sounds in sets.items():
        rows = [facts(sound, logmel) for sound in sounds]
        print(f"{len(rows)} {name} sounds; quantiles {', '.join(map(str, QUANTILES))} %")
        for key in rows[0]:
            print(f"  {key:28}" + "".join(f"{q:9.2f}" for q in np.percentile([row[key] for row in rows], QUANTILES)))
    crops, out = SyntheticCrops(FRONT_END, FRAMES, 0), np.empty((FRAMES, FRONT_END.bands), dtype="<f2")
    best_s = np.inf
    for _ in range(5):
        start_s = time.process_time()
        for number in range(100):
            crops.draw_into(out, number)
        best_s = min(best_s, time.process_time() - start_s)
    print(f"{100 / best_s:.0f} crops of {FRAMES} frames a second of one core")


if __name__ == "__main__":
    main()
