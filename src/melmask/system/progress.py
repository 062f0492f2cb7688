"""Progress with an estimate of the time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from melmask.system.terminal import note, shown

T = TypeVar("T")

_LINE_INTERVAL_S = 10.0


def track(items: Iterable[T], total: int, title: str, unit: str = "file", leave: bool = True) -> Iterator[T]:
    """Yield `items` and report on standard error how many of `total` are done, the rate and the time left.

    Without `leave`, a bar on a terminal goes when it is done.
    """
    title = shown(title)
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=title, unit=unit, dynamic_ncols=True, leave=leave)
        return
    first_s = last_s = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now_s = time.monotonic()
        if done == 1:
            # It took the start of threads, and the first use of everything, along.
            first_s = now_s
        if now_s - last_s >= _LINE_INTERVAL_S:
            last_s = now_s
            text = f"{title}: {done}/{total} {unit}s"
            if now_s > first_s:
                rate = (done - 1) / (now_s - first_s)
                text += f", {rate:.1f}/s, {duration_text((total - done) / rate)} left"
            note(text)


def duration_text(seconds: float) -> str:
    """93784 -> '26:03:04', 65 -> '1:05'."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
