"""What a model makes of a log-mel with hidden patches: `AudioEncoder.reconstruct`."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from melmask.audio.logmel import denormalize, normalize
from melmask.checkpoint.folder import ModelCard
from melmask.config import ModelConfig
from melmask.embedding.levels import LEAST_VARIANCE, estimated_levels
from melmask.errors import InputError
from melmask.geometry import PatchGrid, grid_of
from melmask.models.network import Network, unpatchify
from melmask.objectives import mae
from melmask.system.finite import check_finite


class Reconstruction(NamedTuple):
    """What the decoder makes of the visible patches.

    loss: the mean squared error over hidden patches, in normalized log-mel.  prediction: (clips, patches, values)
    float32, all patches in normalized log-mel; patches are numbered frequency-major, and values are ordered (mel in
    patch, frame in patch).  logmel: (clips, mels, frames), the prediction as one log-mel in natural-log units. If the
    model predicts normalized patches, their level and contrast are estimated from the visible patches.
    """

    loss: float
    prediction: np.ndarray
    logmel: np.ndarray


@torch.inference_mode()
def reconstruct(
    model: Network, card: ModelCard, logmel: Tensor, hidden: Tensor, *, leak: bool = False
) -> Reconstruction:
    """Let the decoder of `model` fill in the hidden patches; arguments and errors as in `AudioEncoder.reconstruct`."""
    rows = model.encoder.grid.rows
    _check(card.model, rows, logmel, hidden)
    x = normalize(logmel, card.statistics)
    normalized = predicts_normalized(card)
    # Clips with different numbers of visible patches do not fit into one batch, so they are computed one by one.
    together = bool((hidden.sum(1) == hidden[0].sum()).all())
    groups = [slice(None)] if together else [slice(i, i + 1) for i in range(len(x))]
    outputs = [mae.reconstruct(model, x[g], hidden[g], normalized) for g in groups]
    prediction = torch.cat([o.prediction for o in outputs])
    # The mean over all hidden patches weights each group by how many it has.
    weights = torch.tensor([float(hidden[g].sum()) for g in groups])
    loss = float((torch.stack([o.loss.cpu() for o in outputs]) * weights).sum() / weights.sum())
    shown = prediction
    if normalized:
        shown = _with_levels(prediction, model.encoder.patches_of(x), hidden, (card.model, leak))
    picture = unpatchify(shown, rows, card.model.patch_mels, card.model.resolutions)
    restored = denormalize(picture, card.statistics)
    made = Reconstruction(loss, prediction.cpu().numpy(), restored.cpu().numpy())
    for part in made:
        check_finite(part, "the reconstruction")
    return made


def predicts_normalized(card: ModelCard) -> bool:
    """Whether the model was trained to predict patches without their own level and contrast."""
    return bool(card.training.get("config", {}).get("masking", {}).get("normalize_target", False))


def _with_levels(prediction: Tensor, patches: Tensor, hidden: Tensor, how: tuple[ModelConfig, bool]) -> Tensor:
    """Give normalized patches (clips, patches, values) a level and a contrast: those of `patches`, or an estimate."""
    config, leak = how
    truth = patches.unflatten(-1, (config.resolutions, -1))
    if leak:
        levels, contrasts = truth.mean(-1, keepdim=True), (truth.var(-1, keepdim=True) + LEAST_VARIANCE).sqrt()
    else:
        rows = grid_of(config).rows
        grid = PatchGrid(rows, patches.shape[1] // rows)
        pairs = zip(truth.cpu().numpy(), hidden.cpu().numpy(), strict=True)
        estimates = [estimated_levels(values, masked, grid) for values, masked in pairs]
        levels, contrasts = (torch.from_numpy(np.stack(part)).to(truth.device) for part in zip(*estimates, strict=True))
    return (prediction.unflatten(-1, truth.shape[2:]) * contrasts + levels).flatten(-2)


def _check(config: ModelConfig, rows: int, logmel: Tensor, hidden: Tensor) -> None:
    fits = (
        logmel.ndim == 3
        and logmel.shape[1] == config.bands
        and 0 < logmel.shape[2] <= config.frames
        and logmel.shape[2] % config.patch_frames == 0
    )
    if not fits:
        raise InputError(
            f"the log-mel is {tuple(logmel.shape)}; expected (clips, {config.bands}, frames) with frames a multiple "
            f"of {config.patch_frames} up to {config.frames}"
        )
    expected = (logmel.shape[0], rows * logmel.shape[2] // config.patch_frames)
    if tuple(hidden.shape) != expected:
        raise InputError(f"the mask is {tuple(hidden.shape)}; expected (clips, patches) = {expected}")
    counts = hidden.sum(1)
    if int(counts.min()) < 1 or int(counts.max()) >= expected[1]:
        raise InputError("the mask hides all or none of a clip's patches; hide some and leave some visible")
