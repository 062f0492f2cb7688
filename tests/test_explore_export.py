"""`melmask explore --export` writes one file that shows sounds, and fills hidden patches in, in a browser alone."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
from web_page import BROWSER, Page, needs_browser

from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.cli import main
from melmask.config import FrontEndConfig, ModelConfig, ResolutionConfig, Statistics
from melmask.embedding.encoder import load
from melmask.embedding.export_masked import export_masked
from melmask.models.network import build_network

pytest.importorskip("starlette", reason="the explore extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

RATE_HZ, COUNT, WHOLE = 16000, 12, 4
HTML = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'>"
# WebGL is drawn by software here.
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
]


def make_sounds(folder):
    """Write sounds of two kinds, and a table of labels; one name and one label would be HTML."""
    folder.mkdir()
    noise, rows = np.random.default_rng(0), []
    for number in range(COUNT):
        time_s = np.arange(RATE_HZ * (1 if number == 5 else 3)) / RATE_HZ
        tone = np.sin(2 * np.pi * (300 + 250 * number) * time_s) * (np.sin(9 * time_s) > 0)
        name = f"{HTML.replace('/', '-')}.wav" if number == 3 else f"sound-{number:02d}.wav"
        soundfile.write(folder / name, 0.3 * tone + 0.02 * noise.normal(size=time_s.size), RATE_HZ)
        rows.append((name, HTML if number % 2 else "even"))
    with (folder.parent / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "parity"), *rows])
    (folder.parent / "out").mkdir()
    with (folder.parent / "out" / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        header = ("path", "label", "start", "end")
        csv.writer(file).writerows([header, (folder / rows[7][0], HTML, "", "")])


def make_model(folder):
    further = (ResolutionConfig(window_ms=128.0, scale="log"),)
    config = ModelConfig(
        width=32, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2, frames=96, resolutions=2
    )
    card = ModelCard(
        model=config,
        front_end=FrontEndConfig(further_resolutions=further),
        statistics=Statistics(mean=-7.0, std=4.0, further_means=(-6.0,), further_stds=(3.0,)),
        training={"config": {"masking": {"normalize_target": True}}},
    )
    save_checkpoint(folder, build_network(config), card)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A page that the command wrote, and the folder where its sounds and its model were."""
    folder = tmp_path_factory.mktemp("private")
    make_sounds(folder / "sounds")
    make_model(folder / "model")
    page = folder / "page.html"
    command = f"explore {folder}/sounds --model {folder}/model --out {folder}/out --export {page} --sounds {WHOLE}"
    command += f" --spectrograms 9 --labels {folder}/table.csv --audio-root {folder}/sounds"
    assert main(command.split()) == 0
    return page


def facts_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="melmask-data">(.*?)</script>', text)[1])


def test_names_and_labels_stay_text_and_tell_nothing_of_the_machine(exported):
    text = exported.read_text(encoding="utf-8")
    # The label is there, but ends no element.
    assert "\\u003c/script\\u003e\\u003cscript\\u003ewindow.hacked" in text and "<script>window" not in text
    elements = Page(text).found
    # Nothing is asked for from elsewhere: scripts lie within the page, and modules are data.
    places = [attributes[name] for _, attributes in elements for name in ("src", "href") if name in attributes]
    assert {place[:5] for place in places if not place.startswith("#")} == {"data:"}
    (imports,) = re.findall(r'<script type="importmap">(.*?)</script>', text)
    assert all(uri.startswith("data:text/javascript;base64,") for uri in json.loads(imports)["imports"].values())
    assert str(exported.parent) not in text


def test_what_is_left_out_is_said(exported):
    facts = facts_of(exported)
    assert [len(facts["sounds"]), facts["collection"]["count"]] == [WHOLE, COUNT]
    assert "Sound, and what the model sees, of 4 of 12 sounds; spectrograms of 9" in facts["note"]
    held = next(column for column in facts["collection"]["columns"] if column["name"] == "in this page")
    assert held["distinct"] == 3


def test_a_page_of_segments_holds_no_more_than_is_asked_for(tmp_path, capfd):
    make_sounds(tmp_path / "sounds")
    config = ModelConfig(width=32, depth=1, heads=2, decoder_width=0, decoder_depth=0, frames=96)
    save_checkpoint(tmp_path / "model", build_network(config), ModelCard(model=config))
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(f"sounds/sound-{number:02d}.wav", 0.5, 0.5 + number / 10, "x") for number in (1, 2, 4)]
        csv.writer(file).writerows([("path", "start", "end", "label"), *rows, ("sounds/none.wav", 0, 1, "x")])
    command = f"explore {tmp_path}/rows.csv --model {tmp_path}/model --out {tmp_path}/out --export {tmp_path}/page.html"
    assert main([*command.split(), "--sounds", "0", "--spectrograms", "2"]) == 0
    said, facts = capfd.readouterr().out, facts_of(tmp_path / "page.html")
    for line in (
        "1 sound could not be embedded",
        "The model has no decoder",
        "what the model sees, of 0 of 4 sounds; spectrograms of 2;",
    ):
        assert line in said and line in facts["note"]
    assert facts["model"] is None and facts["sounds"] == [] and facts["starts"]["type"] == "float64"
    # Without the model, the page is small: there is no runtime in it.
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert main([*command.replace("page.html", "sounds").split()]) == 2
    assert "it is a folder; give the name of a file" in capfd.readouterr().err
    # A table that is named by mistake is not written over.
    assert main([*command.replace("page.html", "rows.csv").split()]) == 2
    assert "the page is HTML, so give a name such as" in capfd.readouterr().err


@pytest.fixture(scope="module")
def tab(exported):
    """The page from the disk, in a browser that is offline; at the end it must have met no error."""
    if BROWSER is None:
        pytest.skip("neither chromium nor chromium-browser is on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS)
        context = browser.new_context(viewport={"width": 1300, "height": 860}, offline=True, accept_downloads=True)
        opened, problems, asked = context.new_page(), [], []
        opened.set_default_timeout(60000)
        opened.on("console", lambda message: message.type == "error" and problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(exported.as_uri())
        opened.wait_for_selector("body[data-ready=yes]")
        yield opened
        assert problems == []
        assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {exported.as_uri()}
        assert opened.evaluate("window.hacked") is None
        browser.close()


OPEN = """
    window.source ??= import("melmask/static_source.js").then((module) => module.open());
    const s = await window.source;
"""


def ask(tab, body, *values):
    """Run the body of a function of the source `s` and of the values `v`."""
    return tab.evaluate(f"async (v) => {{ {OPEN} {body} }}", list(values))


RECONSTRUCT = """
    const r = await s.reconstruct(v[0], v[1]);
    r.reconstruction.data = [...r.reconstruction.data];
    return r;
"""


def python_reconstruction(model, logmel, hidden, leak):
    """What Python makes of the log-mel that the page holds."""
    made = model.reconstruct(logmel[None], masked=np.array(hidden, bool)[None], leak=leak)
    return made.logmel[0], made.loss


@needs_browser
def test_a_mask_in_the_browser_gives_the_reconstruction_of_python(exported, tab):
    model = load(exported.parent / "model", "cpu")
    rng, names = np.random.default_rng(1), ask(tab, f"return s.names(0, {COUNT})")
    for held in facts_of(exported)["sounds"]:
        # Frames that are not of whole patches at the end of a sound are filled in.
        start = 0 if held["frames"] < 230 else 226
        drawn = "{start_frame: v[1], hidden: {ratio: 0.5, strategy: 'random', seed: 1}}"
        grid = ask(tab, f"const r = await s.reconstruct(v[0], {drawn}); return [r.rows, r.columns]", held["id"], start)
        hidden = (rng.random(grid[0] * grid[1]) < 0.6).astype(int)
        hidden[:2] = 0, 1
        samples, _ = soundfile.read(exported.parent / "sounds" / names[held["id"]], dtype="float32")
        logmel = model.logmel(samples, RATE_HZ)[0][:, start : start + model.card.model.frames]
        frames, wide = logmel.shape[1], grid[1] * 16
        filled = np.repeat([-7.0, -6.0], 80)[:, None] * np.ones((1, wide - frames))
        unit = np.concatenate([logmel, filled], axis=1).astype(np.float32)
        for leak in (False, True):
            for resolution in (0, 1):
                request = {"start_frame": start, "hidden": hidden.tolist(), "leak": leak, "resolution": resolution}
                made = ask(tab, RECONSTRUCT, held["id"], request)
                picture = made["reconstruction"]
                expected, loss = python_reconstruction(model, unit, hidden, leak)
                expected = 10 / np.log(10) * expected[80 * resolution : 80 * (resolution + 1), :frames]
                low, high = picture["low_db"], picture["high_db"]
                levels = np.array(picture["data"]).reshape(80, frames) / 255 * (high - low) + low
                # The page has levels in steps: those of the sound, and those of its pictures.
                assert np.abs(levels - np.clip(expected, low, high)).max() < 1.5
                assert np.abs(levels - np.clip(expected, low, high)).mean() < 0.4
                assert abs(made["loss"] - loss) < 0.02
                errors = [error for error in made["error"] if error is not None]
                assert len(errors) == hidden.sum()


@needs_browser
def test_masks_of_all_strategies_leave_as_many_patches_visible_as_in_training(tab):
    count = """
        const {drawnMask} = await import("melmask/static_masks.js");
        const blocks = {"inverse-blocks": [2, 2], time: [0, 1], frequency: [1, 0]};
        const drawn = (strategy) => drawnMask({ratio: v[0], strategy, seed: v[1]}, {rows: 5, columns: 6}, blocks);
        return ["random", "inverse-blocks", "time", "frequency"].map(drawn);
    """
    for ratio in (0.05, 0.5, 0.75, 0.95):
        masks = np.array(ask(tab, count, ratio, 7))
        assert set((masks == 0).sum(1)) == {max(1, int(round(30 * (1 - ratio), 6)))}
    time, frequency = (mask.reshape(5, 6) for mask in np.array(ask(tab, count, 0.5, 3))[2:])
    assert sorted(time.sum(0)) == [0, 0, 0, 5, 5, 5]
    assert sorted(frequency.sum(1)) == [0, 0, 3, 6, 6]


@needs_browser
def test_attention_is_that_of_the_graph_in_python(exported, tab):
    model = load(exported.parent / "model", "cpu")
    graph = onnxruntime.InferenceSession(export_masked(model).content, providers=["CPUExecutionProvider"])
    held = facts_of(exported)["sounds"][0]
    names = ask(tab, f"return s.names(0, {COUNT})")
    samples, _ = soundfile.read(exported.parent / "sounds" / names[held["id"]], dtype="float32")
    logmel = model.logmel(samples, RATE_HZ)[0][:, :96]
    (weights,) = graph.run(["attention"], {"logmel": logmel, "visible_ids": np.arange(30)})
    first = int(model.card.model.cls_token)
    through = np.eye(weights.shape[-1])
    for layer in weights.mean(1):
        through = (0.5 * layer + 0.5 * np.eye(len(layer))) @ through
    rollout = through[0] if first else through.mean(0)
    for request, expected in (
        ({"from": "mean", "layer": None, "head": None}, weights.mean((0, 1)).mean(0)),
        ({"from": 7, "layer": 2, "head": 1}, weights[1, 0, 7 + first]),
        ({"from": "rollout", "layer": None, "head": None}, rollout),
    ):
        found = ask(tab, "return (await s.attention(v[0], {start_frame: 0, ...v[1]})).weights", held["id"], request)
        assert np.abs(np.array(found) - expected[first:]).max() < 0.01


@needs_browser
def test_the_nearest_sounds_are_those_of_the_vectors(exported, tab):
    from melmask.explore.collection import open_collection
    from melmask.explore.options import ExploreOptions

    options = ExploreOptions(out=exported.parent / "out")
    shown = open_collection(exported.parent / "sounds", exported.parent / "model", options)
    found = ask(tab, "return s.search({id: 0, start_s: null, end_s: null, count: 3})")
    expected = [(point, value) for point, value in shown.similarity.nearest(shown.vectors.rows[0], 4) if point != 0]
    assert [result["id"] for result in found] == [point for point, _ in expected]
    assert (
        np.abs([result["similarity"] - value for result, (_, value) in zip(found, expected, strict=True)]).max() < 0.01
    )


@needs_browser
def test_hover_paint_play_and_label_on_the_page_itself(exported, tab, tmp_path):
    held = next(sound["id"] for sound in facts_of(exported)["sounds"] if sound["frames"] > 200)
    shown = "return [...await s.points(document.getElementById('projection').value)]"
    points = np.array(ask(tab, shown)).reshape(-1, 2)
    assert np.abs(points).max() <= 1
    box = tab.locator("#map-box").bounding_box()
    unit = 0.46 * min(box["width"], box["height"])
    x, y = box["x"] + box["width"] / 2 + points[held, 0] * unit, box["y"] + box["height"] / 2 - points[held, 1] * unit
    tab.mouse.move(x, y)
    name = ask(tab, f"return (await s.names(0, {COUNT}))[{held}]")
    tab.wait_for_function("(name) => document.getElementById('card-name').textContent === name", arg=name)
    tab.wait_for_function("() => document.getElementById('card-facts').textContent.startsWith('3.00 s')")
    drawn = """() => {
        const canvas = document.getElementById("card-spectrogram");
        return new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size;
    }"""
    assert tab.evaluate(drawn) > 20
    tab.mouse.click(x, y)
    tab.wait_for_function("() => /loss \\d/.test(document.getElementById('loss').textContent)")
    before = tab.locator("#loss").text_content()
    canvas = tab.locator("#input").bounding_box()
    # A stroke along a row, from a patch that is now visible or hidden to its neighbors.
    tab.mouse.move(canvas["x"] + 60, canvas["y"] + 30)
    tab.mouse.down()
    tab.mouse.move(canvas["x"] + canvas["width"] - 60, canvas["y"] + 30, steps=12)
    tab.mouse.up()
    told = "document.getElementById('loss').textContent"
    tab.wait_for_function(rf"(before) => /loss \d/.test({told}) && {told} !== before", arg=before)
    tab.click("#inspect-play")
    tab.wait_for_function("() => document.getElementById('player').currentTime > 0.1")
    assert abs(tab.evaluate("document.getElementById('player').duration") - 3) < 0.1
    tab.click("#tab-labels")
    tab.fill("#label-name", 'one, "two"')
    tab.click("#label-form [type=submit]")
    tab.wait_for_function("() => document.querySelectorAll('#label-list li').length === 2")
    with tab.expect_download() as download:
        tab.click("#labels-csv")
    download.value.save_as(tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "start", "end"]
    # One label was there when the page was written.
    assert [name, 'one, "two"', "", ""] in rows and ["sound-07.wav", HTML, "", ""] in rows and len(rows) == 2
    # The browser remembers labels, so that closing the page loses nothing.
    tab.reload()
    tab.wait_for_selector("body[data-ready=yes]")
    tab.wait_for_function("() => document.querySelectorAll('#label-list li').length === 2")
