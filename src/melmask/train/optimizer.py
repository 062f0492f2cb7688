"""The optimizer's parameter groups, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from melmask.config import OptimizerConfig, PretrainConfig
from melmask.errors import ConfigError


class MuonAndAdamW:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for all else, as one optimizer.

    Muon replaces the momentum of a matrix by the nearest orthogonal matrix. Its rate is scaled so that an update is as
    large as AdamW's (arXiv 2502.16982, section 2.2); then the same learning rate and weight decay suit both.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer.name is 'muon', which needs PyTorch 2.9 or newer; this is {torch.__version__}: update it, "
                "or set optimizer.name=adamw"
            )
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in trained if p.ndim == 2 and ".blocks." in f".{name}"]
        # Everything else - embeddings, heads, norms, biases, tokens - is AdamW's, as in the paper on Muon.
        taken = set(map(id, matrices))
        rest = [p for _, p in trained if id(p) not in taken]
        muon = torch.optim.Muon(
            matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._parts: dict[str, torch.optim.Optimizer] = {"muon": muon, "adamw": _adamw(rest, config)}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
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
        """Take over what `state_dict` gave."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW | MuonAndAdamW:
    """Build the configured optimizer; it decays matrices only, not biases, norms and tokens.

    It moves the parameters that require a gradient: an objective's teacher, say, does not.

    Raises:
        ConfigError: this PyTorch does not have it.
    """
    if config.name == "muon":
        return MuonAndAdamW(model, config)
    return _adamw([p for p in model.parameters() if p.requires_grad], config)


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # fused: one pass over all parameters instead of several for each.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Return the rate of step 0 .. steps - 1: linear from peak / warm-up to the peak, then half a cosine to zero."""
    peak, warmup_steps, steps = config.peak_learning_rate, config.optimizer.warmup_steps, config.optimizer.steps
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
