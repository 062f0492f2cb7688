"""`melmask few-labels`: how accuracy grows with the number of labelled clips per class; files, pictures and a table.

1. Every clip's features are computed once, as for `melmask probe`, and its splits are made as there.
2. A draw puts each class's training clips of a split into a random order, in which clips of different groups (speakers,
   recordings) come first. The first n of it are the n labelled clips, so more labels always include the fewer. A class
   with fewer than n gives all it has. Valid and test clips are never drawn.
3. A linear probe (logistic regression, C = 1) and k-NN are fitted to the drawn clips and judged on the split's test
   clips. k is min(10, n): 1-NN for one label, and never more neighbours than a class has labels. Features are scaled by
   the mean and std of all the split's training clips, labelled or not: few labels seldom mean few clips, and from two
   clips alone, one a class, no scale can be had.
4. "all" takes every training clip, once, and so is the score of `melmask probe`.

A draw's accuracy is its mean over the splits. `accuracy` is the mean of that over draws, `interval_95` its t-interval
(draws - 1 degrees of freedom). That covers which clips happened to be drawn, not which happened to be in the table: the
same test clips judge every draw, and draws of a small class share clips. `test_interval_95`, the binomial one of
`melmask probe`, is about how many clips were tested.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from melmask.downstream.baselines import origin_of_features, probe_features
from melmask.downstream.probe import (
    logistic_predictions,
    neighbor_votes,
    standardize,
    t_interval,
    wilson_interval,
)
from melmask.downstream.probing import CLASSIFIERS
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.normalization import with_dataset_statistics
from melmask.errors import InputError, MissingExtraError
from melmask.figures.few_labels import save_few_labels_picture
from melmask.labels.splits import Split, leaking_groups, make_splits
from melmask.labels.tables import LabelTable, judged_tables, keep_rows, read_labels
from melmask.system.files import atomic_write, ensure_folder, write_json
from melmask.system.progress import track

ALL = "all"
PER_CLASS: tuple[int | str, ...] = (1, 2, 5, 10, ALL)
DRAWS = 5
MOST_NEIGHBORS = 10
LINEAR, KNN = CLASSIFIERS
_CELL = 24
_COLUMNS = (
    "task representation classifier per_class mean_per_class accuracy std low_95 high_95 draws test_low_95 test_high_95"
)


def few_label_curves(
    model: AudioEncoder,
    label_files: Sequence[Path],
    out: Path,
    *,
    per_class: Sequence[int | str] = PER_CLASS,
    draws: int = DRAWS,
    scheme: str = "auto",
    audio_root: Path | None = None,
    layer: Sequence[int] | None = None,
    pooling: str = "concat",
    scene: str = "mean",
    seed: int = 0,
    dataset_statistics: bool = False,
) -> dict[str, Any]:
    """Curves of `model` and the two baselines on each table: few-labels.json, .csv and few-labels-<task>.png in `out`.

    Args:
        model: what to judge.
        label_files: CSV tables as `read_labels` takes them; the name of each is its task's.
        out: folder to write to; the files there grow by a task at a time.
        per_class: numbers of labelled clips per class, from 1, and "all"; each may be a text ("5").
        draws: how many times each number but "all" is drawn, at least 1; a single draw has no interval.
        scheme: how test clips are held out, one of `splits.SCHEMES`.
        audio_root: where the tables' relative paths start.
        layer: blocks of the network to take features from.
        pooling: of a step's patches.
        scene: of a clip's steps.
        seed: of the untrained network and of made-up splits; draw d is seeded by (seed, d).
        dataset_statistics: log-mels are normalised with the statistics of each task's files, not with the model's.

    Returns:
        The content of few-labels.json: settings, and per task its points (label numbers) and for each representation
        and classifier a score a point: accuracy, std, interval_95, test_interval_95, accuracies (draws, splits).

    Raises:
        InputError: a number of labels or draws, a seed or a table that cannot be used; none of its files readable.
        OutputError, MissingExtraError: `out` cannot be written to; scikit-learn or matplotlib is not installed.
    """
    numbers = _checked_numbers(per_class, draws, seed)
    tables = _checked_tables(label_files, audio_root, scheme, seed)
    ensure_folder(out)
    choice: dict[str, Any] = {"layer": layer, "pooling": pooling, "scene": scene, "seed": seed}
    report = {"model": model.name, **choice, "scheme": scheme, "per_class": numbers, "draws": draws}
    report |= {"tasks": {}, "failed": {}}

    def judge(name: str, table: LabelTable) -> dict[str, Any]:
        of_task = with_dataset_statistics(model, table.paths) if dataset_statistics else model
        features, errors = probe_features(of_task, table.paths, title=f"embed {name}", **choice)
        table = _readable_rows(name, table, errors)
        curves = curves_of_features(features, table, numbers, draws, scheme, seed, f"fit {name}")
        return origin_of_features(of_task, errors) | curves

    for name, curves in judged_tables(tables, judge, report["failed"]):
        report["tasks"][name] = curves
        save_few_labels_picture(out / f"few-labels-{name}.png", name, curves)
        write_json(out / "few-labels.json", report)
        _write_csv(out / "few-labels.csv", report["tasks"])
    write_json(out / "few-labels.json", report)
    return report


def curves_of_features(
    features: Mapping[str, Float[np.ndarray, "rows _"]],
    table: LabelTable,
    per_class: Sequence[int | str] = PER_CLASS,
    draws: int = DRAWS,
    scheme: str = "auto",
    seed: int = 0,
    title: str = "fit",
) -> dict[str, Any]:
    """One task's entry in few-labels.json from `features`, a row per clip of `table`; `title` names its progress.

    A number that no class has more training clips than is the same as "all" and stands for it (`same_as_all`). The
    other arguments are those of `few_label_curves`.

    Raises:
        InputError: features are not finite, or a number, `draws`, the seed or the table cannot be used.
    """
    for name, rows in features.items():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise InputError(
                f"{name} features of {table.paths[bad[0]]} and {len(bad) - 1} other files hold NaN or infinity; "
                "expected finite numbers: check the model and that clip"
            )
    splits = make_splits(table, scheme, seed)
    classes, labels = len(table.class_names), table.label_indices
    counts = np.array([np.bincount(labels[split.train], minlength=classes) for split in splits])
    asked = _checked_numbers(per_class, draws, seed)
    same_as_all = [n for n in asked if isinstance(n, int) and n >= counts.max()]
    numbers = [n for n in asked if n != ALL and n not in same_as_all]
    numbers += [ALL] if len(numbers) < len(asked) else []
    accuracies = _judge(features, table, splits, numbers, draws, seed, title)
    tested = len(np.unique(np.concatenate([split.test for split in splits])))
    scores = {
        name: {judge: [_facts(per_number[n], tested) for n in numbers] for judge, per_number in of_features.items()}
        for name, of_features in accuracies.items()
    }
    return {
        "clips": len(labels),
        "classes": classes,
        "chance": 1 / classes,
        "splits": [split.name for split in splits],
        "leaking_groups": sum(len(leaking_groups(table, split)) for split in splits),
        "same_as_all": same_as_all,
        "points": [_point(n, counts, table.class_names, draws) for n in numbers],
        "scores": scores,
    }


def draw_order(
    labels: Int[np.ndarray, " rows"], groups: Int[np.ndarray, " rows"] | None, generator: np.random.Generator
) -> Int64[np.ndarray, " rows"]:
    """Each row's place, from 0, in a random order of its class's rows: those below n are a draw of n per class.

    With `groups` no group gives a class its second row before each group has given one, if it has one.
    """
    order = generator.permutation(len(labels))
    if groups is not None:
        order = order[np.argsort(_turns((labels * (groups.max() + 1) + groups)[order]), kind="stable")]
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = _turns(labels[order])
    return places


def draw_interval(accuracies: Float[np.ndarray, " draws"]) -> tuple[float, float] | None:
    """95 % t-interval of the mean over draws, cut to [0, 1]; None for a single draw, which says nothing of others."""
    interval = t_interval(accuracies)
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def curves_text(report: dict[str, Any]) -> str:
    """The curves as plain-text tables, one a task and classifier, and below them what the reader should know."""
    return "\n\n".join("\n".join(_task_lines(name, task)) for name, task in report["tasks"].items())


def _checked_numbers(per_class: Sequence[int | str], draws: int, seed: int) -> list[int | str]:
    """Ascending, each once, "all" last."""
    if draws < 1 or seed < 0:
        raise InputError(f"{draws} draws with seed {seed} were asked for; expected at least 1, and a seed from 0")
    numbers = set()
    for value in per_class:
        text = str(value).strip().lower()
        if text != ALL and not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
            raise InputError(f"{value!r} labels per class were asked for; expected whole numbers from 1, or '{ALL}'")
        numbers.add(math.inf if text == ALL else int(text))
    if not numbers:
        raise InputError(f"no number of labels per class; expected whole numbers from 1, or '{ALL}'")
    return [ALL if number == math.inf else int(number) for number in sorted(numbers)]


def _checked_tables(
    label_files: Sequence[Path], audio_root: Path | None, scheme: str, seed: int
) -> dict[str, LabelTable]:
    """The tables by task, found usable before hours are spent on their files; so are the libraries."""
    _check_libraries()
    tables = {path.stem: read_labels(path, audio_root) for path in label_files}
    if len(tables) < len(label_files):
        raise InputError("two label files have the same name, which names their task; rename one")
    for table in tables.values():
        make_splits(table, scheme, seed)
    return tables


def _readable_rows(name: str, table: LabelTable, errors: Mapping[Path, str]) -> LabelTable:
    readable = np.array([path not in errors for path in table.paths])
    if not readable.any():
        reason = next(iter(errors.values()))
        raise InputError(f"none of the {len(readable)} files of task {name} could be read, as {reason}")
    return keep_rows(table, readable)


def _check_libraries() -> None:
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None


def _turns(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each value."""
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    turns = np.empty(len(values), dtype=np.int64)
    turns[by_value] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return turns


def _judge(
    features: Mapping[str, np.ndarray],
    table: LabelTable,
    splits: list[Split],
    numbers: list[int | str],
    draws: int,
    seed: int,
    title: str,
) -> dict[str, dict[str, dict[int | str, np.ndarray]]]:
    """Accuracies (draws, splits) of each representation, classifier and number of labels."""
    labels = table.label_indices
    groups = None if table.groups is None else np.unique(table.groups, return_inverse=True)[1]
    rounds = {n: 1 if n == ALL else draws for n in numbers}
    scores = {
        name: {judge: {n: np.zeros((rounds[n], len(splits))) for n in numbers} for judge in CLASSIFIERS}
        for name in features
    }

    def fits() -> Iterator[None]:
        for name, rows in features.items():
            for column, split in enumerate(splits):
                for n, row, accuracies in _accuracies(rows, labels, groups, split, (seed, column), rounds):
                    for judge, accuracy in accuracies.items():
                        scores[name][judge][n][row, column] = accuracy
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
    """(number, draw, classifier -> accuracy) on one split's test rows; equal draws for every representation."""
    train, test = standardize(rows[split.train], rows[split.test])
    train_labels, truth = labels[split.train], labels[split.test]
    of_train = None if groups is None else groups[split.train]
    for draw in range(max(rounds.values())):
        places = draw_order(train_labels, of_train, np.random.default_rng((seed[0], draw, seed[1])))
        for n in (n for n, count in rounds.items() if n != ALL and draw < count):
            drawn = places < int(n)
            neighbors = min(MOST_NEIGHBORS, int(n))
            targets = np.eye(labels.max() + 1)[train_labels[drawn]]
            votes = neighbor_votes(train[drawn], test, targets, neighbors)
            predicted = _predict(train[drawn], train_labels[drawn], test)
            yield n, draw, {LINEAR: float(np.mean(predicted == truth)), KNN: float(np.mean(votes.argmax(1) == truth))}
    if ALL in rounds:
        yield ALL, 0, {name: judge(rows, labels, [split]).mean for name, judge in CLASSIFIERS.items()}


def _predict(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The linear probe of `probe.linear_probe`, fitted to rows already scaled."""
    if len(train) < train.shape[1]:
        # The optimum's weights lie in the span of the training rows: turning that onto the first axes changes nothing
        # but the time, which is a fifth with 100 rows of 960 features.
        axes, _ = np.linalg.qr(train.T)
        train, test = train @ axes, test @ axes
    return logistic_predictions(train, train_labels, test)


def _point(n: int | str, counts: np.ndarray, class_names: list[str], draws: int) -> dict[str, Any]:
    """What a number means on this task, whose splits' classes have `counts` (splits, classes) training clips."""
    given = counts if n == ALL else np.minimum(counts, int(n))
    short = [] if n == ALL else np.flatnonzero((counts < int(n)).any(axis=0))
    return {
        "per_class": n,
        "mean_per_class": float(given.mean()),
        "draws": 1 if n == ALL else draws,
        "neighbors": MOST_NEIGHBORS if n == ALL else min(MOST_NEIGHBORS, int(n)),
        "classes_with_fewer": [class_names[index] for index in short],
    }


def _facts(accuracies: np.ndarray, tested: int) -> dict[str, Any]:
    of_draws = accuracies.mean(axis=1)
    mean = float(of_draws.mean())
    return {
        "accuracy": mean,
        "std": float(of_draws.std(ddof=1)) if len(of_draws) > 1 else None,
        "interval_95": draw_interval(of_draws),
        "test_interval_95": wilson_interval(mean, tested),
        "accuracies": accuracies.tolist(),
    }


def _write_csv(path: Path, tasks: dict[str, Any]) -> None:
    with atomic_write(path, "w") as file:
        csv.writer(file).writerows([_COLUMNS.split(), *_csv_rows(tasks)])


def _csv_rows(tasks: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, task in tasks.items():
        for representation, of_features in task["scores"].items():
            for judge, scores in of_features.items():
                for point, score in zip(task["points"], scores, strict=True):
                    low, high = score["interval_95"] or (None, None)
                    yield (name, representation, judge, point["per_class"], point["mean_per_class"], score["accuracy"],
                           score["std"], low, high, point["draws"], *score["test_interval_95"])  # fmt: skip


def _task_lines(name: str, task: dict[str, Any]) -> Iterator[str]:
    splits, draws = len(task["splits"]), task["points"][0]["draws"]
    facts = f"{task['classes']} classes, chance {task['chance']:.3f}, {splits} split{'s' * (splits > 1)}, "
    for judge in CLASSIFIERS:
        yield f"{name}, {judge} probe: {facts}{draws} draw{'s' * (draws > 1)}"
        yield f"{'labels per class':<18}" + "".join(f"{representation:>{_CELL}}" for representation in task["scores"])
        for index, point in enumerate(task["points"]):
            label = f"{point['per_class']}{'*' * bool(point['classes_with_fewer'])}"
            label += f" ({point['mean_per_class']:.1f})" if point["per_class"] == ALL else ""
            yield f"{label:<18}{''.join(_cell(of[judge][index]) for of in task['scores'].values())}".rstrip()
        yield ""
    yield "[low, high]: 95 % t-interval over draws; it is about which clips were drawn, not about which were tested"
    fewest = next((point for point in task["points"] if point["classes_with_fewer"]), None)
    if fewest is not None:
        short = len(fewest["classes_with_fewer"])
        yield f"* {short} of {task['classes']} classes have fewer than {fewest['per_class']} and give all they have"
    if task["same_as_all"]:
        numbers = ", ".join(str(number) for number in task["same_as_all"])
        yield f"{numbers}: no class has more training clips, so this is '{ALL}'"
    if task["unreadable"]:
        yield f"{len(task['unreadable'])} files could not be read and were left out"
    if task["leaking_groups"]:
        yield f"{task['leaking_groups']} groups have clips on both sides of a split"


def _cell(score: dict[str, Any]) -> str:
    if score["interval_95"] is None:
        return f"{score['accuracy']:.3f}".ljust(len("0.000 [0.000, 0.000]")).rjust(_CELL)
    low, high = score["interval_95"]
    return f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]".rjust(_CELL)
