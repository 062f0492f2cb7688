"""The one inference path: sound in, embeddings out. A pure function of (audio, model).

1. Waveform to log-mel, normalised with the checkpoint's statistics.
2. Cut into units of the trained length; the last one is shortened to whole patches. What is missing of its last patch
   is filled with 0, the corpus mean after normalisation, as the published successor does.
3. Units of equal length are encoded together, whatever clip they come from, nothing hidden.
4. The tokens of one time step are pooled over frequency: a frame vector, whose time is the step's centre.
5. The scene vector is their mean over time, weighted by the true audio in each step, or mean and standard deviation.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from melmask.audio.files import read_audio_blocks, resample
from melmask.audio.logmel import LogMelSpectrogram, LogMelStream
from melmask.checkpoint.folder import ModelCard
from melmask.checkpoint.locate import load_any
from melmask.config import FrontEndConfig, Statistics
from melmask.embedding.assemble import (
    FRAMES_TOGETHER,
    ClipVectors,
    Segmenter,
    StepGrid,
    batches_of_equal_length,
    check_pooling,
    grouped,
    pool,
    step_grid,
)
from melmask.errors import ConfigError, InputError
from melmask.geometry import unit_lengths
from melmask.models.network import Network, build_network
from melmask.models.vit import unpatchify
from melmask.objectives.mae import reconstruct
from melmask.settings import to_dict
from melmask.system.hardware import INFERENCE_PRECISIONS, inference_precision, pick_device

_LARGEST_ACTIVATION_BYTES = 30 << 20
"""On CPU a batch is as large as lets the MLP's hidden layer stay below this: larger ones fall out of the cache, and
the C library maps blocks above 32 MB afresh each time (docs/log.md). Memory stays small, too."""
_TOKENS_PER_GPU_BATCH = 65536
_SEGMENT_FRAMES = 8192
"""Long files pass through in pieces of about this length: 82 s at a 10-ms hop."""


@dataclass(frozen=True)
class Embedding:
    """Embeddings of one clip, or of several of equal length.

    scene: ([clips,] D) float32, or 2 D for 'mean+std'.  frames: ([clips,] steps, D) float32.  times_ms: (steps,)
    float64, the steps' centres.
    """

    scene: np.ndarray
    frames: np.ndarray
    times_ms: np.ndarray


class Reconstruction(NamedTuple):
    """What the decoder makes of the visible patches.

    loss: mean squared error over hidden patches, normalised log-mel.  prediction: (clips, patches, values) float32,
    every patch, normalised log-mel; patches are numbered frequency-major, values ordered (mel in patch, frame in it).
    logmel: (clips, mels, frames), the prediction put together and brought back to natural-log units.
    """

    loss: float
    prediction: np.ndarray
    logmel: np.ndarray


class AudioEncoder:
    """A trained model ready for use; made by `melmask.load`.

    Attributes: `card` (architecture, front end, statistics, training summary), `name` (where it was loaded from),
    `normalization` (whose statistics the card holds: the 'checkpoint's, those of a 'dataset', or 'given' ones).
    """

    normalization = "checkpoint"

    def __init__(
        self,
        model: Network,
        card: ModelCard,
        name: str = "",
        device: str = "auto",
        precision: str = "fp32",
    ):
        if precision not in INFERENCE_PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; known are {', '.join(INFERENCE_PRECISIONS)}")
        self.card = card
        self.name = name
        self.precision = precision
        self.device = pick_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.front_end = LogMelSpectrogram(card.front_end).to(self.device)

    @property
    def sample_rate_hz(self) -> int:
        """The rate the model hears; other audio is resampled to it."""
        return self.card.front_end.sample_rate_hz

    @functools.cached_property
    def sha256(self) -> str:
        """A digest of the weights and of what config.json says of the inference: the model's identity."""
        digest = hashlib.sha256(json.dumps([to_dict(p) for p in (self.card.model, self.card.front_end)]).encode())
        digest.update(json.dumps(to_dict(self.card.statistics)).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def embedding_size(self, pooling: str = "concat", layer: int | Sequence[int] | None = None) -> int:
        """D, the size of a frame vector with this pooling and these layers."""
        check_pooling(pooling, self.card.model.cls_token)
        factor = {"concat": self.model.encoder.grid.rows, "mean+max": 2}.get(pooling, 1)
        return factor * self.card.model.width * len(_layers(layer))

    def step_grid(self, hop_ms: float | None = None) -> StepGrid:
        """The grid of frame vectors, one each `hop_ms`; by default one a patch.

        Raises:
            ConfigError: the hop is no divisor of the patch's duration.
        """
        return step_grid(self.card.model.patch_frames, hop_ms, self.card.front_end)

    def embed(
        self,
        audio: str | Path | np.ndarray | Tensor,
        sample_rate_hz: int | None = None,
        *,
        layer: int | Sequence[int] | None = None,
        pooling: str = "concat",
        hop_ms: float | None = None,
        scene: str = "mean",
    ) -> Embedding:
        """Embed a sound file, or a float array (samples,) or (clips, samples) in [-1, 1] at `sample_rate_hz`.

        A file passes in pieces, but the result holds all its frame vectors, 340 MB an hour for a base model:
        `extract.embed_files` and `streaming.EmbeddingStream` never hold more than a part.

        Args:
            audio: Any length from one sample to hours.
            sample_rate_hz: Of an array; resampled to the model's. A file knows its own.
            layer: Features after block 1 .. depth; several are put side by side. By default the last block's, after
                the final norm.
            pooling: One of `POOLINGS`.
            hop_ms: Time between frame vectors, a divisor of the patch's duration; by default that. Shorter hops cost
                a pass over the audio for each shift. The scene vector does not depend on it.
            scene: One of `SCENES`.

        Raises:
            AudioFileError: the file cannot be read.
            InputError: the array is empty, not finite, of another shape, or has no rate.
            ConfigError: no such layer, pooling, hop or scene.
        """
        self.check_choice(layer, pooling, hop_ms, scene)
        grid = self.step_grid(hop_ms)
        if from_file := isinstance(audio, str | Path):
            clips, single = [self.segments_of_file(Path(audio), grid)], True
        else:
            waveform, single = self._waveform(audio, sample_rate_hz)
            clips = [self.segments_of([logmel], grid) for logmel in self._logmel(waveform)]
        made = [ClipVectors(grid, keep_frames=True, scene=scene) for _ in clips]
        pieces = ((vectors, *piece) for vectors, clip in zip(made, clips, strict=True) for piece in clip)
        # An array is in memory anyway: encoded all together, its clips fill larger batches.
        groups = grouped(pieces, lambda piece: piece[2].shape[1], FRAMES_TOGETHER) if from_file else [list(pieces)]
        for group in groups:
            encoded = self.embed_segments([piece for *_, piece in group], layer=layer, pooling=pooling)
            for (vectors, phase, piece), steps in zip(group, encoded, strict=True):
                vectors.add(phase, steps, piece.shape[1])
        scenes, frames = [vectors.scene() for vectors in made], [vectors.take() for vectors in made]
        times_ms = grid.times_ms(len(frames[0]), self.card.front_end)
        scene_out, frames_out = (scenes[0], frames[0]) if single else (np.stack(scenes), np.stack(frames))
        return Embedding(scene_out, frames_out, times_ms)

    def logmel(self, audio: np.ndarray | Tensor, sample_rate_hz: int | None = None) -> np.ndarray:
        """Log-mel of (samples,) or (clips, samples): (clips, mels, frames) float32, natural log, not normalised."""
        waveform, _ = self._waveform(audio, sample_rate_hz)
        return self._logmel(waveform).cpu().numpy()

    def segments_of_file(self, path: Path, grid: StepGrid) -> Iterator[tuple[int, Tensor]]:
        """The log-mel of a file, read block by block, cut as by `segments_of`.

        Raises:
            AudioFileError: the file cannot be read.
        """
        yield from self.segments_of(self._logmel_blocks(path), grid)

    def segments_of(self, logmel_blocks: Iterable[Tensor], grid: StepGrid) -> Iterator[tuple[int, Tensor]]:
        """(phase, log-mel (mels, frames)) pieces of whole units, each phase's last one shorter; in bounded memory.

        Units are encoded independently, so embedding the pieces is the same as embedding the whole.
        """
        unit = self.card.model.frames
        length = max(1, _SEGMENT_FRAMES // unit) * unit
        cutters = {phase: Segmenter(phase, length, self.card.statistics.mean) for phase in grid.phases}
        for block in logmel_blocks:
            for phase, cutter in cutters.items():
                yield from ((phase, piece) for piece in cutter.push(block))
        for phase, cutter in cutters.items():
            yield from ((phase, piece) for piece in cutter.finish())

    @torch.inference_mode()
    def embed_segments(
        self, segments: Sequence[Tensor], *, layer: int | Sequence[int] | None = None, pooling: str = "concat"
    ) -> list[np.ndarray]:
        """Frame vectors (steps, D) of each log-mel (mels, frames) of any length, all encoded together."""
        config, statistics = self.card.model, self.card.statistics
        units: list[tuple[int, int, Tensor]] = []
        for clip, segment in enumerate(segments):
            x = (segment.to(self.device) - statistics.mean) / statistics.std
            lengths = unit_lengths(x.shape[1], config.frames, config.patch_frames)
            x = F.pad(x, (0, sum(lengths) - x.shape[1]))
            units += [(clip, k, unit) for k, unit in enumerate(x.split(lengths, dim=1))]
        pooled: dict[tuple[int, int], np.ndarray] = {}
        rows = self.model.encoder.grid.rows
        # One context for all batches: it keeps the weights that it has converted.
        with inference_precision(self.precision, self.device):
            for batch in batches_of_equal_length(units, self._values_per_batch()):
                tokens = self._tokens(torch.stack([unit for _, _, unit in batch]), _layers(layer))
                pools = [pool(t, rows, config.cls_token, pooling) for t in tokens]
                vectors = torch.cat(pools, dim=-1).float().cpu().numpy()
                pooled |= {(clip, k): vector for (clip, k, _), vector in zip(batch, vectors, strict=True)}
        counts = np.bincount([clip for clip, _, _ in units], minlength=len(segments))
        return [np.concatenate([pooled[clip, k] for k in range(n)]) for clip, n in enumerate(counts)]

    @torch.inference_mode()
    def reconstruct(self, logmel: np.ndarray | Tensor, *, masked: np.ndarray | Tensor) -> Reconstruction:
        """Hide patches and let the decoder fill them in.

        Args:
            logmel: (clips, mels, frames) as `logmel` gives it, one unit long (the trained length) or shorter, whole
                patches.
            masked: (clips, patches) bool, True = hidden; at least one visible and one hidden patch a clip.

        Raises:
            InputError: shapes that do not fit, or nothing hidden or visible.
            ConfigError: the model has no decoder.
        """
        x = torch.as_tensor(logmel, dtype=torch.float32, device=self.device)
        hidden = torch.as_tensor(masked, device=self.device).bool()
        self._check_reconstruct(x, hidden)
        statistics = self.card.statistics
        x = (x - statistics.mean) / statistics.std
        normalized = self._target_is_normalized()
        # Clips may have different numbers of visible patches: one at a time unless they agree.
        together = bool((hidden.sum(1) == hidden[0].sum()).all())
        groups = [slice(None)] if together else [slice(i, i + 1) for i in range(len(x))]
        outputs = [reconstruct(self.model, x[g], hidden[g], normalized) for g in groups]
        prediction = torch.cat([o.prediction for o in outputs])
        weights = torch.tensor([float(hidden[g].sum()) for g in groups])
        loss = float((torch.stack([o.loss.cpu() for o in outputs]) * weights).sum() / weights.sum())
        shown = prediction
        if normalized:
            # Such a model predicts each patch up to its own level and contrast: take those from the truth.
            truth = self.model.encoder.patches_of(x)
            shown = prediction * (truth.var(-1, keepdim=True) + 1e-6).sqrt() + truth.mean(-1, keepdim=True)
        picture = unpatchify(shown, self.model.encoder.grid.rows, self.card.model.patch_mels)
        restored = picture * statistics.std + statistics.mean
        return Reconstruction(loss, prediction.cpu().numpy(), restored.cpu().numpy())

    def _target_is_normalized(self) -> bool:
        masking = self.card.training.get("config", {}).get("masking", {})
        return bool(masking.get("normalize_target", False))

    def check_choice(
        self, layer: int | Sequence[int] | None, pooling: str, hop_ms: float | None = None, scene: str = "mean"
    ) -> None:
        """Raise ConfigError unless this model has such layers, pooling, hop and scene."""
        depth = self.card.model.depth
        for number in _layers(layer):
            if number is not None and not 1 <= number <= depth:
                raise ConfigError(f"layer is {number}; this model has layers 1 to {depth}")
        check_pooling(pooling, self.card.model.cls_token, scene)
        self.step_grid(hop_ms)

    def _check_reconstruct(self, logmel: Tensor, masked: Tensor) -> None:
        config = self.card.model
        if not config.has_decoder:
            raise ConfigError(f"{self.name or 'the model'} is encoder-only: it embeds but cannot reconstruct")
        rows = self.model.encoder.grid.rows
        fits = (
            logmel.ndim == 3
            and logmel.shape[1] == config.mels
            and 0 < logmel.shape[2] <= config.frames
            and logmel.shape[2] % config.patch_frames == 0
        )
        if not fits:
            raise InputError(
                f"the log-mel is {tuple(logmel.shape)}; expected (clips, {config.mels}, frames) with frames a multiple "
                f"of {config.patch_frames} up to {config.frames}"
            )
        expected = (logmel.shape[0], rows * logmel.shape[2] // config.patch_frames)
        if tuple(masked.shape) != expected:
            raise InputError(f"the mask is {tuple(masked.shape)}; expected (clips, patches) = {expected}")
        counts = masked.sum(1)
        if int(counts.min()) < 1 or int(counts.max()) >= expected[1]:
            raise InputError("the mask hides all or none of a clip's patches; leave some of either")

    def _values_per_batch(self) -> int:
        config = self.card.model
        bytes_per_value = 2 if self.precision == "bf16" else 4
        tokens = _LARGEST_ACTIVATION_BYTES // (4 * config.width * bytes_per_value)
        if self.device.type != "cpu":
            tokens = _TOKENS_PER_GPU_BATCH
        return tokens * config.patch_mels * config.patch_frames

    def _tokens(self, units: Tensor, layers: Sequence[int | None]) -> list[Tensor]:
        """Tokens after each of `layers`, None being the end, after the final norm."""
        numbers = [self.card.model.depth + 1 if layer is None else layer for layer in layers]
        found = {}
        for number, tokens in enumerate(self.model.encoder.encode_layers(units), 1):
            if number in numbers:
                found[number] = tokens
            if number == max(numbers):
                break
        return [found[number] for number in numbers]

    @torch.inference_mode()
    def _logmel_blocks(self, path: Path) -> Iterator[Tensor]:
        stream = LogMelStream(self.front_end)
        for block in read_audio_blocks(path, self.sample_rate_hz):
            yield stream.push(block)[0]
        yield stream.finish()[0]

    @torch.inference_mode()
    def _logmel(self, waveform: np.ndarray) -> Tensor:
        return self.front_end(torch.from_numpy(waveform).to(self.device))

    def _waveform(self, audio: Any, sample_rate_hz: int | None) -> tuple[np.ndarray, bool]:
        """(clips, samples) float32 at the model's rate, and whether a single clip was given."""
        if isinstance(audio, Tensor):
            # NumPy has no bfloat16.
            audio = audio.detach().cpu().float() if audio.is_floating_point() else audio.cpu()
        array = np.asarray(audio)
        if sample_rate_hz is None or not sample_rate_hz > 0:
            raise InputError(f"sample_rate_hz is {sample_rate_hz}; give the rate of the array, as sample_rate_hz=16000")
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"the array holds {array.dtype}; give floats in [-1, 1] (int16 samples divided by 32768)")
        if array.ndim not in (1, 2) or not array.size:
            raise InputError(f"the array is {array.shape}; give (samples,) or (clips, samples), at least one sample")
        if not np.isfinite(array).all():
            raise InputError("the array holds NaN or infinite samples; repair or leave out the audio")
        waveform = np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
        waveform = resample(waveform, sample_rate_hz, self.sample_rate_hz)
        if not waveform.size:
            raise InputError(
                f"the array is {array.shape}: not one sample at {self.sample_rate_hz} Hz; give longer audio"
            )
        return waveform, array.ndim == 1


def load(
    source: str | Path,
    device: str = "auto",
    precision: str = "fp32",
    *,
    front_end: FrontEndConfig | None = None,
    statistics: Statistics | None = None,
) -> AudioEncoder:
    """Load a model: a run, a checkpoint folder, a .pth file of MSM-MAE or its successor, or hub:owner/name.

    Args:
        source: Where it is.
        device: 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto' takes a GPU if there is one.
        precision: 'fp32'; 'fp32-fast' or 'bf16' trade accuracy for speed (`system.hardware.inference_precision`).
        front_end: Instead of the checkpoint's. Files of others hold none and are taken to be of 16 kHz; the
            successor's 32-kHz models want `melmask.FRONT_END_32_KHZ`.
        statistics: Instead of the checkpoint's.

    Raises:
        CheckpointError: missing, damaged, or of an unknown kind.
        ConfigError: no such device or precision.
    """
    model, card, path = load_any(Path(source))
    card = replace(card, front_end=front_end or card.front_end, statistics=statistics or card.statistics)
    encoder = AudioEncoder(model, card, str(path), device, precision)
    if statistics is not None:
        encoder.normalization = "given"
    return encoder


def untrained(card: ModelCard, seed: int = 0, device: str = "auto", precision: str = "fp32") -> AudioEncoder:
    """The same network with fresh random weights: the baseline that shows what training is worth."""
    return AudioEncoder(build_network(card.model, seed), card, f"untrained (seed {seed})", device, precision)


def _layers(layer: int | Sequence[int] | None) -> list[int | None]:
    return [layer] if layer is None or isinstance(layer, int) else list(layer)
