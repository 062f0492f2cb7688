"""What a model makes of a log-mel with hidden patches: `AudioEncoder.reconstruct`."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from melmask.audio.logmel import denormalize, normalize
from melmask.checkpoint.folder import ModelCard
from melmask.config import ModelConfig
from melmask.errors import InputError
from melmask.models.network import Network, unpatchify
from melmask.objectives import mae
from melmask.system.finite import check_finite


class Reconstruction(NamedTuple):
    """What the decoder makes of the visible patches.

    loss: the mean squared error over hidden patches, in normalized log-mel.  prediction: (clips, patches, values)
    float32, all patches in normalized log-mel; patches are numbered frequency-major, and values are ordered (mel in
    patch, frame in patch).  logmel: (clips, mels, frames), the prediction as one log-mel in natural-log units.
    """

    loss: float
    prediction: np.ndarray
    logmel: np.ndarray


def normalizes_target(card: ModelCard) -> bool:
    """Whether the model predicts each patch without its level and contrast; a card that does not say so does not."""
    return bool(card.training.get("config", {}).get("masking", {}).get("normalize_target", False))


@torch.inference_mode()
def reconstruct(model: Network, card: ModelCard, logmel: Tensor, hidden: Tensor) -> Reconstruction:
    """Let the decoder of `model` fill in the hidden patches; arguments and errors as in `AudioEncoder.reconstruct`."""
    rows = model.encoder.grid.rows
    _check(card.model, rows, logmel, hidden)
    x = normalize(logmel, card.statistics)
    normalized = normalizes_target(card)
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
        # Such a model predicts each patch without its level and contrast, so these are taken from the true patch. The
        # constant is the one of the training target.
        truth = model.encoder.patches_of(x).unflatten(-1, (card.model.resolutions, -1))
        levels, contrasts = truth.mean(-1, keepdim=True), (truth.var(-1, keepdim=True) + 1e-6).sqrt()
        shown = (prediction.unflatten(-1, truth.shape[2:]) * contrasts + levels).flatten(-2)
    picture = unpatchify(shown, rows, card.model.patch_mels, card.model.resolutions)
    restored = denormalize(picture, card.statistics)
    made = Reconstruction(loss, prediction.cpu().numpy(), restored.cpu().numpy())
    for part in made:
        check_finite(part, "the reconstruction")
    return made


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
