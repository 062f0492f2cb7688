"""The one inference path: sound in, embeddings out. The result is a pure function of the audio and the model.

1. The waveform becomes a log-mel, which is normalized with the checkpoint's statistics.
2. The log-mel is cut into units of the trained length. The last unit is shortened to whole patches. What is missing of
   its last patch is filled with 0, the corpus mean after normalization, as the published successor does.
3. Units of equal length are encoded together, whatever clip they come from. No patch is hidden.
4. The tokens of one time step are pooled over frequency to a frame vector, whose time is the step's center.
5. The scene vector is the mean of the frame vectors over time, weighted by the true audio in each step, or their mean
   and standard deviation.

`choice.py` describes what is taken in steps 3 to 5. `assemble.py` has what surrounds the encoder in steps 2 and 5.
"""

import functools
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from melmask.audio.files import read_audio_blocks
from melmask.audio.logmel import LogMelSpectrogram, logmel_blocks, normalize, scales
from melmask.audio.notes import Listener
from melmask.audio.parts import Sound
from melmask.checkpoint.folder import ModelCard
from melmask.checkpoint.locate import load_any
from melmask.config import WHITENED, FrontEndConfig, Reading, Statistics
from melmask.config_text import to_dict
from melmask.embedding.assemble import ClipVectors, Segmenter
from melmask.embedding.choice import ChoiceChanges, FeatureChoice
from melmask.embedding.reconstruction import Reconstruction, reconstruct
from melmask.embedding.waveform import sound_file, waveform_of
from melmask.errors import ConfigError
from melmask.geometry import StepGrid, unit_lengths
from melmask.models.network import Network, build_network
from melmask.system.contention import Contention
from melmask.system.cores import Cores
from melmask.system.hardware import INFERENCE_PRECISIONS, autocast_of, inference_precision, pick_device

FRAMES_TOGETHER = 60_000
"""Log-mel frames of files that are encoded at once. They are 20 MB, and enough units of each length to fill batches."""
_LARGEST_ACTIVATION_BYTES = 30 << 20
"""The MLP's hidden layers of the batches under way stay below this on CPU. Larger ones fall out of the cache, and the C
library maps blocks above 32 MB afresh each time (docs/log.md). Memory stays small, too."""
_TOKENS_PER_GPU_BATCH = 65536
_SEGMENT_FRAMES = 8192
"""Long files are encoded in pieces of about this length: 82 s at a 10-ms hop."""

T = TypeVar("T")


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
    """A trained model ready for use; `melmask.load` returns one.

    Attributes: `card` (architecture, front end, statistics, training summary), `name` (where it was loaded from),
    `normalization` (where the card's statistics are from: the 'checkpoint', a 'dataset', or 'given' by the caller),
    `reading` (which channel of files it hears, and how much slower: by default the mean, as slow as in training),
    `contention` (notices on a CPU when other programs take the processor from the computation).
    """

    def __init__(
        self,
        model: Network,
        card: ModelCard,
        name: str = "",
        device: str = "auto",
        precision: str = "fp32",
        normalization: str = "checkpoint",
        reading: Reading | None = None,
    ):
        if precision not in INFERENCE_PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; known are {', '.join(INFERENCE_PRECISIONS)}")
        self.card, self.name, self.precision = card, name, precision
        self.normalization, self.reading = normalization, reading or Reading(expand=card.reading.expand)
        self.device, self.contention = pick_device(device), Contention()
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.front_end = LogMelSpectrogram(card.front_end).to(self.device)

    @property
    def sample_rate_hz(self) -> int:
        """The sample rate of the model; other audio is resampled to it.

        If it hears sound that is played slower (`reading.expand`), its rate is that much higher.
        """
        return self.reading.rate_hz(self.card.front_end)

    @property
    def hop_ms(self) -> float:
        """Time between frames of the log-mel, in ms of the sound as it is, not as it is played."""
        return self.card.front_end.hop_ms / self.reading.expand

    def times_ms(self, grid: StepGrid, steps: int) -> np.ndarray:
        """Return the centers of the steps of `grid`, (steps,) float64, in ms of the sound as it is."""
        return grid.times_ms(steps, self.card.front_end) / self.reading.expand

    @property
    def corpus_mean(self) -> float | Tensor:
        """The mean of the corpus, which becomes 0: a number or, for several resolutions, a column (bands, 1)."""
        return scales(self.card.statistics, self.card.front_end.mels, self.device)[0]

    @functools.cached_property
    def sha256(self) -> str:
        """A digest of the weights, the architecture, the front end, the statistics and the whitening: its identity."""
        digest = hashlib.sha256(json.dumps([to_dict(p) for p in (self.card.model, self.card.front_end)]).encode())
        digest.update(json.dumps(to_dict(self.card.statistics)).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        if self.card.whitening is not None:
            for name, array in self.card.whitening.arrays().items():
                digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    def embedding_size(self, choice: FeatureChoice = FeatureChoice(), **changes: Unpack[ChoiceChanges]) -> int:
        """Return D, the size of a frame vector of this choice.

        Raises:
            ConfigError: the model has no such layer, pooling or hop.
        """
        choice = choice.changed(**changes).of_model(self.card)
        return choice.frame_size(self.card.model)

    def step_grid(self, choice: FeatureChoice = FeatureChoice()) -> StepGrid:
        """Return the grid of frame vectors: one every `choice.hop_ms`, by default one for each patch.

        Raises:
            ConfigError: the patch's duration is not a whole multiple of the hop.
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

        A file is encoded in pieces, but the result holds all its frame vectors: 340 MB an hour for a base model.
        `melmask.embed_files` and `melmask.EmbeddingStream` never hold more than a part of them.

        Args:
            audio: Any length from one sample to hours. A file is given by its path, by its bytes, or as a file open
                for reading bytes. An array is a tensor or whatever NumPy makes an array of, of floats or int16 (whose
                full scale is 32768); other integers are refused. So is what looks like (samples, channels).
            sample_rate_hz: The rate of an array, from 100 Hz to 10 MHz. It is resampled to the model's. A file knows
                its own.
            choice: Which features to take. Shorter hops cost a pass over the audio for each shift; the scene vector
                does not depend on the hop.
            **changes: Fields of `FeatureChoice` that differ from `choice`: `layer=6`, `pooling="mean"` and so on.

        Raises:
            AudioFileError: the file cannot be read.
            InputError: the array is empty, not finite, of another shape or type, or has no rate.
            ConfigError: the model has no such layer, pooling, hop or scene.
            NotFiniteError: the embedding is NaN or infinite.
            TypeError: a keyword is not a field of `FeatureChoice`.
        """
        choice = choice.changed(**changes).of_model(self.card)
        grid = self.step_grid(choice)
        with sound_file(audio) as path:
            if path is not None:
                clips, single = [self.segments_of_file(path, grid)], True
            else:
                waveform, single = waveform_of(audio, sample_rate_hz, self.sample_rate_hz)
                clips = [self.segments_of([logmel], grid) for logmel in self._logmel(waveform)]
            made = [self.clip_vectors(choice, grid, keep_frames=True) for _ in clips]
            # An array is in memory anyway: encoded all together, its clips fill larger batches.
            self.fill(made, clips, choice, sys.maxsize if path is None else FRAMES_TOGETHER)
        scenes, frames = [vectors.scene() for vectors in made], [vectors.take() for vectors in made]
        times_ms = self.times_ms(grid, len(frames[0]))
        scene_out, frames_out = (scenes[0], frames[0]) if single else (np.stack(scenes), np.stack(frames))
        return Embedding(scene_out, frames_out, times_ms)

    def clip_vectors(self, choice: FeatureChoice, grid: StepGrid, *, keep_frames: bool) -> ClipVectors:
        """Return what collects the vectors of a new clip; the choice is one that `FeatureChoice.of_model` returned."""
        whitening = self.card.whitening if choice.scene == WHITENED else None
        return ClipVectors(grid, keep_frames, choice.scene, whitening)

    def logmel(self, audio: Any, sample_rate_hz: int | float | None = None) -> np.ndarray:
        """Return the log-mel (clips, bands, frames) float32, natural log, not normalized, of an array as in `embed`."""
        waveform, _ = waveform_of(audio, sample_rate_hz, self.sample_rate_hz)
        return self._logmel(waveform).cpu().numpy()

    def segments_of_file(
        self, source: Path | Sound, grid: StepGrid, reading: Reading | None = None, listener: Listener | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Read a file, or a part of one, as `self.reading` or `reading` says; yield its log-mel as `segments_of`.

        Raises:
            AudioFileError: the file cannot be read.
        """
        sound = read_audio_blocks(source, self.sample_rate_hz, reading or self.reading, listener)
        yield from self.segments_of(logmel_blocks(sound, self.front_end), grid)

    def segments_of(self, blocks: Iterable[Tensor], grid: StepGrid) -> Iterator[tuple[int, Tensor]]:
        """Cut a log-mel into pieces of whole units; yield (phase, (bands, frames)). The last of a phase may be shorter.

        Units are encoded independently, so the pieces give the same vectors as the whole. Memory is bounded.
        """
        # A piece is a whole number of units, so that no unit is cut in two.
        unit = self.card.model.frames
        length = max(1, _SEGMENT_FRAMES // unit) * unit
        cutters = {phase: Segmenter(phase, length, self.corpus_mean) for phase in grid.phases}
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
        """Encode the pieces of each clip, which `segments_of` yields, and add their vectors to those of the clip.

        Pieces are collected until they have `frames_together` frames, and then encoded together.
        """
        pieces = ((vectors, *piece) for vectors, clip in zip(made, clips, strict=True) for piece in clip)
        for group in grouped(pieces, lambda piece: piece[2].shape[1], frames_together):
            encoded = self.embed_segments([piece for *_, piece in group], choice)
            for (vectors, phase, piece), steps in zip(group, encoded, strict=True):
                vectors.add(phase, steps, piece.shape[1])

    @torch.inference_mode()
    def embed_segments(self, segments: Sequence[Tensor], choice: FeatureChoice = FeatureChoice()) -> list[np.ndarray]:
        """Return the frame vectors (steps, D) of each log-mel (bands, frames) of any length, all encoded together."""
        # Units are independent, so threads encode batches side by side: none waits for another within an operation.
        cores = Cores(torch.get_num_threads() if self.device.type == "cpu" else 1, contention=self.contention)
        with cores.engaged():
            pieces = [self._units_of(segment) for segment in segments]
        units = list(itertools.chain.from_iterable(pieces))
        batches = list(self._batches(units, cores.count))
        jobs = [functools.partial(self._encode, [units[number] for number in batch], choice) for batch in batches]
        # The precision of float32 products is a setting of the process, so it is set once, not by each job.
        with closing(cores), inference_precision(self.precision, self.device):
            encoded = cores.run(jobs)
        pooled: dict[int, np.ndarray] = {}
        for batch, vectors in zip(batches, encoded, strict=True):
            pooled |= zip(batch, vectors, strict=True)
        # The units of a segment have consecutive numbers.
        numbers = iter(range(len(units)))
        return [np.concatenate([pooled[k] for k in itertools.islice(numbers, len(piece))]) for piece in pieces]

    def _units_of(self, segment: Tensor) -> Sequence[Tensor]:
        """Normalize a log-mel (bands, frames) and cut it into units."""
        config, statistics = self.card.model, self.card.statistics
        x = normalize(segment.to(self.device), statistics)
        lengths = unit_lengths(x.shape[1], config.frames, config.patch_frames)
        # The last patch is filled with 0, which is the mean of the corpus after normalization.
        return F.pad(x, (0, sum(lengths) - x.shape[1])).split(lengths, dim=1)

    @torch.inference_mode()
    def _encode(self, units: Sequence[Tensor], choice: FeatureChoice) -> np.ndarray:
        """Return the frame vectors (units, steps, D) of units of equal length; several threads may call this."""
        config = self.card.model
        with autocast_of(self.precision, self.device):
            layers = self._tokens(torch.stack(list(units)), choice.layers)
            pooled = [choice.pool(tokens, self.model.encoder.grid.rows, config.cls_token) for tokens in layers]
            return torch.cat(pooled, dim=-1).float().cpu().numpy()

    def reconstruct(
        self, logmel: np.ndarray | Tensor, *, masked: np.ndarray | Tensor, leak: bool = False
    ) -> Reconstruction:
        """Hide patches and let the decoder fill them in.

        Args:
            logmel: (clips, bands, frames) as `logmel` returns it: whole patches, at most one unit (the trained length).
            masked: (clips, patches) bool, True = hidden; each clip has a visible and a hidden patch.
            leak: A model of normalized targets predicts patches without their level and contrast. True takes both from
                the hidden patch itself, which the model has not seen; by default they are estimated from the visible
                patches. It does not matter for other models.

        Raises:
            InputError: the shapes do not fit, or a clip has no hidden or no visible patch.
            ConfigError: the model has no decoder.
            NotFiniteError: what it makes is NaN or infinite.
        """
        x = torch.as_tensor(logmel, dtype=torch.float32, device=self.device)
        hidden = torch.as_tensor(masked, device=self.device).bool()
        if not self.card.model.has_decoder:
            raise ConfigError(f"{self.name or 'the model'} is encoder-only: it embeds but cannot reconstruct")
        return reconstruct(self.model, self.card, x, hidden, leak=leak)

    def _batches(self, units: Sequence[Tensor], cores: int) -> Iterator[list[int]]:
        """Yield the numbers of units (bands, frames) of the same length that fill a batch; all cores get some."""
        config, tokens = self.card.model, _TOKENS_PER_GPU_BATCH
        if self.device.type == "cpu":
            # The hidden layer has 4 * width values for each token.
            bytes_per_value = 2 if self.precision == "bf16" else 4
            tokens = _LARGEST_ACTIVATION_BYTES // (4 * config.width * bytes_per_value * cores)
        by_length: dict[int, list[int]] = {}
        for number, unit in enumerate(units):
            by_length.setdefault(unit.shape[1], []).append(number)
        for numbers in by_length.values():
            fitting = tokens * config.patch_values // units[numbers[0]].numel()
            size = max(1, min(fitting, math.ceil(len(numbers) / cores)))
            for start in range(0, len(numbers), size):
                yield numbers[start : start + size]

    def _tokens(self, units: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the tokens after each of `layers`; without layers, the last block's tokens after the final norm."""
        # After its last block, the encoder yields once more: the tokens after the final norm.
        numbers = layers or (self.card.model.depth + 1,)
        found = {}
        for number, tokens in enumerate(self.model.encoder.encode_layers(units), 1):
            if number in numbers:
                found[number] = tokens
            # Later blocks are not computed.
            if number == max(numbers):
                break
        return [found[number] for number in numbers]

    @torch.inference_mode()
    def _logmel(self, waveform: np.ndarray) -> Tensor:
        return self.front_end(torch.from_numpy(waveform).to(self.device))


def grouped(items: Iterable[T], size_of: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Yield lists of consecutive items. A list ends when the sizes of its items add up to `enough`."""
    group: list[T] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= enough:
            yield group
            group, size = [], 0
    if group:
        yield group


def load(
    source: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    *,
    front_end: FrontEndConfig | None = None,
    statistics: Statistics | None = None,
) -> AudioEncoder:
    """Load a model: a run, a checkpoint folder, a .pth file of MSM-MAE or its successor, hub:owner/name, or box.

    Args:
        source: Where the model is. Without it, the model in the box, which melmask brings along, is loaded; so is
            "box", unless the working directory has something of this name.
        device: 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto' takes a GPU if there is one.
        precision: 'fp32'; 'fp32-fast' or 'bf16' trade accuracy for speed (`system.hardware.inference_precision`).
        front_end: The front end to use instead of the checkpoint's. Third-party files do not hold theirs, so 16 kHz is
            assumed; the successor's 32-kHz models need `melmask.FRONT_END_32_KHZ`.
        statistics: The mean and std to use instead of the checkpoint's.

    Raises:
        CheckpointError: the model is missing, damaged, or of an unknown kind.
        ConfigError: the device or the precision is unknown.
    """
    model, card, path = load_any(None if source is None else Path(source))
    card = replace(card, front_end=front_end or card.front_end, statistics=statistics or card.statistics)
    return AudioEncoder(model, card, str(path), device, precision, "given" if statistics else "checkpoint")


def untrained(card: ModelCard, seed: int = 0, device: str = "auto", precision: str = "fp32") -> AudioEncoder:
    """Return the network of `card` with random weights, the baseline that shows what training is worth.

    Its scene vectors are never whitened, as that would take numbers that come from training.
    """
    card = card.without_whitening()
    return AudioEncoder(build_network(card.model, seed), card, f"untrained (seed {seed})", device, precision)
