"""Every setting of melmask: frozen dataclasses that check themselves when built, without torch.

`PretrainConfig` has two kinds of sections. `run` and `hardware` must not change the result beyond rounding; all others
decide it. A checkpoint's `config.json` holds `FrontEndConfig`, `Statistics` and `ModelConfig`, because inference needs
no other settings. The sections of the objectives are in `config_objectives.py`.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from melmask.config_checks import LARGEST_BATCH, MOST_FRAMES, MOST_STEPS, WIDEST, check, check_choice, check_range

# Users of release 0.1.0 import some of these from here.
from melmask.config_objectives import ContrastConfig as ContrastConfig
from melmask.config_objectives import M2DConfig as M2DConfig
from melmask.config_objectives import MaskingConfig as MaskingConfig
from melmask.config_objectives import ObjectiveConfig as ObjectiveConfig
from melmask.config_objectives import RandomProjectionConfig as RandomProjectionConfig

# Far above any rate that works; a bound keeps slips such as 1e39, which float32 cannot hold, out of PyTorch.
_HIGHEST_RATE = 1000.0

# Bounds far beyond anything that has been trained. A file that lies, or a slip of the keyboard, is refused by its
# setting's name; otherwise the process would fill the memory, or compute for days.
_LOWEST_HZ, _HIGHEST_HZ = 100, 10_000_000
_LONGEST_FFT = 1 << 15
_MOST_OVERLAP = 128
_MOST_MELS = 1024
_DEEPEST = 1024
_MOST_POSITIONS = 1 << 26
LEFT_OUT_AT_DEFAULT = {"left_out_at_default": True}
"""Metadata of a field that files do not hold where it has its default, so that they stay what version 0.1.0 wrote."""

WHITENED = "whitened"
"""The scene vector that a model learns to whiten, as cards, options and tables name it."""
LOG_EPSILON = 1.1920929e-07
"""Added to the mel power before the logarithm: float32 machine epsilon (spec of the published models)."""
MEAN, EACH = "mean", "each"
"""All channels averaged, and every channel by itself."""
_MOST_EXPANDED = 1000.0


LONGEST_WINDOW_MS = 10_000


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig:
    """A further spectrogram of the same sound, with a window of its own. It has as many bands as the first one has."""

    window_ms: float = 256.0
    """Length of the Hann window, in ms. A longer one resolves pitch, a shorter one resolves time."""
    scale: Literal["log", "mel"] = "log"
    """'log' has the same number of bands in each octave, up to `max_hz`. 'mel' has the range of the first one."""
    bands_per_octave: float = 12.0
    """Bands in an octave, for the scale 'log'; 12 are semitones. 80 of them reach from 79 Hz to 8 kHz."""
    max_hz: float = 0.0
    """Upper edge of the last band, in Hz, for the scale 'log'; 0: that of the first spectrogram."""

    def __post_init__(self) -> None:
        check_range(self, "further_resolutions.window_ms", 1, LONGEST_WINDOW_MS)
        check_choice(self, "further_resolutions.scale")
        check_range(self, "further_resolutions.bands_per_octave", 1, 1000)
        check_range(self, "further_resolutions.max_hz", 0)


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
    further_resolutions: tuple[ResolutionConfig, ...] = field(default=(), metadata=LEFT_OUT_AT_DEFAULT)
    """Further spectrograms with other windows, at the same frames. As JSON, a list of objects with `window_ms`,
    `scale`, `bands_per_octave` and `max_hz`; those that are left out have their defaults."""

    def __post_init__(self) -> None:
        # From seismometers to laboratories of ultrasound.
        check_range(self, "front_end.sample_rate_hz", _LOWEST_HZ, _HIGHEST_HZ)
        # Longer than a second at the highest rate, a hop would leave sound out everywhere.
        check_range(self, "front_end.hop_samples", 1, _HIGHEST_HZ)
        # Half of an even FFT length is whole, which centers the frames. 2 to the 15 is 2 s at 16 kHz.
        check_range(self, "front_end.n_fft", 2, _LONGEST_FFT)
        check(self.n_fft % 2 == 0, f"front_end.n_fft is {self.n_fft}; give an even number")
        # Memory grows with the frames that share a sample; published front ends have 2 to 8 of them.
        check(
            self.n_fft <= _MOST_OVERLAP * self.hop_samples,
            f"front_end.hop_samples is {self.hop_samples}; give at least n_fft / {_MOST_OVERLAP} = "
            f"{math.ceil(self.n_fft / _MOST_OVERLAP)}",
        )
        check(
            1 < self.win_samples <= self.n_fft,
            f"front_end.win_samples is {self.win_samples}; give 2 to n_fft = {self.n_fft}",
        )
        # Published front ends have 40 to 256 bands.
        check_range(self, "front_end.mels", 1, _MOST_MELS)
        check(
            0 <= self.min_hz < self.max_hz <= self.sample_rate_hz / 2,
            f"front_end.min_hz and max_hz are {self.min_hz} and {self.max_hz}; give 0 <= min < max <= half the "
            f"sample rate, {self.sample_rate_hz / 2}",
        )
        check(len(self.further_resolutions) < 8, "front_end.further_resolutions has 8 or more; give 7 at most")
        for further in self.further_resolutions:
            check(
                further.max_hz <= self.sample_rate_hz / 2 and further.window_ms * self.sample_rate_hz >= 2000,
                f"front_end.further_resolutions has window_ms {further.window_ms} and max_hz {further.max_hz}; at "
                f"{self.sample_rate_hz} Hz give a window of 2 samples or more, and at most {self.sample_rate_hz / 2}",
            )

    @property
    def resolutions(self) -> int:
        """Number of spectrograms, one above the other in a log-mel; the first has the settings of this class."""
        return 1 + len(self.further_resolutions)

    @property
    def bands(self) -> int:
        """Rows of a log-mel: the bands of all resolutions."""
        return self.resolutions * self.mels

    @property
    def reach_samples(self) -> int:
        """How far the longest FFT reaches to either side of a frame's center."""
        return max([self.n_fft, *map(self.fft_samples, self.further_resolutions)]) // 2

    def window_samples(self, further: ResolutionConfig) -> int:
        """Return the window length of a further resolution."""
        return round(further.window_ms * self.sample_rate_hz / 1000)

    def fft_samples(self, further: ResolutionConfig) -> int:
        """Return the FFT length of a further resolution: the next even number from its window's on."""
        return -(-self.window_samples(further) // 2) * 2

    @property
    def hop_ms(self) -> float:
        """Time between frames, in ms."""
        return 1000 * self.hop_samples / self.sample_rate_hz


FRONT_END_32_KHZ = FrontEndConfig(sample_rate_hz=32000, n_fft=800, win_samples=800, hop_samples=320, max_hz=16000.0)
"""The front end of the successor's 32-kHz models."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How sound files are read, before everything else."""

    channel: str = field(default=MEAN, metadata={"metavar": "N|mean|each"})
    """Which channel of each file is taken: the mean of all, the number of one from 1 on, or each as a clip of its
    own."""
    expand: float = field(default=1.0, metadata={"metavar": "FACTOR"})
    """Play the sound this many times slower, which lowers ultrasound to where a model hears. Times in the results stay
    those of the file."""

    def __post_init__(self) -> None:
        plain = self.channel.isascii() and self.channel.isdecimal() and len(self.channel) <= 4
        check(
            self.channel in (MEAN, EACH) or (plain and int(self.channel) > 0),
            f"the channel is {self.channel!r}; give {MEAN}, the number of a channel from 1 on, or {EACH}",
        )
        check(
            1 <= self.expand <= _MOST_EXPANDED,
            f"expand is {self.expand:g}; give how many times slower to play, 1 to {_MOST_EXPANDED:g}",
        )

    @property
    def channel_number(self) -> int | None:
        """The number of the channel that is taken, from 1 on; None if there is not one."""
        return int(self.channel) if self.channel.isdecimal() else None

    def rate_hz(self, front_end: FrontEndConfig) -> int:
        """Return the rate that files are resampled to, in Hz.

        `expand` times as many samples a second, taken as samples at the front end's rate, last that much longer.
        """
        return round(front_end.sample_rate_hz * self.expand)

    def changed_facts(self) -> dict[str, object]:
        """Return the fields that differ from the defaults, which files of earlier versions do not have."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a command that has a model reads sound files; `embedding/reading.py` compares it with the model's own."""

    channel: str = field(default=MEAN, metadata={"metavar": "N|mean|each"})
    """Which channel of each file is taken: the mean of all, or the number of one, from 1 on. With `embed` and `predict`
    also each, which gives a row for each channel."""
    expand: float | None = field(default=None, metadata={"metavar": "FACTOR"})
    """Play the sound this many times slower, which lowers ultrasound to where the model hears. Times in the results
    stay those of the file. The default is what the model was trained with."""

    def __post_init__(self) -> None:
        self.of(Reading())

    def of(self, trained: Reading) -> Reading:
        """Return how files are read for a model that was trained as `trained` says."""
        return Reading(channel=self.channel, expand=trained.expand if self.expand is None else self.expand)

    def check_one_clip(self) -> None:
        """Raise ConfigError if a file gives several clips: a row of labels is about one."""
        check(
            self.channel != EACH,
            f"the channel is {EACH}, but a file has one row of labels; give {MEAN} or the number of a channel",
        )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and standard deviation of all log-mel values of a corpus, one number each. The defaults are AudioSet's."""

    mean: float = -7.1
    """Mean of ln(power + eps)."""
    std: float = 4.2
    """Standard deviation of ln(power + eps)."""
    further_means: tuple[float, ...] = field(default=(), metadata=LEFT_OUT_AT_DEFAULT)
    """The means of further resolutions; `mean` is that of the first."""
    further_stds: tuple[float, ...] = field(default=(), metadata=LEFT_OUT_AT_DEFAULT)
    """The standard deviations of further resolutions."""

    def __post_init__(self) -> None:
        check(
            len(self.further_means) == len(self.further_stds),
            f"statistics have {len(self.further_means)} further means and {len(self.further_stds)} further standard "
            "deviations; give one of each for each further resolution",
        )
        for mean, std in zip(self.further_means, self.further_stds, strict=True):
            Statistics(mean=mean, std=std)
        check(math.isfinite(self.mean), f"statistics.mean is {self.mean}; give a finite number")
        check(0 < self.std < math.inf, f"statistics.std is {self.std}; a standard deviation is above 0 and finite")

    @property
    def resolutions(self) -> int:
        """Number of resolutions that have a mean and a standard deviation here."""
        return 1 + len(self.further_means)


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
    resolutions: int = field(default=1, metadata=LEFT_OUT_AT_DEFAULT)
    """Spectrograms of the input, each of `mels` bands. A patch has the same bands and frames of each of them."""

    def __post_init__(self) -> None:
        # A million frames are three hours at a hop of 10 ms.
        check_range(self, "model.mels", 1, _MOST_MELS)
        check_range(self, "model.frames", 1, MOST_FRAMES)
        # Patches must cover the input exactly.
        for size, patch in (("mels", "patch_mels"), ("frames", "patch_frames")):
            whole, part = getattr(self, size), getattr(self, patch)
            check(
                0 < part <= whole and whole % part == 0,
                f"model.{patch} is {part}; give a divisor of model.{size} = {whole}",
            )
        # The 2-D position table has a sine and a cosine for each of its two halves: hence the multiple of 4.
        for part in ("", "decoder_") if self.has_decoder else ("",):
            width, heads = getattr(self, f"{part}width"), getattr(self, f"{part}heads")
            check(
                width > 0 and width % 4 == 0 and heads > 0 and width % heads == 0,
                f"model.{part}width and model.{part}heads are {width} and {heads}; give a width that is a multiple of "
                "4 and of the heads",
            )
        # The largest Vision Transformer that has been published is 6144 wide and 48 deep (arXiv 2302.05442).
        check_range(self, "model.width", 4, WIDEST)
        check_range(self, "model.depth", 1, _DEEPEST)
        check_range(self, "model.decoder_width", 0, WIDEST)
        check_range(self, "model.decoder_depth", 0, _DEEPEST)
        patches = (self.mels // self.patch_mels) * (self.frames // self.patch_frames)
        # No file holds the position tables, so only this bounds them: half a gigabyte in float64.
        check(
            patches * max(self.width, self.decoder_width) <= _MOST_POSITIONS,
            f"model.frames is {self.frames}: {patches} patches of width {max(self.width, self.decoder_width)} have "
            f"more than {_MOST_POSITIONS} position values; give fewer frames, or larger patches",
        )
        check_choice(self, "model.decoder_positions")
        check_range(self, "model.resolutions", 1, 8)

    @property
    def bands(self) -> int:
        """Rows of the input: the bands of all resolutions."""
        return self.resolutions * self.mels

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.resolutions * self.patch_mels * self.patch_frames

    @property
    def has_decoder(self) -> bool:
        """Whether the model can reconstruct."""
        return self.decoder_width > 0


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
