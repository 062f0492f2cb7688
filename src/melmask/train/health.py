"""Whether a pre-training run is healthy, in a sentence per check for somebody who has never trained a model."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from melmask.train.record import RunRecord, Series

Level = Literal["ok", "warn", "bad", "wait"]
_MIN_ROWS = 20
_RECENT_ROWS = 10
_SPIKE = 10.0


class Check(NamedTuple):
    """One judgement; `wait` means that there are too few numbers for one."""

    level: Level
    title: str
    text: str


def check_health(record: RunRecord) -> list[Check]:
    """Make all checks that the run's numbers allow, always in the same order."""
    made = (check(record) for check in _CHECKS)
    return [check for check in made if check is not None]


def number_text(value: float) -> str:
    """Write four digits, or all before the point: 0.1354, 12,345, 2.669e-10."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _rows(record: RunRecord, name: str) -> Series | None:
    """Return the finite rows of a number; None if there are none."""
    series = record.series.get(name)
    finite = series.finite() if series is not None else None
    return finite if finite is not None and len(finite.values) else None


def _loss_is_a_number(record: RunRecord) -> Check | None:
    title = "Loss value"
    series = record.series.get("loss")
    if series is None:
        return None
    broken = series.steps[~np.isfinite(series.values)]
    if not np.isfinite(series.values[-1]):
        return Check(
            "bad",
            title,
            f"At step {series.steps[-1]:,.0f} the loss is {series.values[-1]}: the model is broken from there on. "
            "Start another run with a lower optimizer.learning_rate or with optimizer.max_gradient_norm=1.",
        )
    if len(broken):
        return Check(
            "warn",
            title,
            f"It was not finite, last at step {broken[-1]:,.0f}, but is again. If that comes back, start "
            "another run with a lower optimizer.learning_rate.",
        )
    return Check("ok", title, "Every loss so far is a finite number: the arithmetic holds.")


def _loss_falls(record: RunRecord) -> Check | None:
    title = "Loss trend"
    series = _rows(record, "loss")
    if series is None:
        return None
    rows = len(series.values)
    if rows < _MIN_ROWS:
        return Check("wait", title, f"Too early to say: {rows} of the {_MIN_ROWS} lines of numbers this needs.")
    # Two fifths are compared by their means, as single losses are noisy.
    fifth = rows // 5
    before, now = series.values[-2 * fifth : -fifth].mean(), series.values[-fifth:].mean()
    change = (now - before) / max(abs(before), 1e-12)
    seen = f"from {number_text(before)} to {number_text(now)} ({100 * change:+.1f} %)"
    if change < -0.001:
        return Check("ok", title, f"It fell over the last fifth of the numbers, {seen}: the model is still learning.")
    if change > 0.02:
        return Check(
            "bad",
            title,
            f"It rose over the last fifth of the numbers, {seen}. If it goes on rising, start another run with a lower "
            "optimizer.learning_rate.",
        )
    if _rate_share(record) < 0.05 or record.state == "done":
        return Check("ok", title, f"It is level, {seen}, as it should be when the learning rate comes to its end.")
    return Check(
        "warn",
        title,
        f"It is level over the last fifth of the numbers, {seen}. It may still fall as the learning rate does; if not, "
        "more steps gain little, and a larger model or more sound gains more.",
    )


def _gradient_is_calm(record: RunRecord) -> Check | None:
    title = "Gradient"
    series = _rows(record, "gradient_norm")
    if series is None or len(series.values) < _MIN_ROWS:
        return None
    median = float(np.median(series.values))
    # The first steps of an untrained model are large and mean nothing.
    spikes = series.steps[(series.values > _SPIKE * median) & (series.steps > record.setting("optimizer.warmup_steps"))]
    if not len(spikes):
        return Check("ok", title, f"No gradient after the warm-up is over {_SPIKE:.0f} times the usual one.")
    many = len(spikes) >= max(3, 0.01 * len(series.values))
    return Check(
        "bad" if many else "warn",
        title,
        f"{len(spikes)} of {len(series.values)} logged gradients are over {_SPIKE:.0f} times the usual "
        f"{number_text(median)}, last at step {spikes[-1]:,.0f}: "
        f"{'training is unstable' if many else 'a rare jump does no harm'}. To tame them, start another run with "
        f"optimizer.max_gradient_norm={3 * median:.2g} or a lower optimizer.learning_rate.",
    )


def _speed_holds(record: RunRecord) -> Check | None:
    title = "Speed"
    series = _rows(record, "crops_per_s")
    if series is None or len(series.values) < _MIN_ROWS:
        return None
    # Medians: a single slow interval means nothing.
    usual, now = float(np.median(series.values)), float(np.median(series.values[-_RECENT_ROWS:]))
    seen = f"{number_text(now)} crops/s, usually {number_text(usual)}"
    if now >= usual / 2:
        return Check("ok", title, f"It runs at its usual speed: {seen}.")
    return Check(
        "bad" if now < usual / 5 else "warn",
        title,
        f"It became slow: {seen}. Look for other programs on the machine, for heat, and at the disk of the store; the "
        "result does not suffer.",
    )


def _data_arrives(record: RunRecord) -> Check | None:
    title = "Data"
    series = _rows(record, "data_wait")
    if series is None:
        return None
    share = float(np.median(series.values[-_RECENT_ROWS:]))
    seen = f"{100 * share:.0f} % of the time goes into waiting for data"
    if share <= 0.1:
        return Check("ok", title, f"{seen}: reading keeps up with computing.")
    return Check(
        "bad" if share > 0.3 else "warn",
        title,
        f"{seen}. Stop, then resume with more hardware.readers (now {number_text(record.setting('hardware.readers'))}) "
        "or with the store on a faster disk; the result stays the same.",
    )


def _features_are_rich(record: RunRecord) -> Check | None:
    title = "Feature variety"
    series = _rows(record, "feature_rank")
    if series is None:
        return None
    now, best, width = float(series.values[-1]), float(series.values.max()), record.setting("model.width")
    # So many sounds cannot have more directions.
    most = min(width, record.last("rank_units") or width)
    seen = f"the features use about {now:.0f}{f' of {width:.0f}' if width else ''} directions"
    advice = "All sounds get nearly the same vector: start another run with a lower optimizer.learning_rate."
    if now < 0.1 * best:
        return Check("bad", title, f"They collapsed: {seen}, after {best:.0f} at the best. {advice}")
    if now < 0.05 * most:
        if series.steps[-1] < 0.1 * record.setting("optimizer.steps"):
            return Check("warn", title, f"So far {seen}. Few at the start are usual; they should soon become more.")
        return Check("bad", title, f"They are poor: {seen}. {advice}")
    return Check("ok", title, f"For different sounds {seen}: they have not collapsed.")


def _accuracy_holds(record: RunRecord) -> Check | None:
    title = "Feature usefulness"
    series = _rows(record, "knn_accuracy")
    if series is None:
        return None
    best = int(series.values.argmax())
    now, top = float(series.values[-1]), float(series.values[best])
    seen = f"nearest neighbours name {100 * now:.1f} % of the labelled sounds correctly"
    if top - now <= 0.05:
        return Check("ok", title, f"With these features {seen}; the best so far is {100 * top:.1f} %.")
    return Check(
        "bad" if top - now > 0.15 else "warn",
        title,
        f"With these features {seen}, after {100 * top:.1f} % at step {series.steps[best]:,.0f}. If it falls "
        "further, use a checkpoint from around that step, or start another run with fewer optimizer.steps.",
    )


def _nothing_went_wrong(record: RunRecord) -> Check | None:
    title = "Mishaps"
    if record.events and record.events[-1].kind == "spike":
        step, _, text = record.events[-1]
        goes_back = record.settings.get("run.on_divergence") == "rollback"
        back = "" if goes_back else "resume with run.on_divergence=rollback, or "
        return Check(
            "bad",
            title,
            f"The run broke off at step {step:,}: {text}. To repair it, {back}"
            "start another run with a lower optimizer.learning_rate, and look for sound that is not like the rest.",
        )
    rollbacks, skips = ([event for event in record.events if event.kind == kind] for kind in ("rollback", "skip"))
    if not rollbacks and not skips:
        return Check("ok", title, "No step was skipped and the run never had to go back.") if record.events else None
    last = max(event.step for event in rollbacks + skips)
    return Check(
        "bad" if len(rollbacks) >= 3 else "warn",
        title,
        f"The run went back to a snapshot {_times(len(rollbacks))} and skipped a step {_times(len(skips))}, last at "
        f"step {last:,}. It recovers by itself; if it happens again, start a run with a lower optimizer.learning_rate.",
    )


def _rate_is_left(record: RunRecord) -> Check | None:
    title = "Learning rate"
    rate = record.last("learning_rate")
    if rate is None:
        return None
    steps = record.setting("optimizer.steps")
    if record.state == "done":
        return Check(
            "ok",
            title,
            "It has come to its end, as planned. To train longer, start another run with more optimizer.steps.",
        )
    if _rate_share(record) < 0.001 and record.step > record.setting("optimizer.warmup_steps"):
        if record.step >= 0.95 * steps > 0:
            return Check("ok", title, "It comes to its end, as planned: the last steps only polish the model.")
        return Check(
            "warn",
            title,
            f"It has ended at {number_text(rate)}: further steps change nothing. Stop, and start another run with "
            "more optimizer.steps if the loss was still falling.",
        )
    return Check("ok", title, f"It is {number_text(rate)}, so each step still changes the model.")


def _rate_share(record: RunRecord) -> float:
    """Return the newest learning rate as a share of the highest so far; 1 if there is none."""
    series = _rows(record, "learning_rate")
    highest = float(series.values.max()) if series is not None else 0.0
    return float(series.values[-1]) / highest if series is not None and highest > 0 else 1.0


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


_CHECKS: tuple[Callable[[RunRecord], Check | None], ...] = (
    _loss_is_a_number,
    _loss_falls,
    _gradient_is_calm,
    _speed_holds,
    _data_arrives,
    _features_are_rich,
    _accuracy_holds,
    _nothing_went_wrong,
    _rate_is_left,
)
