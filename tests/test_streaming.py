"""``as_completed``: one record for each set of any input, as they are ready, in bounded memory."""

import asyncio
import gc
import itertools
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, Store, StoreClosedError
from entropic._portal import portal
from tests import databases
from tests.conftest import KINDS
from tests.simulations import Point, calls, simulate, simulate_async

pytestmark = pytest.mark.usefixtures("database")

DEADLINE = 20.0


def sets(*numbers: int) -> list[dict[str, Any]]:
    """A parameter set for each number."""
    return [{"n": n} for n in numbers]


def counted(numbers: Iterator[int], read: list[int]) -> Iterator[dict[str, Any]]:
    """An input that says how far it has been read."""
    for n in numbers:
        read.append(n)
        yield {"n": n}


def test_every_set_of_the_input_gets_a_record(store: Any) -> None:
    """Also one that is there twice; each record is the taker's own."""
    store.run_or_retrieve({"n": 7})
    records = list(store.as_completed(sets(1, 7, 2, 1, 7, 1)))
    assert Counter(record.n for record in records) == {1: 3, 7: 2, 2: 1}
    assert calls() == 3
    assert len({id(record) for record in records}) == 6
    assert all(Path(record.result_file).is_file() for record in records)


def test_hits_come_first(store: Any) -> None:
    """What is stored need not wait for what has to run."""
    store.run_or_retrieve({"n": 2})
    assert [record.n for record in store.as_completed(sets(1, 2))] == [2, 1]


def test_an_empty_input_has_no_records(store: Any) -> None:
    """And no errors."""
    assert list(store.as_completed([])) == []


@databases.either
@pytest.mark.parametrize("kind", KINDS)
def test_an_endless_input_is_read_only_as_fast_as_records_are_taken(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """A few more are read than there are records, so that the workers have something to do."""
    read: list[int] = []
    store = make_store(kind)
    records = store.as_completed(counted(itertools.count(), read))
    taken = [next(records) for _ in range(10)]
    records.close()
    assert len(taken) == 10
    assert len(read) <= 10 + 2 * 256
    assert calls() >= 10


def stored(store: Any, n: int) -> bool:
    """Whether this set is."""
    return store.retrieve({"n": n}) is not None


def test_the_calling_thread_runs_only_what_is_asked_for(make_store: Callable[..., Any]) -> None:
    """In between it is the caller's own: nothing waits for it."""
    store = make_store("store")
    read: list[int] = []
    records = store.as_completed(counted(itertools.count(), read))
    for count in range(1, 6):
        next(records)
        assert calls() == count
    assert len(read) <= 20
    # Not even a run that the thread asks for while the stream rests.
    other = store.run_or_retrieve({"n": read[-1]})
    assert other.n == read[-1]
    assert {next(records).n for _ in range(3)}
    records.close()


@pytest.mark.parametrize("kind", ["store", "store-threads"])
def test_the_loop_body_may_use_the_store(kind: str, make_store: Callable[..., Any]) -> None:
    """Also for what the stream is about to run, or is running."""
    store = make_store(kind)
    for record in store.as_completed(sets(*range(20))):
        assert store.run_or_retrieve({"n": (record.n + 1) % 20}).n == (record.n + 1) % 20
        assert store.sweep(sets(0, 19))
    assert calls() == 20


@pytest.mark.parametrize("kind", ["store", "store-threads"])
def test_another_thread_is_not_kept_waiting_by_a_stream_that_rests(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """What it wants runs on its own thread, or is finished where it is."""
    store = make_store(kind)
    records = store.as_completed(sets(*range(8)))
    next(records)
    found: list[Point] = []
    other = threading.Thread(target=lambda: found.extend(store.sweep(sets(*range(8)))))
    other.start()
    other.join(DEADLINE)
    assert not other.is_alive()
    assert [record.n for record in found] == list(range(8))
    assert len(list(records)) == 7
    assert calls() == 8


@pytest.mark.parametrize("kind", ["async-threads", "store-threads"])
def test_what_is_under_way_goes_on_while_nobody_takes(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """The workers do not rest while a record is looked at."""
    ran = [threading.Event() for _ in range(3)]

    def note(params: dict[str, Any]) -> None:
        simulate(params)
        ran[params["n"]].set()

    store = make_store(kind, runner=note, max_workers=1)
    records = store.as_completed(sets(0, 1, 2))
    first = next(records)
    if kind == "async-threads":
        store.run_here(until(lambda: all(event.is_set() for event in ran)))
    assert all(event.wait(DEADLINE) for event in ran)
    assert sorted([first.n, *(record.n for record in records)]) == [0, 1, 2]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until something is so."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def test_an_async_input_may_wait_for_the_records() -> None:
    """A search asks for the next set only when it has seen the last record."""

    async def search() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        queue.put_nowait(0)
        seen = []

        async def asked() -> AsyncIterator[dict[str, Any]]:
            while (n := await queue.get()) < 5:
                yield {"n": n}

        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            async for record in store.as_completed(asked()):
                seen.append(record.n)
                queue.put_nowait(record.n + 1)
        return seen

    assert asyncio.run(search()) == [0, 1, 2, 3, 4]


def test_leaving_early_leaves_nothing_behind(folder: Path) -> None:
    """No task, no claim, no staging folder; what is finished is kept."""

    async def leave() -> None:
        begun = asyncio.Event()

        async def runner(params: dict[str, Any]) -> None:
            if params["n"] > 2:
                begun.set()
                await asyncio.Event().wait()
            await simulate_async(params)

        async with AsyncStore(
            runner, Point, file_suffix=".npy", max_workers=4, db_url=databases.url()
        ) as store:
            before = asyncio.all_tasks()
            records = store.as_completed({"n": n} for n in itertools.count())
            taken = [(await anext(records)).n for _ in range(3)]
            await begun.wait()
            await records.aclose()
            # The one that gave claims back may need another turn of the loop to end.
            await until(lambda: asyncio.all_tasks() == before)
            assert sorted(taken) == [0, 1, 2]
            assert [await store.retrieve({"n": n}) is not None for n in range(4)] == [
                True,
                True,
                True,
                False,
            ]

    asyncio.run(leave())
    assert not list((folder / "results/.entropic/staging").iterdir())


@databases.either
@pytest.mark.parametrize("kind", KINDS)
def test_a_forgotten_stream_is_left_when_it_is_collected(
    kind: str, make_store: Callable[..., Any], folder: Path
) -> None:
    """A ``break`` is enough, as with any generator."""
    store = make_store(kind)
    for record in store.as_completed({"n": n} for n in itertools.count()):
        assert record.n is not None
        break
    gc.collect()
    store.close()
    assert not list((folder / "results/.entropic/staging").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_closing_the_store_ends_a_stream_that_rests(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """It does not wait for somebody to take the next record; what is there can still be taken."""
    store = make_store(kind)
    records = store.as_completed({"n": n} for n in itertools.count())
    next(records)
    store.close()

    def take_all() -> None:
        for _ in records:
            pass

    with pytest.raises(StoreClosedError):
        take_all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_comes_after_the_records_of_what_was_at_work(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """Nothing more is started, and nothing that was finished is lost."""

    async def fail_async(params: dict[str, Any]) -> None:
        fail(params)

    def fail(params: dict[str, Any]) -> None:
        if params["n"] == 3:
            raise ZeroDivisionError
        simulate(params)

    store = make_store(kind, runner=fail_async if kind == "async-loop" else fail, max_workers=1)
    taken: list[int] = []

    def take_all() -> None:
        records = store.as_completed({"n": n} for n in itertools.count())
        taken.extend(record.n for record in records)

    with pytest.raises(ZeroDivisionError):
        take_all()
    # Where claims are made side by side, a run may begin before one that was asked for earlier.
    assert len(taken) == calls() < 10
    assert 3 not in taken
    assert [n for n in range(20) if stored(store, n)] == sorted(taken)


def test_an_input_that_raises_gives_what_was_read_of_it(make_store: Callable[..., Any]) -> None:
    """And then its error."""

    def inputs() -> Iterator[dict[str, Any]]:
        yield from sets(0, 1)
        raise ZeroDivisionError

    store = make_store("store")
    store.sweep(sets(0, 1))
    taken: list[int] = []

    def take_all() -> None:
        taken.extend(record.n for record in store.as_completed(inputs()))

    with pytest.raises(ZeroDivisionError):
        take_all()


def test_a_stream_remembers_only_what_is_under_way(make_store: Callable[..., Any]) -> None:
    """Neither records nor parameter sets that are done."""
    store = make_store("async-threads")
    store.sweep(sets(*range(50)))
    taken: list[weakref.ref[Any]] = []
    for record in store.as_completed({"n": n % 50} for n in range(5000)):
        if len(taken) < 50:
            taken.append(weakref.ref(record))
    gc.collect()
    del record
    assert not [reference for reference in taken if reference() is not None]


@pytest.mark.nightly
@pytest.mark.timeout(100)
def test_a_long_stream_of_hits_takes_no_memory(make_store: Callable[..., Any]) -> None:
    """Four times as many records do not take even twice as much of it."""
    store = make_store("async-threads")
    store.sweep(sets(*range(100)))

    def growth(count: int) -> int:
        tracemalloc.start()
        for _ in store.as_completed({"n": n % 100} for n in range(count)):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    growth(1500)
    # Loosely: how much garbage there is at its peak depends on when the collector comes.
    assert growth(6000) < growth(1500) * 2


def test_ctrl_c_in_a_stream(folder: Path) -> None:
    """The run that was at work is gone, and the next call uses the store."""

    def interrupt(params: dict[str, Any]) -> None:
        if params["n"] == 1 and not Path("interrupted").exists():
            Path("interrupted").touch()
            raise KeyboardInterrupt
        simulate(params)

    with Store(interrupt, Point, file_suffix=".npy", db_url=databases.url()) as store:
        records = store.as_completed(sets(0, 1, 2))
        assert next(records).n == 0
        with pytest.raises(KeyboardInterrupt):
            next(records)
        assert list(records) == []
        assert not list((folder / "results/.entropic/staging").iterdir())
        assert [record.n for record in store.sweep(sets(0, 1, 2))] == [0, 1, 2]


def test_a_stream_that_was_left_reads_no_more(make_store: Callable[..., Any]) -> None:
    """Also when a runner of it, in a thread, fails after that."""
    go = threading.Event()
    read: list[int] = []

    def run(params: dict[str, Any]) -> None:
        if params["n"]:
            go.wait(DEADLINE)
            raise ValueError(params["n"])
        simulate(params)

    def sets() -> Iterator[dict[str, Any]]:
        for n in itertools.count():
            read.append(n)
            yield {"n": n}

    async def main() -> None:
        async with AsyncStore(
            run, Point, file_suffix=".npy", max_workers=2, db_url=databases.url()
        ) as store:
            stream = store.as_completed(sets(), on_error="skip")
            assert (await anext(stream)).n == 0
            await stream.aclose()
            seen = len(read)
            go.set()
        assert len(read) == seen

    asyncio.run(main())


@databases.either
def test_a_stream_of_hits_takes_few_ways_to_the_calling_thread(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each record would take several times as long as the hits."""
    store = make_store()
    store.sweep([{"n": n} for n in range(1000)])
    ways: list[object] = []
    wait = portal._wait_for

    def noted(*args: Any, **kwargs: Any) -> Any:
        ways.append(args)
        return wait(*args, **kwargs)

    monkeypatch.setattr(portal, "_wait_for", noted)
    assert [record.n for record in store.as_completed(sets(*range(1000)))] == [*range(1000)]
    assert 0 < len(ways) < 100
