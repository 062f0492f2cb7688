"""A fine-tuned encoder and its head: a checkpoint folder with head.safetensors and classifier.json in it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.encoder import AudioEncoder, load
from melmask.errors import CheckpointError
from melmask.files import output_error, write_json
from melmask.models.mae import MaskedAutoencoder

HEAD, CARD = "head.safetensors", "classifier.json"
FORMAT, VERSION = "melmask-classifier", 1
ClassifierKind = Literal["multiclass", "multilabel", "event"]


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """labels: in the order of the outputs.  kind: one label a clip, any number of them, or events with times.

    scores: what validation and test gave (free-form).
    """

    labels: list[str]
    kind: ClassifierKind
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
        digest = hashlib.sha256(f"{encoder.sha256} {encoder.precision} {card.labels} {card.kind}".encode())
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        self.sha256 = digest.hexdigest()

    def probabilities(self, vectors: Float[np.ndarray, "rows dims"]) -> Float[np.ndarray, "rows classes"]:
        """Of scene or frame vectors of `encoder` (pooling 'concat', last layer): softmax, or a sigmoid each."""
        logits = ((vectors - self._mean) / self._std) @ self._weight.T + self._bias
        if self.card.kind == "multiclass":
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)


def save_classifier(
    folder: Path, model: MaskedAutoencoder, card: ModelCard, head: dict[str, torch.Tensor], labels: ClassifierCard
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
        if facts["kind"] not in get_args(ClassifierKind) or not all(isinstance(name, str) for name in facts["labels"]):
            raise ValueError("its kind or labels are unknown")
        card = ClassifierCard(**facts)
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
    dims, classes = encoder.embedding_size(), len(card.labels)
    expected = {"mean": (dims,), "std": (dims,), "linear.weight": (classes, dims), "linear.bias": (classes,)}
    if shapes != expected:
        raise CheckpointError(f"{folder / HEAD} does not fit its encoder and labels; copy the whole folder again")
    return AudioClassifier(encoder, card, weights)


def iterate_labels(card: ClassifierCard, row: np.ndarray, threshold: float) -> Iterator[tuple[str, float]]:
    """Labels of one row of probabilities, the likeliest first: the best one, or all above the threshold."""
    order: Sequence[int] = np.argsort(-row, kind="stable").tolist()
    for rank, index in enumerate(order):
        if (rank == 0) if card.kind == "multiclass" else row[index] > threshold:
            yield card.labels[index], float(row[index])
