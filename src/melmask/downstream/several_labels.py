"""Probes of clips with several labels or none: a classifier for each label, scored by mean average precision."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from melmask.downstream.linear_and_knn import check_features, neighbor_votes, standardize
from melmask.downstream.metrics import scene_score
from melmask.errors import InputError
from melmask.labels.splits import Split
from melmask.system.extras import require

_NEIGHBORS = 10
_GRADIENT_TOLERANCE, _MAX_ITERATIONS = 1e-5, 2000
"""L-BFGS stops at the gradient of the mean loss. With scikit-learn's own 1e-4 and 960 correlated features, the fit was
a point of accuracy away from the optimum."""
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
    """Fit a logistic regression (C = 1) for each label, as the linear probe does for one label a clip.

    A label that all training rows have, or none, has that probability for all test rows.
    """
    columns = []
    for own in targets.T:
        if own.all() or not own.any():
            columns.append(np.full(len(test), float(own.all())))
        else:
            columns.append(logistic_fit(train, own).predict_proba(test)[:, 1])
    return np.stack(columns, axis=1)


def neighbor_probabilities(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the share of votes of the ten nearest training rows, as k-NN has them for one label a clip."""
    return neighbor_votes(train, test, targets.astype(float), _NEIGHBORS)


def logistic_fit(train: Float[np.ndarray, "train dims"], labels: Shaped[np.ndarray, " train"]) -> Any:
    """Return scikit-learn's multinomial logistic regression (C = 1), fitted to standardized rows.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    require("eval")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, tol=_GRADIENT_TOLERANCE, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        # A fit that reaches the limit of iterations is good enough: its predictions stopped changing long before.
        warnings.simplefilter("ignore", category=ConvergenceWarning)
        # Scikit-learn suspects regression targets where each row has a class of its own. Few labels look like that.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        model.fit(train, labels)
    return model
