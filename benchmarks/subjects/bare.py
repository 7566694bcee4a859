"""The same work without a cache: what the machine can do."""

import hashlib
import importlib
import json
import multiprocessing
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import main, measured
from simulations import bare, five_ms, sets, ten_ms
from simulations import trivial as do_nothing

_BATCH = 3_000


def trivial(size: int) -> None:
    _loop(do_nothing, size)


def caller(size: int) -> None:
    _loop(five_ms, size)


def thread(size: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        _map(pool, size)


def process(size: int) -> None:
    # Workers that do not share the parent's memory by fork, as the library's do not.
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        _map(pool, size)


def dask(size: int) -> None:
    from clusters import cluster

    with cluster() as client:
        client.gather(client.map(ten_ms, bare(20, Path("first"))))
        params = bare(size, Path("results"))
        with measured():
            client.gather(client.map(ten_ms, params))


def warm(size: int) -> None:
    params = list(sets(size))
    with closing(sqlite3.connect("runs.sqlite3")) as database, measured():
        found = list(_rows(database, params))
    assert len(found) == size


def hits(size: int) -> None:
    params = list(sets(size))
    with closing(sqlite3.connect("runs.sqlite3")) as database, measured():
        for each in params:
            id = _id(each)
            (row,) = database.execute("SELECT * FROM results WHERE id = ?", (id,)).fetchall()
            assert row[0] == id


def import_sqlalchemy(size: int) -> None:
    with measured():
        importlib.import_module("sqlalchemy.ext.asyncio")


def import_entropic(size: int) -> None:
    with measured():
        importlib.import_module("entropic").Store  # noqa: B018  it is imported when asked for


def stream(size: int) -> None:
    count = 0
    with closing(sqlite3.connect("runs.sqlite3")) as database, measured():
        for _ in _rows(database, sets(size)):
            count += 1
    assert count == size


def _loop(run: Callable[[dict[str, Any]], None], size: int) -> None:
    params = bare(size, Path("results"))
    with measured():
        for each in params:
            run(each)


def _map(pool: Executor, size: int) -> None:
    # The first runs start the workers.
    list(pool.map(five_ms, bare(20, Path("first"))))
    params = bare(size, Path("results"))
    with measured():
        list(pool.map(five_ms, params))


def _rows(
    database: sqlite3.Connection, params: Iterable[dict[str, Any]]
) -> Iterator[tuple[Any, ...]]:
    """Each set's row: its id computed, and fetched in bulk."""
    source = iter(params)
    while batch := [_id(each) for each in islice(source, _BATCH)]:
        yield from database.execute(
            "SELECT * FROM results WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(batch),),
        )


def _id(params: dict[str, Any]) -> str:
    text = json.dumps(params, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(
        {
            "trivial": trivial,
            "caller": caller,
            "thread": thread,
            "process": process,
            "dask": dask,
            "hits": hits,
            "import_sqlalchemy": import_sqlalchemy,
            "import_entropic": import_entropic,
            "warm": warm,
            "stream": stream,
        }
    )
