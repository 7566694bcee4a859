"""What only a server does: connections that go away, locks of rows, roles, schemas, its own types.

What a store promises on every database is tested where it is promised, on both.
"""

import asyncio
import enum
import functools
import logging
import math
import pickle
import re
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import asyncpg
import pytest
import sqlalchemy as sa

from entropic import (
    AsyncStore,
    Base,
    DatabaseBusyError,
    DatabaseError,
    Mapped,
    RowRefusedError,
    SchemaError,
    SettingsError,
    Store,
    mapped_column,
)
from entropic.database import Database, Transaction, postgresql
from tests import databases
from tests.models import model
from tests.outsiders import at_suspension, cancelled_at
from tests.scripts import wait_for
from tests.servers import PGBOUNCER, Bouncer, Server
from tests.simulations import Point, calls, mark_call, simulate

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The store is made for asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def place(folder: Path) -> Iterator[databases.Place]:
    """A database on the server."""
    with databases.made("postgresql") as made:
        yield made


def make_store(**settings: Any) -> AsyncStore[Any]:
    """An asynchronous store on it."""
    usual = {"runner": simulate, "result_cls": Point, "file_suffix": ".npy"}
    return AsyncStore(**{**usual, "db_url": databases.url(), **settings})


counters = sa.Table("counters", sa.MetaData(), sa.Column("n", sa.Integer))
read = sa.select(counters.c.n)
increase = sa.update(counters).values(n=counters.c.n + 1)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Database]:
    """An open database with a counter at 0."""
    databases.change("CREATE TABLE counters (n INTEGER); INSERT INTO counters VALUES (0)")
    database = Database(databases.url(), **{"lock_timeout": 30.0, **options})
    await database.open()
    try:
        yield database
    finally:
        await database.aclose()


def terminate(condition: str = "true") -> int:
    """End all sessions but one's own; how many there were."""
    return len(
        databases.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        )
    )


async def test_a_connection_lost_while_nothing_is_asked_is_made_anew() -> None:
    """Reads and writes work as if nothing had been."""
    async with make_store() as store:
        for n in range(3):
            await store.run_or_retrieve({"n": n})
            assert terminate() >= 2
            assert await store.retrieve({"n": n}) is not None
            assert terminate() >= 1
    assert calls() == 3


async def test_a_connection_lost_under_a_look_up_is_made_anew() -> None:
    """The statement is asked again."""
    async with opened() as database:
        sql = "SELECT n FROM counters WHERE (SELECT pg_sleep(0.5)) IS NOT NULL"
        statement = databases.compiled(database, sa.text(sql).columns(n=sa.Integer))
        asking = asyncio.create_task(database.read(statement))
        await until(lambda: terminate("query LIKE '%pg_sleep(0.5)%'") > 0)
        assert await asking == [[0]]


async def until(condition: Callable[[], bool]) -> None:
    """Look until something is so, from a thread."""
    await asyncio.to_thread(wait_for, condition)


async def test_a_transaction_whose_connection_is_lost_is_done_again() -> None:
    """What it did elsewhere is undone first; it is committed once."""
    log: list[str] = []

    async with opened() as database:
        statement = databases.compiled(database, increase)

        async def work(transaction: Transaction) -> None:
            await transaction.fetch(statement)
            log.append("did")
            if log.count("did") == 1:
                await asyncio.to_thread(terminate)
                await transaction.fetch(statement)

        async def undo() -> None:
            log.append("undid")

        await database.write(work, undo=undo)
    assert log == ["did", "undid", "did"]
    assert databases.ask("SELECT n FROM counters") == [1]


@pytest.mark.parametrize("is_late", [False, True])
async def test_the_outcome_of_a_commit_that_was_cut_off_is_read_back(
    monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Whether the connection went before the server had committed, or after: it is done once."""
    from entropic.database.postgresql import PostgreSQLSession

    commit = PostgreSQLSession.commit
    cuts: list[int] = []

    async def cut_off(self: Any, told: str | None) -> None:
        if not cuts:
            cuts.append(1)
            if is_late:
                await commit(self, told)
            await asyncio.to_thread(terminate)
        await commit(self, told)

    monkeypatch.setattr(PostgreSQLSession, "commit", cut_off)
    did: list[int] = []
    async with opened() as database:
        statement = databases.compiled(database, increase)

        async def work(transaction: Transaction) -> str:
            did.append(1)
            await transaction.fetch(statement)
            return "done"

        assert await database.write(work) == "done"
    assert databases.ask("SELECT n FROM counters") == [1]
    assert len(did) == (1 if is_late else 2)


@pytest.mark.parametrize("everything", [False, True], ids=["the call", "the whole loop"])
async def test_a_cancelled_reading_leaves_no_transaction(everything: bool) -> None:
    """At whatever moment: the session is given back as it was taken, or is of no more use."""
    async with opened() as database:
        moment, in_time = 1, True
        while in_time:
            call = functools.partial(database.read_sync, lambda connection: None)
            in_time = await cancelled_at(moment, call, everything=everything)
            await until(databases.current().is_sound)
            moment += 1
        assert moment > 3
        assert await database.read(databases.compiled(database, read)) == [[0]]


async def test_what_the_server_has_not_learned_is_told_at_once() -> None:
    """Trying again would meet the same."""
    async with opened() as database:
        refused = databases.compiled(
            database, sa.text("CREATE INDEX mine ON counters USING hash (n, n)")
        )
        with pytest.raises(DatabaseError, match="does not support multicolumn indexes"):
            await database.write(lambda transaction: transaction.fetch(refused))


async def test_a_role_that_may_only_read_reads() -> None:
    """It opens, hits and misses; only what must be written fails, and says so."""
    role = f"reader_{uuid.uuid4().hex[:8]}"
    async with make_store() as owner:
        record = await owner.run_or_retrieve({"n": 1})
    databases.change(
        f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    try:
        async with make_store(db_url=_with_user(role, "x")) as store:
            found = [await store.retrieve({"n": 1}), await store.run_or_retrieve({"n": 1})]
            assert [hit and hit.id for hit in found] == [record.id, record.id]
            assert await store.retrieve({"n": 2}) is None
            for call in (store.run_or_retrieve({"n": 2}), store.delete({"n": 1})):
                with pytest.raises(DatabaseError, match="does not let this role"):
                    await call
        assert calls() == 1
    finally:
        databases.change(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_settled_database_is_opened_without_the_lock_of_tables() -> None:
    """However long somebody else holds it."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    lock = f"SELECT pg_advisory_xact_lock({postgresql._TABLES_LOCK})"
    with holding(lock):
        async with make_store(lock_timeout=0.2) as store:
            assert await store.retrieve({"n": 1}) is not None
        with pytest.raises(DatabaseBusyError):
            await make_store(lock_timeout=0.2, result_cls=model(n=int)).failures()


async def test_an_outcome_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was done is undone then."""
    from entropic.database import Database as Patched
    from entropic.database.postgresql import PostgreSQLSession

    async def cut_off(self: Any, told: str | None) -> None:
        await asyncio.to_thread(terminate)
        await self.fetch("SELECT 1", ())

    async def unknown(self: Any, *_: Any) -> None:
        return None

    monkeypatch.setattr(PostgreSQLSession, "commit", cut_off)
    monkeypatch.setattr(Patched, "_outcome", unknown)
    undone: list[int] = []

    async def undo() -> None:
        undone.append(1)

    async def work(transaction: Transaction) -> None:
        pass

    async with opened() as database:
        with pytest.raises(DatabaseError, match="in the middle of a commit") as caught:
            await database.write(work, undo=undo)
    assert undone == []
    pickle.loads(pickle.dumps(caught.value))


async def test_a_server_that_cannot_be_used_is_a_typed_error() -> None:
    """At the first connection at once, and without the password."""
    canary = "s3cr3t"
    for url, message in (
        (f"postgresql://me:{canary}@127.0.0.1:1/runs", "cannot be reached"),
        (_with_database("missing"), "does not exist"),
        (_with_user("nobody_here", canary), "refused to let us in"),
    ):
        begun = time.monotonic()
        with pytest.raises(DatabaseError, match=message) as caught:
            await make_store(db_url=url).retrieve({"n": 1})
        assert time.monotonic() - begun < 5
        shown = "".join(traceback.format_exception(caught.value))
        assert canary not in shown + repr(pickle.loads(pickle.dumps(caught.value)))


def _with_database(name: str) -> str:
    url = sa.make_url(databases.url()).set(database=name)
    return url.render_as_string(hide_password=False)


def _with_user(name: str, password: str) -> str:
    url = sa.make_url(databases.url()).set(username=name, password=password)
    return url.render_as_string(hide_password=False)


async def test_a_connection_lost_while_a_store_opens_is_made_anew() -> None:
    """At whatever moment."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
    moment, was_cut = 0, True
    while was_cut:
        moment, was_cut = moment + 2, False

        def cut() -> None:
            nonlocal was_cut
            was_cut = True
            terminate("application_name = 'entropic'")

        with at_suspension(moment, cut):
            async with make_store() as store:
                assert await store.retrieve({"n": 1}) is not None
    assert moment > 20
    assert calls() == 1


async def test_a_restarted_server_is_waited_for() -> None:
    """Calls that meet it in between go on once it is back."""
    with Server() as server:
        async with make_store(db_url=server.url) as store:
            await store.sweep({"n": n} for n in range(5))
            restarting = threading.Thread(target=server.restart)
            restarting.start()
            for n in range(5, 40):
                assert (await store.run_or_retrieve({"n": n})).n == n
                assert await store.retrieve({"n": n - 5}) is not None
            restarting.join()
            assert (await store.run_or_retrieve({"n": 100})).n == 100
    assert calls() == 41


@contextmanager
def holding(*statements: str) -> Iterator[None]:
    """Another session that holds what some statements take."""
    ready, over = threading.Event(), threading.Event()

    async def hold() -> None:
        import asyncpg

        connection = await asyncpg.connect(databases.url())
        await connection.execute("BEGIN; " + "; ".join(statements))
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.01)
        await connection.execute("ROLLBACK")
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        over.set()
        thread.join()


LOCKS = [
    "LOCK TABLE points IN ACCESS EXCLUSIVE MODE",
    "LOCK TABLE entropic_runs IN ACCESS EXCLUSIVE MODE",
    "SELECT * FROM entropic_runs FOR UPDATE",
]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("call", ["run", "delete", "register", "sweep"])
async def test_a_call_that_waits_for_a_lock_can_be_cancelled(lock: str, call: str) -> None:
    """Within a second; afterwards nothing is held, and the same call works."""
    Path("made").write_text("made")
    arguments: tuple[Any, ...] = ([{"n": 1}],) if call == "sweep" else ({"n": 1},)
    arguments += ("made",) if call == "register" else ()
    async with make_store() as store:
        record = await store.run_or_retrieve({"n": 1})
        Path(record.result_file).unlink()  # so that a sweep has something to run
        with holding(lock):
            asking = asyncio.create_task(getattr(store, call)(*arguments))
            await until(lambda: bool(waiting_sessions()))
            cancelled = time.monotonic()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert time.monotonic() - cancelled < 1.5
        assert await getattr(store, call)(*arguments)
    assert databases.current().is_sound()


@pytest.mark.parametrize(
    ("call", "lock"),
    [*((call, lock) for call in ("run", "delete") for lock in LOCKS), ("retrieve", LOCKS[0])],
)
def test_a_loop_that_ends_waits_for_no_lock(call: str, lock: str) -> None:
    """But for a moment; the connections are closed, and the call works on the next loop."""

    async def leave(held: ExitStack) -> None:
        store = make_store()
        await store.run_or_retrieve({"n": 1})
        held.enter_context(holding(lock))
        asking = asyncio.create_task(getattr(store, call)({"n": 1}))
        await until(lambda: bool(waiting_sessions()))
        assert not asking.done()

    async def ask() -> None:
        async with make_store() as store:
            assert await getattr(store, call)({"n": 1})

    with ExitStack() as held:
        begun = time.monotonic()
        asyncio.run(leave(held))
        assert time.monotonic() - begun < 5
        assert databases.current().connections() == 0
    asyncio.run(ask())


def waiting_sessions() -> list[Any]:
    """Those that wait for somebody's lock."""
    return databases.ask(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )


@pytest.mark.parametrize("call", ["run", "retrieve", "delete"])
async def test_a_lock_that_stays_is_an_error_that_says_whom_to_look_for(call: str) -> None:
    """Once the deadline has passed; the next call works."""
    async with make_store(lock_timeout=0.2) as store:
        await store.run_or_retrieve({"n": 1})
        with (
            holding(LOCKS[0], LOCKS[1]),
            pytest.raises(DatabaseBusyError, match="pg_blocking_pids"),
        ):
            await getattr(store, call)({"n": 1})
        assert await getattr(store, call)({"n": 1})


async def test_a_lock_may_be_waited_for_for_ever() -> None:
    """As on SQLite."""
    async with make_store(lock_timeout=math.inf) as store:
        assert (await store.run_or_retrieve({"n": 1})).n == 1


async def test_a_waiting_call_goes_on_when_the_lock_is_free() -> None:
    """Whatever it was."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
        with holding(LOCKS[0]):
            asking = [
                asyncio.create_task(work)
                for work in (store.run({"n": 1}), store.retrieve({"n": 1}), store.run({"n": 2}))
            ]
            await until(lambda: bool(waiting_sessions()))
        assert [r and r.n for r in await asyncio.gather(*asking)] == [1, 1, 2]


async def test_transactions_in_each_others_way_are_done_again() -> None:
    """A deadlock ends one of them, which begins anew."""
    databases.change("CREATE TABLE pairs (id INTEGER PRIMARY KEY, n INTEGER)")
    databases.change("INSERT INTO pairs VALUES (1, 0), (2, 0)")
    async with opened() as database:
        steps = [
            databases.compiled(database, sa.text(f"UPDATE pairs SET n = n + 1 WHERE id = {id}"))
            for id in (1, 2)
        ]
        both = asyncio.Barrier(2)
        met: list[int] = []

        async def write(order: tuple[int, int]) -> None:
            async def work(transaction: Transaction) -> None:
                await transaction.fetch(steps[order[0]])
                if len(met) < 2:
                    met.append(1)
                    await both.wait()
                await transaction.fetch(steps[order[1]])

            await database.write(work)

        await asyncio.gather(write((0, 1)), write((1, 0)))
    assert databases.ask("SELECT n FROM pairs") == [2, 2]


async def test_a_table_altered_under_a_store_is_healed() -> None:
    """Its prepared statements are stale then: for reads, and in transactions."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
        databases.change("ALTER TABLE points ALTER COLUMN label TYPE TEXT")
        databases.change("ALTER TABLE entropic_runs ALTER COLUMN host TYPE TEXT")
        assert await store.retrieve({"n": 1}) is not None
        databases.change("ALTER TABLE points ALTER COLUMN label TYPE VARCHAR")
        assert (await store.run({"n": 1})).n == 1
    assert calls() == 2


async def test_a_store_uses_few_connections() -> None:
    """However many calls there are at once."""
    async with make_store() as store:
        await asyncio.gather(*(store.run_or_retrieve({"n": n % 50}) for n in range(300)))
        await asyncio.gather(*(store.retrieve({"n": n % 50}) for n in range(300)))
        mine = databases.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'entropic'"
        )
        assert mine[0] <= 6
    wait_for(
        lambda: (
            not databases.ask(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'entropic'"
            )
        )
    )


async def test_no_look_up_reads_a_whole_table() -> None:
    """With a hundred thousand rows, every statement finds its own by an index."""
    for name, statement in (await _statements_on(100_000)).items():
        assert not [line for line in _plan(statement, ["id5", "id7"]) if "Seq Scan on" in line], (
            name
        )


async def test_no_look_up_reads_others_rows_before_there_are_statistics() -> None:
    """The server has none for a minute: rows of one model were taken for a handful, and all read.

    Of those of each batch of a first sweep, so that it took the longer the more had run.
    """
    statements = await _statements_on(5000, analyze="")
    ids = [f"id{n}" for n in range(1, 5000, 50)]
    for name in ("look_up", "states", "hold", "hold_rows", "renew", "settle", "fail", "delete"):
        statement = statements[name]
        rows = [line for line in _plan(statement, ids, "ANALYZE, TIMING OFF") if "rows" in line]
        read = re.findall(r"actual rows=([\d.]+) loops=(\d+)|Removed by .*: (\d+)", "\n".join(rows))
        counts = [float(a or 0) * float(b or 0) + float(c or 0) for a, b, c in read]
        assert counts, name
        assert max(counts) <= len(ids), (name, rows)


async def _statements_on(count: int, analyze: str = "ANALYZE") -> dict[str, Any]:
    """Those of the hot path, on tables of so many rows."""
    from entropic.identity import Identity

    async with make_store() as store:
        await store.run_or_retrieve({"n": 0})
    databases.change(
        "INSERT INTO points SELECT 'id' || n, 'x', now(), '{}', n, 0.5 FROM"
        f" generate_series(1, {count}) n;"
        "INSERT INTO entropic_runs (model, id, state, token, published, attempts)"
        f" SELECT 'points', 'id' || n, 'done', 1, 1, 1 FROM generate_series(1, {count}) n;"
        f"{analyze}"
    )
    database = Database(databases.url(), lock_timeout=5)
    await database.open()
    statements = databases.statements_of(database, Identity(Point))
    await database.aclose()
    # These are asked for by people, and read the bookkeeping.
    return {n: s for n, s in statements.items() if n not in ("registered", "failures")}


def _plan(statement: Any, ids: list[str], options: str = "COSTS") -> list[str]:
    """How the server executes a statement, for some ids; it is rolled back."""
    import asyncpg

    values: dict[str, Any] = {
        "b_model": "points",
        "b_ids": ids,
        "b_gone": ["x"],
        "b_owner": "me",
    }
    values |= {"b_id": "id5", "b_ttl": 60.0, "b_token": 1, "b_state": "failed"}
    found: list[str] = []

    async def explain() -> None:
        connection = await asyncpg.connect(databases.url())
        given = {**statement.constants, **values}
        try:
            await connection.set_type_codec("json", encoder=str, decoder=str, schema="pg_catalog")
            await connection.execute("BEGIN")
            rows = await connection.fetch(
                f"EXPLAIN ({options}) {statement.sql}",
                *(given[name] for name in statement._bound),
            )
        finally:
            await connection.close()
        found.extend(row[0] for row in rows)

    thread = threading.Thread(target=lambda: asyncio.run(explain()))
    thread.start()
    thread.join()
    return found


async def test_a_role_that_may_make_no_tables_is_told_what_to_run() -> None:
    """What ``ddl()`` returns; with the tables and the rights there, it works."""
    role = f"limited_{uuid.uuid4().hex[:8]}"
    databases.change(f"CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        limited = make_store(db_url=_with_user(role, "x"))
        async with make_store() as owner:
            await owner.failures()
        databases.change(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO"
            f" {role}; DROP TABLE points"
        )
        with pytest.raises(DatabaseError, match=r"ddl\(\)"):
            await limited.retrieve({"n": 1})
        script = await limited.ddl()
        assert "CREATE TABLE points" in script
        databases.change(script)
        databases.change(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
        )
        async with limited:
            assert await limited.ddl() == ""
            assert (await limited.run_or_retrieve({"n": 1})).n == 1
        async with owner:
            assert await owner.retrieve({"n": 1}) is not None
    finally:
        databases.change(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_ddl_is_that_of_what_is_missing(place: databases.Place) -> None:
    """All of it for a new database; of a gained column that alone; then nothing."""

    def script(**columns: Any) -> str:
        return Store(simulate, model(**columns), db_url=place.url).ddl()

    first = script(n=int)
    assert [line for line in first.splitlines() if line.startswith("CREATE TABLE")] == [
        f"CREATE TABLE {name} ("
        for name in ("entropic_columns", "entropic_models", "entropic_runs", "sims")
    ]
    place.change(first)
    assert script(n=int) == ""
    with Store(simulate, model(n=int), db_url=place.url) as store:
        store.failures()
    gained = script(n=int, dt=(float, mapped_column(default=0.5)))
    assert gained.startswith("ALTER TABLE sims ADD COLUMN dt DOUBLE PRECISION")
    place.change(gained)
    assert script(n=int, dt=(float, mapped_column(default=0.5))) == ""
    gaining = model(n=int, dt=(float, mapped_column(default=0.5)))
    with Store(simulate, gaining, file_suffix=".npy", db_url=place.url) as store:
        assert store.run_or_retrieve({"n": 1}).id == store.run_or_retrieve({"n": 1, "dt": 0.5}).id


class Here(Base):
    __tablename__ = "sims"
    __table_args__ = ({"schema": "here"},)
    n: Mapped[int]


class There(Base):
    __tablename__ = "sims"
    __table_args__ = ({"schema": "there"},)
    n: Mapped[int]


async def test_two_schemas_are_two_tables() -> None:
    """In one database, one process and one results folder; a schema that is missing is told."""
    with pytest.raises(DatabaseError, match="CREATE SCHEMA"):
        await make_store(result_cls=Here).retrieve({"n": 1})
    databases.change("CREATE SCHEMA here; CREATE SCHEMA there")
    runner = lambda params: Path(params["result_file"]).write_text("x")  # noqa: E731
    async with (
        make_store(runner=runner, result_cls=Here) as here,
        make_store(runner=runner, result_cls=There) as there,
    ):
        first = await here.run_or_retrieve({"n": 1})
        assert await there.retrieve({"n": 1}) is None
        second = await there.run_or_retrieve({"n": 1})
        assert first.id == second.id
        assert first.result_file != second.result_file
        assert await here.delete({"n": 1}, remove_file=True)
        assert await there.run_or_retrieve({"n": 1}) is not None
        assert Path(second.result_file).exists()
    assert databases.ask("SELECT model FROM entropic_models ORDER BY model") == [
        "here.sims",
        "there.sims",
    ]


def writes(text: str) -> Any:
    """A runner that says who it was."""
    return lambda params: Path(params["result_file"]).write_text(text)


async def content(store: AsyncStore[Any]) -> str:
    """What the one result says, for whomever asks."""
    return Path((await store.run_or_retrieve({"n": 1})).result_file).read_text()


def searching(*schemas: str) -> str:
    """The URL of one who looks for tables in these schemas."""
    path = "%2C".join(schemas)
    return (
        f"{databases.url()}{'&' if '?' in databases.url() else '?'}options=-csearch_path%3D{path}"
    )


async def test_tables_that_a_search_path_tells_apart_are_two() -> None:
    """Also where both find one bookkeeping: all have ``public``, and each a schema of their own."""
    sims = model(n=int)
    async with make_store() as store:
        await store.failures()  # so the side tables are in public
    databases.change("CREATE SCHEMA here; CREATE SCHEMA there")
    async with (
        make_store(runner=writes("1"), result_cls=sims, db_url=searching("here", "public")) as here,
        make_store(
            runner=writes("2"), result_cls=sims, db_url=searching("there", "public")
        ) as there,
    ):
        for _ in range(2):
            assert [await content(here), await content(there)] == ["1", "2"]
    async with make_store(runner=writes("3"), result_cls=Here) as spelled:
        assert await content(spelled) == "1"


async def test_bookkeeping_that_lies_beside_the_table_is_not_kept_twice() -> None:
    """Who finds another one first is told."""
    databases.change("CREATE SCHEMA here")
    async with make_store(runner=writes("1"), result_cls=Here, db_url=searching("here")) as store:
        assert await content(store) == "1"
    async with make_store() as store:
        await store.failures()  # makes side tables in public, too
    with pytest.raises(SchemaError, match="search_path that begins with here"):
        await make_store(result_cls=Here).retrieve({"n": 1})
    async with make_store(
        runner=writes("2"), result_cls=model(n=int), db_url=searching("here", "public")
    ) as store:
        assert await content(store) == "1"


class Dotted(Base):
    __tablename__ = "here.sims"
    metadata = sa.MetaData()  # in one, SQLAlchemy cannot tell the two apart itself
    n: Mapped[int]


async def test_a_dot_in_a_name_is_no_schema() -> None:
    """The two have their own runs."""
    databases.change("CREATE SCHEMA here")
    async with (
        make_store(runner=writes("1"), result_cls=Here) as here,
        make_store(runner=writes("2"), result_cls=Dotted) as dotted,
    ):
        for _ in range(2):
            assert [await content(here), await content(dotted)] == ["1", "2"]


def typed(kind: Any, column_type: Any) -> Any:
    """An annotation with its type of column."""
    return Annotated[kind, mapped_column(column_type)]


class Mood(enum.Enum):
    CALM = "calm"
    TENSE = "tense"


native = typed(Mood, sa.Enum(Mood))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (int, "INTEGER"),
        (float, "REAL"),
        (str, "VARCHAR(5)"),
        (str, "CHAR(5)"),
        (datetime, "TIMESTAMP(3) WITH TIME ZONE"),
        (dict[str, Any], "JSONB"),
        (int, "BOOLEAN USING x > 0"),
        (bool, "INTEGER USING x::integer"),
        (str, "UUID USING x::uuid"),
        (uuid.UUID, "VARCHAR"),
        (Mood, "feeling USING x::feeling"),
        (native, "feeling USING x::text::feeling"),
        (native, "VARCHAR"),
        (typed(list[int], sa.ARRAY(sa.BigInteger)), "INTEGER[]"),
        (typed(list[str], sa.ARRAY(sa.String)), "UUID[] USING x::uuid[]"),
        (typed(list[str], sa.ARRAY(sa.String)), "BYTEA USING NULL"),
    ],
)
async def test_a_column_that_is_too_narrow_is_refused_at_once(kind: Any, found: str) -> None:
    """The server would refuse, or change, what a finished run stores."""
    async with make_store(result_cls=model(x=kind)) as store:
        await store.failures()
        assert await store.ddl() == ""
    databases.change("CREATE TYPE feeling AS ENUM ('CALM')")
    databases.change(f"ALTER TABLE sims ALTER COLUMN x TYPE {found}")
    with pytest.raises(SchemaError, match=r"sims\.x is .* widen it"):
        await make_store(result_cls=model(x=kind)).failures()


@pytest.mark.parametrize(
    "long",
    [model("t" * 64, n=int), model("é" * 32, n=int), model(n=(int, mapped_column("c" * 64)))],
)
async def test_a_name_that_the_server_would_cut_off_is_refused(long: type[Base]) -> None:
    """It keeps 63 bytes; two names could become one."""
    with pytest.raises(SchemaError, match="64 bytes, and this database keeps 63"):
        await make_store(result_cls=long).failures()
    with pytest.raises(SchemaError, match="64 bytes, and this database keeps 63"):
        await make_store(result_cls=long).ddl()
    for name in ("t" * 63, "é" * 31):
        result_cls = model(name, n=(int, mapped_column(f"{name[:-1]}c")))
        async with make_store(result_cls=result_cls, runner=write) as store:
            await store.run_or_retrieve({"n": 1})
        async with make_store(result_cls=result_cls, runner=write) as store:
            assert await store.retrieve({"n": 1}) is not None


async def test_a_literal_may_gain_a_longer_text() -> None:
    """Its column has no length."""
    async with make_store(result_cls=model(x=Literal["a", "b"]), runner=write) as store:
        await store.run_or_retrieve({"x": "a"})
    longer = model(x=Literal["a", "much longer"] | None)
    databases.change("ALTER TABLE sims ALTER x DROP NOT NULL")
    async with make_store(result_cls=longer, runner=write) as store:
        assert (await store.run_or_retrieve({"x": "much longer"})).x == "much longer"
        assert await store.retrieve({"x": "a"}) is not None


async def test_an_enum_that_lacks_a_member_is_told_as_what_it_is() -> None:
    """With its name, and the members that it has."""
    async with make_store(result_cls=model(x=native)) as store:
        await store.failures()
    databases.change("CREATE TYPE feeling AS ENUM ('CALM')")
    databases.change("ALTER TABLE sims ALTER COLUMN x TYPE feeling USING x::text::feeling")
    with pytest.raises(SchemaError, match=r"sims\.x is the enum feeling of 'CALM' in the database"):
        await make_store(result_cls=model(x=native)).failures()


class Speed(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


async def test_an_enum_that_another_model_has_made_is_told_before_the_run() -> None:
    """Where it lacks a member; where it has all, the two share it."""
    speed = sa.Enum(Speed, name="mood")
    async with make_store(result_cls=model("moods", x=native), runner=write) as store:
        await store.run_or_retrieve({"x": "calm"})
    other = make_store(result_cls=model(x=typed(Speed, speed)), runner=write)
    with pytest.raises(SchemaError, match="an enum 'mood' already, without 'SLOW', 'FAST'"):
        await other.run_or_retrieve({"x": "slow"})
    with pytest.raises(SchemaError, match="an enum 'mood' already"):
        await other.ddl()
    assert calls() == 1
    sharing = make_store(result_cls=model(x=native), runner=write)
    assert "CREATE TYPE" not in await sharing.ddl()
    databases.change(await sharing.ddl())
    async with sharing:
        await sharing.run_or_retrieve({"x": "tense"})
    assert calls() == 2


async def test_a_database_that_lacks_letters_is_refused() -> None:
    """Before there is anything to lose."""
    name = f"latin_{uuid.uuid4().hex[:8]}"
    made = f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    databases.change(made)
    try:
        with pytest.raises(DatabaseError, match="kept in LATIN1"):
            await make_store(db_url=_with_database(name)).run_or_retrieve({"n": 1})
    finally:
        databases.change(f"DROP DATABASE {name} WITH (FORCE)")


async def test_an_outcome_that_does_not_come_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The session that was to commit may not know that nobody is there any more."""
    monkeypatch.setattr(postgresql, "_IDLE_SECONDS", 0)
    monkeypatch.setattr(postgresql, "_ANSWER_SECONDS", 0.2)
    begun = "BEGIN; UPDATE counters SET n = 1"
    async with opened() as database:
        holder = await asyncpg.connect(databases.url())
        try:
            await holder.execute(begun)
            key = await holder.fetchval("SELECT pg_current_xact_id()::text")
            session = await database._readers.take()
            assert await session.has_committed(key) is None
            await holder.execute("COMMIT")
            assert await session.has_committed(key) is True
            database._readers.give_back(session)
        finally:
            await holder.close()


async def test_a_column_that_is_wider_serves() -> None:
    """More members, more characters."""
    result_cls = model(x=native, y=typed(str, sa.String(5)), z=typed(int, sa.Integer))
    async with make_store(result_cls=result_cls, runner=write) as store:
        await store.run_or_retrieve({"x": "calm", "y": "y", "z": 1})
    databases.change("ALTER TYPE mood ADD VALUE 'GLAD'")
    databases.change("ALTER TABLE sims ALTER y TYPE TEXT, ALTER z TYPE BIGINT")
    async with make_store(result_cls=result_cls, runner=write) as store:
        for x in ("calm", "tense"):
            record = await store.run_or_retrieve({"x": x, "y": "y", "z": 1})
            assert record.x is Mood(x)
    assert calls() == 2


def write(params: dict[str, Any]) -> None:
    """The smallest simulation."""
    mark_call(params)
    Path(params["result_file"]).write_text("x")


@pytest.mark.parametrize("kind", [native, typed(list[Mood], sa.ARRAY(sa.Enum(Mood)))])
async def test_a_native_enum_may_be_gained_by_ddl_or_by_itself(kind: Any) -> None:
    """With its type."""
    default = Mood.CALM if kind is native else [Mood.CALM]
    gaining = lambda: model(n=int, x=(kind, mapped_column(default=default)))  # noqa: E731
    for by_itself in (True, False):
        databases.current().clear()
        async with make_store(result_cls=model(n=int), runner=write) as store:
            first = await store.run_or_retrieve({"n": 1})
        if not by_itself:
            script = await make_store(result_cls=gaining()).ddl()
            assert "CREATE TYPE mood" in script
            databases.change(script)
        async with make_store(result_cls=gaining(), runner=write) as store:
            assert await store.ddl() == ""
            assert (await store.run_or_retrieve({"n": 1, "x": default})).id == first.id


async def test_a_row_that_the_server_refuses_is_told_without_its_values() -> None:
    """A constraint of somebody else's; the result is kept until the row fits."""
    async with make_store() as store:
        await store.run_or_retrieve({"n": 1})
        databases.change("ALTER TABLE points ADD CONSTRAINT small CHECK (n < 5)")
        with pytest.raises(RowRefusedError, match="small") as caught:
            await store.run_or_retrieve({"n": 12345})
        assert "12345" not in str(caught.value)
        databases.change("ALTER TABLE points DROP CONSTRAINT small")
        assert (await store.run_or_retrieve({"n": 12345})).n == 12345
    assert calls() == 2


async def test_a_url_may_say_what_libpq_understands(caplog: pytest.LogCaptureFixture) -> None:
    """Such as ``sslmode``; and an option that is none is refused."""
    caplog.set_level(logging.DEBUG)
    url = databases.url() + ("&" if "?" in databases.url() else "?") + "sslmode=disable"
    async with make_store(db_url=url.replace("postgresql:", "postgres:")) as store:
        assert (await store.run_or_retrieve({"n": 1})).n == 1
    for option in ("connect_timeout=5", "connect_timeout=0", "keepalives_idle=30"):
        async with make_store(db_url=f"{url}&{option}&channel_binding=prefer") as store:
            assert await store.retrieve({"n": 1}) is not None
    for option in ("channel_binding=require", "hostaddr=127.0.0.1", "require_auth=scram-sha-256"):
        with pytest.raises(SettingsError, match=f"{option}, which the driver"):
            make_store(db_url=f"{url}&{option}")
    with pytest.raises(SettingsError, match="connect_timeout"):
        make_store(db_url=url + "&connect_timeout=soon")
    with pytest.raises(SettingsError, match="pgbouncer"):
        make_store(db_url=url + "&pgbouncer=perhaps")
    with pytest.raises(SettingsError, match="names no database"):
        make_store(db_url="postgresql://me@host")


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed (Debian: pgbouncer)")
async def test_a_store_works_through_pgbouncer(place: databases.Place) -> None:
    """In transaction mode, where each statement may meet another session of the server."""
    with Bouncer(place.url) as bouncer:
        settings = {"db_url": bouncer.url, "lease_ttl": 2.0}
        async with make_store(**settings) as one, make_store(**settings) as two:
            sweeps = [store.sweep([{"n": n} for n in range(100)]) for store in (one, two)]
            for records in await asyncio.gather(*sweeps):
                assert [record.n for record in records] == list(range(100))
            hits = await asyncio.gather(*(one.retrieve({"n": n % 100}) for n in range(500)))
            assert all(hits)
            assert (await one.run({"n": 1})).n == 1
            assert await two.delete({"n": 2}, remove_file=True)
            assert await one.retrieve({"n": 2}) is None
            assert terminate() >= 1
            assert (await two.run_or_retrieve({"n": 2})).n == 2
    assert calls() == 102
