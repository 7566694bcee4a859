"""The pipeline as a store shows it: inputs, failures of a sweep, ids of the caller's own."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, IdConflictError, ParamsError
from tests import databases
from tests.simulations import Point, calls, simulate

pytestmark = pytest.mark.usefixtures("database")


def test_one_id_for_two_sets_of_one_sweep_is_an_error(store: Any) -> None:
    """Neither set may be given the other's record."""
    with pytest.raises(IdConflictError, match="two parameter sets"):
        store.sweep([{"id": "mine", "n": 1}, {"id": "mine", "n": 2}])
    assert [r.n for r in store.sweep([{"id": "mine", "n": 1}, {"id": "mine", "n": 1.0}])] == [1]


def test_one_id_for_two_sets_at_the_same_time_is_an_error() -> None:
    """The second request must not be given the record of the first."""

    async def main() -> None:
        started, release = threading.Event(), threading.Event()

        def slow(params: dict[str, Any]) -> None:
            started.set()
            release.wait(30)
            simulate(params)

        async with AsyncStore(slow, Point, file_suffix=".npy", db_url=databases.url()) as store:
            first = asyncio.create_task(store.run_or_retrieve({"id": "mine", "n": 1}))
            await asyncio.to_thread(started.wait, 30)
            with pytest.raises(IdConflictError, match="other parameters"):
                await store.run_or_retrieve({"id": "mine", "n": 2})
            release.set()
            assert (await first).n == 1

    asyncio.run(main())


def test_an_id_that_equals_the_computed_one_is_the_same_run(store: Any) -> None:
    """An id of the caller's own may be what entropic would have chosen."""
    record = store.run_or_retrieve({"n": 1})
    assert store.run_or_retrieve({"id": record.id, "n": 1}).created_at == record.created_at
    assert calls() == 1


@pytest.mark.parametrize("bad", [{"n": 1}, "n", 5, None])
def test_a_sweep_over_no_iterable_of_dicts_is_an_error(store: Any, bad: Any) -> None:
    """A single dict is the classic: the message says what to write."""
    with pytest.raises(ParamsError, match="iterable of dicts"):
        store.sweep(bad)


def test_a_bad_set_is_named_by_its_position(store: Any) -> None:
    """What was given before it in the same slice has not run."""
    with pytest.raises(ParamsError, match="no parameter 'm'") as caught:
        store.sweep([{"n": 1}, {"n": 2}, {"m": 3}])
    assert "position 2" in "".join(caught.value.__notes__)
    with pytest.raises(ParamsError, match="must be a dict"):
        store.sweep([{"n": 1}, 5])


@databases.either
def test_an_input_that_raises_half_way_keeps_what_ran(make_store: Callable[..., Any]) -> None:
    """The error goes through, and what ran before is stored."""
    store = make_store()

    def inputs() -> Iterator[dict[str, Any]]:
        yield from ({"n": n} for n in range(1000))
        raise OSError("the list of sets ended early")

    with pytest.raises(OSError, match="ended early"):
        store.sweep(inputs())
    ran = calls()
    assert ran > 0
    store.sweep({"n": n} for n in range(1000))
    assert calls() == 1000


def test_an_async_iterable_is_an_input() -> None:
    """Also one that needs a result of the sweep's own loop."""

    async def inputs() -> AsyncIterator[dict[str, Any]]:
        for n in (3, 1, 3):
            await asyncio.sleep(0)
            yield {"n": n}

    async def main() -> list[int]:
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            return [record.n for record in await store.sweep(inputs())]

    assert asyncio.run(main()) == [3, 1]


@databases.either
@pytest.mark.parametrize("kind", ["store", "store-threads", "async-threads", "async-loop"])
def test_after_a_failure_nothing_more_is_started(kind: str, make_store: Callable[..., Any]) -> None:
    """What is at work ends and is kept; the runner's own exception is raised."""

    def fragile(params: dict[str, Any]) -> None:
        simulate(params)
        if params["n"] == 30:
            raise ArithmeticError("diverged")

    async def fragile_async(params: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        fragile(params)

    runner = fragile_async if kind == "async-loop" else fragile
    store = make_store(kind, runner=runner, max_workers=2)
    with pytest.raises(ArithmeticError, match="diverged") as caught:
        store.sweep({"n": n} for n in range(200))
    assert any("'n': 30" in note for note in caught.value.__notes__)
    ran = calls()
    # Thirty before it. Until the loop has heard of it, the other worker of a pool goes on.
    assert ran == 31 if kind == "store" else 31 <= ran < 50
    stored = [n for n in range(200) if store.retrieve({"n": n}) is not None]
    assert len(stored) == ran - 1


def test_a_cancelled_sweep_leaves_a_store_that_the_next_call_uses(folder: Path) -> None:
    """What finished is kept, nothing stays claimed or staged."""

    async def main() -> None:
        fifth = asyncio.Event()

        async def slow(params: dict[str, Any]) -> None:
            simulate(params)
            if params["n"] >= 5:
                fifth.set()
                await asyncio.Event().wait()

        async with AsyncStore(
            slow, Point, file_suffix=".npy", max_workers=2, db_url=databases.url()
        ) as store:
            sweep = asyncio.create_task(store.sweep([{"n": n} for n in range(20)]))
            await asyncio.wait_for(fifth.wait(), 30)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
            records = await store.sweep([{"n": n} for n in range(4)])
            assert len(records) == 4
            assert max(calls(record.id) for record in records) == 1

    # One that had finished may still have been on its way when the sweep was cancelled.
    asyncio.run(main())
    assert not any((folder / "results/.entropic/staging").iterdir())
    assert databases.ask("SELECT id FROM entropic_runs WHERE owner IS NOT NULL") == []


@databases.either
def test_a_sweep_larger_than_a_batch(make_store: Callable[..., Any]) -> None:
    """Several slices of input, each looked up and run, in order."""
    store = make_store()
    first = store.sweep({"n": n} for n in range(0, 1200, 2))
    records = store.sweep({"n": n} for n in range(1200))
    assert [record.n for record in records] == list(range(1200))
    assert calls() == 1200
    assert {r.id for r in first} <= {r.id for r in records}


def test_a_slow_input_does_not_keep_the_first_run_waiting(make_store: Callable[..., Any]) -> None:
    """The runner is called while the input is still being read."""
    running = threading.Event()

    def note(params: dict[str, Any]) -> None:
        running.set()
        simulate(params)

    def inputs() -> Iterator[dict[str, Any]]:
        yield {"n": 0}
        # A list that is long in coming: it waits for the first run, and would wait for ever if
        # the first run waited for it.
        for n in range(1, 5):
            assert running.wait(30)
            yield {"n": n}

    store = make_store("async-threads", runner=note)

    async def sweep() -> list[Point]:
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def fed() -> AsyncIterator[dict[str, Any]]:
            while (item := await queue.get()) is not None:
                yield item

        def feed(loop: asyncio.AbstractEventLoop) -> None:
            for item in itertools.chain(inputs(), [None]):
                loop.call_soon_threadsafe(queue.put_nowait, item)

        feeder = threading.Thread(target=feed, args=(asyncio.get_running_loop(),))
        feeder.start()
        try:
            swept: list[Point] = await store.store.sweep(fed())
            return swept
        finally:
            feeder.join(30)

    records: list[Point] = store.run_here(sweep())
    assert [record.n for record in records] == [0, 1, 2, 3, 4]
