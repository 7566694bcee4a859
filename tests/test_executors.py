"""Where runners run: the calling thread, worker threads, the event loop, a Dask cluster."""

import asyncio
import contextvars
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from entropic import AsyncStore, RunInterruptedError, StoreClosedError
from entropic.executors import available_cpus
from entropic.executors.threads import ElasticThreads
from tests import databases, scripts
from tests.conftest import SyncFace
from tests.simulations import Point, calls, mark_call, simulate

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("database"), databases.either]

DEADLINE = 20.0

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def test_the_runner_runs_on_the_main_thread_when_that_called(
    make_store: Callable[..., Any],
) -> None:
    """What only works there, such as a plotting library's windows, works in a runner."""
    threads = []

    def runner(params: dict[str, Any]) -> None:
        threads.append(threading.current_thread())
        simulate(params)

    store = make_store(runner=runner)
    store.run_or_retrieve({"n": 1})
    store.run({"n": 1})
    store.sweep([{"n": 2}, {"n": 3}])
    assert threads == [threading.main_thread()] * 4


def test_each_thread_runs_what_it_has_called_for(make_store: Callable[..., Any]) -> None:
    """Several calls run at once, each on its own thread."""
    together = threading.Barrier(3)
    ran_on = {}

    def runner(params: dict[str, Any]) -> None:
        together.wait(DEADLINE)
        ran_on[params["n"]] = threading.get_ident()
        simulate(params)

    store = make_store(runner=runner)

    def call(n: int) -> int:
        store.run_or_retrieve({"n": n})
        return threading.get_ident()

    with ThreadPoolExecutor(3) as pool:
        called_on = dict(enumerate(pool.map(call, range(3))))
    assert ran_on == called_on


def test_the_calling_thread_runs_one_at_a_time_in_order(make_store: Callable[..., Any]) -> None:
    """A sweep is a loop over its sets, as far as the runner can tell."""
    order = []
    at_work = threading.Lock()

    def runner(params: dict[str, Any]) -> None:
        assert at_work.acquire(blocking=False)
        order.append(params["n"])
        simulate(params)
        at_work.release()

    make_store(runner=runner).sweep([{"n": n} for n in range(20)])
    assert order == list(range(20))


def test_there_are_no_more_threads_than_runners_at_once() -> None:
    """However many runs there are: threads of one of Python's pools are late to come back to it."""
    used: set[str] = set()

    def note() -> None:
        used.add(threading.current_thread().name)

    async def one_after_another(threads: ElasticThreads) -> None:
        for _ in range(2000):
            await threads.run(note)

    async def main() -> None:
        threads = ElasticThreads("two")
        await asyncio.gather(one_after_another(threads), one_after_another(threads))
        threads.close()
        with pytest.raises(StoreClosedError):
            await threads.run(note)

    asyncio.run(main())
    assert len(used) <= 2


def test_a_cancelled_call_keeps_its_thread_until_it_has_ended() -> None:
    """The next one does not wait behind it."""
    has_begun, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        has_begun.set()
        assert may_end.wait(DEADLINE)

    async def main() -> None:
        threads = ElasticThreads("held")
        holding = threads.submit(hold)
        await asyncio.to_thread(has_begun.wait, DEADLINE)
        holding.cancel()
        assert await asyncio.wait_for(threads.run(lambda: 5), DEADLINE) == 5
        may_end.set()
        threads.close()

    asyncio.run(main())


def test_the_runner_shares_the_callers_context(make_store: Callable[..., Any]) -> None:
    """It sees the caller's context variables, and what it sets stays set."""
    seen = []

    def runner(params: dict[str, Any]) -> None:
        seen.append(colour.get())
        colour.set("set by the runner")
        simulate(params)

    def call() -> None:
        colour.set("set by the caller")
        make_store(runner=runner).run_or_retrieve({"n": 1})
        assert colour.get() == "set by the runner"

    contextvars.copy_context().run(call)
    assert seen == ["set by the caller"]


def test_the_runner_may_be_a_closure_over_local_variables(make_store: Callable[..., Any]) -> None:
    """It reads and writes them as any local function does."""
    total = 0

    def runner(params: dict[str, Any]) -> None:
        nonlocal total
        total += params["n"]
        simulate(params)

    make_store(runner=runner).sweep([{"n": n} for n in range(5)])
    assert total == 10


def test_a_debugger_sees_the_runner(make_store: Callable[..., Any]) -> None:
    """It is traced, and its caller is further up on the same stack."""
    seen: list[str] = []

    def runner(params: dict[str, Any]) -> None:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            seen.append(frame.f_code.co_name)
            frame = frame.f_back
        simulate(params)

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code is runner.__code__:
            seen.append(f"traced {event}")

    store = make_store(runner=runner)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        store.run_or_retrieve({"n": 1})
    finally:
        sys.settrace(before)
    assert seen[0] == "traced call"
    assert "test_a_debugger_sees_the_runner" in seen


def test_the_input_is_read_on_the_calling_thread(make_store: Callable[..., Any]) -> None:
    """With the caller's context variables, whichever thread runs what it yields."""
    read: list[tuple[int, str]] = []

    def sets() -> Iterator[dict[str, Any]]:
        for n in range(3):
            read.append((threading.get_ident(), colour.get()))
            yield {"n": n}

    token = colour.set("the caller's")
    try:
        make_store("store-threads").sweep(sets())
    finally:
        colour.reset(token)
    assert read == [(threading.get_ident(), "the caller's")] * 3


_REPORT = """
from tests import databases

def report(store):
    query = "SELECT count(*) FROM entropic_runs WHERE owner IS NOT NULL"
    (claimed,) = databases.at(DB_URL).ask(query)
    left = os.listdir("results/.entropic/staging")
    files = [name for name in os.listdir("results") if name != ".entropic"]
    say("left", claimed, len(left), len(files))
"""

_RUNNERS = {
    "sleeping": "rest()",
    "busy": "\n        while True: pass",
    "waiting": "threading.Event().wait()",
    "shielding": "\n        try: rest()\n        finally: tidied.append(1)",
    "nested": ("rest() if params['n'] == 3 else store.run_or_retrieve({'n': params['n'] + 1})"),
}


_ONE, _MANY = "run_or_retrieve({'n': 1})", "sweep([{'n': 1}, {'n': 9}])"


@databases.either
@pytest.mark.parametrize(
    ("doing", "call"), [*((doing, _ONE) for doing in _RUNNERS), ("busy", _MANY), ("nested", _MANY)]
)
def test_ctrl_c_reaches_the_caller_and_leaves_nothing(doing: str, call: str) -> None:
    """In the middle of a runner; the next call works."""
    with scripts.script(
        _REPORT
        + f"""
slow, tidied = True, []

def runner(params):
    if slow and params["n"] < 5:
        if params["n"] == (3 if {doing!r} == "nested" else 1):
            say("running")
        {_RUNNERS[doing]}
    simulate(params)

store = make(runner)
try:
    store.{call}
except KeyboardInterrupt:
    say("interrupted")
report(store)
slow = False
say(store.run_or_retrieve({{"n": 1}}).n)
"""
    ) as child:
        child.expect("running")
        pressed = time.monotonic()
        child.interrupt()
        child.expect("interrupted")
        assert time.monotonic() - pressed < 2
        child.expect("left 0 0 0")
        child.expect("1")
        assert child.ended() == 0
        assert child.errors() == ""


def test_ctrl_c_ends_a_script_that_does_not_expect_it() -> None:
    """As it ends any script, and at once: with a traceback that leads into the runner."""
    with scripts.script(
        """
def runner(params):
    say("running")
    rest()

make(runner).run_or_retrieve({"n": 1})
"""
    ) as child:
        child.expect("running")
        pressed = time.monotonic()
        child.interrupt()
        assert child.ended() != 0
        assert time.monotonic() - pressed < 3
        errors = child.errors().splitlines()
        assert errors[-1] == "KeyboardInterrupt"
        assert any(line.endswith(", in runner") for line in errors)
        assert sum(line.startswith("Traceback") for line in errors) == 1
    assert os.listdir("results/.entropic/staging") == []


@pytest.mark.parametrize("kind", ["caller", "thread"])
def test_ctrl_c_while_another_thread_runs_what_is_wanted(kind: str) -> None:
    """The wait ends; the other thread's run goes on, and its caller gets the record."""
    with scripts.script(
        scripts.arguments(kind=kind)
        + """
begun, go_on = threading.Event(), threading.Event()

def runner(params):
    begun.set()
    go_on.wait()
    simulate(params)

store = make(runner, executor=kind)
records = []
other = threading.Thread(target=lambda: records.append(store.run_or_retrieve({"n": 1})))
other.start()
begun.wait()
flights = store._store._opening._task.result().pipeline._flights._flights

def watch():
    while sum(len(flight._waiters) for flight in list(flights.values())) < 2:
        time.sleep(0.001)
    say("waiting")

threading.Thread(target=watch).start()
try:
    store.run_or_retrieve({"n": 1})
except KeyboardInterrupt:
    say("interrupted")
go_on.set()
other.join()
say(len(records), calls(), store.retrieve({"n": 1}).n)
"""
    ) as child:
        child.expect("waiting")
        pressed = time.monotonic()
        child.interrupt()
        child.expect("interrupted")
        assert time.monotonic() - pressed < 2
        child.expect("1 1 1")
        assert child.ended() == 0
        assert child.errors() == ""


def test_ctrl_c_during_a_thread_run_returns_at_once_and_the_run_is_kept() -> None:
    """A thread cannot be stopped: its work is not lost, either."""
    with scripts.script(
        """
go_on = threading.Event()

def runner(params):
    say("running")
    go_on.wait()
    simulate(params)

store = make(runner, executor="thread")
try:
    store.run_or_retrieve({"n": 1})
except KeyboardInterrupt:
    say("interrupted")
assert store.retrieve({"n": 1}) is None
go_on.set()
say(store.run_or_retrieve({"n": 1}).n, calls())
"""
    ) as child:
        child.expect("running")
        pressed = time.monotonic()
        child.interrupt()
        child.expect("interrupted")
        assert time.monotonic() - pressed < 2
        child.expect("1 1")
        assert child.ended() == 0
        assert child.errors() == ""


def test_ctrl_c_stops_an_async_runner() -> None:
    """It is cancelled, may tidy up, and leaves nothing."""
    with scripts.script(
        _REPORT
        + """
async def runner(params):
    say("running")
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.05)
        say("tidied")

store = make(runner)
try:
    store.run_or_retrieve({"n": 1})
except KeyboardInterrupt:
    say("interrupted")
report(store)
"""
    ) as child:
        child.expect("running")
        pressed = time.monotonic()
        child.interrupt()
        child.expect("tidied")
        child.expect("interrupted")
        assert time.monotonic() - pressed < 2
        child.expect("left 0 0 0")
        assert child.ended() == 0
        assert child.errors() == ""


def test_a_second_ctrl_c_does_not_wait_for_an_async_runner_that_will_not_stop() -> None:
    """The first one waits a while for it, as anything may be worth putting in order."""
    with scripts.script(
        """
async def runner(params):
    say("running")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            # Not by print: a daemon thread that holds the lock of stdout as Python exits aborts it.
            os.write(1, b"refused\\n")

try:
    make(runner).run_or_retrieve({"n": 1})
except KeyboardInterrupt:
    say("interrupted")
"""
    ) as child:
        child.expect("running")
        child.interrupt()
        child.expect("refused")
        pressed = time.monotonic()
        child.interrupt()
        child.expect("interrupted")
        assert time.monotonic() - pressed < 2
        assert child.ended() == 0
        assert child.errors() == ""


def test_ctrl_c_in_the_input_of_a_sweep(folder: Path) -> None:
    """A generator is interrupted where it is; what ran is kept."""
    with scripts.script(
        """
def sets():
    yield {"n": 1}
    while not calls():
        time.sleep(0.02)
        yield {"n": 1}
    say("reading")
    rest()

store = make()
try:
    store.sweep(sets())
except KeyboardInterrupt:
    say("interrupted")
say(store.retrieve({"n": 1}).n, calls())
"""
    ) as child:
        child.expect("reading")
        pressed = time.monotonic()
        child.interrupt()
        child.expect("interrupted")
        assert time.monotonic() - pressed < 2
        child.expect("1 1")
        assert child.ended() == 0
        assert child.errors() == ""


# Whoever waits, waits for an end: of an interrupted call's grace (five seconds), of a claim (a
# minute), or of all time. A machine that is busy keeps a call for two seconds at times, by itself.
_AT_ANY_MOMENT = """
import faulthandler, random

armed = over = False

def interrupted(signal, frame):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGUSR1, interrupted)
main = threading.get_ident()
chance = random.Random(seed)
requests, fired = threading.Semaphore(0), threading.Semaphore(0)

def interrupt_sometime():
    while requests.acquire() and not over:
        time.sleep(chance.random() * 0.01)
        signal.pthread_kill(main, signal.SIGUSR1)
        fired.release()

threading.Thread(target=interrupt_sometime, daemon=True).start()
store = make(executor=kind)
store.run_or_retrieve({"n": -1})
broken_off = 0
for n in range(rounds):
    faulthandler.dump_traceback_later(4.5)  # says where it waits, and so ends the silence
    try:
        armed = True
        requests.release()
        store.sweep([{"n": n}, {"n": n % 7}, {"n": 100_000 + n}])
        armed = False
    except KeyboardInterrupt:
        broken_off += 1
    faulthandler.cancel_dump_traceback_later()
    fired.acquire()
over = True
assert len(store.sweep([{"n": n} for n in range(rounds)])) == rounds
assert broken_off > rounds / 10, broken_off
report(store)
say("done")
"""


@databases.either
@pytest.mark.parametrize("kind", ["caller", "thread"])
@pytest.mark.parametrize(
    ("seed", "rounds"),
    [(1, 60), pytest.param(2, 4000, marks=[pytest.mark.nightly, pytest.mark.timeout(600)])],
)
def test_ctrl_c_at_any_moment_of_a_call(kind: str, seed: int, rounds: int) -> None:
    """Interrupts at random moments: no call hangs or waits, and no claim is left at the end."""
    lines, _ = scripts.run(
        scripts.arguments(kind=kind, seed=seed, rounds=rounds) + _REPORT + _AT_ANY_MOMENT
    )
    assert lines[-1] == "done"
    assert lines[-2].startswith("left 0 0 ")


def test_sys_exit_in_a_runner_ends_the_script() -> None:
    """With its code, silently, and leaving nothing behind."""
    with scripts.script(
        """
def runner(params):
    sys.exit(3)

make(runner).run_or_retrieve({"n": 1})
"""
    ) as child:
        assert child.ended() == 3
        assert child.errors() == ""
    assert os.listdir("results/.entropic/staging") == []


def _counting(count: int) -> tuple[Callable[..., Any], Callable[..., Any], Callable[[], int]]:
    """A runner and an async one that only go on when ``count`` are at work; the most at once."""
    at_work, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(count)

    def enter() -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)

    def leave() -> None:
        nonlocal at_work
        with lock:
            at_work -= 1

    def runner(params: dict[str, Any]) -> None:
        enter()
        together.wait(DEADLINE)
        simulate(params)
        leave()

    arrived = itertools.count(1)
    gathered: list[asyncio.Event] = []

    async def async_runner(params: dict[str, Any]) -> None:
        enter()
        number = next(arrived)
        if number % count == 1 or count == 1:
            gathered.append(asyncio.Event())
        mine = gathered[-1]
        if number % count == 0:
            mine.set()
        async with asyncio.timeout(DEADLINE):
            await mine.wait()
        simulate(params)
        leave()

    return runner, async_runner, lambda: most


@databases.either
@pytest.mark.parametrize("kind", ["store-threads", "async-threads", "async-loop", "store-loop"])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_as_many_runners_at_once_as_there_are_workers(
    make_store: Callable[..., Any], kind: str, workers: int | None
) -> None:
    """No fewer, no more; by default as many as there are CPUs to use."""
    count = available_cpus() if workers is None else workers
    runner, async_runner, most = _counting(count)
    is_async = kind.endswith("loop")
    store = make_store(
        "store" if kind == "store-loop" else kind,
        runner=async_runner if is_async else runner,
        max_workers=workers,
    )
    store.sweep([{"n": n} for n in range(3 * count)])
    assert most() == count
    assert calls() == 3 * count


@pytest.mark.parametrize("kind", ["store-threads", "async-threads", "async-loop", "store-loop"])
def test_a_runner_elsewhere_sees_the_callers_context(
    make_store: Callable[..., Any], kind: str
) -> None:
    """What it sets there is its own."""
    seen: list[str] = []

    def runner(params: dict[str, Any]) -> None:
        seen.append(colour.get())
        colour.set("set by the runner")
        simulate(params)

    async def async_runner(params: dict[str, Any]) -> None:
        runner(params)

    store = make_store(
        "store" if kind == "store-loop" else kind,
        runner=async_runner if kind.endswith("loop") else runner,
        max_workers=1,
    )
    sets = [{"n": 1}, {"n": 2}]

    async def call() -> None:
        colour.set("set by the caller")
        await store.store.sweep(sets)
        assert colour.get() == "set by the caller"

    def call_plain() -> None:
        colour.set("set by the caller")
        store.sweep(sets)
        assert colour.get() == "set by the caller"

    if isinstance(store, SyncFace):
        store._runner.run(call(), context=contextvars.copy_context())
    else:
        contextvars.copy_context().run(call_plain)
    assert seen == ["set by the caller"] * 2


@pytest.mark.parametrize("kind", ["store-threads", "async-threads"])
def test_a_runner_in_a_thread_that_raises_a_cancellation_only_fails_its_run(
    make_store: Callable[..., Any], kind: str
) -> None:
    """Nobody has cancelled anything: the call is told, and neither waits nor tries for ever."""

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        raise asyncio.CancelledError("not by us")

    store = make_store(kind, runner=runner)
    with pytest.raises(RunInterruptedError, match="not by us"):
        store.run_or_retrieve({"n": 1})
    assert calls() == 1


def test_an_async_runner_is_awaited_on_the_stores_own_loop(
    make_store: Callable[..., Any],
) -> None:
    """The caller's, of an ``AsyncStore``; a background one, of a ``Store``."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def runner(params: dict[str, Any]) -> None:
        loops.append(asyncio.get_running_loop())
        simulate(params)

    face: SyncFace = make_store("async-loop", runner=runner)
    face.run_or_retrieve({"n": 1})
    assert loops == [face._runner.get_loop()]
    make_store(runner=runner).run_or_retrieve({"n": 2})
    assert loops[1] is not loops[0]


def test_worker_threads_are_not_those_of_the_loop(make_store: Callable[..., Any]) -> None:
    """The loop's own pool may be full of threads that wait for this very store."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        store = AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url())

        def ask(n: int) -> int:
            record = asyncio.run_coroutine_threadsafe(store.run_or_retrieve({"n": n}), loop)
            return record.result(DEADLINE).n

        assert await asyncio.gather(*(asyncio.to_thread(ask, n) for n in range(4))) == [0, 1, 2, 3]
        await store.aclose()

    asyncio.run(main())
