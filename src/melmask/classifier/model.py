"""A classifier on disk and in use: a checkpoint folder with head.safetensors and classifier.json in it."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.classifier.head import Kind
from melmask.classifier.options import Scene
from melmask.classifier.record import CLASSIFIER
from melmask.classifier.scores import FinetuneReport
from melmask.embedding.choice import SCENES, FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.errors import CheckpointError
from melmask.models.network import Network
from melmask.system.files import output_error, write_json

HEAD, CARD = "head.safetensors", "classifier.json"
FORMAT, VERSION = "melmask-classifier", 1
_WINDOW_MS = 1000.0


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """What classifier.json says of a classifier."""

    labels: list[str]
    """In the order of the outputs."""
    kind: Kind
    scene: Scene = "mean"
    """What the head sees of a clip's frame vectors, as in `AudioEncoder.embed`; event tasks see each frame vector."""
    scores: FinetuneReport | None = None
    """How it did on the validation and test clips."""

    def to_dict(self) -> dict[str, Any]:
        """Return the card as classifier.json holds it."""
        scores = {} if self.scores is None else self.scores.to_dict()
        return {"format": FORMAT, "version": VERSION, **asdict(self), "scores": scores}

    @staticmethod
    def from_dict(facts: dict[str, Any]) -> "ClassifierCard":
        """Read what `to_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: it is something else, or of a newer melmask.
        """
        if facts.pop("format") != FORMAT or int(facts.pop("version")) > VERSION:
            raise KeyError("format")
        scores = facts.pop("scores", {})
        card = ClassifierCard(**facts, scores=FinetuneReport.from_dict(scores) if scores else None)
        known = card.kind in get_args(Kind) and card.scene in SCENES
        if not known or not all(isinstance(name, str) for name in card.labels):
            raise ValueError("its kind, scene or labels are unknown")
        return card


class AudioClassifier:
    """A classifier ready for use; `load_classifier` makes it.

    Attributes: `encoder` (an `AudioEncoder` with the fine-tuned weights), `card`, `sha256` (a digest of everything that
    decides its predictions).
    """

    def __init__(self, encoder: AudioEncoder, card: ClassifierCard, weights: dict[str, torch.Tensor]):
        self.encoder, self.card = encoder, card
        # In float64, so that what the other rows do to a row's rounding does not show in float32.
        arrays = {name: tensor.double().numpy() for name, tensor in weights.items()}
        self._mean, self._std = arrays["mean"], arrays["std"]
        self._weight, self._bias = arrays["linear.weight"], arrays["linear.bias"]
        digest = hashlib.sha256(f"{encoder.sha256} {encoder.precision} {card.labels} {card.kind} {card.scene}".encode())
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        self.sha256 = digest.hexdigest()

    def probabilities(self, vectors: Float[np.ndarray, "rows dims"]) -> Float[np.ndarray, "rows classes"]:
        """Return the probability of each class: a softmax with one label per clip, else a sigmoid for each class.

        Args:
            vectors: Vectors of `encoder`, last layer, pooling 'concat': scene vectors as the card's `scene` says, or
                frame vectors if that is 'mean'.
        """
        logits = ((vectors - self._mean) / self._std) @ self._weight.T + self._bias
        if self.card.kind == "multiclass":
            # The largest logit is taken off, so that no exponential overflows.
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def of_steps(
        self, parts: Iterable[Float[np.ndarray, "_ dims"]], step_ms: float
    ) -> Iterator[Float[np.ndarray, "_ classes"]]:
        """Yield the probabilities of a file's frame vectors, which come part by part.

        A head that also wants the deviation over time sees a second around each step.
        """
        if self.card.scene == "mean":
            yield from map(self.probabilities, parts)
            return
        for vectors in _mean_and_std_around(parts, max(1, round(_WINDOW_MS / 2 / step_ms))):
            yield self.probabilities(vectors)


def save_classifier(
    folder: Path, model: Network, card: ModelCard, head: dict[str, torch.Tensor], classifier: ClassifierCard
) -> None:
    """Write model, head and cards to `folder`; classifier.json comes last and makes it a classifier.

    Raises:
        OutputError: it cannot be written.
    """
    save_checkpoint(folder, model, card)
    try:
        save_file({name: tensor.float().contiguous().cpu() for name, tensor in head.items()}, folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise output_error(folder, error if isinstance(error, OSError) else OSError(str(error))) from error
    write_json(folder / CARD, classifier.to_dict())


def load_classifier(folder: Path, device: str = "auto", precision: str = "fp32") -> AudioClassifier:
    """Read a folder written by `save_classifier`, or the folder of a fine-tuning that holds one.

    Raises:
        CheckpointError: it is missing, damaged, or a model without a head.
    """
    if not (folder / CARD).exists() and (folder / CLASSIFIER / CARD).exists():
        folder = folder / CLASSIFIER
    path = folder / CARD
    try:
        card = ClassifierCard.from_dict(json.loads(path.read_text(encoding="utf-8")))
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
    dims, classes = FeatureChoice(scene=card.scene).scene_size(encoder.card.model), len(card.labels)
    # Files of two classifiers may have been mixed up.
    expected = {"mean": (dims,), "std": (dims,), "linear.weight": (classes, dims), "linear.bias": (classes,)}
    if shapes != expected:
        raise CheckpointError(f"{folder / HEAD} does not fit its encoder and labels; copy the whole folder again")
    return AudioClassifier(encoder, card, weights)


def _mean_and_std_around(
    parts: Iterable[Float[np.ndarray, "_ dims"]], half: int
) -> Iterator[Float[np.ndarray, "_ moments"]]:
    """Yield, part by part, mean and deviation over each step and `half` steps on either side, fewer at a file's ends.

    Only the steps that a later window needs are held, so files of any length fit in memory.
    """
    # `held` are the steps in memory; the windows of the first `begun` of them have been given.
    held, begun = None, 0
    for part in itertools.chain(parts, [None]):
        if part is not None:
            held = part if held is None else np.concatenate([held, part])
        if held is None:
            return
        # The windows of the last steps reach into the next part, unless there is none.
        end = len(held) - (half if part is not None else 0)
        if end <= begun:
            continue
        steps = np.arange(begun, end)
        low, high = np.maximum(steps - half, 0), np.minimum(steps + half + 1, len(held))
        count = (high - low)[:, None]
        # Differences of running sums give the moments of all windows at once.
        sums, squares = (np.pad(np.cumsum(held.astype(np.float64) ** k, axis=0), ((1, 0), (0, 0))) for k in (1, 2))
        mean = (sums[high] - sums[low]) / count
        variance = np.maximum((squares[high] - squares[low]) / count - mean**2, 0)
        yield np.concatenate([mean, np.sqrt(variance)], axis=1).astype(np.float32)
        first = max(0, end - half)
        held, begun = held[first:], end - first
