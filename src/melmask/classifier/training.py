"""Supervised training of a pre-trained encoder and a linear head on labelled log-mels.

What is random comes from (seed, epoch, batch), so a killed run goes on from its last snapshot exactly.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from melmask.classifier.head import Head, Kind, fit_head
from melmask.classifier.options import FinetuneConfig
from melmask.embedding.choice import FeatureChoice
from melmask.errors import CheckpointError, TrainingError
from melmask.geometry import step_durations_frames
from melmask.models.network import Network
from melmask.system.hardware import exact_float32_products
from melmask.system.progress import duration_text, track
from melmask.train.snapshot import write_state

_FINETUNE_STREAM = 4
_SNAPSHOT_INTERVAL_S = 120.0
_HEAD_STEPS = 10_000
"""Of event tasks as many steps, evenly taken, decide where the head begins: their vectors are held at once."""


class Clips(NamedTuple):
    """Labelled clips of any length.

    logmels: (frames, mels) float16 each, normalised.  targets: (classes,) float32 of each clip, 0 or 1; of an event
    task (frames, classes), what sounds when.
    """

    logmels: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]


Report = Callable[[dict[str, Any]], None]
Judge = Callable[[Float[np.ndarray, "rows classes"], Float[np.ndarray, "rows classes"]], float]
"""(probabilities, targets) of the validation clips or, in event tasks, steps -> a score, the larger the better."""


class Finetuning:
    """The network, its head and their training; `run` trains, `best` is the best validation so far."""

    def __init__(
        self,
        model: Network,
        kind: Kind,
        classes: int,
        config: FinetuneConfig,
        crop_frames: int,
        hop_ms: float,
        device: torch.device,
        precision: torch.dtype,
    ):
        self.config, self.kind, self.device, self.precision = config, kind, device, precision
        self.encoder = model.encoder.to(device).train().requires_grad_(True)
        self._grid_rows, self._crop_frames, self._hop_ms = model.encoder.grid.rows, crop_frames, hop_ms
        # A step of an event task has no deviation over time.
        self.scene = "mean" if kind == "event" else config.scene
        self._spread = self.scene == "mean+std"
        self.head = Head((1 + self._spread) * self._grid_rows * model.config.width, classes).to(device)
        self.network = nn.ModuleDict({"encoder": self.encoder, "head": self.head})
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, fused=True)
        self._weights: Tensor | None = None
        self.best: dict[str, Any] = {"score": -math.inf, "epoch": 0, "weights": {}}
        self._saved_s = time.monotonic()

    def run(self, train: Clips, valid: Clips, judge: Judge, snapshot: Path, report: Report) -> None:
        """Train until the last epoch or until patience ends, from `snapshot` on if it exists.

        Raises:
            CheckpointError: the snapshot is of another training.
            OutputError: it cannot be written.
            TrainingError: loss or weights are no longer finite; nothing of that epoch is kept.
        """
        resumed = self._resume(snapshot)
        epoch, losses = resumed or (0, [])
        self._weights = self._class_weights(train) if self.config.class_weights == "balanced" else None
        if resumed is None:
            fit_head(self.head, self.kind, self._head_rows(train), self._head_rows(valid))
            score = judge(*self.predict(valid))
            self._consider(score, 0)
            report({"epoch": 0, "score": score})
            self._save(snapshot, 0, [])
        start = time.monotonic()
        for number in range(epoch, self.config.epochs):
            if number - self.best["epoch"] >= self.config.patience_epochs:
                break
            loss = self._epoch(number, train, losses if number == epoch else [], snapshot)
            probabilities, targets = self.predict(valid)
            # The last step may break the weights without a loss that says so.
            if not (math.isfinite(loss) and np.isfinite(probabilities).all()):
                raise TrainingError(
                    f"epoch {number + 1}: the loss is {loss:g} and the network's numbers are lost; choose another "
                    f"--out and a learning_rate below {self.config.learning_rate:g}, or a weight_decay below "
                    f"{self.config.weight_decay:g}"
                )
            score = judge(probabilities, targets)
            self._consider(score, number + 1)
            left = (time.monotonic() - start) / (number + 1 - epoch) * (self.config.epochs - number - 1)
            # Before it is saved: what a kill between the two leaves is reported again, and nothing is missing.
            report({"epoch": number + 1, "loss": loss, "score": score, "left": duration_text(left)})
            self._save(snapshot, number + 1, [])
        self.network.load_state_dict(self.best["weights"])

    @torch.no_grad()
    def predict(self, clips: Clips) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and targets of whole clips, cut into units; a row a clip or, in event tasks, a step."""
        self.network.eval()
        found, targets = [], []
        with exact_float32_products(self.device):
            for logmel, target in zip(clips.logmels, clips.targets, strict=True):
                steps = self._steps_of(logmel)
                logits = self.head(steps if self.kind == "event" else self._scene(steps, len(logmel))[None])
                found.append(_activate(logits, self.kind).float().cpu().numpy())
                targets.append(self._step_targets(target, len(steps)) if self.kind == "event" else target[None])
        self.network.train()
        return np.concatenate(found), np.concatenate(targets)

    def _steps_of(self, logmel: np.ndarray) -> Tensor:
        """(steps, dims) of a whole clip, cut into units as in `encoder.py`."""
        unit = self.encoder.config.frames
        x = torch.from_numpy(logmel.astype(np.float32)).to(self.device).T
        x = F.pad(x, (0, -len(logmel) % self.encoder.config.patch_frames))
        return torch.cat([self._steps(piece[None]) for piece in x.split(unit, dim=1)])

    def _scene(self, steps: Tensor, frames: int) -> Tensor:
        """The scene vector (dims,): each step counts by the audio in it, as in `features.py`."""
        weights = step_durations_frames(frames, self.encoder.config.patch_frames)
        shares = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(self.device)
        mean = shares @ steps
        return torch.cat([mean, (shares @ (steps - mean).square()).sqrt()]) if self._spread else mean

    def _steps(self, units: Tensor) -> Tensor:
        """(1, mels, frames) -> (steps, dims)."""
        tokens = list(self.encoder.encode_layers(units))[-1]
        return FeatureChoice().pool(tokens, self._grid_rows, self.encoder.config.cls_token)[0]

    def _step_targets(self, target: np.ndarray, steps: int) -> np.ndarray:
        patch = self.encoder.config.patch_frames
        centres = np.minimum(np.arange(steps) * patch + patch // 2, len(target) - 1)
        return target[centres]

    def _epoch(self, epoch: int, train: Clips, losses: list[Tensor], snapshot: Path) -> float:
        """The rest of an epoch behind the batches that have these losses; the mean loss of all."""
        config, stream = self.config, (_FINETUNE_STREAM, self.config.seed, epoch)
        order = np.random.default_rng(stream).permutation(len(train.logmels))
        batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        self.encoder.requires_grad_(epoch >= config.head_epochs)
        with exact_float32_products(self.device):
            left = range(len(losses), len(batches))
            for number in track(left, len(left), f"epoch {epoch + 1}", "batch", leave=False):
                rows, rng = batches[number], np.random.default_rng((*stream, number))
                self._set_rate(epoch + number / len(batches))
                crops, targets = self._batch([train.logmels[r] for r in rows], [train.targets[r] for r in rows], rng)
                self.optimizer.zero_grad(set_to_none=True)
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    vectors = self._vectors(crops, rng, epoch >= config.head_epochs)
                loss = self._loss(self.head(vectors.float()), targets)
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                self.optimizer.step()
                losses.append(loss.detach())
                # What is broken is not saved: the epoch's end says so.
                if time.monotonic() - self._saved_s > _SNAPSHOT_INTERVAL_S and torch.stack(losses).isfinite().all():
                    self._save(snapshot, epoch, losses)
        return float(torch.stack(losses).mean())

    def _batch(
        self, logmels: list[np.ndarray], targets: list[np.ndarray], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Crops (batch, mels, frames) and their targets, augmented."""
        config, length = self.config, self._crop_frames
        crops, labels = [], []
        for logmel, target in zip(logmels, targets, strict=True):
            # A clip shorter than the crop is repeated until it is full.
            first = int(rng.integers(max(1, len(logmel) - length + 1)))
            frames = (first + np.arange(length)) % len(logmel) if len(logmel) < length else slice(first, first + length)
            crops.append(logmel[frames].astype(np.float32).T)
            labels.append(target[frames] if self.kind == "event" else target)
        x, y = np.stack(crops), np.stack(labels).astype(np.float32)
        _blank(x, round(config.time_mask_ms / self._hop_ms), 2, rng)
        _blank(x, config.frequency_mask_mels, 1, rng)
        if self.kind == "event":
            y = np.stack([self._step_targets(target, length // self.encoder.config.patch_frames) for target in y])
        elif config.mixup:
            weight = float(rng.beta(config.mixup, config.mixup))
            partner = rng.permutation(len(x))
            x = weight * x + (1 - weight) * x[partner]
            y = weight * y + (1 - weight) * y[partner]
        return torch.from_numpy(x.astype(np.float32)).to(self.device), torch.from_numpy(y).to(self.device)

    def _vectors(self, crops: Tensor, rng: np.random.Generator, learning: bool) -> Tensor:
        """(batch, dims), or (batch, steps, dims) in event tasks."""
        with torch.set_grad_enabled(learning):
            if self.kind == "event":
                tokens = list(self.encoder.encode_layers(crops))[-1]
                return FeatureChoice().pool(tokens, self._grid_rows, self.encoder.config.cls_token)
            parts = [self._kept_tokens(unit, rng) for unit in crops.split(self.encoder.config.frames, dim=2)]
            tokens, row = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
            # Mean and deviation over time of each row of patches, of those that are there.
            of_row = F.one_hot(row, self._grid_rows).to(tokens.dtype)
            of_row = (of_row / of_row.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)
            mean = of_row @ tokens
            if not self._spread:
                return mean.flatten(1)
            from_mean = tokens - mean.gather(1, row[:, :, None].expand_as(tokens))
            # The root's slope has no bound at 0.
            std = (of_row @ from_mean.square()).clamp(min=1e-8).sqrt()
            return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)

    def _kept_tokens(self, unit: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Encode a part of the patches of (batch, mels, frames): tokens (batch, kept, width), the row of each."""
        patches = self.encoder.patches_of(unit)
        kept = max(1, round(patches.shape[1] * (1 - self.config.patch_dropout)))
        noise = torch.from_numpy(rng.random((len(unit), patches.shape[1]), dtype=np.float32)).to(self.device)
        ids = noise.argsort(1)[:, :kept].sort(1).values
        tokens = self.encoder.encode_visible(patches, ids)[:, int(self.encoder.config.cls_token) :]
        return tokens.float(), ids // (patches.shape[1] // self._grid_rows)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.kind == "multiclass":
            smoothed = targets * (1 - self.config.label_smoothing) + self.config.label_smoothing / targets.shape[-1]
            terms = -smoothed * logits.log_softmax(-1)
            return (terms if self._weights is None else terms * self._weights).sum(-1).mean()
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self._weights)

    def _class_weights(self, train: Clips) -> Tensor:
        """Of classes in cross-entropy; of positives against negatives in binary cross-entropy."""
        rows = train.targets if self.kind == "event" else [target[None] for target in train.targets]
        positives = np.sum([row.sum(0) for row in rows], axis=0).clip(min=1)
        total = sum(len(row) for row in rows)
        weights = total / (len(positives) * positives) if self.kind == "multiclass" else (total - positives) / positives
        return torch.from_numpy(weights.clip(0.1, 100).astype(np.float32)).to(self.device)

    def _set_rate(self, epoch: float) -> None:
        config, head_ends = self.config, min(self.config.head_epochs, self.config.epochs)
        phase = epoch if epoch < head_ends else epoch - head_ends
        warm = min(1.0, (phase + 1e-3) / config.warmup_epochs) if config.warmup_epochs else 1.0
        rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]

    def _groups(self) -> list[dict[str, Any]]:
        depth = self.encoder.config.depth
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            part = name.split(".")
            above = depth + 1 if part[0] == "head" or part[1] == "norm" else 0
            above = int(part[2]) + 1 if part[1] == "blocks" else above
            groups.setdefault((above, parameter.ndim >= 2), []).append(parameter)
        return [
            {
                "params": parameters,
                "share": self.config.layer_decay ** (depth + 1 - above),
                "weight_decay": self.config.weight_decay if matrix else 0.0,
            }
            for (above, matrix), parameters in groups.items()
        ]

    def _consider(self, score: float, epochs: int) -> None:
        """Keep the weights after so many epochs if none before them were better."""
        if score > self.best["score"] or not self.best["weights"]:
            weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self.best = {"score": score, "epoch": epochs, "weights": weights}

    def _head_rows(self, train: Clips) -> tuple[Tensor, Tensor]:
        """Vectors (rows, dims) and targets (rows, classes) float64: of each clip, or of steps evenly taken from all."""
        rows, targets, before = [], [], 0
        steps_in_all = sum(-(-len(logmel) // self.encoder.config.patch_frames) for logmel in train.logmels)
        stride = -(-steps_in_all // _HEAD_STEPS)
        with torch.no_grad(), exact_float32_products(self.device):
            clips = zip(train.logmels, train.targets, strict=True)
            for logmel, target in track(clips, len(train.logmels), "embed for the first head", leave=False):
                steps = self._steps_of(logmel)
                if self.kind == "event":
                    kept = slice(-before % stride, None, stride)
                    rows.append(steps[kept])
                    targets.append(self._step_targets(target, len(steps))[kept])
                    before += len(steps)
                else:
                    rows.append(self._scene(steps, len(logmel))[None])
                    targets.append(target[None])
        return torch.cat(rows), torch.from_numpy(np.concatenate(targets))

    def _save(self, path: Path, epoch: int, losses: list[Tensor]) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "epoch": epoch,
            "losses": [float(loss) for loss in losses],
        }
        write_state(path, state)
        self._saved_s = time.monotonic()

    def _resume(self, path: Path) -> tuple[int, list[Tensor]] | None:
        """The whole epochs that are done and the losses of the batches of the next; None without a snapshot."""
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best = copy.deepcopy(state["best"])
            return int(state["epoch"]), list(torch.tensor(state["losses"], device=self.device))
        except Exception as error:
            # torch.load raises whatever the damaged bytes lead it to.
            raise CheckpointError(f"{path} is damaged or of another training; delete it to begin anew") from error


def _blank(x: np.ndarray, widest: int, axis: int, rng: np.random.Generator) -> None:
    """Set a stretch of random place and width along `axis` of each crop to 0, the corpus mean, in place.

    At most a quarter of a crop: enough has to be left to tell by.
    """
    if widest < 1:
        return
    size = x.shape[axis]
    for crop in x:
        width = int(rng.integers(0, min(widest, size // 4) + 1))
        first = int(rng.integers(0, size - width + 1))
        np.moveaxis(crop, axis - 1, 0)[first : first + width] = 0


def _activate(logits: Tensor, kind: Kind) -> Tensor:
    return logits.softmax(-1) if kind == "multiclass" else logits.sigmoid()
