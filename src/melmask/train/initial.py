"""Continued pre-training: the weights of another model as the start of a run."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from melmask.checkpoint.locate import load_any
from melmask.config import FrontEndConfig, PretrainConfig
from melmask.errors import ConfigError
from melmask.models.network import build_network
from melmask.settings import to_dict

_EMBEDDING = "encoder.patch_embed.weight"


def initial_weights(source: Path, config: PretrainConfig, front_end: FrontEndConfig) -> tuple[dict[str, Tensor], str]:
    """Return weights for a new run of `config` from any model that can be loaded, and a sentence on what was taken.

    Units may have more or fewer frames and mel bands than the model's: positions are not stored but computed for the
    new grid, from its first frame and lowest band on. Patches may have another shape: their embedding is resized. The
    decoder is taken if the model has one of the same shape and positions; else it starts at random. So does a CLS token
    that the model lacks. The sentence says how the model's front end differs from `front_end`, the store's.

    Raises:
        CheckpointError: the model cannot be read.
        ConfigError: its encoder has another shape than `config.model`.
    """
    model, card, path = load_any(source)
    weights = build_network(config.model, config.run.seed).state_dict()
    given = model.state_dict()
    wanted, has = config.model, card.model
    # Weights fit only a network of the same encoder; everything else about it can be adapted or built anew.
    for name in ("width", "depth", "heads"):
        if getattr(wanted, name) != getattr(has, name):
            raise ConfigError(
                f"model.{name} is {getattr(wanted, name)}, but {path} has {getattr(has, name)}; "
                f"set model.{name}={getattr(has, name)}"
            )
    encoder = {name for name in given if name.startswith("encoder.")} & weights.keys()
    decoder = {name for name in weights if name.startswith("decoder.")}
    alike = all(getattr(wanted, name) == getattr(has, name) for name in ("decoder_positions", "decoder_heads"))
    same_decoder = alike and all(name in given and given[name].shape == weights[name].shape for name in decoder)
    # Weights of equal names replace the random ones; what the source lacks stays random.
    weights |= {name: given[name] for name in encoder | (decoder if same_decoder else set())}
    there, here = (has.patch_mels, has.patch_frames), (wanted.patch_mels, wanted.patch_frames)
    if there != here:
        weights[_EMBEDDING] = resized_embedding(given[_EMBEDDING], there, here)
    text = f"starting from {path}: its encoder"
    if decoder:
        text += f" and {'its' if same_decoder else 'a new'} decoder"
    if (has.mels, has.frames) != (wanted.mels, wanted.frames):
        text += f", units of {wanted.mels}x{wanted.frames} instead of {has.mels}x{has.frames}"
    if there != here:
        text += f", patches of {here[0]}x{here[1]} instead of {there[0]}x{there[1]}"
    own, given_to = to_dict(card.front_end), to_dict(front_end)
    others = [f"{name} {own[name]:g} there and {given_to[name]:g} here" for name in own if own[name] != given_to[name]]
    return weights, text + (f"; its log-mels differ from the store's: {', '.join(others)}" if others else "")


def resized_embedding(
    weight: Float[Tensor, "width before"], before: tuple[int, int], after: tuple[int, int]
) -> Float[Tensor, "width after"]:
    """Return the patch embedding for patches of another shape, (mels, frames) before and after.

    Of a bilinearly resized patch it says what `weight` says of the original patch, or the nearest to that if patches
    become smaller (FlexiViT, arXiv 2212.08013, section 3.4: the pseudo-inverse of resizing).
    """
    # Resizing is linear: applied to each unit patch, it gives the matrix whose pseudo-inverse is wanted.
    # float64, as a pseudo-inverse loses digits.
    unit = torch.eye(before[0] * before[1], dtype=torch.float64).unflatten(1, (1, *before))
    resizing = functional.interpolate(unit, size=after, mode="bilinear", antialias=True).flatten(1).T
    return (weight.double() @ torch.linalg.pinv(resizing)).to(weight.dtype)
