"""Writes tests/reference/files-0.1.0: what release 0.1.0 (commit 09a8e4d) leaves on disk, which must stay readable.

    git worktree add /tmp/melmask-0.1.0 09a8e4d
    PYTHONPATH=/tmp/melmask-0.1.0/src python tests/reference/make_files_0_1_0.py

The sounds are synthesized and thrown away, so paths inside the files lead nowhere.
"""

import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from melmask.cli import main

OUT = Path(__file__).parent / "files-0.1.0"
RATE_HZ = 16000
TOY = (
    *("model.width=16", "model.depth=1", "model.heads=2", "model.frames=64", "model.decoder_width=8"),
    *("model.decoder_depth=1", "model.decoder_heads=2", "data.batch_size=4", "optimizer.steps=6"),
    *("optimizer.warmup_steps=2", "run.log_interval_steps=2", "run.picture_interval_steps=3", "hardware.device=cpu"),
    *("hardware.precision=fp32", "hardware.threads=1", "run.keep_checkpoints=1", "optimizer.name=adamw"),
)


def write_sounds(folder: Path) -> None:
    """Twelve half-second tones of two labels, and their table."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        label, pitch_hz = ("low", 200) if number % 2 else ("high", 1500)
        time_s = np.arange(RATE_HZ // 2) / RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * (pitch_hz + 10 * number) * time_s) + 0.01 * rng.standard_normal(len(time_s))
        soundfile.write(folder / f"{number:02d}.wav", tone, RATE_HZ)
        rows.append((f"{number:02d}.wav", label, ("train", "train", "train", "train", "valid", "test")[number // 2]))
    (folder / "broken.wav").write_text("no sound")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])


def run(*words: str) -> None:
    """One command, which must succeed."""
    status = main(list(words))
    assert status == 0, (words, status)


def make() -> None:
    """All the files, in the order in which a user would make them."""
    write_sounds(Path("sounds"))
    run("prepare", "sounds", "--out", "store")
    run("pretrain", "store", "--recipe", "tiny", "--out", "run", *TOY)
    run("embed", "sounds", "--model", "run", "--out", "embeddings.parquet", "--pooling", "mean", "--scene", "mean+std")
    run("embed", "sounds", "--model", "run", "--out", "frames.npz", "--frames", "--hop-ms", "80", "--layer", "1")
    run("finetune", "run", "sounds/labels.csv", "--out", "classifier", "epochs=2")
    run("make-task", "sounds/labels.csv", "--out", "tasks", "--name", "tones")
    scored = ("--protocol", "linear", "knn", "hear", "--grid-points", "1", "--head-precision", "fp32")
    run("evaluate", "--tasks", "tasks", "--out", "results", *scored, "--model", "run", "logmel")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        make()
        for name in ("sounds", "tasks"):
            shutil.rmtree(name)
        shutil.rmtree("results/embeddings")
        for made in (*Path("run").rglob("*.png"), Path("results/report.html"), Path("run/index.html")):
            made.unlink()
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(place, OUT)
        os.chdir("/")
    sys.stdout.write(f"{OUT}\n")
