"""Show one task on the page of an evaluation: every score, what is taken for what, and the clips to listen to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

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
    Column,
    Outcome,
    Predictions,
    Report,
    TaskFacts,
    ranks,
    read_event_files,
    read_predictions,
)
from melmask.pages.charts import ConfusionChart, confusion_chart
from melmask.pages.render import MISSING, counted
from melmask.pages.sound import (
    FRONT_END,
    LONGEST_S,
    Lane,
    Picture,
    RollChart,
    SoundBudget,
    SoundChart,
    read_part,
    roll_chart,
    sound_chart,
    spectrogram_picture,
)
from melmask.pages.wording import (
    column_name,
    metric_text,
    metrics_of,
    score_text,
    setting_text,
    share_text,
    spread_text,
)

HARDEST = 6
_MAX_LANES = 24


class ScoreRow(NamedTuple):
    """A model in a table: its name, and for each column a score and what is written below it."""

    name: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """A table of one task, a row a model."""

    heads: list[str]
    rows: list[ScoreRow]


class Matrix(NamedTuple):
    """What a model takes for what; without predictions there is no chart."""

    name: str
    clips: str = ""
    chart: ConfusionChart | None = None
    confused: Sequence[tuple[str, str, int, int]] = ()


class Heard(NamedTuple):
    """A sound: its length in s, its spectrogram, its wav (empty if it does not fit), or why it cannot be read."""

    seconds: float = 0.0
    picture: Picture | None = None
    wav: str = ""
    problem: str = ""


class Clip(NamedTuple):
    """A clip that was taken for something else; `heard` is None where the sound is missing."""

    truth: str
    taken: str
    name: str
    length: str
    heard: Heard | None
    chart: SoundChart | None


class Roll(NamedTuple):
    """The events of a stretch in which a model is most wrong."""

    file: str
    wrong_s: float
    chart: RollChart
    left_out: str
    heard: Heard | None


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """All that the page says about one task; a part that does not apply is empty or None."""

    task: TaskFacts
    facts: str
    result: str
    best: str
    """The name of the best model."""
    scores: ScoreTable
    matrices: list[Matrix]
    clips: list[Clip] | None
    """None where the predictions are missing."""
    judged: str
    """Of how many clips the hardest are shown."""
    roll: Roll | None
    splits: ScoreTable
    chosen: list[tuple[str, str]]
    """Each model's name and the settings of its classifiers."""


def task_section(report: Report, task: TaskFacts, sounds: SoundBudget) -> TaskSection:
    """Collect everything about one task.

    Args:
        report: the evaluation.
        task: one of its tasks.
        sounds: what the section may play.
    """
    outcomes = report.of_task(task.title)
    places = ranks(outcomes)
    best = next((outcome for outcome in outcomes if places.get(outcome.column) == 1), None)
    name = column_name(report, best.column) if best else ""
    facts = [f"{task.embedding_type}, {task.prediction_type}", counted(len(task.labels), "label")]
    if task.clips is not None:
        facts.append(counted(task.clips, "clip"))
    events, multiclass = task.embedding_type == "event", task.prediction_type == "multiclass"
    predictions = {} if events else {outcome.column: read_predictions(task, outcome) for outcome in outcomes}
    rows = predictions.get(best.column) if best else None
    hardest = worst_clips(rows, task.labels, multiclass, HARDEST) if rows else []
    return TaskSection(
        task=task,
        facts=" · ".join(facts),
        result=f"{name} {score_text(best.score.mean, best.primary)}" if best else "no score",
        best=name,
        scores=_scores(report, outcomes),
        matrices=_matrices(report, task, predictions) if multiclass else [],
        clips=[_clip(task, mistake, sounds) for mistake in hardest] if rows else None,
        judged=counted(len(rows.files), "clip") if rows else "",
        roll=_roll(task, best, sounds) if events and best else None,
        splits=_splits(report, outcomes),
        chosen=[(column_name(report, outcome.column), setting_text(outcome)) for outcome in outcomes],
    )


def _scores(report: Report, outcomes: list[Outcome]) -> ScoreTable:
    metrics = metrics_of(outcomes)
    rows = []
    for outcome in outcomes:
        scores = [(outcome.scores.get(metric), metric) for metric in metrics]
        cells = [(metric_text(s.mean, m), spread_text(s, m)) if s else (MISSING, "") for s, m in scores]
        rows.append(ScoreRow(column_name(report, outcome.column), cells))
    return ScoreTable(heads=[f"{m}{'' if higher_is_better(m) else ' ↓'}" for m in metrics], rows=rows)


def _splits(report: Report, outcomes: list[Outcome]) -> ScoreTable:
    """Give the primary metric of every split, and the epoch of the classifier that was chosen."""
    names = list(dict.fromkeys(split.name for outcome in outcomes for split in outcome.splits))
    rows = []
    for outcome in outcomes:
        by_name = {split.name: split for split in outcome.splits}
        cells = []
        for split in map(by_name.get, names):
            epoch = split.facts.get("epoch") if split else None
            text = metric_text(split.scores.get(outcome.primary), outcome.primary) if split else MISSING
            cells.append((text, f"epoch {epoch}" if isinstance(epoch, int) and epoch else ""))
        rows.append(ScoreRow(column_name(report, outcome.column), cells))
    return ScoreTable(heads=names, rows=rows)


def _matrices(report: Report, task: TaskFacts, predictions: Mapping[Column, Predictions | None]) -> list[Matrix]:
    found = []
    for column, rows in predictions.items():
        name = column_name(report, column)
        if rows is None:
            found.append(Matrix(name))
            continue
        counts = confusion_counts(rows)
        chart = confusion_chart(counts, task.labels, f"Confusion matrix of {name} on {task.title}")
        clips = counted(len(rows.files), "test clip")
        found.append(Matrix(name, clips, chart, most_confused(counts, task.labels)))
    return found


def most_confused(
    counts: Integer[np.ndarray, "classes classes"], labels: Sequence[str], most: int = 3
) -> list[tuple[str, str, int, int]]:
    """Return (true, predicted, clips, of how many) of the commonest mistakes, the commonest first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(cell), len(labels)) for cell in order)
    return [
        (labels[row], labels[column], int(wrong[row, column]), int(counts[row].sum()))
        for row, column in pairs
        if wrong[row, column]
    ]


def _hear(path: Path | None, sounds: SoundBudget, start_s: float = 0.0) -> Heard | None:
    if path is None:
        return None
    try:
        samples = read_part(path, start_s)
    except AudioFileError as error:
        return Heard(problem=str(error))
    return Heard(len(samples) / FRONT_END.sample_rate_hz, spectrogram_picture(samples), sounds.wav(samples))


def _clip(task: TaskFacts, mistake: Mistake, sounds: SoundBudget) -> Clip:
    heard = _hear(find_sound(task.folder, [mistake.part], mistake.file), sounds)
    chart, length = None, ""
    if heard and heard.picture:
        chart = sound_chart(heard.picture, heard.seconds, f"Spectrogram of {mistake.file}")
        whole = heard.seconds < LONGEST_S
        length = f" · {heard.seconds:.1f} s" if whole else f" · the first {LONGEST_S:.0f} s"
    return Clip(
        truth=", ".join(f"{label} ({share_text(share)})" for label, share in mistake.truth) or "no label",
        taken=f"{mistake.predicted} ({share_text(mistake.probability)})",
        name=f"{mistake.part}/{mistake.file}" if mistake.part else mistake.file,
        length=length,
        heard=heard,
        chart=chart,
    )


def _roll(task: TaskFacts, best: Outcome, sounds: SoundBudget) -> Roll | None:
    stretch = worst_stretch(read_event_files(best), LONGEST_S)
    if stretch is None:
        return None
    file, lanes = stretch.file, _lanes(stretch)
    heard = _hear(find_sound(task.folder, file.parts, file.name), sounds, stretch.start_s)
    picture = heard.picture if heard else None
    # The file may end within the stretch; without the sound nobody knows.
    end_s = stretch.start_s + heard.seconds if heard and heard.seconds else stretch.end_s
    chart = roll_chart(lanes[:_MAX_LANES], stretch.start_s, end_s, picture, f"Events of {file.name}")
    left_out = counted(len(lanes) - _MAX_LANES, "more label") if len(lanes) > _MAX_LANES else ""
    return Roll(file.name, stretch.wrong_s, chart, left_out, heard)


def _lanes(stretch: Stretch) -> list[Lane]:
    """Give the labels that sound in the stretch."""
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
