"""melmask's own checkpoints: folders of data, without code (docs/formats.md).

model.safetensors holds the weights. config.json holds all else that inference needs (architecture, front end,
statistics) and a summary of the training.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from melmask.checkpoint.weights import read_tensors, shapes_in, write_tensors
from melmask.config import WHITENED, FrontEndConfig, ModelConfig, Reading, Statistics
from melmask.config_text import from_dict, to_dict
from melmask.errors import CheckpointError, ConfigError
from melmask.models.network import Network, check_shapes, finite_weights, network_with, weight_shapes
from melmask.models.whitening import Whitening, whitening_shapes
from melmask.system.files import output_error, write_json
from melmask.system.reading import DamagedFileError, NewerVersionError, check_version, read_json_object, reason_of

FORMAT = "melmask-model"
VERSION = 1
USUAL_SCENE = "mean"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_WHITENING = "whitening."
"""Names of the numbers of a whitening begin with this."""
_DIRECTIONS = _WHITENING + "directions"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What config.json says about a model; `training` holds facts of any form (steps, minutes, loss, configuration)."""

    model: ModelConfig
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    statistics: Statistics = field(default_factory=Statistics)
    reading: Reading = Reading()
    """How the files that it was trained on were read; a card of earlier versions does not say it."""
    training: dict[str, Any] = field(default_factory=dict)
    scene: str = USUAL_SCENE
    """Which scene vector its users get unless they choose one: mean, or mean+std."""
    layers: tuple[int, ...] = ()
    """After which blocks the features are taken unless users choose: numbers from 1; none: after the final norm."""
    whitened_directions: int = field(default=0, metadata={"left_out_at_default": True})
    """How many directions the whitening of scene vectors damps; 0: the model has none."""
    whitening: Whitening | None = field(default=None, compare=False, metadata={"left_out_at_default": True})
    """The whitening of scene vectors, whose numbers are among the weights in the file."""

    def __post_init__(self) -> None:
        if self.model.mels != self.front_end.mels:
            raise ConfigError(
                f"model.mels is {self.model.mels} and front_end.mels {self.front_end.mels}; make them equal"
            )
        if not all(1 <= number <= self.model.depth for number in self.layers):
            raise ConfigError(f"layers are {list(self.layers)}; this model has layers 1 to {self.model.depth}")
        if not 0 <= self.whitened_directions < self.whitened_size:
            raise ConfigError(
                f"whitened_directions is {self.whitened_directions}; scene vectors have {self.whitened_size} numbers"
            )
        if self.scene == WHITENED and not self.whitened_directions:
            raise ConfigError("scene is 'whitened', but whitened_directions is 0")
        counts = self.model.resolutions, self.front_end.resolutions, self.statistics.resolutions
        if len(set(counts)) > 1:
            raise ConfigError(
                "model, front end and statistics have {}, {} and {} resolutions; make them equal".format(*counts)
            )

    def without_whitening(self) -> "ModelCard":
        """Return the card of the same architecture with other weights, from which no whitening was learned."""
        scene = "mean+std" if self.scene == WHITENED else self.scene
        return replace(self, scene=scene, whitened_directions=0, whitening=None)

    @property
    def whitened_size(self) -> int:
        """The size of scene vectors of mean and deviation over time, with patches side by side."""
        return 2 * self.model.width * (self.model.mels // self.model.patch_mels) * max(1, len(self.layers))


def save_checkpoint(folder: Path, model: nn.Module, card: ModelCard, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and card to `folder`, which appears whole or not at all.

    Two renames at the end replace an existing checkpoint. A kill between the two leaves the existing one as
    `.<name>.old` beside the folder, and the next save removes it.

    Raises:
        OutputError: the folder cannot be written.
    """
    # A folder named "." has no name to put another one beside.
    # A link to a folder stays a link.
    folder = folder.resolve()
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        whitening = {} if card.whitening is None else card.whitening.arrays()
        for name, array in whitening.items():
            weights[_WHITENING + name] = torch.from_numpy(array).to(dtype)
        if whitening and dtype == torch.float16:
            # Their lengths are restored on reading, so whole numbers of 8 bits are precise enough.
            directions = torch.from_numpy(whitening["directions"])
            scaled = directions * (127 / directions.abs().amax(dim=1, keepdim=True))
            weights[_DIRECTIONS] = scaled.round().to(torch.int8)
        facts = {**to_dict(replace(card, whitening=None)), "reading": card.reading.changed_facts()}
        # Earlier versions refuse what they do not know.
        if not facts["reading"]:
            del facts["reading"]
        if card.scene == USUAL_SCENE:
            del facts["scene"]
        if not card.layers:
            del facts["layers"]
        write_json(partial / CONFIG, {"format": FORMAT, "version": VERSION, **facts})
        # The new weights must be on the disk before the previous ones are removed.
        write_tensors(partial / WEIGHTS, weights, like=partial / CONFIG)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
        partial.replace(folder)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        # A failure between the two renames puts the previous checkpoint back.
        if old.exists() and not folder.exists():
            old.replace(folder)
        for remains in (partial, old):
            shutil.rmtree(remains, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[Network, ModelCard]:
    """Read a folder that `save_checkpoint` wrote; its weights must be exactly those of the architecture.

    Raises:
        CheckpointError: files are missing or damaged or have another format, or the weights do not fit.
    """
    card = read_card(folder)
    path = folder / WEIGHTS
    try:
        shapes = shapes_in(path, _DIRECTIONS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {WEIGHTS}; copy the whole checkpoint folder") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy it again") from error
    # The header is compared before the values are read, so neither file can claim more than there is.
    count = card.whitened_directions
    of_whitening = whitening_shapes(count, card.whitened_size) if count else {}
    check_shapes({**weight_shapes(card.model), **{_WHITENING + k: s for k, s in of_whitening.items()}}, shapes, path)
    tensors = read_tensors(path)
    if of_whitening:
        floats = finite_weights({name: tensors.pop(_WHITENING + name) for name in of_whitening}, path)
        whitening = Whitening.of_arrays({name: tensor.numpy() for name, tensor in floats.items()})
        card = replace(card, whitening=whitening)
    return network_with(card.model, tensors, path), card


def read_card(folder: Path) -> ModelCard:
    """Read and check config.json; the numbers of a whitening are not read.

    Raises:
        CheckpointError: it is missing or damaged, or a newer melmask has written it.
    """
    path = folder / CONFIG
    try:
        facts = read_json_object(path)
        # Versions up to this one are read; there is only one so far.
        check_version(facts, FORMAT, VERSION)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG}; give a run, a checkpoint folder or a .pth file") from error
    except NewerVersionError as error:
        raise CheckpointError(f"{path}: {error}; update melmask") from error
    except (OSError, DamagedFileError) as error:
        raise CheckpointError(
            f"{path} is not a {FORMAT} file ({reason_of(error)}); give a folder that melmask has written"
        ) from error
    try:
        if "whitening" in facts:
            # The field is not for files: its numbers are among the weights.
            raise ConfigError("unknown configuration key 'whitening'; the nearest is 'whitened_directions'")
        return from_dict(ModelCard, facts)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
