"""Compare exact search with approximate indexes: recall, memory, and the time to build and to query.

    pip install usearch faiss-cpu lancedb pyarrow
    python benchmarks/search_index.py --rows 100000 --dimensions 192 --out search-100000-192.json

The vectors are made, from a fixed seed: 2,000 clusters in a space whose directions matter less and less, far from zero,
as the vectors of a model are. Queries are other vectors of the same clusters. Each library has a process of its own, so
that its memory is measured alone. Times are those of the processors, since other programs may compute as well; the wall
times are in the result, too.

recall is the share of the ten exact neighbors that are among the ten that are found; `reranked` finds 100 and compares
them exactly, which is what melmask does. Recall is among the rows that were added before `--minutes` were over.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from melmask.search.nearest import Vectors, mean_of, unit_rows
from melmask.system.memory import current_bytes

SEED, CLUSTERS, QUERIES, NEIGHBORS, CANDIDATES = 20261129, 2000, 100, 10, 100
CHUNK_ROWS = 20_000
MOST_ROWS_FOR_MANY_LISTS = 2_000_000
TIMED_QUERIES_OF_EXACT = 10
LIBRARIES = ("exact", "usearch-f16", "usearch-i8", "faiss-hnsw", "faiss-ivf", "lancedb-hnsw", "lancedb-pq")

Search = Callable[[np.ndarray, int], np.ndarray]


def make_vectors(path: Path, rows: int, dimensions: int) -> None:
    """Write (rows + QUERIES, dimensions) float32; the last QUERIES rows are the queries."""
    rng = np.random.default_rng(SEED)
    spread = (1 + np.arange(dimensions)) ** -0.5
    centers = rng.standard_normal((CLUSTERS, dimensions)) * spread
    # The constant part is nine tenths of a vector, as it is of those of the model in the box.
    constant = rng.standard_normal(dimensions)
    constant *= 2 * np.linalg.norm(spread) / np.linalg.norm(constant) * 1.4
    with path.open("wb") as file:
        for start in range(0, rows + QUERIES, CHUNK_ROWS):
            count = min(CHUNK_ROWS, rows + QUERIES - start)
            own = rng.standard_normal((count, dimensions)) * spread * 0.8
            vectors = constant + centers[rng.integers(CLUSTERS, size=count)] + own
            file.write(vectors.astype("<f4").tobytes())


class Rows:
    """The vectors in a file. They are read and not mapped, so that they do not count as memory."""

    def __init__(self, path: Path, dimensions: int):
        self.path, self.dimensions = path, dimensions
        self.count = path.stat().st_size // 4 // dimensions - QUERIES
        self.mapped = np.memmap(path, "<f4", "r", shape=(self.count + QUERIES, dimensions))
        self.queries = np.array(self.mapped[self.count :])

    def units(self, mean: np.ndarray) -> Any:
        """Yield (start, unit vectors)."""
        for start in range(0, self.count, CHUNK_ROWS):
            count = min(CHUNK_ROWS, self.count - start)
            block = np.fromfile(self.path, "<f4", count * self.dimensions, offset=4 * start * self.dimensions)
            yield start, unit_rows(block.reshape(count, -1), mean)


def with_usearch(rows: Rows, mean: np.ndarray, file: Path, dtype: str, deadline_s: float) -> tuple[Search, int]:
    """Build with usearch, save, and search in the file as it is mapped."""
    from usearch.index import Index

    index = Index(ndim=rows.dimensions, metric="cos", dtype=dtype, connectivity=16, expansion_add=128)
    done = 0
    for start, units in rows.units(mean):
        index.add(np.arange(start, start + len(units)), units)
        done = start + len(units)
        if time.monotonic() > deadline_s:
            break
    index.save(file)
    del index
    opened = Index.restore(file, view=True)
    opened.expansion_search = 128
    return lambda query, count: opened.search(query, count).keys.astype(np.int64), done


def with_faiss(rows: Rows, mean: np.ndarray, file: Path, kind: str, deadline_s: float) -> tuple[Search, int]:
    """Build with FAISS, save, and read the file back."""
    import faiss

    # Beyond some millions, comparing every row with so many lists takes longer than all else.
    lists = int(4 * np.sqrt(rows.count)) if rows.count <= MOST_ROWS_FOR_MANY_LISTS else 1024
    name = "HNSW16,SQfp16" if kind == "hnsw" else f"IVF{lists},SQ8"
    index = faiss.index_factory(rows.dimensions, name, faiss.METRIC_INNER_PRODUCT)
    if kind == "hnsw":
        index.hnsw.efConstruction = 128
    sample = np.concatenate([units for _, units in zip(range(5), (u for _, u in rows.units(mean)), strict=False)])
    index.train(sample)
    done = 0
    for start, units in rows.units(mean):
        index.add(units)
        done = start + len(units)
        if time.monotonic() > deadline_s:
            break
    faiss.write_index(index, str(file))
    del index
    opened = faiss.read_index(str(file))
    if kind == "hnsw":
        opened.hnsw.efSearch = 128
    else:
        opened.nprobe = 32
    return lambda query, count: opened.search(query[None], count)[1][0], done


def with_lancedb(rows: Rows, mean: np.ndarray, file: Path, kind: str) -> tuple[Search, int]:
    """Write a table of LanceDB, and build its index of the kind IVF_HNSW_SQ, or IVF_PQ with a byte for 4 numbers."""
    import lancedb
    import pyarrow as pa

    def batches() -> Any:
        for start, units in rows.units(mean):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(units.ravel()), rows.dimensions)
            yield pa.RecordBatch.from_arrays([pa.array(np.arange(start, start + len(units))), vectors], schema=schema)

    schema = pa.schema({"id": pa.int64(), "vector": pa.list_(pa.float32(), rows.dimensions)})
    table = lancedb.connect(file).create_table("vectors", batches(), schema=schema)
    kinds = lancedb.index
    quantized = kinds.IvfPq(distance_type="cosine", num_sub_vectors=rows.dimensions // 4)
    table.create_index("vector", config=quantized if kind == "pq" else kinds.HnswSq(distance_type="cosine"))

    def search(query: np.ndarray, count: int) -> np.ndarray:
        asked = table.search(query).distance_type("cosine").nprobes(32).limit(count).select(["id", "_distance"])
        return (asked if kind == "pq" else asked.ef(256)).to_arrow()["id"].to_numpy()

    return search, rows.count


def measure(library: str, path: Path, dimensions: int, minutes: float) -> dict[str, Any]:
    """Build, query, and return the numbers of one library."""
    rows = Rows(path, dimensions)
    mean = mean_of(rows.mapped[: rows.count])
    name, _, kind = library.partition("-")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file, before = Path(folder) / "index", current_bytes() or 0
        cpu_s, wall_s, deadline_s = time.process_time(), time.monotonic(), time.monotonic() + 60 * minutes
        if name == "exact":
            exact = Vectors(rows.mapped[: rows.count], mean)
            searching, done = (lambda query, count: exact.nearest(query, count).ids), rows.count
            rows.queries = rows.queries[:TIMED_QUERIES_OF_EXACT]
        elif name == "usearch":
            searching, done = with_usearch(rows, mean, file, kind, deadline_s)
        elif name == "faiss":
            searching, done = with_faiss(rows, mean, file, kind, deadline_s)
        else:
            searching, done = with_lancedb(rows, mean, file, kind)
        build = {"build_cpu_s": time.process_time() - cpu_s, "build_wall_s": time.monotonic() - wall_s}
        memory = (current_bytes() or 0) - before
        size = sum(one.stat().st_size for one in [file, *file.rglob("*")] if one.is_file())
        found = queries(searching, rows, mean, done, as_units=name != "exact")
    return {"library": library, "rows": done, **build, "memory_mb": memory / 1e6, "file_mb": size / 1e6, **found}


def neighbors(rows: Rows, mean: np.ndarray, done: int) -> np.ndarray:
    """Return the exact neighbors of all queries among the first `done` rows, (queries, NEIGHBORS), in one pass."""
    units = unit_rows(rows.queries, mean)
    ids, best = np.zeros((len(units), 0), np.int64), np.zeros((len(units), 0), np.float32)
    for start, block in rows.units(mean):
        if start >= done:
            break
        scores = units @ block[: done - start].T
        numbers = np.broadcast_to(start + np.arange(scores.shape[1]), scores.shape)
        ids, best = np.concatenate([ids, numbers], axis=1), np.concatenate([best, scores], axis=1)
        # A few more are kept, because products are rounded.
        kept = np.argpartition(-best, NEIGHBORS + 10, axis=1)[:, : NEIGHBORS + 10]
        ids, best = (np.take_along_axis(array, kept, axis=1) for array in (ids, best))
    truth = Vectors(rows.mapped, mean, np.ones(len(rows.mapped), np.float32))
    return np.stack([truth.ordered(query, own, NEIGHBORS).ids for query, own in zip(rows.queries, ids, strict=True)])


def queries(search: Search, rows: Rows, mean: np.ndarray, done: int, as_units: bool) -> dict[str, float]:
    """Return recall and times; an index of another library has unit vectors."""
    units = unit_rows(rows.queries, mean)
    truth = Vectors(rows.mapped, mean, np.ones(len(rows.mapped), np.float32))
    plain, reranked, cpu_ms, wall_ms = [], [], [], []
    for query, unit, expected in zip(rows.queries, units, neighbors(rows, mean, done), strict=True):
        plain.append(len(np.intersect1d(search(unit if as_units else query, NEIGHBORS), expected)))
        cpu_s, wall_s = time.process_time(), time.monotonic()
        ids = np.asarray(search(unit if as_units else query, CANDIDATES))
        best = truth.ordered(query, ids[ids >= 0], NEIGHBORS).ids
        cpu_ms.append(1000 * (time.process_time() - cpu_s))
        wall_ms.append(1000 * (time.monotonic() - wall_s))
        reranked.append(len(np.intersect1d(best, expected)))
    return {
        "recall": float(np.mean(plain)) / NEIGHBORS,
        "recall_reranked": float(np.mean(reranked)) / NEIGHBORS,
        "query_cpu_ms": float(np.median(cpu_ms)),
        "query_wall_ms": float(np.median(wall_ms)),
    }


def main() -> None:
    """Make the vectors, and measure each library in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=192)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--minutes", type=float, default=10.0, help="stop adding vectors after so many minutes")
    parser.add_argument("--folder", type=Path, help="where the vectors are made, and kept; else a temporary folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = measure(options.worker, options.folder, options.dimensions, options.minutes)
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        vectors = folder / f"vectors-{options.rows}-{options.dimensions}.f32"
        if not vectors.exists():
            make_vectors(vectors, options.rows, options.dimensions)
        for library in options.libraries:
            part = Path(temporary) / "result.json"
            words = [*sys.argv, "--worker", library, "--folder", str(vectors), "--out", str(part)]
            if subprocess.run([sys.executable, *words], check=False).returncode:
                print(f"{library}: failed")
                continue
            results.append(json.loads(part.read_text(encoding="utf-8")))
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in results[-1].items()})
    machine = {"platform": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
    content = {"rows": options.rows, "dimensions": options.dimensions, "machine": machine, "results": results}
    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
