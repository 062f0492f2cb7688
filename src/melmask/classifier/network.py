"""The network of a classifier: a pre-trained encoder and a linear head on its vectors."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from melmask.classifier.clips import Clips
from melmask.classifier.head import Head, Kind, fit_head
from melmask.classifier.options import Scene
from melmask.embedding.choice import FeatureChoice
from melmask.geometry import step_durations_frames
from melmask.models.network import Network
from melmask.system.hardware import exact_float32_products
from melmask.system.progress import track

_CPU = torch.device("cpu")
_HEAD_STEPS = 10_000
"""In event tasks the head is first fitted to about this many steps, evenly taken: memory holds all their vectors."""


class ClassifierNetwork(nn.Module):
    """Encoder and head, both on one device, in training mode.

    Whole clips are cut into units as in `melmask.embedding`, so that the scores of training are those of prediction.
    Training crops pass through `vectors_of_crops`, which can leave patches out.
    """

    def __init__(self, model: Network, kind: Kind, classes: int, scene: Scene, device: torch.device = _CPU):
        super().__init__()
        self.kind, self.device = kind, device
        # A step of an event task has no deviation over time.
        self.scene: Scene = "mean" if kind == "event" else scene
        self.rows = model.encoder.grid.rows
        self.encoder = model.encoder
        size = FeatureChoice(scene=self.scene).scene_size(model.config)
        self.head = Head(size, classes)
        self.to(device).train().requires_grad_(True)

    @torch.no_grad()
    def predict(self, clips: Clips) -> tuple[Float[np.ndarray, "rows classes"], Float[np.ndarray, "rows classes"]]:
        """Return probabilities and targets of whole clips; a row is a clip or, in event tasks, a step."""
        self.eval()
        found, targets = [], []
        with exact_float32_products(self.device):
            for vectors, target in self._rows_of(clips):
                logits = self.head(vectors)
                probabilities = logits.softmax(-1) if self.kind == "multiclass" else logits.sigmoid()
                found.append(probabilities.float().cpu().numpy())
                targets.append(target)
        self.train()
        return np.concatenate(found), np.concatenate(targets)

    def start_head(self, train: Clips, valid: Clips) -> None:
        """Set the head to the linear probe of the encoder as it is."""
        fit_head(self.head, self.kind, self.head_rows(train), self.head_rows(valid))

    @torch.no_grad()
    def head_rows(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Return what the head is first fitted to: vectors (rows, dims) and targets (rows, classes).

        A row is a clip or, in event tasks, a step; of many steps every n-th is taken, counted over all clips.
        """
        rows, targets, before = [], [], 0
        # Every n-th step of the whole set, not of each clip: short clips must not give more than their share.
        steps_in_all = sum(math.ceil(len(logmel) / self.encoder.config.patch_frames) for logmel in clips.logmels)
        stride = math.ceil(steps_in_all / _HEAD_STEPS)
        with exact_float32_products(self.device):
            for vectors, target in track(self._rows_of(clips), len(clips), "embed for the first head", leave=False):
                kept = slice(-before % stride, None, stride) if self.kind == "event" else slice(None)
                rows.append(vectors[kept])
                targets.append(target[kept])
                before += len(vectors)
        return torch.cat(rows), torch.from_numpy(np.concatenate(targets))

    def step_targets(self, target: Float[np.ndarray, "frames classes"], steps: int) -> Float[np.ndarray, "_ classes"]:
        """Return the targets of the steps of a clip: those of the frames at their centers."""
        patch = self.encoder.config.patch_frames
        return target[np.minimum(np.arange(steps) * patch + patch // 2, len(target) - 1)]

    def vectors_of_crops(self, crops: Tensor, rng: np.random.Generator, patch_dropout: float) -> Tensor:
        """Encode training crops (batch, mels, frames) of equal length; the result is differentiable.

        Returns:
            Scene vectors (batch, dims) or, in event tasks, frame vectors (batch, steps, dims).
        """
        if self.kind == "event":
            return self._frame_vectors(crops)
        # Units are encoded apart, as in prediction, and joined before the moments over time are taken.
        parts = [self._kept_tokens(unit, rng, patch_dropout) for unit in crops.split(self.encoder.config.frames, dim=2)]
        tokens, row = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        # For each row of patches (a band of frequencies): mean and deviation over the patches that are there.
        of_row = F.one_hot(row, self.rows).to(tokens.dtype)
        of_row = (of_row / of_row.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)
        mean = of_row @ tokens
        if self.scene == "mean":
            return mean.flatten(1)
        from_mean = tokens - mean.gather(1, row[:, :, None].expand_as(tokens))
        # The slope of a root has no bound at 0.
        std = (of_row @ from_mean.square()).clamp(min=1e-8).sqrt()
        return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)

    def _kept_tokens(self, unit: Tensor, rng: np.random.Generator, patch_dropout: float) -> tuple[Tensor, Tensor]:
        """Encode a part of the patches of (batch, mels, frames): tokens (batch, kept, width) and the row of each."""
        patches = self.encoder.patches_of(unit)
        kept = max(1, round(patches.shape[1] * (1 - patch_dropout)))
        noise = torch.from_numpy(rng.random((len(unit), patches.shape[1]), dtype=np.float32)).to(self.device)
        # Sorted, so that without dropout the patches keep their order.
        ids = noise.argsort(1)[:, :kept].sort(1).values
        tokens = self.encoder.encode_visible(patches, ids)[:, int(self.encoder.config.cls_token) :]
        return tokens.float(), ids // (patches.shape[1] // self.rows)

    def _rows_of(self, clips: Clips) -> Iterator[tuple[Tensor, np.ndarray]]:
        """The vectors (rows, dims) and targets (rows, classes) of each clip: one row, or in event tasks its steps."""
        for logmel, target in zip(clips.logmels, clips.targets, strict=True):
            steps = self._steps_of(logmel)
            if self.kind == "event":
                yield steps, self.step_targets(target, len(steps))
            else:
                yield self._scene(steps, len(logmel))[None], target[None]

    def _steps_of(self, logmel: Float[np.ndarray, "frames mels"]) -> Tensor:
        """Frame vectors (steps, dims) of a whole clip, cut into units as in `embedding/encoder.py`."""
        config = self.encoder.config
        x = torch.from_numpy(logmel.astype(np.float32)).to(self.device).T
        x = F.pad(x, (0, -len(logmel) % config.patch_frames))
        return torch.cat([self._frame_vectors(unit[None])[0] for unit in x.split(config.frames, dim=1)])

    def _scene(self, steps: Tensor, frames: int) -> Tensor:
        """The scene vector (dims,) of frame vectors; each step counts by the audio in it, as in `ClipVectors.scene`."""
        weights = step_durations_frames(frames, self.encoder.config.patch_frames)
        shares = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(self.device)
        mean = shares @ steps
        if self.scene == "mean":
            return mean
        return torch.cat([mean, (shares @ (steps - mean).square()).sqrt()])

    def _frame_vectors(self, units: Tensor) -> Tensor:
        """(batch, mels, frames), of one unit's length at most, to (batch, steps, dims)."""
        *_, tokens = self.encoder.encode_layers(units)
        return FeatureChoice().pool(tokens, self.rows, self.encoder.config.cls_token)
