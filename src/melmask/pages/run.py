"""One HTML file a pre-training run, to see at a glance whether it is healthy: no server, nothing from elsewhere."""

import base64
import shlex
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from melmask.pages.charts import Look, draw_chart
from melmask.pages.run_style import SCRIPT, STYLE
from melmask.system.files import atomic_write
from melmask.train.health import Check, Level, check_health, number_text
from melmask.train.record import PICTURES, RunNumbers, RunRecord, read_record

PAGE = "index.html"
_REFRESH_S = 60
_MAX_EMBEDDED_BYTES = 1_500_000
_MAX_EVENTS = 200
_MIN_ROWS_FOR_ZOOM = 40

_LOOKS = {
    "loss": Look("Loss", note="How wrong the reconstruction of the hidden patches is; it should fall."),
    "learning_rate": Look("Learning rate", note="How far one step moves the model.", from_zero=True),
    "gradient_norm": Look(
        "Gradient norm", note="How hard the data pull at the model; it should have few spikes.", log=True
    ),
    "crops_per_s": Look("Throughput", "crops/s", "How fast it goes; it should be level.", from_zero=True),
    "knn_accuracy": Look("Nearest-neighbour accuracy", note="How useful the features are by now.", percent=True),
    "feature_rank": Look("Feature rank", "directions", "RankMe: near 1, all sounds look the same.", from_zero=True),
    "peak_share": Look("Share of the machine's peak", note="Of its matrix products.", percent=True, from_zero=True),
    "data_wait": Look("Waiting for data", "share of the time", "Should be near zero.", percent=True, from_zero=True),
    "memory_mb": Look("Memory", "MB", from_zero=True),
}
_NOT_DRAWN = ("seconds", "left_s", "rank_units")
_URGENCY: tuple[Level, ...] = ("bad", "warn", "wait", "ok")
_SIGNS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "ok"),
    "warn": ("!", "watch"),
    "bad": ("✕", "act"),
    "wait": ("…", "wait"),
}


def write_run_page(run: Path, numbers: RunNumbers | None = None) -> Path:
    """Write `run`/index.html from the files of the run's folder, whatever of them is there yet.

    Args:
        run: the run's folder.
        numbers: made by the caller once a run and given every time: then only the metrics since the last page are
            read, which for 100,000 lines takes milliseconds instead of a second.

    Returns:
        The page's path.

    Raises:
        OutputError: the page cannot be written.
    """
    page = _page(read_record(run, numbers or RunNumbers(run)))
    path = run / PAGE
    with atomic_write(path, "w") as file:
        # A name or text of half a character must not break the page.
        file.write(page.encode("utf-8", "replace").decode("utf-8"))
    return path


def _page(record: RunRecord) -> str:
    checks = check_health(record)
    refresh = f'<meta http-equiv="refresh" content="{_REFRESH_S}">' if record.state == "running" else ""
    sections = (
        _header(record, checks),
        _section("Health", _health(checks)),
        _section("Numbers", _charts(record)),
        _section("Reconstructions", _pictures(record)),
        _section("Events", _events(record)),
        _section("Use it", _commands(record)),
        _section("Configuration", _configuration(record)),
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(record.name)}</title>"
        f"<style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"\n<section><h2>{title}</h2>{content}</section>" if content else ""


def _header(record: RunRecord, checks: list[Check]) -> str:
    """The run's name, its state, how far it is, and the numbers that people ask for first."""
    steps = int(record.setting("optimizer.steps"))
    share = min(1.0, record.step / steps) if steps else 0.0
    progress = (
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{100 * share:.0f}">'
        f'<div style="width:{100 * share:.2f}%"></div></div>'
        if steps
        else ""
    )
    level, verdict = _verdict(checks)
    written = (
        f'<p class="muted">Numbers as of <time data-written="{record.written_s:.0f}">{_clock(record.written_s)}</time>'
        f'<span id="age" data-state="{record.state}"></span></p>'
        if record.written_s
        else ""
    )
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _tiles(record, steps, share))
    return (
        f'<header><p class="muted">Pre-training run</p><h1>{escape(record.name)} <span class="pill {record.state}">'
        f'{record.state}</span> <span class="pill {level}">{verdict}</span></h1>{progress}'
        f"<dl>{tiles}</dl>{written}</header>"
    )


def _verdict(checks: list[Check]) -> tuple[Level, str]:
    levels = [check.level for check in checks]
    if not checks:
        return "wait", "no numbers yet"
    if "bad" in levels:
        return "bad", _count(levels.count("bad"), "problem")
    if "warn" in levels:
        return "warn", _count(levels.count("warn"), "warning")
    if "wait" in levels:
        return "wait", "too early to say"
    return "ok", "healthy"


def _tiles(record: RunRecord, steps: int, share: float) -> Iterable[tuple[str, str]]:
    """Names and values of the numbers at the top; those that are not known are left out."""
    yield "Step", f"{record.step:,}" + (f" <small>of {steps:,} · {100 * share:.0f} %</small>" if steps else "")
    known = {name: record.last(name) for name in ("loss", "seconds", "left_s", "crops_per_s", "peak_share")}
    if known["loss"] is not None:
        yield "Loss", number_text(known["loss"])
    if known["seconds"] is not None:
        yield "Time spent", _span(known["seconds"])
    if known["left_s"] is not None and record.state != "done":
        yield "Time left", _span(known["left_s"])
    if known["crops_per_s"] is not None:
        # Crops a second times seconds a crop: how many times faster than listening.
        speed = known["crops_per_s"] * record.setting("model.frames") * record.frame_s
        yield (
            "Throughput",
            f"{number_text(known['crops_per_s'])} <small>crops/s · {speed:,.0f}× real time</small>",
        )
    if known["peak_share"] is not None:
        yield "Machine", f"{100 * known['peak_share']:.0f} % <small>of its peak</small>"
    if record.epochs is not None:
        yield "Epochs", f"≈ {_round_text(record.epochs)} <small>of {_round_text(record.sound_hours)} hours</small>"
    elif record.sound_hours:
        yield "Sound", f"{_round_text(record.sound_hours)} <small>hours</small>"


def _health(checks: list[Check]) -> str:
    """The checks, what needs a hand first."""
    if not checks:
        return "<p>There are no numbers yet: the first come after run.log_interval_steps steps.</p>"
    rows = (
        f'<li class="{check.level}"><span class="sign" title="{_SIGNS[check.level][1]}">{_SIGNS[check.level][0]}</span>'
        f"<div><b>{escape(check.title)}</b> <span>{escape(check.text).replace(' %', '&nbsp;%')}</span></div></li>"
        for check in sorted(checks, key=lambda check: _URGENCY.index(check.level))
    )
    return f'<ul class="health">{"".join(rows)}</ul>'


def _charts(record: RunRecord) -> str:
    """A chart a number: the known ones in their order, then whatever else the run logs."""
    drawn = [name for name in _LOOKS if name in record.series]
    drawn += sorted(set(record.series) - set(_LOOKS) - set(_NOT_DRAWN))
    steps = (0.0, max([float(record.series[name].steps.max()) for name in drawn] + [1.0]))
    charts = []
    for name in drawn:
        series, look = record.series[name], _LOOKS.get(name, Look(name))
        charts.append(draw_chart(series, look, steps, record.events))
        if name == "loss" and len(series.values) >= _MIN_ROWS_FOR_ZOOM:
            closer = Look("Loss, second half", note="The same, closer: is it still falling?")
            charts.append(draw_chart(series, closer, (steps[1] / 2, steps[1]), record.events))
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _pictures(record: RunRecord) -> str:
    """The newest picture, wide; under it the first and one from the middle."""
    pictures = record.pictures
    if not pictures:
        return ""
    chosen = [("now", pictures[-1])]
    if len(pictures) > 1:
        chosen.append(("first", pictures[0]))
    if len(pictures) > 2:
        chosen.append(("midway", pictures[(len(pictures) - 1) // 2]))
    note = '<p class="muted">The same sounds with the same patches hidden, every time.</p>'
    return f'{note}<div class="pictures">{"".join(_picture(word, path) for word, path in chosen)}</div>'


def _picture(word: str, path: Path) -> str:
    try:
        large = path.stat().st_size > _MAX_EMBEDDED_BYTES
        content = b"" if large else path.read_bytes()
    except OSError:
        return ""
    link = f"{PICTURES}/{quote(path.name)}"
    source = link if large else f"data:image/png;base64,{base64.b64encode(content).decode()}"
    caption = f"{word}: step {escape(path.stem.removeprefix('step-').lstrip('0') or '0')}"
    return (
        f'<figure><figcaption class="muted">{caption}</figcaption><a href="{link}">'
        f'<img src="{source}" alt="Reconstructions, {caption}"></a></figure>'
    )


def _events(record: RunRecord) -> str:
    newest = record.events[::-1][:_MAX_EVENTS]
    older = len(record.events) - len(newest)
    rows = "".join(
        f"<tr><td>{event.step:,}</td><td>{escape(event.kind)}</td><td>{escape(event.text)}</td></tr>"
        for event in newest
    )
    note = f'<p class="muted">{older:,} older ones are in events.jsonl.</p>' if older else ""
    head = "<tr><th>step</th><th>event</th><th></th></tr>"
    return f'<div class="scroll"><table class="events">{head}{rows}</table></div>{note}' if rows else ""


def _commands(record: RunRecord) -> str:
    """What to type to go on with the run, and to use what it has learned."""
    run, store = (shlex.quote(str(path)) for path in (record.folder.resolve(), record.facts.get("store", "STORE")))
    # The text of such an event is "8 processes".
    begun = [event.text for event in record.events if event.kind in ("start", "resume")]
    alone = not begun or begun[-1].partition(" ")[0] in ("", "1")
    several = "" if alone else f"; it ran as {escape(begun[-1])}, so by torchrun as before"
    command = escape(f"melmask pretrain {store} --out {run}")
    resume = f"<p>Go on after a stop, exactly where it was{several}:</p><pre>{command}</pre>"
    if not record.checkpoints:
        return resume + "<p>There is no checkpoint yet to embed sounds with.</p>"
    embed = escape(f"melmask embed FOLDER --model {run} --out X.parquet")
    names = ", ".join(f"<code>{escape(name)}</code>" for name in record.checkpoints)
    return (
        f"{resume if record.state != 'done' else ''}<p>Embed a folder of sounds with the newest checkpoint:</p>"
        f'<pre>{embed}</pre><p class="muted">In checkpoints: {names}</p>'
    )


def _configuration(record: RunRecord) -> str:
    """Every setting with the dotted key that the command line takes, and what else run.json says."""
    groups: dict[str, list[str]] = {}
    for key, value in (record.settings | record.facts).items():
        row = f"<tr><td>{escape(key)}</td><td>{escape(_value_text(value))}</td></tr>"
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append(row)
    tables = (f'<div class="scroll"><table>{"".join(rows)}</table></div>' for rows in groups.values())
    return f'<div class="settings">{"".join(tables)}</div>' if groups else ""


def _value_text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _round_text(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _span(seconds: float) -> str:
    """93784 -> '1 d 2 h', 3725 -> '1 h 02 min', 65 -> '1 min 05 s'."""
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
