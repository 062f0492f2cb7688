"""The linear head of a classifier, and the fit that it starts from: a linear probe of the untouched encoder."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["multiclass", "multilabel", "event"]
"""One label per clip, any number of labels per clip, or events with times."""

_PENALTIES = (1000.0, 100.0, 10.0, 1.0)
"""Weights of the squared weights against the summed loss of all rows, tried from the strongest to the weakest."""
_ITERATIONS = 200
_CONSTANT = 1e-3
"""A feature that varies less than this share of the median feature carries no information."""
_IGNORED = 1e9
"""Such a feature is divided by this, so that it has no effect on longer clips either, where it may vary."""


class Head(nn.Module):
    """A linear layer on vectors that are standardized by fixed moments."""

    mean: Tensor
    std: Tensor

    def __init__(self, dims: int, classes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("std", torch.ones(dims))
        self.linear = nn.Linear(dims, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (..., dims) to logits (..., classes)."""
        return self.linear((vectors - self.mean) / self.std)


def fit_head(head: Head, kind: Kind, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> None:
    """Fit a head to vectors (rows, dims) and targets (rows, classes), as a linear probe (arXiv 2202.10054).

    The penalty with the least loss on the validation rows wins. A head that is too sure of itself has large gradients,
    which would spoil the encoder before it has learned anything.

    `downstream.probe.linear_probe` is another tool. It scores features with scikit-learn, an optional library, at one
    fixed penalty and for one label per row; this fit also serves several labels per row, and chooses its penalty.
    """
    # The deviation over time is 0 for clips of a single patch, but not for longer clips that come later: a feature
    # that hardly varies here is ignored for good.
    with torch.no_grad():
        std = train[0].std(0, correction=0)
        head.mean.copy_(train[0].mean(0))
        head.std.copy_(torch.where(std > _CONSTANT * std[std > 0].median(), std, _IGNORED))
    inputs, checked = (((rows - head.mean) / head.std).double().cpu() for rows, _ in (train, valid))
    targets, truth = train[1].double(), valid[1].double()
    weight = torch.zeros(targets.shape[1], inputs.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.double, requires_grad=True)
    least = float("inf")
    # Each fit starts from the previous one, so four fits cost little more than one.
    for penalty in _PENALTIES:
        _fit(weight, bias, inputs, targets, kind, penalty)
        with torch.no_grad():
            loss = float(_summed_loss(checked @ weight.T + bias, truth, kind))
            if loss < least:
                least = loss
                head.linear.weight.copy_(weight)
                head.linear.bias.copy_(bias)


def _fit(weight: Tensor, bias: Tensor, inputs: Tensor, targets: Tensor, kind: Kind, penalty: float) -> None:
    """Minimize the penalized loss over `weight` and `bias`, in place."""
    lbfgs = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        lbfgs.zero_grad()
        total = _summed_loss(inputs @ weight.T + bias, targets, kind) + 0.5 * penalty * weight.square().sum()
        total.backward()
        return total

    lbfgs.step(loss)


def _summed_loss(logits: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    if kind == "multiclass":
        return -(targets * logits.log_softmax(-1)).sum()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
