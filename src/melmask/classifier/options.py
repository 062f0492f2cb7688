"""The options of `melmask finetune` and `melmask predict`; the text under each one is its help. No PyTorch here."""

import math
from dataclasses import dataclass, field
from typing import Literal

from melmask.config import ReadingOptions
from melmask.errors import ConfigError
from melmask.labels.options import Kind, TableOptions

# An hour. A typing error such as 250e6 would otherwise smooth over whole files.
_LONGEST_MS = 3_600_000.0

Scene = Literal["mean", "mean+std"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a classifier is trained: the settings `epochs=10` of `melmask finetune`."""

    epochs: int = 30
    """Passes over the training clips; each pass sees one crop of each clip."""
    head_epochs: int = 0
    """Number of first epochs in which only the head learns; if it equals `epochs`, the encoder never changes."""
    warmup_epochs: float = 1.0
    """The learning rate rises linearly over this time, once for the head and again when the encoder joins."""
    scene: Scene = "mean+std"
    """What the head sees of a clip's frame vectors: their mean over time, or also their standard deviation. Event tasks
    ignore this."""
    crop_s: float = 10.0
    """Longest crop of a clip that a step sees. Crops are cut into units like whole clips; event tasks use one unit."""
    batch_size: int = 64
    """Clips per step."""
    learning_rate: float = 1e-3
    """Peak rate of the head and the final norm; it falls to zero along a half-cosine."""
    layer_decay: float = 0.75
    """Each block learns at this share of the rate of the block above it (BEiT, arXiv 2106.08254)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices (AdamW, arXiv 1711.05101)."""
    patch_dropout: float = 0.0
    """Share of the patches that each training crop leaves out (PaSST, arXiv 2110.05069). Epochs become faster, but
    vectors differ from those of whole clips. Event tasks ignore it."""
    mixup: float = 0.0
    """Mix two crops, log-mels and labels, with a weight from Beta(mixup, mixup); 0 turns it off. Event tasks ignore
    it."""
    time_mask_ms: float = 200.0
    """Blank a stretch of each crop up to this long, and at most a quarter of it (SpecAugment, arXiv 1904.08779); 0
    turns it off."""
    frequency_mask_mels: int = 8
    """Blank this many mel bands of each crop at most, and never more than a quarter of them; 0 turns it off."""
    label_smoothing: float = 0.1
    """Share of each multiclass target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """With 'balanced' all classes have the same weight, however many clips they have."""
    patience_epochs: int = 8
    """Stop after this many epochs without a better validation score. The weights of the best epoch are kept, which may
    be those of the linear probe that training begins with. As long as none is better, half of the epochs are given."""
    seed: int = 0
    """Seed of the order of clips, of the crops and of the augmentation."""

    def __post_init__(self) -> None:
        # Comparisons with NaN are false, so the checks below would let it pass.
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


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Which rows a classifier is trained on, and where."""

    table: TableOptions = field(default=TableOptions())
    kind: Kind | None = None
    """Kind of the labels. By default the columns of the table decide. It also says what rows with times are: events
    within whole files, or else clips of their own."""
    fold: str = ""
    """The fold to test on, if there are folds; the next one validates. Without it, the first fold is tested."""
    reading: ReadingOptions = field(default=ReadingOptions())
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        self.reading.check_one_clip()


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `melmask predict` writes about each file."""

    events: bool = False
    """Report what sounds when, instead of one result for a whole file."""
    threshold: float = 0.5
    """Report a label if its probability exceeds this value. With one label per clip, the likeliest is always given."""
    hop_ms: float | None = None
    """Time between the steps of events, in ms: the duration of a patch divided by a whole number. Without it, that is
    the longest up to 50 ms, as in HEAR."""
    median_filter_ms: float = 250.0
    """Smooth events with a median over this time in ms: the largest odd number of whole steps that fits."""
    min_duration_ms: float = 125.0
    """Drop events that are shorter than this, in ms."""
    reading: ReadingOptions = field(default=ReadingOptions())

    def __post_init__(self) -> None:
        _check(0 <= self.threshold < 1, f"threshold is {self.threshold:g}; give a probability from 0 to below 1")
        for name in ("median_filter_ms", "min_duration_ms"):
            value = getattr(self, name)
            _check(0 <= value <= _LONGEST_MS, f"{name} is {value:g}; give 0 to an hour, in milliseconds")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
