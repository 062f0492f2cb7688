"""One task on the page of an evaluation: every score, what is taken for what, and the clips to listen to."""

from collections.abc import Sequence
from html import escape
from typing import Any

from melmask.downstream.metrics import higher_is_better
from melmask.errors import AudioFileError
from melmask.evaluate.mistakes import (
    Mistake,
    Stretch,
    confusion_counts,
    find_sound,
    worst_clips,
    worst_stretch,
)
from melmask.evaluate.results import (
    Outcome,
    Predictions,
    Report,
    TaskFacts,
    ranks,
    read_event_files,
    read_predictions,
)
from melmask.figures.confusion import MAX_NUMBERED_CLASSES
from melmask.pages.evaluation_charts import Lane, draw_confusion, draw_roll, most_confused
from melmask.pages.evaluation_text import (
    MISSING,
    breakable,
    column_name,
    counted,
    metric_text,
    metrics_of,
    score_text,
    spread_text,
    task_html,
)
from melmask.pages.sound import (
    FRONT_END,
    LONGEST_S,
    draw_sound,
    read_part,
    spectrogram_picture,
    wav_data_uri,
)

HARDEST = 6
_MAX_LANES = 24
_MAX_SOUND_BYTES = 12_000_000


class Sounds:
    """The sound that the page may still hold, shared out evenly among the tasks that are left."""

    def __init__(self) -> None:
        self._left = _MAX_SOUND_BYTES
        self._limit = 0
        self._refused = 0

    def share(self, tasks: int) -> "Sounds":
        """For the next task, of `tasks` that are left; what one leaves over goes to the others."""
        self._limit = self._left // max(1, tasks)
        return self

    def player(self, samples: Any) -> str:
        """The element that plays samples, or a word where there is no room left."""
        uri = wav_data_uri(samples)
        if len(uri) > self._limit:
            self._refused += 1
            return '<p class="note">Left out: the page holds enough sound.</p>'
        self._limit -= len(uri)
        self._left -= len(uri)
        return f'<audio controls preload="none" src="{uri}"></audio>'

    def note(self) -> str:
        """How many clips had to be left out; nothing if none."""
        if not self._refused:
            return ""
        limit = f"{_MAX_SOUND_BYTES / 1e6:.0f} MB"
        return f'<p class="muted">{counted(self._refused, "clip")} can be seen but not heard: a page holds {limit}.</p>'


def task_section(report: Report, number: int, sounds: Sounds) -> str:
    """Everything about one task, to be opened by a click.

    Args:
        report: the evaluation.
        number: which of its tasks.
        sounds: what the section may play.
    """
    task = report.tasks[number]
    outcomes = report.of_task(task.title)
    kind = " · ".join(
        part
        for part in (
            f"{task.embedding_type}, {task.prediction_type}",
            counted(len(task.labels), "label"),
            counted(task.clips, "clip") if task.clips is not None else "",
        )
        if part
    )
    best = _best(outcomes)
    result = (
        f"{escape(column_name(report, best.column))} {score_text(best.score.mean, best.primary)}"
        if best
        else "no score"
    )
    is_open = " open" if len(report.tasks) == 1 else ""
    return (
        f'<details class="task" id="task-{number}"{is_open}><summary><span>{task_html(task)}</span>'
        f'<span class="muted">{escape(kind)}</span><span class="result">{result}</span></summary>'
        f'<div class="body">{_scores(report, task, outcomes)}{_mistakes(report, task, outcomes, best, sounds)}'
        f"{_splits(report, outcomes)}</div></details>"
    )


def _best(outcomes: Sequence[Outcome]) -> Outcome | None:
    places = ranks(outcomes)
    return next((outcome for outcome in outcomes if places.get(outcome.column) == 1), None)


def _scores(report: Report, task: TaskFacts, outcomes: list[Outcome]) -> str:
    if not outcomes:
        return "<p>No model has a score.</p>"
    metrics = metrics_of(outcomes)
    head = "".join(
        f'<th scope="col">{escape(metric)}{"" if higher_is_better(metric) else " ↓"}</th>' for metric in metrics
    )
    rows = []
    for outcome in outcomes:
        cells = []
        for metric in metrics:
            score = outcome.scores.get(metric)
            if score is None:
                cells.append(f"<td>{MISSING}</td>")
                continue
            spread = f'<small class="muted">{spread_text(score, metric)}</small>'
            cells.append(f"<td><b>{metric_text(score.mean, metric)}</b>{spread}</td>")
        rows.append(f"<tr><td>{breakable(column_name(report, outcome.column))}</td>{''.join(cells)}</tr>")
    return (
        f'<h3>All metrics</h3><div class="scroll"><table class="scores"><thead><tr><th scope="col">model</th>{head}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _splits(report: Report, outcomes: list[Outcome]) -> str:
    """The primary metric of every split, and the classifier that was chosen."""
    names = list(dict.fromkeys(split.name for outcome in outcomes for split in outcome.splits))
    if not names:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows, chosen = [], []
    for outcome in outcomes:
        by_name = {split.name: split for split in outcome.splits}
        cells = []
        for name in names:
            split = by_name.get(name)
            score = metric_text(split.scores.get(outcome.primary), outcome.primary) if split else MISSING
            epoch = split.facts.get("epoch") if split else None
            note = f'<small class="muted">epoch {epoch}</small>' if isinstance(epoch, int) and epoch else ""
            cells.append(f"<td><b>{score}</b>{note}</td>")
        name = breakable(column_name(report, outcome.column))
        rows.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
        chosen.append(f"<li><b>{name}</b>: {escape(_setting_text(outcome))}</li>")
    return (
        "<details><summary>Each split, and the classifiers that were chosen</summary>"
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">model</th>{head}'
        f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div><ul class="chosen">{"".join(chosen)}</ul></details>'
    )


def _setting_text(outcome: Outcome) -> str:
    """The chosen settings; one that is not the same for every split, split by split."""
    settings = [_flat(split.facts.get("setting")) for split in outcome.splits]
    words = []
    for key in dict.fromkeys(key for setting in settings for key in setting):
        values = [str(setting.get(key, MISSING)) for setting in settings]
        words.append(f"{key} {values[0] if len(set(values)) == 1 else ' | '.join(values)}")
    return ", ".join(words) or MISSING


def _flat(setting: Any) -> dict[str, Any]:
    """What is inside a setting's own settings beside it."""
    flat: dict[str, Any] = {}
    for key, value in setting.items() if isinstance(setting, dict) else ():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _mistakes(report: Report, task: TaskFacts, outcomes: list[Outcome], best: Outcome | None, sounds: Sounds) -> str:
    if not outcomes:
        return ""
    if task.embedding_type == "event":
        return _events(report, task, best, sounds) if best else ""
    multiclass = task.prediction_type == "multiclass"
    predictions = {outcome.column: read_predictions(task, outcome) for outcome in outcomes}
    parts = [_matrices(report, task, outcomes, predictions)] if multiclass else []
    rows = predictions[best.column] if best else None
    if best is None or rows is None:
        return "".join(parts) + '<p class="note">The predictions are not at hand, so no clips are shown.</p>'
    hardest = worst_clips(rows, task.labels, multiclass, HARDEST)
    name = escape(column_name(report, best.column))
    parts.append(f"<h3>Hardest clips of {name}</h3>")
    if not hardest:
        return "".join(parts) + f"<p>None of {counted(len(rows.files), 'clip')} is taken for something else.</p>"
    what = (
        "Of the clips whose likeliest label is wrong those it is surest of."
        if multiclass
        else "The clips with the highest probability of a label that they do not have."
    )
    cards = [_clip(task, mistake, sounds) for mistake in hardest]
    silent = "" if any("<svg" in card for card in cards) else " The sound is not at hand."
    return "".join(parts) + f'<p class="muted">{what}{silent}</p><div class="cards">{"".join(cards)}</div>'


def _matrices(
    report: Report, task: TaskFacts, outcomes: list[Outcome], predictions: dict[Any, Predictions | None]
) -> str:
    figures = []
    for outcome in outcomes:
        rows, name = predictions[outcome.column], column_name(report, outcome.column)
        if rows is None:
            figures.append(
                f'<figure class="card"><figcaption><b>{escape(name)}</b><small class="muted">the predictions are not '
                "at hand</small></figcaption></figure>"
            )
            continue
        counts = confusion_counts(rows)
        pairs = "".join(
            f"<li>{escape(truth)} for {escape(taken)}: {clips} of {of}</li>"
            for truth, taken, clips, of in most_confused(counts, task.labels)
        )
        figures.append(
            f'<figure class="card"><figcaption><b>{escape(name)}</b><small class="muted">'
            f"{counted(len(rows.files), 'test clip')}</small></figcaption>"
            f"{draw_confusion(counts, task.labels, f'Confusion matrix of {name} on {task.title}')}"
            + (f'<p class="note">Most often mistaken:</p><ol class="mistakes">{pairs}</ol>' if pairs else "")
            + "</figure>"
        )
    unit = ", in %" if len(task.labels) <= MAX_NUMBERED_CLASSES else ""
    note = f"A row is a true label, a column what its clips were taken for; colour is the share of the row{unit}."
    return f'<h3>What is taken for what</h3><p class="muted">{note}</p><div class="matrices">{"".join(figures)}</div>'


def _clip(task: TaskFacts, mistake: Mistake, sounds: Sounds) -> str:
    """A card: what the clip is, what it was taken for, how it looks and sounds."""
    truth = ", ".join(f"{label} ({100 * share:.0f}\u00a0%)" for label, share in mistake.truth) or "no label"
    taken = f"{mistake.predicted} ({100 * mistake.probability:.0f}\u00a0%)"
    said = (
        f'<dl class="said"><dt>is</dt><dd>{escape(truth)}</dd>'
        f'<dt>taken for</dt><dd class="no">{escape(taken)}</dd></dl>'
    )
    path = find_sound(task.folder, [mistake.part], mistake.file)
    heard = length = ""
    if path is not None:
        try:
            samples = read_part(path)
            seconds = len(samples) / FRONT_END.sample_rate_hz
            length = f" · {seconds:.1f} s" if seconds < LONGEST_S else f" · the first {LONGEST_S:.0f} s"
            drawn = draw_sound(spectrogram_picture(samples), seconds, f"Spectrogram of {mistake.file}")
            heard = f"{drawn}{sounds.player(samples)}"
        except AudioFileError as error:
            heard = f'<p class="note">{escape(str(error))}</p>'
    name = f"{mistake.part}/{mistake.file}" if mistake.part else mistake.file
    return f'<figure class="card">{said}{heard}<p class="note file">{escape(name)}{length}</p></figure>'


def _events(report: Report, task: TaskFacts, best: Outcome, sounds: Sounds) -> str:
    stretch = worst_stretch(read_event_files(best), LONGEST_S)
    if stretch is None:
        return '<p class="note">The predictions are not at hand, so no events are shown.</p>'
    file, lanes = stretch.file, _lanes(stretch)
    path = find_sound(task.folder, file.parts, file.name)
    picture, heard, end_s = None, '<p class="note">The sound is not at hand.</p>', stretch.end_s
    if path is not None:
        try:
            samples = read_part(path, stretch.start_s)
            end_s = stretch.start_s + len(samples) / FRONT_END.sample_rate_hz
            picture, heard = spectrogram_picture(samples), sounds.player(samples)
        except AudioFileError as error:
            heard = f'<p class="note">{escape(str(error))}</p>'
    left_out = len(lanes) - _MAX_LANES
    more = f'<p class="note">{counted(left_out, "more label")} left out.</p>' if left_out > 0 else ""
    drawn = draw_roll(lanes[:_MAX_LANES], stretch.start_s, end_s, picture, f"Events of {file.name}")
    legend = (
        '<div class="legend"><span><svg viewBox="0 0 26 10"><rect class="reference" width="26" height="10"/></svg>'
        "above: as it is</span>"
        '<span><svg viewBox="0 0 26 10"><rect class="predicted" width="26" height="10"/></svg>'
        "below, hatched: as predicted</span></div>"
    )
    return (
        f"<h3>Where {escape(column_name(report, best.column))} is most wrong</h3>"
        f'<p class="muted">The stretch of at most {LONGEST_S:.0f} s in which prediction and reference differ longest '
        f"({stretch.wrong_s:.1f} s, added over the labels).</p>{legend}"
        f'<div class="scroll">{drawn}</div>{more}{heard}<p class="note file">{escape(file.name)}</p>'
    )


def _lanes(stretch: Stretch) -> list[Lane]:
    """Labels that sound in the stretch, those that differ most first."""
    file = stretch.file
    found = []
    for label in sorted({event[0] for event in file.reference + file.predicted}):
        spans = [
            [
                (start / 1000, end / 1000)
                for name, start, end in events
                if name == label and end / 1000 > stretch.start_s and start / 1000 < stretch.end_s
            ]
            for events in (file.reference, file.predicted)
        ]
        if any(spans):
            found.append(Lane(label, spans[0], spans[1]))
    return found
