"""`melmask few-labels`: how accuracy grows with the number of labeled clips per class; files, pictures and a table.

1. Every clip's features are computed once, as for `melmask probe`, and its splits are made as there.
2. A draw puts each class's training clips of a split into a random order, in which clips of different groups (speakers,
   recordings) come first. The first n of it are the n labeled clips, so more labels always include the fewer. A class
   with fewer than n clips gives all it has. Valid and test clips are never drawn.
3. A linear probe (logistic regression, C = 1) and k-NN are fitted to the drawn clips and judged on the split's test
   clips. k is min(10, n): 1-NN for one label, and never more neighbors than a class has labels. Features are scaled by
   the mean and std of all the split's training clips, labeled or not. Few labels seldom mean few clips, and two clips
   alone, one of each class, give no scale.
4. "all" takes every training clip once, which gives the score of `melmask probe`.

A draw's accuracy is its mean over the splits. `accuracy` is the mean of that over draws, and `interval_95` is its
t-interval (draws - 1 degrees of freedom). The interval covers which clips were drawn by chance. It does not cover which
clips are in the table: the same test clips judge every draw, and draws of a small class share clips.
`test_interval_95`, the binomial interval of `melmask probe`, covers how many clips were tested.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int64

from melmask.downstream.baselines import features_of_task
from melmask.downstream.linear_and_knn import (
    CLASSIFIERS,
    earlier_equals,
    logistic_predictions,
    neighbor_votes,
    standardize,
    t_interval,
    wilson_interval,
)
from melmask.downstream.options import ALL, FewLabelsOptions
from melmask.downstream.probe import read_tables
from melmask.downstream.records import CurvePoint, CurveScore, FewLabelsReport, TaskCurves, curve_rows
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.reading import read_as
from melmask.errors import InputError
from melmask.figures.few_labels import save_few_labels_picture
from melmask.labels.splits import Split, leaking_groups, make_splits
from melmask.labels.tables import LabelTable, judged_tables
from melmask.system.extras import can_draw, require
from melmask.system.files import claimed, write_csv, write_json
from melmask.system.progress import track

MOST_NEIGHBORS = 10
LINEAR, KNN = CLASSIFIERS


def few_label_curves(
    model: AudioEncoder, label_files: Sequence[Path], out: Path, options: FewLabelsOptions = FewLabelsOptions()
) -> FewLabelsReport:
    """Judge `model` and the two baselines on each table, which names its task, with few labels.

    Writes few-labels.json, few-labels.csv and a picture few-labels-TASK.png for each task to `out`. The files are
    written after each task. Draw d is seeded by (seed, d). Returns what few-labels.json holds.

    Raises:
        InputError: a table cannot be used, or none of its files can be read.
        OutputError: `out` cannot be written to, or another job is writing to it.
        MissingExtraError: scikit-learn is not installed. Without matplotlib, only the pictures are left out.
    """
    require("eval")
    draws = can_draw()
    tables = read_tables(label_files, options)
    # Unusable tables are refused before hours are spent on the files of others.
    for table in tables.values():
        make_splits(table, options.scheme, options.seed)
    model = read_as(model, options.reading)
    options = replace(options, choice=options.choice.of_model(model.card))
    report = FewLabelsReport(
        model=model.name,
        layer=list(options.choice.layers) or None,
        pooling=options.choice.pooling,
        scene=options.choice.scene,
        reading=model.reading,
        seed=options.seed,
        scheme=options.scheme,
        per_class=options.numbers,
        draws=options.draws,
    )

    def judge(name: str, table: LabelTable) -> TaskCurves:
        task = features_of_task(model, name, table, options)
        curves = curves_of_features(task.features, task.table, options, f"fit {name}")
        return replace(curves, normalization=task.normalization, unreadable=task.unreadable, noticed=task.noticed)

    # Two jobs at once would overwrite each other's curves.
    with claimed(out):
        for name, curves in judged_tables(tables, judge, report.failed):
            report.tasks[name] = curves
            if draws:
                save_few_labels_picture(out / f"few-labels-{name}.png", name, curves)
            write_json(out / "few-labels.json", asdict(report))
            write_csv(out / "few-labels.csv", curve_rows(report.tasks))
        # The report is written once more, as the last table may have failed.
        write_json(out / "few-labels.json", asdict(report))
    return report


def curves_of_features(
    features: Mapping[str, Float[np.ndarray, "rows _"]],
    table: LabelTable,
    options: FewLabelsOptions = FewLabelsOptions(),
    title: str = "fit",
) -> TaskCurves:
    """Return one task's curves from `features`, a row per clip of `table`; `title` names its progress.

    A number that no class has more training clips than is the same as "all" and stands for it (`same_as_all`).

    Raises:
        InputError: features are not finite, or the table cannot be used.
    """
    for name, rows in features.items():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise InputError(
                f"{name} features of {table.sounds[bad[0]]} and {len(bad) - 1} other files hold NaN or infinity; "
                "expected finite numbers: check the model and that clip"
            )
    splits, draws = make_splits(table, options.scheme, options.seed), options.draws
    classes, labels = len(table.class_names), table.label_indices
    counts = np.array([np.bincount(labels[split.train], minlength=classes) for split in splits])
    asked = options.numbers
    same_as_all = [n for n in asked if isinstance(n, int) and n >= counts.max()]
    numbers = [n for n in asked if n != ALL and n not in same_as_all]
    numbers += [ALL] if len(numbers) < len(asked) else []
    accuracies = _judge(features, table, splits, numbers, options, title)
    tested = len(np.unique(np.concatenate([split.test for split in splits])))
    return TaskCurves(
        clips=len(labels),
        classes=classes,
        chance=1 / classes,
        splits=[split.name for split in splits],
        leaking_groups=sum(len(leaking_groups(table, split)) for split in splits),
        same_as_all=same_as_all,
        points=[_point(n, counts, table.class_names, draws) for n in numbers],
        scores={
            name: {judge: [_score(accuracies[name, judge, n], tested) for n in numbers] for judge in CLASSIFIERS}
            for name in features
        },
    )


def draw_order(
    labels: Int[np.ndarray, " rows"], groups: Int[np.ndarray, " rows"] | None, generator: np.random.Generator
) -> Int64[np.ndarray, " rows"]:
    """Return each row's place, from 0, in a random order of its class's rows. Places below n are a draw of n per class.

    With `groups` no group gives a class its second row before each group with rows of that class has given one.
    """
    order = generator.permutation(len(labels))
    if groups is not None:
        # One number stands for a class and group together. All first rows of a group come before all second ones.
        pairs = labels * (groups.max() + 1) + groups
        order = order[np.argsort(earlier_equals(pairs[order]), kind="stable")]
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = earlier_equals(labels[order])
    return places


def draw_interval(accuracies: Float[np.ndarray, " draws"]) -> tuple[float, float] | None:
    """Return the 95 % t-interval of the mean over draws, cut to [0, 1]; None for a single draw, which has no spread."""
    interval = t_interval(accuracies)
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def _judge(
    features: Mapping[str, np.ndarray],
    table: LabelTable,
    splits: list[Split],
    numbers: list[int | str],
    options: FewLabelsOptions,
    title: str,
) -> dict[tuple[str, str, int | str], np.ndarray]:
    """Return the accuracies (draws, splits) of each representation, classifier and number of labels."""
    labels = table.label_indices
    # The numbers of groups, from 0, instead of their names.
    groups = None if table.groups is None else np.unique(table.groups, return_inverse=True)[1]
    rounds = {n: 1 if n == ALL else options.draws for n in numbers}
    keys = itertools.product(features, CLASSIFIERS, numbers)
    scores = {(name, judge, n): np.zeros((rounds[n], len(splits))) for name, judge, n in keys}

    def fits() -> Iterator[None]:
        for name, rows in features.items():
            for column, split in enumerate(splits):
                for n, row, accuracies in _accuracies(rows, labels, groups, split, (options.seed, column), rounds):
                    for judge, accuracy in accuracies.items():
                        scores[name, judge, n][row, column] = accuracy
                    yield

    for _ in track(fits(), len(features) * len(splits) * sum(rounds.values()), title, "fit"):
        pass
    return scores


def _accuracies(
    rows: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    split: Split,
    seed: tuple[int, int],
    rounds: Mapping[int | str, int],
) -> Iterator[tuple[int | str, int, dict[str, float]]]:
    """Yield (number, draw, classifier -> accuracy) on one split's test rows.

    The draws depend on the seed and the labels only, so they are the same for every representation.
    """
    train, test = standardize(rows[split.train], rows[split.test])
    train_labels, truth = labels[split.train], labels[split.test]
    of_train = None if groups is None else groups[split.train]
    places = [
        draw_order(train_labels, of_train, np.random.default_rng((seed[0], draw, seed[1])))
        for draw in range(max(rounds.values()))
    ]
    for n in (n for n in rounds if n != ALL):
        drawn = np.array([place < int(n) for place in places[: rounds[n]]])
        # The linear probes of all draws are fitted together.
        predicted = logistic_predictions(train, train_labels, drawn, test)
        for draw, own in enumerate(drawn):
            targets = np.eye(labels.max() + 1)[train_labels[own]]
            votes = neighbor_votes(train[own], test, targets, min(MOST_NEIGHBORS, int(n)))
            yield (
                n,
                draw,
                {
                    LINEAR: float(np.mean(predicted[draw] == truth)),
                    KNN: float(np.mean(votes.argmax(1) == truth)),
                },
            )
    if ALL in rounds:
        yield ALL, 0, {name: judge(rows, labels, [split]).mean for name, judge in CLASSIFIERS.items()}


def _point(n: int | str, counts: np.ndarray, class_names: list[str], draws: int) -> CurvePoint:
    """Return what a number means on this task, whose splits' classes have `counts` (splits, classes) training clips."""
    given = counts if n == ALL else np.minimum(counts, int(n))
    short = () if n == ALL else np.flatnonzero((counts < int(n)).any(axis=0)).tolist()
    return CurvePoint(
        per_class=n,
        mean_per_class=float(given.mean()),
        draws=1 if n == ALL else draws,
        neighbors=MOST_NEIGHBORS if n == ALL else min(MOST_NEIGHBORS, int(n)),
        classes_with_fewer=[class_names[index] for index in short],
    )


def _score(accuracies: np.ndarray, tested: int) -> CurveScore:
    of_draws = accuracies.mean(axis=1)
    mean = float(of_draws.mean())
    return CurveScore(
        accuracy=mean,
        std=float(of_draws.std(ddof=1)) if len(of_draws) > 1 else None,
        interval_95=draw_interval(of_draws),
        test_interval_95=wilson_interval(mean, tested),
        accuracies=accuracies.tolist(),
    )
