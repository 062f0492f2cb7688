"""Expected scores of events by sed_eval 0.2.1, in the settings of the HEAR kit; the output is sed_eval.json.

    python tests/reference/make_sed_eval.py     # where heareval 2021.1.3 and sed_eval 0.2.1 are installed

The cases are made here, so that the test reads them and needs neither library.
"""

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from heareval.score import available_scores

LABELS = ["a", "b", "c"]
METRICS = ["event_onset_200ms_fms", "event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms", "segment_1s_er"]


def random_events(rng, count, length_ms=6000):
    starts = np.round(rng.uniform(0, length_ms - 500, count), 3)
    return [[LABELS[rng.integers(3)], float(s), float(s + np.round(rng.uniform(20, 2500), 3))] for s in np.sort(starts)]


def moved(rng, events, by_ms):
    return [[label, max(0.0, s + rng.normal(0, by_ms)), e + rng.normal(0, by_ms)] for label, s, e in events]


def cases():
    rng = np.random.default_rng(0)
    one, two = random_events(rng, 6), random_events(rng, 3)
    yield "equal", {"x": one, "y": two}, {"x": one, "y": two}
    yield "nothing predicted", {"x": [], "y": []}, {"x": one, "y": two}
    yield "nothing there", {"x": one}, {"x": []}
    yield "nothing at all", {"x": [], "y": []}, {"x": [], "y": []}
    yield "a file less", {"x": one}, {"x": one, "y": two}
    yield "wrong labels", {"x": [["b", s, e] for _, s, e in one]}, {"x": [["a", s, e] for _, s, e in one]}
    yield (
        "at the collars",
        {"x": [["a", 1200.0, 2000.0], ["b", 50.0, 1100.0]]},
        {"x": [["a", 1000.0, 2000.0], ["b", 0.0, 1000.0]]},
    )
    yield (
        "just behind the collars",
        {"x": [["a", 1200.1, 2000.0], ["b", 50.1, 1200.1]]},
        {"x": [["a", 1000.0, 2000.0], ["b", 0.0, 1000.0]]},
    )
    yield (
        "greedy would lose one",
        {"x": [["a", 150.0, 400.0], ["a", 300.0, 500.0]]},
        {"x": [["a", 0.0, 300.0], ["a", 320.0, 600.0]]},
    )
    yield "many for one", {"x": [["a", 100.0 * i, 100.0 * i + 90] for i in range(5)]}, {"x": [["a", 200.0, 290.0]]}
    yield "overlaps of one label", {"x": [["a", 0.0, 2500.0], ["a", 500.0, 1500.0]]}, {"x": [["a", 400.0, 3000.0]]}
    yield "at the offset's collar", {"x": [["a", 0.0, 100.0]]}, {"x": [["a", 0.0, 50.0]]}
    yield "a label the file does not have", {"x": [["b", 0.0, 500.0]]}, {"x": [["a", 0.0, 500.0]]}
    yield "whole seconds", {"x": [["a", 1000.0, 2000.0]]}, {"x": [["a", 1000.0, 2000.0], ["c", 2000.0, 2000.0]]}
    yield "beyond the last true event", {"x": [["a", 0.0, 9000.0]]}, {"x": [["a", 0.0, 1000.0]]}
    for number in range(24):
        files = {f"{i}.wav": random_events(rng, int(rng.integers(0, 9))) for i in range(int(rng.integers(1, 4)))}
        guess = {
            name: moved(rng, events, float(rng.choice([10, 60, 250]))) + random_events(rng, int(rng.integers(0, 3)))
            for name, events in files.items()
        }
        yield f"random {number}", guess, files


def scores(predicted, reference):
    as_dicts = [
        {name: [{"label": label, "start": s, "end": e} for label, s, e in events] for name, events in files.items()}
        for files in (predicted, reference)
    ]
    found = {}
    for metric in METRICS:
        score = available_scores[metric]
        assert isinstance(score, partial)
        parts = score(label_to_idx={label: i for i, label in enumerate(LABELS)})(*as_dicts)
        found[metric] = {name: None if np.isnan(value) else value for name, value in parts}
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    content = [
        {"name": name, "predicted": guess, "reference": truth, "scores": scores(guess, truth)}
        for name, guess, truth in cases()
    ]
    Path(__file__).with_name("sed_eval.json").write_text(json.dumps({"labels": LABELS, "cases": content}) + "\n")
