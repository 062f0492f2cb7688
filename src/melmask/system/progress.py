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
    start_s = last_s = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now_s = time.monotonic()
        if now_s - last_s >= _LINE_INTERVAL_S:
            last_s = now_s
            rate = done / (now_s - start_s)
            left = duration_text((total - done) / rate)
            note(f"{title}: {done}/{total} {unit}s, {rate:.1f}/s, {left} left")


def duration_text(seconds: float) -> str:
    """93784 -> '26:03:04', 65 -> '1:05'."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
