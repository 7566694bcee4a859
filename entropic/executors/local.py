"""The places to run in this process: the calling thread, worker threads, the event loop."""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from entropic import worker
from entropic._portal import callers_turn, run_in_turn
from entropic._shield import undisturbed
from entropic._slots import Slots
from entropic.executors.protocol import Began
from entropic.executors.threads import ElasticThreads, Threads
from entropic.worker import Job, Outcome, Runner

# Far more than are ever needed: ThreadPoolExecutor makes threads only when all are busy.
_MOST_THREADS: Final = 1000


class CallerExecutor:
    """The thread that called the ``Store``: one run at a time, as if there were no entropic."""

    workers = 1
    # The last one to leave is the thread that runs it, and that only leaves when interrupted.
    can_stop = True
    stops_late_runs = False
    needs_the_caller = True

    def check(self, runner: Runner) -> None:
        """Every runner can."""

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """The turn of a thread that has called for the run; a nested call has its own."""
        return callers_turn()

    async def run(self, job: Job, began: Callable[[], None]) -> Outcome:
        """Run it there; ``sys.exit`` and Ctrl-C in the runner go through to the caller."""
        run_job = functools.partial(worker.run_job, job, contain=False)
        # After a failure, its request is told before anything else begins.
        return await run_in_turn(run_job, began, lambda outcome: outcome.error is not None)

    async def aclose(self) -> None:
        """Nothing is held."""


class ThreadExecutor:
    """Worker threads of this process.

    Args:
        workers: How many runners at once.
    """

    can_stop = False
    stops_late_runs = False
    needs_the_caller = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots = Slots(workers)
        # More than there are slots: a runner that has lent its slot still has its thread.
        self._threads = ElasticThreads("entropic-worker")

    def check(self, runner: Runner) -> None:
        """Every runner can."""

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the worker threads."""
        return self._slots.hold(depth)

    async def run(self, job: Job, began: Callable[[], None]) -> Outcome:
        """Run it in a thread, which cannot be stopped: a cancelled run ends and counts.

        So a loop that ends waits for it, too, as for whatever asyncio itself runs in threads.
        """
        began()
        return await undisturbed(self._threads.submit(worker.run_job, job))

    async def aclose(self) -> None:
        """End the threads."""
        self._threads.close()


class LoopExecutor:
    """The event loop itself, for runners that are ``async def``.

    Args:
        workers: How many runners at once.
    """

    can_stop = True
    stops_late_runs = True
    needs_the_caller = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots = Slots(workers)
        self._threads = Threads(min(workers, _MOST_THREADS), "entropic-worker")

    def check(self, runner: Runner) -> None:
        """Every runner can."""

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the runners at once."""
        return self._slots.hold(depth)

    async def run(self, job: Job, began: Began) -> Outcome:
        """Await it; cancelled, it stops, unless it has only its result to be looked at."""
        began()
        goes_on = functools.partial(began, goes_on=True)
        return await worker.run_job_async(job, self._threads.submit, goes_on)

    async def aclose(self) -> None:
        """End the threads that touched files."""
        self._threads.close()


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
