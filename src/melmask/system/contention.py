"""Whether other programs use the cores that this process computes on."""

import time

_CROWDED, _FREE = 0.7, 0.85
"""Of its cores, a process that computes alone uses .9 to 1; beside one busy program for each core, it gets half."""
_WINDOW_S = 15.0
"""A shorter window would report every backup and every browser."""


class Contention:
    """Compares the processor's time of this process with the time of its threads, window by window."""

    def __init__(self, threads: int):
        self._threads = threads
        self._told = False
        self.restart()

    def restart(self) -> None:
        """Begin a new window, after something else than computing."""
        self._wall_s, self._used_s = time.monotonic(), time.process_time()

    def news(self, idle: float = 0.0) -> str | None:
        """Return a line when other programs have begun to use the cores, and when they have ended; else None.

        Args:
            idle: The share of the window in which this process waited for something else, such as data.
        """
        wall_s, used_s = time.monotonic() - self._wall_s, time.process_time() - self._used_s
        if wall_s < _WINDOW_S:
            return None
        self.restart()
        # Waiting is not computing: it must not look as if somebody else had computed.
        share = used_s / (wall_s * max(1e-3, 1 - idle) * self._threads)
        if not self._told and share < _CROWDED:
            self._told = True
            return (
                f"other programs use this machine, so this process gets {share:.0%} of its {self._threads} cores and "
                "is slower by as much; nothing else changes"
            )
        if self._told and share > _FREE:
            self._told = False
            return f"this process has its {self._threads} cores again"
        return None
