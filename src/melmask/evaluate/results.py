"""Read and write the files of an evaluation; no other module does.

RESULTS/
    results.json                everything (docs/formats.md); a later evaluation extends it
    results.csv                 a row for each model, task, protocol and metric
    models/MODEL/TASK/PROTOCOL/ the result of each split: SPLIT.json, and its predictions in SPLIT.npz

A file may come from another version of melmask. A field that is missing gets its default, and a field that is unknown
is left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np

from melmask.downstream.metrics import higher_is_better
from melmask.errors import InputError
from melmask.evaluate.records import Column, Failure, ModelFacts, Outcome, Report, Score, Split, TaskFacts, finite
from melmask.evaluate.tasks import LAST_EVENT_MS
from melmask.system.arrays import read_arrays
from melmask.system.files import atomic_write, write_csv, write_json
from melmask.system.reading import (
    LARGE_FILE_BYTES,
    DamagedFileError,
    parse_json,
    read_json,
    read_json_object,
    reason_of,
)

RESULTS = "results.json"
FORMAT = 1
Record = TypeVar("Record", ModelFacts, TaskFacts, Split)


class Predictions(NamedTuple):
    """Rows of a scene task over all splits: files, parts (rows,), and targets, probabilities (rows, classes)."""

    files: list[str]
    parts: list[str]
    targets: np.ndarray
    probabilities: np.ndarray


class EventFile(NamedTuple):
    """A file of an event task: the folders that it may be in, and (label, start_ms, end_ms) of its events."""

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
        content = read_json(path, LARGE_FILE_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the folder that melmask evaluate wrote") from None
    except (OSError, DamagedFileError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); evaluate again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}; evaluate again with this version of melmask")
    try:
        tasks_folder = str(content.get("tasks_folder") or "")
        tasks = [_read_task(number, row, Path(tasks_folder)) for number, row in enumerate(content["tasks"])]
        return Report(
            created=str(content.get("created", "")),
            version=str(content.get("melmask", "")),
            tasks_folder=tasks_folder,
            models=[_read(ModelFacts, row) for row in content["models"]],
            tasks=tasks,
            results=[_read_outcome(results, row) for row in content["results"]],
            failed=[
                Failure(column=_column(row), title=str(row["task"]), reason=str(row["reason"]))
                for row in content.get("failed") or []
            ],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} does not hold results of melmask evaluate ({error!r}); evaluate again") from error


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
    write_csv(results / "results.csv", _csv_rows(report))


def _csv_rows(report: Report) -> Iterator[Sequence[object]]:
    yield "model", "task", "protocol", "metric", "primary", "mean", "std", "low_95", "high_95", "splits"
    for outcome in report.results:
        for metric, score in outcome.scores.items():
            numbers = (score.mean, score.std, *(score.interval_95 or (None, None)))
            primary = int(metric == outcome.primary)
            yield *_names(outcome).values(), metric, primary, *numbers, len(outcome.splits)


def _names(entry: Outcome | Failure) -> dict[str, str]:
    return {"model": entry.column.model, "task": entry.title, "protocol": entry.column.protocol}


def _column(row: Mapping[str, Any]) -> Column:
    return Column(str(row["model"]), str(row.get("protocol") or ""))


def _read(record: type[Record], row: Mapping[str, Any], **read: Any) -> Record:
    """Build a record from a row of a file; `read` has the fields that are not plain texts or numbers.

    A value of a wrong type counts as missing.

    Raises:
        TypeError: a field without a default is missing.
    """
    types = get_type_hints(record)
    for name in (types.keys() & row.keys()) - read.keys():
        # In Python, true and false are whole numbers, but no field has them.
        if isinstance(row[name], types[name]) and not isinstance(row[name], bool):
            read[name] = row[name]
    return record(**read)


def _read_task(number: int, row: Mapping[str, Any], tasks_folder: Path) -> TaskFacts:
    # The folder that was written down may be on another machine.
    folder = Path(row.get("folder") or "")
    folder = folder if folder.is_dir() else tasks_folder / row["title"]
    labels = [str(label) for label in row["labels"]]
    return _read(TaskFacts, row, labels=labels, metrics=list(row["metrics"]), folder=folder, number=number)


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
    # The primary metric comes first. It gets an entry even if the file has none.
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
    return _read(
        Split,
        row,
        scores=_finite_scores(row.get("scores")),
        validation_score=finite(row.get("validation_score")),
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
    return {**vars(split), "predictions": path and path.as_posix()}


def save_split(results: Path, path: Path, split: Split, arrays: Mapping[str, np.ndarray], fingerprint: str) -> Split:
    """Save a split at `path`, a JSON file, and its predictions beside it; return the split with their path."""
    split = replace(split, predictions=path.with_suffix(".npz"))
    with atomic_write(path.with_suffix(".npz")) as file:
        # NumPy's stub takes any name for that of its own option.
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    # The JSON is written last: where it exists, the split is complete.
    write_json(path, {**_split_row(results, split), "fingerprint": fingerprint})
    return split


def saved_split(results: Path, path: Path, fingerprint: str) -> Split | None:
    """Return the split saved at `path`, or None if it is missing, damaged, or was computed from other data."""
    try:
        row = read_json_object(path)
        # The fingerprint covers vectors, labels and settings. Without its predictions a split is computed again.
        complete = row["fingerprint"] == fingerprint and path.with_suffix(".npz").exists()
        return _read_split(results, row) if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _finite_scores(scores: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {metric: finite(value) for metric, value in (scores or {}).items()}


def _interval(value: Any) -> tuple[float, float] | None:
    ends = [finite(end) for end in value or []]
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def ranks(outcomes: Iterable[Outcome]) -> dict[Column, int]:
    """Return the place of each column that has a score on a task, 1 for the best; equal scores share a place."""
    values = {
        outcome.column: outcome.score.mean if higher_is_better(outcome.primary) else -outcome.score.mean
        for outcome in outcomes
        if outcome.score.mean is not None
    }
    return {column: 1 + sum(other > value for other in values.values()) for column, value in values.items()}


def mean_ranks(report: Report) -> tuple[dict[Column, float], int]:
    """Return the mean place of each column over the tasks on which all have a score, and the number of those tasks."""
    places = [ranks(report.of_task(task.title)) for task in report.tasks]
    # If the means were over different tasks, a model with easy tasks would look better.
    common = [place for place in places if len(place) == len(report.columns)]
    if not common:
        return {}, 0
    return {column: sum(p[column] for p in common) / len(common) for column in report.columns}, len(common)


def read_predictions(task: TaskFacts, outcome: Outcome) -> Predictions | None:
    """Return the predictions of a scene task, split by split, or None if there are none that fit the task."""
    files: list[str] = []
    parts: list[str] = []
    targets, probabilities = [], []
    for split in outcome.splits:
        arrays = _arrays(split.predictions, ("files", "split", "targets", "probabilities"))
        if arrays is None:
            continue
        names, folders, truth, shares = arrays
        # The task may have been replaced by one with other labels since.
        shape = (len(names), len(task.labels))
        if truth.shape == shares.shape == shape and len(folders) == len(names):
            files += [str(name) for name in names]
            parts += [str(folder) for folder in folders]
            targets.append(truth > 0)
            probabilities.append(shares)
    return Predictions(files, parts, np.concatenate(targets), np.concatenate(probabilities)) if files else None


def read_event_files(outcome: Outcome) -> list[EventFile]:
    """Return the files of an event task with their events, of all splits whose predictions can be read."""
    found = []
    for split in outcome.splits:
        arrays = _arrays(split.predictions, ("predicted", "reference"))
        if arrays is None:
            continue
        try:
            predicted, reference = (parse_json(str(array)) for array in arrays)
            for name in dict.fromkeys([*reference, *predicted]):
                found.append(EventFile(name, split.parts, _events(reference, name), _events(predicted, name)))
        except (ValueError, TypeError, AttributeError):
            # The file is damaged, and the page shows the other splits.
            continue
    return found


def _events(by_file: Mapping[str, Any], name: str) -> list[tuple[str, float, float]]:
    """Return the events of a file; raise ValueError or TypeError if they have no times within a day."""
    events = [(str(label), float(start), float(end)) for label, start, end in by_file.get(name, [])]
    # Pages keep a number for each 10 ms up to the last one.
    if not all(-LAST_EVENT_MS <= start <= end <= LAST_EVENT_MS for _, start, end in events):
        raise ValueError(name)
    return events


def _arrays(path: Path | None, names: tuple[str, ...]) -> list[np.ndarray] | None:
    """Return arrays of an npz file, or None if it is missing or damaged: the page does without them."""
    if path is None:
        return None
    try:
        return read_arrays(path, names)
    except (OSError, DamagedFileError):
        return None
