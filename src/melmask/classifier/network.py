"""The network of a classifier: a pre-trained encoder and a linear head on its vectors.

The head starts as a linear probe of the untouched encoder (`fit_head`), and then both are trained together.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from melmask.classifier.examples import Clips
from melmask.classifier.options import Scene
from melmask.downstream.regression import Regressions, Weights, fit_regressions
from melmask.embedding.choice import FeatureChoice
from melmask.geometry import step_durations_frames
from melmask.labels.options import Kind
from melmask.models.network import Network
from melmask.models.whitening import Whitening, fit_whitening
from melmask.system.cores import Cores
from melmask.system.finite import check_finite
from melmask.system.hardware import exact_float32_products
from melmask.system.progress import track
from melmask.train.shares import shares_that_fit

_CPU = torch.device("cpu")
_HEAD_STEPS = 10_000
"""In event tasks the head is first fitted to about this many evenly spaced steps, whose vectors fit in memory."""

_PENALTIES = (1000.0, 100.0, 10.0, 1.0)
"""Factors of half the sum of squared weights, which is added to the summed loss; tried from strongest to weakest."""
_DIRECTIONS = 128
"""How many directions of the training rows' vectors are damped, if there are eight rows for each."""
_RAREST = -15.0
"""The least bias of a class. That of a label without training rows has no optimum but minus infinity."""
_CLIPS_PER_CORE = 8
"""Each core encodes so many clips before it waits for the others."""
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


class LinearWeights(NamedTuple):
    """The weights of the linear layer of a head."""

    weight: Float[Tensor, "classes dims"]
    bias: Float[Tensor, " classes"]


class FirstHeads(NamedTuple):
    """Two linear probes of the encoder as it is."""

    calm: LinearWeights
    """The one with the least loss on the validation rows, from which training starts. A more confident one has nothing
    left to learn from its training rows, or gradients that spoil the encoder."""
    best: LinearWeights
    """The one with the best accuracy on the validation rows, which a trained network has to beat. With several labels
    per row, or events, it is the calm one."""


def fit_head(
    head: Head,
    kind: Kind,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    whitening: Whitening | None = None,
) -> FirstHeads:
    """Fit a head to vectors (rows, dims) and targets (rows, classes), as a linear probe (arXiv 2202.10054).

    The probe is that of `melmask probe`, with several penalties, of the vectors as they are and of whitened ones
    (`models/whitening.py`): by what the training rows share, and by the model's own whitening, if there is one. The
    weights are those that give the same logits for vectors that are not whitened. The head gets the calm weights.
    """
    # The deviation over time is 0 for clips of a single patch, but not for longer clips that may come later. So a
    # feature that hardly varies here is ignored forever.
    with torch.no_grad():
        std = train[0].std(0, correction=0)
        head.mean.copy_(train[0].mean(0))
        head.std.copy_(torch.where(std > _CONSTANT * std[std > 0].median(), std, _IGNORED))
    rows = tuple(((vectors - head.mean) / head.std).cpu() for vectors, _ in (train, valid))
    targets, truth = train[1], valid[1]
    # The steps of events are not whitened, only scene vectors.
    known = [] if kind == "event" else [whitening, _whitening_of(head, train[0])]
    bases = [torch.eye(len(head.mean)), *(_whitened_basis(head, rows[0], one) for one in known if one is not None)]
    found: list[tuple[float, float, LinearWeights]] = []
    jobs = [(basis, penalty) for basis in bases for penalty in _PENALTIES]
    fitted: Weights | None = None
    for basis, penalty in track(jobs, len(jobs), "fit the first head", "probe", leave=False):
        inputs, checked = (part @ basis for part in rows)
        # Each fit starts from the previous one of the same vectors, so all fits cost little more than one.
        fitted = fit_regressions(
            Regressions(
                inputs=inputs,
                targets=targets,
                trained=torch.ones(1, len(inputs), dtype=torch.bool),
                penalties=torch.full((1, inputs.shape[1]), penalty),
                kind=kind,
            ),
            None if penalty == _PENALTIES[0] else fitted,
        )
        weights = LinearWeights(fitted.weight[0].T, fitted.bias[0].clamp(min=_RAREST))
        logits = checked @ weights.weight.T + weights.bias
        weights = LinearWeights(weights.weight @ basis.T, weights.bias)
        loss = float(_summed_loss(logits, truth, kind))
        right = float((logits.argmax(1) == truth.argmax(1)).float().mean())
        # Average precision would need labels in the validation rows, which a sample of the steps may lack.
        found.append((loss, right if kind == "multiclass" else -loss, weights))
    calm = min(found, key=lambda entry: entry[0])[2]
    # The strongest penalty of equally good ones is taken.
    best = max(found, key=lambda entry: entry[1])[2]
    set_linear(head, calm)
    return FirstHeads(calm, best)


def _whitening_of(head: Head, vectors: Tensor) -> Whitening | None:
    """Learn a whitening from the training rows, of which it ignores what the head ignores; None if they are few."""
    kept = torch.where(head.std == _IGNORED, 0.0, vectors - head.mean)
    return fit_whitening(kept.cpu().numpy(), _DIRECTIONS)


def _whitened_basis(head: Head, inputs: Tensor, whitening: Whitening) -> Float[Tensor, "dims dims"]:
    """Return what turns vectors that the head has standardized into whitened ones of deviation 1.

    The mean does not matter: a bias makes up for it.
    """
    std = head.std.cpu()
    scale = torch.where(std == _IGNORED, 0.0, std) / torch.from_numpy(whitening.deviation)
    directions = torch.from_numpy(whitening.directions)
    damping = (torch.from_numpy(whitening.gains) - 1)[:, None] * directions
    basis = torch.diag(scale) + (scale[:, None] * directions.T) @ damping
    deviation = (inputs @ basis).std(0, correction=0)
    return basis / torch.where(deviation > _CONSTANT * deviation[deviation > 0].median(), deviation, _IGNORED)


@torch.no_grad()
def set_linear(head: Head, weights: LinearWeights) -> None:
    """Copy weights into the head."""
    head.linear.weight.copy_(weights.weight)
    head.linear.bias.copy_(weights.bias)


def _summed_loss(logits: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    if kind == "multiclass":
        return -(targets * logits.log_softmax(-1)).sum()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


class ClassifierNetwork(nn.Module):
    """Encoder and head, both on one device, in training mode.

    Whole clips are cut into units as in `melmask.embedding`, so that the scores of training are those of prediction.
    Training crops pass through `vectors_of_crops`, which can leave patches out.

    Attributes:
        cores: What computes on the cores of a CPU side by side, one clip or share of a batch on each.
    """

    def __init__(
        self,
        model: Network,
        kind: Kind,
        classes: int,
        scene: Scene,
        device: torch.device = _CPU,
        whitening: Whitening | None = None,
        normed: bool = True,
    ):
        """Join the encoder of a model and a new head; `normed` tells whether its features come after its final norm."""
        super().__init__()
        self._normed = normed
        self.kind, self.device = kind, device
        # A model learns it for vectors of means and deviations.
        self._whitening = whitening if scene == "mean+std" else None
        # A step of an event task has no deviation over time.
        self.scene: Scene = "mean" if kind == "event" else scene
        self.rows = model.encoder.grid.rows
        self.encoder = model.encoder
        size = FeatureChoice(scene=self.scene).scene_size(model.config)
        self.head = Head(size, classes)
        self.to(device).train().requires_grad_(True)
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.cores = Cores(threads, shares_that_fit(self, threads))

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

    def start_head(self, train: Clips, valid: Clips) -> FirstHeads:
        """Set the head to a linear probe of the encoder as it is, the calm one.

        Raises:
            NotFiniteError: what the encoder makes of the clips is not finite.
        """
        rows = self.head_rows(train), self.head_rows(valid)
        for vectors, _ in rows:
            check_finite(vectors.cpu().numpy(), "the embedding of the labeled files")
        return fit_head(self.head, self.kind, *rows, self._whitening)

    @torch.no_grad()
    def head_rows(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Return what the head is first fitted to: vectors (rows, dims) and targets (rows, classes).

        A row is a clip or, in event tasks, a step. Of many steps only every n-th is taken.
        """
        rows, targets, before = [], [], 0
        # Steps are counted over all clips, because short clips must not give more than their share.
        steps_in_all = sum(math.ceil(len(logmel) / self.encoder.config.patch_frames) for logmel in clips.logmels)
        stride = math.ceil(steps_in_all / _HEAD_STEPS)
        with exact_float32_products(self.device):
            for vectors, target in track(self._rows_of(clips), len(clips), "embed for the first head", leave=False):
                # The first step of this clip whose number in the whole set is a multiple of the stride.
                kept = slice(-before % stride, None, stride) if self.kind == "event" else slice(None)
                rows.append(vectors[kept])
                targets.append(target[kept])
                before += len(vectors)
        return torch.cat(rows), torch.from_numpy(np.concatenate(targets))

    def step_targets(self, target: Float[np.ndarray, "frames classes"], steps: int) -> Float[np.ndarray, "_ classes"]:
        """Return the targets of the steps of a clip: those of the frames at their centers."""
        patch = self.encoder.config.patch_frames
        return target[np.minimum(np.arange(steps) * patch + patch // 2, len(target) - 1)]

    def draw_kept(self, crops: Tensor, rng: np.random.Generator, patch_dropout: float) -> list[Int[Tensor, "batch _"]]:
        """Draw which patches of training crops (batch, mels, frames) are kept; return their numbers, unit by unit."""
        drawn = []
        for unit in self._units_of(crops):
            patches = self.rows * (unit.shape[2] // self.encoder.config.patch_frames)
            noise = torch.from_numpy(rng.random((len(unit), patches), dtype=np.float32)).to(self.device)
            # The random choice is sorted, so that without dropout the patches keep their order.
            drawn.append(noise.argsort(1)[:, : max(1, round(patches * (1 - patch_dropout)))].sort(1).values)
        return drawn

    def vectors_of_crops(self, crops: Tensor, kept: Sequence[Int[Tensor, "batch _"]]) -> Tensor:
        """Encode what `draw_kept` has kept of training crops (batch, mels, frames); the result is differentiable.

        Returns:
            Scene vectors (batch, dims) or, in event tasks, frame vectors (batch, steps, dims).
        """
        if self.kind == "event":
            return self._frame_vectors(crops)
        # Units are encoded apart, as in prediction, and joined before the moments over time are taken.
        parts = [self._kept_tokens(unit, ids) for unit, ids in zip(self._units_of(crops), kept, strict=True)]
        tokens, row = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        # Each row of patches (a band of frequencies) gets mean and deviation over its patches that were kept. `of_row`
        # (batch, rows, tokens) has each token's share in the mean of its row.
        of_row = F.one_hot(row, self.rows).to(tokens.dtype)
        of_row = (of_row / of_row.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)
        mean = of_row @ tokens
        if self.scene == "mean":
            return mean.flatten(1)
        from_mean = tokens - mean.gather(1, row[:, :, None].expand_as(tokens))
        # The clamp keeps the gradient of the square root finite, which is infinite at 0.
        std = (of_row @ from_mean.square()).clamp(min=1e-8).sqrt()
        return torch.cat([mean.flatten(1), std.flatten(1)], dim=1)

    def _units_of(self, crops: Tensor) -> tuple[Tensor, ...]:
        return crops.split(self.encoder.config.frames, dim=2)

    def _kept_tokens(self, unit: Tensor, ids: Int[Tensor, "batch kept"]) -> tuple[Tensor, Tensor]:
        """Encode the patches `ids` of (batch, mels, frames).

        Returns:
            Tokens (batch, kept, width), and the row of each token's patch (batch, kept).
        """
        patches = self.encoder.patches_of(unit)
        tokens = self.encoder.encode_visible(patches, ids, normed=self._normed)
        tokens = tokens[:, int(self.encoder.config.cls_token) :]
        return tokens.float(), ids // (patches.shape[1] // self.rows)

    def _rows_of(self, clips: Clips) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield each clip's vectors (rows, dims) and targets (rows, classes): one row, or in event tasks its steps."""
        jobs = [partial(self._rows_of_clip, *clip) for clip in zip(clips.logmels, clips.targets, strict=True)]
        size = _CLIPS_PER_CORE * self.cores.count
        for first in range(0, len(jobs), size):
            yield from self.cores.run(jobs[first : first + size])

    @torch.no_grad()
    def _rows_of_clip(self, logmel: Float[np.ndarray, "frames mels"], target: np.ndarray) -> tuple[Tensor, np.ndarray]:
        steps = self._steps_of(logmel)
        if self.kind == "event":
            return steps, self.step_targets(target, len(steps))
        return self._scene(steps, len(logmel))[None], target[None]

    def _steps_of(self, logmel: Float[np.ndarray, "frames mels"]) -> Tensor:
        """Return the frame vectors (steps, dims) of a whole clip, cut into units as in `embedding/encoder.py`."""
        config = self.encoder.config
        x = torch.from_numpy(logmel.astype(np.float32)).to(self.device).T
        x = F.pad(x, (0, -len(logmel) % config.patch_frames))
        return torch.cat([self._frame_vectors(unit[None])[0] for unit in x.split(config.frames, dim=1)])

    def _scene(self, steps: Tensor, frames: int) -> Tensor:
        """Return the scene vector (dims,) of frame vectors, weighted by the audio in each, as `ClipVectors.scene`."""
        weights = step_durations_frames(frames, self.encoder.config.patch_frames)
        shares = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(self.device)
        mean = shares @ steps
        if self.scene == "mean":
            return mean
        return torch.cat([mean, (shares @ (steps - mean).square()).sqrt()])

    def _frame_vectors(self, units: Tensor) -> Tensor:
        """Encode (batch, mels, frames), no longer than a unit, to frame vectors (batch, steps, dims)."""
        *_, last, normed = self.encoder.encode_layers(units)
        return FeatureChoice().pool(normed if self._normed else last, self.rows, self.encoder.config.cls_token)
