"""Threads of the library's own: for runners, and for whatever else would block the loop."""

import asyncio
import contextvars
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from entropic._shield import in_pool
from entropic.errors import StoreClosedError

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A pool of threads of the store's own, with the caller's context variables.

    Not the loop's default pool: threads of that one may be waiting for this very store.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._is_closed = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in one of the threads; a cancelled call goes on there, unheeded.

        Raises:
            StoreClosedError: The threads have been closed.
        """
        return await self.submit(function, *args, **kwargs)

    def submit(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """The same, as a future that is no task; see ``in_pool``.

        Raises:
            StoreClosedError: The threads have been closed.
        """
        if self._is_closed:
            raise StoreClosedError
        try:
            return in_pool(self._pool, function, *args, **kwargs)
        except RuntimeError as error:  # the main thread has ended, and with it all pools
            raise _ending(error) from error

    def close(self) -> None:
        """Let the threads end, each with what it is at."""
        self._is_closed = True
        self._pool.shutdown(wait=False)


class ElasticThreads(Threads):
    """As many threads as have ever been busy at once.

    For runners, of which others say how many may be at work: one that waits for another run keeps
    its thread. Each is a pool of one. A pool of many starts threads beyond those that are busy, as
    one that has just ended its work is not yet back when the next comes in; since Python 3.12 it
    loses count of those that are idle, and goes on to start more for as long as it is used.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pools: list[ThreadPoolExecutor] = []
        self._idle: deque[ThreadPoolExecutor] = deque()
        self._is_closed = False

    def submit(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """As of ``Threads``; it never waits for a thread."""
        if self._is_closed:
            raise StoreClosedError
        pool = self._idle.pop() if self._idle else self._one_more()
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        try:
            future = pool.submit(call)
        except RuntimeError as error:
            raise _ending(error) from error
        # By the thread itself, and not by the loop: a cancelled call goes on there.
        future.add_done_callback(lambda _: self._idle.append(pool))
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Let the threads end, each with what it is at."""
        self._is_closed = True
        for pool in self._pools:
            pool.shutdown(wait=False)

    def _one_more(self) -> ThreadPoolExecutor:
        self._pools.append(ThreadPoolExecutor(1, f"{self._name}-{len(self._pools)}"))
        return self._pools[-1]


def _ending(error: RuntimeError) -> StoreClosedError:
    return StoreClosedError(f"Python is ending: {error}")
