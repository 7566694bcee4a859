"""The same work without a cache: what the machine can do."""

import hashlib
import importlib
import json
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from measuring import main, measured
from simulations import bare, five_ms, sets, ten_ms
from simulations import trivial as do_nothing

_BATCH = 3_000
_SHARED = 20


def trivial(size: int) -> None:
    _loop(do_nothing, size)


def promised(size: int) -> None:
    """What a store promises, with nothing around it.

    Each run is claimed before it starts and has a folder of its own, a digest and a line in a
    journal; it is published by a rename and stored by a commit that twenty share.
    """
    results, staging = Path("results").absolute(), Path("staging").absolute()
    results.mkdir()
    staging.mkdir()
    with closing(sqlite3.connect("runs.sqlite3", isolation_level=None)) as database:
        database.execute("CREATE TABLE claims (id TEXT PRIMARY KEY, owner TEXT, token INTEGER)")
        database.execute("CREATE TABLE rows (id TEXT PRIMARY KEY, path TEXT, n INTEGER, dt REAL)")
        with measured(), Path("journal").open("a") as journal:
            source = sets(size)
            while batch := [(_id(each), each) for each in islice(source, _SHARED)]:
                _run_promised(batch, database, journal, results, staging)


def _run_promised(
    batch: list[tuple[str, dict[str, Any]]],
    database: sqlite3.Connection,
    journal: TextIO,
    results: Path,
    staging: Path,
) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT INTO claims VALUES (?, 'me', 1)", [(id,) for id, _ in batch])
    database.execute("COMMIT")
    for id, params in batch:
        stage = staging / id
        stage.mkdir()
        file = stage / f"{id}.bin"
        do_nothing({**params, "id": id, "result_file": str(file)})
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        journal.write(json.dumps({"id": id, "digest": digest, **params}) + "\n")
        journal.flush()
    database.execute("BEGIN EXCLUSIVE")
    for id, _ in batch:
        (staging / id / f"{id}.bin").rename(results / f"{id}.bin")
    rows = [(id, f"results/{id}.bin", params["n"], params["dt"]) for id, params in batch]
    database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
    database.executemany("UPDATE claims SET owner = NULL WHERE id = ?", [(id,) for id, _ in batch])
    database.execute("COMMIT")
    for id, _ in batch:
        (staging / id).rmdir()


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


def promised_warm(size: int) -> None:
    """What a store promises of a hit, with nothing around it.

    The row and its bookkeeping are read, the parameters compared, the result looked for, and an
    object made of what was read.
    """
    params = list(sets(size))
    with closing(sqlite3.connect("runs.sqlite3")) as database, measured():
        found = [_record(database_row) for database_row in _joined(database, params)]
    assert len(found) == size


def _joined(
    database: sqlite3.Connection, params: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
    """Each set with its row and its bookkeeping."""
    for start in range(0, len(params), _BATCH):
        by_id = {_id(each): each for each in params[start : start + _BATCH]}
        for id, *row in database.execute(
            "SELECT value, results.*, size, folder, result_name, registered_path, token, published,"
            " owner, lease_expires FROM json_each(?) LEFT JOIN results ON results.id = value"
            " LEFT JOIN entropic_runs AS runs ON runs.model = 'results' AND runs.id = value",
            (json.dumps(list(by_id)),),
        ):
            yield by_id[id], tuple(row)


def _record(asked: tuple[dict[str, Any], tuple[Any, ...]]) -> SimpleNamespace:
    params, (id, path, created_at, custom_data, n, dt, size, *_) = asked
    assert (n, dt) == (params["n"], params["dt"])
    assert os.stat(path).st_size == size
    return SimpleNamespace(
        id=id,
        result_file=path,
        created_at=datetime.fromisoformat(created_at + "+00:00"),
        custom_data=json.loads(custom_data),
        n=n,
        dt=dt,
    )


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
            "promised": promised,
            "caller": caller,
            "thread": thread,
            "process": process,
            "dask": dask,
            "promised_warm": promised_warm,
            "hits": hits,
            "import_sqlalchemy": import_sqlalchemy,
            "import_entropic": import_entropic,
            "warm": warm,
            "stream": stream,
        }
    )
