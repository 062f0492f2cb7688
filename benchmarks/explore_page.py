"""Measure the page of `melmask explore` in a real browser: how long it loads, and how smoothly its map moves.

    python benchmarks/explore_page.py [--points 10000 100000 1000000] [--seconds 4] [--out X.md]

A small server of this file's own gives the page made-up points: it stands for the one of `melmask explore`, whose times
are not measured here. Needs `pip install playwright` and Chromium.

load     From the request for the page to a map of all points, with its colors and legend.
CPU      What of that is time of the processor in the page's own process.
index    The part of it in which the page sorts the points, so that it finds what is under the pointer.
blank/s  Frames that the browser makes while the map is dragged and draws nothing: the most that this machine does now.
frames/s While the map is dragged. The page draws as many points in a frame as the graphics processor manages in 30 ms,
         and the others when the map is still.
drawn    Points in such a frame: the median.
full     From the end of the movement to a picture of all points.
page     Time of the processor in the page's own process, for a frame: other programs do not change it much.
GPU      The same in the process that draws. Software graphics draw every pixel there; a graphics card takes that over.
hover    From a movement of the pointer to the ring around the point under it: the median of 20.
"""

import argparse
import base64
import json
import os
import platform
import shutil
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, urlparse

import numpy as np
from playwright.sync_api import Page, sync_playwright

import melmask

PAGE = Path(melmask.__file__).parent / "explore" / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
CATEGORIES = 12
BROWSER_OPTIONS = ["--no-sandbox", "--disable-quic"]
SOFTWARE = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# Each frame of a movement begins with a cleared picture, so these are counted, with the points that follow.
COUNTER = """
window.frames_ = []; window.full_ = 0;
const proto = WebGL2RenderingContext.prototype, clear = proto.clear, draw = proto.drawArrays;
proto.clear = function (...a) { frames_.push([performance.now(), 0]); return clear.apply(this, a); };
proto.drawArrays = function (m, f, n) {
  if (f === 0 && frames_.length) frames_.at(-1)[1] = n;
  return window.blank_ ? undefined : draw.call(this, m, f, n);
};
addEventListener("DOMContentLoaded", () =>
  document.getElementById("points").addEventListener("drawn", () => { window.full_ = performance.now(); }));
"""


def answers(count: int) -> dict[str, object]:
    """Return what the API says of `count` points in clusters: bytes, or values for JSON, by path."""
    noise = np.random.default_rng(0)
    codes = noise.integers(CATEGORIES, size=count).astype("<i4")
    centers = noise.uniform(-0.8, 0.8, (CATEGORIES, 2))
    points = (centers[codes] + 0.12 * noise.standard_normal((count, 2))).clip(-1, 1).astype("<f4")
    model = {"name": "made up", "hop_ms": 10.0, "unit_frames": 208, "patch_frames": 16, "patch_mels": 16, "rows": 5}
    picture = noise.integers(0, 256, (80, 200)).astype(np.uint8).tobytes()
    return {
        "/api/collection": {
            "name": f"{count:,} points",
            "count": count,
            "kind": "files",
            "model": {**model, "resolutions": 1, "decoder": False, "layers": 0, "heads": 0, "cls": False},
            "columns": [{"name": "class", "kind": "category", "distinct": CATEGORIES}],
            "projections": ["pca"],
            "listen": False,
            "embedding": {"done": count, "total": count},
        },
        "/api/points": points.tobytes(),
        "/api/column": {
            "kind": "category",
            "categories": [f"class {number}" for number in range(CATEGORIES)],
            "codes": base64.b64encode(codes.tobytes()).decode(),
        },
        "/api/labels": {"labels": {}},
        "/api/names": {"names": [f"sound {number}" for number in range(1000)]},
        "spectrogram": {
            "bands": 80,
            "frames": 200,
            "hop_ms": 10.0,
            "start_s": 0.0,
            "low_db": -80.0,
            "high_db": 0.0,
            "frequencies_hz": np.linspace(50, 8000, 80).tolist(),
            "data": base64.b64encode(picture).decode(),
            "total_s": 2.0,
        },
    }


class Handler(BaseHTTPRequestHandler):
    """Give the page's files, and the made-up answers."""

    given: dict[str, object]

    def do_GET(self) -> None:
        """Answer one request."""
        path = urlparse(self.path).path
        if path.startswith("/api/"):
            given = self.given["spectrogram" if path.endswith("/spectrogram") else path]
            if path == "/api/names":
                first = int(parse_qs(urlparse(self.path).query)["from"][0])
                given = {"names": [f"sound {first + number}" for number in range(1000)]}
            body = given if isinstance(given, bytes) else json.dumps(given).encode()
            kind = "application/octet-stream" if isinstance(given, bytes) else "application/json"
        else:
            file = PAGE / (path.removeprefix("/page/") if path.startswith("/page/") else "index.html")
            body, kind = file.read_bytes(), KINDS[file.suffix]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def measure(page: Page, address: str, seconds: float) -> dict[str, float]:
    """Return the figures of one page."""
    page.add_init_script(COUNTER)
    before = used(page)
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]", timeout=300_000)
    # The colors come after the points, and draw the map once more.
    page.wait_for_function("() => window.full_ > window.frames_.at(-1)[0]", timeout=300_000)
    load_ms, load_cpu_s = page.evaluate("window.full_"), used(page)["renderer"] - before["renderer"]
    page.wait_for_timeout(1000)
    box = page.locator("#overlay").bounding_box()
    assert box is not None
    page.evaluate("window.blank_ = true")
    blank, *_ = drag(page, box, seconds)
    page.evaluate("window.blank_ = false")
    drawn, full_s, used_s = drag(page, box, seconds)
    return {
        "load_s": load_ms / 1000,
        "load_cpu_s": load_cpu_s,
        "index_s": page.evaluate(INDEX),
        "blank_per_s": len(blank) / seconds,
        "frames_per_s": len(drawn) / seconds,
        "drawn": median(drawn),
        "full_s": full_s,
        "page_ms": 1000 * used_s["renderer"] / len(drawn),
        "graphics_ms": 1000 * used_s["GPU"] / len(drawn),
        "hover_ms": median(hover(page, box, number) for number in range(20)),
    }


def drag(page: Page, box: "dict[str, float]", seconds: float) -> tuple[list[int], float, dict[str, float]]:
    """Drag the map; return how many points each frame drew, how long all took when it was still, and the use, in s."""
    middle_x, middle_y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle_x, middle_y)
    page.mouse.down()
    begin_ms = now_ms = page.evaluate("performance.now()")
    # The first second finds out how many points the graphics processor manages.
    step, before = 0, None
    while now_ms < begin_ms + 1000 * (1 + seconds):
        if before is None and now_ms > begin_ms + 1000:
            before, begin_ms = used(page), now_ms - 1000
        step += 1
        page.mouse.move(middle_x + 60 * np.sin(step / 9), middle_y + 40 * np.cos(step / 9))
        now_ms = page.evaluate("performance.now()")
    after = used(page)
    page.mouse.up()
    frames = [points for time_ms, points in page.evaluate("window.frames_") if begin_ms + 1000 < time_ms <= now_ms]
    # A change of the size of points draws the map once more, now that it is still.
    redraw = "document.getElementById('point-size').dispatchEvent(new Event('input'))"
    end_ms = page.evaluate(f"() => {{ const now = performance.now(); {redraw}; return now; }}")
    page.wait_for_function("now => window.full_ > now", arg=end_ms, timeout=60_000)
    full_s = (page.evaluate("window.full_") - end_ms) / 1000
    return frames, full_s, {kind: after[kind] - before[kind] for kind in before}


def used(page: Page) -> dict[str, float]:
    """Return the time of the processor that each kind of the browser's processes has used, in s."""
    session = page.context.browser.new_browser_cdp_session()
    kinds: dict[str, float] = {}
    for process in session.send("SystemInfo.getProcessInfo")["processInfo"]:
        kinds[process["type"]] = kinds.get(process["type"], 0.0) + process["cpuTime"]
    session.detach()
    return kinds


INDEX = """async () => {
  const { KDBush } = await import("/page/vendor/kdbush.js");
  const points = new Float32Array(await (await fetch("/api/points")).arrayBuffer()), start = performance.now();
  const index = new KDBush(points.length / 2, 64, Float32Array);
  for (let id = 0; id < points.length / 2; id += 1) index.add(points[2 * id], points[2 * id + 1]);
  index.finish();
  return (performance.now() - start) / 1000;
}"""


def hover(page: Page, box: "dict[str, float]", number: int) -> float:
    """Return how long the map takes to find and mark what is under the pointer, in ms."""
    x, y = box["width"] * (0.3 + 0.02 * number), box["height"] * (0.3 + 0.02 * number)
    return page.evaluate(
        """([x, y]) => { const overlay = document.getElementById("overlay"), box = overlay.getBoundingClientRect();
        const start = performance.now();
        const place = { clientX: box.x + x, clientY: box.y + y };
        overlay.dispatchEvent(new PointerEvent("pointermove", { pointerType: "mouse", ...place }));
        return performance.now() - start; }""",
        [x, y],
    )


def main() -> None:
    """Measure, and print or write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--graphics", choices=("software", "own"), default="software", help="own: the machine's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load before: {os.getloadavg()[0]:.2f}, "
        f"graphics: {options.graphics}",
        "",
        "| points | load s | CPU s | index s | blank/s | frames/s | drawn | full s | hover ms | page ms | GPU ms |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=BROWSER_OPTIONS + (SOFTWARE if options.graphics == "software" else []),
        )
        for count in options.points:
            handler = type("Made", (Handler,), {"given": answers(count)})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page = browser.new_page(viewport={"width": 1300, "height": 860})
            made = measure(page, f"http://127.0.0.1:{server.server_port}/?token=x", options.seconds)
            page.close()
            server.shutdown()
            cells = [
                f"{count:,}",
                f"{made['load_s']:.1f}",
                f"{made['load_cpu_s']:.1f}",
                f"{made['index_s']:.2f}",
                f"{made['blank_per_s']:.0f}",
                f"{made['frames_per_s']:.0f}",
                f"{made['drawn']:,.0f}",
                f"{made['full_s']:.1f}",
                f"{made['hover_ms']:.1f}",
                f"{made['page_ms']:.0f}",
                f"{made['graphics_ms']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
        browser.close()
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
