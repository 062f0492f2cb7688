"""How a classifier is trained: the settings of `melmask finetune`."""

import math
from dataclasses import dataclass
from typing import Literal

from melmask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a classifier is trained."""

    epochs: int = 30
    """Passes over the training clips, one crop of each."""
    head_epochs: int = 0
    """First passes, in which only the head learns, from the linear probe on; as many as `epochs`: the encoder stays as
    it is."""
    warmup_epochs: float = 1.0
    """Linear warm-up, within the head's epochs and again when the encoder joins."""
    scene: Literal["mean", "mean+std"] = "mean+std"
    """What is kept of a clip's frame vectors over time: their mean, or their deviation too. None in event tasks."""
    crop_s: float = 10.0
    """Longest stretch of a clip a step sees, cut into units like whole clips; one unit in event tasks."""
    batch_size: int = 64
    """Clips a step."""
    learning_rate: float = 1e-3
    """Peak rate of the head and the last block; half-cosine decay to zero."""
    layer_decay: float = 0.75
    """Each block below learns at this share of the one above (BEiT, arXiv 2106.08254)."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices."""
    patch_dropout: float = 0.0
    """Share of patches left out of each crop in training (PaSST, arXiv 2110.05069): quicker epochs, but vectors unlike
    those of whole clips; none in event tasks."""
    mixup: float = 0.0
    """Two crops are mixed, log-mels and labels, with a weight from Beta(mixup, mixup); 0: none. None in event tasks."""
    time_mask_ms: float = 200.0
    """A stretch of each crop up to this long, and a quarter of it, is blanked (SpecAugment, arXiv 1904.08779); 0:
    none."""
    frequency_mask_mels: int = 8
    """A band up to this wide, and a quarter of all, is blanked; 0: none."""
    label_smoothing: float = 0.1
    """Share of each multiclass target spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """'balanced': classes count alike, however many clips they have."""
    patience_epochs: int = 8
    """Epochs without a better validation before training ends; the best one's weights are kept."""
    seed: int = 0
    """Decides order, crops and augmentation."""

    def __post_init__(self):
        for name, value in vars(self).items():
            _check(not isinstance(value, float) or math.isfinite(value), f"{name} is {value}; give a finite number")
        for name in ("epochs", "batch_size", "patience_epochs"):
            _check(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; give at least 1")
        _check(0 < self.crop_s <= 3600, f"crop_s is {self.crop_s}; give a positive length, at most an hour")
        _check(self.scene in ("mean", "mean+std"), f"scene is {self.scene!r}; give 'mean' or 'mean+std'")
        for name in ("head_epochs", "warmup_epochs", "mixup", "time_mask_ms", "frequency_mask_mels", "weight_decay"):
            _check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; give 0 or more")
        for name in ("patch_dropout", "label_smoothing"):
            _check(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; give a share from 0 to below 1")
        _check(0 < self.layer_decay <= 1, f"layer_decay is {self.layer_decay}; give a share above 0, at most 1")
        _check(0 <= self.seed < 2**63, f"seed is {self.seed}; give a whole number from 0 to below 2 ** 63")
        _check(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; give a positive rate")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
