"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from melmask.config import OptimizerConfig, PretrainConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, not on biases, norms and tokens."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Rate of step 0 .. steps - 1: linear from peak / warm-up to the peak, then half a cosine to zero."""
    peak, warmup_steps, steps = config.peak_learning_rate, config.optimizer.warmup_steps, config.optimizer.steps
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
