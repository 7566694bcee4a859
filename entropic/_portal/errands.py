"""A function on its way to a calling thread, and its outcome on the way back."""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Away(asyncio.CancelledError):
    """The thread has gone on with something else before it could begin; it will come back."""


class Returned(Exception):  # noqa: N818  no error
    """It has not begun, and is to have another turn.

    Another thread is free; or what came before holds it up.
    """


class Errand(Generic[T]):
    """One function to run on a calling thread, and the future that the loop awaits.

    Args:
        function: The function.
        began: Called on the loop's thread when it has begun, or is about to: perhaps late, more
            than once, or not at all.
        holds_up: Whether nothing more is to begin on the thread, after what the function has
            returned, until its turn is passed on; what it raises does so in any case.
        is_urgent: Whether its end is told at once, and not together with that of others.

    Attributes:
        began: As given.
        is_urgent: As given.
        outcome: What the function returns or raises; cancelled where it did not begin, or was
            interrupted.
        is_put_off: Whether it was cancelled because the thread is away.
        is_returned: Whether it was cancelled so that another thread can run it.
        has_held_up: Whether it holds up what comes next.
        seconds: What the function took.
    """

    def __init__(
        self,
        function: Callable[[], T],
        began: Callable[[], None],
        holds_up: Callable[[T], bool],
        *,
        is_urgent: bool,
    ) -> None:
        self._function = function
        self.began = began
        self._holds_up = holds_up
        self.is_urgent = is_urgent
        # Whoever takes it decides: the calling thread begins it, or the loop's cancels it.
        self._begun = threading.Lock()
        self.outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.is_put_off = False
        self.is_returned = False
        self.has_held_up = False
        self.seconds = 0.0

    @property
    def is_at_work(self) -> bool:
        """Whether it has begun, and its outcome is not told."""
        return self._begun.locked() and not self.outcome.done()

    def run(self, ended: "deque[Ended]") -> None:
        """On the calling thread: run it, unless it was cancelled, and note how it has ended.

        An interrupt goes through to that thread, and cancels the errand. In that thread's own
        context, not in a copy: what the function sets there stays set, as if the thread had called
        it by itself.
        """
        if not self._begun.acquire(blocking=False):
            return
        started = time.perf_counter()
        try:
            result = self._function()
        except BaseException as error:
            self.has_held_up = True
            ended.append((self, functools.partial(self._fail, error)))
            if not isinstance(error, Exception):
                raise
        else:
            self.seconds = time.perf_counter() - started
            self.has_held_up = self._holds_up(result)
            ended.append((self, functools.partial(self._succeed, result)))

    def cancel(self) -> bool:
        """Whether it could still be cancelled: it has not begun."""
        if not self._begun.acquire(blocking=False):
            return False
        self.outcome.cancel()
        return True

    def put_off(self) -> None:
        """The thread is away: have it end as that, unless it has begun."""
        self.is_put_off = self.is_put_off or self.cancel()

    def give_back(self) -> None:
        """Have it return to whoever wants it run, unless it has begun."""
        self.is_returned = self.is_returned or self.cancel()

    def _succeed(self, result: T) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if self.outcome.done():
            return
        if isinstance(error, StopIteration):  # which no future can hold
            self.outcome.set_exception(RuntimeError(f"StopIteration was raised: {error}"))
        elif isinstance(error, Exception):
            self.outcome.set_exception(error)
        else:
            self.outcome.cancel()


Ended = tuple[Errand, Callable[[], None]]  # type: ignore[type-arg]
"""An errand that has ended, and what tells its outcome, on the loop's thread."""
