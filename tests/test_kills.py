"""A run that is killed at any write, and resumed, has all that an uninterrupted one has, and nothing else."""

import csv
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from melmask.config_text import with_overrides
from melmask.downstream.monitor import monitors
from melmask.figures import training
from melmask.system.files import atomic_write
from melmask.train import log, record
from melmask.train import pretrain as pretrain_module
from melmask.train.pretrain import pretrain

RATE_HZ = 16000


class Killed(BaseException):
    """The process is gone; nothing that it would still do happens."""


class Kills:
    """Counts what is written, and kills before write number `at`; while `dead`, nothing is written."""

    def __init__(self, monkeypatch):
        self.at, self.dead = 0, False
        for owner, name in (
            *((Path, name) for name in ("replace", "rename", "touch", "unlink")),
            *((os, "fsync"), (shutil, "rmtree"), (record.MetricsFile, "add"), (log, "add_event")),
        ):
            # What unlink would remove is seen when the next write is the one that does not happen.
            monkeypatch.setattr(owner, name, self._killing(getattr(owner, name), counts=name != "unlink"))

    def _killing(self, write, counts):
        def killing(*arguments, **keywords):
            if self.dead:
                return None
            self.at -= counts
            if self.at == 0 and counts:
                self.dead = True
                raise Killed
            return write(*arguments, **keywords)

        return killing


@pytest.fixture
def job(store, configure, tmp_path, sound, monkeypatch):
    """run -> train it, with pictures and scores at each step; and the kills."""
    rows = []
    for number in range(10):
        soundfile.write(tmp_path / f"{number}.wav", sound(0.3, number % 2), RATE_HZ)
        rows.append((f"{number}.wav", "xy"[number % 2], ("train", "valid")[number // 5]))
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])

    def draw(path, encoder, logmels, titles, *, masking):
        # Drawing takes most of the time, and does not matter here.
        with atomic_write(path) as file:
            file.write(encoder.embed(np.ones(RATE_HZ, np.float32), RATE_HZ).scene.tobytes())

    monkeypatch.setattr(training, "save_reconstruction_picture", draw)
    monkeypatch.setattr(pretrain_module, "matmul_peak", lambda *_: 1e9)
    # TensorBoard's library starts a file of its own each time.
    monkeypatch.setattr(pretrain_module, "open_boards", lambda *_: [])
    config = configure(
        *("run.picture_interval_steps=1", "run.snapshot_interval_s=0", "run.keep_checkpoints=1"),
        "run.log_interval_steps=1",
    )
    hooks = monitors(store, config, tmp_path / "labels.csv")

    def show(run):
        with atomic_write(run / "index.html", "w") as file:
            file.write(str(run.name))

    return lambda run, *more, steps=2: pretrain(
        store, run, with_overrides(config, [f"optimizer.steps={steps}"]), [*hooks, *more], show
    )


def contents(run):
    """All that a run has: its files, pictures, numbers and weights."""
    names = {str(path.relative_to(run)) for path in run.rglob("*")} - {".lock"}
    pictures = {path.name: path.read_bytes() for path in (run / "pictures").iterdir()}
    kept = ("step", "loss", "feature_rank", "knn_accuracy")
    numbers = [{name: row.get(name) for name in kept} for row in record.read_metrics(run)]
    (checkpoint,) = (run / "checkpoints").iterdir()
    return names, pictures, numbers, load_file(checkpoint / "model.safetensors")


def assert_same(run, whole):
    (names, pictures, numbers, weights), expected = contents(run), contents(whole)
    assert (names, pictures, numbers) == expected[:3]
    assert all(torch.equal(weights[name], expected[3][name]) for name in expected[3])
    assert record.read_events(run)[-1].kind == "done"


def test_a_kill_at_any_write_loses_no_picture_and_no_score_and_leaves_nothing_behind(job, tmp_path, monkeypatch):
    job(tmp_path / "whole")
    assert all(row["knn_accuracy"] is not None for row in contents(tmp_path / "whole")[2])
    kills, number = Kills(monkeypatch), 0
    while True:
        number += 1
        kills.at, kills.dead = number, False
        run = tmp_path / f"run-{number}"
        try:
            job(run)
        except Killed:
            kills.at, kills.dead = 0, False
            # The next process has another number.
            monkeypatch.setattr(os, "getpid", lambda number=number: 1_000_000 + number)
            job(run)
            assert_same(run, tmp_path / "whole")
            shutil.rmtree(run)
        else:
            break
    # Each step writes a picture, numbers, a snapshot and a checkpoint.
    assert number > 30


def test_a_run_stopped_by_a_signal_looks_when_it_resumes(job, tmp_path):
    job(tmp_path / "whole", steps=3)

    def stop_at_two(state):
        # The signal comes before step 2 begins, and is seen after it.
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = job(tmp_path / "run", stop_at_two, steps=3)
    assert (stopped.step, stopped.stopped_by) == (2, signal.SIGTERM)
    assert not (tmp_path / "run" / "pictures" / "step-0000002.png").exists()
    job(tmp_path / "run", steps=3)
    assert_same(tmp_path / "run", tmp_path / "whole")
