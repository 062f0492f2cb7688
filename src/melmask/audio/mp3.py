"""MPEG audio (MP3, MP2): where its frames are, so that all of them are decoded.

An MP3 says nowhere how long it is, unless its first frame is a tag ("Xing" or "Info") that counts the others. Without
the tag a decoder estimates the length, and with it, it stops there although another MP3 may follow in the same file.
So the frames are counted here. Each stretch is presented to the decoder as an MP3 with a tag that is right.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from melmask.audio.pieces import Piece, bytes_at, skip_id3

_TAG_FLAGS_WITH_COUNTS = 3
_CHUNK_BYTES, _LONGEST_DAMAGE_BYTES = 1 << 16, 1 << 24
_MOST_TRIES = 200_000
"""Places where a frame may begin and does not, in one file; noise of 500 MB has so many, and takes seconds."""
_LONGEST_START_BYTES = 1 << 16
MPEG_SUFFIXES = frozenset((".mp3", ".mp2"))
_OTHERS = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b".snd", b"caff")
"""How sounds begin that may be called an MP3 and are none."""
_SYNC = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]", re.DOTALL)
"""What a frame may begin with."""
_HEAD_BYTES = 64
"""Enough for a frame's header, side information and tag counts."""
# Bit rates in kb/s by index: ISO/IEC 11172-3, section 2.4.2.3, and 13818-3, section 2.4.2.3.
_KILOBITS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Frame(NamedTuple):
    """What the four bytes before a frame say."""

    layer: int
    rate_hz: int
    kilobits: int
    samples: int
    size: int
    """Bytes, header included."""
    side_bytes: int
    """Between the header and what a tag begins with."""


class Mpeg(NamedTuple):
    """A stretch of MPEG audio as a decoder should see it."""

    pieces: list[Piece]
    samples: int | None
    """Its length where the frames alone say it (layers I and II); None where a tag says it."""


@dataclass
class _Stretch:
    """Frames of one kind, after one another, that came from one encoder."""

    frame: Frame
    header: bytes
    tag: bytes | None
    """The first frame, if it is a tag."""
    frames: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def add(self, start: int, stop: int) -> None:
        self.frames += 1
        if self.ranges and self.ranges[-1][1] == start:
            self.ranges[-1] = (self.ranges[-1][0], stop)
        else:
            self.ranges.append((start, stop))

    def is_full(self) -> bool:
        """Whether the frames are as many as the tag counts, so that others are not of the same sound."""
        counts = None if self.tag is None else _tag_counts(self.tag, self.frame)
        return counts is not None and self.frames == counts[0] > 0

    def as_file(self) -> Mpeg:
        if self.frame.layer != 3:
            return Mpeg(list(self.ranges), self.frames * self.frame.samples)
        size = sum(stop - start for start, stop in self.ranges)
        # A tag is kept even if there are fewer frames than it counts, so that the sound shows as cut off.
        if self.tag is not None and _tag_counts(self.tag, self.frame) is not None:
            tag = bytearray(self.tag)
            struct.pack_into(">I", tag, 4 + self.frame.side_bytes + 12, (len(tag) + size) & 0xFFFFFFFF)
            return Mpeg([bytes(tag), *self.ranges], None)
        return Mpeg([_made_tag(self.header, self.frames, size), *self.ranges], None)


def mpeg_stretches(file: BinaryIO, *, called_mpeg: bool = False) -> list[Mpeg] | None:
    """Return the stretches of an MPEG file; None if it needs no help, or is another kind of file.

    Args:
        file: The file.
        called_mpeg: Whether its name is that of an MPEG file. Then the first frame is looked for, as that of a stream
            which was cut anywhere, or of a file with zeros behind its tag, is not at the start.
    """
    size = file.seek(0, os.SEEK_END)
    start = skip_id3(file)
    if called_mpeg and _frame_at(file, start) is None and not bytes_at(file, 0, 12).startswith(_OTHERS):
        start = _first_of_three(file, start)
    frame = _frame_at(file, start)
    if frame is None or _frame_at(file, start + frame.size) is None:
        return None
    counts = _tag_counts(bytes_at(file, start, frame.size), frame)
    # The usual file ends where its tag says; then the decoder's own reading, without gaps at the ends, is best.
    if counts is not None and abs(_end_of_sound(file, size) - start - counts[1]) <= 1:
        return None
    return [stretch.as_file() for stretch in _stretches(file, start, size) if stretch.frames]


def _first_of_three(file: BinaryIO, start: int) -> int:
    """Return where the first three frames of one kind follow one another; `start` where there are none."""
    for match in _SYNC.finditer(bytes_at(file, start, _LONGEST_START_BYTES)):
        at = position = start + match.start()
        frames: list[Frame] = []
        while len(frames) < 3 and (frame := _frame_at(file, position)) is not None:
            frames.append(frame)
            position += frame.size
        if len(frames) == 3 and not any(_differs(frame, frames[0]) for frame in frames):
            return at
    return start


def _stretches(file: BinaryIO, position: int, size: int) -> list[_Stretch]:
    found: list[_Stretch] = []
    tries = iter(range(_MOST_TRIES))
    while position < size:
        head = bytes_at(file, position, _HEAD_BYTES)
        frame = _parsed(head)
        if frame is None:
            position = _after_tag_or_damage(file, position, head, found, tries)
            if head.startswith((b"ID3", b"TAG")) and found and found[-1].frames:
                # The next file begins, even if it is of the same kind and has no tag of its own.
                found.append(_Stretch(found[-1].frame, found[-1].header, None))
            continue
        stop = position + frame.size
        if stop > size:
            break
        is_tag = _is_tag(head, frame)
        if is_tag or not found or _differs(frame, found[-1].frame) or found[-1].is_full():
            tag = bytes_at(file, position, frame.size) if is_tag else None
            found.append(_Stretch(frame, head[:4], tag))
        if not is_tag:
            found[-1].add(position, stop)
        position = stop
    return found


def _differs(frame: Frame, other: Frame) -> bool:
    same = (frame.layer, frame.rate_hz, frame.samples) == (other.layer, other.rate_hz, other.samples)
    # Without a tag, which layer II has not, the decoder takes one bit rate for the whole.
    return not same or (frame.layer != 3 and frame.kilobits != other.kilobits)


def _after_tag_or_damage(
    file: BinaryIO, position: int, head: bytes, found: list[_Stretch], tries: Iterator[int]
) -> int:
    """Return where to look for the next frame."""
    if head.startswith(b"ID3"):
        return max(position + 1, skip_id3(file, position))
    if head.startswith(b"TAG"):
        return position + 128
    known = found[-1].frame if found else None
    begin, position = position, position + 1
    while position - begin < _LONGEST_DAMAGE_BYTES and (chunk := bytes_at(file, position, _CHUNK_BYTES)):
        for match in _SYNC.finditer(chunk):
            if next(tries, None) is None:
                return file.seek(0, os.SEEK_END)
            at = position + match.start()
            frame = _frame_at(file, at)
            # Four bytes of noise pass for a header now and then; two in step, of the right kind, do not.
            if frame is None or (known is not None and _differs(frame, known)):
                continue
            after = bytes_at(file, at + frame.size, 4)
            following = _parsed(after)
            if not after or (following is not None and not _differs(following, frame)):
                return at
        position += len(chunk)
    return file.seek(0, os.SEEK_END)


def _end_of_sound(file: BinaryIO, size: int) -> int:
    """Where the tags begin that players put at the end (APEv2, Lyrics3, ID3v1)."""
    if bytes_at(file, max(0, size - 128), 3) == b"TAG":
        size -= 128
    footer = bytes_at(file, max(0, size - 32), 32)
    if footer.startswith(b"APETAGEX") and len(footer) == 32:
        has_header = bool(footer[23] & 0x80)
        size -= struct.unpack_from("<I", footer, 12)[0] + (32 if has_header else 0)
    if bytes_at(file, max(0, size - 9), 9) == b"LYRICS200":
        digits = bytes_at(file, max(0, size - 15), 6)
        size -= 15 + (int(digits) if digits.isdigit() else 0)
    return size


def _frame_at(file: BinaryIO, position: int) -> Frame | None:
    return _parsed(bytes_at(file, position, 4))


def _parsed(head: bytes) -> Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    (bits,) = struct.unpack_from(">I", head)
    version, layer, rate = bits >> 19 & 3, 4 - (bits >> 17 & 3), bits >> 10 & 3
    kilobits = bits >> 12 & 15
    # The values that the standard reserves; index 0 is "free format", whose frames do not tell their size.
    if version == 1 or layer == 4 or rate == 3 or kilobits in (0, 15):
        return None
    newest, padding, mono = version == 3, bits >> 9 & 1, bits >> 6 & 3 == 3
    rate_hz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    rate_of_bits = _KILOBITS[newest, layer][kilobits - 1] * 1000
    samples = 384 if layer == 1 else 576 if layer == 3 and not newest else 1152
    size = 4 * (12 * rate_of_bits // rate_hz + padding) if layer == 1 else samples // 8 * rate_of_bits // rate_hz
    size += padding if layer != 1 else 0
    side_bytes = (17 if mono else 32) if newest else (9 if mono else 17)
    return Frame(layer, rate_hz, rate_of_bits // 1000, samples, size, side_bytes)


def _is_tag(head: bytes, frame: Frame) -> bool:
    at = 4 + frame.side_bytes
    # VBRI is Fraunhofer's tag, always 32 bytes behind the header.
    return frame.layer == 3 and (head[at : at + 4] in (b"Xing", b"Info") or head[36:40] == b"VBRI")


def _tag_counts(tag: bytes, frame: Frame) -> tuple[int, int] | None:
    """Frames and bytes that a Xing or Info tag counts; None if it does not count both."""
    at = 4 + frame.side_bytes
    if frame.layer != 3 or tag[at : at + 4] not in (b"Xing", b"Info") or len(tag) < at + 16:
        return None
    flags, frames, size = struct.unpack_from(">III", tag, at + 4)
    return (frames, size) if flags & _TAG_FLAGS_WITH_COUNTS == _TAG_FLAGS_WITH_COUNTS else None


def _made_tag(header: bytes, frames: int, size: int) -> bytes:
    """A tag that counts `frames`, in a frame like those with `header`."""
    (bits,) = struct.unpack(">I", header)
    # A bit rate whose frames have room for the tag at every sampling rate; no padding, no checksum.
    bits = bits & ~(0xF << 12 | 1 << 9) | 9 << 12 | 1 << 16
    head = struct.pack(">I", bits)
    frame = _parsed(head)
    assert frame is not None, "the header of a frame that was read"
    counts = struct.pack(">III", _TAG_FLAGS_WITH_COUNTS, frames, (frame.size + size) & 0xFFFFFFFF)
    return (head + bytes(frame.side_bytes) + b"Xing" + counts).ljust(frame.size, b"\0")
