"""Where runners run: one protocol, and the places that keep to it.

An executor takes a job and gives back its outcome; how many it takes at once is its slots. Which
job is run, and when, is left to ``pipeline``; what a job does, to ``worker``.
"""

import asyncio
import contextvars
import functools
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, ParamSpec, Protocol, TypeVar

import anyio.to_thread

from entropic import worker
from entropic._portal import callers_turn, run_in_caller
from entropic._shield import to_the_end, undisturbed
from entropic._slots import Slots
from entropic.errors import RunError, SettingsError, StoreClosedError
from entropic.worker import Job, Outcome, Runner

P = ParamSpec("P")
T = TypeVar("T")

# Far more than are ever needed: ThreadPoolExecutor makes threads only when all are busy.
_MOST_THREADS: Final = 1000


class Executor(Protocol):
    """A place to run.

    Attributes:
        workers: How many runners can be at work at once.
        can_stop: Whether a cancellation stops a runner that is at work.
    """

    workers: int
    can_stop: bool

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """Wait for room to run one job; the current task is the one that carries the run out.

        A runner that waits for another run lends its room meanwhile, so that none waits for ever.

        Args:
            depth: How many runs the job is inside of.
        """
        ...

    async def run(self, job: Job) -> Outcome:
        """Run a job.

        Cancelled, it stops the runner and raises ``CancelledError`` where the runner can be
        stopped; where it cannot, it lets it finish and returns the outcome, so that no work is
        lost.
        """
        ...

    async def aclose(self) -> None:
        """Give back what the executor holds."""
        ...


class Threads:
    """A pool of threads of the store's own, with the caller's context variables.

    Not the loop's default pool: threads of that one may be waiting for this very store.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._is_closed = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in one of the threads; a cancelled call goes on there, unheeded.

        Raises:
            StoreClosedError: The threads have been closed.
        """
        if self._is_closed:
            raise StoreClosedError
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Let the threads end, each with what it is at."""
        self._is_closed = True
        self._pool.shutdown(wait=False)


class CallerExecutor:
    """The thread that called the ``Store``: one run at a time, as if there were no entropic."""

    workers = 1
    # The last one to leave is the thread that runs it, and that only leaves when interrupted.
    can_stop = True

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """The turn of a thread that has called for the run; a nested call has its own."""
        return callers_turn()

    async def run(self, job: Job) -> Outcome:
        """Run it there; ``sys.exit`` and Ctrl-C in the runner go through to the caller."""
        return await run_in_caller(worker.run_job, job, contain=False)

    async def aclose(self) -> None:
        """Nothing is held."""


class ThreadExecutor:
    """Worker threads of this process.

    Args:
        workers: How many runners at once.
    """

    can_stop = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots = Slots(workers)
        # More than there are slots: a runner that has lent its slot still has its thread.
        self._threads = Threads(_MOST_THREADS, "entropic-worker")

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the worker threads."""
        return self._slots.hold(depth)

    async def run(self, job: Job) -> Outcome:
        """Run it in a thread, which cannot be stopped: a cancelled run ends and counts."""
        return await undisturbed(self._threads.run(worker.run_job, job))

    async def aclose(self) -> None:
        """End the threads."""
        self._threads.close()


class LoopExecutor:
    """The event loop itself, for runners that are ``async def``.

    Args:
        workers: How many runners at once.
    """

    can_stop = True

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._slots = Slots(workers)
        self._threads = Threads(min(workers, _MOST_THREADS), "entropic-worker")

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the runners at once."""
        return self._slots.hold(depth)

    async def run(self, job: Job) -> Outcome:
        """Await it; cancelled, it stops."""
        return await worker.run_job_async(job, self._threads.run)

    async def aclose(self) -> None:
        """End the threads that touched files."""
        self._threads.close()


class DaskExecutor:
    """A Dask cluster, through a client of the user's; its workers must share ``results_dir``.

    Args:
        client: A ``distributed.Client``, synchronous or asynchronous.
        threads: How many threads its workers have.
    """

    can_stop = True

    # Enough in the scheduler that no worker thread waits for its next run; a million tasks in it
    # would be slow.
    _TASKS_PER_THREAD: Final = 2

    def __init__(self, client: Any, threads: int) -> None:
        self._client = client
        self.workers = max(1, threads) * self._TASKS_PER_THREAD
        self._slots = Slots(self.workers)

    @classmethod
    async def connect(cls, client: Any) -> "DaskExecutor":
        """The executor of a client's cluster.

        Raises:
            SettingsError: It is no Dask client, is closed, or belongs to another event loop.
        """
        if not is_dask_client(client):
            raise SettingsError(
                f"client must be a dask.distributed.Client, not {type(client).__name__}"
            )
        if client.status not in ("running", "connecting"):
            raise SettingsError(f"the Dask client is {client.status}; make a new one")
        # Its public attribute says whether this is its own loop; on another one it would block
        # this thread until that loop answers, which may be waiting for this call.
        if getattr(client, "_asynchronous", False) and not client.asynchronous:
            raise SettingsError(
                "the Dask client is asynchronous and belongs to another event loop; use it with an"
                " AsyncStore on its own loop, or make a synchronous client"
            )
        threads = await _ask(client, client.nthreads)
        return cls(client, sum(threads.values()))

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the tasks that the scheduler holds at once."""
        return self._slots.hold(depth)

    async def run(self, job: Job) -> Outcome:
        """Submit it; cancelled, its task is, too."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        future = self._client.submit(
            worker.run_anywhere, job, key=f"entropic-{job.id}-{uuid.uuid4().hex}", pure=False
        )
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        try:
            await ended.wait()
            return await self._result(future)
        except asyncio.CancelledError:
            await to_the_end(_ask(self._client, future.cancel))
            raise
        finally:
            future.release()

    async def aclose(self) -> None:
        """The client is the user's, and stays open."""

    async def _result(self, future: Any) -> Outcome:
        if future.status == "cancelled":
            raise RunError("the Dask client or its scheduler went away while a run was under way")
        outcome = await _ask(self._client, future.result)
        assert isinstance(outcome, Outcome)
        return outcome


async def _ask(client: Any, question: Callable[[], Any]) -> Any:
    """What a Dask client answers; a synchronous one blocks its thread until it does."""
    return await question() if client.asynchronous else await anyio.to_thread.run_sync(question)


def is_dask_client(value: object) -> bool:
    """Whether this is a Dask client; Dask is not imported to find out."""
    return any(
        cls.__name__ == "Client" and cls.__module__.partition(".")[0] == "distributed"
        for cls in type(value).__mro__
    )


def make_executor(executor: str, runner: Runner, max_workers: int | None) -> Executor:
    """The executor that a store's options ask for.

    Args:
        executor: ``"caller"`` or ``"thread"``.
        runner: The runner: an ``async def`` runs on the loop under each local choice.
        max_workers: How many runners at once; ``None`` for as many as there are CPUs.
    """
    workers = available_cpus() if max_workers is None else max_workers
    if worker.is_async(runner):
        return LoopExecutor(workers)
    return CallerExecutor() if executor == "caller" else ThreadExecutor(workers)


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
