"""Sounds in a page: what is heard and a picture of it, as data in the page itself."""

import base64
import io
import struct
import wave
import zlib
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram
from melmask.config import LOG_EPSILON, FrontEndConfig
from melmask.figures.spectrogram import DB_PER_NATURAL_LOG, band_positions
from melmask.pages.charts import ticks

LONGEST_S = 10.0
"""No sound in a page is longer."""
FRONT_END = FrontEndConfig()
"""Sounds are heard and drawn as the 16 kHz models hear them."""
_MAX_COLUMNS = 400
_RANGE_DB = 70.0
_TICKS_HZ = (100, 500, 1000, 2000, 4000, 8000)
_LEFT, _WIDTH, _HEIGHT = 34, 320, 110
# matplotlib's magma at equal distances: matplotlib itself is an optional library.
_MAGMA = np.frombuffer(
    bytes.fromhex("000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"), np.uint8
).reshape(-1, 3)
# Few colours compress well, and more are not told apart at this size.
_LEVELS = 32


class Picture(NamedTuple):
    """A spectrogram as a data URI, and its (share of the height from below, text) frequency ticks in Hz."""

    uri: str
    ticks: list[tuple[float, str]]


def read_part(path: Path, start_s: float = 0.0) -> Float[np.ndarray, " samples"]:
    """At most ten seconds of a file from `start_s` on, mono at 16 kHz; no more of it is read than that.

    Raises:
        AudioFileError: it is missing or cannot be read.
    """
    rate = FRONT_END.sample_rate_hz
    first, last = round(start_s * rate), round((start_s + LONGEST_S) * rate)
    blocks, samples = [], 0
    for block in read_audio_blocks(path, rate):
        blocks.append(block)
        samples += len(block)
        if samples >= last:
            break
    return np.concatenate(blocks)[first:last]


def wav_data_uri(samples: Float[np.ndarray, " samples"]) -> str:
    """16-bit wav at 16 kHz of samples in [-1, 1]; what is beyond is clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(FRONT_END.sample_rate_hz)
        file.writeframes(np.round(32767 * np.clip(samples, -1, 1)).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def spectrogram_picture(samples: Float[np.ndarray, " samples"]) -> Picture:
    """The log-mel, low frequencies at the bottom, black 70 dB below its loudest point."""
    with torch.inference_mode():
        logmel = LogMelSpectrogram(FRONT_END)(torch.from_numpy(samples)[None])[0].numpy()
    decibels = DB_PER_NATURAL_LOG * _narrowed(logmel)
    # Digital silence is dark too, though nothing in it is louder.
    loudest = max(float(decibels.max()), DB_PER_NATURAL_LOG * float(np.log(LOG_EPSILON)) + _RANGE_DB / 2)
    share = 1 + (decibels - loudest) / _RANGE_DB
    levels = np.round((_LEVELS - 1) * np.clip(share, 0, 1)).astype(np.uint8)
    anchors = np.linspace(0, _LEVELS - 1, len(_MAGMA))
    palette = np.stack([np.interp(np.arange(_LEVELS), anchors, _MAGMA[:, c]) for c in range(3)], axis=1)
    shares = (band_positions(np.array(_TICKS_HZ, np.float64), FRONT_END) + 0.5) / FRONT_END.mels
    marks = [
        (float(at), f"{hz}" if hz < 1000 else f"{hz // 1000}k")
        for at, hz in zip(shares, _TICKS_HZ, strict=True)
        if 0.04 < at < 1.02
    ]
    return Picture(png_data_uri(levels[::-1], np.round(palette).astype(np.uint8)), marks)


def _narrowed(logmel: np.ndarray) -> np.ndarray:
    """(mels, at most 400): the mean of neighbouring frames where there are more."""
    frames = logmel.shape[1]
    if frames <= _MAX_COLUMNS:
        return logmel
    edges = np.linspace(0, frames, _MAX_COLUMNS + 1).astype(int)
    return np.add.reduceat(logmel, edges[:-1], axis=1) / np.diff(edges)


def draw_sound(picture: Picture, seconds: float, title: str) -> str:
    """The picture with its axes, as SVG.

    Args:
        picture: the spectrogram.
        seconds: how much sound it shows.
        title: what it shows, for those who hear the page.
    """
    parts = [
        f'<image x="{_LEFT}" y="0" width="{_WIDTH - _LEFT}" height="{_HEIGHT}" preserveAspectRatio="none" '
        f'href="{picture.uri}"/>'
    ]
    for share, text in picture.ticks:
        parts.append(f'<text x="{_LEFT - 4}" y="{_HEIGHT * (1 - share) + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in ticks(0.0, seconds, 4):
        x = _LEFT + (_WIDTH - _LEFT) * tick / seconds
        anchor = "start" if not tick else "end" if x > _WIDTH - 14 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 14}" text-anchor="{anchor}">{tick:.6g} s</text>')
    parts.append(f'<text x="0" y="{_HEIGHT + 14}">Hz</text>')
    return (
        f'<svg class="sound" viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def png_data_uri(indices: UInt8[np.ndarray, "rows columns"], palette: UInt8[np.ndarray, "colours channels"]) -> str:
    """A picture whose pixels are indices into a palette of 3 (red, green, blue) or 4 (and opacity) channels."""
    rows, columns = indices.shape
    # Each row begins with its filter, 0 for none.
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), indices], axis=1).tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        (b"PLTE", np.ascontiguousarray(palette[:, :3]).tobytes()),
        *([(b"tRNS", palette[:, 3].tobytes())] if palette.shape[1] == 4 else []),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
