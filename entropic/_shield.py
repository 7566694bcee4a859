"""Awaiting something to its end, whatever happens to the task that awaits it, or to others."""

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_own_thread(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call a function in a thread, without waiting for one of the loop's to be free.

    All of those may be waiting for what is done here: a server's handlers, for this very store.
    """
    limiter = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)


def in_pool(
    pool: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> asyncio.Future[T]:
    """Call a function in a pool of threads, or the loop's, with the caller's context variables.

    The future is no task, which a loop that ends would cancel with all others: the thread would go
    on, and nobody wait for it.

    Raises:
        RuntimeError: The pool has been shut down.
    """
    call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(pool, call)


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, whatever it holds; a cancelled wait does not cancel it.

    ``asyncio.wait`` for one: what it does for many takes half as long again.
    """
    if future.done():
        return
    waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)


async def to_the_end(work: Awaitable[T], left: asyncio.Event | None = None) -> T:
    """Await ``work``, in a task of its own, until it has ended.

    An anyio shield would not do: it does not stop a native ``Task.cancel()``.

    Args:
        work: What to await.
        left: Set as soon as the awaiting task is cancelled, for work that can stop early.

    Returns:
        What ``work`` returns.

    Raises:
        asyncio.CancelledError: The awaiting task was cancelled meanwhile; the work has ended
            all the same.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await until_done(task)
        except asyncio.CancelledError as error:
            cancelled = error
            if left is not None:
                left.set()
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not report it as lost
    raise cancelled


async def undisturbed(work: Awaitable[T]) -> T:
    """Await ``work`` to its end and return its result, whatever is cancelled meanwhile.

    For what cannot be stopped, and whose outcome is worth keeping: cancellations are taken back.

    Raises:
        asyncio.CancelledError: The work itself was cancelled.
    """
    future = asyncio.ensure_future(work)
    while not future.done():
        try:
            await until_done(future)
        except asyncio.CancelledError:
            uncancel()
    return future.result()


def uncancel() -> None:
    """Take back one cancellation of the current task, whose work cannot be stopped."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
