"""`melmask probe`: one or more labeled tasks, three representations, two classifiers; files and a table."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from melmask.downstream.baselines import PRETRAINED, TaskFeatures, features_of_task
from melmask.downstream.linear_and_knn import probe_features
from melmask.downstream.metrics import confusion_counts
from melmask.downstream.options import ProbeOptions
from melmask.downstream.records import ProbedTask, ProbeReport, Score, probe_rows
from melmask.downstream.resume import inputs_of, read_task, write_task
from melmask.downstream.several_labels import logistic_probabilities, neighbor_probabilities, several_labels_probe
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.reading import read_as
from melmask.errors import InputError
from melmask.figures.confusion import save_confusion_picture
from melmask.labels.splits import leaking_groups, make_splits
from melmask.labels.tables import LabelTable, judged_tables, read_labels
from melmask.system.extras import can_draw, require
from melmask.system.files import claimed, write_csv, write_json
from melmask.system.terminal import note

CLASSIFIERS_OF_SEVERAL = {"linear": logistic_probabilities, "k-NN": neighbor_probabilities}


def probe_tasks(
    model: AudioEncoder, label_files: Sequence[Path], out: Path, options: ProbeOptions = ProbeOptions()
) -> ProbeReport:
    """Probe `model` and the two baselines on each table; write probe.json, probe.csv and confusion pictures to `out`.

    The result of each task is kept, too. If this is called again with the same `out`, only tasks whose model, options,
    table or files have changed are computed. Returns what probe.json holds.

    Raises:
        InputError: a table cannot be used, or no table has readable files.
        OutputError: `out` cannot be written to, or another job is writing to it.
        MissingExtraError: scikit-learn is not installed, which holds out rows of a table without folds and
            splits. Without matplotlib, only the pictures are left out.
    """
    tables = read_tables(label_files, options, several=True)
    for table in tables.values():
        # A missing library is reported before any work. A table that cannot be used is reported in its turn.
        if table.label_sets is not None:
            require("eval")
        with suppress(InputError):
            make_splits(table, options.scheme, options.seed)
    model = read_as(model, options.reading)
    options = replace(options, choice=options.choice.of_model(model.card))
    report = ProbeReport(
        model=model.name,
        layer=list(options.choice.layers) or None,
        pooling=options.choice.pooling,
        scene=options.choice.scene,
        reading=model.reading,
        scheme=options.scheme,
        seed=options.seed,
    )

    def judge(name: str, table: LabelTable) -> ProbedTask:
        # A table that cannot be used is refused before its files are read.
        make_splits(table, options.scheme, options.seed)
        inputs = inputs_of(model, table, options)
        task = read_task(out, name, inputs)
        # Files that could not be read may be readable now: the disk is there again, or an extra is installed.
        if task is not None and not task.unreadable:
            note(f"{name} is done, and its inputs are as they were: {out / 'tasks' / name}.json")
            return task
        title = f"{name} (task {list(tables).index(name) + 1} of {len(tables)})"
        task = _probe_task(name, title, features_of_task(model, name, table, options, title), out, options)
        write_task(out, name, inputs, task)
        return task

    # Two jobs at once would overwrite each other's scores.
    with claimed(out):
        # The files are written after each task, so that a job that breaks off leaves the scores of the tasks before.
        for name, task in judged_tables(tables, judge, report.failed):
            report.tasks[name] = task
            write_json(out / "probe.json", asdict(report))
            write_csv(out / "probe.csv", probe_rows(report.tasks))
        # The report is written once more, as the last table may have failed.
        write_json(out / "probe.json", asdict(report))
    return report


def read_tables(label_files: Sequence[Path], options: ProbeOptions, *, several: bool = False) -> dict[str, LabelTable]:
    """Read the label tables, in which a clip may have several labels if that is allowed; each file names its task.

    Raises:
        InputError: a table cannot be used, or two have the same name.
    """
    tables = {path.absolute().stem: read_labels(path, options.table, several=several) for path in label_files}
    if len(tables) < len(label_files):
        raise InputError("two label files have the same name, which names their task; rename one")
    return tables


def _probe_task(name: str, title: str, task: TaskFeatures, out: Path, options: ProbeOptions) -> ProbedTask:
    table, labels = task.table, task.table.label_indices
    # The splits are made of the readable files alone.
    splits = make_splits(table, options.scheme, options.seed)
    scores: dict[str, dict[str, Score]] = {}
    several = table.label_sets is not None
    if several:
        for representation, rows in task.features.items():
            scores[representation] = {
                classifier: _of_several_labels(several_labels_probe(rows, table.targets, splits, probabilities))
                for classifier, probabilities in CLASSIFIERS_OF_SEVERAL.items()
            }
    fitted = {} if several else probe_features(task.features, labels, splits, f"fit {title}")
    for representation, found in fitted.items():
        scores[representation] = {}
        for classifier, score in found.items():
            scores[representation][classifier] = Score(
                accuracy=score.mean, std=score.std, interval_95=score.interval_95, splits=score.accuracies
            )
            if representation == PRETRAINED and classifier == "linear" and can_draw():
                title = f"{name}: linear probe, accuracy {score.mean:.3f}"
                counts = confusion_counts(labels, score.predictions, len(table.class_names))
                save_confusion_picture(out / f"{name}.png", counts, table.class_names, title)
    return ProbedTask(
        clips=len(labels),
        classes=len(table.class_names),
        splits=[split.name for split in splits],
        normalization=task.normalization,
        unreadable=task.unreadable,
        noticed=task.noticed,
        leaking_groups=sum(len(leaking_groups(table, split)) for split in splits),
        scores=scores,
        metric="mAP" if several else "accuracy",
    )


def _of_several_labels(precisions: tuple[float, ...]) -> Score:
    std = float(np.std(precisions, ddof=1)) if len(precisions) > 1 else None
    return Score(accuracy=float(np.mean(precisions)), std=std, interval_95=None, splits=precisions)
