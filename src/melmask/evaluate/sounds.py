"""Name and write the wav files of a new task, and find the common length of clips."""

import contextlib
import math
import os
import re
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from melmask.audio.files import read_audio_blocks
from melmask.audio.parts import Sound, seconds_text, sounds_of
from melmask.errors import AudioFileError
from melmask.evaluate.options import MOST_SAMPLES
from melmask.system.hardware import available_cores
from melmask.system.progress import track
from melmask.system.reading import check_regular

# Clips have a common length if at least this share of them is within a tenth of the median length.
_USUAL_SHARE = 0.95
_ALIKE = 0.1
# Padding is written in blocks, so that hours of it need not fit in memory.
_PADDED_SAMPLES = 1 << 20
# The kit adds up to 19 bytes to a name, and file systems allow 255.
_LONGEST_NAME_BYTES = 160


def wav_names(paths: Sequence[Path | Sound]) -> list[str]:
    """Return a name of a wav file for each sound; all names differ, also on file systems that ignore case.

    A name is the path below the folder that all paths have in common; underscores join its parts. The name of a part of
    a file ends with its times in seconds.
    """
    sounds = sounds_of(paths)
    # Path.resolve would follow links, and then names would not be those that the user knows.
    absolute = [Path(os.path.abspath(sound.path)) for sound in sounds]  # noqa: PTH100
    common = os.path.commonpath([path.parent for path in absolute])
    taken: set[str] = set()
    names = []
    for path, sound in zip(absolute, sounds, strict=True):
        joined = "_".join(path.relative_to(common).with_suffix("").parts)
        if sound.is_part and not sound.fault:
            joined += "_" + "-".join(seconds_text(time_s) for time_s in sound.times if time_s is not None)
        stem = re.sub(r"[^\w.,+=@-]", "_", joined).lstrip(".") or "clip"
        # The end of a long path says more than its beginning, so the end is kept.
        stem = stem.encode()[-_LONGEST_NAME_BYTES:].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.casefold())
        names.append(f"{name}.wav")
    return names


def common_length_s(paths: Sequence[Path | Sound]) -> float | None:
    """Return the length in s that nearly all clips have according to their headers; None if there is none.

    It is the longest length within 10 % of the median, rounded up to 10 ms.
    """
    lengths_s = []
    for sound in sounds_of(paths):
        if sound.end_s is not None:
            lengths_s.append(sound.end_s - sound.start_s)
            continue
        with contextlib.suppress(soundfile.LibsndfileError, OSError, TypeError, ArithmeticError):
            check_regular(sound.path)
            lengths_s.append(soundfile.info(sound.path).duration - sound.start_s)
    if not lengths_s:
        return None
    lengths = np.array(lengths_s)
    # A few odd clips must not prevent a common length.
    usual = lengths[np.abs(lengths - np.median(lengths)) <= _ALIKE * np.median(lengths)]
    if len(usual) < _USUAL_SHARE * len(lengths) or not usual.max() > 0:
        return None
    return math.ceil(round(usual.max() * 100, 3)) / 100


class SoundReport(NamedTuple):
    """How a clip's sound was written."""

    sound_s: float
    """Seconds of sound, without the padding."""
    cut: bool = False
    """Whether its end was cut off."""
    error: str | None = None
    """Why nothing was written, if the file cannot be read."""

    def ends_early(self, clip: Sound) -> bool:
        """Whether the file of the clip, a part of it, ended before it did."""
        return not self.cut and clip.shortened(self.sound_s)


def write_sounds(
    paths: Sequence[Path | Sound],
    names: Sequence[str],
    rates_hz: Sequence[int],
    fixed_s: float | None,
    building: Path,
    threads: int | None = None,
) -> list[SoundReport]:
    """Write each clip to `building/<rate>/<name>` as 16-bit mono at each rate.

    Args:
        paths: The sound files, or parts of them.
        names: Names of the wav files, all different.
        rates_hz: Sample rates.
        fixed_s: Length in s to which clips are cut or zero-padded at their ends; None leaves them as they are.
        building: The folder of the task.
        threads: Number of decoding threads; None means one for each core.

    Returns:
        A report per clip. Clips that cannot be read have an `error` and no file.
    """
    for rate_hz in rates_hz:
        (building / str(rate_hz)).mkdir(exist_ok=True)
    write = partial(_write_clip, building=building, rates_hz=rates_hz, fixed_s=fixed_s)
    pool = ThreadPoolExecutor(threads or available_cores())
    try:
        return list(track(pool.map(write, sounds_of(paths), names), len(names), "make task"))
    finally:
        pool.shutdown(cancel_futures=True)


def _write_clip(sound: Sound, name: str, building: Path, rates_hz: Sequence[int], fixed_s: float | None) -> SoundReport:
    targets = [building / str(rate_hz) / name for rate_hz in rates_hz]
    try:
        written = [_write_wav(sound, target, rate, fixed_s) for target, rate in zip(targets, rates_hz, strict=True)]
    except AudioFileError as error:
        # Some blocks may have been written before the error.
        for target in targets:
            target.unlink(missing_ok=True)
        return SoundReport(0.0, error=str(error))
    return written[0]


def _write_wav(sound: Sound, target: Path, rate_hz: int, fixed_s: float | None) -> SoundReport:
    """Write block by block, so that clips of any length fit in memory; the part that is cut off is not decoded."""
    length = None if fixed_s is None else round(fixed_s * rate_hz)
    samples, cut = 0, False
    with wave.open(str(target), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", "not compressed"))
        for block in read_audio_blocks(sound, rate_hz):
            used = block if length is None else block[: length - samples]
            if samples + len(used) > MOST_SAMPLES:
                raise AudioFileError(f"{sound} is too long for a wav file at {rate_hz} Hz; cut it, or give a duration")
            # Samples in [-1, 1] become 16-bit whole numbers, little-endian as wav files are.
            file.writeframes(np.clip(np.rint(used * 32768.0), -32768, 32767).astype("<i2").tobytes())
            samples += len(used)
            cut = len(used) < len(block)
            if cut:
                break
        missing = 0 if length is None else length - samples
        while missing:
            padded = min(missing, _PADDED_SAMPLES)
            file.writeframes(bytes(2 * padded))
            missing -= padded
    return SoundReport(samples / rate_hz, cut)


def move_to_splits(building: Path, rates_hz: Sequence[int], names: Sequence[str], split_of: Sequence[str]) -> None:
    """Move the wav files to `building/<rate>/<split>/<name>`, once their splits are known."""
    for rate_hz in rates_hz:
        for split in set(split_of):
            (building / str(rate_hz) / split).mkdir()
        for name, split in zip(names, split_of, strict=True):
            (building / str(rate_hz) / name).replace(building / str(rate_hz) / split / name)
