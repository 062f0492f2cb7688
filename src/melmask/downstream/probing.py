"""`melmask probe`: one or more labeled tasks, three representations, two classifiers; files and a table."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from melmask.downstream.baselines import PRETRAINED, TaskFeatures, features_of_task
from melmask.downstream.metrics import confusion_counts
from melmask.downstream.options import ProbeOptions
from melmask.downstream.probe import knn_probe, linear_probe
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import InputError
from melmask.figures.confusion import save_confusion_picture
from melmask.labels.splits import leaking_groups, make_splits
from melmask.labels.tables import LabelTable, judged_tables, read_labels
from melmask.system.files import atomic_write, ensure_folder, write_json

CLASSIFIERS = {"linear": linear_probe, "k-NN": knn_probe}


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of one representation and classifier; accuracies are shares between 0 and 1."""

    accuracy: float
    std: float | None
    """Standard deviation over the splits; None for a single one."""
    interval_95: tuple[float, float]
    splits: tuple[float, ...]
    """The accuracy of each split."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What the probes say of one task."""

    clips: int
    classes: int
    splits: list[str]
    normalization: dict[str, str | float]
    """Where the mean and std of the log-mels are from, and what they are."""
    unreadable: dict[str, str]
    """Why files were left out, by path."""
    leaking_groups: int
    scores: dict[str, dict[str, Score]]
    """By representation and classifier."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """All of probe.json."""

    model: str
    layer: list[int] | None
    pooling: str
    scene: str
    scheme: str
    seed: int
    tasks: dict[str, TaskReport] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why tasks have no scores, by name."""


def probe_tasks(
    model: AudioEncoder, label_files: Sequence[Path], out: Path, options: ProbeOptions = ProbeOptions()
) -> ProbeReport:
    """Probe `model` and the two baselines on each table; write probe.json, probe.csv and confusion pictures to `out`.

    Returns what probe.json holds.

    Raises:
        InputError: a table that cannot be used, or no table with readable files.
        OutputError: `out` cannot be written to.
    """
    tables = read_tables(label_files, options)
    ensure_folder(out)
    report = ProbeReport(
        model=model.name,
        layer=list(options.choice.layers) or None,
        pooling=options.choice.pooling,
        scene=options.choice.scene,
        scheme=options.scheme,
        seed=options.seed,
    )

    def judge(name: str, table: LabelTable) -> TaskReport:
        # A table that cannot be used is refused before its files are read.
        make_splits(table, options.scheme, options.seed)
        return _task_report(name, features_of_task(model, name, table, options), out, options)

    for name, task in judged_tables(tables, judge, report.failed):
        report.tasks[name] = task
        write_json(out / "probe.json", asdict(report))
        with atomic_write(out / "probe.csv", "w") as file:
            csv.writer(file).writerows(_csv_rows(report))
    # Once more, as the last table may have failed.
    write_json(out / "probe.json", asdict(report))
    return report


def read_tables(label_files: Sequence[Path], options: ProbeOptions) -> dict[str, LabelTable]:
    """Read the label tables; the name of each file is its task's.

    Raises:
        InputError: a table cannot be used, or two have the same name.
    """
    tables = {path.absolute().stem: read_labels(path, options.table) for path in label_files}
    if len(tables) < len(label_files):
        raise InputError("two label files have the same name, which names their task; rename one")
    return tables


def _task_report(name: str, task: TaskFeatures, out: Path, options: ProbeOptions) -> TaskReport:
    table, labels = task.table, task.table.label_indices
    splits = make_splits(table, options.scheme, options.seed)
    scores: dict[str, dict[str, Score]] = {}
    for representation, rows in task.features.items():
        scores[representation] = {}
        for classifier, judge in CLASSIFIERS.items():
            score = judge(rows, labels, splits)
            scores[representation][classifier] = Score(
                accuracy=score.mean, std=score.std, interval_95=score.interval_95, splits=score.accuracies
            )
            if representation == PRETRAINED and classifier == "linear":
                title = f"{name}: linear probe, accuracy {score.mean:.3f}"
                counts = confusion_counts(labels, score.predictions, len(table.class_names))
                save_confusion_picture(out / f"{name}.png", counts, table.class_names, title)
    return TaskReport(
        clips=len(labels),
        classes=len(table.class_names),
        splits=[split.name for split in splits],
        normalization=task.normalization,
        unreadable=task.unreadable,
        leaking_groups=sum(len(leaking_groups(table, split)) for split in splits),
        scores=scores,
    )


def _csv_rows(report: ProbeReport) -> Iterator[tuple[object, ...]]:
    yield "task", "representation", "classifier", "accuracy", "std", "low_95", "high_95"
    for name, task in report.tasks.items():
        for representation, scores in task.scores.items():
            for classifier, score in scores.items():
                yield name, representation, classifier, score.accuracy, score.std, *score.interval_95


def table_text(report: ProbeReport) -> str:
    """Return the scores as a plain-text table.

    A row is a task, a column a representation and classifier; the means over tasks come last.
    """
    representations = list(next(iter(report.tasks.values())).scores)
    width = max(12, *(len(name) for name in report.tasks))
    lines = []
    for classifier in CLASSIFIERS:
        header = "".join(f"{name:>20}" for name in representations)
        lines.append(f"{classifier + ' probe':<{width}}  {'splits':<8}{header}")
        means = dict.fromkeys(representations, 0.0)
        for name, task in report.tasks.items():
            cells = ""
            for representation in representations:
                score = task.scores[representation][classifier]
                means[representation] += score.accuracy / len(report.tasks)
                spread = "" if score.std is None else f" ± {score.std:.3f}"
                cells += f"{score.accuracy:.3f}{spread}".rjust(20)
            lines.append(f"{name:<{width}}  {len(task.splits):<8}{cells}")
        if len(report.tasks) > 1:
            lines.append(f"{'mean':<{width}}  {'':<8}" + "".join(f"{mean:.3f}".rjust(20) for mean in means.values()))
        lines.append("")
    return "\n".join(lines).rstrip()
