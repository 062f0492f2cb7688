"""Transformer layers, leaf first: attention, MLP, block (ViT, arXiv 2010.11929, pre-norm), and position tables."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from melmask.axes import Tokens
from melmask.geometry import PatchGrid

NORM_EPSILON = 1e-6
"""The epsilon of the published ViT and MAE models; PyTorch's default, 1e-5, would change their outputs."""

_PLAIN_ATTENTION_TOKENS = 192
"""On CPU, plain attention trains faster than the fused kernel up to about this length (docs/log.md)."""


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v over (batch, heads, tokens, d), fused or plainly, whichever is faster.

    `seen` (batch, tokens) bool leaves out keys, as if those tokens were not there.
    """
    if seen is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :])
    if query.device.type == "cpu" and query.shape[-2] <= _PLAIN_ATTENTION_TOKENS:
        # The query is scaled rather than the product: it has fewer numbers.
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return weights.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention; q and v have a bias, k has none (it would cancel in the softmax)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tokens, seen: Tensor | None = None) -> Tokens:
        """Let every token look at every token, or only at those `seen` (batch, tokens) bool."""
        query, key, value = self._heads_of(x)
        return self.proj(attend(query, key, value, seen).transpose(1, 2).flatten(2))

    def weights(self, x: Tokens) -> Float[Tensor, "batch heads tokens tokens"]:
        """Return the weights that `forward` gives to the values; rows, the last axis, add up to 1."""
        query, key, _ = self._heads_of(x)
        return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1)

    def _heads_of(self, x: Tokens) -> Float[Tensor, "3 batch heads tokens part"]:
        """Return the queries, the keys and the values of all heads."""
        # One product for all three, and no parameter for the keys' bias, which would have no effect.
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        # (batch, tokens, 3 * heads * d) to three of (batch, heads, tokens, d).
        return qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tokens) -> Tokens:
        """Transform token by token."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    With `checkpointing` set, the forward pass keeps only its input, and the backward pass computes the rest again.
    """

    checkpointing = False

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tokens, seen: Tensor | None = None) -> Tokens:
        """Apply one residual layer."""
        if self.checkpointing and torch.is_grad_enabled():
            # A block draws nothing random (no dropout), so the state of the generators need not be restored.
            return checkpoint(self._forward, x, seen, use_reentrant=False, preserve_rng_state=False)
        return self._forward(x, seen)

    def _forward(self, x: Tokens, seen: Tensor | None) -> Tokens:
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


def initialize(module: nn.Module) -> None:
    """Set linears to Xavier-uniform and biases to zero, as the paper's code does; norms keep torch's ones and zeros."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def grid_positions(width: int, grid: PatchGrid, cls_token: bool) -> Tensor:
    """Return a fixed 2-D table, ([1 +] patches, width) float32: the first half encodes time, the second frequency.

    Each half is [sin, cos] of position / 10000 ** (i / (width / 4)); the CLS row is zeros (MAE, arXiv 2111.06377).
    """
    row, column = np.meshgrid(np.arange(grid.rows), np.arange(grid.columns), indexing="ij")
    table = np.concatenate([_sine_cosine(width // 2, column.ravel()), _sine_cosine(width // 2, row.ravel())], axis=1)
    return _with_cls_row(table, cls_token)


def line_positions(width: int, grid: PatchGrid, cls_token: bool) -> Tensor:
    """Return a fixed 1-D table over the tokens, ([1 +] patches, width) float32: even columns sin, odd columns cos."""
    # "Attention is all you need" (arXiv 1706.03762), section 3.5.
    tokens = np.arange(grid.rows * grid.columns)
    angle = tokens[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return _with_cls_row(np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle)), cls_token)


def _sine_cosine(width: int, position: np.ndarray) -> np.ndarray:
    angle = np.outer(position, 1 / 10000 ** (np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _with_cls_row(table: np.ndarray, cls_token: bool) -> Tensor:
    # Computed in float64 and rounded once, so that the table is the same on every machine.
    table = np.concatenate([np.zeros((int(cls_token), table.shape[1])), table])
    return torch.from_numpy(table.astype(np.float32))
