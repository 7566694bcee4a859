"""What stays behind: of runs that fail, are cancelled, or nest too deep, nothing."""

import asyncio
import gc
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, RunError, WrongLoopError, worker
from entropic._portal import turns
from entropic.artifacts import Stage
from entropic.worker import Job, run_job_async
from tests import databases
from tests.conftest import KINDS
from tests.scripts import wait_for
from tests.simulations import Point, simulate

pytestmark = pytest.mark.usefixtures("database")


class Big:
    """What is worth its memory."""


@databases.either
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_run_keeps_nothing_of_its_caller(
    make_store: Callable[..., Any], kind: str
) -> None:
    """Neither what the runner had at hand, nor what the caller had, outlives the exception."""
    seen: list[weakref.ref[Big]] = []

    def fail(params: dict[str, Any]) -> None:
        big = Big()
        seen.append(weakref.ref(big))
        raise ValueError("on purpose")

    async def fail_async(params: dict[str, Any]) -> None:
        fail(params)

    store = make_store(kind, runner=fail_async if kind == "async-loop" else fail)

    def call(n: int) -> None:
        big = Big()
        seen.append(weakref.ref(big))
        with pytest.raises(ValueError, match="on purpose"):
            store.run_or_retrieve({"n": n})

    for n in range(5):
        call(n)
    _collected(seen)
    assert len(seen) == 10
    assert not turns._volunteers


def _collected(seen: list[weakref.ref[Big]]) -> None:
    """Wait until all is gone: the loop's thread may still be at its last step."""
    deadline = time.monotonic() + 5
    while any(ref() is not None for ref in seen):
        assert time.monotonic() < deadline, "something is kept"
        gc.collect()


def test_a_stored_run_keeps_no_caller(make_store: Callable[..., Any]) -> None:
    """A sweep, and runs within a run, leave no thread on the list of those that wait."""

    def nested(params: dict[str, Any]) -> None:
        if params["n"]:
            store.run_or_retrieve({"n": params["n"] - 1})
        Path(params["result_file"]).write_bytes(b"result")

    store = make_store(runner=nested)
    store.sweep([{"n": 1}, {"n": 3}, {"n": 2}])
    assert not turns._volunteers


@databases.either
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_run_leaves_nothing_to_the_collector(
    make_store: Callable[..., Any], kind: str
) -> None:
    """Neither objects that hold one another: of a long sweep, to look for them takes its time."""
    store = make_store(kind)
    store.sweep({"n": n} for n in range(20))  # what is made once for all
    found = []
    gc.disable()
    try:
        for start in (100, 200, 300):  # other tests' threads may just be ending
            gc.collect()
            store.sweep({"n": n} for n in range(start, start + 100))
            found.append(gc.collect())
    finally:
        gc.enable()
    assert min(found) < 50


@pytest.mark.parametrize("step", ["_prepare", "_finish"])
def test_a_cancelled_async_run_waits_for_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It ends when its thread has: from then on, nobody writes into the stage any more.

    What had finished by then counts.
    """
    begun, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    async def runner(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_bytes(b"result")

    async def hop(function: Callable[..., Any], *args: Any) -> Any:
        def slow() -> Any:
            if function is getattr(worker, step):
                begun.set()
                assert go_on.wait(20)
            answer = function(*args)
            ended.append(function.__name__)
            return answer

        return await asyncio.to_thread(slow)

    async def main() -> None:
        stage = Stage(str(folder / "stage"), "id.npy")
        job = Job(runner, {"n": 1}, "id", "cache", stage, checksum=False)
        task = asyncio.create_task(run_job_async(job, hop))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        if step == "_finish":
            assert (await task).staged is not None
        else:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert ended[-1] == step

    asyncio.run(main())


def test_cancelled_async_runs_leave_no_stage(folder: Path) -> None:
    """Whenever their callers lose patience."""
    patience = random.Random(1)

    async def runner(params: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        Path(params["result_file"]).write_bytes(b"result")

    async def impatient(store: AsyncStore[Point], n: int) -> None:
        try:
            async with asyncio.timeout(patience.random() * 0.1):
                await store.run_or_retrieve({"n": n})
        except TimeoutError:
            pass

    async def main() -> None:
        store = AsyncStore(
            runner=runner, result_cls=Point, file_suffix=".npy", db_url=databases.url()
        )
        async with store:
            for first in range(0, 200, 40):
                await asyncio.gather(*(impatient(store, first + n) for n in range(40)))

    asyncio.run(main())
    assert os.listdir("results/.entropic/staging") == []


def test_a_loop_that_ends_closes_the_connections_of_an_open_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A script may forget to; the store says later that its loop is gone, and can be closed."""
    kept: list[AsyncStore[Point]] = []

    async def main() -> None:
        store = AsyncStore(
            runner=simulate, result_cls=Point, file_suffix=".npy", db_url=databases.url()
        )
        kept.append(store)
        await asyncio.gather(*(store.run_or_retrieve({"n": n}) for n in range(5)))
        left = store.as_completed([{"n": n} for n in range(20)])
        await anext(left)
        assert databases.current().connections() > 0

    asyncio.run(main())
    wait_for(lambda: databases.current().connections() == 0)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    with pytest.raises(WrongLoopError, match="loop is gone"):
        asyncio.run(kept[0].retrieve({"n": 1}))

    async def again() -> None:
        await kept[0].aclose()
        async with kept[0] as store:
            assert await store.retrieve({"n": 1}) is not None

    asyncio.run(again())
    assert databases.ask("SELECT count(*) FROM entropic_runs WHERE owner IS NOT NULL") == [0]


def test_runs_that_nest_too_deep_fail_at_once(make_store: Callable[..., Any]) -> None:
    """With an error that says so, while there is stack left to put things in order."""

    def nested(params: dict[str, Any]) -> None:
        if params["n"]:
            store.run_or_retrieve({"n": params["n"] - 1})
        Path(params["result_file"]).write_bytes(b"result")

    store = make_store(runner=nested)
    started = time.process_time()  # others may be in the way
    with pytest.raises(RunError, match="nested too deep for Python's recursion limit"):
        store.run_or_retrieve({"n": 400})
    assert time.process_time() - started < 5
    assert os.listdir("results/.entropic/staging") == []
    store.run_or_retrieve({"n": 20})
