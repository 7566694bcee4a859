"""What a store has open, on the event loop that it was first called from.

Opened by whoever comes first, and waited for by all others. What is then asked of it, and by whom,
is left to ``async_store``.
"""

import asyncio
import functools
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import sqlalchemy as sa

from entropic._shield import in_own_thread, to_the_end
from entropic.artifacts import ResultsFolder
from entropic.database import Database
from entropic.errors import RunError, WrongLoopError
from entropic.executors import Executors
from entropic.identity import Identity
from entropic.leases import Heartbeat, Renew, new_owner
from entropic.ledger import Ledger
from entropic.models import Base
from entropic.pipeline import Claimant, Pipeline
from entropic.schema import missing_ddl, open_schema
from entropic.settings import RunSettings
from entropic.worker import Runner

R = TypeVar("R", bound=Base)


@dataclass(frozen=True, slots=True)
class StoreSettings(Generic[R]):
    """The arguments of a store, checked: all that it carries when it is pickled."""

    runner: Runner
    model: type[R]
    folder: ResultsFolder
    db_url: sa.URL
    runs: RunSettings
    checksum: bool
    lock_timeout: float
    lease_ttl: float
    tidies: bool = True  # when it opens, what a crash has left


@dataclass(frozen=True, slots=True)
class Opened(Generic[R]):
    """What an open store has."""

    database: Database
    executors: Executors
    pipeline: Pipeline[R]
    heartbeat: Heartbeat | None


class Opening(Generic[R]):
    """Opens a store when it is first asked for, and again after it was closed.

    Args:
        settings: Those of the store.
    """

    def __init__(self, settings: StoreSettings[R]) -> None:
        self.settings = settings
        self._task: asyncio.Task[Opened[R]] | None = None

    @property
    def is_inside_run(self) -> bool:
        """Whether a run of this store is asking."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception():
            return False
        return task.result().pipeline.is_inside_run

    def using(self) -> "Using[R]":
        """What is open, for the time of one call: closing waits for that."""
        return Using(self)

    async def opened(self) -> Opened[R]:
        """What is open, on this loop.

        Raises:
            WrongLoopError: It was opened on another one.
            EntropicError: It cannot be opened; the next call tries again.
        """
        if self._task is None:
            self._task = asyncio.create_task(_open(self.settings))
        task = self._task
        _check_loop(task)
        if not task.done():
            await asyncio.wait({task})
        has_failed = task.cancelled() or task.exception() is not None
        if has_failed and self._task is task:
            self._task = None
        return task.result()

    async def aclose(self) -> None:
        """Stop what can be stopped, let the rest end, release everything.

        Raises:
            RunError: A run of this store asks for it.
            WrongLoopError: It was opened on another loop, which has not ended.
        """
        if self.is_inside_run:
            raise RunError("a run cannot close the store that is to keep its result")
        task = self._task
        if task is None:
            return
        if not task.get_loop().is_closed():
            _check_loop(task)
        self._task = None
        await to_the_end(_close(task))


class Using(Generic[R]):
    """An open store for the time of one call.

    No generator: contextlib sets the traceback of what goes through one, and some cannot be set.
    """

    def __init__(self, opening: Opening[R]) -> None:
        self._opening = opening

    async def __aenter__(self) -> Opened[R]:
        self._opened = await self._opening.opened()
        self._opened.pipeline.begin_call()
        return self._opened

    async def __aexit__(self, *_: object) -> None:
        self._opened.pipeline.end_call()


async def lacking(settings: StoreSettings[R]) -> list[str]:
    """The statements that make what the database lacks.

    Raises:
        SchemaError: A table differs from the model in another way.
        DatabaseError: The database failed.
    """
    database = Database(settings.db_url, lock_timeout=settings.lock_timeout)
    await database.open()
    try:
        return await missing_ddl(database, settings.model)
    finally:
        await database.aclose()


async def _open(settings: StoreSettings[R]) -> Opened[R]:
    await in_own_thread(settings.folder.open)
    database = Database(settings.db_url, lock_timeout=settings.lock_timeout)
    await database.open()
    try:
        return await _opened(settings, database)
    except BaseException:
        await database.aclose()
        raise


async def _opened(settings: StoreSettings[R], database: Database) -> Opened[R]:
    schema = await open_schema(database, settings.model)
    ledger = Ledger(database, schema.identity, schema.model, settings.model)
    executors = Executors(settings.runner, settings.runs.executor, settings.runs.max_workers)
    claimant = _claimant(settings, database, schema.identity, schema.model)
    pipeline = Pipeline(
        settings.runner,
        executors,
        schema.identity,
        ledger,
        settings.folder,
        nonce=schema.nonce,
        claimant=claimant,
        checksum=settings.checksum,
    )
    opened = Opened(database, executors, pipeline, claimant.heartbeat)
    database.before_loop_ends(functools.partial(_leave, opened))
    try:
        if settings.tidies:
            await pipeline.tidy()
    except BaseException:
        async with _released(opened):
            await database.part()
            raise
    return opened


def _claimant(
    settings: StoreSettings[R], database: Database, identity: Identity, model: str
) -> Claimant:
    owner, ttl = new_owner(), settings.lease_ttl
    if database.dialect.is_private:  # nobody else sees it
        return Claimant(owner, math.inf, None)
    # Not the store itself: that may be gone before its runs are.
    url, record_class = settings.db_url, settings.model

    @asynccontextmanager
    async def connected() -> AsyncIterator[Renew]:
        # Of its own: the store's connections are its loop's, and may be busy for long.
        beating = Database(url, lock_timeout=ttl / 8, writes_only=True)
        await beating.open()
        try:
            ledger = Ledger(beating, identity, model, record_class)
            yield lambda ids: ledger.renew(ids, owner, ttl)
        finally:
            await beating.aclose()

    return Claimant(owner, ttl, Heartbeat(connected, ttl))


async def _close(task: asyncio.Task[Opened[R]]) -> None:
    # A loop that has ended has ended all that was under way on it.
    has_loop = task.get_loop() is asyncio.get_running_loop()
    if has_loop:
        await asyncio.wait({task})
    if not task.done() or task.cancelled() or task.exception() is not None:
        return
    async with _released(task.result()) as opened:
        if has_loop:
            await opened.pipeline.stop()


@asynccontextmanager
async def _released(opened: Opened[R]) -> AsyncIterator[Opened[R]]:
    """Release everything after the block, in order, whatever of it fails."""
    async with AsyncExitStack() as parts:
        parts.push_async_callback(opened.database.aclose)
        parts.push_async_callback(opened.executors.aclose)
        parts.push_async_callback(_stop, opened.heartbeat)
        parts.callback(opened.pipeline.release)
        yield opened


async def _leave(opened: Opened[R]) -> None:
    """Where the loop ends: let threads end, too, as nobody can use them any more."""
    await opened.pipeline.stop()
    opened.pipeline.release()
    if opened.heartbeat is not None:
        opened.heartbeat.stop()


async def _stop(heartbeat: Heartbeat | None) -> None:
    if heartbeat is not None and (beating := heartbeat.stop()) is not None:
        await in_own_thread(beating.join)


def _check_loop(task: "asyncio.Task[Opened[R]]") -> None:
    """Raise ``WrongLoopError`` unless the store was opened on the loop that runs here."""
    loop = task.get_loop()
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
