"""Features of labelled files for the probes: the model's, and those of two honest baselines."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from melmask.encoder import AudioEncoder, SceneMean, untrained
from melmask.extract import decoded_groups

LOGMEL, UNTRAINED, PRETRAINED = "log-mel mean+std", "untrained network", "pre-trained"


class FileFeatures(NamedTuple):
    """features: name -> (files, D) float32, rows of unreadable files NaN; errors: path -> reason."""

    features: dict[str, np.ndarray]
    errors: dict[Path, str]


def probe_features(
    model: AudioEncoder, paths: Sequence[Path], *, layer: int | None = None, pooling: str = "concat", seed: int = 0
) -> FileFeatures:
    """Scene vectors of the model, of the same network untrained, and each band's mean and std over time.

    Every file is decoded once for all three.
    """
    model.check_choice(layer, pooling)
    networks = {UNTRAINED: untrained(model.card, seed, str(model.device)), PRETRAINED: model}
    rows: dict[str, list[np.ndarray]] = {LOGMEL: [], UNTRAINED: [], PRETRAINED: []}
    sizes = {LOGMEL: 2 * model.card.model.mels} | dict.fromkeys(networks, model.embedding_size(pooling))
    errors: dict[Path, str] = {}
    bands, means = BandStatistics(), _means(model, networks)
    for pieces in decoded_groups(model, paths):
        logmels = [piece.logmel for piece in pieces if piece.logmel is not None]
        vectors = {
            name: iter(network.embed_segments(logmels, layer=layer, pooling=pooling) if logmels else [])
            for name, network in networks.items()
        }
        for piece in pieces:
            if piece.logmel is not None:
                bands.add(piece.logmel)
                for name, mean in means.items():
                    mean.add(next(vectors[name]), piece.logmel.shape[1])
            if piece.last:
                if piece.error is not None:
                    errors[piece.path] = piece.error
                whole = piece.error is None
                rows[LOGMEL].append(bands.result() if whole else np.full(sizes[LOGMEL], np.nan, np.float32))
                for name, mean in means.items():
                    rows[name].append(mean.result() if whole else np.full(sizes[name], np.nan, np.float32))
                bands, means = BandStatistics(), _means(model, networks)
    return FileFeatures({name: np.stack(r) for name, r in rows.items()}, errors)


def _means(model: AudioEncoder, names: Sequence[str] | dict[str, AudioEncoder]) -> dict[str, SceneMean]:
    return {name: SceneMean(model.card.model.patch_frames) for name in names}


class BandStatistics:
    """Mean and standard deviation over time of each mel band, fed piece by piece: the cheap baseline."""

    def __init__(self):
        self._frames, self._sum, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, logmel: Tensor) -> None:
        """Take in (mels, frames)."""
        values = logmel.cpu().numpy().astype(np.float64)
        self._frames += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._squares = self._squares + (values**2).sum(1)

    def result(self) -> np.ndarray:
        """(2 * mels,) float32: means, then standard deviations."""
        mean = self._sum / self._frames
        variance = np.maximum(self._squares / self._frames - mean**2, 0)
        return np.concatenate([mean, np.sqrt(variance)]).astype(np.float32)
