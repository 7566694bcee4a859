"""``Store``: the same API as ``AsyncStore``, for scripts and notebooks.

Each method is one line: the call runs on the background loop, and the calling thread waits.
"""

import copy
import os
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self

from entropic._portal import CallerItems, portal
from entropic.async_store import (
    AsyncStore,
    OnError,
    Params,
    ProgressOption,
    R,
    Recovered,
    Runner,
    RunSettings,
    warn_of_options,
)
from entropic.errors import Failure
from entropic.models import Records
from entropic.queries import Queries


class _BehindStore(AsyncStore[R]):
    """The store behind a ``Store``: only there is a calling thread to run on."""

    _EXECUTORS: ClassVar[tuple[str, ...]] = ("caller", "thread", "process")
    _WARNS: ClassVar[bool] = False

    def batches(self, *args: Any) -> AsyncGenerator[list[R], None]:
        """What ``as_completed`` yields, as many at once as are ready.

        A way to the calling thread takes three times as long as a hit.
        """
        return self._batches(self._call(*args, is_sweep=True))


class Store(Queries[R], Generic[R]):
    """A run cache: each distinct parameter set runs once, ever; after that, its row is given.

    A store opens at its first call. It may be used from several threads, inside a running event
    loop (a notebook) and in a forked child, and can be pickled: it carries its settings, not its
    connections.

    Args:
        runner: The simulation: takes a dict of params and writes one result, a file or a folder,
            to ``params["result_file"]``. A plain function or an ``async def``.
        result_cls: The model: a subclass of ``Base`` with a column for each parameter.
        results_dir: The folder of the results; made when missing.
        file_suffix: What the results' names end with.
        db_url: The database: ``sqlite:///<path>``; ``sqlite://`` is one in memory, for this
            store alone.
        executor: Where the runner runs: ``"caller"``, the thread that called, one run at a time;
            ``"thread"``, a pool of threads; ``"process"``, worker processes; a
            ``concurrent.futures.Executor``; a Dask client, whose workers must share
            ``results_dir``. Under ``"caller"`` and ``"thread"``, an ``async def`` is awaited on
            the store's own event loop.
        max_workers: How many runners run at once, other than on the calling thread; by default
            as many as there are CPUs, or as the executor has workers.
        retries: How many times more a run that fails is tried, after a while that doubles each
            time.
        timeout: Seconds after which a run is stopped and has failed, with ``RunTimeoutError``;
            refused where a runner cannot be stopped: in threads.
        checksum: Whether to keep the SHA-256 of each result.
        lock_timeout: Seconds to keep trying while another program has the database locked.
        lease_ttl: Seconds after which a run whose store has fallen silent is taken over by
            whoever wants it next.

    Raises:
        SettingsError: An argument cannot work; says which one, and what to pass instead.
        ModelError: The model cannot hold runs.
    """

    def __init__(
        self,
        runner: Runner,
        result_cls: type[R],
        results_dir: str | os.PathLike[str] = "./results",
        file_suffix: str = ".h5",
        db_url: str = "sqlite:///db.sqlite3",
        *,
        executor: Any = "caller",
        max_workers: int | None = None,
        retries: int = 0,
        timeout: float | None = None,
        checksum: bool = True,
        lock_timeout: float = 60.0,
        lease_ttl: float = 60.0,
    ) -> None:
        self._adopt(
            _BehindStore(
                runner,
                result_cls,
                results_dir,
                file_suffix,
                db_url,
                executor=executor,
                max_workers=max_workers,
                retries=retries,
                timeout=timeout,
                checksum=checksum,
                lock_timeout=lock_timeout,
                lease_ttl=lease_ttl,
            )
        )

    def __repr__(self) -> str:
        return repr(self._store).replace(type(self._store).__name__, type(self).__name__, 1)

    def __enter__(self) -> Self:
        portal.call(self._behind().__aenter__)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        portal.call(self._behind().__aexit__, exc_type, exc, traceback)

    def close(self) -> None:
        """Close the store: stop what can be stopped, let the rest end, release everything.

        A later call opens the store again.
        """
        portal.call(self._behind().aclose)

    def run_or_retrieve(self, params: Params, /, **custom_data: Any) -> R:
        """Return the stored record of a parameter set; run it first if there is none.

        Arguments, result and errors are those of ``AsyncStore.run_or_retrieve``.
        """
        return portal.call(self._behind().run_or_retrieve, params, **_told(custom_data))

    def run(self, params: Params, /, **custom_data: Any) -> R:
        """Run a parameter set in any case, and replace what is stored of it.

        Arguments, result and errors are those of ``AsyncStore.run``.
        """
        return portal.call(self._behind().run, params, **_told(custom_data))

    def retrieve(self, params: Params, /) -> R | None:
        """Return the stored record of a parameter set, or ``None``; run nothing.

        Arguments, result and errors are those of ``AsyncStore.retrieve``.
        """
        return portal.call(self._behind().retrieve, params)

    def delete(
        self, params: Params | None = None, hash: str | None = None, remove_file: bool = False
    ) -> bool:
        """Remove a stored run.

        Arguments, result and errors are those of ``AsyncStore.delete``.
        """
        return portal.call(self._behind().delete, params, hash, remove_file)

    def register(
        self, params: Params, /, result_file: str | os.PathLike[str], **custom_data: Any
    ) -> R:
        """Index a result that was made elsewhere; it stays where it is.

        Arguments, result and errors are those of ``AsyncStore.register``.
        """
        return portal.call(self._behind().register, params, result_file, **_told(custom_data))

    def sweep(
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

        Arguments, result and errors are those of ``AsyncStore.sweep``. An iterable is read on
        the thread that calls.
        """
        return portal.call(
            self._behind().sweep,
            CallerItems.wrap(params),
            client,
            custom_data=custom_data,
            executor=executor,
            max_workers=max_workers,
            on_error=on_error,
            retries=retries,
            timeout=timeout,
            progress=progress,
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
    ) -> Generator[R, None, None]:
        """Yield the record of each parameter set as soon as it is there; run those not stored.

        Arguments, items and errors are those of ``AsyncStore.as_completed``; ``close()`` leaves
        what has not started. With ``executor="caller"`` it runs only while it is asked for the
        next record.
        """
        settings = RunSettings.of_call(client, executor, max_workers, retries, timeout)
        batches = self._behind().batches(
            CallerItems.wrap(params), custom_data, settings, on_error, progress
        )
        return portal.stream(batches)

    def failures(self) -> list[Failure]:
        """Return the failures on record: of runs that have not succeeded since.

        Result and errors are those of ``AsyncStore.failures``.
        """
        return portal.call(self._behind().failures)

    def recover(self) -> Recovered:
        """Store what a crash has left finished, discard what it has left unfinished.

        Result and errors are those of ``AsyncStore.recover``.
        """
        return portal.call(self._behind().recover)

    def ddl(self) -> str:
        """Return the SQL that makes what the database lacks, for whoever may make tables there.

        Result and errors are those of ``AsyncStore.ddl``.
        """
        return portal.call(self._behind().ddl)

    def _behind(self) -> _BehindStore[R]:
        """The asynchronous store; a new one in a forked child, whose parent keeps the old."""
        if self._pid != os.getpid():
            _abandoned.append(self._store)
            self._adopt(copy.copy(self._store))
        return self._store

    def _adopt(self, store: _BehindStore[R]) -> None:
        self._store = store
        self._pid = os.getpid()
        # At the interpreter's exit there is nothing to release that the exit does not.
        weakref.finalize(self, _release, store, self._pid).atexit = False

    def __getstate__(self) -> _BehindStore[R]:
        return copy.copy(self._store)

    def __setstate__(self, store: _BehindStore[R]) -> None:
        self._adopt(store)


def _release(store: AsyncStore[Any], pid: int) -> None:
    """Close what a collected store had open, where it was opened; nobody can wait for it."""
    if pid == os.getpid():
        portal.spawn(store.aclose)
    else:
        _abandoned.append(store)


# Connections of a forked child's parent: to collect them would be to close them.
_abandoned: Final[list[object]] = []


def _told(custom_data: dict[str, Any]) -> dict[str, Any]:
    """The same; the calling thread, whose line a warning can point at, has been told of options."""
    warn_of_options(custom_data)
    return custom_data
