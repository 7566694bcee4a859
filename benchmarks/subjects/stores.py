"""``Store``, in the API that entropic 2.3.0 has as well: it runs in both environments."""

import sqlite3
from contextlib import closing
from typing import Any

from filling import fill, fill_rows
from measuring import main, measured
from models import store_of
from simulations import five_ms, sets, ten_ms
from simulations import trivial as do_nothing

from entropic import Store


def trivial(size: int) -> None:
    _sweep(store_of(Store, do_nothing), size)


def caller(size: int) -> None:
    _sweep(store_of(Store, five_ms), size)


def dask(size: int) -> None:
    from clusters import cluster

    store = store_of(Store, ten_ms)
    with cluster() as client:
        # The first runs, of other sets, wake the workers and open the store.
        store.sweep([{"n": -n, "dt": 0.5} for n in range(1, 21)], client=client)
        with measured():
            records = store.sweep(sets(size), client=client)
    assert len(records) == size


def hits(size: int) -> None:
    """Stored sets, one at a time."""
    store = store_of(Store, _must_not_run)
    params = list(sets(size))
    assert store.retrieve(params[0]) is not None
    with measured():
        for each in params:
            assert store.retrieve(each) is not None


def one_by_one(size: int) -> None:
    """New sets, one at a time."""
    store = store_of(Store, do_nothing)
    store.run_or_retrieve({"n": -1, "dt": 0.5})
    with measured():
        for params in sets(size):
            store.run_or_retrieve(params)


def one_by_one_wal(size: int) -> None:
    """The same, on a database that has a WAL."""
    with closing(sqlite3.connect("runs.sqlite3")) as database:
        database.execute("PRAGMA journal_mode = WAL")
    one_by_one(size)


def warm(size: int) -> None:
    store = store_of(Store, _must_not_run)
    assert store.retrieve({"n": 0, "dt": 0.5}) is not None
    params = list(sets(size))
    with measured():
        records = store.sweep(params)
    assert len(records) == size


def _sweep(store: Any, size: int) -> None:
    store.run_or_retrieve({"n": -1, "dt": 0.5})
    with measured():
        records = store.sweep(sets(size))
    assert len(records) == size


def _must_not_run(params: dict[str, object]) -> None:
    raise AssertionError(f"not stored: {params}")


if __name__ == "__main__":
    main(
        {
            "trivial": trivial,
            "caller": caller,
            "dask": dask,
            "hits": hits,
            "one_by_one": one_by_one,
            "one_by_one_wal": one_by_one_wal,
            "warm": warm,
            "fill": fill,
            "fill_rows": fill_rows,
        }
    )
