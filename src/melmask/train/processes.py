"""The processes of one run: this one alone, or those that torchrun has started and described in the environment."""

import math
import os
import signal
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
from melmask.system.terminal import note

_PATIENCE = timedelta(hours=1)
"""How long the other processes wait for the first one, which alone runs the hooks."""
# See `_joined`.
_SETTLE_S = 0.25
_TELL_AFTER_S = 10.0
"""Processes that start together have all joined by then, even if the imports of one are slow."""
_PORTS = 65535
_DIGITS = 9
"""More digits than any number of processes has; Python refuses to convert thousands of them."""
_REASON_CHARACTERS = 200
# Without these, torch.distributed would fail with a less helpful error.
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and on which device it computes.

    Every process must call `maximum`, `begin_maximum`, `mean` and `wait`, in the same order: they exchange values.
    """

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
        """Return the greatest of each value over all processes; a NaN among several processes becomes infinity."""
        if self.count == 1:
            return list(values)
        # The back ends differ in the maximum of NaN and a number, so NaN travels as infinity.
        gathered = torch.tensor(values, dtype=torch.float64, device=self.device)
        finite = gathered.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        dist.all_reduce(finite, dist.ReduceOp.MAX)
        return finite.tolist()

    def begin_maximum(self, values: Callable[[], Sequence[float]]) -> Callable[[], Sequence[float]]:
        """Begin to find the greatest of each value over all processes; call the result to wait for the answer."""
        if self.count == 1:
            # A single process asks for its values as late as possible: a signal counts in the step that it arrives in.
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
            # all_reduce works in place, and the caller's tensor stays as it is. Not every back end has a mean.
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.barrier()


def process_count() -> int:
    """Return how many processes the run has; this is known before they join.

    Raises:
        ConfigError: the environment variable is not a positive number.
    """
    return _from_environment("WORLD_SIZE", 1)


def is_first_process() -> bool:
    """Tell whether this is the process of the run that prints; this is known before the processes join.

    Raises:
        ConfigError: the environment variable is not a number below that of the processes.
    """
    return _from_environment("RANK", 0, process_count() - 1) == 0


def _from_environment(name: str, least: int, most: int | None = None) -> int:
    """Return the number in an environment variable, or `least` if it is not set."""
    text = os.environ.get(name, str(least))
    number = int(text) if text.isdecimal() and len(text) <= _DIGITS else -1
    if number < least or (most is not None and number > most):
        expected = f"a number from {least} on" if most is None else f"{least} to {most}" if most else "0"
        raise ConfigError(
            f"the environment has {name}={text!r}, expected {expected}; start the run with torchrun, or unset {name}"
        )
    return number


@contextmanager
def joined_processes(config: HardwareConfig) -> Iterator[Processes]:
    """Join the other processes of the run, if any, and set the number of threads to a fair share of the cores.

    Raises:
        ConfigError: there is no such device, this machine has fewer GPUs than processes, or variables of torchrun are
            missing or wrong.
        TrainingError: another process of the run cannot be reached, or has ended.
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
            f"WORLD_SIZE is {count} but {missing[0]} is not set; start the run with torchrun, or unset WORLD_SIZE"
        )
    rank, _ = _from_environment("RANK", 0, count - 1), _from_environment("MASTER_PORT", 1, _PORTS)
    local_rank, local_count = _from_environment("LOCAL_RANK", 0), _from_environment("LOCAL_WORLD_SIZE", 1)
    # The processes of a machine would slow each other down if each used all cores.
    use_threads(config.threads, sharing=local_count)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"this machine has {torch.cuda.device_count()} GPUs for {local_count} processes; give torchrun "
                f"--nproc-per-node={torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    with _reporting_lost_processes(), _joined(rank, count, device) as control:
        yield Processes(rank, count, device, control)


@contextmanager
def _joined(rank: int, count: int, device: torch.device) -> Iterator[dist.ProcessGroup | None]:
    with _default_signals(), _reporting_a_long_wait(f"process {rank} of this run waits for the other {count - 1}"):
        # NCCL cannot exchange tensors on the CPU, so a gloo group is created too, below.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield dist.new_group(backend="gloo", timeout=_PATIENCE)
    finally:
        # gloo's threads need the GIL to free their last tensors. Destroying the groups holds the GIL and waits for
        # these threads, which is now and then a deadlock. While this thread sleeps, they can take the GIL.
        time.sleep(_SETTLE_S)
        dist.destroy_process_group()


@contextmanager
def _default_signals() -> Iterator[None]:
    """Let signals end the process at once; Python's own handlers would run only when the waiting inside is over."""
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
def _reporting_a_long_wait(what: str) -> Iterator[None]:
    """Report what this process waits for, and where, unless the waiting ends soon."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    line = f"melmask: {what} at {where}; check that they run, with the same address, port and WORLD_SIZE"
    timer = threading.Timer(_TELL_AFTER_S, note, [line])
    # A daemon does not keep a process alive that ends during the waiting.
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _reporting_lost_processes() -> Iterator[None]:
    """Report in one line when another process is lost."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors for a lost connection.
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"another process of this run has ended or cannot be reached ({reason[:_REASON_CHARACTERS]}); read its "
            "messages and start all processes again: the run resumes from its last snapshot"
        ) from error
