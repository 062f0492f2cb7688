"""The processes of one run: this one alone, or those that torchrun has started (its environment variables say so)."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from melmask.config import HardwareConfig
from melmask.errors import ConfigError, TrainingError
from melmask.system.hardware import pick_device, use_threads

_PATIENCE = timedelta(hours=1)
"""How long the others wait for the first one, which alone runs the hooks."""
_SETTLE_S = 0.25
_TELL_AFTER_S = 10.0
"""Processes that are started together are all there by then, even if the imports of one are slow."""
_PORTS = 65535
_DIGITS = 9
_REASON_CHARACTERS = 200
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and where it computes. Each method that compares must be called by all."""

    rank: int
    count: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """With several processes: the group in which they agree on the CPU while the device computes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def maximum(self, *values: float) -> list[float]:
        """Return the greatest of each value over all processes; of several, infinity where any has NaN."""
        if self.count == 1:
            return list(values)
        # The back ends do not agree on the maximum of NaN, so it travels as infinity.
        gathered = torch.tensor(values, dtype=torch.float64, device=self.device)
        finite = gathered.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        dist.all_reduce(finite, dist.ReduceOp.MAX)
        return finite.tolist()

    def begin_maximum(self, values: Callable[[], Sequence[float]]) -> Callable[[], Sequence[float]]:
        """Begin to find the greatest of each value over all processes; call what is returned to wait for the answer.

        A single process looks at its values only then.
        """
        if self.count == 1:
            return values
        own = torch.tensor(values(), dtype=torch.float64)
        work = dist.all_reduce(own, dist.ReduceOp.MAX, group=self.control, async_op=True)

        def answer() -> list[float]:
            assert work is not None
            work.wait()
            return own.tolist()

        return answer

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of each number over all processes."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def process_count() -> int:
    """Return how many processes the run has; this is known before they are joined.

    Raises:
        ConfigError: the environment has no such number.
    """
    return _from_environment("WORLD_SIZE", 1)


def is_first_process() -> bool:
    """Tell whether this is the process of a run that prints; this is known before the others are joined.

    Raises:
        ConfigError: the environment has no such number, or more than it has processes.
    """
    return _from_environment("RANK", 0, process_count() - 1) == 0


def _from_environment(name: str, least: int, most: int | None = None) -> int:
    """Return the number in this variable, or the least one if it is not set."""
    text = os.environ.get(name, str(least))
    # Python refuses to read a number of thousands of digits.
    number = int(text) if text.isdecimal() and len(text) <= _DIGITS else -1
    if number < least or (most is not None and number > most):
        expected = f"a number from {least} on" if most is None else f"{least} to {most}" if most else "0"
        raise ConfigError(f"the environment has {name}={text!r}, expected {expected}; start with torchrun, or unset it")
    return number


@contextmanager
def joined_processes(config: HardwareConfig) -> Iterator[Processes]:
    """Join the other processes of the run, if any, and set the number of threads to a fair share of the cores.

    Raises:
        ConfigError: no such device, fewer GPUs than processes on this machine, or not torchrun's environment.
        TrainingError: another process of the run cannot be reached, or has gone.
    """
    count = process_count()
    device = pick_device(config.device)
    if count == 1:
        use_threads(config.threads)
        yield Processes(0, 1, device)
        return
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {count} but {missing[0]} is not set; start with torchrun, or unset WORLD_SIZE"
        )
    rank, _ = _from_environment("RANK", 0, count - 1), _from_environment("MASTER_PORT", 1, _PORTS)
    local_rank, local_count = _from_environment("LOCAL_RANK", 0), _from_environment("LOCAL_WORLD_SIZE", 1)
    # Each process taking all cores would make all of them slow.
    use_threads(config.threads, sharing=local_count)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"{local_count} processes on a machine with {torch.cuda.device_count()} GPUs; give torchrun "
                f"--nproc-per-node={torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    with _losses_told(), _joined(rank, count, device) as control:
        yield Processes(rank, count, device, control)


@contextmanager
def _joined(rank: int, count: int, device: torch.device) -> Iterator[dist.ProcessGroup | None]:
    with _mortal(), _told_if_long(f"process {rank} of this run waits for the other {count - 1}"):
        # NCCL cannot exchange tensors on the CPU: `control` below is a gloo group besides it.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield dist.new_group(backend="gloo", timeout=_PATIENCE)
    finally:
        # gloo's threads let go of the last tensors under the GIL, which destroying the groups holds while it waits for
        # these threads: now and then that would never end. Asleep, this thread leaves the GIL to them.
        time.sleep(_SETTLE_S)
        dist.destroy_process_group()


@contextmanager
def _mortal() -> Iterator[None]:
    """Let signals end the process at once: a handler of Python's would run only after what is waited for has come."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _told_if_long(what: str) -> Iterator[None]:
    """Report what is waited for, and where, unless it comes soon."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    line = f"melmask: {what} at {where}; are they started, with the same address, port and WORLD_SIZE?\n"
    timer = threading.Timer(_TELL_AFTER_S, sys.stderr.write, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _losses_told() -> Iterator[None]:
    """Report in one line when another process is lost."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors for a lost connection.
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"another process of this run has gone or cannot be reached ({reason[:_REASON_CHARACTERS]}); see what it "
            "said, and start them all again: the run goes on from its last snapshot"
        ) from error
