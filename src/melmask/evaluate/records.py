"""The records of an evaluation: models, tasks, outcomes and failures, as results.json holds them.

`melmask.evaluate.results` reads and writes them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Entry = TypeVar("Entry")
Setting = Mapping[str, Any]
"""The settings of a chosen head by name, with the post-processing of events among them; any JSON of a file."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What results.json says of a model; the sizes are None where they are not known."""

    name: str
    source: str = ""
    settings: str = ""
    identity: str | None = None
    scene_size: int | None = None
    timestamp_size: int | None = None
    sample_rate_hz: int | None = None

    # A page may read the fields like those of results.json.
    def __getitem__(self, name: str) -> Any:
        """A field by its name."""
        return vars(self)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A field by its name, or `default` if there is no such field."""
        return vars(self).get(name, default)


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
    """Where the task is now: the tasks may have been moved together with the results."""
    leaking_files: int = 0
    leaking_groups: int | None = None
    """None where the task names no groups."""
    sha256: str | None = None
    """Digest of the labels and sounds; None where sounds are missing."""
    number: int = field(default=0, compare=False)
    """The task's place in the file."""

    @property
    def primary(self) -> str:
        """The metric that the task is judged by."""
        return self.metrics[0] if self.metrics else ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric over the splits; what is unknown or no number is None."""

    mean: float | None
    std: float | None = None
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """What one test split gave."""

    name: str
    scores: Mapping[str, float | None]
    validation_score: float | None = None
    epoch: int | None = None
    setting: Setting = field(default_factory=dict)
    repeats: Sequence[Mapping[str, float | None]] = ()
    """The scores of each seed where there are several."""
    seconds: float | None = None
    predictions: Path | None = None

    @property
    def parts(self) -> list[str]:
        """The folders its clips may be in."""
        return self.name.split("|")

    @property
    def facts(self) -> Mapping[str, Any]:
        """All fields by their names."""
        return vars(self)


class Column(NamedTuple):
    """A model as one protocol judged it; the protocol is empty for a model that failed everywhere."""

    model: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A model's scores on a task."""

    column: Column
    title: str
    """The task's."""
    primary: str
    scores: Mapping[str, Score]
    splits: list[Split]
    seconds: float | None = None
    conditions: Mapping[str, int | str] = field(default_factory=dict)
    """grid_points, seed and head_precision of `hear` and `hear-fixed`: scores compare only where these are equal."""

    @property
    def score(self) -> Score:
        """The primary metric."""
        return self.scores[self.primary]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A model that did not get through a task; the protocol may be empty."""

    column: Column
    title: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole results.json."""

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
        seen = dict.fromkeys([*(outcome.column for outcome in self.results), *(f.column for f in self.failed)])
        columns = []
        for model in self.models:
            own = [column for column in seen if column.model == model.name]
            # A failure that names no protocol needs a column of its own only if there is no other.
            columns += [column for column in own if column.protocol or len(own) == 1]
        return columns

    @functools.cached_property
    def outcomes(self) -> Mapping[tuple[str, Column], Outcome]:
        """The outcomes by the task's title and the column."""
        return {(outcome.title, outcome.column): outcome for outcome in self.results}

    def of_task(self, title: str) -> list[Outcome]:
        """The outcomes of a task, in the order of the columns."""
        return [self.outcomes[title, column] for column in self.columns if (title, column) in self.outcomes]

    @property
    def protocols(self) -> list[str]:
        """The protocols that judged a model, in the order of the columns."""
        return list(dict.fromkeys(column.protocol for column in self.columns if column.protocol))

    def of_protocol(self, protocol: str) -> "Report":
        """What one protocol judged, and the models that failed everywhere: only such scores can be compared."""
        # Of a model that another protocol judged, a failure without a protocol says nothing about this one.
        shown = {column.model for column in self.columns if column.protocol in (protocol, "")}
        results = [outcome for outcome in self.results if outcome.column.protocol == protocol]
        failed = [f for f in self.failed if f.column.protocol in (protocol, "") and f.column.model in shown]
        titles = {outcome.title for outcome in results} | {failure.title for failure in failed}
        return replace(self, tasks=[t for t in self.tasks if t.title in titles], results=results, failed=failed)

    def colour(self, column: Column) -> int:
        """The number of a model's color, which is the same for all protocols."""
        return next(i for i, model in enumerate(self.models) if model.name == column.model)

    def has_failed(self, title: str, column: Column) -> bool:
        """Whether a model did not get through a task; a failure without a protocol is one of all of them."""
        # A failure before any protocol began stands under an empty protocol.
        names = (column, Column(column.model, ""))
        return any(failure.title == title and failure.column in names for failure in self.failed)

    def with_model(self, model: ModelFacts) -> "Report":
        """A copy with this model, in the place of one with its name."""
        return replace(self, models=_put(self.models, lambda known: known.name, model))

    def with_task(self, task: TaskFacts) -> "Report":
        """A copy with this task, in the place of one with its title."""
        return replace(self, tasks=_put(self.tasks, lambda known: known.title, task))

    def with_outcome(self, outcome: Outcome) -> "Report":
        """A copy with this outcome, in the place of an earlier one of the same model, task and protocol."""
        return replace(self, results=_put(self.results, lambda known: (known.title, known.column), outcome))

    def without_failure(self, title: str, column: Column) -> "Report":
        """A copy that does not say that a model failed on a task."""
        return replace(self, failed=[f for f in self.failed if (f.title, f.column) != (title, column)])

    def without_task(self, title: str) -> "Report":
        """A copy without the outcomes and failures of a task."""
        results = [outcome for outcome in self.results if outcome.title != title]
        return replace(self, results=results, failed=[f for f in self.failed if f.title != title])


def _put(entries: list[Entry], key: Callable[[Entry], object], entry: Entry) -> list[Entry]:
    """The entries with this one in the place of one with the same key, or at the end."""
    changed = [entry if key(known) == key(entry) else known for known in entries]
    return changed if any(known is entry for known in changed) else [*entries, entry]
