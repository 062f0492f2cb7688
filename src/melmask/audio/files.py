"""Sound files: find them, read them as mono float32 at the wanted rate, in blocks so that 10 hours fit in memory."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from melmask.errors import AudioFileError, InputError

_SUFFIXES = ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .caf .au .snd .w64 .rf64 .nist .sph .voc"
AUDIO_SUFFIXES = frozenset(_SUFFIXES.split(" "))
"""What the bundled libsndfile reads; other files in a scanned folder are passed over."""

_BLOCK_FRAMES = 1 << 18
_LOUDEST = 1e12
"""Beyond this the power of a spectrum nears the end of float32; nothing recorded is a thousandth as loud."""
RESAMPLER_QUALITY = "HQ"
# How libsndfile notes a wav, aiff, au or w64 file whose header promises more bytes than follow.
_CUT_OFF_NOTE = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_VOC_CUT_OFF_NOTE = "Seems to be a truncated file."
_NIST_COUNT, _NIST_HEADER_BYTES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE), 1024
_STREAM_BYTES = 0x7FF00000
"""Programs that write to a pipe put this length or more in the header, as they cannot know the true one."""
_PAGE_HEADER_BYTES, _LONGEST_PAGE_BYTES = 27, 65_307
"""Of Ogg; the number of segments, whose lengths follow, is the header's last byte."""
_ESCAPED = re.compile(r"\\udc[89a-f][0-9a-f]")


def read_audio(path: Path, sample_rate_hz: int) -> np.ndarray:
    """A whole file as mono, (samples,) float32, full scale = 1.0, at `sample_rate_hz`.

    Channels are averaged; resampling is soxr HQ.

    Raises:
        AudioFileError: if it is missing, not sound, broken off, empty, or holds NaN or infinite samples.
    """
    blocks = list(read_audio_blocks(path, sample_rate_hz))
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def read_audio_blocks(path: Path, sample_rate_hz: int) -> Iterator[np.ndarray]:
    """The same samples as `read_audio`, in consecutive blocks of bounded size, at least one of them not empty."""
    produced = 0
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # Opening a pipe that nobody writes to would wait for ever.
            raise AudioFileError(f"{path} is a pipe or device, no file; save the sound as a file")
        with soundfile.SoundFile(path) as file:
            mono = _mono_blocks(path, file)
            for block in _resampled(mono, file.samplerate, sample_rate_hz):
                produced += len(block)
                yield block
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        # TypeError: soundfile asks for a rate when the suffix says headerless (.raw).
        raise _unreadable(path, error) from error
    if not produced:
        raise AudioFileError(f"{path} holds no samples at {sample_rate_hz} Hz; leave it out or replace it")


def _mono_blocks(path: Path, file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    read = 0
    while True:
        block = file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
        if not len(block):
            break
        read += len(block)
        if not np.isfinite(block).all():
            raise AudioFileError(f"{path} holds NaN or infinite samples; repair or leave out the file")
        if np.abs(block).max() > _LOUDEST:
            raise AudioFileError(
                f"{path} holds samples of {np.abs(block).max():.3g}; expected -1 to 1: repair or leave out the file"
            )
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    # Streams of unknown length announce a huge number; a broken-off file announces more than it holds.
    if file.format == "OGG" and _last_page_is_cut(path):
        raise AudioFileError(f"{path} breaks off within a page, after {read} samples; restore or leave out the file")
    if _VOC_CUT_OFF_NOTE in file.extra_info:
        raise AudioFileError(f"{path} breaks off after {read} samples; restore or leave out the file")
    announced = _announced_samples(path, file)
    if read < announced < 1 << 62:
        raise AudioFileError(f"{path} breaks off after {read} of {announced} samples; restore or leave out the file")


def _last_page_is_cut(path: Path) -> bool:
    """Whether an Ogg file ends before its last page does (RFC 3533, section 6), which libsndfile passes over."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_PAGE_BYTES))
        end = file.read()
    first = end.rfind(b"OggS")
    page = end[first:] if first >= 0 else b""
    if len(page) < _PAGE_HEADER_BYTES:
        return first >= 0
    segments = page[_PAGE_HEADER_BYTES:][: page[_PAGE_HEADER_BYTES - 1]]
    return _PAGE_HEADER_BYTES + page[_PAGE_HEADER_BYTES - 1] + sum(segments) > len(page)


def _announced_samples(path: Path, file: soundfile.SoundFile) -> int:
    if file.format == "NIST":
        # libsndfile goes by the file's size here, and says nothing.
        with path.open("rb") as header:
            count = _NIST_COUNT.search(header.read(_NIST_HEADER_BYTES))
        return int(count[1]) if count else file.frames
    # For wav and aiff libsndfile goes by the file's size and mentions the header's only in its log.
    note = _CUT_OFF_NOTE.search(file.extra_info)
    if note is None:
        return file.frames
    promised, present = int(note[1]), int(note[2])
    return round(file.frames * promised / present) if 0 < present < promised < _STREAM_BYTES else file.frames


def _resampled(blocks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality=RESAMPLER_QUALITY)
    for block in blocks:
        resampled = stream.resample_chunk(block)
        if len(resampled):
            yield resampled
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    if len(rest):
        yield rest


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(samples,) or (clips, samples) float32 from one rate to another, soxr HQ."""
    if from_hz == to_hz:
        return waveform
    resampled = soxr.resample(waveform.T, from_hz, to_hz, quality=RESAMPLER_QUALITY)
    return np.ascontiguousarray(resampled.T, dtype=np.float32)


def _unreadable(path: Path, error: Exception) -> AudioFileError:
    try:
        there = path.exists()
    except OSError as unlike:
        # A name that is too long, say: Path.exists() raises what it does not take for an absence.
        return AudioFileError(f"{path} cannot be opened ({unlike.strerror}); check the path")
    if not there:
        if _ESCAPED.search(str(path)):
            return AudioFileError(f"{path} has a name that is not UTF-8; rename the file")
        what = f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
        return AudioFileError(f"{path} {what}; check the path")
    if path.is_file() and not path.stat().st_size:
        return AudioFileError(f"{path} is empty (0 bytes); leave it out or replace it")
    reason = str(error).rstrip(".").rsplit(": ", 1)[-1]
    known = "wav, flac, ogg, opus, mp3, aiff and the like"
    return AudioFileError(f"{path} cannot be read as sound ({reason}); expected {known}")


def find_audio(sources: Iterable[Path]) -> list[Path]:
    r"""Sound files of `sources`, in order and without repeats: files and folders (searched).

    A folder gives the files with a known sound suffix, sorted. Bytes of a name that are not UTF-8 are spelled out as
    \udcXX, and such a file fails when it is read. `melmask.labels.sources` also takes tables.

    Raises:
        InputError: for a source that does not exist or gives no file.
    """
    found: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and _may_be_sound(p))
            if not paths:
                raise InputError(f"{source} holds no sound files; expected {_suffix_text()} somewhere below it")
        elif not source.exists():
            raise InputError(f"{source} does not exist; give files, folders or tables of them")
        else:
            paths = [source]
        found.update(dict.fromkeys(paths))
    # Python keeps bytes of a name that are not UTF-8 as lone surrogates, which no table can hold: spelled out, the name
    # leads to no file, and reading says why.
    return [Path(str(path).encode(errors="backslashreplace").decode()) for path in found]


def _may_be_sound(path: Path) -> bool:
    # A link that leads nowhere is somebody's file, and missing.
    return path.is_file() or (path.is_symlink() and not path.exists())


def _suffix_text() -> str:
    return "*.wav, *.flac, *.ogg, *.opus, *.mp3 or the like"
