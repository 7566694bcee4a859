"""SQLite through aiosqlite: pragmas, lists of keys, and what its errors mean."""

import asyncio
import json
import math
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import aiosqlite as aiosqlite_dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from entropic._shield import undisturbed
from entropic.database.dialect import Begin, Fault, Reader, Session
from entropic.database.forking import forking
from entropic.errors import DatabaseBusyError, DatabaseError, RowRefusedError, SettingsError

T = TypeVar("T")

# A short busy timeout, with retries from the loop: a long one would block a cancellation, and
# SQLite's own waits grow so fast (1, 2, 5, 10 ms) that most of them are slept through in vain.
_BUSY_TIMEOUT_SECONDS: Final = 0.003

_GLANCE_SECONDS: Final = 0.001

# The first releases in which a WAL reset cannot lose a commit that another process is reading;
# 3.50 and 3.44 have the fix in their own lines.
_WAL_FIXED: Final = (3, 51, 3)
_WAL_FIXED_LINES: Final = ((3, 50, 7), (3, 44, 6))

# SQLAlchemy quotes neither of these, and SQLite takes neither for a name.
_MORE_RESERVED_WORDS: Final = ("nothing", "returning")

# A journal was left that only who may write can roll back.
_UNSETTLED: Final = (sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY)

# The order of decimals that are kept as text.
_DECIMALS: Final = "entropic_decimals"

# Options of Python's sqlite3 that people have in their URLs; entropic sets what it needs.
_DRIVER_OPTIONS: Final = frozenset(
    {"uri", "timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"}
)


class SQLiteSession:
    """One connection, whose statements are executed one after another in a thread of its own."""

    waits_for_locks = False  # but at the beginning, and at the commit

    def __init__(
        self, connection: AsyncConnection, driver: "_Connection", path: str | None
    ) -> None:
        self.connection = connection
        self._driver = driver
        self._path = path
        self._file = None if path is None else _file_at(path)
        self._is_inside = False  # a transaction

    @property
    def is_usable(self) -> bool:
        """Whether SQLAlchemy has not closed it."""
        return not (self.connection.closed or self.connection.invalidated)

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement; its rows."""
        return await self._undivided(lambda: self._driver.execute_fetchall(sql, values))

    async def fetch_and(
        self, sql: str, values: Sequence[Any], function: Callable[[list[Any]], T]
    ) -> T:
        """The same, and call a function with them in the connection's thread: one hop for both."""
        return await self._undivided(lambda: self._driver.fetch_and(sql, values, function))

    async def _undivided(self, fetch: Callable[[], Awaitable[T]]) -> T:
        """Fetch what no fork comes between; in a transaction, none does anyway."""
        if self._is_inside:
            return await fetch()
        await forking.enter()
        try:
            return await fetch()
        finally:
            forking.leave()

    async def execute_many(self, batches: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Run statements one after the other, each for every one of its rows: in one hop."""
        await self._driver.execute_many(batches)

    async def begin(self, kind: Begin) -> None:
        """Begin a transaction, with the lock that it needs."""
        # With a WAL, SQLite itself writes on into a file that is gone.
        path = None if kind is Begin.READING else self._path
        if path is not None and _file_at(path) != self._file:
            raise _moved(path)
        await forking.enter()
        self._is_inside = True
        try:
            await self.fetch(_BEGIN[kind])
        except BaseException:
            self._leave()
            raise

    async def commit(self, told: str | None) -> None:
        """Commit it; nobody listens."""
        await self.fetch("COMMIT")
        self._leave()
        if self.connection.in_transaction():  # SQLAlchemy's own idea of it, after run_sync
            await self.connection.rollback()

    async def roll_back(self) -> None:
        """Undo what is not committed.

        The driver does it after everything that it was told before: it also undoes a statement
        whose end nobody has waited for. After a commit it does nothing.

        Raises:
            asyncio.CancelledError: It was cancelled, with its whole loop; it is done all the same.
        """
        cancelled: asyncio.CancelledError | None = None
        try:
            while not self.connection.invalidated:  # by SQLAlchemy, which has closed it then
                try:
                    await self._driver.rollback()
                    break
                except asyncio.CancelledError as error:
                    cancelled = error  # told, but perhaps not yet done: to ask again waits for both
        finally:
            self._leave()
        if self.connection.in_transaction():
            await self.connection.rollback()
        if cancelled is not None:
            raise cancelled

    def _leave(self) -> None:
        if self._is_inside:
            self._is_inside = False
            forking.leave()

    async def outcome_key(self) -> None:
        """A commit of a file has an outcome at once."""

    async def has_committed(self, key: Any) -> None:
        """The same."""

    async def listen(self, told: Callable[[str], None]) -> None:
        """SQLite tells nobody of anything."""

    async def disconnect(self) -> None:
        """Close the driver's connection, whatever is cancelled meanwhile."""
        await self._driver.close()


class _Connection(aiosqlite.Connection):
    """One whose end can be waited for, also where it could not be opened.

    aiosqlite does not: cancelled as it opens, it leaves a thread behind that reports to the loop,
    which fails aloud where that is closed by then, and the file open.
    """

    stopped: asyncio.Future[None] | None = None

    def __init__(self, connect: Callable[[], sqlite3.Connection], chunk: int) -> None:
        opened: list[sqlite3.Connection] = []

        def open_it() -> sqlite3.Connection:  # aiosqlite logs it, and a partial shows the path
            opened.append(connect())
            return opened[0]

        super().__init__(open_it, chunk)
        self._opened = opened
        self._thread.daemon = True  # as SQLAlchemy does

    async def fetch_and(
        self, sql: str, values: Sequence[Any], function: Callable[[list[Any]], T]
    ) -> T:
        """Run a statement, and a function with its rows, both in the thread.

        A cancellation waits until the statement has ended, and with it its lock.
        """
        has_ended: list[bool] = []
        # aiosqlite's thread keeps what it was last given, and what that returned: nothing, here.
        given, returned = [function], list[T]()

        def fetch() -> None:
            try:
                rows = self._conn.execute(sql, values).fetchall()
            finally:
                has_ended.append(True)
            returned.append(given.pop()(rows))

        try:
            await self._execute(fetch)  # type: ignore[no-untyped-call]
            return returned.pop()
        except asyncio.CancelledError:
            while not has_ended:  # noqa: ASYNC110  an event would wake the loop at each statement
                await asyncio.sleep(_GLANCE_SECONDS)
            raise

    async def execute_many(self, batches: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Run statements one after the other, each for every one of its rows, in the thread."""

        def execute() -> None:
            for sql, rows in batches:
                self._conn.executemany(sql, rows).close()

        await self._execute(execute)  # type: ignore[no-untyped-call]

    @property
    def is_closed(self) -> bool:
        """Whether its thread has ended."""
        return self.stopped is not None and self.stopped.done()

    def stop(self) -> asyncio.Future[None] | None:
        """Stop the thread."""
        if self.stopped is not None:  # its thread has ended, or is about to
            return self.stopped
        opened = self._opened  # and not all of this: it may be on its way to the collector

        def close() -> None:
            for connection in opened:
                connection.close()

        self._tx.put_nowait((None, close))
        self.stopped = super().stop()
        return self.stopped

    async def close(self) -> None:
        """Close it, and end the thread, whatever is cancelled meanwhile."""
        stopped = self.stop()
        if stopped is not None:
            await undisturbed(stopped)


# Transactions are begun by hand: the driver's own BEGIN is deferred, and a read-then-write in one
# loses updates or fails at once. With a rollback journal a commit waits for readers; EXCLUSIVE
# waits for them beforehand.
_BEGIN: Final = {
    Begin.READING: "BEGIN",
    Begin.WRITING: "BEGIN IMMEDIATE",
    Begin.PUBLISHING: "BEGIN EXCLUSIVE",
    Begin.TABLES: "BEGIN IMMEDIATE",
}


def _compare_decimals(one: str, other: str) -> int:
    """Which of two decimals is larger: 1, 0 or -1; what is none is smaller than all that are."""
    try:
        left, right = Decimal(one), Decimal(other)
        return (left > right) - (left < right)
    except ArithmeticError:  # another program has written it
        return (one > other) - (one < other)


class SQLite:
    """What is special about SQLite."""

    readers = 1
    tells = False
    longest_name: int | None = None
    # unixepoch('subsec') is of 3.42.
    now: sa.ColumnElement[float] = sa.literal_column(
        "((julianday('now') - 2440587.5) * 86400.0)", sa.Double()
    )

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.is_private = _is_in_memory(url)
        # Of a database in memory there can only be one connection.
        self.writers = 0 if self.is_private else 1
        self._connections: list[_Connection] = []

    def engine(self) -> AsyncEngine:
        """An engine whose connections begin no transaction by themselves."""
        engine = create_async_engine(
            self.url,
            hide_parameters=True,
            async_creator=self._connect,
            pool_reset_on_return=None,  # what is given back is to be closed
        )
        preparer = engine.dialect.identifier_preparer
        preparer.reserved_words = {*preparer.reserved_words, *_MORE_RESERVED_WORDS}
        return engine

    async def session(self, connection: AsyncConnection) -> SQLiteSession:
        """The session of a new connection."""
        driver: Any = (await connection.get_raw_connection()).driver_connection
        is_plain = not (self.is_private or "uri" in self.url.query)
        return SQLiteSession(connection, driver, self.url.database if is_plain else None)

    async def _connect(self) -> aiosqlite.Connection:
        """A connection that waits for a lock only for a moment.

        ``Database`` tries again, and can be cancelled.
        """
        (path,), options = aiosqlite_dialect.dialect().create_connect_args(self.url)
        options.update(timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None)

        def connect() -> sqlite3.Connection:
            made = sqlite3.connect(path, **options)
            made.execute("PRAGMA case_sensitive_like = ON")  # as it is on other databases
            made.create_collation(_DECIMALS, _compare_decimals)
            return made

        connection = _Connection(connect, 64)
        self._connections = [one for one in self._connections if not one.is_closed]
        self._connections.append(connection)
        try:
            return await connection
        except BaseException:
            await connection.close()
            raise

    async def aclose(self) -> None:
        """Close what the engine has lost."""
        for connection in self._connections:
            await connection.close()

    async def prepare(self, session: Session, is_new: bool) -> None:
        """Set a new database up; an existing one keeps its journal mode."""
        if is_new and wal_is_safe(sqlite3.sqlite_version_info) and not self.is_private:
            await session.fetch("PRAGMA journal_mode = WAL", ())

    @staticmethod
    def schema_of(connection: sa.Connection, name: str, schema: str | None) -> str:
        """The main database, unless another is asked for."""
        return schema or "main"

    @staticmethod
    def reader(kind: sa.types.TypeEngine[Any], compiler: sa.Dialect) -> Reader:
        """How a column of a type is read: as the type says."""
        return kind.dialect_impl(compiler).result_processor(compiler, None)

    @staticmethod
    def keys(name: str) -> sa.TableValuedAlias:
        """The keys bound under ``name``, any number of them as one value: a column ``value``."""
        return sa.func.json_each(sa.bindparam(name, type_=sa.String())).table_valued(
            # With a blank: a user's table could well be called keys.
            sa.column("value", sa.String),
            name="entropic keys",
        )

    def is_among(self, column: sa.ColumnElement[str], name: str) -> sa.ColumnElement[bool]:
        """Whether a column is one of the keys bound under ``name``."""
        return column.in_(sa.select(self.keys(name).c.value))

    @staticmethod
    def joined(
        left: sa.FromClause, found: sa.Select[Any], *, is_outer: bool
    ) -> tuple[sa.FromClause, Sequence[sa.ColumnElement[Any]]]:
        """A join of the tables: SQLite looks each row up."""
        (table,) = found.columns_clause_froms
        assert found.whereclause is not None
        join = left.join(table, found.whereclause, isouter=is_outer)
        return join, tuple(found.selected_columns)

    @staticmethod
    def is_narrower(found: Any, wanted: sa.types.TypeEngine[Any]) -> bool:
        """SQLite keeps whatever it is given."""
        return False

    @staticmethod
    def literal(value: Any, kind: sa.types.TypeEngine[Any]) -> str:
        """A value as SQL text, for a column's default: what binding it would store."""
        dialect = sqlite.dialect()
        process = kind.dialect_impl(dialect).bind_processor(dialect)
        bound = value if process is None else process(value)
        if isinstance(bound, bytes):
            return f"x'{bound.hex()}'"
        if isinstance(bound, str):
            return "'" + bound.replace("'", "''") + "'"
        if isinstance(bound, float) and math.isinf(bound):
            return "9e999" if bound > 0 else "-9e999"
        return repr(int(bound) if isinstance(bound, bool) else bound)

    @staticmethod
    def by_code_points(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """A text as it is: SQLite compares the bytes of UTF-8, which have the same order."""
        return text

    @staticmethod
    def by_decimal_value(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """By an order of ours: as numbers, SQLite knows 15 digits of them."""
        return sa.collate(text, _DECIMALS)

    @staticmethod
    def insert(table: Any) -> Any:
        """An insert that can also update, or do nothing, on a conflict."""
        return sqlite.insert(table)

    @staticmethod
    def bind_keys(keys: Sequence[str]) -> str:
        """The value to bind for some keys."""
        return json.dumps(keys)

    @staticmethod
    def fault(error: BaseException) -> Fault | None:
        """What an error means; ``None`` for one that is not the driver's."""
        if not isinstance(error, sqlite3.Error | DBAPIError):
            return None
        is_locked = _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        return Fault.LOCKED if is_locked else Fault.FINAL

    def translate(self, error: BaseException) -> DatabaseError:
        """An error of the driver, as one that says what to do."""
        code = _code(error)
        path = (self.url.database or ":memory:").removeprefix("file:")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return DatabaseBusyError(
                f"the database {path} stayed locked by another program; see who has it open"
                f" (for example with: fuser -v '{path}'), or give the store a longer lock_timeout"
            )
        if _extended_code(error) == sqlite3.SQLITE_READONLY_DBMOVED:
            return _moved(path)
        if _extended_code(error) in _UNSETTLED:
            return DatabaseError(
                f"the database {path} was left in the middle of a transaction, as by a crash, and"
                " who only reads cannot undo that: open it once with its own store, or with"
                " `entropic recover --yes`"
            )
        if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG):
            return RowRefusedError(
                f"the database {path} refused a row ({_original(error)}); see the constraints and"
                " triggers of its table"
            )
        if code == sqlite3.SQLITE_CANTOPEN and _may_be_made(path):
            return DatabaseError(
                f"the database {path} cannot be opened, although its folder is there and may be"
                " written: see how many files this process may have open (ulimit -n), and what is"
                f" under that name ({_original(error)})"
            )
        what = {
            sqlite3.SQLITE_CANTOPEN: "cannot be opened; its folder must exist and be writable",
            sqlite3.SQLITE_READONLY: "is read-only; make the file and its folder writable",
            sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free some room and try again",
            sqlite3.SQLITE_NOTADB: "is no SQLite database; choose another path",
            sqlite3.SQLITE_CORRUPT: "is damaged; restore a copy, or see sqlite3's .recover",
            sqlite3.SQLITE_IOERR: "failed to read or write; see the disk",
        }.get(code, "refused")
        return DatabaseError(f"the database {path} {what} ({_original(error)})")


def _may_be_made(path: str) -> bool:
    folder = os.path.dirname(path) or "."
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _original(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or error


def _code(error: BaseException) -> int:
    """The primary result code: the low byte of the extended one."""
    return _extended_code(error) & 0xFF


def _extended_code(error: BaseException) -> int:
    return getattr(_original(error), "sqlite_errorcode", None) or 0


def settled(url: sa.URL) -> sa.URL:
    """The URL with an absolute path, and with no options but those of a SQLite URI.

    Raises:
        SettingsError: It has a host, which most often is a path with a slash too few; or an
            option that SQLite cannot take.
    """
    if url.host or url.port or url.username or url.password:
        raise SettingsError(
            "db_url has a host or a user, and a SQLite database has only a path: write"
            " sqlite:///runs.sqlite3 (three slashes) or sqlite:////data/runs.sqlite3 (four)"
        )
    path = url.database or ":memory:"
    options = {key: value for key, value in url.query.items() if key not in _DRIVER_OPTIONS}
    if path.startswith("file:"):
        options["uri"] = "true"
    elif options:
        raise SettingsError(
            f"db_url has options that SQLite cannot take {', '.join(map(repr, options))}: options"
            " need a URI, such as sqlite:///file:runs.sqlite3?mode=ro"
        )
    return url.set(database=_absolute(path), query=options)


def for_reading(url: sa.URL, *, may_mend: bool) -> sa.URL:
    """The URL, settled before, by which SQLite writes nothing, and makes no file.

    Args:
        url: The URL.
        may_mend: Whether it may undo what a crash has left in the middle of a transaction, which
            is to write.

    Raises:
        SettingsError: There is no such file.
    """
    if _is_in_memory(url):
        raise SettingsError(
            "db_url names a database in memory, which only its own store sees: name a file"
        )
    path, mode = url.database or "", {"mode": "rw" if may_mend else "ro"}
    if path.startswith("file:"):
        return url if may_mend and "mode" in url.query else url.update_query_dict(mode)
    if not os.path.isfile(path):
        raise SettingsError(f"there is no database {path!r}: look at its path")
    options = {"uri": "true", **mode}
    # To read one with a WAL, SQLite makes two files beside it. Where it may not, and nobody else
    # has, there is none to be read, and nobody who would write.
    is_settled = not any(os.path.exists(path + end) for end in ("-wal", "-journal"))
    if is_settled and not _may_be_made(path):
        options["immutable"] = "1"
    return url.set(database=f"file:{quote(path)}", query=options)


def _absolute(path: str) -> str:
    if path.startswith("file:"):
        bare = path.removeprefix("file:")
        return path if bare.startswith(("/", ":")) else f"file:{quote(os.getcwd())}/{bare}"
    return path if path == ":memory:" else os.path.abspath(path)


def _file_at(path: str) -> tuple[int, int] | None:
    """What tells a file from others; ``None`` where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _moved(path: str) -> DatabaseError:
    return DatabaseError(
        f"the database {path} was moved or deleted while it was open; close the store, and put the"
        " file back if it is still wanted"
    )


def _is_in_memory(url: sa.URL) -> bool:
    return url.database in (":memory:", "file::memory:") or url.query.get("mode") == "memory"


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this release of SQLite has the fix of the WAL-reset fault."""
    return version >= _WAL_FIXED or any(
        version[:2] == line[:2] and version >= line for line in _WAL_FIXED_LINES
    )
