"""The linear head of a classifier, and where its training begins: as the probe of the untouched encoder's vectors."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["multiclass", "multilabel", "event"]
_PENALTIES = (1000.0, 100.0, 10.0, 1.0)
"""Of the squared weights against the summed loss of all rows."""
_ITERATIONS = 200
_CONSTANT, _IGNORED = 1e-3, 1e9
"""What varies less than this share of the median feature tells nothing; divided by so much it says nothing either."""


class Head(nn.Module):
    """A linear layer on vectors standardised by fixed moments."""

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
        """(..., dims) to logits (..., classes)."""
        return self.linear((vectors - self.mean) / self.std)


def fit_head(head: Head, kind: Kind, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> None:
    """Set a head to the linear probe (arXiv 2202.10054) of vectors (rows, dims) and their targets (rows, classes).

    Of several penalties the one with the least loss on the validation rows is taken: a head that is too sure of itself
    has large gradients, and they would spoil the encoder before it has learnt anything. What hardly varies is ignored:
    the deviation over time of clips of a single patch is 0, and of longer ones, seen later, it is not.
    """
    with torch.no_grad():
        std = train[0].std(0, correction=0)
        head.mean.copy_(train[0].mean(0))
        head.std.copy_(torch.where(std > _CONSTANT * std[std > 0].median(), std, _IGNORED))
    inputs, checked = (((rows - head.mean) / head.std).double().cpu() for rows, _ in (train, valid))
    targets, truth = train[1].double(), valid[1].double()
    weight = torch.zeros(targets.shape[1], inputs.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.double, requires_grad=True)
    least = float("inf")
    # Each fit begins with the one before it, so four cost little more than one.
    for penalty in _PENALTIES:
        _fit(weight, bias, inputs, targets, kind, penalty)
        with torch.no_grad():
            loss = float(_summed_loss(checked @ weight.T + bias, truth, kind))
            if loss < least:
                least = loss
                head.linear.weight.copy_(weight)
                head.linear.bias.copy_(bias)


def _fit(weight: Tensor, bias: Tensor, inputs: Tensor, targets: Tensor, kind: Kind, penalty: float) -> None:
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
