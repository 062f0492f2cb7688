"""Whether other programs take the processor from the threads of this process."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

_CROWDED, _FREE = 0.7, 0.85
"""Threads that have their cores to themselves run .95 to 1 of the time, and half of it beside one busy program for each
core. Between the two shares nothing is reported, so that the reports do not alternate."""
_WINDOW_S = 15.0
"""A shorter window would report each start of a browser."""
_AGAIN_S = 600.0
"""Programs that come and go are reported once in this time."""
_MOST_MEASUREMENTS = 4096

R = TypeVar("R")


class Contention:
    """Compares how long computations took with how long the processor worked on them."""

    def __init__(self) -> None:
        self._crowded = False
        self._since_s, self._reported_s = time.monotonic(), -math.inf
        # Nobody may ever ask for news, so only the latest measurements stay. Appending to it needs no lock.
        self._measured: deque[tuple[float, float]] = deque(maxlen=_MOST_MEASUREMENTS)

    def watch(self, work: Callable[[], R]) -> R:
        """Call `work`, which computes on this thread without waiting for files or devices; return its result."""
        start_s, start_used_s = time.monotonic(), time.thread_time()
        try:
            return work()
        finally:
            self._measured.append((time.monotonic() - start_s, time.thread_time() - start_used_s))

    def news(self) -> str | None:
        """Return a line for the user when other programs have begun to take the processor, or have ended; else None."""
        if time.monotonic() - self._since_s < _WINDOW_S:
            return None
        measured = list(self._measured)
        self._measured.clear()
        self._since_s = time.monotonic()
        took_s, used_s = (sum(values[kind] for values in measured) for kind in (0, 1))
        share = used_s / took_s if took_s else 1.0
        if not self._crowded and share < _CROWDED and self._since_s - self._reported_s > _AGAIN_S:
            self._crowded, self._reported_s = True, self._since_s
            return (
                f"other programs are using the processor: this job gets {share:.0%} of the time that it could use, and "
                "takes longer accordingly"
            )
        if self._crowded and share > _FREE:
            self._crowded = False
            return "this job has the processor for itself again"
        return None
