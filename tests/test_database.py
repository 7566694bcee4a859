"""Connections and transactions: URLs, locks, cancellations, and what a database can answer."""

import asyncio
import functools
import logging
import pickle
import resource
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler

from entropic import AsyncStore
from entropic.database import Database, Transaction
from entropic.database.sqlite import wal_is_safe
from entropic.database.urls import async_url, masked
from entropic.errors import (
    DatabaseBusyError,
    DatabaseError,
    EntropicError,
    SettingsError,
    StoreClosedError,
)
from entropic.ledger.statements import _known
from tests import databases
from tests.outsiders import (
    READING,
    ask,
    at_once,
    cancelled_at,
    change,
    holding,
    is_unlocked,
    running,
    waiting,
)
from tests.simulations import Point, calls, simulate
from tests.test_owners import no_descriptors

pytestmark = pytest.mark.anyio

PATH = "runs.sqlite3"
CANARY = "c4n4ry"

counters = sa.Table("counters", sa.MetaData(), sa.Column("n", sa.Integer))


@pytest.fixture
def anyio_backend() -> str:
    """The store is made for asyncio."""
    return "asyncio"


@asynccontextmanager
async def opened(db_url: Any = f"sqlite:///{PATH}", **options: Any) -> AsyncIterator[Database]:
    """An open database."""
    database = Database(db_url, **{"lock_timeout": 30.0, **options})
    await database.open()
    try:
        yield database
    finally:
        await database.aclose()


@pytest.fixture
def counter() -> None:
    """A database with a counter at 0."""
    change(PATH, "CREATE TABLE counters (n INTEGER); INSERT INTO counters VALUES (0)")


def counted() -> Any:
    """The counter as another program reads it."""
    return ask(PATH, "SELECT n FROM counters")[0]


async def increment(database: Database) -> None:
    """Read the counter, give others their turn, and write it: what loses updates if not locked."""
    read = databases.compiled(database, sa.select(counters.c.n))
    write = databases.compiled(
        database, sa.update(counters).values(n=sa.bindparam("b_n", type_=sa.Integer))
    )

    async def work(transaction: Transaction) -> None:
        ((n,),) = await transaction.fetch(read)
        await asyncio.sleep(0)
        await transaction.fetch(write, b_n=n + 1)

    await database.write(work)


async def count(database: Database) -> Any:
    """The counter, by a read."""
    return (await database.read(databases.compiled(database, sa.select(counters.c.n))))[0][0]


def make_store(**settings: Any) -> AsyncStore[Point]:
    """An asynchronous store on the database."""
    return AsyncStore(
        **{
            "runner": simulate,
            "result_cls": Point,
            "file_suffix": ".npy",
            "db_url": f"sqlite:///{PATH}",
            **settings,
        }
    )


@pytest.mark.parametrize(
    "db_url",
    [
        "sqlite:///runs.sqlite3",
        "sqlite:///./runs.sqlite3",
        "sqlite+aiosqlite:///runs.sqlite3",
        "sqlite+pysqlite:///sub/../runs.sqlite3",
        sa.make_url("sqlite:///runs.sqlite3"),
        Path("runs.sqlite3"),
    ],
    ids=str,
)
def test_a_relative_path_is_made_absolute(db_url: Any, folder: Path) -> None:
    """Every way to write the file names the same one, and the driver is the asynchronous one."""
    url = async_url(db_url)
    assert url.drivername == "sqlite+aiosqlite"
    assert url.database == str(folder / "runs.sqlite3")


def test_an_absolute_path_stays_as_it_is() -> None:
    """Four slashes, or a path object."""
    assert async_url("sqlite:////data/runs.sqlite3").database == "/data/runs.sqlite3"
    assert async_url(Path("/data/runs.sqlite3")).database == "/data/runs.sqlite3"


async def test_a_store_stays_with_its_database_when_the_working_directory_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is settled when the store is made, not when it is opened."""
    store = make_store(results_dir=folder / "results")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    async with store:
        await store.run_or_retrieve({"n": 1})
    assert (folder / PATH).exists()
    assert not (folder / "elsewhere" / PATH).exists()


@pytest.mark.parametrize(
    "db_url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true"],
)
async def test_a_database_in_memory_is_one_for_all_of_a_stores_calls(
    db_url: str, folder: Path
) -> None:
    """Reads see what was written; no file appears."""
    async with make_store(db_url=db_url) as store:
        records = await asyncio.gather(*(store.run_or_retrieve({"n": n}) for n in range(5)))
        found = await asyncio.gather(*(store.retrieve({"n": n}) for n in range(5)))
    assert [record.id for record in records] == [record.id for record in found if record]
    assert [path.name for path in folder.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("options", ["mode=ro", "mode=ro&uri=true"])
async def test_a_sqlite_uri_is_taken_and_its_relative_path_made_absolute(
    counter: None, options: str, folder: Path
) -> None:
    """``file:`` with options, as SQLite takes it."""
    db_url = f"sqlite:///file:{PATH}?{options}"
    assert async_url(db_url).database == f"file:{folder / PATH}"
    async with opened(db_url) as database:
        with pytest.raises(DatabaseError, match="read-only"):
            await increment(database)


@pytest.mark.parametrize(
    ("db_url", "message"),
    [
        (f"mysql://me:{CANARY}@host/runs", "names 'mysql', which entropic cannot use"),
        (f"oracle://me:{CANARY}@host/runs", "names 'oracle'"),
        (f"sqlite+pysqlcipher://:{CANARY}@/runs.db", "names the driver 'pysqlcipher'"),
        (f"postgresql+pg8000://me:{CANARY}@host/runs", "leave the driver out"),
        (f"postgresql://me:{CANARY}@host:port/runs", "is no database URL"),
        (f"{CANARY}.sqlite3", "is no database URL; write sqlite:///"),
        ("", "is no database URL"),
        (None, "is no database URL"),
        (7, "is no database URL"),
        (f"sqlite://{CANARY}.sqlite3", "three slashes"),
        (f"sqlite://me:{CANARY}@host/runs.sqlite3", "three slashes"),
        (f"sqlite:///runs.sqlite3?password={CANARY}", "cannot take 'password'"),
    ],
    ids=str,
)
def test_an_unusable_url_is_refused_at_once(db_url: Any, message: str) -> None:
    """By the store's constructor, saying what to write, and never with the password."""
    with pytest.raises(SettingsError, match=message) as caught:
        make_store(db_url=db_url)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_a_missing_driver_names_the_extra(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL without asyncpg."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(SettingsError, match=r"pip install 'entropic\[postgres\]'") as caught:
        make_store(db_url=f"{scheme}://me:{CANARY}@host/runs")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "db_url",
    [
        f"postgresql://me:{CANARY}@host/runs",
        f"postgresql://host/runs?password={CANARY}",
        f"postgresql://host/runs?user=me&PassWord={CANARY}&sslmode=require",
        f"postgresql://host/runs?password={CANARY}&password={CANARY}",
        f"postgresql://host/runs?auth_token={CANARY}&pwd={CANARY}",
        f"sqlite:///file:runs.sqlite3?key={CANARY}&uri=true",
    ],
)
def test_a_masked_url_shows_no_secret(db_url: str) -> None:
    """Neither in the user part nor in the query; what is no secret is still there."""
    shown = masked(sa.make_url(db_url))
    assert CANARY not in shown
    assert "***" in shown
    assert "runs" in shown
    assert "sslmode=require" in shown or "sslmode" not in db_url


async def test_a_secret_in_the_query_shows_nowhere(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a store's repr, its log, or the errors of a database that cannot be used."""
    caplog.set_level(logging.DEBUG)
    db_url = f"sqlite:///file:{PATH}?password={CANARY}&uri=true"
    shown = []
    async with make_store(db_url=db_url) as store:
        await store.run_or_retrieve({"n": 1})
        shown.append(repr(store))
    Path(PATH).write_text("no database " * 100)
    for url in (db_url, f"sqlite:///file:missing/{PATH}?password={CANARY}&uri=true"):
        store = make_store(db_url=url)
        with pytest.raises(DatabaseError) as caught:
            await store.run_or_retrieve({"n": 1})
        shown += traceback.format_exception(caught.value)
        shown.append(repr(pickle.loads(pickle.dumps(caught.value))))
    assert CANARY not in "".join(shown) + caplog.text
    assert "password=***" in shown[0]


def _increment_often(times: int) -> Any:
    async def work() -> None:
        async with opened() as database:
            for _ in range(times):
                await increment(database)

    return work()


def test_processes_that_read_then_write_lose_no_update(counter: None) -> None:
    """Four processes, each with its own transactions on one counter."""
    at_once(_increment_often, [(30,)] * 4)
    assert counted() == 4 * 30


async def test_concurrent_writes_of_one_process_lose_no_update(counter: None) -> None:
    """They go one after the other."""
    async with opened() as database:
        await asyncio.gather(*(increment(database) for _ in range(50)))
    assert counted() == 50


async def test_a_read_takes_no_write_lock(counter: None) -> None:
    """Reads, and opening, go on while another program holds the write lock."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    with holding(PATH, "BEGIN IMMEDIATE"), waiting() as lock:
        async with opened(lock_timeout=0) as database:
            assert await count(database) == 0
        async with make_store(lock_timeout=0) as store:
            assert await store.retrieve({"n": 1}) is not None
            assert await store.retrieve({"n": 2}) is None
        assert not lock.was_met


async def test_an_inspection_reads_all_of_one_moment() -> None:
    """Others may be making the very tables that it looks at."""
    change(PATH, "PRAGMA journal_mode = wal; CREATE TABLE counters (n)")

    def inspect(connection: sa.Connection) -> list[list[str]]:
        before = sa.inspect(connection).get_table_names()
        change(PATH, "CREATE TABLE made_meanwhile (n)")
        return [before, sa.inspect(connection).get_table_names()]

    async with opened() as database:
        assert await database.read_sync(inspect) == [["counters"]] * 2
        assert await count_tables(database) == 2


async def count_tables(database: Database) -> int:
    """How many there are now."""
    return await database.read_sync(lambda c: len(sa.inspect(c).get_table_names()))


async def test_statements_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second store of the same model leaves SQLAlchemy's compiler nothing to do."""
    compiled = []
    initialize = SQLiteCompiler.__init__

    def spy(self: SQLiteCompiler, *args: Any, **kwargs: Any) -> None:
        compiled.append(args)
        initialize(self, *args, **kwargs)

    async def use_all(store: AsyncStore[Point]) -> None:
        compiled.clear()
        await store.run_or_retrieve({"n": 1})
        await store.run({"n": 1})
        await store.retrieve({"n": 1})
        await store.delete({"n": 1})
        await store.register({"n": 1}, "results/.entropic/folder")
        await store.delete({"n": 1})

    monkeypatch.setattr(SQLiteCompiler, "__init__", spy)
    _known.clear()
    async with make_store() as store:
        await store.failures()
        await use_all(store)
        assert len(compiled) > 5
    async with make_store() as store:
        await store.failures()
        await use_all(store)
        assert compiled == []


async def test_an_error_does_not_show_the_values_of_its_statement(counter: None) -> None:
    """Parameters can be long, and secret."""
    async with opened() as database:
        with pytest.raises(DatabaseError) as caught:
            await database.write(
                lambda transaction: transaction.run_sync(
                    lambda connection: connection.execute(
                        sa.text("INSERT INTO nowhere VALUES (:value)"), {"value": CANARY}
                    )
                )
            )
    assert "no such table" in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("version", "is_safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 49, 9), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 0), False),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_wal_is_used_only_where_a_reset_is_safe(version: tuple[int, ...], is_safe: bool) -> None:
    """The fix is in 3.51.3 and later, and in two older lines."""
    assert wal_is_safe(version) is is_safe


async def test_a_new_database_gets_the_mode_that_this_sqlite_can_be_trusted_with() -> None:
    """WAL where a reset is safe, else the rollback journal."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    expected = "wal" if wal_is_safe(sqlite3.sqlite_version_info) else "delete"
    assert ask(PATH, "PRAGMA journal_mode") == [expected]


async def test_a_new_database_is_in_wal_mode_on_a_safe_sqlite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library of this test may be older: only what it says of itself is replaced."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
        assert (await store.run_or_retrieve({"n": 1})).n == 1
    assert calls() == 1
    assert ask(PATH, "PRAGMA journal_mode") == ["wal"]


@pytest.mark.parametrize(
    ("mode", "version"), [("wal", sqlite3.sqlite_version_info), ("delete", (3, 51, 3))]
)
async def test_an_existing_database_keeps_its_journal_mode(
    mode: str, version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it may have had a reason."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    change(PATH, f"PRAGMA journal_mode = {mode}; CREATE TABLE mine (n)")
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    assert ask(PATH, "PRAGMA journal_mode") == [mode]
    async with make_store() as store:
        assert await store.retrieve({"n": 1}) is not None


async def test_setting_a_new_database_up_waits_for_whoever_has_it_locked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change of the journal mode needs the whole file for a moment."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    change(PATH, "CREATE TABLE t (n); DROP TABLE t")
    async with make_store_later() as store:
        with waiting() as lock, holding(PATH, *READING) as release:
            call = asyncio.create_task(store.run_or_retrieve({"n": 1}))
            await lock.met()
            release()
            assert (await call).n == 1


@pytest.mark.parametrize("held", [("BEGIN EXCLUSIVE",), ("BEGIN IMMEDIATE",), READING])
async def test_a_write_waits_until_another_program_lets_go(
    counter: None, held: tuple[str, ...]
) -> None:
    """Whether it meets the lock at its beginning or, with a reader, at its commit."""
    async with opened() as database:
        with waiting() as lock, holding(PATH, *held) as release:
            call = asyncio.create_task(increment(database))
            await lock.met()
            await lock.met()
            assert not call.done()
            release()
            await call
    assert counted() == 1


async def test_a_read_waits_until_another_program_lets_go(counter: None) -> None:
    """Only an exclusive lock stops it."""
    async with opened() as database:
        with waiting() as lock, holding(PATH, "BEGIN EXCLUSIVE") as release:
            call = asyncio.create_task(count(database))
            await lock.met()
            release()
            assert await call == 0


@pytest.mark.parametrize("held", [("BEGIN EXCLUSIVE",), ("BEGIN IMMEDIATE",), READING])
async def test_a_store_waits_until_another_program_lets_go(held: tuple[str, ...]) -> None:
    """Opening, looking up, claiming and storing."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    async with make_store() as store:
        with waiting() as lock, holding(PATH, *held) as release:
            call = asyncio.create_task(store.run_or_retrieve({"n": 2}))
            await lock.met()
            release()
            assert (await call).n == 2
        assert (await store.retrieve({"n": 2})) is not None


def _hold(path: str, connection: Any) -> None:
    with holding(path, "BEGIN EXCLUSIVE"):
        connection.send("held")
        connection.recv()


async def test_a_lock_of_another_process_is_waited_for(counter: None) -> None:
    """Not only one of this process's own."""
    async with opened() as database:
        with running(_hold, PATH) as child, waiting() as lock:
            assert await asyncio.to_thread(child.recv) == "held"
            call = asyncio.create_task(increment(database))
            await lock.met()
            child.send("let go")
            await call
    assert counted() == 1


async def test_a_killed_process_leaves_no_lock(counter: None) -> None:
    """The system takes its locks back, and its half-done write is undone."""
    async with opened() as database:
        with running(_write_half, PATH) as child, waiting() as lock:
            assert await asyncio.to_thread(child.recv) == "half done"
            call = asyncio.create_task(increment(database))
            await lock.met()
            child.kill()
            await call
    assert counted() == 1


def _write_half(path: str, connection: Any) -> None:
    with holding(path, "BEGIN EXCLUSIVE", "UPDATE counters SET n = 100"):
        connection.send("half done")
        connection.recv()


@pytest.mark.parametrize("held", [("BEGIN EXCLUSIVE",), ("BEGIN IMMEDIATE",), READING])
async def test_a_cancelled_write_stops_waiting_and_leaves_no_lock(
    counter: None, held: tuple[str, ...]
) -> None:
    """Within a second, although the other program still holds its lock."""
    async with opened(lock_timeout=60) as database:
        with waiting() as lock, holding(PATH, *held) as release:
            call = asyncio.create_task(increment(database))
            await lock.met()
            cancelled = time.monotonic()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert time.monotonic() - cancelled < 1
            release()
            assert is_unlocked(PATH)
        assert counted() == 0
        await increment(database)
    assert counted() == 1


async def test_a_cancelled_read_stops_waiting(counter: None) -> None:
    """Within a second; the next read works."""
    async with opened(lock_timeout=60) as database:
        with waiting() as lock, holding(PATH, "BEGIN EXCLUSIVE"):
            call = asyncio.create_task(count(database))
            await lock.met()
            cancelled = time.monotonic()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert time.monotonic() - cancelled < 1
        assert await count(database) == 0


@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("run_or_retrieve", ("BEGIN EXCLUSIVE",)),
        ("retrieve", ("BEGIN EXCLUSIVE",)),
        ("delete", ("BEGIN IMMEDIATE",)),
        ("register", READING),
    ],
)
async def test_a_cancelled_call_of_a_store_stops_waiting(
    method: str, held: tuple[str, ...], folder: Path
) -> None:
    """Also one that is still opening; the next call works."""
    (folder / "made").write_text("elsewhere")
    arguments = ("made",) if method == "register" else ()
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    for is_open in (False, True):
        async with make_store() as store:
            if is_open:
                await store.retrieve({"n": 1})
            with waiting() as lock, holding(PATH, *held):
                call = asyncio.create_task(getattr(store, method)({"n": 1}, *arguments))
                await lock.met()
                cancelled = time.monotonic()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert time.monotonic() - cancelled < 1
            assert (await store.run_or_retrieve({"n": 1})).result_file.startswith("./results")
            assert is_unlocked(PATH)
            assert (await store.run({"n": 1})).n == 1


@pytest.mark.parametrize("held", [("BEGIN EXCLUSIVE",), ("BEGIN IMMEDIATE",), READING])
async def test_a_lock_that_stays_is_an_error_that_says_whom_to_look_for(
    counter: None, held: tuple[str, ...], folder: Path
) -> None:
    """After lock_timeout; nothing is kept, and the next write works."""
    async with opened(lock_timeout=0.3) as database:
        with holding(PATH, *held) as release:
            with pytest.raises(DatabaseBusyError) as caught:
                await increment(database)
            if held != ("BEGIN EXCLUSIVE",):
                assert await count(database) == 0
            release()
            assert is_unlocked(PATH)
        for words in ("locked by another program", "fuser -v", str(folder / PATH), "lock_timeout"):
            assert words in str(caught.value)
        await increment(database)
    assert counted() == 1


async def test_a_store_that_met_a_lock_works_again_afterwards() -> None:
    """Busy at opening and busy when open are both passing troubles."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    async with make_store(lock_timeout=0) as store:
        for params in ({"n": 1}, {"n": 2}):
            with holding(PATH, "BEGIN EXCLUSIVE"), pytest.raises(DatabaseBusyError):
                await store.run_or_retrieve(params)
            assert (await store.run_or_retrieve(params)).n == params["n"]
    assert calls() == 2


@pytest.mark.parametrize("everything", [False, True], ids=["the call", "the whole loop"])
async def test_a_write_cancelled_at_any_moment_leaves_nothing_half_done(
    counter: None, everything: bool
) -> None:
    """At each of its suspensions: no lock, all or nothing, and the next write works."""
    async with opened() as database:
        moment = 1
        while True:
            before = counted()
            in_time = await cancelled_at(moment, lambda: increment(database), everything=everything)
            assert is_unlocked(PATH), moment
            assert counted() in ((before, before + 1) if in_time else (before + 1,)), moment
            before = counted()
            await increment(database)
            assert counted() == before + 1
            if not in_time:
                break
            moment += 1
    assert moment > 5


@pytest.mark.parametrize("everything", [False, True], ids=["the call", "the whole loop"])
async def test_a_change_of_the_tables_cancelled_at_any_moment_leaves_nothing_half_done(
    everything: bool,
) -> None:
    """The same for what SQLAlchemy itself executes in a transaction."""
    async with opened() as database:
        moment = 1
        while True:

            async def create(name: str = f"t{moment}") -> None:
                table = sa.Table(name, sa.MetaData(), sa.Column("n", sa.Integer))
                await database.write(lambda transaction: transaction.run_sync(table.create))

            in_time = await cancelled_at(moment, create, everything=everything)
            assert is_unlocked(PATH), moment
            change(PATH, f"DROP TABLE IF EXISTS t{moment}")
            await create()
            if not in_time:
                break
            moment += 1
    assert moment > 5


@pytest.mark.parametrize("method", ["run_or_retrieve", "run", "delete", "register"])
async def test_a_store_cancelled_at_any_moment_leaves_nothing_half_done(
    method: str, folder: Path
) -> None:
    """At each suspension: no lock, and the row and its result fit together."""
    (folder / "made").write_text("elsewhere")
    arguments = ("made",) if method == "register" else ()
    async with make_store() as store:
        await store.run_or_retrieve({"n": 0})
        moment = 1
        while True:
            params = {"n": moment}
            if method == "delete":
                await store.run_or_retrieve(params)
            call = functools.partial(getattr(store, method), params, *arguments)
            in_time = await cancelled_at(moment, call)
            assert is_unlocked(PATH), moment
            record = await store.retrieve(params)
            assert record is None or Path(record.result_file).stat().st_size
            again = await store.run_or_retrieve(params)
            assert record is None or again.created_at == record.created_at
            if not in_time:
                break
            moment += 1
    assert (record is None) == (method == "delete")
    assert moment > 5
    assert [stage.name for stage in (folder / "results/.entropic/staging").iterdir()] == []
    assert ask(PATH, "SELECT count(*) FROM entropic_runs WHERE owner IS NOT NULL") == [0]


async def test_a_write_that_has_begun_is_carried_to_its_end(counter: None) -> None:
    """A cancelled call ends with it, not before: it may be giving results their names."""
    async with opened() as database:
        began, go_on = asyncio.Event(), asyncio.Event()
        update = databases.compiled(database, sa.update(counters).values(n=counters.c.n + 1))

        async def work(transaction: Transaction) -> None:
            began.set()
            await go_on.wait()
            await transaction.fetch(update)

        call = asyncio.create_task(database.write(work))
        await began.wait()
        for _ in range(2):
            call.cancel()
            await asyncio.sleep(0)
        assert not call.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert counted() == 1
        assert is_unlocked(PATH)


async def test_a_read_sees_no_half_done_write_of_a_shared_connection() -> None:
    """A database in memory has only one: reads wait for the end of a transaction there."""
    async with opened("sqlite://") as database:
        await database.write(lambda t: t.run_sync(counters.create))
        began, go_on = asyncio.Event(), asyncio.Event()
        insert = databases.compiled(database, sa.insert(counters).values(n=1))
        update = databases.compiled(database, sa.update(counters).values(n=2))

        async def work(transaction: Transaction) -> None:
            await transaction.fetch(insert)
            began.set()
            await go_on.wait()
            await transaction.fetch(update)

        write = asyncio.create_task(database.write(work))
        await began.wait()
        read = asyncio.create_task(count(database))
        await asyncio.wait({read}, timeout=0.05)
        go_on.set()
        assert await read == 2
        await write


async def test_closing_lets_a_write_end_first(counter: None) -> None:
    """What is under way is committed whole; what comes later is told that it is too late."""
    async with opened() as database:
        began, go_on = asyncio.Event(), asyncio.Event()
        update = databases.compiled(database, sa.update(counters).values(n=counters.c.n + 1))

        async def work(transaction: Transaction) -> None:
            await transaction.fetch(update)
            began.set()
            await go_on.wait()
            await transaction.fetch(update)

        write = asyncio.create_task(database.write(work))
        await began.wait()
        closing_task = asyncio.create_task(database.aclose())
        late = asyncio.create_task(increment(database))
        await asyncio.sleep(0)
        go_on.set()
        await write
        await closing_task
        with pytest.raises(StoreClosedError):
            await late
        with pytest.raises(StoreClosedError):
            await database.read(update)
    assert counted() == 2
    assert is_unlocked(PATH)


async def test_a_full_disk_is_told_and_the_database_works_again(counter: None) -> None:
    """Nothing of the write is kept, no lock stays, and once there is room it goes on."""
    fill = sa.text("INSERT INTO counters SELECT value FROM json_each(:many)")
    many = {"many": str([*range(1000)])}
    async with opened() as database:
        await _limit(database, 2)
        with pytest.raises(DatabaseError, match="the disk is full; free some room"):
            await database.write(lambda t: t.run_sync(lambda c: c.execute(fill, many)))
        assert is_unlocked(PATH)
        assert counted() == 0
        await increment(database)
        await _limit(database, 1_000_000)
        await database.write(lambda t: t.run_sync(lambda c: c.execute(fill, many)))
    assert ask(PATH, "SELECT count(*) FROM counters") == [1001]


async def _limit(database: Database, pages: int) -> None:
    """Let the database have no more than so many pages, as if the disk had no more."""
    await database.write(
        lambda t: t.run_sync(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))
    )


async def test_a_store_on_a_full_disk_works_again_when_there_is_room() -> None:
    """The run that could not be stored is told so, and can be asked for again."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    change(PATH, "CREATE TABLE ballast AS SELECT zeroblob(100000) AS b")
    limits: list[int] = []

    def limit(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {limits[-1]}").close()

    limits.append(ask(PATH, "PRAGMA page_count")[0])
    sa.event.listen(sa.Engine, "connect", limit)
    try:
        async with make_store() as store:
            with pytest.raises(DatabaseError, match="the disk is full"):
                await store.sweep([{"n": n, "label": "x" * 500} for n in range(100)])
            stored = ask(PATH, "SELECT count(*) FROM points")[0]
            assert is_unlocked(PATH)
            change(PATH, "DROP TABLE ballast")
            records = await store.sweep([{"n": n, "label": "x" * 500} for n in range(40)])
    finally:
        sa.event.remove(sa.Engine, "connect", limit)
    assert len(records) == 40
    assert ask(PATH, "SELECT count(*) FROM points")[0] == max(stored, 41)
    assert all(Path(record.result_file).exists() for record in records)


def _grow_beyond_limit() -> tuple[str, bool]:
    """In a process that may write files of no more than 100 kB each."""

    async def work() -> tuple[str, bool]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        async with opened() as database:
            many = {"many": str([*range(100_000)])}
            fill = sa.text("INSERT INTO counters SELECT value FROM json_each(:many)")
            try:
                await database.write(lambda t: t.run_sync(lambda c: c.execute(fill, many)))
            except DatabaseError as error:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                )
                await increment(database)
                return str(error), is_unlocked(PATH)
            return "", False

    return work()  # type: ignore[return-value]


def test_a_disk_that_fails_is_told_and_the_database_works_again(counter: None) -> None:
    """A real write that the system refuses."""
    ((message, unlocked),) = at_once(_grow_beyond_limit, [()])
    assert "failed to read or write; see the disk" in message
    assert unlocked
    assert counted() == 1


async def test_a_read_only_database_is_told(counter: None) -> None:
    """Reads work; a write says what to make writable."""
    async with opened(f"sqlite:///file:{PATH}?mode=ro&uri=true") as database:
        with pytest.raises(DatabaseError, match="make the file and its folder writable"):
            await increment(database)
        assert await count(database) == 0


async def test_a_file_that_is_no_database_is_told(folder: Path) -> None:
    """It stays as it is; once it is out of the way, the same store works."""
    Path(PATH).write_text("these are my notes\n" * 100)
    async with make_store_later() as store:
        with pytest.raises(DatabaseError, match="is no SQLite database; choose another path"):
            await store.run_or_retrieve({"n": 1})
        assert Path(PATH).read_text() == "these are my notes\n" * 100
        Path(PATH).unlink()
        assert (await store.run_or_retrieve({"n": 1})).n == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/runs.sqlite3", "its folder must exist and be writable"),
        (".", "what is under that name"),
    ],
)
async def test_a_path_where_no_database_can_be_is_told(
    path: str, message: str, folder: Path
) -> None:
    """A folder that is missing, or is one itself; once mended, the same store works."""
    async with make_store_later(db_url=f"sqlite:///{path}") as store:
        with pytest.raises(DatabaseError, match=message) as caught:
            await store.run_or_retrieve({"n": 1})
        assert str(folder / path).removesuffix("/.") in str(caught.value)
        if path != ".":
            (folder / "missing").mkdir()
            assert (await store.run_or_retrieve({"n": 1})).n == 1


async def test_descriptors_that_ran_out_are_told(folder: Path) -> None:
    """And not that the folder is to be made writable."""
    database = Database(f"sqlite:///{PATH}", lock_timeout=1.0)
    with no_descriptors(), pytest.raises(DatabaseError, match="ulimit -n"):
        await database.open()
    await database.open()
    await database.aclose()


def test_a_failed_opening_leaves_no_thread_to_a_loop_that_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A script that ends at once must not see the driver's thread fail, too."""
    failures: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    async def scenario() -> None:
        with pytest.raises(DatabaseError):
            async with opened("sqlite:///missing/runs.sqlite3"):
                pass

    for _ in range(20):
        asyncio.run(scenario())
    assert failures == []


@asynccontextmanager
async def make_store_later(**settings: Any) -> AsyncIterator[AsyncStore[Point]]:
    """A store that is opened by its first call, and closed all the same."""
    store = make_store(**settings)
    try:
        yield store
    finally:
        await store.aclose()


async def test_a_damaged_database_is_told(counter: None) -> None:
    """With what to do about it."""
    change(PATH, "INSERT INTO counters SELECT value FROM json_each(json_array(1, 2, 3))")
    with open(PATH, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    async with opened() as database:
        with pytest.raises(DatabaseError, match="is damaged; restore a copy"):
            await count(database)


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
@pytest.mark.parametrize("anew", [False, True], ids=["gone", "another one"])
async def test_a_database_that_was_deleted_under_a_store_is_told(
    counter: None, journal: str, anew: bool
) -> None:
    """A write would go to a file that no longer has a name."""
    change(PATH, f"PRAGMA journal_mode = {journal}")
    async with opened() as database:
        assert await count(database) == 0
        content = Path(PATH).read_bytes()
        for path in Path().glob(f"{PATH}*"):
            path.unlink()
        if anew:
            Path(PATH).write_bytes(content)
        with pytest.raises(DatabaseError, match="was moved or deleted while it was open"):
            await increment(database)


async def test_errors_of_the_database_survive_pickling(counter: None) -> None:
    """They cross process borders."""
    async with opened(lock_timeout=0) as database:
        with holding(PATH, "BEGIN EXCLUSIVE"), pytest.raises(DatabaseBusyError) as caught:
            await increment(database)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is DatabaseBusyError
    assert isinstance(copy, EntropicError)
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize("held", [("BEGIN IMMEDIATE",), READING])
@pytest.mark.parametrize("method", ["run_or_retrieve", "run"])
async def test_a_cancelled_run_stops_waiting_for_its_claim(
    method: str, held: tuple[str, ...]
) -> None:
    """Within a second, although another program has the database locked; the next call works."""
    async with make_store(lock_timeout=5) as store:
        await store.retrieve({"n": 1})
        with waiting() as lock, holding(PATH, *held):
            call = asyncio.create_task(getattr(store, method)({"n": 1}))
            await lock.met()
            cancelled = time.monotonic()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert time.monotonic() - cancelled < 1
        assert (await store.run_or_retrieve({"n": 1})).n == 1


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("retrieve", ({"n": 1},)),
        ("run_or_retrieve", ({"n": 2},)),
        ("delete", ({"n": 1},)),
        ("register", ({"n": 3}, "made")),
        ("sweep", ([{"n": 4}],)),
    ],
)
async def test_a_call_that_a_closing_overtakes_is_told_so(
    call: str, arguments: tuple[Any, ...]
) -> None:
    """StoreClosedError, or the call's own outcome."""
    Path("made").write_text("x")
    store = make_store()
    seen: set[type[BaseException]] = set()
    for _ in range(5):
        await store.run_or_retrieve({"n": 1})
        calls = [getattr(store, call)(*arguments), store.aclose()]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        seen |= {type(o) for o in outcomes if isinstance(o, BaseException)}
    await store.aclose()
    assert seen <= {StoreClosedError}
