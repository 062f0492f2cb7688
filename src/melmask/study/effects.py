"""What each value of an axis changes, with an interval over seeds, and the same in plain sentences.

Runs are compared in pairs that differ on one axis and share the seed and all else. The effect is the mean over the
pairs of a seed, then over seeds; the interval is Student's over the seeds. A random search has no such pairs: there
the means of all runs with one value and with the other are compared, which is less sure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from melmask.downstream.linear_and_knn import t_interval
from melmask.study.description import Axis, Probe
from melmask.study.results import Results
from melmask.study.settings import Point, axis_text, reference_of
from melmask.system.terminal import counted

# Of fewer clips that one run gets right and the other wrong, all may be one-sided by chance (McNemar's test at 5 %).
_LEAST_CLIPS = 4
PROBES: tuple[Probe, ...] = ("linear", "k-NN")


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a value of an axis changes against the reference value; scores are shares."""

    axis: str
    value: str
    reference: str
    probe: Probe
    task: str | None
    """None: the mean over tasks."""
    difference: float
    half_width: float | None
    """Half of the 95 % interval; None for a single seed."""
    tested: int
    """Clips that each of the compared runs was judged on."""

    @property
    def measured(self) -> bool:
        """Whether the difference is larger than chance explains, that of seeds and that of few clips."""
        clips = abs(self.difference) * self.tested
        return self.half_width is not None and abs(self.difference) > self.half_width and clips >= _LEAST_CLIPS

    @property
    def text(self) -> str:
        """The difference in points: "+2.1 ± 0.4"."""
        spread = "" if self.half_width is None else f" ± {100 * self.half_width:.1f}"
        return f"{100 * self.difference:+.1f}{spread}".replace("-", "−")


def effects_of(results: Results, axis: Axis) -> list[Effect]:
    """Return the effects of an axis: for each of its values, each probe, the mean over tasks and each task."""
    reference = axis_text(reference_of(results.study, axis))
    values = list(dict.fromkeys(point.values[axis.name] for point in results.points))
    found = []
    for value in (value for value in values if value != reference):
        for probe in PROBES:
            for task in (None, *results.tasks):
                differences = _differences(results, (axis.name, value, reference), probe, task)
                if differences is not None:
                    mean, half_width = differences
                    effect = Effect(
                        axis=axis.name,
                        value=value,
                        reference=reference,
                        probe=probe,
                        task=task,
                        difference=mean,
                        half_width=half_width,
                        tested=_tested(results, probe, task),
                    )
                    found.append(effect)
    return found


def _tested(results: Results, probe: Probe, task: str | None) -> int:
    """Return how many clips a run is judged on, in a task or in all of them."""
    judged = [outcome.scores for outcome in results.outcomes.values() if outcome.scores]
    tasks = results.tasks if task is None else [task]
    return sum(max(scores[name][probe].tested for scores in judged if name in scores) for name in tasks)


def _differences(
    results: Results, compared: tuple[str, str, str], probe: Probe, task: str | None
) -> tuple[float, float | None] | None:
    """Return the mean difference and half of its interval; None if nothing can be compared yet."""
    axis, value, reference = compared
    pairs = [(point, other) for point in results.points for other in results.points
             if point.values == other.values | {axis: value} and other.values[axis] == reference]  # fmt: skip
    by_seed: dict[int, list[float]] = {}
    for point, other in pairs:
        theirs = results.scores(other, probe, task)
        for seed, score in results.scores(point, probe, task).items():
            if seed in theirs:
                by_seed.setdefault(seed, []).append(score - theirs[seed])
    if by_seed:
        means = np.array([np.mean(differences) for differences in by_seed.values()])
        return float(means.mean()), _half_width(means)
    if pairs:
        return None
    ours, theirs_all = (_all_scores(results, axis, one, probe, task) for one in (value, reference))
    if not len(ours) or not len(theirs_all):
        return None
    half_width, their_half = _half_width(ours), _half_width(theirs_all)
    known = None if half_width is None or their_half is None else math.hypot(half_width, their_half)
    return float(ours.mean() - theirs_all.mean()), known


def _all_scores(results: Results, axis: str, value: str, probe: Probe, task: str | None) -> np.ndarray:
    with_value = (point for point in results.points if point.values[axis] == value)
    return np.array([score for point in with_value for score in results.scores(point, probe, task).values()])


def _half_width(values: np.ndarray) -> float | None:
    interval = t_interval(values)
    return None if interval is None else (interval[1] - interval[0]) / 2


def summary(results: Results) -> list[str]:
    """Return what the study says so far, in sentences."""
    return list(_sentences(results))


def _sentences(results: Results) -> Iterator[str]:
    done, total = len(results.outcomes), len(results.runs)
    if done < total:
        yield f"{done} of {total} runs have ended, so this is not the last word."
    failed = {run.point.name for run, _ in results.failed()}
    if failed:
        what = f"{len(failed)} of {len(results.points)} settings failed, in part or as a whole"
        yield f"{what}: {'; '.join(sorted(failed))}."
    if not results.study.labels:
        yield "There are no labeled tables, so no setting is chosen: losses of different targets do not compare."
        return
    if results.winner is not None:
        yield _winner_sentence(results, results.winner)
    silent: list[Effect] = []
    for axis in results.study.axes:
        effects = effects_of(results, axis)
        for effect in (one for one in effects if one.task is None and one.probe == results.study.choose_by):
            parts = [one for one in effects if (one.value, one.probe) == (effect.value, effect.probe) and one.task]
            if effect.measured or any(part.measured for part in parts):
                yield _effect_sentence(effect, parts)
            else:
                silent.append(effect)
    if silent:
        one_seed = all(effect.half_width is None for effect in silent)
        why = "One seed cannot show which of these differences are chance" if one_seed else (
            "These differences are no larger than those by chance"
        )  # fmt: skip
        listed = "; ".join(f"{effect.axis} {effect.value} {effect.text}" for effect in silent)
        yield f"{why} (points of the {silent[0].probe} probe against the reference): {listed}."


def _winner_sentence(results: Results, winner: Point) -> str:
    words = []
    for probe in PROBES:
        scores = np.array(list(results.scores(winner, probe).values()))
        spread = f" ± {100 * scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
        words.append(f"{probe} {100 * scores.mean():.1f}{spread} %")
    tasks, seeds = counted(len(results.tasks), "task"), counted(len(results.study.seeds), "seed")
    facts = f"mean of {tasks}, {seeds}, chosen by the {results.study.choose_by} probe"
    return f"On validation rows the best setting is {winner.name}: {', '.join(words)} ({facts})."


def _effect_sentence(effect: Effect, parts: Sequence[Effect]) -> str:
    """Say what a value changes: "patch 8x16 gains 2.1 ± 0.4 points over 16x16 and loses nothing on any task"."""
    name, compared = f"{effect.axis} {effect.value}", f"against {effect.reference} on the mean ({effect.probe} probe)"
    size = effect.text.lstrip("+−")
    if effect.measured:
        head = f"{name} {'gains' if effect.difference > 0 else 'loses'} {size} points {compared}"
    else:
        head = f"{name} changes nothing measurable {compared}, {effect.text} points"
    gains = [f"{part.task} ({part.text})" for part in parts if part.measured and part.difference > 0]
    losses = [f"{part.task} ({part.text})" for part in parts if part.measured and part.difference < 0]
    tails = []
    if gains:
        tails.append(f"it gains on {_listed(gains)}")
    if losses:
        tails.append(f"it loses on {_listed(losses)}")
    elif effect.difference > 0:
        tails.append("no task loses measurably")
    return f"{head}; {', and '.join(tails)}." if tails else f"{head}."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
