"""A file as a decoder should see it: some of its bytes, in another order, or with a header put right."""

import io
from collections.abc import Sequence
from typing import Any, BinaryIO

Piece = bytes | tuple[int, int]
"""Bytes as they are, or (start, stop): a range of the file."""


class Pieces(io.RawIOBase):
    """A read-only file made of pieces of another one, which stays open elsewhere.

    Decoders call it from C, where an exception would be printed and lost. So a wrong position or a failing disk reads
    as the end of the file.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]):
        self._file = file
        self._pieces = [(piece, _length(piece)) for piece in pieces]
        self._size = sum(length for _, length in self._pieces)
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in bytes, at least 0; return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file goes; return the number of bytes."""
        out, filled = memoryview(buffer).cast("B"), 0
        at = self._position
        for piece, length in self._pieces:
            if filled < len(out) and at < length:
                wanted = min(length - at, len(out) - filled)
                found = self._read(piece, at, wanted)
                out[filled : filled + len(found)] = found
                filled += len(found)
                if len(found) < wanted:
                    break
                at = length
            at -= length
        self._position += filled
        return filled

    def _read(self, piece: Piece, at: int, size: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[at : at + size]
        try:
            self._file.seek(piece[0] + at)
            return self._file.read(size)
        except OSError:
            return b""


def _length(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]


def bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    """Return up to `count` bytes from `position` on."""
    file.seek(position)
    return file.read(count)


def skip_id3(file: BinaryIO, position: int = 0) -> int:
    """Return the position behind the ID3v2 tags at `position`, if there are any."""
    while len(head := bytes_at(file, position, 10)) == 10 and head.startswith(b"ID3"):
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    return position
