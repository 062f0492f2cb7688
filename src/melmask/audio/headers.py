"""Headers whose sizes are wrong: WAV, AIFF, AU and CAF as a decoder should see them.

A recorder that loses power leaves the sizes it wrote at the start, a program that writes to a pipe cannot know them,
and 32 bits count to 4 GiB only. The file's own size says more than they do.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from melmask.audio.pieces import Piece, bytes_at

_LITTLE, _BIG = "<", ">"
_MOST_CHUNKS = 10_000
_UNKNOWN_BYTES = 1 << 62
"""A length as large as this stands for an unknown one."""
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_AFTER_SOUND = (
    b"LIST",
    b"bext",
    b"iXML",
    b"id3 ",
    b"cue ",
    b"smpl",
    b"junk",
    b"JUNK",
    b"PAD ",
    b"FLLR",
    b"_PMX",
    b"afsp",
)
"""Chunks that often follow the sound."""


def repaired(file: BinaryIO) -> list[Piece] | None:
    """Return the file with a header that covers all its sound; None if its own does, or is none of these."""
    size = file.seek(0, os.SEEK_END)
    head = bytes_at(file, 0, 12)
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:] == b"WAVE":
        return _wav(file, size, _BIG if head[:4] == b"RIFX" else _LITTLE)
    if head[:4] == b"caff":
        return _caf(file, size)
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _aiff(file, size)
    if head[:4] == b".snd" and len(head) == 12:
        start, announced = struct.unpack(">II", head[4:])
        # All ones is how this format says "to the end".
        return [head[:8] + b"\xff" * 4, (12, size)] if start + announced < size else None
    return None


def announced_part(file: BinaryIO) -> float:
    """Return how many times the sound that it holds the header of an RF64, a W64 or a CAF says that it holds.

    libsndfile does not compare. It is 0 where the header says nothing.
    """
    size = file.seek(0, os.SEEK_END)
    kind = bytes_at(file, 0, 4)
    chunks = _chunks(file, 12, size, _LITTLE) if kind == b"RF64" else _wide_chunks(file, size, kind)
    for name, start, length in chunks:
        if name == b"data":
            length = _data_bytes(file, length) if kind == b"RF64" else length
            return length / max(1, size - start) if length < _UNKNOWN_BYTES else 0.0
    return 0.0


def _data_bytes(file: BinaryIO, length: int) -> int:
    """The size of a WAV's data chunk, which an RF64 has elsewhere."""
    head = bytes_at(file, 0, 36)
    if head[:4] != b"RF64" or head[12:16] != b"ds64" or length != 0xFFFFFFFF or len(head) < 36:
        return length
    (size,) = struct.unpack_from("<Q", head, 28)
    return size


def _wav(file: BinaryIO, size: int, order: str) -> list[Piece] | None:
    # Where the chunks begin that an RF64 has in common with a WAV.
    common = 12
    chunks = list(_chunks(file, 12, size, order))
    for number, (name, start, length) in enumerate(chunks):
        if name == b"ds64":
            common = start + length
        if name != b"data":
            continue
        length = _data_bytes(file, length)
        stop = start + length
        if stop >= size:
            return None
        # Some editors append a second data chunk, which decoders pass over.
        further = [(s, min(s + n, size)) for other, s, n in chunks[number + 1 :] if other == b"data" and n]
        if not further and not _is_more_sound(file, stop + length % 2, size, order):
            return None
        sound = [(start, stop), *further] if further else [(start, size)]
        if order == _BIG:
            # An RF64 has the other order of bytes. Beyond 4 GiB all ones say "to the end".
            length = min(sum(end - begin for begin, end in sound), 0xFFFFFFFF)
            return [(0, start - 4), struct.pack(">I", length), *sound]
        # RF64 (EBU Tech 3306) is a WAV whose sizes have 64 bits.
        sizes = struct.pack("<QQQI", size + 28, sum(end - begin for begin, end in sound), 0, 0)
        head = b"RF64" + b"\xff" * 4 + b"WAVE" + b"ds64" + struct.pack("<I", len(sizes)) + sizes
        return [head, (common, start - 8), b"data" + b"\xff" * 4, *sound]
    return None


def _caf(file: BinaryIO, size: int) -> list[Piece] | None:
    for name, start, length in _wide_chunks(file, size, b"caff"):
        if name == b"data":
            stop = start + length
            # libsndfile takes neither the size -1, which is how this format says "to the end", nor one beyond the file,
            # which is compared when the sound has been read.
            if length < 0 or stop > size or (size - stop >= 12 and not _is_caf_chunk(file, stop, size)):
                return [(0, start - 8), struct.pack(">q", size - start), (start, size)]
            return None
    return None


def _is_caf_chunk(file: BinaryIO, position: int, size: int) -> bool:
    name, length = struct.unpack(">4sq", bytes_at(file, position, 12))
    return all(0x20 <= byte < 0x7F for byte in name) and 0 <= length <= size - position


def _aiff(file: BinaryIO, size: int) -> list[Piece] | None:
    common, frame_bytes = 0, 0
    for name, start, length in _chunks(file, 12, size, ">"):
        # A file may break off within this chunk.
        if name == b"COMM" and length >= 18 and start + length <= size:
            common = start
            channels, _, bits = struct.unpack(">hIh", bytes_at(file, start, 8))
            frame_bytes = channels * -(-bits // 8)
        if name == b"SSND" and frame_bytes > 0:
            stop = start + length
            if stop >= size or not _is_more_sound(file, stop + length % 2, size, ">"):
                return None
            frames = (size - start - 8) // frame_bytes
            data_bytes = min(size - start, 0xFFFFFFFF)
            sizes = struct.pack(">I", min(frames, 0xFFFFFFFF)), struct.pack(">I", data_bytes)
            form = struct.pack(">I", min(size - 8, 0xFFFFFFFF))
            return [
                b"FORM" + form,
                (8, common + 2),
                sizes[0],
                (common + 6, start - 4),
                sizes[1],
                (start, size),
            ]
    return None


def _is_more_sound(file: BinaryIO, position: int, size: int, order: str) -> bool:
    """Whether what follows the announced sound is neither chunks nor tags, and so must be sound."""
    if size - position < 8:
        return False
    head = bytes_at(file, position, 12)
    if head.startswith((*_TAGS, *_AFTER_SOUND)):
        # Many programs do not pad a chunk of an odd length, so that those after it are not found.
        return False
    # A last chunk that is cut off is still a chunk.
    return any(not all(0x20 <= byte < 0x7F for byte in name) for name, _, _ in _chunks(file, position, size, order))


def _wide_chunks(file: BinaryIO, size: int, kind: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, length) of the chunks of a CAF or a W64, whose lengths have 64 bits."""
    head, position = ("<4s12xQ", 40) if kind == b"riff" else (">4sq", 8)
    bytes_of_head = struct.calcsize(head)
    for _ in range(_MOST_CHUNKS):
        # A length may lead beyond what a file can have.
        if not position <= size - bytes_of_head:
            return
        name, length = struct.unpack(head, bytes_at(file, position, bytes_of_head))
        # A W64 counts the head, and fills chunks up to 8 bytes.
        length -= bytes_of_head if kind == b"riff" else 0
        yield name, position + bytes_of_head, length
        if length < 0:
            return
        position += bytes_of_head + length + (-length % 8 if kind == b"riff" else 0)


def _chunks(file: BinaryIO, position: int, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, length) of the chunks from `position` on; a length may lead beyond the file."""
    for _ in range(_MOST_CHUNKS):
        head = bytes_at(file, position, 8)
        if position + 8 > size or len(head) < 8:
            return
        (length,) = struct.unpack(order + "I", head[4:])
        yield head[:4], position + 8, length
        position += 8 + length + length % 2
