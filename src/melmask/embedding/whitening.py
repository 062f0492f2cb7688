"""Learn the whitening of a model's scene vectors from the sound it was trained on (`models/whitening.py`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.checkpoint.locate import load_any
from melmask.config import WHITENED, HardwareConfig, PretrainConfig
from melmask.config_text import to_dict
from melmask.corpus.store import Corpus, differences
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import FRAMES_TOGETHER, AudioEncoder
from melmask.errors import InputError
from melmask.models.network import Network
from melmask.models.whitening import SCENES_PER_DIRECTION, fit_whitening
from melmask.system.hardware import pick_device, pick_precision
from melmask.system.progress import track
from melmask.system.terminal import counted, note

_MOST_STRETCHES = 2048
_LONGEST_FRAMES = 1000
"""Ten seconds at the usual hop: the vector of an hour says nothing about how those of clips differ."""
_SEED = 0


def set_features(run: Path, corpus: Corpus, config: PretrainConfig) -> None:
    """Give the newest checkpoint of a finished run the features that `config.features` asks for, unless it has them.

    They may have changed since the run was finished. `corpus` is what it was trained on.

    Raises:
        OutputError: the checkpoint cannot be written.
    """
    model, card, folder = load_any(run)
    directions, layers = config.features.whiten, config.features.layers(config.model.depth)
    # A run of an earlier version has no such section.
    had = card.training.get("config", {}).get("features", {}).get("whiten", 0)
    if layers == card.layers and directions == had and (card.whitening is not None or not directions):
        return
    training = {**card.training, "config": to_dict(config)}
    card = replace(card.without_whitening(), layers=layers, scene=ModelCard.scene, training=training)
    if directions:
        card = whitened_card(model, card, corpus, directions, config.hardware)
    save_checkpoint(folder, model, card)


def whitened_card(
    model: Network, card: ModelCard, corpus: Corpus, directions: int, hardware: HardwareConfig
) -> ModelCard:
    """Return the card with the whitening of scene vectors learned from stretches of a corpus of up to ten seconds.

    The card then names it as the scene vector that users get. If the corpus has too few stretches, a note says so, and
    the card names mean+std.

    Raises:
        InputError: the corpus has another front end than the model.
    """
    if corpus.front_end != card.front_end:
        which = differences(corpus.front_end, card.front_end)
        raise InputError(f"{corpus.folder} has another front end than the model ({which}); prepare a store for it")
    device = pick_device(hardware.device)
    precision = "bf16" if pick_precision(hardware, device) == torch.bfloat16 else "fp32"
    encoder = AudioEncoder(
        model, replace(card, whitening=None, scene="mean+std"), device=str(device), precision=precision
    )
    stretches = _stretches(corpus.frames)
    logmels = track(_read(corpus, stretches), len(stretches), "whiten")
    scenes = scenes_of_logmels(encoder, logmels, len(stretches), FeatureChoice(scene="mean+std"))
    whitening = fit_whitening(scenes, directions)
    if whitening is None:
        least = SCENES_PER_DIRECTION
        note(f"scene vectors are not whitened: {counted(len(scenes), 'stretch')} of sound, and it takes {least}")
        return replace(card.without_whitening(), scene="mean+std")
    return replace(card, whitening=whitening, whitened_directions=len(whitening.gains), scene=WHITENED)


def scenes_of_logmels(
    encoder: AudioEncoder, logmels: Iterable[Tensor], count: int, choice: FeatureChoice = FeatureChoice()
) -> np.ndarray:
    """Return the scene vectors (count, S) of `count` log-mels (bands, frames), of any float type, as inference does."""
    grid, choice = encoder.step_grid(), choice.of_model(encoder.card)
    made = [encoder.clip_vectors(choice, grid, keep_frames=False) for _ in range(count)]
    clips = (encoder.segments_of([logmel.float()], grid) for logmel in logmels)
    encoder.fill(made, clips, choice, FRAMES_TOGETHER)
    return np.stack([vectors.scene() for vectors in made])


def _stretches(frames: np.ndarray) -> Sequence[tuple[int, int, int]]:
    """Cut clips of so many frames into equal parts, and draw from all; each is (clip, first frame, end frame)."""
    found: list[tuple[int, int, int]] = []
    parts = -(-frames // _LONGEST_FRAMES)
    number_of = np.repeat(np.arange(len(frames)), parts)
    place_of = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    drawn = np.random.default_rng(_SEED).permutation(len(number_of))[:_MOST_STRETCHES]
    for clip, place in zip(number_of[drawn].tolist(), place_of[drawn].tolist(), strict=True):
        first, end = (int(frames[clip]) * edge // int(parts[clip]) for edge in (place, place + 1))
        found.append((clip, first, end))
    return found


def _read(corpus: Corpus, stretches: Sequence[tuple[int, int, int]]) -> Iterator[Tensor]:
    """Yield the log-mel (bands, frames), float16, of each stretch."""
    for clip, first, end in stretches:
        logmel = np.empty((end - first, corpus.front_end.bands), dtype=np.float16)
        corpus.read_into(logmel, clip, first)
        yield torch.from_numpy(logmel).T
