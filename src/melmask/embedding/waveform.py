"""Arrays that users give as sound: checked, then resampled to the model's rate."""

from typing import Any

import numpy as np
from torch import Tensor

from melmask.audio.files import resample
from melmask.errors import InputError


def waveform_of(audio: Any, sample_rate_hz: int | None, to_hz: int) -> tuple[np.ndarray, bool]:
    """Return (clips, samples) float32 at `to_hz`, and whether a single clip was given.

    Args:
        audio: Floats in [-1, 1], (samples,) or (clips, samples): a tensor, or whatever NumPy makes an array of.
        sample_rate_hz: The rate of `audio`.
        to_hz: The rate of the result.

    Raises:
        InputError: the array is empty, not finite, of another shape or type, or has no rate.
    """
    if isinstance(audio, Tensor):
        # NumPy has no bfloat16.
        audio = audio.detach().cpu().float() if audio.is_floating_point() else audio.cpu()
    array = np.asarray(audio)
    if sample_rate_hz is None or not sample_rate_hz > 0:
        raise InputError(f"sample_rate_hz is {sample_rate_hz}; give the rate of the array, as sample_rate_hz=16000")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"the array holds {array.dtype}; give floats in [-1, 1] (int16 samples divided by 32768)")
    if array.ndim not in (1, 2) or not array.size:
        raise InputError(f"the array is {array.shape}; give (samples,) or (clips, samples), at least one sample")
    if not np.isfinite(array).all():
        raise InputError("the array holds NaN or infinite samples; repair or leave out the audio")
    waveform = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
    waveform = resample(waveform, sample_rate_hz, to_hz)
    if not waveform.size:
        raise InputError(f"the array is {array.shape}: not one sample at {to_hz} Hz; give longer audio")
    return waveform, array.ndim == 1
