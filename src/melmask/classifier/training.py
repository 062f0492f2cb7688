"""Train the network of a classifier on labeled log-mels.

All random numbers are drawn from (seed, epoch, batch), so a killed job resumes exactly from its last snapshot.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melmask.checkpoint.weights import load_torch_file
from melmask.classifier.examples import Clips
from melmask.classifier.model import validation_score
from melmask.classifier.network import ClassifierNetwork, set_linear
from melmask.classifier.options import FinetuneConfig
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import CheckpointError, TrainingError
from melmask.labels.options import Kind
from melmask.system.hardware import exact_float32_products
from melmask.system.progress import track
from melmask.train.optimizer import check_moments
from melmask.train.shares import Shares
from melmask.train.snapshot import write_state

_FINETUNE_STREAM = 4
"""Keeps these draws apart from those of other parts of melmask that start from the same seed."""
_SNAPSHOT_INTERVAL_S = 120.0
"""Within an epoch, a snapshot is written after this time, as an epoch may take an hour."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """The result of an epoch: a line of metrics.jsonl."""

    epoch: int
    """Number of finished epochs; 0 is the linear probe."""
    loss: float | None = None
    """Mean loss of the epoch's batches; the linear probe has none."""
    score: float
    """Validation score: accuracy, or mean average precision."""


Report = Callable[[EpochMetrics, float | None], None]
"""Receives each epoch's metrics and, if it is known, the longest time in s until training ends."""


class _Best(NamedTuple):
    """The epoch with the best validation score so far, and a copy of the network's weights after it."""

    score: float
    epoch: int
    weights: dict[str, Tensor]


class Finetuning:
    """The training of a network: `run` trains it, and `best_epoch` says after how many epochs it validates best."""

    def __init__(
        self,
        network: ClassifierNetwork,
        config: FinetuneConfig,
        crop_frames: int,
        hop_ms: float,
        precision: torch.dtype = torch.float32,
    ):
        self.network, self.config, self.precision = network, config, precision
        self._crop_frames, self._hop_ms = crop_frames, hop_ms
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, fused=True)
        self._weights: Tensor | None = None
        self._best = _Best(-math.inf, 0, {})
        self._saved_s = time.monotonic()

    @property
    def best_epoch(self) -> int:
        """Number of epochs after which the validation score was best; 0 is the linear probe."""
        return self._best.epoch

    def run(self, train: Clips, valid: Clips, snapshot: Path, report: Report) -> None:
        """Train until the last epoch or until patience ends, then load the weights of the best epoch.

        If `snapshot` exists, training resumes from it.

        Raises:
            CheckpointError: the snapshot belongs to another training.
            InputError: no validation clip has a label.
            OutputError: the snapshot cannot be written.
            TrainingError: loss or weights are no longer finite; nothing of that epoch is kept.
        """
        resumed = self._resume(snapshot)
        epoch, losses = resumed or (0, [])
        self._weights = self._class_weights(train) if self.config.class_weights == "balanced" else None
        if resumed is None:
            # Start from the probe: with a random head, the first gradients would spoil the encoder (arXiv 2202.10054).
            first = self.network.start_head(train, valid)
            set_linear(self.network.head, first.best)
            score = validation_score(self.network.kind, *self.network.predict(valid))
            self._keep_if_best(score, 0)
            set_linear(self.network.head, first.calm)
            report(EpochMetrics(epoch=0, score=score), None)
            self._save(snapshot, 0, [])
        start = time.monotonic()
        for number in range(epoch, self.config.epochs):
            # A training seldom beats the probe before its rate falls, so the probe is given until half of the epochs.
            best = self._best.epoch or self.config.epochs // 2
            if number - best >= self.config.patience_epochs:
                break
            loss = self._epoch(number, train, losses if number == epoch else [], snapshot)
            probabilities, targets = self.network.predict(valid)
            # The last step of an epoch may break the weights, which no loss of that epoch shows.
            if not (math.isfinite(loss) and np.isfinite(probabilities).all()):
                raise TrainingError(
                    f"the training diverged in epoch {number + 1} (the loss is {loss:g}); choose another --out and a "
                    f"learning_rate below {self.config.learning_rate:g}, or a weight_decay below "
                    f"{self.config.weight_decay:g}"
                )
            score = validation_score(self.network.kind, probabilities, targets)
            self._keep_if_best(score, number + 1)
            left_s = (time.monotonic() - start) / (number + 1 - epoch) * (self.config.epochs - number - 1)
            # The report comes before the snapshot. A kill between the two repeats a line, which `_add_metrics`
            # replaces; the other way round, a line would be missing.
            report(EpochMetrics(epoch=number + 1, loss=loss, score=score), left_s)
            self._save(snapshot, number + 1, [])
        self.network.load_state_dict(self._best.weights)

    def _epoch(self, epoch: int, train: Clips, losses: list[Tensor], snapshot: Path) -> float:
        """Train on the rest of an epoch's batches, after those with the given losses; return the mean loss of all."""
        config, stream = self.config, (_FINETUNE_STREAM, self.config.seed, epoch)
        order = np.random.default_rng(stream).permutation(len(train))
        batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        encoder_learns = epoch >= config.head_epochs
        self.network.encoder.requires_grad_(encoder_learns)
        shares = Shares(self.network, self.network.cores, self.network.cores.count)
        with exact_float32_products(self.network.device), self.network.cores.engaged():
            left = range(len(losses), len(batches))
            for number in track(left, len(left), f"epoch {epoch + 1}", "batch", leave=False):
                rng = np.random.default_rng((*stream, number))
                # The rate is a function of the place in the training, so that a resumed job has the same rates.
                self._set_rate(epoch + number / len(batches))
                crops, targets = self._draw_batch(train, batches[number], rng)
                # All is drawn for the whole batch, so it does not depend on the number of shares.
                kept = self.network.draw_kept(crops, rng, config.patch_dropout)
                loss_of = partial(self._loss_of, crops, targets, kept)
                self.optimizer.zero_grad(set_to_none=True)
                loss = shares.backward(loss_of, len(crops), 0, lambda _: None)
                # A single odd batch must not throw the weights far off.
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimizer.step()
                losses.append(loss)
                # A diverged network is not saved: the end of the epoch raises the error.
                if time.monotonic() - self._saved_s > _SNAPSHOT_INTERVAL_S and torch.stack(losses).isfinite().all():
                    self._save(snapshot, epoch, losses)
        return float(torch.stack(losses).mean())

    def _loss_of(self, crops: Tensor, targets: Tensor, kept: Sequence[Tensor], first: int, last: int) -> Tensor:
        """Return the mean loss of the crops from a number to another; several threads call this at once."""
        # Only the encoder uses mixed precision; head and loss are computed in float32.
        with (
            torch.autocast(crops.device.type, self.precision, self.precision != torch.float32, cache_enabled=False),
            torch.set_grad_enabled(next(self.network.encoder.parameters()).requires_grad),
        ):
            vectors = self.network.vectors_of_crops(crops[first:last], [ids[first:last] for ids in kept])
        return self._loss(self.network.head(vectors.float()), targets[first:last])

    def _draw_batch(self, train: Clips, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw augmented crops (batch, mels, frames) of these clips, and their targets."""
        config, length, event = self.config, self._crop_frames, self.network.kind == "event"
        crops, labels = [], []
        for row in rows:
            logmel, target = train.logmels[row], train.targets[row]
            first = int(rng.integers(max(1, len(logmel) - length + 1)))
            # A clip that is shorter than the crop is repeated until the crop is full.
            frames = (first + np.arange(length)) % len(logmel) if len(logmel) < length else slice(first, first + length)
            crops.append(logmel[frames].astype(np.float32).T)
            labels.append(target[frames] if event else target)
        x = np.stack(crops)
        _blank(x, round(config.time_mask_ms / self._hop_ms), 2, rng)
        # The same bands of each resolution, as a patch has them: (batch, mels, resolutions, frames).
        by_band = x.reshape(len(x), self.network.encoder.config.resolutions, -1, length).swapaxes(1, 2)
        _blank(by_band, config.frequency_mask_mels, 1, rng)
        if event:
            steps = length // self.network.encoder.config.patch_frames
            labels = [self.network.step_targets(target, steps) for target in labels]
        y = np.stack(labels).astype(np.float32)
        # mixup (arXiv 1710.09412) is for whole clips: mixed events would overlap in a way that no recording does.
        if config.mixup and not event:
            weight = float(rng.beta(config.mixup, config.mixup))
            partner = rng.permutation(len(x))
            x = weight * x + (1 - weight) * x[partner]
            y = weight * y + (1 - weight) * y[partner]
        device = self.network.device
        return torch.from_numpy(x.astype(np.float32)).to(device), torch.from_numpy(y).to(device)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.network.kind == "multiclass":
            # Cross-entropy is written out, because with mixup the targets are mixtures of classes, which are smoothed
            # as well.
            smoothed = targets * (1 - self.config.label_smoothing) + self.config.label_smoothing / targets.shape[-1]
            terms = -smoothed * logits.log_softmax(-1)
            return (terms if self._weights is None else terms * self._weights).sum(-1).mean()
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self._weights)

    def _class_weights(self, train: Clips) -> Tensor:
        """Return (classes,): weights of the classes in cross-entropy, of positives in binary cross-entropy."""
        kind = self.network.kind
        # A row is a clip or, in event tasks, a frame.
        rows = train.targets if kind == "event" else [target[None] for target in train.targets]
        positives = np.sum([row.sum(0) for row in rows], axis=0).clip(min=1)
        total = sum(len(row) for row in rows)
        # In binary cross-entropy a class that is in half of the clips has weight 1. The bounds tame very rare classes.
        weights = total / (len(positives) * positives) if kind == "multiclass" else (total - positives) / positives
        return torch.from_numpy(weights.clip(0.1, 100).astype(np.float32)).to(self.network.device)

    def _set_rate(self, epoch: float) -> None:
        """Set the learning rate at a time in epochs: a half-cosine with two warm-ups, for head and encoder."""
        config, head_ends = self.config, min(self.config.head_epochs, self.config.epochs)
        phase = epoch if epoch < head_ends else epoch - head_ends
        # The small constant gives the very first step a rate above zero.
        warm = min(1.0, (phase + 1e-3) / config.warmup_epochs) if config.warmup_epochs else 1.0
        rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups: each layer has its share of the rate, and only matrices have weight decay."""
        depth = self.network.encoder.config.depth
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            # Names are head.*, encoder.norm.*, encoder.blocks.<k>.*, and those of the patch embedding. Levels count
            # from the patch embedding, 0, over the blocks to the head and the final norm, depth + 1.
            part = name.split(".")
            level = depth + 1 if part[0] == "head" or part[1] == "norm" else 0
            level = int(part[2]) + 1 if part[1] == "blocks" else level
            groups.setdefault((level, parameter.ndim >= 2), []).append(parameter)
        return [
            {
                "params": parameters,
                "share": self.config.layer_decay ** (depth + 1 - level),
                "weight_decay": self.config.weight_decay if matrix else 0.0,
            }
            for (level, matrix), parameters in groups.items()
        ]

    def _keep_if_best(self, score: float, epoch: int) -> None:
        if score > self._best.score or not self._best.weights:
            # The copy is in main memory, because a GPU may have no room for a second network.
            weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self._best = _Best(score, epoch, weights)

    def _save(self, path: Path, epoch: int, losses: list[Tensor]) -> None:
        """Write the snapshot: `epoch` epochs are done, and as many batches of the next one as there are losses."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best._asdict(),
            "epoch": epoch,
            "losses": [float(loss) for loss in losses],
        }
        write_state(path, state)
        self._saved_s = time.monotonic()

    def _resume(self, path: Path) -> tuple[int, list[Tensor]] | None:
        """Load what `_save` wrote, and return its `epoch` and `losses`; None if there is no snapshot."""
        if not path.exists():
            return None
        try:
            state = load_torch_file(path, self.network.device)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            check_moments(self.optimizer)
            self._best = _Best(**state["best"])
            return int(state["epoch"]), list(torch.tensor(state["losses"], device=self.network.device))
        except Exception as error:
            # Damaged bytes can make torch.load raise nearly any exception.
            raise CheckpointError(f"{path} is damaged or of another training; delete it to start over") from error


def _blank(x: np.ndarray, widest: int, axis: int, rng: np.random.Generator) -> None:
    """Set a stretch along `axis` of each crop to 0, the corpus mean, in place; its position and width are random.

    At most a quarter of a crop is blanked, so that enough is left to tell the classes apart.
    """
    if widest < 1:
        return
    size = x.shape[axis]
    for crop in x:
        width = int(rng.integers(0, min(widest, size // 4) + 1))
        first = int(rng.integers(0, size - width + 1))
        np.moveaxis(crop, axis - 1, 0)[first : first + width] = 0


def crop_frames(model: AudioEncoder, train: Clips, kind: Kind, crop_s: float) -> int:
    """Return the length of a training crop in frames, whole patches.

    Nearly all clips fit into a crop, unless they are longer than `crop_s` or, in event tasks, than the model's unit.
    """
    config = model.card.model
    limit = config.frames if kind == "event" else round(1000 * crop_s / model.card.front_end.hop_ms)
    # Shorter clips are repeated to fill a crop, so the few longest ones must not decide its length.
    longest = int(np.quantile([len(logmel) for logmel in train.logmels], 0.95))
    return max(1, round(min(limit, longest) / config.patch_frames)) * config.patch_frames
