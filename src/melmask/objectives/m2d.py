"""Masked Modeling Duo (M2D, arXiv 2210.14648; TASLP 2024, arXiv 2404.06095): predict features of the hidden patches.

The encoder that is trained sees the visible patches. A target encoder, whose weights are a moving average of those of
the first, sees the hidden ones alone. The decoder predicts the target's features, each vector of which is normalized to
a mean of 0 and a variance of 1:
loss = mean over hidden patches of |p / |p| - t / |t|| ** 2 = 2 - 2 cos(p, t) for a prediction p and its target t.
A mixture adds the masked autoencoder's loss, from the same pass of the decoder.
"""

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from melmask.axes import LogMel
from melmask.config import M2DConfig, PretrainConfig
from melmask.geometry import grid_of
from melmask.models.flops import encoder_forward_flops, step_flops
from melmask.models.network import Network, ViT
from melmask.objectives.predictor import HiddenPatches, Predictor


def build(config: PretrainConfig, network: Network) -> "MaskedModelingDuo":
    """Build the objective; the target encoder begins as a copy of the network's.

    Raises:
        ConfigError: the ratio hides no patch at all.
    """
    return MaskedModelingDuo(config, network)


class MaskedModelingDuo(Predictor):
    """The objective (`objectives/base.py`): without reconstruction, what remains is the encoder alone."""

    def __init__(self, config: PretrainConfig, network: Network):
        super().__init__(config, network, config.model.width, config.m2d.reconstruction_weight > 0)
        self._settings, self._target = config.m2d, _Target(network.encoder)
        self.module: nn.Module = nn.ModuleDict({**self.modules, "target": self._target})

    def loss(self, logmel: LogMel, drawn: Bool[Tensor, "views patches"]) -> Float[Tensor, ""]:
        """Return the weighted sum of the features' error and, in a mixture, of the reconstruction's."""
        hidden, settings = self.hide(logmel, drawn), self._settings
        error = feature_error(self.head(hidden.tokens), self._target.features(hidden))
        loss = settings.feature_weight * error
        if settings.reconstruction_weight:
            loss = loss + settings.reconstruction_weight * self.reconstruction_error(hidden)
        return loss

    def after_step(self) -> None:
        """Move the target encoder towards the trained one."""
        self._target.follow(self.network.encoder, decay_at(self._target.steps, self._settings))

    def step_flops(self, crops: int) -> int:
        """Return the operations of a step; the target encoder has a forward pass only, of the hidden patches."""
        model, views = self._config.model, crops * self.views_per_crop
        outputs = model.width + (model.patch_values if self._settings.reconstruction_weight else 0)
        hidden = grid_of(model).patches - self.encoded_patches
        trained = step_flops(model, self._config.masking.ratio, views, outputs)
        return trained + views * encoder_forward_flops(model, hidden)


def feature_error(
    prediction: Float[Tensor, "views hidden dim"], target: Float[Tensor, "views hidden dim"]
) -> Float[Tensor, ""]:
    """Return the mean squared distance, 0 to 4, between predictions and normalized targets, both of length 1."""
    # float32: in bfloat16, the small differences late in a run would vanish.
    wanted = nn.functional.layer_norm(target.float(), target.shape[-1:])
    difference = nn.functional.normalize(prediction.float(), dim=-1) - nn.functional.normalize(wanted, dim=-1)
    return difference.square().sum(-1).mean()


def decay_at(step: int, settings: M2DConfig) -> float:
    """Return the share of the target's own weights that stays after step 0, 1, ..."""
    # A function of the step alone: the steps of a run may change while it plans them.
    progress = min(1.0, step / settings.decay_steps) if settings.decay_steps else 1.0
    return settings.first_decay + progress * (settings.last_decay - settings.first_decay)


class _Target(nn.Module):
    """A copy of an encoder that follows it; no gradient reaches it. A snapshot holds its weights and steps."""

    def __init__(self, encoder: ViT):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def features(self, hidden: HiddenPatches) -> Float[Tensor, "views hidden dim"]:
        """Encode the hidden patches alone."""
        tokens = self.encoder.encode_visible(hidden.patches, hidden.ids)
        return tokens[:, int(self.encoder.config.cls_token) :]

    @torch.no_grad()
    def follow(self, encoder: ViT, decay: float) -> None:
        """Move towards the encoder, and count the step."""
        for own, its in zip(self.encoder.parameters(), encoder.parameters(), strict=True):
            own.lerp_(its, 1 - decay)
        self.steps += 1

    def get_extra_state(self) -> Tensor:
        """Return the number of steps for the state of the module."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.steps = int(state)
