"""Write numbers, scores and names as the pages show them; most of these are filters of the templates."""

from collections.abc import Sequence

from melmask.evaluate.records import Column, Outcome, Report, Score, Setting

MISSING = "–"
"""What a page writes where a number does not exist."""
UNDEFINED = "undefined"
"""A score that cannot be computed, for example because no event was found."""
# Event metrics come with parts, as "segment_1s_er_error_rate". Such a part repeats the metric itself.
_MAIN_PARTS = ("f_measure", "error_rate")
# d′ is a distance in standard deviations; every other metric is a share, or an error rate that is written like one.
_NOT_PERCENT = ("d_prime",)


def is_percent(metric: str) -> bool:
    """Return whether a metric is written in %."""
    return metric not in _NOT_PERCENT


def metric_text(value: float | None, metric: str) -> str:
    """Write a score as the tables do, without its unit."""
    if value is None:
        return UNDEFINED
    return f"{100 * value:.1f}" if is_percent(metric) else f"{value:.2f}"


def score_text(value: float | None, metric: str) -> str:
    """Write a score with its unit."""
    text = metric_text(value, metric)
    return f"{text} %" if value is not None and is_percent(metric) else text


def spread_text(score: Score, metric: str) -> str:
    """Write how sure a score is: its standard deviation, or else its interval, or else nothing."""
    if score.std is not None:
        return f"± {metric_text(score.std, metric)}"
    if score.interval_95 is not None:
        low, high = (metric_text(end, metric) for end in score.interval_95)
        return f"[{low}, {high}]"
    return ""


def column_name(report: Report, column: Column) -> str:
    """Return the model's name, with the protocol where the page has several."""
    return f"{column.model}, {column.protocol}" if len(report.protocols) > 1 and column.protocol else column.model


def metrics_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return all metrics of some outcomes, the primary first, without parts that repeat another metric."""
    names = dict.fromkeys(metric for outcome in outcomes for metric in (outcome.primary, *outcome.scores))
    return [name for name in names if not any(name == f"{other}_{part}" for other in names for part in _MAIN_PARTS)]


def setting_text(outcome: Outcome) -> str:
    """Write the settings of the chosen classifiers; where splits differ, the values of all splits in their order."""
    settings = [_flat(split.setting) for split in outcome.splits]
    words = []
    for key in dict.fromkeys(key for setting in settings for key in setting):
        values = [str(setting.get(key, MISSING)) for setting in settings]
        # One value stands for all splits if they agree.
        words.append(f"{key} {values[0] if len(set(values)) == 1 else ' | '.join(values)}")
    return ", ".join(words) or MISSING


def _flat(setting: Setting) -> dict[str, object]:
    """Lift settings that are nested in another setting, as the post-processing of events is."""
    flat: dict[str, object] = {}
    for key, value in setting.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def thousands(value: object) -> str:
    """Write an integer as 12,345, and anything else as a dash."""
    return f"{value:,}" if isinstance(value, int) else MISSING


def rounded(value: float) -> str:
    """Write a number with two digits, or all digits before the point: '0.17', '1,234'."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def span(seconds: float) -> str:
    """Write a time: 93784 -> '1 d 2 h', 3725 -> '1 h 02 min', 65 -> '1 min 05 s'."""
    # An estimate of the time left can be infinite or negative for a moment.
    if not 0 <= seconds < 1e10:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{h} h {m:02d} min"
    return f"{m} min {s:02d} s" if minutes else f"{s} s"
