"""What users give as sound: a file in any of its forms, or an array, checked and resampled to the model's rate."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from melmask.audio.files import resample
from melmask.errors import AudioFileError, InputError

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 100, 10_000_000
"""Seismometers and ultrasound lie within; what lies beyond is a mistake, and may take all memory when resampled."""
_LOUDEST = 1e12
"""As for files: beyond this the power of a spectrum nears the end of float32."""
_INT16_FULL_SCALE = 32768
_SCALES = {
    "int32": "divide samples that fill 32 bits by 2147483648, and 16-bit samples by 32768",
    "int64": "divide by the largest value that a sample can have, 32768 for 16 bits",
    "uint8": "8-bit samples of a wav file are (x - 128) / 128; for the bytes of a sound file, give bytes",
}
_MOST_CHANNELS, _FEWEST_SAMPLES = 32, 128
"""An array of at most so many columns and at least so many rows holds channels, not clips of a few samples."""


@contextmanager
def sound_file(audio: Any) -> Iterator[Path | None]:
    """Give the path of a sound file: of a path itself, or of a temporary copy of bytes or of an open file.

    Gives None for everything else, such as arrays. Errors about a copy call it "the sound".

    Raises:
        InputError: the open file gives text.
    """
    if isinstance(audio, str | os.PathLike):
        yield Path(os.fspath(audio))
        return
    if isinstance(audio, bytes | bytearray | memoryview):
        audio = io.BytesIO(audio)
    if not hasattr(audio, "read"):
        yield None
        return
    # On Windows a file that the failed reader has not closed yet cannot be removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "sound"
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(audio, copy)
        except (TypeError, UnicodeDecodeError):
            raise InputError("the open file gives text; open it in the mode 'rb', or give its path") from None
        try:
            yield path
        except AudioFileError as error:
            text = str(error).replace(str(path), "the sound")
            if not path.stat().st_size:
                # Of an open file, what was read before is not read again.
                text = "the sound is empty (0 bytes); of a file that was read, go back to its start with seek(0)"
            raise AudioFileError(text) from error


def waveform_of(audio: Any, sample_rate_hz: Any, to_hz: int) -> tuple[np.ndarray, bool]:
    """Return (clips, samples) float32 at `to_hz`, and whether a single clip was given.

    Args:
        audio: (samples,) or (clips, samples): a tensor, or whatever NumPy makes an array of. Floats in [-1, 1], or
            int16, of which 32768 is full scale. Other integers are refused, as their full scale cannot be known:
            int32 may hold 16, 24 or 32 bits.
        sample_rate_hz: The rate of `audio`, from 100 Hz to 10 MHz.
        to_hz: The rate of the result.

    Raises:
        InputError: the array is empty, not finite, of another shape or type, or has no rate; or it is no array.
    """
    array = _array_of(audio)
    rate_hz = _checked_rate(sample_rate_hz)
    if array.dtype == np.int16:
        array = array.astype(np.float32) / _INT16_FULL_SCALE
    if not np.issubdtype(array.dtype, np.floating):
        hint = _SCALES.get(array.dtype.name)
        more = "int16 samples divided by 32768" if hint is None else hint
        raise InputError(f"the array holds {array.dtype}; give floats in [-1, 1] ({more})")
    if array.ndim not in (1, 2) or not array.size:
        hint = ", with the channels averaged" if array.ndim > 2 else ""
        raise InputError(f"the array is {array.shape}; give (samples,) or (clips, samples), at least one sample{hint}")
    if array.ndim == 2 and array.shape[1] <= _MOST_CHANNELS and array.shape[0] >= _FEWEST_SAMPLES:
        raise InputError(
            f"the array is {array.shape}, which looks like (samples, channels); average the channels, as x.mean(1), or "
            "transpose it, as x.T, to embed each channel as a clip"
        )
    if not np.isfinite(array).all():
        raise InputError("the array holds NaN or infinite samples; repair or leave out the audio")
    loudest = np.abs(array).max()
    if loudest > _LOUDEST:
        raise InputError(f"the array holds samples of {loudest:.3g}; give floats in [-1, 1]")
    waveform = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    waveform = resample(waveform, rate_hz, to_hz)
    if not waveform.size:
        raise InputError(f"the array is {array.shape}: not one sample at {to_hz} Hz; give longer audio")
    return waveform, array.ndim == 1


def _array_of(audio: Any) -> np.ndarray:
    """Make an array of what is given, or say what it looks like.

    Raises:
        InputError: it holds no rectangle of numbers.
    """
    if isinstance(audio, Tensor):
        # NumPy has no bfloat16, and no tensors that await gradients.
        return np.asarray(audio.detach().cpu().float() if audio.is_floating_point() else audio.detach().cpu())
    wanted = "give a path, the bytes of a sound file, or an array (samples,) or (clips, samples)"
    if isinstance(audio, str | os.PathLike | bytes | dict) or audio is None or hasattr(audio, "read"):
        kind = "nothing" if audio is None else f"a {type(audio).__name__}"
        hint = "; give its 'array' and its 'sampling_rate'" if isinstance(audio, dict) and "array" in audio else ""
        raise InputError(f"{kind} is no array of samples{hint or '; ' + wanted}")
    parts = list(audio) if isinstance(audio, list | tuple) else []
    if any(isinstance(part, str | os.PathLike | bytes) for part in parts):
        raise InputError(f"a list of {len(parts)} files; embed takes one, and melmask.embed_files takes many")
    if len(parts) == 2 and np.ndim(parts[1]) == 0 and np.ndim(_numbers(parts[0])):
        raise InputError("a pair of an array and its rate; give them one by one: embed(array, sample_rate_hz=rate)")
    lengths = [np.shape(_numbers(part)) for part in parts]
    if len(set(lengths)) > 1:
        sizes = [shape[-1] if shape else 1 for shape in lengths]
        raise InputError(
            f"a list of {len(parts)} arrays of {min(sizes)} to {max(sizes)} samples; embed each by itself, or give "
            "clips of one length"
        )
    return np.stack([_numbers(part) for part in parts]) if lengths and lengths[0] else _numbers(audio)


def _numbers(audio: Any) -> np.ndarray:
    if isinstance(audio, Tensor):
        return _array_of(audio)
    try:
        return np.asarray(audio)
    except ValueError:
        raise InputError(
            "the lists are of unequal lengths; embed each by itself, or give clips of one length"
        ) from None


def _checked_rate(sample_rate_hz: Any) -> int | float:
    known = isinstance(sample_rate_hz, int | float | np.integer | np.floating) and sample_rate_hz > 0
    if known and LOWEST_RATE_HZ <= sample_rate_hz <= HIGHEST_RATE_HZ:
        whole = int(sample_rate_hz)
        return whole if whole == sample_rate_hz else float(sample_rate_hz)
    bounds = f", from {LOWEST_RATE_HZ} Hz to {HIGHEST_RATE_HZ} Hz" if known else ""
    raise InputError(
        f"sample_rate_hz is {sample_rate_hz!r}; give the rate of the array, as sample_rate_hz=16000{bounds}"
    )
