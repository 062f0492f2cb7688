"""What libsndfile does not read: sound of phones and videos, by FFmpeg through PyAV, if melmask[av] is installed."""

import importlib.util
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from melmask.audio.pieces import bytes_at, skip_id3
from melmask.errors import AudioFileError

_PHONES = ".m4a .m4b .m4r .aac .adts .alac .wma .webm .weba .mka .amr .ac3 .eac3 .dts .ape .wv .tta .mpc .tak .dsf"
_VIDEOS = ".mkv .mp4 .m4v .mov .3gp .3g2 .avi .wmv .asf .flv .f4v .mpg .mpeg .mts .m2ts"
VIDEO_SUFFIXES = frozenset(f"{_PHONES} {_VIDEOS}".split(" "))
"""Sounds and videos that need FFmpeg."""

_FORMATS = (
    "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,"
    "mpeg,mpegts,ogg,tak,tta,w64,wav,wv"
)
"""FFmpeg's containers that are sound or video. Others, such as playlists, would make it open further files."""
_EXACT_FORMATS = ("mov", "matroska", "asf", "avi")
"""Containers that store how long the sound is; elsewhere FFmpeg estimates it."""
_SHORT_BY_S = 1.0
# (position, bytes) by which files are known whose name does not say what they are.
_MARKS = (
    (4, b"ftyp"),
    (0, b"\x1aE\xdf\xa3"),
    (0, b"0&\xb2u\x8ef\xcf\x11"),
    (8, b"AVI "),
    (0, b"FLV\1"),
    (0, b"#!AMR"),
    (0, b"MAC "),
    (0, b"wvpk"),
    (0, b"TTA1"),
    (0, b"\x0bw"),
    (0, b"\0\0\1\xba"),
)
_AAC = (b"\xff\xf1", b"\xff\xf9")


def can_read_videos() -> bool:
    """Return whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def needs_ffmpeg(path: Path) -> bool:
    """Return whether a file's name or its first bytes are those of what libsndfile does not read."""
    with path.open("rb") as file:
        return path.suffix.lower() in VIDEO_SUFFIXES or begins_like_a_video(file)


def begins_like_aac(file: BinaryIO) -> bool:
    """Return whether the first frame, which ID3 tags may precede, is one of AAC."""
    return bytes_at(file, skip_id3(file), 2) in _AAC


def begins_like_a_video(file: BinaryIO) -> bool:
    """Return whether the first bytes are those of a container or stream that FFmpeg reads."""
    if begins_like_aac(file):
        return True
    head = bytes_at(file, 0, 16)
    return any(head[at:].startswith(mark) for at, mark in _MARKS)


def missing_decoder(failed: Iterable[str]) -> str:
    """Return a line that counts files by suffix which melmask[av] would have read; empty if there are none.

    Args:
        failed: Paths of the files that could not be read.
    """
    suffixes = Counter(Path(path).suffix.lower() for path in failed)
    unread = {suffix: count for suffix, count in sorted(suffixes.items()) if suffix in VIDEO_SUFFIXES}
    if not unread or can_read_videos():
        return ""
    counts = ", ".join(f"{count} {suffix}" for suffix, count in unread.items())
    return f"{sum(unread.values())} of these ({counts}) can be read after pip install 'melmask[av]'"


def video_sound(
    path: Path, file: BinaryIO, block_frames: Callable[[int, int], int]
) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Yield (rate in Hz, blocks (samples, channels) float32) of the first sound track; arguments as of `decoded`.

    Raises:
        AudioFileError: it cannot be read, has no sound, or breaks off.
    """
    import av

    file.seek(0)
    seekable = _Seekable(file)
    # No protocol is allowed, so that a crafted file cannot make FFmpeg open another file or an address.
    limits = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    try:
        container = av.open(seekable, "r", options=limits, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error
    with container:
        if not container.streams.audio:
            raise AudioFileError(f"{path} has no sound track; leave it out")
        track, read_s = container.streams.audio[0], 0.0

        def blocks(frames: Iterator[Any], rate_hz: int, most: int) -> Iterator[np.ndarray]:
            nonlocal read_s
            for block in _together(map(_samples, frames), most):
                read_s += len(block) / rate_hz
                yield block

        for (rate_hz, channels), frames in itertools.groupby(_frames(path, container, track), _kind):
            most = min(block_frames(rate_hz, channels), rate_hz)
            yield rate_hz, blocks(frames, rate_hz, most)
        if seekable.misled:
            raise AudioFileError(f"{path} names places beyond its end or beginning; repair or leave out the file")
        if track.duration is not None and container.format.name.startswith(_EXACT_FORMATS):
            # A track that names no unit of time announces nothing.
            announced_s = float(track.duration * (track.time_base or 0))
            if read_s < announced_s - _SHORT_BY_S:
                raise AudioFileError(
                    f"{path} breaks off after {read_s:.1f} of {announced_s:.1f} s; restore or leave out the file"
                )


class _Seekable:
    """A file for PyAV, which prints a traceback if a damaged file makes FFmpeg jump to where nothing can be.

    Attributes: `misled` (whether that has happened).
    """

    def __init__(self, file: BinaryIO):
        self.read, self.tell, self._file = file.read, file.tell, file
        self.misled = False

    def seek(self, offset: int, whence: int = 0) -> int:
        """Jump as a file does; return -1, which FFmpeg takes for a failure, where that cannot be."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            self.misled = True
            return -1


def _frames(path: Path, container: Any, track: Any) -> Iterator[Any]:
    import av

    try:
        yield from (frame for frame in container.decode(track) if frame.samples)
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> AudioFileError:
    reason = getattr(error, "strerror", None) or str(error)
    return AudioFileError(f"{path} cannot be read as sound (FFmpeg: {reason}); repair or leave out the file")


def _kind(frame: Any) -> tuple[int, int]:
    return frame.sample_rate, frame.layout.nb_channels


def _samples(frame: Any) -> np.ndarray:
    """One of FFmpeg's frames as (samples, channels) float32, full scale = 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    half = float(1 << 8 * values.dtype.itemsize - 1)
    zero = half if values.dtype.kind == "u" else 0.0
    return ((values - zero) / half).astype(np.float32)


def _together(parts: Iterable[np.ndarray], most: int) -> Iterator[np.ndarray]:
    """Join short blocks, and cut long ones, to about `most` samples."""
    held: list[np.ndarray] = []
    for part in parts:
        for first in range(0, len(part), most):
            held.append(part[first : first + most])
            if sum(map(len, held)) >= most:
                yield np.concatenate(held)
                held = []
    if held:
        yield np.concatenate(held)
