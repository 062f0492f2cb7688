"""The network that checkpoints hold and inference runs: an encoder and, unless its configuration has none, a decoder.

It says nothing of how it is trained; that is the objective's matter (`objectives/`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from melmask.config import ModelConfig
from melmask.models.decoder import Decoder
from melmask.models.layers import Block
from melmask.models.vit import ViT


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the weights of modules that are built in here depend on the seed alone."""
    # torch's initializers draw from the global generator: borrow it, and leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
