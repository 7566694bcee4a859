"""Statements and transactions on one database, retried where others are in the way.

What differs between databases is in one file each; which statements there are is left to
``ledger``.
"""

import asyncio
import contextlib
import math
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from entropic._backoff import next_look
from entropic._collector import uncollected
from entropic._shield import to_the_end, undisturbed
from entropic.database.dialect import Begin, Dialect, Fault, Session
from entropic.database.sessions import Sessions, drop
from entropic.database.statement import Statement
from entropic.database.transaction import Transaction
from entropic.database.urls import async_url, masked
from entropic.errors import DatabaseError, StoreClosedError

__all__ = ["Begin", "Database", "Dialect", "Statement", "Transaction"]

T = TypeVar("T")

_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.25

# For what is to be given back when a loop ends; who waits for the database then waits no longer.
_PARTING_SECONDS: Final = 0.5

# For a lost connection to be made anew: a server that is started again takes about a second.
_BACK_SECONDS: Final = 5.0


class Database:
    """One database: a few connections, and what is done over them.

    Args:
        db_url: As a user writes it, or with an async driver; or the path of a SQLite database.
        lock_timeout: Seconds to keep trying while another program holds the lock.
        jitter: A random number between 0 and 1, for the delays between tries.
        writes_only: Whether hardly anything is read, so that no connection is kept for it.

    Raises:
        SettingsError: The URL cannot be used.
    """

    def __init__(
        self,
        db_url: str | os.PathLike[str] | sa.URL,
        *,
        lock_timeout: float,
        jitter: Callable[[], float] = random.random,
        writes_only: bool = False,
    ) -> None:
        self.url = async_url(db_url)
        self.dialect: Dialect = _dialect(self.url, lock_timeout)
        self._lock_timeout = lock_timeout
        self._jitter = jitter
        self._engine: AsyncEngine | None = None
        self._closing: AsyncEngine | None = None
        self._entries: list[sa.pool.ConnectionPoolEntry] = []
        self._listener: Session | None = None
        self._with_loop: AsyncGenerator[None, None] | None = None
        self._before_loop_ends: Callable[[], Coroutine[Any, Any, object]] | None = None
        self._waited_for: set[asyncio.Event] = set()  # of each write: set to end its waiting
        self._last_locked = -math.inf  # when this one last had the write lock
        self._readers = self._writers = Sessions(
            self._connect, self.dialect.writers or self.dialect.readers
        )
        if self.dialect.writers and not writes_only:
            self._readers = Sessions(self._connect, self.dialect.readers)
        # Whole tables are read on a connection of their own: nobody else waits for that.
        self._scanners = self._writers
        if self.dialect.writers:
            self._scanners = Sessions(self._connect, 1)

    def __repr__(self) -> str:
        return f"Database({masked(self.url)!r})"

    async def open(self) -> None:
        """Connect.

        Raises:
            DatabaseError: The database cannot be opened.
        """
        await to_the_end(self._open())

    async def aclose(self) -> None:
        """Close the connections; a transaction under way ends first, unless it waits for a lock.

        Whatever is asked for later is a ``StoreClosedError``.
        """
        await to_the_end(self._close())
        with_loop, self._with_loop = self._with_loop, None
        if with_loop is not None:
            await with_loop.aclose()

    async def part(self) -> None:
        """Close as where the loop ends: what is to be done first has a moment for it."""
        await to_the_end(self._close_with_loop())
        await self.aclose()

    def before_loop_ends(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Have something done first where the loop ends, or this is dropped, before it is closed.

        It has a moment for it: others may have the database locked.
        """
        self._before_loop_ends = work

    @property
    def compiler(self) -> sa.Dialect:
        """SQLAlchemy's dialect, as the engine has set it up."""
        return self._opened.dialect

    async def prepare(self, is_new: bool) -> None:
        """Settle what belongs to the whole database, before its first transaction.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """

        async def prepare(session: Session) -> None:
            await to_the_end(self.dialect.prepare(session, is_new))

        await self._using(self._writers, prepare)

    async def read(self, statement: Statement, **values: Any) -> list[Sequence[Any]]:
        """Run one reading statement and return its typed rows.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """
        bound = statement.bind(values)
        return await statement.typed(
            await self._using(self._readers, lambda s: s.fetch(statement.sql, bound))
        )

    async def read_and(
        self,
        statement: Statement,
        function: Callable[[list[Sequence[Any]]], T],
        *,
        is_long: bool = False,
        **values: Any,
    ) -> T:
        """Run one reading statement and call a function with its typed rows, in a thread.

        Args:
            statement: The statement.
            function: What to call.
            is_long: Whether it may read the whole table.
            values: What is bound in it.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """
        bound = statement.bind(values)

        def work(rows: list[Any]) -> T:
            with uncollected():
                return function(statement.rows(rows))

        sessions = self._scanners if is_long else self._readers
        return await self._using(sessions, lambda s: s.fetch_and(statement.sql, bound, work))

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

        return await self._using(self._readers, lambda session: to_the_end(inspect(session)))

    async def write(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        begin: Begin = Begin.WRITING,
        *,
        undo: Callable[[], Awaitable[object]] | None = None,
        tell: str | None = None,
    ) -> T:
        """Run ``work`` in a write transaction and commit it.

        The transaction has a task of its own which always runs to its end; only while it waits
        for somebody else does a cancellation stop it, and then it is rolled back. So a cancelled
        call never leaves a lock behind.

        Args:
            work: What to do in the transaction; called anew where the database has undone it for
                somebody else's sake, or the connection was lost.
            begin: Which kind of transaction.
            undo: Undoes what ``work`` has done elsewhere, when nothing of it will be committed.
            tell: What to tell whoever listens, once it is committed.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed; nothing of the transaction is kept.
            asyncio.CancelledError: The call was cancelled. The transaction may have been
                committed all the same: whoever must know reads it back.
        """
        asked = asyncio.get_running_loop().time()
        async with self._writers.turn:
            left = asyncio.Event()
            # Those who queue up behind a lock wait for it together, and not one after the other.
            since = max(asked, self._last_locked)
            written = self._written(_Writing(work, begin, undo, tell, left, since))
            self._waited_for.add(left)
            try:
                return await to_the_end(written, left)
            except Exception as error:
                self._translate(error)
                raise
            finally:
                self._waited_for.remove(left)

    async def listen(self, told: Callable[[str], None]) -> None:
        """Have a function called with what others tell when they have committed, from now on.

        It lasts until the connection is lost: ask again from time to time. Nothing happens where
        databases of this kind tell nothing.

        Raises:
            DatabaseError: The database failed.
        """
        if not self.dialect.tells or (self._listener is not None and self._listener.is_usable):
            return
        try:
            await to_the_end(self._listen(told))
        except Exception as error:
            self._translate(error)
            raise

    async def _listen(self, told: Callable[[str], None]) -> None:
        lost, self._listener = self._listener, None
        if lost is not None:
            await drop(lost)
        session = await self._connect()
        self._listener = session
        await session.listen(told)

    async def _open(self) -> None:
        self._engine = self.dialect.engine()
        sa.event.listen(self._engine.sync_engine, "handle_error", _keep_connection)
        sa.event.listen(self._engine.sync_engine, "connect", self._note)
        try:
            for sessions in {self._readers, self._writers}:
                sessions.give_back(await self._first_of(sessions))
            self._with_loop = self._until_the_loop_ends()
            await anext(self._with_loop)
        except BaseException as error:
            await undisturbed(self._close())
            self._translate(error)
            raise

    async def _first_of(self, sessions: Sessions) -> Session:
        """The first session; a server that cannot be reached at all is not waited for."""
        try:
            return await self._retrying(sessions.take, Fault.LOCKED)
        except BaseException as error:
            if self.dialect.fault(error) is not Fault.LOST:
                raise
        return await self._retrying(sessions.take, Fault.LOCKED)

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Closes the connections of a database that nobody has closed.

        A loop that ends closes its asynchronous generators, and nothing else that could close what
        only it can: a connection to a server would be left with a loop that is gone.
        """
        try:
            yield
        finally:
            await (self._close() if self._engine is None else self._close_with_loop())

    async def _close_with_loop(self) -> None:
        if self._before_loop_ends is None:
            await self._close()
            return
        first = asyncio.ensure_future(self._before_loop_ends())
        await asyncio.wait({first}, timeout=_PARTING_SECONDS)
        await self._close()
        # What still waited for a lock has been told to; no task may be left to a loop that is gone.
        await asyncio.wait({first}, timeout=_PARTING_SECONDS)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError, StoreClosedError, DatabaseError):
            await first

    async def _close(self) -> None:
        """Close all; or what is left, where a loop that ends has cancelled the closing."""
        if self._engine is not None:
            self._closing, self._engine = self._engine, None
        closing = self._closing
        if closing is None:
            return
        for left in self._waited_for:
            left.set()
        for sessions in {self._readers, self._writers, self._scanners}:
            await sessions.aclose()
        listener, self._listener = self._listener, None
        if listener is not None:
            await drop(listener)
        await closing.dispose()
        await self.dialect.aclose()
        for entry in self._entries:
            if entry.in_use:  # by nobody: it was lost on its way
                entry.invalidate()
        self._entries.clear()
        self._closing = None

    def _note(self, _: object, entry: sa.pool.ConnectionPoolEntry) -> None:
        """Remember a connection of the engine's: one that is lost is else told when it is found."""
        self._entries = [*(known for known in self._entries if known.in_use), entry]

    @property
    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            raise StoreClosedError
        return self._engine

    async def _connect(self) -> Session:
        connection = await self._opened.connect()
        try:
            return await self.dialect.session(connection)
        except BaseException:
            await undisturbed(connection.close())
            raise

    async def _using(self, sessions: Sessions, work: Callable[[Session], Awaitable[T]]) -> T:
        async def attempt() -> T:
            self._opened  # noqa: B018  it raises
            async with sessions.turn:
                session = await sessions.take()
                try:
                    return await work(session)
                finally:
                    sessions.give_back(session)

        try:
            return await self._retrying(attempt, Fault.LOCKED, Fault.ABORTED, Fault.LOST)
        except Exception as error:
            self._translate(error)
            raise

    async def _written(self, writing: "_Writing[T]") -> T:
        self._opened  # noqa: B018  it raises
        return await self._retrying(
            lambda: self._transact(writing), Fault.ABORTED, Fault.LOST, left=writing.left
        )

    async def _transact(self, writing: "_Writing[T]") -> T:
        async def patiently(attempt: Callable[[], Awaitable[Any]]) -> Any:
            return await self._retrying(
                attempt, Fault.LOCKED, left=writing.left, since=writing.since
            )

        session = await patiently(self._writers.take)
        outcome: bool | None = False
        try:
            await patiently(lambda: session.begin(writing.begin))
            self._last_locked = asyncio.get_running_loop().time()
            result = await writing.work(Transaction(session, writing.left))
            key = await session.outcome_key()
            outcome = None
            try:
                await self._retrying(
                    lambda: session.commit(writing.tell), Fault.LOCKED, left=writing.left
                )
            except Exception as error:
                outcome = await self._outcome(key, error)
                if not outcome:
                    raise
        except BaseException as error:
            try:
                if writing.undo is not None and outcome is not None:
                    await writing.undo()
            finally:
                # Even a task that is cancelled with its whole loop must leave no lock behind.
                await session.roll_back()
            if outcome is None and self.dialect.fault(error) is Fault.LOST:
                raise self._unknown(error) from error
            raise
        finally:
            self._writers.give_back(session)
        return result

    async def _outcome(self, key: Any, error: Exception) -> bool | None:
        """Whether a transaction was committed that met an error as it was told to be.

        Only where the connection was lost can that be so; ``None`` where nobody knows.
        """
        if self.dialect.fault(error) is not Fault.LOST:
            return False
        with contextlib.suppress(Exception):  # the server does not come back
            return await self._using(self._readers, lambda session: session.has_committed(key))
        return None

    async def _retrying(
        self,
        attempt: Callable[[], Awaitable[T]],
        *faults: Fault,
        left: asyncio.Event | None = None,
        since: float | None = None,
    ) -> T:
        """Try until it works, or fails for good; ``left`` set means that nobody waits any more.

        At least once, however long it has been waited for before, from ``since`` on.
        What others have locked is waited for until the deadline; a connection that was lost is
        made anew, as long as a server takes to start again.
        """
        loop = asyncio.get_running_loop()
        deadline = (loop.time() if since is None else since) + self._lock_timeout
        lost: float | None = None
        begun = loop.time()
        while True:
            try:
                return await attempt()
            except BaseException as error:
                fault = self.dialect.fault(error)
                until = deadline
                if fault is Fault.LOST:
                    lost = loop.time() if lost is None else lost
                    until = lost + _BACK_SECONDS
                if fault not in faults or loop.time() >= until:
                    raise
            if left is not None and left.is_set():
                raise asyncio.CancelledError
            waited = loop.time() - begun
            await asyncio.sleep(
                next_look(waited, self._jitter(), shortest=_FIRST_DELAY, longest=_LONGEST_DELAY)
            )

    @staticmethod
    def _unknown(error: BaseException) -> DatabaseError:
        return DatabaseError(
            "the connection to the database was lost in the middle of a commit, and the server"
            f" could not be asked what became of it ({error}); ask again: what was stored is found"
        )

    def _translate(self, error: BaseException) -> None:
        """Raise an error of the driver as one that says what to do."""
        if self.dialect.fault(error) is not None:
            raise self.dialect.translate(error) from error


@dataclass(frozen=True, slots=True)
class _Writing(Generic[T]):
    """What is to be written, and how; see ``Database.write``."""

    work: Callable[[Transaction], Awaitable[T]]
    begin: Begin
    undo: Callable[[], Awaitable[object]] | None
    tell: str | None
    left: asyncio.Event
    since: float


def _dialect(url: sa.URL, lock_timeout: float) -> Dialect:
    """The one of a URL; no other is imported."""
    if url.get_backend_name() == "sqlite":
        from entropic.database.sqlite import SQLite

        return SQLite(url)
    from entropic.database.postgresql import PostgreSQL

    return PostgreSQL(url, lock_timeout)


def _keep_connection(context: sa.ExceptionContext) -> None:
    """Keep SQLAlchemy from closing a connection when a cancellation meets one of its statements.

    SQLite, closed in the middle of a statement, keeps even the write lock until the garbage
    collector comes; and a database in memory would be gone.
    """
    if isinstance(context.original_exception, asyncio.CancelledError):
        context.is_disconnect = False
