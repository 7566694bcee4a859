"""The databases that stores are tested on: a SQLite file, one in memory, a PostgreSQL server.

One of them is the current one; tests say what they want of it through the functions below. The
server comes with the development dependencies, and is started once for each test process;
``ENTROPIC_TEST_POSTGRES`` names another one, where databases may be made.
"""

import asyncio
import atexit
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pytest
import sqlalchemy as sa

from entropic.database import Database, Statement
from entropic.identity import Identity
from entropic.ledger.statements import Statements, statements_for

PATH = "runs.sqlite3"

ERRORS = (sqlite3.Error, asyncpg.PostgresError)
"""What they raise, where a table is missing."""

NAMES = ("sqlite", "postgresql")
"""Those that several processes can share."""

# The nearest of these marks, of a test or of its module, says where ``database`` is.

both = pytest.mark.databases(*NAMES)
"""As without a mark."""

either = pytest.mark.databases("sqlite", pytest.param("postgresql", marks=pytest.mark.nightly))
"""For what does not depend on the database: the second one has its turn at night."""

only_sqlite = pytest.mark.databases("sqlite")
"""For what only SQLite has, or for no database at all."""

only_postgresql = pytest.mark.databases("postgresql")
"""For what only PostgreSQL has."""


class Place(Protocol):
    """One database, as any other program sees it."""

    name: str
    url: str
    now: str  # its clock, as SQL: seconds since 1970

    def ask(self, sql: str, patience: float = 5) -> list[Any]:
        """The rows, after so many seconds at most; the first column where there is one only."""
        ...

    def change(self, sql: str) -> None:
        """Execute some statements."""
        ...

    def is_sound(self) -> bool:
        """Whether the database finds nothing wrong with itself."""
        ...

    def is_locked(self) -> bool:
        """Whether somebody else is in the middle of a transaction."""
        ...

    def url_from(self, folder: str | Path) -> str:
        """Its URL in another working directory, from which this one is reached so."""
        ...

    def clear(self) -> None:
        """Drop all that is in it."""
        ...

    def asking(self) -> AbstractContextManager[Callable[[str], list[Any]]]:
        """``ask`` over one connection, for one thread that asks often."""
        ...

    def connections(self) -> int:
        """How many stores of this process have."""
        ...

    def refuse(self, table: str, when: str, why: str) -> None:
        """Let a trigger refuse new rows."""
        ...

    def refuse_no_more(self, table: str) -> None:
        """Drop it."""
        ...

    def transactions(self) -> int:
        """How many have written, of all that there ever were; see ``count_transactions``."""
        ...

    def count_transactions(self) -> None:
        """Have them counted, from before the first store is opened."""
        ...


class SQLiteFile:
    """A file in the working directory."""

    name = "sqlite"
    url = f"sqlite:///{PATH}"
    now = "(julianday('now') - 2440587.5) * 86400"

    def ask(self, sql: str, patience: float = 5) -> list[Any]:
        """The rows, after so many seconds at most; the first column where there is one only."""
        with closing(sqlite3.connect(PATH, timeout=patience)) as connection:
            return _flat(connection.execute(sql).fetchall())

    def change(self, sql: str) -> None:
        """Execute some statements."""
        with closing(sqlite3.connect(PATH, timeout=5)) as connection:
            connection.executescript(sql)

    def is_sound(self) -> bool:
        """Whether the database finds nothing wrong with itself."""
        return self.ask("PRAGMA integrity_check") == ["ok"]

    def is_locked(self) -> bool:
        """Whether somebody else writes to it."""
        with closing(sqlite3.connect(PATH, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        return False

    def url_from(self, folder: str | Path) -> str:
        """Its URL in another working directory, from which this one is reached so."""
        return f"sqlite:///{folder}/{PATH}"

    def clear(self) -> None:
        """Drop all that is in it; nobody else is connected."""
        for path in Path().glob(f"{PATH}*"):
            path.unlink()

    @contextmanager
    def asking(self) -> Iterator[Callable[[str], list[Any]]]:
        """``ask`` over one connection, for one thread that asks often."""
        with closing(sqlite3.connect(PATH)) as connection:
            yield lambda sql: _flat(connection.execute(sql).fetchall())

    def connections(self) -> int:
        """How many stores of this process have."""
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return links.count(os.path.realpath(PATH))

    def refuse(self, table: str, when: str, why: str) -> None:
        """Let a trigger refuse new rows."""
        self.change(
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} WHEN {when}"
            f" BEGIN SELECT RAISE(ABORT, '{why}'); END"
        )

    def refuse_no_more(self, table: str) -> None:
        """Drop it."""
        self.change("DROP TRIGGER refuse")

    def transactions(self) -> int:
        """The file change counter of the database: bytes 24 to 27 of its header."""
        return int.from_bytes(Path(PATH).read_bytes()[24:28], "big")

    def count_transactions(self) -> None:
        """With a rollback journal, the file counts them; an existing one keeps its mode."""
        self.change("PRAGMA journal_mode=DELETE; CREATE TABLE mine (n INTEGER)")


class Memory(SQLiteFile):
    """A database that nobody else sees."""

    name = "memory"
    url = "sqlite://"


class PostgreSQL:
    """A database of its own on the server."""

    name = "postgresql"
    now = "extract(epoch FROM clock_timestamp())::double precision"

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, sql: str, patience: float = 5) -> list[Any]:
        """The rows, after so many seconds at most; the first column where there is one only."""
        return _flat(_asked(self.url, lambda connection: connection.fetch(sql)))

    def change(self, sql: str) -> None:
        """Execute some statements."""
        _execute(self.url, sql)

    def is_sound(self) -> bool:
        """Whether the database finds nothing wrong with itself: no transaction is left open."""
        return not self.is_locked()

    def is_locked(self) -> bool:
        """Whether somebody is in the middle of a transaction."""
        return bool(
            self.ask(
                "SELECT query FROM pg_stat_activity WHERE datname = current_database()"
                " AND state LIKE 'idle in transaction%'"
            )
        )

    def url_from(self, folder: str | Path) -> str:
        """Its URL in another working directory: the same."""
        return self.url

    def clear(self) -> None:
        """Drop all that is in it, whoever is still connected."""
        _execute(
            self.url,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "DO $$ DECLARE name text; BEGIN FOR name IN SELECT nspname FROM pg_namespace"
            r" WHERE nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'"
            " LOOP EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP; END $$;"
            " CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC",
        )

    @contextmanager
    def asking(self) -> Iterator[Callable[[str], list[Any]]]:
        """``ask`` over one connection, for one thread that asks often."""
        with asyncio.Runner() as runner:
            connection = runner.run(asyncpg.connect(self.url))
            try:
                yield lambda sql: _flat(runner.run(connection.fetch(sql)))
            finally:
                runner.run(connection.close())

    def connections(self) -> int:
        """How many stores have, of whatever process."""
        (count,) = self.ask(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'entropic'"
        )
        return int(count)

    def refuse(self, table: str, when: str, why: str) -> None:
        """Let a trigger refuse new rows."""
        self.change(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{why}'; END $$;"
            f" CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW WHEN ({when})"
            " EXECUTE FUNCTION refuse()"
        )

    def refuse_no_more(self, table: str) -> None:
        """Drop it."""
        self.change(f"DROP TRIGGER refuse ON {table}; DROP FUNCTION refuse()")

    def transactions(self) -> int:
        """The number that the next one gets which writes."""
        (number,) = self.ask("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        return int(number)

    def count_transactions(self) -> None:
        """They always are."""


def _flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    return [row[0] if len(row) == 1 else tuple(row) for row in rows]


_current: Place = SQLiteFile()


def at(url: str) -> Place:
    """A database by its URL, in a process that the test has started."""
    return PostgreSQL(url) if url.startswith("postgresql") else SQLiteFile()


def current() -> Place:
    """The database of this test."""
    return _current


def url() -> str:
    """Its URL."""
    return _current.url


def ask(sql: str, patience: float = 5) -> list[Any]:
    """The rows that another program reads in it; the first column where there is one only."""
    return _current.ask(sql, patience)


def change(sql: str) -> None:
    """What another program writes to it."""
    _current.change(sql)


def is_locked() -> bool:
    """Whether somebody else is in the middle of a transaction."""
    return _current.is_locked()


def compiled(database: Database, element: sa.sql.ClauseElement) -> Statement:
    """A statement for an open database."""
    return Statement(element, database.compiler, database.dialect)


def statements_of(database: Database, identity: Identity) -> dict[str, Statement]:
    """All that the ledger executes."""
    all_of_them = statements_for(database, identity)
    names = [name for name, v in vars(Statements).items() if isinstance(v, cached_property)]
    return {name: getattr(all_of_them, name) for name in names}


@contextmanager
def made(name: str) -> Iterator[Place]:
    """A new database, the current one for as long as the block lasts."""
    global _current  # noqa: PLW0603  tests run one after another
    before, _current = _current, _new(name)
    try:
        yield _current
    finally:
        if _current.url in _used:
            _used.remove(_current.url)
            _free.append(_current.url)
        _current = before


def _new(name: str) -> Place:
    if name == "sqlite":
        return SQLiteFile()
    if name == "memory":
        return Memory()
    if not _free:
        _make_some()
    place = PostgreSQL(_free.popleft())
    _used.append(place.url)
    place.clear()
    return place


# Making a database takes long, emptying one does not. What a test has left to itself had better be
# gone before its database has its next turn.
_free: deque[str] = deque()
_used: list[str] = []


def _make_some() -> None:
    server = sa.make_url(server_url())
    names = [f"entropic_test_{os.getpid()}_{len(_used) + n}" for n in range(4)]
    _execute(server_url(), *(f"CREATE DATABASE {name} STRATEGY FILE_COPY" for name in names))
    _free.extend(server.set(database=name).render_as_string(hide_password=False) for name in names)


def drop_all() -> None:
    """Leave none of them on the server."""
    if names := [sa.make_url(url).database for url in (*_free, *_used)]:
        # Killed processes may still be connected.
        _execute(server_url(), *(f"DROP DATABASE {name} WITH (FORCE)" for name in names))
        _free.clear()
        _used.clear()


def _execute(url: str, *statements: str) -> None:
    async def execute(connection: Any) -> None:
        for statement in statements:
            await connection.execute(statement)

    _asked(url, execute)


def _asked(url: str, question: Callable[[Any], Any]) -> Any:
    """What the server answers; in a thread, as there may be a loop in this one."""

    async def ask() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await question(connection)
        finally:
            await connection.close()

    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(asyncio.run(ask()))
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


_server_url = os.environ.get("ENTROPIC_TEST_POSTGRES")


def server_url() -> str:
    """The server's own database; the server is started if there is none yet."""
    global _server_url  # noqa: PLW0603  once for each process
    if _server_url is None:
        _server_url = _start_server()
    return _server_url


def _start_server() -> str:
    from tests.servers import Server

    server = Server().__enter__()
    atexit.register(server.__exit__)
    # What a power failure would leave is not what these tests are about.
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        _execute(server.url, f"ALTER SYSTEM SET {setting} = off")
    _execute(server.url, "SELECT pg_reload_conf()")
    return server.url
