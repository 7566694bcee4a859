"""PostgreSQL through asyncpg: sessions, arrays of keys, and what its errors mean."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from entropic._shield import in_own_thread, uncancel
from entropic.database.dialect import Begin, Fault, Reader, Session
from entropic.errors import DatabaseBusyError, DatabaseError, RowRefusedError, SettingsError

T = TypeVar("T")

_CHANNEL: Final = "entropic"

# Of the advisory lock under which tables are made and changed; any number, always the same.
_TABLES_LOCK: Final = 0x656E74726F706963

_CONNECT_SECONDS: Final = 10.0

# Beyond the time that a statement may wait for a lock: nothing that entropic asks takes so long.
_ANSWER_SECONDS: Final = 30.0

# A client that has gone silently (a cut cable) lets its locks go when its transaction has been idle
# for so long. Publishing is the longest that one is: renames, and the sync of a folder.
_IDLE_SECONDS: Final = 60

_FLOAT_OID: Final = 701

_ENCODINGS: Final = ("UTF8", "SQL_ASCII")  # the second keeps the bytes that it is given


class _LostError(Exception):
    """What the system says of a connection that has gone; asyncpg hands it through."""


class PostgreSQLSession:
    """One connection of asyncpg's."""

    waits_for_locks = True

    def __init__(
        self, connection: AsyncConnection, driver: Any, lock_timeout: float, *, is_pooled: bool
    ) -> None:
        self.connection = connection
        self._driver = driver
        self._set_local = f"SET LOCAL lock_timeout = {_milliseconds(lock_timeout)}"
        self._is_pooled = is_pooled
        # As far as we asked for: what asyncpg knows is older, once a statement was cancelled.
        self._has_begun = False

    @property
    def is_usable(self) -> bool:
        """Whether it is still open, as far as is known."""
        return not (self._driver.is_closed() or self.connection.closed)

    async def fetch(self, sql: str, values: Sequence[Any]) -> Any:
        """Run a statement; its rows."""
        if not self._is_pooled or self._has_begun:
            return await self._asked(self._driver.fetch(sql, *values))
        # Between a statement's parts PgBouncer may change the server, except in a transaction.
        await self.begin(Begin.READING)
        try:
            return await self._asked(self._driver.fetch(sql, *values))
        finally:
            await self.roll_back()

    async def fetch_and(
        self, sql: str, values: Sequence[Any], function: Callable[[list[Any]], T]
    ) -> T:
        """The same, and call a function with them in a thread."""
        return await in_own_thread(function, await self.fetch(sql, values))

    async def execute_many(self, batches: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Run statements one after the other, each for all of its rows of values in one go."""
        for sql, rows in batches:
            await self._asked(self._driver.executemany(sql, rows))

    async def begin(self, kind: Begin) -> None:
        """Begin a transaction; one that changes tables waits for all others that do."""
        self._has_begun = True
        await self._execute(f"{_BEGIN[kind]}; {self._set_local}")
        if kind is Begin.TABLES:
            await self._execute(f"SELECT pg_advisory_xact_lock({_TABLES_LOCK})")

    async def commit(self, told: str | None) -> None:
        """Commit it, and tell whoever listens: in one go, as each costs a way to the server."""
        telling = "" if told is None else f"NOTIFY {_CHANNEL}, {_quoted(told)}; "
        await self._execute(f"{telling}COMMIT")
        self._has_begun = False

    async def roll_back(self) -> None:
        """Undo what is not committed; a session that cannot is of no more use."""
        if not self._has_begun or self._driver.is_closed():
            return
        try:
            await self._execute("ROLLBACK")
            self._has_begun = False
        except Exception:
            self._driver.terminate()
        except BaseException:
            self._driver.terminate()
            raise

    async def outcome_key(self) -> Any:
        """The number of the transaction under way."""
        return await self._asked(self._driver.fetchval("SELECT pg_current_xact_id()::text"))

    async def has_committed(self, key: Any) -> bool | None:
        """Whether a transaction has; ``None`` where the server has forgotten it, or cannot tell."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _IDLE_SECONDS + _ANSWER_SECONDS
        # Its session may not have learnt yet that nobody is there any more.
        while loop.time() < until:
            ((status,),) = await self.fetch("SELECT pg_xact_status($1::text::xid8)", [key])
            if status != "in progress":
                return None if status is None else bool(status == "committed")
            await asyncio.sleep(0.05)
        return None

    async def listen(self, told: Callable[[str], None]) -> None:
        """Have a function called with what others tell, for as long as the session lasts."""
        await self._asked(self._driver.add_listener(_CHANNEL, lambda *heard: told(heard[-1])))

    async def disconnect(self) -> None:
        """Close the driver's connection, whatever is cancelled meanwhile."""
        try:
            await self._driver.close()
        except asyncio.CancelledError:  # closed all the same, though the server was not told
            uncancel()
        except Exception as error:
            if PostgreSQL.fault(error) is not Fault.LOST and not isinstance(error, OSError):
                raise

    async def _execute(self, sql: str) -> None:
        await self._asked(self._driver.execute(sql))

    async def _asked(self, asking: Awaitable[T]) -> T:
        import asyncpg

        try:
            return await asking
        # The server, or the way to it, has gone: a timeout is one, too. A connection that was ended
        # under asyncpg's feet confuses it.
        except (OSError, asyncpg.InternalClientError) as error:
            self._driver.terminate()
            raise _LostError(str(error) or "the server does not answer") from error


_BEGIN: Final = {
    Begin.READING: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    # Others' commits are seen between statements: what must not change meanwhile is held.
    Begin.WRITING: "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    Begin.PUBLISHING: "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    Begin.TABLES: "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
}


class PostgreSQL:
    """What is special about PostgreSQL."""

    is_private = False
    readers = 2
    writers = 2
    longest_name: int | None = 63  # a longer one would be cut off
    # Of now, and not of the beginning of the transaction.
    now: sa.ColumnElement[float] = sa.literal_column(
        "extract(epoch FROM clock_timestamp())::double precision", sa.Double()
    )

    def __init__(self, url: sa.URL, lock_timeout: float) -> None:
        self.url = url
        self._lock_timeout = lock_timeout
        self._is_pooled = url.query.get("pgbouncer") == "true"
        self.tells = not self._is_pooled  # PgBouncer hands nothing on
        # As libpq has it, 0 is for ever.
        asked = self.url.query.get("connect_timeout")
        self._connect_seconds = _CONNECT_SECONDS if asked is None else int(str(asked)) or None
        self._connections: list[Any] = []

    def engine(self) -> AsyncEngine:
        """An engine whose connections begin no transaction by themselves."""
        return create_async_engine(
            self.url.set(query={}),
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            async_creator=self._connect,
            # JSON is read by the columns' types, which do it a piece at a time.
            json_deserializer=str,
        )

    async def session(self, connection: AsyncConnection) -> PostgreSQLSession:
        """The session of a new connection."""
        driver: Any = (await connection.get_raw_connection()).driver_connection
        encoding = driver.get_settings().server_encoding
        if encoding not in _ENCODINGS:
            raise DatabaseError(
                f"the database {self.url.database} is kept in {encoding}, which lacks most letters,"
                " so that it could refuse a finished run: use one that was made with ENCODING"
                " 'UTF8'"
            )
        return PostgreSQLSession(connection, driver, self._lock_timeout, is_pooled=self._is_pooled)

    async def aclose(self) -> None:
        """Close what the engine has lost."""
        for connection in self._connections:
            if not connection.is_closed():
                connection.terminate()

    async def prepare(self, session: Session, is_new: bool) -> None:
        """There is nothing to settle."""

    @staticmethod
    def schema_of(connection: sa.Connection, name: str, schema: str | None) -> str:
        """The first schema of the search path that has it, or else the first of all."""
        quoted = connection.dialect.identifier_preparer.quote_identifier(name)
        found = sa.text(
            "SELECT coalesce(max(n.nspname), current_schema()) FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(:name)"
        )
        return schema or str(connection.execute(found, {"name": quoted}).scalar_one())

    @classmethod
    def reader(cls, kind: sa.types.TypeEngine[Any], compiler: sa.Dialect) -> Reader:
        """How a column of a type is read: as the type says of what asyncpg returns."""
        if isinstance(kind, sa.ARRAY) and not kind.as_tuple:
            return _reader_of_each(cls.reader(kind.item_type, compiler))
        plain = kind.impl_instance if isinstance(kind, sa.TypeDecorator) else kind
        if isinstance(plain, sa.JSON):  # which comes as text, as from most drivers
            compiler = DefaultDialect()
            return kind.dialect_impl(compiler).result_processor(compiler, None)
        read = kind.dialect_impl(compiler).result_processor(compiler, _FLOAT_OID)
        if isinstance(plain, sa.DateTime) and plain.timezone:
            # asyncpg reads the last and the first moment as it does the infinite ones: naive.
            return lambda value: _aware(value if read is None else read(value))
        if isinstance(plain, sa.Uuid) and plain.as_uuid:
            return lambda value: _plain_uuid(value if read is None else read(value))
        return read

    @staticmethod
    def keys(name: str) -> sa.TableValuedAlias:
        """The keys bound under ``name``, any number of them as one value: a column ``value``."""
        array = sa.bindparam(name, type_=postgresql.ARRAY(sa.String()))
        keys = sa.func.unnest(array).table_valued(sa.column("value", sa.String))
        return keys.render_derived(name="entropic keys")

    @staticmethod
    def is_among(column: sa.ColumnElement[str], name: str) -> sa.ColumnElement[bool]:
        """Whether a column is one of the keys bound under ``name``.

        Not by a join with them: before the first ANALYZE, the server takes the rows of a model for
        a handful, and compares all that there are with each key.
        """
        return column == sa.any_(sa.bindparam(name, type_=postgresql.ARRAY(sa.String())))

    @staticmethod
    def joined(
        left: sa.FromClause, found: sa.Select[Any], *, is_outer: bool
    ) -> tuple[sa.FromClause, Sequence[sa.ColumnElement[Any]]]:
        """A lateral join, whose limit keeps the server from joining in another way, as above."""
        (table,) = found.columns_clause_froms
        assert isinstance(table, sa.Table)
        lateral = found.limit(sa.literal_column("1")).lateral(table.name)
        return left.join(lateral, sa.true(), isouter=is_outer), tuple(lateral.c)

    @staticmethod
    def bind_keys(keys: Sequence[str]) -> list[str]:
        """The value to bind for some keys."""
        return list(keys)

    @classmethod
    def is_narrower(  # noqa: PLR0911  a table of types
        cls, found: Any, wanted: sa.types.TypeEngine[Any]
    ) -> bool:
        """Whether it has fewer bits, digits, characters or members, or is of another kind."""
        if isinstance(wanted, sa.TypeDecorator):
            wanted = wanted.impl_instance
        if _is_of_another_kind(found, wanted):
            return True
        match wanted:
            case sa.ARRAY():
                return cls.is_narrower(found.item_type, wanted.item_type)
            case sa.Enum() if _is_native_enum(wanted):
                return not set(wanted.enums) <= set(found.enums)
            case sa.Integer():
                return _bits(found) < _bits(wanted)
            case sa.Float():
                return not isinstance(found, sa.Double)
            case sa.DateTime():
                return found.precision not in (None, _MICROSECOND_DIGITS)
            case sa.String():
                longest = found.length
                return longest is not None and (wanted.length is None or wanted.length > longest)
        return False

    @staticmethod
    def literal(value: Any, kind: sa.types.TypeEngine[Any]) -> str:
        """A value as SQL text, for a column's default: what binding it would store."""
        compiler: sa.Dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]
        process = kind.dialect_impl(compiler).bind_processor(compiler)
        return _quoted(_text(value if process is None else process(value)))

    @staticmethod
    def by_code_points(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """A text in the order of its code points, whatever the database's collation."""
        return sa.collate(text, "C")

    @staticmethod
    def by_decimal_value(text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """As a number, which has every digit here."""
        return sa.cast(text, sa.Numeric())

    @staticmethod
    def insert(table: Any) -> Any:
        """An insert that can also update, or do nothing, on a conflict."""
        return postgresql.insert(table)

    @staticmethod
    def fault(error: BaseException) -> Fault | None:
        """What an error means; ``None`` for one that is not the driver's."""
        import asyncpg

        error = _original(error)
        # What SQLAlchemy asks does not come through ``_asked``; see there.
        if isinstance(error, _LostError | ConnectionError | asyncpg.InternalClientError):
            return Fault.LOST
        if isinstance(error, asyncpg.InterfaceError):
            is_value = isinstance(error, asyncpg.DataError)
            return Fault.FINAL if is_value else Fault.LOST
        # One that a change of its tables has made stale, like those of the table below.
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            return Fault.ABORTED
        if isinstance(error, asyncpg.PostgresError):
            return next(
                (f for codes, f in _FAULTS if error.sqlstate.startswith(codes)), Fault.FINAL
            )
        return Fault.FINAL if isinstance(error, DBAPIError) else None

    def translate(self, error: BaseException) -> DatabaseError:
        """An error of the driver, as one that says what to do."""
        original = _original(error)
        code = getattr(original, "sqlstate", None) or ""
        if code == "0A000" and "recovery" in str(original):  # a standby server
            code = "25006"
        name = f"{self.url.database} on {self.url.host or self.url.query.get('host', 'localhost')}"
        if code == "55P03":
            return DatabaseBusyError(
                f"the database {name} stayed locked by another session; see who has it, by"
                " pg_blocking_pids(pid) in pg_stat_activity, or give the store a longer"
                " lock_timeout"
            )
        is_value = not isinstance(original, _LostError) and not code
        if code[:2] in ("22", "23", "54", "P0") or (is_value and self.fault(error) is Fault.FINAL):
            return RowRefusedError(
                f"the database {name} refused a row ({_told(original)}); see the constraints and"
                " triggers of its table"
            )
        what = next((text for codes, text in _TEXTS if code and code.startswith(codes)), "refused")
        if self.fault(error) is Fault.LOST:
            what = "went away, or cannot be reached; see whether the server is up"
        return DatabaseError(f"the database {name} {what} ({_told(original)})")

    async def _connect(self) -> Any:
        import asyncpg

        query = {k: v for k, v in self.url.query.items() if k not in _NOT_THE_DRIVERS}
        dsn = self.url.set(drivername="postgresql", query=query)
        settings = {
            "application_name": "entropic",
            "timezone": "UTC",  # for columns without a zone
            "lock_timeout": str(_milliseconds(self._lock_timeout)),
            "idle_in_transaction_session_timeout": f"{_IDLE_SECONDS}s",
            "tcp_keepalives_idle": "15",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        }
        try:
            connection = await asyncpg.connect(
                dsn.render_as_string(hide_password=False),
                timeout=self._connect_seconds,
                command_timeout=self._lock_timeout + _ANSWER_SECONDS,
                server_settings={} if self._is_pooled else settings,
                **({"statement_cache_size": 0} if self._is_pooled else {}),
            )
        except OSError as error:
            raise _LostError(str(error) or "the server does not answer") from error
        self._connections = [open_one for open_one in self._connections if not open_one.is_closed()]
        self._connections.append(connection)
        return connection


# By the beginnings of SQLSTATE codes; the first that fits.
_FAULTS: Final[Sequence[tuple[tuple[str, ...], Fault]]] = (
    # Too many connections; starting up, or shutting down.
    (("53300", "57P03"), Fault.LOCKED),
    # Deadlock, serialization; a prepared statement that is not there any more.
    (("40P01", "40001", "26000"), Fault.ABORTED),
    # The connection; the server was told to stop, or crashed; it gave up on us.
    (("08", "57P01", "57P02", "25P03", "57P05"), Fault.LOST),
)

_TEXTS: Final[Sequence[tuple[tuple[str, ...], str]]] = (
    (("28",), "refused to let us in; see the user and the password of db_url"),
    (("3D000",), "does not exist; make it (createdb), or see the name in db_url"),
    (
        ("42501",),
        "does not let this role do so; have its owner grant it (SELECT, INSERT, UPDATE and DELETE"
        " on the model's table and the tables entropic_*), or make the tables with what the"
        " store's ddl() returns",
    ),
    (
        ("3F000",),
        "has no such schema; make it (CREATE SCHEMA), or see the model's __table_args__",
    ),
    (("42P01",), "lacks a table; close the store, so that it opens anew and makes it"),
    (("25006",), "is read-only; connect to the primary server, or as a role that may write"),
    (("53100",), "cannot grow: its disk is full; free some room and try again"),
    (("53300",), "has too many connections; close some, or raise max_connections"),
    (("57P03",), "is starting up or shutting down; try again in a moment"),
)


def _original(error: BaseException) -> BaseException:
    """The driver's own error in what SQLAlchemy makes of it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def _is_of_another_kind(found: Any, wanted: Any) -> bool:
    """Whether a column takes none of the other's values, or gives them back changed.

    Some of these are one family to databases that keep them alike.
    """
    # JSONB rewrites numbers, and CHAR fills up with blanks. JSON may lie in a text.
    if isinstance(found, postgresql.JSONB | sa.CHAR) or (
        _family(found) is not _family(wanted)
        and not (isinstance(found, sa.String) and isinstance(wanted, sa.JSON))
    ):
        return True
    return _is_native_enum(found) != _is_native_enum(wanted)


def _family(kind: Any) -> type | None:
    return next((family for family in _FAMILIES if isinstance(kind, family)), None)


_FAMILIES: Final[Sequence[type]] = (
    *(sa.Boolean, sa.Integer, sa.Float, sa.DateTime, sa.Date),
    *(sa.JSON, sa.Uuid, sa.ARRAY, sa.LargeBinary, sa.String),
)

_MICROSECOND_DIGITS: Final = 6


def _is_native_enum(kind: Any) -> bool:
    return isinstance(kind, sa.Enum) and kind.native_enum


def _bits(kind: Any) -> int:
    return (
        16 if isinstance(kind, sa.SmallInteger) else 64 if isinstance(kind, sa.BigInteger) else 32
    )


def _told(error: BaseException) -> str:
    """What the server says, and not the row that it says it of: that may be anything."""
    return str(getattr(error, "message", None) or error) or type(error).__name__


def _milliseconds(seconds: float) -> int:
    """As a setting, where 0 would mean for ever."""
    return max(1, int(min(seconds * 1000, 2**31 - 1)))


def _text(bound: Any) -> str:
    """A bound value as the server writes it, and reads it for a column of its type."""
    if isinstance(bound, bytes):
        return rf"\x{bound.hex()}"
    if isinstance(bound, list | tuple):
        return f"{{{','.join(map(_item_text, bound))}}}"
    return str(bound)


def _item_text(bound: Any) -> str:
    """The same, in an array."""
    if bound is None:
        return "NULL"
    text = _text(bound)
    if isinstance(bound, list | tuple):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _reader_of_each(item: Reader) -> Reader:
    """Reads lists, of lists where there are several dimensions: asyncpg gives those."""
    if item is None:
        return None

    def read(value: Any) -> Any:
        return [read(one) for one in value] if isinstance(value, list) else item(value)

    return lambda value: None if value is None else read(value)


def _aware(value: datetime | None) -> datetime | None:
    return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


def _plain_uuid(value: Any) -> uuid.UUID | None:
    """A plain one: of asyncpg's own class, records could not be unpickled without asyncpg."""
    return None if value is None else uuid.UUID(int=value.int)


# Options of libpq's, and our own, that asyncpg takes for settings of the server; with the values
# that may be left out, ``None`` for any.
_NOT_THE_DRIVERS: Final[dict[str, tuple[str, ...] | None]] = {
    **dict.fromkeys(("pgbouncer", "connect_timeout", "fallback_application_name")),
    **dict.fromkeys(("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count")),
    "tcp_user_timeout": None,
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "load_balance_hosts": ("disable",),
    "hostaddr": (),
    "require_auth": (),
}


def settled(url: sa.URL) -> sa.URL:
    """The URL, with no options but those of PostgreSQL and our own.

    Raises:
        SettingsError: It has an option that means nothing.
    """
    if url.query.get("pgbouncer", "true") not in ("true", "false"):
        raise SettingsError("db_url has pgbouncer=, which is true or false")
    for name, harmless in _NOT_THE_DRIVERS.items():
        value = url.query.get(name, "")
        if value and harmless is not None and value not in harmless:
            raise SettingsError(
                f"db_url has {name}={value}, which the driver (asyncpg) cannot do: leave it out"
            )
    if not str(url.query.get("connect_timeout", "1")).isdigit():
        raise SettingsError("db_url has connect_timeout=, which is a whole number of seconds")
    if not url.database:
        raise SettingsError("db_url names no database: write postgresql://user@host/database")
    return url
