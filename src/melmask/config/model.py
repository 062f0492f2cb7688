"""The shape of the network."""

from dataclasses import dataclass, field
from typing import Literal

from melmask.config.checks import (
    LEFT_OUT_AT_DEFAULT,
    MOST_FRAMES,
    MOST_MELS,
    WIDEST,
    check,
    check_choice,
    check_range,
)

_DEEPEST = 1024
_MOST_POSITIONS = 1 << 26


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
        check_range(self, "model.mels", 1, MOST_MELS)
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
