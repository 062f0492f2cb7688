"""The downstream classifiers of HEAR 2021: small networks on frozen vectors, trained until validation stops improving.

The protocol is that of hear-eval-kit 2021.1.3 (its predictions/task_predictions.py) under PyTorch Lightning 1.9. Each
hidden layer is Linear, BatchNorm, Dropout and ReLU, and a last Linear follows. Adam trains it, it is validated every
few epochs, and the first of the best validations wins. The vectors stay in memory, so a step is only the network's
arithmetic. Each head has its own generators, so many heads can be trained side by side.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adam import adam

from melmask.errors import ConfigError, unknown_name
from melmask.system.hardware import exact_float32_products

Initialize = Callable[..., Tensor]
INITIALIZATIONS: dict[str, Initialize] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
}
# Rows are validated in parts, so that the hidden layers need little memory.
_ROWS_PER_VALIDATION_BATCH = 8192


_HEAD_LIMITS = {
    "hidden_layers": (0, 16),
    "hidden_dim": (1, 1 << 16),
    "dropout": (0, 0.999),
    "learning_rate": (1e-12, 1000),
    "batch_size": (1, 1 << 24),
    "max_epochs": (1, 1_000_000_000),
    "validate_every_epochs": (1, 1_000_000_000),
    "patience": (1, 1_000_000_000),
}


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One point of the grid; the defaults are the kit's."""

    hidden_layers: int = 1
    hidden_dim: int = 1024
    dropout: float = 0.1
    learning_rate: float = 1e-3
    initialization: str = "xavier_uniform"
    batch_size: int = 1024
    max_epochs: int = 500
    validate_every_epochs: int = 3
    patience: int = 20
    """Validations without a better score before training ends."""
    precision: str = "fp32"
    """With 'bf16', training and validation compute the hidden layers in bfloat16."""

    def __post_init__(self) -> None:
        # Tasks bring values of their own. The bounds are far above what any head needs.
        for name, (least, most) in _HEAD_LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} is {value}; give {least} to {most}")
        if self.initialization not in INITIALIZATIONS:
            raise unknown_name("initialization", self.initialization, list(INITIALIZATIONS))


class Rows(NamedTuple):
    """Vectors of a task, and their targets."""

    vectors: Float[Tensor, "rows dims"]
    """float32, or bfloat16 for training."""
    targets: Float[Tensor, "rows classes"]
    """float32, 1 for each label of the row."""


class Validation(NamedTuple):
    """The judge's result of one validation."""

    score: float
    """The number that is compared, NaN if it cannot be computed."""
    detail: Any = None
    """Anything that is kept if this validation is the best one."""


Judge = Callable[[Float[np.ndarray, "rows classes"], float], Validation]
"""(probabilities of the validation rows, their mean loss) -> Validation."""


@dataclass
class TrainedHead:
    """A head with the weights of its best validation.

    Attributes: `network`, `config`, `multilabel`, `best` (its best validation), `epoch` (that of `best`, from 0),
    `epochs` (how many were run).
    """

    network: nn.Sequential
    config: HeadConfig
    multilabel: bool
    best: Validation
    epoch: int
    epochs: int

    def probabilities(self, vectors: Float[Tensor, "rows dims"]) -> Float[np.ndarray, "rows classes"]:
        """Return the softmax or, in multilabel tasks, the sigmoid of each class, computed in float32."""
        self.network.eval()
        with exact_float32_products(vectors.device):
            return _activate(_logits(self.network, vectors, "fp32"), self.multilabel).cpu().numpy()


class StoppedError(Exception):
    """Training was stopped by the caller's event."""


class TrainingRules(NamedTuple):
    """How a head is trained, apart from its point of the grid."""

    maximize: bool
    """Whether a larger score is better."""
    multilabel: bool = False
    """Use binary cross-entropy of each class, instead of cross-entropy over the classes."""
    reshuffle: bool = False
    """Draw a new order in each epoch, which the kit never does."""
    nan_stops: bool = True
    """Stop at the first score that is not finite, as Lightning's early stopping does."""


def train_head(
    train: Rows,
    valid: Rows,
    config: HeadConfig,
    judge: Judge,
    rules: TrainingRules,
    seed: int,
    stop: threading.Event | None = None,
) -> TrainedHead:
    """Train one head; all randomness comes from `seed`.

    Args:
        train: At least two rows. A last batch of one row is skipped, because it cannot be batch-normalized.
        valid: At least one row.
        config: The point of the grid.
        judge: Scores each validation.
        rules: The loss, which score is better, and the kit's quirks.
        seed: Decides weights, dropout and order.
        stop: Checked before each epoch.

    Raises:
        StoppedError: `stop` was set.
    """
    device = train.vectors.device
    network = build_head(train.vectors.shape[1], train.targets.shape[1], config, seed).to(device)
    optimizer = Adam(network.parameters(), config.learning_rate)
    # NumPy's generator draws the same order for every device.
    order = np.random.default_rng(seed) if rules.reshuffle else None
    # `worse` counts the validations since the best one.
    best, best_epoch, weights, worse, epoch = Validation(math.nan), -1, {}, 0, 0
    with exact_float32_products(device):
        for epoch in range(config.max_epochs):
            if stop is not None and stop.is_set():
                raise StoppedError
            network.train()
            for vectors, targets in _batches(train, config.batch_size, order):
                _loss(_forward(network, vectors, config.precision), targets, rules.multilabel).backward()
                optimizer.step()
            # As in Lightning, the first validation comes after `validate_every_epochs` epochs.
            if (epoch + 1) % config.validate_every_epochs:
                continue
            found = _validate(network, valid, config.precision, rules.multilabel, judge)
            # The first validation counts even if its score is NaN, because there must be weights to return.
            if best_epoch < 0 or better(found.score, best.score, rules.maximize):
                best, best_epoch = found, epoch
                # The weights are copied, because the optimizer changes them in place.
                weights = {name: value.clone() for name, value in network.state_dict().items()}
                worse = 0
            else:
                worse += 1
            if worse >= config.patience or (rules.nan_stops and not math.isfinite(found.score)):
                break
        if best_epoch < 0:
            # There were too few epochs for a validation, so the last weights are validated.
            best, best_epoch = _validate(network, valid, config.precision, rules.multilabel, judge), epoch
        else:
            network.load_state_dict(weights)
    return TrainedHead(network, config, rules.multilabel, best, best_epoch, epoch + 1)


class Adam:
    """`torch.optim.Adam`, fused, by its function: the class imports PyTorch's compiler, which takes a second."""

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        self._parameters, self._learning_rate = list(parameters), learning_rate
        self._means, self._squares = ([torch.zeros_like(p) for p in self._parameters] for _ in range(2))
        self._steps = [torch.zeros((), device=p.device) for p in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients, and clear the gradients."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        adam(
            self._parameters,
            gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        for parameter in self._parameters:
            parameter.grad = None


def build_head(dims: int, classes: int, config: HeadConfig, seed: int) -> nn.Sequential:
    """Return the untrained network on the CPU; its weights are drawn as the kit draws them."""
    generator = torch.Generator().manual_seed(seed)
    initialize = INITIALIZATIONS[config.initialization]
    layers: list[nn.Module] = []
    # The kit gives each layer the gain of the activation before it. The first layer has none, so its gain is 1.
    gain = float(nn.init.calculate_gain("linear"))
    for _ in range(config.hidden_layers):
        linear = _linear(dims, config.hidden_dim, initialize, gain, generator)
        layers += [linear, nn.BatchNorm1d(config.hidden_dim), SeededDropout(config.dropout, generator), nn.ReLU()]
        dims, gain = config.hidden_dim, nn.init.calculate_gain("relu")
    return nn.Sequential(*layers, _linear(dims, classes, initialize, gain, generator))


def _linear(dims: int, outputs: int, initialize: Initialize, gain: float, generator: torch.Generator) -> nn.Linear:
    linear = _Undrawn(dims, outputs)
    initialize(linear.weight, gain=gain, generator=generator)
    # This is PyTorch's own initialization of a bias.
    nn.init.uniform_(linear.bias, -1 / math.sqrt(dims), 1 / math.sqrt(dims), generator=generator)
    return linear


class _Undrawn(nn.Linear):
    """A linear layer that does not draw from PyTorch's own generator.

    `nn.utils.skip_init` would do the same, but it takes a third of a second to import.
    """

    def reset_parameters(self) -> None:
        """Do nothing: `_linear` draws the weights."""


class SeededDropout(nn.Module):
    """Dropout with its own generator.

    Each value takes 16 random bits, so the probability 0.1 becomes 0.10001. PyTorch's dropout draws more bits for each
    value, on a single thread, which takes a fifth of a step's time.
    """

    def __init__(self, p: float, source: torch.Generator) -> None:
        """Set the share `p` of values that become zero, in steps of 2**-16, and draw a seed from `source`."""
        super().__init__()
        self.p = p
        self._seed = int(torch.randint(2**62, (), generator=source))
        self._generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`; in training some values are zero, and the others are scaled up to keep the mean."""
        if not self.training or self.p == 0:
            return x
        if self._generator is None:
            self._generator = torch.Generator(x.device).manual_seed(self._seed)
        # One random 64-bit number gives the bits of four values.
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        sixteen = bits.random_(-(2**63), None, generator=self._generator).view(torch.int16)[: x.numel()].view(x.shape)
        # The mask holds 0, and -1, which has all bits set. Comparing into the operand's own memory and a bitwise AND
        # take a twentieth of the time that booleans take on a CPU.
        mask = torch.ge(sixteen, round(self.p * 2**16) - 2**15, out=sixteen).neg_()
        return _Masked.apply(x, mask.to(_BITS_OF[x.dtype]), 1 / (1 - self.p))


_BITS_OF = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class _Masked(torch.autograd.Function):
    """Multiply x, and later its gradient, by `scale` where `mask` has all bits set, and by 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.mask, ctx.scale = mask, scale
        return (x.view(mask.dtype) & mask).view(x.dtype).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient.view(ctx.mask.dtype) & ctx.mask).view(gradient.dtype).mul_(ctx.scale), None, None


def _batches(rows: Rows, size: int, order: np.random.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    vectors, targets = rows
    # Without an order, batches are slices, which copy nothing.
    ids = None if order is None else torch.from_numpy(order.permutation(len(vectors))).to(vectors.device)
    for start in range(0, len(vectors), size):
        part = slice(start, start + size) if ids is None else ids[start : start + size]
        # Batch normalization needs two rows.
        if len(vectors) - start > 1:
            yield vectors[part], targets[part]


def _loss(logits: Tensor, targets: Tensor, multilabel: bool) -> Tensor:
    if multilabel:
        return F.binary_cross_entropy_with_logits(logits, targets)
    # Each row has one label. As in the kit, the loss takes its number.
    return F.cross_entropy(logits, targets.argmax(1))


def _validate(network: nn.Sequential, valid: Rows, precision: str, multilabel: bool, judge: Judge) -> Validation:
    network.eval()
    logits = _logits(network, valid.vectors, precision)
    loss = float(_loss(logits, valid.targets, multilabel))
    return judge(_activate(logits, multilabel).cpu().numpy(), loss)


@torch.no_grad()
def _logits(network: nn.Sequential, vectors: Tensor, precision: str) -> Tensor:
    return torch.cat([_forward(network, part, precision) for part in vectors.split(_ROWS_PER_VALIDATION_BATCH)])


def _forward(network: nn.Sequential, vectors: Tensor, precision: str) -> Tensor:
    """Return logits. The last product is always in float32: rounded logits would tie, which changes rankings."""
    with torch.autocast(vectors.device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden = network[:-1](vectors)
    return network[-1](hidden.float())


def _activate(logits: Tensor, multilabel: bool) -> Tensor:
    return logits.sigmoid() if multilabel else logits.softmax(1)


def better(score: float, best: float, maximize: bool) -> bool:
    """Return whether a score is strictly better than the best so far; NaN is worse than any number."""
    # The kit compares scores as float32 tensors, so a smaller difference does not count.
    new, old = np.float32(score), np.float32(best)
    if math.isnan(new):
        return False
    return math.isnan(old) or bool(new > old if maximize else new < old)
