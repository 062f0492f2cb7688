"""Training time over all calls of `pretrain`, the rates that follow from it, and the memory in use."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

from melmask.system.memory import peak_bytes

T = TypeVar("T")


class Rates(NamedTuple):
    """What a clock measured in a log interval; `record.MetricsRow` describes each number."""

    crops_per_s: float
    data_wait: float
    seconds: float
    left_s: float


class Clock:
    """Counts the seconds of a run; a log interval lasts from one call of `rates` to the next."""

    def __init__(self, step: int, seconds_before: float):
        # The time of day may jump, so a monotonic clock is read.
        self._start_s = self._saved_s = self._logged_s = time.monotonic()
        self._before_s = seconds_before
        self._logged_step = step
        self._waited_s = 0.0
        # The first page is due one interval after the start.
        self._page_s = 0.0

    def seconds_here(self) -> float:
        """Return the time since this process began to train."""
        return time.monotonic() - self._start_s

    def seconds(self) -> float:
        """Return the training time of the whole run."""
        return self._before_s + self.seconds_here()

    def seconds_since_save(self) -> float:
        """Return the time since the last snapshot."""
        return time.monotonic() - self._saved_s

    def saved(self) -> None:
        """Note that a snapshot has just been written."""
        self._saved_s = time.monotonic()

    def page_due(self, interval_s: float) -> bool:
        """Tell whether the next page is due: at most one is written in each `interval_s`."""
        due = self.seconds_here() - self._page_s >= interval_s
        if due:
            self._page_s = self.seconds_here()
        return due

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same items; count the time until each of them comes as waiting for data."""
        source = iter(batches)
        while True:
            start_s = time.monotonic()
            try:
                item = next(source)
            except StopIteration:
                return
            self._waited_s += time.monotonic() - start_s
            yield item

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Leave the time inside, such as that of saving, out of the throughput, but not out of the run's time."""
        start_s = time.monotonic()
        yield
        # Moving the interval's beginning by as much leaves this time out of its rates.
        self._logged_s += time.monotonic() - start_s

    def restarted(self, step: int) -> None:
        """Begin a new interval at `step`; what was measured since the last log does not count."""
        self._logged_s, self._logged_step, self._waited_s = time.monotonic(), step, 0.0

    def rates(self, step: int, steps: int, crops_per_step: int) -> Rates:
        """Return the rates since the last call, at `step` of `steps`."""
        now_s = time.monotonic()
        interval_s = now_s - self._logged_s
        # The interval's own speed gives the time left: it follows what the machine does now.
        step_s = interval_s / (step - self._logged_step)
        wait = self._waited_s / interval_s
        self.restarted(step)
        return Rates(crops_per_step / step_s, wait, self.seconds(), (steps - step) * step_s)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was in use at once: on the GPU, or by this process (0 where that is unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes() or 0
