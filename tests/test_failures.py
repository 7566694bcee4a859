"""Runs that fail: what that means for the others of a sweep, trying again, what is on record."""

import asyncio
import itertools
import logging
import math
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entropic import (
    AsyncStore,
    ParamsError,
    Recovered,
    RemoteRunError,
    ResultMissingError,
    RowRefusedError,
    RunCycleError,
    SettingsError,
    Store,
    SweepError,
)
from tests import databases
from tests.conftest import KINDS
from tests.scripts import DEADLINE
from tests.simulations import Point, calls, mark_call, simulate, simulate_async

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("database")]


def sets(count: int) -> list[dict[str, Any]]:
    """So many parameter sets."""
    return [{"n": n} for n in range(count)]


class OddError(Exception):
    """What the runners below raise for odd numbers."""


def fail_odd(params: dict[str, Any]) -> None:
    """A runner that fails for odd numbers."""
    if params["n"] % 2:
        mark_call(params)
        raise OddError(params["n"])
    simulate(params)


async def fail_odd_async(params: dict[str, Any]) -> None:
    """The same."""
    fail_odd(params)


def runner_of(kind: str, runner: Callable[[dict[str, Any]], None]) -> Any:
    """A runner as this kind of store takes it."""

    async def run(params: dict[str, Any]) -> None:
        runner(params)

    return run if kind == "async-loop" else runner


@pytest.fixture(params=KINDS)
def odd_store(request: pytest.FixtureRequest, make_store: Callable[..., Any]) -> Any:
    """A store of every kind whose runs of odd numbers fail."""
    return make_store(request.param, runner=runner_of(request.param, fail_odd))


def test_finish_runs_all_others_and_then_raises_what_failed(odd_store: Any) -> None:
    """With the records in first-seen order, and all that is known of each failure."""
    with pytest.raises(SweepError) as caught:
        odd_store.sweep([{"n": 3}, *sets(6)], on_error="finish")
    error = caught.value
    assert [record.n for record in error.records] == [0, 2, 4]
    assert sorted(failure.params["n"] for failure in error.failures) == [1, 3, 5]
    for failure in error.failures:
        assert isinstance(failure.exception, OddError)
        assert failure.exception.args == (failure.params["n"],)
        assert failure.exception in error.exceptions
        assert any(failure.id in note for note in failure.exception.__notes__)
        assert "fail_odd" in failure.traceback
        assert failure.attempts == 1
        assert len(failure.id) == 16
    assert "3 runs failed" in str(error)
    assert calls() == 6


def test_what_finish_raises_can_be_taken_apart_and_pickled(odd_store: Any) -> None:
    """It is a group of what the runners raised."""
    found: list[int] = []
    try:
        odd_store.sweep(sets(4), on_error="finish")
    except* OddError as group:
        found += [failure.params["n"] for failure in group.failures]  # type: ignore[attr-defined]
        twin = pickle.loads(pickle.dumps(group))
        assert [record.n for record in twin.records] == [0, 2]
    assert sorted(found) == [1, 3]


def test_finish_without_failures_is_a_plain_sweep(odd_store: Any) -> None:
    """Nothing is raised."""
    assert [r.n for r in odd_store.sweep([{"n": 0}, {"n": 2}], on_error="finish")] == [0, 2]


def test_skip_returns_the_others_and_says_how_many_are_missing(
    odd_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning, once; what failed is on record."""
    caplog.set_level(logging.WARNING, "entropic")
    assert [record.n for record in odd_store.sweep(sets(5), on_error="skip")] == [0, 2, 4]
    assert [record.message for record in caplog.records] == [
        "2 runs failed and left out; the store's failures() lists them"
    ]
    assert sorted(failure.params["n"] for failure in odd_store.failures()) == [1, 3]


def test_raise_stops_at_the_first_failure(odd_store: Any) -> None:
    """The default."""
    with pytest.raises(OddError) as caught:
        odd_store.sweep(({"n": 2 * n + 1} for n in itertools.count()), max_workers=1)
    assert calls() < 10
    assert any("'n': " in note for note in caught.value.__notes__)


@pytest.mark.parametrize("on_error", ["finish", "skip"])
def test_a_stream_goes_on_past_failures(odd_store: Any, on_error: str) -> None:
    """And raises at its end, where that is asked for."""
    taken: list[int] = []

    def take_all() -> None:
        records = odd_store.as_completed(sets(6), on_error=on_error)
        taken.extend(record.n for record in records)

    if on_error == "finish":
        with pytest.raises(SweepError) as caught:
            take_all()
        assert sorted(failure.params["n"] for failure in caught.value.failures) == [1, 3, 5]
        assert not caught.value.records
    else:
        take_all()
    assert sorted(taken) == [0, 2, 4]


@pytest.mark.parametrize("on_error", ["raise", "finish", "skip"])
def test_bad_input_ends_a_sweep_whatever_failures_do(odd_store: Any, on_error: str) -> None:
    """What was read before it has run, and is kept."""

    def inputs() -> Iterator[dict[str, Any]]:
        yield {"n": 0}
        yield {"m": 1}

    with pytest.raises(ParamsError) as caught:
        odd_store.sweep(inputs(), on_error=on_error)
    assert "position 1" in " ".join(caught.value.__notes__)

    def broken() -> Iterator[dict[str, Any]]:
        yield {"n": 2}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        odd_store.sweep(broken(), on_error=on_error)


def test_a_missing_result_is_a_failure_as_any_other(make_store: Callable[..., Any]) -> None:
    """The runner is to blame for it."""

    def forget(params: dict[str, Any]) -> None:
        if params["n"] != 1:
            simulate(params)

    store = make_store(runner=forget)
    with pytest.raises(SweepError) as caught:
        store.sweep(sets(3), on_error="finish")
    assert [type(failure.exception) for failure in caught.value.failures] == [ResultMissingError]
    assert [record.n for record in caught.value.records] == [0, 2]


def test_a_failure_is_not_a_result(odd_store: Any) -> None:
    """The next call tries again."""
    for _ in range(2):
        with pytest.raises(SweepError):
            odd_store.sweep([{"n": 1}], on_error="finish")
    assert calls() == 2
    (failure,) = odd_store.failures()
    assert failure.attempts == 2


def failing_times(times: int) -> Callable[[dict[str, Any]], None]:
    """A runner that fails so many times for each set, and then does not."""
    tried: dict[int, int] = {}

    def run(params: dict[str, Any]) -> None:
        tried[params["n"]] = tried.get(params["n"], 0) + 1
        if tried[params["n"]] <= times:
            mark_call(params)
            raise OddError(tried[params["n"]])
        simulate(params)

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_fails_is_tried_again(kind: str, make_store: Callable[..., Any]) -> None:
    """As often as the store says, with nothing left of the tries in vain."""
    store = make_store(kind, runner=runner_of(kind, failing_times(2)), retries=2)
    assert store.run_or_retrieve({"n": 1}).n == 1
    assert [record.n for record in store.sweep(sets(3))] == [0, 1, 2]
    assert calls() == 9
    assert store.failures() == []
    assert not list(Path("results/.entropic/staging").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_failure_counts(kind: str, make_store: Callable[..., Any]) -> None:
    """With how many there were."""
    store = make_store(kind, runner=runner_of(kind, failing_times(5)))
    with pytest.raises(SweepError) as caught:
        store.sweep(sets(1), on_error="finish", retries=2)
    (failure,) = caught.value.failures
    assert failure.attempts == 3
    assert failure.exception.args == (3,)
    assert calls() == 3


def test_a_call_may_do_without_the_stores_retries(make_store: Callable[..., Any]) -> None:
    """Its own number counts, 0 included."""
    store = make_store(runner=failing_times(1), retries=3)
    with pytest.raises(OddError):
        store.sweep(sets(1), retries=0)
    assert calls() == 1


def test_who_joins_a_run_that_is_tried_again_gets_its_record() -> None:
    """One run, one outcome."""

    async def main() -> None:
        runner = failing_times(1)

        async def run(params: dict[str, Any]) -> None:
            runner(params)

        async with AsyncStore(
            run, Point, file_suffix=".npy", retries=1, db_url=databases.url()
        ) as store:
            records = await asyncio.gather(*(store.run_or_retrieve({"n": 1}) for _ in range(20)))
        assert {record.n for record in records} == {1}
        assert calls() == 2

    asyncio.run(main())


def test_a_run_that_waits_for_its_next_try_is_left_at_once() -> None:
    """A cancelled sweep leaves no claim, and does not wait."""

    async def main() -> None:
        failed = asyncio.Event()

        async def run(params: dict[str, Any]) -> None:
            failed.set()
            raise OddError

        async with AsyncStore(
            run, Point, file_suffix=".npy", retries=50, db_url=databases.url()
        ) as store:
            sweep = asyncio.create_task(store.sweep(sets(4)))
            await failed.wait()
            sweep.cancel()
            async with asyncio.timeout(5):
                await asyncio.wait({sweep})
            assert sweep.cancelled()

    asyncio.run(main())


def test_a_circle_is_not_tried_again(make_store: Callable[..., Any]) -> None:
    """It would be one each time."""

    def ask(params: dict[str, Any]) -> None:
        mark_call(params)
        store.run_or_retrieve({"n": params["n"]})

    store = make_store(runner=ask, retries=5)
    with pytest.raises(RunCycleError):
        store.run_or_retrieve({"n": 1})
    assert calls() == 1


def test_failures_on_record_are_told_as_text(odd_store: Any) -> None:
    """Which run, what was raised, and where; nothing is unpickled."""
    assert odd_store.failures() == []
    odd_store.sweep([{"n": 1, "dt": math.inf}, {"n": 3, "label": "x"}], on_error="skip")
    failures = {failure.params["n"]: failure for failure in odd_store.failures()}
    assert dict(failures[1].params) == {"n": 1, "dt": math.inf, "label": None}
    assert dict(failures[3].params) == {"n": 3, "dt": 0.5, "label": "x"}
    error = failures[3].exception
    assert isinstance(error, RemoteRunError)
    assert error.type_name == "tests.test_failures.OddError"
    assert str(error) == "3"
    assert error.id == failures[3].id
    assert "fail_odd" in failures[3].traceback
    assert pickle.loads(pickle.dumps(failures[3])).id == failures[3].id


def test_a_failure_is_off_the_record_once_its_run_has_succeeded(
    make_store: Callable[..., Any],
) -> None:
    """Or has been registered."""
    store = make_store(runner=failing_times(1))
    store.sweep(sets(2), on_error="skip")
    assert len(store.failures()) == 2
    store.run_or_retrieve({"n": 0})
    Path("made").write_text("result")
    store.register({"n": 1}, "made")
    assert store.failures() == []


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"on_error": "ignore"}, "'raise', 'finish', 'skip', not 'ignore'"),
    ({"retries": -1}, "retries must be a whole number, 0 or more, not -1"),
    ({"retries": 1.5}, "not 1.5"),
    ({"timeout": 0}, "timeout must be more than 0 seconds, not 0"),
    ({"timeout": math.nan}, "not nan"),
    ({"max_workers": 0}, "max_workers must be a whole number, 1 or more, not 0"),
    ({"max_workers": True}, "not True"),
    ({"executor": "threads"}, "not 'threads'"),
    ({"executor": 4}, "not 4"),
    ({"client": "here"}, "dask.distributed.Client, not str"),
]


@databases.either
@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("method", ["sweep", "as_completed"])
def test_an_option_that_cannot_work_is_refused_before_anything_is_read(
    method: str, options: dict[str, Any], message: str, make_store: Callable[..., Any]
) -> None:
    """With its value, and what can be passed instead."""
    read: list[dict[str, Any]] = []

    def inputs() -> Iterator[dict[str, Any]]:
        for params in sets(3):
            read.append(params)
            yield params

    store = make_store("store-threads")
    with pytest.raises(SettingsError) as caught:
        getattr(store, method)(inputs(), **options)
    assert message in str(caught.value)
    assert not read
    assert calls() == 0


@pytest.mark.parametrize("kind", ["store", "store-threads", "async-threads"])
def test_a_timeout_that_nothing_could_keep_is_refused(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """A thread cannot be stopped; that is said before anything runs."""
    store = make_store(kind)
    with pytest.raises(SettingsError, match="cannot stop a thread"):
        store.sweep(sets(1), timeout=1)
    with pytest.raises(SettingsError, match="cannot stop a thread"):
        make_store(kind, timeout=1)
    assert len(store.sweep(sets(1), timeout=math.inf)) == 1


async def _async(items: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for item in items:
        yield item


def test_an_async_input_may_fail_runs_too() -> None:
    """Async iterables and policies go together."""

    async def main() -> None:
        async with AsyncStore(
            fail_odd_async, Point, file_suffix=".npy", db_url=databases.url()
        ) as store:
            records = await store.sweep(_async(sets(5)), on_error="skip")
            assert [record.n for record in records] == [0, 2, 4]

    asyncio.run(main())


def test_a_sweep_may_run_elsewhere_than_its_store(make_store: Callable[..., Any]) -> None:
    """And leaves the store's own executor as it is."""
    seen: list[str] = []

    def note(params: dict[str, Any]) -> None:
        import threading

        seen.append(threading.current_thread().name)
        simulate(params)

    store = make_store("store", runner=note)
    store.sweep(sets(3), executor="thread", max_workers=2)
    assert all(name.startswith("entropic-worker") for name in seen)
    seen.clear()
    store.run({"n": 1})
    assert seen == ["MainThread"]


def test_several_threads_may_sweep_with_executors_of_their_own(
    make_store: Callable[..., Any],
) -> None:
    """They join each other's runs, wherever those are."""
    store = make_store("store")
    with ThreadPoolExecutor(4) as pool:
        swept = pool.map(
            lambda workers: store.sweep(sets(20), executor="thread", max_workers=workers),
            (1, 2, 3, 4),
        )
        assert [[record.n for record in records] for records in swept] == [list(range(20))] * 4
    assert calls() == 20


def test_a_run_that_nobody_waits_for_is_not_tried_again() -> None:
    """Its runner is in a thread, and cannot be stopped; but no more than that one is."""
    begun = threading.Semaphore(0)
    go = threading.Event()

    def fail(params: dict[str, Any]) -> None:
        begun.release()
        mark_call(params)
        go.wait(DEADLINE)
        raise ValueError(params["n"])

    async def main() -> None:
        store = AsyncStore(fail, Point, file_suffix=".npy", retries=3, db_url=databases.url())
        for n, leave in enumerate(("cancel", "close")):
            go.clear()
            call = asyncio.create_task(store.run({"n": n}))
            await asyncio.to_thread(begun.acquire)
            if leave == "cancel":
                call.cancel()
                await asyncio.wait({call})
                go.set()
            closing = asyncio.create_task(store.aclose())
            for _ in range(5):  # so that the store has told the run
                await asyncio.sleep(0)
            go.set()
            await closing
            await asyncio.gather(call, return_exceptions=True)
            assert calls() == n + 1

    asyncio.run(main())


def test_two_sweeps_may_share_an_executor_that_one_of_them_leaves() -> None:
    """At whatever moment: who asks for it in the very step in which it is closed gets another."""

    async def main() -> None:
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            await store.run_or_retrieve({"n": 0})
            for turn in range(1, 49):
                there = asyncio.Event()

                async def first(there: asyncio.Event = there) -> None:
                    await store.sweep([{"n": 0}], max_workers=3, progress=lambda _: there.set())

                async def second(there: asyncio.Event = there, turn: int = turn) -> None:
                    await there.wait()
                    for _ in range(turn % 12):
                        await asyncio.sleep(0)
                    await store.sweep([{"n": turn}], max_workers=3)

                await asyncio.gather(first(), second())

    asyncio.run(main())


@databases.either
@pytest.mark.parametrize("settings", [{"max_workers": 4}, {"executor": "caller", "max_workers": 2}])
def test_more_workers_than_the_calling_thread_is_are_refused(
    make_store: Callable[..., Any], settings: dict[str, Any]
) -> None:
    """For a store and for a call; of an async runner, there may be many."""
    with pytest.raises(SettingsError, match="cannot be kept"):
        Store(simulate, Point, **settings)
    with pytest.raises(SettingsError, match="cannot be kept"):
        make_store("store").sweep([{"n": 1}], **settings)
    assert calls() == 0
    Store(simulate_async, Point, file_suffix=".npy", **settings).close()


def test_an_async_store_has_no_calling_thread_to_run_on() -> None:
    """And says so before anything is claimed."""

    async def main() -> None:
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            with pytest.raises(SettingsError, match="executor must be 'thread', 'process'"):
                await store.sweep([{"n": 1}], executor="caller")
            assert await store.failures() == []

    asyncio.run(main())


def test_the_stores_number_of_workers_holds_for_its_own_executor(
    make_store: Callable[..., Any],
) -> None:
    """Also where a call names that executor again."""
    at_once = []
    running = threading.Semaphore(3)

    def run(params: dict[str, Any]) -> None:
        with running:
            at_once.append(running._value)
            time.sleep(0.01)
            simulate(params)

    store = make_store("async-threads", runner=run, max_workers=1)
    store.sweep([{"n": n} for n in range(6)], executor="thread")
    assert at_once == [2] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_the_database_refuses_fails_alone(
    make_store: Callable[..., Any], kind: str
) -> None:
    """Also where others are stored in the same transaction; and its result is not lost by it."""
    together = threading.Barrier(4)

    def run(params: dict[str, Any]) -> None:
        simulate(params)
        if kind.endswith("threads"):
            together.wait(DEADLINE)

    store = make_store(kind, runner=runner_of(kind, run), max_workers=4)
    assert store.retrieve({"n": 0}) is None  # there are tables now
    databases.current().refuse("points", "NEW.n = 6", "six is not wanted")
    with pytest.raises(SweepError, match="1 run failed; all others are stored") as caught:
        store.sweep([{"n": n} for n in (0, 6, 1, 2)], on_error="finish", retries=2)
    (failure,) = caught.value.failures
    assert isinstance(failure.exception, RowRefusedError)
    assert "refused a row (six is not wanted)" in str(failure.exception)
    assert failure.params["n"] == 6
    assert failure.attempts == 1  # it would only be refused again
    assert [store.retrieve({"n": n}) is not None for n in (0, 6, 1, 2)] == [True, False, True, True]
    with pytest.raises(RowRefusedError):
        store.run_or_retrieve({"n": 6})
    databases.current().refuse_no_more("points")
    assert store.run_or_retrieve({"n": 6}).n == 6
    assert calls() == 4  # the result was there all the time
    assert store.recover() == Recovered()
    assert store.failures() == []


@databases.either
def test_failures_are_told_in_the_order_of_the_input() -> None:
    """Whichever of them ended first."""

    async def main() -> None:
        second_has_failed = asyncio.Event()

        async def fail(params: dict[str, Any]) -> None:
            if params["n"] == 1:
                await asyncio.wait_for(second_has_failed.wait(), 30)
            else:
                asyncio.get_running_loop().call_later(0.1, second_has_failed.set)
            raise ValueError(params["n"])

        async with AsyncStore(fail, Point, db_url=databases.url()) as store:
            with pytest.raises(SweepError) as caught:
                await store.sweep([{"n": 1}, {"n": 2}], max_workers=2, on_error="finish")
        assert [failure.params["n"] for failure in caught.value.failures] == [1, 2]
        assert [error.args for error in caught.value.exceptions] == [(1,), (2,)]

    asyncio.run(main())
