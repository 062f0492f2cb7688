"""The sound and the log-mel of a point, cut to what is looked at or listened to."""

import io
import math
import wave
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import soundfile
import torch
from jaxtyping import Float

from melmask.audio.decode import decoded
from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import band_edges_hz, logmel_blocks
from melmask.audio.parts import Sound
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import AudioFileError, InputError
from melmask.explore.encoding import base64_of
from melmask.geometry import context_frames

LONGEST_SHOWN_S, LONGEST_HEARD_S = 60.0, 600.0
_KEPT_BYTES = 64 << 20
_HIGHEST_HEARD_HZ = 48_000
_DB_PER_NATURAL_LOG = 10 / math.log(10)
_RANGE_DB = 80.0
_LEVELS = 255

T = TypeVar("T")


class Kept(Generic[T]):
    """The last results of some work, up to a number of bytes; threads may ask at the same time."""

    def __init__(self, size_of: Callable[[T], int]):
        self._size_of, self._lock = size_of, Lock()
        self._results: OrderedDict[Any, T] = OrderedDict()

    def get(self, key: Any, work: Callable[[], T]) -> T:
        """Return the result for a key, of `work` if it is not kept."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = work()
        with self._lock:
            self._results[key] = result
            while len(self._results) > 1 and sum(map(self._size_of, self._results.values())) > _KEPT_BYTES:
                self._results.popitem(last=False)
        return result


class SoundReader:
    """Reads the sounds of a collection as its model hears them."""

    def __init__(self, model: AudioEncoder):
        self._model = model
        self._logmels: Kept[np.ndarray] = Kept(lambda logmel: logmel.nbytes)
        self._waves: Kept[bytes] = Kept(len)

    def logmel(self, sound: Sound, first_frame: int, frames: int) -> Float[np.ndarray, "bands frames"]:
        """Return frames of the log-mel of a sound, as the model sees them: fewer if it ends before.

        Raises:
            AudioFileError: the sound cannot be read.
            InputError: it ends before the first frame.
        """
        return self._logmels.get((sound, first_frame, frames), lambda: self._read(sound, first_frame, frames))

    def _read(self, sound: Sound, first_frame: int, frames: int) -> np.ndarray:
        model, hop_s = self._model, self._model.hop_ms / 1000
        # Some sound before and after is read too, and its frames are dropped.
        margin = context_frames(model.card.front_end)
        begin = max(0, first_frame - margin)
        end_s = sound.start_s + (first_frame + frames + margin) * hop_s
        end_s = end_s if sound.end_s is None else min(end_s, sound.end_s)
        start_s = sound.start_s + begin * hop_s
        if start_s >= end_s:
            raise InputError(f"the sound ends before frame {first_frame}; ask for an earlier one")
        blocks = read_audio_blocks(Sound(sound.path, start_s, end_s), model.sample_rate_hz, model.reading)
        logmel = torch.cat(list(logmel_blocks(blocks, model.front_end)), dim=1).cpu().numpy()
        cut = logmel[:, first_frame - begin : first_frame - begin + frames]
        if not cut.shape[1]:
            raise InputError(f"the sound ends before frame {first_frame}; ask for an earlier one")
        return cut

    def wav(self, sound: Sound, from_s: float = 0.0) -> bytes:
        """Return a sound, or ten minutes of it, as a WAV file: 16 bits, mono.

        It has the rate of the file. Where the model hears sound that is played slower, so does the listener.

        Raises:
            AudioFileError: the sound cannot be read.
            InputError: `from_s` is beyond its end.
        """
        return self._waves.get((sound, from_s), lambda: wav_of(*self.samples(sound, from_s)))

    def samples(
        self, sound: Sound, from_s: float = 0.0, length_s: float = LONGEST_HEARD_S
    ) -> tuple[Float[np.ndarray, " samples"], int]:
        """Return what `wav` holds, (samples,) float32, and its rate in Hz; at most `length_s` as it is played.

        Raises:
            AudioFileError: the sound cannot be read.
            InputError: `from_s` is beyond its end.
        """
        reading = self._model.reading
        end_s = sound.start_s + from_s + length_s / reading.expand
        end_s = end_s if sound.end_s is None else min(end_s, sound.end_s)
        start_s = sound.start_s + from_s
        if start_s >= end_s:
            raise InputError(f"the sound has no {from_s:g} s; ask for an earlier time")
        rate_hz, played_hz = self._model.sample_rate_hz, self._model.card.front_end.sample_rate_hz
        if reading.expand == 1:
            rate_hz = played_hz = min(_rate_of(sound.path) or rate_hz, _HIGHEST_HEARD_HZ)
        blocks = read_audio_blocks(Sound(sound.path, start_s, end_s), rate_hz, replace(reading, expand=1.0))
        return np.concatenate(list(blocks)), played_hz


def wav_of(samples: Float[np.ndarray, " samples"], rate_hz: int) -> bytes:
    """Return samples as a WAV file of 16 bits; what is beyond full scale is clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _rate_of(path: Path) -> int | None:
    """Return the sample rate of a file; None if it cannot be opened, which reading it then reports."""
    rates: list[int] = []

    def note(rate_hz: int, _channels: int) -> int:
        rates.append(rate_hz)
        return 1

    with suppress(soundfile.LibsndfileError, OSError, AudioFileError):
        if path.is_file():
            next(decoded(path, note), None)
    return rates[0] if rates else None


def decibels(logmel: np.ndarray) -> np.ndarray:
    """Return a log-mel in dB."""
    return np.asarray(logmel, np.float32) * np.float32(_DB_PER_NATURAL_LOG)


def range_db(*logmels: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest level that log-mels are shown with, in dB: at most 80 dB."""
    high = max(float(decibels(logmel).max()) for logmel in logmels)
    low = min(float(decibels(logmel).min()) for logmel in logmels)
    # A range of nothing, as of silence, could not be scaled.
    return min(max(low, high - _RANGE_DB), high - 1.0), high


def matrix(
    model: AudioEncoder, logmel: np.ndarray, first_frame: int, resolution: int, levels_db: tuple[float, float]
) -> dict[str, Any]:
    """Return one resolution of a log-mel (bands, frames) as the page reads it, `MATRIX` of the API."""
    config = model.card.front_end
    rows = logmel[resolution * config.mels : (resolution + 1) * config.mels]
    low_db, high_db = levels_db
    scaled = (decibels(rows) - low_db) * (_LEVELS / (high_db - low_db))
    pixels = np.clip(np.rint(scaled), 0, _LEVELS).astype(np.uint8)
    centers_hz = band_edges_hz(config, resolution)[1:-1] * model.reading.expand
    return {
        "bands": pixels.shape[0],
        "frames": pixels.shape[1],
        "hop_ms": model.hop_ms,
        "start_s": round(first_frame * model.hop_ms / 1000, 6),
        "low_db": round(low_db, 3),
        "high_db": round(high_db, 3),
        "frequencies_hz": np.round(centers_hz, 2).tolist(),
        "data": base64_of(pixels),
    }
