"""The environment variables that name a model and its features, for tools that pass no options.

`MELMASK_MODEL` is a run, a checkpoint folder or a .pth file. `MELMASK_LAYER` is the layer, `MELMASK_POOLING` the
pooling over frequency, `MELMASK_SCENE` the pooling over time, and `MELMASK_HOP_MS` the hop of the frame vectors.
"""

import os

from melmask.embedding.choice import AUTO, FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.errors import ConfigError


def model_from_environment(path: str = "") -> tuple[AudioEncoder, FeatureChoice]:
    """Load the model at `path`, or else the one that MELMASK_MODEL names, or else the box; return it with the features.

    Raises:
        CheckpointError: there is no model that can be loaded.
        ConfigError: an environment variable has a value that cannot be used.
    """
    path = path or os.environ.get("MELMASK_MODEL", "")
    layer = _number("MELMASK_LAYER", 0.0)
    if not layer.is_integer():
        raise ConfigError(f"MELMASK_LAYER is {layer:g}; give a whole number")
    choice = FeatureChoice(
        layers=(int(layer),) if layer else (),
        pooling=os.environ.get("MELMASK_POOLING", "concat"),
        scene=os.environ.get("MELMASK_SCENE", AUTO),
        hop_ms=_number("MELMASK_HOP_MS", 0.0) if os.environ.get("MELMASK_HOP_MS") else None,
    )
    return load(path or None), choice


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        return float(text) if text else default
    except ValueError as error:
        raise ConfigError(f"{variable} is {text!r}; give a number") from error
