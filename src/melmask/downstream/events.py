"""From probabilities per time step to events, and the scores of events.

Events are found as in the HEAR kit (heareval 2021.1.3, create_events_from_prediction). The scores are those of sed_eval
0.2.1 (Mesaros et al., Applied Sciences 6(6), 2016) with the kit's settings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from melmask.labels.tables import Event
from melmask.system.extras import require

_SEGMENT_S = 1.0
_EPSILON = float(np.spacing(1))


class _Collar(NamedTuple):
    """How near an event has to be. Onsets may differ by `onset_s`.

    With `offset_share`, offsets count too, and may differ by that share of the true event's length or by `onset_s`,
    whichever is larger.
    """

    onset_s: float
    offset_share: float | None = None


_COLLARS = {
    "event_onset_200ms_fms": _Collar(0.2),
    "event_onset_50ms_fms": _Collar(0.05),
    "event_onset_offset_50ms_20perc_fms": _Collar(0.05, 0.2),
}
EVENT_METRICS = (*_COLLARS, "segment_1s_er")

Events = Mapping[str, Sequence[Event]]
"""Events of each file, by its name."""


def events_of(
    probabilities: Float[np.ndarray, "steps classes"],
    times_ms: Float[np.ndarray, " steps"],
    labels: Sequence[str],
    median_filter_ms: float = 150.0,
    min_duration: float = 60.0,
    threshold: float = 0.5,
) -> list[Event]:
    """Return the events of one file: runs of steps whose median-filtered probability is above the threshold.

    Args:
        probabilities: The probability of each class at each step, in [0, 1].
        times_ms: The centers of the steps, ascending.
        labels: The names of the classes.
        median_filter_ms: The width of the filter, which is rounded to steps; 0 switches it off.
        min_duration: The least time between an event's first and last step, in ms.
        threshold: The value that a probability has to exceed.

    Returns:
        Events in the order of their starts. An event starts at the time of its first step and ends at that of its last.
    """
    active = probabilities > threshold
    # As in the kit, the mean spacing of the steps decides how many steps the filter has.
    spacing_ms = float(np.mean(np.diff(times_ms))) if len(times_ms) > 1 else math.inf
    width = round(median_filter_ms / spacing_ms)
    if width:
        active = _majority(active, width)
    edges = np.diff(np.pad(active.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    # A run begins at an edge of 1, and ends before an edge of -1. In the transposed array the runs come class by class,
    # so that starts and ends come in pairs.
    classes, starts = np.nonzero(edges.T == 1)
    ends = np.nonzero(edges.T == -1)[1] - 1
    start_ms, end_ms = times_ms[starts], times_ms[ends]
    long_enough = end_ms - start_ms >= min_duration
    found = [
        Event(labels[c], float(start), float(end))
        for c, start, end in zip(classes[long_enough], start_ms[long_enough], end_ms[long_enough], strict=True)
    ]
    return sorted(found, key=lambda event: event.start_ms)


def _majority(active: Bool[np.ndarray, "steps classes"], width: int) -> Bool[np.ndarray, "steps classes"]:
    """Return whether the median of each window of `width` steps is above the threshold.

    It is if most values of the window are, which is quicker to find than the median itself. As in
    scipy.ndimage.median_filter, borders are mirrored and the upper median counts if `width` is even.
    """
    before, after = width // 2, width - width // 2 - 1
    padded = np.pad(active, ((before, after), (0, 0)), mode="symmetric")
    # The difference of two running sums is the sum of a window, whatever its width.
    sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0, dtype=np.int64)
    return sums[width:] - sums[:-width] >= width - width // 2


def event_score(metric: str, predicted: Events, reference: Events, labels: Sequence[str]) -> dict[str, float]:
    """Return the parts of one metric over the files of `predicted`, the main part first.

    event_*_fms: f_measure, precision and recall. In each file and label as many events as possible are matched one to
    one. A part is NaN if there is nothing to count.  segment_1s_er: error_rate over segments of one second.

    Raises:
        MissingExtraError: scikit-learn, with which SciPy comes, is not installed.
    """
    assert metric in EVENT_METRICS, metric
    if metric not in _COLLARS:
        return {"error_rate": _segment_error_rate(predicted, reference, labels)}
    matched = sum(
        _matches(events, reference.get(name, ()), _COLLARS[metric]) for name, events in predicted.items() if events
    )
    guessed = sum(len(events) for events in predicted.values())
    true = sum(len(reference.get(name, ())) for name in predicted)
    precision = matched / guessed if guessed else math.nan
    recall = matched / true if true else math.nan
    # The f-measure below would divide by zero.
    if precision == 0 and recall == 0:
        return {"f_measure": 0.0, "precision": precision, "recall": recall}
    return {"f_measure": 2 * precision * recall / (precision + recall), "precision": precision, "recall": recall}


def _matches(predicted: Sequence[Event], reference: Sequence[Event], collar: _Collar) -> int:
    """Return the largest number of pairs of a predicted and a true event of one label that are near enough."""
    require("eval")
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not reference:
        return 0
    # Times are compared in seconds, so that rounding at the edge of the collar is the same as in the kit.
    guess_start, guess_end, true_start, true_end = (
        np.array([getattr(event, key) for event in events]) / 1000.0
        for events in (predicted, reference)
        for key in ("start_ms", "end_ms")
    )
    # Labels become numbers, which NumPy compares in one step. With hundreds of events in a file, comparing one label at
    # a time took most of the time.
    numbers = {event.label: number for number, event in enumerate(reference)}
    guess_label, true_label = (
        np.array([numbers.get(event.label, -1) for event in events]) for events in (predicted, reference)
    )
    # (predicted, true): pairs of one label, near enough in time.
    near = guess_label[:, None] == true_label
    near &= np.abs(true_start - guess_start[:, None]) <= collar.onset_s
    if collar.offset_share is not None:
        tolerance_s = np.maximum(collar.onset_s, collar.offset_share * (true_end - true_start))
        near &= np.abs(true_end - guess_end[:, None]) <= tolerance_s
    return int((maximum_bipartite_matching(csr_array(near.astype(np.int8)), perm_type="column") >= 0).sum())


def _segment_error_rate(predicted: Events, reference: Events, labels: Sequence[str]) -> float:
    """Return (substitutions + deletions + insertions) / true labels, counted in each second of each file."""
    numbers = {label: number for number, label in enumerate(labels)}
    errors = true = 0
    for name, events in predicted.items():
        truth = reference.get(name, ())
        last_s = max((event.end_ms / 1000.0 for event in (*events, *truth)), default=0.0)
        segments = math.ceil(last_s / _SEGMENT_S)
        guessed_roll, true_roll = (_roll(found, segments, numbers) for found in (events, truth))
        # A missed label and a wrong one together are a substitution. The rest are deletions or insertions. So the
        # errors of a second are the larger of the two counts.
        missed, wrong = (true_roll & ~guessed_roll).sum(1), (guessed_roll & ~true_roll).sum(1)
        errors += int(np.maximum(missed, wrong).sum())
        true += int(true_roll.sum())
    # sed_eval adds this epsilon, so that files without events have a score as well.
    return errors / (true + _EPSILON)


def _roll(events: Sequence[Event], segments: int, numbers: dict[str, int]) -> Bool[np.ndarray, "segments classes"]:
    roll = np.zeros((segments, len(numbers)), dtype=bool)
    for event in events:
        first, after = math.floor(event.start_ms / 1000.0 / _SEGMENT_S), math.ceil(event.end_ms / 1000.0 / _SEGMENT_S)
        roll[first:after, numbers[event.label]] = True
    return roll
