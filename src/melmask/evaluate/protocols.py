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

import functools
import importlib
import itertools
import random
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from melmask.downstream.probe import neighbor_votes, standardize
from melmask.errors import InputError
from melmask.evaluate.heads import HeadConfig, Rows, TrainedHead, TrainingRules, better, train_head
from melmask.evaluate.judging import Predictions, TaskRows
from melmask.evaluate.options import GRID_POINTS
from melmask.evaluate.parallel import Submit, side_by_side
from melmask.evaluate.tasks import DataSplit, Task
from melmask.system.progress import track

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
    epoch, setting: of the chosen head.  seconds: of training all its heads, one added to the other.  predictions:
    arrays to keep, of the first repeat.
    """

    scores: dict[str, float]
    validation_score: float
    epoch: int
    setting: dict[str, Any]
    repeats: list[dict[str, float]]
    seconds: float
    predictions: Predictions


def grid_of(task: Task, points: int = GRID_POINTS, precision: str = "fp32") -> list[HeadConfig]:
    """The first points of the kit's shuffled grid, with what the task itself says of it, to be computed in `precision`.

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
    kit = HeadConfig(precision=precision)
    return [replace(kit, **{_FIELDS[name]: value for name, value in point.items()}) for point in every_point[:points]]


def run_task(
    data: TaskRows,
    protocol: str,
    grid: list[HeadConfig],
    seed: int,
    done: Mapping[str, Mapping[str, Any]] | None = None,
) -> Generator[tuple[DataSplit, SplitResult], None, None]:
    """Train and test on all splits of a task; arguments as of `run_splits`.

    Args:
        data: The task's vectors.
        protocol: `hear` tries `grid` on the first split only, and its best point on the others.
        grid: Points to choose from.
        seed: Of all chance.
        done: The chosen settings of splits, by name, that are left out.

    Yields:
        A split and its result, in the order of the task's splits.
    """
    splits, done = list(data.task.data_splits), done or {}
    if protocol == "hear":
        first = splits.pop(0)
        setting = done.get(first.name)
        if setting is None:
            (result,) = run_splits(data, [first], protocol, grid, seed)
            yield first, result
            setting = result.setting
        grid = [HeadConfig(**{name: value for name, value in setting.items() if name != "postprocessing"})]
    splits = [split for split in splits if split.name not in done]
    with closing(run_splits(data, splits, protocol, grid, seed)) as results:
        yield from zip(splits, results, strict=True)


def run_splits(
    data: TaskRows, splits: Sequence[DataSplit], protocol: str, candidates: list[HeadConfig], seed: int
) -> Generator[SplitResult, None, None]:
    """Train on each split, choose on its validation part, test; all cores train heads of one split or of several.

    Args:
        data: The task's vectors.
        splits: Which of the task's splits train, validate and test.
        protocol: One of `options.PROTOCOLS`.
        candidates: Points of the grid to choose from on each split; for `hear` and `hear-fixed`.
        seed: Of all chance; `linear` has three of its own instead, and `knn` has none.

    Yields:
        The splits' results, in their order, each as soon as it is there.
    """
    if not splits:
        return
    if protocol == "knn":
        for split in splits:
            start_s = time.perf_counter()
            scores, predictions = data.test(split.test, _votes(data, split), None)
            seconds = time.perf_counter() - start_s
            yield SplitResult(scores, float("nan"), 0, {"neighbors": _NEIGHBORS}, [], seconds, predictions)
        return
    seeds: list[int] = [seed]
    if protocol == "linear":
        candidates, seeds = [_LINEAR], [*LINEAR_SEEDS]
    with side_by_side(len(splits) * len(candidates) * len(seeds), data.device) as (submit, stop):
        begun = [_begin(data, split, protocol, candidates, seeds, submit, stop) for split in splits]
        # A second each, while the heads train; who lacks them is told by the score that needs them.
        for scorer in ("sklearn.metrics", "scipy.sparse.csgraph"):
            with suppress(ImportError):
                importlib.import_module(scorer)
        while begun:
            yield _finish(data, *begun.pop(0))


class _SplitRows:
    """A split's rows, put together when first needed and kept no longer than this object."""

    def __init__(self, data: TaskRows, split: DataSplit, standardized: bool, rounded: bool) -> None:
        self.data, self.split, self.standardized, self.rounded = data, split, standardized, rounded

    @functools.cached_property
    def parts(self) -> list[Rows]:
        """For training, validation and testing."""
        parts = [self.data.rows(names) for names in (self.split.train, self.split.valid, self.split.test)]
        if self.rounded:
            # Once, instead of in each step.
            parts[0] = parts[0]._replace(vectors=parts[0].vectors.bfloat16())
        return _standardized(*parts) if self.standardized else parts


Trained = tuple[TrainedHead, float]
"""A head, and the seconds its training took."""


def _begin(
    data: TaskRows,
    split: DataSplit,
    protocol: str,
    candidates: list[HeadConfig],
    seeds: list[int],
    submit: Submit,
    stop: threading.Event,
) -> tuple[_SplitRows, list[list["Future[Trained]"]]]:
    """The heads of a split, a list for each seed, in training or waiting for a free thread."""
    exact, rounded = protocol == "hear", all(c.precision == "bf16" and c.hidden_layers for c in candidates)
    rows = _SplitRows(data, split, protocol == "linear", rounded)
    judge = data.judge(split.valid, exact)
    rules = TrainingRules(data.maximize, data.multilabel, reshuffle=not exact, nan_stops=exact)

    def train(config: HeadConfig, seed: int) -> Trained:
        start_s = time.perf_counter()
        fit, valid, _ = rows.parts
        head = train_head(fit, valid, config, judge, rules, seed, stop)
        return head, time.perf_counter() - start_s

    def own_seed(seed: int, number: int) -> int:
        """Each point has chance of its own, whichever others are tried."""
        return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])

    # Long ones first, so that no thread waits long for the last: the larger, and those that learn slowly.
    order = sorted(range(len(candidates)), key=lambda n: (-candidates[n].hidden_layers, candidates[n].learning_rate))
    begun: list[list[Future[Trained]]] = []
    for seed in seeds:
        futures = {number: submit(train, candidates[number], own_seed(seed, number)) for number in order}
        begun.append([futures[number] for number in range(len(candidates))])
    return rows, begun


def _finish(data: TaskRows, rows: _SplitRows, training: list[list["Future[Trained]"]]) -> SplitResult:
    """The result of a split, once its heads are trained; the best is taken of each seed's."""
    split = rows.split
    if len(training[0]) > 1:
        # A search takes long; tell how far it is.
        futures = [future for of_seed in training for future in of_seed]
        for _ in track(as_completed(futures), len(futures), f"search on {split.name}", "head", leave=False):
            pass
    trained = [[future.result() for future in futures] for futures in training]
    heads = [_best([head for head, _ in of_seed], data.maximize) for of_seed in trained]
    vectors = rows.parts[2].vectors
    tests = [data.test(split.test, head.probabilities(vectors), head.best.detail) for head in heads]
    scores = {metric: float(np.mean([scores[metric] for scores, _ in tests])) for metric in tests[0][0]}
    head, setting = heads[0], asdict(heads[0].config)
    if head.best.detail is not None:
        setting["postprocessing"] = head.best.detail
    repeats = [scores for scores, _ in tests] if len(tests) > 1 else []
    seconds = sum(seconds for of_seed in trained for _, seconds in of_seed)
    return SplitResult(scores, head.best.score, head.epoch, setting, repeats, seconds, tests[0][1])


def _best(heads: list[TrainedHead], maximize: bool) -> TrainedHead:
    """The head with the best validation; of equals the one tried first."""
    chosen = heads[0]
    for head in heads[1:]:
        if better(head.best.score, chosen.best.score, maximize):
            chosen = head
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
    known, asked = standardize(train.vectors.cpu().numpy(), test.vectors.cpu().numpy())
    return neighbor_votes(known, asked, train.targets.cpu().numpy(), _NEIGHBORS).astype(np.float32)
