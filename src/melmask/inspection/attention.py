"""What the tokens of a unit attend to, computed by the model's own layers."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from melmask.audio.logmel import normalize
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import ConfigError, InputError
from melmask.geometry import PatchGrid, grid_of
from melmask.models.layers import Block
from melmask.system.finite import check_finite
from melmask.system.hardware import autocast_of, inference_precision


@dataclass(frozen=True)
class Attention:
    """The attention weights of a unit, and what can be seen of them.

    weights: (layers, heads, tokens, tokens) float32; each row, the last axis, adds up to 1: how much the token of that
    row takes from each token. The CLS token comes first if the model has one, and then the patches, frequency-major.
    grid: the patches of the unit.  cls: whether there is a CLS token.

    Layers and heads count from 1 in the methods, as everywhere in melmask, and None means the mean over all of them.
    All methods return (rows, columns) of patches; row 0 holds the lowest frequencies.
    """

    weights: Float[np.ndarray, "layers heads tokens tokens"]
    grid: PatchGrid
    cls: bool

    def from_cls(self, layer: int | None = None, head: int | None = None) -> Float[np.ndarray, "rows columns"]:
        """Return how much the CLS token takes from each patch.

        Raises:
            ConfigError: the model has no CLS token, or no such layer or head.
        """
        if not self.cls:
            raise ConfigError("this model has no CLS token; look at the attention from a patch, or at the mean of all")
        return self._as_grid(self._chosen(layer, head)[0])

    def from_patch(
        self, patch: int, layer: int | None = None, head: int | None = None
    ) -> Float[np.ndarray, "rows columns"]:
        """Return how much the patch of this number, row * columns + column, takes from each patch.

        Raises:
            ConfigError: there is no such patch, layer or head.
        """
        if not 0 <= patch < self.grid.patches:
            raise ConfigError(f"patch is {patch}; this unit has patches 0 to {self.grid.patches - 1}")
        return self._as_grid(self._chosen(layer, head)[patch + int(self.cls)])

    def mean(self, layer: int | None = None, head: int | None = None) -> Float[np.ndarray, "rows columns"]:
        """Return how much all tokens take from each patch, in the mean."""
        return self._as_grid(self._chosen(layer, head).mean(0))

    def rollout(self) -> Float[np.ndarray, "rows columns"]:
        """Return how much of the CLS token, or of all tokens in the mean, comes from each patch through all layers.

        This is attention rollout (Abnar and Zuidema, arXiv 2005.00928): the product over the layers of half the
        attention, in the mean over its heads, and half the identity, which stands for the residual connection.
        """
        tokens = self.weights.shape[-1]
        through = np.eye(tokens)
        for layer in self.weights.mean(1):
            through = (0.5 * layer + 0.5 * np.eye(tokens)) @ through
        return self._as_grid(through[0] if self.cls else through.mean(0))

    def _chosen(self, layer: int | None, head: int | None) -> Float[np.ndarray, "tokens tokens"]:
        layers, heads = self.weights.shape[:2]
        for name, number, count in (("layer", layer, layers), ("head", head, heads)):
            if number is not None and not 1 <= number <= count:
                raise ConfigError(f"{name} is {number}; this model has {name}s 1 to {count}")
        chosen = self.weights if layer is None else self.weights[layer - 1 : layer]
        return (chosen if head is None else chosen[:, head - 1 : head]).mean((0, 1))

    def _as_grid(self, weights: Float[np.ndarray, " tokens"]) -> Float[np.ndarray, "rows columns"]:
        return weights[int(self.cls) :].reshape(self.grid).astype(np.float32)


@torch.inference_mode()
def attention_of(model: AudioEncoder, logmel: Float[np.ndarray, "bands frames"]) -> Attention:
    """Return the attention weights of all layers and heads for one unit, with no patch hidden.

    Args:
        model: A loaded model.
        logmel: Natural log, not normalized, as `AudioEncoder.logmel` returns it: whole patches, at most one unit.

    Raises:
        InputError: the log-mel is no unit of this model.
        NotFiniteError: the weights are NaN or infinite.
    """
    x = unit_tensor(model, logmel)
    encoder, weights = model.model.encoder, []
    with inference_precision(model.precision, model.device), autocast_of(model.precision, model.device):
        tokens = encoder.embed_all(normalize(x, model.card.statistics)[None])
        for block in encoder.blocks:
            assert isinstance(block, Block)
            weights.append(block.attn.weights(block.norm1(tokens))[0].float().cpu())
            tokens = block(tokens)
    found = torch.stack(weights).numpy()
    check_finite(found, "the attention")
    return Attention(found, grid_of(model.card.model, x.shape[1]), model.card.model.cls_token)


def unit_tensor(model: AudioEncoder, logmel: Float[np.ndarray, "bands frames"]) -> torch.Tensor:
    """Return a log-mel of whole patches, at most one unit long, on the model's device.

    Raises:
        InputError: it has another shape.
    """
    config = model.card.model
    x = torch.as_tensor(logmel, dtype=torch.float32, device=model.device)
    fits = x.ndim == 2 and x.shape[0] == config.bands and 0 < x.shape[1] <= config.frames
    if not fits or x.shape[1] % config.patch_frames:
        raise InputError(
            f"the log-mel is {tuple(x.shape)}; expected ({config.bands}, frames) with frames a multiple of "
            f"{config.patch_frames} up to {config.frames}"
        )
    return x
