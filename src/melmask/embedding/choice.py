"""What is taken from an encoder: which layers, how a step's tokens become a vector, and how vectors become one.

`FeatureChoice` is the one description of that. The command line, `AudioEncoder.embed`, tables, reports and the HEAR
module all carry it whole. To add a pooling, add one entry to `_POOLINGS` below. This module does not import PyTorch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from melmask.config import FrontEndConfig, ModelConfig
from melmask.errors import ConfigError

if TYPE_CHECKING:
    import torch


def _mean_and_max(grid: "torch.Tensor", _cls: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.cat([grid.mean(2), grid.amax(2)], dim=-1)


class _Pooling(NamedTuple):
    """How the tokens of a time step become its vector.

    size: the vector's length from (rows, width).  pool: from the patches' tokens (batch, steps, rows, width) and the
    CLS tokens (batch, 1, width) to (batch, steps, size).
    """

    size: Callable[[int, int], int]
    pool: Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
    needs_cls: bool = False


_POOLINGS = {
    "concat": _Pooling(lambda rows, width: rows * width, lambda grid, _: grid.flatten(2)),
    "mean": _Pooling(lambda _, width: width, lambda grid, _: grid.mean(2)),
    "mean+max": _Pooling(lambda _, width: 2 * width, _mean_and_max),
    "cls": _Pooling(lambda _, width: width, lambda grid, cls: cls.expand(-1, grid.shape[1], -1), needs_cls=True),
}

POOLINGS = tuple(_POOLINGS)
"""How the frequency patches of a time step become its vector: side by side (rows * width), their mean (width), their
mean and maximum (2 * width), or the CLS token of the step's unit (width)."""

SCENES = ("mean", "mean+std")
"""What the scene vector holds of the frame vectors: their mean over time (D), or also their standard deviation (2 D),
which says how much the sound changes."""


class ChoiceChanges(TypedDict, total=False):
    """Keywords that change a `FeatureChoice`: its fields, but `layer`, one number or several, for `layers`."""

    layer: int | Sequence[int] | None
    pooling: str
    scene: str
    hop_ms: float | None


@dataclass(frozen=True, kw_only=True)
class FeatureChoice:
    """Which features of an encoder are used."""

    layers: tuple[int, ...] = field(default=(), metadata={"flag": "--layer"})
    """Take the features after these blocks, 1 to the model's depth, and put them side by side. Without it, they are the
    last block's, after the final norm."""
    pooling: str = "concat"
    """How the frequency patches of a time step become its vector: concat, mean, mean+max or cls."""
    scene: str = "mean"
    """How the frame vectors of a clip become its scene vector: mean over time, or mean+std, which is twice as long."""
    hop_ms: float | None = None
    """Time between frame vectors in ms, which is a patch's duration divided by a whole number. Without it, that is a
    patch's duration, and in event tasks the longest up to 50 ms."""

    def __post_init__(self) -> None:
        if self.scene not in SCENES:
            raise ConfigError(f"scene is {self.scene!r}; known are {', '.join(SCENES)}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling is {self.pooling!r}; known are {', '.join(POOLINGS)}")

    def changed(self, *, layer: int | Sequence[int] | None = None, **changes: Any) -> "FeatureChoice":
        """Return a copy with other values; `layer` may be one number or several.

        Raises:
            ConfigError: an unknown pooling or scene.
            TypeError: an unknown keyword.
        """
        if layer is not None:
            changes["layers"] = (layer,) if isinstance(layer, int) else tuple(layer)
        return replace(self, **changes)

    def check(self, model: ModelConfig, front_end: FrontEndConfig) -> "FeatureChoice":
        """Return the choice itself; raise ConfigError unless this model has such layers, pooling and hop."""
        for number in self.layers:
            if not 1 <= number <= model.depth:
                raise ConfigError(f"layer is {number}; this model has layers 1 to {model.depth}")
        if _POOLINGS[self.pooling].needs_cls and not model.cls_token:
            others = " or ".join(repr(name) for name, pooling in _POOLINGS.items() if not pooling.needs_cls)
            raise ConfigError(f"pooling is {self.pooling!r} but this model has no CLS token; use {others}")
        self.hop_frames(model, front_end)
        return self

    def hop_frames(self, model: ModelConfig, front_end: FrontEndConfig) -> int:
        """Frames between frame vectors.

        Raises:
            ConfigError: the hop is no whole divisor of the patch's duration.
        """
        patch = model.patch_frames
        if self.hop_ms is None:
            return patch
        frames = round(self.hop_ms / front_end.hop_ms) if math.isfinite(self.hop_ms) else 0
        if abs(frames * front_end.hop_ms - self.hop_ms) > 1e-6 or frames < 1 or patch % frames:
            known = [divisor * front_end.hop_ms for divisor in range(1, patch + 1) if patch % divisor == 0]
            allowed = ", ".join(f"{ms:g}" for ms in known)
            raise ConfigError(f"hop_ms is {self.hop_ms:g}; this model's steps allow {allowed}")
        return frames

    def frame_size(self, model: ModelConfig) -> int:
        """D, the size of a frame vector."""
        rows = model.mels // model.patch_mels
        return _POOLINGS[self.pooling].size(rows, model.width) * max(1, len(self.layers))

    def scene_size(self, model: ModelConfig) -> int:
        """The size of a scene vector."""
        return self.frame_size(model) * len(self.scene.split("+"))

    def pool(self, tokens: "torch.Tensor", rows: int, cls_token: bool) -> "torch.Tensor":
        """Pool tokens (batch, [CLS +] patches, width) of one layer to a vector a time step, (batch, steps, D)."""
        grid = tokens[:, int(cls_token) :].unflatten(1, (rows, -1)).transpose(1, 2)
        return _POOLINGS[self.pooling].pool(grid, tokens[:, :1])

    def to_dict(self) -> dict[str, Any]:
        """The choice as files hold it: layer (null or a list), pooling, scene and hop_ms."""
        layer = list(self.layers) or None
        return {"layer": layer, "pooling": self.pooling, "scene": self.scene, "hop_ms": self.hop_ms}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FeatureChoice":
        """Read what `to_dict` gave; keys that are missing take their defaults.

        Raises:
            ConfigError: an unknown pooling or scene.
        """
        layers = tuple(values.get("layer") or ())
        known = {name: values[name] for name in ("pooling", "scene", "hop_ms") if name in values}
        return cls(layers=layers, **known)
