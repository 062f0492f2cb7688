"""Judge a model on the rows of a table that may choose, or on those that are kept back for the end.

A table marks its test rows in its column `split`. A table without such rows keeps one part back instead: the clips of
its first fold, or a fifth of its groups, or a random fifth. All other rows may choose: the classifiers are fitted to
the rows marked train and judged on those marked valid; without valid rows, the rows are held out in turn, by their
folds, by group, or at random. Files of test rows are not opened before the end.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from melmask.audio.parts import Sound
from melmask.downstream.linear_and_knn import CLASSIFIERS
from melmask.embedding.encoder import AudioEncoder
from melmask.embedding.extract import embed_files
from melmask.errors import InputError
from melmask.labels.splits import make_splits
from melmask.labels.tables import LabelTable, keep_rows
from melmask.study.description import Study
from melmask.system.progress import track
from melmask.system.terminal import counted, note

Rows = Literal["valid", "test"]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The score of one probe on one task; shares between 0 and 1."""

    score: float
    low_95: float
    high_95: float
    """The interval says how many clips were judged, not how much seeds differ."""
    tested: int = 0
    """How often a clip was judged."""


def judge(model: AudioEncoder, name: str, table: LabelTable, study: Study, rows: Rows) -> dict[str, TaskScore]:
    """Return the score of each probe on the rows of a table that may choose ("valid"), or on its test rows.

    Raises:
        InputError: the table has no such rows, or none of its files can be read.
    """
    held, scheme = rows_of(table, rows)
    # The one reading of the test rows is worth all of them.
    held = held if rows == "test" else _at_most(held, study.clips)
    make_splits(held, scheme)
    choice = study.probe.choice
    vectors: dict[Sound, np.ndarray] = {}
    errors: list[str] = []
    for result in track(embed_files(model, held.sounds, choice), len(held.paths), f"embed {name}"):
        if result.scene is None:
            errors.append(str(result.error))
        else:
            vectors[result.sound] = result.scene
    if not vectors:
        raise InputError(f"none of {counted(len(errors), 'file')} of task {name} could be read, as {errors[0]}")
    # The splits are made of the readable clips alone.
    held = keep_rows(held, np.array([sound in vectors for sound in held.sounds]))
    features, splits = np.stack([vectors[sound] for sound in held.sounds]), make_splits(held, scheme)
    note(f"{name}: fit the probes")
    scores = {}
    for probe, classifier in CLASSIFIERS.items():
        score = classifier(features, held.label_indices, splits)
        low, high = score.interval_95
        scores[probe] = TaskScore(score=score.mean, low_95=low, high_95=high, tested=score.tested)
    return scores


def rows_of(table: LabelTable, rows: Rows) -> tuple[LabelTable, str]:
    """Return the rows to work with, and the scheme of `make_splits` that holds some of them out.

    Raises:
        InputError: the table has no such rows.
    """
    marked = table.splits is not None and "test" in table.splits
    if marked:
        test = np.array(table.splits) == "test"
    else:
        test = np.zeros(len(table.paths), dtype=bool)
        test[make_splits(table, "auto")[0].test] = True
    if rows == "test":
        # Rows marked valid have chosen, so they are neither trained nor tested on.
        roles = np.where(test, "test", np.array(table.splits) if marked else "train").tolist()
        return replace(table, folds=None, splits=roles), "split"
    kept = keep_rows(table, ~test)
    if not kept.paths:
        raise InputError("the table has only test rows, which must not choose; mark some rows train and valid")
    if kept.splits is not None and {"train", "valid"} <= set(kept.splits):
        roles = ["test" if role == "valid" else role for role in kept.splits]
        return replace(kept, folds=None, splits=roles), "split"
    return replace(kept, splits=None), "auto"


def _at_most(table: LabelTable, clips: int) -> LabelTable:
    """Draw `clips` rows at random, the same ones for every run; 0 keeps all."""
    if not clips or clips >= len(table.paths):
        return table
    keep = np.zeros(len(table.paths), dtype=bool)
    keep[np.random.default_rng(0).choice(len(keep), clips, replace=False)] = True
    return keep_rows(table, keep)
