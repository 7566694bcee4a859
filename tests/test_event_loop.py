"""``AsyncStore`` and the loop it belongs to: never blocked, never another one, closed in order."""

import asyncio
import functools
import gc
import itertools
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
from numpy.typing import NDArray

from entropic import AsyncStore, Base, Mapped, StoreClosedError, WrongLoopError
from entropic.executors import Executors
from entropic.pipeline import Pipeline
from tests import databases
from tests.outsiders import holding, left_at, waiting
from tests.scripts import wait_for
from tests.simulations import Point, calls, simulate, simulate_async

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("database")]

DEADLINE = 20.0


def make(runner: Callable[..., Any] = simulate, **settings: Any) -> AsyncStore[Point]:
    """A store; by default of the small simulation."""
    usual = {"file_suffix": ".npy", "db_url": databases.url()}
    return AsyncStore(runner, Point, **{**usual, **settings})


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so, without holding the loop up."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_store_belongs_to_the_loop_that_opened_it() -> None:
    """A call from another loop says so, and what to do; the store goes on in its own."""
    store = make()
    with asyncio.Runner() as own:
        own.run(store.run_or_retrieve({"n": 1}))
        calls_of_all_kinds = [
            lambda: store.run_or_retrieve({"n": 1}),
            lambda: store.run({"n": 1}),
            lambda: store.retrieve({"n": 1}),
            lambda: store.sweep([{"n": 1}]),
            lambda: store.delete({"n": 1}),
            lambda: store.register({"n": 1}, "made.npy"),
            store.__aenter__,
        ]
        Path("made.npy").write_bytes(b"made")
        for call in calls_of_all_kinds:
            with pytest.raises(WrongLoopError, match=r"another event loop.*make a store for each"):
                asyncio.run(call())
        assert own.run(store.retrieve({"n": 1})) is not None
        own.run(store.aclose())


def test_a_closed_store_may_open_on_another_loop() -> None:
    """Closing ends the bond; closing twice, or before any call, is as good as once."""
    store = make()

    async def use() -> None:
        await store.aclose()
        assert (await store.run_or_retrieve({"n": 1})).n == 1
        await store.aclose()
        await store.aclose()
        assert (await store.run_or_retrieve({"n": 1})).n == 1
        await store.aclose()

    asyncio.run(use())
    asyncio.run(use())
    assert calls() == 1


def test_async_with_opens_and_closes() -> None:
    """It gives the store itself, and closes it after an error, too."""

    async def use() -> None:
        store = make()
        async with store as same:
            assert same is store
            await store.run_or_retrieve({"n": 1})
        with pytest.raises(ZeroDivisionError):
            async with store:
                raise ZeroDivisionError
        async with store:
            assert await store.retrieve({"n": 1}) is not None

    asyncio.run(use())
    asyncio.run(use())


def test_a_store_may_be_made_before_there_is_a_loop() -> None:
    """As a module's global, most likely; and by many tasks at once it is opened once."""
    store = make()

    async def use() -> None:
        records = await asyncio.gather(*(store.run_or_retrieve({"n": n % 5}) for n in range(50)))
        assert [record.n for record in records] == [n % 5 for n in range(50)]
        await store.aclose()

    asyncio.run(use())
    assert calls() == 5


def test_what_cannot_be_opened_is_tried_again_at_the_next_call() -> None:
    """All who came first get the error; the store is not broken by it."""
    Path("results").write_text("a file")

    async def use() -> None:
        async with make() as store:
            await store.retrieve({"n": 1})

    async def fail_together() -> None:
        store = make()
        errors = await asyncio.gather(
            *(store.retrieve({"n": 1}) for _ in range(5)), return_exceptions=True
        )
        assert {type(error).__name__ for error in errors} == {"ResultsDirError"}
        Path("results").unlink()
        assert await store.retrieve({"n": 1}) is None
        await store.aclose()

    asyncio.run(fail_together())
    asyncio.run(use())


def test_a_cancelled_opening_does_not_break_the_store() -> None:
    """The one who came first leaves; the others, and the next, have their store."""

    async def use() -> None:
        for turns in range(12):
            store = make(results_dir=f"results{turns}", db_url=f"sqlite:///{turns}.sqlite3")
            first = asyncio.create_task(store.run_or_retrieve({"n": 1}))
            second = asyncio.create_task(store.run_or_retrieve({"n": 2}))
            for _ in range(turns):
                await asyncio.sleep(0)
            first.cancel()
            assert (await second).n == 2
            assert (await store.run_or_retrieve({"n": 1})).n == 1
            await store.aclose()

    asyncio.run(use())


def test_closing_under_thread_runs_keeps_them_and_drops_those_in_line() -> None:
    """Who waits for a run at work gets its record; who waits for a worker, an error."""
    begun, go_on = threading.Event(), threading.Event()

    def runner(params: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(DEADLINE)
        simulate(params)

    async def use() -> None:
        store = make(runner, max_workers=1)
        at_work = asyncio.create_task(store.run_or_retrieve({"n": 1}))
        await until(begun.is_set)
        joined = asyncio.create_task(store.run_or_retrieve({"n": 1}))
        in_line = asyncio.create_task(store.run_or_retrieve({"n": 2}))
        flights = store._opening._task.result().pipeline._flights._flights  # type: ignore[union-attr]
        await until(lambda: sum(len(flight._waiters) for flight in flights.values()) == 3)
        closing = asyncio.create_task(store.aclose())
        with pytest.raises(StoreClosedError, match="closed while"):
            await in_line
        assert not closing.done()
        go_on.set()
        assert (await at_work).n == (await joined).n == 1
        await closing
        assert await store.retrieve({"n": 1}) is not None
        assert await store.retrieve({"n": 2}) is None
        assert calls() == 1
        await store.aclose()

    asyncio.run(use())


def test_closing_under_async_runs_stops_them() -> None:
    """Whoever waits for them gets an error that says why; nothing is left of them."""
    begun = threading.Semaphore(0)

    async def runner(params: dict[str, Any]) -> None:
        begun.release()
        await asyncio.sleep(DEADLINE)

    async def use() -> None:
        store = make(runner, max_workers=2)
        one = asyncio.create_task(store.run_or_retrieve({"n": 1}))
        two = asyncio.create_task(store.run_or_retrieve({"n": 1}))
        await until(lambda: begun.acquire(blocking=False))
        await store.aclose()
        for task in (one, two):
            with pytest.raises(StoreClosedError):
                await task
        assert os.listdir("results/.entropic/staging") == []

    asyncio.run(use())


def test_a_store_that_was_closed_under_a_call_is_reopened_by_the_next() -> None:
    """Also while the closing is still waiting for a run of before."""
    begun, go_on = threading.Event(), threading.Event()

    def runner(params: dict[str, Any]) -> None:
        if params["n"] == 1:
            begun.set()
            assert go_on.wait(DEADLINE)
        simulate(params)

    async def use() -> None:
        store = make(runner)
        at_work = asyncio.create_task(store.run_or_retrieve({"n": 1}))
        await until(begun.is_set)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        assert (await store.run_or_retrieve({"n": 2})).n == 2
        go_on.set()
        await closing
        assert (await at_work).n == 1
        assert await store.retrieve({"n": 1}) is not None
        await store.aclose()

    asyncio.run(use())


def test_a_cancelled_close_still_closes() -> None:
    """What it had begun to give back is given back; the files are closed."""

    async def use() -> None:
        for turns in range(1, 6):
            store = make()
            await store.run_or_retrieve({"n": 1})
            closing = asyncio.create_task(store.aclose())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            await until(lambda: not databases.current().connections())
            await store.aclose()

    asyncio.run(use())


class Field(Base):
    """A model with parameters that may be large."""

    __tablename__ = "fields"

    n: Mapped[int]
    array: Mapped[NDArray[np.float64] | None]
    values: Mapped[list[float] | None]


class Heart:
    """A task that beats every millisecond, and the longest time that it was kept from it."""

    def __init__(self) -> None:
        self.longest_gap = 0.0

    async def beat(self) -> None:
        """Beat until cancelled."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now


async def longest_gap(work: Awaitable[object]) -> float:
    """The longest time, in seconds, that the loop was held up during some work."""
    heart = Heart()
    beating = asyncio.create_task(heart.beat())
    await asyncio.sleep(0)
    await work
    await asyncio.sleep(0.002)
    beating.cancel()
    return heart.longest_gap


async def noise(seconds: float) -> float:
    """The longest gap of the idle loop, while a thread of this process keeps a CPU busy."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        return await longest_gap(asyncio.sleep(seconds))
    finally:
        over.set()
        thread.join()


async def assert_loop_stays_alive(
    work: Callable[[int], Awaitable[object]], allowed: float = 0.05
) -> None:
    """The work, tried a few times, holds the loop up no longer than allowed, beyond the noise.

    A few times, because other programs of the machine also hold it up: what the work itself does
    to the loop, it does each time.
    """
    seen = []
    for number in range(5):
        begun = time.perf_counter()
        gap = await longest_gap(work(number))
        usual = await noise(min(max(time.perf_counter() - begun, 0.2), 0.6))
        seen.append((gap, usual))
        if gap <= usual + allowed:
            return
    shown = ", ".join(f"{gap * 1000:.0f} ms ({usual * 1000:.0f})" for gap, usual in seen)
    pytest.fail(f"the loop was held up for {shown}")


def work_of(params: dict[str, Any]) -> None:
    """A runner that blocks for a second, or computes for one, or writes many files, or little."""
    result = Path(params["result_file"])
    match params["n"] // 1000:
        case 1:
            time.sleep(1)
        case 2:
            over = time.perf_counter() + 1
            while time.perf_counter() < over:
                pass
        case 3:
            result.mkdir()
            for number in range(500):
                (result / str(number)).write_text("x")
            return
        case 4:
            raise ZeroDivisionError
    result.write_text("x")


Fields = AsyncStore[Field]


def fields(**settings: Any) -> Fields:
    """A store of fields."""
    return AsyncStore(work_of, Field, file_suffix="", **settings)


@pytest.fixture
def no_full_collections() -> Iterator[None]:
    """Keep the garbage collector from looking at everything that was ever imported.

    That takes 50 ms and more; it is the interpreter's, and not what is measured here.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


LARGE = [
    ("array", 100_000),
    ("values", 100_000),
    pytest.param("array", 1_000_000, marks=pytest.mark.nightly),
    pytest.param("values", 1_000_000, marks=pytest.mark.nightly),
]
"""Parameters that may be large, and how many numbers there are in them."""

LARGE_LISTS = [pytest.param(*LARGE[0], marks=pytest.mark.nightly), *LARGE[1:]]
"""The same, by day without arrays."""


def with_numbers(n: int, name: str, count: int) -> dict[str, Any]:
    """A parameter set with many numbers in one of its parameters."""
    numbers = np.random.default_rng(n).random(count)
    return {"n": n, name: numbers.tolist() if name == "values" else numbers}


@databases.either
def test_the_measure_of_the_loop_sees_what_holds_it_up() -> None:
    """A tenth of a second on the loop itself is no noise."""

    async def blocking(_: int) -> None:
        await asyncio.sleep(0.01)
        time.sleep(0.1)

    async def main() -> None:
        with pytest.raises(pytest.fail.Exception, match="held up for 1"):
            await assert_loop_stays_alive(blocking)

    asyncio.run(main())


@databases.either
@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.parametrize("kind", [1, 2], ids=["sleeping", "computing"])
def test_a_runner_of_a_second_does_not_hold_the_loop_up(kind: int) -> None:
    """In a worker thread; a computing one shares the interpreter with the loop."""

    async def main() -> None:
        async with fields() as store:
            await assert_loop_stays_alive(lambda k: store.run_or_retrieve({"n": 1000 * kind + k}))

    asyncio.run(main())


@pytest.mark.usefixtures("no_full_collections")
def test_opening_and_closing_do_not_hold_the_loop_up() -> None:
    """Folders, tables and connections are made elsewhere."""

    async def once(k: int) -> None:
        async with fields(results_dir=f"r{k}", db_url=f"sqlite:///{k}.sqlite3") as store:
            await store.retrieve({"n": 1})

    asyncio.run(assert_loop_stays_alive(once))


@pytest.mark.usefixtures("no_full_collections")
def test_a_sweep_and_its_hits_do_not_hold_the_loop_up() -> None:
    """Many small parameter sets: they are read, looked up and stored a batch at a time."""

    async def main() -> None:
        async with fields() as store:

            async def twice(k: int) -> None:
                sets = [{"n": 10_000 * (k + 1) + number} for number in range(400)]
                await store.sweep(sets)
                await store.sweep(sets)

            await assert_loop_stays_alive(twice)

    asyncio.run(main())


@databases.either
@pytest.mark.usefixtures("no_full_collections")
def test_file_operations_do_not_hold_the_loop_up() -> None:
    """A result that is a folder of many files: made, summed up, run again, and removed."""

    async def main() -> None:
        async with fields() as store:

            async def all_of_them(k: int) -> None:
                await store.run_or_retrieve({"n": 3000 + k})
                await store.run({"n": 3000 + k})
                await store.retrieve({"n": 3000 + k})
                assert await store.delete({"n": 3000 + k}, remove_file=True)

            await assert_loop_stays_alive(all_of_them)

    asyncio.run(main())


@databases.either
@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.parametrize(("name", "count"), LARGE)
def test_a_large_parameter_of_a_new_run_does_not_hold_the_loop_up(name: str, count: int) -> None:
    """It is checked, hashed, written to the sidecar and stored."""

    async def main() -> None:
        async with fields() as store:
            sets = [with_numbers(n, name, count) for n in range(5)]
            await assert_loop_stays_alive(lambda k: store.run_or_retrieve(sets[k]))

    asyncio.run(main())


@databases.either
@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.parametrize(("name", "count"), LARGE)
def test_a_hit_of_a_large_parameter_does_not_hold_the_loop_up(name: str, count: int) -> None:
    """It is hashed, read and compared."""

    async def main() -> None:
        async with fields() as store:
            large = with_numbers(1, name, count)
            await store.run_or_retrieve(large)
            await assert_loop_stays_alive(lambda _: store.run_or_retrieve(large))

    asyncio.run(main())


@databases.either
@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.parametrize(("name", "count"), LARGE_LISTS)
def test_a_large_parameter_of_a_re_run_does_not_hold_the_loop_up(name: str, count: int) -> None:
    """What is stored is read again, and compared, before it is replaced."""

    async def main() -> None:
        async with fields() as store:
            large = with_numbers(1, name, count)
            await store.run_or_retrieve(large)
            await assert_loop_stays_alive(lambda _: store.run(large))

    asyncio.run(main())


@databases.either
@pytest.mark.usefixtures("no_full_collections")
@pytest.mark.parametrize(("name", "count"), LARGE_LISTS)
def test_a_large_parameter_of_a_failing_run_does_not_hold_the_loop_up(
    name: str, count: int
) -> None:
    """Its note does not write it all out."""

    async def main() -> None:
        async with fields() as store:
            large = with_numbers(4000, name, count)

            async def fail(_: int) -> None:
                with pytest.raises(ZeroDivisionError) as caught:
                    await store.run_or_retrieve(large)
                assert len("".join(caught.value.__notes__)) < 1000

            await assert_loop_stays_alive(fail)

    asyncio.run(main())


@pytest.mark.usefixtures("no_full_collections")
def test_many_sets_of_many_values_do_not_hold_the_loop_up() -> None:
    """None of them is large, and together they are."""

    async def main() -> None:
        async with fields() as store:
            values = np.random.default_rng(1).random(200).tolist()
            sets = [{"n": n, "values": values} for n in range(500)]

            async def look(_: int) -> None:
                sweep = asyncio.create_task(store.sweep(sets))
                await store.retrieve(sets[0])
                sweep.cancel()
                await asyncio.wait({sweep})

            await assert_loop_stays_alive(look)

    asyncio.run(main())


@databases.either
def test_calls_that_a_closing_store_meets_end_well_or_say_so() -> None:
    """At every moment of every kind of call: its result, or the error that names the cause."""
    chance = random.Random(3)
    Path("made.npy").write_bytes(b"made")
    numbers = itertools.count()

    async def use() -> None:
        for _ in range(40):
            store = make(chance.choice([simulate, simulate_async]))
            await store.retrieve({"n": -1})
            n = next(numbers)
            tasks = [
                asyncio.create_task(call)
                for call in (
                    store.run_or_retrieve({"n": n}),
                    store.run({"n": n}),
                    store.retrieve({"n": n}),
                    store.sweep([{"n": k} for k in range(n, n + 30)]),
                    store.delete({"n": n - 1}),
                    store.register({"n": 10_000 + n}, "made.npy"),
                )
            ]
            for _ in range(chance.randrange(150)):
                await asyncio.sleep(0)
            await store.aclose()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, StoreClosedError):
                    raise outcome

    asyncio.run(use())


def test_closing_ends_a_sweep_that_waits_for_its_input() -> None:
    """However long that may take."""

    async def sets() -> AsyncIterator[dict[str, Any]]:
        yield {"n": 1}
        await asyncio.sleep(DEADLINE)

    async def use() -> None:
        store = make()
        sweep = asyncio.create_task(store.sweep(sets()))
        await until(lambda: calls() == 1)
        async with asyncio.timeout(5):
            await store.aclose()
        with pytest.raises(StoreClosedError):
            await sweep
        assert await store.retrieve({"n": 1}) is not None
        await store.aclose()

    asyncio.run(use())


def test_a_failure_does_not_wait_for_the_next_item_of_an_input() -> None:
    """An async input may have nothing more for an hour."""

    async def sets() -> AsyncIterator[dict[str, Any]]:
        yield {"n": 1}
        await asyncio.sleep(DEADLINE)

    async def runner(params: dict[str, Any]) -> None:
        raise ZeroDivisionError

    async def use() -> None:
        async with make(runner) as store, asyncio.timeout(5):
            with pytest.raises(ZeroDivisionError):
                await store.sweep(sets())

    asyncio.run(use())


def test_a_store_whose_loop_has_ended_is_closed_on_another_one() -> None:
    """Until then it says so; after that it opens again, and nothing stays open."""
    store = make()
    asyncio.run(store.run_or_retrieve({"n": 1}))
    with pytest.raises(WrongLoopError, match="loop is gone: aclose"):
        asyncio.run(store.retrieve({"n": 1}))

    async def use() -> None:
        await store.aclose()
        await until(lambda: not databases.current().connections())
        assert (await store.run_or_retrieve({"n": 1})).n == 1
        await store.aclose()

    asyncio.run(use())
    assert calls() == 1


def test_a_store_in_use_is_not_closed_from_another_loop() -> None:
    """Its own loop is running, and would not know of it."""
    store = make()
    with asyncio.Runner() as own:
        own.run(store.run_or_retrieve({"n": 1}))
        with pytest.raises(WrongLoopError, match="close it there"):
            asyncio.run(store.aclose())
        assert own.run(store.retrieve({"n": 1})) is not None
        own.run(store.aclose())


def test_a_loop_that_ends_under_a_store_ends_without_a_complaint() -> None:
    """asyncio.run cancels what is under way: the runs are given back, and nothing hangs."""
    has_begun = threading.Event()

    async def runner(params: dict[str, Any]) -> None:
        has_begun.set()
        await asyncio.sleep(DEADLINE)

    async def leave(store: AsyncStore[Point]) -> None:
        waiting = asyncio.create_task(store.sweep([{"n": n} for n in range(5)]))
        await until(has_begun.is_set)
        assert not waiting.done()

    store = make(runner)
    begun = time.monotonic()
    asyncio.run(leave(store))
    assert time.monotonic() - begun < 5
    assert os.listdir("results/.entropic/staging") == []
    asyncio.run(store.aclose())


@databases.either
@pytest.mark.parametrize("runner", [simulate, simulate_async])
def test_a_loop_that_ends_at_any_moment_leaves_no_claim(
    runner: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for the lease of a store that is gone, in this process or on other machines."""
    make_and_close = make(runner)
    asyncio.run(make_and_close.run_or_retrieve({"n": 0}))
    asyncio.run(make_and_close.aclose())

    async def sweeps(moment: int) -> None:
        sets = [{"n": 10 * moment + n} for n in range(10)]
        # Two, as one often finds that the other has just stored what it has claimed.
        await asyncio.gather(*(make(runner).sweep(sets) for _ in range(2)))

    moment = 1
    while asyncio.run(left_at(moment, functools.partial(sweeps, moment))):
        assert databases.ask("SELECT id FROM entropic_runs WHERE owner IS NOT NULL") == [], moment
        assert caplog.record_tuples == [], moment
        moment += 11
    assert moment > 50


def test_a_loop_that_ends_as_a_store_opens_or_closes_leaves_no_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also not one that was just being made."""
    asyncio.run(left_at(10**6, make_and_close))
    moments, left_open = 0, []
    while asyncio.run(left_at(moments + 1, make_and_close)):
        moments += 1
        if databases.current().connections():
            left_open.append(moments)
            gc.collect()
    # At a moment or two a cursor is in the way, in the traceback of SQLAlchemy's first question.
    assert len(left_open) <= 3, left_open
    assert caplog.record_tuples == []
    assert moments > 20


async def make_and_close() -> None:
    """Open a store, and close it."""
    async with make():
        pass


@databases.only_sqlite
@pytest.mark.parametrize("held", [("BEGIN EXCLUSIVE",), ("BEGIN IMMEDIATE",)])
@pytest.mark.parametrize("call", ["run", "delete", "retrieve"])
def test_a_loop_that_ends_waits_for_no_lock(call: str, held: tuple[str, ...]) -> None:
    """But for a moment; another program may have it for an hour."""

    async def leave(lock: ExitStack) -> None:
        store = make()
        await store.run_or_retrieve({"n": 1})
        lock.enter_context(holding(databases.PATH, *held))
        with waiting() as meeting:
            asking = asyncio.create_task(getattr(store, call)({"n": 1}))
            if (call, *held) != ("retrieve", "BEGIN IMMEDIATE"):  # nothing keeps it from that
                await meeting.met()
                assert not asking.done()

    async def ask() -> None:
        async with make() as store:
            assert await getattr(store, call)({"n": 1})

    with ExitStack() as lock:
        begun = time.monotonic()
        asyncio.run(leave(lock))
        assert time.monotonic() - begun < 5
    assert databases.current().connections() == 0
    asyncio.run(ask())


def test_a_loop_that_ends_waits_for_a_runner_in_a_thread() -> None:
    """Which cannot be stopped: its result is stored, and nobody else runs it meanwhile."""
    has_begun, has_ended, is_late = threading.Event(), threading.Event(), threading.Event()

    def slow(params: dict[str, Any]) -> None:
        has_begun.set()
        is_late.wait(DEADLINE)
        try:
            simulate(params)
        finally:
            has_ended.set()

    async def leave(store: AsyncStore[Point]) -> None:
        waiting = asyncio.create_task(store.sweep([{"n": 1}]))
        await until(has_begun.is_set)
        assert not waiting.done()
        threading.Timer(0.3, is_late.set).start()

    async def ask(store: AsyncStore[Point]) -> Point:
        async with store:
            return await store.run_or_retrieve({"n": 1})

    store = make(slow)
    asyncio.run(leave(store))
    record = asyncio.run(ask(make(simulate)))
    assert has_ended.wait(DEADLINE)
    assert (calls(record.id), Path(record.result_file).exists()) == (1, True)
    asyncio.run(store.aclose())


@databases.either
@pytest.mark.parametrize("large", [False, True])
def test_no_thread_of_the_loops_own_is_waited_for(large: bool) -> None:
    """A server's handlers may have all of them, and each may be waiting for the store."""

    async def main() -> None:
        taken = anyio.to_thread.current_default_thread_limiter()
        taken.total_tokens = 1
        await taken.acquire()
        numbers = {"values": [0.5] * 200_000} if large else {}
        async with asyncio.timeout(60):
            for _ in range(2):
                async with fields() as store:
                    await store.run_or_retrieve({"n": 1, **numbers})
                    await store.run({"n": 1, **numbers})

    asyncio.run(main())


@databases.either
def test_what_fails_on_closing_keeps_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that does is told; the rest is released all the same."""
    before = threading.active_count()

    async def fail(_: object) -> None:
        raise OSError("as was arranged")

    async def main() -> None:
        store = make(executor="thread")
        await store.run_or_retrieve({"n": 1})
        for place, name in ((Pipeline, "stop"), (Executors, "aclose"), (Pipeline, "tidy")):
            with monkeypatch.context() as patch:
                patch.setattr(place, name, fail)
                with pytest.raises(OSError, match="as was arranged"):
                    await (store.retrieve({"n": 1}) if name == "tidy" else store.aclose())
            assert databases.current().connections() == 0
            if name == "stop":
                await store.retrieve({"n": 1})

    asyncio.run(main())
    wait_for(lambda: threading.active_count() <= before)
