"""Which features are taken from an encoder: the layers, the vector of a time step, and the vector of a clip.

`FeatureChoice` is the one description of that. The command line, `AudioEncoder.embed`, tables, reports and the HEAR
module all pass it on whole. This module does not import PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from melmask.config import WHITENED, FrontEndConfig, ModelConfig
from melmask.embedding.pooling import POOLINGS
from melmask.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from melmask.checkpoint.folder import ModelCard


SCENES = ("mean", "mean+std", WHITENED)
"""What the scene vector holds: the mean of the frame vectors over time (D), or also their standard deviation (2 D),
which says how much the sound changes, or both whitened (2 D), which models can do that have learned it."""
AUTO = "auto"
"""In place of a scene: the one that the model's card names."""


class ChoiceChanges(TypedDict, total=False):
    """Keywords that change a `FeatureChoice`: its fields, except that `layer`, one or several, stands for `layers`."""

    layer: int | Sequence[int] | None
    pooling: str
    scene: str
    hop_ms: float | None


@dataclass(frozen=True, kw_only=True)
class FeatureChoice:
    """Which features of an encoder are used."""

    layers: tuple[int, ...] = field(default=(), metadata={"flag": "--layer"})
    """Take the features after these blocks, 1 to the model's depth, and put them side by side. Without it, they are the
    last block's, after the final norm, and for the model in the box those of the block that measured best."""
    pooling: str = field(default="concat", metadata={"names": tuple(POOLINGS)})
    """How the frequency patches of a time step become its vector."""
    scene: str = AUTO
    """How the frame vectors of a clip become its scene vector: their mean over time; mean+std, which is twice as long;
    or whitened, which is mean+std with the directions damped that all sounds share. Auto is what the model was made
    for: whitened if it can do that (the model in the box, and runs of tiny, small and demo), otherwise mean."""
    hop_ms: float | None = None
    """Time between frame vectors in ms, which is a patch's duration divided by a whole number. Without it, that is a
    patch's duration, and in event tasks the longest up to 50 ms."""

    def __post_init__(self) -> None:
        if self.scene not in (*SCENES, AUTO):
            raise ConfigError(f"scene is {self.scene!r}; known are {', '.join(SCENES)} and {AUTO}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling is {self.pooling!r}; known are {', '.join(POOLINGS)}")

    def changed(self, *, layer: int | Sequence[int] | None = None, **changes: Any) -> "FeatureChoice":
        """Return a copy with other values; `layer` may be one number or several.

        Raises:
            ConfigError: the pooling or scene is unknown.
            TypeError: a keyword is unknown.
        """
        if layer is not None:
            changes["layers"] = (layer,) if isinstance(layer, int) else tuple(layer)
        return replace(self, **changes)

    def of_model(self, card: "ModelCard") -> "FeatureChoice":
        """Return the choice if the model offers it; what it leaves open, scene and layers, is what the card names.

        Raises:
            ConfigError: the model has no such layer, pooling or hop.
        """
        model = card.model
        for number in self.layers:
            if not 1 <= number <= model.depth:
                raise ConfigError(f"layer is {number}; this model has layers 1 to {model.depth}")
        if POOLINGS[self.pooling].needs_cls and not model.cls_token:
            others = " or ".join(repr(name) for name, pooling in POOLINGS.items() if not pooling.needs_cls)
            raise ConfigError(f"pooling is {self.pooling!r} but this model has no CLS token; use {others}")
        self.hop_frames(model, card.front_end)
        layers, scene = self.layers or card.layers, card.scene if self.scene == AUTO else self.scene
        if scene == WHITENED and (card.whitening is None or layers != card.layers or self.pooling != "concat"):
            if self.scene == WHITENED:
                raise ConfigError(
                    "scene is 'whitened', which a model learns for its usual layer and the pooling 'concat', in "
                    "melmask pretrain with features.whiten or in melmask convert --whiten; use 'mean+std'"
                )
            scene = "mean+std"
        return replace(self, scene=scene, layers=layers)

    def unwhitened(self) -> "FeatureChoice":
        """Return the same features without whitening, for a model that has learned none."""
        return replace(self, scene="mean+std") if self.scene == WHITENED else self

    def hop_frames(self, model: ModelConfig, front_end: FrontEndConfig) -> int:
        """Return the number of frames from one frame vector to the next.

        Raises:
            ConfigError: the patch's duration is not a whole multiple of the hop.
        """
        if self.hop_ms is None:
            return model.patch_frames
        allowed = hops_ms(model, front_end)
        # Users type decimal fractions, which floating point need not meet exactly.
        found = [hop_ms for hop_ms in allowed if abs(hop_ms - self.hop_ms) <= 1e-6]
        if not found:
            known = ", ".join(f"{ms:g}" for ms in allowed)
            raise ConfigError(f"hop_ms is {self.hop_ms:g}; this model's steps allow {known}")
        return round(found[0] / front_end.hop_ms)

    def frame_size(self, model: ModelConfig) -> int:
        """Return D, the size of a frame vector."""
        rows = model.mels // model.patch_mels
        return POOLINGS[self.pooling].size(rows, model.width) * max(1, len(self.layers))

    def scene_size(self, model: ModelConfig) -> int:
        """Return the size of a scene vector."""
        return self.frame_size(model) * self.scene_parts

    @property
    def scene_parts(self) -> int:
        """How many vectors of D numbers a scene vector holds: the means, or the means and the deviations."""
        return 1 if self.scene == "mean" else 2

    def pool(self, tokens: "torch.Tensor", rows: int, cls_token: bool) -> "torch.Tensor":
        """Pool the tokens (batch, [CLS +] patches, width) of a layer to one vector a step, (batch, steps, size)."""
        # Tokens are numbered frequency-major, so they unfold to (rows, steps); steps then go first.
        grid = tokens[:, int(cls_token) :].unflatten(1, (rows, -1)).transpose(1, 2)
        return POOLINGS[self.pooling].pool(grid, tokens[:, :1])

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as files hold it: layer (null or a list), pooling, scene and hop_ms."""
        layer = list(self.layers) or None
        return {"layer": layer, "pooling": self.pooling, "scene": self.scene, "hop_ms": self.hop_ms}


def hops_ms(model: ModelConfig, front_end: FrontEndConfig) -> list[float]:
    """Return the times between frame vectors that a model allows, ascending: whole parts of a patch's duration."""
    patch = model.patch_frames
    return [frames * front_end.hop_ms for frames in range(1, patch + 1) if patch % frames == 0]
