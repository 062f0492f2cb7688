"""Probes of clips with several labels or none: a classifier for each label, scored by mean average precision."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float

from melmask.downstream.linear_and_knn import PENALTY, check_features, neighbor_votes, standardize
from melmask.downstream.metrics import scene_score
from melmask.downstream.regression import Regressions, fit_regressions
from melmask.errors import InputError
from melmask.labels.splits import Split

_NEIGHBORS = 10
Probabilities = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From training rows, their targets and test rows to the test rows' probabilities (test, classes)."""


def several_labels_probe(
    features: Float[np.ndarray, "rows dims"],
    targets: Bool[np.ndarray, "rows classes"],
    splits: list[Split],
    probabilities: Probabilities,
) -> tuple[float, ...]:
    """Return each split's mean average precision over the labels that its test rows have.

    Features are standardized by the split's training rows. Rows marked valid are neither trained nor tested on.

    Raises:
        InputError: features are not finite, or the test rows of a split have no label.
        MissingExtraError: scikit-learn is not installed.
    """
    check_features(features, len(targets))
    found = []
    for split in splits:
        # A label that no test row has says nothing about the features.
        occurring = targets[split.test].any(axis=0)
        if not occurring.any():
            raise InputError(
                f"no clip that {split.name} tests has a label; ask for fewer folds, or choose another scheme"
            )
        train, test = standardize(features[split.train], features[split.test])
        predicted = probabilities(train, targets[split.train], test)
        found.append(scene_score("mAP", predicted[:, occurring], targets[split.test][:, occurring]))
    return tuple(found)


def logistic_probabilities(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Fit a logistic regression for each label, with the penalty of the linear probe for one label a clip.

    A label that all training rows have, or none, has that probability for all test rows.
    """
    everywhere = targets.all(axis=0)
    probabilities = np.tile(everywhere.astype(np.float64), (len(test), 1))
    # Such a label has no optimum: its bias would grow without end.
    varied = targets.any(axis=0) & ~everywhere
    if varied.any():
        found = fit_regressions(
            Regressions(
                inputs=torch.from_numpy(train),
                targets=torch.from_numpy(targets[:, varied].astype(np.float32)),
                trained=torch.ones(1, len(train), dtype=torch.bool),
                penalties=torch.full((1, train.shape[1]), PENALTY),
                kind="multilabel",
            )
        )
        probabilities[:, varied] = found.logits(torch.from_numpy(test))[0].sigmoid().numpy()
    return probabilities


def neighbor_probabilities(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the share of votes of the ten nearest training rows, as k-NN has them for one label a clip."""
    return neighbor_votes(train, test, targets.astype(float), _NEIGHBORS)
