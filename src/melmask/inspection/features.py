"""The frame features of a clip, as colors and as the similarity of every moment to every other."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from melmask.embedding.assemble import ClipVectors
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import FRAMES_TOGETHER, AudioEncoder
from melmask.inspection.clips import Clip

_COLOR_RANGE = (2.0, 98.0)
"""Percentiles of a component that become the ends of its color, so that one loud moment does not darken the rest."""


@dataclass(frozen=True)
class ClipFeatures:
    """What the frame vectors of a clip have in common.

    colors: (steps, 3) in [0, 1], their first three principal components as red, green and blue.  explained: (3,), the
    share of the variance of each.  similarity: (steps, steps), the cosine between frame vectors, from which the clip's
    mean is subtracted, because all vectors of a clip share most of their direction.  times_s: (steps,), the centers of
    the steps in the file.  of_position: the share of the variance that went with the position, NaN if it was kept.
    """

    clip: Clip
    colors: Float[np.ndarray, "steps 3"]
    explained: Float[np.ndarray, " 3"]
    similarity: Float[np.ndarray, "steps steps"]
    times_s: Float[np.ndarray, " steps"]
    of_position: float


def clip_features(
    model: AudioEncoder, clip: Clip, choice: FeatureChoice = FeatureChoice(), *, keep_position: bool = False
) -> ClipFeatures:
    """Compute the frame vectors of a clip, their principal components and their similarity.

    A frame vector also says where in its unit it lies, which is the same in every unit and tells nothing of the sound.
    So what the model makes of a neutral sound, the corpus mean, at the same places is subtracted.

    Args:
        model: A loaded model.
        clip: What it hears.
        choice: Which features are taken.
        keep_position: Whether the position stays in them.

    Raises:
        ConfigError: the model has no such layer, pooling or hop.
        NotFiniteError: the features are NaN or infinite.
    """
    choice = choice.of_model(model.card)
    logmel = torch.from_numpy(clip.logmel).to(model.device)
    vectors = _frame_vectors(model, logmel, choice)
    centered = vectors - vectors.mean(0)
    of_position = math.nan
    if not keep_position:
        neutral = vectors - _frame_vectors(model, torch.zeros_like(logmel) + model.corpus_mean, choice)
        before, centered = centered, neutral - neutral.mean(0)
        of_position = 1 - float((centered**2).sum()) / max(float((before**2).sum()), 1e-12)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    # A clip of fewer than three steps has fewer components, and the other colors stay even.
    count = min(3, len(sizes))
    components, explained = np.zeros((len(vectors), 3)), np.zeros(3)
    components[:, :count] = left[:, :count] * sizes[:count]
    explained[:count] = sizes[:count] ** 2 / max(float((sizes**2).sum()), 1e-12)
    # The sign of a component is arbitrary: the largest value of each is made positive, so that colors are always equal.
    components *= np.sign(components[np.abs(components).argmax(0), np.arange(3)])
    directions = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    times_s = clip.start_s + model.times_ms(model.step_grid(choice), len(vectors)) / 1000
    return ClipFeatures(
        clip, _as_colors(components), explained, directions @ directions.T, times_s, of_position=of_position
    )


def _frame_vectors(model: AudioEncoder, logmel: Tensor, choice: FeatureChoice) -> Float[np.ndarray, "steps dim"]:
    """Return the frame vectors of a log-mel (bands, frames), in float64."""
    grid = model.step_grid(choice)
    made = ClipVectors(grid, keep_frames=True)
    model.fill([made], [model.segments_of([logmel], grid)], choice, FRAMES_TOGETHER)
    return made.take().astype(np.float64)


def _as_colors(components: Float[np.ndarray, "steps 3"]) -> Float[np.ndarray, "steps 3"]:
    """Return components between 0 and 1, all on the scale of the first: a minor one does not look like the main one."""
    low, high = np.percentile(components, _COLOR_RANGE, axis=0)
    half_range = max(float((high - low).max()) / 2, 1e-12)
    return np.clip(0.5 + (components - (low + high) / 2) / (2 * half_range), 0, 1)
