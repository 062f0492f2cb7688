"""Which sound files a classifier is trained, validated and tested on, and what is in each of them."""

import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from melmask.classifier.head import Kind
from melmask.classifier.options import FinetuneOptions
from melmask.errors import InputError
from melmask.evaluate.tasks import METADATA, Task, read_task
from melmask.labels.tables import ClipTable, Event, read_clips, sorted_names

PARTS = ("train", "valid", "test")
_VALID_PARTS, _MOST_PARTS = 10, 5
"""Where no row is marked `valid`, one training row in ten validates, and never more than one in five."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labeled files, a list entry per file.

    paths: where each file lies.  labels: the names of its labels, or its events in an event task.  parts: 'train',
    'valid' or 'test'.  classes: all labels, in the order of the classifier's outputs.
    """

    kind: Kind
    classes: list[str]
    paths: list[Path]
    labels: Sequence[Sequence[str | Event]]
    parts: list[str]

    @property
    def sha256(self) -> str:
        """A digest of everything; finetune.json holds it, so its form must not change."""
        rows = [
            [str(path.resolve()), labels, part]
            for path, labels, part in zip(self.paths, self.labels, self.parts, strict=True)
        ]
        return hashlib.sha256(json.dumps([self.kind, self.classes, rows]).encode()).hexdigest()


def read_examples(labels: Path, seed: int, options: FinetuneOptions) -> Examples:
    """Read a table of labels, the folder of a data set, or the folder of a HEAR task.

    Raises:
        InputError: it is neither, it lacks the fold, or nothing can be learned from it.
    """
    if (labels / METADATA).is_file():
        return task_examples(read_task(labels), options.fold)
    return table_examples(labels, seed, options)


def table_examples(path: Path, seed: int, options: FinetuneOptions) -> Examples:
    """Read a CSV as `read_clips` does; the seed decides which rows validate where no column says so.

    Raises:
        InputError: it is no such table, has no such fold, or nothing can be learned from it.
    """
    table = read_clips(path, options=options.table)
    kind: Kind = table.kind
    parts = _parts(table, seed, options.fold)
    _report_shared_groups(table.groups or [], parts)
    known = {name for names, part in zip(table.names, parts, strict=True) if part == "train" for name in names}
    if kind == "multiclass" and len(known) < 2:
        raise InputError(f"{path}: all rows to train on have label {known.pop()!r}; a classifier needs two labels")
    return Examples(kind=kind, classes=table.class_names, paths=table.paths, labels=table.targets, parts=parts)


def task_examples(task: Task, fold: str) -> Examples:
    """Take the files of a HEAR task at its highest sample rate, with the split of this name, or the first one.

    Raises:
        InputError: there is no such split, or there are no sounds.
    """
    names = [split.name for split in task.data_splits]
    if fold and fold not in names:
        raise InputError(f"--fold is {fold!r}; {task.title} has {', '.join(names)}")
    split = task.data_splits[names.index(fold) if fold else 0]
    # A task holds its sounds at several rates; the encoder resamples from the best one itself.
    rates = [int(path.name) for path in task.folder.iterdir() if path.name.isdigit()]
    if not rates:
        raise InputError(f"{task.folder} has no folder of sounds such as 16000; unpack the task whole")
    rows = [
        (task.audio_folder(name, max(rates)) / file, labels, part)
        for part in PARTS
        for name in getattr(split, part)
        for file, labels in task.files[name].items()
    ]
    return Examples(
        kind=cast(Kind, "event" if task.embedding_type == "event" else task.prediction_type),
        classes=list(task.labels),
        paths=[path for path, _, _ in rows],
        labels=[labels for _, labels, _ in rows],
        parts=[part for _, _, part in rows],
    )


def _report_shared_groups(groups: list[str], parts: list[str]) -> None:
    # A group that is trained on and tested makes the score look better than it will be on new groups.
    groups_of = {part: {group for group, own in zip(groups, parts, strict=False) if own == part} for part in PARTS}
    shared = set().union(*(a & b for a, b in itertools.combinations(groups_of.values(), 2)))
    if shared:
        sys.stderr.write(f"{len(shared)} groups have clips in several parts of train, valid and test\n")


def _parts(table: ClipTable, seed: int, fold: str) -> list[str]:
    """Give each row its part: from column `split`, else from `fold`, else all train; some validate if none does."""
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
        # With two folds one tests, and the validation clips come from the other.
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
    """Choose rows to validate on: a tenth of `rows`, or up to a fifth to have each label, or where groups are large.

    Each label gets its share, groups stay whole, and of each label one group or clip is left to train on.

    Raises:
        InputError: no row can be held out.
    """
    # A unit is what must stay together: a group, or a single clip. Clips without a label count as a label of their own.
    names = [own or [""] for own in table.names]
    units: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        units.setdefault(table.groups[row] if table.groups else str(row), []).append(row)
    labels_of = {unit: {name for row in own for name in names[row]} for unit, own in units.items()}
    left = Counter(name for labels in labels_of.values() for name in labels)

    # Each unit counts for its rarest label, and the units of a label get evenly spaced places in the queue.
    rarest = {unit: min(labels, key=lambda name: (left[name], name)) for unit, labels in labels_of.items()}
    count, turn = Counter(rarest.values()), Counter[str]()
    place: dict[str, float] = {}
    for unit, name in rarest.items():
        # The first unit of every label comes before all second ones, so that a rare label is validated, too.
        place[unit] = turn[name] and (turn[name] + 0.5) / count[name]
        turn[name] += 1

    enough = max(1, round(len(rows) / _VALID_PARTS), min(len(left), len(rows) // _MOST_PARTS))
    most = max(enough, len(rows) // _MOST_PARTS)
    held: list[int] = []
    # Units that are larger than needed come last. One of them is taken only if nothing else could be.
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
