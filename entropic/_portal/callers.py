"""A thread that waits for a call, as a place to run: one function at a time.

To hand a function over and its outcome back costs some 0.1 ms, and as long as both threads are at
work each keeps the other from the interpreter. So functions that take less than that are handed
over several at a time, and their outcomes told together. Who gets which thread is left to
``turns``; the loop, to the portal.
"""

import asyncio
import contextvars
import heapq
import itertools
import os
import queue
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from entropic._portal.errands import Away, Ended, Errand, Returned
from entropic._shield import uncancel, until_done

T = TypeVar("T")

# As many functions are handed over at a time as take so long together, and for so long what has
# ended may wait for others to be told with.
_TOGETHER_SECONDS: Final = 0.025
_MOST_TOGETHER: Final = 64

current: contextvars.ContextVar["Caller | None"] = contextvars.ContextVar("caller", default=None)
"""The thread that waits for the current call."""


class Turn:
    """The right to run one function, once, on a calling thread, after those that had it before."""

    def __init__(self, caller: "Caller") -> None:
        self._caller = caller
        self._errand: Errand[Any] | None = None
        self._is_unwanted = False

    async def run(
        self,
        function: Callable[[], T],
        began: Callable[[], None] = lambda: None,
        holds_up: Callable[[T], bool] = lambda _: False,
        *,
        is_urgent: bool = False,
    ) -> T:
        """Run a function on the thread; as ``Errand`` says.

        Raises:
            Away: The thread went away before it began.
            Returned: It had not begun, and is to have another turn.
            asyncio.CancelledError: The thread went its way, or was interrupted in the function.
        """
        assert self._errand is None
        if self._is_unwanted and self._caller.is_busy:
            raise Returned
        errand: Errand[T] = Errand(function, began, holds_up, is_urgent=is_urgent)
        self._errand = errand
        return await self._caller.run(errand)

    def give_back(self) -> None:
        """Have it return, unless it has begun or is the next: another thread offers itself."""
        self._is_unwanted = True
        if self._errand is not None and self._caller.is_behind(self._errand):
            self._errand.give_back()

    def pass_on(self) -> None:
        """Be done: the thread is free for the next one who wishes for it."""
        self._caller.take_back(self._errand)


class Wish:
    """Somebody waits for a turn on any of some threads.

    Args:
        number: Its place in the line: those with smaller ones come first.

    Attributes:
        number: As given.
        is_sole: Whether there is only one such thread: then a turn behind others is as good as
            any. Of several, only one that is free: those before may be waiting for this very run.
        turn: What it was granted.
    """

    def __init__(self, number: int, *, is_sole: bool = True) -> None:
        self.number = number
        self.is_sole = is_sole
        self.turn: Turn | None = None
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        """Whether it is fulfilled, or nobody waits any more."""
        return self._granted.done()

    def fulfil(self, turn: Turn) -> None:
        """Grant it a turn."""
        self.turn = turn
        self._granted.set_result(None)

    async def granted(self) -> Turn:
        """Wait until it is fulfilled; a turn that comes too late is passed on."""
        try:
            await self._granted
        except asyncio.CancelledError:
            if self.turn is not None:
                self.turn.pass_on()
            raise
        assert self.turn is not None
        return self.turn


class Caller:
    """The thread that is waiting for one call, as a place to run functions: one at a time.

    ``serve`` and what it calls happen on that thread, all else on the loop's. The queues are
    between the two; ``_untold_since`` is the thread's own.
    """

    def __init__(self) -> None:
        # ``None`` stands for: look whether the call has ended.
        self._inbox: queue.SimpleQueue[Errand[Any] | None] = queue.SimpleQueue()
        # What has been run, and is not told yet; and what of it has been told and holds up others.
        self._ended: deque[Ended] = deque()
        self._told: queue.SimpleQueue[Errand[Any] | None] = queue.SimpleQueue()
        self._untold_since: float | None = None
        self._loop: asyncio.AbstractEventLoop
        # In the order in which they were handed over, or are about to be. The first ones may have
        # ended, untold, or be cancelled.
        self._errands: list[Errand[Any]] = []
        self._sending: list[Errand[Any]] = []
        self._holding_up: Errand[Any] | None = None
        self._turns = 0
        self._together = 1
        self._mean_seconds: float | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._has_left = False
        self._is_away = False
        self._wishes: list[tuple[int, int, Wish]] = []
        self._ties = itertools.count()

    @property
    def is_busy(self) -> bool:
        """Whether anything has been handed over to it, and is not told."""
        return bool(self._errands)

    def is_behind(self, errand: Errand[Any]) -> bool:
        """Whether others come first, or have come and are not told."""
        return errand in self._errands[1:]

    def grant(self, wish: Wish) -> None:
        """Fulfil a wish for a turn now, or when there is one."""
        if wish.is_over or self._has_left:
            return
        heapq.heappush(self._wishes, (wish.number, next(self._ties), wish))
        self._grant_next()

    def take_back(self, errand: Errand[Any] | None) -> None:
        """A turn is over, with what was run in it."""
        self._turns -= 1
        if errand is self._holding_up:
            self._holding_up = None
        self._grant_next()

    async def run(self, errand: Errand[T]) -> T:
        """Run what has a turn; see ``Turn.run``."""
        if self._has_left:
            raise asyncio.CancelledError
        if self._is_away:
            raise Away
        if self._holding_up is not None:
            raise Returned
        self._loop = asyncio.get_running_loop()
        self._errands.append(errand)
        if len(self._errands) == 1:
            errand.began()
        else:
            self._tell_later()
        self._send(errand)
        try:
            while not errand.outcome.done():
                try:
                    await until_done(errand.outcome)
                except asyncio.CancelledError:
                    if errand.cancel() or errand.is_put_off or errand.is_returned:
                        raise
                    # It has begun, and a thread cannot be stopped: its outcome counts.
                    uncancel()
            if errand.is_put_off:
                raise Away
            if errand.is_returned:
                raise Returned
            return errand.outcome.result()
        finally:
            with suppress(ValueError):
                self._errands.remove(errand)

    def go(self) -> None:
        """The thread goes on with something else, and will come back.

        What it has not begun is cancelled, and nobody is granted it meanwhile: who takes records
        one by one must not keep others, or itself, waiting.
        """
        self._is_away = True
        for errand in self._errands:
            errand.put_off()
        self._inbox.put(None)

    def come_back(self) -> None:
        """The thread waits again, for the next part of its call."""
        self._is_away = False
        self._grant_next()

    def leave(self, *, is_interrupted: bool) -> None:
        """The thread goes its way: what it has not begun is cancelled, for others to take over.

        Args:
            is_interrupted: It is out of what it had begun, too. Its interrupt may have come
                at any moment: nothing else is sure to tell the loop of it.
        """
        self._has_left = True
        self._tell()
        for errand in self._errands:
            if not errand.cancel() and is_interrupted:
                errand.outcome.cancel()
        if self._telling is not None:
            self._telling.cancel()
        self._inbox.put(None)
        self._told.put(None)

    def serve(self, is_over: Callable[[], bool]) -> None:
        """On the calling thread: run what arrives until the call is over."""
        try:
            while not is_over():
                if self._is_to_report:
                    self._report()
                if (errand := self._inbox.get()) is not None:
                    self._run(errand)
        finally:
            if self._ended:
                self._report()

    def _run(self, errand: Errand[Any]) -> None:
        pid = os.getpid()
        errand.run(self._ended)
        if self._ended and self._untold_since is None:
            self._untold_since = time.monotonic()
        if os.getpid() != pid:  # a child that the function has forked: the others are the parent's
            self._inbox = queue.SimpleQueue()
        if errand.is_urgent or errand.has_held_up:
            self._report()
        if errand.has_held_up:
            while self._told.get() not in (errand, None):
                pass

    @property
    def _is_to_report(self) -> bool:
        since = self._untold_since
        if since is None:
            return False
        return self._inbox.empty() or time.monotonic() - since >= _TOGETHER_SECONDS

    def _report(self) -> None:
        self._untold_since = None
        self._loop.call_soon_threadsafe(self._tell)

    def _send(self, errand: Errand[Any]) -> None:
        self._sending.append(errand)
        if len(self._sending) == 1:
            if self._together > 1:
                self._loop.call_soon(self._flush)
            else:
                self._flush()

    def _flush(self) -> None:
        for errand in self._sending:
            self._inbox.put(errand)
        self._sending.clear()

    def _tell(self) -> None:
        """Tell how what has been run has ended."""
        while self._ended:
            errand, tell = self._ended.popleft()
            with suppress(ValueError):
                self._errands.remove(errand)
            if errand.has_held_up:
                # Nothing begins before its requests have heard of it: they may want nothing more.
                self._holding_up = errand
                self._together = 1  # where one fails, the next may: each would return all others
                self._return_all()
                self._told.put(errand)
            elif not errand.is_urgent:
                self._learn(errand.seconds)
            tell()
        if not self._errands or self._has_left:
            return
        first = self._errands[0]
        is_next = len(self._errands) == 1 and not first.outcome.done()
        if first.is_at_work or is_next:
            first.began()
        if len(self._errands) > 1:
            self._tell_later()

    def _return_all(self) -> None:
        for errand in self._errands:
            errand.give_back()

    def _tell_later(self) -> None:
        """In any case, and again until all are told: what comes next may take hours."""

        def tell() -> None:
            self._telling = None
            self._tell()

        if self._telling is None:
            self._telling = self._loop.call_later(_TOGETHER_SECONDS, tell)

    def _learn(self, seconds: float) -> None:
        mean = self._mean_seconds
        self._mean_seconds = seconds if mean is None else 0.8 * mean + 0.2 * seconds
        most = int(_TOGETHER_SECONDS / max(self._mean_seconds, 1e-6))
        self._together = max(1, min(most, 2 * self._together, _MOST_TOGETHER))

    def _has_room_for(self, wish: Wish) -> bool:
        if self._is_away or self._holding_up is not None:
            return False
        return self._turns < (self._together if wish.is_sole else 1)

    def _grant_next(self) -> None:
        while self._wishes:
            _, _, wish = self._wishes[0]
            if not (wish.is_over or self._has_room_for(wish)):
                return  # whoever comes later does not overtake it: it might wait for ever
            heapq.heappop(self._wishes)
            if not wish.is_over:
                self._turns += 1
                wish.fulfil(Turn(self))
