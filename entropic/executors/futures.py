"""A pool of the user's own, any ``concurrent.futures.Executor``, as a place to run."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from entropic import worker
from entropic._shield import uncancel, undisturbed
from entropic._slots import Slots
from entropic.errors import RunError, SettingsError, WorkerDiedError
from entropic.executors.parcels import Parcel, check_travels, failed, opened
from entropic.executors.threads import ElasticThreads
from entropic.worker import Job, Outcome, Runner

# How often a run that waits in the pool's queue is asked whether it has begun.
_GLANCE_SECONDS: Final = 0.05


class FuturesExecutor:
    """A pool of the user's own: it is used, and never shut down.

    Args:
        pool: The pool.
        max_workers: How many runners at once at most; ``None`` for as many as it has workers.
    """

    can_stop = False
    stops_late_runs = False
    needs_the_caller = False

    def __init__(self, pool: concurrent.futures.Executor, max_workers: int | None = None) -> None:
        self._pool = pool
        size = _size(pool)
        self.workers = size if max_workers is None else min(max_workers, size)
        # Some more wait in the pool itself, so that no worker of it waits for its next run; none
        # where the pool has more workers than are to be used.
        self._slots = Slots(2 * size if self.workers == size else self.workers)
        self._is_threads = isinstance(pool, concurrent.futures.ThreadPoolExecutor)
        self._threads = ElasticThreads("entropic-nested")

    def check(self, runner: Runner) -> None:
        """Raise ``SettingsError`` where the pool takes no more, or the runner cannot get there."""
        if getattr(self._pool, "_broken", False):  # which is shut down, too
            raise SettingsError(
                f"the {type(self._pool).__name__} is broken, as one of its workers died; make a"
                " new one"
            )
        if _is_shut_down(self._pool):
            raise SettingsError(
                f"the {type(self._pool).__name__} is shut down; keep it open until the store has"
                " no more to run, or make a new one"
            )
        if _has_processes(self._pool):
            check_travels(runner, f"the processes of the {type(self._pool).__name__}")

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the runs that the pool holds at once."""
        return self._slots.hold(depth)

    async def run(self, job: Job, began: Callable[[], None]) -> Outcome:
        """Submit it; cancelled, it is dropped unless it has begun, and otherwise ends and counts.

        Raises:
            RunError: The pool takes no more.
        """
        if job.chain and self._is_threads:
            # The run that asked for it has one of the pool's threads, perhaps the only one.
            return await self._run_beside(job, began)
        future = self._submit(Parcel(job))
        ended = _ending(future)
        has_begun = False
        while not future.done():
            if not has_begun and future.running():
                has_begun = True
                began()
            wait = ended.wait() if has_begun else _at_most(ended, _GLANCE_SECONDS)
            try:
                await wait
            except asyncio.CancelledError:
                if future.cancel():
                    raise
                uncancel()
        return self._outcome(future)

    async def aclose(self) -> None:
        """The pool is the user's, and stays open."""
        self._threads.close()

    async def _run_beside(self, job: Job, began: Callable[[], None]) -> Outcome:
        began()
        return await undisturbed(self._threads.run(worker.run_anywhere, job))

    def _submit(self, parcel: Parcel) -> "Future[Any]":
        try:
            return self._pool.submit(parcel)
        except RuntimeError as error:  # a broken pool's, too
            raise RunError(
                f"the {type(self._pool).__name__} takes no more runs: {error}; what has finished is"
                " kept, so ask again with a new one"
            ) from error

    def _outcome(self, future: "Future[Any]") -> Outcome:
        name = type(self._pool).__name__
        if future.cancelled():
            raise RunError(
                f"the {name} was shut down, and its waiting runs cancelled, while they were needed;"
                " keep it open until the call returns"
            )
        error = future.exception()
        if error is None:
            return opened(future.result())
        if isinstance(error, BrokenExecutor):
            died = WorkerDiedError(
                f"a worker of the {name} died while this run was at work or waited there: {error};"
                ' a pool loses all of its runs with one dead worker; executor="process" loses only'
                " one"
            )
            died.__cause__ = error
            return failed(died)
        if not isinstance(error, Exception):
            raise error
        lost = RunError(
            f"the {name} could not carry the run: {type(error).__name__}: {error}; the runner and"
            " its params have to be picklable to reach another process"
        )
        lost.__cause__ = error
        return failed(lost)


async def _at_most(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _ending(future: "Future[Any]") -> asyncio.Event:
    """Set on the loop once a future of a pool has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell(_: "Future[Any]") -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
            loop.call_soon_threadsafe(ended.set)

    future.add_done_callback(tell)
    return ended


def _size(pool: concurrent.futures.Executor) -> int:
    """How many workers it has, where it says so under the name that all known pools use."""
    from entropic.executors import available_cpus

    for name in ("_max_workers", "num_workers", "max_workers"):
        count = getattr(pool, name, None)
        if isinstance(count, int) and count > 0:
            return count
    return available_cpus()


def _is_shut_down(pool: concurrent.futures.Executor) -> bool:
    return any(getattr(pool, name, False) is True for name in ("_shutdown", "_shutdown_thread"))


def _has_processes(pool: concurrent.futures.Executor) -> bool:
    """Whether it is known to; others are not suspected, as threads take every runner."""
    homes = {cls.__module__.partition(".")[0] for cls in type(pool).__mro__}
    known = isinstance(pool, concurrent.futures.ProcessPoolExecutor)
    return known or bool(homes & {"loky", "mpi4py"})
