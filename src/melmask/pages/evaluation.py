"""Write the page of an evaluation: one HTML file that shows how good the models are and where they fail."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from melmask.evaluate.published import PUBLISHED, Published
from melmask.evaluate.records import Column, Report, TaskFacts
from melmask.evaluate.results import mean_ranks, ranks, read_report
from melmask.pages.charts import COLORS, Bar, BarChart
from melmask.pages.render import write_page
from melmask.pages.sound import SoundBudget
from melmask.pages.task import task_section
from melmask.pages.wording import column_name, is_percent, score_text
from melmask.system.terminal import counted

PAGE = "report.html"
# A single model has no rank, so the page begins with a list of its scores. Nobody would read more than four.
_MOST_SCORES = 4


class Verdict(NamedTuple):
    """The best models' names, and the sentence about them. The protocol is empty if the page has only one."""

    protocol: str
    best: str
    text: str


class Row(NamedTuple):
    """A task in a table of scores."""

    task: TaskFacts
    places: Mapping[Column, int]
    published: list[tuple[str, int | None]]
    """A score, which is empty where nothing was published, and the number of its footnote."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The scores of one protocol."""

    report: Report
    """What the protocol judged."""
    protocol: str
    heads: list[tuple[Column, str, int]]
    """Each model with its name and color."""
    published: list[Published]
    rows: list[Row]
    caveats: list[str]
    mean_ranks: Mapping[Column, float]
    """Empty where models cannot be ranked."""
    ranked_tasks: int


class Conditions(NamedTuple):
    """How the classifiers of a protocol were trained, and whether that differs between models."""

    protocol: str
    text: str
    differ: bool


def write_evaluation_page(results: Path) -> Path:
    """Write `results`/report.html from results.json and from the predictions that are still beside it.

    Args:
        results: the folder that `melmask evaluate` wrote.

    Returns:
        The page's path.

    Raises:
        InputError: results.json is missing, damaged or of another format.
        OutputError: the page cannot be written.
    """
    report = read_report(results)
    # Each task may use its share of the room for sound that the previous ones left.
    sounds = SoundBudget()
    left = range(len(report.tasks), 0, -1)
    tasks = [task_section(report, task, sounds.share(n)) for task, n in zip(report.tasks, left, strict=True)]
    # Scores of two protocols do not compare, so each gets a verdict and a table of its own.
    names = report.protocols
    parts = {name: report.of_protocol(name) for name in names} if len(names) > 1 else {"": report}
    return write_page(
        results / PAGE,
        "evaluation.html.j2",
        report=report,
        name=report.models[0].name if len(report.models) == 1 else counted(len(report.models), "model"),
        leaking=[task for task in report.tasks if task.leaking_files or task.leaking_groups],
        verdicts=[_verdict(part, name) for name, part in parts.items()],
        tables=[_table(part, name) for name, part in parts.items()],
        conditions=[found for name in names for found in _conditions(report, name)],
        published=_published_columns(report),
        bars=list(_bars(report)),
        tasks=tasks,
        sounds=sounds,
        metrics=list(dict.fromkeys(metric for task in report.tasks for metric in task.metrics)),
    )


def _verdict(report: Report, protocol: str) -> Verdict:
    """Say in one sentence who came out best, or how good a single model is, or why there is no answer."""
    places, tasks = mean_ranks(report)
    if len(report.columns) > 1 and places:
        # Equal mean ranks share the first place.
        best = min(places.values())
        names = [column_name(report, column) for column in report.columns if places[column] == best]
        wins = "share" if len(names) > 1 else "has"
        common = counted(tasks, "task") if tasks > 1 else "only task"
        mean = f"{best:.2f} of {len(places)}"
        text = f"{wins} the best mean rank, {mean}, over the {common} that every model has a score on."
        return Verdict(protocol, " and ".join(names), text)
    if len(report.columns) == 1:
        scores = [
            f"{task.title} {score_text(outcome.score.mean, outcome.primary)}"
            for task in report.tasks
            for outcome in report.of_task(task.title)
        ]
        return Verdict(protocol, "", "; ".join(scores[:_MOST_SCORES]))
    # A mean rank needs tasks that every model has a score on; models without any score prevent that, so name them.
    ranked = {column for task in report.tasks for column in ranks(report.of_task(task.title))}
    without = [column_name(report, column) for column in report.columns if column not in ranked]
    why = f": {' and '.join(without)} {'have' if len(without) > 1 else 'has'} none" if without else ""
    return Verdict(protocol, "", f"No task has a score of every model{why}, so there is no mean rank.")


def _shown_published(report: Report, task: TaskFacts) -> list[tuple[Published, float]]:
    """Find the published scores of a task that belong beside a protocol of this page."""
    # hear-fixed searches the same grid as hear, without its defects, so scores published for hear belong beside both.
    protocols = {protocol.removesuffix("-fixed") for protocol in report.protocols}
    scores = ((p, p.score(task.name, task.title, task.primary)) for p in PUBLISHED if p.protocol in protocols)
    return [(published, score) for published, score in scores if score is not None]


def _published_columns(report: Report) -> list[Published]:
    """Return the published models that have a score on any task of this page, in their fixed order."""
    found = {published.name for task in report.tasks for published, _ in _shown_published(report, task)}
    return [published for published in PUBLISHED if published.name in found]


def _table(report: Report, protocol: str) -> Table:
    """Make a row for each task, a column for each model, and then one for each published model."""
    published = _published_columns(report)
    caveats: list[str] = []
    rows = [
        Row(task, ranks(report.of_task(task.title)), list(_published_cells(report, task, published, caveats)))
        for task in report.tasks
    ]
    # The rank of a single model is always 1, which says nothing.
    means, tasks = mean_ranks(report) if len(report.columns) > 1 else ({}, 0)
    return Table(
        report=report,
        protocol=protocol,
        heads=[(column, column_name(report, column), report.color(column) % COLORS) for column in report.columns],
        published=published,
        rows=rows,
        caveats=caveats,
        mean_ranks=means,
        ranked_tasks=tasks,
    )


def _published_cells(
    report: Report, task: TaskFacts, published: list[Published], caveats: list[str]
) -> Iterable[tuple[str, int | None]]:
    """Make the cells of a row, and append to `caveats` the footnotes that they refer to by number."""
    known = {one.name: score for one, score in _shown_published(report, task)}
    for one in published:
        reason = one.caveat(task.name) if one.name in known else None
        if reason:
            caveats.append(f"{one.name} on {task.name}: {reason}")
        # A dash would say that the model failed or was not tried, so a cell without a published score is empty.
        yield f"{known[one.name]:.1f}" if one.name in known else "", len(caveats) if reason else None


def _conditions(report: Report, protocol: str) -> Iterable[Conditions]:
    # Results of several calls with different settings may stand in one file, and the reader has to know.
    texts: dict[str, list[str]] = {}
    for (_, column), outcome in report.outcomes.items():
        known = outcome.conditions
        if column.protocol == protocol and known:
            points = counted(int(known.get("grid_points", 0)), "point")
            text = f"{points} of the grid, seed {known.get('seed')}, products in {known.get('head_precision')}"
            texts.setdefault(text, []).append(column.model)
    each = [f"{text} ({', '.join(dict.fromkeys(models))})" for text, models in texts.items()]
    if texts:
        yield Conditions(protocol, "; ".join(each if len(each) > 1 else texts), len(each) > 1)


def _bars(report: Report) -> Iterable[tuple[TaskFacts, BarChart]]:
    for task in report.tasks:
        bars = list(_task_bars(report, task))
        # A chart of failures alone would be empty.
        if any(bar.value is not None for bar in bars):
            yield task, BarChart(bars=bars, percent=is_percent(task.primary))


def _task_bars(report: Report, task: TaskFacts) -> Iterable[Bar]:
    # The bars of one protocol stand together, in the order of the tables; a failure without a protocol comes last.
    for column in sorted(report.columns, key=lambda column: [*report.protocols, ""].index(column.protocol)):
        name, color = column_name(report, column), report.color(column) % COLORS
        outcome = report.outcomes.get((task.title, column))
        if outcome is None:
            if report.has_failed(task.title, column):
                yield Bar(name, None, None, "failed", color)
            continue
        score = outcome.score
        # An interval over all tested clips says more than a standard deviation over a few splits.
        ends = score.interval_95
        if ends is None and score.std is not None and score.mean is not None:
            ends = (score.mean - score.std, score.mean + score.std)
        yield Bar(name, score.mean, ends, score_text(score.mean, outcome.primary), color)
    for one, number in _shown_published(report, task):
        yield Bar(f"{one.name} (published)", number / 100, None, f"{number:.1f} %", None)
