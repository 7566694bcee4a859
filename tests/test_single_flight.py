"""One run for all who ask for it at the same time, and runners that ask for other runs."""

import asyncio
import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, ResultMissingError, RunCycleError, Store
from entropic.artifacts import stage as stages
from entropic.identity import canonical_id
from tests import databases
from tests.conftest import KINDS, SyncFace
from tests.simulations import Point, calls, simulate, simulate_async

# A hang is what many of these tests are about.
pytestmark = [pytest.mark.timeout(40), pytest.mark.usefixtures("database")]

DEADLINE = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so; it not being so in time is a failure."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.001)


async def until_async(condition: Callable[[], bool]) -> None:
    """The same, without holding the loop up."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.001)


def waiters(store: Any) -> int:
    """How many requests wait for the runs that are under way."""
    behind = store.store if isinstance(store, SyncFace) else store
    behind = behind._store if isinstance(behind, Store) else behind
    task = behind._opening._task
    if task is None or not task.done():
        return 0
    flights = task.result().pipeline._flights._flights
    return sum(len(flight._waiters) for flight in list(flights.values()))


def staged() -> list[str]:
    """What lies in the staging folder."""
    return os.listdir("results/.entropic/staging")


def claims() -> list[str]:
    """The ids that somebody has claimed."""
    return databases.ask("SELECT id FROM entropic_runs WHERE owner IS NOT NULL")


def nothing_left() -> bool:
    """Whether no stage and no claim is left."""
    return not staged() and not claims()


class Gate:
    """A runner, of either kind, that waits in each run until the test lets it go on."""

    def __init__(self, then: Callable[[dict[str, Any]], None] = simulate) -> None:
        self._then = then
        self._open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.stopped = threading.Event()

    def __call__(self, params: dict[str, Any]) -> None:
        self.entered.release()
        assert self._open.wait(DEADLINE)
        self._then(params)

    async def asynchronous(self, params: dict[str, Any]) -> None:
        self.entered.release()
        try:
            await until_async(self._open.is_set)
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        self._then(params)

    def of(self, kind: str) -> Callable[..., Any]:
        """The runner for a kind of store."""
        return self.asynchronous if kind == "async-loop" else self

    def open(self) -> None:
        """Let it go on."""
        self._open.set()

    @contextlib.contextmanager
    def opening_when(self, condition: Callable[[], bool]) -> Iterator[None]:
        """Let it go on as soon as it is so, while this thread is busy asking."""

        def watch() -> None:
            until(condition)
            self.open()

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        yield
        watching.join()

    async def reached(self) -> None:
        """Wait until a run has begun, without holding the loop up."""
        await until_async(lambda: self.entered.acquire(blocking=False))


def at_once(store: Any, requests: Sequence[tuple[str, Any, dict[str, Any]]]) -> Any:
    """Make many requests at the same moment: (method, params, custom data); what each gave."""
    if isinstance(store, SyncFace):

        async def all_of_them() -> list[Any]:
            made = [getattr(store.store, name)(p, **data) for name, p, data in requests]
            return await asyncio.gather(*made, return_exceptions=True)

        return store._runner.run(all_of_them())
    barrier = threading.Barrier(len(requests))

    def one(name: str, params: Any, data: dict[str, Any]) -> Any:
        barrier.wait(DEADLINE)
        try:
            return getattr(store, name)(params, **data)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: one(*request), requests))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """Each kind of store."""
    return request.param


@pytest.fixture(params=KINDS[2:])
def async_kind(request: pytest.FixtureRequest) -> Any:
    """Each kind of ``AsyncStore``."""
    return request.param


def make_async(kind: str, gate: Gate, **settings: Any) -> AsyncStore[Point]:
    """An ``AsyncStore`` whose runner waits at the gate."""
    return AsyncStore(gate.of(kind), Point, file_suffix=".npy", db_url=databases.url(), **settings)


def test_a_hundred_requests_for_one_new_set_start_one_run(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """All get the record; the run waits until all have asked."""
    gate = Gate()
    store = make_store(kind, runner=gate.of(kind))
    with gate.opening_when(lambda: waiters(store) == 100):
        records = at_once(store, [("run_or_retrieve", {"n": 3}, {})] * 100)
    assert calls() == 1
    assert {type(record) for record in records} == {Point}
    assert {(r.id, r.created_at, r.result_file) for r in records} == {
        (records[0].id, records[0].created_at, records[0].result_file)
    }


def test_all_get_the_exception_and_the_next_request_tries_again(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """A failure is shared as a record is; it is not kept."""
    failing = True

    def fail_at_first(params: dict[str, Any]) -> None:
        simulate(params)
        if failing:
            raise ZeroDivisionError("too small a step")

    gate = Gate(fail_at_first)
    store = make_store(kind, runner=gate.of(kind))
    with gate.opening_when(lambda: waiters(store) == 100):
        errors = at_once(store, [("run_or_retrieve", {"n": 3}, {})] * 100)
    assert calls() == 1
    assert {type(error) for error in errors} == {ZeroDivisionError}
    for error in errors:
        (note,) = error.__notes__
        assert "'n': 3" in note
    failing = False
    assert store.run_or_retrieve({"n": 3}).n == 3
    assert calls() == 2
    assert nothing_left()


@pytest.mark.parametrize("leaving", [0, 1])
def test_a_waiter_that_leaves_does_not_stop_the_others_run(async_kind: str, leaving: int) -> None:
    """Neither the one who started it nor one who joined."""

    async def main() -> None:
        gate = Gate()
        async with make_async(async_kind, gate) as store:
            tasks = [asyncio.create_task(store.run_or_retrieve({"n": 3})) for _ in range(3)]
            await until_async(lambda: waiters(store) == 3)
            await gate.reached()
            tasks[leaving].cancel()
            await asyncio.wait({tasks[leaving]}, timeout=DEADLINE)
            assert tasks[leaving].cancelled()
            gate.open()
            kept = [task for task in tasks if task is not tasks[leaving]]
            records = await asyncio.gather(*kept)
            assert {record.n for record in records} == {3}
            assert calls() == 1
            assert not gate.stopped.is_set()

    asyncio.run(main())


def test_the_last_waiter_to_leave_stops_an_async_runner() -> None:
    """When the cancelled call returns, its runner has stopped and nothing is left of it."""

    async def main() -> None:
        gate = Gate()
        async with make_async("async-loop", gate) as store:
            tasks = [asyncio.create_task(store.run_or_retrieve({"n": 3})) for _ in range(2)]
            await until_async(lambda: waiters(store) == 2)
            await gate.reached()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=DEADLINE)
            assert gate.stopped.is_set()
            assert nothing_left()
            assert calls() == 0
            gate.open()
            assert (await store.run_or_retrieve({"n": 3})).n == 3

    asyncio.run(main())


def test_a_thread_run_that_everybody_has_left_ends_and_is_kept() -> None:
    """A thread cannot be stopped: the call is cancelled at once, and the work is not lost."""

    async def main() -> None:
        gate = Gate()
        async with make_async("async-threads", gate) as store:
            task = asyncio.create_task(store.run_or_retrieve({"n": 3}))
            await gate.reached()
            task.cancel()
            await asyncio.wait({task}, timeout=DEADLINE)
            assert task.cancelled()
            assert await store.retrieve({"n": 3}) is None
            gate.open()
            async with asyncio.timeout(DEADLINE):
                while await store.retrieve({"n": 3}) is None:
                    await asyncio.sleep(0.001)
            assert calls() == 1
            await until_async(nothing_left)

    asyncio.run(main())


def test_an_async_run_that_has_finished_is_kept_when_everybody_has_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runner has ended well, and a large result is still being read for its digest."""
    reading, go_on = threading.Event(), threading.Event()
    digest = stages._file_digest

    def slow(path: str) -> str:
        reading.set()
        assert go_on.wait(DEADLINE)
        return digest(path)

    async def main() -> None:
        url = databases.url()
        async with AsyncStore(simulate_async, Point, file_suffix=".npy", db_url=url) as store:
            task = asyncio.create_task(store.run_or_retrieve({"n": 3}))
            assert await asyncio.to_thread(reading.wait, DEADLINE)
            task.cancel()
            await asyncio.wait({task}, timeout=1)
            assert task.cancelled()
            assert await store.retrieve({"n": 3}) is None
            go_on.set()
            assert (await store.run_or_retrieve({"n": 3})).n == 3
            assert calls() == 1
            await until_async(nothing_left)

    monkeypatch.setattr(stages, "_file_digest", slow)
    asyncio.run(main())


@pytest.mark.parametrize("again", [False, True], ids=["run_or_retrieve", "run"])
def test_a_run_that_is_interrupted_when_it_has_finished_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Ctrl-C comes between the sealing of its result and the news of it."""
    seal = stages.seal

    def interrupted(*args: Any, **options: Any) -> None:
        seal(*args, **options)
        raise KeyboardInterrupt

    with Store(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
        if again:
            store.run({"n": 3}, by="the first")
        monkeypatch.setattr(stages, "seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            (store.run if again else store.run_or_retrieve)({"n": 3}, by="the last")
        monkeypatch.setattr(stages, "seal", seal)
        record = store.run_or_retrieve({"n": 3})
        assert record.custom_data["by"] == "the last"
        assert calls() == 1 + again
        assert nothing_left()


def test_a_run_that_waits_for_a_worker_is_dropped_when_everybody_has_left() -> None:
    """Before its runner is called, nothing is lost by leaving."""

    async def main() -> None:
        gate = Gate()
        async with make_async("async-threads", gate, max_workers=1) as store:
            first = asyncio.create_task(store.run_or_retrieve({"n": 1}))
            await gate.reached()
            second = asyncio.create_task(store.run_or_retrieve({"n": 2}))
            await until_async(lambda: waiters(store) == 2)
            second.cancel()
            await asyncio.wait({second}, timeout=DEADLINE)
            gate.open()
            id = (await first).id
            assert await store.retrieve({"n": 2}) is None
            assert calls() == calls(id) == 1
            assert nothing_left()

    asyncio.run(main())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_the_next_waiter_takes_an_interrupted_run_over(
    make_store: Callable[..., Any], interrupt: type[BaseException]
) -> None:
    """The interrupt is for the thread that ran it; the others get their record."""
    ran_on: list[int] = []

    def runner(params: dict[str, Any]) -> None:
        ran_on.append(threading.get_ident())
        if len(ran_on) == 1:
            until(lambda: waiters(store) == 3)
            raise interrupt
        simulate(params)

    store = make_store(runner=runner)
    outcomes = at_once(store, [("run_or_retrieve", {"n": 3}, {})] * 3)
    interrupted = [o for o in outcomes if isinstance(o, BaseException)]
    assert [type(o) for o in interrupted] == [interrupt]
    assert {o.n for o in outcomes if isinstance(o, Point)} == {3}
    assert len(set(ran_on)) == 2
    assert calls() == 1
    assert nothing_left()


def test_a_run_goes_to_whichever_calling_thread_is_free(make_store: Callable[..., Any]) -> None:
    """A request does not wait for another thread that is busy with something else."""
    first_runs, release = threading.Event(), threading.Event()
    ran_on: dict[int, int] = {}

    def runner(params: dict[str, Any]) -> None:
        ran_on[params["n"]] = threading.get_ident()
        if params["n"] == 1:
            first_runs.set()
            assert release.wait(DEADLINE)
        simulate(params)

    store = make_store(runner=runner)
    with ThreadPoolExecutor(1) as pool:
        sweep = pool.submit(store.sweep, [{"n": 1}, {"n": 2}])
        assert first_runs.wait(DEADLINE)
        until(lambda: waiters(store) == 2)
        assert store.run_or_retrieve({"n": 2}).n == 2
        release.set()
        assert [record.n for record in sweep.result(DEADLINE)] == [1, 2]
    assert ran_on[2] == threading.get_ident() != ran_on[1]
    assert calls() == 2


def test_a_helping_thread_that_is_interrupted_does_not_fail_the_one_it_helped(
    make_store: Callable[..., Any],
) -> None:
    """The sweep that asked first runs the set itself after all."""
    first_runs, release = threading.Event(), threading.Event()
    ran_on: list[int] = []

    def runner(params: dict[str, Any]) -> None:
        if params["n"] == 1:
            first_runs.set()
            assert release.wait(DEADLINE)
        else:
            ran_on.append(threading.get_ident())
            if len(ran_on) == 1:
                raise KeyboardInterrupt
        simulate(params)

    store = make_store(runner=runner)
    with ThreadPoolExecutor(1) as pool:
        sweep = pool.submit(store.sweep, [{"n": 1}, {"n": 2}])
        assert first_runs.wait(DEADLINE)
        until(lambda: waiters(store) == 2)
        with pytest.raises(KeyboardInterrupt):
            store.run_or_retrieve({"n": 2})
        release.set()
        assert [record.n for record in sweep.result(DEADLINE)] == [1, 2]
    assert len(set(ran_on)) == 2
    assert nothing_left()


def test_a_miss_just_before_anothers_commit_is_no_second_run(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """Requests come at every moment of a run, in many rounds; each set is run once."""
    rounds = 30 if kind.startswith("async") else 15
    chance = random.Random(1)
    store = make_store(kind)
    store.retrieve({"n": -1})
    for n in range(rounds):
        if isinstance(store, SyncFace):
            _staggered(store, n, chance)
        else:
            at_once(store, [("run_or_retrieve", {"n": n}, {})] * 6)
        assert calls() == n + 1


def _staggered(store: SyncFace, n: int, chance: random.Random) -> None:
    async def later(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.store.run_or_retrieve({"n": n})

    async def main() -> None:
        await asyncio.gather(*(later(chance.randrange(120)) for _ in range(12)))

    store._runner.run(main())


def test_a_miss_that_is_out_of_date_is_no_second_run() -> None:
    """A sweep that waits with one of its sets has looked the other up long ago."""

    async def main() -> None:
        rerun = Gate()

        def runner(params: dict[str, Any]) -> None:
            if params["n"] == 1 and calls():
                rerun(params)
            else:
                simulate(params)

        async with AsyncStore(runner, Point, file_suffix=".npy", db_url=databases.url()) as store:
            Path((await store.run_or_retrieve({"n": 1})).result_file).unlink()
            # While it is being run again, a look at it waits for what the run will bring.
            forced = asyncio.create_task(store.run({"n": 1}))
            await rerun.reached()
            sweep = asyncio.create_task(store.sweep([{"n": 1}, {"n": 2}]))
            for _ in range(3):  # look-ups are made in the order in which they were asked for
                assert await store.retrieve({"n": 3}) is None
            assert waiters(store) == 1
            id = (await store.run_or_retrieve({"n": 2})).id
            assert not sweep.done()
            rerun.open()
            await forced
            assert [record.n for record in await sweep] == [1, 2]
            assert calls(id) == 1
            assert calls() == 3

    asyncio.run(main())


def test_forced_runs_all_run_one_after_another(kind: str, make_store: Callable[..., Any]) -> None:
    """Each gives the record of its own run; who asks for any record gets one of them."""
    at_work = threading.Lock()

    def runner(params: dict[str, Any]) -> None:
        assert at_work.acquire(blocking=False), "two runs of one set at the same time"
        simulate(params)
        at_work.release()

    async def async_runner(params: dict[str, Any]) -> None:
        assert at_work.acquire(blocking=False), "two runs of one set at the same time"
        await simulate_async(params)
        await asyncio.sleep(0)
        at_work.release()

    store = make_store(kind, runner=async_runner if kind == "async-loop" else runner)
    forced = [("run", {"n": 3}, {"tag": tag}) for tag in range(5)]
    records = at_once(store, [*forced, *[("run_or_retrieve", {"n": 3}, {"tag": -1})] * 5])
    assert [record.custom_data["tag"] for record in records[:5]] == list(range(5))
    assert {record.n for record in records[5:]} == {3}
    shared = any(record.custom_data["tag"] == -1 for record in records[5:])
    assert calls() == 5 + shared
    assert store.retrieve({"n": 3}).custom_data["tag"] in range(-1, 5)
    assert nothing_left()


def test_who_joins_a_forced_run_gets_what_is_there_when_that_is_given_up(async_kind: str) -> None:
    """It had asked for no new one: what another store finishes meanwhile is what it wants."""
    gate = Gate()

    async def main() -> None:
        async with make_async(async_kind, gate) as other, make_async(async_kind, gate) as store:
            first = asyncio.create_task(other.run_or_retrieve({"n": 1}))
            await until_async(lambda: gate.entered.acquire(blocking=False))
            forced = asyncio.create_task(store.run({"n": 1}))
            await until_async(lambda: waiters(store) == 1)
            joined = asyncio.create_task(store.run_or_retrieve({"n": 1}))
            await until_async(lambda: waiters(store) == 2)
            forced.cancel()
            with pytest.raises(asyncio.CancelledError):
                await forced
            gate.open()
            assert (await joined).result_file == (await first).result_file

    asyncio.run(main())
    assert calls() == 1
    assert nothing_left()


def test_a_failed_forced_run_fails_only_its_own_request(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """The others still have their runs to make."""
    numbers = itertools.count()

    def runner(params: dict[str, Any]) -> None:
        simulate(params)
        if next(numbers) == 0:
            raise ZeroDivisionError

    async def async_runner(params: dict[str, Any]) -> None:
        runner(params)

    store = make_store(kind, runner=async_runner if kind == "async-loop" else runner)
    outcomes = at_once(store, [("run", {"n": 3}, {})] * 4)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        "Point",
        "Point",
        "Point",
        "ZeroDivisionError",
    ]
    assert calls() == 4


class Nested:
    """A store whose runner of ``n`` first asks it for what ``n`` needs.

    Args:
        needs: For each ``n``, the others.
        before: Called in each run before it asks.
    """

    def __init__(
        self,
        make_store: Callable[..., Any],
        kind: str,
        needs: Mapping[int, Sequence[int]],
        before: Callable[[int], object] = lambda n: None,
        **settings: Any,
    ) -> None:
        self._needs = needs
        self._before = before
        runner = self._run_async if kind == "async-loop" else self._run
        self.store = make_store(kind, runner=runner, **settings)

    def _run(self, params: dict[str, Any]) -> None:
        self._before(params["n"])
        needs = [{"n": n} for n in self._needs.get(params["n"], ())]
        if isinstance(self.store, SyncFace):
            loop = self.store._runner.get_loop()
            asked = asyncio.run_coroutine_threadsafe(self.store.store.sweep(needs), loop)
            found = asked.result(DEADLINE)
        else:
            found = self.store.sweep(needs)
        self._finish(params, found)

    async def _run_async(self, params: dict[str, Any]) -> None:
        self._before(params["n"])
        await asyncio.sleep(0)
        needs = [{"n": n} for n in self._needs.get(params["n"], ())]
        self._finish(params, await self.store.store.sweep(needs))

    def _finish(self, params: dict[str, Any], found: list[Point]) -> None:
        for record in found:
            assert Path(record.result_file).stat().st_size
        simulate(params)


@databases.either
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [0, 2, 1]])
def test_a_runner_may_ask_for_another_set_of_its_own_sweep(
    kind: str, make_store: Callable[..., Any], order: list[int]
) -> None:
    """With one worker, the set that it asks for is in line for the very worker it holds."""
    store = Nested(make_store, kind, {0: [1], 1: [2]}, max_workers=1).store
    assert [record.n for record in store.sweep([{"n": n} for n in order])] == order
    assert calls() == 3
    assert nothing_left()


def test_a_runner_may_ask_many_levels_deep(kind: str, make_store: Callable[..., Any]) -> None:
    """Each waits for the next, and there is one worker for all."""
    deep = 12
    store = Nested(
        make_store, kind, {n: [n + 1] for n in range(deep)}, max_workers=1, db_url="sqlite://"
    ).store
    assert store.run_or_retrieve({"n": 0}).n == 0
    assert calls() == deep + 1
    assert store.retrieve({"n": deep}).n == deep
    assert calls() == deep + 1


@databases.either
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2])
def test_runs_that_need_one_another_in_no_circle_all_end(
    kind: str, make_store: Callable[..., Any], workers: int, seed: int
) -> None:
    """Random needs, asked for by several sweeps at once, each in an order of its own."""
    chance = random.Random(seed)
    count = 10
    needs = {n: chance.sample(range(n), min(n, chance.randrange(4))) for n in range(count)}
    store = Nested(make_store, kind, needs, max_workers=workers).store
    orders = [chance.sample(range(count), count) for _ in range(3)]
    sweeps = at_once(store, [("sweep", [{"n": n} for n in order], {}) for order in orders])
    for order, records in zip(orders, sweeps, strict=True):
        if isinstance(records, BaseException):
            raise records
        assert [record.n for record in records] == order
    assert calls() == count
    assert nothing_left()


def test_workers_at_work_stay_within_their_number_while_others_wait(
    make_store: Callable[..., Any],
) -> None:
    """A runner that waits for another run lends its slot, and goes on only with one of its own."""
    at_work, most = 0, 0
    lock = threading.Lock()

    @contextlib.contextmanager
    def working() -> Iterator[None]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.002)  # the work
        yield
        with lock:
            at_work -= 1

    def runner(params: dict[str, Any]) -> None:
        with working():
            pass
        if params["n"] < 100:
            store.run_or_retrieve({"n": params["n"] + 100})
            with working():
                pass
        simulate(params)

    store = make_store("store-threads", runner=runner, max_workers=2)
    store.sweep([{"n": n} for n in range(12)])
    assert calls() == 24
    assert most == 2


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_generator_may_ask_for_the_runs_it_has_yielded(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """An adaptive sweep: each set depends on the result of the one before."""
    store = make_store(kind, max_workers=1)

    def adaptive() -> Iterator[dict[str, Any]]:
        n = 1
        for _ in range(5):
            yield {"n": n}
            time.sleep(0.012)  # longer than a slice of the input is read for
            n = 2 * store.run_or_retrieve({"n": n}).n

    assert [record.n for record in store.sweep(adaptive())] == [1, 2, 4, 8, 16]
    assert calls() == 5


@pytest.mark.parametrize(
    ("needs", "circle"), [({0: [0]}, [0, 0]), ({0: [1], 1: [2], 2: [0]}, [0, 1, 2, 0])]
)
def test_a_run_that_needs_itself_is_an_error_that_shows_the_chain(
    kind: str,
    make_store: Callable[..., Any],
    needs: dict[int, list[int]],
    circle: list[int],
) -> None:
    """Directly or through others, with one worker or more."""
    store = Nested(make_store, kind, needs, max_workers=1).store
    ids = [canonical_id({"n": n}) for n in circle]
    with pytest.raises(RunCycleError) as caught:
        store.run_or_retrieve({"n": 0})
    assert list(caught.value.chain) == ids
    assert " → ".join(ids) in str(caught.value)
    assert nothing_left()
    assert store.run_or_retrieve({"n": 7}).n == 7


def test_two_runs_that_need_each_other_are_an_error(
    kind: str, make_store: Callable[..., Any]
) -> None:
    """Each was started by a request of its own, so neither chain alone shows the circle."""
    both = threading.Barrier(2)
    started = 0

    def before(n: int) -> None:
        nonlocal started
        started += 1
        if kind != "async-loop":
            both.wait(DEADLINE)

    store = Nested(make_store, kind, {0: [1], 1: [0]}, before, max_workers=2).store
    outcomes = at_once(store, [("run_or_retrieve", {"n": n}, {}) for n in (0, 1)])
    assert {type(outcome) for outcome in outcomes} == {RunCycleError}
    assert started == 2
    assert nothing_left()


def test_a_circle_through_two_stores_is_an_error(make_store: Callable[..., Any]) -> None:
    """A run of one store asks another store, whose run asks the first."""

    def one_runner(params: dict[str, Any]) -> None:
        other.run_or_retrieve({"n": 2})

    def other_runner(params: dict[str, Any]) -> None:
        one.run_or_retrieve({"n": 1})

    one = make_store(runner=one_runner)
    other = make_store(
        "store-threads", runner=other_runner, results_dir="others", db_url="sqlite:///other.db"
    )
    with pytest.raises(RunCycleError) as caught:
        one.run_or_retrieve({"n": 1})
    assert len(caught.value.chain) == 3


def test_two_stores_that_feed_each_other_lend_each_other_their_workers(
    make_store: Callable[..., Any],
) -> None:
    """With one worker each, and runs that go back and forth between them."""

    def runner_of(number: int) -> Callable[[dict[str, Any]], None]:
        def runner(params: dict[str, Any]) -> None:
            if params["n"]:
                stores[1 - number].run_or_retrieve({"n": params["n"] - 1})
            simulate(params)

        return runner

    stores = [
        make_store(
            "store-threads",
            runner=runner_of(number),
            max_workers=1,
            results_dir=f"results{number}",
            db_url=f"sqlite:///{number}.sqlite3",
        )
        for number in (0, 1)
    ]
    assert [record.n for record in stores[0].sweep([{"n": 6}, {"n": 5}])] == [6, 5]
    assert calls() == 13


def test_an_async_and_a_plain_store_feed_each_other(make_store: Callable[..., Any]) -> None:
    """Their workers are on different loops, and are lent all the same."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def asks_async(params: dict[str, Any]) -> None:
            if params["n"]:
                call = asynchronous.run_or_retrieve({"n": params["n"] - 1})
                asyncio.run_coroutine_threadsafe(call, loop).result(DEADLINE)
            simulate(params)

        def asks_plain(params: dict[str, Any]) -> None:
            plain.run_or_retrieve({"n": params["n"]})
            simulate(params)

        plain = make_store(
            "store-threads",
            runner=asks_async,
            max_workers=1,
            results_dir="plain",
            db_url="sqlite:///plain.db",
        )
        async with AsyncStore(
            asks_plain, Point, file_suffix=".npy", max_workers=1, db_url=databases.url()
        ) as asynchronous:
            records = await asynchronous.sweep([{"n": 3}, {"n": 2}])
            assert [record.n for record in records] == [3, 2]

    asyncio.run(main())
    assert calls() == 8


def test_an_error_of_a_nested_run_names_that_run(make_store: Callable[..., Any]) -> None:
    """It fails the runs above it, too, and says of each that it was under way."""

    def runner(params: dict[str, Any]) -> None:
        if params["n"] == 0:
            store.run_or_retrieve({"n": 1})

    store = make_store(runner=runner)
    with pytest.raises(ResultMissingError) as caught:
        store.run_or_retrieve({"n": 0})
    assert caught.value.params is not None
    assert caught.value.params["n"] == 1
    assert len(caught.value.__notes__) == 2
