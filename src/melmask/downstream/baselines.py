"""Features of labelled files for the probes: the model's, and those of two honest baselines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from melmask.embedding.assemble import ClipVectors
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, untrained
from melmask.embedding.extract import decoded_groups
from melmask.settings import to_dict
from melmask.system.progress import track

LOGMEL, UNTRAINED, PRETRAINED = "log-mel mean+std", "untrained network", "pre-trained"


class FileFeatures(NamedTuple):
    """features: name -> (readable files, D) float32, in the files' order; errors: path -> reason of the others."""

    features: dict[str, np.ndarray]
    errors: dict[Path, str]


def probe_features(
    model: AudioEncoder,
    paths: Sequence[Path],
    choice: FeatureChoice = FeatureChoice(),
    *,
    seed: int = 0,
    title: str = "probe",
) -> FileFeatures:
    """Return scene vectors of the model, of the same network untrained, and each band's mean and std over time.

    Every file is decoded once for all three; progress goes to standard error under `title`.
    """
    choice.check(model.card.model, model.card.front_end)
    networks = {UNTRAINED: untrained(model.card, seed, str(model.device), model.precision), PRETRAINED: model}
    rows: dict[str, list[np.ndarray]] = {LOGMEL: [], UNTRAINED: [], PRETRAINED: []}
    errors: dict[Path, str] = {}
    for path, vectors, error in track(_vectors_of_files(networks, paths, choice), len(paths), title):
        if error is None:
            for name, vector in vectors.items():
                rows[name].append(vector)
        else:
            errors[path] = error
    return FileFeatures({name: np.array(vectors) for name, vectors in rows.items()}, errors)


def _vectors_of_files(
    networks: dict[str, AudioEncoder], paths: Sequence[Path], choice: FeatureChoice
) -> Iterator[tuple[Path, dict[str, np.ndarray], str | None]]:
    """Yield (path, representation -> vector, error) of each file, in order."""
    # All networks have the same front end and step grid.
    model = networks[PRETRAINED]
    grid = model.step_grid()

    def new_clip() -> tuple["BandStatistics", dict[str, ClipVectors]]:
        return BandStatistics(), {name: ClipVectors(grid, keep_frames=False, scene=choice.scene) for name in networks}

    bands, clips = new_clip()
    for pieces in decoded_groups(model, paths, grid):
        logmels = [piece.logmel for piece in pieces if piece.logmel is not None]
        encoded = {name: iter(network.embed_segments(logmels, choice)) for name, network in networks.items()}
        for piece in pieces:
            if piece.logmel is not None:
                bands.add(piece.logmel)
                for name, clip in clips.items():
                    clip.add(piece.phase, next(encoded[name]), piece.logmel.shape[1])
            if not piece.last:
                continue
            if piece.error is None:
                scenes = {name: clip.scene() for name, clip in clips.items()}
                yield piece.path, {LOGMEL: bands.result(), **scenes}, None
            else:
                yield piece.path, {}, piece.error
            bands, clips = new_clip()


def origin_of_features(model: AudioEncoder, errors: dict[Path, str]) -> dict[str, Any]:
    """What a report says of features: how the log-mels were normalised, and which files were left out, and why."""
    return {
        "normalization": {"from": model.normalization, **to_dict(model.card.statistics)},
        "unreadable": {str(path): reason for path, reason in errors.items()},
    }


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
