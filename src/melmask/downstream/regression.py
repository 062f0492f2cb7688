"""Logistic regression on rows of the same features: the fits of all splits, draws or folds are solved together.

Each fit minimizes the summed cross-entropy of its training rows plus half its penalty times the squared weights, as
scikit-learn's LogisticRegression does with C = 1 / penalty; the bias has no penalty. The optimum is unique.

It is found by Newton's method, whose steps are solved by conjugate gradients (Nocedal and Wright, Numerical
Optimization, 2006, algorithms 5.3 and 7.1). Features are many and correlated, which makes plain L-BFGS slow. So the
features are whitened: M = L L' is the Hessian that all classes and fits would share if every row had their mean
curvature C. In the variables v = L' w, with the rows E = X L'^-1, a Hessian X' B X + D becomes I + E' (B - C) E, which
is well conditioned and needs two products with E. All fits share one factorization, and each product serves them all.

Where the CPU multiplies bfloat16, these products are in bfloat16, which is some five times as fast. Only the step gets
rough by that. Gradients, losses and the line search are in float32, so the optimum is the same.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from melmask.labels.options import Kind
from melmask.system.hardware import cpu_computes_bf16

TOLERANCE = 3e-7
"""A fit ends when a Newton step would lower its loss by less than this share. With 1920 features of trained networks
the accuracy is then within 0.001 of the exact optimum's; the gradient tells much less (docs/log.md)."""
_NEWTON_STEPS = 60
_PRODUCTS = 100
"""At most so many products with the Hessian for a Newton step."""
_FORCING = 0.3
"""A Newton step is solved until its residual is this share of the gradient, both in the whitened variables."""
_RENEWAL = 1.5
"""The features are whitened anew when the products since then have taken about as long as that takes: when products
times columns (of all classes and fits) are this many times the dimensions."""
_REFRESH = 2.0
"""And they are when the curvature has shrunk or grown by this factor. The end of a fit is judged by it."""
_LEAST_BEND = 1e-4
"""The Hessian bends at least this much along any whitened direction, whatever bfloat16 makes of it."""
_ALIKE = 4.0
"""Fits are solved together if no penalty is more than this many times that of another fit."""
_FLAT = 0.1
"""A line search ends where the slope is this share of the slope at its start."""
_TRIALS = 16
_ROUNDING = 1e-7
"""A loss in float32 is known to this share, so no smaller rise counts."""
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


class _Basis(NamedTuple):
    """The features whitened by a mean Hessian."""

    curvature: Float[Tensor, "rows 1 1"]
    """The mean over classes and fits."""
    lower: Float[Tensor, "dims dims"]
    """The Cholesky factor of the mean Hessian."""
    rows: Float[Tensor, "rows dims"]
    """bfloat16 or float32, as is `transposed`."""
    transposed: Float[Tensor, "dims rows"]

    def slope(self, gradient: Tensor) -> Tensor:
        """Return a gradient (dims, fits, classes) by the whitened variables."""
        return torch.linalg.solve_triangular(self.lower, gradient.flatten(1), upper=False).view(gradient.shape)

    def weights(self, step: Tensor) -> Tensor:
        """Return what a step of the whitened variables (dims, fits, classes) is for the weights."""
        return torch.linalg.solve_triangular(self.lower.T, step.flatten(1), upper=True).view(step.shape)


class _Step(NamedTuple):
    """A Newton step, and how it changes the logits."""

    weights: Float[Tensor, "dims fits classes"]
    logits: Float[Tensor, "rows fits classes"]


@torch.no_grad()
def fit_regressions(problem: Regressions, start: Weights | None = None) -> Weights:
    """Return the optimum of each fit; `start` are the weights to begin with, which saves time if they are near.

    Everything is computed on one device, and nothing is random.
    """
    penalties = problem.penalties
    if (penalties.amax(0) <= _ALIKE * penalties.amin(0)).all():
        return _Solver(problem).solve(start)
    found = []
    for fit in range(len(penalties)):
        alone = replace(problem, trained=problem.trained[[fit]], penalties=penalties[[fit]])
        begun = None if start is None else Weights(start.weight[[fit]], start.bias[[fit]])
        found.append(_Solver(alone).solve(begun))
    return Weights(torch.cat([one.weight for one in found]), torch.cat([one.bias for one in found]))


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
        self._quick = self._x.device.type == "cpu" and cpu_computes_bf16()
        self._basis: _Basis | None = None
        self._used = 0

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
            p = self._probabilities(state.logits)
            gradient = self._gradient(state, p)
            basis = self._whitened(state, p)
            slope = basis.slope(gradient)
            # Half of this is what a Newton step would gain if the mean Hessian were that of each fit.
            left = _dot(slope, slope) > 2 * TOLERANCE * loss
            if not left.any():
                break
            if not left.all():
                state, loss, p = state.only(left), loss[left], p[:, left]
                gradient, slope = gradient[:, left], slope[:, left]
            step, products = self._newton_step(state, p, slope)
            state, loss, moved = self._line_search(state, loss, step, _dot(gradient, step.weights))
            self._used += products * p[0].numel()
            if not moved and not self._quick:
                break
            if self._quick and (products == _PRODUCTS or not moved):
                # What bfloat16 cannot solve, float32 may.
                self._quick, self._basis = False, None
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

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self._multiclass else logits.sigmoid()

    def _bent(self, p: Tensor, along: Tensor) -> Tensor:
        """Multiply the second derivative of cross-entropy with a change of the logits."""
        weighted = p * along
        return weighted - p * (weighted.sum(-1, keepdim=True) if self._multiclass else weighted)

    def _whitened(self, state: _State, p: Tensor) -> _Basis:
        """Return the features whitened by the mean Hessian of the classes and fits, or by a recent one."""
        curvature = ((p * (1 - p)).mean(-1) * state.counted[:, :, 0]).mean(1)
        if self._basis is not None and self._used < _RENEWAL * self._x.shape[1]:
            change = float(curvature.sum() / self._basis.curvature.sum())
            if 1 / _REFRESH < change < _REFRESH:
                return self._basis
        scaled = self._x * curvature.sqrt()[:, None]
        hessian = scaled.T @ scaled
        # The bias has no penalty, and rounding may make directions without one negative.
        hessian.diagonal().add_(state.penalties.mean((1, 2))).add_(1e-6 * hessian.diagonal().mean())
        lower = torch.linalg.cholesky(hessian)
        rows = torch.linalg.solve_triangular(lower.T, self._x, upper=True, left=False)
        rows = rows.to(torch.bfloat16 if self._quick else torch.float32).contiguous()
        self._basis, self._used = _Basis(curvature[:, None, None], lower, rows, rows.T.contiguous()), 0
        return self._basis

    def _newton_step(self, state: _State, p: Tensor, slope: Tensor) -> tuple[_Step, int]:
        """Solve Hessian @ step = -gradient roughly, by conjugate gradients in the whitened variables.

        Returns:
            The step, and how many products with the Hessian it took.
        """
        assert self._basis is not None
        curvature, _, rows, transposed = self._basis
        step, residual = torch.zeros_like(slope), -slope
        direction, size = residual.clone(), _dot(residual, residual)
        enough = _FORCING**2 * size
        products = 0
        while products < _PRODUCTS and (size > enough).any():
            products += 1
            along = (rows @ direction.flatten(1).to(rows.dtype)).float().view(p.shape)
            bent = self._bent(p, along) * state.counted - curvature * along
            product = (transposed @ bent.flatten(1).to(rows.dtype)).float().view(slope.shape) + direction
            bend = torch.maximum(_dot(direction, product), _LEAST_BEND * _dot(direction, direction))
            # A fit whose residual has become 0 stays where it is.
            length = torch.where(size > 0, size / bend, 0.0).float()[None, :, None]
            step += length * direction
            residual -= length * product
            before, size = size, _dot(residual, residual)
            direction = residual + torch.where(before > 0, size / before, 0.0).float()[None, :, None] * direction
        weights = self._basis.weights(step)
        return _Step(weights, self._times(weights)), products

    def _line_search(self, state: _State, loss: Tensor, step: _Step, slope: Tensor) -> tuple[_State, Tensor, bool]:
        """Go along the step to where the loss of each fit is about least, by Newton's method and bisection.

        Returns:
            The new state, its losses, and whether any fit moved.
        """
        resistance = state.penalties * step.weights
        level, growth = _dot(resistance, state.weights), _dot(resistance, step.weights)
        length, low, high = torch.ones_like(loss), torch.zeros_like(loss), torch.full_like(loss, torch.inf)
        for trial in range(_TRIALS):
            p = self._probabilities(state.logits + length.float()[None, :, None] * step.logits)
            here = _dot((p - self._targets) * state.counted, step.logits) + level + length * growth
            flat = here.abs() <= _FLAT * slope.abs()
            if flat.all():
                break
            low, high = torch.where(here < 0, length, low), torch.where(here > 0, length, high)
            bend = _dot(self._bent(p, step.logits) * state.counted, step.logits) + growth
            middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
            newton = length - here / bend
            inside = (newton > low) & (newton < torch.minimum(high, 4 * length))
            # Newton's method alone would creep where the loss is bent at one end only.
            length = torch.where(flat, length, torch.where(inside & (trial % 2 == 0), newton, middle))
        # The slope at the lower end is downward, so the loss is less there than at the start.
        length = torch.where(flat, length, low)
        by = length.float()[None, :, None]
        moved = state._replace(weights=state.weights + by * step.weights, logits=state.logits + by * step.logits)
        new = self._loss(moved)
        lower = (new <= loss + _ROUNDING * loss) & (length > 0)
        return moved, new, bool(lower.any())


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " fits"]:
    """Return the inner product of each fit (axis 1), summed in float64."""
    return (a * b).sum((0, 2), dtype=torch.float64)
