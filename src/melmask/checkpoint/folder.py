"""A checkpoint is a folder of data, no code: model.safetensors and config.json (docs/formats.md).

config.json holds all that inference needs: architecture, front end, statistics; and a summary of the training.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from melmask.config import FrontEndConfig, ModelConfig, Statistics
from melmask.errors import CheckpointError, ConfigError
from melmask.files import output_error, write_json
from melmask.models.mae import MaskedAutoencoder
from melmask.settings import from_dict, to_dict

FORMAT = "melmask-model"
VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What config.json says of a model; `training` is free-form facts (steps, hours, final loss, recipe)."""

    model: ModelConfig
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    statistics: Statistics = field(default_factory=Statistics)
    training: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.model.mels != self.front_end.mels:
            raise ConfigError(
                f"model.mels is {self.model.mels} and front_end.mels {self.front_end.mels}; make them equal"
            )


def save_checkpoint(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights (float32) and card to `folder`, which appears whole or not at all.

    Raises:
        OutputError: where it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: tensor.float().contiguous().cpu() for name, tensor in model.state_dict().items()}
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        write_json(partial / CONFIG, {"format": FORMAT, "version": VERSION, **to_dict(card)})
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise output_error(folder, error if isinstance(error, OSError) else OSError(str(error))) from error


def load_checkpoint(folder: Path) -> tuple[MaskedAutoencoder, ModelCard]:
    """Read a folder written by `save_checkpoint`; every weight must be there, and none more.

    Raises:
        CheckpointError: missing or damaged files, another format, or weights that do not fit the architecture.
    """
    card = read_card(folder)
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {WEIGHTS}; copy the whole checkpoint folder") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut off or damaged ({error}); copy it again") from error
    model = MaskedAutoencoder(card.model)
    load_weights(model, weights, path)
    return model, card


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Put `weights` into `model`; names and shapes must match exactly."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        listed = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise CheckpointError(f"{source} does not fit its configuration: {listed}; the two files are not of one model")
    model.load_state_dict(weights)


def read_card(folder: Path) -> ModelCard:
    """Read and check config.json."""
    path = folder / CONFIG
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        if facts.pop("format") != FORMAT:
            raise KeyError("format")
        version = facts.pop("version")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG}; give a run, a checkpoint folder or a .pth file") from error
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a {FORMAT} file; give a folder that melmask has written") from error
    if version > VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this melmask reads up to {VERSION}; update melmask"
        )
    try:
        return from_dict(ModelCard, facts)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
