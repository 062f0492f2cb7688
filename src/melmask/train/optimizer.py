"""AdamW, Muon and the learning rate, which is a pure function of the step."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from melmask.config import OptimizerConfig
from melmask.errors import ConfigError
from melmask.train.schedule import Schedule


class MuonAndAdamW:
    """One optimizer made of two: Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for all else.

    Muon replaces the momentum of a matrix by the nearest orthogonal matrix. Its rate is scaled so that an update is as
    large as AdamW's (arXiv 2502.16982, section 2.2). Therefore the same learning rate and weight decay suit both.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer.name is 'muon', which needs PyTorch 2.9 or newer, but {torch.__version__} is installed; "
                "update it, or set optimizer.name=adamw"
            )
        # The blocks of a network are named "blocks"; an objective may have several such networks.
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if p.ndim == 2 and ".blocks." in f".{name}"]
        # AdamW moves everything else (embeddings, heads, norms, biases, tokens), as Muon's authors recommend.
        taken = set(map(id, matrices))
        rest = [p for _, p in trained if id(p) not in taken]
        muon = torch.optim.Muon(
            matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._parts: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": _adamw(rest, config)}

    @property
    def parts(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimizers that this one is made of."""
        return tuple(self._parts.values())

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both."""
        return [group for part in self._parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do as in torch.optim."""
        for part in self._parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Do as in torch.optim."""
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, by name."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
            check_moments(part)


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless each moment has the shape of its parameter; counts of steps are single numbers."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            # PyTorch takes what a file holds, and fails in the next step.
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, torch.Size()):
                raise ValueError(f"the moment {name} does not have its parameter's shape")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW | MuonAndAdamW:
    """Build the configured optimizer; it decays matrices only, not biases, norms and tokens.

    It moves the parameters that require a gradient. Those of an objective's teacher do not.

    Raises:
        ConfigError: the installed PyTorch does not have it.
    """
    if config.name == "muon":
        return MuonAndAdamW(model, config)
    return _adamw([p for p in model.parameters() if p.requires_grad], config)


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    # Biases, norms and tokens are the parameters with one dimension.
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # `fused` makes one pass over all parameters instead of several passes over each.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def step_jobs(optimizer: torch.optim.AdamW | MuonAndAdamW, count: int) -> list[Callable[[], None]]:
    """Return `count` jobs that together do what `optimizer.step()` does; each moves parameters of its own.

    A job moves the same parameters in every step, and about as many operations as any other.
    """
    costs = [0] * count
    jobs: list[list[torch.optim.Optimizer]] = [[] for _ in range(count)]
    for whole in (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else optimizer.parts:
        muon = not isinstance(whole, torch.optim.AdamW)
        owner: dict[int, int] = {}
        # The most expensive parameter first, each to the job that has the least to do.
        for parameter in sorted((p for group in whole.param_groups for p in group["params"]), key=lambda p: -p.numel()):
            owner[id(parameter)] = job = costs.index(min(costs))
            # Muon multiplies each matrix with itself, and AdamW makes one pass over it.
            costs[job] += parameter.numel() * (min(parameter.shape) if muon else 1)
        for job, optimizers in enumerate(jobs):
            # The copy has the state of the whole, so that saving and restoring the whole is all there is.
            part = copy.copy(whole)
            part.state = whole.state
            part.param_groups = [
                group | {"params": [p for p in group["params"] if owner[id(p)] == job]} for group in whole.param_groups
            ]
            optimizers.append(part)

    def move(optimizers: list[torch.optim.Optimizer]) -> None:
        for part in optimizers:
            part.step()

    return [partial(move, optimizers) for optimizers in jobs]


def learning_rate(step: int, config: OptimizerConfig, views: int, schedule: Schedule | None = None) -> float:
    """Return the learning rate of step 0 .. steps - 1.

    It rises linearly from peak / warm-up steps to the peak, then falls to zero along half a cosine.

    Args:
        step: Steps already done.
        config: Peak, scaling rule and numbers of steps.
        views: Views of crops in a batch, over all processes.
        schedule: The numbers of steps that the run has planned; None for those of `config`.
    """
    schedule = schedule or Schedule.of(config)
    peak = config.learning_rate
    if config.learning_rate_batch:
        # The linear scaling rule (arXiv 1706.02677): twice the views, twice the rate.
        peak *= views / config.learning_rate_batch
    warmup_steps = schedule.warmup_at(step)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * schedule.progress(step)))
