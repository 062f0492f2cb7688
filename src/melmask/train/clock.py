"""Training time over all resumptions, and the rates made of it."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


class Clock:
    """Counts seconds of a run; a log interval is from one call of `rates` to the next."""

    def __init__(self, step: int, seconds_before: float):
        self._start_s = self._saved_s = self._logged_s = time.monotonic()
        self._before_s = seconds_before
        self._logged_step = step
        self._waited_s = 0.0

    def seconds_here(self) -> float:
        """Since this process began to train."""
        return time.monotonic() - self._start_s

    def seconds(self) -> float:
        """Of the whole run."""
        return self._before_s + self.seconds_here()

    def seconds_since_save(self) -> float:
        """Since the last snapshot."""
        return time.monotonic() - self._saved_s

    def saved(self) -> None:
        """A snapshot has just been written."""
        self._saved_s = time.monotonic()

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each comes counts as waiting for data."""
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
        """What is done in here, such as looking and saving, is part of the run's time but not of its throughput."""
        start_s = time.monotonic()
        yield
        self._logged_s += time.monotonic() - start_s

    def restarted(self, step: int) -> None:
        """The run has gone back to `step`: what was measured since the last log does not count."""
        self._logged_s, self._logged_step, self._waited_s = time.monotonic(), step, 0.0

    def rates(self, step: int, steps: int, crops_per_step: int) -> dict[str, float]:
        """Throughput since the last call; `data_wait` is the share of that time spent waiting for data."""
        now_s = time.monotonic()
        interval_s = now_s - self._logged_s
        step_s = interval_s / (step - self._logged_step)
        wait = self._waited_s / interval_s
        self.restarted(step)
        return {
            "crops_per_s": crops_per_step / step_s,
            "data_wait": wait,
            "seconds": self.seconds(),
            "left_s": (steps - step) * step_s,
        }


def memory_mb(device: torch.device) -> float:
    """The most memory that was in use at once: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_MAXRSS / 2**20
