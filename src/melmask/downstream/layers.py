"""Score each layer of a model by the probe: where in the network is what labels ask for?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from melmask.downstream.baselines import LOGMEL, PRETRAINED, features_of_task
from melmask.downstream.linear_and_knn import ProbeScore, probe_features
from melmask.downstream.options import ProbeOptions
from melmask.downstream.probe import read_tables
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.reading import read_as
from melmask.errors import InputError
from melmask.labels.splits import make_splits


@dataclass(frozen=True)
class LayerScores:
    """The accuracies of a task's probes on the features after each layer.

    scores: by layer, from 1 on, and by classifier; before the final norm.  baseline: by classifier, those of the mean
    and the standard deviation of each mel band.  clips, classes, splits: what they were measured on.
    """

    name: str
    scores: Mapping[int, Mapping[str, ProbeScore]]
    baseline: Mapping[str, ProbeScore]
    clips: int
    classes: int
    splits: int

    def rows(self) -> list[list[object]]:
        """Return the header and the rows of a table: representation, classifier, accuracy and its interval."""
        named = {"log-mel": self.baseline, **{f"layer {layer}": of for layer, of in self.scores.items()}}
        header: list[object] = ["representation", "classifier", "accuracy", "interval_low", "interval_high"]
        return [
            header,
            *(
                [name, classifier, score.mean, *score.interval_95]
                for name, of in named.items()
                for classifier, score in of.items()
            ),
        ]


def probe_layers(model: AudioEncoder, labels: str | Path, options: ProbeOptions = ProbeOptions()) -> LayerScores:
    """Probe the features after each block of a model on a table of labeled files; all are computed in one pass.

    Args:
        model: A loaded model.
        labels: A table with one label for each clip, as `melmask probe` takes it.
        options: As there. The layers of its choice count for nothing.

    Raises:
        InputError: the table cannot be used, has several labels for a clip, or none of its files can be read.
        ConfigError: the model has no such pooling.
        MissingExtraError: scikit-learn is not installed, and the table has neither folds nor splits.
    """
    ((name, table),) = read_tables([Path(labels)], options).items()
    make_splits(table, options.scheme, options.seed)
    model = read_as(model, options.reading)
    layers = range(1, model.card.model.depth + 1)
    options = replace(options, choice=options.choice.changed(layer=layers))
    task = features_of_task(model, name, table, options, with_untrained=False)
    parts = _by_layer(task.features[PRETRAINED], layers, options, model)
    if task.table.label_sets is not None:
        raise InputError(f"{labels} has several labels for a clip; show layers takes a table with one each")
    splits = make_splits(task.table, options.scheme, options.seed)
    found = probe_features({LOGMEL: task.features[LOGMEL], **parts}, task.table.label_indices, splits, f"fit {name}")
    return LayerScores(
        name=name,
        scores={layer: found[str(layer)] for layer in layers},
        baseline=found[LOGMEL],
        clips=len(task.table.label_indices),
        classes=len(task.table.class_names),
        splits=len(splits),
    )


def _by_layer(
    features: np.ndarray, layers: Sequence[int], options: ProbeOptions, model: AudioEncoder
) -> dict[str, np.ndarray]:
    """Divide scene vectors (clips, D) of all layers side by side into those of each layer, by its number as a text."""
    choice = options.choice.of_model(model.card)
    # The scene is a mean, or a mean and a standard deviation, of frame vectors that hold the layers side by side.
    parts = features.reshape(len(features), choice.scene_parts, len(layers), -1)
    return {str(layer): parts[:, :, number].reshape(len(features), -1) for number, layer in enumerate(layers)}
