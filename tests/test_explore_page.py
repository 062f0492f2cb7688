"""The page of `melmask explore` in a real browser: map, sound, mask, search, labels; by mouse, by finger, by keys."""

import csv
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from web_page import BROWSER, needs_browser

import melmask

ROOT = Path(__file__).parent.parent
PAGE = Path(melmask.__file__).parent / "explore" / "page"
RATE_HZ = 16000
HTML_NAME = "<img src=x onerror=alert(1)>.wav"
HTML_LABEL = "<b onclick=alert(1)>low</b>"
# WebGL is drawn by software here; the microphone gives beeps.
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]


def make_sounds(folder):
    """Write tones of two kinds, which any model tells apart, and a table that says which is which."""
    time_s = np.arange(RATE_HZ * 3) / RATE_HZ
    noise = np.random.default_rng(0)
    rows = []
    for number in range(20):
        high = number % 2 == 1
        tone = np.sin(2 * np.pi * (2500 + 100 * number if high else 150 + 10 * number) * time_s)
        beats = np.sin(2 * np.pi * (1 + number % 5) * time_s) > 0
        name = HTML_NAME if number == 3 else f"{'high' if high else 'low'}-{number:02d}.wav"
        sound = 0.3 * tone * beats + 0.01 * noise.normal(size=time_s.size)
        soundfile.write(folder / name, sound[: RATE_HZ * (2 if number < 10 else 3)], RATE_HZ)
        rows.append((name, "<i>high</i>" if high else "low", number))
    with (folder.parent / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "pitch", "number"), *rows])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the page of a folder, served by the command itself, when all is embedded."""
    folder = tmp_path_factory.mktemp("explore") / "sounds"
    folder.mkdir()
    make_sounds(folder)
    table = str(folder.parent / "table.csv")
    command = [sys.executable, "-m", "melmask", "explore", str(folder), "--no-browser", "--labels", table]
    command += ["--audio-root", str(folder), "--out", str(folder.parent / "out")]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
    finally:
        server.terminate()
        server.communicate(timeout=20)


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("neither chromium nor chromium-browser is on PATH")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS)
        yield running
        running.close()


class Explorer:
    """A tab with the page open. At the end it must have met no error, and asked nobody but its own server."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 860}, **options})
        self.tab, self.address, self.problems, self.hosts = self.context.new_page(), address, [], set()
        self.tab.set_default_timeout(20000)
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.tab.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.tab.goto(address)
        self.tab.wait_for_selector("body[data-ready=yes]")
        # Embedding goes on in the background, and moves the points.
        self.until("document.getElementById('embedding').hidden")
        base, self.token = address.split("?token=")
        self.api = f"{base}api/"

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert self.problems == []
            assert {host for host in self.hosts if host} == {self.address.split("/")[2]}

    def get(self, path):
        return self.tab.request.get(self.api + path, headers={"Authorization": f"Bearer {self.token}"})

    def until(self, condition):
        """Wait until an expression is true. As a function, it needs no eval, which the page's policy forbids."""
        self.tab.wait_for_function(f"() => {condition}")

    def names(self):
        return self.get("names").json()["names"]

    def place(self, sound):
        """Where a sound is on the screen, from what the server says."""
        x, y = np.frombuffer(self.get("points?projection=pca").body(), "<f4").reshape(-1, 2)[sound]
        box = self.tab.locator("#map-box").bounding_box()
        unit = 0.46 * min(box["width"], box["height"])
        return box["x"] + box["width"] / 2 + float(x) * unit, box["y"] + box["height"] / 2 - float(y) * unit

    def lasso(self, sounds):
        """Draw around the rectangle that holds these sounds."""
        places = np.array([self.place(sound) for sound in sounds])
        (left, top), (right, bottom) = places.min(0) - 12, places.max(0) + 12
        mouse = self.tab.mouse
        mouse.move(left, top)
        mouse.down()
        for x, y in [(right, top), (right, bottom), (left, bottom), (left, top + 3)]:
            mouse.move(x, y, steps=4)
        mouse.up()

    def hidden(self):
        """The number of hidden patches, from what the page says of them."""
        found = re.search(r"(\d+) % hidden", self.tab.text_content("#loss"))
        return int(found[1]) if found else None

    @contextmanager
    def redrawn(self):
        """Wait until the map has been drawn once more than before the block."""
        self.tab.evaluate("document.getElementById('points').addEventListener('drawn', () => { window.again = true; })")
        self.tab.evaluate("window.again = false")
        yield
        self.until("window.again")

    def drawn(self, canvas):
        """Number of colors on a canvas."""
        return self.tab.evaluate(
            """id => { const from = document.getElementById(id), to = new OffscreenCanvas(from.width, from.height);
            const context = to.getContext("2d"); context.drawImage(from, 0, 0);
            return new Set(new Uint32Array(context.getImageData(0, 0, to.width, to.height).data.buffer)).size; }""",
            canvas,
        )


@pytest.fixture
def explorer(browser, address):
    with Explorer(browser, address) as made:
        yield made


@needs_browser
def test_hovering_names_a_sound_shows_it_and_plays_it(explorer):
    tab, names = explorer.tab, explorer.names()
    assert explorer.drawn("points") > 3
    tab.click("#sound")
    sound = names.index(HTML_NAME)
    tab.mouse.move(*explorer.place(sound))
    tab.wait_for_function("name => document.getElementById('card-name').textContent === name", arg=HTML_NAME)
    explorer.until("/3.00 s|2.00 s/.test(document.getElementById('card-facts').textContent)")
    assert explorer.drawn("card-spectrogram") > 20
    explorer.until("document.getElementById('player').currentTime > 0")
    assert f"/api/items/{sound}/sound" in tab.evaluate("document.getElementById('player').src")


@needs_browser
def test_the_legend_names_the_categories_and_filters_them(explorer):
    tab = explorer.tab
    entry = tab.get_by_role("button", name="<i>high</i>")
    with explorer.redrawn():
        tab.select_option("#color", "pitch")
    sound = explorer.names().index("high-05.wav")
    before = explorer.drawn("points")
    with explorer.redrawn():
        entry.click()
    assert entry.get_attribute("aria-pressed") == "false" and explorer.drawn("points") < before
    tab.mouse.move(*explorer.place(sound))
    assert tab.is_hidden("#card") or tab.text_content("#card-name") != "high-05.wav"
    tab.select_option("#color", "duration")
    tab.get_by_role("button", name="Filtered by pitch").wait_for()
    tab.get_by_label("Lowest value shown").wait_for()


@needs_browser
def test_a_mask_is_painted_by_hand_and_filled_in(explorer):
    tab = explorer.tab
    tab.mouse.click(*explorer.place(explorer.names().index("low-12.wav")))
    explorer.until("/75 % hidden/.test(document.getElementById('loss').textContent)")
    assert tab.text_content("#inspect-name") == "low-12.wav"
    assert min(explorer.drawn(canvas) for canvas in ("input", "reconstruction", "error", "overview")) > 20
    tab.click("#paint-none")
    tab.locator("#input").scroll_into_view_if_needed()
    box = tab.locator("#input").bounding_box()
    with tab.expect_request("**/reconstruct") as sent:
        tab.mouse.move(box["x"] + 60, box["y"] + 30)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 160, box["y"] + 30, steps=12)
        tab.mouse.up()
    painted = sent.value.post_data_json["hidden"]
    assert 2 <= sum(painted) <= 6
    explorer.until("/mean error/.test(document.getElementById('loss').textContent)")
    assert explorer.hidden() == round(100 * sum(painted) / len(painted))
    for what in ("input", "visible", "reconstruction"):
        with tab.expect_response("**/listen") as answered:
            tab.click(f".listen[data-what={what}]")
        assert answered.value.headers["content-type"] == "audio/wav"
        explorer.until("document.getElementById('player').src.startsWith('blob:')")
    with tab.expect_response("**/attention") as answered:
        tab.locator("#attention").click(position={"x": 120, "y": 60})
    assert answered.value.json()["rows"] * answered.value.json()["columns"] == len(painted)
    explorer.until("/from .* Hz/.test(document.getElementById('attention-note').textContent)")


# Drop a sound of the collection on the page, as a file from elsewhere.
DROP = """async ([path, token]) => {
const sound = await (await fetch(`/api/${path}`, { headers: { Authorization: `Bearer ${token}` } })).blob();
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([sound], "dropped.wav"));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


@needs_browser
def test_search_by_sound_by_file_by_microphone_and_by_name(explorer, tmp_path):
    tab, names = explorer.tab, explorer.names()
    sound = names.index("high-07.wav")
    tab.mouse.click(*explorer.place(sound))
    tab.click("#current-similar")
    tab.wait_for_selector("#results li")
    assert tab.text_content("#results-title") == "Sounds like high-07.wav"
    found = tab.locator("#results .name").all_text_contents()
    assert "high-07.wav" not in found and sum(name.startswith(("high", "<img")) for name in found[:5]) >= 4
    # A file that is a sound of the collection finds that sound first.
    again = tmp_path / "<u>again.wav"
    again.write_bytes(explorer.get(f"items/{sound}/sound").body())
    tab.set_input_files("#search-file", again)
    tab.get_by_role("heading", name="Sounds like the file <u>again.wav").wait_for()
    explorer.until("document.querySelector('#results .name').textContent === 'high-07.wav'")
    tab.evaluate(DROP, [f"items/{names.index('low-16.wav')}/sound", explorer.token])
    tab.get_by_role("heading", name="Sounds like the file dropped.wav").wait_for()
    explorer.until("document.querySelector('#results .name').textContent === 'low-16.wav'")
    tab.click("#search-mic")
    explorer.until("/[1-9] s/.test(document.getElementById('search-mic').textContent)")
    tab.click("#search-mic")
    tab.get_by_role("heading", name=re.compile("Sounds like the recording of")).wait_for()
    tab.fill("#search-name", "LOW-0")
    tab.get_by_role("heading", name="Names with “LOW-0”").wait_for()
    assert tab.locator("#results li").count() == 5


@needs_browser
def test_labels_are_given_learned_and_exported(explorer):
    tab, names = explorer.tab, explorer.names()
    of = {kind: [i for i, name in enumerate(names) if name.startswith(kind)] for kind in ("low", "high")}
    tab.keyboard.press("l")
    for kind, label in (("low", HTML_LABEL), ("high", "high")):
        # The maps of the two kinds do not overlap.
        explorer.lasso(of[kind])
        explorer.until("/selected/.test(document.getElementById('selection-note').textContent)")
        tab.fill("#label-name", label)
        tab.click("#label-form [type=submit]")
        tab.wait_for_selector(f"#label-list li:has-text({label!r})")
    explorer.until("/^Probe/.test(document.getElementById('probe-note').textContent)")
    assert HTML_LABEL in tab.text_content("#label-list")
    tab.keyboard.press("Escape")
    tab.click("#color-predicted")
    assert HTML_LABEL in tab.text_content("#legend")
    tab.click("#ask-duplicates")
    explorer.until("!/Looking/.test(document.getElementById('list-note').textContent)")
    with tab.expect_download() as got:
        tab.click("#labels-csv")
    rows = list(csv.DictReader(Path(got.value.path()).read_text(encoding="utf-8").splitlines()))
    assert {row["label"] for row in rows} == {HTML_LABEL, "high"} and len(rows) >= 18


@needs_browser
def test_everything_works_by_keyboard(explorer):
    tab, press = explorer.tab, explorer.tab.keyboard.press
    press("Tab")
    press("Enter")
    assert tab.evaluate("document.activeElement.id") == "overlay"
    press("ArrowRight")
    first = tab.text_content("#current-name")
    press("ArrowRight")
    tab.wait_for_function("name => document.getElementById('current-name').textContent !== name", arg=first)
    assert tab.is_visible("#card")
    chosen = tab.text_content("#current-name")
    press("Space")
    explorer.until("/sound/.test(document.getElementById('player').src)")
    press("Enter")
    explorer.until("/75 % hidden/.test(document.getElementById('loss').textContent)")
    assert tab.text_content("#inspect-name") == chosen
    while tab.evaluate("document.activeElement.id") != "input":
        press("Tab")
    press("ArrowUp")
    before = tab.text_content("#patch-text")
    press("Space")
    after = tab.text_content("#patch-text")
    assert {before.split(", ")[-1], after.split(", ")[-1]} == {"hidden", "visible"}
    press("n")
    tab.wait_for_selector("#results li")
    press("m")
    press("n")
    explorer.until("document.activeElement.classList.contains('open')")
    press("ArrowDown")
    press("Enter")
    assert tab.text_content("#current-name") == tab.locator("#results .name").nth(1).text_content()
    press("m")
    press("x")
    press("b")
    tab.keyboard.type("by key")
    press("Enter")
    tab.wait_for_selector("#label-list li:has-text('by key')")
    press("Escape")
    press("?")
    assert tab.is_visible("#help-keys")
    press("Escape")
    assert tab.is_hidden("#help-keys")


# Contrasts as WCAG 2.2 computes them, of all text that is seen.
CONTRASTS = """() => {
const channel = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parts = text => text.match(/[\\d.]+/g).map(Number);
const light = text => {
  const [r, g, b] = parts(text).slice(0, 3).map(v => channel(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = node => {
  for (let n = node; n; n = n.parentElement) {
    const color = getComputedStyle(n).backgroundColor;
    if (color.startsWith("rgb") && (parts(color)[3] ?? 1) === 1) return color;
  }
  return "rgb(255 255 255)";
};
const told = n => [...n.childNodes].some(child => child.nodeType === 3 && child.data.trim());
return [...document.querySelectorAll("body *")]
  .filter(n => n.offsetParent && !n.disabled && !n.closest("option") && told(n))
  .map(n => {
    const [a, b] = [light(getComputedStyle(n).color), light(behind(n))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), n.textContent.trim().slice(0, 30)];
  })
  .filter(([ratio]) => ratio < 4.5);
}"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1300])
def test_the_page_fits_and_is_readable(browser, address, width, scheme):
    phone = width == 390
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "has_touch": phone}
    with Explorer(browser, address, **options) as explorer:
        tab = explorer.tab
        place = explorer.place(4)
        tab.touchscreen.tap(*place) if phone else tab.mouse.click(*place)
        tab.wait_for_selector("#current")
        for name in ["map", "inspect", "search", "labels"] if phone else ["inspect", "search", "labels"]:
            tab.click(f"#tab-{name}")
            tab.wait_for_timeout(150)
            assert tab.is_visible("#map-box") == (not phone or name == "map")
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.evaluate(
                "[...document.querySelectorAll('[role=tabpanel]')].every(p => p.scrollWidth <= p.clientWidth)"
            )
            assert tab.evaluate(CONTRASTS) == []
        paper = {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 24, 28)"}
        of_body = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(of_body) == paper[scheme]
        for expected in ("light", "dark"):
            tab.click("#theme")
            assert tab.evaluate(of_body) == paper[expected]


def test_the_colors_are_those_of_the_other_pages():
    base = (PAGE.parents[1] / "pages/templates/base.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w+);", part)) for part in base.split("@media")[:2])
    own = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", (PAGE / "style.css").read_text(encoding="utf-8"))
    assert {name: (one, two) for name, one, two in own if name in light} == {n: (light[n], dark[n]) for n in light}


def test_the_page_makes_no_element_from_text_and_names_no_other_host():
    for path in [*PAGE.glob("*.js"), PAGE / "index.html", PAGE / "style.css"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"https?://", text), path
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_the_design_page_lists_every_file_of_the_page():
    listed = re.findall(r"^\| `explore/page/([\w.]+)` \|", (ROOT / "docs/design.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in PAGE.iterdir() if path.is_file())


def test_every_library_of_the_page_is_listed_with_its_license():
    listed = (PAGE / "vendor/README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in listed for path in (PAGE / "vendor").iterdir() if path.suffix == ".js")
