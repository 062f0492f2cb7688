"""`melmask probe`: one or more labelled tasks, three representations, two classifiers; files and a table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from melmask.downstream.baselines import PRETRAINED, origin_of_features, probe_features
from melmask.downstream.metrics import confusion_counts
from melmask.downstream.probe import ProbeScore, knn_probe, linear_probe
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.normalization import with_dataset_statistics
from melmask.errors import InputError
from melmask.figures.confusion import save_confusion_picture
from melmask.labels.splits import leaking_groups, make_splits
from melmask.labels.tables import LabelTable, judged_tables, keep_rows, read_labels
from melmask.system.files import atomic_write, ensure_folder, write_json

CLASSIFIERS = {"linear": linear_probe, "k-NN": knn_probe}


def probe_tasks(
    model: AudioEncoder,
    label_files: Sequence[Path],
    out: Path,
    *,
    scheme: str = "auto",
    audio_root: Path | None = None,
    layer: Sequence[int] | None = None,
    pooling: str = "concat",
    scene: str = "mean",
    seed: int = 0,
    dataset_statistics: bool = False,
) -> dict[str, Any]:
    """Probe `model` and the two baselines on each table; writes probe.json, probe.csv and confusion pictures to `out`.

    With `dataset_statistics` each task's log-mels are normalised with the mean and std of all its files, not with the
    model's.

    Returns the content of probe.json: settings, for each task the scores of each representation and classifier, and
    why others have none.

    Raises:
        InputError: a table that cannot be used, or no table with readable files.
        OutputError: `out` cannot be written to.
    """
    tables = {path.stem: read_labels(path, audio_root) for path in label_files}
    if len(tables) < len(label_files):
        raise InputError("two label files have the same name, which names their task; rename one")
    ensure_folder(out)
    tasks: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def judge(name: str, table: LabelTable) -> dict[str, Any]:
        make_splits(table, scheme, seed)  # an unusable table is refused before its files are read
        of_task = with_dataset_statistics(model, table.paths) if dataset_statistics else model
        return _probe_task(of_task, name, table, out, scheme, layer, pooling, scene, seed)

    features = {"model": model.name, "layer": layer, "pooling": pooling, "scene": scene}
    report = {**features, "scheme": scheme, "seed": seed, "tasks": tasks, "failed": failed}
    for name, scores in judged_tables(tables, judge, failed):
        tasks[name] = scores
        write_json(out / "probe.json", report)
        with atomic_write(out / "probe.csv", "w") as file:
            csv.writer(file).writerows(_csv_rows(tasks))
    write_json(out / "probe.json", report)
    return report


def _probe_task(
    model: AudioEncoder,
    name: str,
    table: LabelTable,
    out: Path,
    scheme: str,
    layer: Sequence[int] | None,
    pooling: str,
    scene: str,
    seed: int,
) -> dict[str, Any]:
    features, errors = probe_features(
        model, table.paths, layer=layer, pooling=pooling, scene=scene, seed=seed, title=f"embed {name}"
    )
    readable = np.array([path not in errors for path in table.paths])
    if not readable.any():
        raise InputError(
            f"none of the {len(readable)} files of task {name} could be read, as {next(iter(errors.values()))}"
        )
    table = keep_rows(table, readable)
    splits = make_splits(table, scheme, seed)
    scores: dict[str, dict[str, Any]] = {}
    labels = table.label_indices
    for representation, rows in features.items():
        scores[representation] = {}
        for classifier, judge in CLASSIFIERS.items():
            score = judge(rows, labels, splits)
            scores[representation][classifier] = _facts(score)
            if representation == PRETRAINED and classifier == "linear":
                title = f"{name}: linear probe, accuracy {score.mean:.3f}"
                counts = confusion_counts(labels, score.predictions, len(table.class_names))
                save_confusion_picture(out / f"{name}.png", counts, table.class_names, title)
    return {
        "clips": len(labels),
        "classes": len(table.class_names),
        "splits": [split.name for split in splits],
        **origin_of_features(model, errors),
        "leaking_groups": sum(len(leaking_groups(table, split)) for split in splits),
        "scores": scores,
    }


def _facts(score: ProbeScore) -> dict[str, Any]:
    low, high = score.interval_95
    return {"accuracy": score.mean, "std": score.std, "interval_95": [low, high], "splits": list(score.accuracies)}


def _csv_rows(tasks: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [("task", "representation", "classifier", "accuracy", "std", "low_95", "high_95")]
    for task, facts in tasks.items():
        for representation, scores in facts["scores"].items():
            for classifier, s in scores.items():
                rows.append((task, representation, classifier, s["accuracy"], s["std"], *s["interval_95"]))
    return rows


def table_text(report: dict[str, Any]) -> str:
    """The scores as a plain-text table: a row a task, a column a representation and classifier, then their means."""
    tasks: dict[str, Any] = report["tasks"]
    representations = list(next(iter(tasks.values()))["scores"])
    width = max(12, *(len(name) for name in tasks))
    lines = []
    for classifier in CLASSIFIERS:
        header = "".join(f"{name:>20}" for name in representations)
        lines.append(f"{classifier + ' probe':<{width}}  {'splits':<8}{header}")
        means = dict.fromkeys(representations, 0.0)
        for task, facts in tasks.items():
            cells = ""
            for name in representations:
                score = facts["scores"][name][classifier]
                means[name] += score["accuracy"] / len(tasks)
                spread = "" if score["std"] is None else f" ± {score['std']:.3f}"
                cells += f"{score['accuracy']:.3f}{spread}".rjust(20)
            lines.append(f"{task:<{width}}  {len(facts['splits']):<8}{cells}")
        if len(tasks) > 1:
            lines.append(f"{'mean':<{width}}  {'':<8}" + "".join(f"{means[name]:.3f}".rjust(20) for name in means))
        lines.append("")
    return "\n".join(lines).rstrip()
