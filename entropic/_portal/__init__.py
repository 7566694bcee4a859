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
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

from entropic._portal.callers import Caller, current
from entropic._portal.items import CallerItems, take_slice
from entropic._portal.turns import callers_turn, run_in_turn, volunteering
from entropic.errors import RunError, WrongLoopError

__all__ = [
    "CallerItems",
    "Portal",
    "callers_turn",
    "portal",
    "run_in_turn",
    "take_slice",
    "volunteering",
]

P = ParamSpec("P")
T = TypeVar("T")

# How long an interrupted call waits for its task to put things in order before it gives up and
# lets the interrupt through: long enough for a commit, short enough for a person.
_GRACE_SECONDS: Final = 5.0

# A call needs some 30 frames of the calling thread; a RecursionError among those would lose the
# word that the loop waits for. The rest is for the runner.
_HEADROOM: Final = 100


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
        caller = Caller()
        return self._wait_for(
            caller, _context_of(caller), functools.partial(function, *args, **kwargs)
        )

    def stream(self, batches: AsyncGenerator[Sequence[T], None]) -> Generator[T, None, None]:
        """Take the items of an asynchronous generator's batches, each batch as ``call`` would.

        In between the thread is the caller's own: nothing is run on it.
        """
        caller = Caller()
        context = _context_of(caller)
        stepping: asyncio.Task[Any] | None = None

        async def step() -> Sequence[T] | None:
            nonlocal stepping
            stepping = asyncio.current_task()
            return await anext(batches, None)

        async def close() -> None:
            if stepping is not None:  # a generator that is at work cannot be closed
                await asyncio.wait({stepping})
            await batches.aclose()

        try:
            while (batch := self._wait_for(caller, context, step, stays=True)) is not None:
                yield from batch
        finally:
            is_at_work = stepping is not None and not stepping.done()
            if sys.is_finalizing():  # the loop's thread does not run any more
                pass
            elif is_at_work or threading.current_thread() is self._thread:
                # Interrupted a second time, or collected as garbage on the loop: nobody can wait.
                self.spawn(close)
            else:
                self._wait_for(caller, context, close)

    def _wait_for(
        self,
        caller: Caller,
        context: contextvars.Context,
        function: Callable[[], Coroutine[Any, Any, T]],
        *,
        stays: bool = False,
    ) -> T:
        """Run a coroutine function; ``stays`` says that the caller will come back for more."""
        _check_headroom()
        loop = self._running()
        if threading.current_thread() is self._thread:
            raise WrongLoopError(
                "a Store was called from its own event loop (an async runner, most likely), where"
                " it would wait for itself; use an AsyncStore there, or make the runner a plain"
                " function"
            )
        over = threading.Event()
        task: asyncio.Task[T] | None = None

        def start() -> None:
            nonlocal task
            caller.come_back()
            task = loop.create_task(function(), context=context)
            task.add_done_callback(end)

        def end(_: object) -> None:
            over.set()
            if stays:
                caller.go()
            else:
                caller.leave(is_interrupted=False)

        def stop() -> None:
            caller.leave(is_interrupted=True)
            if task is None:  # the interrupt was faster
                over.set()
            else:
                task.cancel()

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


def _context_of(caller: Caller) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(current.set, caller)
    return context


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
