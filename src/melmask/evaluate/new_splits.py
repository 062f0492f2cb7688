"""Divide a user's clips into the splits of a task."""

from typing import NamedTuple

import numpy as np

from melmask.errors import InputError
from melmask.evaluate.options import FEWEST_FOLDS, TaskOptions
from melmask.labels.tables import ClipTable, sorted_names

_VALID_PARTS = 5
"""If a table has no validation rows, one in this many of its training rows becomes one."""


class Division(NamedTuple):
    """Which split each clip is in.

    Attributes:
        mode: The split_mode of the metadata.
        splits: Names of the splits.
        split_of: The split of each clip.
        notes: What the user should know about the division.
    """

    mode: str
    splits: tuple[str, ...]
    split_of: list[str]
    notes: tuple[str, ...] = ()


def divide(table: ClipTable, options: TaskOptions) -> Division:
    """Put each clip into a split, by the scheme, the number of folds and the seed of the options.

    - `fold`: the table's folds, numbered in order: fold00, fold01, ...
    - `split`: the table's train, valid and test. Without valid, a fifth of train becomes it.
    - `new`: `folds` folds of about the same classes.
    - None: the first of these that the table allows: it needs at least three folds, or train and test, or neither.
      Folds come first, because they test every clip.

    New folds and a new validation split keep groups whole and spread the classes evenly (`spread`).

    Raises:
        InputError: the table lacks what the scheme needs, or has too few clips or groups.
    """
    scheme, given = options.scheme, len(set(table.folds or ()))
    if scheme == "fold" or (scheme is None and given >= FEWEST_FOLDS):
        return _given_folds(table)
    if scheme == "split" or (scheme is None and table.splits is not None and {"train", "test"} <= set(table.splits)):
        return _given_splits(table, options.seed)
    part_of = spread(table, list(range(len(table.paths))), options.folds, options.seed)
    splits = _fold_names(options.folds)
    notes = (f"the table's {given} folds are too few and were not used",) if given and scheme is None else ()
    return Division("new_split_kfold", splits, [splits[part] for part in part_of], notes)


def _given_folds(table: ClipTable) -> Division:
    given = sorted_names(table.folds or [])
    if len(given) < FEWEST_FOLDS:
        raise InputError(
            f"{table.source} has {', '.join(given) or 'none'} as folds; expected {FEWEST_FOLDS} or more: to test, to "
            "validate and to train; choose --scheme new"
        )
    splits = _fold_names(len(given))
    name_of = dict(zip(given, splits, strict=True))
    return Division("presplit_kfold", splits, [name_of[fold] for fold in table.folds or []])


def _fold_names(folds: int) -> tuple[str, ...]:
    # The kit sorts folds by name, so all numbers have the same width.
    width = max(2, len(str(folds - 1)))
    return tuple(f"fold{number:0{width}d}" for number in range(folds))


def _given_splits(table: ClipTable, seed: int) -> Division:
    if table.splits is None or not {"train", "test"} <= set(table.splits):
        present = ", ".join(sorted(set(table.splits or ()))) or "none"
        raise InputError(f"{table.source}: splits are {present}; expected train and test, choose --scheme new")
    names = ("train", "valid", "test")
    if "valid" in table.splits:
        return Division("trainvaltest", names, list(table.splits))
    trained = [row for row, split in enumerate(table.splits) if split == "train"]
    units = len({table.groups[row] for row in trained}) if table.groups else len(trained)
    # With few groups a fifth would be less than one group.
    parts = max(2, min(_VALID_PARTS, units))
    split_of = list(table.splits)
    for row, part in zip(trained, spread(table, trained, parts, seed), strict=True):
        split_of[row] = "valid" if part == 0 else "train"
    kept = ", groups kept whole" if table.groups else ""
    made = f"the table has no validation rows: {split_of.count('valid')} of {len(trained)} training clips became valid"
    return Division("trainvaltest", names, split_of, (made + kept,))


def spread(table: ClipTable, rows: list[int], parts: int, seed: int) -> list[int]:
    """Return a part for each of `rows`, 0 to parts - 1, with every class and the clips spread evenly over the parts.

    Groups stay whole, and the largest are placed first. Each is put into the part where the sum of squares of the
    parts' shares of each class, and of the clips, grows least. The seed decides the order of equal groups. Unlike
    scikit-learn's splitters, this allows any number of labels per clip.

    Raises:
        InputError: there are fewer groups, or clips, than parts.
    """
    # A unit is what stays whole: a group, or a single clip where there are no groups.
    keys = [table.groups[row] for row in rows] if table.groups else [str(row) for row in rows]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(number_of) < parts:
        what = "groups" if table.groups else "clips"
        raise InputError(
            f"{table.source}: {parts} splits need {parts} {what} or more, found {len(number_of)}; label more, or ask "
            "for fewer folds"
        )
    index_of = {name: index for index, name in enumerate(table.class_names)}
    # A column for each class, and a last one that counts clips.
    counts = np.zeros((len(number_of), len(index_of) + 1))
    names = table.names
    for row, key in zip(rows, keys, strict=True):
        counts[number_of[key], [*(index_of[name] for name in names[row]), -1]] += 1
    # Counts become shares of their class, so that a rare label matters as much as a common one.
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    # Large units come first, while every part still has room. The stable sort keeps equal ones in the seed's order.
    order = np.random.default_rng(seed).permutation(len(shares))
    order = order[np.argsort(-(shares[order] ** 2).sum(axis=1), kind="stable")]
    filled = np.zeros((parts, shares.shape[1]))
    part_of = np.zeros(len(shares), dtype=int)
    for unit in order:
        # |filled + shares|^2 grows by 2 filled * shares, and by |shares|^2, which is the same for each part.
        part_of[unit] = (filled @ shares[unit]).argmin()
        filled[part_of[unit]] += shares[unit]
    return [int(part_of[number_of[key]]) for key in keys]
