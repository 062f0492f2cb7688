"""The decoder: a narrow transformer that fills in the patches which the encoder has not seen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melmask.axes import Tokens
from melmask.config import ModelConfig
from melmask.geometry import PatchGrid
from melmask.models.layers import NORM_EPSILON, Block, initialize
from melmask.models.positions import grid_positions, line_positions
from melmask.models.vit import gather_tokens, unit_grid


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
        """Predict the patches in `predicted_ids`; `encoded` has the CLS token first if the model has one."""
        first = int(self.config.cls_token)
        x = self.embed(encoded)
        # Every place gets the mask token, then the visible tokens overwrite theirs.
        tokens = self.mask_token.to(x.dtype).expand(x.shape[0], grid.patches, -1)
        tokens = tokens.scatter(1, visible_ids[:, :, None].expand(-1, -1, x.shape[2]), x[:, first:])
        x = torch.cat([x[:, :first], tokens], dim=1) + self._positions_for(grid)
        for block in self.blocks:
            x = block(x)
        # Only what is asked for is predicted: in training the hidden patches.
        return self.predict(self.norm(gather_tokens(x[:, first:], predicted_ids)))

    def _positions(self, grid: PatchGrid) -> Tensor:
        table = line_positions if self.config.decoder_positions == "line" else grid_positions
        return table(self.config.decoder_width, grid, self.config.cls_token)

    def _positions_for(self, grid: PatchGrid) -> Tensor:
        # A shorter unit keeps each patch's trained position: the first columns of every row.
        first = int(self.config.cls_token)
        full = self.positions[first:].view(grid.rows, -1, self.positions.shape[1])
        return torch.cat([self.positions[:first], full[:, : grid.columns].flatten(0, 1)])
