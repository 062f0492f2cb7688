"""From a file to blocks of samples, with libsndfile or else FFmpeg, to the true end of the sound.

What a header says about length is a hint. The file is read until the decoder has no more, and then compared: a file
that holds more than its header says is read whole, and one that holds less is broken off and refused.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from melmask.audio.decoder_messages import decoder_notes, tell_decoder_notes
from melmask.audio.flac import ends_with_a_whole_frame, flac_samples, holds_another_flac, without_count
from melmask.audio.headers import announced_part, repaired
from melmask.audio.mp3 import MPEG_SUFFIXES, mpeg_stretches
from melmask.audio.ogg import last_page_is_cut, ogg_links
from melmask.audio.pieces import Pieces, bytes_at
from melmask.audio.video import begins_like_a_video, begins_like_aac, can_read_videos, video_sound
from melmask.errors import AudioFileError

# How libsndfile notes a wav, aiff, au or w64 file whose header promises more bytes than follow.
_CUT_OFF_NOTE = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_VOC_CUT_OFF_NOTE = "Seems to be a truncated file."
_NIST_COUNT, _NIST_HEADER_BYTES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE), 1024
_NOT_RECOGNIZED = 1
"""The number of libsndfile's error for a format that it does not know."""
_MPEG_DELAY = 2304
"""Samples, two frames, by which an MP3 within a WAV may be shorter than the WAV says."""
_STREAM_BYTES = 0x7FF00000
"""Programs that write to a pipe put this length or more in the header, as they cannot know the true one."""
_OF_EQUAL_SAMPLES = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")
_EQUAL_SAMPLES = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
"""Where each sample has its own bytes, at a place that can be computed."""
_UNKNOWN = 1 << 62
"""libsndfile announces a number of samples as large as this for a stream of unknown length."""


class Stretch(NamedTuple):
    """Sound of one sampling rate; most files are one stretch, files that were put together are several."""

    rate_hz: int
    blocks: Iterator[np.ndarray]
    """(samples, channels) float32, each of them not empty."""
    first: int = 0
    """Number of the first sample; 0 unless the decoder jumped."""
    jumps: bool = False
    """Whether the decoder can jump to any sample."""


class _Source(NamedTuple):
    """What libsndfile opens, and the number of samples where it is known better than libsndfile knows it."""

    opened: Path | Pieces
    samples: int | None = None


class _StraightOn(soundfile.SoundFile):
    """Read without seeking: soundfile seeks after each block, and stops where the header says that the sound ends."""

    def seekable(self) -> bool:
        return False


def decoded(path: Path, block_frames: Callable[[int, int], int], start_s: float = 0.0) -> Iterator[Stretch]:
    """Yield the stretches of a file; each must be used up before the next.

    Args:
        path: The file.
        block_frames: From (rate in Hz, channels) to the most samples of each channel that a block may have.
        start_s: Sound before this need not be decoded. Where the decoder can jump to a sample, the first stretch begins
            there; else it begins at the file's start.

    Raises:
        AudioFileError: it breaks off.
        soundfile.LibsndfileError, OSError: it cannot be opened, or is not sound.
    """
    with path.open("rb") as file:
        begun = False
        try:
            sources = _sources(path, file)
            for source in sources:
                with _interrupts_wait(), _notes_of(path, _may_be_mpeg(path, file)):
                    # What is joined of several files has its times counted from the first one on.
                    sound, first = _opened(source, start_s if len(sources) == 1 else 0.0)
                with sound:
                    frames = block_frames(sound.samplerate, sound.channels)
                    begun = True
                    blocks = _blocks(path, file, sound, frames, source.samples, first)
                    yield Stretch(sound.samplerate, blocks, first, len(sources) == 1 and _jumps(sound))
        except soundfile.LibsndfileError as refusal:
            if begun or not can_read_videos():
                raise
            yield from _by_ffmpeg(path, file, block_frames, refusal)
        finally:
            tell_decoder_notes(path)


def _may_be_mpeg(path: Path, file: BinaryIO) -> bool:
    head = bytes_at(file, 0, 3)
    sync = len(head) == 3 and head[0] == 0xFF and head[1] >= 0xE0
    return sync or head == b"ID3" or path.suffix.lower() in MPEG_SUFFIXES


def _notes_of(path: Path, is_mpeg: bool) -> AbstractContextManager[None]:
    return decoder_notes(path) if is_mpeg else contextlib.nullcontext()


def _opened(source: _Source, start_s: float) -> tuple[soundfile.SoundFile, int]:
    """Open a source and go to the sample at `start_s` if its decoder can; return the number of the next sample."""
    sound = _StraightOn(source.opened)
    first = round(start_s * sound.samplerate)
    if not (0 < first < sound.frames and _jumps(sound)):
        return sound, 0
    with contextlib.suppress(soundfile.LibsndfileError):
        if sound.seek(first) == first:
            return sound, first
    # A FLAC whose header is wrong refuses, and its decoder must start over.
    sound.close()
    if isinstance(source.opened, Pieces):
        source.opened.seek(0)
    return _StraightOn(source.opened), 0


def _jumps(sound: soundfile.SoundFile) -> bool:
    """Whether libsndfile goes to any sample at once, so that what follows is the same as when all is decoded."""
    return sound.format == "FLAC" or (sound.format in _OF_EQUAL_SAMPLES and sound.subtype in _EQUAL_SAMPLES)


def _by_ffmpeg(
    path: Path, file: BinaryIO, block_frames: Callable[[int, int], int], refusal: soundfile.LibsndfileError
) -> Iterator[Stretch]:
    begun = False
    try:
        for rate_hz, blocks in video_sound(path, file, block_frames):
            begun = True
            yield Stretch(rate_hz, blocks)
    except AudioFileError as error:
        # What is neither a sound nor a video is reported as libsndfile reports it.
        raise error if begun or begins_like_a_video(file) else refusal from error


def _sources(path: Path, file: BinaryIO) -> list[_Source]:
    if bytes_at(file, 0, 4) == b"OggS":
        links = ogg_links(file)
        return [_Source(path)] if len(links) == 1 else [_Source(Pieces(file, [link])) for link in links]
    if begins_like_aac(file):
        # libsndfile goes by the name here, and takes the AAC of an "x.mp3" for an MP3 that is damaged.
        raise soundfile.LibsndfileError(_NOT_RECOGNIZED)
    if stretches := mpeg_stretches(file, called_mpeg=path.suffix.lower() in MPEG_SUFFIXES):
        return [_Source(Pieces(file, stretch.pieces), stretch.samples) for stretch in stretches]
    if pieces := without_count(file) or repaired(file):
        return [_Source(Pieces(file, pieces))]
    # soundfile asks for a rate when a name ends in .raw, whatever the file is.
    return [_Source(path if path.suffix.lower() != ".raw" else Pieces(file, [(0, file.seek(0, os.SEEK_END))]))]


def _blocks(
    path: Path, file: BinaryIO, sound: soundfile.SoundFile, block_frames: int, samples: int | None, first: int
) -> Iterator[np.ndarray]:
    read, restore = first, "restore or leave out the file"
    counted = flac_samples(file) if sound.format == "FLAC" else 0
    while True:
        try:
            with _interrupts_wait(), _notes_of(path, sound.subtype.startswith("MPEG")):
                block = sound.read(_next_frames(block_frames, read, counted), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            if read == counted > 0 and not holds_another_flac(file):
                # What follows the last frame is a tag, or other bytes that are no sound.
                break
            reason = str(error).removeprefix("Error : ").rstrip(".")
            raise AudioFileError(f"{path} is damaged within ({reason}); {restore}") from error
        if not len(block):
            break
        read += len(block)
        yield block
    if sound.format == "OGG" and last_page_is_cut(file):
        raise AudioFileError(f"{path} breaks off within a page, after {read} samples; {restore}")
    if _VOC_CUT_OFF_NOTE in sound.extra_info:
        raise AudioFileError(f"{path} breaks off after {read} samples; {restore}")
    announced = _announced_samples(file, sound) if samples is None else samples
    if read < announced < _UNKNOWN and not (sound.format == "FLAC" and ends_with_a_whole_frame(file)):
        raise AudioFileError(f"{path} breaks off after {read} of {announced} samples; {restore}")


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C and the like back for a block.

    Raised in what libsndfile calls, it would be lost, and the file would seem to break off.
    """
    caught: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    # Python handles signals in its main thread only.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            # The system's own handling, which ends the process at once, needs no help.
            if callable(handler):
                handlers[number] = handler
    for held in handlers:
        signal.signal(held, lambda *arrived: caught.append(arrived))
    try:
        yield
    finally:
        for held, own in handlers.items():
            signal.signal(held, own)
    for arrived, frame in caught[:1]:
        handlers[arrived](arrived, frame)


def _next_frames(most: int, read: int, counted: int) -> int:
    """How much to decode next: up to the count in a FLAC's header, then one sample, to see if there is more sound."""
    if read == counted > 0:
        return 1
    return min(most, counted - read) if read < counted else most


def _announced_samples(file: BinaryIO, sound: soundfile.SoundFile) -> int:
    if sound.format == "FLAC":
        return flac_samples(file)
    if sound.format == "WAV" and sound.subtype.startswith("MPEG"):
        return sound.frames - _MPEG_DELAY
    if sound.format == "NIST":
        # libsndfile goes by the file's size here, and says nothing.
        count = _NIST_COUNT.search(bytes_at(file, 0, _NIST_HEADER_BYTES))
        return int(count[1]) if count else sound.frames
    if sound.format in ("RF64", "W64", "CAF"):
        return round(sound.frames * announced_part(file)) if announced_part(file) > 1 else sound.frames
    # For wav and aiff libsndfile goes by the file's size and mentions the header's only in its log.
    note = _CUT_OFF_NOTE.search(sound.extra_info)
    if note is None:
        return sound.frames
    promised, present = int(note[1]), int(note[2])
    return round(sound.frames * promised / present) if 0 < present < promised < _STREAM_BYTES else sound.frames
