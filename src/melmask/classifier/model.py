"""A fine-tuned encoder and its head: a checkpoint folder with head.safetensors and classifier.json in it."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.embedding.choice import SCENES
from melmask.embedding.encoder import AudioEncoder, load
from melmask.errors import CheckpointError
from melmask.models.network import Network
from melmask.system.files import output_error, write_json

HEAD, CARD = "head.safetensors", "classifier.json"
FORMAT, VERSION = "melmask-classifier", 1
_WINDOW_MS = 1000.0
ClassifierKind = Literal["multiclass", "multilabel", "event"]


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """labels: in the order of the outputs.  kind: one label a clip, any number of them, or events with times.

    scene: what of a clip's frame vectors the head sees, as in `AudioEncoder.embed`; event tasks see each frame vector.
    scores: what validation and test gave (free-form).
    """

    labels: list[str]
    kind: ClassifierKind
    scene: Literal["mean", "mean+std"] = "mean"
    scores: dict = field(default_factory=dict)


class AudioClassifier:
    """A classifier ready for use; made by `load_classifier`.

    Attributes: `encoder` (an `AudioEncoder` with the fine-tuned weights), `card`, `sha256` (of all of it).
    """

    def __init__(self, encoder: AudioEncoder, card: ClassifierCard, weights: dict[str, torch.Tensor]):
        self.encoder, self.card = encoder, card
        arrays = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self._mean, self._std = arrays["mean"], arrays["std"]
        self._weight, self._bias = arrays["linear.weight"], arrays["linear.bias"]
        digest = hashlib.sha256(f"{encoder.sha256} {encoder.precision} {card.labels} {card.kind} {card.scene}".encode())
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        self.sha256 = digest.hexdigest()

    def probabilities(self, vectors: Float[np.ndarray, "rows dims"]) -> Float[np.ndarray, "rows classes"]:
        """Of vectors of `encoder` (pooling 'concat', last layer): softmax, or a sigmoid each.

        Args:
            vectors: Scene vectors of the card's kind, or frame vectors if the head knows means alone.
        """
        logits = ((vectors - self._mean) / self._std) @ self._weight.T + self._bias
        if self.card.kind == "multiclass":
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def of_steps(
        self, parts: Iterable[Float[np.ndarray, "_ dims"]], step_ms: float
    ) -> Iterator[Float[np.ndarray, "_ classes"]]:
        """Probabilities of a file's frame vectors, which come part by part.

        A head that wants the deviation over time, too, sees a second around each step.
        """
        if self.card.scene == "mean":
            yield from map(self.probabilities, parts)
            return
        for vectors in _mean_and_std_around(parts, max(1, round(_WINDOW_MS / 2 / step_ms))):
            yield self.probabilities(vectors)


def save_classifier(
    folder: Path, model: Network, card: ModelCard, head: dict[str, torch.Tensor], labels: ClassifierCard
) -> None:
    """Write all of it to `folder`; classifier.json comes last and makes it a classifier.

    Raises:
        OutputError: where it cannot be written.
    """
    save_checkpoint(folder, model, card)
    try:
        save_file({name: tensor.float().contiguous().cpu() for name, tensor in head.items()}, folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise output_error(folder, error if isinstance(error, OSError) else OSError(str(error))) from error
    write_json(folder / CARD, {"format": FORMAT, "version": VERSION, **asdict(labels)})


def load_classifier(folder: Path, device: str = "auto", precision: str = "fp32") -> AudioClassifier:
    """Read a folder written by `save_classifier`, or the folder of a fine-tuning that holds one.

    Raises:
        CheckpointError: it is not there, damaged, or a model without a head.
    """
    if not (folder / CARD).exists() and (folder / "classifier" / CARD).exists():
        folder = folder / "classifier"
    path = folder / CARD
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if facts.pop("format") != FORMAT or int(facts.pop("version")) > VERSION:
            raise KeyError("format")
        card = ClassifierCard(**facts)
        known = card.kind in get_args(ClassifierKind) and card.scene in SCENES
        if not known or not all(isinstance(name, str) for name in card.labels):
            raise ValueError("its kind, scene or labels are unknown")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no classifier ({CARD} is missing); make one with melmask finetune"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or of a newer melmask ({error}); copy it again") from error
    encoder = load(folder, device, precision)
    try:
        weights = load_file(folder / HEAD)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / HEAD} is missing or damaged; copy the whole folder again") from error
    dims, classes = encoder.embedding_size() * (2 if card.scene == "mean+std" else 1), len(card.labels)
    expected = {"mean": (dims,), "std": (dims,), "linear.weight": (classes, dims), "linear.bias": (classes,)}
    if shapes != expected:
        raise CheckpointError(f"{folder / HEAD} does not fit its encoder and labels; copy the whole folder again")
    return AudioClassifier(encoder, card, weights)


def _mean_and_std_around(
    parts: Iterable[Float[np.ndarray, "_ dims"]], half: int
) -> Iterator[Float[np.ndarray, "_ moments"]]:
    """Mean and deviation of each step and `half` on either side of it, fewer at a file's ends, part by part."""
    held, begun = None, 0
    for part in itertools.chain(parts, [None]):
        if part is not None:
            held = part if held is None else np.concatenate([held, part])
        if held is None:
            return
        # What comes later may still be around the last ones.
        behind = len(held) - (half if part is not None else 0)
        if behind <= begun:
            continue
        steps = np.arange(begun, behind)
        low, high = np.maximum(steps - half, 0), np.minimum(steps + half + 1, len(held))
        count = (high - low)[:, None]
        sums, squares = (np.pad(np.cumsum(held.astype(np.float64) ** k, axis=0), ((1, 0), (0, 0))) for k in (1, 2))
        mean = (sums[high] - sums[low]) / count
        variance = np.maximum((squares[high] - squares[low]) / count - mean**2, 0)
        yield np.concatenate([mean, np.sqrt(variance)], axis=1).astype(np.float32)
        first = max(0, behind - half)
        held, begun = held[first:], behind - first


def iterate_labels(card: ClassifierCard, row: np.ndarray, threshold: float) -> Iterator[tuple[str, float]]:
    """Labels of one row of probabilities, the likeliest first: the best one, or all above the threshold."""
    order: Sequence[int] = np.argsort(-row, kind="stable").tolist()
    for rank, index in enumerate(order):
        if (rank == 0) if card.kind == "multiclass" else row[index] > threshold:
            yield card.labels[index], float(row[index])
