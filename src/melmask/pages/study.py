"""Write the page of a study: one HTML file that shows what each setting is worth."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from melmask.pages.charts import (
    COLORS,
    Difference,
    DifferenceChart,
    LinesChart,
    ScatterChart,
    Spot,
    lines_chart,
)
from melmask.pages.images import data_uri
from melmask.pages.render import write_page
from melmask.pages.run import PAGE as RUN_PAGE
from melmask.pages.wording import MISSING
from melmask.study.description import Probe
from melmask.study.effects import PROBES, Effect, effects_of, summary
from melmask.study.outcomes import Outcome
from melmask.study.results import Results
from melmask.study.settings import Point, Run, axis_text, reference_of
from melmask.system.reading import read_bytes
from melmask.train.health import number_text
from melmask.train.record import PICTURES, RunNumbers, Series

PAGE = "study.html"
_MAX_EMBEDDED_BYTES = 6_000_000
"""All pictures together; the others are shown from their files."""


class AxisEffects(NamedTuple):
    """What the page shows of an axis."""

    axis: str
    reference: str
    chart: DifferenceChart
    tasks: list[tuple[str, list[str]]]
    """A row for each value and probe, with a cell for each task."""


class Cell(NamedTuple):
    """A score in a table."""

    score: str
    spread: str
    best: bool


class ScoreRow(NamedTuple):
    """A setting in a table of scores; its first cell is the mean."""

    name: str
    cells: list[Cell]


class RunRow(NamedTuple):
    """A run in the list of all runs."""

    name: str
    link: str
    cells: list[str]


class Shown(NamedTuple):
    """A picture: whose it is, the file that a click opens, and the address that the page shows it from."""

    name: str
    link: str
    source: str


def write_study_page(results: Results) -> Path:
    """Write study.html to a study's folder from what is known so far.

    Returns:
        The page's path.

    Raises:
        OutputError: the page cannot be written.
    """
    study, tasks = results.study, results.tasks
    budget = f"{study.minutes:g} min" if study.minutes else f"{study.steps} steps" if study.steps else "the recipe's"
    return write_page(
        results.folder / PAGE,
        "study.html.j2",
        study=study,
        runs=len(results.runs),
        ended=len(results.outcomes),
        settings=len(results.points),
        budget=budget,
        winner=results.winner.name if results.winner else "",
        sentences=summary(results),
        tasks=tasks,
        effects=list(_effects(results)),
        scatters=list(_scatters(results)),
        tables=[(probe, _score_rows(results, probe)) for probe in PROBES if tasks],
        losses=list(_losses(results)),
        pictures=list(_pictures(results)),
        failed=[(run.name, reason) for run, reason in results.failed()],
        final=results.final,
        final_rows=list(_final_rows(results)),
        run_rows=[_run_row(results, run) for run in results.runs],
        facts=list(_facts(results)),
    )


def _effects(results: Results) -> Iterable[AxisEffects]:
    for axis in results.study.axes:
        effects = effects_of(results, axis)
        values = list(dict.fromkeys(effect.value for effect in effects))
        if not values:
            continue
        means = {
            value: [effect for effect in effects if effect.value == value and effect.task is None] for value in values
        }
        rows = [(value, [_difference(effect) for effect in of_value]) for value, of_value in means.items()]
        yield AxisEffects(
            axis=axis.name,
            reference=axis_text(reference_of(results.study, axis)),
            chart=DifferenceChart(rows=[row for row in rows if row[1]]),
            tasks=list(_effects_by_task(results, effects, values)),
        )


def _difference(effect: Effect) -> Difference:
    text = f"{effect.text} points, {effect.probe}"
    return Difference(effect.difference, effect.half_width, text, PROBES.index(effect.probe))


def _effects_by_task(
    results: Results, effects: Sequence[Effect], values: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    for value in values:
        for probe in PROBES:
            by_task = {effect.task: effect.text for effect in effects if (effect.value, effect.probe) == (value, probe)}
            yield f"{value}, {probe}", [by_task.get(task, MISSING) for task in results.tasks]


def _scatters(results: Results) -> Iterable[tuple[str, ScatterChart]]:
    """Lay out the mean score of each setting over its minutes of training, for each probe."""
    for number, probe in enumerate(PROBES):
        spots = []
        for point in results.points:
            scores = list(results.scores(point, probe).values())
            minutes = [outcome.minutes for _, outcome in results.ended(point) if outcome.minutes is not None]
            if scores and minutes:
                score, spent = float(np.mean(scores)), float(np.mean(minutes))
                text = f"{point.name}: {100 * score:.1f} % after {spent:.2g} min"
                spots.append(Spot(spent, score, text, number))
        if spots:
            yield f"Mean of the {probe} probe", ScatterChart(spots=spots, unit="minutes")


def _score_rows(results: Results, probe: Probe) -> list[ScoreRow]:
    """Make a row for each setting that has a score, the best mean first."""
    columns: list[str | None] = [None, *results.tasks]
    scores = {
        point.name: [list(results.scores(point, probe, task).values()) for task in columns] for point in results.points
    }
    means = {
        name: [float(np.mean(of_task)) if of_task else None for of_task in of_point]
        for name, of_point in scores.items()
    }
    best = [max((of[place] or 0.0 for of in means.values()), default=0.0) for place in range(len(columns))]
    known = [name for name, of_point in means.items() if any(mean is not None for mean in of_point)]
    return [
        ScoreRow(name, [_cell(*part) for part in zip(scores[name], means[name], best, strict=True)])
        for name in sorted(known, key=lambda name: -(means[name][0] or 0.0))
    ]


def _cell(scores: Sequence[float], mean: float | None, best: float) -> Cell:
    if mean is None:
        return Cell(MISSING, "", False)
    spread = f"± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    return Cell(f"{100 * mean:.1f}", spread, mean == best)


def _losses(results: Results) -> Iterable[tuple[str, LinesChart]]:
    """Draw the loss of the first seed: for each axis its values while the others stay, else all settings together."""
    series = {point.name: _loss_of(results, point) for point in results.points}
    drawn: set[str] = set()
    for axis in results.study.axes:
        of_axis = [(point, series[point.name]) for point in _along(results, axis.name) if len(series[point.name].steps)]
        names = {point.name for point, _ in of_axis}
        # In a random search no two settings differ on one axis only.
        if len(of_axis) > 1 and not names <= drawn:
            drawn |= names
            # A chart has as many curves as there are colors.
            for start in range(0, len(of_axis), COLORS):
                shown = [(point.values[axis.name], one) for point, one in of_axis[start : start + COLORS]]
                chart = lines_chart("loss", shown)
                if chart is not None:
                    yield f"{axis.name}, continued" if start else axis.name, chart
    rest = [(name, one) for name, one in series.items() if name not in drawn and len(one.steps)]
    for start in range(0, len(rest), COLORS):
        chart = lines_chart("loss", rest[start : start + COLORS])
        if chart is not None:
            yield "other settings" if drawn else "loss", chart


def _along(results: Results, axis: str) -> list[Point]:
    """Return the settings that have the reference value on every other axis."""
    usual = {one.name: axis_text(reference_of(results.study, one)) for one in results.study.axes if one.name != axis}
    return [point for point in results.points if usual.items() <= point.values.items()]


def _loss_of(results: Results, point: Point) -> Series:
    nothing = Series(np.empty(0), np.empty(0))
    run = _first(results, point)
    return nothing if run is None else RunNumbers(results.path(run)).read().get("loss", nothing)


def _first(results: Results, point: Point) -> Run | None:
    """Return the first run of a setting that has ended well."""
    return next((run for run, _ in results.ended(point)), None)


def _pictures(results: Results) -> Iterable[Shown]:
    room = _MAX_EMBEDDED_BYTES
    for point in results.points:
        run = _first(results, point)
        found = sorted((results.path(run) / PICTURES).glob("step-*.png")) if run is not None else []
        if not found:
            continue
        link = _link(results, found[-1])
        try:
            content = read_bytes(found[-1]) if found[-1].stat().st_size <= room else b""
        except OSError:
            continue
        room -= len(content)
        yield Shown(point.name, link, data_uri("image/png", content) if content else link)


def _run_row(results: Results, run: Run) -> RunRow:
    outcome, page = results.outcomes.get(run.name), results.path(run) / RUN_PAGE
    return RunRow(run.name, _link(results, page) if page.exists() else "", list(_run_cells(results, outcome)))


def _run_cells(results: Results, outcome: Outcome | None) -> Iterator[str]:
    if outcome is None:
        yield from ("not ended", *[""] * 6)
        return
    for probe in PROBES:
        score = results.score(outcome, probe, None)
        yield f"{100 * score:.1f}" if score is not None else MISSING
    for value in (outcome.loss, outcome.feature_rank, outcome.steps, outcome.minutes, outcome.crops_per_s):
        yield number_text(float(value)) if value is not None else MISSING


def _final_rows(results: Results) -> Iterator[tuple[str, str, str]]:
    for task, of_task in (results.final.scores if results.final else {}).items():
        for probe, scores in of_task.items():
            spread = f" ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
            yield task, probe, f"{100 * np.mean(scores):.1f}{spread} %"


def _facts(results: Results) -> Iterator[tuple[str, str]]:
    study = results.study
    yield "recipe", study.recipe
    for text in study.settings:
        name, _, value = text.partition("=")
        yield name, value
    yield "sounds", ", ".join(map(str, study.sounds))
    yield "labeled tables", ", ".join(map(str, study.labels)) or MISSING
    yield "vector of a clip", study.scene
    yield "clips of a table", f"at most {study.clips}" if study.clips else "all"
    yield "runs side by side", str(study.side_by_side)


def _link(results: Results, path: Path) -> str:
    # A merged study may lie anywhere, so the path may lead up.
    return quote(os.path.relpath(path.resolve(), results.folder.resolve()).replace(os.sep, "/"))
