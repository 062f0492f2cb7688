"""The HEAR 2021 common API (https://hearbenchmark.com/hear-api.html): three functions around one model.

    MELMASK_MODEL=runs/tiny hear-validator melmask.hear

HEAR tools pass no options, so environment variables choose the features. `MELMASK_HOP_MS` is the hop of the frame
vectors; by default it is the longest hop up to HEAR's 50 ms that the model's patches allow. `MELMASK_LAYER` is the
layer, `MELMASK_POOLING` the pooling over frequency, and `MELMASK_SCENE` the pooling over time.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from melmask.adapters.environment import model_from_environment
from melmask.checkpoint.folder import ModelCard
from melmask.embedding.choice import FeatureChoice, hops_ms
from melmask.embedding.encoder import AudioEncoder

_LONGEST_HOP_MS = 50.0
_CLIPS_TOGETHER = 64
"""The kit may pass thousands of clips at once, whose frame vectors would not fit in memory."""


class HearModel(nn.Module):
    """A loaded model with the attributes that the HEAR kit reads."""

    def __init__(self, encoder: AudioEncoder, choice: FeatureChoice):
        super().__init__()
        self.encoder = encoder
        # As a submodule it follows the kit's `.to(device)`.
        self.network = encoder.model
        self.choice = choice
        self.sample_rate = encoder.sample_rate_hz
        self.timestamp_embedding_size = choice.frame_size(encoder.card.model)
        self.scene_embedding_size = choice.scene_size(encoder.card.model)


def load_model(model_file_path: str = "") -> HearModel:
    """Load a run, a checkpoint folder or a .pth file; without a path, what MELMASK_MODEL names, or else the box.

    Raises:
        CheckpointError: there is no model that can be loaded.
        ConfigError: an environment variable has a value that cannot be used.
    """
    return hear_model(*model_from_environment(model_file_path))


def hear_model(encoder: AudioEncoder, choice: FeatureChoice = FeatureChoice()) -> HearModel:
    """Return the HEAR model of a loaded model; a choice without `hop_ms` gets `default_hop_ms`.

    Raises:
        ConfigError: the model does not offer the choice.
    """
    card = encoder.card
    if choice.hop_ms is None:
        choice = choice.changed(hop_ms=default_hop_ms(card))
    return HearModel(encoder, choice.of_model(card))


def default_hop_ms(card: ModelCard) -> float:
    """Return the longest hop up to HEAR's 50 ms that the model allows; if all are longer, the shortest one."""
    hops = hops_ms(card.model, card.front_end)
    return max((hop for hop in hops if hop <= _LONGEST_HOP_MS), default=hops[0])


def get_scene_embeddings(audio: Float[Tensor, "clips samples"], model: HearModel) -> Float[Tensor, "clips dims"]:
    """Return one vector for each clip, float32, of audio in [-1, 1] at `model.sample_rate`."""
    # The scene vector is the same for each hop. The hop of a whole patch takes a single pass.
    choice = model.choice.changed(hop_ms=None)
    parts = (model.encoder.embed(part, model.sample_rate, choice) for part in audio.split(_CLIPS_TOGETHER))
    return torch.cat([torch.from_numpy(part.scene) for part in parts]).to(audio.device)


def get_timestamp_embeddings(
    audio: Float[Tensor, "clips samples"], model: HearModel
) -> tuple[Float[Tensor, "clips steps dims"], Float[Tensor, "clips steps"]]:
    """Return frame vectors and the times of their centers in ms, float32; steps are `model.choice.hop_ms` apart."""
    parts = [model.encoder.embed(part, model.sample_rate, model.choice) for part in audio.split(_CLIPS_TOGETHER)]
    frames = torch.cat([torch.from_numpy(part.frames) for part in parts])
    times_ms = torch.from_numpy(parts[0].times_ms).float().expand(len(frames), -1)
    return frames.to(audio.device), times_ms.to(audio.device)
