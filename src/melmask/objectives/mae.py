"""The masked autoencoder (MSM-MAE, PMLR 166, section 3): predict the hidden patches of a log-mel from the rest.

It has five steps: cut into patches; embed the visible ones; encode them; decode them with mask tokens in the hidden
places; compare the hidden patches. loss = mean over hidden patches of mean((prediction - target) ** 2). A contrast
between the masks of a crop may be added (`objectives/contrast.py`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from melmask.axes import LogMel, Masked
from melmask.config import MaskingConfig, PretrainConfig
from melmask.geometry import grid_of
from melmask.models.flops import step_flops
from melmask.models.network import Network, gather_tokens
from melmask.objectives.contrast import contrast
from melmask.objectives.masking import check_masking, draw_masks, visible_and_hidden_ids


class MAEOutput(NamedTuple):
    """The result of a masked forward pass.

    `loss` is over hidden patches only. `prediction` and `target` are in normalized log-mel; `predicted_ids` says which
    patches they are. `encoded` is what the encoder makes of the visible patches, without the CLS token.
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "batch predicted values"]
    target: Float[Tensor, "batch predicted values"]
    predicted_ids: Int[Tensor, "batch predicted"]
    encoded: Float[Tensor, "batch visible dim"]


def build(config: PretrainConfig, network: Network) -> "MaskedAutoencoder":
    """Build the objective of a network with a decoder.

    Raises:
        ConfigError: the ratio hides no patch at all, or the strategy does not fit the grid.
    """
    check_masking(config.masking, grid_of(config.model))
    return MaskedAutoencoder(network, config)


class MaskedAutoencoder:
    """The objective (`objectives/base.py`): the network is its only module, and nothing happens after a step."""

    def __init__(self, network: Network, config: PretrainConfig):
        self.network = network
        # The masked autoencoder has no weights besides the network's.
        self.module: nn.Module = network
        self.views_per_crop = config.masking.masks_per_crop
        self.encoded_patches = grid_of(config.model).visible_patches(config.masking.ratio)
        self._config = config

    def draw(self, batch: int, rank: int, processes: int) -> Bool[Tensor, "views patches"]:
        """Draw the masks of this process' crops; those of a crop are neighbors."""
        config, views = self._config, self._config.data.batch_size * self.views_per_crop
        masks = draw_masks(config.masking, grid_of(config.model), config.run.seed, batch, views)
        # The masks of the whole batch come from one stream: they do not depend on how many processes share it.
        return masks.unflatten(0, (-1, self.views_per_crop))[rank::processes].flatten(0, 1)

    def loss(
        self, logmel: Float[Tensor, "crops mels frames"], drawn: Bool[Tensor, "views patches"]
    ) -> Float[Tensor, ""]:
        """Return the mean error over the hidden patches of all views of the crops, and their weighted contrast."""
        views = logmel.repeat_interleave(self.views_per_crop, dim=0)
        output = predict_hidden(self.network, views, drawn, self._config.masking)
        if not self._config.contrast.weight:
            return output.loss
        apart = contrast(output.encoded, self.views_per_crop, self._config.contrast)
        return output.loss + self._config.contrast.weight * apart

    def after_step(self) -> None:
        """Do nothing."""

    def step_flops(self, crops: int) -> int:
        """Return the operations of a step's matrix products, all views of the crops included."""
        return step_flops(self._config.model, self._config.masking.ratio, crops * self.views_per_crop)


def predict_hidden(network: Network, logmel: LogMel, masked: Masked, masking: MaskingConfig) -> MAEOutput:
    """Predict only what is hidden, as training does.

    Every row of `masked` must leave int(patches * (1 - masking.ratio)) patches visible.
    """
    grid = grid_of(network.config, logmel.shape[2])
    visible_ids, hidden_ids = visible_and_hidden_ids(masked, grid.visible_patches(masking.ratio))
    return _predict(network, logmel, (visible_ids, hidden_ids, hidden_ids), masking.normalize_target)


def reconstruct(network: Network, logmel: LogMel, masked: Masked, normalize_target: bool = False) -> MAEOutput:
    """Predict every patch of normalized log-mels under given masks, whose rows leave equally many patches visible."""
    visible = int((~masked[0]).sum())
    visible_ids, hidden_ids = visible_and_hidden_ids(masked, visible)
    # The visible ones are predicted too, unlike in training: the caller chooses what to show of them.
    every_id = torch.arange(masked.shape[1], device=masked.device).expand(masked.shape[0], -1)
    return _predict(network, logmel, (visible_ids, hidden_ids, every_id), normalize_target)


def _predict(network: Network, logmel: LogMel, ids: tuple[Tensor, Tensor, Tensor], normalize_target: bool) -> MAEOutput:
    """Take the five steps; `ids` are those of the visible, the hidden and the predicted patches."""
    assert network.decoder is not None, "an encoder-only model cannot reconstruct"
    visible_ids, hidden_ids, predicted_ids = ids
    patches = network.encoder.patches_of(logmel)
    encoded = network.encoder.encode_visible(patches, visible_ids)
    grid = grid_of(network.config, logmel.shape[2])
    # float32 from here on: the loss of a bfloat16 prediction would be too coarse.
    prediction = network.decoder(encoded, visible_ids, predicted_ids, grid).float()
    target = gather_tokens(patches, predicted_ids)
    if normalize_target:
        target = normalized_patches(target, network.config.resolutions)
    error = (prediction - target).square().mean(-1)
    if hidden_ids is not predicted_ids:
        # A reconstruction shows all patches, but what was visible does not count as predicted.
        error = error.gather(1, hidden_ids)
    return MAEOutput(error.mean(), prediction, target, predicted_ids, encoded[:, int(network.config.cls_token) :])


def normalized_patches(
    values: Float[Tensor, "batch patches values"], resolutions: int
) -> Float[Tensor, "batch patches values"]:
    """Return each patch with a mean of 0 and a variance of 1, in each resolution by itself."""
    # The network need not predict a patch's own level and contrast (image MAE, arXiv 2111.06377, section 4.2).
    # In each resolution by itself: neither predicts the level of the other.
    parts = values.unflatten(-1, (resolutions, -1))
    # (x - mean) / sqrt(variance + 1e-6) with the variance over n - 1 values, as published. PyTorch's norm divides by n.
    share = 1 - 1 / parts.shape[-1]
    parts = F.layer_norm(parts, parts.shape[-1:], eps=1e-6 * share) * share**0.5
    return parts.flatten(-2)
