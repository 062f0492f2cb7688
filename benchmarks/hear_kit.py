"""Compare scores and time with the original HEAR kit: both sides use the same vectors and several seeds.

    python benchmarks/hear_kit.py kit  EMBEDDINGS KIT.json  --seeds 0 1 2     # where heareval 2021.1.3 is installed
    python benchmarks/hear_kit.py ours EMBEDDINGS OURS.json --seeds 0 1 2
    python benchmarks/hear_kit.py table KIT.json OURS.json

EMBEDDINGS is what `python -m heareval.embeddings.runner MODULE --tasks-dir TASKS` wrote: a folder for each task. The
kit always uses seed 42. Here Python's generator keeps that seed, so that the grid is the same, and PyTorch's generator
gets each of the seeds. Each side is timed from vectors on disk to test scores. The kit is changed only where its age
makes that necessary.
"""

import argparse
import functools
import json
import logging
import math
import pickle
import shutil
import statistics
import tempfile
import time
from pathlib import Path


def run_kit(folder: Path, seeds: list[int], grid_points: int) -> dict:
    """Return the scores and the seconds of heareval on one task."""
    import heareval.predictions.task_predictions as kit
    import torch
    from pytorch_lightning.loops import FitLoop

    # heareval reads checkpoints that it wrote itself, which newer releases of PyTorch refuse by default. It also sets
    # an epoch that Lightning 1.9 made read-only (issue 432).
    torch.load = functools.partial(torch.load, weights_only=False)
    FitLoop.current_epoch = property(
        lambda self: self.epoch_progress.current.completed,
        lambda self, epoch: setattr(self.epoch_progress.current, "completed", epoch),
    )
    seed_everything, found = kit.seed_everything, []
    for seed in seeds:

        def seeded(number: int, workers: bool, seed: int = seed) -> None:
            seed_everything(number, workers=workers)
            torch.manual_seed(seed)

        kit.seed_everything = seeded
        dims = json.loads(next(folder.glob("*.embedding-dimensions.json")).read_text())[1]
        start = time.perf_counter()
        kit.task_predictions(folder, dims, grid_points, None, True, True, "default", logging.getLogger("kit"))
        seconds = time.perf_counter() - start
        scores = json.loads((folder / "test.predicted-scores.json").read_text())
        splits = [v for v in scores.values() if isinstance(v, dict) and "validation_score" in v]
        names = [k.removeprefix("test_") for k in splits[0] if k.startswith("test_") and k not in _NOT_SCORES]
        found.append({"seconds": seconds, **{n: statistics.fmean(s[f"test_{n}"] for s in splits) for n in names}})
    return {"splits": len(splits), "runs": found}


_NOT_SCORES = ("test_loss", "test_score")


def run_ours(folder: Path, seeds: list[int], grid_points: int, protocol: str, precision: str) -> dict:
    """Return the scores and the seconds of melmask on the kit's files."""
    import torch

    from melmask.evaluate.evaluation import head_precision
    from melmask.evaluate.protocols import grid_of, run_task
    from melmask.evaluate.rows import TaskRows
    from melmask.evaluate.tasks import read_task

    task, found = read_task(folder), []
    for seed in seeds:
        start = time.perf_counter()
        device = torch.device("cpu")
        data = TaskRows(task, {split: _kit_embeddings(folder, task, split) for split in task.splits}, device)
        grid = grid_of(task, grid_points, head_precision(precision, device))
        # A score that is not finite is None there.
        results = [
            {name: math.nan if score is None else score for name, score in split.scores.items()}
            for split, _ in run_task(data, protocol, grid, seed)
        ]
        seconds = time.perf_counter() - start
        found.append(
            {"seconds": seconds, **{name: statistics.fmean(scores[name] for scores in results) for name in results[0]}}
        )
    return {"splits": len(task.data_splits), "runs": found}


def _kit_embeddings(folder: Path, task, split: str):
    """Read a split's vectors and labels as the kit stores them."""
    import numpy as np

    from melmask.evaluate.embeddings import SplitEmbeddings

    shape = tuple(json.loads((folder / f"{split}.embedding-dimensions.json").read_text()))
    vectors = np.array(np.memmap(folder / f"{split}.embeddings.npy", dtype=np.float32, mode="r", shape=shape))
    labels = pickle.loads((folder / f"{split}.target-labels.pkl").read_bytes())
    targets = np.zeros((shape[0], len(task.labels)), dtype=bool)
    for row, names in enumerate(labels):
        targets[row, [task.labels.index(str(name)) for name in names]] = True
    stamps = folder / f"{split}.filename-timestamps.json"
    if not stamps.exists():
        return SplitEmbeddings(
            [str(row) for row in range(shape[0])], vectors, targets, np.arange(shape[0]), np.zeros(0)
        )
    pairs = json.loads(stamps.read_text())
    names = [Path(path).name for path, _ in pairs]
    files = list(dict.fromkeys(names))
    clip_of = np.array([files.index(name) for name in names])
    return SplitEmbeddings(files, vectors, targets, clip_of, np.array([time_ms for _, time_ms in pairs]))


def table(kit: dict, ours: dict) -> str:
    """Return a Markdown table of means and standard deviations over the seeds, and of the ratio of the times."""
    lines = ["| task | metric | kit | ours | difference / pooled std | kit s | ours s | ratio |", "|" + "---|" * 8]
    for task in kit:
        a, b = kit[task]["runs"], ours[task]["runs"]
        times = [statistics.fmean(run["seconds"] for run in runs) for runs in (a, b)]
        # Such a part of an event metric repeats the metric itself.
        shown = [name for name in a[0] if name != "seconds" and not name.endswith(("_f_measure", "_error_rate"))]
        for metric in shown:
            x, y = [run[metric] for run in a], [run[metric] for run in b]
            # d' is infinite where a class is recognized without an error, so it has no spread to compare.
            sx, sy = (statistics.stdev(v) if len(v) > 1 and all(map(math.isfinite, v)) else math.nan for v in (x, y))
            pooled = ((sx**2 + sy**2) / 2) ** 0.5
            gap = statistics.fmean(y) - statistics.fmean(x)
            ratio = f"{gap:+.4f} / {pooled:.4f}"
            cells = [f"{statistics.fmean(x):.4f} ± {sx:.4f}", f"{statistics.fmean(y):.4f} ± {sy:.4f}", ratio]
            cells += [f"{times[0]:.1f}", f"{times[1]:.1f}", f"{times[0] / times[1]:.1f}"]
            lines.append(f"| {task} | {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run one side, or print the table of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("kit", "ours", "table"))
    parser.add_argument("paths", type=Path, nargs=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grid-points", type=int, default=8)
    parser.add_argument("--protocol", default="hear")
    parser.add_argument("--head-precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--task", nargs="+", default=[])
    options = parser.parse_args()
    if options.side == "table":
        print(table(*(json.loads(path.read_text()) for path in options.paths)))
        return
    source, out = options.paths
    ours = (options.grid_points, options.protocol, options.head_precision)
    found = json.loads(out.read_text()) if out.exists() else {}
    for folder in sorted(path.parent for path in source.glob("*/task_metadata.json")):
        if options.task and folder.name not in options.task:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            # The kit writes its results beside the vectors, so it works on a copy.
            copy = Path(shutil.copytree(folder, Path(scratch) / folder.name))
            if options.side == "kit":
                found[folder.name] = run_kit(copy, options.seeds, options.grid_points)
            else:
                found[folder.name] = run_ours(copy, options.seeds, *ours)
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(folder.name, json.dumps(found[folder.name]["runs"]), flush=True)


if __name__ == "__main__":
    main()
