"""Write the page of a pre-training run: one HTML file that shows at a glance whether the run is healthy."""

import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from melmask.pages.charts import CurveChart, Look, curve_chart
from melmask.pages.images import data_uri
from melmask.pages.render import write_page
from melmask.system.reading import read_bytes
from melmask.system.terminal import counted
from melmask.train.health import Check, Level, check_health
from melmask.train.record import PICTURES, RunNumbers, RunRecord, read_record

PAGE = "index.html"
_REFRESH_S = 60
# The page of a running run reloads itself every minute, so it must stay small. Larger pictures are files of their own.
_MAX_EMBEDDED_BYTES = 1_500_000
_MAX_EVENTS = 200
# The second half of a shorter curve would be a handful of points.
_MIN_ROWS_FOR_ZOOM = 40

_LOOKS = {
    "loss": Look("Loss", note="It says how wrong the reconstruction of the hidden patches is. It should fall."),
    "learning_rate": Look("Learning rate", note="It says how far one step moves the model.", from_zero=True),
    "gradient_norm": Look(
        "Gradient norm", note="It says how hard the data pull at the model. It should have few spikes.", log=True
    ),
    "crops_per_s": Look("Throughput", "crops/s", "It says how fast the run is. It should be level.", from_zero=True),
    "knn_accuracy": Look("Nearest-neighbor accuracy", note="It says how useful the features are by now.", percent=True),
    "knn_map": Look("Nearest-neighbor mAP", note="It says how useful the features are by now.", percent=True),
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
_LOSS_NOTES = {
    "m2d": "It says how far predicted features are from the target's. It may rise while the target learns.",
    "random_projection": "It says how badly the codes of the hidden patches are predicted. It should fall.",
}
"""By objective; other losses are those of reconstructions."""
_IN_TILES = ("loss", "seconds", "left_s", "crops_per_s", "peak_share")
# The tiles show the times; "rank_units" only serves a check, as the highest feature rank that is possible.
_NOT_DRAWN = ("seconds", "left_s", "rank_units")
# The page lists first what the user has to act on.
_URGENCY: tuple[Level, ...] = ("bad", "warn", "wait", "ok")


class Shown(NamedTuple):
    """A picture: what it shows, the file that a click opens, and the address that the page shows it from."""

    caption: str
    link: str
    source: str


def write_run_page(run: Path, numbers: RunNumbers | None = None) -> Path:
    """Write `run`/index.html from whatever the run's folder holds so far.

    Args:
        run: the run's folder.
        numbers: if the same object is passed every time, only the metrics since the previous page are read. That
            takes milliseconds; all 100,000 lines of a long run take a second.

    Returns:
        The page's path.

    Raises:
        OutputError: the page cannot be written.
    """
    record = read_record(run, numbers or RunNumbers(run))
    checks = check_health(record)
    steps = int(record.setting("optimizer.steps"))
    # The text of such an event is "8 processes". A run that several processes began must be resumed by torchrun.
    started = [event.text for event in record.events if event.kind in ("start", "resume")]
    several = started[-1] if started and started[-1].partition(" ")[0] not in ("", "1") else ""
    store = str(record.facts.get("store", "STORE"))
    return write_page(
        run / PAGE,
        "run.html.j2",
        record=record,
        refresh_s=_REFRESH_S,
        verdict=_verdict(checks),
        share=100 * min(1.0, record.step / steps) if steps else None,
        steps=steps,
        crop_s=record.setting("model.frames") * record.frame_s,
        newest={name: record.last(name) for name in _IN_TILES},
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.written_s)),
        checks=sorted(checks, key=lambda check: _URGENCY.index(check.level)),
        charts=list(_charts(record)),
        pictures=list(_pictures(record)),
        predicts_only=_predicts_only(record),
        events=record.events[::-1][:_MAX_EVENTS],
        folder=shlex.quote(str(run.resolve())),
        # A run without a store is resumed without one.
        store=shlex.quote(store) + " " if store else "",
        synthetic=record.setting("data.synth_share"),
        several=several,
        settings=_settings(record),
    )


def _verdict(checks: list[Check]) -> tuple[Level, str]:
    """Return the worst level of all checks, and what the page's heading says of it."""
    level: Level = min((check.level for check in checks), key=_URGENCY.index, default="wait")
    count = sum(check.level == level for check in checks)
    words = {"bad": counted(count, "problem"), "warn": counted(count, "warning"), "ok": "healthy"}
    return level, words.get(level, "too early to say" if checks else "no numbers yet")


def _charts(record: RunRecord) -> Iterable[CurveChart]:
    """Lay out the known numbers in their order, then whatever else the run logs."""
    drawn = [name for name in _LOOKS if name in record.series]
    # Hooks and other objectives log numbers that this file has never heard of.
    drawn += sorted(set(record.series) - set(_LOOKS) - set(_NOT_DRAWN))
    last = max([float(record.series[name].steps.max()) for name in drawn] + [1.0])
    for name in drawn:
        series = record.series[name]
        looks = [(_LOOKS.get(name, Look(name)), 0.0)]
        if name == "loss" and (note := _LOSS_NOTES.get(_objective(record))):
            looks = [(_LOOKS[name]._replace(note=note), 0.0)]
        if name == "loss" and len(series.values) >= _MIN_ROWS_FOR_ZOOM:
            # Late in a run the loss falls by less than the whole curve can show.
            looks.append(
                (Look("Loss, second half", note="This is the same loss, closer. Is it still falling?"), last / 2)
            )
        charts = (curve_chart(series, look, (first, last), record.events) for look, first in looks)
        yield from (chart for chart in charts if chart)


def _objective(record: RunRecord) -> str:
    """Return the name of the run's objective; runs of version 0.1.0, which had one, do not name it."""
    return str(record.settings.get("objective.kind", "mae"))


def _predicts_only(record: RunRecord) -> str:
    """Return the name of the objective if it keeps no decoder that reconstructs, else nothing."""
    kind = _objective(record)
    mixture = kind == "m2d" and record.setting("m2d.reconstruction_weight") > 0
    return kind if kind in _LOSS_NOTES and not mixture else ""


def _pictures(record: RunRecord) -> Iterable[Shown]:
    """Give the newest picture, the first, and one from the middle."""
    found = record.pictures
    last = len(found) - 1
    # A run with one or two pictures shows each of them once.
    for word, index in [("now", last), ("first", 0), ("midway", last // 2)][: len(found)]:
        path = found[index]
        link = f"{PICTURES}/{quote(path.name)}"
        try:
            large = path.stat().st_size > _MAX_EMBEDDED_BYTES
            source = link if large else data_uri("image/png", read_bytes(path, _MAX_EMBEDDED_BYTES))
        except OSError:
            # The run may replace or delete pictures while its page is written.
            continue
        yield Shown(f"{word}: step {path.stem.removeprefix('step-').lstrip('0') or '0'}", link, source)


def _settings(record: RunRecord) -> list[list[tuple[str, str]]]:
    """Group all settings by the first part of their dotted keys, and add what else run.json says."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in (record.settings | record.facts).items():
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        groups.setdefault(key.partition(".")[0] if "." in key else "", []).append((key, text))
    return list(groups.values())
