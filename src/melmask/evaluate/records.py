"""The records of an evaluation: models, tasks, outcomes and failures, as results.json holds them.

`melmask.evaluate.results` reads and writes them.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

Entry = TypeVar("Entry")
Setting = Mapping[str, Any]
"""The settings of a chosen head by name, including the post-processing of events; a file may hold any JSON here."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What results.json says of a model; a size that is not known is None."""

    name: str
    source: str = ""
    settings: str = ""
    identity: str | None = None
    scene_size: int | None = None
    timestamp_size: int | None = None
    sample_rate_hz: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What results.json says of a task."""

    title: str
    name: str
    embedding_type: str
    prediction_type: str
    labels: list[str]
    clips: int | None
    metrics: list[str]
    folder: Path
    """Where the task is now: it may have been moved together with the results."""
    leaking_files: int = 0
    leaking_groups: int | None = None
    """None if the task names no groups."""
    sha256: str | None = None
    """Digest of the labels and sounds; None if sounds are missing."""
    number: int = field(default=0, compare=False)
    """The task's place in the file."""

    @property
    def primary(self) -> str:
        """The metric that the task is judged by."""
        return self.metrics[0] if self.metrics else ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric over the splits; a value that is unknown or not finite is None."""

    mean: float | None
    std: float | None = None
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """The result of one test split; a number that is unknown or not finite is None."""

    name: str
    scores: Mapping[str, float | None]
    validation_score: float | None = None
    epoch: int | None = None
    setting: Setting = field(default_factory=dict)
    repeats: list[Mapping[str, float | None]] = field(default_factory=list)
    """The scores of each seed if there are several, of which `scores` has the means."""
    seconds: float | None = None
    """The training times of all heads, added up."""
    predictions: Path | None = None

    @property
    def parts(self) -> list[str]:
        """The folders its clips may be in."""
        return self.name.split("|")


class Column(NamedTuple):
    """A model and the protocol that judged it; the protocol is empty for a model that failed everywhere."""

    model: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A model's scores on a task."""

    column: Column
    title: str
    """Title of the task."""
    primary: str
    scores: Mapping[str, Score]
    splits: list[Split]
    seconds: float | None = None
    conditions: Mapping[str, int | str] = field(default_factory=dict)
    """grid_points, seed and head_precision of `hear` and `hear-fixed`; scores compare only if these are equal."""

    @property
    def score(self) -> Score:
        """The primary metric."""
        return self.scores[self.primary]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A model that could not be judged on a task; the protocol may be empty."""

    column: Column
    title: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of results.json."""

    created: str
    version: str
    """The version of melmask that wrote it."""
    tasks_folder: str
    models: list[ModelFacts] = field(default_factory=list)
    tasks: list[TaskFacts] = field(default_factory=list)
    results: list[Outcome] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    @functools.cached_property
    def columns(self) -> list[Column]:
        """The columns of a table of scores, in the order of the models."""
        # A dictionary keeps the order of its keys, and drops repetitions.
        seen = dict.fromkeys([*(outcome.column for outcome in self.results), *(f.column for f in self.failed)])
        columns = []
        for model in self.models:
            own = [column for column in seen if column.model == model.name]
            # A failure that names no protocol needs a column of its own only if there is no other.
            columns += [column for column in own if column.protocol or len(own) == 1]
        return columns

    @functools.cached_property
    def outcomes(self) -> Mapping[tuple[str, Column], Outcome]:
        """The outcomes by task title and column."""
        return {(outcome.title, outcome.column): outcome for outcome in self.results}

    def of_task(self, title: str) -> list[Outcome]:
        """Return the outcomes of a task, in the order of the columns."""
        return [self.outcomes[title, column] for column in self.columns if (title, column) in self.outcomes]

    @property
    def protocols(self) -> list[str]:
        """The protocols that judged a model, in the order of the columns."""
        return list(dict.fromkeys(column.protocol for column in self.columns if column.protocol))

    def of_protocol(self, protocol: str) -> "Report":
        """Return what one protocol judged, and the models that failed everywhere: only such scores compare."""
        # A failure without a protocol says nothing about this protocol if another protocol judged the model.
        shown = {column.model for column in self.columns if column.protocol in (protocol, "")}
        results = [outcome for outcome in self.results if outcome.column.protocol == protocol]
        failed = [f for f in self.failed if f.column.protocol in (protocol, "") and f.column.model in shown]
        titles = {outcome.title for outcome in results} | {failure.title for failure in failed}
        return replace(self, tasks=[t for t in self.tasks if t.title in titles], results=results, failed=failed)

    def color(self, column: Column) -> int:
        """Return the number of a model's color, which is the same for all protocols."""
        return next(i for i, model in enumerate(self.models) if model.name == column.model)

    def has_failed(self, title: str, column: Column) -> bool:
        """Return whether a model could not be judged on a task."""
        # A failure before any protocol began has an empty protocol, and is a failure of all of them.
        names = (column, Column(column.model, ""))
        return any(failure.title == title and failure.column in names for failure in self.failed)

    def with_model(self, model: ModelFacts) -> "Report":
        """Return a copy with this model, which replaces one of the same name."""
        return replace(self, models=_put(self.models, lambda known: known.name, model))

    def with_task(self, task: TaskFacts) -> "Report":
        """Return a copy with this task, which replaces one of the same title."""
        return replace(self, tasks=_put(self.tasks, lambda known: known.title, task))

    def with_outcome(self, outcome: Outcome) -> "Report":
        """Return a copy with this outcome, which replaces one of the same model, task and protocol."""
        return replace(self, results=_put(self.results, lambda known: (known.title, known.column), outcome))

    def without_failure(self, title: str, column: Column) -> "Report":
        """Return a copy without the failure of a model on a task."""
        return replace(self, failed=[f for f in self.failed if (f.title, f.column) != (title, column)])

    def without_task(self, title: str) -> "Report":
        """Return a copy without the outcomes and failures of a task."""
        results = [outcome for outcome in self.results if outcome.title != title]
        return replace(self, results=results, failed=[f for f in self.failed if f.title != title])


def _put(entries: list[Entry], key: Callable[[Entry], object], entry: Entry) -> list[Entry]:
    """Return the entries with `entry` in the place of the one that has the same key, or at the end."""
    changed = [entry if key(known) == key(entry) else known for known in entries]
    return changed if any(known is entry for known in changed) else [*entries, entry]


def finite(value: Any) -> float | None:
    """Return the number, or None for anything that is not a finite number, which JSON cannot hold."""
    # In Python, true and false are whole numbers.
    is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
