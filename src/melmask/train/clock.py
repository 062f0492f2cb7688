"""Training time over all resumptions, and the rates made of it."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

from melmask.system.memory import peak_bytes

T = TypeVar("T")


class Rates(NamedTuple):
    """What a clock says of a log interval; `record.MetricsRow` describes each number."""

    crops_per_s: float
    data_wait: float
    seconds: float
    left_s: float


class Clock:
    """Counts seconds of a run; a log interval is from one call of `rates` to the next."""

    def __init__(self, step: int, seconds_before: float):
        # A monotonic clock: the time of day may jump.
        self._start_s = self._saved_s = self._logged_s = time.monotonic()
        self._before_s = seconds_before
        self._logged_step = step
        self._waited_s = 0.0
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
        """Tell whether it is time for the next page, of which there is one each `interval_s` at most."""
        due = self.seconds_here() - self._page_s >= interval_s
        if due:
            self._page_s = self.seconds_here()
        return due

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same items; the time until each comes counts as waiting for data."""
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
        """Count what is done in here, such as looking and saving, as the run's time but not in its throughput."""
        start_s = time.monotonic()
        yield
        # Moving the interval's beginning by as much leaves this time out of its rates.
        self._logged_s += time.monotonic() - start_s

    def restarted(self, step: int) -> None:
        """Begin a new interval at `step`: what was measured since the last log does not count."""
        self._logged_s, self._logged_step, self._waited_s = time.monotonic(), step, 0.0

    def rates(self, step: int, steps: int, crops_per_step: int) -> Rates:
        """Measure from the last call to now, at `step` of `steps`."""
        now_s = time.monotonic()
        interval_s = now_s - self._logged_s
        step_s = interval_s / (step - self._logged_step)
        wait = self._waited_s / interval_s
        self.restarted(step)
        return Rates(crops_per_step / step_s, wait, self.seconds(), (steps - step) * step_s)


def memory_mb(device: torch.device) -> float:
    """Return the most memory that was in use at once: of the GPU, or of this process (0 where that is unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return (peak_bytes() or 0) / 2**20
