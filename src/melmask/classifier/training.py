"""The training of a classifier's network on labeled log-mels.

Everything random is drawn from (seed, epoch, batch), so a killed run resumes exactly from its last snapshot.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melmask.classifier.clips import Clips
from melmask.classifier.network import ClassifierNetwork
from melmask.classifier.options import FinetuneConfig
from melmask.classifier.record import EpochMetrics
from melmask.classifier.scores import validation_score
from melmask.errors import CheckpointError, TrainingError
from melmask.system.hardware import exact_float32_products
from melmask.system.progress import track
from melmask.train.snapshot import write_state

_FINETUNE_STREAM = 4
"""Keeps these draws apart from those of other parts of melmask that start from the same seed."""
_SNAPSHOT_INTERVAL_S = 120.0

Report = Callable[[EpochMetrics, float | None], None]
"""Receives each epoch's metrics and the seconds that training takes at most from there, if known."""


class _Best(NamedTuple):
    """The epoch with the best validation score so far, and a copy of the network's weights after it."""

    score: float
    epoch: int
    weights: dict[str, Tensor]


class Finetuning:
    """A network and its training: `run` trains it; `best_epoch` is the one with the best validation score so far."""

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
        """The number of epochs after which validation was best; 0 is the linear probe."""
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
            self.network.start_head(train, valid)
            score = validation_score(self.network.kind, *self.network.predict(valid))
            self._keep_if_best(score, 0)
            report(EpochMetrics(epoch=0, score=score), None)
            self._save(snapshot, 0, [])
        start = time.monotonic()
        for number in range(epoch, self.config.epochs):
            if number - self._best.epoch >= self.config.patience_epochs:
                break
            loss = self._epoch(number, train, losses if number == epoch else [], snapshot)
            probabilities, targets = self.network.predict(valid)
            # The last step may break the weights without a loss that shows it.
            if not (math.isfinite(loss) and np.isfinite(probabilities).all()):
                raise TrainingError(
                    f"epoch {number + 1}: the loss is {loss:g} and the network's numbers are lost; choose another "
                    f"--out and a learning_rate below {self.config.learning_rate:g}, or a weight_decay below "
                    f"{self.config.weight_decay:g}"
                )
            score = validation_score(self.network.kind, probabilities, targets)
            self._keep_if_best(score, number + 1)
            left_s = (time.monotonic() - start) / (number + 1 - epoch) * (self.config.epochs - number - 1)
            # Report before saving: after a kill between the two the epoch is reported again, and none is missing.
            report(EpochMetrics(epoch=number + 1, loss=loss, score=score), left_s)
            self._save(snapshot, number + 1, [])
        self.network.load_state_dict(self._best.weights)

    def _epoch(self, epoch: int, train: Clips, losses: list[Tensor], snapshot: Path) -> float:
        """Train on the batches of an epoch that follow those with these losses; return the mean loss of all."""
        config, stream = self.config, (_FINETUNE_STREAM, self.config.seed, epoch)
        order = np.random.default_rng(stream).permutation(len(train))
        batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        encoder_learns = epoch >= config.head_epochs
        self.network.encoder.requires_grad_(encoder_learns)
        with exact_float32_products(self.network.device):
            left = range(len(losses), len(batches))
            for number in track(left, len(left), f"epoch {epoch + 1}", "batch", leave=False):
                rng = np.random.default_rng((*stream, number))
                # The rate is a function of the place in the training, so that a resumed job has the same rates.
                self._set_rate(epoch + number / len(batches))
                crops, targets = self._draw_batch(train, batches[number], rng)
                self.optimizer.zero_grad(set_to_none=True)
                # Mixed precision is for the encoder; head and loss are computed in float32.
                with (
                    torch.autocast(crops.device.type, self.precision, enabled=self.precision != torch.float32),
                    torch.set_grad_enabled(encoder_learns),
                ):
                    vectors = self.network.vectors_of_crops(crops, rng, config.patch_dropout)
                loss = self._loss(self.network.head(vectors.float()), targets)
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimizer.step()
                losses.append(loss.detach())
                # A broken network is not saved; the end of the epoch reports it.
                if time.monotonic() - self._saved_s > _SNAPSHOT_INTERVAL_S and torch.stack(losses).isfinite().all():
                    self._save(snapshot, epoch, losses)
        return float(torch.stack(losses).mean())

    def _draw_batch(self, train: Clips, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw augmented crops (batch, mels, frames) of these clips, and their targets."""
        config, length, event = self.config, self._crop_frames, self.network.kind == "event"
        crops, labels = [], []
        for row in rows:
            logmel, target = train.logmels[row], train.targets[row]
            first = int(rng.integers(max(1, len(logmel) - length + 1)))
            # A clip shorter than the crop is repeated until the crop is full.
            frames = (first + np.arange(length)) % len(logmel) if len(logmel) < length else slice(first, first + length)
            crops.append(logmel[frames].astype(np.float32).T)
            labels.append(target[frames] if event else target)
        x = np.stack(crops)
        _blank(x, round(config.time_mask_ms / self._hop_ms), 2, rng)
        _blank(x, config.frequency_mask_mels, 1, rng)
        if event:
            steps = length // self.network.encoder.config.patch_frames
            labels = [self.network.step_targets(target, steps) for target in labels]
        y = np.stack(labels).astype(np.float32)
        if config.mixup and not event:
            weight = float(rng.beta(config.mixup, config.mixup))
            partner = rng.permutation(len(x))
            x = weight * x + (1 - weight) * x[partner]
            y = weight * y + (1 - weight) * y[partner]
        device = self.network.device
        return torch.from_numpy(x.astype(np.float32)).to(device), torch.from_numpy(y).to(device)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.network.kind == "multiclass":
            # With mixup the targets are mixtures already, and smoothing applies to them as well.
            smoothed = targets * (1 - self.config.label_smoothing) + self.config.label_smoothing / targets.shape[-1]
            terms = -smoothed * logits.log_softmax(-1)
            return (terms if self._weights is None else terms * self._weights).sum(-1).mean()
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self._weights)

    def _class_weights(self, train: Clips) -> Tensor:
        """Weights of classes in cross-entropy; of positives against negatives in binary cross-entropy."""
        kind = self.network.kind
        rows = train.targets if kind == "event" else [target[None] for target in train.targets]
        positives = np.sum([row.sum(0) for row in rows], axis=0).clip(min=1)
        total = sum(len(row) for row in rows)
        # A class that fills half of the clips weighs 1 in binary cross-entropy; the bounds tame very rare classes.
        weights = total / (len(positives) * positives) if kind == "multiclass" else (total - positives) / positives
        return torch.from_numpy(weights.clip(0.1, 100).astype(np.float32)).to(self.network.device)

    def _set_rate(self, epoch: float) -> None:
        """Set the learning rate at this time: a half-cosine over all epochs, with a warm-up of head and of encoder."""
        config, head_ends = self.config, min(self.config.head_epochs, self.config.epochs)
        phase = epoch if epoch < head_ends else epoch - head_ends
        # A little more than nothing, so that the very first step is not without effect.
        warm = min(1.0, (phase + 1e-3) / config.warmup_epochs) if config.warmup_epochs else 1.0
        rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups: a share of the rate for each layer, and weight decay for matrices alone."""
        depth = self.network.encoder.config.depth
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            # Names are head.*, encoder.norm.*, encoder.blocks.<k>.*, and those of the patch embedding.
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
            # A copy in main memory: the network goes on learning, and a GPU may have no room for a second one.
            weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self._best = _Best(score, epoch, weights)

    def _save(self, path: Path, epoch: int, losses: list[Tensor]) -> None:
        """Write all that resuming needs: `epoch` epochs are done, and of the next one the batches with these losses."""
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
        """Load what `_save` wrote; return the epochs done and the losses of the next one's batches, None without it."""
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location=self.network.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._best = _Best(**state["best"])
            return int(state["epoch"]), list(torch.tensor(state["losses"], device=self.network.device))
        except Exception as error:
            # torch.load raises whatever the damaged bytes lead to.
            raise CheckpointError(f"{path} is damaged or of another training; delete it to begin anew") from error


def _blank(x: np.ndarray, widest: int, axis: int, rng: np.random.Generator) -> None:
    """Set a stretch of random place and width along `axis` of each crop to 0, the corpus mean, in place.

    A quarter of a crop at most goes, so that enough is left to tell the classes by.
    """
    if widest < 1:
        return
    size = x.shape[axis]
    for crop in x:
        width = int(rng.integers(0, min(widest, size // 4) + 1))
        first = int(rng.integers(0, size - width + 1))
        np.moveaxis(crop, axis - 1, 0)[first : first + width] = 0
