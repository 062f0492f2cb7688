"""The downstream classifiers of HEAR 2021: small networks on frozen vectors, trained until validation stops improving.

The protocol is that of hear-eval-kit 2021.1.3 (its predictions/task_predictions.py) under PyTorch Lightning 1.9: per
hidden layer Linear, BatchNorm, Dropout, ReLU, then Linear; Adam; validated every few epochs; the first of the best
validations wins. Vectors stay in memory, and a step is nothing but the network's arithmetic.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from melmask.hardware import exact_float32_products

Initialize = Callable[..., Tensor]
INITIALIZATIONS: dict[str, Initialize] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
}
_ROWS_PER_VALIDATION_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One point of the grid; the values are the kit's."""

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


class Rows(NamedTuple):
    """vectors: (rows, dims) float32.  targets: (rows, classes) float32, 1 where the row has the label."""

    vectors: Float[Tensor, "rows dims"]
    targets: Float[Tensor, "rows classes"]


class Validation(NamedTuple):
    """What a judge says of one validation.

    score: what is compared, NaN if it cannot be computed.  detail: anything to be kept with the best one.
    """

    score: float
    detail: Any = None


Judge = Callable[[Float[np.ndarray, "rows classes"], float], Validation]
"""(probabilities of the validation rows, their mean loss) -> Validation."""


@dataclass
class TrainedHead:
    """A head with the weights of its best validation.

    Attributes: `network`, `config`, `best` (that validation), `epoch` (0 is the first), `epochs` (how many were run).
    """

    network: nn.Sequential
    config: HeadConfig
    multilabel: bool
    best: Validation
    epoch: int
    epochs: int

    def probabilities(self, vectors: Float[Tensor, "rows dims"]) -> Float[np.ndarray, "rows classes"]:
        """Softmax, or for multilabel tasks the sigmoid of each class, float32."""
        self.network.eval()
        with exact_float32_products(vectors.device):
            return _activate(_logits(self.network, vectors), self.multilabel).cpu().numpy()


class StopRules(NamedTuple):
    """How a head's training departs from the kit's.

    maximize: whether a larger score is better.  reshuffle: draw a new order each epoch; the kit never does.
    nan_stops: end at the first score that is not finite, as Lightning's early stopping does.
    """

    maximize: bool
    reshuffle: bool = False
    nan_stops: bool = True


def train_head(
    train: Rows, valid: Rows, config: HeadConfig, multilabel: bool, judge: Judge, rules: StopRules, seed: int
) -> TrainedHead:
    """Train one head; all chance comes from `seed`.

    Args:
        train: At least two rows; a last batch of a single row is left out, for it cannot be batch-normalised.
        valid: At least one row.
        config: The point of the grid.
        multilabel: Binary cross-entropy of each class, instead of cross-entropy over the classes.
        judge: Scores each validation.
        rules: What is better, and the kit's quirks.
        seed: Decides weights, dropout and order.
    """
    device = train.vectors.device
    # Dropout and the initialisers draw from the global generators: borrow them, and leave them as they were.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        exact_float32_products(device),
    ):
        torch.manual_seed(seed)
        network = build_head(train.vectors.shape[1], train.targets.shape[1], config).to(device)
        return _train(network, train, valid, config, multilabel, judge, rules, seed)


def build_head(dims: int, classes: int, config: HeadConfig) -> nn.Sequential:
    """The untrained network, its weights drawn from the global generator with the gains of the kit."""
    initialize = INITIALIZATIONS[config.initialization]
    layers: list[nn.Module] = []
    gain = nn.init.calculate_gain("linear")
    for _ in range(config.hidden_layers):
        linear = nn.Linear(dims, config.hidden_dim)
        initialize(linear.weight, gain=gain)
        layers += [linear, nn.BatchNorm1d(config.hidden_dim), nn.Dropout(config.dropout), nn.ReLU()]
        dims, gain = config.hidden_dim, nn.init.calculate_gain("relu")
    projection = nn.Linear(dims, classes)
    initialize(projection.weight, gain=gain)
    return nn.Sequential(*layers, projection)


def _train(
    network: nn.Sequential,
    train: Rows,
    valid: Rows,
    config: HeadConfig,
    multilabel: bool,
    judge: Judge,
    rules: StopRules,
    seed: int,
) -> TrainedHead:
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    order = np.random.default_rng(seed) if rules.reshuffle else None
    best, best_epoch, weights, worse, epoch = Validation(math.nan), -1, {}, 0, 0
    for epoch in range(config.max_epochs):
        network.train()
        for vectors, targets in _batches(train, config.batch_size, order):
            optimizer.zero_grad(set_to_none=True)
            _loss(network(vectors), targets, multilabel).backward()
            optimizer.step()
        if (epoch + 1) % config.validate_every_epochs:
            continue
        found = _validate(network, valid, multilabel, judge)
        if best_epoch < 0 or better(found.score, best.score, rules.maximize):
            best, best_epoch = found, epoch
            weights = {name: value.clone() for name, value in network.state_dict().items()}
            worse = 0
        else:
            worse += 1
        if worse >= config.patience or (rules.nan_stops and not math.isfinite(found.score)):
            break
    if best_epoch < 0:
        # Fewer epochs than one validation takes.
        best, best_epoch = _validate(network, valid, multilabel, judge), epoch
    else:
        network.load_state_dict(weights)
    return TrainedHead(network, config, multilabel, best, best_epoch, epoch + 1)


def _batches(rows: Rows, size: int, order: np.random.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    vectors, targets = rows
    ids = None if order is None else torch.from_numpy(order.permutation(len(vectors))).to(vectors.device)
    for start in range(0, len(vectors), size):
        part = slice(start, start + size) if ids is None else ids[start : start + size]
        if len(vectors) - start > 1:
            yield vectors[part], targets[part]


def _loss(logits: Tensor, targets: Tensor, multilabel: bool) -> Tensor:
    if multilabel:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets.argmax(1))


def _validate(network: nn.Sequential, valid: Rows, multilabel: bool, judge: Judge) -> Validation:
    network.eval()
    logits = _logits(network, valid.vectors)
    loss = float(_loss(logits, valid.targets, multilabel))
    return judge(_activate(logits, multilabel).cpu().numpy(), loss)


@torch.no_grad()
def _logits(network: nn.Sequential, vectors: Tensor) -> Tensor:
    return torch.cat([network(part) for part in vectors.split(_ROWS_PER_VALIDATION_BATCH)])


def _activate(logits: Tensor, multilabel: bool) -> Tensor:
    return logits.sigmoid() if multilabel else logits.softmax(1)


def better(score: float, best: float, maximize: bool) -> bool:
    """Whether a score is better than the best so far, strictly; NaN is worse than all."""
    # The kit's scores pass through float32 tensors.
    new, old = np.float32(score), np.float32(best)
    if math.isnan(new):
        return False
    return math.isnan(old) or bool(new > old if maximize else new < old)
