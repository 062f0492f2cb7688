"""Measure how fast files become embeddings, from sound files to Parquet, with melmask and with the literal baseline.

    python benchmarks/embed.py FOLDER_OR_CSV [--files 64] [--size base] [--rounds 3] [--out RESULT.json]

The weights are random, because speed does not depend on them. The rounds of both sides alternate, and ratios compare
the best rounds. The profile lists the share of the time that each kind of operation takes.
"""

import argparse
import json
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from literal import literal_embed_file
from torch.profiler import ProfilerActivity, profile

from melmask.checkpoint.folder import ModelCard
from melmask.embedding.encoder import untrained
from melmask.embedding.folder import embed_table
from melmask.labels.sources import find_sounds
from melmask.models.presets import preset
from melmask.system.hardware import matmul_peak, use_threads

PRECISIONS = ("fp32", "bf16")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PROFILED_OPERATIONS = 8


def literal_job(encoder, paths, out):
    """Embed one file at a time and write one table; return the scene vectors."""
    scenes = [literal_embed_file(encoder, encoder.front_end, path).mean(axis=0) for path in paths]
    pq.write_table(pa.table({"path": [str(p) for p in paths], "scene": [s.tolist() for s in scenes]}), out)
    return np.array(scenes)


def melmask_job(encoder, paths, out):
    """Embed all files as `melmask embed` does; return the scene vectors and the seconds of sound."""
    report = embed_table(encoder, paths, out)
    return np.array(pq.read_table(out)["scene"].to_pylist()), report.sound_s


def timed(work):
    """Return (result, seconds) of a call."""
    start_s = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start_s


def forward_rate(card, precision) -> float:
    """Return the GFLOP/s of the encoder alone on a batch of full units, counted from its matrix products."""
    encoder = untrained(card, device="cpu", precision=precision)
    batch, config = 32, card.model
    tokens = encoder.model.encoder.grid.patches + int(config.cls_token)
    # A block has 12 width^2 weights, and attention does two products of width with each of the other tokens. Each
    # weight costs one multiplication and one addition.
    per_token = 2 * 12 * config.width**2 + 4 * tokens * config.width
    flops = batch * tokens * config.depth * per_token
    pieces = [torch.randn(config.mels, config.frames) for _ in range(batch)]
    best_s = min(timed(lambda: encoder.embed_segments(pieces))[1] for _ in range(4))
    return flops / best_s / 1e9


def difference_to_literal(encoder, paths) -> float:
    """Return the largest difference of frame vectors in fp32."""
    # Only whole units are compared, because the literal baseline pads the last unit with zeros.
    config = encoder.card.model
    largest = 0.0
    for path in paths:
        ours, theirs = encoder.embed(path).frames, literal_embed_file(encoder, encoder.front_end, path)
        steps = len(ours) * config.patch_frames // config.frames * (config.frames // config.patch_frames)
        largest = max(largest, float(np.abs(ours[:steps] - theirs[:steps]).max()))
    return largest


def profile_of(encoder, paths) -> dict[str, float]:
    """Return the share of the processor's time that each of the slowest operations takes."""
    with tempfile.TemporaryDirectory() as place, profile(activities=[ProfilerActivity.CPU]) as profiler:
        embed_table(encoder, paths, Path(place) / "x.parquet")
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole = sum(times.values())
    top = sorted(times, key=times.get, reverse=True)[:_PROFILED_OPERATIONS]
    return {name: round(times[name] / whole, 3) for name in top}


def cosine(a, b) -> float:
    """Return the lowest cosine similarity between corresponding rows."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def main() -> None:
    """Run both sides, print the result and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--size", default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    use_threads(0)
    paths = find_sounds(options.sources)
    paths = paths[:: max(1, len(paths) // options.files)][: options.files]
    card = ModelCard(model=preset(options.size))
    encoders = {name: untrained(card, device="cpu", precision=name) for name in PRECISIONS}
    seconds = {name: [] for name in ("literal", *PRECISIONS)}
    scenes = {}
    with tempfile.TemporaryDirectory() as place:
        for k in range(options.rounds):
            work = Path(place) / f"literal{k}.parquet"
            scenes["literal"], wall_s = timed(lambda w=work: literal_job(encoders["fp32"], paths, w))
            seconds["literal"].append(wall_s)
            for name, encoder in encoders.items():
                work = Path(place) / f"{name}{k}.parquet"
                (scenes[name], sound_s), wall_s = timed(lambda e=encoder, w=work: melmask_job(e, paths, w))
                seconds[name].append(wall_s)
    best = {name: min(all_s) for name, all_s in seconds.items()}
    cpu = torch.device("cpu")
    peak = {name: matmul_peak(cpu, kind) / 1e9 for name, kind in TYPES.items()}
    rate = {name: forward_rate(card, name) for name in PRECISIONS}
    # The clock of a processor varies, so the peak is the better one of before and after the encoder's measurement.
    peak = {name: max(before, matmul_peak(cpu, TYPES[name]) / 1e9) for name, before in peak.items()}
    result = {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "command": f"python benchmarks/embed.py ... --files {len(paths)} --size {options.size}",
        "sound_s": round(sound_s, 1),
        "wall_s": {name: [round(s, 2) for s in all_s] for name, all_s in seconds.items()},
        "times_faster_than_literal": {name: round(best["literal"] / best[name], 2) for name in PRECISIONS},
        "times_real_time": {name: round(sound_s / s, 1) for name, s in best.items()},
        "least_cosine_to_fp32": {name: round(cosine(scenes["fp32"], scenes[name]), 6) for name in PRECISIONS},
        "matmul_peak_gflops": {name: round(rate) for name, rate in peak.items()},
        "encoder_gflops": {name: round(gflops) for name, gflops in rate.items()},
        "encoder_share_of_peak": {name: round(rate[name] / peak[name], 3) for name in PRECISIONS},
        "largest_difference_to_literal": difference_to_literal(encoders["fp32"], paths[:8]),
        "share_of_operations": {name: profile_of(encoder, paths) for name, encoder in encoders.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
