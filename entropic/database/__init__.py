"""Statements and transactions on one database, retried where others are in the way.

What differs between databases is in one file each; which statements there are is left to
``ledger``.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio.to_thread
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from entropic._shield import to_the_end, undisturbed
from entropic.database.dialect import Begin, Dialect, Fault, Session
from entropic.database.sessions import Sessions
from entropic.database.sqlite import SQLite
from entropic.database.statement import Statement
from entropic.database.transaction import Transaction
from entropic.database.urls import async_url, masked
from entropic.errors import StoreClosedError

__all__ = ["Begin", "Database", "Dialect", "Statement", "Transaction"]

T = TypeVar("T")

_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.25


class Database:
    """One database: a few connections, and what is done over them.

    Args:
        db_url: As a user writes it, or with an async driver; or the path of a SQLite database.
        lock_timeout: Seconds to keep trying while another program holds the lock.
        jitter: A random number between 0 and 1, for the delays between tries.

    Raises:
        SettingsError: The URL cannot be used.
    """

    def __init__(
        self,
        db_url: str | os.PathLike[str] | sa.URL,
        *,
        lock_timeout: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = async_url(db_url)
        self.dialect: Dialect = SQLite(self.url)
        self._lock_timeout = lock_timeout
        self._jitter = jitter
        self._engine: AsyncEngine | None = None
        self._readers = Sessions(self._connect, self.dialect.readers)
        self._writers = (
            Sessions(self._connect, self.dialect.writers) if self.dialect.writers else self._readers
        )

    def __repr__(self) -> str:
        return f"Database({masked(self.url)!r})"

    async def open(self) -> None:
        """Connect.

        Raises:
            DatabaseError: The database cannot be opened.
        """
        await to_the_end(self._open())

    async def aclose(self) -> None:
        """Close the connections; a transaction under way ends first.

        Whatever is asked for later is a ``StoreClosedError``.
        """
        await to_the_end(self._close())

    def statement(self, element: sa.sql.ClauseElement) -> Statement:
        """Compile a statement for this database."""
        return Statement(element, self._opened.dialect, self.dialect)

    async def prepare(self, is_new: bool) -> None:
        """Settle what belongs to the whole database, before its first transaction.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """

        async def prepare(session: Session) -> None:
            await to_the_end(self.dialect.prepare(session, is_new))

        await self._reading(self._writers, prepare)

    async def read(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Run one reading statement and return its typed rows.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """
        bound = statement.bind(values)
        return await statement.typed(
            await self._reading(self._readers, lambda s: s.fetch(statement.sql, bound))
        )

    async def read_sync(self, function: Callable[[sa.Connection], T]) -> T:
        """Run a reading function of a synchronous SQLAlchemy connection; for inspection.

        All that it reads is of one moment: others may be making the very tables it looks at.
        """

        async def inspect(session: Session) -> T:
            try:
                await session.begin(Begin.READING)
                return await session.connection.run_sync(function)
            finally:
                await session.roll_back()

        return await self._reading(self._readers, lambda session: to_the_end(inspect(session)))

    async def write(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        begin: Begin = Begin.WRITING,
    ) -> T:
        """Run ``work`` in a write transaction and commit it.

        The transaction has a task of its own which always runs to its end; only while it waits
        for somebody else, at its beginning or at its commit, does a cancellation stop it, and
        then it is rolled back. So a cancelled call never leaves a lock behind.

        Args:
            work: What to do in the transaction.
            begin: Which kind of transaction.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed; nothing of the transaction is kept.
            asyncio.CancelledError: The call was cancelled. The transaction may have been
                committed all the same: whoever must know reads it back.
        """
        async with self._writers.turn:
            left = asyncio.Event()
            return await to_the_end(self._transact(work, begin, left), left)

    async def _open(self) -> None:
        self._engine = self.dialect.engine(self._lock_timeout)
        sa.event.listen(self._engine.sync_engine, "handle_error", _keep_connection)
        try:
            await anyio.to_thread.run_sync(self.dialect.try_out)
            for sessions in {self._readers, self._writers}:
                sessions.give_back(await sessions.take())
        except BaseException as error:
            await undisturbed(self._close())
            self._translate(error)
            raise

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        for sessions in {self._readers, self._writers}:
            await sessions.aclose()
        if engine is not None:
            await engine.dispose()

    @property
    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise StoreClosedError
        return self._engine

    async def _connect(self) -> Session:
        return await self.dialect.session(await self._opened.connect())

    async def _reading(self, sessions: Sessions, read: Callable[[Session], Awaitable[T]]) -> T:
        async def attempt() -> T:
            self._opened  # noqa: B018  it raises
            async with sessions.turn:
                session = await sessions.take()
                try:
                    return await read(session)
                finally:
                    sessions.give_back(session)

        return await self._retrying(attempt)

    async def _transact(
        self, work: Callable[[Transaction], Awaitable[T]], begin: Begin, left: asyncio.Event
    ) -> T:
        self._opened  # noqa: B018  it raises
        session = await self._writers.take()
        try:
            await self._retrying(lambda: session.begin(begin), left)
            result = await work(Transaction(session, left))
            await self._retrying(lambda: session.commit(None), left)
        except BaseException as error:
            # Even a task that is cancelled with its whole loop must leave no lock behind.
            await session.roll_back()
            self._translate(error)
            raise
        finally:
            self._writers.give_back(session)
        return result

    async def _retrying(
        self, attempt: Callable[[], Awaitable[T]], left: asyncio.Event | None = None
    ) -> T:
        """Try until the lock is free; ``left`` set means that nobody waits any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lock_timeout
        delay = _FIRST_DELAY
        while True:
            try:
                return await attempt()
            except BaseException as error:
                fault = self.dialect.fault(error)
                if fault is not Fault.LOCKED or loop.time() >= deadline:
                    self._translate(error)
                    raise
            if left is not None and left.is_set():
                raise asyncio.CancelledError
            await asyncio.sleep(delay * (0.5 + self._jitter()))
            delay = min(1.5 * delay, _LONGEST_DELAY)

    def _translate(self, error: BaseException) -> None:
        """Raise an error of the driver as one that says what to do."""
        if self.dialect.fault(error) is not None:
            raise self.dialect.translate(error) from error


def _keep_connection(context: sa.ExceptionContext) -> None:
    """Keep SQLAlchemy from closing a connection when a cancellation meets one of its statements.

    SQLite, closed in the middle of a statement, keeps even the write lock until the garbage
    collector comes; and a database in memory would be gone.
    """
    if isinstance(context.original_exception, asyncio.CancelledError):
        context.is_disconnect = False
