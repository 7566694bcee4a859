"""The documented API, on every kind of store and every database."""

import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropic import expand_grid
from tests.simulations import calls


def test_a_set_runs_once_and_is_a_hit_after_that(store: Any) -> None:
    """The second request gives the stored row and starts nothing."""
    first = store.run_or_retrieve({"n": 3})
    second = store.run_or_retrieve({"n": 3.0, "dt": 0.5})
    assert calls() == 1
    assert second.id == first.id
    assert second.created_at == first.created_at
    np.testing.assert_array_equal(np.load(second.result_file), [3.0, 0.5])


def test_the_reserved_columns_are_as_documented(store: Any) -> None:
    """16-character id, result_file as spelled, aware UTC created_at, custom_data."""
    before = datetime.now(UTC)
    record = store.run_or_retrieve({"n": 3}, note="first", elapsed=np.float64(2))
    assert len(record.id) == 16
    assert record.result_file == f"./results/{record.id}.npy"
    assert before <= record.created_at <= datetime.now(UTC)
    assert record.created_at.utcoffset() is not None
    elapsed = record.custom_data["elapsed_seconds"]
    assert record.custom_data == {"elapsed_seconds": elapsed, "note": "first", "elapsed": 2.0}
    assert isinstance(elapsed, float)
    assert round(elapsed, 4) == elapsed
    assert (record.n, record.dt, record.label) == (3, 0.5, None)


def test_a_record_outlives_its_store_and_can_be_pickled(store: Any) -> None:
    """Records are plain detached instances."""
    record = store.run_or_retrieve({"n": 3})
    store.close()
    copy = pickle.loads(pickle.dumps(record))
    assert (copy.id, copy.n, copy.dt, copy.custom_data) == (
        record.id,
        3,
        0.5,
        record.custom_data,
    )


def test_custom_data_is_ignored_on_a_hit(store: Any) -> None:
    """A hit gives the row as it is."""
    first = store.run_or_retrieve({"n": 3}, note="first")
    assert store.run_or_retrieve({"n": 3}, note="second").custom_data == first.custom_data


def test_run_always_runs_and_replaces_the_row(store: Any) -> None:
    """Same id, same file, same created_at; new content and custom data."""
    first = store.run_or_retrieve({"n": 3}, note="first")
    second = store.run({"n": 3}, note="second")
    assert calls() == 2
    assert (second.id, second.result_file) == (first.id, first.result_file)
    assert second.created_at == first.created_at
    assert store.retrieve({"n": 3}).custom_data["note"] == "second"


def test_retrieve_runs_nothing(store: Any) -> None:
    """A miss is None."""
    assert store.retrieve({"n": 3}) is None
    assert calls() == 0
    record = store.run_or_retrieve({"n": 3})
    assert store.retrieve({"n": 3}).id == record.id


def test_delete_by_params_and_by_hash(store: Any) -> None:
    """True if a row went; hash wins over params; neither is a ValueError."""
    one, two = store.sweep([{"n": 1}, {"n": 2}])
    assert store.delete({"n": 1}, hash=two.id) is True
    assert store.retrieve({"n": 2}) is None
    assert store.retrieve({"n": 1}).id == one.id
    assert store.delete({"n": 1}) is True
    assert store.delete({"n": 1}) is False
    with pytest.raises(ValueError, match="params or hash"):
        store.delete()


def test_delete_can_remove_the_file(store: Any) -> None:
    """remove_file takes the result too; one that is gone already is no error."""
    one, two, three = store.sweep([{"n": 1}, {"n": 2}, {"n": 3}])
    assert store.delete({"n": 1})
    assert Path(one.result_file).exists()
    assert store.delete({"n": 2}, remove_file=True)
    assert not Path(two.result_file).exists()
    Path(three.result_file).unlink()
    assert store.delete({"n": 3}, remove_file=True)


def test_register_indexes_a_file_made_elsewhere(store: Any, folder: Path) -> None:
    """The row keeps the path as it was given, and no elapsed_seconds."""
    made = folder / "made.npy"
    with pytest.raises(FileNotFoundError):
        store.register({"n": 3}, result_file="made.npy")
    made.write_bytes(b"result")
    record = store.register({"n": 3}, result_file="made.npy", origin="cluster")
    assert record.result_file == "made.npy"
    assert record.custom_data == {"origin": "cluster"}
    assert store.run_or_retrieve({"n": 3}).result_file == "made.npy"
    assert calls() == 0
    again = folder / "again.npy"
    again.write_bytes(b"another result")
    store.register({"n": 3}, again)
    assert store.retrieve({"n": 3}).result_file == str(again)


def test_sweep_returns_distinct_sets_in_first_seen_order(store: Any) -> None:
    """Duplicates count once; what is stored is not run again; generators are read once."""
    store.run_or_retrieve({"n": 2})
    records = store.sweep({"n": n} for n in (3, 2, 3.0, 1))
    assert [record.n for record in records] == [3, 2, 1]
    assert calls() == 3


def test_sweep_of_a_grid(store: Any) -> None:
    """The documented grid, in product order."""
    records = store.sweep(expand_grid({"n": [50, 100], "dt": [0.01, 0.005]}))
    assert [(r.n, r.dt) for r in records] == [(50, 0.01), (50, 0.005), (100, 0.01), (100, 0.005)]
    assert store.sweep([]) == []


def test_the_callers_params_are_never_changed(store: Any) -> None:
    """The runner gets a copy."""
    params = {"n": 3, "result_file": "ignored", "created_at": 1, "custom_data": 2}
    store.run_or_retrieve(params)
    assert params == {"n": 3, "result_file": "ignored", "created_at": 1, "custom_data": 2}


def test_an_explicit_id_is_used(store: Any) -> None:
    """An id of the caller's own names the row and the file."""
    record = store.run_or_retrieve({"id": "my.run-1", "n": 3})
    assert record.id == "my.run-1"
    assert record.result_file == "./results/my.run-1.npy"
    assert store.retrieve({"id": "my.run-1"}).n == 3
    assert store.retrieve({"id": "my.run-1", "n": 4}) is None
    with pytest.raises(ValueError, match="holds a run with other parameters"):
        store.run_or_retrieve({"id": "my.run-1", "n": 4})
    assert store.delete({"id": "my.run-1"}) is True
