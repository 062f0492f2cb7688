"""The downstream protocols: what is trained on a task's frozen vectors, chosen on its validation split, and tested.

hear         hear-eval-kit 2021.1.3, quirks included: a grid of networks is searched on the first split only and
its best point used for the others; the order of the rows never changes; a score that is not a number
ends training; of two post-processings the one with the larger score is taken, even of an error rate
hear-fixed   the same grid without the quirks: searched on each split, reshuffled each epoch, a score that is not a
number counted as the worst, post-processings compared in the right direction
linear       one linear layer on standardised vectors, as the MSM-MAE paper's group reports it (EVAR): Adam, rate
3e-4, batch 200, at most 200 epochs, patience 20; three seeds
knn          the ten nearest training vectors vote; nothing is trained (scene tasks)
"""

import itertools
import random
import time
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch

from melmask.errors import InputError
from melmask.evaluate.heads import HeadConfig, Rows, StopRules, TrainedHead, better, train_head
from melmask.evaluate.judging import Predictions, TaskRows
from melmask.evaluate.probe import neighbor_votes, standardize
from melmask.evaluate.tasks import DataSplit, Task

PROTOCOLS = ("hear", "hear-fixed", "linear", "knn")
GRID_POINTS = 8
LINEAR_SEEDS = (42, 43, 44)
_GRID_SEED = 42
_NEIGHBORS = 10
_GRID: dict[str, list[Any]] = {
    "hidden_layers": [1, 2],
    "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
    "initialization": ["xavier_uniform", "xavier_normal"],
}
# The kit's names of a head's settings, and ours.
_FIELDS = {
    "hidden_layers": "hidden_layers",
    "hidden_dim": "hidden_dim",
    "dropout": "dropout",
    "lr": "learning_rate",
    "initialization": "initialization",
    "batch_size": "batch_size",
    "max_epochs": "max_epochs",
    "check_val_every_n_epoch": "validate_every_epochs",
    "patience": "patience",
}
_LINEAR = HeadConfig(
    hidden_layers=0, learning_rate=3e-4, batch_size=200, max_epochs=200, validate_every_epochs=1, patience=20
)


class SplitResult(NamedTuple):
    """What one split gave.

    scores: metric -> test score, NaN where undefined, the mean of `repeats` if there are several.  validation_score,
    epoch, setting: of the chosen head.  predictions: arrays to keep, of the first repeat.
    """

    scores: dict[str, float]
    validation_score: float
    epoch: int
    setting: dict[str, Any]
    repeats: list[dict[str, float]]
    seconds: float
    predictions: Predictions


def grid_of(task: Task, points: int = GRID_POINTS) -> list[HeadConfig]:
    """The first points of the kit's shuffled grid, with what the task itself says of it.

    Raises:
        InputError: the task's metadata ask for something this protocol does not have.
    """
    grid = {**_GRID, **task.parameter_grid}
    for name in grid:
        if name not in _FIELDS:
            raise InputError(f"{task.title}: task_specific_param_grid has {name!r}; known are {', '.join(_FIELDS)}")
    # scikit-learn's ParameterGrid: keys in alphabetical order, the last one changing fastest.
    names = sorted(grid)
    every_point = [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid[n] for n in names))]
    random.Random(_GRID_SEED).shuffle(every_point)
    return [HeadConfig(**{_FIELDS[name]: value for name, value in point.items()}) for point in every_point[:points]]


def run_split(data: TaskRows, split: DataSplit, protocol: str, candidates: list[HeadConfig], seed: int) -> SplitResult:
    """Train on one split, choose on its validation part, test.

    Args:
        data: The task's vectors.
        split: Which of the task's splits train, validate and test.
        protocol: One of `PROTOCOLS`.
        candidates: Points of the grid to choose from; for `hear` and `hear-fixed`.
        seed: Of all chance; `linear` has three of its own instead, and `knn` has none.
    """
    start = time.perf_counter()
    if protocol == "knn":
        votes = _votes(data, split)
        scores, predictions = data.test(split.test, votes, None)
        return SplitResult(scores, float("nan"), 0, {"neighbors": _NEIGHBORS}, [], _since(start), predictions)
    train, valid, test = data.rows(split.train), data.rows(split.valid), data.rows(split.test)
    seeds = [seed]
    if protocol == "linear":
        train, valid, test = _standardized(train, valid, test)
        candidates, seeds = [_LINEAR], list(LINEAR_SEEDS)
    heads = [_best_head(data, split, train, valid, candidates, protocol == "hear", number) for number in seeds]
    tests = [data.test(split.test, head.probabilities(test.vectors), head.best.detail) for head in heads]
    scores = {metric: float(np.mean([scores[metric] for scores, _ in tests])) for metric in tests[0][0]}
    head, setting = heads[0], asdict(heads[0].config)
    if head.best.detail is not None:
        setting["postprocessing"] = head.best.detail
    repeats = [scores for scores, _ in tests] if len(tests) > 1 else []
    return SplitResult(scores, head.best.score, head.epoch, setting, repeats, _since(start), tests[0][1])


def _best_head(
    data: TaskRows, split: DataSplit, train: Rows, valid: Rows, candidates: list[HeadConfig], exact: bool, seed: int
) -> TrainedHead:
    """The head with the best validation; of equals the one tried first."""
    rules = StopRules(data.maximize, reshuffle=not exact, nan_stops=exact)
    judge = data.judge(split.valid, exact)
    chosen: TrainedHead | None = None
    for number, config in enumerate(candidates):
        # Each point has chance of its own, whichever others are tried.
        own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        head = train_head(train, valid, config, data.multilabel, judge, rules, own_seed)
        if chosen is None or better(head.best.score, chosen.best.score, data.maximize):
            chosen = head
    assert chosen is not None
    return chosen


def _standardized(train: Rows, *others: Rows) -> list[Rows]:
    arrays = standardize(*(rows.vectors.cpu().numpy() for rows in (train, *others)))
    device = train.vectors.device
    return [
        Rows(torch.from_numpy(array).to(device), rows.targets)
        for array, rows in zip(arrays, (train, *others), strict=True)
    ]


def _votes(data: TaskRows, split: DataSplit) -> np.ndarray:
    """The share of the votes each class gets, (test rows, classes) float32."""
    train, test = data.rows(split.train), data.rows(split.test)
    vectors = standardize(train.vectors.cpu().numpy(), test.vectors.cpu().numpy())
    return neighbor_votes(*vectors, train.targets.cpu().numpy(), _NEIGHBORS).astype(np.float32)


def _since(start: float) -> float:
    return time.perf_counter() - start
