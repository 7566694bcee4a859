"""Models: what makes one, defining one again, its column types, and its records."""

import asyncio
import copy
import enum
import gc
import importlib
import json
import math
import pickle
import sys
import types
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, column_property, declared_attr, synonym

from entropic import Base, Mapped, Store, mapped_column
from entropic.database.urls import async_url
from entropic.errors import ModelError, ParamsError, SchemaError, SettingsError
from entropic.identity import Identity
from entropic.models import (
    RESERVED,
    EnumValue,
    ExactDecimal,
    NumpyArray,
    PathText,
    PlainJson,
    UtcDateTime,
    detached,
    load_json,
    parameters,
)
from tests import databases
from tests.columns import Color, Level, Mixed, Phase
from tests.simulations import calls, mark_call

MakeStore = Callable[..., Any]

on_both = pytest.mark.usefixtures("database")
"""The others are of classes and their columns, which no database has seen yet."""


def simulate(params: dict[str, Any]) -> None:
    """Write the parameters."""
    mark_call(params)
    Path(params["result_file"]).write_text(repr(params))


def store_of(make_store: MakeStore, model: type[Base], **settings: Any) -> Any:
    """A store for any model."""
    return make_store(runner=simulate, result_cls=model, file_suffix=".txt", **settings)


def sheet(
    name: str = "Sheet", module: str = __name__, table: str = "sheets", **columns: Any
) -> Any:
    """Run a cell that defines a model of this name; ``n`` is its parameter, unless others are."""
    annotations = {key: Mapped[kind] for key, kind in (columns or {"n": int}).items()}  # type: ignore[valid-type]
    body = {"__module__": module, "__tablename__": table, "__annotations__": annotations}
    return types.new_class(name, (Base,), {}, lambda namespace: namespace.update(body))


@on_both
def test_a_model_may_be_defined_again(make_store: MakeStore) -> None:
    """Quietly, as a notebook does on running a cell twice; what is stored is a hit."""
    first = sheet()
    record = store_of(make_store, first).run_or_retrieve({"n": 1})
    second = sheet()
    assert second is not first
    again = store_of(make_store, second).run_or_retrieve({"n": 1})
    assert isinstance(again, second)
    assert (again.id, again.created_at) == (record.id, record.created_at)
    assert calls() == 1


def test_the_old_class_stays_usable(make_store: MakeStore) -> None:
    """A store that was made of it runs, reads and deletes, before and after its first read."""
    first = sheet()
    old = store_of(make_store, first)
    unused = store_of(make_store, first, db_url="sqlite:///other.sqlite3")
    before = old.run_or_retrieve({"n": 1})
    new = store_of(make_store, sheet())
    assert isinstance(old.retrieve({"n": 1}), first)
    assert old.retrieve({"n": 1}).id == before.id
    assert old.run_or_retrieve({"n": 2}).n == 2
    assert new.retrieve({"n": 2}).n == 2
    assert old.delete({"n": 2})
    assert unused.run_or_retrieve({"n": 3}).n == 3
    assert repr(before).startswith("Sheet(id=")
    assert [parameter.name for parameter in parameters(first)] == ["n"]


def test_a_model_may_gain_a_parameter_when_it_is_defined_again(make_store: MakeStore) -> None:
    """The cell was edited: the new class is what counts for new stores."""
    store_of(make_store, sheet()).run_or_retrieve({"n": 1})
    edited = sheet(n=int, note=str | None)
    store = store_of(make_store, edited)
    assert store.run_or_retrieve({"n": 1}).note is None
    assert store.run_or_retrieve({"n": 1, "note": "new"}).note == "new"
    assert calls() == 2
    assert list(sa.inspect(edited).local_table.columns.keys()) == [*RESERVED, "n", "note"]


MODULE = """
from entropic import Base, Mapped

class Reloaded(Base):
    __tablename__ = "reloaded"
    n: Mapped[int]
"""


def test_a_module_may_be_reloaded(
    make_store: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interactive session does, after an edit."""
    (folder / "reloaded_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("reloaded_model")
    first = store_of(make_store, module.Reloaded).run_or_retrieve({"n": 1})
    (folder / "reloaded_model.py").write_text(MODULE + "    dt: Mapped[float | None]\n")
    module = importlib.reload(module)
    again = store_of(make_store, module.Reloaded).run_or_retrieve({"n": 1, "dt": None})
    assert again.id == first.id
    assert calls() == 1
    del sys.modules["reloaded_model"]


def test_a_model_may_be_defined_in_another_module_too() -> None:
    """A copy of a script, under the same name or another."""
    sheet(module="one")
    assert sheet(module="two").__module__ == "two"
    assert sheet("Page", module="three").__name__ == "Page"


def test_two_names_for_one_table_in_one_module_are_a_slip() -> None:
    """SQLAlchemy's own error says so, and the first model is not harmed."""
    first = sheet()
    with pytest.raises(InvalidRequestError, match="Table 'sheets' is already defined"):
        sheet("Page")
    assert [parameter.name for parameter in parameters(first)] == ["n"]
    assert Base.metadata.tables["sheets"] is sa.inspect(first).local_table


def test_a_cell_that_failed_is_in_nobodys_way() -> None:
    """A definition with a mistake, run again after the mistake is mended."""
    first = sheet()
    with pytest.raises(sa.exc.ArgumentError):
        sheet(n=object)
    with pytest.raises(InvalidRequestError):
        types.new_class("Nameless", (Base,))
    second = sheet()
    for model in (first, second):
        assert [parameter.name for parameter in parameters(model)] == ["n"]


def test_a_class_that_is_gone_is_in_nobodys_way() -> None:
    """Its table is still known where nobody holds the class any more."""
    sheet(table="forgotten")
    gc.collect()
    assert sheet("Other", table="forgotten").__name__ == "Other"


class Tracked:
    """A mixin that names the table after the class."""

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805  as SQLAlchemy calls it
        return cls.__name__.lower() + "s"  # type: ignore[attr-defined,no-any-return]


class InSchema(Base):
    """An abstract base with tables of its own."""

    __abstract__ = True
    metadata = sa.MetaData(schema="lab")

    seed: Mapped[int]


@pytest.mark.parametrize(
    ("bases", "options"),
    [
        ((Tracked, Base), dict),
        ((InSchema,), lambda: {"__tablename__": "runs"}),
        ((Base,), lambda: {"__tablename__": "runs", "__table_args__": {"schema": "lab"}}),
        (
            (Base,),
            lambda: {
                "__tablename__": "runs",
                "__table_args__": (sa.Index(None, "n"), {"schema": "x"}),
            },
        ),
        (
            (Base,),
            lambda: {"__tablename__": "runs", "__table_args__": (sa.Index(None, "n"),)},
        ),
    ],
    ids=["declared", "metadata", "schema", "arguments", "index"],
)
def test_a_table_may_be_named_in_any_way(bases: Any, options: Callable[[], dict[str, Any]]) -> None:
    """Defining the model again finds its predecessor all the same."""

    def define() -> Any:
        namespace = {
            "__module__": __name__,
            "__annotations__": {"n": Mapped[int]},
            **options(),
        }
        return types.new_class("Run", bases, {}, lambda body: body.update(namespace))

    first, second = define(), define()
    assert first.__table__ is not second.__table__
    assert first.metadata.tables[second.__table__.fullname] is second.__table__
    names = {parameter.name for parameter in parameters(second)}
    assert names == ({"seed", "n"} if InSchema in bases else {"n"})


def test_a_table_of_the_users_own_is_not_replaced() -> None:
    """Only a model's table makes room for a model."""
    table = sa.Table("ledgers", Base.metadata, sa.Column("key", sa.Integer, primary_key=True))
    with pytest.raises(InvalidRequestError, match="already defined"):
        sheet(table="ledgers")
    assert Base.metadata.tables["ledgers"] is table
    Base.metadata.remove(table)


def test_a_subclass_does_not_replace_its_parent() -> None:
    """Though it has the same table, and another module."""
    parent = sheet(table="parents")
    namespace = {"__module__": "elsewhere", "__annotations__": {"m": Mapped[int | None]}}
    child = types.new_class("Child", (parent,), {}, lambda body: body.update(namespace))
    assert Base.metadata.tables["parents"] is sa.inspect(parent).local_table
    with pytest.raises(ModelError, match="Child must have one table of its own"):
        parameters(child)


@pytest.mark.parametrize("model", [None, int, object(), "Sheet", Base, Base.metadata, UtcDateTime])
def test_a_model_must_be_a_subclass_of_base(model: Any) -> None:
    """Base itself is none; the error is a SettingsError and a ValueError."""
    with pytest.raises(ModelError, match=r"must be a subclass of entropic\.Base") as caught:
        Store(simulate, model)
    assert isinstance(caught.value, SettingsError)
    assert isinstance(caught.value, ValueError)


def define(body: dict[str, Any], *bases: type) -> Any:
    """Define a model ``Faulty``."""
    namespace = {"__module__": __name__, "__tablename__": "faulty", **body}
    return types.new_class("Faulty", bases or (Base,), {}, lambda found: found.update(namespace))


def test_a_model_without_parameters_is_refused() -> None:
    """The error says what to add."""
    with pytest.raises(ModelError, match=r"Faulty has no parameters: .* n: Mapped\[int\]"):
        Store(simulate, define({}))


def test_an_abstract_model_is_refused() -> None:
    """It has no table."""
    with pytest.raises(ModelError, match="InSchema has no table: give it a __tablename__"):
        Store(simulate, InSchema)


class Stamped:
    """A mixin that brings a column that Base has."""

    created_at: Mapped[datetime]


class Marked:
    """A mixin that brings it without an annotation."""

    custom_data = mapped_column(sa.JSON)


N = {"n": Mapped[int]}


@pytest.mark.parametrize(
    ("name", "body", "bases"),
    [
        (
            "id",
            {"__annotations__": {**N, "id": Mapped[int]}, "id": mapped_column(primary_key=True)},
            (),
        ),
        ("id", {"__annotations__": N, "id": mapped_column(sa.String(64), primary_key=True)}, ()),
        ("result_file", {"__annotations__": {**N, "result_file": Mapped[str]}}, ()),
        ("result_file", {"__annotations__": {**N, "result_file": Mapped[Path]}}, ()),
        ("created_at", {"__annotations__": {**N, "created_at": Mapped[datetime]}}, ()),
        ("created_at", {"__annotations__": {**N, "created_at": Mapped[float]}}, ()),
        ("created_at", {"__annotations__": N, "created_at": property(lambda self: 1)}, ()),
        ("created_at", {"__annotations__": N, "created_at": synonym("n")}, ()),
        ("custom_data", {"__annotations__": {**N, "custom_data": Mapped[dict[str, Any]]}}, ()),
        ("custom_data", {"__annotations__": {**N, "custom_data": Mapped[int]}}, ()),
        ("created_at", {"__annotations__": N}, (Stamped, Base)),
        ("custom_data", {"__annotations__": N}, (Marked, Base)),
    ],
)
def test_a_reserved_column_redefined_is_refused(
    name: str, body: dict[str, Any], bases: tuple[type, ...]
) -> None:
    """Also with its own type: nobody's parameter may be silently ignored."""
    model = define({key: copy.copy(value) for key, value in body.items()}, *bases)
    with pytest.raises(ModelError, match=f"Faulty.{name} is redefined; .*call the parameter"):
        Store(simulate, model)


def test_a_composite_key_is_refused() -> None:
    """The run id is the key."""
    model = define({"__annotations__": N, "n": mapped_column(primary_key=True)})
    with pytest.raises(ModelError, match="id as its only primary key, not id, n; drop primary_key"):
        Store(simulate, model)


def test_a_model_that_inherits_from_another_is_refused() -> None:
    """With a table of its own, too: a run would have two rows."""
    parent = define({"__annotations__": N})
    key = mapped_column(sa.ForeignKey("faulty.id"), primary_key=True)
    joined = {"__annotations__": {"id": Mapped[str], "m": Mapped[int]}, "id": key}
    namespace = {"__module__": __name__, "__tablename__": "children", **joined}
    child = types.new_class("Child", (parent,), {}, lambda body: body.update(namespace))
    with pytest.raises(ModelError, match="Child must have one table of its own, directly under"):
        Store(simulate, child)


def test_a_column_that_the_database_computes_is_refused() -> None:
    """No row could be stored that gives it a value: found before the run, not after."""
    model = define(
        {"__annotations__": {**N, "m": Mapped[int]}, "m": mapped_column(sa.Computed("n"))}
    )
    with pytest.raises(ModelError, match=r"Faulty\.m cannot be a parameter: the database computes"):
        Store(simulate, model)


class Geometry(Base):
    """An abstract model that others share."""

    __abstract__ = True

    width: Mapped[float] = mapped_column(default=1.0)


class Seeded:
    """A mixin with a parameter."""

    seed: Mapped[int | None]


class Beam(Seeded, Geometry):
    __tablename__ = "beams"

    length: Mapped[float]


def test_parameters_may_come_from_mixins_and_abstract_models(make_store: MakeStore) -> None:
    """They are the model's own, in the order of its columns."""
    names = [parameter.name for parameter in parameters(Beam)]
    columns = sa.inspect(Beam).local_table.columns.keys()
    assert [*RESERVED, *names] == list(columns)
    assert set(names) == {"width", "seed", "length"}
    record = store_of(make_store, Beam).run_or_retrieve({"length": 2})
    assert (record.length, record.width, record.seed) == (2.0, 1.0, None)


class Renamed(Base):
    __tablename__ = "renamed"

    efficiency: Mapped[float] = mapped_column("eff")
    one: Mapped[int] = mapped_column("two")
    two: Mapped[int] = mapped_column("one")
    odd: Mapped[str] = mapped_column('it\'s "50%": a :b ?', default="x")


@on_both
def test_a_column_may_be_named_otherwise_than_its_attribute(make_store: MakeStore) -> None:
    """Params, records and errors know the attribute; only the table knows the column."""
    store = store_of(make_store, Renamed)
    params = {"efficiency": 1, "one": 1, "two": 2}
    record = store.run_or_retrieve(params)
    assert (record.efficiency, record.one, record.two, record.odd) == (1.0, 1, 2, "x")
    hit = store.retrieve({**params, "odd": "x"})
    assert (hit.id, hit.efficiency, hit.one, hit.two) == (record.id, 1.0, 1, 2)
    assert store.retrieve({**params, "one": 2, "two": 1}) is None
    assert store.run(params).id == record.id
    with pytest.raises(ParamsError, match=r"no parameter 'eff' .*did you mean 'efficiency'"):
        store.retrieve({"eff": 1, "one": 1, "two": 2})
    with pytest.raises(ParamsError, match=r"Renamed\.efficiency is a float"):
        store.retrieve({**params, "efficiency": "high"})
    assert store.delete(params)


class Awkward(Base):
    """Parameters with the names of SQL's words, and of the library's own columns."""

    __tablename__ = "order"

    value: Mapped[int]
    key: Mapped[int]
    select: Mapped[int]
    order: Mapped[int]
    model: Mapped[str]
    token: Mapped[int]
    owner: Mapped[str]
    published: Mapped[bool]
    size: Mapped[int]
    digest: Mapped[str]
    host: Mapped[str]
    b_id: Mapped[int]
    type: Mapped[str]
    json: Mapped[list[int]]


@on_both
def test_a_parameter_may_have_any_name(make_store: MakeStore) -> None:
    """Nothing in a statement is mistaken for another."""
    store = store_of(make_store, Awkward)
    params = {
        **dict.fromkeys(["value", "key", "select", "order", "token", "size", "b_id"], 7),
        **dict.fromkeys(["model", "owner", "digest", "host", "type"], "text"),
        "published": True,
        "json": [1, 2],
    }
    record = store.run_or_retrieve(params)
    hit = store.run_or_retrieve(params)
    assert calls() == 1
    assert {name: getattr(hit, name) for name in params} == params
    assert hit.id == record.id
    assert store.delete(params)


def sqlite(statement: str, kind: sa.types.TypeEngine[Any]) -> Any:
    """What a type makes of what is in the database."""
    with sa.create_engine("sqlite://", poolclass=sa.NullPool).connect() as connection:
        text = sa.text(statement).columns(x=kind)
        return connection.execute(text).scalar_one()


@pytest.mark.parametrize(
    ("kind", "stored", "value"),
    [
        (
            UtcDateTime(),
            "'2025-03-01 12:00:00.250000'",
            datetime(2025, 3, 1, 12, 0, 0, 250000, UTC),
        ),
        (PlainJson(), "'{\"a\": [1, null]}'", {"a": [1, None]}),
        (PlainJson(), "5", 5),
        (PlainJson(), "0.5", 0.5),
        (PlainJson(), "'\"5\"'", "5"),
        (PlainJson(), "'null'", None),
        (PlainJson(), "NULL", None),
        (ExactDecimal(), "'0.10'", Decimal("0.10")),
        (ExactDecimal(), "0.1", Decimal("0.1")),
        (ExactDecimal(), "5", Decimal(5)),
        (ExactDecimal(), "NULL", None),
        (PathText(), "'a/b'", Path("a/b")),
        (PathText(), "NULL", None),
        (NumpyArray("float64"), "NULL", None),
    ],
    ids=repr,
)
def test_what_entropic_2_stored_is_read(kind: Any, stored: str, value: Any) -> None:
    """Naive datetimes, decimals as numbers, JSON null, numbers that stand alone."""
    found = sqlite(f"SELECT {stored} AS x", kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("stored", ["'[[1, 2], [3, 4]]'", "5", "'[]'"])
@pytest.mark.parametrize("dtype", ["float32", "int8", None])
def test_an_array_comes_back_with_its_dtype(stored: str, dtype: str | None) -> None:
    """That of the annotation, or else the one that the numbers have in JSON."""
    found = sqlite(f"SELECT {stored} AS x", NumpyArray(dtype))
    expected = np.array(json.loads(stored.strip("'")), dtype)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@given(
    st.lists(
        st.integers() | st.text(max_size=3) | st.lists(st.floats(allow_nan=False), max_size=3),
        max_size=6,
    ),
    st.sampled_from([None, 1, "\t"]),
    st.sampled_from(["", " ", "\n"]),
)
def test_a_large_list_is_read_as_any_other(value: list[Any], indent: Any, end: str) -> None:
    """However it was laid out, from the first element past the size to the last."""
    large = [*value, "x" * 300_000]
    text = json.dumps(large, indent=indent)[:-1] + end + "]" + end
    assert load_json(text) == json.loads(text) == large


def test_a_large_text_that_is_no_list_is_read() -> None:
    """Objects and strings."""
    for value in ({"a": ["x" * 300_000]}, "[" * 300_000):
        assert load_json(json.dumps(value)) == value


class Settings(TypedDict):
    """The options of a solver."""

    order: int


class Typed(Base):
    __tablename__ = "typed"

    settings: Mapped[Settings]
    weights: Mapped[NDArray[np.float32]]
    path: Mapped[Path | None]
    price: Mapped[Decimal]
    start: Mapped[datetime]


def in_a_session(table: Any, work: Callable[[Session], Any]) -> None:
    """With a new table, in a session of an engine that the user has made."""

    async def session() -> None:
        engine = create_async_engine(async_url(databases.url()))
        try:
            async with AsyncSession(engine) as session:
                await (await session.connection()).run_sync(table.create)
                await session.commit()
                await session.run_sync(work)
        finally:
            await engine.dispose()

    asyncio.run(session())


@on_both
def test_a_model_serves_in_a_session_of_the_users_own() -> None:
    """Its rows can be added, filtered and read with plain SQLAlchemy."""
    values: dict[str, Any] = {
        "settings": {"order": 2},
        "weights": np.array([0.5, 1.5], np.float32),
        "path": Path("a/b"),
        "price": Decimal("1.50"),
        "start": datetime(2026, 1, 31, 12, tzinfo=UTC),
    }

    def work(session: Session) -> None:
        session.add(Typed(id="a", **reserved(), **values))
        session.commit()
        found = session.scalars(
            sa.select(Typed).where(
                Typed.path == Path("a/b"),
                Typed.price == Decimal("1.50"),
                Typed.start == values["start"].astimezone(tz=None),
            )
        ).one()
        assert found.settings == {"order": 2}
        assert found.weights.dtype == np.float32
        assert found.start.utcoffset() == timedelta(0)
        session.commit()
        statements: list[str] = []
        engine: Any = session.get_bind()
        sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        assert "weights=<not loaded>" in repr(found)
        assert statements == []

    in_a_session(Typed.__table__, work)


def reserved() -> dict[str, Any]:
    """What every row has."""
    return {"result_file": "a.npy", "created_at": datetime.now(UTC), "custom_data": {"note": "5"}}


@on_both
def test_json_is_read_once_in_a_session_of_the_users_own() -> None:
    """Some drivers have done so: a text there may look like JSON, or be none."""
    texts = ["5", "solid", '{"a": 1}', "null", ""]
    values = [*texts, texts, {"a": texts}, 5, 0.5, 1e300, True, [], {}, None]
    table = define({"__annotations__": {"x": Mapped[dict[str, Any] | None], "n": Mapped[int]}})

    def work(session: Session) -> None:
        for n, value in enumerate(values):
            session.add(table(id=str(n), n=n, x=value, **reserved()))
        session.commit()
        found = session.scalars(sa.select(table).order_by(table.n)).all()
        assert [row.x for row in found] == values
        assert {row.custom_data["note"] for row in found} == {"5"}
        no_value = session.scalars(sa.select(table.n).where(table.x.is_(None))).all()
        assert no_value == [len(values) - 1]

    in_a_session(table.__table__, work)


class Shown(Base):
    __tablename__ = "shown"

    n: Mapped[int]
    options: Mapped[list[int] | None]
    efficiency: Mapped[float | None] = mapped_column("eff")


Shown.double = column_property(sa.inspect(Shown).columns["n"] * 2)

VALUES = {
    "id": "f444a074a2e52bf9",
    "result_file": "./results/f444a074a2e52bf9.npy",
    "created_at": datetime(2026, 1, 31, tzinfo=UTC),
    "custom_data": {"note": "é"},
    "n": 5,
    "options": [1],
    "efficiency": 0.5,
}


def test_a_record_shows_its_id_its_parameters_and_its_result() -> None:
    """By the names of the attributes, and nothing that would ask a database."""
    assert repr(detached(Shown, VALUES)) == (
        "Shown(id='f444a074a2e52bf9', n=5, options=[1], efficiency=0.5,"
        " result_file='./results/f444a074a2e52bf9.npy')"
    )
    assert (
        repr(Shown(n=5)) == "Shown(id=None, n=5, options=None, efficiency=None, result_file=None)"
    )


def test_a_record_with_a_huge_value_is_shown_in_brief() -> None:
    """A list of a hundred thousand numbers does not fill the screen."""
    shown = repr(detached(Shown, {**VALUES, "options": list(range(100_000))}))
    assert len(shown) < 500
    assert "options=[0, 1, 2" in shown
    assert "..., efficiency=0.5" in shown


def test_a_record_is_a_plain_instance_of_the_model() -> None:
    """It can be read, pickled, copied and changed without a session."""
    record = detached(Shown, VALUES)
    assert type(record) is Shown
    assert sa.inspect(record).detached
    for found in (record, pickle.loads(pickle.dumps(record)), copy.copy(record)):
        assert {name: getattr(found, name) for name in VALUES} == VALUES
    record.n = 6
    assert record.n == 6


class Careful(Base):
    """A model whose constructor is the user's own."""

    __tablename__ = "careful"

    n: Mapped[int]

    def __init__(self, n: int) -> None:
        raise AssertionError("records are not made by the user's constructor")


def test_the_users_constructor_is_left_alone(make_store: MakeStore) -> None:
    """It may ask for anything."""
    store = store_of(make_store, Careful)
    assert store.run_or_retrieve({"n": 1}).n == 1
    assert store.retrieve({"n": 1}).n == 1


class Everything(Base):
    """Each type of column that an annotation gives, in one table, and a native enum."""

    __tablename__ = "everything"

    n: Mapped[int]
    x: Mapped[float]
    flag: Mapped[bool]
    name: Mapped[str]
    price: Mapped[Decimal]
    day: Mapped[date]
    start: Mapped[datetime]
    key: Mapped[uuid.UUID]
    path: Mapped[Path]
    color: Mapped[Color]
    mode: Mapped[Literal["euler", "rk4"]]
    options: Mapped[dict[str, Any]]
    steps: Mapped[list[float]]
    weights: Mapped[NDArray[np.float64]]
    native: Mapped[Phase] = mapped_column(sa.Enum(Phase))
    note: Mapped[str | None]


EVERYTHING: dict[str, Any] = {
    "n": -(2**63),
    "x": 0.1 + 0.2,
    "flag": np.True_,
    "name": 'it\'s 50% "so" \\ é \U0001f9ea',
    "price": "12345678901234567890.12345678901234567890",
    "day": "0001-01-01",
    "start": datetime(2026, 1, 31, 12, 30, 15, 5, tzinfo=timezone(timedelta(hours=-9))),
    "key": uuid.UUID(int=5),
    "path": "a/b's",
    "color": "green",
    "mode": "rk4",
    "options": {"a": [1e300, 2**53 + 1, None, "5", {"é": [0.1]}], "": -0.0},
    "steps": (1, 2.5, 5e-324),
    "weights": np.array([[0.1, 1e300], [2.0, 3.0]]),
    "native": Phase.SOLID,
}


@on_both
def test_a_set_of_every_type_is_a_hit_once_it_is_stored(make_store: MakeStore) -> None:
    """Also for a store that is opened later, in a sweep, and where it is to be deleted."""
    first = store_of(make_store, Everything).run_or_retrieve(EVERYTHING)
    store = store_of(make_store, Everything)
    for hit in (store.run_or_retrieve(EVERYTHING), *store.sweep([EVERYTHING, EVERYTHING])):
        assert (hit.id, hit.created_at) == (first.id, first.created_at)
        for name in (*EVERYTHING, "note", "custom_data"):
            one, other = getattr(first, name), getattr(hit, name)
            assert type(one) is type(other), name
            assert np.all(one == other), name
        assert len(pickle.dumps(hit)) > 0
    stored = {name: getattr(first, name) for name in EVERYTHING}
    assert store.retrieve(stored).id == first.id
    assert store.retrieve({**EVERYTHING, "n": 1}) is None
    assert store.delete(stored)
    assert calls() == 1


@on_both
def test_what_one_database_would_not_take_is_refused_by_both(make_store: MakeStore) -> None:
    """Before the run."""
    store = store_of(make_store, Everything)
    for name, value in (
        *(("x", math.nan), ("n", 2**63), ("n", -(2**63) - 1), ("name", "a\0"), ("name", "\ud800")),
        *(("options", {"a": bad}) for bad in (math.nan, -math.inf, 2**63, "\0", "\udfff")),
        *(("options", {"\0": 1}), ("weights", [math.nan]), ("steps", [math.inf])),
        *(("path", "a\0b"), ("price", "NaN"), ("native", "fluid"), ("note", "\0")),
    ):
        for call in (store.run_or_retrieve, store.run, store.retrieve, store.delete):
            with pytest.raises(ParamsError, match=rf"Everything\.{name} "):
                call({**EVERYTHING, name: value})
    for bad in (math.nan, math.inf, 2**63, "\0", "\ud800", object()):
        with pytest.raises(ParamsError, match="custom_data"):
            store.run_or_retrieve(EVERYTHING, note=[bad])
    assert calls() == 0


@on_both
def test_a_float_may_be_infinite(make_store: MakeStore) -> None:
    """Through the run, its sidecar and the database: an end time that is never reached."""
    store = store_of(make_store, sheet(n=int, t_end=float))
    for t_end in (math.inf, -math.inf):
        record = store.run_or_retrieve({"n": 1, "t_end": t_end})
        assert record.t_end == t_end
        assert store.run_or_retrieve({"n": 1, "t_end": t_end}).t_end == t_end
    assert calls() == 2


def test_identity_and_model_agree_on_the_parameters() -> None:
    """Each has a rule, under its attribute's name."""
    assert list(Identity(Renamed).parameters) == ["efficiency", "one", "two", "odd"]


@pytest.mark.parametrize(
    ("column", "arguments", "kind"),
    [
        (lambda: mapped_column(unique=True), (), "UniqueConstraint"),
        (mapped_column, (lambda: sa.UniqueConstraint("n"),), "UniqueConstraint"),
        (mapped_column, (lambda: sa.CheckConstraint("n > 0"),), "CheckConstraint"),
        (mapped_column, (lambda: sa.Index(None, "n", unique=True),), "unique Index"),
        (lambda: mapped_column(sa.ForeignKey("others.id")), (), "ForeignKeyConstraint"),
    ],
)
def test_what_could_refuse_a_finished_run_is_refused_first(
    column: Callable[[], Any], arguments: tuple[Callable[[], Any], ...], kind: str
) -> None:
    """The database would check it after the run, when there is a result to lose."""

    class Constrained(Base):
        __tablename__ = "constrained"
        __table_args__ = tuple(make() for make in arguments)
        n: Mapped[int] = column()

    with pytest.raises(ModelError, match=kind):
        parameters(Constrained)


def test_an_index_and_an_enum_with_a_check_are_no_hindrance() -> None:
    """Values of an enum are checked before the run."""

    class Kind(enum.Enum):
        FAST = "fast"

    class Indexed(Base):
        __tablename__ = "indexed"
        n: Mapped[int] = mapped_column(index=True)
        kind: Mapped[Kind] = mapped_column(sa.Enum(Kind, create_constraint=True, name="kind"))

    assert len(parameters(Indexed)) == 2


@on_both
@pytest.mark.parametrize("column_type", [sa.DateTime, sa.TIMESTAMP])
def test_a_datetime_with_a_zone_comes_back_with_one(
    column_type: Any, make_store: MakeStore
) -> None:
    """A record says the same whether it was just run or read."""

    class Started(Base):
        __tablename__ = "started"
        n: Mapped[int]
        at: Mapped[datetime] = mapped_column(column_type(timezone=True))

    store = store_of(make_store, Started)
    asked = datetime(2024, 1, 2, 3, tzinfo=timezone(timedelta(hours=1)))
    ran = store.run_or_retrieve({"n": 1, "at": asked})
    read = store.retrieve({"n": 1, "at": asked})
    assert ran.at == read.at == asked
    assert ran.at.tzinfo is read.at.tzinfo is UTC


@on_both
@pytest.mark.parametrize("names", [("N", "n"), ("n", "ID")], ids=["parameters", "reserved"])
def test_names_that_differ_only_in_case_are_refused_at_once(
    names: tuple[str, str], make_store: MakeStore
) -> None:
    """They would be one column to SQLite; another name for the column is a way out."""
    annotations = dict.fromkeys(names, Mapped[int])
    with pytest.raises(ModelError, match=names[1]):
        store_of(make_store, define({"__annotations__": annotations}))
    other = mapped_column("other")
    store = store_of(make_store, define({"__annotations__": annotations, names[1]: other}))
    assert getattr(store.run_or_retrieve(dict.fromkeys(names, 1)), names[1]) == 1


@on_both
def test_letters_beyond_ascii_keep_their_case(make_store: MakeStore) -> None:
    """Two columns to SQLite, so they may be two parameters."""
    store = store_of(make_store, define({"__annotations__": {"Ä": Mapped[int], "ä": Mapped[int]}}))
    assert store.run_or_retrieve({"Ä": 1, "ä": 2}).ä == 2


class Opacity(enum.Enum):
    """A value is another member's name."""

    CLEAR = "DENSE"
    DENSE = "dense"


class Version(enum.Enum):
    """Two values that look alike in JSON, and are two."""

    NUMBER = Decimal("1.0")
    TEXT = "1.0"


def members(**values: Any) -> Any:
    """An enum, of the same name each time, as if it had been edited."""
    return enum.Enum("Mode", values)


@pytest.mark.parametrize(
    ("member", "stored"),
    [
        (Color.RED, "red"),
        (Level.HIGH, "2"),
        (Phase.SOLID, "solid"),
        (Mixed.ONE, "1"),
        (Mixed.TEXT, '"1"'),
        (Mixed.HALF, "0.5"),
        (Mixed.PAIR, "[1,2]"),
        (Mixed.DAY, '"2026-01-31"'),
        (Opacity.CLEAR, "DENSE"),
        (Version.NUMBER, "NUMBER"),
        (Version.TEXT, "TEXT"),
        (None, None),
    ],
    ids=str,
)
def test_an_enum_is_stored_by_value(member: Any, stored: Any) -> None:
    """As a text, or as JSON where not all values are texts; and read back as its member."""
    kind = EnumValue(type(member) if member is not None else Color)
    bound = sa.literal(member, kind)
    with sa.create_engine("sqlite://", poolclass=sa.NullPool).connect() as connection:
        as_it_is = sa.select(sa.func.coalesce(bound, sa.null(), type_=sa.String()))
        assert connection.execute(as_it_is).scalar_one() == stored
        assert connection.execute(sa.select(sa.literal(member, kind))).scalar_one() is member


def test_a_text_that_is_a_value_and_a_name_is_the_value() -> None:
    """Names, and aliases, are read where there is no such value."""
    assert sqlite("SELECT 'DENSE' AS x", EnumValue(Opacity)) is Opacity.CLEAR
    assert sqlite("SELECT 'CLEAR' AS x", EnumValue(Opacity)) is Opacity.CLEAR
    mode = members(FAST="fast", QUICK="fast")
    assert sqlite("SELECT 'QUICK' AS x", EnumValue(mode)) is mode.FAST


BEFORE, RENAMED = members(FAST="fast"), members(QUICK="fast")


@on_both
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (BEFORE, RENAMED),
        (BEFORE, members(FAST="fast", SLOW=0)),
        (members(FAST="fast", SLOW=0), BEFORE),
        (str, BEFORE),
        (BEFORE, str),
        (BEFORE, Literal["fast"]),
        (Literal["fast"], BEFORE),
    ],
    ids=["renamed", "no text", "texts alone", "from str", "to str", "to Literal", "from Literal"],
)
def test_what_an_enum_calls_its_members_may_change(
    before: Any, after: Any, make_store: MakeStore
) -> None:
    """Where the value is the same, so is the run: it is a hit, in a sweep, too, and deleted."""
    first = store_of(make_store, define({"__annotations__": {"x": Mapped[before]}}))
    record = first.run_or_retrieve({"x": "fast"})
    if databases.current().name == "postgresql":  # as the SchemaError says where it is too narrow
        databases.change("ALTER TABLE faulty ALTER COLUMN x TYPE VARCHAR")
    store = store_of(make_store, define({"__annotations__": {"x": Mapped[after]}}))
    assert store.run_or_retrieve({"x": "fast"}).id == record.id
    assert [found.id for found in store.sweep([{"x": "fast"}])] == [record.id]
    assert calls() == 1
    assert store.delete({"x": "fast"})


@on_both
@pytest.mark.parametrize("by_name", [sa.Enum(Color), sa.Enum(Color, native_enum=False)], ids=repr)
def test_rows_by_name_are_hits(by_name: sa.Enum, make_store: MakeStore) -> None:
    """As an explicit sa.Enum, and entropic 2, stored them; but for a type of the database's own."""
    annotations = {"__annotations__": {"x": Mapped[Color]}}
    first = store_of(make_store, define({**annotations, "x": mapped_column(by_name)}))
    record = first.run_or_retrieve({"x": Color.RED})
    second = store_of(make_store, define(annotations))
    if by_name.native_enum and databases.current().name == "postgresql":
        with pytest.raises(SchemaError, match="which does not hold all values of EnumValue"):
            second.run_or_retrieve({"x": "red"})
        return
    if databases.current().name == "postgresql":
        databases.change("ALTER TABLE faulty ALTER COLUMN x TYPE VARCHAR")
    hit = second.run_or_retrieve({"x": "red"})
    assert (hit.id, hit.x, calls()) == (record.id, Color.RED, 1)


@on_both
def test_filters_mean_the_same() -> None:
    """Enums are asked for by member, value, name or pattern; the case of letters counts."""
    annotations = {
        "x": Mapped[Color],
        "name": Mapped[str],
        "flag": Mapped[bool],
        "dt": Mapped[float],
        "day": Mapped[date],
        "key": Mapped[uuid.UUID],
    }
    table = define({"__annotations__": annotations})
    first = {"x": Color.RED, "name": "a", "flag": True, "dt": 0.1, "day": date(2026, 1, 31)}
    other = {"x": "green", "name": "B", "flag": False, "dt": math.inf, "day": date(2026, 2, 1)}

    def work(session: Session) -> None:
        for id, values, key in (("a", first, 1), ("b", other, 2)):
            session.add(table(id=id, **values, key=uuid.UUID(int=key), **reserved()))
        session.commit()
        for asked in (
            *(table.x == Color.RED, table.x == "red", table.x == "RED", table.x.like("r%")),
            *(table.name == "a", table.name > "B", table.name.in_(["a", "b"])),
            *(table.flag, table.flag.is_(True), table.dt < 1, table.dt == 0.1),
            *(table.day < date(2026, 2, 1), table.key == uuid.UUID(int=1)),
            table.created_at <= datetime.now(timezone(timedelta(hours=9))),
        ):
            found = session.scalars(sa.select(table.id).where(asked).order_by(table.id)).first()
            assert found == "a", asked
        assert session.scalars(sa.select(table.id).where(table.name == "A")).all() == []

    in_a_session(table.__table__, work)


@pytest.mark.parametrize(
    ("after", "stored"), [(members(SLOW="slow"), "'fast'"), (dict[str, Any], "'{1'")]
)
def test_a_stored_value_that_cannot_be_read_is_a_schema_error(after: Any, stored: str) -> None:
    """It names the value."""
    column = define({"__annotations__": {"x": Mapped[after]}}).__table__.c.x
    with pytest.raises(SchemaError, match=stored.strip("'")):
        sqlite(f"SELECT {stored} AS x", column.type)
