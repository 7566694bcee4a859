"""A Dask cluster as a place to run; Dask itself is imported by whoever has a client of it."""

import asyncio
import contextlib
import os
import uuid
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Final, TypeVar

from entropic._shield import in_own_thread, to_the_end, uncancel
from entropic._slots import Slots
from entropic.artifacts import Stage
from entropic.errors import RunError, RunInterruptedError, SettingsError, WorkerDiedError
from entropic.executors import is_dask
from entropic.executors.dask_client import (
    OPEN,
    check_client,
    check_options,
    threads_of,
)
from entropic.executors.dask_tasks import Task, Tasks
from entropic.executors.dask_worker import run_task
from entropic.executors.parcels import Reply, check_travels, dumps, failed
from entropic.worker import Job, Outcome, Runner

T = TypeVar("T")

# Enough in the scheduler that no worker thread waits for its next run while the answers of several
# are fetched at once; a million tasks in it would be slow. An adaptive cluster without workers
# needs some to see that it has to grow.
_TASKS_PER_THREAD: Final = 8
_FEWEST_TASKS: Final = 8
_MOST_TASKS: Final = 10_000

# How often to look which runs have begun and whether the client still lives, and how often to ask
# how large the cluster is.
_GLANCE_SECONDS: Final = 0.05
_SIZE_SECONDS: Final = 2.0


class Dask:
    """A Dask client, with options of its ``submit`` for every run.

    Args:
        client: A ``distributed.Client``.
        submit_options: Such as ``resources={"GPU": 1}``, ``priority=10``, ``workers=[...]``.

    Raises:
        SettingsError: It is no client, or an option is none of ``submit``'s, or one that entropic
            needs for itself.
    """

    __slots__ = ("client", "submit_options")

    client: Any
    submit_options: Mapping[str, Any]

    def __init__(self, client: Any, /, **submit_options: Any) -> None:
        if isinstance(client, Dask) or not is_dask(client):
            raise SettingsError(
                f"client must be a dask.distributed.Client, not {type(client).__name__}"
            )
        check_options(client, submit_options)
        object.__setattr__(self, "client", client)
        object.__setattr__(self, "submit_options", MappingProxyType(submit_options))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a Dask cannot be changed; make another one")

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.submit_options.items())
        return f"Dask({self.client!r}{options})"


class DaskExecutor:
    """A Dask cluster, through a client of the user's; its workers must share ``results_dir``.

    Args:
        dask: The client and its options.
        threads: How many threads its workers have at the moment.
        max_workers: How many runners at once at most; ``None`` for as many as there are threads.
    """

    can_stop = False
    stops_late_runs = True
    needs_the_caller = False

    def __init__(self, dask: Dask, threads: int, max_workers: int | None = None) -> None:
        self._dask = dask
        self._client = dask.client
        self._most = max_workers
        self._threads = threads
        self._slots = self._room()
        # Where the scheduler has none ahead, a worker waits for each answer.
        self._tasks = Tasks(
            self._client, run_task, dask.submit_options, lingers=max_workers is None
        )
        self._waiting: dict[str, Callable[[], None]] = {}
        self._ended: dict[str, asyncio.Future[Any]] = {}
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, client: Any, max_workers: int | None = None) -> "DaskExecutor":
        """The executor of a client's cluster.

        Args:
            client: A Dask client, or one with options.
            max_workers: How many runners at once at most.

        Raises:
            SettingsError: It is no Dask client, is closed, or belongs to another event loop.
        """
        dask = client if isinstance(client, Dask) else Dask(client)
        check_client(dask.client)
        return cls(dask, await threads_of(dask.client, dask.submit_options), max_workers)

    @property
    def workers(self) -> int:
        """How many runners are at work at once, as the cluster is now."""
        threads = max(1, self._threads)
        return threads if self._most is None else min(threads, self._most)

    def check(self, runner: Runner) -> None:
        """Raise ``SettingsError`` where the client is closed, or the runner cannot be sent."""
        check_client(self._client)
        check_travels(runner, "Dask workers")

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the tasks that the scheduler holds at once."""
        return self._slots.hold(depth)

    async def run(self, job: Job, began: Callable[[], None]) -> Outcome:
        """Submit it; cancelled, its task is, too, unless the runner has begun: then it ends.

        Raises:
            RunError: The client or its scheduler went away.
        """
        task = self._submit(job)
        answer = task.answer
        self._watch(job.stage, answer, began)
        try:
            while not answer.done():
                try:
                    await asyncio.wait({answer})
                except asyncio.CancelledError:
                    if await self._drop(job.stage, task):
                        raise
                    began()
            if answer.cancelled():
                raise self._lost("closed")
            if (refused := answer.exception()) is not None:
                raise self._refused(refused) from refused
            return self._outcome(answer.result())
        finally:
            self._waiting.pop(job.stage.folder, None)
            self._ended.pop(job.stage.folder, None)

    async def aclose(self) -> None:
        """The client is the user's, and stays open."""
        if self._watching is not None:
            self._watching.cancel()
            await to_the_end(asyncio.wait({self._watching}))

    def _submit(self, job: Job) -> Task:
        try:
            content = dumps(job)
        except Exception as error:
            raise self._refused(error) from error
        return self._tasks.add(f"entropic-{job.id}-{uuid.uuid4().hex}", content)

    def _refused(self, error: BaseException) -> RunError:
        if self._client.status in OPEN:
            return RunError(f"the Dask client refused a run: {type(error).__name__}: {error}")
        return self._lost(self._client.status)

    async def _drop(self, stage: Stage, task: Task) -> bool:
        """Cancel a task whose runner has not begun; whether that is so.

        Whoever makes the stage first has decided it: a task that finds one there does not run.
        """
        making = asyncio.ensure_future(in_own_thread(_take_stage, stage))
        while not making.done():
            try:
                await asyncio.wait({making})
            except asyncio.CancelledError:
                uncancel()
        if not making.result():
            uncancel()
            return False
        await self._tasks.cancel(task)
        return True

    def _outcome(self, answer: Any) -> Outcome:
        if isinstance(answer, Reply):
            return answer.open()
        reason = getattr(answer, "reason", None)
        if isinstance(answer, asyncio.CancelledError) or reason is not None:
            return self._cancelled(reason)
        if type(answer).__name__ == "KilledWorker":
            return failed(_caused(WorkerDiedError(f"the Dask worker died: {answer}"), answer))
        if isinstance(answer, ModuleNotFoundError):
            text = (
                f"a Dask worker has no module {answer.name!r}; install entropic, and what the"
                " runner needs, on every worker, in the same versions as here"
            )
        else:
            text = f"Dask could not carry the run: {type(answer).__name__}: {answer}"
        raise _caused(RunError(text), answer)

    def _cancelled(self, reason: str | None) -> Outcome:
        if reason == "scheduler-restart":
            return failed(WorkerDiedError("the Dask cluster was restarted while the run was there"))
        if self._client.status != "running" or reason == "scheduler-connection-lost":
            raise self._lost(self._client.status)
        return failed(
            RunInterruptedError(f"the run's Dask task was cancelled ({reason or 'by its client'})")
        )

    def _lost(self, status: str) -> RunError:
        return RunError(
            f"the Dask client or its scheduler went away while a run was under way (the client is"
            f" {status}); what has finished is kept, so ask again with a new client"
        )

    def _watch(
        self, stage: Stage, answer: "asyncio.Future[Any]", began: Callable[[], None]
    ) -> None:
        self._waiting[stage.folder] = began
        self._ended[stage.folder] = answer
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._look(), name="entropic looks at Dask")

    async def _look(self) -> None:
        """While there are runs: see which have begun, that the client lives, how large it is."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while self._ended:
            await asyncio.sleep(_GLANCE_SECONDS)
            await self._see_what_began()
            if self._client.status == "closed":
                # A closed client's loop may have stopped: nobody else would end these.
                for answer in self._ended.values():
                    answer.cancel()
            elif loop.time() - asked > _SIZE_SECONDS:
                await self._measure()
                asked = loop.time()

    async def _see_what_began(self) -> None:
        """A run has begun when its stage is there; one look at a folder tells it of all."""
        for folder in {os.path.dirname(folder) for folder in self._waiting}:
            names = await in_own_thread(_names, folder)
            for name in names:
                began = self._waiting.pop(os.path.join(folder, name), None)
                if began is not None:
                    began()

    async def _measure(self) -> None:
        """Follow a cluster that grows or shrinks."""
        with contextlib.suppress(Exception):  # one that does not answer has not changed its size
            async with asyncio.timeout(_SIZE_SECONDS):
                self._threads = await threads_of(self._client, self._dask.submit_options)
        self._slots.resize(self._held)

    @property
    def _held(self) -> int:
        if self._most is not None:  # none ahead: the cluster may have more threads at once
            return self._most
        return min(max(_FEWEST_TASKS, self._threads * _TASKS_PER_THREAD), _MOST_TASKS)

    def _room(self) -> Slots:
        """Slots of its own where the call limits it; otherwise all share those of the client."""
        if self._most is not None or self._dask.submit_options:
            return Slots(self._held)
        slots = _slots.setdefault(self._client, Slots(self._held))
        slots.resize(self._held)
        return slots


# Several stores and sweeps of one client share the bound on what its scheduler holds.
_slots: Final["weakref.WeakKeyDictionary[Any, Slots]"] = weakref.WeakKeyDictionary()


def _take_stage(stage: Stage) -> bool:
    """Make a run's stage before its worker does; whether that worked."""
    try:
        os.mkdir(stage.folder)
    except FileExistsError:
        return False
    except OSError:
        return True  # the results folder is gone: the worker cannot make it either
    return True


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _caused(error: T, cause: BaseException) -> T:
    assert isinstance(error, BaseException)
    error.__cause__ = cause
    return error
