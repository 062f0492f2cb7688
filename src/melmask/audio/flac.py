"""FLAC (RFC 9639): the number of samples in its header, which may be wrong, and whether its last frame is whole."""

import os
import re
from typing import BinaryIO

from melmask.audio.pieces import Piece, bytes_at, skip_id3

_COUNT_AT, _COUNT_BITS = 18, 36
"""Bytes from "fLaC" to the eight that end with the number of samples, and its bits."""
_LONGEST_FRAME_BYTES, _MOST_STARTS = 1 << 18, 16
_BEGIN, _CHUNK_BYTES = b"fLaC\0\0\0\x22", 1 << 20
"""What every FLAC begins with: the mark, and the head of the block that describes the stream."""
_FRAME_START = re.compile(rb"\xff[\xf8\xf9]")


def flac_samples(file: BinaryIO) -> int:
    """Return the number of samples that the header gives; 0 where it gives none."""
    return int.from_bytes(bytes_at(file, skip_id3(file) + _COUNT_AT, 8), "big") & (1 << _COUNT_BITS) - 1


def without_count(file: BinaryIO) -> list[Piece] | None:
    """Return a FLAC without its number of samples, so that a decoder goes on to the end; None if it is no FLAC."""
    start, size = skip_id3(file), file.seek(0, os.SEEK_END)
    head = bytes_at(file, start, _COUNT_AT + 8)
    if head[:4] != b"fLaC" or len(head) < _COUNT_AT + 8:
        return None
    facts = int.from_bytes(head[_COUNT_AT:], "big") >> _COUNT_BITS << _COUNT_BITS
    return [head[:_COUNT_AT] + facts.to_bytes(8, "big"), (start + len(head), size)]


def ends_with_a_whole_frame(file: BinaryIO) -> bool:
    """Return whether the file ends where a frame does, as one with a wrong count does and one that is cut does not."""
    size = file.seek(0, os.SEEK_END)
    end = bytes_at(file, max(0, size - _LONGEST_FRAME_BYTES), _LONGEST_FRAME_BYTES)
    starts = [match.start() for match in _FRAME_START.finditer(end)]
    # Noise looks like a frame's start once in 32 KB. A file made to have more must not take hours.
    return any(_crc16(end[start:]) == 0 for start in starts[-_MOST_STARTS:])


def holds_another_flac(file: BinaryIO) -> bool:
    """Return whether a second FLAC follows in the same file, as after `cat a.flac b.flac`."""
    position, size = skip_id3(file) + len(_BEGIN), file.seek(0, os.SEEK_END)
    while position < size:
        if _BEGIN in bytes_at(file, position, _CHUNK_BYTES + len(_BEGIN) - 1):
            return True
        position += _CHUNK_BYTES
    return False


def _crc16(data: bytes) -> int:
    """The checksum of RFC 9639, section 9.3, which is 0 over a whole frame with its own checksum."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC_TABLE[value >> 8 ^ byte]
    return value


def _crc_of(byte: int) -> int:
    value = byte << 8
    for _ in range(8):
        value = value << 1 ^ (0x8005 if value & 0x8000 else 0)
    return value & 0xFFFF


_CRC_TABLE = [_crc_of(byte) for byte in range(256)]
