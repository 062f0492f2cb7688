"""How the page of an evaluation writes scores and names."""

from html import escape

from melmask.evaluate.results import Column, Outcome, Report, Score, TaskFacts

MISSING, UNDEFINED = "–", "undefined"
"""What nobody asked for, and a score that cannot be computed, as where no event was found."""
_NAMES = {
    "top1_acc": "share of clips whose likeliest label is right",
    "pitch_acc": "share of clips whose pitch is right",
    "chroma_acc": "share of clips whose pitch is right but for the octave",
    "mAP": "mean average precision over the labels",
    "d_prime": "separability d′, mean over the labels",
    "aucroc": "area under the ROC curve, mean over the labels",
    "event_onset_200ms_fms": "F-measure of events, onsets within 200 ms",
    "event_onset_50ms_fms": "F-measure of events, onsets within 50 ms",
    "event_onset_offset_50ms_20perc_fms": "F-measure of events, onsets within 50 ms and ends within 50 ms or 20 %",
    "segment_1s_er": "error rate in segments of 1 s; lower is better",
}
_MAIN_PARTS = ("f_measure", "error_rate")
_NOT_PERCENT = ("d_prime",)


def is_percent(metric: str) -> bool:
    """Whether a metric is written in %."""
    return metric not in _NOT_PERCENT


def name_of_metric(metric: str) -> str:
    """What a metric measures, in words; its own name if it is not known."""
    return _NAMES.get(metric, metric)


def metric_text(value: float | None, metric: str) -> str:
    """A score as the tables write it, without its unit."""
    if value is None:
        return UNDEFINED
    return f"{100 * value:.1f}" if is_percent(metric) else f"{value:.2f}"


def score_text(value: float | None, metric: str) -> str:
    """A score with its unit."""
    text = metric_text(value, metric)
    return f"{text} %" if value is not None and is_percent(metric) else text


def spread_text(score: Score, metric: str) -> str:
    """How sure a score is: its standard deviation, else its interval, else nothing."""
    if score.std is not None:
        return f"± {metric_text(score.std, metric)}"
    if score.interval_95 is not None:
        low, high = (metric_text(end, metric) for end in score.interval_95)
        return f"[{low}, {high}]"
    return ""


def column_name(report: Report, column: Column) -> str:
    """The model's name, with the protocol where the page has several."""
    return f"{column.model}, {column.protocol}" if len(report.protocols) > 1 and column.protocol else column.model


def metrics_of(outcomes: list[Outcome]) -> list[str]:
    """All metrics of some outcomes, in their order, the primary first; the main part of an event metric only once."""
    names = dict.fromkeys(metric for outcome in outcomes for metric in (outcome.primary, *outcome.scores))
    return [name for name in names if not any(name == f"{other}_{part}" for other in names for part in _MAIN_PARTS)]


def breakable(name: str) -> str:
    """A name as HTML that may be broken after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def task_html(task: TaskFacts) -> str:
    """The task's name, and paler what its folder's name adds: the version and the mode."""
    if not task.title.startswith(f"{task.name}-"):
        return f"<b>{breakable(task.title)}</b>"
    return f'<b>{breakable(task.name)}</b><span class="muted">{breakable(task.title[len(task.name) :])}</span>'


def counted(number: int, noun: str) -> str:
    """'1 task', '3 tasks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
