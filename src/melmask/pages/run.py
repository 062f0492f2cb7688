"""Write the page of a pre-training run: one HTML file that shows at a glance whether the run is healthy."""

import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from melmask.pages.charts import CurveChart, Look, curve_chart
from melmask.pages.images import data_uri
from melmask.pages.render import counted, write_page
from melmask.train.health import Check, Level, check_health, number_text
from melmask.train.record import PICTURES, RunNumbers, RunRecord, read_record

PAGE = "index.html"
_REFRESH_S = 60
_MAX_EMBEDDED_BYTES = 1_500_000
_MAX_EVENTS = 200
_MIN_ROWS_FOR_ZOOM = 40

_LOOKS = {
    "loss": Look("Loss", note="It says how wrong the reconstruction of the hidden patches is. It should fall."),
    "learning_rate": Look("Learning rate", note="It says how far one step moves the model.", from_zero=True),
    "gradient_norm": Look(
        "Gradient norm", note="It says how hard the data pull at the model. It should have few spikes.", log=True
    ),
    "crops_per_s": Look("Throughput", "crops/s", "It says how fast the run is. It should be level.", from_zero=True),
    "knn_accuracy": Look("Nearest-neighbor accuracy", note="It says how useful the features are by now.", percent=True),
    "feature_rank": Look(
        "Feature rank", "directions", "This is RankMe. Near 1, all sounds look the same.", from_zero=True
    ),
    "peak_share": Look(
        "Share of the machine's peak",
        note="It compares the run with the fastest matrix products of the machine.",
        percent=True,
        from_zero=True,
    ),
    "data_wait": Look("Waiting for data", "share of the time", "It should be near zero.", percent=True, from_zero=True),
    "memory_mb": Look("Memory", "MB", from_zero=True),
}
_NOT_DRAWN = ("seconds", "left_s", "rank_units")
# The page lists what needs a hand first.
_URGENCY: tuple[Level, ...] = ("bad", "warn", "wait", "ok")


class Tile(NamedTuple):
    """One of the numbers at the top of the page; the detail is smaller."""

    name: str
    value: str
    detail: str = ""


class Shown(NamedTuple):
    """A picture: what it shows, the file to open on a click, and where the page has it from."""

    caption: str
    link: str
    source: str


def write_run_page(run: Path, numbers: RunNumbers | None = None) -> Path:
    """Write `run`/index.html from whatever the run's folder holds so far.

    Args:
        run: the run's folder.
        numbers: pass the same object every time to read only the metrics since the previous page, which takes
            milliseconds instead of a second for 100,000 lines.

    Returns:
        The page's path.

    Raises:
        OutputError: the page cannot be written.
    """
    record = read_record(run, numbers or RunNumbers(run))
    checks = check_health(record)
    steps = int(record.setting("optimizer.steps"))
    # The text of such an event is "8 processes".
    started = [event.text for event in record.events if event.kind in ("start", "resume")]
    several = started[-1] if started and started[-1].partition(" ")[0] not in ("", "1") else ""
    return write_page(
        run / PAGE,
        "run.html.j2",
        record=record,
        refresh_s=_REFRESH_S,
        verdict=_verdict(checks),
        share=100 * min(1.0, record.step / steps) if steps else None,
        tiles=list(_tiles(record, steps)),
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.written_s)),
        checks=sorted(checks, key=lambda check: _URGENCY.index(check.level)),
        charts=list(_charts(record)),
        pictures=list(_pictures(record)),
        events=record.events[::-1][:_MAX_EVENTS],
        folder=shlex.quote(str(run.resolve())),
        store=shlex.quote(str(record.facts.get("store", "STORE"))),
        several=several,
        settings=_settings(record),
    )


def _verdict(checks: list[Check]) -> tuple[Level, str]:
    levels = [check.level for check in checks]
    if not checks:
        return "wait", "no numbers yet"
    if "bad" in levels:
        return "bad", counted(levels.count("bad"), "problem")
    if "warn" in levels:
        return "warn", counted(levels.count("warn"), "warning")
    if "wait" in levels:
        return "wait", "too early to say"
    return "ok", "healthy"


def _tiles(record: RunRecord, steps: int) -> Iterable[Tile]:
    """Give the numbers that people ask for first; unknown ones are left out."""
    share = f"of {steps:,} · {100 * min(1.0, record.step / steps):.0f} %" if steps else ""
    yield Tile("Step", f"{record.step:,}", share)
    known = {name: record.last(name) for name in ("loss", "seconds", "left_s", "crops_per_s", "peak_share")}
    if known["loss"] is not None:
        yield Tile("Loss", number_text(known["loss"]))
    if known["seconds"] is not None:
        yield Tile("Time spent", _span(known["seconds"]))
    if known["left_s"] is not None and record.state != "done":
        yield Tile("Time left", _span(known["left_s"]))
    if known["crops_per_s"] is not None:
        # Crops a second times seconds a crop is how many times faster than listening the run is.
        speed = known["crops_per_s"] * record.setting("model.frames") * record.frame_s
        yield Tile("Throughput", number_text(known["crops_per_s"]), f"crops/s · {speed:,.0f}× real time")
    if known["peak_share"] is not None:
        yield Tile("Machine", f"{100 * known['peak_share']:.0f} %", "of its peak")
    if record.epochs is not None:
        yield Tile("Epochs", f"≈ {_round_text(record.epochs)}", f"over {_round_text(record.sound_hours)} h of sound")
    elif record.sound_hours:
        yield Tile("Sound", _round_text(record.sound_hours), "h")


def _charts(record: RunRecord) -> Iterable[CurveChart]:
    """Draw the known numbers in their order, then whatever else the run logs."""
    drawn = [name for name in _LOOKS if name in record.series]
    # A run may log numbers that this file has never heard of.
    drawn += sorted(set(record.series) - set(_LOOKS) - set(_NOT_DRAWN))
    last = max([float(record.series[name].steps.max()) for name in drawn] + [1.0])
    for name in drawn:
        series = record.series[name]
        looks = [(_LOOKS.get(name, Look(name)), 0.0)]
        if name == "loss" and len(series.values) >= _MIN_ROWS_FOR_ZOOM:
            # Late in a run the loss falls by less than the whole curve can show.
            looks.append(
                (Look("Loss, second half", note="This is the same loss, closer. Is it still falling?"), last / 2)
            )
        charts = (curve_chart(series, look, (first, last), record.events) for look, first in looks)
        yield from (chart for chart in charts if chart)


def _pictures(record: RunRecord) -> Iterable[Shown]:
    """Give the newest picture, the first, and one from the middle."""
    found = record.pictures
    chosen = [("now", found[-1:]), ("first", found[:-1][:1]), ("midway", found[1:-1][(len(found) - 3) // 2 :][:1])]
    for word, paths in chosen:
        for path in paths:
            link = f"{PICTURES}/{quote(path.name)}"
            try:
                # A large picture stays a file of its own, so that the page, which reloads each minute, stays small.
                large = path.stat().st_size > _MAX_EMBEDDED_BYTES
                source = link if large else data_uri("image/png", path.read_bytes())
            except OSError:
                continue
            yield Shown(f"{word}: step {path.stem.removeprefix('step-').lstrip('0') or '0'}", link, source)


def _settings(record: RunRecord) -> list[list[tuple[str, str]]]:
    """Group every setting, by the dotted key that the command line takes, and what else run.json says."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in (record.settings | record.facts).items():
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append((key, text))
    return list(groups.values())


def _round_text(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _span(seconds: float) -> str:
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
