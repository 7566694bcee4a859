"""Connections, statements and transactions; what differs between databases is in one file each.

Statements are written in SQLAlchemy's Core, compiled once, and run in one hop on the driver's
own connection: SQLAlchemy's async execute takes four. Which statements there are is left to
``ledger``.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import anyio.to_thread
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from entropic._shield import to_the_end, undisturbed
from entropic.database.sqlite import SQLite
from entropic.database.urls import async_url, masked
from entropic.errors import SchemaError, StoreClosedError

__all__ = ["Database", "Dialect", "Statement", "Transaction"]

T = TypeVar("T")

# Texts of some rows that take longer to read, as JSON, than a loop may be held up.
_LARGE_TEXT: Final = 128 * 1024

_FIRST_DELAY: Final = 0.002
_LONGEST_DELAY: Final = 0.25


class Dialect(Protocol):
    """What the library must know about a database; one implementation a file."""

    shares_connection: bool

    @property
    def begin_reading(self) -> str:
        """The statement that begins a transaction whose reads are all of one moment."""
        ...

    @property
    def begin(self) -> str:
        """The statement that begins a write transaction, with the write lock."""
        ...

    @property
    def begin_alone(self) -> str:
        """The same, for a transaction whose commit waits for nobody."""
        ...

    def engine(self) -> AsyncEngine:
        """An engine whose connections begin no transaction by themselves."""
        ...

    def try_out(self) -> None:
        """Raise the driver's own error where the database cannot be opened; in a thread."""
        ...

    async def prepare(self, driver: Any, is_new: bool) -> None:
        """Settle what belongs to the whole database; an existing one stays as it is."""
        ...

    @property
    def now(self) -> sa.ColumnElement[float]:
        """The database's own clock, in seconds since 1970."""
        ...

    def keys(self, name: str) -> sa.TableValuedAlias:
        """A table of the keys bound under a name, any number of them as one value."""
        ...

    def bind_keys(self, keys: Sequence[str]) -> Any:
        """The value to bind for some keys."""
        ...

    def literal(self, value: Any, kind: sa.types.TypeEngine[Any]) -> str:
        """A value as SQL text, for a column's default: what binding it would store."""
        ...

    def insert(self, table: sa.FromClause) -> Any:
        """An insert that can also update, or do nothing, on a conflict."""
        ...

    def is_error(self, error: BaseException) -> bool:
        """Whether the driver raised it."""
        ...

    def is_busy(self, error: BaseException) -> bool:
        """Whether someone else holds the lock, so that trying again later may work."""
        ...

    def translate(self, error: BaseException) -> Exception:
        """An error of the driver, as one that says what to do."""
        ...


class Statement:
    """A statement compiled once for a dialect, with the conversions of its types."""

    def __init__(self, element: sa.sql.ClauseElement, dialect: sa.Dialect) -> None:
        compiled = element.compile(dialect=dialect)
        assert isinstance(compiled, sa.sql.compiler.SQLCompiler)
        self.sql = compiled.string
        self._constants = compiled.params
        self._binds = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup or ()
        ]
        returned: Any = getattr(element, "selected_columns", None)
        if returned is None:
            returned = getattr(element, "exported_columns", None) or ()
        self._names = [str(column) for column in returned]
        self._results = [
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in returned
        ]

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the statement's order, as the driver takes them."""
        given = {**self._constants, **values}
        return tuple(
            given[name] if process is None else process(given[name])
            for name, process in self._binds
        )

    def rows(self, fetched: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Fetched rows, as their columns type them.

        Raises:
            SchemaError: A column's type cannot read what is stored; names column, row and value.
        """
        fetched = list(fetched)
        try:
            return [
                tuple(
                    value if process is None else process(value)
                    for value, process in zip(row, self._results, strict=True)
                )
                for row in fetched
            ]
        except Exception as error:  # whatever a type of SQLAlchemy's, or of the user's own, raises
            raise self._unreadable(fetched, error) from error

    def _unreadable(self, fetched: Iterable[Sequence[Any]], error: Exception) -> SchemaError:
        for row in fetched:
            for name, value, process in zip(self._names, row, self._results, strict=True):
                try:
                    if process is not None:
                        process(value)
                except Exception as reason:
                    shown = repr(value) if len(repr(value)) <= 120 else f"{repr(value)[:117]}..."
                    return SchemaError(
                        f"{name} holds {shown} in the row of {row[0]!r}, which the model cannot"
                        f" read ({reason}): change the model back, or mend the row"
                    )
        return SchemaError(f"a row cannot be read: {error}")


async def _typed(statement: Statement, fetched: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows as their columns type them; large texts are JSON, most likely, and take long to read."""
    rows = list(fetched)
    if sum(len(value) for row in rows for value in row if isinstance(value, str)) > _LARGE_TEXT:
        return await anyio.to_thread.run_sync(statement.rows, rows)
    return statement.rows(rows)


class Transaction:
    """One write transaction; it holds the write lock from its first moment."""

    def __init__(self, connection: AsyncConnection, driver: Any) -> None:
        self._connection = connection
        self._driver = driver

    async def fetch(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its typed rows."""
        rows = await self._driver.execute_fetchall(statement.sql, statement.bind(values))
        return await _typed(statement, rows)

    async def execute_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement once for each row of values."""
        if rows:
            cursor = await self._driver.executemany(
                statement.sql, [statement.bind(r) for r in rows]
            )
            await cursor.close()

    async def run_sync(self, function: Callable[[sa.Connection], T]) -> T:
        """Run a function of a synchronous SQLAlchemy connection in the transaction."""
        return await self._connection.run_sync(function)


def _keep_connection(context: sa.ExceptionContext) -> None:
    """Keep SQLAlchemy from closing a connection when a cancellation meets one of its statements.

    SQLite, closed in the middle of a statement, keeps even the write lock until the garbage
    collector comes; and a database in memory would be gone.
    """
    if isinstance(context.original_exception, asyncio.CancelledError):
        context.is_disconnect = False


class Database:
    """One database: a connection that reads, and one that writes, a transaction at a time.

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
        self._connections: list[AsyncConnection] = []
        self._writing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Database({masked(self.url)!r})"

    async def open(self) -> None:
        """Connect.

        Raises:
            DatabaseError: The database cannot be opened.
        """
        await to_the_end(self._connect())

    async def aclose(self) -> None:
        """Close the connections; a transaction under way ends first.

        Whatever is asked for later is a ``StoreClosedError``.
        """
        async with self._writing:
            await to_the_end(self._disconnect())

    def statement(self, element: sa.sql.ClauseElement) -> Statement:
        """Compile a statement for this database."""
        assert self._engine is not None
        return Statement(element, self._engine.dialect)

    async def prepare(self, is_new: bool) -> None:
        """Settle what belongs to the whole database, before its first transaction.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """

        async def attempt() -> None:
            await self.dialect.prepare(await self._driver(self._writer), is_new)

        async with self._writing:
            await self._retrying(lambda: to_the_end(attempt()))

    async def read(self, statement: Statement, **values: Any) -> list[tuple[Any, ...]]:
        """Run one reading statement and return its typed rows.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed.
        """
        rows = await self._retrying(lambda: self._fetch(statement, statement.bind(values)))
        return await _typed(statement, rows)

    async def read_sync(self, function: Callable[[sa.Connection], T]) -> T:
        """Run a reading function of a synchronous SQLAlchemy connection; for inspection.

        All that it reads is of one moment: others may be making the very tables it looks at.
        """

        async def run() -> T:
            async with self._writing:
                connection = self._reader
                driver = await self._driver(connection)
                try:
                    await driver.execute_fetchall(self.dialect.begin_reading)
                    return await connection.run_sync(function)
                finally:
                    await self._roll_back(connection, driver)

        return await self._retrying(lambda: to_the_end(run()))

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, alone: bool = False) -> T:
        """Run ``work`` in a write transaction and commit it.

        The transaction has a task of its own which always runs to its end; only while it waits
        for somebody else, at its beginning or at its commit, does a cancellation stop it, and
        then it is rolled back. So a cancelled call never leaves a lock behind.

        Args:
            work: What to do in the transaction.
            alone: Whether to wait for readers, too, before it begins: for work that moves files,
                which no rollback moves back, the commit must not be what has to wait.

        Raises:
            DatabaseBusyError: The database stayed locked for ``lock_timeout`` seconds.
            DatabaseError: The database failed; nothing of the transaction is kept.
            asyncio.CancelledError: The call was cancelled. The transaction may have been
                committed all the same: whoever must know reads it back.
        """
        async with self._writing:
            left = asyncio.Event()
            begin = self.dialect.begin_alone if alone else self.dialect.begin
            return await to_the_end(self._transact(work, begin, left), left)

    async def _connect(self) -> None:
        self._engine = self.dialect.engine()
        sa.event.listen(self._engine.sync_engine, "handle_error", _keep_connection)
        try:
            await anyio.to_thread.run_sync(self.dialect.try_out)
            for _ in range(1 if self.dialect.shares_connection else 2):
                self._connections.append(await self._engine.connect())
        except BaseException as error:
            await undisturbed(self._disconnect())
            if self.dialect.is_error(error):
                raise self.dialect.translate(error) from error
            raise

    async def _disconnect(self) -> None:
        engine, self._engine = self._engine, None
        connections, self._connections = self._connections, []
        for connection in connections:
            await connection.close()
        if engine is not None:
            await engine.dispose()

    @property
    def _reader(self) -> AsyncConnection:
        self._check_open()
        return self._connections[0]

    @property
    def _writer(self) -> AsyncConnection:
        self._check_open()
        return self._connections[-1]

    def _check_open(self) -> None:
        if not self._connections:
            raise StoreClosedError

    async def _driver(self, connection: AsyncConnection) -> Any:
        return (await connection.get_raw_connection()).driver_connection

    async def _fetch(self, statement: Statement, values: tuple[Any, ...]) -> Any:
        driver = await self._driver(self._reader)
        if not self.dialect.shares_connection:
            return await driver.execute_fetchall(statement.sql, values)
        async with self._writing:  # on a shared connection, a reader would see a half-done write
            return await driver.execute_fetchall(statement.sql, values)

    async def _transact(
        self, work: Callable[[Transaction], Awaitable[T]], begin: str, left: asyncio.Event
    ) -> T:
        connection = self._writer
        driver = await self._driver(connection)
        try:
            await self._retrying(lambda: driver.execute_fetchall(begin), left)
            result = await work(Transaction(connection, driver))
            await self._retrying(lambda: driver.execute_fetchall("COMMIT"), left)
        except BaseException as error:
            # Even a task that is cancelled with its whole loop must leave no lock behind.
            await self._roll_back(connection, driver)
            if self.dialect.is_error(error):
                raise self.dialect.translate(error) from error
            raise
        if connection.in_transaction():  # SQLAlchemy's own idea of it, after run_sync
            await connection.rollback()
        return result

    async def _roll_back(self, connection: AsyncConnection, driver: Any) -> None:
        """Undo what is not committed.

        The driver is told at once, whoever is cancelled meanwhile, and does it after everything
        that it was told before: it also undoes a statement whose end nobody has waited for. After
        a commit it does nothing.
        """
        if not connection.invalidated:  # by SQLAlchemy, which has closed it then
            await driver.rollback()
        if connection.in_transaction():
            await connection.rollback()

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
                if not self.dialect.is_error(error):
                    raise
                if not self.dialect.is_busy(error) or loop.time() >= deadline:
                    raise self.dialect.translate(error) from error
            if left is not None and left.is_set():
                raise asyncio.CancelledError
            await asyncio.sleep(delay * (0.5 + self._jitter()))
            delay = min(1.5 * delay, _LONGEST_DELAY)
