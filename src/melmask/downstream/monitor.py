"""What a pre-training run reports of its features as it goes: their rank, and a k-NN score on labeled files.

Both are training hooks. They read the model, never change it, and draw nothing from a global generator, so a run with
them equals one without. A model whose vectors are not finite gets no numbers: the training loop itself ends such a run.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram, logmel_blocks
from melmask.config import FrontEndConfig, HardwareConfig, PretrainConfig
from melmask.corpus.store import Store
from melmask.downstream.probe import knn_probe
from melmask.embedding.assemble import FRAMES_TOGETHER, ClipVectors
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import AudioFileError, ConfigError, InputError
from melmask.figures.training import ReconstructionPictures
from melmask.geometry import frames_of_samples
from melmask.labels.options import TableOptions
from melmask.labels.splits import Split, make_splits
from melmask.labels.tables import LabelTable, keep_rows, read_labels
from melmask.system.hardware import pick_precision
from melmask.system.progress import track
from melmask.train.pretrain import Hook, StepState

RANK_UNITS = 512
MONITOR_CLIPS = 2000
LONGEST_S = 30.0
"""What is kept of a labeled file: 2000 such files are 1 GB of float16 log-mels."""
_RANK_EPSILON = 1e-7


def rankme(vectors: Float[np.ndarray, "rows dims"]) -> float:
    """RankMe, the effective rank of features: exp(-sum p_k ln p_k), p_k = s_k / sum(s) + 1e-7.

    s are the singular values of `vectors` as they are: nothing is centered, so a mean that all rows share counts as
    one strong direction and lowers the rank. Between 1 (all rows parallel) and min(rows, dims); 0 for zeros only.

    Source: Garrido et al., RankMe, ICML 2023 (arXiv 2210.02885), equations 1 and 2.

    Args:
        vectors: finite, at least one row.
    """
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    if not singular.any():
        return 0.0
    shares = singular / singular.sum() + _RANK_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


class FeatureRank:
    """A training hook: {"feature_rank": RankMe} of up to 512 units, the same ones every time, and how many they are.

    They lie evenly over all the sound of the store, so a few long recordings give as many as many short ones. A unit's
    vector is the mean of its tokens over frequency and time (pooling 'mean'). The rank cannot exceed
    min(units, width), and it grows with their number (the paper takes 25,600): compare steps and runs on one store, not
    with published figures.
    """

    def __init__(self, store: Store, config: PretrainConfig):
        self._hardware = config.hardware
        self._logmels: list[Tensor] = []
        for clip, first in _even_units(store.frames, config.model.frames, RANK_UNITS):
            crop = np.empty((min(config.model.frames, int(store.frames[clip])), store.front_end.mels), dtype="<f2")
            store.read_into(crop, clip, first)
            self._logmels.append(torch.from_numpy(crop).T)

    def __call__(self, state: StepState) -> dict[str, float]:
        """The rank of the units' vectors under the model of this step."""
        vectors = _clip_vectors(_encoder(state, self._hardware), self._logmels, FeatureChoice(pooling="mean"))
        return {"feature_rank": rankme(vectors), "rank_units": len(vectors)} if np.isfinite(vectors).all() else {}


def _even_units(frames: np.ndarray, unit_frames: int, most: int) -> list[tuple[int, int]]:
    """(clip, first frame) of at most `most` different units, evenly over clips of `frames` each, one after another."""
    ends = np.cumsum(frames)
    at = ((np.arange(most) + 0.5) * ends[-1] / most).astype(np.int64)
    clips = np.searchsorted(ends, at, side="right")
    firsts = np.minimum(at - (ends - frames)[clips], np.maximum(frames[clips] - unit_frames, 0))
    return list(dict.fromkeys(zip(clips.tolist(), firsts.tolist(), strict=True)))


class NearestNeighbors:
    """A training hook: {"knn_accuracy": top-1 accuracy, 0 to 1} of `knn_probe` on scene vectors of labeled files.

    Rows marked `test` play no part: their files are not even opened, so a run may be steered by this score without
    spoiling the test. If the other rows are marked train and valid, train rows vote on valid rows. Otherwise they are
    held out in turn by the scheme 'auto' of `make_splits`: their folds, or five parts by group, or five random parts;
    the score is the mean over the parts. A table without a `split` column marks no row as test, so all its rows count.

    Files are decoded once, here; of a file longer than 30 s only its first 30 s count. Vectors are those of
    `AudioEncoder.embed` with its default pooling, but for float16 rounding of the log-mel and the run's precision.

    Attributes: `errors` (path -> reason of the files that could not be read and are left out), `clips` (those used).
    """

    def __init__(
        self,
        labels: Path,
        store: Store,
        config: PretrainConfig,
        *,
        table: TableOptions = TableOptions(),
        limit: int = MONITOR_CLIPS,
        seed: int = 0,
    ):
        """Read the table and decode its files, with progress on standard error.

        Args:
            labels: table as `read_labels` takes it.
            store: what the run trains on; the files get its front end.
            config: of the run.
            table: how the table is read.
            limit: at most so many rows, drawn at random; as many valid as train rows while there are enough.
            seed: of the draw and of random parts.

        Raises:
            InputError: an unusable table, no way to hold rows out, or no readable file.
            MissingExtraError: scikit-learn is needed to hold out by group or at random.
        """
        rows = _sample(_without_test(read_labels(labels, table)), limit, seed)
        _held_out(labels, rows, seed)  # a table that cannot be used is refused before its files are decoded
        self._hardware = config.hardware
        self._logmels, self.errors = _read_logmels(rows.paths, store.front_end, f"read {labels.name}")
        if not self._logmels:
            reason = next(iter(self.errors.values()))
            raise InputError(f"none of {len(self.errors)} files of {labels} could be read, as {reason}")
        rows = keep_rows(rows, np.array([path not in self.errors for path in rows.paths]))
        self._splits = _held_out(labels, rows, seed)
        self._labels = rows.label_indices
        self.clips = len(self._labels)

    def __call__(self, state: StepState) -> dict[str, float]:
        """The score of the model of this step."""
        vectors = _clip_vectors(_encoder(state, self._hardware), self._logmels, FeatureChoice())
        if not np.isfinite(vectors).all():
            return {}
        return {"knn_accuracy": knn_probe(vectors, self._labels, self._splits).mean}


def _encoder(state: StepState, hardware: HardwareConfig) -> AudioEncoder:
    """The model of the moment, where the run computes and in its precision."""
    device = next(state.model.parameters()).device
    precision = "bf16" if pick_precision(hardware, device) == torch.bfloat16 else "fp32"
    # A copy: the encoder freezes the model it is given.
    return AudioEncoder(copy.deepcopy(state.model), state.card, device=str(device), precision=precision)


def _clip_vectors(encoder: AudioEncoder, logmels: Sequence[Tensor], choice: FeatureChoice) -> np.ndarray:
    """Return the scene vectors (clips, D) of log-mels (mels, frames) float16, as inference makes them."""
    grid = encoder.step_grid()
    made = [ClipVectors(grid, keep_frames=False) for _ in logmels]
    clips = (encoder.segments_of([logmel.float()], grid) for logmel in logmels)
    encoder.fill(made, clips, choice, FRAMES_TOGETHER)
    return np.stack([vectors.scene() for vectors in made])


def _without_test(table: LabelTable) -> LabelTable:
    """The rows not marked test; of a train and a valid part, valid takes the place of test for `make_splits`."""
    if table.splits is None:
        return table
    table = keep_rows(table, np.array(table.splits) != "test")
    if set(table.splits or ()) == {"train", "valid"}:
        roles = ["test" if split == "valid" else "train" for split in table.splits or ()]
        # 'auto' would prefer folds.
        return replace(table, splits=roles, folds=None)
    return table


def _sample(table: LabelTable, limit: int, seed: int) -> LabelTable:
    """At most `limit` rows, drawn from each part of the split in turn: a small valid part is not thinned out."""
    rows = len(table.paths)
    order = np.random.default_rng(seed).permutation(rows)
    parts = np.array(table.splits or [""] * rows)[order]
    turns = np.empty(rows, dtype=np.int64)
    for part in set(parts):
        members = np.flatnonzero(parts == part)
        turns[members] = np.arange(len(members))
    keep = np.zeros(rows, dtype=bool)
    keep[order[np.argsort(turns, kind="stable")[:limit]]] = True
    return keep_rows(table, keep)


def _held_out(labels: Path, table: LabelTable, seed: int) -> list[Split]:
    """How the rows are held out.

    Raises:
        InputError: there are no rows, or no way.
    """
    if not table.paths:
        raise InputError(f"{labels} has only test rows, which a running score must not use; mark some train and valid")
    try:
        return make_splits(table, "auto", seed)
    except InputError as error:
        # What follows the semicolon is for those who can choose a scheme.
        reason = str(error).split(";")[0]
        raise InputError(
            f"{labels} has {len(table.paths)} usable rows (not marked test, readable), which cannot be held out in "
            f"parts: {reason}; mark rows train and valid, or add rows"
        ) from error


def _read_logmels(paths: Sequence[Path], front_end: FrontEndConfig, title: str) -> tuple[list[Tensor], dict[Path, str]]:
    """The log-mels of the readable files in order, and why the others could not be read."""
    transform = LogMelSpectrogram(front_end)
    logmels, errors = [], {}
    for path in track(paths, len(paths), title):
        try:
            logmels.append(_read_logmel(path, transform))
        except AudioFileError as error:
            errors[path] = str(error)
    return logmels, errors


@torch.inference_mode()
def _read_logmel(path: Path, transform: LogMelSpectrogram) -> Tensor:
    """(mels, frames) float16 of the file's first 30 s."""
    rate_hz = transform.config.sample_rate_hz
    longest = frames_of_samples(round(LONGEST_S * rate_hz), transform.config)
    blocks, frames = [], 0
    for block in logmel_blocks(read_audio_blocks(path, rate_hz), transform):
        blocks.append(block.half())
        frames += block.shape[1]
        if frames >= longest:
            break
    # Its own memory, not a view that keeps what was cut off.
    return torch.cat(blocks, dim=1)[:, :longest].clone()


def monitors(
    store: Store, config: PretrainConfig, labels: Path | None, table: TableOptions = TableOptions()
) -> list[Hook]:
    """What looks at a run as it goes: reconstructions, feature rank and, if there are labeled files, a k-NN score.

    Raises:
        InputError: the label table cannot be used.
        ConfigError: there is one, but the configuration says never to look.
    """
    if not config.run.picture_interval_steps:
        if labels is not None:
            raise ConfigError("run.picture_interval_steps is 0, so nothing is monitored; set it, or drop --monitor")
        return []
    hooks: list[Hook] = [ReconstructionPictures(store, config), FeatureRank(store, config)]
    if labels is not None:
        hooks.append(NearestNeighbors(labels, store, config, table=table, seed=config.run.seed))
    return hooks
