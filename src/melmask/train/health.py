"""Whether a pre-training run is healthy: a few sentences for each check, for readers who have never trained a model.

A text says what was seen, what that means, and, if something is wrong, what to do.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from melmask.train.record import RunRecord, Series

Level = Literal["ok", "warn", "bad", "wait"]
_MIN_ROWS = 20
"""Fewer rows of numbers than this show no trend."""
_RECENT_ROWS = 10
_SPIKE = 10.0
"""A gradient this many times the usual one is a jump."""
_COLLAPSED_LOSS = 0.01
"""With M2D, the squared distance of predicted from true directions; unrelated ones are 2 apart, and no model that tells
sounds apart is this near."""


class Check(NamedTuple):
    """One judgement; `wait` means that there are not enough numbers for one."""

    level: Level
    title: str
    text: str


_Judgement = tuple[Level, str] | None


def check_health(record: RunRecord) -> list[Check]:
    """Make all checks that the run's numbers allow, always in the same order."""
    judged = {title: judge(record) for title, judge in _CHECKS.items()}
    return [Check(found[0], title, found[1]) for title, found in judged.items() if found is not None]


def number_text(value: float) -> str:
    """Write four digits, or all before the point: 0.1354, 12,345, 2.669e-10."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _rows(record: RunRecord, name: str, least: int = 1) -> Series | None:
    """Return the finite rows of a number; None if there are fewer than `least`."""
    series = record.series.get(name)
    finite = series.finite() if series is not None else None
    return finite if finite is not None and len(finite.values) >= least else None


def _loss_is_a_number(record: RunRecord) -> _Judgement:
    series = record.series.get("loss")
    if series is None:
        return None
    broken = series.steps[~np.isfinite(series.values)]
    if not np.isfinite(series.values[-1]):
        return "bad", (
            f"At step {series.steps[-1]:,.0f} the loss is {series.values[-1]}, which is not a usable number. The model "
            "is broken from there on. Start another run with a lower optimizer.learning_rate, or with "
            "optimizer.max_gradient_norm=1."
        )
    if len(broken):
        return "warn", (
            f"The loss was not a usable number for some steps, last at step {broken[-1]:,.0f}; now it is one again. "
            "If this happens again, start another run with a lower optimizer.learning_rate."
        )
    return "ok", "Every loss so far is a finite number, so the arithmetic works."


def _loss_falls(record: RunRecord) -> _Judgement:
    series = _rows(record, "loss")
    if series is None:
        return None
    rows = len(series.values)
    if rows < _MIN_ROWS:
        return "wait", f"Too early to say: this check needs {_MIN_ROWS} log intervals, and there are {rows}."
    # The means of the last two fifths are compared, because single losses are noisy.
    fifth = rows // 5
    before, now = series.values[-2 * fifth : -fifth].mean(), series.values[-fifth:].mean()
    change = (now - before) / max(abs(before), 1e-12)
    if record.settings.get("objective.kind") == "m2d":
        return _m2d_loss(record, now)
    seen = f"from {number_text(before)} to {number_text(now)} ({100 * change:+.1f} %)"
    if change < -0.001:
        return "ok", (
            f"The loss measures the model's mistakes. Over the last fifth of the run it fell {seen}, so the model is "
            "still learning."
        )
    if change > 0.02:
        return "bad", (
            f"The loss measures the model's mistakes. Over the last fifth of the run it rose {seen}, so the model is "
            "getting worse. If it keeps rising, start another run with a lower optimizer.learning_rate."
        )
    if _rate_share(record) < 0.05 or record.state == "done":
        return "ok", f"The loss has settled, {seen}. That is normal once the learning rate is close to zero."
    return "warn", (
        f"The loss hardly changes: over the last fifth of the run it went {seen}. It may fall again as the learning "
        "rate does. If it does not, more steps will gain little; a larger model or more sound will gain more."
    )


def _m2d_loss(record: RunRecord, loss: float) -> _Judgement:
    """Judge the loss of M2D, whose target learns, too: only a loss of almost 0 means something."""
    if loss < _COLLAPSED_LOSS * record.setting("m2d.feature_weight"):
        return "bad", (
            f"The loss is {number_text(loss)}, almost 0: the target encoder makes the same of every sound, which is "
            "easy to predict. Start another run with a lower optimizer.learning_rate, a higher m2d.first_decay, or "
            "with m2d.reconstruction_weight=1."
        )
    return "ok", (
        f"The loss, now {number_text(loss)}, compares predictions with a target that learns as well. It may rise while "
        "the model improves. Feature variety and feature usefulness tell more."
    )


def _gradient_is_calm(record: RunRecord) -> _Judgement:
    series = _rows(record, "gradient_norm", _MIN_ROWS)
    if series is None:
        return None
    median = float(np.median(series.values))
    # The gradients of an untrained model are large; those of the warm-up are therefore left out.
    spikes = series.steps[(series.values > _SPIKE * median) & (series.steps > record.setting("optimizer.warmup_steps"))]
    if not len(spikes):
        return "ok", (
            "The gradient says how strongly a step wants to change the model. After the warm-up it never exceeded "
            f"{_SPIKE:.0f} times its usual size, so training is stable."
        )
    # A few jumps are normal; three that make up one per cent of the intervals are not.
    many = len(spikes) >= max(3, 0.01 * len(series.values))
    return "bad" if many else "warn", (
        f"The gradient says how strongly a step wants to change the model. In {len(spikes)} of {len(series.values)} "
        f"log intervals, last at step {spikes[-1]:,.0f}, it exceeded {_SPIKE:.0f} times its usual size of "
        f"{number_text(median)}. {'Training is unstable.' if many else 'A rare jump does no harm.'} To prevent jumps, "
        f"start another run with optimizer.max_gradient_norm={3 * median:.2g} or a lower optimizer.learning_rate."
    )


def _speed_holds(record: RunRecord) -> _Judgement:
    series = _rows(record, "crops_per_s", _MIN_ROWS)
    if series is None:
        return None
    # Medians are compared, because a single slow interval means nothing.
    usual, now = float(np.median(series.values)), float(np.median(series.values[-_RECENT_ROWS:]))
    seen = f"{number_text(now)} crops (pieces of sound) a second; its usual speed is {number_text(usual)}"
    if now >= usual / 2:
        return "ok", f"The run trains on {seen}."
    return "bad" if now < usual / 5 else "warn", (
        f"The run has become slow. It trains on {seen}. Check whether other programs use the machine, whether it is "
        "too hot, and whether the store's disk is slow. The result does not suffer."
    )


def _data_arrives(record: RunRecord) -> _Judgement:
    series = _rows(record, "data_wait")
    if series is None:
        return None
    share = float(np.median(series.values[-_RECENT_ROWS:]))
    seen = f"The run spends {100 * share:.0f} % of its time waiting for data"
    if share <= 0.1:
        return "ok", f"{seen}, so reading keeps up with computing."
    return "bad" if share > 0.3 else "warn", (
        f"{seen}. Stop it, then resume it with more hardware.readers (now "
        f"{number_text(record.setting('hardware.readers'))}), or move the store to a faster disk. The result stays the "
        "same."
    )


def _features_are_rich(record: RunRecord) -> _Judgement:
    series = _rows(record, "feature_rank")
    if series is None:
        return None
    now, best, width = float(series.values[-1]), float(series.values.max()), record.setting("model.width")
    # The vectors of n sounds span at most n directions, however wide the model is.
    most = min(width, record.last("rank_units") or width)
    seen = (
        "The model turns each sound into a vector. The vectors of different sounds use about "
        f"{now:.0f}{f' of {width:.0f}' if width else ''} directions"
    )
    advice = "All sounds get almost the same vector. Start another run with a lower optimizer.learning_rate."
    # Collapse is the usual way in which self-supervised training fails: one vector for everything.
    if now < 0.1 * best:
        return "bad", f"{seen}, after {best:.0f} at best: they have collapsed. {advice}"
    if now < 0.05 * most:
        if series.steps[-1] < 0.1 * record.setting("optimizer.steps"):
            return "warn", f"{seen}. A small number is normal at the start; it should grow soon."
        return "bad", f"{seen}, which is very few. {advice}"
    return "ok", f"{seen}, so the model tells sounds apart."


def _accuracy_holds(record: RunRecord) -> _Judgement:
    one_label = _rows(record, "knn_accuracy")
    series = _rows(record, "knn_map") if one_label is None else one_label
    if series is None:
        return None
    # A score falls when a model learns details that the labels do not need, or when it breaks.
    best = int(series.values.argmax())
    now, top = float(series.values[-1]), float(series.values[best])
    seen = (
        "Each labeled sound is given the label of the sounds that the model finds most similar. "
        f"{100 * now:.1f} % of these labels are right"
        if one_label is not None
        else "The labels of each sound are guessed from the sounds that the model finds most similar. "
        f"The mean average precision is {100 * now:.1f} %"
    )
    if top - now <= 0.05:
        return "ok", f"{seen}; the best result so far is {100 * top:.1f} %."
    return "bad" if top - now > 0.15 else "warn", (
        f"{seen}, after {100 * top:.1f} % at step {series.steps[best]:,.0f}. If it keeps falling, use a "
        "checkpoint from around that step, or start another run with fewer optimizer.steps."
    )


def _nothing_went_wrong(record: RunRecord) -> _Judgement:
    # A spike that a rollback does not follow has ended the run.
    if record.events and record.events[-1].kind == "spike":
        step, _, text = record.events[-1]
        goes_back = record.settings.get("run.on_divergence") == "rollback"
        resume = "" if goes_back else "Resume it with run.on_divergence=rollback, or start"
        return "bad", (
            f"The run ended early, at step {step:,}: {text}. {resume or 'Start'} another run with a lower "
            "optimizer.learning_rate. Also look for sound files that are unlike the rest."
        )
    rollbacks, skips = ([event for event in record.events if event.kind == kind] for kind in ("rollback", "skip"))
    if not rollbacks and not skips:
        return ("ok", "The run never skipped a step and never returned to an earlier state.") if record.events else None
    last = max(event.step for event in rollbacks + skips)
    return "bad" if len(rollbacks) >= 3 else "warn", (
        f"The run returned to an earlier state {_times(len(rollbacks))} and skipped a step {_times(len(skips))}, last "
        f"at step {last:,}. It recovered by itself. If this happens again, start another run with a lower "
        "optimizer.learning_rate."
    )


def _rate_is_left(record: RunRecord) -> _Judgement:
    rate = record.last("learning_rate")
    if rate is None:
        return None
    steps = record.setting("optimizer.steps")
    if record.state == "done":
        return "ok", (
            "The learning rate, the size of a step's change, has fallen to zero as planned. To train longer, start "
            "another run with more optimizer.steps."
        )
    # During the warm-up the rate is small, too, but it grows.
    if _rate_share(record) < 0.001 and record.step > record.setting("optimizer.warmup_steps"):
        if record.step >= 0.95 * steps > 0:
            return "ok", "The learning rate falls to zero as planned. The last steps change the model only a little."
        return "warn", (
            f"The learning rate, the size of a step's change, is only {number_text(rate)}, so further steps change "
            "nothing. Stop the run. If the loss was still falling, start another one with more optimizer.steps."
        )
    return "ok", f"The learning rate is {number_text(rate)}, so each step still changes the model."


def _rate_share(record: RunRecord) -> float:
    """Return the newest learning rate as a share of the highest so far; 1 if there is none."""
    series = _rows(record, "learning_rate")
    highest = float(series.values.max()) if series is not None else 0.0
    return float(series.values[-1]) / highest if series is not None and highest > 0 else 1.0


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


_CHECKS: dict[str, Callable[[RunRecord], _Judgement]] = {
    "Loss value": _loss_is_a_number,
    "Loss trend": _loss_falls,
    "Gradient": _gradient_is_calm,
    "Speed": _speed_holds,
    "Data": _data_arrives,
    "Feature variety": _features_are_rich,
    "Feature usefulness": _accuracy_holds,
    "Mishaps": _nothing_went_wrong,
    "Learning rate": _rate_is_left,
}
