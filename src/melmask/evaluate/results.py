"""The files of an evaluation. They are written and read here, and nowhere else.

RESULTS/
    results.json                all of it (docs/formats.md); a later evaluation extends it
    results.csv                 a row for each model, task, protocol and metric
    models/MODEL/TASK/PROTOCOL/ what was found on each split: SPLIT.json, and the predictions in SPLIT.npz

A file may come from another version of melmask: fields that are missing take their defaults, and fields that are not
known are left out.
"""

import csv
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from melmask.downstream.metrics import higher_is_better
from melmask.errors import InputError
from melmask.evaluate.records import Column, Failure, ModelFacts, Outcome, Report, Score, Split, TaskFacts
from melmask.system.files import atomic_write, write_json

RESULTS = "results.json"
FORMAT = 1


class Predictions(NamedTuple):
    """Rows of a scene task over all splits. files, parts: (rows,); targets, probabilities: (rows, classes)."""

    files: list[str]
    parts: list[str]
    targets: np.ndarray
    probabilities: np.ndarray


class EventFile(NamedTuple):
    """A file of an event task: (label, start_ms, end_ms) of its events, and the folders it may be in."""

    name: str
    parts: list[str]
    reference: list[tuple[str, float, float]]
    predicted: list[tuple[str, float, float]]


def read_report(results: Path) -> Report:
    """Read `results`/results.json.

    Raises:
        InputError: it is missing, not JSON, or of another format.
    """
    path = results / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the folder that melmask evaluate wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}; evaluate again with this version of melmask")
    try:
        tasks_folder = str(content.get("tasks_folder") or "")
        tasks = [_read_task(number, row, Path(tasks_folder)) for number, row in enumerate(content["tasks"])]
        return Report(
            created=str(content.get("created", "")),
            version=str(content.get("melmask", "")),
            tasks_folder=tasks_folder,
            models=[_read_model(row) for row in content["models"]],
            tasks=tasks,
            results=[_read_outcome(results, row) for row in content["results"]],
            failed=[
                Failure(column=_column(row), title=str(row["task"]), reason=str(row["reason"]))
                for row in content.get("failed") or []
            ],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is not what melmask evaluate writes ({error!r}); evaluate again") from error


def write_report(results: Path, report: Report) -> None:
    """Write results.json and results.csv into the folder `results`.

    Raises:
        OutputError: a file cannot be written.
    """
    content = {
        "format": FORMAT,
        "created": report.created,
        "melmask": report.version,
        "tasks_folder": report.tasks_folder,
        "models": [vars(model) for model in report.models],
        "tasks": [_task_row(task) for task in report.tasks],
        "results": [_outcome_row(results, outcome) for outcome in report.results],
        "failed": [{**_names(failure), "reason": failure.reason} for failure in report.failed],
    }
    write_json(results / RESULTS, content)
    with atomic_write(results / "results.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(["model", "task", "protocol", "metric", "primary", "mean", "std", "low_95", "high_95", "splits"])
        for outcome in report.results:
            for metric, score in outcome.scores.items():
                numbers = (score.mean, score.std, *(score.interval_95 or (None, None)))
                primary = int(metric == outcome.primary)
                table.writerow([*_names(outcome).values(), metric, primary, *numbers, len(outcome.splits)])


def _names(entry: Outcome | Failure) -> dict[str, str]:
    return {"model": entry.column.model, "task": entry.title, "protocol": entry.column.protocol}


def _column(row: Mapping[str, Any]) -> Column:
    return Column(str(row["model"]), str(row.get("protocol") or ""))


def _read_model(row: Mapping[str, Any]) -> ModelFacts:
    return ModelFacts(
        name=str(row["name"]),
        source=str(row.get("source") or ""),
        settings=str(row.get("settings") or ""),
        identity=row.get("identity"),
        scene_size=_whole(row.get("scene_size")),
        timestamp_size=_whole(row.get("timestamp_size")),
        sample_rate_hz=_whole(row.get("sample_rate_hz")),
    )


def _read_task(number: int, row: Mapping[str, Any], tasks_folder: Path) -> TaskFacts:
    # The folder that is written down may be of another machine.
    folder = Path(row.get("folder") or "")
    return TaskFacts(
        title=row["title"],
        name=row["name"],
        embedding_type=row["embedding_type"],
        prediction_type=row["prediction_type"],
        labels=[str(label) for label in row["labels"]],
        clips=row.get("clips"),
        metrics=list(row["metrics"]),
        folder=folder if folder.is_dir() else tasks_folder / row["title"],
        leaking_files=int(row.get("leaking_files") or 0),
        leaking_groups=None if row.get("leaking_groups") is None else int(row["leaking_groups"]),
        sha256=row.get("sha256"),
        number=number,
    )


def _task_row(task: TaskFacts) -> dict[str, object]:
    return {
        "title": task.title,
        "name": task.name,
        "embedding_type": task.embedding_type,
        "prediction_type": task.prediction_type,
        "classes": len(task.labels),
        "clips": task.clips,
        "labels": task.labels,
        "metrics": task.metrics,
        "folder": str(task.folder),
        "leaking_files": task.leaking_files,
        "leaking_groups": task.leaking_groups,
        "sha256": task.sha256,
    }


def _read_outcome(results: Path, row: Mapping[str, Any]) -> Outcome:
    means, stds, intervals = (row.get(key) or {} for key in ("mean", "std", "interval_95"))
    # The primary metric comes first, and is there even if it was not written.
    scores = {
        metric: Score(mean=finite(mean), std=finite(stds.get(metric)), interval_95=_interval(intervals.get(metric)))
        for metric, mean in {row["primary"]: None, **means}.items()
    }
    return Outcome(
        column=_column(row),
        title=str(row["task"]),
        primary=row["primary"],
        scores=scores,
        splits=[_read_split(results, split) for split in row.get("splits") or []],
        seconds=finite(row.get("seconds")),
        conditions=row.get("conditions") or {},
    )


def _outcome_row(results: Path, outcome: Outcome) -> dict[str, object]:
    scores = outcome.scores.items()
    return {
        **_names(outcome),
        "primary": outcome.primary,
        "higher_is_better": higher_is_better(outcome.primary),
        "mean": {metric: score.mean for metric, score in scores},
        "std": {metric: score.std for metric, score in scores},
        "interval_95": {metric: score.interval_95 for metric, score in scores},
        "splits": [_split_row(results, split) for split in outcome.splits],
        "seconds": outcome.seconds,
        "conditions": outcome.conditions,
    }


def _read_split(results: Path, row: Mapping[str, Any]) -> Split:
    setting = row.get("setting")
    return Split(
        name=str(row["name"]),
        scores=_finite_scores(row.get("scores")),
        validation_score=finite(row.get("validation_score")),
        epoch=_whole(row.get("epoch")),
        setting=setting if isinstance(setting, dict) else {},
        repeats=[_finite_scores(scores) for scores in row.get("repeats") or []],
        seconds=finite(row.get("seconds")),
        predictions=results / row["predictions"] if row.get("predictions") else None,
    )


def _split_row(results: Path, split: Split) -> dict[str, object]:
    path = split.predictions
    # A relative path stays right when the folder of the results is moved.
    if path is not None and path.is_relative_to(results):
        path = path.relative_to(results)
    return {**vars(split), "repeats": list(split.repeats), "predictions": path and path.as_posix()}


def save_split(results: Path, path: Path, split: Split, arrays: Mapping[str, np.ndarray], fingerprint: str) -> Split:
    """Save a split at `path`, a JSON file, and its predictions beside it; returns the split with their place."""
    split = replace(split, predictions=path.with_suffix(".npz"))
    with atomic_write(path.with_suffix(".npz")) as file:
        # NumPy's stub takes any name for that of its own option.
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    # The JSON is written last: where it exists, the split is complete.
    write_json(path, {**_split_row(results, split), "fingerprint": fingerprint})
    return split


def saved_split(results: Path, path: Path, fingerprint: str) -> Split | None:
    """The split saved at `path`; None if there is none, it is damaged, or it was computed from something else."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        complete = row["fingerprint"] == fingerprint and path.with_suffix(".npz").exists()
        return _read_split(results, row) if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def finite(value: Any) -> float | None:
    """The number, or None for what is not a finite number, which JSON cannot hold."""
    is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _finite_scores(scores: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {metric: finite(value) for metric, value in (scores or {}).items()}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _interval(value: Any) -> tuple[float, float] | None:
    ends = [finite(end) for end in value or []]
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def ranks(outcomes: Iterable[Outcome]) -> dict[Column, int]:
    """The place of each model on a task, 1 the best; equal scores share a place, and those without one have none."""
    scored = [(outcome.column, outcome.score.mean, outcome.primary) for outcome in outcomes]
    values = {
        column: (mean if higher_is_better(metric) else -mean) for column, mean, metric in scored if mean is not None
    }
    return {column: 1 + sum(other > value for other in values.values()) for column, value in values.items()}


def mean_ranks(report: Report) -> tuple[dict[Column, float], int]:
    """The mean place of each column over the tasks that every column has a score on, and how many those are."""
    places = [ranks(report.of_task(task.title)) for task in report.tasks]
    # A mean over different tasks would compare models by what was easy for them.
    common = [place for place in places if len(place) == len(report.columns)]
    if not common:
        return {}, 0
    return {column: sum(p[column] for p in common) / len(common) for column in report.columns}, len(common)


def read_predictions(task: TaskFacts, outcome: Outcome) -> Predictions | None:
    """The predictions of a scene task's splits, one after the other; None if there are none that fit the task."""
    files: list[str] = []
    parts: list[str] = []
    targets, probabilities = [], []
    for split in outcome.splits:
        arrays = _arrays(split.predictions, ("files", "split", "targets", "probabilities"))
        if arrays is None:
            continue
        names, folders, truth, shares = arrays
        # The task may have been replaced since by one of other labels.
        shape = (len(names), len(task.labels))
        if truth.shape == shares.shape == shape and len(folders) == len(names):
            files += [str(name) for name in names]
            parts += [str(folder) for folder in folders]
            targets.append(truth > 0)
            probabilities.append(shares)
    return Predictions(files, parts, np.concatenate(targets), np.concatenate(probabilities)) if files else None


def read_event_files(outcome: Outcome) -> list[EventFile]:
    """The files of an event task with their events, of all splits whose predictions are at hand."""
    found = []
    for split in outcome.splits:
        arrays = _arrays(split.predictions, ("predicted", "reference"))
        if arrays is None:
            continue
        try:
            predicted, reference = (json.loads(str(array)) for array in arrays)
            for name in dict.fromkeys([*reference, *predicted]):
                found.append(EventFile(name, split.parts, _events(reference, name), _events(predicted, name)))
        except (ValueError, TypeError, AttributeError):
            continue
    return found


def _events(by_file: Mapping[str, Any], name: str) -> list[tuple[str, float, float]]:
    return [(str(label), float(start), float(end)) for label, start, end in by_file.get(name, [])]


def _arrays(path: Path | None, names: tuple[str, ...]) -> list[np.ndarray] | None:
    """Arrays of an npz file; None if it is missing or damaged: the page does without."""
    if path is None:
        return None
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
