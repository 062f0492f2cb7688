"""Collect what the page of an evaluation shows of one task: scores, confusion matrices and clips to listen to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from melmask.downstream.metrics import higher_is_better
from melmask.errors import AudioFileError
from melmask.evaluate.mistakes import Mistake, Stretch, confusion_counts, find_sound, worst_clips, worst_stretch
from melmask.evaluate.records import Column, Outcome, Report, TaskFacts
from melmask.evaluate.results import Predictions, ranks, read_event_files, read_predictions
from melmask.pages.charts import ConfusionChart
from melmask.pages.sound import (
    FRONT_END,
    LONGEST_S,
    Lane,
    RollChart,
    SoundBudget,
    SoundChart,
    read_part,
    spectrogram_picture,
)
from melmask.pages.wording import column_name, metrics_of, score_text

HARDEST = 6
# A piano roll of more labels than this would not fit on a screen.
_MAX_LANES = 24


class Matrix(NamedTuple):
    """Which classes a model confuses: (true, taken for, clips, of how many). Without predictions there is no chart."""

    name: str
    clips: int = 0
    chart: ConfusionChart | None = None
    confused: Sequence[tuple[str, str, int, int]] = ()


class Heard(NamedTuple):
    """A sound that was found: its spectrogram and its wav, which is empty if the page has no room; or the problem."""

    chart: SoundChart | None = None
    wav: str = ""
    problem: str = ""

    @property
    def cut(self) -> bool:
        """Whether it is only the beginning of a longer sound."""
        return self.chart is not None and self.chart.seconds >= LONGEST_S


class Clip(NamedTuple):
    """A clip that was taken for something else; `heard` is None if its file is missing."""

    mistake: Mistake
    heard: Heard | None


class Roll(NamedTuple):
    """The stretch in which a model is most wrong; `heard` is None if its file is missing."""

    stretch: Stretch
    chart: RollChart
    left_out: int
    """How many labels the chart has no room for."""
    heard: Heard | None


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """All that the page says about one task; a part that does not apply is empty or None."""

    task: TaskFacts
    result: str
    best: str
    """The name of the best model."""
    outcomes: list[Outcome]
    """The scores of each model."""
    names: Mapping[Column, str]
    """The models' names."""
    heads: Mapping[str, str]
    """What stands over the column of each metric."""
    split_names: list[str]
    """All splits that a model was tested on."""
    matrices: list[Matrix]
    clips: list[Clip] | None
    """None where the predictions are missing."""
    judged: int
    """How many clips the hardest were chosen from."""
    roll: Roll | None


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
    # The predictions of an event task are events in files, not probabilities of clips; `_roll` reads those.
    events, multiclass = task.embedding_type == "event", task.prediction_type == "multiclass"
    predictions = {} if events else {outcome.column: read_predictions(task, outcome) for outcome in outcomes}
    rows = predictions.get(best.column) if best else None
    hardest = worst_clips(rows, task.labels, multiclass, HARDEST) if rows else []
    return TaskSection(
        task=task,
        result=f"{name} {score_text(best.score.mean, best.primary)}" if best else "no score",
        best=name,
        outcomes=outcomes,
        names={outcome.column: column_name(report, outcome.column) for outcome in outcomes},
        heads={metric: metric if higher_is_better(metric) else f"{metric} ↓" for metric in metrics_of(outcomes)},
        split_names=list(dict.fromkeys(split.name for outcome in outcomes for split in outcome.splits)),
        matrices=_matrices(report, task, predictions) if multiclass else [],
        clips=[Clip(m, _hear(find_sound(task.folder, [m.part], m.file), sounds)) for m in hardest] if rows else None,
        judged=len(rows.files) if rows else 0,
        roll=_roll(task, best, sounds) if events and best else None,
    )


def _matrices(report: Report, task: TaskFacts, predictions: Mapping[Column, Predictions | None]) -> list[Matrix]:
    found = []
    for column, rows in predictions.items():
        name = column_name(report, column)
        if rows is None:
            found.append(Matrix(name))
            continue
        counts = confusion_counts(rows)
        chart = ConfusionChart(counts=counts, labels=task.labels)
        found.append(Matrix(name, len(rows.files), chart, most_confused(counts, task.labels)))
    return found


def most_confused(
    counts: Integer[np.ndarray, "classes classes"], labels: Sequence[str], most: int = 3
) -> list[tuple[str, str, int, int]]:
    """Return (true, predicted, clips, of how many) of the most frequent mistakes, the most frequent first."""
    # Clips on the diagonal are no mistakes.
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    # The matrix is sorted as one long row, so a cell's number gives its row and column by division.
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(cell), len(labels)) for cell in order)
    return [
        (labels[row], labels[column], int(wrong[row, column]), int(counts[row].sum()))
        for row, column in pairs
        if wrong[row, column]
    ]


def _hear(path: Path | None, sounds: SoundBudget, start_s: float = 0.0) -> Heard | None:
    """Read and draw at most ten seconds of a sound; None if there is no file."""
    if path is None:
        return None
    try:
        samples = read_part(path, start_s)
    except AudioFileError as error:
        return Heard(problem=str(error))
    if not len(samples):
        # An event can lie beyond the end of a file that was cut after the evaluation.
        return Heard(problem=f"{path} has no sound after {start_s:.0f} s.")
    seconds = len(samples) / FRONT_END.sample_rate_hz
    return Heard(SoundChart(spectrogram_picture(samples), seconds), sounds.wav(samples))


def _roll(task: TaskFacts, best: Outcome, sounds: SoundBudget) -> Roll | None:
    """Lay out the events of the stretch in which the best model is most wrong; None without predictions."""
    stretch = worst_stretch(read_event_files(best), LONGEST_S)
    if stretch is None:
        return None
    file, lanes = stretch.file, _lanes(stretch)
    heard = _hear(find_sound(task.folder, file.parts, file.name), sounds, stretch.start_s)
    sound = heard.chart if heard else None
    chart = RollChart(
        lanes=lanes[:_MAX_LANES],
        start_s=stretch.start_s,
        # The file may end within the stretch, which only the sound can tell.
        end_s=stretch.start_s + sound.seconds if sound else stretch.end_s,
        picture=sound.picture if sound else None,
    )
    return Roll(stretch, chart, max(0, len(lanes) - _MAX_LANES), heard)


def _lanes(stretch: Stretch) -> list[Lane]:
    """Return a lane for each label that sounds in the stretch, or is predicted there; their times are in ms."""
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
        # A label that only sounds elsewhere in the file would be an empty lane.
        if any(spans):
            found.append(Lane(label, spans[0], spans[1]))
    return found
