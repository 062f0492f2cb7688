import json
import re
import shutil

import numpy as np
import pytest
from web_page import Page, needs_browser, shown

from melmask.errors import OutputError
from melmask.pages.charts import MAX_POINTS, log_ticks, thin_out, ticks
from melmask.pages.run import write_run_page
from melmask.train import record as run_record
from melmask.train.health import check_health
from melmask.train.record import RunNumbers, Series, read_metrics, read_record

ROWS, INTERVAL = 100, 20
STEPS = 2 * ROWS * INTERVAL
PIXEL = b"\x89PNG\r\n\x1a\n"


def healthy_rows():
    """Half a run in which nothing is wrong."""
    rng = np.random.default_rng(0)
    return [
        {
            "step": INTERVAL * (i + 1),
            "loss": 1 / (1 + 0.05 * i) + 0.001 * rng.standard_normal(),
            "learning_rate": 1e-3 * (1 - i / (2 * ROWS)),
            "gradient_norm": 0.5 + 0.1 * rng.random(),
            "crops_per_s": 400 + 10 * rng.random(),
            "seconds": 10.0 * i,
            "left_s": 10.0 * (2 * ROWS - i),
            "data_wait": 0.02,
            "feature_rank": 20.0 + 0.5 * i,
            "knn_accuracy": 0.5 + 0.003 * i,
        }
        for i in range(ROWS)
    ]


@pytest.fixture
def make_run(tmp_path):
    """make_run(rows, events, store, **settings) -> a run's folder; settings as optimizer__steps=9."""

    def make(rows=(), events=(), store="/data/store", name="a run", **settings):
        run = tmp_path / name
        run.mkdir(exist_ok=True)
        config = {
            "model": {"width": 192, "frames": 208},
            "data": {"batch_size": 256, "sampling": "time"},
            "optimizer": {"steps": STEPS, "warmup_steps": 100, "learning_rate": 1e-3},
            "hardware": {"readers": 2},
        }
        for key, value in settings.items():
            section, field = key.split("__")
            config.setdefault(section, {})[field] = value
        (run / "run.json").write_text(json.dumps({"pretrain": config, "store": store, "frames": 360_000}))
        for file, lines in (("metrics.jsonl", rows), ("events.jsonl", events)):
            (run / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    return make


@pytest.fixture
def real_run(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "real")


def written(run, numbers=None):
    path = write_run_page(run, numbers)
    assert path == run / "index.html" and not list(run.glob(".*.partial"))
    return Page(path.read_text(encoding="utf-8"))


def charts(page):
    return [attributes["aria-label"].split(":")[0] for attributes in page.all("svg")]


def level_of(run, title):
    return {check.title: check.level for check in check_health(read_record(run, RunNumbers(run)))}.get(title)


def test_the_page_of_a_real_run_says_where_it_is(real_run):
    page = written(real_run)
    assert charts(page)[:4] == ["Loss", "Learning rate", "Gradient norm", "Throughput"]
    loss = f"{read_metrics(real_run)[-1]['loss']:.4g}"
    for words in ("30 of 30 · 100 %", "done", loss, "optimizer.steps", "Too early to say"):
        assert words in page.text
    assert f"melmask embed FOLDER --model {real_run} --out X.parquet" in page.text
    assert "step-0000030" in page.text
    assert not [attributes for attributes in page.all("meta") if "http-equiv" in attributes]


def test_the_page_asks_for_nothing_from_elsewhere(real_run):
    (real_run / "pictures").mkdir()
    (real_run / "pictures" / "step-0000030.png").write_bytes(PIXEL)
    page = written(real_run)
    assert not re.search(r"https?:|//\w+\.|@import|url\(", (real_run / "index.html").read_text(encoding="utf-8"))
    assert len(page.links) == 3 and all(re.match(r"data:|pictures/", link) for link in page.links)


@pytest.mark.parametrize(
    ("last", "rows", "state"),
    [
        (None, ROWS, "running"),
        ("start", 0, "running"),
        ("resume", ROWS, "running"),
        ("stop", ROWS, "stopped"),
        ("spike", ROWS, "stopped"),
        ("rollback", ROWS, "running"),
        ("done", ROWS, "done"),
        (None, 2 * ROWS, "done"),
        ("stop", 2 * ROWS, "done"),
    ],
)
def test_the_last_event_and_the_steps_decide_the_state(make_run, last, rows, state):
    lines = [{"step": INTERVAL * (i + 1), "loss": 1.0, "left_s": 9.0} for i in range(rows)]
    events = [{"step": INTERVAL * rows, "event": last, "text": ""}] if last else []
    run = make_run(lines, events)
    page = written(run)
    assert read_record(run, RunNumbers(run)).state == state
    assert {"class": f"pill {state}"} in page.all("span")
    assert bool([a for a in page.all("meta") if a.get("http-equiv") == "refresh"]) == (state == "running")


def changed(**changes):
    """healthy_rows with name=function(index, value) applied."""
    rows = healthy_rows()
    for i, row in enumerate(rows):
        row.update({name: change(i, row[name]) for name, change in changes.items()})
    return rows


UNHEALTHY = {
    "never finite again": ("Loss value", "bad", {"loss": lambda i, v: v if i < 60 else float("nan")}),
    "not finite once": ("Loss value", "warn", {"loss": lambda i, v: float("inf") if i == 50 else v}),
    "level": ("Loss trend", "warn", {"loss": lambda i, v: 0.5}),
    "rising": ("Loss trend", "bad", {"loss": lambda i, v: 0.2 + 0.01 * i}),
    "one spike": ("Gradient", "warn", {"gradient_norm": lambda i, v: 20 * v if i == 70 else v}),
    "many spikes": ("Gradient", "bad", {"gradient_norm": lambda i, v: 20 * v if i % 20 == 10 else v}),
    "slow": ("Speed", "warn", {"crops_per_s": lambda i, v: v if i < 90 else 0.4 * v}),
    "very slow": ("Speed", "bad", {"crops_per_s": lambda i, v: v if i < 90 else 0.1 * v}),
    "waiting": ("Data", "warn", {"data_wait": lambda i, v: 0.15}),
    "mostly waiting": ("Data", "bad", {"data_wait": lambda i, v: 0.5}),
    "collapsed": ("Feature variety", "bad", {"feature_rank": lambda i, v: 3 * v if i < 80 else 12.0}),
    "poor": ("Feature variety", "bad", {"feature_rank": lambda i, v: 9.0}),
    "worse": ("Feature usefulness", "warn", {"knn_accuracy": lambda i, v: v if i < 80 else 0.65}),
    "much worse": ("Feature usefulness", "bad", {"knn_accuracy": lambda i, v: v if i < 80 else 0.5}),
    "rate ended": ("Learning rate", "warn", {"learning_rate": lambda i, v: v if i < 80 else 0.0}),
}


@pytest.mark.parametrize("case", UNHEALTHY)
def test_each_check_tells_the_healthy_run_from_the_unhealthy(make_run, case):
    title, level, changes = UNHEALTHY[case]
    assert level_of(make_run(healthy_rows(), name="well"), title) == "ok"
    assert level_of(make_run(changed(**changes), name="ill"), title) == level


@pytest.mark.parametrize(
    ("kinds", "level"),
    [("", "ok"), ("skip", "warn"), ("spike rollback", "warn"), ("spike rollback " * 3, "bad"), ("spike", "bad")],
)
def test_rollbacks_and_skips_are_reported(make_run, kinds, level):
    events = [{"step": 7 * i, "event": kind, "text": "why"} for i, kind in enumerate(["start", *kinds.split()])]
    assert level_of(make_run(healthy_rows(), events), "Mishaps") == level


def test_few_sounds_cannot_have_many_directions(make_run):
    few = [row | {"feature_rank": 4.0, "rank_units": 9} for row in healthy_rows()]
    assert level_of(make_run(few), "Feature variety") == "ok"


def test_what_is_usual_at_the_start_and_at_the_end_is_no_warning(make_run):
    started = [row | {"gradient_norm": 50.0 if row["step"] <= 100 else 0.5} for row in healthy_rows()]
    assert level_of(make_run(started), "Gradient") == "ok"
    assert level_of(make_run([row | {"feature_rank": 9.0} for row in started[:10]]), "Feature variety") == "warn"
    ended = make_run(changed(loss=lambda i, v: 0.5), optimizer__steps=ROWS * INTERVAL)
    assert level_of(ended, "Loss trend") == level_of(ended, "Learning rate") == "ok"


def test_a_loss_of_m2d_may_rise_but_not_vanish(make_run):
    settings = {"objective__kind": "m2d", "m2d__feature_weight": 1.0}
    rising = make_run(changed(loss=lambda i, v: 0.2 + 0.01 * i), **settings)
    assert level_of(rising, "Loss trend") == "ok"
    page = written(rising).text
    assert "may rise while the target learns" in page and "objective m2d keeps no decoder" in page
    assert level_of(make_run(changed(loss=lambda i, v: 0.001), **settings), "Loss trend") == "bad"
    mixture = make_run(healthy_rows(), **settings, m2d__reconstruction_weight=1.0)
    assert "keeps no decoder" not in written(mixture).text


def test_problems_come_first_and_are_counted(make_run):
    rows = changed(data_wait=lambda i, v: 0.15, loss=lambda i, v: 0.2 + 0.01 * i)
    page = written(make_run(rows))
    assert "1 problem" in page.text
    levels = [attributes["class"] for attributes in page.all("li")]
    assert levels[:2] == ["bad", "warn"] and set(levels[2:]) == {"ok"}
    assert "healthy" in written(make_run(healthy_rows())).text


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_of_few_or_no_numbers_has_a_page(make_run, rows):
    page = written(make_run(healthy_rows()[:rows]))
    assert ("no numbers yet" in page.text) == (rows == 0)
    assert len(charts(page)) == (7 if rows else 0)
    assert len([a for a in page.all("circle") if a.get("class") == "dot"]) == 7 * rows


def test_an_empty_folder_has_a_page(tmp_path):
    assert "no numbers yet" in written(tmp_path).text


def test_half_written_and_damaged_files_do_not_break_the_page(make_run):
    run = make_run(healthy_rows(), [{"step": 1, "event": "start", "text": "x"}])
    whole = {name: (run / name).read_bytes() for name in ("run.json", "metrics.jsonl", "events.jsonl")}
    for name, content in whole.items():
        for cut in range(1, 60, 7):
            (run / name).write_bytes(content[:-cut])
            written(run)
        junk = b'{"step": 3, "lo\n[1]\nnull\n"x"\n{"step": null}\n{"step": NaN, "loss": 1}\n\xff\xfe\n{"loss": 1}\n'
        huge = b'{"step": 1e999}\n{"step": 2, "event": 5, "loss": ' + b"9" * 400 + b"}\n"
        (run / name).write_bytes(junk + huge + content)
        page = written(run)
        if name == "events.jsonl":
            assert f"{read_metrics(run)[-1]['loss']:.4g}" in page.text
        (run / name).write_bytes(content)
    for content in ('{"pretrain": 3, "frames": "many", "store": null}', '{"store": "half a letter: \\ud800"}'):
        (run / "run.json").write_text(content)
        written(run)


EXTREMES = [(1e308, -1e308), (1e-320, 0.0), (1.0, 1 + 2e-16), (0.0, 0.0), (-5.0, -5.0), (1e300, 1e-300)]


@pytest.mark.parametrize("values", EXTREMES)
def test_extreme_numbers_do_not_break_the_page(make_run, values):
    names = ("loss", "gradient_norm", "crops_per_s", "seconds", "left_s", "feature_rank", "learning_rate", "other")
    rows = [{"step": i} | dict.fromkeys(names, values[i % 2]) for i in range(50)]
    page = written(make_run(rows, optimizer__steps=float("nan"), model__width=float("inf")))
    assert not re.search("nan|inf", "".join(attributes["d"] for attributes in page.all("path")))


def test_text_from_files_is_escaped(make_run):
    evil = "</script><script>alert(1)</script><b a='\"&"
    rows = [row | {evil: 1.0} for row in healthy_rows()[:3]]
    events = [{"step": 20, "event": evil, "text": evil}]
    page = written(make_run(rows, events, store=evil, name="<i>run & co"))
    assert len(page.all("script")) == 1 and not page.all("i")
    assert page.all("b") == [{}] * len(page.all("b"))
    # The store twice, the event's two texts in the list and once in each chart, and the name of the new chart.
    assert page.text.count("alert(1)") == 2 + 2 + 2 * 8 + 1
    assert evil in page.text and "<i>run & co" in page.text


def test_pictures_are_embedded_and_large_ones_linked(make_run):
    run = make_run(healthy_rows())
    (run / "pictures").mkdir()
    for step, size in ((100, 10), (200, 20), (300, 30), (400, 1_600_000)):
        (run / "pictures" / f"step-{step:07d}.png").write_bytes(PIXEL + bytes(size))
    page = written(run)
    sources = [attributes["src"].split(",")[0] for attributes in page.all("img")]
    assert sources == ["pictures/step-0000400.png"] + ["data:image/png;base64"] * 2
    assert re.findall(r"(\w+): step (\d+)", page.text) == [("now", "400"), ("first", "100"), ("midway", "200")]


@pytest.mark.parametrize(("processes", "shown_so"), [("1 process", False), ("8 processes", True), ("", False)])
def test_a_run_of_several_processes_is_resumed_with_torchrun(make_run, processes, shown_so):
    page = written(make_run(healthy_rows(), [{"step": 0, "event": "start", "text": processes}]))
    assert "this command resumes it exactly where it was" in page.text
    assert ("It ran as 8 processes, so start it with torchrun as before" in page.text) == shown_so


def test_events_are_marked_in_every_chart(make_run):
    events = [{"step": 500, "event": "rollback", "text": "loss was nan"}, {"step": 900, "event": "resume"}]
    page = written(make_run(healthy_rows(), events))
    marks = [attributes["class"] for attributes in page.all("g") if attributes["class"] != "cursor"]
    # The closer look at the second half begins at step 1000.
    assert marks == ["trouble", "mark"] * 7
    assert "step 500: rollback - loss was nan" in page.text


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm(make_run):
    rows = [row | {"gradient_norm": 0.0} for row in healthy_rows()]
    assert "Gradient norm" not in charts(written(make_run(rows)))
    page = written(make_run(rows[:50] + healthy_rows()[50:]))
    assert charts(page)[3] == "Gradient norm"
    assert page.all("path")[3]["d"].count(",") == 50


def test_a_curve_starts_again_where_the_run_went_back(make_run):
    rows = healthy_rows()
    run = make_run(rows + [row | {"knn_accuracy": None} for row in rows[60:90]])
    page = written(run)
    assert read_record(run, RunNumbers(run)).step == 90 * INTERVAL
    starts = [attributes["d"].count("M") for attributes in page.all("path")]
    # Loss, its second half, rate, gradient, throughput; accuracy was not measured again; rank, waiting.
    assert starts == [2, 2, 2, 2, 2, 1, 2, 2]


def test_unknown_numbers_get_a_chart_and_missing_ones_none(make_run):
    rows = [row | {"tokens_per_joule": 1.5, "note": "text", "flag": True} for row in healthy_rows()]
    drawn = charts(written(make_run(rows)))
    assert drawn[:2] == ["Loss", "Loss, second half"] and drawn[-1] == "tokens_per_joule" and len(drawn) == 9


def test_epochs_are_shown_if_they_are_known(make_run):
    # 2000 steps of 256 crops of 2.08 s from an hour of sound.
    assert f"≈ {2000 * 256 * 2.08 / 3600:.0f} over 1 h of sound" in written(make_run(healthy_rows())).text
    assert "Epochs" not in written(make_run(healthy_rows(), data__sampling="clip")).text


def test_thinning_keeps_the_extremes_and_the_ends():
    values = np.random.default_rng(0).standard_normal(10_007)
    values[1234], values[4321] = 50, -50
    curve = thin_out(Series(np.arange(10_007.0), values))
    assert len(curve.steps) == MAX_POINTS and np.all(np.diff(curve.steps) > 0)
    assert curve.highs.max() == 50 and curve.lows.min() == -50
    assert np.all(curve.lows <= curve.middles) and np.all(curve.middles <= curve.highs)
    assert curve.steps[0] < 20 and curve.steps[-1] > 10_007 - 20
    assert curve.highs[np.searchsorted(curve.steps, 1234) - 1 :][:2].max() == 50


def test_a_page_of_many_numbers_stays_small(make_run):
    rows = [{"step": i + 1, "loss": 1 / (i + 1), "gradient_norm": 1.0} for i in range(20_000)]
    run = make_run(rows, optimizer__steps=100_000)
    page = written(run)
    assert (run / "index.html").stat().st_size < 200_000
    assert len(page.all("polygon")) == 3


def test_only_new_lines_are_read_until_the_file_is_replaced(make_run, monkeypatch):
    run = make_run(healthy_rows())
    numbers = RunNumbers(run)
    numbers.read()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    parsed = []
    parse = run_record.parse_json
    monkeypatch.setattr(run_record, "parse_json", lambda text: parsed.append(text) or parse(text))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5000, "loss": 7.0}\n{"step": 5020, "lo')
        file.flush()
        assert numbers.read()["loss"].values[-1] == 7
        file.write('ss": 8.0}\n')
    assert len(parsed) == 1
    assert numbers.read()["loss"].steps[-2:].tolist() == [5000, 5020]
    for first, last in ((0, 3), (10, 90), (20, 100)):
        (run / "new").write_text("".join(lines[first:last]))
        (run / "new").replace(run / "metrics.jsonl")
        assert numbers.read()["loss"].steps.tolist() == [INTERVAL * (i + 1) for i in range(first, last)]


def test_ticks_are_round_and_within():
    assert ticks(0.0, 1.3) == [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    assert ticks(0.0, 4500.0) == [0, 1000, 2000, 3000, 4000]
    assert ticks(2.1e-7, 4.1e-7) == [2.5e-7, 3e-7, 3.5e-7, 4e-7]
    assert log_ticks(0.05, 1.2) == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert log_ticks(1e-9, 1e9)[0] >= 1e-9 and 3 <= len(log_ticks(1e-9, 1e9)) <= 8


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_run_page(tmp_path / "file" / "run")


_POINTER = """<script>
const chart = document.querySelector('svg'), place = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent('pointermove', {clientX: place.right, clientY: place.top}));
</script>"""


@needs_browser
def test_a_browser_shows_the_page_without_an_error(make_run, tmp_path):
    events = [{"step": 500, "event": "rollback", "text": "<script>boom()</script>"}]
    page = write_run_page(make_run(healthy_rows(), events, store="'><script>boom()</script>"))
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", f"{_POINTER}</body>"), encoding="utf-8")
    after = Page(shown(page, tmp_path))
    assert charts(after)[0] == "Loss" and len(charts(after)) == 8
    # Written by the page's own script, after it had gone through the charts.
    assert "just now" in after.text
    # The value under the pointer is read back from the drawing.
    step, loss = re.search(r"step ([\d,]+): ([\d.]+)", after.text).groups()
    assert step == f"{ROWS * INTERVAL:,}" and float(loss) == pytest.approx(healthy_rows()[-1]["loss"], abs=0.002)
