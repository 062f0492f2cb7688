"""What a pre-training run reports of its features as it goes: their rank, and a k-NN score on labeled files.

Both are training hooks. They read the model, never change it, and draw nothing from a global generator, so a run with
them equals a run without them. A model whose vectors are not finite gets no numbers; the training loop ends such a run.
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
from melmask.audio.parts import Sound, shortened_text
from melmask.config import EACH, MEAN, HardwareConfig, PretrainConfig, Reading
from melmask.corpus.store import Corpus
from melmask.downstream.linear_and_knn import earlier_equals, knn_probe
from melmask.downstream.several_labels import neighbor_probabilities, several_labels_probe
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.whitening import scenes_of_logmels
from melmask.errors import AudioFileError, ConfigError, InputError, NotFiniteError
from melmask.figures.training import ReconstructionPictures
from melmask.geometry import frames_of_samples
from melmask.labels.options import TableOptions
from melmask.labels.splits import Split, make_splits
from melmask.labels.tables import LabelTable, keep_rows, read_labels
from melmask.system.extras import can_draw, require
from melmask.system.hardware import pick_precision
from melmask.system.progress import track
from melmask.system.terminal import counted, note
from melmask.train.pretrain import Hook, StepState

RANK_UNITS = 512
MONITOR_CLIPS = 2000
LONGEST_S = 30.0
"""What is kept of a labeled file: 2000 such files are 1 GB of float16 log-mels."""
_RANK_EPSILON = 1e-7


def rankme(vectors: Float[np.ndarray, "rows dims"]) -> float:
    """Return RankMe, the effective rank of features: exp(-sum p_k ln p_k), p_k = s_k / sum(s) + 1e-7.

    s are the singular values of `vectors` as they are. Nothing is centered, so a mean that all rows share counts as
    one strong direction and lowers the rank. The rank lies between 1 (all rows parallel) and min(rows, dims); it is 0
    if all values are 0.

    Source: Garrido et al., RankMe, ICML 2023 (arXiv 2210.02885), equations 1 and 2.

    Args:
        vectors: finite numbers, at least one row.
    """
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    if not singular.any():
        return 0.0
    shares = singular / singular.sum() + _RANK_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


class FeatureRank:
    """A training hook: {"feature_rank": RankMe} of up to 512 units, the same ones every time, and how many they are.

    The units lie evenly over all the sound of the store, so a few long recordings give as many units as many short
    ones. A unit's vector is the mean of its tokens over frequency and time (pooling 'mean'). The rank cannot exceed
    min(units, width), and it grows with the number of units (the paper takes 25,600). Compare steps and runs on one
    store, not with published figures.
    """

    def __init__(self, store: Corpus, config: PretrainConfig):
        self._hardware = config.hardware
        self._logmels: list[Tensor] = []
        units = _even_units(store.frames, config.model.frames, RANK_UNITS)
        # Synthetic ones are drawn, which takes minutes at the rate of bats.
        for clip, first in track(units, len(units), "sounds of the feature rank", "unit", leave=False):
            crop = np.empty((min(config.model.frames, int(store.frames[clip])), store.front_end.bands), dtype="<f2")
            store.read_into(crop, clip, first)
            self._logmels.append(torch.from_numpy(crop).T)

    def __call__(self, state: StepState) -> dict[str, float]:
        """Return the rank of the units' vectors under the model of this step."""
        try:
            encoder, choice = _encoder(state, self._hardware), FeatureChoice(pooling="mean")
            vectors = scenes_of_logmels(encoder, self._logmels, len(self._logmels), choice)
        except NotFiniteError:
            return {}
        return {"feature_rank": rankme(vectors), "rank_units": len(vectors)}


def _even_units(frames: np.ndarray, unit_frames: int, most: int) -> list[tuple[int, int]]:
    """Return (clip, first frame) of at most `most` different units, evenly over clips of `frames` (clips,) frames."""
    # The clips are laid one after another, and cut into `most` equal stretches. A unit starts in the middle of each, or
    # earlier where its clip would end too soon.
    ends = np.cumsum(frames)
    at = ((np.arange(most) + 0.5) * ends[-1] / most).astype(np.int64)
    clips = np.searchsorted(ends, at, side="right")
    firsts = np.minimum(at - (ends - frames)[clips], np.maximum(frames[clips] - unit_frames, 0))
    # In a short clip several stretches may give the same unit.
    return list(dict.fromkeys(zip(clips.tolist(), firsts.tolist(), strict=True)))


class NearestNeighbors:
    """A training hook: {"knn_accuracy": top-1 accuracy, 0 to 1} of `knn_probe` on scene vectors of labeled files.

    Rows marked `test` are not used and their files are not opened, so a run may be steered by this score without
    spoiling the test. If the other rows are marked train and valid, train rows vote on valid rows. Otherwise they are
    held out in turn by the scheme 'auto' of `make_splits`: their folds, or five parts by group, or five random parts.
    Then the score is the mean over the parts. A table without a `split` column has no test rows, so all its rows count.

    If a clip may have several labels, the score is {"knn_map": mean average precision, 0 to 1} instead, over the labels
    that the held-out rows have.

    Files are decoded once, when the hook is made. Only the first 30 s of a file count. Vectors are those of
    `AudioEncoder.embed` with its default pooling, except that the log-mel is rounded to float16 and the run's precision
    is used.

    Attributes: `errors` (sound -> reason of the clips that could not be read and are left out), `clips` (how many files
    are used).
    """

    def __init__(
        self,
        labels: Path,
        store: Corpus,
        config: PretrainConfig,
        *,
        table: TableOptions = TableOptions(),
        limit: int = MONITOR_CLIPS,
        seed: int = 0,
    ):
        """Read the table and decode its files, with progress on standard error.

        Args:
            labels: A CSV file as `read_labels` takes it.
            store: What the run trains on; the files get its front end.
            config: The configuration of the run.
            table: How the table of labels is read.
            limit: At most so many rows are drawn at random; as many valid as train rows while there are enough.
            seed: The seed of the draw and of random parts.

        Raises:
            InputError: the table cannot be used or held out in parts, or no file can be read.
            MissingExtraError: scikit-learn is needed to hold out by group or at random, and for several labels a clip.
        """
        rows = _sample(_without_test(read_labels(labels, table, several=True)), limit, seed)
        if rows.label_sets is not None:
            require("eval")
        # A table that cannot be used is refused before its files are decoded.
        _held_out(labels, rows, seed)
        self._hardware = config.hardware
        self._logmels, self.errors = _read_logmels(rows.sounds, store, f"read {labels.name}")
        if not self._logmels:
            reason = next(iter(self.errors.values()))
            raise InputError(f"none of {counted(len(self.errors), 'file')} of {labels} could be read, as {reason}")
        rows = keep_rows(rows, np.array([sound not in self.errors for sound in rows.sounds]))
        self._splits = _held_out(labels, rows, seed)
        self._labels, self._targets = rows.label_indices, None if rows.label_sets is None else rows.targets
        self.clips = len(self._labels)

    def __call__(self, state: StepState) -> dict[str, float]:
        """Return the score of the model of this step."""
        try:
            vectors = scenes_of_logmels(_encoder(state, self._hardware), self._logmels, len(self._logmels))
        except NotFiniteError:
            return {}
        if self._targets is not None:
            precisions = several_labels_probe(vectors, self._targets, self._splits, neighbor_probabilities)
            return {"knn_map": float(np.mean(precisions))}
        return {"knn_accuracy": knn_probe(vectors, self._labels, self._splits).mean}


def _encoder(state: StepState, hardware: HardwareConfig) -> AudioEncoder:
    """Return the model of this step, on the run's device and in its precision."""
    device = next(state.model.parameters()).device
    precision = "bf16" if pick_precision(hardware, device) == torch.bfloat16 else "fp32"
    # The encoder freezes the model that it gets, so it gets a copy.
    return AudioEncoder(copy.deepcopy(state.model), state.card, device=str(device), precision=precision)


def _without_test(table: LabelTable) -> LabelTable:
    """Return the rows not marked test. If they are train and valid rows, `make_splits` will test on the valid ones."""
    if table.splits is None:
        return table
    table = keep_rows(table, np.array(table.splits) != "test")
    if set(table.splits or ()) == {"train", "valid"}:
        roles = ["test" if split == "valid" else "train" for split in table.splits or ()]
        # The folds are dropped, as the scheme 'auto' would prefer them.
        return replace(table, splits=roles, folds=None)
    return table


def _sample(table: LabelTable, limit: int, seed: int) -> LabelTable:
    """Draw at most `limit` rows from each part of the split in turn, so that a small valid part is kept whole."""
    rows = len(table.paths)
    order = np.random.default_rng(seed).permutation(rows)
    parts = np.array(table.splits or [""] * rows)[order]
    # The first rows of all parts come before their second rows, and so on.
    in_turn = order[np.argsort(earlier_equals(parts), kind="stable")]
    keep = np.zeros(rows, dtype=bool)
    keep[in_turn[:limit]] = True
    return keep_rows(table, keep)


def _held_out(labels: Path, table: LabelTable, seed: int) -> list[Split]:
    """Return how the rows are held out.

    Raises:
        InputError: there are no rows, or they cannot be held out.
    """
    if not table.paths:
        raise InputError(f"{labels} has only test rows, which a running score must not use; mark some train and valid")
    try:
        splits = make_splits(table, "auto", seed)
        if table.label_sets is not None and not all(table.targets[split.test].any() for split in splits):
            raise InputError("no clip of a held-out part has a label; add labeled rows")
        return splits
    except InputError as error:
        # After the semicolon the error advises another scheme, which a run cannot choose.
        reason = str(error).split(";")[0]
        raise InputError(
            f"{labels} has {len(table.paths)} usable rows (not marked test, readable), which cannot be held out in "
            f"parts: {reason}; mark rows train and valid, or add rows"
        ) from error


def _read_logmels(sounds: Sequence[Sound], store: Corpus, title: str) -> tuple[list[Tensor], dict[Sound, str]]:
    """Return the log-mels of the readable clips in order, made as the store's, and why the others could not be read."""
    transform, reading = LogMelSpectrogram(store.front_end), store.reading
    if reading.channel == EACH:
        # A labeled file is one clip.
        reading = replace(reading, channel=MEAN)
    logmels, errors, shortened = [], {}, []
    hop_s = store.front_end.hop_ms / reading.expand / 1000
    for sound in track(sounds, len(sounds), title):
        try:
            logmels.append(_read_logmel(sound, transform, reading))
        except AudioFileError as error:
            errors[sound] = str(error)
            continue
        duration_s = (logmels[-1].shape[1] - 1) * hop_s
        # Of a longer clip, no more than this was read.
        if duration_s < LONGEST_S - 2 * hop_s and sound.shortened(duration_s, hop_s):
            shortened.append(sound)
    if text := shortened_text(shortened):
        note(text)
    return logmels, errors


@torch.inference_mode()
def _read_logmel(sound: Sound, transform: LogMelSpectrogram, reading: Reading) -> Tensor:
    """Return the log-mel (mels, frames), float16, of the clip's first 30 s."""
    rate_hz = reading.rate_hz(transform.config)
    longest = frames_of_samples(round(LONGEST_S * rate_hz), transform.config)
    blocks, frames = [], 0
    for block in logmel_blocks(read_audio_blocks(sound, rate_hz, reading), transform):
        blocks.append(block.half())
        frames += block.shape[1]
        if frames >= longest:
            break
    # A view would keep the memory of what was cut off.
    return torch.cat(blocks, dim=1)[:, :longest].clone()


def monitors(
    store: Corpus, config: PretrainConfig, labels: Path | None, table: TableOptions = TableOptions()
) -> list[Hook]:
    """Return the hooks that watch a run: reconstructions, feature rank and, with labeled files, a k-NN score.

    Raises:
        InputError: the label table cannot be used.
        ConfigError: there is a label table, but the configuration switches monitoring off.
    """
    if not config.run.picture_interval_steps:
        if labels is not None:
            raise ConfigError("run.picture_interval_steps is 0, so nothing is monitored; set it, or drop --monitor")
        return []
    hooks: list[Hook] = [ReconstructionPictures(store, config)] if can_draw() else []
    hooks.append(FeatureRank(store, config))
    if labels is not None:
        hooks.append(NearestNeighbors(labels, store, config, table=table, seed=config.run.seed))
    return hooks
