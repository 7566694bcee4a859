"""``AsyncStore``: arguments in, records out. What happens between is left to ``pipeline``."""

import inspect
import math
import os
import sys
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from dataclasses import dataclass
from operator import length_hint
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from entropic.async_queries import AsyncQueries
from entropic.database.urls import async_url, masked
from entropic.errors import Failure, ParamsError
from entropic.executors import Executors, check_executor
from entropic.identity import Identity, shortened
from entropic.models import Base, Records
from entropic.opening import Opening, StoreSettings, lacking
from entropic.pipeline import Params, RunOptions, Source, Wanted, as_source
from entropic.progress import Meter, ProgressOption, make_meter
from entropic.recovery import Recovered
from entropic.schedule import OnError
from entropic.settings import (
    RunSettings,
    check_on_error,
    check_own_executor,
    check_runner,
    check_seconds,
    check_suffix,
    plain_custom_data,
    result_path,
    results_folder,
)
from entropic.worker import Runner

__all__ = [
    "AsyncStore",
    "OnError",
    "Params",
    "ProgressOption",
    "R",
    "Recovered",
    "RunSettings",
    "Runner",
    "warn_of_options",
]

R = TypeVar("R", bound=Base)

_AS_THE_STORE: Final = RunSettings()


class AsyncStore(AsyncQueries[R], Generic[R]):
    """A run cache: each distinct parameter set runs once, ever; after that, its row is given.

    A store opens at its first call, on the event loop that it is called from, and belongs to
    that loop until it is closed. It can be pickled: it carries its settings, not its
    connections.

    Args:
        runner: The simulation: takes a dict of params and writes one result, a file or a folder,
            to ``params["result_file"]``. A plain function or an ``async def``.
        result_cls: The model: a subclass of ``Base`` with a column for each parameter.
        results_dir: The folder of the results; made when missing.
        file_suffix: What the results' names end with.
        db_url: The database: ``sqlite:///<path>``; ``sqlite://`` is one in memory, for this
            store alone.
        executor: Where the runner runs: ``"thread"``, a pool of threads; ``"process"``, worker
            processes; a ``concurrent.futures.Executor``; a Dask client, whose workers must share
            ``results_dir``. Under ``"thread"``, an ``async def`` is awaited on the event loop.
        max_workers: How many runners run at once; by default as many as there are CPUs, or as the
            executor has workers.
        retries: How many times more a run that fails is tried, after a while that doubles each
            time.
        timeout: Seconds after which a run is stopped and has failed, with ``RunTimeoutError``;
            refused where a runner cannot be stopped: in threads.
        checksum: Whether to keep the SHA-256 of each result.
        lock_timeout: Seconds to keep trying while another program has the database locked.
        lease_ttl: Seconds after which a run whose store has fallen silent (its machine is down,
            its network gone) is taken over by whoever wants it next. A store renews its claims
            four times in that time.

    Raises:
        SettingsError: An argument cannot work; says which one, and what to pass instead.
        ModelError: The model cannot hold runs.
    """

    _EXECUTORS: ClassVar[tuple[str, ...]] = ("thread", "process")
    # Whether to warn of custom data that may be options: a Store does it on the calling thread.
    _WARNS: ClassVar[bool] = True

    def __init__(
        self,
        runner: Runner,
        result_cls: type[R],
        results_dir: str | os.PathLike[str] = "./results",
        file_suffix: str = ".h5",
        db_url: str = "sqlite:///db.sqlite3",
        *,
        executor: Any = "thread",
        max_workers: int | None = None,
        retries: int = 0,
        timeout: float | None = None,
        checksum: bool = True,
        lock_timeout: float = 60.0,
        lease_ttl: float = 60.0,
    ) -> None:
        check_runner(runner)
        Identity(result_cls)  # raises, if the model cannot hold runs
        check_suffix(file_suffix)
        check_seconds(lock_timeout, name="lock_timeout", or_zero=True)
        check_seconds(lease_ttl, name="lease_ttl", is_finite=True)
        settings = RunSettings(executor, max_workers, retries, timeout)
        check_own_executor(settings, runner, self._EXECUTORS)
        self._opening = Opening(
            StoreSettings(
                runner,
                result_cls,
                results_folder(results_dir, file_suffix),
                async_url(db_url),
                settings,
                checksum,
                lock_timeout,
                float(lease_ttl),
            )
        )

    def __repr__(self) -> str:
        settings = self._opening.settings
        return (
            f"{type(self).__name__}({settings.model.__name__},"
            f" results_dir={settings.folder.spelled!r}, Database({masked(settings.db_url)!r}))"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opening": Opening(self._opening.settings)}

    async def __aenter__(self) -> Self:
        await self._opening.opened()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._opening.is_inside_run:  # the store is still needed to store that run
            await self.aclose()

    async def aclose(self) -> None:
        """Close the store: stop what can be stopped, let the rest end, release everything.

        A runner in a thread cannot be stopped; it ends, and its result is kept. A later call
        opens the store again.
        """
        await self._opening.aclose()

    async def run_or_retrieve(self, params: Params, /, **custom_data: Any) -> R:
        """Return the stored record of a parameter set; run it first if there is none.

        Args:
            params: The parameters, as the model types them. What is left out has its default.
            custom_data: Kept in the row's ``custom_data``, beside ``elapsed_seconds``, if it
                runs; ignored on a hit.

        Returns:
            The record, detached: it stays as it is when the store is closed.

        Raises:
            ParamsError: The model cannot take the params or the custom data; nothing was run.
            ResultMissingError: The runner left no result.
            RunCycleError: The run needs, directly or not, its own result.
            RunInterruptedError: The run was stopped before it ended.
            ResultsDirError: The results folder is not there, or cannot be used.
            DatabaseError: The database failed.
            Exception: Whatever the runner raised.
        """
        return await self._one(params, custom_data, force=False)

    async def run(self, params: Params, /, **custom_data: Any) -> R:
        """Run a parameter set in any case, and replace what is stored of it.

        The row and the result are replaced in one step; where the run fails, both stay as they
        were. ``created_at`` stays, too.

        Args:
            params: The parameters, as the model types them.
            custom_data: Kept in the row's ``custom_data``, beside ``elapsed_seconds``.

        Returns:
            The new record, detached.

        Raises:
            ParamsError: The model cannot take the params or the custom data; nothing was run.
            ResultMissingError: The runner left no result.
            RunCycleError: The run needs, directly or not, its own result.
            RunInterruptedError: The run was stopped before it ended.
            ResultsDirError: The results folder is not there, or cannot be used.
            DatabaseError: The database failed.
            Exception: Whatever the runner raised.
        """
        return await self._one(params, custom_data, force=True)

    async def retrieve(self, params: Params, /) -> R | None:
        """Return the stored record of a parameter set, or ``None``; run nothing.

        Args:
            params: The parameters; where they have an ``id``, the others may be left out.

        Returns:
            The record, detached; ``None`` where there is none, or its result is gone.

        Raises:
            ParamsError: The model cannot take the params.
            ResultsDirError: The record is there, and the whole folder of its result is not.
            DatabaseError: The database failed.
        """
        async with self._opening.using() as opened:
            return await opened.pipeline.retrieve(params)

    async def delete(
        self, params: Params | None = None, hash: str | None = None, remove_file: bool = False
    ) -> bool:
        """Remove a stored run.

        Args:
            params: The parameters; where they have an ``id``, the others may be left out.
            hash: The run id; it wins over ``params``.
            remove_file: Whether to remove the result from the disk, too, a registered one
                included. One that is gone already is no error.

        Returns:
            Whether a row was removed.

        Raises:
            ValueError: Neither ``params`` nor ``hash`` was given.
            ParamsError: The params or the id cannot be anybody's.
            DatabaseError: The database failed; nothing was removed.
        """
        if params is None and hash is None:
            raise ParamsError("delete needs params or hash: which run is to go?")
        async with self._opening.using() as opened:
            return await opened.pipeline.deleter.delete(params, hash, remove_file=remove_file)

    async def register(
        self, params: Params, /, result_file: str | os.PathLike[str], **custom_data: Any
    ) -> R:
        """Index a result that was made elsewhere; it stays where it is.

        Args:
            params: The parameters that it was made with.
            result_file: The result, a file or a folder. The record gives it as it is given here.
            custom_data: Kept in the row's ``custom_data``.

        Returns:
            The record, detached. It replaces an earlier one of the same params.

        Raises:
            FileNotFoundError: There is no such file.
            ResultMissingError: It is empty.
            ParamsError: The model cannot take the params or the custom data.
            DatabaseError: The database failed; nothing was stored.
        """
        if self._WARNS:
            warn_of_options(custom_data)
        checked = plain_custom_data(custom_data)
        path = result_path(result_file)
        async with self._opening.using() as opened:
            return await opened.pipeline.registrar.register(params, path, checked)

    async def sweep(
        self,
        params: Iterable[Params] | AsyncIterable[Params],
        client: Any = None,
        *,
        custom_data: Mapping[str, Any] | None = None,
        executor: Any = None,
        max_workers: int | None = None,
        on_error: OnError = "raise",
        retries: int | None = None,
        timeout: float | None = None,
        progress: ProgressOption = False,
    ) -> Records[R]:
        """Return the records of many parameter sets; run those that are not stored.

        Args:
            params: The parameter sets: any iterable, also an async one, read once.
            client: A Dask client to run on: the same as ``executor=client``.
            custom_data: Kept in the ``custom_data`` of the rows that this sweep runs.
            executor: Where to run, instead of where the store does.
            max_workers: How many runners run at once, instead of as many as the store has.
            on_error: What a run that fails means for the others. ``"raise"``: nothing more is
                started, what is at work ends and is kept, and then the failure is raised.
                ``"finish"``: all others run, and then a ``SweepError`` is raised. ``"skip"``: the
                same, but the records are returned, and a warning is logged.
            retries: How many times more a run that fails is tried, instead of the store's.
            timeout: Seconds after which a run is stopped, instead of the store's; ``math.inf``
                for never.
            progress: ``True`` shows a bar on a terminal or in a notebook, ``"always"`` in any
                case; a function gets a ``Progress`` each time that something has happened.

        Returns:
            One record, detached, for each distinct set, in first-seen order: a list that shows
            itself as a table.

        Raises:
            SettingsError: An option cannot work; nothing was run.
            ParamsError: A set that the model cannot take, with its position in the input; it
                was not run.
            ResultMissingError: A runner left no result.
            RunTimeoutError: A runner took longer than ``timeout``.
            WorkerDiedError: The worker process of a run died.
            RunCycleError: A run needs, directly or not, its own result.
            SweepError: Runs have failed, and ``on_error`` is ``"finish"``.
            ResultsDirError: The results folder is not there, or cannot be used.
            DatabaseError: The database failed.
            Exception: What the first runner that failed raised, or the iterable itself.
        """
        settings = RunSettings.of_call(client, executor, max_workers, retries, timeout)
        return await self._collect(
            self._call(params, custom_data, settings, on_error, progress, is_sweep=True)
        )

    def as_completed(
        self,
        params: Iterable[Params] | AsyncIterable[Params],
        client: Any = None,
        *,
        custom_data: Mapping[str, Any] | None = None,
        executor: Any = None,
        max_workers: int | None = None,
        on_error: OnError = "raise",
        retries: int | None = None,
        timeout: float | None = None,
        progress: ProgressOption = False,
    ) -> AsyncGenerator[R, None]:
        """Yield the record of each parameter set as soon as it is there; run those not stored.

        The input may be endless: it is read only as fast as records are taken, and only what is
        under way is remembered of it. Who leaves the loop early, leaves what has not started;
        what is finished is kept.

        Args:
            params: As of ``sweep``.
            client: As of ``sweep``.
            custom_data: As of ``sweep``.
            executor: As of ``sweep``.
            max_workers: As of ``sweep``.
            on_error: As of ``sweep``; a failure is raised after the records of all that was
                under way. The ``SweepError`` has no records.
            retries: As of ``sweep``.
            timeout: As of ``sweep``.
            progress: As of ``sweep``.

        Yields:
            One record, detached, for each set of the input, also for one that was there before.

        Raises:
            Exception: What ``sweep`` raises.
        """
        settings = RunSettings.of_call(client, executor, max_workers, retries, timeout)
        call = self._call(params, custom_data, settings, on_error, progress, is_sweep=True)
        return self._one_by_one(self._batches(call))

    async def failures(self) -> list[Failure]:
        """Return the failures on record: of runs that have not succeeded since.

        Returns:
            One for each run id, in the order of the ids, with a ``RemoteRunError`` as its
            exception: what was raised is known as text alone.

        Raises:
            DatabaseError: The database failed.
        """
        async with self._opening.using() as opened:
            return await opened.pipeline.failures()

    async def recover(self) -> Recovered:
        """Store what a crash has left finished, discard what it has left unfinished.

        A store does so by itself when it opens and when a sweep begins. What an owner stages who
        is alive, or whose lease has not passed, is left alone; so is an unfinished run to which
        something was written within the last ``lease_ttl`` seconds.

        Returns:
            The ids of what was stored and of what was discarded, and the paths in the results
            folder that look like results and have no row. Those are left alone.

        Raises:
            ResultsDirError: The results folder is not there, or cannot be used.
            DatabaseError: The database failed.
        """
        async with self._opening.using() as opened:
            return await opened.pipeline.recover()

    async def ddl(self) -> str:
        """Return the SQL that makes what the database lacks, for whoever may make tables there.

        A store does so by itself when it opens, where its role in the database may.

        Returns:
            Statements, each with a semicolon at its end; empty where nothing is missing.

        Raises:
            SchemaError: A table differs from the model in another way.
            DatabaseError: The database failed.
        """
        return "".join(f"{statement};\n" for statement in await lacking(self._opening.settings))

    async def _one(self, params: Params, custom_data: Mapping[str, Any], *, force: bool) -> R:
        if self._WARNS:
            warn_of_options(custom_data)
        checked = plain_custom_data(custom_data)
        if force:
            return (await self._collect(self._call([params], checked), force=True))[0]
        # Most requests end here, and have no need of all that a run takes.
        async with self._opening.using() as opened:
            wanted, record = await opened.pipeline.stored(params)
        if record is not None:
            return record
        return (await self._collect(self._call([wanted], checked)))[0]

    def _call(
        self,
        params: Iterable[Wanted] | AsyncIterable[Wanted],
        custom_data: Mapping[str, Any] | None,
        settings: RunSettings = _AS_THE_STORE,
        on_error: OnError = "raise",
        progress: ProgressOption = False,
        *,
        is_sweep: bool = False,
    ) -> "_Call":
        check_on_error(on_error)
        if settings.executor is not None:
            check_executor(settings.executor, self._EXECUTORS)
        return _Call(
            as_source(params),
            plain_custom_data({} if custom_data is None else custom_data),
            settings.or_else(self._opening.settings.runs),
            on_error,
            make_meter(progress, _length(params)),
            is_sweep,
        )

    async def _collect(self, call: "_Call", *, force: bool = False) -> Records[R]:
        try:
            async with self._opening.using() as opened:
                if call.is_sweep:
                    await opened.pipeline.tidy()
                options = await call.options(opened.executors)
                try:
                    records = await opened.pipeline.collect(
                        call.source, options, on_error=call.on_error, meter=call.meter, force=force
                    )
                finally:
                    await opened.executors.release(options.executor)
        finally:
            call.meter.close()
        return Records(records)

    async def _batches(self, call: "_Call") -> AsyncGenerator[list[R], None]:
        try:
            # No call that a closing store waits for: nobody can tell when the next record is taken.
            opened = await self._opening.opened()
            await opened.pipeline.tidy()
            options = await call.options(opened.executors)
            records = opened.pipeline.stream(
                call.source, options, on_error=call.on_error, meter=call.meter
            )
            try:
                async with aclosing(records):
                    async for batch in records:
                        yield batch
            finally:
                await opened.executors.release(options.executor)
        finally:
            call.meter.close()


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that runs: its arguments, checked."""

    source: Source
    custom_data: dict[str, Any]
    settings: RunSettings
    on_error: OnError
    meter: Meter
    is_sweep: bool

    async def options(self, executors: Executors) -> RunOptions:
        """How to run; the executor is to be released."""
        settings = self.settings
        executor = await executors.acquire(
            settings.executor, settings.max_workers, settings.timeout
        )
        return RunOptions(
            executor, self.custom_data, settings.retries or 0, _finite(settings.timeout)
        )


def _finite(timeout: float | None) -> float | None:
    return None if timeout is None or math.isinf(timeout) else timeout


def _length(params: object) -> int | None:
    length = length_hint(params, -1)
    return length if length >= 0 else None


def warn_of_options(custom_data: Mapping[str, Any]) -> None:
    """Warn where custom data has the name of an option: it may have been meant for one.

    The warning points at the line of the user's that called.
    """
    names = _OPTIONS.keys() & custom_data.keys()
    if not names:
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("entropic."):
        level, frame = level + 1, frame.f_back
    for name in sorted(names):
        warnings.warn(
            f"{name}={shortened(custom_data[name])} is kept as custom data of the run; the option"
            f" {name!r} is an argument of {_OPTIONS[name]}",
            stacklevel=level,
        )


def _options() -> dict[str, str]:
    """Where each option lives that could be mistaken for custom data, or the other way round."""
    store = inspect.signature(AsyncStore.__init__).parameters
    sweep = inspect.signature(AsyncStore.sweep).parameters
    of_store = {name: "the store itself" for name in store if name != "self"}
    of_sweep = {name: "sweep" for name in sweep if name not in ("self", "params")}
    return {**of_sweep, **of_store}


_OPTIONS: Final = _options()
