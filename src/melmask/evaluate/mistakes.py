"""Find where a model is most wrong: the clips to listen to, and the classes it confuses."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from melmask.downstream import metrics
from melmask.evaluate.results import EventFile, Predictions

_GRID_MS = 10.0
"""Events are compared at points of time this far apart."""
_PREFERRED_RATE_HZ = 16000
"""The page plays sounds at about this rate, because higher ones would make it larger."""


class Mistake(NamedTuple):
    """A clip with a wrong prediction; `truth` has its labels with their probabilities."""

    file: str
    part: str
    truth: list[tuple[str, float]]
    predicted: str
    probability: float


class Stretch(NamedTuple):
    """A part of a file, and how many seconds of it are wrong, added up over the labels."""

    file: EventFile
    start_s: float
    end_s: float
    wrong_s: float


def confusion_counts(rows: Predictions) -> Int64[np.ndarray, "classes classes"]:
    """Count the clips of each true class (row) by their predicted class (column)."""
    # Clips without a label have no row in the matrix.
    kept = rows.targets.any(axis=1)
    truth, predicted = rows.targets[kept].argmax(axis=1), rows.probabilities[kept].argmax(axis=1)
    return metrics.confusion_counts(truth, predicted, rows.targets.shape[1])


def worst_clips(rows: Predictions, labels: list[str], multiclass: bool, most: int) -> list[Mistake]:
    """Find the clips with the highest probability of a label that is not theirs, the worst first.

    Args:
        rows: The predictions.
        labels: Names of the classes.
        multiclass: Count only clips whose likeliest label is wrong; otherwise count any wrong label above one half.
        most: Return at most this many.
    """
    # For each clip, take the most probable label that is not its own.
    wrong = np.where(rows.targets, -np.inf, rows.probabilities)
    worst = wrong.argmax(axis=1)
    probability = wrong[np.arange(len(worst)), worst]
    right = np.where(rows.targets, rows.probabilities, -np.inf).max(axis=1)
    mistaken = probability > (right if multiclass else 0.5)
    order = np.argsort(-probability, kind="stable")
    return [
        Mistake(
            rows.files[i],
            rows.parts[i],
            [(labels[c], float(rows.probabilities[i, c])) for c in np.flatnonzero(rows.targets[i])],
            labels[worst[i]],
            float(probability[i]),
        )
        for i in order[mistaken[order]][:most].tolist()
    ]


def worst_stretch(files: list[EventFile], longest_s: float) -> Stretch | None:
    """Find the stretch of at most `longest_s` in which reference and prediction differ for the longest time."""
    found: Stretch | None = None
    width = round(1000 * longest_s / _GRID_MS)
    for file in files:
        labels = sorted({label for label, *_ in file.reference + file.predicted})
        end_ms = max((end for *_, end in file.reference + file.predicted), default=0.0)
        steps = int(np.ceil(end_ms / _GRID_MS)) + 1
        wrong = sum(_active(file.reference, label, steps) ^ _active(file.predicted, label, steps) for label in labels)
        # The sum over a window is the difference of two running sums.
        total = np.concatenate([[0], np.cumsum(np.broadcast_to(wrong, steps))])
        ends = np.minimum(np.arange(max(1, steps - width + 1)) + width, steps)
        sums = total[ends] - total[ends - min(width, steps)]
        start = int(sums.argmax())
        wrong_s = float(sums[start]) * _GRID_MS / 1000
        if found is None or wrong_s > found.wrong_s:
            start_s = start * _GRID_MS / 1000
            found = Stretch(file, start_s, start_s + longest_s, wrong_s)
    return found


def _active(events: list[tuple[str, float, float]], label: str, steps: int) -> Bool[np.ndarray, " steps"]:
    """Return whether `label` sounds, every 10 ms."""
    active = np.zeros(steps, bool)
    for name, start_ms, end_ms in events:
        if name == label:
            active[round(start_ms / _GRID_MS) : round(end_ms / _GRID_MS)] = True
    return active


def find_sound(folder: Path, parts: list[str], file: str) -> Path | None:
    """Find the wav of a clip, <folder>/<rate>/<part>/<file>, at the rate nearest to 16 kHz; None if there is none."""
    rates = [child for child in folder.iterdir() if child.name.isdecimal()] if folder.is_dir() else []
    for rate in sorted(rates, key=lambda child: abs(int(child.name) - _PREFERRED_RATE_HZ)):
        for part in parts:
            path = rate / part / file
            if path.is_file():
                return path
    return None
