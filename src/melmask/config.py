"""Every setting of melmask on one page: frozen dataclasses that check themselves when built, without torch.

`PretrainConfig` has two kinds of sections. `model`, `objective`, `masking`, `data` and `optimizer` decide the result;
`run` and `hardware` must not change it beyond rounding. A checkpoint's `config.json` holds `FrontEndConfig`,
`Statistics` and `ModelConfig`, because inference needs no other settings.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from melmask.errors import ConfigError

# Far above any rate that works; a bound keeps slips such as 1e39, which float32 cannot hold, out of PyTorch.
_HIGHEST_RATE = 1000.0

LOG_EPSILON = 1.1920929e-07
"""Added to the mel power before the logarithm: float32 machine epsilon (spec of the published models)."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_range(config: object, key: str, least: int, most: int | None = None) -> None:
    """Check that the number `section.name` is from `least` to `most`; NaN is in no range."""
    value = getattr(config, key.partition(".")[2])
    limits = f"{least} to {most}" if most is not None else f"at least {least}" if least else "0 or more"
    _check(least <= value <= (math.inf if most is None else most), f"{key} is {value}; give {limits}")


def _check_choice(config: object, key: str) -> None:
    """Check that `section.name` is one of the words that its annotation lists."""
    name = key.partition(".")[2]
    # Compared as text: True equals 1, but is not the same word.
    value, words = getattr(config, name), [repr(word) for word in get_args(type(config).__annotations__[name])]
    _check(repr(value) in words, f"{key} is {value!r}; give {', '.join(words[:-1])} or {words[-1]}")


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """How a waveform becomes a log-mel. The defaults are MSM-MAE's (PMLR 166, section 4.1), at 16 kHz."""

    sample_rate_hz: int = 16000
    """Rate that the audio is resampled to."""
    n_fft: int = 400
    """FFT length in samples."""
    win_samples: int = 400
    """Hann window length in samples, centered in the FFT; 400 is 25 ms at 16 kHz."""
    hop_samples: int = 160
    """Samples between frames; 160 is 10 ms at 16 kHz."""
    mels: int = 80
    """Number of mel bands."""
    min_hz: float = 50.0
    """Lower edge of the first band, in Hz."""
    max_hz: float = 8000.0
    """Upper edge of the last band, in Hz; at most half the sample rate."""

    def __post_init__(self) -> None:
        _check(self.sample_rate_hz > 0, f"front_end.sample_rate_hz is {self.sample_rate_hz}; give a positive rate")
        _check_range(self, "front_end.hop_samples", 1)
        # Half of an even FFT length is whole, which centers the frames.
        _check(self.n_fft > 1 and self.n_fft % 2 == 0, f"front_end.n_fft is {self.n_fft}; give an even number")
        _check(
            1 < self.win_samples <= self.n_fft,
            f"front_end.win_samples is {self.win_samples}; give 2 to n_fft = {self.n_fft}",
        )
        _check_range(self, "front_end.mels", 1)
        _check(
            0 <= self.min_hz < self.max_hz <= self.sample_rate_hz / 2,
            f"front_end.min_hz and max_hz are {self.min_hz} and {self.max_hz}; give 0 <= min < max <= half the "
            f"sample rate, {self.sample_rate_hz / 2}",
        )

    @property
    def hop_ms(self) -> float:
        """Time between frames, in ms."""
        return 1000 * self.hop_samples / self.sample_rate_hz


FRONT_END_32_KHZ = FrontEndConfig(sample_rate_hz=32000, n_fft=800, win_samples=800, hop_samples=320, max_hz=16000.0)
"""The front end of the successor's 32-kHz models."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of all log-mel values of a corpus, one number each. The defaults are AudioSet's."""

    mean: float = -7.1
    """Mean of ln(power + eps)."""
    std: float = 4.2
    """Standard deviation of ln(power + eps)."""

    def __post_init__(self) -> None:
        _check(math.isfinite(self.mean), f"statistics.mean is {self.mean}; give a finite number")
        _check(0 < self.std < math.inf, f"statistics.std is {self.std}; a standard deviation is above 0 and finite")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. The defaults are the paper's ViT-B at 80x208 with 16x16 patches."""

    mels: int = 80
    """Mel bands of the input."""
    frames: int = 208
    """Frames of a unit: the length of a crop in training, and of the longest piece that inference encodes at once."""
    patch_mels: int = 16
    """Patch height in mel bands; divides `mels`."""
    patch_frames: int = 16
    """Patch width in frames; divides `frames`."""
    width: int = 768
    """Encoder width; divisible by 4 (positions) and by `heads`."""
    depth: int = 12
    """Encoder blocks."""
    heads: int = 12
    """Encoder attention heads."""
    cls_token: bool = True
    """Whether a learned CLS token goes before the patches."""
    decoder_width: int = 384
    """Decoder width; 0, with `decoder_depth` 0, for an encoder without decoder."""
    decoder_depth: int = 4
    """Decoder blocks."""
    decoder_heads: int = 6
    """Decoder attention heads."""
    decoder_positions: Literal["line", "grid"] = "line"
    """1-D sinusoid over the flattened tokens ('line', the paper) or the 2-D table ('grid', its successor)."""

    def __post_init__(self) -> None:
        # Patches must cover the input exactly.
        for size, patch in (("mels", "patch_mels"), ("frames", "patch_frames")):
            whole, part = getattr(self, size), getattr(self, patch)
            _check(
                0 < part <= whole and whole % part == 0,
                f"model.{patch} is {part}; give a divisor of model.{size} = {whole}",
            )
        # The 2-D position table has a sine and a cosine for each of its two halves: hence the multiple of 4.
        for part in ("", "decoder_") if self.has_decoder else ("",):
            width, heads = getattr(self, f"{part}width"), getattr(self, f"{part}heads")
            _check(
                width > 0 and width % 4 == 0 and heads > 0 and width % heads == 0,
                f"model.{part}width and model.{part}heads are {width} and {heads}; give a width that is a multiple of "
                "4 and of the heads",
            )
        _check_range(self, "model.depth", 1)
        _check_range(self, "model.decoder_width", 0)
        _check_range(self, "model.decoder_depth", 0)
        _check_choice(self, "model.decoder_positions")

    @property
    def has_decoder(self) -> bool:
        """Whether the model can reconstruct."""
        return self.decoder_width > 0


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network is trained to do."""

    kind: str = "mae"
    """The objective's name, a module of `melmask.objectives`. 'mae' reconstructs hidden patches; its settings are in
    `masking`."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """The masked autoencoder's settings: what is hidden, and what it must predict."""

    ratio: float = 0.75
    """Share of the patches that are hidden; int(patches * (1 - ratio)) stay visible."""
    masks_per_crop: int = 1
    """How many times each crop of a batch is seen, each time under another mask (EAT, arXiv 2401.03497). The network's
    batch is larger than the data's by this factor."""
    normalize_target: bool = False
    """Whether the values of each target patch are normalized to zero mean and unit variance (the paper: false)."""

    def __post_init__(self) -> None:
        _check(0 < self.ratio < 1, f"masking.ratio is {self.ratio}; give a share between 0 and 1")
        _check_range(self, "masking.masks_per_crop", 1, 4096)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How crops are drawn from the store."""

    batch_size: int = 256
    """Crops of a step, over all processes together."""
    sampling: Literal["time", "clip"] = "time"
    """An epoch has one crop for each crop length of audio ('time'), or one crop for each clip ('clip', the paper)."""

    def __post_init__(self) -> None:
        # More crops than any machine holds: a slip of the keyboard should not end as a lack of memory.
        _check_range(self, "data.batch_size", 1, 2**24)
        _check_choice(self, "data.sampling")


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
    """Steps of linear warm-up from zero."""
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
        _check_choice(self, "optimizer.name")
        _check(
            0 < self.learning_rate <= _HIGHEST_RATE,
            f"optimizer.learning_rate is {self.learning_rate}; give a positive rate, at most {_HIGHEST_RATE:g}",
        )
        # Written this way round, the comparisons refuse NaN, too.
        for name in ("weight_decay", "max_gradient_norm", "epochs"):
            value = getattr(self, name)
            _check(0 <= value < math.inf, f"optimizer.{name} is {value}; give 0 or more")
        _check_range(self, "optimizer.steps", 1)
        _check_range(self, "optimizer.learning_rate_batch", 0)
        _check(
            0 <= self.warmup_steps <= self.steps,
            f"optimizer.warmup_steps is {self.warmup_steps}; give 0 to steps = {self.steps}",
        )
        _check(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1,
            f"optimizer.beta1 and beta2 are {self.beta1} and {self.beta2}; give values from 0 to below 1",
        )
        _check(
            0 <= self.warmup_epochs <= self.epochs,
            f"optimizer.warmup_epochs is {self.warmup_epochs}; give 0 to epochs = {self.epochs}",
        )
        _check(0 <= self.ema_decay < 1, f"optimizer.ema_decay is {self.ema_decay}; give a value from 0 to below 1")


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
        _check(0 <= self.seed < 2**63, f"run.seed is {self.seed}; give 0 to 2**63 - 1")
        for name in ("log_interval_steps", "keep_checkpoints"):
            _check_range(self, f"run.{name}", 1)
        for name in (
            "snapshot_interval_s",
            "picture_interval_steps",
            "max_minutes",
            "keep_every_steps",
            "max_rollbacks",
        ):
            _check_range(self, f"run.{name}", 0)
        _check_choice(self, "run.on_divergence")
        _check(
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
        _check_choice(self, "hardware.precision")
        _check_choice(self, "hardware.sharding")
        _check_range(self, "hardware.readers", 1, 1024)
        _check_range(self, "hardware.threads", 0, 1024)
        _check_range(self, "hardware.shares", 0, 1024)
        _check_range(self, "hardware.micro_batch", 0)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def __post_init__(self) -> None:
        if self.objective.kind == "mae":
            self._check_reconstruction()
        # Muon makes the update of a matrix orthogonal, which takes all of its rows.
        _check(
            self.optimizer.name == "adamw" or self.hardware.sharding == "none",
            "optimizer.name is 'muon' and hardware.sharding 'fsdp', but Muon needs whole matrices; set "
            "optimizer.name=adamw or hardware.sharding=none",
        )

    def _check_reconstruction(self) -> None:
        """Check what only the masked autoencoder needs."""
        _check(
            self.model.has_decoder,
            "model.decoder_width is 0, but the objective 'mae' reconstructs; set model.decoder_width and decoder_depth",
        )
        _check(
            (self.model.patch_mels, self.model.patch_frames) != (self.model.mels, self.model.frames),
            f"model.patch_mels and patch_frames are {self.model.patch_mels} and {self.model.patch_frames}, the whole "
            "input; give smaller patches, some to hide and some to see",
        )
