"""Makes logmel.npz: librosa's mel filters and log-mels of synthesised sounds, to hold melmask's front end against.

Run once, in a virtual environment of its own (librosa is no dependency of melmask, not even of its tests):

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install librosa==0.11.0 numpy==2.4.6 scipy==1.17.1
    /tmp/reference/bin/python tests/reference/make_logmel_reference.py

The stored arrays were made with those versions, Python 3.11.7.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("logmel.npz")
LOG_EPSILON = 1.1920929e-07

SETTINGS = {
    "paper": {},
    "rate_32k": {"sample_rate_hz": 32000, "n_fft": 800, "win_samples": 800, "hop_samples": 320, "max_hz": 16000.0},
    "window_shorter_than_fft": {
        "sample_rate_hz": 44100,
        "n_fft": 1024,
        "win_samples": 800,
        "hop_samples": 441,
        "mels": 64,
        "min_hz": 0.0,
        "max_hz": 22050.0,
    },
    "narrow": {
        "sample_rate_hz": 8000,
        "n_fft": 256,
        "win_samples": 201,
        "hop_samples": 100,
        "mels": 40,
        "max_hz": 3800.0,
    },
}
"""What differs from melmask's defaults, the paper's; the names are FrontEndConfig's."""

DEFAULTS = {
    "sample_rate_hz": 16000,
    "n_fft": 400,
    "win_samples": 400,
    "hop_samples": 160,
    "mels": 80,
    "min_hz": 50.0,
    "max_hz": 8000.0,
}

SHORT_SAMPLES = (2, 100, 200, 201, 399, 400, 401, 559, 560)
"""Clips about as long as a window of the paper's settings, and shorter than the mirrored edge."""


def sound(samples: int, sample_rate_hz: int) -> np.ndarray:
    """(samples,) float32: a chirp, a fading tone and gated noise over a quiet floor; every band gets something."""
    t = np.arange(samples) / sample_rate_hz
    noise = np.random.Generator(np.random.PCG64(5)).random(samples) * 2 - 1
    sweep = 0.4 * np.sin(2 * np.pi * (100 * t + 0.22 * sample_rate_hz * t**2))
    tone = 0.2 * np.exp(-3 * t) * np.sin(2 * np.pi * 1234.5 * t)
    return (sweep + tone + (0.01 + 0.3 * (np.sin(2 * np.pi * 4 * t) > 0.6)) * noise).astype(np.float32)


def main() -> None:
    """Write the file."""
    import librosa

    def filters(s):
        edges = {"fmin": s["min_hz"], "fmax": s["max_hz"]}
        return librosa.filters.mel(sr=s["sample_rate_hz"], n_fft=s["n_fft"], n_mels=s["mels"], **edges)

    def logmel(wave, s):
        power = librosa.feature.melspectrogram(
            y=wave,
            sr=s["sample_rate_hz"],
            n_fft=s["n_fft"],
            win_length=s["win_samples"],
            hop_length=s["hop_samples"],
            n_mels=s["mels"],
            fmin=s["min_hz"],
            fmax=s["max_hz"],
            window="hann",
            center=True,
            pad_mode="reflect",
            power=2.0,
        )
        return np.log(power + LOG_EPSILON)

    arrays = {}
    for name, changes in SETTINGS.items():
        settings = DEFAULTS | changes
        arrays[f"{name}_filters"] = filters(settings)
        rate = settings["sample_rate_hz"]
        arrays[f"{name}_logmel"] = logmel(sound(int(0.613 * rate), rate), settings)
    for samples in SHORT_SAMPLES:
        arrays[f"short_{samples}"] = logmel(sound(samples, 16000), DEFAULTS)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
