"""A classifier: its scores, its card, its use, and its files.

On disk it is a checkpoint folder that also holds head.safetensors and classifier.json (docs/formats.md).
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from melmask.checkpoint.folder import WEIGHTS, ModelCard, save_checkpoint
from melmask.checkpoint.weights import read_tensors, shapes_in, write_tensors
from melmask.classifier.options import Scene
from melmask.downstream.metrics import scene_score
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder, load
from melmask.errors import CheckpointError, InputError
from melmask.labels.options import Kind
from melmask.models.network import Network, finite_weights
from melmask.system.files import output_error, write_json
from melmask.system.finite import check_finite
from melmask.system.reading import check_version, read_json_object, reason_of

CLASSIFIER, HEAD, CARD = "classifier", "head.safetensors", "classifier.json"
FORMAT, VERSION = "melmask-classifier", 1
_WINDOW_MS = 1000.0
"""A head that was trained on means and deviations of clips sees this long a window around a step."""


Metric = Literal["accuracy", "mAP"]

_PER_CLASS: dict[Metric, str] = {"accuracy": "recall", "mAP": "average_precision"}
"""What the score of a single class is called in classifier.json."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one part (validation or test), between 0 and 1."""

    metric: Metric
    """Accuracy with one label per clip, else mean average precision over the classes."""
    value: float | None
    """None if no class occurs in the part."""
    per_class: Mapping[str, float]
    """Recall or average precision of each class that occurs."""
    clips: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as classifier.json holds them."""
        return {self.metric: self.value, _PER_CLASS[self.metric]: dict(self.per_class), "clips": self.clips}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Scores":
        """Read what `to_dict` returned; raise KeyError, TypeError or ValueError if it is something else."""
        metric: Metric = "accuracy" if "accuracy" in values else "mAP"
        per_class, clips = dict(values[_PER_CLASS[metric]]), values["clips"]
        for score in (values[metric], *per_class.values()):
            if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
                raise ValueError("a score is no finite number")
        if type(clips) is not int or clips < 0:
            raise ValueError("the number of clips is none")
        return Scores(metric=metric, value=values[metric], per_class=per_class, clips=clips)


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """What came of a fine-tuning."""

    epoch: int
    """The best epoch, whose weights were kept; 0 is the linear probe."""
    unreadable: int
    """Number of files that could not be read."""
    valid: Scores
    test: Scores | None = None
    """None if there is no readable test clip."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as classifier.json holds it."""
        test = {} if self.test is None else {"test": self.test.to_dict()}
        return {"epoch": self.epoch, "unreadable": self.unreadable, "valid": self.valid.to_dict(), **test}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "FinetuneReport":
        """Read what `to_dict` returned; raise KeyError or TypeError if a key is missing."""
        scores = {part: Scores.from_dict(values[part]) for part in ("valid", "test") if part in values}
        return FinetuneReport(epoch=values["epoch"], unreadable=values["unreadable"], **scores)


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """What classifier.json says of a classifier."""

    labels: list[str]
    """In the order of the outputs."""
    kind: Kind
    scene: Scene = "mean"
    """What the head sees of a clip's frame vectors, as in `AudioEncoder.embed`; event tasks see each frame vector."""
    scores: FinetuneReport | None = None
    """How well it does on the validation and test clips."""

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
        check_version(facts, FORMAT, VERSION)
        scores = facts.pop("scores", {})
        card = ClassifierCard(**facts, scores=FinetuneReport.from_dict(scores) if scores else None)
        known = card.kind in get_args(Kind) and card.scene in get_args(Scene)
        listed = isinstance(card.labels, list) and card.labels and all(isinstance(name, str) for name in card.labels)
        if not known or not listed or len(set(card.labels)) < len(card.labels):
            raise ValueError("its kind, scene or labels are unknown")
        # A label that no file can hold would end every prediction.
        "".join(card.labels).encode()
        return card


class AudioClassifier:
    """A classifier ready for use; `load_classifier` returns one.

    Attributes:
        encoder: The `AudioEncoder` with the fine-tuned weights.
        card: What classifier.json says.
        sha256: A digest of everything that affects its predictions.
    """

    def __init__(self, encoder: AudioEncoder, card: ClassifierCard, weights: dict[str, torch.Tensor]):
        self.encoder, self.card = encoder, card
        # A matrix product may round a row differently beside other rows. In float64 that does not reach the float32
        # result, so a file's prediction does not depend on the other files.
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

        Raises:
            NotFiniteError: they are NaN.
        """
        # What is not finite is refused below, and an exponential that overflows gives the probability 0, as it should.
        with np.errstate(all="ignore"):
            logits = ((vectors - self._mean) / self._std) @ self._weight.T + self._bias
            if self.card.kind == "multiclass":
                # The largest logit is subtracted, so that no exponential overflows.
                exponentials = np.exp(logits - logits.max(1, keepdims=True))
                probabilities = exponentials / exponentials.sum(1, keepdims=True)
            else:
                probabilities = 1 / (1 + np.exp(-logits))
        # An infinite logit would give a probability of 0 or 1.
        check_finite(logits + probabilities, "the prediction")
        return probabilities.astype(np.float32)

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
        # It is on the disk before what vouches for it.
        write_tensors(folder / HEAD, {name: tensor.float() for name, tensor in head.items()}, like=folder / WEIGHTS)
    except OSError as error:
        raise output_error(folder, error) from error
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
        card = ClassifierCard.from_dict(read_json_object(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} holds no classifier ({CARD} is missing); make one with melmask finetune"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or of a newer melmask ({reason_of(error)}); copy it again") from error
    encoder = load(folder, device, precision)
    try:
        shapes = shapes_in(folder / HEAD)
    except OSError as error:
        raise CheckpointError(
            f"{folder / HEAD} is missing or damaged ({reason_of(error)}); copy the whole folder again"
        ) from error
    dims, classes = FeatureChoice(scene=card.scene).scene_size(encoder.card.model), len(card.labels)
    # Files of two classifiers may have been mixed up.
    expected = {"mean": (dims,), "std": (dims,), "linear.weight": (classes, dims), "linear.bias": (classes,)}
    if shapes != expected:
        raise CheckpointError(f"{folder / HEAD} does not fit its encoder and labels; copy the whole folder again")
    weights = finite_weights(read_tensors(folder / HEAD), folder / HEAD)
    if not (weights["std"] > 0).all():
        raise CheckpointError(f"{folder / HEAD} has standard deviations of 0 or less; copy the whole folder again")
    return AudioClassifier(encoder, card, weights)


def _mean_and_std_around(
    parts: Iterable[Float[np.ndarray, "_ dims"]], half: int
) -> Iterator[Float[np.ndarray, "_ moments"]]:
    """Yield, part by part, the mean and deviation over each step and `half` steps on either side of it.

    There are fewer steps at the ends of a file. Only the steps that a later window needs are kept, so files of any
    length fit in memory.
    """
    # `held` has the steps in memory. The windows around its first `begun` steps have been yielded already.
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


def metric_of(kind: Kind) -> Metric:
    """Return what the classifiers of a kind are scored by."""
    return "accuracy" if kind == "multiclass" else "mAP"


def validation_score(
    kind: Kind, probabilities: Float[np.ndarray, "rows classes"], targets: Float[np.ndarray, "rows classes"]
) -> float:
    """Return the score that decides the best epoch; larger is better.

    Raises:
        InputError: no row has a label, so there is no mean average precision.
    """
    found = targets > 0.5
    if kind == "multiclass":
        return scene_score("top1_acc", probabilities, found)
    # A class that does not occur among these clips says nothing about the classifier.
    occurring = found.any(0)
    if not occurring.any():
        raise InputError("nothing to validate on has a label; mark clips with labels `valid` in a column `split`")
    return scene_score("mAP", probabilities[:, occurring], found[:, occurring])


def scores_of(
    kind: Kind,
    classes: Sequence[str],
    clips: int,
    probabilities: Float[np.ndarray, "rows classes"],
    targets: Float[np.ndarray, "rows classes"],
) -> Scores:
    """Score the predictions for `clips` clips; only classes that occur have a score of their own."""
    found = targets > 0.5
    per_class = {}
    for number, label in enumerate(classes):
        own = found[:, number]
        if kind == "multiclass" and own.any():
            per_class[label] = float((probabilities[own].argmax(1) == number).mean())
        elif own.any():
            per_class[label] = scene_score("mAP", probabilities[:, [number]], found[:, [number]])
    value = validation_score(kind, probabilities, targets) if per_class else None
    return Scores(metric=metric_of(kind), value=value, per_class=per_class, clips=clips)
