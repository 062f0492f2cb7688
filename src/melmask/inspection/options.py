"""The options of `melmask show`. Its command line is built from them, so this module does not import PyTorch."""

from dataclasses import dataclass, field
from typing import Literal

from melmask.config.checks import check
from melmask.config.objectives import MaskingConfig
from melmask.errors import ConfigError

ALL, MEAN = "all", "mean"
STRATEGIES = {"random": "random", "blocks": "inverse-blocks", "time": "time", "frequency": "frequency"}
"""The names of masking strategies as `melmask show` takes them, and as `masking.strategy` does."""


@dataclass(frozen=True, kw_only=True)
class StretchOptions:
    """Which part of the sound is shown."""

    start: float = 0.0
    """Where the part begins, in s."""
    end: float | None = None
    """Where the part ends, in s. The default is the end of the sound, or 30 s after the start."""

    def __post_init__(self) -> None:
        check(self.start >= 0, f"--start is {self.start:g}; give a time in s from 0")
        check(self.end is None or self.end > self.start, f"--end is {self.end} s; give a time after {self.start:g} s")


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What is hidden from the model, for `reconstruct`."""

    ratio: float = 0.75
    """Share of the patches that are hidden."""
    strategy: Literal["random", "blocks", "time", "frequency"] = "random"
    """What stays visible: single patches, blocks of 3x3 patches, or whole columns or rows of patches."""
    seed: int = field(default=0, metadata={"limits": (0, 2**32 - 1)})
    """Another seed hides other patches."""
    box: tuple[float, float, float, float] | None = field(
        default=None, metadata={"metavar": ("FROM_S", "TO_S", "LOW_HZ", "HIGH_HZ")}
    )
    """Hide this part of the spectrogram instead, and all patches that it touches. The times are those of the file."""
    seeds: int | None = field(default=None, metadata={"limits": (1, 10_000), "metavar": "N"})
    """Show the mean error over N masks, from `seed` on: what in the sound the model can predict, and what it cannot."""
    leak: bool = False
    """Draw patches with the level and the contrast of what is hidden, which a model of normalized targets does not
    predict. By default both are estimated from the visible patches. The picture says so."""

    def __post_init__(self) -> None:
        check(0 < self.ratio < 1, f"--ratio is {self.ratio}; give a share between 0 and 1")
        check(self.box is None or self.seeds is None, "--seeds and --box exclude each other: a box is one mask")

    @property
    def masking(self) -> MaskingConfig:
        """The ratio and the strategy as the training has them."""
        return MaskingConfig(ratio=self.ratio, strategy=STRATEGIES[self.strategy])


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Whose attention is shown, for `attention`."""

    of: str = field(default="auto", metadata={"metavar": "cls|mean|rollout"})
    """Whose: that of the CLS token, the mean over all tokens, or that of the CLS token through all layers (rollout).
    Auto is cls, or mean for a model without CLS token."""
    at: tuple[float, float] | None = field(default=None, metadata={"metavar": ("TIME_S", "HZ")})
    """Draw the attention of the patch at this time and frequency instead."""
    layer: str = field(default=ALL, metadata={"metavar": "N|mean|all"})
    """The layer, from 1 on, the mean of all, or a row of pictures for each. For features: take them after this layer;
    without it, they are the last one's, after the final norm."""
    head: str = field(default=ALL, metadata={"metavar": "N|mean|all"})
    """The head, from 1 on, the mean of all, or a column of pictures for each."""

    def __post_init__(self) -> None:
        known = ("auto", "cls", MEAN, "rollout")
        check(self.of in known, f"--of is {self.of!r}; give {', '.join(known)}")
        for name, text in (("layer", self.layer), ("head", self.head)):
            good = text in (ALL, MEAN) or (text.isascii() and text.isdecimal() and len(text) < 6 and int(text) > 0)
            check(good, f"--{name} is {text!r}; give a number from 1 on, {MEAN} or {ALL}")

    def numbers(self, name: Literal["layer", "head"], count: int) -> list[int | None]:
        """Return the numbers of the layers or heads that are shown; None is the mean of all.

        Raises:
            ConfigError: the model has no such layer or head.
        """
        text = getattr(self, name)
        if text == MEAN:
            return [None]
        if text == ALL:
            return list(range(1, count + 1))
        if int(text) > count:
            raise ConfigError(f"--{name} is {text}; this model has {name}s 1 to {count}")
        return [int(text)]
