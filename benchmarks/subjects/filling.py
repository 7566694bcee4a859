"""Rows and results for the warm works, written in bulk.

To run a million sets would take a quarter of an hour. So one set is run by the library whose rows
are wanted, and what it stored is copied, with other ids: only the ids' formula is known here.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from measuring import measured
from models import store_of
from simulations import sets, trivial

from entropic import Store

_MOST_LINKS = 50_000  # ext4 allows a file 65,000


def fill(size: int) -> None:
    """Store ``size`` sets and their results in the working directory."""
    _fill(size, results=size)


def fill_rows(size: int) -> None:
    """The same, but only the first thousand have results."""
    _fill(size, results=1_000)


def _fill(size: int, results: int) -> None:
    first, *others = sets(size)
    record = store_of(Store, trivial).run_or_retrieve(first)
    model_id = record.id
    assert model_id == _id(first), "ids are made in another way: the copies would not be found"
    with measured():
        # Names of a few files: to write a million would take minutes.
        content, original = Path(record.result_file).read_bytes(), Path(record.result_file)
        pattern = str(original.absolute())
        for number, params in enumerate(others[: results - 1], 1):
            path = Path(pattern.replace(model_id, _id(params)))
            if number % _MOST_LINKS:
                path.hardlink_to(original)
            else:
                path.write_bytes(content)
                original = path
        with closing(sqlite3.connect("runs.sqlite3")) as database, database:
            for table in _tables(database):
                _copy_row(database, table, model_id, others)


def _tables(database: sqlite3.Connection) -> list[str]:
    """The tables that hold a row a run."""
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE sql > ''")]
    return [name for name in names if "id" in _columns(database, name)]


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _copy_row(
    database: sqlite3.Connection, table: str, model_id: str, others: list[dict[str, Any]]
) -> None:
    columns = _columns(database, table)
    (template,) = database.execute(f"SELECT * FROM {table} WHERE id = ?", (model_id,)).fetchall()
    row = dict(zip(columns, template, strict=True))

    def copies() -> Iterator[list[Any]]:
        for params in others:
            copy = {**row, **{key: params[key] for key in params if key in row}}
            yield [
                value.replace(model_id, _id(params)) if isinstance(value, str) else value
                for value in copy.values()
            ]

    marks = ", ".join("?" * len(columns))
    database.executemany(f"INSERT INTO {table} VALUES ({marks})", copies())


def _id(params: dict[str, Any]) -> str:
    text = json.dumps(params, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
