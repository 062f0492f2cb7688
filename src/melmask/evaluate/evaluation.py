"""`melmask evaluate`: judge models on HEAR tasks, split by split. A call that was interrupted resumes where it was.

`melmask.evaluate.results` says what the folder of results holds. Beside that, RESULTS/embeddings keeps the computed
vectors under names made of their content, and RESULTS/report.html is the page.
"""

import datetime
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from melmask import __version__
from melmask.downstream.probe import t_interval, wilson_interval
from melmask.errors import InputError, MelmaskError, OutputError
from melmask.evaluate.clients import Client, name_apart, open_client, slug
from melmask.evaluate.embeddings import SplitEmbeddings, embed_task
from melmask.evaluate.heads import HeadConfig, head_precision
from melmask.evaluate.judging import TaskRows
from melmask.evaluate.leaks import find_leaks
from melmask.evaluate.options import EvaluateOptions
from melmask.evaluate.protocols import SplitResult, grid_of, run_task
from melmask.evaluate.records import Column, Failure, ModelFacts, Outcome, Report, Score, Split, TaskFacts
from melmask.evaluate.results import RESULTS, finite, read_report, save_split, saved_split, write_report
from melmask.evaluate.tasks import Task, find_tasks
from melmask.system.extras import require
from melmask.system.files import claimed, remove_partial
from melmask.system.hardware import pick_device
from melmask.system.progress import track

_PROTOCOL_VERSION = 2
_SHARES = ("top1_acc", "pitch_acc", "chroma_acc")
"""Metrics that are a share of right answers."""


def evaluate(
    models: Sequence[str],
    tasks_folder: Path,
    out: Path,
    options: EvaluateOptions | None = None,
    page: Callable[[Path], object] | None = None,
) -> Report:
    """Judge every model on every task; what `out` already has is kept, and not computed again.

    Args:
        models: As `open_client` takes them.
        tasks_folder: A folder of task folders in HEAR's layout.
        out: Folder of the results.
        options: Which tasks and protocols, and how; the defaults where None.
        page: Called with `out` each time its results have changed.

    Returns:
        The content of results.json. A model that fails on a task is listed under `failed` and stops nothing; event
        tasks are left out of `knn`.

    Raises:
        InputError, CheckpointError, ConfigError: a task folder, model or choice of features cannot be used.
        InputError: nothing of this call worked; the report says why.
        OutputError: `out` cannot be written to, or another job is writing to it.
        MissingExtraError: scikit-learn, which computes the scores, is not installed.
    """
    require("eval")
    options = options or EvaluateOptions()
    # A third-party module may change the working directory, so relative paths would not last.
    tasks_folder, out = tasks_folder.absolute(), out.absolute()
    tasks = find_tasks(tasks_folder, options.tasks)
    device = pick_device(options.device)
    precision = head_precision(options.head_precision, device)
    grids = {task.title: grid_of(task, options.grid_points, precision) for task in tasks}
    clients = _open_clients(models, options)
    # Two jobs would overwrite each other's results.json.
    with claimed(out):
        remove_partial(out / "embeddings")
        report = _earlier_report(out, tasks_folder)
        _name_clients(clients, report)
        for task in tasks:
            report = _with_task(report, _task_facts(task))
        reasons: list[str | None] = []
        for client in clients:
            report = report.with_model(_model_facts(client))
            for task, protocol in itertools.product(tasks, options.protocols):
                pair = Pair(client, task, protocol, grids[task.title], options.seed, device, out)
                report, reason = _with_pair(report, pair)
                reasons.append(reason)
                # The report is written after each pair, so that a killed call has reported what it finished.
                write_report(out, report)
                if page is not None:
                    page(out)
    if all(reasons):
        others = f"; all reasons are in {out / RESULTS}" if report.failed else ""
        raise InputError(f"nothing could be judged, as {reasons[0]}{others}")
    return report


@dataclass(frozen=True)
class Pair:
    """A model and a task with the protocol that judges them, and where that happens."""

    client: Client
    task: Task
    protocol: str
    grid: list[HeadConfig]
    """The points that `hear` and `hear-fixed` try."""
    seed: int
    device: torch.device
    """What the heads are trained on."""
    out: Path
    """The folder of the results."""

    @property
    def column(self) -> Column:
        """The pair's place in a table of the task's scores."""
        return Column(self.client.name, self.protocol)

    @property
    def folder(self) -> Path:
        """Where the splits are saved."""
        return self.out / "models" / slug(self.client.name) / self.task.title / self.protocol


def _open_clients(models: Sequence[str], options: EvaluateOptions) -> list[Client]:
    """Open each model. One that is given by two paths is judged once."""
    by_identity: dict[str, Client] = {}
    for source in models:
        client = open_client(source, options)
        by_identity.setdefault(client.identity, client)
    return list(by_identity.values())


def _name_clients(clients: Sequence[Client], report: Report) -> None:
    """Give each client a name of its own. A model that never gave a result leaves its name to a repaired one."""
    judged = {outcome.column.model for outcome in report.results}
    name_apart(clients, {model.name: model.identity for model in report.models if model.name in judged})


def _with_pair(report: Report, pair: Pair) -> tuple[Report, str | None]:
    """The report with what was found, and the reason if nothing was."""
    title, column = pair.task.title, pair.column
    report = report.without_failure(title, column)
    if pair.protocol == "knn" and pair.task.embedding_type == "event":
        # The model is not to blame, so this is not listed as a failure.
        reason = "the knn protocol is for scene tasks; use hear or linear for events"
        sys.stderr.write(f"{column.model} on {title}: left out, as {reason}\n")
        return report, reason
    try:
        return report.with_outcome(_judge(pair)), None
    except OutputError:
        # A full disk would stop the other pairs, too.
        raise
    except (Exception, SystemExit) as error:
        # A third-party module may raise anything. The other pairs can still be judged.
        text = str(error) if isinstance(error, MelmaskError) else f"{type(error).__name__}: {error}"
        reason = (text.splitlines() or [type(error).__name__])[0]
        if (title, column) in report.outcomes:
            reason += " (the score is of an earlier call)"
        failure = Failure(column=column, title=title, reason=reason)
        return replace(report, failed=[*report.failed, failure]), reason


def _judge(pair: Pair) -> Outcome:
    """Embed the task, train heads on each split that is not saved yet, test them, and put the splits together."""
    task, grid, seed = pair.task, pair.grid, pair.seed
    embeddings = embed_task(pair.client, task, pair.out / "embeddings")
    # A split that was saved is used again if the vectors, the labels and the settings are the same.
    fingerprint = _fingerprint(pair, embeddings)
    paths = {split.name: pair.folder / f"{split.name}.json" for split in task.data_splits}
    saved = {name: saved_split(pair.out, path, fingerprint) for name, path in paths.items()}
    splits = {name: split for name, split in saved.items() if split is not None}
    settings = {name: split.setting for name, split in splits.items()}
    title = f"{pair.client.name}: {task.title}, {pair.protocol}"
    # Closing the generator ends the training threads, whatever happens here.
    with closing(run_task(TaskRows(task, embeddings, pair.device), pair.protocol, grid, seed, settings)) as results:
        for of_task, result in track(results, len(paths) - len(splits), title, "split"):
            split = _split(of_task.name, result)
            splits[split.name] = save_split(pair.out, paths[split.name], split, result.predictions, fingerprint)
    tested = sum(len(embeddings[name].files) for split in task.data_splits for name in split.test)
    ordered = [splits[name] for name in paths]
    conditions: dict[str, int | str] = {"grid_points": len(grid), "seed": seed, "head_precision": grid[0].precision}
    return Outcome(
        column=pair.column,
        title=task.title,
        primary=task.metrics[0],
        scores={metric: _score(metric, ordered, tested) for metric in ordered[0].scores},
        splits=ordered,
        seconds=round(sum(split.seconds or 0.0 for split in ordered), 3),
        conditions=conditions if pair.protocol.startswith("hear") else {},
    )


def _fingerprint(pair: Pair, embeddings: Mapping[str, SplitEmbeddings]) -> str:
    settings = [_PROTOCOL_VERSION, pair.protocol, pair.seed, [vars(point) for point in pair.grid], pair.task.metrics]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, part in embeddings.items():
        digest.update(json.dumps([name, part.files]).encode())
        for array in (part.vectors, part.targets, part.times_ms):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _split(name: str, result: SplitResult) -> Split:
    return Split(
        name=name,
        scores={metric: finite(score) for metric, score in result.scores.items()},
        validation_score=finite(result.validation_score),
        epoch=result.epoch,
        setting=result.setting,
        repeats=[{metric: finite(score) for metric, score in scores.items()} for scores in result.repeats],
        seconds=round(result.seconds, 3),
    )


def _score(metric: str, splits: Sequence[Split], tested: int) -> Score:
    """A metric over the splits, with Wilson's interval of a share of the tested clips, or Student's over the folds."""
    values = [value for split in splits if (value := split.scores[metric]) is not None]
    if len(values) < len(splits):
        # A mean over some of the folds would not compare with a mean over all.
        return Score(mean=None)
    mean = float(np.mean(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    interval = wilson_interval(mean, tested) if metric in _SHARES else t_interval(np.array(values))
    return Score(mean=mean, std=std, interval_95=interval)


def _earlier_report(out: Path, tasks_folder: Path) -> Report:
    """The report that `out` has, to be extended, or an empty one."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = Report(created=created, version=__version__, tasks_folder=str(tasks_folder))
    if not (out / RESULTS).exists():
        return head
    try:
        known = read_report(out)
    except InputError as error:
        raise InputError(
            f"{out / RESULTS} is not a report of melmask evaluate that can be extended ({error}); choose another --out"
        ) from error
    return replace(head, models=known.models, tasks=known.tasks, results=known.results, failed=known.failed)


def _with_task(report: Report, facts: TaskFacts) -> Report:
    """The report with this task. Other labels or sounds under a known title replace that task and its scores."""
    known = {task.title: task.sha256 for task in report.tasks}.get(facts.title)
    if known and facts.sha256 and known != facts.sha256:
        before = len(report.results)
        report = report.without_task(facts.title)
        gone = before - len(report.results)
        sys.stderr.write(f"{facts.title} has other labels or sounds than before: {gone} scores of it were left out\n")
    return report.with_task(facts)


def _model_facts(client: Client) -> ModelFacts:
    return ModelFacts(
        name=client.name,
        source=client.source,
        settings=client.settings,
        identity=client.identity,
        scene_size=client.scene_size,
        timestamp_size=client.timestamp_size,
        sample_rate_hz=client.sample_rate_hz,
    )


def _task_facts(task: Task) -> TaskFacts:
    leaks = find_leaks(task)
    return TaskFacts(
        title=task.title,
        name=task.name,
        embedding_type=task.embedding_type,
        prediction_type=task.prediction_type,
        labels=list(task.labels),
        clips=sum(len(files) for files in task.files.values()),
        metrics=list(task.metrics),
        folder=task.folder.resolve(),
        leaking_files=leaks.files,
        leaking_groups=leaks.groups,
        sha256=leaks.sha256,
    )


def table_text(report: Report) -> str:
    """Primary scores as a plain-text table: a row a task and protocol, a column a model; failures below it."""
    names = [model.name for model in report.models]
    width = max([24, *(len(name) + 2 for name in names)])
    rows: dict[str, dict[str, str]] = {}
    for outcome in report.results:
        score = outcome.score
        text = "undefined" if score.mean is None else f"{score.mean:.3f}"
        text += "" if score.mean is None or score.std is None else f" ± {score.std:.3f}"
        row = rows.setdefault(f"{outcome.title}  {outcome.column.protocol}  {outcome.primary}", {})
        row[outcome.column.model] = text
    first = max([4, *map(len, rows)])
    lines = [" " * first + "".join(name.rjust(width) for name in names)]
    for title, cells in rows.items():
        lines.append(title.ljust(first) + "".join(cells.get(name, "-").rjust(width) for name in names))
    lines += [f"{failure.column.model} on {failure.title} failed: {failure.reason}" for failure in report.failed]
    return "\n".join(lines)
