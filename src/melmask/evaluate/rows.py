"""Score predictions of a task: on validation rows to choose a head, and on held-out rows to test it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from melmask.downstream.events import event_score, events_of
from melmask.downstream.metrics import higher_is_better, scene_score
from melmask.evaluate.embeddings import SplitEmbeddings
from melmask.evaluate.heads import Judge, Rows, Validation, better
from melmask.evaluate.tasks import Task
from melmask.labels.tables import Event

Postprocessing = dict[str, float]
"""How probabilities become events: median_filter_ms and min_duration, in ms (`events_of`)."""
PredictionArrays = dict[str, np.ndarray]
"""The arrays of a split's predictions file (docs/formats.md)."""


@dataclass
class TaskRows:
    """The vectors of one task on one device, from which the rows of any split are put together."""

    task: Task
    embeddings: dict[str, SplitEmbeddings]
    device: torch.device

    @property
    def multilabel(self) -> bool:
        """Whether a row may have any number of labels."""
        return self.task.prediction_type == "multilabel"

    @property
    def maximize(self) -> bool:
        """Whether the best head has the largest score; a loss and an error rate should be small."""
        return self.task.stop_on_score and higher_is_better(self.task.metrics[0])

    def rows(self, splits: Sequence[str]) -> Rows:
        """Return the rows of splits one after another, as the kit puts folds together."""
        vectors = np.concatenate([self.embeddings[split].vectors for split in splits])
        targets = torch.from_numpy(self.targets(splits)).float()
        return Rows(torch.from_numpy(vectors).to(self.device), targets.to(self.device))

    def targets(self, splits: Sequence[str]) -> np.ndarray:
        """Return the targets of splits, (rows, classes) bool."""
        return np.concatenate([self.embeddings[split].targets for split in splits])

    def judge(self, splits: Sequence[str], exact: bool) -> Judge:
        """Return the function that scores a validation on `splits`, by the loss or by the primary metric.

        With `exact` it chooses among post-processings as the kit does: an undefined score counts as 0, and the largest
        score wins, even if it is an error rate. Without `exact` the best score wins.
        """
        if self.task.embedding_type == "event":
            return self._event_judge(splits, exact)
        metric, targets = self.task.metrics[0], self.targets(splits)
        if not self.task.stop_on_score:
            # The loss decides, so no score is computed during training.
            return lambda _, loss: Validation(loss)
        return lambda probabilities, _: Validation(scene_score(metric, probabilities, targets))

    def _event_judge(self, splits: Sequence[str], exact: bool) -> Judge:
        metric, maximize = self.task.metrics[0], self.maximize
        choices = postprocessings(self.task)
        if not self.task.stop_on_score:
            # `read_task` has made sure that there is only one post-processing then.
            return lambda _, loss: Validation(loss, choices[0])

        def judge(probabilities: np.ndarray, _: float) -> Validation:
            found = [Validation(self._event_scores(splits, probabilities, c, [metric])[metric], c) for c in choices]
            best = found[0]
            for other in found[1:]:
                if exact:
                    best = max(best, other, key=_kit_order)
                elif better(other.score, best.score, maximize):
                    best = other
            return best

        return judge

    def test(
        self, splits: Sequence[str], probabilities: Float[np.ndarray, "rows classes"], chosen: Postprocessing | None
    ) -> tuple[dict[str, float], PredictionArrays]:
        """Return every metric on held-out splits, and the predictions to save."""
        if self.task.embedding_type == "event":
            chosen = chosen or postprocessings(self.task)[0]
            scores = self._event_scores(splits, probabilities, chosen, self.task.metrics)
            return scores, {
                "predicted": _as_text(self._events(splits, probabilities, chosen)),
                "reference": _as_text(self._reference(splits)),
            }
        targets = self.targets(splits)
        # In scene tasks a row is a clip, so the names of the files are the names of the rows.
        clips = [(name, split) for split in splits for name in self.embeddings[split].files]
        return {metric: scene_score(metric, probabilities, targets) for metric in self.task.metrics}, {
            "files": np.array([name for name, _ in clips]),
            "split": np.array([split for _, split in clips]),
            "targets": targets.astype(np.uint8),
            "probabilities": probabilities,
        }

    def _event_scores(
        self, splits: Sequence[str], probabilities: np.ndarray, chosen: Postprocessing, metrics: Sequence[str]
    ) -> dict[str, float]:
        """Return each metric's main part under the metric's name, and all its parts under metric_part."""
        predicted, reference = self._events(splits, probabilities, chosen), self._reference(splits)
        scores: dict[str, float] = {}
        for metric in metrics:
            parts = event_score(metric, predicted, reference, self.task.labels)
            # The first part is the main one: the F-measure or the error rate.
            scores[metric] = next(iter(parts.values()))
            scores |= {f"{metric}_{part}": value for part, value in parts.items()}
        return scores

    def _events(
        self, splits: Sequence[str], probabilities: np.ndarray, chosen: Postprocessing
    ) -> dict[str, list[Event]]:
        found: dict[str, list[Event]] = {}
        first = 0
        for split in splits:
            part = self.embeddings[split]
            # The rows of a split are the steps of its clips, one clip after another.
            steps = np.bincount(part.clip_of, minlength=len(part.files))
            for name, count, end in zip(part.files, steps, np.cumsum(steps), strict=True):
                rows = slice(first + end - count, first + end)
                times_ms = part.times_ms[end - count : end]
                found[name] = events_of(probabilities[rows], times_ms, self.task.labels, **chosen)
            first += len(part.clip_of)
        return found

    def _reference(self, splits: Sequence[str]) -> dict[str, list[Event]]:
        return {name: events for split in splits for name, events in self.task.files[split].items()}


def postprocessings(task: Task) -> list[Postprocessing]:
    """List the ways in the task's grid to turn probabilities into events, in scikit-learn's order of a grid."""
    choices: list[Postprocessing] = [{}]
    # scikit-learn sorts the keys, and the last one changes fastest.
    for name in sorted(task.event_grid):
        choices = [{**choice, name: float(value)} for choice in choices for value in task.event_grid[name]]
    return choices


def _kit_order(validation: Validation) -> tuple[float, Any]:
    # The kit sorts pairs of (score, settings), so that of equal scores the larger settings win.
    return (0.0 if math.isnan(validation.score) else validation.score, tuple(validation.detail.items()))


def _as_text(events: dict[str, list[Event]]) -> np.ndarray:
    # An npz file without pickles can only hold arrays of plain types, so events are saved as JSON.
    return np.array(json.dumps(events))
