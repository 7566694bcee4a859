"""A thread that waits for a call, as a place to run: one function at a time.

Whoever waits for a task also offers it its thread, so that what is wanted on a thread never waits
for one that is itself waiting. The loop that the tasks are on is left to the portal.
"""

import asyncio
import contextvars
import functools
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from operator import length_hint
from typing import Any, Final, Generic, ParamSpec, TypeVar

from entropic._shield import ended, uncancel
from entropic.errors import WrongLoopError

P = ParamSpec("P")
T = TypeVar("T")

_SLICE_SECONDS: Final = 0.01

current: contextvars.ContextVar["Caller | None"] = contextvars.ContextVar("caller", default=None)
"""The thread that waits for the current call."""


class Away(asyncio.CancelledError):
    """The thread has gone on with something else before it could begin; it will come back."""


class _Errand(Generic[T]):
    """One function to run on a calling thread, and the future that the loop awaits."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._function = function
        # Whoever takes it decides: the calling thread begins it, or the loop's cancels it.
        self._begun = threading.Lock()
        self.outcome: asyncio.Future[T] = self._loop.create_future()
        self.is_put_off = False

    def run(self) -> None:
        """On the calling thread: an interrupt goes through to it, and cancels the errand.

        In that thread's own context, not in a copy: what the function sets there stays set, as if
        the thread had called it by itself.
        """
        if not self._begun.acquire(blocking=False):
            return
        try:
            result = self._function()
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._fail, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._loop.call_soon_threadsafe(self._succeed, result)

    def cancel(self) -> bool:
        """Whether it could still be cancelled: it has not begun."""
        if not self._begun.acquire(blocking=False):
            return False
        self.outcome.cancel()
        return True

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


class Caller:
    """The thread that is waiting for one call, as a place to run functions: one at a time.

    Everything here but ``serve`` happens on the loop's thread, so nothing can arrive between
    the last look into the inbox and its closing.
    """

    def __init__(self) -> None:
        # ``None`` stands for: look whether the call has ended.
        self._inbox: queue.SimpleQueue[_Errand[Any] | None] = queue.SimpleQueue()
        self._errand: _Errand[Any] | None = None
        self._is_taken = False
        self._has_left = False
        self._is_away = False
        self._wishes: deque[asyncio.Future[Caller]] = deque()

    def grant(self, wish: "asyncio.Future[Caller]", *, at_once: bool = False) -> None:
        """Fulfil a wish for this thread now, or when it is free; ``at_once``, before all others."""
        if wish.done() or self._has_left:
            return
        if not (self._is_taken or self._is_away):
            self._is_taken = True
            wish.set_result(self)
        elif at_once:
            self._wishes.appendleft(wish)
        else:
            self._wishes.append(wish)

    def pass_on(self) -> None:
        """The thread is free for the next one who wishes for it."""
        self._is_taken = False
        while self._wishes and not (self._is_taken or self._is_away):
            self.grant(self._wishes.popleft())

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on the thread, for whoever has been granted it.

        Raises:
            Away: The thread went away before it began.
            asyncio.CancelledError: The thread went its way, or was interrupted in the function.
        """
        if self._has_left:
            raise asyncio.CancelledError
        if self._is_away:
            raise Away
        errand: _Errand[T] = _Errand(function)
        self._errand = errand
        self._inbox.put(errand)
        try:
            while not errand.outcome.done():
                try:
                    await ended(errand.outcome)
                except asyncio.CancelledError:
                    if errand.cancel():
                        raise
                    # It has begun, and a thread cannot be stopped: its outcome counts.
                    uncancel()
            if errand.is_put_off:
                raise Away
            return errand.outcome.result()
        finally:
            self._errand = None

    def go(self) -> None:
        """The thread goes on with something else, and will come back.

        What it has not begun is cancelled, and nobody is granted it meanwhile: who takes records
        one by one must not keep others, or itself, waiting.
        """
        self._is_away = True
        if self._errand is not None:
            self._errand.is_put_off = self._errand.cancel()
        self._inbox.put(None)

    def come_back(self) -> None:
        """The thread waits again, for the next part of its call."""
        self._is_away = False
        if not self._is_taken:
            self.pass_on()

    def leave(self, *, is_interrupted: bool) -> None:
        """The thread goes its way: what it has not begun is cancelled, for others to take over.

        Args:
            is_interrupted: It is out of what it had begun, too. Its interrupt may have come
                at any moment: nothing else is sure to tell the loop of it.
        """
        self._has_left = True
        if self._errand is not None and not self._errand.cancel() and is_interrupted:
            self._errand.outcome.cancel()
        self._inbox.put(None)

    def serve(self, is_over: Callable[[], bool]) -> None:
        """On the calling thread: run what arrives until the call is over."""
        while not is_over():
            if (errand := self._inbox.get()) is not None:
                errand.run()


async def run_in_caller(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function on the calling thread that ``callers_turn`` has granted.

    Raises:
        asyncio.CancelledError: The function was interrupted there.
    """
    return await _current_caller().run(functools.partial(function, *args, **kwargs))


class _Volunteers:
    """The threads that wait for one task, and what it wishes for: any of them.

    Attributes:
        users: How many are in it; the last to leave removes it.
    """

    def __init__(self) -> None:
        self.users = 0
        self._callers: list[Caller] = []
        self._wish: asyncio.Future[Caller] | None = None

    def add(self, caller: Caller) -> None:
        self._callers.append(caller)
        if self._wish is not None:
            caller.grant(self._wish)

    def remove(self, caller: Caller) -> None:
        self._callers.remove(caller)

    def wish(self) -> asyncio.Future[Caller]:
        self._wish = asyncio.get_running_loop().create_future()
        for caller in self._callers:
            caller.grant(self._wish)
        return self._wish


_volunteers: Final[dict[asyncio.Task[Any], _Volunteers]] = {}


@contextmanager
def _volunteers_for(task: asyncio.Task[Any]) -> Iterator[_Volunteers]:
    """What is known of a task while anybody is in it: it holds threads, and all that they hold."""
    volunteers = _volunteers.setdefault(task, _Volunteers())
    volunteers.users += 1
    try:
        yield volunteers
    finally:
        volunteers.users -= 1
        if not volunteers.users:
            del _volunteers[task]


@contextmanager
def volunteering(task: asyncio.Task[Any]) -> Iterator[None]:
    """While the current call waits for a task, the task may use the thread that called.

    So a runner that asks, on that very thread, for a run that is in line for it is no deadlock,
    and a run does not wait for a busy thread while another one that wants it is idle.
    """
    caller = current.get()
    if caller is None:
        yield
        return
    with _volunteers_for(task) as volunteers:
        volunteers.add(caller)
        try:
            yield
        finally:
            volunteers.remove(caller)


@asynccontextmanager
async def callers_turn() -> AsyncIterator[None]:
    """Wait until one of the threads that wait for the current task is free, and be granted it.

    Raises:
        WrongLoopError: No thread is waiting: the task was not started by a portal.
    """
    _current_caller()
    task = asyncio.current_task()
    assert task is not None
    with _volunteers_for(task) as volunteers:
        async with _granted(volunteers.wish()) as caller:
            before = current.set(caller)
            try:
                yield
            finally:
                current.reset(before)


@asynccontextmanager
async def _granted(wish: asyncio.Future[Caller]) -> AsyncIterator[Caller]:
    try:
        caller = await wish
    except asyncio.CancelledError:
        if wish.done() and not wish.cancelled():
            wish.result().pass_on()
        raise
    try:
        yield caller
    finally:
        caller.pass_on()


def _current_caller() -> Caller:
    caller = current.get()
    if caller is None:
        raise WrongLoopError("there is no calling thread to run on: this is not a Store's call")
    return caller


class CallerItems(Generic[T]):
    """An iterable of the caller's, read in slices on the caller's own thread.

    A slice a hop: a hop costs about 0.1 ms, which an item on its own could not afford; and only
    what comes within a short time, so that the first run need not wait for a slow input.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._iterator: Iterator[T] | None = None

    def __length_hint__(self) -> int:
        length = length_hint(self._items, -1)
        return length if length >= 0 else NotImplemented

    @classmethod
    def wrap(cls, items: Any) -> Any:
        """An iterable as one that is read on this thread; an async one, or none, as it is.

        So is a list: to read it runs nobody's code, and needs no hop.
        """
        if type(items) in (list, tuple):
            return items
        is_plain = isinstance(items, Iterable) and not isinstance(items, Mapping | str | bytes)
        return cls(items) if is_plain else items

    async def take(self, most: int) -> list[T]:
        """The next items, at most ``most``; an empty list at the end."""
        while True:
            # It comes before the runs in line: they would leave the other workers without any.
            # With the thread's turn all the same: a generator may ask for runs that it yielded.
            wish: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()
            _current_caller().grant(wish, at_once=True)
            with suppress(Away):
                async with _granted(wish) as caller:
                    return await caller.run(functools.partial(self._take, most))

    async def aclose(self) -> None:
        """Nothing to do: it is read only when the thread is asked to."""

    def _take(self, most: int) -> list[T]:
        if self._iterator is None:
            self._iterator = iter(self._items)
        return take_slice(self._iterator, most)


# What comes of these comes at once.
_AT_HAND: Final[tuple[type, ...]] = (type(iter([])), type(iter(())))


def take_slice(items: Iterator[T], most: int) -> list[T]:
    """The next items that come within some milliseconds, at least one and at most ``most``.

    Returns:
        An empty list at the end.
    """
    if isinstance(items, _AT_HAND):
        return list(itertools.islice(items, most))
    taken: list[T] = []
    deadline = time.monotonic() + _SLICE_SECONDS
    for item in items:
        taken.append(item)
        if len(taken) >= most or time.monotonic() >= deadline:
            break
    return taken
