"""One HTML file an evaluation: how good the models are and where they fail; no server, nothing from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from melmask.evaluate.published import PUBLISHED, Published
from melmask.evaluate.results import Column, Report, TaskFacts, mean_ranks, ranks, read_report
from melmask.pages.evaluation_charts import COLOURS, HATCH, Bar, draw_bars
from melmask.pages.evaluation_style import SCRIPT, STYLE
from melmask.pages.evaluation_task import Sounds, task_section
from melmask.pages.evaluation_text import (
    MISSING,
    breakable,
    column_name,
    counted,
    is_percent,
    metric_text,
    name_of_metric,
    score_text,
    spread_text,
    task_html,
)
from melmask.system.files import atomic_write

PAGE = "report.html"


def write_hear_page(results: Path) -> Path:
    """Write `results`/report.html from results.json and the predictions beside it, whatever of those is at hand.

    Args:
        results: the folder that `melmask evaluate` wrote.

    Returns:
        The page's path.

    Raises:
        InputError: results.json is missing, damaged or of another format.
        OutputError: the page cannot be written.
    """
    page = _page(read_report(results))
    path = results / PAGE
    with atomic_write(path, "w") as file:
        # A label of half a character must not break the page.
        file.write(page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _page(report: Report) -> str:
    sounds = Sounds()
    tasks = "".join(
        task_section(report, number, sounds.share(len(report.tasks) - number)) for number in range(len(report.tasks))
    )
    everything = '<button id="all" type="button" hidden>Open all</button>'
    sections = (
        _header(report),
        _section("Scores", _tables(report)),
        _section("Beside each other", _bars(report)),
        f'<section><div class="tools"><h2>Task by task</h2>{everything}</div>{sounds.note()}{tasks}</section>',
        _section("What did not work", _failures(report)),
        _section("Sounds on both sides of a split", _leaks(report)),
        _section("Models", _models(report)),
        _section("How to read this", _reading(report)),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Evaluation of {escape(_model_words(report))}</title><style>{STYLE}</style></head>\n"
        f"<body>{HATCH}<main>{''.join(sections)}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"\n<section><h2>{title}</h2>{content}</section>" if content else ""


def _model_words(report: Report) -> str:
    return report.models[0]["name"] if len(report.models) == 1 else counted(len(report.models), "model")


def _header(report: Report) -> str:
    """What was judged, by what, and who came out best."""
    protocols = report.protocols
    facts = " · ".join(
        part
        for part in (
            f"{counted(len(report.models), 'model')} on {counted(len(report.tasks), 'task')}",
            f"protocol{'s' if len(protocols) > 1 else ''} {', '.join(protocols)}" if protocols else "",
            report.created[:16].replace("T", " "),
            f"melmask {report.version}" if report.version else "",
        )
        if part
    )
    pills = []
    if report.failed:
        pills.append(f'<span class="pill bad">✕ {len(report.failed)} failed</span>')
    leaking = sum(bool(task.leaking_files or task.leaking_groups) for task in report.tasks)
    if leaking:
        pills.append(f'<span class="pill warn">! leaks in {counted(leaking, "task")}</span>')
    title = f"{escape(_model_words(report))} {' '.join(pills)}"
    return (
        f'<header><p class="muted">Evaluation of embeddings</p><h1>{title}</h1>'
        f'<p class="lead">{_verdicts(report)}</p><p class="muted">{escape(facts)}</p></header>'
    )


def _verdicts(report: Report) -> str:
    if len(report.protocols) < 2:
        return _verdict(report)
    return "<br>".join(
        f"By the protocol {escape(protocol)}: {_verdict(report.of_protocol(protocol))}" for protocol in report.protocols
    )


def _verdict(report: Report) -> str:
    places, tasks = mean_ranks(report)
    if len(report.columns) > 1 and places:
        best = min(places.values())
        names = [column_name(report, column) for column in report.columns if places[column] == best]
        wins = "share" if len(names) > 1 else "has"
        common = counted(tasks, "task") if tasks > 1 else "one task"
        return (
            f"<b>{escape(' and '.join(names))}</b> {wins} the best mean rank, {best:.2f} of "
            f"{len(report.columns)}, over the {common} that all have a score on."
        )
    if len(report.columns) == 1:
        scores = (
            f"{escape(task.title)} {score_text(outcome.score.mean, outcome.primary)}"
            for task in report.tasks
            for outcome in report.of_task(task.title)
        )
        return "; ".join(list(scores)[:4])
    without = [
        column for column in report.columns if not any(column in ranks(report.of_task(t.title)) for t in report.tasks)
    ]
    names = " and ".join(column_name(report, column) for column in without)
    why = f": {escape(names)} {'have' if len(without) > 1 else 'has'} none" if without else ""
    return f"No task has a score of every model{why}, so there is no mean rank."


def _shown_published(report: Report, task: TaskFacts) -> list[tuple[Published, float]]:
    """Published scores of a task that belong beside a protocol of this page."""
    protocols = {protocol.removesuffix("-fixed") for protocol in report.protocols}
    scores = ((p, p.score(task.name, task.title, task.primary)) for p in PUBLISHED if p.protocol in protocols)
    return [(published, score) for published, score in scores if score is not None]


def _published_columns(report: Report) -> list[Published]:
    found = {published.name for task in report.tasks for published, _ in _shown_published(report, task)}
    return [published for published in PUBLISHED if published.name in found]


def _tables(report: Report) -> str:
    """A table for each protocol: their scores do not compare."""
    if len(report.protocols) < 2:
        return _table(report, "scores") + _table_notes(report)
    tables = (
        f"<h3>By the protocol {escape(one)}</h3>{_table(report.of_protocol(one), f'scores-{escape(one)}')}"
        for one in report.protocols
    )
    return "".join(tables) + _table_notes(report)


def _table(report: Report, name: str) -> str:
    """Rows are tasks, columns the models, then what was published."""
    published = _published_columns(report)
    heads = "".join(
        f'<th scope="col"><span class="key c{report.colour(column) % COLOURS}"></span>'
        f"{breakable(column_name(report, column))}</th>"
        for column in report.columns
    )
    heads += "".join(
        f'<th scope="col" class="pub{"" if i else " edge"}">{escape(one.name)}</th>' for i, one in enumerate(published)
    )
    groups = (
        f'<tr><th></th><th class="group" colspan="{len(report.columns)}"></th>'
        f'<th class="group edge" colspan="{len(published)}">published</th></tr>'
        if published
        else ""
    )
    caveats: list[str] = []
    rows = "".join(_row(report, task, published, caveats) for task in report.tasks)
    return (
        f'<div class="scroll"><table class="scores" id="{name}"><thead>{groups}<tr><th scope="col">task</th>{heads}'
        f"</tr></thead><tbody>{rows}</tbody>{_mean_rank_row(report, len(published))}</table></div>"
        f"{_note(' '.join(f'<sup>{i}</sup> {escape(text)}.' for i, text in enumerate(caveats, 1)))}"
    )


def _row(report: Report, task: TaskFacts, published: Sequence[Published], caveats: list[str]) -> str:
    places = ranks(report.of_task(task.title))
    cells = [
        f'<td><a href="#task-{task.number}">{task_html(task)}</a>'
        f'<small class="muted">{breakable(task.primary)}</small></td>'
    ]
    for column in report.columns:
        cells.append(_cell(report, task, column, places))
    known = {one.name: score for one, score in _shown_published(report, task)}
    for i, one in enumerate(published):
        text = f"{known[one.name]:.1f}" if one.name in known else ""
        reason = one.caveat(task.name)
        if text and reason:
            caveats.append(f"{one.name} on {task.name}: {reason}")
            text += f"<sup>{len(caveats)}</sup>"
        cells.append(f'<td class="pub{"" if i else " edge"}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(report: Report, task: TaskFacts, column: Column, places: dict[Column, int]) -> str:
    outcome = report.outcomes.get((task.title, column))
    if outcome is None:
        word = "failed" if report.has_failed(task.title, column) else MISSING
        return f'<td class="muted">{word}</td>'
    best = len(places) > 1 and places.get(column) == 1
    star = '<span class="star" title="best of the row">★</span> ' if best else ""
    rank = f"#{places[column]}" if len(places) > 1 and column in places else ""
    notes = " · ".join(part for part in (spread_text(outcome.score, outcome.primary), rank) if part)
    note = f'<small class="muted">{notes}</small>'
    return (
        f"<td{' class=best' if best else ''}>{star}<b>{metric_text(outcome.score.mean, outcome.primary)}</b>{note}</td>"
    )


def _mean_rank_row(report: Report, published: int) -> str:
    places, tasks = mean_ranks(report)
    if len(report.columns) < 2 or not places:
        return ""
    best = min(places.values())
    cells = "".join(
        f"<td{' class=best' if places[column] == best else ''}>"
        f"{'<span class=star>★</span> ' if places[column] == best else ''}<b>{places[column]:.2f}</b></td>"
        for column in report.columns
    )
    rest = f'<td class="pub edge" colspan="{published}"></td>' if published else ""
    note = f'<small class="muted">over {counted(tasks, "task")}</small>'
    return f"<tfoot><tr><td>mean rank{note}</td>{cells}{rest}</tr></tfoot>"


def _table_notes(report: Report) -> str:
    lines = [
        "In % but for d_prime: each task's primary metric, under its name. Below a score the standard deviation over "
        "the splits, or the 95 % interval in brackets where there is one split, and the model's place on the task. "
        "★ marks the best; a difference within the intervals may be chance."
    ]
    lines += [_conditions(report.of_protocol(protocol), protocol) for protocol in report.protocols]
    if _published_columns(report):
        lines.append(
            "Published numbers are for the whole official HEAR tasks and are matched by the task's name alone. They "
            "compare only if the task folder is the official one: its name, version and mode cannot prove that."
        )
    return "".join(map(_note, lines))


def _conditions(report: Report, protocol: str) -> str:
    """How a protocol's heads were trained, and which models' otherwise than the others'."""
    texts: dict[str, list[str]] = {}
    for outcome in report.outcomes.values():
        known = outcome.conditions
        if known:
            points = counted(known.get("grid_points", 0), "point")
            text = f"{points} of the grid, seed {known.get('seed')}, products in {known.get('head_precision')}"
            texts.setdefault(text, []).append(outcome.column.model)
    if len(texts) < 2:
        return f"The protocol {escape(protocol)}: {escape(next(iter(texts)))}." if texts else ""
    each = "; ".join(f"{text} ({', '.join(dict.fromkeys(models))})" for text, models in texts.items())
    return f"<b>Scores of the protocol {escape(protocol)} were found in different ways</b>: {escape(each)}."


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>' if text else ""


def _bars(report: Report) -> str:
    cards = []
    for task in report.tasks:
        bars = list(_task_bars(report, task))
        if any(bar.value is not None for bar in bars):
            better = name_of_metric(task.primary)
            cards.append(
                f'<figure class="card"><figcaption><a href="#task-{task.number}">{task_html(task)}</a>'
                f'<small class="muted">{escape(better)}</small></figcaption>'
                f"{draw_bars(task.title, bars, is_percent(task.primary))}</figure>"
            )
    note = (
        '<p class="muted">Lines across the ends of the bars are 95 % intervals, or one standard deviation either way '
        f"where there is none.{' Dashed outlines are published numbers.' if _published_columns(report) else ''}</p>"
    )
    return f'{note}<div class="cards">{"".join(cards)}</div>' if cards else ""


def _task_bars(report: Report, task: TaskFacts) -> Iterable[Bar]:
    for column in sorted(report.columns, key=lambda column: [*report.protocols, ""].index(column.protocol)):
        outcome, colour = report.outcomes.get((task.title, column)), report.colour(column)
        if outcome is None:
            if report.has_failed(task.title, column):
                yield Bar(column_name(report, column), None, None, "failed", colour)
            continue
        score = outcome.score
        ends = score.interval_95
        if ends is None and score.std is not None and score.mean is not None:
            ends = (score.mean - score.std, score.mean + score.std)
        yield Bar(column_name(report, column), score.mean, ends, score_text(score.mean, outcome.primary), colour)
    for one, score in _shown_published(report, task):
        yield Bar(f"{one.name} (published)", score / 100, None, f"{score:.1f} %", None)


def _failures(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(failure.column.model)}</td><td>{escape(failure.title)}</td>"
        f"<td>{escape(failure.column.protocol)}</td><td>{escape(failure.reason)}</td></tr>"
        for failure in report.failed
    )
    head = "<tr><th>model</th><th>task</th><th>protocol</th><th>reason</th></tr>"
    return f'<div class="scroll"><table id="failed">{head}{rows}</table></div>' if rows else ""


def _leaks(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(task.title)}</td><td>{task.leaking_files:,}</td><td>{_size(task.leaking_groups)}</td></tr>"
        for task in report.tasks
        if task.leaking_files or task.leaking_groups
    )
    head = "<tr><th>task</th><th>files</th><th>groups of files</th></tr>"
    note = "<p>What is trained on and tested on at once makes a score look better than it is.</p>"
    return f'{note}<div class="scroll"><table id="leaks">{head}{rows}</table></div>' if rows else ""


def _models(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(model['name']))}</td><td>{escape(str(model.get('source', '')))}</td>"
        f"<td>{escape(str(model.get('settings', '')))}</td>"
        f"<td>{_size(model.get('scene_size'))}</td><td>{_size(model.get('timestamp_size'))}</td>"
        f"<td>{_size(model.get('sample_rate_hz'))}</td></tr>"
        for model in report.models
    )
    titles = ("model", "from", "features", "values a clip", "values a time step", "sample rate, Hz")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _size(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else MISSING


def _reading(report: Report) -> str:
    sources = "".join(
        f"<li><b>{escape(one.name)}</b>: {escape(one.source)}.</li>" for one in _published_columns(report)
    )
    metrics = dict.fromkeys(metric for task in report.tasks for metric in task.metrics)
    meanings = "".join(f"<li><b>{escape(metric)}</b>: {escape(name_of_metric(metric))}.</li>" for metric in metrics)
    published = f"<p>Published numbers are from:</p><ul>{sources}</ul>" if sources else ""
    return (
        '<div class="text"><p>The models are frozen: a small classifier is trained on the embeddings of each task, '
        f"chosen on validation clips and judged on clips it never saw.</p><ul>{meanings}</ul>{published}"
        "<p>A rank is 1 plus the number of models that are better; the mean is over the tasks that every model has a "
        "score on.</p></div>"
    )
