"""Ogg (RFC 3533): where one stream ends and the next begins, and whether the last page is whole."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_HEADER_BYTES, _LONGEST_PAGE_BYTES = 27, 65_307
"""Of a page; the number of segments, whose lengths follow, is the header's last byte."""
_FIRST_PAGE = 2
"""The bit in a page's flags that says that a stream begins."""


def ogg_links(file: BinaryIO) -> list[tuple[int, int]]:
    """Return the byte ranges of streams that were put one after another ("chained") in an Ogg file."""
    size = file.seek(0, os.SEEK_END)
    starts, before = [0], True
    for position, flags in _pages(file, size):
        first = bool(flags & _FIRST_PAGE)
        # Several first pages in a row are streams side by side, as in a video.
        if first and not before:
            starts.append(position)
        before = first
    return list(zip(starts, [*starts[1:], size], strict=True))


def _pages(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(_HEADER_BYTES + 255)
        if head.startswith(b"OggS") and len(head) >= _HEADER_BYTES:
            yield position, head[5]
            segments = head[_HEADER_BYTES - 1]
            position += _HEADER_BYTES + segments + sum(head[_HEADER_BYTES : _HEADER_BYTES + segments])
            continue
        # Damage: the next page is found by its mark.
        file.seek(position + 1)
        at = file.read(_LONGEST_PAGE_BYTES).find(b"OggS")
        position += 1 + at if at >= 0 else _LONGEST_PAGE_BYTES - 3


def last_page_is_cut(file: BinaryIO) -> bool:
    """Return whether an Ogg file ends before its last page does, which libsndfile does not report."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_PAGE_BYTES))
    end = file.read()
    first = end.rfind(b"OggS")
    page = end[first:] if first >= 0 else b""
    if len(page) < _HEADER_BYTES:
        return first >= 0
    segments = page[_HEADER_BYTES:][: page[_HEADER_BYTES - 1]]
    return _HEADER_BYTES + page[_HEADER_BYTES - 1] + sum(segments) > len(page)
