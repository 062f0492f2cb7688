"""Which clips a probe is fitted on, and which clips it is judged on."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from melmask.errors import InputError
from melmask.labels.tables import LabelTable, sorted_names
from melmask.system.extras import require

SCHEMES = ("auto", "fold", "split", "group", "random")


class Split(NamedTuple):
    """One way to hold rows out; the three index arrays are ascending and share no row.

    Attributes:
        name: "fold 3", "split", "group 1 of 5" or the like.
        train: rows the probe is fitted on, never empty.
        valid: rows kept out of both; empty unless the scheme is `split`.
        test: rows the probe is judged on, never empty.
    """

    name: str
    train: Int64[np.ndarray, " train"]
    valid: Int64[np.ndarray, " valid"]
    test: Int64[np.ndarray, " test"]


def make_splits(table: LabelTable, scheme: str = "auto", seed: int = 0, folds: int = 5) -> list[Split]:
    """Make the splits of one evaluation.

    - `fold`: each value of the `fold` column is tested once, all other rows train. The `split` column plays
      no part.
    - `split`: one split from the `split` column. Rows marked valid are neither trained nor tested on.
    - `group`: stratified k-fold in which no group is on both sides.
    - `random`: stratified k-fold over the rows.
    - `auto`: the first of these that the table has the columns for. Folds go before a split because they test
      every row. `read_labels` has already dropped a `fold` column that only repeats the split, as that of the task of
      Arabic words does, so such a table gets its split. A table with real folds that is meant to be judged on its
      split alone needs the scheme `split`.

    Args:
        table: the labeled task.
        scheme: one of `SCHEMES`.
        seed: of the shuffle in `group` and `random`; the others are fixed by the table.
        folds: how many folds `group` and `random` make, at least 2.

    Returns:
        The splits, in the order of the folds.

    Raises:
        InputError: the scheme is unknown or the table lacks what it needs, or a split would leave no row to
            test, or fewer than two classes to train on.
        MissingExtraError: `group` and `random` need scikit-learn.
    """
    if scheme not in SCHEMES:
        raise InputError(f"split scheme {scheme!r} is not known; expected one of {', '.join(SCHEMES)}")
    chosen = _choose(table) if scheme == "auto" else scheme
    if chosen == "fold":
        splits = _fold_splits(table)
    elif chosen == "split":
        splits = [_given_split(table)]
    else:
        splits = _stratified_splits(table, chosen == "group", seed, folds)
    for split in splits:
        _check_usable(table, split)
    return splits


def leaking_groups(table: LabelTable, split: Split) -> list[str]:
    """Name the groups that are both trained and tested on: reported, not refused, as official folds leak.

    Args:
        table: the labeled task the split was made from.
        split: one of its splits.

    Returns:
        The groups in order; none where the table has no groups.
    """
    if table.groups is None:
        return []
    trained = {table.groups[row] for row in split.train}
    return sorted_names([table.groups[row] for row in split.test if table.groups[row] in trained])


def _choose(table: LabelTable) -> str:
    """The scheme that `auto` stands for."""
    if table.folds is not None:
        return "fold"
    if table.splits is not None and "test" in table.splits:
        return "split"
    return "random" if table.groups is None else "group"


def _fold_splits(table: LabelTable) -> list[Split]:
    """One split per value of the fold column."""
    if table.folds is None:
        raise InputError("the labels have no `fold` column with fold names; fill one, or choose another scheme")
    folds = np.array(table.folds)
    names = sorted_names(table.folds)
    if len(names) < 2:
        raise InputError(f"all rows are in fold {names[0]!r}; folds need two values, or choose another scheme")
    return [_split(f"fold {name}", np.where(folds == name, "test", "train")) for name in names]


def _given_split(table: LabelTable) -> Split:
    """The split column as it stands."""
    if table.splits is None:
        raise InputError("the labels have no `split` column; fill one, or choose another scheme")
    for role in ("train", "test"):
        if role not in table.splits:
            raise InputError(f"no row's split is {role!r}; mark some, or choose another scheme")
    return _split("split", np.array(table.splits))


def _split(name: str, roles: np.ndarray) -> Split:
    """A split from each row's role."""
    return Split(name, *(np.flatnonzero(roles == role) for role in ("train", "valid", "test")))


def _stratified_splits(table: LabelTable, grouped: bool, seed: int, folds: int) -> list[Split]:
    """Shuffled k-fold with each class spread as evenly as the groups allow."""
    require("eval")
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise InputError(f"{folds} folds were asked for; expected at least 2")
    if grouped and table.groups is None:
        raise InputError("the labels have no `group` column; fill one, or choose another scheme")
    labels = table.label_indices
    # Scikit-learn's own error speaks of `n_splits`, which the user has never seen.
    units = len(set(table.groups)) if grouped and table.groups is not None else int(np.bincount(labels).max())
    if units < folds:
        what = "groups" if grouped else "rows in the largest class"
        raise InputError(
            f"{folds} folds were asked for, but there are {units} {what}; label more, or add a column `split`"
        )
    kind, word = (StratifiedGroupKFold, "group") if grouped else (StratifiedKFold, "random")
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    # Nothing is chosen on rows of a k-fold, so none are kept out to validate.
    none = np.empty(0, dtype=np.int64)
    with warnings.catch_warnings():
        # A class with fewer rows than folds is not tested in some of them, which the scores can bear.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        parts = list(splitter.split(labels, labels, table.groups if grouped else None))
    return [
        Split(f"{word} {number} of {folds}", np.sort(train), none, np.sort(test))
        for number, (train, test) in enumerate(parts, start=1)
    ]


def _check_usable(table: LabelTable, split: Split) -> None:
    """Refuse a split that nothing can be learned or judged from."""
    if len(split.test) == 0:
        raise InputError(f"{split.name} has no rows to test; ask for fewer folds, or choose another scheme")
    names = table.names
    classes = {name for row in split.train for name in names[row]}
    if len(classes) < 2:
        raise InputError(
            f"{split.name} trains on {len(classes)} class; expected two or more: "
            "ask for fewer folds, or choose another scheme"
        )
