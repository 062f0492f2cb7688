"""Child processes that may hang, crash or run out of memory: the fuzzing programs let them read damaged files."""

import multiprocessing
import resource
from collections.abc import Callable


class BoundedWorker:
    """A child process with bounds on memory and time, replaced when it dies or hangs."""

    def __init__(self, answer: Callable[..., str], memory_bytes: int, limit_s: float):
        """Let the child call `answer`, a function of a module, with what `outcome` is given.

        Args:
            answer: Returns what a job gave, as text.
            memory_bytes: The most addresses that the child may use.
            limit_s: The longest that a job may take.
        """
        self._arguments, self._limit_s = (answer, memory_bytes), limit_s
        self._context = multiprocessing.get_context("spawn")
        self._begin()

    def _begin(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()

    def outcome(self, *job: object) -> str:
        """Return what a job gives, or that the child hangs or crashes."""
        self._connection.send(job)
        try:
            if self._connection.poll(self._limit_s):
                return self._connection.recv()
            result = f"hangs for {self._limit_s:.0f} s"
        except EOFError:
            self._process.join()
            result = f"crashes with {self._process.exitcode}"
        self._process.kill()
        self._begin()
        return result

    def end(self) -> None:
        """Let the process end."""
        self._connection.send(None)
        self._process.join()


def _work(connection, answer: Callable[..., str], memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    while (job := connection.recv()) is not None:
        connection.send(answer(*job))
