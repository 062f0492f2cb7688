"""Small sounds, a small store and a small trained run, made once and shared; nothing may write into them."""

import io
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile

from melmask.config import (
    DataConfig,
    FrontEndConfig,
    HardwareConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
)
from melmask.config_text import with_overrides
from melmask.corpus.prepare import prepare
from melmask.corpus.store import Store
from melmask.embedding.encoder import load
from melmask.train.pretrain import pretrain

RATE_HZ = 16000
CLIP_SECONDS = {"a.wav": 0.3, "b.flac": 0.64, "c.wav": 1.0, "d.ogg": 1.5, "deep/e.wav": 2.5, "deep/f.wav": 4.0}


def _sound(seconds, seed):
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 200 * (seed + 1) * (1 + 0.3 * np.sin(2 * np.pi * 1.5 * time_s))
    tone = np.sin(2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ)
    return (0.3 * tone + 0.02 * rng.standard_normal(len(time_s))).astype(np.float32)


@pytest.fixture(scope="session")
def sound():
    """A gliding tone in noise: (seconds, seed) -> (samples,) float32 at 16 kHz."""
    return _sound


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory):
    """Six sounds of 0.3 to 4 s in three formats, and a text file that calls itself wav."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "deep").mkdir()
    for seed, (name, seconds) in enumerate(CLIP_SECONDS.items()):
        soundfile.write(folder / name, _sound(seconds, seed), RATE_HZ)
    (folder / "broken.wav").write_text("this is no sound\n" * 50)
    return folder


@pytest.fixture(scope="session")
def good_paths(sound_folder):
    """The six sounds that can be read, in the order of a scan."""
    return sorted(sound_folder / name for name in CLIP_SECONDS)


@pytest.fixture(scope="session")
def store_folder(sound_folder, tmp_path_factory):
    """The store of `sound_folder`, in one shard."""
    folder = tmp_path_factory.mktemp("prepared") / "store"
    prepare([sound_folder], folder, FrontEndConfig(), threads=1)
    return folder


@pytest.fixture(scope="session")
def store(store_folder):
    return Store(store_folder)


@pytest.fixture(scope="session")
def configure():
    """configure("optimizer.steps=3") -> a PretrainConfig of a network that takes milliseconds a step."""
    toy = PretrainConfig(
        model=ModelConfig(width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, frames=64),
        data=DataConfig(batch_size=8),
        optimizer=OptimizerConfig(learning_rate=3e-3, steps=6, warmup_steps=2),
        run=RunConfig(log_interval_steps=2, picture_interval_steps=0),
        hardware=HardwareConfig(device="cpu", precision="fp32", threads=1, readers=1),
    )
    return lambda *overrides: with_overrides(toy, overrides)


@pytest.fixture(scope="session")
def run_folder(store, configure, tmp_path_factory):
    """A run of 30 steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    pretrain(store, folder, configure("optimizer.steps=30"))
    return folder


@pytest.fixture(scope="session")
def encoder(run_folder):
    return load(run_folder, device="cpu")


@pytest.fixture
def as_file():
    """(waveform, rate, format, subtype) -> the bytes of a sound file."""

    def encoded(waveform, rate_hz=RATE_HZ, kind="WAV", subtype=None):
        buffer = io.BytesIO()
        soundfile.write(buffer, waveform, rate_hz, format=kind, subtype=subtype)
        return buffer.getvalue()

    return encoded


@pytest.fixture(scope="session")
def full_disk():
    """with full_disk(250_000): no file can grow beyond so many bytes, which is what a full disk is to a writer."""

    @contextmanager
    def limited(most_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
