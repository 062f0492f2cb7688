"""Random-projection targets: predict which random code each hidden patch is nearest to.

A frozen random matrix projects a patch to a few dimensions. Its code is the nearest of a frozen random codebook, where
projections and codes have length 1. The loss is the cross-entropy of the predicted codes, as a mean over hidden patches
and codebooks (BEST-RQ, arXiv 2202.01855, section 3; several codebooks: USM, arXiv 2303.01037, section 3.1). As in
BEST-RQ-2 (arXiv 2606.30700), the encoder sees the visible patches only, and a decoder predicts the codes of the others.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from melmask.axes import LogMel
from melmask.config import PretrainConfig
from melmask.geometry import grid_of
from melmask.models.flops import step_flops
from melmask.models.network import Network, seeded
from melmask.objectives.predictor import Predictor


def build(config: PretrainConfig, network: Network) -> "RandomProjection":
    """Build the objective; the seed decides projections and codes.

    Raises:
        ConfigError: the ratio hides no patch at all.
    """
    return RandomProjection(config, network)


class RandomProjection(Predictor):
    """The objective (`objectives/base.py`): what remains is the encoder alone, and nothing happens after a step."""

    def __init__(self, config: PretrainConfig, network: Network):
        self._settings = config.random_projection
        super().__init__(config, network, self._settings.codebooks * self._settings.codes)
        self._quantizer = RandomQuantizer(config)
        self.module: nn.Module = nn.ModuleDict({**self.modules, "quantizer": self._quantizer})

    def loss(self, logmel: LogMel, drawn: Bool[Tensor, "views patches"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy over all hidden patches and codebooks."""
        hidden = self.hide(logmel, drawn)
        codes = self._quantizer(self.targets(hidden))
        logits = self.head(hidden.tokens).float().unflatten(-1, (self._settings.codebooks, -1))
        return nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten())

    def after_step(self) -> None:
        """Do nothing."""

    def step_flops(self, crops: int) -> int:
        """Return the operations of a step, those that find the codes included."""
        model, settings, views = self._config.model, self._settings, crops * self.views_per_crop
        hidden = grid_of(model).patches - self.encoded_patches
        find = 2 * hidden * settings.codebooks * settings.dimensions * (model.patch_values + settings.codes)
        outputs = settings.codebooks * settings.codes
        return step_flops(model, self._config.masking.ratio, views, outputs) + views * find


class RandomQuantizer(nn.Module):
    """Finds the codes of patches. Its tensors never change, but a snapshot holds them like weights."""

    projection: Tensor
    codes: Tensor

    def __init__(self, config: PretrainConfig):
        super().__init__()
        settings, values = config.random_projection, config.model.patch_values
        with seeded(config.run.seed):
            projections = torch.empty(settings.codebooks, settings.dimensions, values)
            for projection in projections:
                nn.init.xavier_uniform_(projection)
            codes = torch.randn(settings.codebooks, settings.codes, settings.dimensions)
        self.register_buffer("projection", projections)
        self.register_buffer("codes", nn.functional.normalize(codes, dim=-1))

    @torch.no_grad()
    def forward(self, patches: Float[Tensor, "views hidden values"]) -> Int[Tensor, "views hidden codebooks"]:
        """Return the number of the nearest code in each codebook."""
        # In bfloat16, patches that lie between two codes would change theirs with the order of additions.
        with torch.autocast(patches.device.type, enabled=False):
            projected = torch.einsum("vhx,cdx->vhcd", patches.float(), self.projection)
            # Among vectors of length 1 the nearest has the largest product, which the projection's length only scales.
            return torch.einsum("vhcd,ckd->vhck", projected, self.codes).argmax(-1)
