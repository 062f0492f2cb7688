"""Continued pre-training: the weights of another model as the start of a run."""

from pathlib import Path

from torch import Tensor

from melmask.checkpoint.locate import load_any
from melmask.config import FrontEndConfig, PretrainConfig
from melmask.errors import ConfigError
from melmask.models.mae import build_model
from melmask.settings import to_dict


def initial_weights(source: Path, config: PretrainConfig, front_end: FrontEndConfig) -> tuple[dict[str, Tensor], str]:
    """Weights for a new run of `config` from any model that can be loaded, and a sentence on what was taken.

    Units may have more or fewer frames and mel bands than the model's: positions are computed for the new grid, not
    stored, from its first frame and lowest band on. The decoder is
    taken if the model has one of the same shape and positions, else it starts at random, and so does a CLS token that
    the model lacks. The sentence says how the model's front end differs from `front_end`, the store's.

    Raises:
        CheckpointError: the model cannot be read.
        ConfigError: its encoder has another shape than `config.model`.
    """
    model, card, path = load_any(source)
    weights = build_model(config.model, config.run.seed).state_dict()
    given = model.state_dict()
    wanted, has = config.model, card.model
    for name in ("patch_mels", "patch_frames", "width", "depth", "heads"):
        if getattr(wanted, name) != getattr(has, name):
            raise ConfigError(
                f"model.{name} is {getattr(wanted, name)}, but {path} has {getattr(has, name)}; "
                f"set model.{name}={getattr(has, name)}"
            )
    encoder = {name for name in given if name.startswith("encoder.")} & weights.keys()
    decoder = {name for name in weights if name.startswith("decoder.")}
    same_decoder = wanted.decoder_positions == has.decoder_positions and all(
        name in given and given[name].shape == weights[name].shape for name in decoder
    )
    weights |= {name: given[name] for name in encoder | (decoder if same_decoder else set())}
    text = f"starting from {path}: its encoder and {'its' if same_decoder else 'a new'} decoder"
    if (has.mels, has.frames) != (wanted.mels, wanted.frames):
        text += f", units of {wanted.mels}x{wanted.frames} instead of {has.mels}x{has.frames}"
    own, given_to = to_dict(card.front_end), to_dict(front_end)
    others = [f"{name} {own[name]:g} there and {given_to[name]:g} here" for name in own if own[name] != given_to[name]]
    return weights, text + (f"; it knows other log-mels: {', '.join(others)}" if others else "")
