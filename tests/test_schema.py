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
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from entropic import Base, Store, mapped_column
from entropic.database import Database
from entropic.errors import DatabaseBusyError, DatabaseError, ModelError, ParamsError, SchemaError
from entropic.models import side_tables
from entropic.schema import open_schema
from tests.models import model
from tests.outsiders import ask, at_once, cancelled_at, change, holding, is_unlocked

PATH = "runs.sqlite3"


class Solver(enum.Enum):
    EULER = "euler"
    RUNGE = "runge: 'kutta'"


def write(params: dict[str, Any]) -> None:
    """The smallest simulation."""
    Path(params["result_file"]).write_text(repr(sorted(params)))


@contextmanager
def opened(result_cls: type[Base], **settings: Any) -> Iterator[Any]:
    """A store of a model, and the end of it."""
    with Store(write, result_cls, **{"db_url": f"sqlite:///{PATH}", **settings}) as store:
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
        ask(PATH, "SELECT name, sql FROM sqlite_master ORDER BY name"),
        ask(PATH, "SELECT * FROM entropic_columns ORDER BY model, parameter"),
        ask(PATH, "SELECT * FROM entropic_models ORDER BY model"),
    ]


Old = model(n=int)


def test_opening_makes_the_tables() -> None:
    """The user's holds the reserved columns and the parameters, and nothing else."""
    with opened(model(n=int, dt=(float, mapped_column(default=0.5)))):
        pass
    assert ask(PATH, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name") == [
        "entropic_columns",
        "entropic_models",
        "entropic_runs",
        "sims",
    ]
    assert ask(PATH, "SELECT name FROM pragma_table_info('sims')") == [
        "id",
        "result_file",
        "created_at",
        "custom_data",
        "n",
        "dt",
    ]


def test_opening_again_changes_nothing() -> None:
    """Not a byte, also for a model with every kind of default."""

    def columns() -> dict[str, Any]:
        return {
            "n": int,
            "dt": (float, mapped_column(default=0.5)),
            "label": str | None,
            "seed": (int, mapped_column(default=lambda: 7)),
        }

    with opened(model(**columns())) as store:
        store.run_or_retrieve({"n": 1})
    before = Path(PATH).read_bytes()
    with opened(model(**columns())) as store:
        assert store.retrieve({"n": 1, "seed": 7}) is not None
    assert Path(PATH).read_bytes() == before


def test_the_side_tables_are_not_in_the_users_metadata() -> None:
    """A user's own create_all or migrations never touch them."""
    assert not side_tables.tables.keys() & Base.metadata.tables.keys()
    engine = sa.create_engine(f"sqlite:///{PATH}")
    Sim = model(n=int, dt=(float, mapped_column(default=0.5)))  # noqa: N806  it is a class
    Sim.metadata.create_all(engine, [Sim.__table__])  # type: ignore[list-item]
    engine.dispose()
    assert ask(PATH, "SELECT name FROM sqlite_master WHERE type = 'table'") == ["sims"]
    with opened(Sim) as store:
        assert store.run_or_retrieve({"n": 1}).id == store.run_or_retrieve({"n": 1, "dt": 0.5}).id


def _open(table: str, columns: list[str], n: int) -> str:
    """In a process of its own: open a store, run one set, and give its id."""
    kinds = {name: (int, mapped_column(default=0)) for name in columns}
    with opened(model(table, n=int, **kinds)) as store:
        record = store.run_or_retrieve({"n": n})
        assert store.retrieve({"n": n}).id == record.id
        return str(record.id)


@pytest.mark.parametrize("count", [2, 10])
def test_many_processes_can_open_a_new_database_at_once(count: int) -> None:
    """With the same model: one of them makes the tables, once."""
    ids = at_once(_open, [("sims", ["extra"], n) for n in range(count)])
    assert sorted(ask(PATH, "SELECT id FROM sims")) == sorted(ids)
    assert ask(PATH, "SELECT model, from_2x FROM entropic_models") == [("sims", 0)]
    assert ask(PATH, "SELECT parameter, identity_default FROM entropic_columns ORDER BY 1") == [
        ("extra", "0"),
        ("n", None),
    ]


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
    at_once(_open, [(f"sims{n}", ["extra"], n) for n in range(count)])
    for n in range(count):
        assert ask(PATH, f"SELECT n FROM sims{n}") == [n]
    names = ask(PATH, "SELECT model FROM entropic_models")
    assert sorted(names) == sorted(f"sims{n}" for n in range(count))
    assert len(set(ask(PATH, "SELECT nonce FROM entropic_models"))) == count


def test_many_processes_can_add_the_same_column_at_once() -> None:
    """One of them adds it, and all see it."""
    with opened(Old) as store:
        old = store.run_or_retrieve({"n": 100})
    at_once(_open, [("sims", ["extra"], n) for n in range(4)])
    assert ask(PATH, "SELECT n, extra FROM sims ORDER BY n") == [
        *((n, 0) for n in range(4)),
        (100, 0),
    ]
    with opened(model(n=int, extra=(int, mapped_column(default=0)))) as store:
        assert store.run_or_retrieve({"n": 100}).created_at == old.created_at


def test_threads_can_open_a_new_database_at_once() -> None:
    """Several stores of one process."""

    async def scenario() -> list[Any]:
        stores = [Store(write, Old, db_url=f"sqlite:///{PATH}") for _ in range(4)]
        try:
            calls = [
                asyncio.to_thread(store.run_or_retrieve, {"n": n}) for n, store in enumerate(stores)
            ]
            return await asyncio.gather(*calls)
        finally:
            for store in stores:
                store.close()

    assert sorted(record.n for record in asyncio.run(scenario())) == [0, 1, 2, 3]


@pytest.mark.parametrize("everything", [False, True], ids=["the call", "the whole loop"])
def test_an_opening_cancelled_at_any_moment_leaves_nothing_half_made(everything: bool) -> None:
    """All of the tables or none, no lock; and the next opening works."""

    async def scenario() -> int:
        moment = 1
        while True:
            path = f"runs{moment}.sqlite3"
            database = Database(f"sqlite:///{path}", lock_timeout=30)
            await database.open()
            try:
                call = functools.partial(open_schema, database, Old)
                in_time = await cancelled_at(moment, call, everything=everything)
                assert is_unlocked(path), moment
                tables = ask(path, "SELECT count(*) FROM sqlite_master WHERE type = 'table'")
                assert tables == [4] or (in_time and tables == [0]), moment
                await open_schema(database, Old)
            finally:
                await database.aclose()
            assert ask(path, "SELECT count(*) FROM entropic_models") == [1]
            if not in_time:
                return moment
            moment += 1

    assert asyncio.run(scenario()) > 10


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
]


NULLABLE = [(float | None, 0.1, 0.2), (str | None, "a", "b"), (dict[str, Any] | None, {}, {"a": 1})]


@pytest.mark.parametrize(("kind", "default", "other"), [*LITERALS, *NULLABLE], ids=repr)
def test_a_column_with_a_literal_default_is_added(
    kind: Any, default: Any, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Stored rows read the default, exactly as a new row would, and keep their ids."""
    caplog.set_level(logging.INFO, "entropic")
    with opened(Old) as store:
        old = store.run_or_retrieve({"n": 1})
    with opened(model(n=int, x=(kind, mapped_column(default=default)))) as store:
        assert "added the column sims.x" in caplog.text
        found = store.run_or_retrieve({"n": 1})
        assert (found.id, found.created_at) == (old.id, old.created_at)
        assert found.x == default
        assert type(found.x) is type(store.run({"n": 2}).x)
        assert store.retrieve({"n": 1, "x": default}).id == old.id
        assert store.retrieve({"n": 1, "x": other}) is None
        assert store.run_or_retrieve({"n": 1, "x": other}).id != old.id
        assert store.retrieve({"n": 1}).created_at == old.created_at
        if (kind, default, other) in NULLABLE:
            assert store.run_or_retrieve({"n": 1, "x": None}).x is None
    as_stored = "SELECT typeof(x), x FROM sims WHERE n = {}"
    assert ask(PATH, as_stored.format(1))[0] == ask(PATH, as_stored.format(2))[0]


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
        (int, mapped_column()),
        (int, mapped_column(default=lambda: 5)),
        (int, mapped_column(server_default="5")),
        (int, mapped_column(default=sa.func.random())),
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
    assert ask(PATH, "SELECT identity_default FROM entropic_columns WHERE parameter = 'dt'") == [
        "0.5"
    ]


@pytest.mark.parametrize(
    ("first", "later", "params"),
    [
        ((float, mapped_column(default=0.5)), float, {"x": 0.5}),
        (float, (float, mapped_column(default=0.5)), {"x": 0.5}),
        (float | None, (float | None, mapped_column(default=0.5)), {"x": None}),
        ((float | None, mapped_column(default=0.5)), float | None, {"x": 0.5}),
        ((float, mapped_column(default=lambda: 0.5)), (float, mapped_column(default=0.5)), {}),
        ((float, mapped_column(default=0.5)), (float, mapped_column(default=lambda: 0.5)), {}),
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
        ({"m": (int, mapped_column("n")), "x": float}, r"Sim.m.*was called 'n'"),
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
    change(PATH, "UPDATE entropic_models SET from_2x = 1")
    with opened(model(n=int, x=after)):
        pass


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
    change(PATH, "CREATE INDEX mine ON sims (n); CREATE TABLE notes (text)")
    with opened(Old) as store:
        assert store.retrieve({"n": 1}) is not None


def test_a_database_of_a_newer_entropic_is_refused() -> None:
    """Its rules for ids may be others."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    change(PATH, "UPDATE entropic_models SET format = 2")
    refused(Old, "newer entropic .format 2, this one knows 1.; update entropic")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("CREATE TABLE sims (n BIGINT NOT NULL)", "has no column 'id'.*another __tablename__"),
        (
            "CREATE TABLE sims (id VARCHAR PRIMARY KEY, result_file VARCHAR NOT NULL,"
            " created_at DATETIME NOT NULL, n BIGINT NOT NULL)",
            "has no column 'custom_data'",
        ),
        (
            "CREATE TABLE sims (id INTEGER PRIMARY KEY, result_file VARCHAR NOT NULL,"
            " created_at DATETIME NOT NULL, custom_data JSON NOT NULL, n BIGINT NOT NULL)",
            "sims.id is INTEGER",
        ),
        (
            "CREATE TABLE sims (id VARCHAR NOT NULL, result_file VARCHAR NOT NULL,"
            " created_at DATETIME NOT NULL, custom_data JSON NOT NULL, n BIGINT NOT NULL)",
            "id.*primary key",
        ),
        (
            "CREATE TABLE sims (id VARCHAR NOT NULL, result_file VARCHAR NOT NULL,"
            " created_at DATETIME NOT NULL, custom_data JSON NOT NULL, n BIGINT NOT NULL,"
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
    change(PATH, table)
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
    assert ask(PATH, "SELECT model FROM entropic_models") == [name]


@pytest.mark.parametrize("name", [*NAMES[:7], *NAMES[-2:], "value", "key", "b_ids"])
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
    assert ask(PATH, "SELECT name FROM pragma_table_info('sims')")[-2:] == [name, f"{name} 2"]
    assert record.id == hashlib.sha256(b'{"n":1}').hexdigest()[:16]


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


def test_a_name_that_differs_in_case_alone_is_told() -> None:
    """SQLite takes it for the same table."""
    with opened(Old) as store:
        store.run_or_retrieve({"n": 1})
    refused(model("SIMS", n=int), "that name is one with 'sims' to it")


def test_models_in_one_database_do_not_mix() -> None:
    """Each has its own ids, defaults and bookkeeping."""
    with opened(Old) as one, opened(model("others", n=int, x=int | None)) as two:
        first, second = one.run_or_retrieve({"n": 1}), two.run_or_retrieve({"n": 1})
        assert first.id == second.id
        assert one.delete({"n": 1})
        assert two.retrieve({"n": 1}).created_at == second.created_at
        assert one.retrieve({"n": 1}) is None
    assert ask(PATH, "SELECT model, state FROM entropic_runs ORDER BY model") == [
        ("others", "done"),
        ("sims", "deleted"),
    ]


def test_a_table_that_was_dropped_is_made_again() -> None:
    """With the tokens, names and identity defaults that its runs had."""
    with opened(model(n=int, dt=(float, mapped_column(default=0.5)))) as store:
        record = store.run_or_retrieve({"n": 1})
    change(PATH, "DROP TABLE sims")
    with opened(model(n=int, dt=(float, mapped_column(default=0.25)))) as store:
        again = store.run_or_retrieve({"n": 1, "dt": 0.5})
    assert (again.id, again.result_file) == (record.id, record.result_file)
    assert ask(PATH, "SELECT token, published, state FROM entropic_runs") == [(2, 2, "done")]


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Literal["fast"], "fast"), (date, "2026-01-31"), (dict[str, Any], {})],
)
@pytest.mark.parametrize("ask", ["run_or_retrieve", "retrieve", "delete"])
def test_a_row_that_cannot_be_read_is_named(kind: Any, value: Any, ask: str) -> None:
    """Its column, its id and the value, whatever raised."""
    with opened(model(x=kind)) as store:
        id = store.run_or_retrieve({"x": value}).id
        change(PATH, "UPDATE sims SET x = 'slow'")
        with pytest.raises(SchemaError, match=rf"sims.x .*'slow'.*{id}"):
            getattr(store, ask)({"x": value})
