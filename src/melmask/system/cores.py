"""Jobs side by side, each on a core of its own, because operations that are split over cores wait for each other.

PyTorch's threads meet at the end of every operation and wait there by spinning. Two of them lose nearly all their time
as soon as another program takes one of two cores. Jobs on one thread each meet once, at their end, and sleep while they
wait.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

from melmask.system.contention import Contention

R = TypeVar("R")


def one_thread_each(workers: int) -> ThreadPoolExecutor:
    """Return a pool of threads that compute with one thread each. The number of threads of others stays as it is."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers)
    ready = Barrier(workers + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        # No thread is free before all have begun, so each of them begins once.
        ready.wait()

    for _ in range(workers):
        pool.submit(begin)
    try:
        ready.wait()
    except BaseException:
        # An interrupt must not leave threads behind that wait for this one.
        ready.abort()
        raise
    # PyTorch's backward pass gives its caller the number of threads that any thread has set last.
    torch.set_num_threads(before)
    return pool


class Cores:
    """Runs jobs side by side on the threads of this process; the calling thread is one of them.

    Attributes:
        count: How many jobs run at a time.
    """

    def __init__(self, threads: int, most_jobs: int | None = None, contention: Contention | None = None):
        """Share `threads` threads among at most `most_jobs` jobs, by default one thread for each.

        With more threads than jobs, each job has several, and its operations are split over them. `contention` notices
        when other programs take the processor from the jobs.
        """
        self.count = max(1, min(threads, most_jobs or threads))
        self._threads_per_job = max(1, threads // self.count)
        self._watch = (contention or Contention()).watch
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Let this thread compute with as few threads as a job; afterwards it has all of them again."""
        before = torch.get_num_threads()
        # PyTorch's backward pass gives its caller the number of threads that any thread has set last. Therefore all
        # threads, this one included, have the same number until the jobs are done.
        if self.count > 1:
            torch.set_num_threads(self._threads_per_job)
        try:
            yield
        finally:
            if self.count > 1:
                torch.set_num_threads(before)

    def run(self, jobs: Sequence[Callable[[], R]]) -> list[R]:
        """Run the jobs, each on whichever thread is free first, and return their results in order.

        The calling thread runs the first job. Autocast, inference mode and whether gradients are recorded belong to a
        thread, so a job enters them itself. An exception of a job is raised here, when no job runs any more.
        """
        if self.count == 1 or len(jobs) <= 1:
            return [self._watch(job) for job in jobs]
        results: dict[int, R] = {}
        # All threads take from one iterator, so a thread that other programs slow down takes fewer jobs.
        left = iter(range(1, len(jobs)))

        def work(numbers: Iterable[int]) -> None:
            for number in numbers:
                results[number] = self._watch(jobs[number])

        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self.count - 1, initializer=torch.set_num_threads, initargs=(self._threads_per_job,)
            )
        with self.engaged():
            others = [self._pool.submit(work, left) for _ in range(min(self.count, len(jobs)) - 1)]
            try:
                work(itertools.chain([0], left))
            except BaseException:
                # Jobs that have not begun are dropped.
                deque(left, maxlen=0)
                raise
            finally:
                # Jobs use what belongs to the caller, so none may outlast this call.
                errors = [other.exception() for other in others]
        for error in filter(None, errors):
            raise error
        return [results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
