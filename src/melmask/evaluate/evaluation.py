"""`melmask evaluate`: models on HEAR tasks, fold by fold, resumable; results.json, results.csv and the page.

RESULTS/
    results.json            everything (docs/formats.md); evaluations of several calls come together here
    results.csv             a row for each model, task, protocol and metric
    report.html             the page
    models/M/T/P/           what was found of model M on task T with protocol P: a JSON and an npz for each split
    embeddings/             computed vectors, named by their content
"""

import csv
import datetime
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from melmask import __version__
from melmask.downstream.metrics import higher_is_better
from melmask.downstream.probe import t_interval, wilson_interval
from melmask.errors import ConfigError, InputError, MelmaskError, OutputError, unknown_name
from melmask.evaluate.clients import Choice, Client, name_apart, open_client, slug
from melmask.evaluate.embeddings import SplitEmbeddings, embed_task
from melmask.evaluate.heads import HeadConfig, head_precision
from melmask.evaluate.judging import TaskRows
from melmask.evaluate.leaks import find_leaks
from melmask.evaluate.protocols import GRID_POINTS, PROTOCOLS, SplitResult, grid_of, run_task
from melmask.evaluate.tasks import DataSplit, Task, find_tasks
from melmask.system.files import atomic_write, claimed, remove_partial, write_json
from melmask.system.hardware import pick_device
from melmask.system.progress import track

RESULTS = "results.json"
_FORMAT = 1
_PROTOCOL_VERSION = 2
_SHARES = ("top1_acc", "pitch_acc", "chroma_acc")


def evaluate(
    models: Sequence[str],
    tasks_folder: Path,
    out: Path,
    *,
    tasks: Sequence[str] = (),
    protocols: Sequence[str] = ("hear",),
    choice: Choice | None = None,
    grid_points: int = GRID_POINTS,
    precision: str = "auto",
    seed: int = 42,
    page: Callable[[Path], object] | None = None,
) -> dict[str, Any]:
    """Judge every model on every task; what `out` already has is kept, and not computed again.

    Args:
        models: As `open_client` takes them.
        tasks_folder: A folder of task folders in HEAR's layout.
        out: Folder of the results.
        tasks: Names of some of them; all if empty.
        protocols: Some of `PROTOCOLS`.
        choice: Layer, pooling and the like of melmask's models.
        grid_points: How many points of the grid `hear` and `hear-fixed` try, 8 in the kit.
        precision: Of the hidden layers of `hear` and `hear-fixed`, as `head_precision` takes it.
        seed: Of the heads' weights, dropout and order.
        page: Called with `out` each time its results have changed.

    Returns:
        The content of results.json. A model that fails on a task is listed under `failed` and stops nothing; event
        tasks are left out of `knn`.

    Raises:
        InputError, CheckpointError, ConfigError: a task folder, model, protocol or choice that cannot be used.
        InputError: nothing of this call worked; the report says why.
        OutputError: `out` cannot be written to, or another job is at it.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise unknown_name("protocol", protocol, PROTOCOLS)
    if grid_points < 1:
        raise ConfigError(f"{grid_points} points of the grid were asked for; give at least 1")
    # Somebody else's module may change the working directory.
    tasks_folder, out = tasks_folder.absolute(), out.absolute()
    found = find_tasks(tasks_folder, tasks)
    choice = choice or Choice()
    device = pick_device(choice.device)
    precision = head_precision(precision, device)
    grids = {task.title: grid_of(task, grid_points, precision) for task in found}
    clients: dict[str, Client] = {}
    for source in models:
        # One model by two paths is judged once.
        client = open_client(source, choice)
        clients.setdefault(client.identity, client)
    with claimed(out):
        remove_partial(out / "embeddings")
        return _evaluate(list(clients.values()), found, protocols, grids, seed, device, out, tasks_folder, page)


def _evaluate(
    clients: Sequence[Client],
    tasks: Sequence[Task],
    protocols: Sequence[str],
    grids: dict[str, list[HeadConfig]],
    seed: int,
    device: torch.device,
    out: Path,
    tasks_folder: Path,
    page: Callable[[Path], object] | None,
) -> dict[str, Any]:
    report = _read_report(out, tasks_folder)
    # What never gave a result leaves its name to a repaired one.
    judged = {result["model"] for result in report["results"]}
    name_apart(clients, {model["name"]: model.get("identity") for model in report["models"] if model["name"] in judged})
    for task in tasks:
        _put_task(report, _facts_of_task(task))
    reasons: list[str | None] = []
    for client in clients:
        _put(report["models"], ("name",), _facts_of_model(client))
        for task in tasks:
            for protocol in protocols:
                reasons.append(_judge_pair(client, task, protocol, grids[task.title], seed, device, out, report))
                write_report(out, report)
                if page is not None:
                    page(out)
    if all(reasons):
        others = f"; all reasons are in {out / RESULTS}" if report["failed"] else ""
        raise InputError(f"nothing could be judged, as {reasons[0]}{others}")
    return report


def _put_task(report: dict[str, Any], facts: dict[str, Any]) -> None:
    """A task of other labels or sounds under a title that is known takes the place of that, and of its scores."""
    title, digest = facts["title"], facts["sha256"]
    before = {task["title"]: task.get("sha256") for task in report["tasks"]}.get(title)
    if before and digest and before != digest:
        gone = [result for result in report["results"] if result["task"] == title]
        report["results"] = [result for result in report["results"] if result["task"] != title]
        report["failed"] = [failure for failure in report["failed"] if failure["task"] != title]
        sys.stderr.write(f"{title} has other labels or sounds than before: {len(gone)} scores of it were left out\n")
    _put(report["tasks"], ("title",), facts)


def _judge_pair(
    client: Client,
    task: Task,
    protocol: str,
    grid: list[HeadConfig],
    seed: int,
    device: torch.device,
    out: Path,
    report: dict[str, Any],
) -> str | None:
    """Put what was found into the report; returns the reason why nothing was."""
    names = {"model": client.name, "task": task.title, "protocol": protocol}
    report["failed"] = [entry for entry in report["failed"] if not names.items() <= entry.items()]
    if protocol == "knn" and task.embedding_type == "event":
        # Nobody's failure, so it is not listed as one.
        reason = "the knn protocol is for scene tasks; use hear or linear for events"
        sys.stderr.write(f"{client.name} on {task.title}: left out, as {reason}\n")
        return reason
    try:
        result = _evaluate_pair(client, task, protocol, grid, seed, device, out)
    except OutputError:
        raise
    except (Exception, SystemExit) as error:
        # Somebody else's module may raise anything; the other pairs are none the worse for it.
        reason = str(error) if isinstance(error, MelmaskError) else f"{type(error).__name__}: {error}"
        reason = (reason.splitlines() or [type(error).__name__])[0]
        if any(names.items() <= entry.items() for entry in report["results"]):
            reason += " (the score is of an earlier call)"
        report["failed"].append({**names, "reason": reason})
        return reason
    _put(report["results"], ("model", "task", "protocol"), {**names, **result})
    return None


def _evaluate_pair(
    client: Client, task: Task, protocol: str, grid: list[HeadConfig], seed: int, device: torch.device, out: Path
) -> dict[str, Any]:
    embeddings = embed_task(client, task, out / "embeddings")
    folder = out / "models" / slug(client.name) / task.title / protocol
    fingerprint = _fingerprint(embeddings, [protocol, seed, [vars(point) for point in grid], task.metrics])
    read = {split.name: _read_split(folder / f"{split.name}.json", fingerprint) for split in task.data_splits}
    facts = {name: known for name, known in read.items() if known}
    settings = {name: known["setting"] for name, known in facts.items()}
    title = f"{client.name}: {task.title}, {protocol}"
    with closing(run_task(TaskRows(task, embeddings, device), protocol, grid, seed, settings)) as results:
        for split, result in track(results, len(task.data_splits) - len(facts), title, "split"):
            path = folder / f"{split.name}.json"
            facts[split.name] = _save_split(path, split, result, fingerprint, out)
    splits = [{k: v for k, v in facts[split.name].items() if k != "fingerprint"} for split in task.data_splits]
    # What scores of one protocol need to have in common to compare.
    conditions = {"grid_points": len(grid), "seed": seed, "head_precision": grid[0].precision}
    return _summary(task, embeddings, splits) | {"conditions": conditions if protocol.startswith("hear") else {}}


def _fingerprint(embeddings: dict[str, SplitEmbeddings], settings: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([_PROTOCOL_VERSION, *settings]).encode())
    for name, part in embeddings.items():
        digest.update(json.dumps([name, part.files]).encode())
        for array in (part.vectors, part.targets, part.times_ms):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_split(path: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = facts.get("fingerprint") == fingerprint and path.with_suffix(".npz").exists()
    return facts if whole else None


def _save_split(path: Path, split: DataSplit, result: SplitResult, fingerprint: str, out: Path) -> dict[str, Any]:
    arrays = path.with_suffix(".npz")
    with atomic_write(arrays) as file:
        np.savez_compressed(file, **result.predictions)
    facts = {
        "name": split.name,
        "scores": _plain(result.scores),
        "validation_score": _plain(result.validation_score),
        "epoch": result.epoch,
        "setting": result.setting,
        "repeats": [_plain(scores) for scores in result.repeats],
        "seconds": round(result.seconds, 3),
        "predictions": arrays.relative_to(out).as_posix(),
        "fingerprint": fingerprint,
    }
    # The JSON last: where it is, the split is whole.
    write_json(path, facts)
    return facts


def _summary(task: Task, embeddings: dict[str, SplitEmbeddings], splits: list[dict[str, Any]]) -> dict[str, Any]:
    mean, std, interval = {}, {}, {}
    tested = sum(len(embeddings[name].files) for split in task.data_splits for name in split.test)
    for metric in splits[0]["scores"]:
        values = [split["scores"][metric] for split in splits]
        if any(value is None for value in values):
            mean[metric] = std[metric] = interval[metric] = None
            continue
        mean[metric] = float(np.mean(values))
        std[metric] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        interval[metric] = _interval(metric, values, tested)
    return {
        "primary": task.metrics[0],
        "higher_is_better": higher_is_better(task.metrics[0]),
        "mean": mean,
        "std": std,
        "interval_95": interval,
        "splits": splits,
        "seconds": round(sum(split["seconds"] for split in splits), 3),
    }


def _interval(metric: str, values: list[float], tested: int) -> list[float] | None:
    """Shares of right answers: Wilson's interval over the tested clips; other metrics: Student's t over the folds."""
    if metric in _SHARES:
        return list(wilson_interval(float(np.mean(values)), tested))
    interval = t_interval(np.array(values))
    return None if interval is None else list(interval)


def _facts_of_model(client: Client) -> dict[str, Any]:
    return {
        "name": client.name,
        "source": client.source,
        "settings": client.settings,
        "identity": client.identity,
        "scene_size": client.scene_size,
        "timestamp_size": client.timestamp_size,
        "sample_rate_hz": client.sample_rate_hz,
    }


def _facts_of_task(task: Task) -> dict[str, Any]:
    leaks = find_leaks(task)
    return {
        "title": task.title,
        "name": task.name,
        "embedding_type": task.embedding_type,
        "prediction_type": task.prediction_type,
        "classes": len(task.labels),
        "clips": sum(len(files) for files in task.files.values()),
        "labels": list(task.labels),
        "metrics": list(task.metrics),
        "folder": str(task.folder.resolve()),
        "leaking_files": leaks.files,
        "leaking_groups": leaks.groups,
        "sha256": leaks.sha256,
    }


def _read_report(out: Path, tasks_folder: Path) -> dict[str, Any]:
    path = out / RESULTS
    empty: dict[str, Any] = {"models": [], "tasks": [], "results": [], "failed": []}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            empty = {key: list(known[key]) for key in empty}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(f"{path} is not a report of melmask evaluate ({error}); choose another --out") from error
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = {"format": _FORMAT, "created": created, "melmask": __version__, "tasks_folder": str(tasks_folder)}
    return head | empty


def _put(entries: list[dict[str, Any]], keys: Iterable[str], entry: dict[str, Any]) -> None:
    """Replace the entry with the same keys, or append."""
    for index, known in enumerate(entries):
        if all(known[key] == entry[key] for key in keys):
            entries[index] = entry
            return
    entries.append(entry)


def write_report(out: Path, report: dict[str, Any]) -> None:
    """results.json and results.csv."""
    write_json(out / RESULTS, report)
    with atomic_write(out / "results.csv", "w") as file:
        csv.writer(file).writerows(_csv_rows(report))


def _csv_rows(report: dict[str, Any]) -> list[list[Any]]:
    rows: list[list[Any]] = [
        ["model", "task", "protocol", "metric", "primary", "mean", "std", "low_95", "high_95", "splits"]
    ]
    for result in report["results"]:
        for metric, mean in result["mean"].items():
            low, high = result["interval_95"][metric] or (None, None)
            names = [result["model"], result["task"], result["protocol"], metric, int(metric == result["primary"])]
            rows.append([*names, mean, result["std"][metric], low, high, len(result["splits"])])
    return rows


def _plain(value: Any) -> Any:
    """Numbers that JSON can hold: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return float(value) if math.isfinite(value) else None


def table_text(report: dict[str, Any]) -> str:
    """Primary scores as a plain-text table: a row a task and protocol, a column a model; failures below it."""
    names = [model["name"] for model in report["models"]]
    width = max([24, *(len(name) + 2 for name in names)])
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in report["results"]:
        mean, spread = result["mean"][result["primary"]], result["std"][result["primary"]]
        text = "undefined" if mean is None else f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        rows.setdefault((result["task"], result["protocol"], result["primary"]), {})[result["model"]] = text
    titles = [f"{task}  {protocol}  {metric}" for task, protocol, metric in rows]
    first = max([4, *map(len, titles)])
    lines = [" " * first + "".join(name.rjust(width) for name in names)]
    for title, cells in zip(titles, rows.values(), strict=True):
        lines.append(title.ljust(first) + "".join(cells.get(name, "-").rjust(width) for name in names))
    lines += [f"{entry['model']} on {entry['task']} failed: {entry['reason']}" for entry in report["failed"]]
    return "\n".join(lines)
