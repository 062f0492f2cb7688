"""What a pre-training objective is, and how one is chosen by its name.

An objective owns a network and says how a batch of log-mels becomes one number, the loss. Everything else - reading
crops, the optimizer, several processes, snapshots, checkpoints, the record - is the same for all of them and lives in
`train/`. `docs/add-an-objective.md` shows how to write one.
"""

from importlib import import_module
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from melmask.config import PretrainConfig
from melmask.errors import unknown_name
from melmask.models.network import Network, build_network

OBJECTIVES = ("mae",)
"""Each is a module of this folder with a function `build(config: PretrainConfig, network: Network) -> Objective`."""


@runtime_checkable
class Objective(Protocol):
    """One way to pre-train a network.

    The weights of a new objective depend on `config.run.seed` alone, and everything random in a step on the seed and
    the number of the batch. That is why a resumed run equals an uninterrupted one.
    """

    network: Network
    """What the training leaves: checkpoints hold it, and inference runs it."""

    module: nn.Module
    """All weights and buffers of the objective: the network itself, or a module that contains it and more, such as a
    teacher. The optimizer moves those of its parameters that require a gradient, and a snapshot holds its state."""

    def draw(self, batch: int, rank: int, processes: int) -> Tensor:
        """Draw what is random about this process' rows of a batch, such as its masks: a pure function of the arguments.

        Args:
            batch: The number of the global batch, from 0.
            rank: Which of the processes this is; it has the rows `rank::processes` of the global batch.
            processes: How many there are.

        Returns:
            A tensor on the CPU with the same number of entries for each crop, those of a crop one after another.
        """
        ...

    def loss(self, logmel: Tensor, drawn: Tensor) -> Tensor:
        """Return the scalar loss, a mean over the crops.

        Args:
            logmel: (crops, mels, frames) float32, normalized, on the device.
            drawn: What `draw` gave for these crops, on the device.
        """
        ...

    def after_step(self) -> None:
        """Do what follows a step of the optimizer: move a teacher towards the network, say. May do nothing."""
        ...

    def step_flops(self, crops: int) -> int:
        """Return the floating-point operations of one step on so many crops (`models/flops.py` counts)."""
        ...


def build_objective(config: PretrainConfig, initial_weights: dict[str, Tensor] | None = None) -> Objective:
    """Build the objective that the configuration names.

    Args:
        config: Its seed decides the weights.
        initial_weights: By name, for the network, instead of those of the seed.

    Raises:
        ConfigError: there is no objective of that name, or its settings do not fit the network.
    """
    kind = config.objective.kind
    if kind not in OBJECTIVES:
        raise unknown_name("objective", kind, OBJECTIVES)
    network = build_network(config.model, config.run.seed)
    if initial_weights is not None:
        network.load_state_dict(initial_weights)
    return import_module(f"melmask.objectives.{kind}").build(config, network)
