"""Continued pre-training: a run that begins with the weights of another model."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from melmask.checkpoint.locate import load_any
from melmask.config import FrontEndConfig, ModelConfig, PretrainConfig, Reading
from melmask.config_text import differing
from melmask.errors import ConfigError
from melmask.models.network import build_network

_EMBEDDING = "encoder.patch_embed.weight"
_DECODER = ("decoder_width", "decoder_depth", "decoder_heads", "decoder_positions")


def decoder_settings(model: ModelConfig) -> tuple[str, ...]:
    """Return the settings that give a run the decoder of a model, so that it can go on with it; none if it has none."""
    return tuple(f"model.{name}={getattr(model, name)}" for name in _DECODER) if model.has_decoder else ()


def initial_weights(
    source: Path, config: PretrainConfig, front_end: FrontEndConfig, reading: Reading = Reading()
) -> tuple[dict[str, Tensor], str]:
    """Return weights for a new run of `config` from any model that can be loaded, and a sentence about what was used.

    The units of the run may have more or fewer frames and mel bands than the model's, as positions are not stored but
    computed for the new grid. Its patches may have another shape; their embedding is then resized. The decoder is used
    if the model has one of the same shape and positions, else it starts at random. So does a CLS token that the model
    lacks. The sentence also says how the model's front end and reading differ from the store's, which are given.

    Raises:
        CheckpointError: the model cannot be read.
        ConfigError: its encoder has another shape than `config.model`.
    """
    model, card, path = load_any(source)
    weights = build_network(config.model, config.run.seed).state_dict()
    given = model.state_dict()
    wanted, has = config.model, card.model
    # These three must be equal; everything else can be adapted or start at random.
    for name in ("width", "depth", "heads"):
        if getattr(wanted, name) != getattr(has, name):
            raise ConfigError(
                f"model.{name} is {getattr(wanted, name)}, but {path} has {getattr(has, name)}; "
                f"set model.{name}={getattr(has, name)}"
            )
    encoder = {name for name in given if name.startswith("encoder.")} & weights.keys()
    decoder = {name for name in weights if name.startswith("decoder.")}
    # Weights of the same shapes mean something else with other positions or numbers of heads or blocks.
    alike = all(getattr(wanted, name) == getattr(has, name) for name in _DECODER)
    same_decoder = alike and all(name in given and given[name].shape == weights[name].shape for name in decoder)
    # The model's weights replace the random ones of the same names; what the model lacks stays random.
    weights |= {name: given[name] for name in encoder | (decoder if same_decoder else set())}
    there, here = (has.patch_mels, has.patch_frames), (wanted.patch_mels, wanted.patch_frames)
    if there != here or has.resolutions != wanted.resolutions:
        weights[_EMBEDDING] = _adapted_embedding(given[_EMBEDDING], has, wanted)
    text = f"starting from {path}: its encoder"
    if decoder:
        text += f" and {'its' if same_decoder else 'a new'} decoder"
    if (has.mels, has.frames) != (wanted.mels, wanted.frames):
        text += f", units of {wanted.mels}x{wanted.frames} instead of {has.mels}x{has.frames}"
    if there != here:
        text += f", patches of {here[0]}x{here[1]} instead of {there[0]}x{there[1]}"
    if has.resolutions != wanted.resolutions:
        text += f", {wanted.resolutions} instead of {has.resolutions} resolutions"
    found = [*differing(card.front_end, front_end), *differing(card.reading, reading)]
    others = [f"{name} {own} there and {its} here" for name, own, its in found]
    return weights, text + (f"; its log-mels differ from the store's: {', '.join(others)}" if others else "")


def _adapted_embedding(weight: Tensor, has: ModelConfig, wanted: ModelConfig) -> Tensor:
    """Return the patch embedding for patches of another shape, or of more or fewer resolutions.

    A resolution that the model lacks is embedded as 0, so that the network starts as if it did not hear it.
    """
    there, here = (has.patch_mels, has.patch_frames), (wanted.patch_mels, wanted.patch_frames)
    parts = list(weight.chunk(has.resolutions, dim=1))[: wanted.resolutions]
    if there != here:
        parts = [resized_embedding(part, there, here) for part in parts]
    parts += [torch.zeros_like(parts[0])] * (wanted.resolutions - len(parts))
    return torch.cat(parts, dim=1)


def resized_embedding(
    weight: Float[Tensor, "width before"], before: tuple[int, int], after: tuple[int, int]
) -> Float[Tensor, "width after"]:
    """Return the patch embedding for patches of another shape, (mels, frames) before and after.

    It maps a bilinearly resized patch to what `weight` maps the original patch to. If patches become smaller, it comes
    as near to that as possible (FlexiViT, arXiv 2212.08013, section 3.4: the pseudo-inverse of resizing).
    """
    # Resizing is linear: applied to patches with a single 1, it gives its own matrix, row by row. The pseudo-inverse
    # loses digits, so it is computed in float64.
    unit = torch.eye(before[0] * before[1], dtype=torch.float64).unflatten(1, (1, *before))
    resizing = functional.interpolate(unit, size=after, mode="bilinear", antialias=True).flatten(1).T
    return (weight.double() @ torch.linalg.pinv(resizing)).to(weight.dtype)
