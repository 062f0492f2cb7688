"""Measure how soon `melmask explore` shows a folder, and how long its queries take.

    python benchmarks/explore.py start FOLDER [--model M] [--labels CSV]      # the time to the first sight
    python benchmarks/explore.py queries POINTS [POINTS ...]                  # the times of queries, by collection size
    python benchmarks/explore.py collection POINTS OUT                        # a collection for other measurements

The server runs as users start it, in a process of its own, and is asked over HTTP. A collection of so many points is a
table of embeddings with random vectors around 50 centers, and a model of random weights, as speed depends on neither.
All its points are one file, once each as a segment of its own.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from melmask.audio.parts import Sound
from melmask.checkpoint.folder import ModelCard, save_checkpoint
from melmask.config import ModelConfig
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import load
from melmask.embedding.folder import table_settings
from melmask.models.network import build_network

ROUNDS = 5
SEGMENT_S = 0.01
SMALL = ModelConfig(width=64, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2)


class Server:
    """`melmask explore` in a process of its own."""

    def __init__(self, *arguments: object):
        command = [sys.executable, "-m", "melmask", "explore", *map(str, arguments), "--no-browser"]
        self.start_s = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self._process.stdout:
            if line.startswith("http://"):
                self._address, _, self._token = line.strip().partition("/?token=")
                break
        else:
            raise SystemExit("the server did not start")

    def ask(self, place: str, body: object = None, method: str | None = None) -> bytes:
        """Return the answer to a request."""
        content = None if body is None else json.dumps(body).encode()
        request = Request(f"{self._address}{place}", content, {"Authorization": f"Bearer {self._token}"}, method=method)
        with urlopen(request) as answer:
            return answer.read()

    def times_s(self) -> tuple[float, float]:
        """Return the time since the command was given, and the processor time since then."""
        return time.perf_counter() - self.start_s, self.cpu_s()

    def cpu_s(self) -> float:
        """Return the processor time of the server so far, which tells more than the clock on a busy machine; Linux."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End it as a user does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()


def first_sight(folder: Path, model: Path | None, labels: Path | None) -> dict[str, tuple[float, float]]:
    """Return when the page can be opened, and when the first and the last points are seen: clock, processor time."""
    with tempfile.TemporaryDirectory() as out:
        more = [*(["--model", model] if model else []), *(["--labels", labels] if labels else [])]
        server = Server(folder, "--out", out, *more)
        found = {"page": server.times_s()}
        try:
            while True:
                points = np.frombuffer(server.ask("/api/points"), "<f4").reshape(-1, 2)
                if np.isfinite(points).any():
                    found.setdefault("first points", server.times_s())
                told = json.loads(server.ask("/api/collection"))["embedding"]
                if not told["running"]:
                    break
                time.sleep(0.2)
            server.ask("/api/points"), server.ask("/api/column?name=cluster")
            found["all points and clusters"] = server.times_s()
            server.end()
            again = Server(folder, "--out", out, *more)
            again.ask("/api/points")
            found["points at the next start"] = again.times_s()
            again.end()
        finally:
            server.end()
    return found


def make_collection(points: int, folder: Path) -> tuple[Path, Path]:
    """Write a model and a table of embeddings of so many segments of one file; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    card = ModelCard(model=SMALL)
    save_checkpoint(folder / "model", build_network(SMALL), card)
    model = load(folder / "model", "cpu")
    sound = folder.absolute() / "sound.wav"
    rng = np.random.default_rng(0)
    soundfile.write(sound, rng.normal(0, 0.1, 16000 * 60), 16000)
    settings = table_settings(model, [Sound(sound, 0.0, 1.0)], FeatureChoice())
    settings = type(settings)(**{**vars(settings), "files": points})
    size = settings.scene_dimensions
    schema = pa.schema(
        [
            ("path", pa.string()),
            *((name, pa.float64()) for name in ("start_s", "end_s", "duration_s")),
            ("scene", pa.list_(pa.float32(), size)),
            ("kind", pa.string()),
            ("note", pa.string()),
        ]
    ).with_metadata({b"melmask": settings.to_json()})
    centers = rng.normal(0, 3, (50, size)).astype(np.float32)
    with pq.ParquetWriter(folder / "points.parquet", schema, use_dictionary=["path", "kind"]) as writer:
        for start in range(0, points, 50_000):
            count = min(50_000, points - start)
            kinds = rng.integers(50, size=count)
            vectors = centers[kinds] + rng.standard_normal((count, size), np.float32)
            starts = (start + np.arange(count)) * SEGMENT_S % 50
            # No two segments are the same, so that each is a point.
            ends = starts + 1 + (start + np.arange(count)) * 1e-6
            columns = [
                pa.array([str(sound)] * count),
                *map(pa.array, (starts, ends, ends - starts)),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size),
                pa.array([f"kind {kind}" for kind in kinds]),
                pa.nulls(count, pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return folder / "points.parquet", folder / "model"


def query_times(points: int) -> dict[str, float]:
    """Return the median time of each query and the processor time of its first answer, in ms."""
    with tempfile.TemporaryDirectory() as place:
        table, model = make_collection(points, Path(place))
        server = Server(table, "--model", model, "--out", Path(place) / "out")
        start_s, start_cpu_s = server.times_s()
        found = {"start": 1000 * start_s, "start, processor": 1000 * start_cpu_s}
        ids = list(range(0, points, max(1, points // 200)))
        for name, label in (("a", ids[::2]), ("b", ids[1::2])):
            server.ask("/api/labels", {"ids": label, "label": name}, "PUT")
        queries = {
            "points": ("/api/points",),
            "column": ("/api/column?name=kind",),
            "clusters": ("/api/column?name=cluster",),
            "collection": ("/api/collection",),
            "names": ("/api/names?from=0&count=1000",),
            "item": ("/api/items/7",),
            "spectrogram": ("/api/items/{}/spectrogram",),
            "sound": ("/api/items/{}/sound",),
            "reconstruct": ("/api/items/{}/reconstruct", {"hidden": {"ratio": 0.75}}),
            "attention": ("/api/items/{}/attention", {"from": "cls"}),
            "listen": ("/api/items/{}/listen", {"hidden": {"ratio": 0.75}}),
            "search": ("/api/search", {"id": 5, "count": 20}),
            "search a region": ("/api/search", {"id": 5, "start_s": 0.1, "end_s": 0.9}),
            "label 100": ("/api/labels", {"ids": ids[:100], "label": "a"}, "PUT"),
            "probe": ("/api/probe", {}),
            "suggestions": ("/api/suggestions",),
            "duplicates": ("/api/duplicates",),
        }
        try:
            for name, (address, *more) in queries.items():
                times = []
                for number in range(ROUNDS if name != "duplicates" else 1):
                    begin_s, begin_cpu_s = server.times_s()
                    server.ask(address.format(number), *more)
                    end_s, end_cpu_s = server.times_s()
                    times.append((1000 * (end_s - begin_s), 1000 * (end_cpu_s - begin_cpu_s)))
                found[name] = median(clock for clock, _ in times)
                found[f"{name}, processor, first"] = times[0][1]
        finally:
            server.end()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["start", "queries", "collection"])
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--labels", type=Path)
    given = parser.parse_args()
    if given.what == "collection":
        print(*make_collection(int(given.arguments[0]), Path(given.arguments[1])))
        return
    print(f"{date.today()}, {platform.processor() or platform.machine()}")
    if given.what == "start":
        print("| seen | clock (s) | processor (s) |\n|---|--:|--:|")
        for name, (clock_s, cpu_s) in first_sight(Path(given.arguments[0]), given.model, given.labels).items():
            print(f"| {name} | {clock_s:,.1f} | {cpu_s:,.1f} |")
        return
    sizes = [int(size) for size in given.arguments]
    found = [query_times(size) for size in sizes]
    print(f"| query (ms) | {' | '.join(f'{size:,}' for size in sizes)} |\n|---|{'--:|' * len(sizes)}")
    for name in found[0]:
        print(f"| {name} | {' | '.join(f'{one[name]:,.0f}' for one in found)} |")


if __name__ == "__main__":
    main()
