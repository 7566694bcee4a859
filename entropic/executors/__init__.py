"""Where runners run: one protocol, and the places that keep to it.

An executor takes a job and gives back its outcome; how many it takes at once is its slots. Which
job is run, and when, is left to ``pipeline``; what a job does, to ``worker``.
"""

import asyncio
import concurrent.futures
import math
from typing import Any, Final

from entropic import worker
from entropic._shield import to_the_end
from entropic.errors import SettingsError
from entropic.executors.local import (
    CallerExecutor,
    LoopExecutor,
    ThreadExecutor,
    available_cpus,
)
from entropic.executors.protocol import Executor
from entropic.executors.threads import Threads
from entropic.worker import Runner

__all__ = [
    "NAMES",
    "Executor",
    "Executors",
    "Threads",
    "available_cpus",
    "check_executor",
    "check_stops_late_runs",
    "check_workers",
    "is_dask",
]

NAMES: Final = ("caller", "thread", "process")
"""The executors that have a name."""


class Executors:
    """The executors of one open store, each made when it is first asked for.

    Args:
        runner: The user's function.
        executor: Where it runs if a call says nothing else: a name, or an object of the user's.
        max_workers: How many runners at once; ``None`` for as many as there are CPUs, or as the
            user's object has.
    """

    def __init__(self, runner: Runner, executor: Any, max_workers: int | None) -> None:
        self._runner = runner
        self._default = (executor, max_workers)
        self._made: dict[tuple[Any, int | None], Executor] = {}
        self._users: dict[Executor, int] = {}
        self._making = asyncio.Lock()

    async def acquire(
        self, executor: Any = None, max_workers: int | None = None, timeout: float | None = None
    ) -> Executor:
        """An executor for one call, which has to release it.

        Args:
            executor: What the call asks for; ``None`` for the store's own.
            max_workers: The same.
            timeout: Seconds after which it has to stop a runner, if any.

        Raises:
            SettingsError: There is no such executor, it cannot be used, or it cannot stop this
                runner.
        """
        kind = self._default[0] if executor is None else executor
        is_own = _key(kind) == _key(self._default[0])
        workers = self._default[1] if max_workers is None and is_own else max_workers
        check_workers(kind, self._runner, workers)
        async with self._making:  # those who come together share one
            found = self._made.get((_key(kind), workers))
            if found is None:
                found = await self._make(kind, workers)
            self.share(found)
        try:
            found.check(self._runner)
            check_stops_late_runs(kind, timeout, can=found.stops_late_runs)
        except BaseException:
            await to_the_end(self.release(found))
            raise
        return found

    def share(self, executor: Executor) -> None:
        """One more uses an executor: a run goes on after the call that started it."""
        self._users[executor] += 1

    async def release(self, executor: Executor) -> None:
        """One of its users leaves it; the last one closes what is not the store's own."""
        if executor not in self._users:  # the store has been closed meanwhile
            return
        self._users[executor] -= 1
        if not self._users[executor]:
            self._forget(executor)  # before anybody else can find it
            await to_the_end(executor.aclose())

    async def aclose(self) -> None:
        """Close them all."""
        for executor in list(self._users):
            self._forget(executor)
            await executor.aclose()

    async def _make(self, kind: Any, workers: int | None) -> Executor:
        made = await make_executor(kind, self._runner, workers)
        is_own = (_key(kind), workers) == (_key(self._default[0]), self._default[1])
        self._made[_key(kind), workers] = made
        self._users[made] = int(is_own)  # the store itself is a user of its own
        return made

    def _forget(self, executor: Executor) -> None:
        del self._users[executor]
        self._made = {key: made for key, made in self._made.items() if made is not executor}


def _key(kind: Any) -> Any:
    """Names by what they say, objects by which one it is."""
    return kind if isinstance(kind, str) else id(kind)


def check_executor(executor: object, names: tuple[str, ...] = NAMES) -> None:
    """Raise ``SettingsError`` unless this can be an executor."""
    is_object = isinstance(executor, concurrent.futures.Executor) or is_dask(executor)
    if is_object or (isinstance(executor, str) and executor in names):
        return
    choices = ", ".join(map(repr, names))
    raise SettingsError(
        f"executor must be {choices}, a concurrent.futures.Executor or a Dask client, not"
        f" {executor!r:.120}"
    )


def check_stops_late_runs(kind: Any, timeout: float | None, *, can: bool) -> None:
    """Raise ``SettingsError`` where a timeout is asked for, and a runner cannot be stopped."""
    if can or timeout is None or math.isinf(timeout):
        return
    raise SettingsError(
        f"timeout={timeout:g} cannot be kept with executor={kind!r}: Python cannot stop a thread."
        ' Use executor="process", a Dask client, or an `async def` runner'
    )


def check_workers(kind: Any, runner: Runner, max_workers: int | None) -> None:
    """Raise ``SettingsError`` where there is but one worker, and more are asked for."""
    if kind == "caller" and max_workers not in (None, 1) and not worker.is_async(runner):
        raise SettingsError(
            f"max_workers={max_workers} cannot be kept with executor='caller': the thread that"
            ' called runs one at a time. Use executor="thread" or executor="process"'
        )


async def make_executor(executor: Any, runner: Runner, max_workers: int | None) -> Executor:
    """The executor that a store's options ask for.

    Args:
        executor: A name, a ``concurrent.futures.Executor``, or a Dask client.
        runner: The runner: an ``async def`` runs on the loop in this process.
        max_workers: How many runners at once; ``None`` for as many as there are CPUs, or as the
            object has.

    Raises:
        SettingsError: The object cannot be used.
    """
    workers = available_cpus() if max_workers is None else max_workers
    if executor == "process":
        from entropic.executors.processes import ProcessExecutor

        return ProcessExecutor(workers)
    if isinstance(executor, str):
        if worker.is_async(runner):
            return LoopExecutor(workers)
        return CallerExecutor() if executor == "caller" else ThreadExecutor(workers)
    if isinstance(executor, concurrent.futures.Executor):
        from entropic.executors.futures import FuturesExecutor

        return FuturesExecutor(executor, max_workers)
    from entropic.executors.dask import DaskExecutor

    return await DaskExecutor.connect(executor, max_workers)


def is_dask(value: object) -> bool:
    """Whether this is a Dask client, or one with options; Dask is not imported to find out."""
    return any(
        (cls.__name__ == "Client" and cls.__module__.partition(".")[0] == "distributed")
        or (cls.__name__ == "Dask" and cls.__module__ == "entropic.executors.dask")
        for cls in type(value).__mro__
    )
