"""Opening a database for a model: made, compared, grown, and its identity defaults settled."""

import asyncio
import enum
import functools
import hashlib
import logging
import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import create_async_engine

from entropic import Base, Mapped, Store, mapped_column
from entropic.database import Database
from entropic.database.urls import async_url
from entropic.errors import DatabaseBusyError, DatabaseError, ModelError, ParamsError, SchemaError
from entropic.models import side_tables
from entropic.schema import open_schema
from tests import databases
from tests.columns import KEY, Degrees
from tests.models import model
from tests.outsiders import at_once, cancelled_at, holding, is_unlocked
from tests.scripts import wait_for

PATH = databases.PATH

pytestmark = pytest.mark.usefixtures("database")


class Solver(enum.Enum):
    EULER = "euler"
    RUNGE = "runge: 'kutta'"


def write(params: dict[str, Any]) -> None:
    """The smallest simulation."""
    Path(params["result_file"]).write_text(repr(sorted(params)))


@contextmanager
def opened(result_cls: type[Base], **settings: Any) -> Iterator[Any]:
    """A store of a model, and the end of it."""
    with Store(write, result_cls, **{"db_url": databases.url(), **settings}) as store:
        yield store


def refused(result_cls: type[Base], message: str) -> None:
    """Opening a store of this model is a SchemaError, and changes nothing."""
    before = schema_of()
    with pytest.raises(SchemaError, match=message), opened(result_cls):
        pass
    assert schema_of() == before


def schema_of() -> list[Any]:
    """All that other programs see of the tables, and what is settled of their columns."""
    return [
        [(table, columns_of(table, about="*")) for table in tables()],
        databases.ask("SELECT * FROM entropic_columns ORDER BY model, parameter"),
        databases.ask("SELECT * FROM entropic_models ORDER BY model"),
    ]


def tables() -> list[str]:
    """The names of all tables."""
    return databases.ask(
        {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
            "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
        }[databases.current().name]
    )


def columns_of(table: str, about: str = "name") -> list[Any]:
    """The names of a table's columns, in their order; or all that the database knows of each."""
    if databases.current().name == "sqlite":
        return databases.ask(f"SELECT {about} FROM pragma_table_info('{table}')")
    about = about.replace("name", "column_name")
    where = f"table_schema = 'public' AND table_name = '{table}'"
    return databases.ask(
        f"SELECT {about} FROM information_schema.columns WHERE {where} ORDER BY ordinal_position"
    )


Old = model(n=int)


def defaulting_to(value: Any) -> Any:
    """Makes a column with this default, a new one for each model."""
    return functools.partial(mapped_column, default=value)


def test_opening_makes_the_tables() -> None:
    """The user's holds the reserved columns and the parameters, and nothing else."""
    with opened(model(n=int, dt=(float, mapped_column(default=0.5)))):
        pass
    assert tables() == ["entropic_columns", "entropic_models", "entropic_runs", "sims"]
    assert columns_of("sims") == [
        "id",
        "result_file",
        "created_at",
        "custom_data",
        "n",
        "dt",
    ]


def test_opening_again_changes_nothing() -> None:
    """Not a row, and not a byte, also for a model with every kind of default."""

    def columns() -> dict[str, Any]:
        return {
            "n": int,
            "dt": (float, mapped_column(default=0.5)),
            "label": str | None,
            "seed": (int, mapped_column(default=lambda: 7)),
        }

    with opened(model(**columns())) as store:
        store.run_or_retrieve({"n": 1})
    before = _versions()
    with opened(model(**columns())) as store:
        assert store.retrieve({"n": 1, "seed": 7}) is not None
    assert _versions() == before


def _versions() -> Any:
    """What differs after any write: the file, or the transaction that each row is of."""
    if databases.current().name == "sqlite":
        return Path(PATH).read_bytes()
    rows = [databases.ask(f"SELECT xmin::text, ctid::text FROM {table}") for table in tables()]
    return [*rows, databases.ask("SELECT oid, xmin::text FROM pg_class ORDER BY oid")]


def test_the_side_tables_are_not_in_the_users_metadata() -> None:
    """A user's own create_all or migrations never touch them."""
    assert not side_tables.tables.keys() & Base.metadata.tables.keys()
    Sim = model(n=int, dt=(float, mapped_column(default=0.5)))  # noqa: N806  it is a class

    async def create_all() -> None:
        engine = create_async_engine(async_url(databases.url()))
        async with engine.begin() as connection:
            tables: Any = [Sim.__table__]
            await connection.run_sync(lambda c: Sim.metadata.create_all(c, tables))
        await engine.dispose()

    asyncio.run(create_all())
    assert tables() == ["sims"]
    with opened(Sim) as store:
        assert store.run_or_retrieve({"n": 1}).id == store.run_or_retrieve({"n": 1, "dt": 0.5}).id


def _open(url: str, table: str, columns: list[str], n: int) -> str:
    """In a process of its own: open a store, run one set, and give its id."""
    kinds = {name: (int, mapped_column(default=0)) for name in columns}
    with opened(model(table, n=int, **kinds), db_url=url) as store:
        record = store.run_or_retrieve({"n": n})
        assert store.retrieve({"n": n}).id == record.id
        return str(record.id)


@pytest.mark.parametrize("count", [2, 10])
def test_many_processes_can_open_a_new_database_at_once(count: int) -> None:
    """With the same model: one of them makes the tables, once."""
    ids = at_once(_open, [(databases.url(), "sims", ["extra"], n) for n in range(count)])
    assert sorted(databases.ask("SELECT id FROM sims")) == sorted(ids)
    assert databases.ask("SELECT model, from_2x FROM entropic_models") == [("sims", 0)]
    assert databases.ask("SELECT parameter, identity_default FROM entropic_columns ORDER BY 1") == [
        ("extra", "0"),
        ("n", None),
    ]


@databases.only_sqlite
def test_a_lock_right_after_the_tables_were_made_is_no_missing_table() -> None:
    """SQLite takes the one for the other on a connection that has not seen the tables yet."""
    with (
        opened(model(n=int), lock_timeout=0.1) as store,
        holding(PATH, "BEGIN EXCLUSIVE"),
        pytest.raises(DatabaseBusyError),
    ):
        store.retrieve({"n": 1})


def test_many_processes_can_open_a_new_database_for_different_models() -> None:
    """Each finds its own table, whoever made the side tables."""
    count = 10
    at_once(_open, [(databases.url(), f"sims{n}", ["extra"], n) for n in range(count)])
    for n in range(count):
        assert databases.ask(f"SELECT n FROM sims{n}") == [n]
    names = databases.ask("SELECT model FROM entropic_models")
    assert sorted(names) == sorted(f"sims{n}" for n in range(count))
    assert len(set(databases.ask("SELECT nonce FROM entropic_models"))) == count


def test_many_processes_can_add_the_same_column_at_once() -> None:
    """One of them adds it, and all see it."""
    with opened(Old) as store:
        old = store.run_or_retrieve({"n": 100})
    at_once(_open, [(databases.url(), "sims", ["extra"], n) for n in range(4)])
    assert databases.ask("SELECT n, extra FROM sims ORDER BY n") == [
        *((n, 0) for n in range(4)),
        (100, 0),
    ]
    with opened(model(n=int, extra=(int, mapped_column(default=0)))) as store:
        assert store.run_or_retrieve({"n": 100}).created_at == old.created_at


def test_threads_can_open_a_new_database_at_once() -> None:
    """Several stores of one process."""

    async def scenario() -> list[Any]:
        stores = [Store(write, Old, db_url=databases.url()) for _ in range(4)]
        try:
            calls = [
                asyncio.to_thread(store.run_or_retrieve, {"n": n}) for n, store in enumerate(stores)
            ]
            return await asyncio.gather(*calls)
        finally:
            for store in stores:
                store.close()

    assert sorted(record.n for record in asyncio.run(scenario())) == [0, 1, 2, 3]


@databases.either  # what is particular to PostgreSQL is in test_postgresql
@pytest.mark.parametrize(
    "everything",
    [
        pytest.param(False, id="the call"),
        pytest.param(True, id="the whole loop", marks=pytest.mark.nightly),
    ],
)
def test_an_opening_cancelled_at_any_moment_leaves_nothing_half_made(everything: bool) -> None:
    """All of the tables or none, no lock; and the next opening works."""

    async def scenario() -> int:
        moment = 1
        while True:
            database = Database(databases.url(), lock_timeout=30)
            await database.open()
            try:
                call = functools.partial(open_schema, database, Old)
                in_time = await cancelled_at(moment, call, everything=everything)
                if databases.current().name == "sqlite":
                    assert is_unlocked(PATH), moment
                wait_for(databases.current().is_sound)
                made = len(tables())
                assert made == 4 or (in_time and made == 0), moment
                await open_schema(database, Old)
            finally:
                await database.aclose()
            assert databases.ask("SELECT count(*) FROM entropic_models") == [1]
            databases.current().clear()
            if not in_time:
                return moment
            moment += 1

    assert asyncio.run(scenario()) > 10


@databases.only_sqlite  # a role with few rights is test_postgresql's
def test_a_read_only_database_that_is_settled_can_be_read() -> None:
    """It opens, hits and misses; only what must be written fails, and says so."""
    with opened(Old) as store:
        record = store.run_or_retrieve({"n": 1})
    read_only = {"db_url": f"sqlite:///file:{PATH}?mode=ro"}
    with opened(Old, **read_only) as store:
        assert store.retrieve({"n": 1}).id == record.id
        assert store.run_or_retrieve({"n": 1}).id == record.id
        assert store.retrieve({"n": 2}) is None
        with pytest.raises(DatabaseError, match="is read-only"):
            store.run_or_retrieve({"n": 2})
        with pytest.raises(DatabaseError, match="is read-only"):
            store.delete({"n": 1})
    grown = model(n=int, extra=int | None)
    with pytest.raises(DatabaseError, match="is read-only"), opened(grown, **read_only):
        pass


@databases.only_sqlite  # the lock of PostgreSQL is test_postgresql's
def test_a_settled_database_is_opened_without_the_write_lock() -> None:
    """However long somebody else holds it."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    with holding(PATH, "BEGIN IMMEDIATE"), opened(Old, lock_timeout=0) as store:
        assert store.retrieve({"n": 1}) is not None


LITERALS: list[tuple[Any, Any, Any]] = [
    (int, 7, 8),
    (int, -(2**63), 0),
    (float, 0.1, 0.2),
    (float, 1e-13, 2e-13),
    (float, -1.7e308, 1.0),
    (float, 3, 4.5),
    (float, math.inf, 1.0),
    (float, -math.inf, math.inf),
    (bool, True, False),
    (bool, False, True),
    (str, "", "x"),
    (str, 'it\'s :n 100% \\:x "q" ? {a} ::b café\n', "x"),
    (Literal["euler", "runge"], "euler", "runge"),
    (Solver, Solver.RUNGE, Solver.EULER),
    (datetime, datetime(2026, 1, 31, 12, 30, 0, 250, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)),
    (date, date(2026, 1, 31), date(2026, 2, 1)),
    (Decimal, Decimal("1.50000000000000000001"), Decimal(2)),
    (Path, Path("it's/here"), Path("there")),
    (uuid.UUID, uuid.UUID(int=7), uuid.UUID(int=8)),
    (dict[str, Any], {"it's": [1, 2.5, None, {"a:b": "c"}]}, {}),
    (list[int], [], [1]),
    (NDArray[np.float32], [1.0, 2.5], [1.0]),
]


NULLABLE = [(float | None, 0.1, 0.2), (str | None, "a", "b"), (dict[str, Any] | None, {}, {"a": 1})]


def explicit(kind: Any, column_type: Any) -> Any:
    """An annotation with a type of column that is not the one that it would get."""
    return Annotated[kind, mapped_column(column_type)]


EXPLICIT = [
    pytest.param(explicit(float, Degrees), 90.0, 45.0, id="decorated"),
    pytest.param(explicit(Solver, sa.Enum(Solver)), Solver.RUNGE, Solver.EULER, id="native enum"),
    pytest.param(explicit(dict[str, Any], sa.JSON), {"it's": "5%"}, {"a": 1e300}, id="JSON"),
    pytest.param(explicit(str, sa.Uuid(as_uuid=False)), str(KEY), str(uuid.UUID(int=8)), id="uuid"),
    pytest.param(explicit(dict[str, Any], sa.PickleType), {"a": 1}, {"a": 2}, id="pickle"),
]


@pytest.mark.parametrize(("kind", "default", "other"), [*LITERALS, *NULLABLE, *EXPLICIT], ids=repr)
def test_a_column_with_a_literal_default_is_added(
    kind: Any, default: Any, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored rows read the default, exactly as a new row would, and keep their ids."""
    _is_added(kind, default, other, caplog)


@databases.only_postgresql
@pytest.mark.parametrize(
    ("item", "default", "other"),
    [
        (sa.Integer(), [], [1]),
        (sa.Integer(), [1, -2], []),
        (sa.Double(), [0.1, math.inf], [0.1]),
        (sa.String(), ['it\'s {"5%"},\\ NULL', ""], ["NULL"]),
        (sa.DateTime(timezone=True), [datetime(2026, 1, 31, 12, tzinfo=UTC)], []),
    ],
    ids=repr,
)
def test_a_column_of_arrays_is_added(
    item: Any, default: Any, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As any other."""
    _is_added(explicit(list[Any], sa.ARRAY(item)), default, other, caplog)
    databases.current().clear()
    grid = explicit(list[Any], sa.ARRAY(item, dimensions=2))
    _is_added(grid, [default, default] if default else [], [[*default, *other]], caplog)


def _is_added(kind: Any, default: Any, other: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "entropic")
    with opened(Old) as store:
        old = store.run_or_retrieve({"n": 1})
    with opened(model(n=int, x=(kind, mapped_column(default=default)))) as store:
        assert "added the column sims.x" in caplog.text
        found = store.run_or_retrieve({"n": 1})
        assert (found.id, found.created_at) == (old.id, old.created_at)
        assert np.all(found.x == default)
        assert type(found.x) is type(store.run({"n": 2}).x)
        assert store.retrieve({"n": 1, "x": default}).id == old.id
        assert store.retrieve({"n": 1, "x": other}) is None
        assert store.run_or_retrieve({"n": 1, "x": other}).id != old.id
        assert store.retrieve({"n": 1}).created_at == old.created_at
        if (kind, default, other) in NULLABLE:
            assert store.run_or_retrieve({"n": 1, "x": None}).x is None
    what = {"sqlite": "typeof(x), x", "postgresql": "x::text"}[databases.current().name]
    (added, *_), (inserted, *_) = (
        databases.ask(f"SELECT {what} FROM sims WHERE n = {n} ORDER BY created_at") for n in (1, 2)
    )
    assert added == inserted


def test_a_nullable_column_without_a_default_is_added() -> None:
    """Stored rows have None, which is what leaving it out means."""
    with opened(Old) as store:
        old = store.run_or_retrieve({"n": 1})
    with opened(
        model(n=int, x=float | None, y=(int | None, mapped_column(default=lambda: 9)))
    ) as s:
        found = s.retrieve({"n": 1, "y": None})
        assert (found.id, found.x, found.y) == (old.id, None, None)
        assert s.retrieve({"n": 1, "x": None, "y": None}).id == old.id
        assert s.run_or_retrieve({"n": 1}).y == 9
        assert s.run_or_retrieve({"n": 1, "x": 2, "y": None}).id != old.id


def test_several_columns_are_added_at_once_or_none() -> None:
    """One that cannot be added keeps the others out, too."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    refused(model(n=int, a=int | None, b=int), "gained Sim.b")
    with opened(model(n=int, a=int | None, b=(int, mapped_column(default=3)))) as store:
        found = store.retrieve({"n": 1})
        assert (found.a, found.b) == (None, 3)


@pytest.mark.parametrize(
    "column",
    [
        (int, mapped_column),
        (int, defaulting_to(lambda: 5)),
        (int, functools.partial(mapped_column, server_default="5")),
        (int, defaulting_to(sa.func.random())),
    ],
    ids=["no default", "callable", "server default", "SQL default"],
)
def test_a_column_that_needs_a_value_cannot_be_added(column: Any) -> None:
    """Nothing says what the stored rows were run with; the message says what to do."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    refused(model(n=int, x=column), r"gained Sim.x.*default.*nullable.*__tablename__")


def test_a_default_that_is_changed_later_makes_no_false_hit() -> None:
    """The identity default is what the database saw first."""
    with opened(model(n=int, dt=(float, mapped_column(default=0.5)))) as store:
        half = store.run_or_retrieve({"n": 1})
    with opened(model(n=int, dt=(float, mapped_column(default=0.25)))) as store:
        assert store.retrieve({"n": 1}) is None
        quarter = store.run_or_retrieve({"n": 1})
        assert quarter.dt == 0.25
        assert quarter.id != half.id
        assert store.retrieve({"n": 1, "dt": 0.5}).created_at == half.created_at
        assert store.run_or_retrieve({"n": 1}).created_at == quarter.created_at
    with opened(model(n=int, dt=(float, mapped_column(default=0.5)))) as store:
        assert store.retrieve({"n": 1}).created_at == half.created_at
        assert store.retrieve({"n": 1, "dt": 0.25}).created_at == quarter.created_at
    assert databases.ask(
        "SELECT identity_default FROM entropic_columns WHERE parameter = 'dt'"
    ) == ["0.5"]


@pytest.mark.parametrize(
    ("first", "later", "params"),
    [
        ((float, defaulting_to(0.5)), float, {"x": 0.5}),
        (float, (float, defaulting_to(0.5)), {"x": 0.5}),
        (float | None, (float | None, defaulting_to(0.5)), {"x": None}),
        ((float | None, defaulting_to(0.5)), float | None, {"x": 0.5}),
        ((float, defaulting_to(lambda: 0.5)), (float, defaulting_to(0.5)), {}),
        ((float, defaulting_to(0.5)), (float, defaulting_to(lambda: 0.5)), {}),
    ],
    ids=["lost", "gained", "none before", "none later", "callable before", "callable later"],
)
def test_a_default_that_comes_or_goes_leaves_every_id_valid(
    first: Any, later: Any, params: dict[str, Any]
) -> None:
    """What was run is found; what was not is not."""
    with opened(model(n=int, x=first)) as store:
        before = store.run_or_retrieve({"n": 1, **params})
    with opened(model(n=int, x=later)) as store:
        assert store.run_or_retrieve({"n": 1, **params}).created_at == before.created_at
        assert store.retrieve({"n": 1, "x": before.x}).id == before.id
        assert store.retrieve({"n": 1, "x": 0.125}) is None


def test_the_default_of_an_added_column_stays_what_it_was_when_added() -> None:
    """Changed afterwards, it makes neither a false hit nor an overwritten row."""
    with opened(Old) as store:
        old = store.run_or_retrieve({"n": 1})
    with opened(model(n=int, x=(int, mapped_column(default=3)))):
        pass
    with opened(model(n=int, x=(int, mapped_column(default=4)))) as store:
        assert store.retrieve({"n": 1}) is None
        assert store.run_or_retrieve({"n": 1}).x == 4
        assert store.retrieve({"n": 1, "x": 3}).created_at == old.created_at


def test_a_default_that_its_column_cannot_take_is_told() -> None:
    """Before anything is made."""
    with (
        pytest.raises((ModelError, ParamsError), match="cannot take 'five'"),
        opened(model(n=(int, mapped_column(default="five")))),
    ):
        pass


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": int}, r"has a column 'x' that Sim lacks.*could not be told apart"),
        ({"n": int, "x": str}, r"sims.x is FLOAT|sims.x is DOUBLE"),
        ({"n": float, "x": float}, r"sims.n is (BIG)?INT"),
        ({"n": int, "x": dict[str, Any]}, r"sims.x is"),
        ({"n": int, "x": datetime}, r"sims.x is"),
        ({"n": int, "x": Decimal}, r"sims.x is"),
        ({"n": int | None, "x": float}, r"sims.n has become nullable.*refuses NULL"),
        ({"m": (int, functools.partial(mapped_column, "n")), "x": float}, r"Sim.m.*was called 'n'"),
    ],
    ids=["removed", "str", "float", "json", "datetime", "decimal", "nullable", "renamed"],
)
def test_any_other_change_of_the_model_is_refused(changed: dict[str, Any], message: str) -> None:
    """With what differs and what to do; the tables stay as they were."""
    with opened(model(n=int, x=float)) as store:
        store.run_or_retrieve({"n": 1, "x": 2})
    refused(model(**changed), f"{message}.* give .* another __tablename__")


@pytest.mark.parametrize(("before", "after"), [(date, datetime), (datetime, date), (str, date)])
def test_a_date_is_no_datetime(before: Any, after: Any) -> None:
    """Rows of the one could not be read as the other."""
    with opened(model(n=int, x=before)):
        pass
    refused(model(n=int, x=after), "sims.x is")


@pytest.mark.parametrize(("before", "after"), [(str, dict[str, Any]), (dict[str, Any], str)])
def test_a_text_is_no_json(before: Any, after: Any) -> None:
    """Rows of the one could not be read as the other; JSON of entropic 2 may lie in a text."""
    with opened(model(n=int, x=before)):
        pass
    refused(model(n=int, x=after), "sims.x is")
    databases.change("UPDATE entropic_models SET from_2x = true")
    if databases.current().name == "postgresql" and after is str:
        refused(model(n=int, x=after), "sims.x is")  # it takes no other text
        return
    with opened(model(n=int, x=after)) as store:
        record = store.run_or_retrieve({"n": 1, "x": "five"})
        assert store.retrieve({"n": 1, "x": "five"}).created_at == record.created_at


def test_a_column_may_refuse_null_from_now_on() -> None:
    """Nothing that is stored changes its meaning."""
    with opened(model(n=int, x=float | None)) as store:
        one = store.run_or_retrieve({"n": 1, "x": 1})
        store.run_or_retrieve({"n": 1})
    with opened(model(n=int, x=float)) as store:
        assert store.run_or_retrieve({"n": 1, "x": 1}).created_at == one.created_at


def test_indexes_of_the_users_own_are_no_difference() -> None:
    """Nor are other tables."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    databases.change("CREATE INDEX mine ON sims (n); CREATE TABLE notes (words TEXT)")
    with opened(Old) as store:
        assert store.retrieve({"n": 1}) is not None


def test_a_database_of_a_newer_entropic_is_refused() -> None:
    """Its rules for ids may be others."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    databases.change("UPDATE entropic_models SET format = 2")
    refused(Old, "newer entropic .format 2, this one knows 1.; update entropic")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("CREATE TABLE sims (n BIGINT NOT NULL)", "has no column 'id'.*another __tablename__"),
        (
            "CREATE TABLE sims (id VARCHAR PRIMARY KEY, result_file VARCHAR NOT NULL,"
            " created_at TIMESTAMP NOT NULL, n BIGINT NOT NULL)",
            "has no column 'custom_data'",
        ),
        (
            "CREATE TABLE sims (id INTEGER PRIMARY KEY, result_file VARCHAR NOT NULL,"
            " created_at TIMESTAMP NOT NULL, custom_data JSON NOT NULL, n BIGINT NOT NULL)",
            "sims.id is INTEGER",
        ),
        (
            "CREATE TABLE sims (id VARCHAR NOT NULL, result_file VARCHAR NOT NULL,"
            " created_at TIMESTAMP NOT NULL, custom_data JSON NOT NULL, n BIGINT NOT NULL)",
            "id.*primary key",
        ),
        (
            "CREATE TABLE sims (id VARCHAR NOT NULL, result_file VARCHAR NOT NULL,"
            " created_at TIMESTAMP NOT NULL, custom_data JSON NOT NULL, n BIGINT NOT NULL,"
            " PRIMARY KEY (id, n))",
            "id.*primary key",
        ),
        (
            "CREATE VIEW sims AS SELECT '' AS id, '' AS result_file, '' AS created_at,"
            " '' AS custom_data, 1 AS n",
            "view",
        ),
    ],
    ids=["other table", "no custom_data", "integer id", "no key", "longer key", "view"],
)
def test_a_table_that_entropic_did_not_make_is_refused(table: str, message: str) -> None:
    """Before a run whose row could not be stored."""
    databases.change(table)
    with pytest.raises(SchemaError, match=message), opened(Old):
        pass


NAMES = [
    "my results",
    "order",
    'sel"ect',
    "it's",
    "with:colon",
    "50%",
    "100%s",
    "[brackets]",
    "back`tick",
    "dotted.name",
    "café",
    "keys",
    "key",
    "value",
    "excluded",
    "nothing",
    "returning",
    "anon_1",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_may_have_any_name(name: str) -> None:
    """Also one that SQL, or the library's own statements, use."""
    with opened(model(name, n=int)) as store:
        record = store.run_or_retrieve({"n": 1})
        assert store.run_or_retrieve({"n": 1}).created_at == record.created_at
    with opened(model(name, n=int, x=(str, mapped_column(default=name)))) as store:
        assert store.retrieve({"n": 1}).x == name
        assert store.run({"n": 1}).id == record.id
        assert [r.n for r in store.sweep([{"n": 1}, {"n": 2}])] == [1, 2]
        assert store.delete({"n": 1}, remove_file=True)
    known_as = f'"{name}"' if "." in name else name  # a dot is a schema's
    assert databases.ask("SELECT model FROM entropic_models") == [known_as]


@pytest.mark.parametrize("name", [*NAMES[:7], *NAMES[-3:], "value", "key", "b_ids"])
def test_a_column_may_have_any_name(name: str) -> None:
    """It need not be the attribute's, in a new table or added to one."""
    with opened(model(n=(int, mapped_column(name)))) as store:
        record = store.run_or_retrieve({"n": 1})
        assert store.retrieve({"n": 1}).n == 1
    added = (str, mapped_column(f"{name} 2", default=name))
    with opened(model(n=(int, mapped_column(name)), x=added)) as store:
        assert store.retrieve({"n": 1, "x": name}).id == record.id
        store.run({"n": 1}, note="again")
        assert store.run_or_retrieve({"n": 2, "x": "other"}).x == "other"
        assert store.retrieve({"n": 1}).custom_data["note"] == "again"
    assert columns_of("sims")[-2:] == [name, f"{name} 2"]
    assert record.id == hashlib.sha256(b'{"n":1}').hexdigest()[:16]


@databases.either
@pytest.mark.parametrize("name", ["model", "token", "state", "value", "key", "size", "ids", "b_id"])
def test_a_parameter_may_be_named_as_the_library_names_its_own(name: str) -> None:
    """Columns of the side tables and names that are bound in statements, for instance."""
    with opened(model(**{name: int})) as store:
        record = store.run_or_retrieve({name: 1})
        store.run({name: 1})
        assert getattr(store.retrieve({name: 1}), name) == 1
        assert store.retrieve({name: 1}).created_at == record.created_at


@pytest.mark.parametrize("name", sorted(side_tables.tables))
def test_a_model_cannot_take_the_table_of_the_bookkeeping(name: str) -> None:
    """Whatever is opened first."""
    for _ in range(2):
        with (
            pytest.raises(SchemaError, match=rf"'{name}' .*another __tablename__"),
            opened(model(name, n=int)),
        ):
            pass
        with opened(Old) as store:
            store.run_or_retrieve({"n": 1})


@pytest.mark.parametrize("name", sorted(side_tables.tables))
def test_a_side_table_that_was_dropped_is_made_again(name: str) -> None:
    """What the others know stays so, and what is stored is a hit."""
    sims = model(n=int, dt=(float, mapped_column(default=0.5)))
    with opened(sims) as store:
        first = store.run_or_retrieve({"n": 1})
    databases.change(f"DROP TABLE {name}")
    with opened(sims) as store:
        again = store.run_or_retrieve({"n": 1, "dt": 0.5})
        assert (again.id, again.created_at) == (first.id, first.created_at)
        assert store.run_or_retrieve({"n": 2}).id != first.id


def test_a_name_that_differs_in_case_alone_is_told() -> None:
    """SQLite takes it for the same table; to PostgreSQL it is another."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    if databases.current().name == "sqlite":
        refused(model("SIMS", n=int), "that name is one with 'sims' to it")
        return
    with opened(model("SIMS", n=int)) as store:
        assert store.retrieve({"n": 1}) is None


def test_models_in_one_database_do_not_mix() -> None:
    """Each has its own ids, defaults and bookkeeping."""
    with opened(Old) as one, opened(model("others", n=int, x=int | None)) as two:
        first, second = one.run_or_retrieve({"n": 1}), two.run_or_retrieve({"n": 1})
        assert first.id == second.id
        assert one.delete({"n": 1})
        assert two.retrieve({"n": 1}).created_at == second.created_at
        assert one.retrieve({"n": 1}) is None
    assert databases.ask("SELECT model, state FROM entropic_runs ORDER BY model") == [
        ("others", "done"),
        ("sims", "deleted"),
    ]


def test_a_table_that_was_dropped_is_made_again() -> None:
    """With the tokens, names and identity defaults that its runs had."""
    with opened(model(n=int, dt=(float, mapped_column(default=0.5)))) as store:
        record = store.run_or_retrieve({"n": 1})
    databases.change("DROP TABLE sims")
    with opened(model(n=int, dt=(float, mapped_column(default=0.25)))) as store:
        again = store.run_or_retrieve({"n": 1, "dt": 0.5})
    assert (again.id, again.result_file) == (record.id, record.result_file)
    assert databases.ask("SELECT token, published, state FROM entropic_runs") == [(2, 2, "done")]


CALLS = pytest.mark.parametrize("call", ["run_or_retrieve", "retrieve", "delete"])


@CALLS
def test_a_row_that_cannot_be_read_is_named(call: str) -> None:
    """Its column, its id and the value."""
    _is_named(Literal["fast"], "fast", call)


@databases.only_sqlite
@pytest.mark.parametrize(("kind", "value"), [(date, "2026-01-31"), (dict[str, Any], {})])
@CALLS
def test_a_value_of_another_type_is_named(kind: Any, value: Any, call: str) -> None:
    """SQLite keeps any text in any column; whatever raises."""
    _is_named(kind, value, call)


def _is_named(kind: Any, value: Any, call: str) -> None:
    with opened(model(x=kind)) as store:
        id = store.run_or_retrieve({"x": value}).id
        databases.change("UPDATE sims SET x = 'slow'")
        with pytest.raises(SchemaError, match=rf"sims.x .*'slow'.*{id}"):
            getattr(store, call)({"x": value})


def test_a_column_that_is_added_to_a_mapped_model_is_a_parameter() -> None:
    """Also for what a store of the model has prepared before."""

    class Late(Base):
        __tablename__ = "late"
        a: Mapped[int]

    def write(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text(str(params.get("b", "none")))

    settings: dict[str, Any] = {"db_url": databases.url(), "file_suffix": ".txt"}
    with Store(write, Late, **settings) as store:
        store.run_or_retrieve({"a": 1})
    Late.b = mapped_column(sa.BigInteger, default=0)
    with Store(write, Late, **settings) as store:
        asked = [{"a": a, "b": b} for a in (1, 2) for b in (0, 7)]
        records: list[Any] = store.sweep(asked)
        assert [{"a": r.a, "b": r.b} for r in records] == asked
        texts = [Path(record.result_file).read_text() for record in records]
        assert texts == ["none", "7", "0", "7"]
        assert [r.id for r in store.sweep(asked)] == [r.id for r in records]
