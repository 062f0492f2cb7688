"""Events from probabilities against SciPy's filter and a plain loop, and their scores against sed_eval's numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import median_filter

from melmask.downstream.events import EVENT_METRICS, event_score, events_of
from melmask.labels.tables import Event

STORED = json.loads((Path(__file__).parent / "reference" / "sed_eval.json").read_text())
LABELS = STORED["labels"]


def plain_events(probabilities, times_ms, filter_ms, min_duration):
    """The kit's steps, one after another."""
    width = round(filter_ms / np.mean(np.diff(times_ms)))
    if width:
        probabilities = median_filter(probabilities, size=(width, 1))
    found = []
    for number, column in enumerate((probabilities > 0.5).T):
        run = []
        for step, active in enumerate([*column, False]):
            if active:
                run.append(times_ms[step])
            elif run:
                if run[-1] - run[0] >= min_duration:
                    found.append(Event(LABELS[number], run[0], run[-1]))
                run = []
    return sorted(found, key=lambda event: event.start_ms)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("steps", [3, 12, 200])
def test_events_equal_those_of_scipys_median_filter(width, steps):
    rng = np.random.default_rng(width + steps)
    # Slow changes, so that there are runs, and values at the threshold itself.
    smooth = np.apply_along_axis(np.convolve, 0, rng.random((steps + 4, 3)), np.ones(5) / 5, mode="valid")
    probabilities = np.round(0.5 + 3 * (smooth - 0.5), 1).astype(np.float32)
    times_ms = np.arange(steps) * 40.0 + 75
    for min_duration in (0.0, 80.0):
        ours = events_of(probabilities, times_ms, LABELS, width * 40.0, min_duration)
        assert sorted(ours) == sorted(plain_events(probabilities, times_ms, width * 40.0, min_duration))
        assert [event.start_ms for event in ours] == sorted(event.start_ms for event in ours)


def test_an_event_lasts_from_its_first_step_to_its_last():
    probabilities = np.array([[0.2], [0.6], [0.9], [0.6], [0.1]])
    times_ms = np.array([10.0, 20, 30, 40, 50])
    assert events_of(probabilities, times_ms, ["a"], 0.0, 20.0) == [Event("a", 20, 40)]
    assert events_of(probabilities, times_ms, ["a"], 0.0, 20.1) == []
    assert events_of(np.full((1, 1), 0.9), np.array([10.0]), ["a"], 250.0, 0.0) == [Event("a", 10, 10)]
    assert events_of(probabilities, times_ms, ["a"], 0.0, 0.0, threshold=0.6) == [Event("a", 30, 30)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [0, 1])
def test_too_few_steps_for_a_spacing_are_not_filtered(steps):
    found = events_of(np.full((steps, 2), 0.9, np.float32), np.full(steps, 75.0), LABELS[:2], 250.0, 0.0)
    assert found == [Event(label, 75, 75) for label in LABELS[:2]][: 2 * steps]


@pytest.mark.parametrize("width", [16, 17, 40])
def test_windows_of_many_lengths_of_the_file_are_its_mirror_images(width):
    # Not against median_filter itself: from eight times an even number of steps on, it reads beside the array.
    rng = np.random.default_rng(width)
    for _ in range(20):
        probabilities = rng.random((2, 1)).astype(np.float32)
        mirrored = np.pad(probabilities, ((width, width), (0, 0)), mode="symmetric")
        medians = median_filter(mirrored, size=(width, 1))[width : width + 2]
        expected = [40.0 * step for step in range(2) if medians[step] > 0.5]
        found = events_of(probabilities, np.array([0.0, 40.0]), ["a"], width * 40.0, 0.0)
        assert found == ([Event("a", expected[0], expected[-1])] if expected else [])


def as_events(files):
    return {name: [Event(*event) for event in events] for name, events in files.items()}


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("metric", EVENT_METRICS)
def test_scores_equal_sed_evals(metric, case):
    found = event_score(metric, as_events(case["predicted"]), as_events(case["reference"]), LABELS)
    expected = {name: math.nan if value is None else value for name, value in case["scores"][metric].items()}
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert list(found) == list(expected)


def test_the_stored_cases_tell_metrics_apart():
    values = [[case["scores"][metric] for metric in EVENT_METRICS] for case in STORED["cases"]]
    assert len(values) > 30
    assert sum(len({json.dumps(score) for score in scores}) > 2 for scores in values) > 15


def test_unknown_metrics_are_no_error_rates():
    with pytest.raises(AssertionError, match="segment_2s_er"):
        event_score("segment_2s_er", {}, {}, LABELS)


def test_matching_is_as_large_as_can_be():
    # Taking the nearest first would leave the second prediction without a partner.
    predicted = {"x": [Event("a", 190, 500), Event("a", 350, 500)]}
    reference = {"x": [Event("a", 0, 500), Event("a", 200, 500)]}
    assert event_score("event_onset_200ms_fms", predicted, reference, LABELS)["f_measure"] == 1
