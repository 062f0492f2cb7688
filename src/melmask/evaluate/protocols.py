"""The downstream protocols: train heads on a task's frozen vectors, choose one by validation, and test it.

hear         hear-eval-kit 2021.1.3 with its quirks. It searches a grid of networks on the first split only, and uses
             the best point for the other splits. It never reshuffles the rows. A score that is NaN ends training. Of
             two post-processings it takes the one with the larger score, even if the score is an error rate.
hear-fixed   The same grid without the quirks. It is searched on each split, and the rows are reshuffled each epoch. A
             score that is NaN counts as the worst. Post-processings are compared in the right direction.
linear       One linear layer on standardized vectors, like EVAR, the evaluation of the MSM-MAE paper's group: Adam,
             rate 3e-4, batch size 200, at most 200 epochs, patience 20, and three seeds.
knn          The ten nearest training vectors vote. Nothing is trained. This is for scene tasks only.
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
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from melmask.config_text import from_dict
from melmask.downstream.linear_and_knn import neighbor_votes, standardize
from melmask.errors import ConfigError, InputError
from melmask.evaluate.heads import HeadConfig, Rows, TrainedHead, TrainingRules, better, train_head
from melmask.evaluate.options import GRID_POINTS
from melmask.evaluate.records import Split, finite
from melmask.evaluate.rows import PredictionArrays, TaskRows
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
# `HeadConfig` uses the kit's names except for these.
_OUR_NAMES = {"lr": "learning_rate", "check_val_every_n_epoch": "validate_every_epochs"}
_LINEAR = HeadConfig(
    hidden_layers=0, learning_rate=3e-4, batch_size=200, max_epochs=200, validate_every_epochs=1, patience=20
)


SplitResult = tuple[Split, PredictionArrays]
"""The result of a split, and its predictions, which are those of the first seed if there are several."""


def grid_of(task: Task, points: int = GRID_POINTS, precision: str = "fp32") -> list[HeadConfig]:
    """Return the first points of the kit's shuffled grid, with the task's own values; `precision` is fp32 or bf16.

    Raises:
        InputError: the task's metadata have a parameter that this protocol does not know.
    """
    grid = {**_GRID, **task.parameter_grid}
    for name in grid:
        if name not in _KIT_NAMES:
            known = ", ".join(_KIT_NAMES)
            raise InputError(f"{task.title}: task_specific_param_grid has {name!r}; known are {known}; remove it")
    # This is the order of scikit-learn's ParameterGrid: keys are sorted, and the last one changes fastest.
    names = sorted(grid)
    every_point = [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid[n] for n in names))]
    random.Random(_GRID_SEED).shuffle(every_point)
    kit = HeadConfig(precision=precision)
    ours = [{_OUR_NAMES.get(name, name): value for name, value in point.items()} for point in every_point[:points]]
    try:
        return [from_dict(HeadConfig, {**asdict(kit), **settings}) for settings in ours]
    except ConfigError as error:
        raise InputError(f"{task.title}: task_specific_param_grid: {error}; correct it") from error


def run_task(
    data: TaskRows,
    protocol: str,
    grid: list[HeadConfig],
    seed: int,
    done: Mapping[str, Split] | None = None,
) -> Generator[SplitResult, None, None]:
    """Train and test on all splits of a task that are not done, and yield their results in the task's order.

    Args:
        data: The task's vectors.
        protocol: One of `options.PROTOCOLS`. `hear` searches the grid on the first split only.
        grid: Points to choose from.
        seed: Decides everything random.
        done: Earlier results by the split's name. These splits are skipped.
    """
    splits, done = list(data.task.data_splits), done or {}
    if protocol == "hear":
        first = splits.pop(0)
        # A finished search is not repeated: the other splits only need its choice.
        head = _head_of(done[first.name]) if first.name in done else None
        if head is None:
            (result,) = run_splits(data, [first], protocol, grid, seed)
            yield result
            head = _head_of(result[0])
        assert head is not None, "a search has a choice"
        grid = [head]
    splits = [split for split in splits if split.name not in done]
    with closing(run_splits(data, splits, protocol, grid, seed)) as results:
        yield from results


def _head_of(split: Split) -> HeadConfig | None:
    """Return the head that a search has chosen, or None if the file that the split was read from is damaged."""
    try:
        return from_dict(HeadConfig, {name: value for name, value in split.setting.items() if name != "postprocessing"})
    except ConfigError:
        return None


def run_splits(
    data: TaskRows, splits: Sequence[DataSplit], protocol: str, candidates: list[HeadConfig], seed: int
) -> Generator[SplitResult, None, None]:
    """Train heads on each split, choose one on its validation part, and test it.

    All cores train heads at the same time, of one split or of several. The results are yielded in the order of the
    splits, each as soon as it is known.

    Args:
        data: The task's vectors.
        splits: Which of the task's splits train, validate and test.
        protocol: One of `options.PROTOCOLS`.
        candidates: Points of the grid to choose from on each split, for `hear` and `hear-fixed`.
        seed: Decides everything random. `linear` has three seeds of its own instead, and `knn` has none.
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
        # These take a second each to import, so they are imported while the heads train. If one is missing, the score
        # that needs it raises the error.
        for scorer in ("sklearn.metrics", "scipy.sparse.csgraph"):
            with suppress(ImportError):
                importlib.import_module(scorer)
        while searches:
            # The search is removed from the list first, so that its vectors are freed as soon as it is over.
            yield searches.pop(0).result()


def _vote(data: TaskRows, split: DataSplit) -> SplitResult:
    """Let the nearest training rows of each test row vote; a class's probability is its share of the votes."""
    start_s = time.perf_counter()
    train, test = data.rows(split.train), data.rows(split.test)
    known, asked = standardize(train.vectors.cpu().numpy(), test.vectors.cpu().numpy())
    shares = neighbor_votes(known, asked, train.targets.cpu().numpy(), _NEIGHBORS).astype(np.float32)
    scores, predictions = data.test(split.test, shares, None)
    seconds = round(time.perf_counter() - start_s, 3)
    setting = {"neighbors": _NEIGHBORS}
    return Split(name=split.name, scores=_finite(scores), epoch=0, setting=setting, seconds=seconds), predictions


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {metric: finite(score) for metric, score in scores.items()}


Trained = tuple[TrainedHead, float]
"""A head, and how long its training took in s."""
Submit = Callable[..., "Future[Trained]"]


class _Search:
    """The heads of one split: each candidate with each seed. They train, or wait for a free thread."""

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
        """The rows for training, validation and testing. They are put together when the first thread needs them."""
        rows = [self.data.rows(names) for names in (self.split.train, self.split.valid, self.split.test)]
        if all(candidate.precision == "bf16" and candidate.hidden_layers for candidate in self.candidates):
            # The vectors are rounded once here, instead of in each step.
            rows[0] = rows[0]._replace(vectors=rows[0].vectors.bfloat16())
        if self.standardized:
            arrays = standardize(*(part.vectors.cpu().numpy() for part in rows))
            vectors = [torch.from_numpy(array).to(self.data.device) for array in arrays]
            rows = [Rows(own, part.targets) for own, part in zip(vectors, rows, strict=True)]
        return rows

    def begin(self, submit: Submit, stop: threading.Event) -> None:
        """Submit the heads; `futures` gets a list for each seed, in the order of the candidates."""

        def train(number: int, seed: int) -> Trained:
            start_s = time.perf_counter()
            fit, valid, _ = self.rows
            # Each point has its own seed, which does not depend on what other points are tried.
            own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
            head = train_head(fit, valid, self.candidates[number], self.judge, self.rules, own_seed, stop)
            return head, time.perf_counter() - start_s

        # Large networks and low learning rates take longest. They begin first, so that at the end no thread waits long
        # for another one.
        costs = [(-candidate.hidden_layers, candidate.learning_rate) for candidate in self.candidates]
        order = sorted(range(len(costs)), key=costs.__getitem__)
        for seed in self.seeds:
            begun = {number: submit(train, number, seed) for number in order}
            self.futures.append([begun[number] for number in range(len(begun))])

    def result(self) -> SplitResult:
        """Wait for the heads, take the best one of each seed, and test it."""
        if len(self.candidates) > 1:
            # A search takes long, so its progress is shown.
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
        split = Split(
            name=self.split.name,
            scores=_finite(scores),
            validation_score=finite(head.best.score),
            epoch=head.epoch,
            setting=setting,
            repeats=[_finite(scores) for scores, _ in tests] if len(tests) > 1 else [],
            seconds=round(sum(seconds for of_seed in trained for _, seconds in of_seed), 3),
        )
        return split, tests[0][1]


def _best(heads: list[TrainedHead], maximize: bool) -> TrainedHead:
    """Return the head with the best validation, the first one of equals."""
    chosen = heads[0]
    for head in heads[1:]:
        if better(head.best.score, chosen.best.score, maximize):
            chosen = head
    return chosen


@contextmanager
def side_by_side(jobs: int, device: torch.device) -> Iterator[tuple[Submit, threading.Event]]:
    """Yield a function that starts one of `jobs` jobs, and an event that is set when they should end.

    On a CPU as many jobs run at a time as PyTorch has threads, and they share these threads. Two heads side by side, on
    one thread each, take a sixth less time than one after the other on two threads, because only large products gain
    from a second thread. PyTorch releases Python's lock while it computes, so threads suffice, and vectors need not be
    sent to other processes. On a GPU one job runs at a time.

    When the context ends, for whatever reason, jobs that have not begun are dropped, and the event asks the others to
    end.
    """
    keep_freed_memory()
    threads = torch.get_num_threads()
    workers = min(jobs, threads) if device.type == "cpu" else 1
    share = threads // workers
    stop = threading.Event()
    # The precision of products is a setting of the process. It is set once here, because jobs that set it would change
    # it for each other.
    with exact_float32_products(device):
        # This thread tests what the others have trained, so it also takes only a share.
        torch.set_num_threads(share)
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
        try:
            yield pool.submit, stop
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
