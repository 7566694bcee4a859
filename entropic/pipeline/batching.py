"""Concurrent requests, gathered into one call at a time.

The first request goes at once; those that come while it is under way share the next call. So a
single request waits for nobody, and a thousand cost one statement.
"""

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Gathers requests.

    Args:
        call: Answers many items at once, in their order. It runs in a task of its own, which no
            requester's cancellation stops.
        most: The most items of one call, beyond those of a single larger request.
        is_own: Whether a request that meets no other is answered in its own task, and stopped with
            it: a task for it alone would take a seventh of the time of a look-up.
        linger: How many seconds to let more requests come before a call; asked before each, with
            the number of items that wait, and that of the last call's.
    """

    def __init__(
        self,
        call: Callable[[list[Item]], Awaitable[Sequence[Answer]]],
        most: int,
        linger: Callable[[int, int], float] = lambda waiting, last: 0.0,
        *,
        is_own: bool = False,
    ) -> None:
        self._call = call
        self._most = most
        self._linger = linger
        self._is_own = is_own
        self._is_busy = False  # with a request in its own task
        self._last = 0
        self._requests: deque[tuple[Sequence[Item], asyncio.Future[list[Answer]]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to some items, in their order.

        Raises:
            Exception: What the call raised, for all whose items were in it.
        """
        if not items:
            return []
        if self._is_own and not self._is_busy and self._task is None:
            return await self._answer_alone(items)
        return await self.request(items)

    def request(self, items: Sequence[Item]) -> asyncio.Future[list[Answer]]:
        """The same, as a future that is no task: nothing stops it."""
        answers: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._requests.append((items, answers))
        if self._task is None and not self._is_busy:
            self._start()
        return answers

    async def _answer_alone(self, items: Sequence[Item]) -> list[Answer]:
        self._is_busy = True
        try:
            return list(await self._call(list(items)))
        finally:
            self._is_busy = False
            if self._requests:
                self._start()

    async def aclose(self) -> None:
        """Let a call end that is under way, also where nobody waits for it any more."""
        while self._task is not None:
            await asyncio.wait({self._task})

    def _start(self) -> None:
        self._task = asyncio.create_task(self._work())
        self._task.add_done_callback(self._ended)

    def _ended(self, _: object) -> None:
        # A loop that ends cancels all tasks, also one that has not begun yet: who still waits is
        # not forgotten.
        self._task = None
        if self._requests:
            self._start()

    async def _work(self) -> None:
        while self._requests:
            waiting = sum(len(items) for items, _ in self._requests)
            if (seconds := self._linger(waiting, self._last)) > 0:
                await asyncio.sleep(seconds)
            taken = self._next()
            self._last = sum(len(items) for items, _ in taken)
            await self._answer(taken)

    def _next(self) -> list[tuple[Sequence[Item], asyncio.Future[list[Answer]]]]:
        taken = [self._requests.popleft()]
        count = len(taken[0][0])
        while self._requests and count + len(self._requests[0][0]) <= self._most:
            taken.append(self._requests.popleft())
            count += len(taken[-1][0])
        return taken

    async def _answer(
        self, requests: list[tuple[Sequence[Item], asyncio.Future[list[Answer]]]]
    ) -> None:
        try:
            answers = await self._call([item for items, _ in requests for item in items])
        except BaseException as error:
            for _, future in requests:
                if not future.done():
                    future.set_exception(one_for_each(error))
            if not isinstance(error, Exception):
                raise
            return
        start = 0
        for items, future in requests:
            if not future.done():
                future.set_result(list(answers[start : start + len(items)]))
            start += len(items)


def one_for_each(error: BaseException) -> BaseException:
    """A copy of an error: each requester writes on it which run it is about."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)
