"""The network that checkpoints hold and inference runs: an encoder and, unless its configuration has none, a decoder.

The file reads downwards: patches, the encoder, the decoder, both together. It does not say how the network is trained;
that is the objective's matter (`objectives/`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melmask.axes import LogMel, Patches, Tokens
from melmask.config import ModelConfig
from melmask.errors import CheckpointError, some_of
from melmask.geometry import PatchGrid, grid_of
from melmask.models.layers import NORM_EPSILON, Block, grid_positions, initialize, line_positions

_TOKEN_STD = 0.02
"""Spread of the first values of learned tokens, as in BERT and in the image MAE."""


def patchify(logmel: LogMel, patch_mels: int, patch_frames: int, resolutions: int = 1) -> Patches:
    """Cut into patches, frequency-major; a patch's values are ordered (resolution, mel in patch, frame in patch).

    A patch holds the bands of the same numbers of each resolution, so their number does not depend on `resolutions`.
    """
    # (batch, resolution, rows, mel in patch, columns, frame in patch); then the indices within a patch go last.
    x = logmel.unflatten(2, (-1, patch_frames)).unflatten(1, (resolutions, -1, patch_mels))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Patches, rows: int, patch_mels: int, resolutions: int = 1) -> LogMel:
    """Undo `patchify`; `rows` is the number of patches over frequency."""
    x = patches.unflatten(2, (resolutions, patch_mels, -1)).unflatten(1, (rows, -1))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(1, 3)


def gather_tokens(tokens: Tokens, ids: Int[Tensor, "batch ids"]) -> Float[Tensor, "batch ids dim"]:
    """Return tokens[ids], row by row."""
    # Whole tokens are copied. `torch.gather` looks up each of their values, and takes six times as long.
    first = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, (ids + first).flatten()).unflatten(0, ids.shape)


class ViT(nn.Module):
    """The encoder, a Vision Transformer: linear patch embedding, fixed 2-D positions, `depth` blocks, final norm."""

    positions: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.grid = grid_of(config)
        # A linear layer on flattened patches computes what a convolution with stride = kernel would.
        self.patch_embed = nn.Linear(config.patch_values, config.width)
        self.cls_token = nn.Parameter(torch.zeros(config.width)) if config.cls_token else None
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        # Not persistent: positions follow from the configuration, so checkpoints do not hold them.
        self.register_buffer("positions", grid_positions(config.width, self.grid, False), persistent=False)
        initialize(self)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=_TOKEN_STD)

    def patches_of(self, logmel: LogMel) -> Patches:
        """Cut a normalized log-mel of whole patches, as wide as a unit or narrower."""
        return patchify(logmel, self.config.patch_mels, self.config.patch_frames, self.config.resolutions)

    def positions_for(self, columns: int) -> Float[Tensor, "patches dim"]:
        """Return the positions of a unit of `columns` patches in time: the first columns of the trained grid."""
        return self.positions.unflatten(0, (self.grid.rows, -1))[:, :columns].flatten(0, 1)

    def encode_visible(self, patches: Patches, visible_ids: Int[Tensor, "batch ids"], *, normed: bool = True) -> Tokens:
        """Embed and encode only the patches in `visible_ids`: ([CLS +] visible) tokens, after the final norm or not."""
        # Hidden patches are dropped before they are embedded: the encoder computes nothing for them.
        positions = self.positions_for(patches.shape[1] // self.grid.rows)
        x = self._with_cls(self.patch_embed(gather_tokens(patches, visible_ids)) + positions[visible_ids])
        for block in self.blocks:
            x = block(x)
        return self.norm(x) if normed else x

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
        # The CLS token goes first and has no position.
        if self.cls_token is None:
            return x
        return torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1)


class Decoder(nn.Module):
    """A narrow transformer that fills in the patches which the encoder has not seen.

    It turns the encoder's tokens, with mask tokens in the hidden places, into patch values.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.decoder_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, config.decoder_heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.predict = nn.Linear(width, config.patch_values)
        table = line_positions if config.decoder_positions == "line" else grid_positions
        self.register_buffer("positions", table(width, grid_of(config), config.cls_token), persistent=False)
        initialize(self)
        nn.init.normal_(self.mask_token, std=_TOKEN_STD)

    def forward(
        self,
        encoded: Tokens,
        visible_ids: Int[Tensor, "batch visible"],
        predicted_ids: Int[Tensor, "batch predicted"],
        grid: PatchGrid,
    ) -> Float[Tensor, "batch predicted values"]:
        """Predict the patches in `predicted_ids`; `encoded` has the CLS token first if the model has one."""
        return self.predict(self.tokens(encoded, visible_ids, predicted_ids, grid))

    def tokens(
        self,
        encoded: Tokens,
        visible_ids: Int[Tensor, "batch visible"],
        predicted_ids: Int[Tensor, "batch predicted"],
        grid: PatchGrid,
    ) -> Float[Tensor, "batch predicted narrow"]:
        """Return the tokens of the patches in `predicted_ids`; `predict`, or another layer, takes them."""
        first = int(self.config.cls_token)
        x = self.embed(encoded)
        # Every place gets the mask token, then the visible tokens overwrite theirs.
        tokens = self.mask_token.to(x.dtype).expand(x.shape[0], grid.patches, -1)
        tokens = tokens.scatter(1, visible_ids[:, :, None].expand(-1, -1, x.shape[2]), x[:, first:])
        x = torch.cat([x[:, :first], tokens], dim=1) + self._positions_for(grid)
        for block in self.blocks:
            x = block(x)
        # Only what is asked for is predicted: in training the hidden patches.
        return self.norm(gather_tokens(x[:, first:], predicted_ids))

    def _positions_for(self, grid: PatchGrid) -> Tensor:
        # A shorter unit keeps each patch's trained position: the first columns of every row.
        first = int(self.config.cls_token)
        full = self.positions[first:].view(grid.rows, -1, self.positions.shape[1])
        return torch.cat([self.positions[:first], full[:, : grid.columns].flatten(0, 1)])


class Network(nn.Module):
    """Encoder and decoder. The names of its weights begin with `encoder.` and `decoder.` in every file."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = ViT(config)
        self.decoder = Decoder(config) if config.has_decoder else None

    def blocks(self) -> list[Block]:
        """Return the transformer blocks of encoder and decoder."""
        modules = [self.encoder.blocks] if self.decoder is None else [self.encoder.blocks, self.decoder.blocks]
        return [block for blocks in modules for block in blocks if isinstance(block, Block)]


def build_network(config: ModelConfig, seed: int = 0) -> Network:
    """Build a new network whose weights depend on the seed alone."""
    with seeded(seed):
        return Network(config)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights of a network; no memory is made for them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Network(config).state_dict().items()}


def check_shapes(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], source: Path) -> None:
    """Raise CheckpointError, which names the file `source`, unless both have the same names and shapes."""
    here, there = ({name: tuple(shape) for name, shape in shapes.items()} for shapes in (expected, found))
    if wrong := sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name)):
        raise CheckpointError(
            f"{source} does not fit its architecture in {some_of(wrong)}; it is damaged or of another model"
        )


def finite_weights(weights: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the weights in float32.

    Raises:
        CheckpointError: a value is NaN, infinite or beyond float32; the error names its tensor and the file `source`.
    """
    # A number of float64 may be infinite in float32.
    floats = {name: tensor.float() for name, tensor in weights.items()}
    # A network with one NaN embeds every sound as NaN; an error here is easier to understand.
    if broken := [name for name, tensor in floats.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{source} has values that are not finite in {some_of(broken)}; use another checkpoint")
    return floats


def network_with(config: ModelConfig, weights: Mapping[str, Tensor], source: Path) -> Network:
    """Build the network that holds `weights`; names and shapes must match exactly, and all values be finite.

    Raises:
        CheckpointError: they do not; the error names the file `source`.
    """
    # The shapes come first: a configuration that lies must not make a network that fills the memory.
    check_shapes(weight_shapes(config), {name: tensor.shape for name, tensor in weights.items()}, source)
    floats = finite_weights(weights, source)
    network = build_network(config)
    network.load_state_dict(floats)
    return network


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the weights of modules that are built inside depend on the seed alone."""
    # PyTorch's initializers draw from the global generator: borrow it, and restore its state at the end.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
