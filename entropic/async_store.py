"""``AsyncStore``: arguments in, records out. What happens between is left to ``pipeline``."""

import asyncio
import inspect
import os
import platform
import sys
import uuid
import warnings
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import anyio.to_thread

from entropic._shield import to_the_end
from entropic.artifacts import COMPANIONS, ResultsFolder
from entropic.database import Database
from entropic.database.urls import async_url, masked
from entropic.errors import ParamsError, RunError, SettingsError, WrongLoopError
from entropic.executors import DaskExecutor, Executor, make_executor
from entropic.identity import Identity, checked_custom_data
from entropic.ledger import Ledger
from entropic.models import Base
from entropic.pipeline import Params, Pipeline, as_source
from entropic.schema import open_schema
from entropic.worker import Runner

__all__ = ["AsyncStore", "Params", "R", "Runner", "warn_of_options"]

R = TypeVar("R", bound=Base)


@dataclass(frozen=True, slots=True)
class _Opened(Generic[R]):
    database: Database
    executor: Executor
    pipeline: Pipeline[R]


class AsyncStore(Generic[R]):
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
        executor: Where the runner runs: ``"thread"``, a pool of threads. An ``async def`` is
            awaited on the event loop.
        max_workers: How many runners run at once; by default as many as there are CPUs.
        checksum: Whether to keep the SHA-256 of each result.
        lock_timeout: Seconds to keep trying while another program has the database locked.

    Raises:
        SettingsError: An argument cannot work; says which one, and what to pass instead.
        ModelError: The model cannot hold runs.
    """

    _EXECUTORS: ClassVar[tuple[str, ...]] = ("thread",)
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
        executor: str = "thread",
        max_workers: int | None = None,
        checksum: bool = True,
        lock_timeout: float = 60.0,
    ) -> None:
        _check_runner(runner)
        Identity(result_cls)  # raises, if the model cannot hold runs
        _check_suffix(file_suffix)
        if executor not in self._EXECUTORS:
            choices = " or ".join(map(repr, self._EXECUTORS))
            raise SettingsError(f"executor must be {choices}, not {executor!r}")
        _check_workers(max_workers)
        _check_timeout(lock_timeout)
        self._runner = runner
        self._model = result_cls
        self._folder = _results_folder(results_dir, file_suffix)
        self._db_url = async_url(db_url)
        self._executor = executor
        self._max_workers = max_workers
        self._checksum = checksum
        self._lock_timeout = lock_timeout
        self._opening: asyncio.Task[_Opened[R]] | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._model.__name__}, results_dir={self._folder.spelled!r},"
            f" Database({masked(self._db_url)!r}))"
        )

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_inside_run():  # the store is still needed to store that run
            await self.aclose()

    async def aclose(self) -> None:
        """Close the store: stop what can be stopped, let the rest end, release everything.

        A runner in a thread cannot be stopped; it ends, and its result is kept. A later call
        opens the store again.
        """
        if self._is_inside_run():
            raise RunError("a run cannot close the store that is to keep its result")
        opening = self._opening
        if opening is None:
            return
        if not opening.get_loop().is_closed():
            _check_loop(opening)
        self._opening = None
        await to_the_end(_close(opening))

    def _is_inside_run(self) -> bool:
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception():
            return False
        return opening.result().pipeline.is_inside_run

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
        async with self._using() as opened:
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
        async with self._using() as opened:
            return await opened.pipeline.delete(params, hash, remove_file=remove_file)

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
        checked = _custom_data(custom_data)
        path = _result_path(result_file)
        async with self._using() as opened:
            return await opened.pipeline.register(params, path, checked)

    async def sweep(
        self,
        params: Iterable[Params] | AsyncIterable[Params],
        client: Any = None,
        *,
        custom_data: Mapping[str, Any] | None = None,
    ) -> list[R]:
        """Return the records of many parameter sets; run those that are not stored.

        After a failure nothing more is started; what is at work ends and is kept, and then the
        failure is raised.

        Args:
            params: The parameter sets: any iterable, also an async one, read once.
            client: A Dask client to run on; its workers must share ``results_dir``.
            custom_data: Kept in the ``custom_data`` of the rows that this sweep runs.

        Returns:
            One record, detached, for each distinct set, in first-seen order.

        Raises:
            ParamsError: A set that the model cannot take, with its position in the input; it
                was not run.
            ResultMissingError: A runner left no result.
            RunCycleError: A run needs, directly or not, its own result.
            ResultsDirError: The results folder is not there, or cannot be used.
            DatabaseError: The database failed.
            Exception: What the first runner that failed raised, or the iterable itself.
        """
        return await self._collect(params, custom_data or {}, client=client)

    async def _one(self, params: Params, custom_data: Mapping[str, Any], *, force: bool) -> R:
        if self._WARNS:
            warn_of_options(custom_data)
        return (await self._collect([params], custom_data, force=force))[0]

    async def _collect(
        self,
        params: Iterable[Params] | AsyncIterable[Params],
        custom_data: Mapping[str, Any],
        *,
        client: Any = None,
        force: bool = False,
    ) -> list[R]:
        source = as_source(params)
        checked = _custom_data(custom_data)
        async with self._using() as opened:
            executor = opened.executor if client is None else await DaskExecutor.connect(client)
            return await opened.pipeline.collect(source, executor, checked, force=force)

    def _using(self) -> "_Using[R]":
        return _Using(self._open)

    async def _open(self) -> _Opened[R]:
        """What the store has open, on this loop; opened by whoever comes first."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._make_ready())
        opening = self._opening
        _check_loop(opening)
        if not opening.done():
            await asyncio.wait({opening})
        has_failed = opening.cancelled() or opening.exception() is not None
        if has_failed and self._opening is opening:
            self._opening = None  # the next call tries again
        return opening.result()

    async def _make_ready(self) -> _Opened[R]:
        # Not the loop's default pool: threads of that one may be waiting for this very store.
        await anyio.to_thread.run_sync(self._folder.open)
        database = Database(self._db_url, lock_timeout=self._lock_timeout)
        await database.open()
        try:
            schema = await open_schema(database, self._model)
        except BaseException:
            await database.aclose()
            raise
        ledger = Ledger(database, schema.identity, schema.model, self._model)
        pipeline = Pipeline(
            self._runner,
            schema.identity,
            ledger,
            self._folder,
            nonce=schema.nonce,
            owner=f"{platform.node()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
            checksum=self._checksum,
        )
        executor = make_executor(self._executor, self._runner, self._max_workers)
        return _Opened(database, executor, pipeline)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opening": None}


class _Using(Generic[R]):
    """An open store for the time of one call.

    No generator: contextlib sets the traceback of what goes through one, and some cannot be set.
    """

    def __init__(self, open_store: Callable[[], Awaitable[_Opened[R]]]) -> None:
        self._open_store = open_store

    async def __aenter__(self) -> _Opened[R]:
        self._opened = await self._open_store()
        self._opened.pipeline.begin_call()
        return self._opened

    async def __aexit__(self, *_: object) -> None:
        self._opened.pipeline.end_call()


def _check_loop(opening: asyncio.Task[Any]) -> None:
    """Raise ``WrongLoopError`` unless the store was opened on the loop that runs here."""
    loop = opening.get_loop()
    if loop is asyncio.get_running_loop():
        return
    what_to_do = (
        "that loop is gone: aclose(), awaited here, lets the store open anew"
        if loop.is_closed()
        else "close it there (async with, or aclose()), or make a store for each loop"
    )
    raise WrongLoopError(
        f"this AsyncStore was opened on another event loop and belongs to it; {what_to_do}"
    )


async def _close(opening: asyncio.Task[_Opened[Any]]) -> None:
    # A loop that has ended has ended all that was under way on it.
    has_loop = opening.get_loop() is asyncio.get_running_loop()
    if has_loop:
        await asyncio.wait({opening})
    if not opening.done() or opening.cancelled() or opening.exception() is not None:
        return
    opened = opening.result()
    if has_loop:
        await opened.pipeline.stop()
    opened.pipeline.release()
    await opened.executor.aclose()
    await opened.database.aclose()


def _check_runner(runner: object) -> None:
    if not callable(runner):
        raise SettingsError(f"runner must be a function of one dict of params, not {runner!r}")


def _check_workers(workers: object) -> None:
    if workers is not None and not (isinstance(workers, int) and workers >= 1):
        raise SettingsError(f"max_workers must be 1 or more, not {workers!r}")


def _check_timeout(timeout: object) -> None:
    if not (isinstance(timeout, int | float) and timeout >= 0):
        raise SettingsError(f"lock_timeout must be 0 seconds or more, not {timeout!r}")


def _check_suffix(suffix: object) -> None:
    if not isinstance(suffix, str) or "/" in suffix or os.sep in suffix or "\0" in suffix:
        raise SettingsError(f"file_suffix must be the end of a file's name, not {suffix!r}")
    if suffix == COMPANIONS:
        raise SettingsError(
            f"file_suffix {suffix!r} is what the folders of other files are called; use another"
        )


def _results_folder(results_dir: object, suffix: str) -> ResultsFolder:
    if not isinstance(results_dir, str | os.PathLike) or not _is_path(results_dir):
        raise SettingsError(f"results_dir must be a path, not {results_dir!r}")
    return ResultsFolder(results_dir, suffix)


def _result_path(path: object) -> str | os.PathLike[str]:
    if isinstance(path, str | os.PathLike) and _is_path(path):
        return path
    raise ParamsError(f"result_file must be the path of a result, not {path!r}")


def _is_path(path: str | os.PathLike[str]) -> bool:
    text = os.fspath(path)
    return bool(text) and "\0" not in text


def _custom_data(custom_data: Any) -> dict[str, Any]:
    if not isinstance(custom_data, Mapping):
        raise ParamsError(f"custom_data must be a dict, not {custom_data!r}")
    return checked_custom_data(custom_data)


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
            f"{name}={custom_data[name]!r} is kept as custom data of the run; the option {name!r}"
            f" is an argument of {_OPTIONS[name]}",
            stacklevel=level,
        )


def _options() -> dict[str, str]:
    """Where each option lives that could be mistaken for custom data, or the other way round."""
    store = inspect.signature(AsyncStore.__init__).parameters
    sweep = inspect.signature(AsyncStore.sweep).parameters
    of_store = {name: "the store itself" for name in store if name != "self"}
    of_sweep = {name: "sweep" for name in sweep if name not in ("self", "params")}
    planned = dict.fromkeys(("timeout", "retries", "progress", "on_error"), "a later version")
    return {**planned, **of_sweep, **of_store}


_OPTIONS: Final = _options()
