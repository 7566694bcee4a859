"""Threads of the library's own: for runners, and for whatever else would block the loop."""

import asyncio
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
            raise StoreClosedError(f"Python is ending: {error}") from error

    def close(self) -> None:
        """Let the threads end, each with what it is at."""
        self._is_closed = True
        self._pool.shutdown(wait=False)
