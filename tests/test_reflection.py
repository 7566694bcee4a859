"""A model made out of a table: for those who have a database, and no script."""

import asyncio
import enum
import hashlib
import shutil
import sqlite3
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from entropic import Base, Store, mapped_column
from entropic.database import Database
from entropic.database.urls import reading_url
from entropic.errors import DatabaseError, SchemaError, SettingsError
from entropic.ledger import Ledger
from entropic.reflection import Reflected, Reflection, reflect
from tests import databases
from tests.models import model
from tests.simulations import Point

OLD = Path(__file__).parent / "data" / "entropic2"


class Solver(enum.Enum):
    EULER = "euler"


def write(params: dict[str, Any]) -> None:
    """The smallest simulation."""
    Path(params["result_file"]).write_text(repr(sorted(params)))


def looked(look: Callable[[Database, Reflection], Any], url: Any = None) -> Any:
    """What an asynchronous function makes of a database that is only read."""

    async def main() -> Any:
        database = Database(reading_url(url or databases.url()), lock_timeout=5)
        await database.open()
        try:
            return await look(database, await reflect(database))
        finally:
            await database.aclose()

    return asyncio.run(main())


def reflected(url: Any = None) -> Reflection:
    """What there is in a database."""

    async def look(_: Database, reflection: Reflection) -> Reflection:
        return reflection

    found: Reflection = looked(look, url)
    return found


def only(reflection: Reflection) -> Reflected:
    """Its only model."""
    (found,) = reflection.models.values()
    return found


def entries(ids: list[str], url: Any = None) -> dict[str, Any]:
    """What the ledger of the only model says of some ids."""

    async def look(database: Database, reflection: Reflection) -> Any:
        is_bare = not reflection.has_bookkeeping
        found = next(m for m in reflection.models.values() if m.name != "labelled")
        ledger = Ledger(database, found.identity, found.name, found.model, is_bare=is_bare)
        return await ledger.look_up(ids)

    return dict(looked(look, url))


@pytest.mark.usefixtures("database")
def test_a_model_is_made_of_a_table_and_its_ledger_reads_the_runs() -> None:
    """Name, nonce, parameters; records with the stored values and the bookkeeping."""
    with Store(write, Point, db_url=databases.url()) as store:
        record = store.run_or_retrieve({"n": 3}, note="first")
    found = only(reflected())
    assert found.name == "points"
    assert [found.nonce] == databases.ask("SELECT nonce FROM entropic_models")
    assert list(found.identity.parameters) == ["n", "dt", "label"]
    entry = entries([record.id])[record.id]
    assert (entry.record.n, entry.record.dt, entry.record.label) == (3, 0.5, None)
    assert entry.record.created_at == record.created_at
    assert entry.record.custom_data == record.custom_data
    assert entry.result.size == Path(record.result_file).stat().st_size
    assert found.identity.digest(entry.values)[:16] == record.id


PLAIN = {
    "whole": (int, 7),
    "real": (float, 0.1 + 0.2),
    "text": (str, "café"),
    "flag": (bool, True),
    "nothing": (int | None, None),
    "day": (date, date(2026, 1, 31)),
    "moment": (datetime, datetime(2026, 1, 31, 12, tzinfo=UTC)),
    "parts": (dict[str, Any], {"b": [1, 2.5, None], "a": "x"}),
    "solver": (Solver, Solver.EULER),
    "choice": (Literal["a", "b"], "b"),
    "path": (Path, Path("/data/in")),
    "exact": (Decimal, Decimal("0.10")),
    "array": (NDArray[np.float64], np.array([1.0, 2.5])),
}


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("name", PLAIN)
def test_the_id_of_what_is_stored_is_that_under_which_it_was_stored(name: str) -> None:
    """Whatever the type: as text or JSON, it is written canonically as the value was."""
    annotation, value = PLAIN[name]
    with Store(write, model(**{name: annotation}), db_url=databases.url()) as store:
        record = store.run_or_retrieve({name: value})
    entry = entries([record.id])[record.id]
    found = only(reflected())
    assert found.identity.digest(entry.values)[:16] == record.id


@pytest.mark.usefixtures("database")
def test_a_store_over_the_made_model_opens_and_deletes() -> None:
    """Nothing differs between the model and the table that it was made of."""
    kinds: dict[str, Any] = {name: annotation for name, (annotation, _) in PLAIN.items()}
    with Store(write, model(**kinds), db_url=databases.url()) as store:
        record = store.run_or_retrieve({name: value for name, (_, value) in PLAIN.items()})
    before = databases.ask("SELECT * FROM entropic_columns ORDER BY parameter")
    with Store(write, only(reflected()).model, db_url=databases.url()) as store:
        assert store.retrieve({"id": record.id}) is not None
        assert store.delete(hash=record.id, remove_file=True)
    assert not Path(record.result_file).exists()
    assert databases.ask("SELECT * FROM entropic_columns ORDER BY parameter") == before


@pytest.mark.usefixtures("database")
def test_a_parameter_that_is_called_otherwise_than_its_column_keeps_its_name() -> None:
    """Ids are made of names; and an attribute may be called as no attribute of Base is."""
    columns = {"alpha": (float, lambda: mapped_column("metadata")), "n": int}
    with Store(write, model(**columns), db_url=databases.url()) as store:
        record = store.run_or_retrieve({"alpha": 0.5, "n": 1})
    found = only(reflected())
    assert set(found.identity.parameters) == {"alpha", "n"}
    entry = entries([record.id])[record.id]
    assert found.identity.digest(entry.values)[:16] == record.id


def test_a_users_own_model_of_the_same_table_stays_what_it_is(folder: Path) -> None:
    """The made one has a MetaData of its own."""
    with Store(write, Point, db_url=databases.url()) as store:
        store.run_or_retrieve({"n": 3})
    found = only(reflected())
    assert Base.metadata.tables["points"] is Point.__table__
    assert found.model.metadata is not Base.metadata


@databases.only_postgresql
@pytest.mark.usefixtures("database")
def test_a_table_in_another_schema_is_found_there() -> None:
    """The side tables know it by both names."""
    databases.change('CREATE SCHEMA "of.others"')
    namespace = {"__table_args__": {"schema": "of.others"}}
    made = type(
        "Far",
        (Base,),
        {
            "__tablename__": "far",
            "__module__": __name__,
            "n": mapped_column(sa.BigInteger),
            **namespace,
        },
    )
    store: Store[Any] = Store(write, made, db_url=databases.url())
    with store:
        record = store.run_or_retrieve({"n": 1})
    assert only(reflected()).name == '"of.others".far'
    assert entries([record.id])[record.id].record.n == 1


@databases.only_postgresql
@pytest.mark.usefixtures("database")
def test_types_that_no_parameter_has_are_read_as_they_are() -> None:
    """Such a column is shown all the same."""
    databases.change(
        "CREATE TABLE odd (id VARCHAR PRIMARY KEY, result_file VARCHAR NOT NULL,"
        " created_at TIMESTAMP NOT NULL, custom_data JSON NOT NULL, span INTERVAL, raw BYTEA,"
        " single REAL, exact NUMERIC, key UUID, at TIMESTAMP, tags TEXT[]);"
        "INSERT INTO odd VALUES ('a', 'r/a.npy', '2026-01-31', '{}', '1 day', 'x', 0.5, 1.50,"
        " '12345678-1234-5678-1234-567812345678', '2026-01-31', ARRAY['b'])"
    )
    values = entries(["a"])["a"].values
    assert values["raw"] == b"x"
    assert values["single"] == 0.5
    assert values["exact"] == Decimal("1.50")
    assert values["key"] == uuid.UUID("12345678-1234-5678-1234-567812345678")
    assert values["tags"] == ["b"]


@databases.only_postgresql
@pytest.mark.usefixtures("database")
def test_a_table_with_a_type_that_nobody_knows_is_left_out(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """It is named, with the column, and nothing is warned of."""
    databases.change(
        "CREATE TABLE odd (id VARCHAR PRIMARY KEY, result_file VARCHAR NOT NULL,"
        " created_at TIMESTAMP NOT NULL, custom_data JSON NOT NULL, at POINT)"
    )
    found = reflected()
    assert (dict(found.models), dict(found.odd)) == ({}, {"odd": "no type is known of 'at'"})
    assert not recwarn.list


def test_a_database_of_entropic_2_is_read_without_side_tables(folder: Path) -> None:
    """Its two tables, their rows, and no bookkeeping; nothing is made in it."""
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    before = everything(folder)
    found = reflected(folder / databases.PATH)
    assert list(found.models) == ["labelled", "results"]
    assert not found.has_bookkeeping
    assert all(one.from_2x and one.nonce is None for one in found.models.values())
    entry = entries(["8e6e40931a0675d3"], folder / databases.PATH)["8e6e40931a0675d3"]
    assert (entry.record.n, entry.record.steps, entry.record.dt) == (100, 5, 0.01)
    assert (entry.result.size, entry.token, entry.is_claimed) == (None, 0, False)
    assert everything(folder) == before


@pytest.mark.usefixtures("database")
def test_who_reads_cannot_write() -> None:
    """Not by mistake, either: nothing that is written gets through."""
    with Store(write, Point, db_url=databases.url()) as store:
        store.run_or_retrieve({"n": 3})

    async def fail(database: Database, reflection: Reflection) -> None:
        found = only(reflection)
        ledger = Ledger(database, found.identity, found.name, found.model)
        with pytest.raises(DatabaseError, match="read-only"):
            await ledger.claim(["a"], "me", 1.0)

    if databases.current().name == "sqlite":
        looked(fail)
    assert databases.ask("SELECT count(*) FROM entropic_runs") == [1]


def test_a_file_that_is_not_there_is_not_made(folder: Path) -> None:
    """Neither is one for a database in memory."""
    with pytest.raises(SettingsError, match="there is no database"):
        reflected("sqlite:///runs.sqlite3")
    with pytest.raises(SettingsError, match="in memory"):
        reflected("sqlite://")
    assert not list(folder.iterdir())


def test_a_file_of_something_else_is_no_database(folder: Path) -> None:
    """It says so."""
    Path("runs.sqlite3").write_text("nothing of the kind, and long enough to be looked at" * 20)
    with pytest.raises(DatabaseError, match="no SQLite database"):
        reflected("sqlite:///runs.sqlite3")


@databases.only_sqlite
def test_a_reader_does_not_wait_for_a_writer(database: databases.Place) -> None:
    """Who has the write lock has not changed anything yet."""
    with Store(write, Point, db_url=databases.url()) as store:
        store.run_or_retrieve({"n": 3})
    holder = sqlite3.connect(databases.PATH, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert list(reflected().models) == ["points"]
    holder.close()


@pytest.mark.usefixtures("database")
def test_a_table_that_is_gone_is_named_and_does_no_harm() -> None:
    """Its bookkeeping is there still."""
    with Store(write, Point, db_url=databases.url()) as store:
        store.run_or_retrieve({"n": 3})
    databases.change("DROP TABLE points")
    found = reflected()
    assert (dict(found.models), found.lost) == ({}, ("points",))


@databases.only_sqlite
def test_a_database_of_a_newer_entropic_is_refused(database: databases.Place) -> None:
    """Its rules may be others."""
    with Store(write, Point, db_url=databases.url()) as store:
        store.run_or_retrieve({"n": 3})
    databases.change("UPDATE entropic_models SET format = 99")
    with pytest.raises(SchemaError, match="newer entropic"):
        reflected()


@pytest.mark.usefixtures("database")
def test_what_a_model_holds_is_counted() -> None:
    """Runs, failures, bytes and seconds, by the side tables; an example of where they are."""

    def sometimes(params: dict[str, Any]) -> None:
        if params["n"] == 2:
            raise ValueError("two")
        write(params)

    with Store(sometimes, Point, db_url=databases.url(), file_suffix=".txt") as store:
        record = store.run_or_retrieve({"n": 1})
        with pytest.raises(ValueError, match="two"):
            store.run_or_retrieve({"n": 2})

    async def look(database: Database, reflection: Reflection) -> Any:
        found = only(reflection)
        survey = Ledger(database, found.identity, found.name, found.model).survey
        return await survey.totals(), await survey.samples(), await survey.failed()

    totals, samples, failed = looked(look)
    assert (totals.runs, totals.failed, totals.running, totals.attempts) == (1, 1, 0, 2)
    assert totals.size == Path(record.result_file).stat().st_size
    assert totals.sized == 1
    assert totals.last == record.created_at
    assert {(s.id, s.name, s.result_file) for s in samples} == {
        (record.id, f"{record.id}.txt", record.result_file)
    }
    (one,) = failed
    assert one.at is not None
    assert abs(one.at - datetime.now(UTC).timestamp()) < 60


def everything(folder: Path) -> dict[str, str]:
    """The content of all files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
