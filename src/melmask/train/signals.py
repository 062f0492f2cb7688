"""Signals during training: the first one asks the loop to save and end after its step; the process lives until then."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ECHO_S = 2.0
"""A second signal within this time counts as an echo of the first."""
_HANG_UP = getattr(signal, "SIGHUP", None)
"""The signal that a closing terminal, or a lost connection to it, sends; Windows has none."""


@contextmanager
def collected_signals(processes: int) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the list that this yields, oldest first.

    A run of one process ends at once at a second signal that is no echo of the first: whoever presses Ctrl-C twice
    means it.
    """
    received: list[int] = []
    first_s = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal first_s
        # A program that has started this one may pass on a signal that both received: that is the echo. With several
        # processes, each receives its own signal and the one that torchrun passes on, so a second one is normal.
        if processes == 1 and received and time.monotonic() - first_s > _ECHO_S:
            for kind, handler in before.items():
                signal.signal(kind, handler)
            signal.raise_signal(number)
        first_s = first_s or time.monotonic()
        received.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
        # nohup ignores this signal so that a run continues when its terminal closes; leave that as it is.
        if _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN:
            before[_HANG_UP] = signal.signal(_HANG_UP, note)
    except ValueError:
        # Only the main thread may set handlers. In another thread the caller decides what a signal does.
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
