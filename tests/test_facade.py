"""``Store`` wherever it may be used from: scripts, notebooks, threads, forks, pickles, exits."""

import asyncio
import copy
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, Store, StoreClosedError, WrongLoopError
from tests import databases, scripts
from tests.simulations import Point, calls, simulate, simulate_async

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("database"), databases.either]

DEADLINE = 20.0

# From 3.12 on, Python itself warns of any fork in a process with threads.
STRICT = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")


def threads_of_stores() -> set[threading.Thread]:
    """The threads that stores have started, except the one that stays for all of them."""
    return {
        thread
        for thread in threading.enumerate()
        if thread.is_alive()
        and (thread.name.startswith("entropic-") or "connection_worker" in thread.name)
        and thread.name != "entropic-loop"
    }


def open_files() -> list[str]:
    """What this process has open, where it is a file of the working directory."""
    found = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:  # that of the listing itself
            continue
    return [path for path in found if path.startswith(os.getcwd())]


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so; it not being so in time is a failure."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.001)


def test_a_plain_script_ends_at_once_and_silently() -> None:
    """With a store that was used and not closed, and warnings as errors."""
    lines, seconds = scripts.run(
        """
store = make()
say(store.run_or_retrieve({"n": 3}).n, len(store.sweep([{"n": 3}, {"n": 4}])), calls())
""",
        *STRICT,
    )
    assert lines == ["3 2 2"]
    assert seconds < 3


@databases.either
@pytest.mark.parametrize("executor", ["caller", "thread"])
def test_a_script_may_drop_its_store_while_a_thread_still_uses_it(executor: str) -> None:
    """At the interpreter's exit, a daemon of the user's is in the middle of a call."""
    lines, seconds = scripts.run(
        scripts.arguments(executor=executor)
        + """
begun = threading.Event()

def runner(params):
    begun.set()
    time.sleep(0.2)
    simulate(params)

store = make(runner, executor=executor)
threading.Thread(target=store.run_or_retrieve, args=[{"n": 3}], daemon=True).start()
begun.wait()
say("begun")
""",
        *STRICT,
    )
    assert lines == ["begun"]
    assert seconds < 3


def test_a_store_works_inside_a_running_loop() -> None:
    """As in a notebook's cell: the runner is on the thread, and in the loop, that called."""
    seen: list[object] = []

    def runner(params: dict[str, Any]) -> None:
        seen.append((threading.get_ident(), asyncio.get_running_loop()))
        simulate(params)

    async def cell() -> None:
        with Store(runner, Point, file_suffix=".npy", db_url=databases.url()) as store:
            assert store.run_or_retrieve({"n": 3}).n == 3
            assert [r.n for r in store.sweep({"n": n} for n in (3, 4))] == [3, 4]
        assert seen == [(threading.get_ident(), asyncio.get_running_loop())] * 2

    asyncio.run(cell())


@pytest.mark.parametrize("executor", ["caller", "thread"])
@pytest.mark.parametrize("count", [5, 50])
def test_threads_that_ask_for_one_new_set_get_one_run(
    make_store: Callable[..., Any], count: int, executor: str
) -> None:
    """On a store that none of them has opened yet."""
    store = make_store(executor=executor)
    barrier = threading.Barrier(count)

    def ask(_: int) -> Any:
        barrier.wait(DEADLINE)
        return store.run_or_retrieve({"n": 3})

    with ThreadPoolExecutor(count) as pool:
        records = list(pool.map(ask, range(count)))
    assert calls() == 1
    assert len({record.id for record in records}) == 1
    assert all(Path(record.result_file).stat().st_size for record in records)


def test_threads_may_use_a_store_for_different_things(make_store: Callable[..., Any]) -> None:
    """Each call is its own: runs, hits, sweeps, deletions and registrations at the same time."""
    store = make_store("store-threads")
    Path("made.npy").write_bytes(b"made")

    def use(n: int) -> None:
        mine = [{"n": 100 * n + step} for step in range(5)]
        assert store.run_or_retrieve(mine[0]).n == 100 * n
        assert [record.n for record in store.sweep(mine)] == [params["n"] for params in mine]
        assert store.register(mine[1], "made.npy").result_file == "made.npy"
        assert store.delete(mine[2], remove_file=True)
        assert store.retrieve(mine[2]) is None
        assert store.run(mine[0]).n == 100 * n

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert calls() == 8 * 6


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit()"])
@pytest.mark.parametrize("executor", ["caller", "thread"])
def test_a_forked_child_uses_the_store_and_the_parent_goes_on(executor: str, ending: str) -> None:
    """The loop's thread did not come along; the child's first call starts its own."""
    lines, _ = scripts.run(
        scripts.arguments(executor=executor)
        + f"""
store = make(executor=executor)
store.run_or_retrieve({{"n": 1}})
child = os.fork()
if not child:
    assert store.retrieve({{"n": 1}}).n == 1
    assert store.run_or_retrieve({{"n": 2}}).n == 2
    again = threading.Thread(target=store.run_or_retrieve, args=[{{"n": 3}}])
    again.start()
    again.join()
    store.close()
    assert store.retrieve({{"n": 3}}).n == 3
    say("child")
    {ending}
assert store.run_or_retrieve({{"n": 4}}).n == 4
_, status = os.waitpid(child, 0)
assert not status, status
assert len(store.sweep([{{"n": n}} for n in (1, 2, 3, 4)])) == 4
say("parent", calls())
""",
        *STRICT,
    )
    assert sorted(lines) == ["child", "parent 4"]


def test_a_child_forked_in_the_middle_of_a_run_uses_the_store() -> None:
    """Another thread's call is under way; in the child it is the parent's, and is waited for."""
    lines, _ = scripts.run(
        """
begun, go_on = threading.Event(), threading.Event()

def runner(params):
    if params["n"] == 1:
        begun.set()
        go_on.wait()
    simulate(params)

parent = os.getpid()
store = make(runner)
other = threading.Thread(target=store.run_or_retrieve, args=[{"n": 1}])
other.start()
begun.wait()
heard, told = os.pipe()
child = os.fork()
if not child:
    assert store.run_or_retrieve({"n": 2}).n == 2
    os.write(told, b"2")
    assert store.run_or_retrieve({"n": 1}).n == 1
    say("child")
    os._exit(0)
assert os.read(heard, 1) == b"2"
go_on.set()
_, status = os.waitpid(child, 0)
other.join()
say("parent", status, calls())
""",
        *STRICT,
    )
    assert sorted(lines) == ["child", "parent 0 2"]


def test_a_child_that_collects_its_parents_store_leaves_it_alone() -> None:
    """Closing the parent's connections would be for the parent's loop to do."""
    lines, _ = scripts.run(
        """
store = make(results_dir="others")
store.run_or_retrieve({"n": 1})
child = os.fork()
if not child:
    own = make()
    own.run_or_retrieve({"n": 2})
    del store
    gc.collect()
    own.run_or_retrieve({"n": 3})
    loop = own._store._opening._task.get_loop()
    say(len(asyncio.all_tasks(loop)))
    sys.exit()
_, status = os.waitpid(child, 0)
assert not status, status
say(store.retrieve({"n": 1}).n)
""",
        *STRICT,
    )
    assert lines == ["0", "1"]


def test_a_runner_may_fork() -> None:
    """A runner with worker processes of its own: its children end, and it goes on."""
    lines, _ = scripts.run(
        """
import multiprocessing

def square(n):
    return n * n

def runner(params):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    simulate(params)

store = make(runner)
say(store.run_or_retrieve({"n": 1}).n)
""",
        *STRICT,
    )
    assert lines == ["1"]


def test_a_pickled_store_carries_its_settings_and_no_connections() -> None:
    """The copy opens by itself, here or in another process."""
    store = Store(simulate, Point, file_suffix=".npy", db_url=databases.url())
    store.run_or_retrieve({"n": 3})
    Path("store.pickle").write_bytes(pickle.dumps(store))
    lines, _ = scripts.run(
        """
with open("store.pickle", "rb") as file:
    store = pickle.load(file)
say(store.run_or_retrieve({"n": 3}).n, store.run_or_retrieve({"n": 4}).n, calls())
store.close()
""",
        *STRICT,
    )
    assert lines == ["3 4 2"]
    twin = pickle.loads(Path("store.pickle").read_bytes())
    assert repr(twin) == repr(store)
    assert twin.retrieve({"n": 4}).n == 4
    twin.close()
    assert store.retrieve({"n": 4}) is not None
    store.close()


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_store_of_its_own(
    make_store: Callable[..., Any], make_copy: Callable[[Any], Any]
) -> None:
    """When it is collected, the original's calls go on."""
    begun, go_on = threading.Event(), threading.Event()

    def runner(params: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(DEADLINE)
        simulate(params)

    store = make_store("store-threads", runner=runner)
    with ThreadPoolExecutor(1) as pool:
        twin = make_copy(store)
        record = pool.submit(store.run_or_retrieve, {"n": 3})
        assert begun.wait(DEADLINE)
        assert twin.retrieve({"n": 3}) is None
        before = threads_of_stores()
        del twin
        gc.collect()
        until(lambda: threads_of_stores() < before)
        go_on.set()
        assert record.result(DEADLINE).n == 3


def test_a_pickled_async_store_opens_on_another_loop() -> None:
    """It carries nothing of the loop that the original belongs to."""

    async def use(store: AsyncStore[Point]) -> bytes:
        async with store:
            assert (await store.run_or_retrieve({"n": 3})).n == 3
            return pickle.dumps(store)

    store = AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url())
    twin = pickle.loads(asyncio.run(use(store)))
    asyncio.run(use(twin))
    assert calls() == 1


# On PostgreSQL there are no files, and no threads of connections.
@databases.only_sqlite
@pytest.mark.parametrize("executor", ["caller", "thread"])
def test_a_collected_store_leaves_no_threads_and_no_open_files(executor: str) -> None:
    """Nobody closed it; no warning is raised, either (here they are errors)."""
    before = threads_of_stores()
    stores = [
        Store(
            simulate,
            Point,
            results_dir=f"results{n}",
            file_suffix=".npy",
            db_url=f"sqlite:///{n}.sqlite3",
            executor=executor,
        )
        for n in range(5)
    ]
    for store in stores:
        store.run_or_retrieve({"n": 3})
    assert threads_of_stores() - before  # some of which may have been about to end
    assert open_files()
    references = [weakref.ref(store) for store in stores]
    del store, stores
    gc.collect()
    assert not any(reference() for reference in references)
    until(lambda: threads_of_stores() <= before)
    until(lambda: not open_files())
    gc.collect()


@databases.only_postgresql
@pytest.mark.parametrize("executor", ["caller", "thread"])
def test_a_collected_store_leaves_no_connections(executor: str) -> None:
    """Nobody closed it; no warning is raised, either (here they are errors)."""
    before = threads_of_stores()
    store = Store(simulate, Point, file_suffix=".npy", db_url=databases.url(), executor=executor)
    store.run_or_retrieve({"n": 3})
    assert databases.current().connections()
    reference = weakref.ref(store)
    del store
    gc.collect()
    assert reference() is None
    until(lambda: threads_of_stores() <= before)
    until(lambda: not databases.current().connections())
    gc.collect()


def test_an_async_store_is_collected_after_it_is_closed() -> None:
    """Neither the loop nor a thread keeps it."""

    async def use() -> weakref.ref[AsyncStore[Point]]:
        async with AsyncStore(
            simulate_async, Point, file_suffix=".npy", db_url=databases.url()
        ) as store:
            await store.sweep([{"n": n} for n in range(5)])
        return weakref.ref(store)

    reference = asyncio.run(use())
    gc.collect()
    assert reference() is None


def test_a_closed_store_leaves_no_threads_and_no_open_files(
    make_store: Callable[..., Any],
) -> None:
    """Closed while nothing is under way, it has given everything back when close returns."""
    before = threads_of_stores()
    store = make_store("store-threads")
    store.sweep([{"n": n} for n in range(5)])
    store.close()
    assert not open_files()
    until(lambda: threads_of_stores() <= before and not databases.current().connections())


def test_a_closed_store_opens_again_at_its_next_call(make_store: Callable[..., Any]) -> None:
    """Closing twice, or before any call, is as good as once."""
    store = make_store()
    store.close()
    assert store.run_or_retrieve({"n": 3}).n == 3
    store.close()
    store.close()
    assert store.run_or_retrieve({"n": 3}).n == 3
    assert calls() == 1
    with store as same:
        assert same is store
        assert store.run_or_retrieve({"n": 4}).n == 4
    assert store.retrieve({"n": 4}).n == 4


def test_with_opens_at_once_and_closes_after_an_error(make_store: Callable[..., Any]) -> None:
    """What cannot be opened is told at the beginning of the block."""
    store = make_store(results_dir="file")
    Path("file").write_text("not a folder")
    with pytest.raises(OSError, match="it is a file"), store:
        pytest.fail("the block must not begin")
    Path("file").unlink()
    with pytest.raises(ZeroDivisionError), store:
        _ = 1 / len(store.sweep([]))
    assert not open_files()


@pytest.mark.parametrize("executor", ["caller", "thread"])
def test_closing_under_a_call_lets_its_run_end(
    make_store: Callable[..., Any], executor: str
) -> None:
    """What runs in a thread cannot be stopped: it ends, is kept, and its caller gets it."""
    begun, go_on = threading.Event(), threading.Event()

    def runner(params: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(DEADLINE)
        simulate(params)

    store = make_store(runner=runner, executor=executor)
    with ThreadPoolExecutor(2) as pool:
        record = pool.submit(store.run_or_retrieve, {"n": 3})
        assert begun.wait(DEADLINE)
        closing = pool.submit(store.close)
        with pytest.raises(TimeoutError):
            closing.result(0.1)
        go_on.set()
        closing.result(DEADLINE)
        assert record.result(DEADLINE).n == 3
    assert store.retrieve({"n": 3}).n == 3
    assert calls() == 1


def test_closing_under_an_async_run_tells_its_caller(make_store: Callable[..., Any]) -> None:
    """It is stopped, and whoever waits for it gets an error that says why."""
    begun, stopped = threading.Event(), threading.Event()

    async def runner(params: dict[str, Any]) -> None:
        begun.set()
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            stopped.set()

    store = make_store(runner=runner)
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(store.run_or_retrieve, {"n": 3})
        assert begun.wait(DEADLINE)
        store.close()
        assert stopped.is_set()
        with pytest.raises(StoreClosedError, match="closed while"):
            record.result(DEADLINE)


def test_an_async_runner_that_calls_its_own_store_is_told_what_to_use(
    make_store: Callable[..., Any],
) -> None:
    """It would wait for itself, on its own loop."""

    async def runner(params: dict[str, Any]) -> None:
        store.run_or_retrieve({"n": 4})

    store = make_store(runner=runner)
    with pytest.raises(WrongLoopError, match="AsyncStore"):
        store.run_or_retrieve({"n": 3})
    assert store.retrieve({"n": 3}) is None


def test_an_async_runner_may_call_its_store_from_a_thread(make_store: Callable[..., Any]) -> None:
    """There, nothing waits for itself."""

    async def runner(params: dict[str, Any]) -> None:
        if params["n"]:
            await asyncio.to_thread(store.run_or_retrieve, {"n": params["n"] - 1})
        simulate(params)

    store = make_store(runner=runner, max_workers=1)
    assert store.run_or_retrieve({"n": 3}).n == 3
    assert calls() == 4


def test_a_sweep_takes_an_async_iterable(make_store: Callable[..., Any]) -> None:
    """It is read on the store's own loop."""

    async def sets() -> Any:
        for n in range(3):
            await asyncio.sleep(0)
            yield {"n": n}

    assert [record.n for record in make_store().sweep(sets())] == [0, 1, 2]


@databases.either
def test_a_call_costs_its_thread_little(make_store: Callable[..., Any]) -> None:
    """A waiting thread sleeps: it does not poll."""
    begun, go_on = threading.Event(), threading.Event()

    async def runner(params: dict[str, Any]) -> None:
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.05)
        simulate(params)

    store = make_store(runner=runner)
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(store.run_or_retrieve, {"n": 3})
        assert begun.wait(DEADLINE)
        before = time.process_time()
        with pytest.raises(TimeoutError):
            record.result(0.5)
        assert time.process_time() - before < 0.2
        go_on.set()
        assert record.result(DEADLINE).n == 3


FORKING = """\
import itertools

store = make(lock_timeout=5)
store.run_or_retrieve({"n": 0})
over = threading.Event()

def write():
    for n in itertools.count(1):
        if over.is_set():
            break
        store.run_or_retrieve({"n": n})

writing = threading.Thread(target=write)
writing.start()
children = []
for k in range(CHILDREN):
    while store.retrieve({"n": 10 * k}) is None:  # so that they are forked at different moments
        time.sleep(0.001)
    child = os.fork()
    if not child:
        signal.alarm(30)
        store.retrieve({"n": 0})
        store.run_or_retrieve({"n": -1 - k})
        os._exit(0)
    children.append(child)
over.set()
writing.join()
say(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
store.close()
"""


@pytest.mark.parametrize("children", [10, pytest.param(200, marks=pytest.mark.nightly)])
def test_a_child_that_is_forked_while_others_write_can_write(children: int) -> None:
    """SQLite keeps its locks in the memory of the process, and a child would inherit them."""
    lines, _ = scripts.run(scripts.arguments(CHILDREN=children) + FORKING, *STRICT)
    assert lines == [" ".join(["0"] * children)]
    assert databases.ask("SELECT count(*) FROM points WHERE n < 0") == [children]
    assert databases.current().is_sound()


ENDING = """\
import concurrent.futures.thread as pools

def run(params):
    while not pools._shutdown:  # the main thread has ended, and with it all pools
        time.sleep(0.01)
    simulate(params)

store = make(run, executor=EXECUTOR)

def ask():
    try:
        store.run_or_retrieve({"n": 1})
        say("stored")
    except Exception as error:
        say(type(error).__name__)

threading.Thread(target=ask).start()
"""


@pytest.mark.parametrize("executor", ["caller", "thread"])
def test_a_thread_that_outlives_the_main_one_is_told_so(executor: str) -> None:
    """And what it has finished is stored by whoever comes next, and is nobody's failure."""
    with scripts.script(scripts.arguments(EXECUTOR=executor) + ENDING) as script:
        assert script.expect() in {"stored", "StoreClosedError"}
        script.ended()
    with Store(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
        assert store.failures() == []
        assert store.run_or_retrieve({"n": 1}).n == 1
        assert store.failures() == []
    assert calls() == 1
