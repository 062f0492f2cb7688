"""What a model makes of a clip with hidden patches, and how well it does so over many masks."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from melmask.audio.logmel import DB_PER_NATURAL_LOG, denormalize, normalize
from melmask.config import LOG_EPSILON, MaskingConfig, ModelConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.levels import estimated_levels
from melmask.embedding.reconstruction import predicts_normalized
from melmask.errors import InputError
from melmask.geometry import PatchGrid, grid_of
from melmask.inspection.clips import Clip, clip_of
from melmask.inspection.masks import Box, box_mask, columns_of_box, mask_of
from melmask.inspection.options import MaskOptions, StretchOptions
from melmask.models.network import patchify, unpatchify
from melmask.system.progress import track


@dataclass(frozen=True)
class ClipReconstruction:
    """A clip, what is hidden of it, and what the model makes of that.

    masked: (rows, columns) of patches, True = hidden; row 0 holds the lowest bands.  visible: (bands, frames), the
    input with silence in the place of hidden patches.  logmel: (bands, frames), the visible patches of the input and
    the predicted hidden ones.  errors_db: (rows, columns), how far the prediction of each hidden patch is from the
    input, in the mean over its values and all resolutions; NaN where visible.  error_db: the mean of all.  filled_db:
    what it would be if each hidden patch were filled with the level that the visible ones let expect, without any
    model.  loss: the training's error over all hidden patches.  leak: whether the level and the contrast of normalized
    targets are those of the hidden patches.
    """

    clip: Clip
    masked: Bool[np.ndarray, "rows columns"]
    visible: Float[np.ndarray, "bands frames"]
    logmel: Float[np.ndarray, "bands frames"]
    errors_db: Float[np.ndarray, "rows columns"]
    error_db: float
    filled_db: float
    loss: float
    leak: bool


@dataclass(frozen=True)
class Predictability:
    """How far the model was off, in the mean over many masks.

    errors_db: (bands, frames), the mean distance of each value from the input over the masks that hid it, NaN where
    none did.  filled_db: the same for patches that are filled with the level of their neighbors.  masks: how many.
    """

    clip: Clip
    errors_db: Float[np.ndarray, "bands frames"]
    filled_db: Float[np.ndarray, "bands frames"]
    masks: int


def clip_mask(model: AudioEncoder, clip: Clip, masking: MaskingConfig, seed: int) -> Bool[np.ndarray, "rows columns"]:
    """Hide patches of each unit of a clip by the ratio and the strategy of `masking`.

    Raises:
        InputError: nothing can be hidden.
    """
    parts = []
    for number, (columns, grid) in enumerate(clip.units(model)):
        try:
            parts.append(mask_of(grid, masking, seed, number).reshape(grid))
        except InputError:
            # A short rest of a longer clip stays visible.
            if columns.start == 0:
                raise
            parts.append(np.zeros(grid, dtype=bool))
    return np.concatenate(parts, axis=1)


def clip_box(model: AudioEncoder, clip: Clip, box: Box) -> Bool[np.ndarray, "rows columns"]:
    """Hide every patch of a clip that the box touches; its times are those of the file.

    Raises:
        InputError: the box touches no patch, or all patches of a unit.
    """
    columns = clip.logmel.shape[1] // model.card.model.patch_frames
    grid = PatchGrid(grid_of(model.card.model).rows, columns)
    within = Box(box.start_s - clip.start_s, box.end_s - clip.start_s, box.low_hz, box.high_hz)
    masked = box_mask(replace(model.card, reading=model.reading), grid, within).reshape(grid)
    if any(masked[:, unit].all() for unit, _ in clip.units(model)):
        unit_s = model.card.model.frames * model.hop_ms / 1000
        raise InputError(
            f"the box hides all that the model sees at once, {unit_s:g} s; give a smaller box, or a longer sound"
        )
    return masked


def masked_clip(
    model: AudioEncoder,
    audio: Any,
    masks: MaskOptions = MaskOptions(),
    stretch: StretchOptions = StretchOptions(),
    sample_rate_hz: int | float | None = None,
) -> tuple[Clip, Bool[np.ndarray, "rows columns"]]:
    """Read a sound, and hide patches of it as the options say. For a box, a unit with the box in its middle is read.

    Args:
        model: A loaded model.
        audio: A sound file or an array, as `AudioEncoder.embed` takes it.
        masks: What is hidden.
        stretch: Which part is read.
        sample_rate_hz: The rate of an array.

    Raises:
        AudioFileError: the file cannot be read.
        InputError: the sound is too short, or nothing can be hidden, or all of a unit is.
    """
    start_s, end_s = stretch.start, stretch.end
    box = None if masks.box is None else Box(*masks.box)
    if box is not None and (start_s, end_s) == (0.0, None):
        first, last = columns_of_box(replace(model.card, reading=model.reading), box)
        columns = grid_of(model.card.model).columns
        patch_s = model.card.model.patch_frames * model.hop_ms / 1000
        start_s = max(0, (first + last + 1 - columns) // 2) * patch_s
        end_s = start_s + columns * patch_s
    clip = clip_of(model, audio, sample_rate_hz, start_s=start_s, end_s=end_s)
    return clip, clip_mask(model, clip, masks.masking, masks.seed) if box is None else clip_box(model, clip, box)


def reconstruct_clip(
    model: AudioEncoder, clip: Clip, masked: Bool[np.ndarray, "rows columns"], *, leak: bool = False
) -> ClipReconstruction:
    """Let the decoder fill in the hidden patches of a clip of any length, unit by unit.

    Args:
        model: A model with a decoder.
        clip: What it hears.
        masked: What is hidden; units without a hidden patch stay as they are.
        leak: As in `AudioEncoder.reconstruct`.

    Raises:
        InputError: nothing is hidden, or all of a unit.
        ConfigError: the model has no decoder.
    """
    if not masked.any():
        raise InputError("no patch is hidden; hide one or more")
    made, losses, frames = clip.logmel.copy(), [], model.card.model.patch_frames
    for unit, _ in clip.units(model):
        hidden = masked[:, unit]
        if hidden.any():
            where = slice(unit.start * frames, unit.stop * frames)
            result = model.reconstruct(clip.logmel[None, :, where], masked=hidden.reshape(1, -1), leak=leak)
            losses.append((result.loss, hidden.sum()))
            made[:, where] = result.logmel[0]
    over = over_bands(masked, model.card.model)
    made = np.where(over, made, clip.logmel)
    distances, of_filled = (
        np.abs(part - clip.logmel) * DB_PER_NATURAL_LOG for part in (made, filled(model, clip, masked))
    )
    return ClipReconstruction(
        clip=clip,
        masked=masked,
        visible=np.where(over, np.float32(math.log(LOG_EPSILON)), clip.logmel),
        logmel=made,
        errors_db=np.where(masked, patch_means(distances, model.card.model), np.nan),
        error_db=float(distances[over].mean()),
        filled_db=float(of_filled[over].mean()),
        loss=float(np.average([loss for loss, _ in losses], weights=[count for _, count in losses])),
        leak=leak and predicts_normalized(model.card),
    )


def predictability(
    model: AudioEncoder, clip: Clip, masking: MaskingConfig, seeds: range, *, leak: bool = False
) -> Predictability:
    """Reconstruct a clip under the mask of each seed, and return the mean errors; progress goes to standard error.

    Raises:
        InputError: nothing can be hidden.
        ConfigError: the model has no decoder.
    """
    shape = clip.logmel.shape
    sums, filled_sums, counts = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for seed in track(iter(seeds), len(seeds), "reconstruct", "mask", leave=False):
        masked = clip_mask(model, clip, masking, seed)
        over = over_bands(masked, model.card.model)
        made = reconstruct_clip(model, clip, masked, leak=leak).logmel
        sums += np.abs(made - clip.logmel) * over
        filled_sums += np.abs(filled(model, clip, masked) - clip.logmel) * over
        counts += over
    # 0 / 0 where no mask hid a patch gives NaN, which stays blank.
    with np.errstate(invalid="ignore"):
        errors, of_filled = (part / counts * DB_PER_NATURAL_LOG for part in (sums, filled_sums))
    return Predictability(clip, errors, of_filled, len(seeds))


def filled(model: AudioEncoder, clip: Clip, masked: Bool[np.ndarray, "rows columns"]) -> np.ndarray:
    """Return the log-mel with each hidden patch at the level that the visible ones let expect, without the model."""
    card, made = model.card, clip.logmel.copy()
    config, frames = card.model, card.model.patch_frames
    for unit, grid in clip.units(model):
        hidden = masked[:, unit].ravel()
        if not hidden.any():
            continue
        where = slice(unit.start * frames, unit.stop * frames)
        x = normalize(torch.from_numpy(clip.logmel[:, where]), card.statistics)[None]
        values = patchify(x, config.patch_mels, frames, config.resolutions)
        parts = values[0].unflatten(-1, (config.resolutions, -1)).numpy()
        levels, _ = estimated_levels(parts, hidden, grid)
        flat = torch.from_numpy(np.where(hidden[:, None, None], levels, parts)).flatten(1)[None]
        picture = unpatchify(flat, grid.rows, config.patch_mels, config.resolutions)
        made[:, where] = denormalize(picture, card.statistics)[0].numpy()
    return made


def over_bands(by_patch: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Repeat the values (rows, columns) of patches for each band and frame, of all resolutions: (bands, frames)."""
    once = by_patch.repeat(config.patch_mels, axis=0).repeat(config.patch_frames, axis=1)
    return np.tile(once, (config.resolutions, 1))


def patch_means(values: Float[np.ndarray, "bands frames"], config: ModelConfig) -> Float[np.ndarray, "rows columns"]:
    """Return the mean of the values (bands, frames) in each patch, over all resolutions."""
    rows = config.mels // config.patch_mels
    return values.reshape(config.resolutions, rows, config.patch_mels, -1, config.patch_frames).mean((0, 2, 4))
