"""Work in threads that do not keep the process from ending, such as a map that takes minutes."""

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_places = threading.BoundedSemaphore(32)
"""A page that asks for more at once waits; so much work side by side fits in memory."""


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Await what `work` returns, or raise what it raises, while other requests are answered.

    Starlette's own threads are waited for when the process ends, however long their work takes.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: BaseException | None) -> None:
        # The request may have been given up meanwhile.
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        with _places:
            try:
                result = work(*args, **kwargs)
            except BaseException as reason:
                error = reason
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # The server has ended.
            return

    threading.Thread(target=run, name="explore", daemon=True).start()
    return await answer
