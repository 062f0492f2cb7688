"""What few-labels.json holds: scores over the number of labels per class; and the same as text and as CSV rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from melmask.downstream.options import ALL

CSV_COLUMNS = (
    *("task", "representation", "classifier", "per_class", "mean_per_class", "accuracy", "std"),
    *("low_95", "high_95", "draws", "test_low_95", "test_high_95"),
)
_CELL = 24

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What a number of labels per class means on a task."""

    per_class: int | str
    """The number asked for, or "all"."""
    mean_per_class: float
    """Labeled clips per class, a mean over classes and splits: less where a class has fewer."""
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
class TaskCurves:
    """The curves of one task."""

    normalization: dict[str, str | float] = field(default_factory=dict)
    """Where the mean and std of the log-mels are from, and what they are."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why files were left out, by path."""
    clips: int
    classes: int
    chance: float
    splits: list[str]
    leaking_groups: int
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
    tasks: dict[str, TaskCurves] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why tasks have no curves, by name."""


def curves_text(tasks: dict[str, TaskCurves]) -> str:
    """Return the curves as plain-text tables, one a task and classifier, and below them what the reader should know."""
    return "\n\n".join("\n".join(_task_lines(name, task)) for name, task in tasks.items())


def csv_rows(tasks: dict[str, TaskCurves]) -> Iterator[tuple[object, ...]]:
    """Yield the header of few-labels.csv and a row for each score."""
    yield CSV_COLUMNS
    for name, task in tasks.items():
        for representation, of_features in task.scores.items():
            for judge, scores in of_features.items():
                for point, score in zip(task.points, scores, strict=True):
                    low, high = score.interval_95 or (None, None)
                    yield (name, representation, judge, point.per_class, point.mean_per_class, score.accuracy,
                           score.std, low, high, point.draws, *score.test_interval_95)  # fmt: skip


def _task_lines(name: str, task: TaskCurves) -> Iterator[str]:
    splits, draws = len(task.splits), task.points[0].draws
    facts = f"{task.classes} classes, chance {task.chance:.3f}, {splits} split{'s' * (splits > 1)}, "
    for judge in next(iter(task.scores.values())):
        yield f"{name}, {judge} probe: {facts}{draws} draw{'s' * (draws > 1)}"
        yield f"{'labels per class':<18}" + "".join(f"{representation:>{_CELL}}" for representation in task.scores)
        for index, point in enumerate(task.points):
            label = f"{point.per_class}{'*' * bool(point.classes_with_fewer)}"
            label += f" ({point.mean_per_class:.1f})" if point.per_class == ALL else ""
            yield f"{label:<18}{''.join(_cell(of[judge][index]) for of in task.scores.values())}".rstrip()
        yield ""
    yield "[low, high]: 95 % t-interval over draws; it is about which clips were drawn, not about which were tested"
    fewest = next((point for point in task.points if point.classes_with_fewer), None)
    if fewest is not None:
        short = len(fewest.classes_with_fewer)
        yield f"* {short} of {task.classes} classes have fewer than {fewest.per_class} and give all they have"
    if task.same_as_all:
        numbers = ", ".join(str(number) for number in task.same_as_all)
        yield f"{numbers}: no class has more training clips, so this is '{ALL}'"
    if task.unreadable:
        yield f"{len(task.unreadable)} files could not be read and were left out"
    if task.leaking_groups:
        yield f"{task.leaking_groups} groups have clips on both sides of a split"


def _cell(score: CurveScore) -> str:
    if score.interval_95 is None:
        return f"{score.accuracy:.3f}".ljust(len("0.000 [0.000, 0.000]")).rjust(_CELL)
    low, high = score.interval_95
    return f"{score.accuracy:.3f} [{low:.3f}, {high:.3f}]".rjust(_CELL)
