"""Signals in training: the first one asks the loop to save and end at the next step, instead of ending the process."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ECHO_S = 2.0
"""A second signal within this time is taken for an echo of the first."""
_HANG_UP = getattr(signal, "SIGHUP", None)
"""What the end of a terminal, or of the connection to it, sends."""


@contextmanager
def collected_signals(processes: int) -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the list that this gives, oldest first.

    A run of one process dies of a second signal that is no echo of the first: whoever presses Ctrl-C twice means it.
    """
    received: list[int] = []
    first_s = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal first_s
        # A program around this one may pass on the signal that both got: that is the echo. Of several processes each
        # gets two signals, its own and the one that torchrun passes on, so they never die of the second.
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
        # Whoever started this under nohup wants it to go on when the terminal closes.
        if _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN:
            before[_HANG_UP] = signal.signal(_HANG_UP, note)
    except ValueError:
        # Only the main thread may set handlers; elsewhere the caller decides what a signal does.
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
