"""Several processes train as one does: two of gloo on this CPU, started by torchrun, against one.

Sums are taken in another order, so weights agree to rounding: 1e-5 after six steps of float32. PyTorch's Muon rounds to
bfloat16 what it makes orthogonal, so by it they agree to 5e-4 only, half of the learning rate.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from melmask.config_text import to_dict
from melmask.system.files import claimed
from melmask.train.pretrain import pretrain
from melmask.train.record import read_metrics
from melmask.train.snapshot import SNAPSHOT, checkpoints_of

TOLERANCE = 1e-5
# Measured 1.6e-4; steps from half of each batch alone would end 7e-3 away.
MUON_TOLERANCE = 5e-4

_TRAIN = """
import json, pathlib, sys
from melmask.config import PretrainConfig
from melmask.corpus.store import Store
from melmask.config_text import from_dict
from melmask.train.pretrain import pretrain
store, run = (pathlib.Path(name) for name in sys.argv[1:3])
config = from_dict(PretrainConfig, json.loads(sys.argv[3]))
outcome = pretrain(Store(store), run, config, [lambda state: {"seen": state.step}])
# One write, whole even where Python does not buffer: both processes have the same pipe.
sys.stdout.write(f"ended at {outcome.step} by {outcome.stopped_by}\\n")
"""


def torchrun(processes, store, run, config):
    """A started torchrun of `pretrain`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--no-python"]
    command += [sys.executable, "-c", _TRAIN, str(store.folder), str(run), json.dumps(to_dict(config))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(happened):
    deadline_s = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline_s:
        time.sleep(0.1)


def finished(job):
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 0, output
    return output


def state_of(run):
    return torch.load(run / SNAPSHOT, weights_only=True)


def assert_same_state(ours, theirs, tolerance=TOLERANCE):
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=0, atol=tolerance)
    if "averaged" in theirs:
        for name, tensor in theirs["averaged"].items():
            torch.testing.assert_close(ours["averaged"][name], tensor, rtol=0, atol=tolerance)
    assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    for number, moments in theirs["optimizer"]["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(ours["optimizer"]["state"][number][name], value, rtol=0, atol=tolerance)


SETTINGS = ("masking.masks_per_crop=2", "optimizer.ema_decay=0.5", "optimizer.max_gradient_norm=0.5")


@pytest.fixture(scope="module")
def alone(store, configure, tmp_path_factory):
    """A run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    pretrain(store, run, configure(*SETTINGS))
    return run


FSDP = "hardware.sharding=fsdp"


@pytest.mark.parametrize(
    "hardware",
    [
        (),
        ("hardware.micro_batch=3",),
        ("hardware.threads=2", "hardware.shares=2"),
        (FSDP,),
        (FSDP, "hardware.micro_batch=2"),
    ],
    ids=["ddp", "ddp_in_parts", "in_shares", "fsdp", "fsdp_in_parts"],
)
def test_two_processes_equal_one(alone, store, configure, tmp_path, hardware):
    output = finished(torchrun(2, store, tmp_path, configure(*SETTINGS, *hardware, "run.picture_interval_steps=6")))
    assert output.count("ended at 6 by 0") == 2
    assert_same_state(state_of(tmp_path), state_of(alone))
    ours, theirs = read_metrics(tmp_path), read_metrics(alone)
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=TOLERANCE)
    assert ours[-1]["seen"] == 6, "hooks are called once, in the first process"
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-0000006"]


M2D = ("objective.kind=m2d", "m2d.first_decay=0.5", "m2d.last_decay=0.9", "m2d.decay_steps=4")


@pytest.mark.parametrize(
    ("objective", "hardware"),
    [
        (M2D, ("hardware.micro_batch=3", "hardware.activation_checkpointing=true")),
        ((*M2D, "m2d.reconstruction_weight=1"), (FSDP,)),
        (("objective.kind=random_projection",), ("hardware.threads=2", "hardware.shares=2")),
    ],
    ids=["m2d_ddp_in_parts", "mixture_fsdp", "codes_in_shares"],
)
def test_two_processes_equal_one_with_other_objectives(store, configure, tmp_path, objective, hardware):
    pretrain(store, tmp_path / "alone", configure(*SETTINGS, *objective))
    finished(torchrun(2, store, tmp_path / "two", configure(*SETTINGS, *objective, *hardware)))
    assert_same_state(*(state_of(tmp_path / name) for name in ("two", "alone")))


def test_two_processes_equal_one_with_muon(store, configure, tmp_path):
    config = configure("optimizer.name=muon", "optimizer.learning_rate=1e-3")
    pretrain(store, tmp_path / "alone", config)
    finished(torchrun(2, store, tmp_path / "two", config))
    ours, theirs = (state_of(tmp_path / name)["model"] for name in ("two", "alone"))
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=0, atol=MUON_TOLERANCE)
    losses = ([row["loss"] for row in read_metrics(tmp_path / name)] for name in ("two", "alone"))
    assert next(losses) == pytest.approx(next(losses), abs=TOLERANCE)


def test_a_run_goes_on_with_another_number_of_processes(alone, store, configure, tmp_path):
    finished(torchrun(2, store, tmp_path, configure(*SETTINGS, FSDP, "run.max_minutes=1e-9")))
    assert state_of(tmp_path)["step"] == 1
    assert pretrain(store, tmp_path, configure(*SETTINGS, "run.max_minutes=1e-9")).step == 2
    finished(torchrun(2, store, tmp_path, configure(*SETTINGS)))
    assert_same_state(state_of(tmp_path), state_of(alone))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_stops_them_with_one_snapshot(number, store, configure, tmp_path):
    # A step lasts long enough for torchrun's signal to come before its end, and the next log is far away.
    settings = ("data.batch_size=1024", "optimizer.steps=100000", "run.log_interval_steps=100000")
    job = torchrun(2, store, tmp_path, configure(*settings, "run.snapshot_interval_s=1"))
    try:
        until((tmp_path / SNAPSHOT).exists)
        # A scheduler signals each of them, and torchrun passes its own signal on.
        workers = [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
        assert len(workers) == 2
        for pid in (*workers, job.pid):
            os.kill(pid, number)
        job.communicate(timeout=60)
    finally:
        job.kill()
    stopped = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (stopped["event"], stopped["text"]) == ("stop", f"signal {int(number)}")
    state = state_of(tmp_path)
    assert stopped["step"] == state["step"]
    assert checkpoints_of(tmp_path)[-1].name == f"step-{state['step']:07d}"


def test_one_killed_process_ends_the_others_with_one_line_and_leaves_a_snapshot(store, configure, tmp_path):
    settings = (*SETTINGS, "optimizer.steps=100000", "run.snapshot_interval_s=1", "run.log_interval_steps=100000")
    # Without torchrun, which would end the others itself.
    environment = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-c",
        _TRAIN,
        str(store.folder),
        str(tmp_path),
        json.dumps(to_dict(configure(*settings))),
    ]
    jobs = [
        subprocess.Popen(
            command,
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        until((tmp_path / SNAPSHOT).exists)
        jobs[1].kill()
        output = jobs[0].communicate(timeout=60)[0]
    finally:
        for job in jobs:
            job.kill()
            job.communicate()
    assert "TrainingError: another process of this run has ended or cannot be reached" in output.splitlines()[-1]
    assert state_of(tmp_path)["step"] > 0


def test_a_process_that_waits_for_another_one_says_so_and_can_be_ended(store, configure, tmp_path):
    port = str(free_port())
    environment = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # The line comes after ten seconds, too long for a test.
    code = "import melmask.train.processes as processes; processes._TELL_AFTER_S = 0.1\n" + _TRAIN
    job = subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder), str(tmp_path), json.dumps(to_dict(configure()))],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stderr is not None
        line = job.stderr.readline()
        job.terminate()
        job.communicate(timeout=30)
    finally:
        job.kill()
    assert f"process 0 of this run waits for the other 1 at 127.0.0.1:{port}" in line
    assert job.returncode == -signal.SIGTERM


def test_a_run_that_another_job_has_ends_every_process_at_once(store, configure, tmp_path):
    with claimed(tmp_path):
        job = torchrun(2, store, tmp_path, configure())
        output = job.communicate(timeout=60)[0]
    assert job.returncode != 0
    assert "another melmask is writing to" in output


def test_a_batch_that_cannot_be_shared_is_refused(store, configure, tmp_path):
    job = torchrun(2, store, tmp_path, configure("data.batch_size=7"))
    output = job.communicate(timeout=120)[0]
    assert job.returncode != 0
    assert "data.batch_size is 7, which 2 processes cannot share equally; give a multiple of 2" in output
