"""Runs that other stores have claimed, in this process or on other machines: waiting for them.

All that this store waits for is looked at in one statement, again and again: often while things
happen, more seldom while they do not; and at once where the database tells that something has.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from entropic._backoff import next_look
from entropic.errors import DatabaseError
from entropic.ledger import State
from entropic.pipeline.batching import one_for_each
from entropic.recovery import is_at_work

_FIRST_DELAY: Final = 0.01
_LONGEST_DELAY: Final = 0.2
_REST: Final = 4  # times what a look takes, so that looking never takes up the database or a CPU
_DEAF_SECONDS: Final = 5.0


class Elsewhere:
    """What this store waits for.

    Args:
        states: Looks runs up.
        listen: Has a function called when something has changed, where the database tells so.
        jitter: A random number between 0 and 1: many that wait for one run should not all look
            at the same moment.
    """

    def __init__(
        self,
        states: Callable[[Sequence[str]], Awaitable[dict[str, State]]],
        listen: Callable[[Callable[[], None]], Awaitable[None]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._states = states
        self._listen = listen
        self._deaf_until = 0.0
        self._jitter = jitter
        self._waiting: dict[str, list[asyncio.Future[State]]] = {}
        self._has_new = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def ended(self, id: str) -> State:
        """Wait until nobody runs this run any more: stored, failed, given back, or left behind.

        Returns:
            How it is then.

        Raises:
            DatabaseError: The database failed.
        """
        future: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, []).append(future)
        self._has_new = True
        self._news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            return await future
        finally:
            waiting = self._waiting.get(id, [])
            if future in waiting:
                waiting.remove(future)
                if not waiting:
                    del self._waiting[id]

    async def aclose(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        while self._waiting:
            self._has_new = False
            self._news.clear()
            begun = loop.time()
            try:
                await self._hear()
                states = await self._states(list(self._waiting))
            except BaseException as error:
                self._fail(error)
                if not isinstance(error, Exception):
                    raise
                return
            ended = [id for id, state in states.items() if not is_at_work(state)]
            for id in ended:
                self._tell(id, states[id])
            now = loop.time()
            if ended or self._has_new:
                since = now
            shortest = max(_FIRST_DELAY, _REST * (now - begun))
            delay = next_look(
                now - since, self._jitter(), shortest=shortest, longest=_LONGEST_DELAY
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._news.wait()

    async def _hear(self) -> None:
        """Listen, or go on doing so; who cannot hear has to look."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._deaf_until:
            return
        try:
            await self._listen(self._news.set)
        except DatabaseError:
            self._deaf_until = loop.time() + _DEAF_SECONDS

    def _tell(self, id: str, state: State) -> None:
        for future in self._waiting.pop(id, ()):
            if not future.done():
                future.set_result(state)

    def _fail(self, error: BaseException) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in itertools.chain.from_iterable(waiting.values()):
            if not future.done():
                future.set_exception(one_for_each(error))
