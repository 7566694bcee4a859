"""A Dask cluster as a place to run; Dask itself is imported by whoever has a client of it."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import anyio.to_thread

from entropic import worker
from entropic._shield import to_the_end
from entropic._slots import Slots
from entropic.errors import RunError, SettingsError
from entropic.worker import Job, Outcome, Runner


class DaskExecutor:
    """A Dask cluster, through a client of the user's; its workers must share ``results_dir``.

    Args:
        client: A ``distributed.Client``, synchronous or asynchronous.
        threads: How many threads its workers have.
    """

    can_stop = True
    stops_late_runs = False

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

    def check(self, runner: Runner) -> None:
        """Nothing is known of it here."""

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the tasks that the scheduler holds at once."""
        return self._slots.hold(depth)

    async def run(self, job: Job, began: Callable[[], None]) -> Outcome:
        """Submit it; cancelled, its task is, too."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        began()
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
