"""The clip that is looked at: the log-mel of a sound, or of a part of it, cut to whole patches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from melmask.audio.files import read_audio_blocks
from melmask.audio.parts import Sound, seconds_text
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.waveform import sound_file, waveform_of
from melmask.errors import InputError
from melmask.geometry import PatchGrid, grid_of
from melmask.system.terminal import note

LONGEST_S = 30.0
"""More does not fit in a picture. Of sound that is played slower, it is what the model hears."""


@dataclass(frozen=True)
class Clip:
    """A stretch of sound as a model hears it.

    name: what the picture is titled with.  start_s: where it begins in its file.  logmel: (bands, frames), natural log,
    not normalized, whole patches.  waveform: (samples,), what the log-mel was computed from.
    """

    name: str
    start_s: float
    logmel: Float[np.ndarray, "bands frames"]
    waveform: Float[np.ndarray, " samples"]

    def units(self, model: AudioEncoder) -> Iterator[tuple[slice, PatchGrid]]:
        """Yield the columns of patches of each unit that the model computes at once, and its grid."""
        config = model.card.model
        columns = self.logmel.shape[1] // config.patch_frames
        whole = grid_of(config)
        for first in range(0, columns, whole.columns):
            last = min(first + whole.columns, columns)
            yield slice(first, last), PatchGrid(whole.rows, last - first)


def clip_of(
    model: AudioEncoder,
    audio: Any,
    sample_rate_hz: int | float | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Clip:
    """Read a sound, or a part of it, for a look at what the model makes of it.

    The end is cut to whole patches of the model. Without `end_s`, no more than 30 s are read, and a line on standard
    error says so.

    Args:
        model: A loaded model; `model.reading` says which channel is taken.
        audio: A sound file or an array, as `AudioEncoder.embed` takes it. An array is one clip, (samples,).
        sample_rate_hz: The rate of an array.
        start_s: Where the part begins, in s.
        end_s: Where it ends.

    Raises:
        AudioFileError: the file cannot be read, or ends before the part begins.
        InputError: the array is none of sound, or the part is shorter than a patch.
    """
    rate_hz, stop_s = model.sample_rate_hz, end_s
    longest_s = LONGEST_S / model.reading.expand
    if stop_s is None:
        # One sample more shows whether the sound is longer.
        stop_s = start_s + longest_s + 2 / rate_hz
    with sound_file(audio) as path:
        if path is not None:
            part = Sound(path, start_s, stop_s)
            waveform = np.concatenate(list(read_audio_blocks(part, rate_hz, model.reading)))
            name = path.name if isinstance(audio, str | Path) else "sound"
        else:
            clips, single = waveform_of(audio, sample_rate_hz, rate_hz)
            if not single and len(clips) > 1:
                raise InputError(f"the array holds {len(clips)} clips; give one, (samples,)")
            waveform, name = clips[0, round(start_s * rate_hz) : round(stop_s * rate_hz)], "sound"
    most = round(longest_s * rate_hz)
    if end_s is None and len(waveform) > most:
        waveform = waveform[:most]
        note(
            f"melmask: {name} is longer than {longest_s:g} s; shown are {seconds_text(start_s)} to "
            f"{seconds_text(start_s + longest_s)} s, and --start and --end choose others"
        )
    return _whole_patches(model, waveform, name, start_s)


def _whole_patches(model: AudioEncoder, waveform: np.ndarray, name: str, start_s: float) -> Clip:
    patch = model.card.model.patch_frames
    least_ms = patch * model.hop_ms
    if not len(waveform):
        raise InputError(f"{name} ends before {seconds_text(start_s)} s; give an earlier --start")
    with torch.inference_mode():
        logmel = model.front_end(torch.from_numpy(waveform)[None].to(model.device))[0].cpu().numpy()
    frames = logmel.shape[1] // patch * patch
    if not frames:
        raise InputError(
            f"{name} has {1000 * len(waveform) / model.sample_rate_hz:.0f} ms from {seconds_text(start_s)} s on; a "
            f"patch of this model has {least_ms:g} ms: give a longer sound"
        )
    return Clip(name, start_s, logmel[:, :frames], waveform)
