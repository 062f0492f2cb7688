"""What the folder of an evaluation holds: results.json and the predictions, as the page needs them."""

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from melmask.downstream.metrics import higher_is_better
from melmask.errors import InputError

RESULTS = "results.json"
FORMAT = 1


class Score(NamedTuple):
    """One metric over the splits; what is not known or no number is None."""

    mean: float | None
    std: float | None
    interval_95: tuple[float, float] | None


class Split(NamedTuple):
    """What one test split gave."""

    name: str
    scores: Mapping[str, float | None]
    facts: Mapping[str, Any]
    """validation_score, epoch, setting, seconds, ... as they are in the file."""
    predictions: Path | None

    @property
    def parts(self) -> list[str]:
        """The folders its clips may be in."""
        return self.name.split("|")


class Column(NamedTuple):
    """A model as one protocol judged it; the protocol is empty for a model that failed everywhere."""

    model: str
    protocol: str


class Outcome(NamedTuple):
    """A model on a task."""

    column: Column
    primary: str
    scores: Mapping[str, Score]
    splits: list[Split]
    conditions: Mapping[str, Any]
    """grid_points, seed and head_precision of `hear` and `hear-fixed`, where they are known."""

    @property
    def score(self) -> Score:
        """The primary metric."""
        return self.scores[self.primary]


class TaskFacts(NamedTuple):
    """What results.json says of a task."""

    number: int
    """Its place in the file."""
    title: str
    name: str
    embedding_type: str
    prediction_type: str
    labels: list[str]
    clips: int | None
    metrics: list[str]
    folder: Path
    leaking_files: int
    leaking_groups: int | None
    """None where the task names no groups."""

    @property
    def primary(self) -> str:
        """The metric that the task is judged by."""
        return self.metrics[0] if self.metrics else ""


class Failure(NamedTuple):
    """A model that did not get through a task; the protocol may be empty."""

    column: Column
    title: str
    reason: str


class Report(NamedTuple):
    """A whole results.json."""

    created: str
    version: str
    models: list[Mapping[str, Any]]
    tasks: list[TaskFacts]
    columns: list[Column]
    outcomes: Mapping[tuple[str, Column], Outcome]
    """By the task's title and the column."""
    failed: list["Failure"]

    def of_task(self, title: str) -> list[Outcome]:
        """The outcomes of a task, in the order of the columns."""
        return [self.outcomes[title, column] for column in self.columns if (title, column) in self.outcomes]

    @property
    def protocols(self) -> list[str]:
        """Those that judged a model, in the order of the columns."""
        return list(dict.fromkeys(column.protocol for column in self.columns if column.protocol))

    def of_protocol(self, protocol: str) -> "Report":
        """What one protocol judged, and the models that failed everywhere: only such scores can be compared."""
        columns = [column for column in self.columns if column.protocol in (protocol, "")]
        outcomes = {key: outcome for key, outcome in self.outcomes.items() if key[1].protocol == protocol}
        failed = [failure for failure in self.failed if failure.column.protocol in (protocol, "")]
        titles = {title for title, _ in outcomes} | {failure.title for failure in failed}
        tasks = [task for task in self.tasks if task.title in titles]
        return self._replace(columns=columns, outcomes=outcomes, failed=failed, tasks=tasks)

    def colour(self, column: Column) -> int:
        """The number of a model's colour, the same for all protocols."""
        return next(i for i, model in enumerate(self.models) if model["name"] == column.model)

    def has_failed(self, title: str, column: Column) -> bool:
        """Whether a model did not get through a task; a failure without a protocol is one of all of them."""
        names = (column, Column(column.model, ""))
        return any(failure.title == title and failure.column in names for failure in self.failed)


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
        return _report(results, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} is not what melmask evaluate writes ({error!r}); evaluate again") from error


def _report(results: Path, content: dict[str, Any]) -> Report:
    folder = Path(content.get("tasks_folder") or "")
    tasks = [_task(number, facts, folder) for number, facts in enumerate(content["tasks"])]
    rows = [(row["task"], _outcome(results, row)) for row in content["results"]]
    failed = [
        Failure(Column(row["model"], row.get("protocol") or ""), row["task"], str(row["reason"]))
        for row in content.get("failed") or []
    ]
    seen = dict.fromkeys([outcome.column for _, outcome in rows] + [failure.column for failure in failed])
    columns = []
    for model in content["models"]:
        own = [column for column in seen if column.model == model["name"]]
        # A failure that names no protocol needs a column of its own only if there is no other.
        columns += [column for column in own if column.protocol or len(own) == 1]
    return Report(
        created=str(content.get("created", "")),
        version=str(content.get("melmask", "")),
        models=content["models"],
        tasks=tasks,
        columns=columns,
        outcomes={(title, outcome.column): outcome for title, outcome in rows},
        failed=failed,
    )


def _task(number: int, facts: Mapping[str, Any], tasks_folder: Path) -> TaskFacts:
    folder = Path(facts.get("folder") or "")
    return TaskFacts(
        number=number,
        title=facts["title"],
        name=facts["name"],
        embedding_type=facts["embedding_type"],
        prediction_type=facts["prediction_type"],
        labels=[str(label) for label in facts["labels"]],
        clips=facts.get("clips"),
        metrics=list(facts["metrics"]),
        # The tasks may have been moved with the results.
        folder=folder if folder.is_dir() else tasks_folder / facts["title"],
        leaking_files=int(facts.get("leaking_files") or 0),
        leaking_groups=None if facts.get("leaking_groups") is None else int(facts["leaking_groups"]),
    )


def _outcome(results: Path, row: Mapping[str, Any]) -> Outcome:
    means, stds, intervals = (row.get(key) or {} for key in ("mean", "std", "interval_95"))
    scores = {
        metric: Score(_number(mean), _number(stds.get(metric)), _interval(intervals.get(metric)))
        for metric, mean in {row["primary"]: None, **means}.items()
    }
    splits = [
        Split(
            str(split["name"]),
            {metric: _number(value) for metric, value in (split.get("scores") or {}).items()},
            split,
            results / split["predictions"] if split.get("predictions") else None,
        )
        for split in row.get("splits") or []
    ]
    column = Column(str(row["model"]), str(row["protocol"]))
    return Outcome(column, row["primary"], scores, splits, row.get("conditions") or {})


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _interval(value: Any) -> tuple[float, float] | None:
    ends = [_number(end) for end in value or []]
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
