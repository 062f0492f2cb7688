"""The masked autoencoder (MSM-MAE, PMLR 166, section 3): predict the hidden patches of a log-mel from the rest.

Five steps: cut into patches; embed the visible ones; encode them; decode them with mask tokens in the hidden
places; compare the hidden patches. loss = mean over hidden patches of mean((prediction - target) ** 2).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melmask.axes import LogMel, Masked, Tokens
from melmask.config import MaskingConfig, ModelConfig
from melmask.geometry import PatchGrid
from melmask.models.layers import NORM_EPSILON, Block, initialize
from melmask.models.positions import grid_positions, line_positions
from melmask.models.vit import ViT, gather_tokens, unit_grid
from melmask.objectives.masking import visible_and_hidden_ids


class MAEOutput(NamedTuple):
    """What a masked forward pass gives.

    loss: scalar, over hidden patches only.  prediction, target: (batch, predicted, values), normalised log-mel;
    `predicted_ids` (batch, predicted) says which patches they are.
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "batch predicted values"]
    target: Float[Tensor, "batch predicted values"]
    predicted_ids: Int[Tensor, "batch predicted"]


class Decoder(nn.Module):
    """A narrow transformer from visible tokens and mask tokens to patch values."""

    positions: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.decoder_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.predict = nn.Linear(width, config.patch_mels * config.patch_frames)
        grid = unit_grid(config, config.frames)
        self.register_buffer("positions", self._positions(grid), persistent=False)
        initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        encoded: Tokens,
        visible_ids: Int[Tensor, "batch visible"],
        predicted_ids: Int[Tensor, "batch predicted"],
        grid: PatchGrid,
    ) -> Float[Tensor, "batch predicted values"]:
        """Values of the patches in `predicted_ids`; `encoded` has the CLS token first if the model has one."""
        first = int(self.config.cls_token)
        x = self.embed(encoded)
        tokens = self.mask_token.to(x.dtype).expand(x.shape[0], grid.patches, -1)
        tokens = tokens.scatter(1, visible_ids[:, :, None].expand(-1, -1, x.shape[2]), x[:, first:])
        x = torch.cat([x[:, :first], tokens], dim=1) + self._positions_for(grid)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(gather_tokens(x[:, first:], predicted_ids)))

    def _positions(self, grid: PatchGrid) -> Tensor:
        table = line_positions if self.config.decoder_positions == "line" else grid_positions
        return table(self.config.decoder_width, grid, self.config.cls_token)

    def _positions_for(self, grid: PatchGrid) -> Tensor:
        # A shorter unit keeps each patch's trained position: the first columns of every row.
        first = int(self.config.cls_token)
        full = self.positions[first:].view(grid.rows, -1, self.positions.shape[1])
        return torch.cat([self.positions[:first], full[:, : grid.columns].flatten(0, 1)])


def build_model(config: ModelConfig, seed: int = 0) -> "MaskedAutoencoder":
    """A new model whose weights depend on the seed alone."""
    # torch's initialisers draw from the global generator: borrow it, and leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(config)


class MaskedAutoencoder(nn.Module):
    """Encoder and, unless the configuration has none, decoder."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = ViT(config)
        self.decoder = Decoder(config) if config.has_decoder else None

    def blocks(self) -> list[Block]:
        """The transformer blocks of encoder and decoder."""
        modules = [self.encoder.blocks] if self.decoder is None else [self.encoder.blocks, self.decoder.blocks]
        return [block for blocks in modules for block in blocks if isinstance(block, Block)]

    def forward(self, logmel: LogMel, masked: Masked, masking: MaskingConfig) -> MAEOutput:
        """Training: predict only what is hidden. Every row of `masked` leaves int(patches * (1 - ratio)) visible."""
        grid = unit_grid(self.config, logmel.shape[2])
        visible_ids, hidden_ids = visible_and_hidden_ids(masked, grid.visible_patches(masking.ratio))
        return self._predict(logmel, visible_ids, hidden_ids, hidden_ids, masking.normalize_target)

    def reconstruct(self, logmel: LogMel, masked: Masked, normalize_target: bool = False) -> MAEOutput:
        """Predict every patch of normalised log-mels with given masks; the rows leave equally many visible."""
        visible = int((~masked[0]).sum())
        visible_ids, hidden_ids = visible_and_hidden_ids(masked, visible)
        every_id = torch.arange(masked.shape[1], device=masked.device).expand(masked.shape[0], -1)
        return self._predict(logmel, visible_ids, hidden_ids, every_id, normalize_target)

    def _predict(
        self,
        logmel: LogMel,
        visible_ids: Tensor,
        hidden_ids: Tensor,
        predicted_ids: Tensor,
        normalize_target: bool,
    ) -> MAEOutput:
        assert self.decoder is not None, "an encoder-only model cannot reconstruct"
        patches = self.encoder.patches_of(logmel)
        encoded = self.encoder.encode_visible(patches, visible_ids)
        grid = unit_grid(self.config, logmel.shape[2])
        prediction = self.decoder(encoded, visible_ids, predicted_ids, grid).float()
        target = gather_tokens(patches, predicted_ids)
        if normalize_target:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (prediction - target).square().mean(-1)
        if hidden_ids is not predicted_ids:
            error = error.gather(1, hidden_ids)
        return MAEOutput(error.mean(), prediction, target, predicted_ids)
