"""One background event loop for the process, and the way back to the thread that called.

``Store`` is synchronous, the library is not: each of its calls runs as a task on this loop while
the calling thread waits. While it waits, it carries out what the task sends back to it (the
runner, the next items of an input), so a debugger, Ctrl-C, matplotlib and thread-bound objects
work as if there were no loop. What a call does is left to ``async_store``.
"""

import asyncio
import contextvars
import functools
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Generic, ParamSpec, TypeVar

from entropic._shield import uncancel
from entropic.errors import RunError, WrongLoopError

P = ParamSpec("P")
T = TypeVar("T")

# How long an interrupted call waits for its task to put things in order before it gives up and
# lets the interrupt through: long enough for a commit, short enough for a person.
_GRACE_SECONDS: Final = 5.0

_SLICE_SECONDS: Final = 0.01

# A call needs some 30 frames of the calling thread; a RecursionError among those would lose the
# word that the loop waits for. The rest is for the runner.
_HEADROOM: Final = 100

_caller: contextvars.ContextVar["_Caller | None"] = contextvars.ContextVar("caller", default=None)


class _Errand(Generic[T]):
    """One function to run on a calling thread, and the future that the loop awaits."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._function = function
        # Whoever takes it decides: the calling thread begins it, or the loop's cancels it.
        self._begun = threading.Lock()
        self.outcome: asyncio.Future[T] = self._loop.create_future()

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


class _Caller:
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
        self._wishes: deque[asyncio.Future[_Caller]] = deque()

    def grant(self, wish: "asyncio.Future[_Caller]", *, at_once: bool = False) -> None:
        """Fulfil a wish for this thread now, or when it is free; ``at_once``, before all others."""
        if wish.done() or self._has_left:
            return
        if not self._is_taken:
            self._is_taken = True
            wish.set_result(self)
        elif at_once:
            self._wishes.appendleft(wish)
        else:
            self._wishes.append(wish)

    def pass_on(self) -> None:
        """The thread is free for the next one who wishes for it."""
        self._is_taken = False
        while self._wishes and not self._is_taken:
            self.grant(self._wishes.popleft())

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on the thread, for whoever has been granted it.

        Raises:
            asyncio.CancelledError: The thread went its way, or was interrupted in the function.
        """
        if self._has_left:
            raise asyncio.CancelledError
        errand: _Errand[T] = _Errand(function)
        self._errand = errand
        self._inbox.put(errand)
        try:
            while not errand.outcome.done():
                try:
                    await asyncio.wait({errand.outcome})
                except asyncio.CancelledError:
                    if errand.cancel():
                        raise
                    # It has begun, and a thread cannot be stopped: its outcome counts.
                    uncancel()
            return errand.outcome.result()
        finally:
            self._errand = None

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
        self._callers: list[_Caller] = []
        self._wish: asyncio.Future[_Caller] | None = None

    def add(self, caller: _Caller) -> None:
        self._callers.append(caller)
        if self._wish is not None:
            caller.grant(self._wish)

    def remove(self, caller: _Caller) -> None:
        self._callers.remove(caller)

    def wish(self) -> asyncio.Future[_Caller]:
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
    caller = _caller.get()
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
            before = _caller.set(caller)
            try:
                yield
            finally:
                _caller.reset(before)


@asynccontextmanager
async def _granted(wish: asyncio.Future[_Caller]) -> AsyncIterator[_Caller]:
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


def _current_caller() -> _Caller:
    caller = _caller.get()
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

    @classmethod
    def wrap(cls, items: Any) -> Any:
        """An iterable as one that is read on this thread; an async one, or none, as it is."""
        is_plain = isinstance(items, Iterable) and not isinstance(items, Mapping | str | bytes)
        return cls(items) if is_plain else items

    async def take(self, most: int) -> list[T]:
        """The next items, at most ``most``; an empty list at the end."""
        # It comes before the runs in line: they would leave the other workers without any.
        # With the thread's turn all the same: a generator may ask for the runs that it yielded.
        wish: asyncio.Future[_Caller] = asyncio.get_running_loop().create_future()
        _current_caller().grant(wish, at_once=True)
        async with _granted(wish) as caller:
            return await caller.run(functools.partial(self._take, most))

    def _take(self, most: int) -> list[T]:
        if self._iterator is None:
            self._iterator = iter(self._items)
        return take_slice(self._iterator, most)


def take_slice(items: Iterator[T], most: int) -> list[T]:
    """The next items that come within some milliseconds, at least one and at most ``most``.

    Returns:
        An empty list at the end.
    """
    taken: list[T] = []
    deadline = time.monotonic() + _SLICE_SECONDS
    for item in items:
        taken.append(item)
        if len(taken) >= most or time.monotonic() >= deadline:
            break
    return taken


class Portal:
    """A background thread with an event loop; started by its first call, daemonic."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(
        self, function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a coroutine function on the loop and return what it returns.

        The calling thread carries out what the task sends it meanwhile. When it is interrupted,
        the task is cancelled and given a few seconds to put things in order; a second interrupt
        ends the wait.

        Raises:
            WrongLoopError: The call comes from the loop's own thread, where it would wait for
                itself.
            RunError: It comes from so deep down the calling thread's stack that there is hardly
                any left.
        """
        _check_headroom()
        loop = self._running()
        if threading.current_thread() is self._thread:
            raise WrongLoopError(
                "a Store was called from its own event loop (an async runner, most likely), where"
                " it would wait for itself; use an AsyncStore there, or make the runner a plain"
                " function"
            )
        caller = _Caller()
        over = threading.Event()
        task: asyncio.Task[T] | None = None

        def start() -> None:
            nonlocal task
            task = loop.create_task(function(*args, **kwargs), context=context)
            task.add_done_callback(end)

        def end(_: object) -> None:
            over.set()
            caller.leave(is_interrupted=False)

        def stop() -> None:
            caller.leave(is_interrupted=True)
            if task is None:  # the interrupt was faster
                over.set()
            else:
                task.cancel()

        context = contextvars.copy_context()
        context.run(_caller.set, caller)
        try:
            loop.call_soon_threadsafe(start)
            caller.serve(over.is_set)
        except BaseException:
            loop.call_soon_threadsafe(stop)
            over.wait(_GRACE_SECONDS)
            raise
        assert task is not None
        return task.result()

    def spawn(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a coroutine function on the loop, if the loop runs; nobody waits for it."""
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(function(), self._loop)

    def abandon(self) -> None:
        """Forget the loop, in a forked child: its thread did not come along.

        Forget, not close: closing it would unregister what the parent still listens to.
        """
        _abandoned.append(self._loop)
        self._lock = threading.Lock()
        self._loop = self._thread = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon: an idle store must not keep a script from ending.
                self._thread = threading.Thread(
                    target=_run_for_good, args=[self._loop], name="entropic-loop", daemon=True
                )
                self._thread.start()
            return self._loop


def _check_headroom() -> None:
    try:
        _descend(_HEADROOM)
    except RecursionError:
        raise RunError(
            "runs that ask for runs, or other calls, are nested too deep for Python's recursion"
            f" limit ({sys.getrecursionlimit()}): ask for the inner runs first, so that they are"
            " stored by the time that the outer ones want them, or raise the limit"
            " (sys.setrecursionlimit)"
        ) from None


def _descend(depth: int) -> None:
    """Take so many frames of the stack, and give them back."""
    if depth:
        _descend(depth - 1)


def _run_for_good(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # A task that raises one of these lets it out of the loop, too; its outcome is in the task
        # all the same, and the others must not wait for ever.
        with suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


_abandoned: Final[list[object]] = []

portal: Final = Portal()
"""The process's one portal: stores share its loop."""

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=portal.abandon)
