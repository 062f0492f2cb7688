"""What a classifier is fine-tuned on: labelled files, each with its part in training."""

import itertools
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from melmask.classifier.head import Kind
from melmask.errors import InputError
from melmask.evaluate.tasks import Task
from melmask.labels.tables import ClipTable, read_clips, sorted_names

_VALID_PARTS, _MOST_PARTS = 10, 5


@dataclass(frozen=True)
class LabelledFiles:
    """paths; labels (names, or events) and part ('train', 'valid', 'test') of each; the classes and kind of task."""

    paths: list[Path]
    labels: list[list[Any]]
    parts: list[str]
    classes: list[str]
    kind: Kind


def table_files(path: Path, audio_root: Path | None, seed: int, fold: str) -> LabelledFiles:
    """The rows of a CSV as `read_clips` reads it; the seed decides which validate where no column does.

    Raises:
        InputError: it is no such table, has no such fold, or nothing can be learnt from it.
    """
    table = read_clips(path, audio_root=audio_root)
    kind = cast(Kind, table.kind)
    parts = _parts(table, seed, fold)
    _tell_of_shared_groups(table.groups or [], parts)
    known = {name for names, part in zip(table.names, parts, strict=True) if part == "train" for name in names}
    if kind == "multiclass" and len(known) < 2:
        raise InputError(f"{path}: all rows to train on have label {known.pop()!r}; a classifier needs two labels")
    return LabelledFiles(table.paths, table.targets, parts, table.class_names, kind)


def _tell_of_shared_groups(groups: list[str], parts: list[str]) -> None:
    """What is learnt from and tested on at once makes a score look better than it is."""
    of_part = {part: {group for group, own in zip(groups, parts, strict=False) if own == part} for part in set(parts)}
    shared = set().union(*(a & b for a, b in itertools.combinations(of_part.values(), 2)))
    if shared:
        sys.stderr.write(f"{len(shared)} groups have clips in several parts of train, valid and test\n")


def _parts(table: ClipTable, seed: int, fold: str) -> list[str]:
    """Each row's part: the table's, or folds with one to test and one to validate; a tenth validates if none does."""
    if fold and table.folds is None:
        raise InputError(f"--fold is {fold!r}, but {table.source} has no column `fold`; leave --fold out or add it")
    if table.splits is not None and not fold:
        parts = list(table.splits)
    elif table.folds is not None:
        folds = sorted_names(table.folds)
        chosen = fold or folds[0]
        if chosen not in folds:
            raise InputError(f"--fold is {chosen!r}; the table has {', '.join(folds)}")
        following = folds[(folds.index(chosen) + 1) % len(folds)]
        # Of two folds one tests, and the validation clips come from the other.
        part_of = {following: "valid" if len(folds) > 2 else "train", chosen: "test"}
        parts = [part_of.get(name, "train") for name in table.folds]
    else:
        parts = ["train"] * len(table.paths)
    rows = [row for row, part in enumerate(parts) if part == "train"]
    if not rows:
        raise InputError(f"{table.source} has no row to train on, only {' and '.join(sorted(set(parts)))}; mark some")
    if "valid" not in parts:
        for row in _held_out(table, rows, seed):
            parts[row] = "valid"
    return parts


def _held_out(table: ClipTable, rows: list[int], seed: int) -> list[int]:
    """Rows (of those) to validate on: a tenth, more where it has not each label or groups are large, at most a fifth.

    Labels have their share of it, groups stay whole, and of each label a group or clip is left to train on.

    Raises:
        InputError: there is no such row.
    """
    names = [own or [""] for own in table.names]
    units: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        units.setdefault(table.groups[row] if table.groups else str(row), []).append(row)
    labels_of = {unit: {name for row in own for name in names[row]} for unit, own in units.items()}
    left = Counter(name for labels in labels_of.values() for name in labels)
    # Each unit counts for its rarest label, and of each label the units are at even places.
    rarest = {unit: min(labels, key=lambda name: (left[name], name)) for unit, labels in labels_of.items()}
    count, turn = Counter(rarest.values()), Counter[str]()
    place: dict[str, float] = {}
    for unit, name in rarest.items():
        # A label's first unit comes before all second ones: a rare label is validated, too.
        place[unit] = turn[name] and (turn[name] + 0.5) / count[name]
        turn[name] += 1
    enough = max(1, round(len(rows) / _VALID_PARTS), min(len(left), len(rows) // _MOST_PARTS))
    most = max(enough, len(rows) // _MOST_PARTS)
    held: list[int] = []
    for unit in sorted(units, key=lambda unit: (max(0, len(units[unit]) - enough), place[unit])):
        spare = all(left[name] > 1 for name in labels_of[unit])
        if spare and (not held or (len(held) < enough and len(held) + len(units[unit]) <= most)):
            held += units[unit]
            left.subtract(labels_of[unit])
    if not held:
        what = "group" if table.groups else "clip"
        raise InputError(
            f"{table.source}: no {what} can be held out to validate, as each is the last of a label; label more, or "
            "mark rows `valid` in a column `split`"
        )
    return held


def task_files(task: Task, fold: str) -> LabelledFiles:
    """The files of a HEAR task at its highest rate, with the split of this name, or the first.

    Raises:
        InputError: there is no such split, or there are no sounds.
    """
    names = [split.name for split in task.data_splits]
    if fold and fold not in names:
        raise InputError(f"--fold is {fold!r}; {task.title} has {', '.join(names)}")
    split = task.data_splits[names.index(fold) if fold else 0]
    rates = sorted((int(p.name) for p in task.folder.iterdir() if p.name.isdigit()), reverse=True)
    if not rates:
        raise InputError(f"{task.folder} has no folder of sounds such as 16000; unpack the task whole")
    paths, labels, parts = [], [], []
    for part in ("train", "valid", "test"):
        for name in getattr(split, part):
            for file, items in task.files[name].items():
                paths.append(task.audio_folder(name, rates[0]) / file)
                labels.append(items)
                parts.append(part)
    kind = "event" if task.embedding_type == "event" else task.prediction_type
    assert kind in ("multiclass", "multilabel", "event")
    return LabelledFiles(paths, labels, parts, list(task.labels), kind)
