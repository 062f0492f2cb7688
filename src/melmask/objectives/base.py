"""What a pre-training objective is, and how one is chosen by its name.

An objective owns a network and turns a batch of log-mels into one number, the loss. Everything else is the same for all
objectives and lives in `train/`: reading crops, the optimizer, several processes, snapshots, checkpoints, the record.
`docs/add-an-objective.md` shows how to write one.
"""

from importlib import import_module
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from melmask.config import PretrainConfig
from melmask.errors import unknown_name
from melmask.models.network import Network, build_network

OBJECTIVES = ("mae", "m2d", "random_projection")
"""Each is a module of this folder with a function `build(config: PretrainConfig, network: Network) -> Objective`."""


@runtime_checkable
class Objective(Protocol):
    """One way to pre-train a network.

    The weights of a new objective depend on `config.run.seed` alone. Everything random in a step depends on the seed
    and the number of the batch alone. That is why a resumed run equals an uninterrupted one.
    """

    network: Network
    """What remains after training: checkpoints hold it, and inference runs it. Its `config` says what it has; if the
    objective keeps the decoder for itself, that is an encoder alone."""

    module: nn.Module
    """All weights and buffers of the objective: the network itself, or a module that contains it and more, such as a
    teacher. The optimizer moves those of its parameters that require a gradient, and a snapshot holds its state."""

    views_per_crop: int
    """How many times a step sees each crop, such as under several masks. The learning rate may follow the number of
    views in a batch (`optimizer.learning_rate_batch`)."""

    encoded_patches: int
    """Patches of a view that the trained encoder computes; `melmask bench` reports them."""

    def draw(self, batch: int, rank: int, processes: int) -> Tensor:
        """Draw what is random about this process' rows of a batch, such as its masks; only the arguments decide it.

        Args:
            batch: The number of the global batch, from 0.
            rank: The number of this process, from 0; it has the rows `rank::processes` of the global batch.
            processes: The number of processes.

        Returns:
            A tensor on the CPU with the same number of entries for each crop; the entries of a crop are neighbors.
        """
        ...

    def loss(self, logmel: Tensor, drawn: Tensor) -> Tensor:
        """Return the loss, a scalar, as a mean over the crops.

        Several threads call this at once, each with some of the crops. It must not change the objective.

        Args:
            logmel: (crops, mels, frames) float32, normalized, on the device.
            drawn: What `draw` returned for these crops, on the device.
        """
        ...

    def after_step(self) -> None:
        """Do what follows a step of the optimizer, such as moving a teacher towards the network; it may be nothing."""
        ...

    def step_flops(self, crops: int) -> int:
        """Return the floating-point operations of one step on `crops` crops (`models/flops.py` counts them)."""
        ...


def build_objective(config: PretrainConfig, initial_weights: dict[str, Tensor] | None = None) -> Objective:
    """Build the objective that the configuration names.

    Args:
        config: The configuration; its seed decides the weights.
        initial_weights: Weights of the network by name, instead of those of the seed.

    Raises:
        ConfigError: there is no objective of that name, or its settings do not fit the network.
    """
    kind = config.objective.kind
    # The list, not the folder, decides: a name from a file must not import any other module.
    if kind not in OBJECTIVES:
        raise unknown_name("objective", kind, OBJECTIVES)
    network = build_network(config.model, config.run.seed)
    if initial_weights is not None:
        network.load_state_dict(initial_weights)
    # The module is imported by name, so that this file does not depend on any objective.
    return import_module(f"melmask.objectives.{kind}").build(config, network)
