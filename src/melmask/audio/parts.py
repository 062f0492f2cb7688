"""Sounds: whole files, and parts of files, of which no more is decoded than the decoder makes necessary.

A part has exactly the samples that the same slice of the whole decoded file has. Where a decoder can jump to a sample
(PCM and FLAC), it does. Jumps in MP3, Ogg and videos are not exact: they land on frames or pages, and what is decoded
right after one depends on what came before. There the file is decoded from its start, and what precedes the part is
dropped. The decoder is then kept for a while, so that the next part of the file goes on from there.
"""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from melmask.audio.decode import Stretch, decoded
from melmask.errors import AudioFileError

_MOST_OPEN, _MOST_HELD = 4, 4
"""Decoders that are kept, and blocks of each that are held for parts that overlap: 64 MB at most."""
_FEWEST_FRAMES = 1 << 16
"""A short part is read in one block, and a file that is decoded from its start in larger ones than the part."""
_SHORTENED_S = 0.05
"""Times in tables are rounded, and MP3s are a little longer than what was encoded."""


@dataclass(frozen=True)
class Sound:
    """A file, or the part of it from `start_s` to `end_s`; the file's own end where that is None."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None
    fault: str = ""
    """Why the times in a table are none of a part; reading the sound reports it."""

    @property
    def is_part(self) -> bool:
        """Whether a table gives times."""
        return self.start_s > 0 or self.end_s is not None or bool(self.fault)

    @property
    def key(self) -> str:
        """What tells the sounds of a job apart; of a whole file, its path."""
        return f"{self.path}\n{self.start_s!r}\n{self.end_s!r}\n{self.fault}" if self.is_part else str(self.path)

    @property
    def times(self) -> tuple[float | None, float | None]:
        """The start and the end as tables of results hold them; of a faulty part, none."""
        return (None, None) if self.fault else (self.start_s, self.end_s)

    def shortened(self, duration_s: float, hop_s: float = 0.0) -> bool:
        """Whether the file ended before the part did, by the duration of what was read, which is counted in hops."""
        missing_s = 0.0 if self.end_s is None else self.end_s - self.start_s - duration_s
        return missing_s > max(_SHORTENED_S, 2 * hop_s)

    def __str__(self) -> str:
        if self.fault or not self.is_part:
            return str(self.path)
        end = "its end" if self.end_s is None else f"{seconds_text(self.end_s)} s"
        return f"{self.path} from {seconds_text(self.start_s)} s to {end}"


def sounds_of(sources: Iterable[Path | Sound]) -> list[Sound]:
    """Return sounds; a path stands for its whole file."""
    return [source if isinstance(source, Sound) else Sound(source) for source in sources]


def seconds_text(value_s: float) -> str:
    """Return seconds to the microsecond, without zeros at the end."""
    return f"{value_s:.6f}".rstrip("0").rstrip(".")


def shortened_text(sounds: Iterable[Sound]) -> str:
    """Return a line about parts that their files are too short for; empty if there are none."""
    found = list(sounds)
    if len(found) < 2:
        return "".join(f"{sound} ends after its file, and was shortened" for sound in found)
    return f"{len(found)} segments end after their files, and were shortened; the first is {found[0]}"


class _Block(NamedTuple):
    """Decoded samples, and where they lie in the file."""

    stretch: int
    rate_hz: int
    begins_s: float
    """When the stretch begins in the file."""
    first: int
    """Number of the first sample within the stretch."""
    samples: np.ndarray
    jumps: bool
    """Whether the decoder can go to any sample of the file at once."""

    @property
    def starts_s(self) -> float:
        return self.begins_s + self.first / self.rate_hz

    def within(self, sound: Sound) -> np.ndarray:
        """What of the block belongs to the sound, possibly nothing."""
        first = round((sound.start_s - self.begins_s) * self.rate_hz) - self.first
        return self.samples[max(0, first) : max(0, self._stop(sound))]

    def reaches_end(self, sound: Sound) -> bool:
        """Whether the sound ends within the block, or before it."""
        return self._stop(sound) <= len(self.samples)

    def _stop(self, sound: Sound) -> int:
        if sound.end_s is None:
            return len(self.samples) + 1
        return round((sound.end_s - self.begins_s) * self.rate_hz) - self.first


class _Open(NamedTuple):
    """A decoder in the middle of a file, and the last blocks that it gave."""

    held: list[_Block]
    rest: Iterator[_Block]


_open: OrderedDict[tuple[str, int, int], _Open] = OrderedDict()
_lock = threading.Lock()


def stretches_of(sound: Sound, block_frames: Callable[[int, int], int]) -> Iterator[Stretch]:
    """Yield the stretches of a file as `decoded` does, or what of them belongs to a part.

    Raises:
        AudioFileError: the file breaks off, or ends before the part begins, or the times are none.
        soundfile.LibsndfileError, OSError: it cannot be opened, or is not sound.
    """
    if sound.fault:
        raise AudioFileError(sound.fault)
    if not sound.is_part:
        yield from decoded(sound.path, block_frames)
        return
    found = ((block, cut) for block, cut in _cut(sound, block_frames) if len(cut))
    for (_, rate_hz), blocks in itertools.groupby(found, lambda item: (item[0].stretch, item[0].rate_hz)):
        yield Stretch(rate_hz, (cut for _, cut in blocks))


def _cut(sound: Sound, block_frames: Callable[[int, int], int]) -> Iterator[tuple[_Block, np.ndarray]]:
    """Yield the blocks of a file up to the end of the part, and what of each belongs to it."""
    file = sound.path.stat()
    name = (str(sound.path), file.st_mtime_ns, file.st_size)
    held, rest = _take_open(name, sound) or _Open([], _blocks(sound, block_frames))
    end_s, used = 0.0, False
    for block in itertools.chain(held[:], rest):
        if not any(block is one for one in held):
            held = [*held, block][-_MOST_HELD:]
        end_s = block.starts_s + len(block.samples) / block.rate_hz
        cut = block.within(sound)
        used = used or len(cut) > 0
        yield block, cut
        if block.reaches_end(sound):
            break
    else:
        if not used:
            raise AudioFileError(f"{sound} begins after the file's end at {seconds_text(end_s)} s; correct the times")
        return
    # Where the decoder can jump, the next part is jumped to as well.
    if not block.jumps:
        _keep_open(name, _Open(held, rest))


def _blocks(sound: Sound, block_frames: Callable[[int, int], int]) -> Iterator[_Block]:
    """Decode from the part's start on, if the decoder can jump there, else from that of the file."""
    length_s = math.inf if sound.end_s is None else sound.end_s - sound.start_s

    def frames(rate_hz: int, channels: int) -> int:
        most = block_frames(rate_hz, channels)
        return most if math.isinf(length_s) else min(most, max(_FEWEST_FRAMES, math.ceil(length_s * rate_hz) + 1))

    begins_s = 0.0
    for number, stretch in enumerate(decoded(sound.path, frames, sound.start_s)):
        at = stretch.first
        for samples in stretch.blocks:
            yield _Block(number, stretch.rate_hz, begins_s, at, samples, stretch.jumps)
            at += len(samples)
        begins_s += at / stretch.rate_hz


def _take_open(name: tuple[str, int, int], sound: Sound) -> _Open | None:
    """Take a decoder that has not yet passed the part's start."""
    with _lock:
        there = _open.pop(name, None)
    return there if there is not None and there.held[0].starts_s <= sound.start_s else None


def _keep_open(name: tuple[str, int, int], decoder: _Open) -> None:
    # The next part of the file goes on from here, in whichever thread it is read.
    with _lock:
        _open[name] = decoder
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)
