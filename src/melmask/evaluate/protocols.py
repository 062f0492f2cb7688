"""The downstream protocols: what is trained on a task's frozen vectors, chosen on its validation split, and tested.

hear         hear-eval-kit 2021.1.3 with its quirks. A grid of networks is searched on the first split only, and its
             best point is used for the others. The order of the rows never changes. A score that is not a number ends
             training. Of two post-processings the one with the larger score is taken, even of an error rate.
hear-fixed   The same grid without the quirks. It is searched on each split, and the rows are reshuffled each epoch. A
             score that is not a number counts as the worst. Post-processings are compared in the right direction.
linear       One linear layer on standardized vectors, as the MSM-MAE paper's group reports it (EVAR): Adam, rate 3e-4,
             batch 200, at most 200 epochs, patience 20; three seeds.
knn          The ten nearest training vectors vote. Nothing is trained (scene tasks).
"""

import functools
import importlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from melmask.downstream.probe import neighbor_votes, standardize
from melmask.errors import InputError
from melmask.evaluate.heads import HeadConfig, Rows, TrainedHead, TrainingRules, better, train_head
from melmask.evaluate.judging import Predictions, TaskRows
from melmask.evaluate.options import GRID_POINTS
from melmask.evaluate.records import Setting
from melmask.evaluate.tasks import DataSplit, Task
from melmask.system.hardware import exact_float32_products, keep_freed_memory
from melmask.system.progress import track

LINEAR_SEEDS = (42, 43, 44)
_GRID_SEED = 42
_NEIGHBORS = 10
_GRID: dict[str, list[Any]] = {
    "hidden_layers": [1, 2],
    "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
    "initialization": ["xavier_uniform", "xavier_normal"],
}
_KIT_NAMES = (
    *("hidden_layers", "hidden_dim", "dropout", "lr", "initialization", "batch_size", "max_epochs"),
    *("check_val_every_n_epoch", "patience"),
)
# A head's settings have the kit's names but for these.
_OUR_NAMES = {"lr": "learning_rate", "check_val_every_n_epoch": "validate_every_epochs"}
_LINEAR = HeadConfig(
    hidden_layers=0, learning_rate=3e-4, batch_size=200, max_epochs=200, validate_every_epochs=1, patience=20
)


class SplitResult(NamedTuple):
    """What one split gave.

    scores: metric -> test score, NaN where undefined, the mean of `repeats` if there are several.  validation_score,
    epoch, setting: of the chosen head.  seconds: the training times of all its heads, added up.  predictions: arrays to
    keep, of the first repeat.
    """

    scores: dict[str, float]
    validation_score: float
    epoch: int
    setting: Setting
    repeats: list[dict[str, float]]
    seconds: float
    predictions: Predictions


def grid_of(task: Task, points: int = GRID_POINTS, precision: str = "fp32") -> list[HeadConfig]:
    """Return the first points of the kit's shuffled grid, with the task's own values, to be computed in `precision`.

    Raises:
        InputError: the task's metadata ask for something this protocol does not have.
    """
    grid = {**_GRID, **task.parameter_grid}
    for name in grid:
        if name not in _KIT_NAMES:
            raise InputError(f"{task.title}: task_specific_param_grid has {name!r}; known are {', '.join(_KIT_NAMES)}")
    # scikit-learn's ParameterGrid: keys in alphabetical order, the last one changing fastest.
    names = sorted(grid)
    every_point = [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid[n] for n in names))]
    random.Random(_GRID_SEED).shuffle(every_point)
    kit = HeadConfig(precision=precision)
    ours = [{_OUR_NAMES.get(name, name): value for name, value in point.items()} for point in every_point[:points]]
    return [replace(kit, **settings) for settings in ours]


def run_task(
    data: TaskRows,
    protocol: str,
    grid: list[HeadConfig],
    seed: int,
    done: Mapping[str, Setting] | None = None,
) -> Generator[tuple[DataSplit, SplitResult], None, None]:
    """Train and test on all splits of a task; arguments as of `run_splits`.

    Args:
        data: The task's vectors.
        protocol: `hear` tries `grid` on the first split only, and its best point on the others.
        grid: Points to choose from.
        seed: Of all chance.
        done: The chosen settings of the splits, by name, that are skipped.

    Yields:
        A split and its result, in the order of the task's splits.
    """
    splits, done = list(data.task.data_splits), done or {}
    if protocol == "hear":
        first = splits.pop(0)
        # A search that an earlier call finished is not repeated: the later splits need its choice alone.
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
        yield from (_vote(data, split) for split in splits)
        return
    seeds = [seed]
    if protocol == "linear":
        candidates, seeds = [_LINEAR], [*LINEAR_SEEDS]
    with side_by_side(len(splits) * len(candidates) * len(seeds), data.device) as (submit, stop):
        searches = [_Search(data, split, protocol, candidates, seeds) for split in splits]
        for search in searches:
            search.begin(submit, stop)
        # These take a second each to import, which the training hides. A score that needs a missing one reports it.
        for scorer in ("sklearn.metrics", "scipy.sparse.csgraph"):
            with suppress(ImportError):
                importlib.import_module(scorer)
        while searches:
            # A search that is over is dropped at once, and its vectors with it.
            yield searches.pop(0).result()


def _vote(data: TaskRows, split: DataSplit) -> SplitResult:
    """Let the nearest training rows of each test row vote; a class's probability is its share of the votes."""
    start_s = time.perf_counter()
    train, test = data.rows(split.train), data.rows(split.test)
    known, asked = standardize(train.vectors.cpu().numpy(), test.vectors.cpu().numpy())
    shares = neighbor_votes(known, asked, train.targets.cpu().numpy(), _NEIGHBORS).astype(np.float32)
    scores, predictions = data.test(split.test, shares, None)
    seconds = time.perf_counter() - start_s
    return SplitResult(scores, float("nan"), 0, {"neighbors": _NEIGHBORS}, [], seconds, predictions)


Trained = tuple[TrainedHead, float]
"""A head, and the seconds its training took."""
Submit = Callable[..., "Future[Trained]"]


class _Search:
    """The heads of one split: each candidate with each seed, in training or waiting for a free thread."""

    def __init__(
        self, data: TaskRows, split: DataSplit, protocol: str, candidates: list[HeadConfig], seeds: list[int]
    ) -> None:
        self.data, self.split, self.candidates, self.seeds = data, split, candidates, seeds
        exact = protocol == "hear"
        self.standardized = protocol == "linear"
        self.judge = data.judge(split.valid, exact)
        self.rules = TrainingRules(data.maximize, data.multilabel, reshuffle=not exact, nan_stops=exact)
        self.futures: list[list[Future[Trained]]] = []

    @functools.cached_property
    def rows(self) -> list[Rows]:
        """The rows for training, validation and testing, put together when the first thread needs them."""
        rows = [self.data.rows(names) for names in (self.split.train, self.split.valid, self.split.test)]
        if all(candidate.precision == "bf16" and candidate.hidden_layers for candidate in self.candidates):
            # Rounded once, instead of in each step.
            rows[0] = rows[0]._replace(vectors=rows[0].vectors.bfloat16())
        if self.standardized:
            arrays = standardize(*(part.vectors.cpu().numpy() for part in rows))
            vectors = [torch.from_numpy(array).to(self.data.device) for array in arrays]
            rows = [Rows(own, part.targets) for own, part in zip(vectors, rows, strict=True)]
        return rows

    def begin(self, submit: Submit, stop: threading.Event) -> None:
        """Submit the heads, a list for each seed, each list in the order of the candidates."""

        def train(number: int, seed: int) -> Trained:
            start_s = time.perf_counter()
            fit, valid, _ = self.rows
            # Each point has a seed of its own, which does not depend on the other points that are tried.
            own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            head = train_head(fit, valid, self.candidates[number], self.judge, self.rules, own_seed, stop)
            return head, time.perf_counter() - start_s

        # The large networks and those that learn slowly take longest. They begin first, so that no thread waits long
        # for the last one.
        costs = [(-candidate.hidden_layers, candidate.learning_rate) for candidate in self.candidates]
        order = sorted(range(len(costs)), key=costs.__getitem__)
        for seed in self.seeds:
            begun = {number: submit(train, number, seed) for number in order}
            self.futures.append([begun[number] for number in range(len(begun))])

    def result(self) -> SplitResult:
        """Wait for the heads, take the best of each seed's, and test it."""
        if len(self.candidates) > 1:
            # A search takes long, so it shows its progress.
            futures = [future for of_seed in self.futures for future in of_seed]
            for _ in track(as_completed(futures), len(futures), f"search on {self.split.name}", "head", leave=False):
                pass
        trained = [[future.result() for future in of_seed] for of_seed in self.futures]
        heads = [_best([head for head, _ in of_seed], self.data.maximize) for of_seed in trained]
        vectors = self.rows[2].vectors
        tests = [self.data.test(self.split.test, head.probabilities(vectors), head.best.detail) for head in heads]
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


@contextmanager
def side_by_side(jobs: int, device: torch.device) -> Iterator[tuple[Submit, threading.Event]]:
    """Give a function that starts one of `jobs` jobs, and an event that is set when they should end.

    On a CPU there are as many threads as PyTorch has, each with its share of them. Two heads on a thread each are done
    a sixth sooner than one after the other on two threads: large products gain as much from a second thread, the rest
    does not, and on busy cores two threads wait for each other. PyTorch releases Python's lock while it computes, so
    threads suffice, and the vectors need not be sent anywhere. One job at a time computes on a GPU.

    On leaving, for whatever reason, jobs that have not begun are dropped, and the event asks the others to end.
    """
    keep_freed_memory()
    threads = torch.get_num_threads()
    workers = min(jobs, threads) if device.type == "cpu" else 1
    share = threads // workers
    stop = threading.Event()
    # The precision of products belongs to the process. It is set once, here, or jobs would change it under each other.
    with exact_float32_products(device):
        # This thread tests what the others have trained, and takes no more than a share either.
        torch.set_num_threads(share)
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
        try:
            yield pool.submit, stop
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
