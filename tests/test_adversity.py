"""What a sceptical user tries: other programs, changed directories, closings and odd exceptions."""

import asyncio
import dataclasses
import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from entropic import (
    AsyncStore,
    Base,
    DatabaseBusyError,
    Mapped,
    ParamsError,
    ResultsDirError,
    RunError,
    SettingsError,
    Store,
    WrongLoopError,
)
from entropic.pipeline.batching import Batcher
from tests.simulations import Point, calls, simulate

PATH = "runs.sqlite3"


def write_call(params: dict[str, Any]) -> None:
    """Each call's result tells it from the others'."""
    simulate(params)
    Path(params["result_file"]).write_text(f"call {calls()}")


def test_a_rerun_that_cannot_be_committed_leaves_the_old_result(
    make_store: Callable[..., Any],
) -> None:
    """Another program reads the table for as long as it likes: nothing is moved meanwhile."""
    store = make_store(runner=write_call, lock_timeout=0.5)
    record = store.run_or_retrieve({"n": 1})
    store.sweep({"n": n} for n in range(2, 30))
    with closing(sqlite3.connect(PATH)) as reader:
        cursor = reader.execute("SELECT * FROM points")
        cursor.fetchone()
        with pytest.raises(DatabaseBusyError):
            store.run({"n": 1})
        assert Path(record.result_file).read_text() == "call 1"
        with pytest.raises(DatabaseBusyError):
            store.run_or_retrieve({"n": 31})
        cursor.close()
    assert store.retrieve({"n": 1}).created_at == record.created_at
    new = store.run_or_retrieve({"n": 31})
    assert new.result_file == f"./results/{new.id}.npy"


@pytest.mark.parametrize("kind", ["store", "store-threads"])
def test_a_run_cannot_close_its_own_store(kind: str, make_store: Callable[..., Any]) -> None:
    """It would wait for itself; a nested ``with`` leaves the store open for the run's sake."""

    def closing_runner(params: dict[str, Any]) -> None:
        simulate(params)
        if params["n"] == 1:
            store.close()
        if params["n"] == 2:
            with store:
                store.run_or_retrieve({"n": 3})

    store: Store[Point] = make_store(kind, runner=closing_runner)
    with pytest.raises(RunError, match="cannot close the store"):
        store.run_or_retrieve({"n": 1})
    assert store.run_or_retrieve({"n": 2}).n == 2
    assert store.retrieve({"n": 3}) is not None


def test_an_async_run_cannot_close_its_own_store() -> None:
    """Nor can an ``async def`` runner."""

    async def main() -> None:
        async def runner(params: dict[str, Any]) -> None:
            await store.aclose()

        store = AsyncStore(runner, Point, file_suffix=".npy", db_url=f"sqlite:///{PATH}")
        async with asyncio.timeout(30), store:
            with pytest.raises(RunError, match="cannot close the store"):
                await store.run_or_retrieve({"n": 1})

    asyncio.run(main())


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that takes no note."""

    code: int


def test_a_frozen_exception_is_raised_as_itself(folder: Path) -> None:
    """And its run is put in order like any other."""

    def fail(params: dict[str, Any]) -> None:
        raise FrozenError(3)

    failing = Store(fail, Point, file_suffix=".npy", db_url=f"sqlite:///{PATH}")
    with failing, pytest.raises(FrozenError):
        failing.run({"n": 1})
    with closing(sqlite3.connect(PATH)) as database:
        rows = database.execute("SELECT state, owner FROM entropic_runs").fetchall()
    assert rows == [("failed", None)]
    assert not any((folder / "results/.entropic/staging").iterdir())


def test_a_cancelled_delete_leaves_no_file_without_its_row() -> None:
    """Both go, or both stay; whenever it is cancelled."""

    async def main() -> None:
        async with AsyncStore(
            simulate, Point, file_suffix=".npy", db_url=f"sqlite:///{PATH}"
        ) as store:
            records = await store.sweep([{"n": n} for n in range(40)])
            for steps, record in enumerate(records):
                delete = asyncio.create_task(store.delete(hash=record.id, remove_file=True))
                for _ in range(steps):
                    await asyncio.sleep(0)
                delete.cancel()
                await asyncio.wait({delete})
                is_stored = await store.retrieve({"n": record.n}) is not None
                assert is_stored == Path(record.result_file).exists()

    asyncio.run(main())


def test_records_give_a_path_that_works_after_a_change_of_directory(
    make_store: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a run as well as that of a hit."""
    store = make_store()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    ran = store.run_or_retrieve({"n": 1})
    hit = store.run_or_retrieve({"n": 1})
    assert ran.result_file == hit.result_file
    assert Path(ran.result_file).exists()
    monkeypatch.chdir(folder)
    assert store.retrieve({"n": 1}).result_file == f"./results/{ran.id}.npy"


def test_a_store_whose_loop_is_gone_can_be_closed_and_used_again() -> None:
    """Two ``asyncio.run`` with one store: the error says what to do, and doing it works."""
    store = AsyncStore(simulate, Point, file_suffix=".npy", db_url="sqlite://")
    asyncio.run(store.run_or_retrieve({"n": 1}))

    async def second() -> None:
        with pytest.raises(WrongLoopError, match="that loop is gone"):
            await store.retrieve({"n": 1})
        await store.aclose()
        async with store:
            assert (await store.run_or_retrieve({"n": 1})).n == 1

    asyncio.run(second())


def test_records_are_independent_of_each_other() -> None:
    """Of one run, of one hit, and of one sweep: what is done to one is not seen in another."""

    async def main() -> None:
        async with AsyncStore(
            simulate, Point, file_suffix=".npy", db_url=f"sqlite:///{PATH}"
        ) as store:
            both = await asyncio.gather(
                *(store.run_or_retrieve({"n": 1}, tags=["a"]) for _ in range(2))
            )
            hits = await asyncio.gather(*(store.run_or_retrieve({"n": 1}) for _ in range(3)))
            swept = await store.sweep([{"n": 2}, {"n": 3}], custom_data={"tags": ["a"]})
            records = [*both, *hits, *swept]
            assert len({id(record) for record in records}) == len(records)
            for record in records:
                record.custom_data["tags"].append("b")
                assert record.custom_data["tags"] == ["a", "b"]

    asyncio.run(main())


def test_a_forced_run_needs_no_old_results_folder(make_store: Callable[..., Any]) -> None:
    """``run`` always runs: also where what is stored lies in a folder that is gone."""
    first = make_store(results_dir="one").run({"n": 1})
    os.rename("one", "gone")
    again = make_store(results_dir="two").run({"n": 1})
    assert (again.id, again.created_at) == (first.id, first.created_at)
    assert Path(again.result_file).exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"lock_timeout": None},
        {"lock_timeout": "x"},
        {"results_dir": "a\0b"},
        {"results_dir": os.fsdecode(b"caf\xe9")},
        {"file_suffix": os.fsdecode(b".\xe9")},
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(bad: dict[str, Any]) -> None:
    """Which one it is, and its value."""
    (name,) = bad
    with pytest.raises(SettingsError, match=name):
        Store(simulate, Point, **bad)


def test_a_result_to_register_must_be_a_path(store: Any) -> None:
    """Nothing is stored."""
    with pytest.raises(ParamsError, match="result_file"):
        store.register({"n": 1}, None)
    odd = os.fsdecode(b"caf\xe9.npy")
    Path(odd).write_bytes(b"x")
    with pytest.raises(ParamsError, match="no UTF-8"):
        store.register({"n": 1}, odd)


def test_options_of_a_later_version_are_told(make_store: Callable[..., Any]) -> None:
    """So that custom data of today does not become an option unawares."""
    with pytest.warns(UserWarning, match="option 'timeout'"):
        make_store().run({"n": 1}, timeout=3)


def test_a_folder_that_cannot_be_synced_leaves_no_claim(
    make_store: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is typed and names the run; the finished work stays staged."""

    def fail(path: str) -> None:
        # An input/output error of a disk cannot be made by hand.
        raise OSError(errno.EIO, "Input/output error", path)

    def slow(params: dict[str, Any]) -> None:
        simulate(params)
        threading.Event().wait(0.11)  # long enough to be worth an fsync

    store = make_store(runner=slow)
    with monkeypatch.context() as patch:
        patch.setattr("entropic.artifacts.fsync", fail)
        with pytest.raises(ResultsDirError) as caught:
            store.run({"n": 1})
    assert any("while running" in note for note in caught.value.__notes__)
    with closing(sqlite3.connect(PATH)) as database:
        rows = database.execute("SELECT state, owner FROM entropic_runs").fetchall()
    assert rows == [("failed", None)]
    assert [p.name for p in (folder / "results/.entropic/staging").iterdir()]


class Unprintable(str):
    """A text whose ``repr`` fails."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_a_value_that_cannot_be_printed_hides_no_failure(make_store: Callable[..., Any]) -> None:
    """The runner's own exception is raised, and the claim is given back."""

    class Labelled(Base):
        __tablename__ = "labelled"
        options: Mapped[dict[str, Any]]

    def fail(params: dict[str, Any]) -> None:
        raise ArithmeticError("diverged")

    store = make_store(runner=fail, result_cls=Labelled)
    with pytest.raises(ArithmeticError, match="diverged"):
        store.run({"options": {"text": Unprintable("x")}})


def test_requests_that_share_a_failed_call_get_an_error_each() -> None:
    """Each is told which run it is about: one object for all would tell all of them."""

    async def main() -> None:
        async def fail(items: list[int]) -> list[int]:
            raise DatabaseBusyError("locked")

        batcher: Batcher[int, int] = Batcher(fail, 10)
        errors = await asyncio.gather(*(batcher.ask([n]) for n in range(5)), return_exceptions=True)
        assert {type(error) for error in errors} == {DatabaseBusyError}
        assert len({id(error) for error in errors}) == 5

    asyncio.run(main())
