"""Logistic regression on rows of the same features: the fits of all splits, draws or folds are solved together.

Each fit minimizes the summed cross-entropy of its training rows plus half its penalty times the squared weights, as
scikit-learn's LogisticRegression does with C = 1 / penalty; the bias has no penalty. The optimum is unique.

It is found by Newton's method, whose steps are solved by conjugate gradients (Nocedal and Wright, Numerical
Optimization, 2006, algorithms 5.3 and 7.1). Features are many and correlated, which makes plain L-BFGS slow. So the
conjugate gradients are preconditioned by the Hessian that all classes and fits would share if every row's probabilities
were their mean. All fits then need one factorization, and each product with the features serves all of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from melmask.labels.options import Kind

TOLERANCE = 3e-7
"""A fit ends when a Newton step would lower its loss by less than this share. With 1920 features of trained networks
the accuracy is then within 0.001 of the exact optimum's; the gradient tells much less (docs/log.md)."""
_NEWTON_STEPS = 40
_PRODUCTS = 60
"""At most so many products with the Hessian for a Newton step."""
_FORCING = 0.3
"""A Newton step is solved until its preconditioned residual is this share of the gradient."""
_REFRESH = 2.0
"""The preconditioner is made anew when the Hessian has shrunk or grown by this factor."""
_HALVINGS = 30
_ROUNDING = 1e-7
"""A loss in float32 is known to this share, so no smaller decrease is asked for."""
_NEVER = -1e9
"""The bias of a class that a fit has no row of. Its own optimum is minus infinity."""


@dataclass(frozen=True, kw_only=True)
class Regressions:
    """Several fits on rows of one set of features."""

    inputs: Float[Tensor, "rows dims"]
    """Features of unit scale, float32."""
    targets: Float[Tensor, "rows classes"]
    """One of each row's targets is 1 for `multiclass`, any of them for other kinds."""
    trained: Bool[Tensor, "fits rows"]
    """Which rows each fit learns from, at least one."""
    penalties: Float[Tensor, "fits dims"]
    """The factor of half the squared weight of each feature, above 0."""
    kind: Kind = "multiclass"
    """Cross-entropy over the classes for `multiclass`, and binary cross-entropy of each class otherwise."""


class Weights(NamedTuple):
    """What was fitted: logits are `inputs @ weight[fit] + bias[fit]`."""

    weight: Float[Tensor, "fits dims classes"]
    bias: Float[Tensor, "fits classes"]

    def logits(self, inputs: Float[Tensor, "rows dims"]) -> Float[Tensor, "fits rows classes"]:
        """Return the logits of rows under every fit."""
        return inputs @ self.weight + self.bias[:, None]


class _State(NamedTuple):
    """The fits that are not finished; the axis 1 of all tensors but `total` is theirs."""

    number: Tensor
    """Which fits these are; one axis only."""
    counted: Float[Tensor, "rows fits 1"]
    penalties: Float[Tensor, "dims fits 1"]
    known: Float[Tensor, "1 fits classes"]
    """Logits of 0 for the classes that a fit has rows of, and of minus infinity for the others."""
    weights: Float[Tensor, "dims fits classes"]
    logits: Float[Tensor, "rows fits classes"]

    def only(self, kept: Tensor) -> "_State":
        """Return the state of some of the fits."""
        return _State(self.number[kept], *(part[:, kept].contiguous() for part in self[1:]))


class _Step(NamedTuple):
    """A Newton step, and how it changes the logits."""

    weights: Float[Tensor, "dims fits classes"]
    logits: Float[Tensor, "rows fits classes"]


@torch.no_grad()
def fit_regressions(problem: Regressions, start: Weights | None = None) -> Weights:
    """Return the optimum of each fit; `start` are the weights to begin with, which saves time if they are near.

    Everything is computed in float32 on one device, and nothing is random.
    """
    return _Solver(problem).solve(start)


class _Solver:
    """Newton's method for all fits at the same time. The bias is a last feature, 1 everywhere, without penalty."""

    def __init__(self, problem: Regressions):
        rows, dims = problem.inputs.shape
        self._multiclass = problem.kind == "multiclass"
        self._x = torch.cat([problem.inputs.float(), problem.inputs.new_ones(rows, 1).float()], dim=1)
        # A product with a transposed view takes twice as long as with a copy.
        self._transposed = self._x.T.contiguous()
        self._targets = problem.targets.float()[:, None]
        fits = len(problem.trained)
        counted = problem.trained.float()
        # A class that is in no row of a fit is left out of it, as its bias would go to minus infinity step by step.
        occurs = (counted @ problem.targets.float()) > 0
        zeros = self._x.new_zeros(1, fits, self._targets.shape[2])
        penalties = F.pad(problem.penalties.float(), (0, 1)).T[:, :, None]
        known = zeros.masked_fill(~occurs, _NEVER)
        weights = zeros.expand(dims + 1, -1, -1).clone()
        self._all = _State(
            torch.arange(fits, device=weights.device), counted.T[:, :, None].contiguous(), penalties.contiguous(),
            known, weights, known.expand(rows, -1, -1).clone(),
        )  # fmt: skip
        self._inverse: Tensor | None = None
        self._curvature = 0.0

    def solve(self, start: Weights | None) -> Weights:
        """Take Newton steps until every fit is at its optimum."""
        state, found = self._all, self._all.weights.clone()
        if start is not None:
            weights = torch.cat([start.weight, start.bias.clamp(min=_NEVER / 2)[:, None]], dim=1).transpose(0, 1)
            weights = torch.where(state.known < 0, 0.0, weights.to(found)).contiguous()
            state = state._replace(weights=weights, logits=self._times(weights) + state.known)
        loss = self._loss(state)
        for _ in range(_NEWTON_STEPS):
            found[:, state.number] = state.weights
            p = state.logits.softmax(-1) if self._multiclass else state.logits.sigmoid()
            gradient = self._gradient(state, p)
            self._precondition(state, p)
            # Half of this is what a Newton step would gain if the preconditioner were the Hessian.
            left = _dot(gradient, self._preconditioned(gradient)) > 2 * TOLERANCE * loss
            if not left.any():
                break
            if not left.all():
                state, loss, p, gradient = state.only(left), loss[left], p[:, left], gradient[:, left]
            step = self._newton_step(state, p, gradient)
            state, loss, moved = self._line_search(state, loss, step, _dot(gradient, step.weights))
            if not moved:
                break
        found[:, state.number] = state.weights
        bias = found[-1] + self._all.known[0]
        return Weights(found[:-1].transpose(0, 1).contiguous(), bias)

    def _times(self, weights: Tensor) -> Tensor:
        """Multiply the features with (dims, fits, classes): (rows, fits, classes)."""
        return (self._x @ weights.flatten(1)).view(-1, *weights.shape[1:])

    def _times_transposed(self, errors: Tensor) -> Tensor:
        """Multiply the transposed features with (rows, fits, classes): (dims, fits, classes)."""
        return (self._transposed @ errors.flatten(1)).view(-1, *errors.shape[1:])

    def _loss(self, state: _State) -> Float[Tensor, " fits"]:
        """Return the penalized loss of each fit, float64."""
        logits, targets = state.logits, self._targets
        if self._multiclass:
            rows = logits.logsumexp(-1, keepdim=True) - (logits * targets).sum(-1, keepdim=True)
        else:
            rows = (F.softplus(logits) - logits * targets).sum(-1, keepdim=True)
        return _dot(state.counted, rows) + 0.5 * _dot(state.penalties * state.weights, state.weights)

    def _gradient(self, state: _State, p: Tensor) -> Tensor:
        return self._times_transposed((p - self._targets) * state.counted) + state.penalties * state.weights

    def _precondition(self, state: _State, p: Tensor) -> None:
        """Factorize the mean Hessian of the classes and fits, unless it is about what it was."""
        curvature = ((p * (1 - p)).mean(-1) * state.counted[:, :, 0]).mean(1)
        total = float(curvature.sum())
        if self._inverse is not None and 1 / _REFRESH < total / self._curvature < _REFRESH:
            return
        scaled = self._x * curvature.sqrt()[:, None]
        hessian = scaled.T @ scaled
        # The bias has no penalty, and rounding may make directions without one negative.
        hessian.diagonal().add_(state.penalties.mean((1, 2))).add_(1e-6 * hessian.diagonal().mean())
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        self._curvature = total

    def _preconditioned(self, vectors: Tensor) -> Tensor:
        assert self._inverse is not None
        return (self._inverse @ vectors.flatten(1)).view(vectors.shape)

    def _newton_step(self, state: _State, p: Tensor, gradient: Tensor) -> _Step:
        """Solve Hessian @ step = -gradient roughly, by preconditioned conjugate gradients."""
        step, change = torch.zeros_like(gradient), torch.zeros_like(p)
        residual = -gradient
        z = self._preconditioned(residual)
        direction, size = z.clone(), _dot(residual, z)
        enough = _FORCING**2 * size
        for _ in range(_PRODUCTS):
            along = self._times(direction)
            # The second derivative of cross-entropy, times the change of the logits along the direction.
            bent = p * (along - (p * along).sum(-1, keepdim=True)) if self._multiclass else p * (1 - p) * along
            product = self._times_transposed(bent * state.counted) + state.penalties * direction
            # A fit whose residual has become 0 stays where it is.
            length = torch.where(size > 0, size / _dot(direction, product), 0.0).float()[None, :, None]
            step += length * direction
            change += length * along
            residual -= length * product
            z = self._preconditioned(residual)
            before, size = size, _dot(residual, z)
            if (size <= enough).all():
                break
            direction = z + torch.where(before > 0, size / before, 0.0).float()[None, :, None] * direction
        return _Step(step, change)

    def _line_search(self, state: _State, loss: Tensor, step: _Step, slope: Tensor) -> tuple[_State, Tensor, bool]:
        """Take the whole step, or half of it, and so on, until each fit's loss falls enough (Armijo's rule).

        Returns:
            The new state, its losses, and whether any fit moved.
        """
        length = torch.ones_like(loss)
        for _ in range(_HALVINGS):
            by = length.float()[None, :, None]
            weights, logits = state.weights + by * step.weights, state.logits + by * step.logits
            moved = state._replace(weights=weights, logits=logits)
            new = self._loss(moved)
            high = new > loss + 1e-4 * length * slope + _ROUNDING * loss
            if not high.any():
                break
            length = torch.where(high, length / 2, length)
        return moved, new, bool((length > 0.5**_HALVINGS).any())


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " fits"]:
    """Return the inner product of each fit (axis 1), summed in float64."""
    return (a * b).sum((0, 2), dtype=torch.float64)
