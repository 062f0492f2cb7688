"""Sound files: find them, read them as mono float32 at the wanted rate, in blocks so that 10 hours fit in memory."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import soxr

from melmask.audio.decode import decoded
from melmask.audio.folders import sound_paths
from melmask.audio.notes import Listener
from melmask.audio.parts import Sound, stretches_of
from melmask.audio.pieces import bytes_at
from melmask.audio.video import can_read_videos, needs_ffmpeg
from melmask.config import EACH, Reading
from melmask.errors import AudioFileError, ConfigError, InputError

_POINTERS = {b"version https://git-lfs": "git lfs pull", b"/annex/objects/": "git annex get"}
"""How the files begin that stand for sounds which Git has not fetched, and the command that fetches them."""
_BLOCK_FRAMES = 1 << 18
_LOUDEST = 1e12
"""Beyond this the power of a spectrum nears the end of float32; nothing recorded is a thousandth as loud."""
RESAMPLER_QUALITY = "HQ"
_LOWEST_HZ, _HIGHEST_HZ = 100, 10_000_000
"""Sampling rates of sound: seismometers and whales need few, and laboratories of ultrasound many."""
_MOST_FOLD = 20_000
"""A file of 100 Hz for a model of 2 MHz."""
_ESCAPED = re.compile(r"\\udc[89a-f][0-9a-f]")


def read_audio(path: Path | Sound, sample_rate_hz: int) -> np.ndarray:
    """A whole file, or a part of one, as mono, (samples,) float32, full scale = 1.0, at `sample_rate_hz`.

    Channels are averaged; resampling is soxr HQ.

    Raises:
        AudioFileError: if it is missing, not sound, broken off, empty, or holds NaN or infinite samples.
    """
    blocks = list(read_audio_blocks(path, sample_rate_hz))
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def readings_of(path: Path, reading: Reading) -> list[Reading]:
    """Return how each clip of a file is read: for `each`, one reading for each of its channels, else `reading`.

    A file that cannot be opened gives one clip, which fails when it is read.
    """
    if reading.channel != EACH:
        return [reading]
    channels: list[int] = []

    def note(_rate_hz: int, count: int) -> int:
        channels.append(count)
        return 1

    # Only the header is needed: the blocks of the first stretch are not read. A pipe is not opened, as it may hang.
    with contextlib.suppress(soundfile.LibsndfileError, OSError, AudioFileError):
        if path.is_file():
            next(decoded(path, note), None)
    return [replace(reading, channel=str(number + 1)) for number in range(max(channels, default=1))]


def read_audio_blocks(
    source: Path | Sound, sample_rate_hz: int, reading: Reading = Reading(), listener: Listener | None = None
) -> Iterator[np.ndarray]:
    """The same samples as `read_audio`, in consecutive blocks of bounded size, at least one of them not empty.

    A part of a file is a clip of its own: the resampler sees silence before and after it, as if somebody had cut it
    out, and not the sound beside it.

    Args:
        source: The file, or a part of it.
        sample_rate_hz: The rate that is wanted; of sound that is played slower, what `Reading.rate_hz` returns.
        reading: Which channel is taken.
        listener: It hears the samples before the channels are mixed.

    Raises:
        ConfigError: the reading takes each channel, which is several sounds.
        AudioFileError: as `read_audio`.
    """
    if reading.channel == EACH:
        raise ConfigError(f"the channel is {EACH}, which gives several clips; give one, or use `melmask.embed_files`")
    sound = source if isinstance(source, Sound) else Sound(source)
    path, produced, number = sound.path, 0, reading.channel_number
    listener = listener or Listener(reading)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # Opening a pipe that nobody writes to would wait for ever.
            raise AudioFileError(f"{path} is a pipe or device, no file; save the sound as a file")
        for stretch in stretches_of(sound, lambda rate, channels: _block_frames(path, rate, channels, sample_rate_hz)):
            listener.at_rate(stretch.rate_hz)
            blocks = _mono(path, stretch.blocks, number, listener)
            for block in _resampled(blocks, stretch.rate_hz, sample_rate_hz):
                produced += len(block)
                yield block
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unreadable(path, error) from error
    if not produced:
        raise AudioFileError(f"{sound} holds no samples at {sample_rate_hz} Hz; leave it out or replace it")


def _block_frames(path: Path, rate_hz: int, channels: int, to_hz: int) -> int:
    """How many samples to decode at once, so that neither they nor what the resampler makes of them fill the memory."""
    if not _LOWEST_HZ <= rate_hz <= _HIGHEST_HZ:
        raise AudioFileError(
            f"{path} says that its rate is {rate_hz} Hz; expected {_LOWEST_HZ} to {_HIGHEST_HZ}: repair or leave it out"
        )
    if to_hz > _MOST_FOLD * rate_hz:
        raise AudioFileError(f"{path} has {rate_hz} Hz, too few for {to_hz} Hz; leave it out, or give less --expand")
    return max(1, min(_BLOCK_FRAMES, 4 * _BLOCK_FRAMES // channels, 4 * _BLOCK_FRAMES * rate_hz // to_hz))


def _mono(path: Path, blocks: Iterable[np.ndarray], number: int | None, listener: Listener) -> Iterator[np.ndarray]:
    for block in blocks:
        if number is not None and number > block.shape[1]:
            raise AudioFileError(f"{path} has no channel {number}, only {block.shape[1]}; choose another")
        # Where one channel is taken, it does not matter what the others hold.
        taken = block if number is None else block[:, number - 1 : number]
        if not np.isfinite(taken).all():
            bad = number or 1 + int(np.isfinite(block).all(axis=0).argmin())
            where = f" in channel {bad}" if block.shape[1] > 1 else ""
            raise AudioFileError(f"{path} holds NaN or infinite samples{where}; repair or leave out the file")
        peak = float(np.abs(taken).max())
        if peak > _LOUDEST:
            raise AudioFileError(f"{path} holds samples of {peak:.3g}; expected -1 to 1: repair or leave out the file")
        listener.hear(taken, peak)
        yield np.ascontiguousarray(taken[:, 0]) if taken.shape[1] == 1 else taken.mean(axis=1)


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


def resample(waveform: np.ndarray, from_hz: int | float, to_hz: int) -> np.ndarray:
    """(samples,) or (clips, samples) float32 from one rate to another, soxr HQ."""
    if from_hz == to_hz:
        return waveform
    resampled = soxr.resample(waveform.T, from_hz, to_hz, quality=RESAMPLER_QUALITY)
    return np.ascontiguousarray(resampled.T, dtype=np.float32)


def _unreadable(path: Path, error: Exception) -> AudioFileError:
    there = True
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        there = False
    except OSError as unlike:
        # A name that is too long, say, or a link that leads to itself.
        return AudioFileError(f"{path} cannot be opened ({unlike.strerror}); check the path")
    if not there:
        if _ESCAPED.search(str(path)):
            return AudioFileError(f"{path} has a name that is not UTF-8; rename the file")
        what = f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
        return AudioFileError(f"{path} {what}; check the path")
    if path.is_file() and not path.stat().st_size:
        return AudioFileError(f"{path} is empty (0 bytes); leave it out or replace it")
    if path.is_file():
        with path.open("rb") as file:
            head = bytes_at(file, 0, 64)
        for pointer, command in _POINTERS.items():
            if head.startswith(pointer):
                return AudioFileError(f"{path} is not the sound but a pointer to it; fetch the sound with {command}")
        if needs_ffmpeg(path) and not can_read_videos():
            return AudioFileError(f"{path} cannot be read by libsndfile; to read it, pip install 'melmask[av]'")
    reason = (getattr(error, "strerror", None) or str(error)).rstrip(".").rsplit(": ", 1)[-1]
    known = "wav, flac, ogg, opus, mp3, aiff and the like"
    return AudioFileError(f"{path} cannot be read as sound ({reason}); expected {known}")


def find_audio(sources: Iterable[Path]) -> list[Path]:
    r"""Return the sound files of `sources`, in order and without repeats: files, and folders, which are searched.

    A folder gives the files that `sound_paths` finds in it. Two paths of one file, such as `a/x.wav` and
    `b/../a/x.wav`, or a link and what it leads to, count once, by the first. Bytes of a name that are not UTF-8 are
    spelled out as \udcXX, and such a file fails when it is read. `melmask.labels.sources` also takes tables.

    Raises:
        InputError: a source does not exist or gives no file.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if source.is_dir():
            paths = sound_paths(source)
            if not paths:
                raise InputError(f"{source} holds no sound files; expected {_suffix_text()} somewhere below it")
        elif not source.exists():
            raise InputError(f"{source} does not exist; give files, folders or tables of them")
        else:
            paths = [source]
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    # Python keeps bytes of a name that are not UTF-8 as lone surrogates, which no table can hold: spelled out, the name
    # leads to no file, and reading says why.
    return [Path(str(path).encode(errors="backslashreplace").decode()) for path in found.values()]


def _suffix_text() -> str:
    return "*.wav, *.flac, *.ogg, *.opus, *.mp3 or the like"
