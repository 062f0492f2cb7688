"""Floating-point operations of the network, computed from its configuration alone, without torch.

Only matrix products count, with a multiplication and its addition as two operations: patch embedding, qkv, q k^T,
weights v, projections, MLPs, the decoder's embedding and prediction. Norms, softmax and GELU do not count, although
they take time. A product that a fused kernel repeats in the backward pass counts once.
"""

from melmask.config import ModelConfig
from melmask.geometry import grid_of


def encoder_forward_flops(config: ModelConfig, patches: int) -> int:
    """Return the operations for one crop with `patches` encoded patches: the visible ones, or all in inference."""
    tokens = patches + int(config.cls_token)
    return _patch_embedding_flops(config, patches) + config.depth * _block_flops(config.width, tokens)


def decoder_forward_flops(config: ModelConfig, visible: int, outputs: int | None = None) -> int:
    """Return the operations for one crop with `visible` encoded patches; the others are predicted.

    `outputs` is how many numbers are predicted of a patch; None: its values.
    """
    outputs = config.patch_values if outputs is None else outputs
    grid, cls = grid_of(config), int(config.cls_token)
    embedding = 2 * (visible + cls) * config.width * config.decoder_width
    blocks = config.decoder_depth * _block_flops(config.decoder_width, grid.patches + cls)
    prediction = 2 * (grid.patches - visible) * config.decoder_width * outputs
    return embedding + blocks + prediction


def step_flops(config: ModelConfig, ratio: float, crops: int, outputs: int | None = None) -> int:
    """Return the operations of one training step on `crops` masked crops; `outputs` is what the decoder predicts."""
    # The backward pass has two products for each product of the forward pass: one for the gradient of each factor. The
    # patch embedding has only one, because the gradient of its input is not needed.

    visible = grid_of(config).visible_patches(ratio)
    forward = encoder_forward_flops(config, visible) + decoder_forward_flops(config, visible, outputs)
    return crops * (3 * forward - _patch_embedding_flops(config, visible))


def _patch_embedding_flops(config: ModelConfig, patches: int) -> int:
    return 2 * patches * config.patch_values * config.width


def _block_flops(width: int, tokens: int) -> int:
    # Each token is multiplied by matrices of width ** 2 numbers: 3 for qkv, 1 for the projection, 8 for the MLP. In two
    # products, q k^T and weights v, it meets all tokens.
    return 2 * tokens * (12 * width**2 + 2 * tokens * width)
