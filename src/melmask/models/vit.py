"""The encoder: a Vision Transformer over the patches of a normalized log-mel."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melmask.axes import LogMel, Patches, Tokens
from melmask.config import ModelConfig
from melmask.geometry import PatchGrid, grid_of
from melmask.models.layers import NORM_EPSILON, Block, initialize
from melmask.models.positions import grid_positions


def patchify(logmel: LogMel, patch_mels: int, patch_frames: int) -> Patches:
    """Cut into patches, frequency-major; a patch's values are ordered (mel in patch, frame in patch)."""
    x = logmel.unflatten(2, (-1, patch_frames)).unflatten(1, (-1, patch_mels))
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


def unpatchify(patches: Patches, rows: int, patch_mels: int) -> LogMel:
    """Inverse of `patchify`; `rows` is the number of patches over frequency."""
    x = patches.unflatten(2, (patch_mels, -1)).unflatten(1, (rows, -1))
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


def gather_tokens(tokens: Tokens, ids: Int[Tensor, "batch ids"]) -> Float[Tensor, "batch ids dim"]:
    """Return tokens[ids], row by row."""
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


class ViT(nn.Module):
    """Linear patch embedding, fixed 2-D positions, `depth` blocks, final norm."""

    positions: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.grid = grid_of(config)
        self.patch_embed = nn.Linear(config.patch_mels * config.patch_frames, config.width)
        self.cls_token = nn.Parameter(torch.zeros(config.width)) if config.cls_token else None
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        # Not persistent: positions follow from the configuration, so checkpoints do not hold them.
        self.register_buffer("positions", grid_positions(config.width, self.grid, False), persistent=False)
        initialize(self)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def patches_of(self, logmel: LogMel) -> Patches:
        """Cut a normalized log-mel of whole patches, as wide as a unit or narrower."""
        return patchify(logmel, self.config.patch_mels, self.config.patch_frames)

    def positions_for(self, columns: int) -> Float[Tensor, "patches dim"]:
        """Return the positions of a unit of `columns` patches in time: the first columns of the trained grid."""
        return self.positions.unflatten(0, (self.grid.rows, -1))[:, :columns].flatten(0, 1)

    def encode_visible(self, patches: Patches, visible_ids: Int[Tensor, "batch ids"]) -> Tokens:
        """Embed and encode only the patches in `visible_ids`: ([CLS +] visible) tokens, after the final norm."""
        # Hidden patches are dropped before they are embedded: the encoder computes nothing for them.
        positions = self.positions_for(patches.shape[1] // self.grid.rows)
        x = self.patch_embed(gather_tokens(patches, visible_ids)) + positions[visible_ids]
        x = self._with_cls(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def encode_layers(self, logmel: LogMel) -> Iterator[Tokens]:
        """Yield tokens ([CLS +] patches) after each block, then after the final norm: depth + 1 items, none hidden."""
        x = self.embed_all(logmel)
        for block in self.blocks:
            x = block(x)
            yield x
        yield self.norm(x)

    def embed_all(self, logmel: LogMel) -> Tokens:
        """Return the encoder's input with nothing hidden: ([CLS +] patches) tokens."""
        patches = self.patches_of(logmel)
        return self._with_cls(self.patch_embed(patches) + self.positions_for(patches.shape[1] // self.grid.rows))

    def _with_cls(self, x: Tokens) -> Float[Tensor, "batch with_cls dim"]:
        if self.cls_token is None:
            return x
        return torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1)


def unit_grid(config: ModelConfig, frames: int) -> PatchGrid:
    """Return the grid of a unit of `frames` frames, a multiple of the patch width."""
    return PatchGrid(config.mels // config.patch_mels, frames // config.patch_frames)
