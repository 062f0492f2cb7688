"""Put sounds into a page: what is heard, its spectrogram, and piano rolls of its events."""

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import DB_PER_NATURAL_LOG, LogMelSpectrogram
from melmask.config import LOG_EPSILON, FrontEndConfig
from melmask.figures.spectrogram import band_positions
from melmask.pages.charts import Axis, Frame, Tick
from melmask.pages.images import data_uri, png_data_uri

LONGEST_S = 10.0
"""No sound in a page is longer."""
FRONT_END = FrontEndConfig()
"""Sounds are heard and drawn as the 16 kHz models hear them."""
# Much larger pages open slowly and are too large to mail.
_MAX_BYTES = 12_000_000
_MAX_COLUMNS = 400
_RANGE_DB = 70.0
_TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)
_FRAME = Frame(320, 130, left=34, right=320, top=0, bottom=110)
# Nine colors of matplotlib's magma at equal distances; matplotlib itself is an optional library.
_MAGMA = np.frombuffer(
    bytes.fromhex("000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"), np.uint8
).reshape(-1, 3)
# Few colors compress well, and the eye cannot tell more of them apart at this size.
_LEVELS = 32


class SoundBudget:
    """Counts the sound that a page may still hold, and shares it evenly among the tasks that are left."""

    def __init__(self) -> None:
        self.most = self._left = _MAX_BYTES
        self._limit = 0
        self.refused = 0
        """How many sounds did not fit."""

    def share(self, tasks: int) -> "SoundBudget":
        """Let the next task use its share, where `tasks` are left; the later ones get what it does not use."""
        self._limit = self._left // max(1, tasks)
        return self

    def wav(self, samples: Float[np.ndarray, " samples"]) -> str:
        """Return samples as a wav data URI, or an empty text if they do not fit."""
        # A data URI is a third longer than its wav, and the page holds the URI.
        uri = wav_data_uri(samples)
        if len(uri) > self._limit:
            self.refused += 1
            return ""
        self._limit -= len(uri)
        self._left -= len(uri)
        return uri


class Picture(NamedTuple):
    """A spectrogram as a data URI, and its (share of the height from below, text) frequency ticks in Hz."""

    uri: str
    ticks: list[tuple[float, str]]


def read_part(path: Path, start_s: float = 0.0) -> Float[np.ndarray, " samples"]:
    """Read at most ten seconds of a file from `start_s` on, mono at 16 kHz, and decode no more than that.

    Raises:
        AudioFileError: it is missing or cannot be read.
    """
    rate = FRONT_END.sample_rate_hz
    first, last = round(start_s * rate), round((start_s + LONGEST_S) * rate)
    # An hour of sound would not fit in memory, so blocks are read only as far as needed.
    blocks, samples = [np.zeros(0, np.float32)], 0
    for block in read_audio_blocks(path, rate):
        blocks.append(block)
        samples += len(block)
        if samples >= last:
            break
    return np.concatenate(blocks)[first:last]


def wav_data_uri(samples: Float[np.ndarray, " samples"]) -> str:
    """Return samples as 16-bit wav at 16 kHz; values outside [-1, 1] are clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(FRONT_END.sample_rate_hz)
        file.writeframes(np.round(32767 * np.clip(samples, -1, 1)).astype("<i2").tobytes())
    return data_uri("audio/wav", buffer.getvalue())


def spectrogram_picture(samples: Float[np.ndarray, " samples"]) -> Picture:
    """Draw the log-mel, low frequencies at the bottom, black 70 dB below its loudest point."""
    with torch.inference_mode():
        logmel = LogMelSpectrogram(FRONT_END)(torch.from_numpy(samples)[None])[0].numpy()
    decibels = DB_PER_NATURAL_LOG * _narrowed(logmel)
    # Brightness is relative to the loudest point; without a floor, digital silence would be as bright as that.
    loudest = max(float(decibels.max()), DB_PER_NATURAL_LOG * float(np.log(LOG_EPSILON)) + _RANGE_DB / 2)
    share = 1 + (decibels - loudest) / _RANGE_DB
    levels = np.round((_LEVELS - 1) * np.clip(share, 0, 1)).astype(np.uint8)
    # The colors between the nine of magma are interpolated, channel by channel.
    anchors = np.linspace(0, _LEVELS - 1, len(_MAGMA))
    palette = np.stack([np.interp(np.arange(_LEVELS), anchors, _MAGMA[:, c]) for c in range(3)], axis=1)
    shares = (band_positions(np.array(_TICKS_HZ, np.float64), FRONT_END) + 0.5) / FRONT_END.mels
    # Ticks at the very edges would run into the axis below and out of the picture above.
    marks = [
        (float(at), f"{hz}" if hz < 1000 else f"{hz // 1000}k")
        for at, hz in zip(shares, _TICKS_HZ, strict=True)
        if 0.04 < at < 1.02
    ]
    # The first row of a picture is its top, which is the highest band.
    return Picture(png_data_uri(levels[::-1], np.round(palette).astype(np.uint8)), marks)


def _narrowed(logmel: np.ndarray) -> np.ndarray:
    """Return (mels, at most 400 columns); where there are more frames, a column is the mean of neighbors."""
    frames = logmel.shape[1]
    if frames <= _MAX_COLUMNS:
        return logmel
    # The picture is a few hundred pixels wide, so more columns would only make the page larger.
    edges = np.linspace(0, frames, _MAX_COLUMNS + 1).astype(int)
    return np.add.reduceat(logmel, edges[:-1], axis=1) / np.diff(edges)


def _seconds(value: float) -> str:
    return f"{value:.6g} s"


class SoundChart(NamedTuple):
    """A spectrogram of so many seconds, with its axes."""

    picture: Picture
    seconds: float
    frame: Frame = _FRAME

    @property
    def times(self) -> list[Tick]:
        """Round times below the picture."""
        return Axis(0.0, self.seconds, self.frame.left, self.frame.right).ticks(_seconds, most=4, inside=True)


class Lane(NamedTuple):
    """One label's events as (start, end) in s: the true ones and the predicted ones."""

    label: str
    reference: Sequence[tuple[float, float]]
    predicted: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class RollChart:
    """A piano roll with two rows for each label: the reference above, filled, and the prediction below, hatched."""

    lanes: Sequence[Lane]
    """From top to bottom."""
    start_s: float
    """Where the drawn part of the file begins."""
    end_s: float
    picture: Picture | None
    """The spectrogram of just that part, drawn above the rows on the same axis of time."""
    lane: int = 9

    @property
    def row(self) -> int:
        """The height of a label's two rows."""
        return 2 * self.lane + 7

    @property
    def frame(self) -> Frame:
        """The place of all rows; a spectrogram is above it."""
        top = 118 if self.picture else 2
        bottom = top + self.row * len(self.lanes)
        return Frame(870, bottom + 20, left=130, right=840, top=top, bottom=bottom)

    @property
    def axis(self) -> Axis:
        """The axis of time."""
        return Axis(self.start_s, self.end_s, self.frame.left, self.frame.right)

    @property
    def times(self) -> list[Tick]:
        """Round times below the rows."""
        return self.axis.ticks(_seconds, most=10)

    def span(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Return an event's left end and its width, which is at least a pixel; both are cut to the drawn part."""
        low, high = self.axis.at(max(start_s, self.start_s)), self.axis.at(min(end_s, self.end_s))
        return low, max(1.0, high - low)
