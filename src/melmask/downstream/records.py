"""What probe.json and few-labels.json hold, and the same as text and as CSV rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from melmask.audio.notes import summary
from melmask.config import Reading
from melmask.downstream.options import ALL
from melmask.system.terminal import counted, shown

_CELL, _CURVE_CELL = 20, 24
"""Characters of a column of scores, and of one of scores with intervals."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What both commands report of a task."""

    clips: int
    classes: int
    splits: list[str]
    normalization: dict[str, str | float] = field(default_factory=dict)
    """Where the mean and std of the log-mels are from, and what they are."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why files were left out, by path."""
    noticed: dict[str, str] = field(default_factory=dict)
    """What is to be known of files that were read, by path."""
    leaking_groups: int

    def notes(self) -> Iterator[str]:
        """Yield what the reader of the scores should know of the task's files."""
        if self.unreadable:
            yield f"{counted(len(self.unreadable), 'file')} could not be used, and left out"
        yield from summary(self.noticed.values(), "the report")
        if self.leaking_groups:
            yield f"{counted(self.leaking_groups, 'group')} with clips on both sides of a split"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of one representation and classifier; accuracies are shares between 0 and 1.

    Where clips have several labels, `accuracy` holds the mean average precision instead, as `ProbedTask.metric` says.
    """

    accuracy: float
    std: float | None
    """Standard deviation over the splits; None for a single one."""
    interval_95: Interval | None
    """None for several labels a clip."""
    splits: tuple[float, ...]
    """The accuracy of each split."""


@dataclass(frozen=True, kw_only=True)
class ProbedTask(TaskFacts):
    """What the probes found on one task."""

    scores: dict[str, dict[str, Score]]
    """By representation and classifier."""
    metric: str = "accuracy"
    """What the scores are: accuracy, or mAP where clips have several labels."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """All of probe.json."""

    model: str
    layer: list[int] | None
    pooling: str
    scene: str
    scheme: str
    seed: int
    reading: Reading = Reading()
    """How the files were read."""
    tasks: dict[str, ProbedTask] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why tasks have no scores, by name."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What a number of labels per class means on a task."""

    per_class: int | str
    """The number asked for, or "all"."""
    mean_per_class: float
    """Labeled clips per class, a mean over classes and splits. It is less than `per_class` where a class has fewer."""
    draws: int
    neighbors: int
    """How many neighbors vote in k-NN."""
    classes_with_fewer: list[str]


@dataclass(frozen=True, kw_only=True)
class CurveScore:
    """The score of one representation and classifier at one point."""

    accuracy: float
    """Mean over the draws of the mean over the splits."""
    std: float | None
    """Standard deviation over the draws; None for a single one."""
    interval_95: Interval | None
    """t-interval over the draws; None for a single one."""
    test_interval_95: Interval
    """Binomial interval over the tested clips."""
    accuracies: list[list[float]]
    """Of each draw, of each split."""


@dataclass(frozen=True, kw_only=True)
class TaskCurves(TaskFacts):
    """The curves of one task."""

    chance: float
    same_as_all: list[int]
    """Numbers that no class has more training clips than."""
    points: list[CurvePoint]
    scores: dict[str, dict[str, list[CurveScore]]]
    """By representation and classifier, a score for each point."""


@dataclass(frozen=True, kw_only=True)
class FewLabelsReport:
    """All of few-labels.json."""

    model: str
    layer: list[int] | None
    pooling: str
    scene: str
    seed: int
    scheme: str
    per_class: list[int | str]
    draws: int
    reading: Reading = Reading()
    """How the files were read."""
    tasks: dict[str, TaskCurves] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why tasks have no curves, by name."""


def probe_rows(tasks: dict[str, ProbedTask]) -> Iterator[tuple[object, ...]]:
    """Yield the header of probe.csv and a row for each score."""
    yield "task", "representation", "classifier", "accuracy", "std", "low_95", "high_95", "metric"
    for name, task in tasks.items():
        for representation, scores in task.scores.items():
            for classifier, score in scores.items():
                interval = score.interval_95 or (None, None)
                yield name, representation, classifier, score.accuracy, score.std, *interval, task.metric


def curve_rows(tasks: dict[str, TaskCurves]) -> Iterator[tuple[object, ...]]:
    """Yield the header of few-labels.csv and a row for each score."""
    yield ("task", "representation", "classifier", "per_class", "mean_per_class", "accuracy", "std", "low_95",
           "high_95", "draws", "test_low_95", "test_high_95")  # fmt: skip
    for name, task in tasks.items():
        for representation, of_features in task.scores.items():
            for judge, scores in of_features.items():
                for point, score in zip(task.points, scores, strict=True):
                    low, high = score.interval_95 or (None, None)
                    yield (name, representation, judge, point.per_class, point.mean_per_class, score.accuracy,
                           score.std, low, high, point.draws, *score.test_interval_95)  # fmt: skip


def table_text(report: ProbeReport) -> str:
    """Return the scores of a probe as plain-text tables, one a classifier.

    A row is a task and a column a representation. The means over tasks come last.
    """
    scores_of = {shown(name): task.scores for name, task in report.tasks.items()}
    splits_of = {shown(name): len(task.splits) for name, task in report.tasks.items()}
    metric_of = {shown(name): task.metric for name, task in report.tasks.items()}
    representations = next(iter(scores_of.values()))
    titles = {name: name if metric == "accuracy" else f"{name} ({metric})" for name, metric in metric_of.items()}
    width = max(12, *map(len, titles.values()))
    lines = []
    for classifier in next(iter(representations.values())):
        header = "".join(name.rjust(_CELL) for name in representations)
        lines.append(f"{classifier + ' probe':<{width}}  {'splits':<8}{header}")
        for name, scores in scores_of.items():
            cells = "".join(_cell(scores[representation][classifier]) for representation in representations)
            lines.append(f"{titles[name]:<{width}}  {splits_of[name]:<8}{cells}")
        if len(scores_of) > 1 and len(set(metric_of.values())) == 1:
            sums = [sum(of[name][classifier].accuracy for of in scores_of.values()) for name in representations]
            means = "".join(f"{total / len(scores_of):.3f}".rjust(_CELL) for total in sums)
            lines.append(f"{'mean':<{width}}  {'':<8}{means}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(score: Score) -> str:
    spread = "" if score.std is None else f" ± {score.std:.3f}"
    return f"{score.accuracy:.3f}{spread}".rjust(_CELL)


def curves_text(tasks: dict[str, TaskCurves]) -> str:
    """Return curves as plain-text tables, one a task and classifier, with what the reader should know below them."""
    return "\n\n".join("\n".join(_task_lines(name, task)) for name, task in tasks.items())


def _task_lines(name: str, task: TaskCurves) -> Iterator[str]:
    splits, draws = len(task.splits), task.points[0].draws
    facts = f"{task.classes} classes, chance {task.chance:.3f}, {splits} split{'s' * (splits > 1)}, "
    for judge in next(iter(task.scores.values())):
        yield f"{shown(name)}, {judge} probe: {facts}{draws} draw{'s' * (draws > 1)}"
        yield f"{'labels per class':<18}" + "".join(representation.rjust(_CURVE_CELL) for representation in task.scores)
        for index, point in enumerate(task.points):
            label = f"{point.per_class}{'*' * bool(point.classes_with_fewer)}"
            label += f" ({point.mean_per_class:.1f})" if point.per_class == ALL else ""
            yield f"{label:<18}{''.join(_curve_cell(of[judge][index]) for of in task.scores.values())}".rstrip()
        yield ""
    yield "[low, high]: 95 % t-interval over draws; it covers which clips were drawn, not which were tested"
    fewest = next((point for point in task.points if point.classes_with_fewer), None)
    if fewest is not None:
        short = len(fewest.classes_with_fewer)
        yield f"* {short} of {task.classes} classes have fewer than {fewest.per_class} and give all they have"
    if task.same_as_all:
        numbers = ", ".join(str(number) for number in task.same_as_all)
        yield f"{numbers}: no class has more training clips, so this is '{ALL}'"
    yield from task.notes()


def _curve_cell(score: CurveScore) -> str:
    if score.interval_95 is None:
        # A score without an interval stands below the scores of the rows that have one.
        return f"{score.accuracy:.3f}".ljust(len("0.000 [0.000, 0.000]")).rjust(_CURVE_CELL)
    low, high = score.interval_95
    return f"{score.accuracy:.3f} [{low:.3f}, {high:.3f}]".rjust(_CURVE_CELL)
