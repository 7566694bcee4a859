"""A ``concurrent.futures.Executor`` of the user's own as the place to run."""

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, RunError, SettingsError, SweepError, WorkerDiedError
from tests.outsiders import _context as processes
from tests.simulations import (
    Point,
    calls,
    end_process,
    mark_call,
    simulate,
    simulate_and_then,
    simulate_async,
)

pytestmark = pytest.mark.timeout(60)

DEADLINE = 20.0

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def sets(count: int) -> list[dict[str, Any]]:
    """So many parameter sets."""
    return [{"n": n} for n in range(count)]


@pytest.fixture(scope="module")
def shared_processes() -> Iterator[ProcessPoolExecutor]:
    """A pool of two processes, for tests that leave it whole."""
    with ProcessPoolExecutor(2, mp_context=processes) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes"])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """A pool of each kind."""
    if request.param == "processes":
        yield request.getfixturevalue("shared_processes")
        return
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(params=["store", "async-threads"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both faces."""
    face: str = request.param
    return face


async def until(condition: Callable[[], bool]) -> None:
    """Look until something is so."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_sweep_runs_in_a_pool_that_stays_open(
    make_store: Callable[..., Any], kind: str, pool: Executor
) -> None:
    """Closures and lambdas too; the pool is not the store's to shut down."""
    factor = 1

    def closure(params: dict[str, Any]) -> None:
        simulate({**params, "n": params["n"] * factor})

    folder = os.getcwd()

    def runner(params: dict[str, Any]) -> None:
        os.chdir(folder)  # the pool's processes are somewhere else
        closure(params)

    store = make_store(kind, runner=runner, executor=pool)
    assert [record.n for record in store.sweep(sets(10))] == list(range(10))
    store.close()
    assert calls() == 10
    assert pool.submit(abs, -1).result(DEADLINE) == 1


def test_an_async_runner_is_awaited_in_the_pool(
    make_store: Callable[..., Any], kind: str, pool: Executor
) -> None:
    """Each run on a loop of its own."""
    folder = os.getcwd()

    async def runner(params: dict[str, Any]) -> None:
        os.chdir(folder)
        await simulate_async(params)

    store = make_store(kind, runner=runner, executor=pool)
    assert len(store.sweep(sets(4))) == 4


def test_a_runner_in_a_thread_of_the_pool_sees_the_callers_context(
    make_store: Callable[..., Any],
) -> None:
    """And is the very object that was given: what it appends to is the caller's list."""
    seen: list[tuple[str, str]] = []

    def runner(params: dict[str, Any]) -> None:
        seen.append((colour.get(), threading.current_thread().name))
        simulate(params)

    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        store = make_store(runner=runner, executor=pool)

        def call() -> None:
            colour.set("the caller's")
            store.sweep(sets(2))

        contextvars.copy_context().run(call)
    assert seen == [("the caller's", "mine_0")] * 2


@pytest.mark.parametrize(("max_workers", "most"), [(None, 3), (2, 2), (9, 3)])
def test_as_many_at_once_as_the_pool_has_and_the_call_allows(
    make_store: Callable[..., Any], max_workers: int | None, most: int
) -> None:
    """A barrier lets them go on only when so many are at work; the count is never more."""
    at_work = peak = 0
    lock = threading.Lock()
    together = threading.Barrier(most)

    def runner(params: dict[str, Any]) -> None:
        nonlocal at_work, peak
        with lock:
            at_work += 1
            peak = max(peak, at_work)
        together.wait(DEADLINE)
        simulate(params)
        with lock:
            at_work -= 1

    with ThreadPoolExecutor(3) as pool:
        make_store(runner=runner, executor=pool, max_workers=max_workers).sweep(sets(3 * most))
    assert peak == most


def test_a_run_that_needs_another_does_not_wait_for_the_pools_only_thread(
    make_store: Callable[..., Any],
) -> None:
    """It is the one that would have to run it."""
    store: Any = None

    def runner(params: dict[str, Any]) -> None:
        if params["n"]:
            store.run_or_retrieve({"n": params["n"] - 1})
        simulate(params)

    with ThreadPoolExecutor(1) as pool:
        store = make_store(runner=runner, executor=pool)
        assert store.run_or_retrieve({"n": 3}).n == 3
    assert calls() == 4


def test_a_shut_down_pool_is_refused_before_anything_starts(
    make_store: Callable[..., Any], kind: str
) -> None:
    """With what to do."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(SettingsError, match="ThreadPoolExecutor is shut down"):
        make_store(kind, executor=pool).sweep(sets(1))
    assert calls() == 0


def test_a_runner_that_cannot_reach_another_process_is_refused(
    make_store: Callable[..., Any], kind: str, shared_processes: Executor
) -> None:
    """Says which, and what in it; nothing has started."""
    lock = threading.Lock()

    def locked(params: dict[str, Any]) -> None:
        with lock:
            simulate(params)

    store = make_store(kind, runner=locked, executor=shared_processes)
    with pytest.raises(SettingsError, match=r"runner .*locked cannot be sent .* '_thread.lock'"):
        store.sweep(sets(1))
    assert calls() == 0


class ThreadsThatPickle(Executor):
    """What a pool does that is not known to have processes."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        import pickle

        future: Future[Any] = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(fn))(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_an_unknown_pool_that_pickles_what_cannot_be_fails_the_run(
    make_store: Callable[..., Any],
) -> None:
    """The message says that pickling is what it takes."""
    lock = threading.Lock()

    def locked(params: dict[str, Any]) -> None:
        with lock:
            simulate(params)

    with pytest.raises(RunError, match="have to be picklable"):
        make_store(runner=locked, executor=ThreadsThatPickle()).sweep(sets(1))
    assert len(make_store(executor=ThreadsThatPickle()).sweep(sets(3))) == 3


def die(params: dict[str, Any]) -> None:
    """A runner that kills its process, for one set."""
    if params["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    simulate(params)


@pytest.mark.parametrize("on_error", ["raise", "finish"])
def test_a_worker_that_dies_breaks_the_pool_and_no_call_hangs(
    make_store: Callable[..., Any], kind: str, on_error: str
) -> None:
    """What was in the pool failed; the pool takes no more; a new one goes on."""
    with ProcessPoolExecutor(1, mp_context=processes) as pool:
        store = make_store(kind, runner=die, executor=pool)
        with pytest.raises((WorkerDiedError, RunError, SweepError)) as caught:
            store.sweep(sets(30), on_error=on_error)
        if on_error == "raise":
            assert isinstance(caught.value, WorkerDiedError)
        with pytest.raises(SettingsError, match="is broken"):
            store.sweep(sets(30))
    assert len(store.sweep([{"n": 2}, {"n": 3}], executor="thread")) == 2
    assert os.listdir("results/.entropic/staging") == []


def test_a_finished_run_outlives_the_pool_that_could_not_say_so(
    make_store: Callable[..., Any], kind: str
) -> None:
    """Its result was sealed: it is stored, though the pool is broken."""
    with ProcessPoolExecutor(1, mp_context=processes) as pool:
        store = make_store(kind, runner=partial(simulate_and_then, end_process), executor=pool)
        assert store.run_or_retrieve({"n": 1}).n == 1
    assert (calls(), store.failures()) == (1, [])
    assert os.listdir("results/.entropic/staging") == []


class Forgetful(Executor):
    """A pool that runs what it is given, and then says that it has been shut down."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        function(*args, **kwargs)
        future: Future[Any] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_finished_run_whose_answer_was_lost_is_stored(
    make_store: Callable[..., Any], kind: str
) -> None:
    """Where the pool is gone, its failure is that of what had not finished."""
    store = make_store(kind, executor=Forgetful())
    assert store.run_or_retrieve({"n": 1}).n == 1
    assert (calls(), store.failures()) == (1, [])


class StubbornError(Exception):
    """An error that can be pickled, and not be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two numbers")


def test_an_error_that_cannot_be_unpickled_is_told_as_text(
    make_store: Callable[..., Any], shared_processes: Executor
) -> None:
    """The pool lives on."""

    def runner(params: dict[str, Any]) -> None:
        raise StubbornError(1, 2)

    store = make_store(runner=runner, executor=shared_processes)
    with pytest.raises(RunError, match="StubbornError: of two numbers"):
        store.sweep(sets(1))
    assert shared_processes.submit(abs, -1).result(DEADLINE) == 1


def test_a_cancelled_sweep_drops_what_waits_and_keeps_what_has_begun() -> None:
    """Nothing of what waited in the pool is ever called."""
    go = threading.Event()

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        go.wait(DEADLINE)
        Path(params["result_file"]).write_text("done")

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            async with AsyncStore(runner, Point, file_suffix=".npy", executor=pool) as store:
                sweep = asyncio.create_task(store.sweep(sets(4)))
                await until(lambda: calls() == 1)
                sweep.cancel()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await asyncio.wait({sweep})
                go.set()
                with pytest.raises(asyncio.CancelledError):
                    await sweep
                stored = await store.sweep([{"n": 0}])
                assert stored[0].n == 0

    asyncio.run(main())
    assert calls() == 1
    assert os.listdir("results/.entropic/staging") == []


def test_a_call_that_is_cancelled_does_not_wait_for_a_runner_that_has_just_begun() -> None:
    """Also where the pool has not yet been asked whether it has."""

    async def main() -> None:
        begun, over = threading.Event(), threading.Event()

        def block(params: dict[str, Any]) -> None:
            begun.set()
            assert over.wait(DEADLINE)
            simulate(params)

        with ThreadPoolExecutor(1) as pool:
            async with AsyncStore(block, Point, file_suffix=".npy", executor=pool) as store:
                call = asyncio.create_task(store.run_or_retrieve({"n": 1}))
                while not begun.is_set():
                    await asyncio.sleep(0)
                call.cancel()
                async with asyncio.timeout(DEADLINE / 2):
                    await asyncio.wait({call})
                assert call.cancelled()
                over.set()
                assert (await store.run_or_retrieve({"n": 1})).n == 1
        assert calls() == 1

    asyncio.run(main())


def test_a_pool_shut_down_under_a_sweep_is_an_error() -> None:
    """No hang, and what has finished is kept."""

    def runner(params: dict[str, Any]) -> None:
        simulate(params)
        if params["n"] == 2:
            mine.shutdown(wait=False, cancel_futures=True)

    mine = ThreadPoolExecutor(1)

    async def main() -> None:
        async with AsyncStore(runner, Point, file_suffix=".npy", executor=mine) as store:
            with pytest.raises(RunError, match=r"shut down|takes no more"):
                await store.sweep(sets(50))
            assert await store.retrieve({"n": 2}) is not None

    asyncio.run(main())


def test_a_timeout_is_refused(make_store: Callable[..., Any], kind: str, pool: Executor) -> None:
    """Nothing can stop somebody else's worker."""
    with pytest.raises(SettingsError, match="timeout=1 cannot be kept"):
        make_store(kind, executor=pool, timeout=1).sweep(sets(1))


def test_a_failure_is_raised_after_what_had_begun_in_the_pool_has_ended() -> None:
    """Also of what had begun but a moment before."""
    begun: list[int] = []
    ended: list[int] = []
    both = threading.Barrier(2)

    def run(params: dict[str, Any]) -> None:
        begun.append(params["n"])
        if params["n"] < 2:
            both.wait(DEADLINE)
        if params["n"] == 0:
            raise ValueError("the first")
        time.sleep(0.2)
        simulate(params)
        ended.append(params["n"])

    async def main() -> list[int]:
        with ThreadPoolExecutor(2) as pool:
            async with AsyncStore(run, Point, file_suffix=".npy", executor=pool) as store:
                with pytest.raises(ValueError, match="the first"):
                    await store.sweep(sets(12))
                return list(ended)

    assert sorted(asyncio.run(main())) == sorted(set(begun) - {0})
    assert len(begun) < 12
