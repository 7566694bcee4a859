"""Calls that are cancelled, at every moment and by the hundred: nothing is left of them.

Not what they held, in the process or in the database, and not what they had half done; what had
been finished is kept.
"""

import asyncio
import gc
import itertools
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropic import AsyncStore
from tests import databases
from tests.outsiders import cancelled_at, holding, is_unlocked, listed
from tests.scripts import wait_for
from tests.simulations import Point, calls, mark_call, simulate, simulate_async

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("database")]

STAGING = Path("results/.entropic/staging")
HELD = "SELECT id FROM entropic_runs WHERE owner IS NOT NULL"


def make(runner: Callable[..., Any] = simulate, **settings: Any) -> AsyncStore[Point]:
    """A store of points."""
    usual = {"file_suffix": ".npy", "db_url": databases.url()}
    return AsyncStore(runner, Point, **{**usual, **settings})


def assert_file_is_unlocked(about: object = None) -> None:
    """Where the database is one."""
    if databases.current().name == "sqlite":
        assert is_unlocked(databases.PATH), about


async def assert_nothing_is_held(about: object = None) -> None:
    """No lock, claim or staging folder; a server may hear of an end a moment later."""
    assert_file_is_unlocked(about)
    await asyncio.to_thread(wait_for, databases.current().is_sound)
    assert databases.ask(HELD) == [], about
    assert list(STAGING.iterdir()) == [], about


# Threads of pools come as they are needed, up to these numbers, and wait for the next use.
POOLS = {
    "entropic-files": 4,
    "entropic-worker": 6,
    "entropic-process": 6,
    "asyncio": 8,
    "AnyIO worker thread": 4,
}


def open_files() -> Counter[str]:
    """What this process has open, as often as it has."""
    files: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that the listing itself was read by
            files[re.sub(r":.*", "", os.readlink(f"/proc/self/fd/{number}"))] += 1
    return files


OTHERS: set[threading.Thread] = set()
"""The threads that other tests of this process have left, which may end at any time."""


@pytest.fixture(autouse=True)
def others() -> None:
    """Known before the test makes its store."""
    gc.collect()
    OTHERS.clear()
    OTHERS.update(threading.enumerate())


class Holdings:
    """What a process and its open store hold."""

    def __init__(self, store: AsyncStore[Point]) -> None:
        assert store._opening._task is not None
        opened = store._opening._task.result()
        threads = set(threading.enumerate()) - OTHERS
        names = (re.sub(r"[ _-]\d.*", "", thread.name) for thread in threads)
        self.threads = Counter(names)
        self.files = open_files()
        self.tasks = len(asyncio.all_tasks())
        beating = opened.heartbeat
        self.beats = () if beating is None else beating.held
        self.flights = dict(opened.pipeline._flights._flights)
        self.requests = len(opened.pipeline._requests)

    def exceed(self, earlier: "Holdings") -> bool:
        """Whether there is more than there was, beyond what pools may have."""
        most = earlier.threads | Counter(POOLS)
        # Those to a server come as they are needed, too.
        connections = Counter(socket=0 if databases.current().name == "sqlite" else 5)
        return (
            any(count > most[name] for name, count in self.threads.items())
            or bool(self.files - earlier.files - connections)
            or self.tasks > earlier.tasks
            or bool(self.beats or self.flights or self.requests)
        )

    async def come_back(self, store: AsyncStore[Point]) -> None:
        """Wait until there is no more than this any more."""
        over = asyncio.get_running_loop().time() + 10
        while (now := Holdings(store)).exceed(self):
            assert asyncio.get_running_loop().time() < over, (vars(self), vars(now))
            await asyncio.sleep(0.002)


def simulate_elsewhere(params: dict[str, Any]) -> None:
    """As ``simulate``, in a process that need not know what NumPy is."""
    mark_call(params)
    Path(params["result_file"]).write_text("elsewhere")


async def simulate_slowly(params: dict[str, Any]) -> None:
    """With moments of its own at which it can be cancelled."""
    await asyncio.sleep(0)
    await simulate_async(params)
    await asyncio.sleep(0)


EXECUTORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "thread": (simulate, {"max_workers": 2}),
    "async def": (simulate_slowly, {"max_workers": 2}),
    "process": (simulate_elsewhere, {"executor": "process", "max_workers": 1}),
}


def call_of(store: AsyncStore[Point], method: str, first: int) -> Callable[[], Any]:
    """A call that runs what is not stored: one set, or three of which one is."""
    params = [{"n": -1}, {"n": first}, {"n": first + 1}]
    return {
        "run_or_retrieve": lambda: store.run_or_retrieve({"n": first}),
        "run": lambda: store.run({"n": first}),
        "sweep": lambda: store.sweep(params),
        "as_completed": lambda: listed(store.as_completed(params)),
    }[method]


async def cancel_at_moments(executor: str, method: str, stride: int) -> None:
    """Cancel a call at its first moment, and at each that is so many later, up to its end."""
    runner, settings = EXECUTORS[executor]
    async with make(runner, **settings) as store:
        await store.sweep({"n": n} for n in range(-8, 0))
        await store.sweep([{"n": -1}])
        before = Holdings(store)
        for moment in itertools.count(1, stride):
            call = call_of(store, method, 10 * moment)
            in_time = await cancelled_at(moment, call)
            assert_file_is_unlocked(moment)  # at once, and not only in the end
            again = await call_of(store, method, 10 * moment)()
            records = again if isinstance(again, list) else [again]
            assert all(Path(record.result_file).stat().st_size for record in records)
            await before.come_back(store)
            await assert_nothing_is_held(moment)
            if not in_time:
                break
        assert moment > 5


@databases.either
@pytest.mark.parametrize(
    ("executor", "method", "stride"),
    [
        ("thread", "run_or_retrieve", 1),
        ("thread", "sweep", 7),
        ("thread", "as_completed", 7),
        ("async def", "run_or_retrieve", 2),
        ("async def", "sweep", 7),
        ("process", "run_or_retrieve", 5),
        ("process", "sweep", 19),
    ],
)
async def test_a_call_cancelled_at_any_moment_holds_nothing_afterwards(
    executor: str, method: str, stride: int
) -> None:
    """No thread, file, task, claim or beat that was not there before; the next call works."""
    await cancel_at_moments(executor, method, stride)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["run_or_retrieve", "run", "sweep", "as_completed"])
@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_call_cancelled_at_every_moment_holds_nothing_afterwards(
    executor: str, method: str
) -> None:
    """All moments, of each call, in each place."""
    await cancel_at_moments(executor, method, 1)


async def test_a_deletion_cancelled_at_any_moment_is_done_or_undone() -> None:
    """Row and result go together, and nothing stays in between."""
    async with make() as store:
        moment, in_time, deleted = 1, True, 0
        while in_time:
            record = await store.run_or_retrieve({"n": 1})
            in_time = await cancelled_at(moment, lambda: store.delete({"n": 1}, remove_file=True))
            await asyncio.to_thread(wait_for, lambda: not list(STAGING.iterdir()))
            is_stored = databases.ask("SELECT count(*) FROM points") == [1]
            assert Path(record.result_file).exists() == is_stored, moment
            deleted += not is_stored
            moment += 1
        assert moment > 5
        assert 1 < deleted < moment - 1  # some were too late to stop


class AtCommit(logging.Handler):
    """Cancels a call when the driver is about to commit what a run has left; then it commits."""

    def __init__(self, call: asyncio.Task[Any], id: str) -> None:
        super().__init__(logging.DEBUG)
        self._call = call
        self._id = id
        self._loop = asyncio.get_running_loop()
        self._is_first = True
        self.was_cancelled = False

    def emit(self, record: logging.LogRecord) -> None:
        """On the driver's own thread, before it does what it was told."""
        message = record.getMessage()
        if not (message.startswith("executing") and "COMMIT" in message and calls(self._id)):
            return
        if self._is_first:
            self._is_first = False
            cancelled = threading.Event()
            self._loop.call_soon_threadsafe(self._cancel, cancelled)
            assert cancelled.wait(10)

    def _cancel(self, cancelled: threading.Event) -> None:
        self.was_cancelled = self._call.cancel()
        # Not before the call, and all that waits for it, have heard of it.
        self._loop.call_soon(lambda: self._loop.call_soon(cancelled.set))


@databases.only_sqlite  # how a cut-off commit is read back from a server is test_postgresql's
@pytest.mark.parametrize("method", ["run_or_retrieve", "sweep"])
@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_run_that_is_cancelled_while_it_is_committed_is_stored(
    executor: str, method: str
) -> None:
    """The outcome is read back: the next call is a hit, and nothing is run again."""
    runner, settings = EXECUTORS[executor]
    async with make(runner, **settings) as store:
        await store.run_or_retrieve({"n": 0})
        before = Holdings(store)
        id = (await make_scratch(runner)).id
        request = store.run_or_retrieve({"n": 1}) if method[0] == "r" else store.sweep([{"n": 1}])
        call = asyncio.create_task(request)
        logger = logging.getLogger("aiosqlite")
        handler, level = AtCommit(call, id), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            await asyncio.wait({call})
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
        assert handler.was_cancelled
        assert call.cancelled()
        record = await store.run_or_retrieve({"n": 1})
        assert (record.id, calls(id)) == (id, 1)
        assert Path(record.result_file).stat().st_size
        await before.come_back(store)
    await assert_nothing_is_held()


async def make_scratch(runner: Callable[..., Any]) -> Point:
    """The record of ``{"n": 1}`` in a cache that is thrown away; its call is not counted."""
    async with make(runner, results_dir="scratch", db_url="sqlite://") as store:
        record = await store.run_or_retrieve({"n": 1})
    for mark in Path("calls").glob(f"{record.id}.*"):
        mark.unlink()
    return record


def simulate_for_a_while(params: dict[str, Any]) -> None:
    """Long enough for some callers to have left."""
    threading.Event().wait(0.005)
    simulate(params)


async def simulate_for_a_while_async(params: dict[str, Any]) -> None:
    """The same, on the loop."""
    await asyncio.sleep(0.005)
    await simulate_async(params)


@databases.either
@pytest.mark.parametrize(
    "runner",
    [
        simulate_for_a_while,
        pytest.param(simulate_for_a_while_async, marks=pytest.mark.nightly),
    ],
)
async def test_five_hundred_impatient_calls_leave_things_as_they_were(
    runner: Callable[..., Any],
) -> None:
    """Ten times over, some before, some during their runs; the next sweep completes them all."""
    patience = random.Random(5)
    longest: float | None = None

    async def impatient(store: AsyncStore[Point], n: int) -> bool:
        try:
            async with asyncio.timeout(longest and patience.random() * longest / 2):
                return (await store.run_or_retrieve({"n": n})).n == n
        except TimeoutError:
            return False

    # The heartbeat, which has a connection of its own, does not beat meanwhile.
    async with make(runner, max_workers=2, lease_ttl=3600) as store:
        await store.sweep({"n": n} for n in range(-20, 0))
        before = Holdings(store)
        begun = time.monotonic()
        await asyncio.gather(*(impatient(store, -100 - n // 5) for n in range(500)))
        longest = (
            time.monotonic() - begun
        )  # of this machine: then some end in time, and some do not
        in_time = 0
        for turn in range(10):
            # Five callers for each of 100 sets; a part of them were asked for in the last turn.
            sets = [80 * turn + n // 5 for n in range(500)]
            in_time += sum(await asyncio.gather(*(impatient(store, n) for n in sets)))
            await before.come_back(store)
        assert 0 < in_time < 5000
        assert_file_is_unlocked()
        wanted = [{"n": n} for n in range(400)]
        records = await store.sweep(wanted)
        assert [record.n for record in records] == list(range(400))
        for record in records:
            assert np.load(record.result_file).tolist() == [record.n, 0.5]
        again = await store.sweep(wanted)
        assert [r.created_at for r in again] == [r.created_at for r in records]
        await before.come_back(store)
        stored = databases.ask("SELECT id FROM points")
    assert {path.stem for path in Path("results").glob("*.npy")} == set(stored)
    await assert_nothing_is_held()


@databases.only_sqlite  # whose lock one can hold for as long as one likes
async def test_who_is_cancelled_twice_while_the_database_is_locked_may_ask_again() -> None:
    """What one cancelled request has still to give back waits for no later one."""
    async with make() as store:
        await store.run_or_retrieve({"n": 0})
        with holding(databases.PATH, "BEGIN IMMEDIATE"):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await store.run_or_retrieve({"n": 1})
        async with asyncio.timeout(20):
            assert (await store.run_or_retrieve({"n": 1})).n == 1
            await store.aclose()
    await assert_nothing_is_held()
    assert calls() == 2
