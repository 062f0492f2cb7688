"""The settings of a pre-training run: data, optimizer, features, what is logged, hardware, and all of them together."""

import math
from dataclasses import dataclass, field
from typing import Literal

from melmask.config.checks import LARGEST_BATCH, LEFT_OUT_AT_DEFAULT, MOST_STEPS, check, check_choice, check_range
from melmask.config.model import ModelConfig
from melmask.config.objectives import (
    ContrastConfig,
    M2DConfig,
    MaskingConfig,
    ObjectiveConfig,
    RandomProjectionConfig,
)

# Far above any rate that works; a bound keeps slips such as 1e39, which float32 cannot hold, out of PyTorch.
_HIGHEST_RATE = 1000.0
WHITENED = "whitened"
"""The scene vector that a model learns to whiten, as cards, options and tables name it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How crops are drawn from the store, and how many are synthetic."""

    batch_size: int = 256
    """Crops of a step, over all processes together."""
    sampling: Literal["time", "clip"] = "time"
    """An epoch has one crop for each crop length of audio ('time'), or one crop for each clip ('clip', the paper)."""
    synth_share: float = field(default=0.0, metadata=LEFT_OUT_AT_DEFAULT)
    """Share of the crops of each batch that are synthetic sound, drawn anew each time; 1: all, and no store is
    needed."""
    synth_band: str = field(default="speech", metadata=LEFT_OUT_AT_DEFAULT)
    """Band of frequency of a run without a store, as in `prepare --band`: a sample rate in Hz, or a name."""

    def __post_init__(self) -> None:
        # More crops than any machine holds: a slip of the keyboard should not end as a lack of memory.
        check_range(self, "data.batch_size", 1, LARGEST_BATCH)
        check_choice(self, "data.sampling")
        share, crops = self.synth_share, self.synth_crops
        check(0 <= share <= 1, f"data.synth_share is {share}; give a share from 0 to 1")
        check(
            (share > 0) == (crops > 0) and (share < 1) == (crops < self.batch_size),
            f"data.synth_share is {share}, which is no whole crop of a batch of {self.batch_size}; give 0, 1, or from "
            f"{1 / self.batch_size:.2g} to {1 - 1 / self.batch_size:.2g}",
        )

    @property
    def synth_crops(self) -> int:
        """Synthetic crops in a batch."""
        # Shares that are out of range, or no number, are refused elsewhere.
        return round(self.synth_share * self.batch_size) if 0 <= self.synth_share <= 1 else 0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Muon, with a linear warm-up and a half-cosine decay to zero (PMLR 166, appendix A)."""

    name: Literal["adamw", "muon"] = "adamw"
    """'adamw' (the paper), or 'muon', which moves the blocks' matrices by orthogonal updates (PyTorch 2.9 or newer)."""
    learning_rate: float = 3e-4
    """Peak rate, for a batch of `learning_rate_batch` views (crops times masks)."""
    learning_rate_batch: int = 0
    """Scale the peak in proportion to the views in a batch, so that it is `learning_rate` at this many views. 0: do not
    scale. The paper has 1.5e-4 at 128, its successor 3e-4 at 256."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices; biases, norms and tokens have none."""
    steps: int = 10000
    """Optimizer steps of the whole run."""
    warmup_steps: int = 1000
    """Steps of linear warm-up from zero, where `warmup_share` is 0."""
    warmup_share: float = 0.0
    """Share of the steps that is warm-up. If above 0, it decides `warmup_steps`, unless a new run sets those."""
    minutes: float = 0.0
    """Minutes of training of the whole run. If above 0, the run plans `steps` and `warmup_steps` from the speed of its
    first steps, so that the decay ends with the minutes. When the speed changes, it plans the rest again."""
    epochs: float = 0.0
    """Passes over the store. If above 0, a new run computes `steps` and `warmup_steps` from the epochs."""
    warmup_epochs: float = 0.0
    """How many of the `epochs` are warm-up."""
    max_gradient_norm: float = 0.0
    """Clip the gradient's norm to this; 0: do not clip (the paper)."""
    ema_decay: float = 0.0
    """Checkpoints hold an exponential moving average of the weights with this decay per step; 0: the weights
    themselves."""

    def __post_init__(self) -> None:
        check_choice(self, "optimizer.name")
        check(
            0 < self.learning_rate <= _HIGHEST_RATE,
            f"optimizer.learning_rate is {self.learning_rate}; give a positive rate, at most {_HIGHEST_RATE:g}",
        )
        # Written this way round, the comparisons refuse NaN, too.
        for name in ("weight_decay", "max_gradient_norm", "epochs", "minutes"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"optimizer.{name} is {value}; give 0 or more")
        # At 1,000 steps a second, these are 30 years.
        check_range(self, "optimizer.steps", 1, MOST_STEPS)
        check_range(self, "optimizer.learning_rate_batch", 0, MOST_STEPS)
        check(
            0 <= self.warmup_share < 1,
            f"optimizer.warmup_share is {self.warmup_share}; give a share from 0 to below 1",
        )
        check(
            0 <= self.warmup <= self.steps,
            f"optimizer.warmup_steps is {self.warmup_steps}; give 0 to steps = {self.steps}, or give "
            "optimizer.warmup_share",
        )
        check(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1,
            f"optimizer.beta1 and beta2 are {self.beta1} and {self.beta2}; give values from 0 to below 1",
        )
        check(
            0 <= self.warmup_epochs <= self.epochs,
            f"optimizer.warmup_epochs is {self.warmup_epochs}; give 0 to epochs = {self.epochs}",
        )
        check(0 <= self.ema_decay < 1, f"optimizer.ema_decay is {self.ema_decay}; give a value from 0 to below 1")

    @property
    def warmup(self) -> int:
        """Steps of warm-up, whichever setting decides them."""
        return round(self.warmup_share * self.steps) if self.warmup_share else self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run logs and keeps, and when."""

    seed: int = 0
    """Decides weights, crops, masks and order."""
    log_interval_steps: int = 20
    """Steps between two lines of metrics."""
    snapshot_interval_s: float = 120.0
    """Seconds between two snapshots; a kill loses no more training than this."""
    picture_interval_steps: int = 500
    """Steps between two pictures of reconstructions, feature ranks and k-NN scores; 0: none."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    keep_every_steps: int = 0
    """Always keep the first checkpoint after each multiple of this many steps; 0: keep none of them."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """What to do when the loss is not finite or is a spike: 'stop', or return to the last snapshot and skip the batches
    since then ('rollback')."""
    spike_factor: float = 0.0
    """A loss above the median of the last intervals by this factor is a spike; 0: no loss is a spike."""
    max_rollbacks: int = 3
    """How many rollbacks may follow each other without a new snapshot; one more ends the run."""
    max_minutes: float = 0.0
    """Stop with a snapshot after this many minutes; the same command resumes. 0: no limit."""
    wandb_project: str = ""
    """Log to this project at Weights & Biases, too (`pip install 'melmask[wandb]'`); empty: do not."""

    def __post_init__(self) -> None:
        # torch.manual_seed takes signed 64-bit numbers, and NumPy's generators no negative ones.
        check(0 <= self.seed < 2**63, f"run.seed is {self.seed}; give 0 to 2**63 - 1")
        for name in ("log_interval_steps", "keep_checkpoints"):
            check_range(self, f"run.{name}", 1, MOST_STEPS)
        for name in (
            "snapshot_interval_s",
            "picture_interval_steps",
            "max_minutes",
            "keep_every_steps",
            "max_rollbacks",
        ):
            check_range(self, f"run.{name}", 0)
        check_choice(self, "run.on_divergence")
        check(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"run.spike_factor is {self.spike_factor}; give a factor above 1, or 0 for none",
        )


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where and how fast to compute; the result stays the same except for rounding."""

    device: str = "auto"
    """'cpu', 'cuda', 'cuda:1' or 'mps'; 'auto' uses a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass. 'auto' uses bf16 where the device computes it natively. fp16 scales
    the loss and is for GPUs without bf16."""
    threads: int = 0
    """CPU threads for computing; 0: OMP_NUM_THREADS or, without it, all cores that this process may use."""
    shares: int = 0
    """In how many shares a process computes its crops on CPU, side by side and with one thread each; 0: one for each
    thread, or fewer of several threads each if their gradients would take more than 2 GB; 1: one, and all threads share
    every operation. GPUs, sharded and compiled networks have one share."""
    readers: int = 2
    """Threads that read batches ahead."""
    micro_batch: int = 0
    """Crops that a process computes at once; a step sums the gradients of several such parts. 0: all crops at once."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and recompute the rest. This saves memory and makes a step a
    third slower."""
    compile: bool = False
    """Compile the network with torch.compile. This takes a minute at the start and needs a C++ compiler on CPU."""
    sharding: Literal["none", "fsdp"] = "none"
    """Whether each of several processes holds the whole model ('none', DDP) or a share of it ('fsdp', large models)."""

    def __post_init__(self) -> None:
        check_choice(self, "hardware.precision")
        check_choice(self, "hardware.sharding")
        check_range(self, "hardware.readers", 1, 1024)
        check_range(self, "hardware.threads", 0, 1024)
        check_range(self, "hardware.shares", 0, 1024)
        check_range(self, "hardware.micro_batch", 0, LARGEST_BATCH)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Which features of the trained model its users get unless they choose others; the training does not use them."""

    whiten: int = 0
    """How many of the strongest directions of the scene vectors are damped, learned without labels from up to 2048
    stretches of the training sound when the training is done (`melmask.models.whitening`); 0: none (the paper)."""
    depth_share: float = 1.0
    """Share of the encoder's blocks after which features are taken; 1: after the last one and the final norm (the
    paper). The last blocks begin to decode, so a block in the middle may be better."""

    def __post_init__(self) -> None:
        check(
            0 < self.depth_share <= 1, f"features.depth_share is {self.depth_share}; give a share above 0 and up to 1"
        )

        check(self.whiten >= 0, f"features.whiten is {self.whiten}; give a number of directions, or 0")

    def layers(self, blocks: int) -> tuple[int, ...]:
        """Return the block of an encoder of so many blocks, counted from 1; none stands for the end."""
        return () if self.depth_share == 1 else (max(1, round(self.depth_share * blocks)),)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    m2d: M2DConfig = field(default_factory=M2DConfig)
    random_projection: RandomProjectionConfig = field(default_factory=RandomProjectionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    run: RunConfig = field(default_factory=RunConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def __post_init__(self) -> None:
        if self.objective.kind in ("mae", "m2d", "random_projection"):
            self._check_decoder()
        if self.contrast.weight:
            self._check_contrast()
        # Muon makes the update of a matrix orthogonal, which takes all of its rows.
        check(
            self.optimizer.name == "adamw" or self.hardware.sharding == "none",
            "optimizer.name is 'muon' and hardware.sharding 'fsdp', but Muon needs whole matrices; set "
            "optimizer.name=adamw or hardware.sharding=none",
        )

    @property
    def crops_together(self) -> int:
        """How many crops the loss compares with each other; a step never computes such a group in parts."""
        return self.contrast.crops if self.contrast.weight else 1

    def _check_contrast(self) -> None:
        """Check that the batch has whole groups of crops, each seen under several masks."""
        crops = self.contrast.crops
        check(
            self.objective.kind == "mae",
            f"contrast.weight is {self.contrast.weight:g}, but the objective {self.objective.kind!r} has no contrast; "
            "set contrast.weight=0 or objective.kind=mae",
        )
        check(
            self.masking.masks_per_crop > 1,
            f"contrast.weight is {self.contrast.weight:g}, but masking.masks_per_crop is 1; give 2 masks or more to "
            "compare",
        )
        sizes = {"data.batch_size": self.data.batch_size, "hardware.micro_batch": self.hardware.micro_batch}
        for name, size in sizes.items():
            check(
                size % crops == 0,
                f"{name} is {size}, but the contrast compares groups of {crops} crops; give a multiple of {crops}, or "
                "another contrast.crops",
            )

    def _check_decoder(self) -> None:
        """Check what only an objective needs that predicts hidden patches with the decoder."""
        kind = self.objective.kind
        does = "reconstructs" if kind == "mae" else "predicts with the decoder"
        check(
            self.model.has_decoder,
            f"model.decoder_width is 0, but the objective {kind!r} {does}; set model.decoder_width and decoder_depth",
        )
        check(
            (self.model.patch_mels, self.model.patch_frames) != (self.model.mels, self.model.frames),
            f"model.patch_mels and patch_frames are {self.model.patch_mels} and {self.model.patch_frames}, the whole "
            "input; give smaller patches, some to hide and some to see",
        )
