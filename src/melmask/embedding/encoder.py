"""The one inference path: sound in, embeddings out. A pure function of (audio, model).

1. Waveform to log-mel, normalized with the checkpoint's statistics.
2. Cut into units of the trained length; the last one is shortened to whole patches. What is missing of its last patch
   is filled with 0, the corpus mean after normalization, as the published successor does.
3. Units of equal length are encoded together, whatever clip they come from, nothing hidden.
4. The tokens of one time step are pooled over frequency: a frame vector, whose time is the step's center.
5. The scene vector is their mean over time, weighted by the true audio in each step, or mean and standard deviation.

`choice.py` says what is taken in steps 3 to 5; `assemble.py` has what surrounds the encoder in steps 2 and 5.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram, logmel_blocks
from melmask.checkpoint.folder import ModelCard
from melmask.checkpoint.locate import load_any
from melmask.config import FrontEndConfig, Statistics
from melmask.embedding.assemble import (
    FRAMES_TOGETHER,
    ClipVectors,
    Segmenter,
    batches_of_equal_length,
    grouped,
)
from melmask.embedding.choice import ChoiceChanges, FeatureChoice
from melmask.embedding.reconstruction import Reconstruction, reconstruct
from melmask.embedding.waveform import sound_file, waveform_of
from melmask.errors import ConfigError
from melmask.geometry import StepGrid, unit_lengths
from melmask.models.network import Network, build_network
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
    float64, the steps' centers.
    """

    scene: np.ndarray
    frames: np.ndarray
    times_ms: np.ndarray


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

    def embedding_size(self, choice: FeatureChoice = FeatureChoice(), **changes: Unpack[ChoiceChanges]) -> int:
        """Return D, the size of a frame vector of this choice.

        Raises:
            ConfigError: the model does not have what the choice asks for.
        """
        choice = choice.changed(**changes).check(self.card.model, self.card.front_end)
        return choice.frame_size(self.card.model)

    def step_grid(self, choice: FeatureChoice = FeatureChoice()) -> StepGrid:
        """Return the grid of frame vectors: one each `choice.hop_ms`, by default one a patch.

        Raises:
            ConfigError: the hop is no divisor of the patch's duration.
        """
        return StepGrid(self.card.model.patch_frames, choice.hop_frames(self.card.model, self.card.front_end))

    def embed(
        self,
        audio: Any,
        sample_rate_hz: int | float | None = None,
        choice: FeatureChoice = FeatureChoice(),
        **changes: Unpack[ChoiceChanges],
    ) -> Embedding:
        """Embed a sound file, or an array (samples,) or (clips, samples) in [-1, 1] at `sample_rate_hz`.

        A file passes in pieces, but the result holds all its frame vectors, 340 MB an hour for a base model:
        `melmask.embed_files` and `melmask.EmbeddingStream` never hold more than a part.

        Args:
            audio: Any length from one sample to hours. A file is given by its path, by its bytes, or as a file open
                for reading bytes. An array is a tensor or whatever NumPy makes an array of, of floats or int16 (whose
                full scale is 32768); other integers are refused. So is what looks like (samples, channels).
            sample_rate_hz: The rate of an array, from 100 Hz to 8 MHz. It is resampled to the model's. A file knows its
                own.
            choice: Which features to take. Shorter hops cost a pass over the audio for each shift; the scene vector
                does not depend on the hop.
            **changes: Fields of `FeatureChoice` that differ from `choice`: `layer=6`, `pooling="mean"` and so on.

        Raises:
            AudioFileError: the file cannot be read.
            InputError: the array is empty, not finite, of another shape or type, or has no rate.
            ConfigError: the model has no such layer, pooling, hop or scene.
            TypeError: a keyword is no field of `FeatureChoice`.
        """
        choice = choice.changed(**changes).check(self.card.model, self.card.front_end)
        grid = self.step_grid(choice)
        with sound_file(audio) as path:
            if path is not None:
                clips, single = [self.segments_of_file(path, grid)], True
            else:
                waveform, single = waveform_of(audio, sample_rate_hz, self.sample_rate_hz)
                clips = [self.segments_of([logmel], grid) for logmel in self._logmel(waveform)]
            made = [ClipVectors(grid, keep_frames=True, scene=choice.scene) for _ in clips]
            # An array is in memory anyway: encoded all together, its clips fill larger batches.
            self.fill(made, clips, choice, sys.maxsize if path is None else FRAMES_TOGETHER)
        scenes, frames = [vectors.scene() for vectors in made], [vectors.take() for vectors in made]
        times_ms = grid.times_ms(len(frames[0]), self.card.front_end)
        scene_out, frames_out = (scenes[0], frames[0]) if single else (np.stack(scenes), np.stack(frames))
        return Embedding(scene_out, frames_out, times_ms)

    def logmel(self, audio: Any, sample_rate_hz: int | float | None = None) -> np.ndarray:
        """Return the log-mel (clips, mels, frames) float32, natural log, not normalized, of an array as in `embed`."""
        waveform, _ = waveform_of(audio, sample_rate_hz, self.sample_rate_hz)
        return self._logmel(waveform).cpu().numpy()

    def segments_of_file(self, path: Path, grid: StepGrid) -> Iterator[tuple[int, Tensor]]:
        """Read a file block by block; yield its log-mel cut as by `segments_of`.

        Raises:
            AudioFileError: the file cannot be read.
        """
        sound = read_audio_blocks(path, self.sample_rate_hz)
        yield from self.segments_of(logmel_blocks(sound, self.front_end), grid)

    def segments_of(self, blocks: Iterable[Tensor], grid: StepGrid) -> Iterator[tuple[int, Tensor]]:
        """Cut a log-mel into pieces of whole units, each phase's last one shorter; yield (phase, (mels, frames)).

        Units are encoded independently, so embedding the pieces is the same as embedding the whole. Memory is bounded.
        """
        unit = self.card.model.frames
        length = max(1, _SEGMENT_FRAMES // unit) * unit
        cutters = {phase: Segmenter(phase, length, self.card.statistics.mean) for phase in grid.phases}
        for block in blocks:
            for phase, cutter in cutters.items():
                yield from ((phase, piece) for piece in cutter.push(block))
        for phase, cutter in cutters.items():
            yield from ((phase, piece) for piece in cutter.finish())

    def fill(
        self,
        made: Sequence[ClipVectors],
        clips: Iterable[Iterable[tuple[int, Tensor]]],
        choice: FeatureChoice,
        frames_together: int,
    ) -> None:
        """Encode the pieces of each clip, as `segments_of` gives them, and add their vectors to those of the clip.

        Pieces are encoded together until they have `frames_together` frames.
        """
        pieces = ((vectors, *piece) for vectors, clip in zip(made, clips, strict=True) for piece in clip)
        for group in grouped(pieces, lambda piece: piece[2].shape[1], frames_together):
            encoded = self.embed_segments([piece for *_, piece in group], choice)
            for (vectors, phase, piece), steps in zip(group, encoded, strict=True):
                vectors.add(phase, steps, piece.shape[1])

    @torch.inference_mode()
    def embed_segments(self, segments: Sequence[Tensor], choice: FeatureChoice = FeatureChoice()) -> list[np.ndarray]:
        """Return the frame vectors (steps, D) of each log-mel (mels, frames) of any length, all encoded together."""
        config, statistics = self.card.model, self.card.statistics
        units: list[tuple[int, int, Tensor]] = []
        for clip, segment in enumerate(segments):
            x = (segment.to(self.device) - statistics.mean) / statistics.std
            lengths = unit_lengths(x.shape[1], config.frames, config.patch_frames)
            # After normalization, 0 is the mean of the corpus.
            x = F.pad(x, (0, sum(lengths) - x.shape[1]))
            units += [(clip, k, unit) for k, unit in enumerate(x.split(lengths, dim=1))]
        pooled: dict[tuple[int, int], np.ndarray] = {}
        rows = self.model.encoder.grid.rows
        # All batches share one context, which keeps the weights that it has converted.
        with inference_precision(self.precision, self.device):
            for batch in batches_of_equal_length(units, self._values_per_batch()):
                layers = self._tokens(torch.stack([unit for _, _, unit in batch]), choice.layers)
                pooled_layers = [choice.pool(tokens, rows, config.cls_token) for tokens in layers]
                vectors = torch.cat(pooled_layers, dim=-1).float().cpu().numpy()
                pooled |= {(clip, k): vector for (clip, k, _), vector in zip(batch, vectors, strict=True)}
        counts = np.bincount([clip for clip, _, _ in units], minlength=len(segments))
        return [np.concatenate([pooled[clip, k] for k in range(n)]) for clip, n in enumerate(counts)]

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
        if not self.card.model.has_decoder:
            raise ConfigError(f"{self.name or 'the model'} is encoder-only: it embeds but cannot reconstruct")
        return reconstruct(self.model, self.card, x, hidden)

    def _values_per_batch(self) -> int:
        config = self.card.model
        bytes_per_value = 2 if self.precision == "bf16" else 4
        tokens = _LARGEST_ACTIVATION_BYTES // (4 * config.width * bytes_per_value)
        if self.device.type != "cpu":
            tokens = _TOKENS_PER_GPU_BATCH
        return tokens * config.patch_mels * config.patch_frames

    def _tokens(self, units: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the tokens after each of `layers`; without any, those of the end, after the final norm."""
        # The encoder gives the end one more turn, after its last block.
        numbers = layers or (self.card.model.depth + 1,)
        found = {}
        for number, tokens in enumerate(self.model.encoder.encode_layers(units), 1):
            if number in numbers:
                found[number] = tokens
            if number == max(numbers):
                break
        return [found[number] for number in numbers]

    @torch.inference_mode()
    def _logmel(self, waveform: np.ndarray) -> Tensor:
        return self.front_end(torch.from_numpy(waveform).to(self.device))


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
    """Return the same network with fresh random weights: the baseline that shows what training is worth."""
    return AudioEncoder(build_network(card.model, seed), card, f"untrained (seed {seed})", device, precision)
