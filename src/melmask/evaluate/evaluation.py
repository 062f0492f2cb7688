"""`melmask evaluate`: judge models on HEAR tasks, split by split. The same call resumes one that was interrupted.

`melmask.evaluate.results` says what the folder of results holds. In addition, RESULTS/embeddings caches the computed
vectors, and RESULTS/report.html is the page.
"""

import datetime
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from melmask import __version__
from melmask.downstream.linear_and_knn import t_interval, wilson_interval
from melmask.errors import InputError, MelmaskError, OutputError
from melmask.evaluate.embeddings import SplitEmbeddings, embed_task
from melmask.evaluate.heads import HeadConfig
from melmask.evaluate.leaks import find_leaks
from melmask.evaluate.models import Client, name_apart, open_client, slug
from melmask.evaluate.options import EvaluateOptions
from melmask.evaluate.protocols import grid_of, run_task
from melmask.evaluate.records import Column, Failure, ModelFacts, Outcome, Report, Score, Split, TaskFacts
from melmask.evaluate.results import RESULTS, read_report, save_split, saved_split, write_report
from melmask.evaluate.rows import TaskRows
from melmask.evaluate.tasks import Task, find_tasks
from melmask.system.extras import require
from melmask.system.files import claimed, remove_partial
from melmask.system.finite import check_finite
from melmask.system.hardware import cpu_computes_bf16, pick_device
from melmask.system.progress import track
from melmask.system.terminal import counted, note, shown

_PROTOCOL_VERSION = 2
"""Raise this if a protocol changes, so that splits saved by earlier versions are computed again."""
_SHARES = ("top1_acc", "pitch_acc", "chroma_acc")
"""Metrics that are a share of right answers, which have a binomial interval."""


def evaluate(
    models: Sequence[str],
    tasks_folder: Path,
    out: Path,
    options: EvaluateOptions | None = None,
    page: Callable[[Path], object] | None = None,
) -> Report:
    """Judge every model on every task; results that `out` already has are kept, and not computed again.

    Args:
        models: As `open_client` takes them.
        tasks_folder: A folder of task folders in HEAR's layout.
        out: Folder of the results.
        options: Which tasks and protocols, and how; None means the defaults.
        page: Called with `out` each time its results have changed.

    Returns:
        The content of results.json. A model that fails on a task is listed under `failed`, and the others continue.
        The protocol `knn` skips event tasks.

    Raises:
        InputError, CheckpointError, ConfigError: a task folder, model or choice of features cannot be used.
        InputError: no model could be judged on any task; the report says why.
        OutputError: `out` cannot be written to, or another job is writing to it.
        MissingExtraError: scikit-learn, which computes the scores, is not installed.
    """
    require("eval")
    options = options or EvaluateOptions()
    # A third-party module may change the working directory, so relative paths would not last.
    tasks_folder, out = tasks_folder.absolute(), out.absolute()
    # Tasks, options and models are all checked before the first result is computed.
    tasks = find_tasks(tasks_folder, options.tasks)
    device = pick_device(options.device)
    precision = head_precision(options.head_precision, device)
    grids = {task.title: grid_of(task, options.grid_points, precision) for task in tasks}
    clients = _open_clients(models, options)
    # Two jobs at once would overwrite each other's results.json.
    with claimed(out):
        # A killed call may have left a file that it was writing.
        for folder in (out / "embeddings", *(out / "models").glob("*/*/*")):
            remove_partial(folder)
        report = _earlier_report(out, tasks_folder)
        # A model that never produced a result frees its name for a repaired one.
        judged = {outcome.column.model for outcome in report.results}
        name_apart(clients, {model.name: model.identity for model in report.models if model.name in judged})
        for task in tasks:
            report = _with_task(report, _task_facts(task))
        reasons: list[str | None] = []
        for client in clients:
            # A client has an attribute for each field.
            facts = {field.name: getattr(client, field.name) for field in fields(ModelFacts)}
            report = report.with_model(ModelFacts(**facts))
            for task, protocol in itertools.product(tasks, options.protocols):
                pair = Pair(client, task, protocol, grids[task.title], options.seed, device, out)
                report, reason = _with_pair(report, pair)
                reasons.append(reason)
                # The report is written after each pair, so that a killed call leaves what it has finished.
                write_report(out, report)
                if page is not None:
                    page(out)
    if all(reasons):
        others = f"; all reasons are in {out / RESULTS}" if report.failed else ""
        raise InputError(f"nothing could be judged: {reasons[0]}{others}")
    return report


def head_precision(name: str, device: torch.device) -> str:
    """Return what `name`, one of `options.PRECISIONS`, means on a device: 'auto' is bf16 on CPUs that multiply it."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cpu" and cpu_computes_bf16() else "fp32"


@dataclass(frozen=True)
class Pair:
    """A model and a task, the protocol that judges them, and where to compute and save."""

    client: Client
    task: Task
    protocol: str
    grid: list[HeadConfig]
    """The points that `hear` and `hear-fixed` try."""
    seed: int
    device: torch.device
    """Where the heads are trained."""
    out: Path
    """The folder of the results."""

    @property
    def column(self) -> Column:
        """The pair's column in a table of scores."""
        return Column(self.client.name, self.protocol)

    @property
    def folder(self) -> Path:
        """The folder in which the splits are saved."""
        return self.out / "models" / slug(self.client.name) / self.task.title / self.protocol


def _open_clients(models: Sequence[str], options: EvaluateOptions) -> list[Client]:
    """Open each model. A model that is given by two paths is judged once."""
    by_identity: dict[str, Client] = {}
    for source in models:
        client = open_client(source, options)
        by_identity.setdefault(client.identity, client)
    return list(by_identity.values())


def _with_pair(report: Report, pair: Pair) -> tuple[Report, str | None]:
    """Judge a pair; return the report with its result, and the reason if there is none."""
    title, column = pair.task.title, pair.column
    report = report.without_failure(title, column)
    if pair.protocol == "knn" and pair.task.embedding_type == "event":
        # This is no fault of the model, so it is not listed as a failure.
        reason = "the knn protocol is for scene tasks; use hear or linear for events"
        note(f"{column.model} on {title}: skipped, because {reason}")
        return report, reason
    try:
        return report.with_outcome(_judge(pair)), None
    except OutputError:
        # The other pairs would fail on a full disk, too.
        raise
    except (Exception, SystemExit) as error:
        # A third-party module may raise any exception. The other pairs can still be judged.
        text = str(error) if isinstance(error, MelmaskError) else f"{type(error).__name__}: {error}"
        reason = (text.splitlines() or [type(error).__name__])[0]
        if (title, column) in report.outcomes:
            reason += " (the score is from an earlier call)"
        failure = Failure(column=column, title=title, reason=reason)
        return replace(report, failed=[*report.failed, failure]), reason


def _judge(pair: Pair) -> Outcome:
    """Embed the task, train heads on each split that is not saved yet, test them, and put the splits together."""
    task, grid, seed = pair.task, pair.grid, pair.seed
    embeddings = embed_task(pair.client, task, pair.out / "embeddings")
    # A saved split is used again if the vectors, the labels and the settings are the same.
    fingerprint = _fingerprint(pair, embeddings)
    paths = {split.name: pair.folder / f"{split.name}.json" for split in task.data_splits}
    saved = {name: saved_split(pair.out, path, fingerprint) for name, path in paths.items()}
    splits = {name: split for name, split in saved.items() if split is not None}
    title = f"{pair.client.name}: {task.title}, {pair.protocol}"
    data = TaskRows(task, embeddings, pair.device)
    # The generator gets a copy, because `splits` grows while it runs. Closing it ends the training threads,
    # whatever happens here.
    with closing(run_task(data, pair.protocol, grid, seed, dict(splits))) as results:
        for split, predictions in track(results, len(paths) - len(splits), title, "split"):
            for array in predictions.values():
                if array.dtype.kind == "f":
                    check_finite(array, "a prediction")
            splits[split.name] = save_split(pair.out, paths[split.name], split, predictions, fingerprint)
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
    # The embeddings are digested, and not the sounds, because only they reach the heads.
    for name, part in embeddings.items():
        digest.update(json.dumps([name, part.files]).encode())
        for array in (part.vectors, part.targets, part.times_ms):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _score(metric: str, splits: Sequence[Split], tested: int) -> Score:
    """Return a metric over the splits, with Wilson's interval of a share of clips, or Student's over the folds."""
    values = [value for split in splits if (value := split.scores[metric]) is not None]
    if len(values) < len(splits):
        # A mean over some of the folds would not compare with a mean over all of them.
        return Score(mean=None)
    mean = float(np.mean(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    interval = wilson_interval(mean, tested) if metric in _SHARES else t_interval(np.array(values))
    return Score(mean=mean, std=std, interval_95=interval)


def _earlier_report(out: Path, tasks_folder: Path) -> Report:
    """Return the report that `out` holds, to be extended, or an empty one."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    folder = str(tasks_folder)
    if not (out / RESULTS).exists():
        return Report(created=created, version=__version__, tasks_folder=folder)
    try:
        return replace(read_report(out), created=created, version=__version__, tasks_folder=folder)
    except InputError as error:
        raise InputError(
            f"{out / RESULTS} is not a report of melmask evaluate that can be extended ({error}); choose another --out"
        ) from error


def _with_task(report: Report, facts: TaskFacts) -> Report:
    """Return the report with this task. If its labels or sounds have changed, its scores are removed."""
    known = {task.title: task.sha256 for task in report.tasks}.get(facts.title)
    # Without a digest on both sides the tasks cannot be compared, so the scores stay.
    if known and facts.sha256 and known != facts.sha256:
        before = len(report.results)
        report = report.without_task(facts.title)
        gone = before - len(report.results)
        note(f"{facts.title} has other labels or sounds than before: {counted(gone, 'score')} of it removed")
    return report.with_task(facts)


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
    """Return the primary scores as text: a row per task and protocol, a column per model, and failures below."""
    names = [shown(model.name) for model in report.models]
    # 24 characters have room for a mean and a deviation.
    width = max([24, *(len(name) + 2 for name in names)])
    rows: dict[str, dict[str, str]] = {}
    for outcome in report.results:
        score = outcome.score
        text = "undefined" if score.mean is None else f"{score.mean:.3f}"
        text += "" if score.mean is None or score.std is None else f" ± {score.std:.3f}"
        row = rows.setdefault(f"{shown(outcome.title)}  {outcome.column.protocol}  {outcome.primary}", {})
        row[shown(outcome.column.model)] = text
    first = max([4, *map(len, rows)])
    lines = [" " * first + "".join(name.rjust(width) for name in names)]
    for title, cells in rows.items():
        lines.append(title.ljust(first) + "".join(cells.get(name, "-").rjust(width) for name in names))
    lines += [shown(f"{failure.column.model} on {failure.title} failed: {failure.reason}") for failure in report.failed]
    return "\n".join(lines)
