"""A Dask cluster as the place to run."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from entropic import (
    AsyncStore,
    Recovered,
    RunError,
    RunTimeoutError,
    SettingsError,
    Store,
    SweepError,
    WorkerDiedError,
)
from entropic.executors.dask import Dask, DaskExecutor
from tests import databases, scripts
from tests.simulations import (
    Point,
    calls,
    end_process,
    mark_call,
    simulate,
    simulate_and_then,
    simulate_async,
)

# Workers that are killed leave their sockets to the garbage collector, in Dask's own code.
pytestmark = [
    pytest.mark.usefixtures("database"),
    databases.either,
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DEADLINE = 20.0


@pytest.fixture(autouse=True)
def sockets_end_here() -> Iterator[None]:
    """What killed workers left is collected where nobody minds, not in a later test."""
    yield
    gc.collect()


def sets(count: int) -> list[dict[str, Any]]:
    """So many parameter sets."""
    return [{"n": n} for n in range(count)]


def start_cluster(**options: Any) -> Any:
    """A cluster of this machine."""
    from distributed import LocalCluster

    usual = {"threads_per_worker": 1, "dashboard_address": ":0"}
    return LocalCluster(**{**usual, **options})


@pytest.fixture(scope="module")
def threads() -> Iterator[Any]:
    """A cluster in threads of this process."""
    with start_cluster(n_workers=1, threads_per_worker=2, processes=False) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """A cluster of two worker processes."""
    with start_cluster(n_workers=2, resources={"GPU": 1}) as cluster:
        yield cluster


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.nightly)])
def cluster(request: pytest.FixtureRequest) -> Any:
    """A cluster of each kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    """A synchronous client."""
    from distributed import Client

    with Client(cluster) as client:
        yield client


@pytest.fixture(params=["store", "async-threads"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both faces."""
    face: str = request.param
    return face


def here(runner: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """A runner that works in the test's folder, wherever its worker was started."""
    folder = os.getcwd()

    def run(params: dict[str, Any]) -> Any:
        os.chdir(folder)
        return runner(params)

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Look until something is so."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def hold(params: dict[str, Any]) -> None:
    """A runner that goes on when there is a file ``go``."""
    mark_call(params)
    deadline = time.monotonic() + DEADLINE
    while not Path("go").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    Path(params["result_file"]).write_text("done")


def test_a_sweep_runs_on_the_cluster(
    client: Any, make_store: Callable[..., Any], kind: str
) -> None:
    """What is stored is not run again; each set is run once; no task stays in the scheduler."""

    def name_place(params: dict[str, Any]) -> None:
        Path(f"place-{params['n']}").write_text(threading.current_thread().name)
        simulate(params)

    store = make_store(kind, runner=here(name_place))
    store.run_or_retrieve({"n": 1})
    records = store.sweep(({"n": n} for n in range(12)), client=client)
    assert [record.n for record in records] == list(range(12))
    assert calls() == 12
    places = {path.name: path.read_text() for path in Path().glob("place-*")}
    del places["place-1"]
    assert all("Dask" in place for place in places.values()), places
    assert os.listdir("results/.entropic/staging") == []


def test_an_asynchronous_client_and_an_async_runner(cluster: Any) -> None:
    """On the loop that client and store belong to; the runner is awaited inside the worker."""
    from distributed import Client

    async def main() -> None:
        folder = os.getcwd()

        async def runner(params: dict[str, Any]) -> None:
            os.chdir(folder)
            await simulate_async(params)

        async with (
            Client(cluster.scheduler_address, asynchronous=True) as client,
            AsyncStore(
                runner, Point, file_suffix=".npy", executor=client, db_url=databases.url()
            ) as store,
        ):
            assert [record.n for record in await store.sweep(sets(6))] == list(range(6))
            assert not client.futures

    asyncio.run(main())
    assert calls() == 6


def test_the_scheduler_holds_a_few_tasks_for_each_thread(
    threads: Any, make_store: Callable[..., Any]
) -> None:
    """However many sets there are, and however many stores ask at once."""
    from distributed import Client

    most = 0

    def runner(params: dict[str, Any]) -> None:
        nonlocal most
        simulate(params)

    def watch(dask_scheduler: Any = None) -> None:
        nonlocal most
        keys = [key for key in threads.scheduler.tasks if str(key).startswith("entropic")]
        most = max(most, len(keys))

    with Client(threads) as client:
        from distributed.diagnostics.plugin import SchedulerPlugin

        class Count(SchedulerPlugin):  # type: ignore[misc, unused-ignore]
            def transition(self, *args: Any, **kwargs: Any) -> None:
                watch()

        plugin = Count()
        threads.scheduler.add_plugin(plugin, name="count")
        stores = [make_store("store", runner=here(simulate)) for _ in range(2)]
        callers = [
            threading.Thread(
                target=store.sweep,
                args=([{"n": n} for n in range(first, first + 100)],),
                kwargs={"client": client},
            )
            for store, first in zip(stores, (0, 1000), strict=True)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        threads.scheduler.remove_plugin(name="count")
    assert calls() == 200
    assert 2 < most <= 3 * 16  # 16 for 2 threads; released ones are forgotten a little later


def count_asked(handlers: dict[str, Any], name: str, counts: Counter[str]) -> None:
    """Have a scheduler count how often it is asked for something."""
    handler = handlers[name]

    async def count(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return await handler(*args, **kwargs)

    handlers[name] = count


@pytest.mark.parametrize("asynchronous", [False, True])
def test_runs_that_begin_and_end_together_share_their_ways_to_the_scheduler(
    asynchronous: bool,
) -> None:
    """What is ready is submitted at once, and what has ended is fetched at once."""
    from distributed import Client

    def end_in_turn(params: dict[str, Any]) -> None:
        hold(params)
        time.sleep(params["n"] * 0.002)

    count = 16

    asked: Counter[str] = Counter()

    async def sweep(address: str) -> None:
        if asynchronous:
            client = await Client(address, asynchronous=True)
        else:
            client = await asyncio.to_thread(Client, address)
        async with AsyncStore(
            here(end_in_turn), Point, file_suffix=".npy", db_url=databases.url()
        ) as store:
            sweep = asyncio.create_task(store.sweep(sets(count), client=client))
            await until(lambda: calls() == count)
            Path("go").touch()
            assert len(await sweep) == count
        await (client.close() if asynchronous else asyncio.to_thread(client.close))

    with start_cluster(n_workers=1, threads_per_worker=count, processes=False) as cluster:
        count_asked(cluster.scheduler.handlers, "gather", asked)
        count_asked(cluster.scheduler.stream_handlers, "update-graph", asked)
        asyncio.run(sweep(cluster.scheduler_address))
    assert asked["gather"] <= count // 2
    assert asked["update-graph"] <= count // 2


def test_an_answer_that_dies_with_its_worker_is_not_lost(make_store: Callable[..., Any]) -> None:
    """It had ended, and others with it: no run fails, and none is run twice."""
    from distributed import Client

    with start_cluster(n_workers=2) as cluster, Client(cluster) as client:
        handlers = cluster.scheduler.handlers
        gather = handlers["gather"]

        async def kill_first(keys: Any, **options: Any) -> Any:
            handlers["gather"] = gather
            states = [cluster.scheduler.tasks[key] for key in keys]
            addresses = {worker.address for state in states for worker in state.who_has}
            os.kill(pids[min(addresses)], signal.SIGKILL)
            return await gather(keys, **options)

        pids = client.run(os.getpid)
        handlers["gather"] = kill_first
        store = make_store(runner=here(simulate))
        assert [record.n for record in store.sweep(sets(4), client=client)] == list(range(4))
        assert handlers["gather"] is gather
    assert (calls(), store.failures()) == (4, [])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_cancelled_sweep_cancels_what_waits_and_keeps_what_runs(
    threads: Any, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler forgets the rest, which never begins; the call itself ends at once."""
    from distributed import Client

    def tasks() -> list[str]:
        return [key for key in threads.scheduler.tasks if str(key).startswith("entropic")]

    looks = 0
    look = DaskExecutor._see_what_began

    async def see(executor: DaskExecutor) -> None:
        nonlocal looks
        await look(executor)
        looks += 1

    monkeypatch.setattr(DaskExecutor, "_see_what_began", see)

    async def main() -> None:
        if asynchronous:
            client = await Client(threads.scheduler_address, asynchronous=True)
        else:
            client = await asyncio.to_thread(Client, threads.scheduler_address)
        async with AsyncStore(
            here(hold), Point, file_suffix=".npy", db_url=databases.url()
        ) as store:
            sweep = asyncio.create_task(store.sweep(sets(4), client=client))
            await until(lambda: calls() == 2 and len(tasks()) == 4)
            seen = looks
            await until(lambda: looks >= seen + 2)  # has seen what has begun
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(5):
                    await sweep
            await until(lambda: len(tasks()) == 2)
            Path("go").touch()
            await until(lambda: not tasks())
        await (client.close() if asynchronous else asyncio.to_thread(client.close))

    asyncio.run(main())
    assert calls() == 2
    assert os.listdir("results/.entropic/staging") == []
    assert databases.ask("SELECT count(*) FROM points") == [2]


def die(params: dict[str, Any]) -> None:
    """A runner that kills its worker, for one set."""
    mark_call(params)
    if params["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    Path(params["result_file"]).write_text("done")


def test_a_worker_that_dies_fails_its_run_alone(make_store: Callable[..., Any], kind: str) -> None:
    """Once: what Dask would run three more times is not run again unless ``retries`` says so."""
    from distributed import Client

    with start_cluster(n_workers=2) as cluster, Client(cluster) as client:
        store = make_store(kind, runner=here(die))
        with pytest.raises(SweepError) as caught:
            store.sweep(sets(6), client=client, on_error="finish")
        errors = [failure.exception for failure in caught.value.failures]
        dead = [f for f in caught.value.failures if f.params["n"] == 1]
        assert all(isinstance(error, WorkerDiedError) for error in errors), errors
        assert len(dead) == 1
        assert calls(dead[0].id) == 1
        # Its neighbours on that worker may have been begun there, too, but nothing else.
        assert len(errors) <= 2
        assert len(caught.value.records) == 6 - len(errors)
    assert os.listdir("results/.entropic/staging") == []


@pytest.mark.parametrize("deaths", [0, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_finished_run_outlives_the_workers_that_could_not_say_so(
    make_store: Callable[..., Any], deaths: int
) -> None:
    """Its result was sealed: it is stored, whether Dask gives its task up or tries it again."""
    import dask
    from distributed import Client

    runner = here(partial(simulate_and_then, end_process))
    allowed = {"distributed.scheduler.allowed-failures": deaths}
    with dask.config.set(allowed), start_cluster(n_workers=1) as cluster, Client(cluster) as client:
        store = make_store(runner=runner)
        assert [record.n for record in store.sweep(sets(1), client=client)] == [0]
    assert (calls(), store.failures()) == (1, [])
    assert os.listdir("results/.entropic/staging") == []


def test_the_outcome_of_a_finished_run_survives_its_worker(
    make_store: Callable[..., Any], folder: Path
) -> None:
    """A task that is run again finds the sealed result of its first time."""
    from entropic.artifacts import Stage
    from entropic.executors.dask_worker import run_task
    from entropic.executors.parcels import dumps
    from entropic.worker import Job

    stage = Stage(str(folder / "stage"), "a.npy")
    job = Job(simulate, {"n": 1, "dt": 0.5}, "a", "cache", stage, True)
    first, second = (run_task(dumps(job)).open() for _ in range(2))
    assert first.staged is not None
    assert second == first
    assert calls() == 1
    Path(stage.sidecar).unlink()
    assert isinstance(run_task(dumps(job)).open().error, WorkerDiedError)
    assert calls() == 1


def test_a_late_run_is_stopped_for_real(
    processes: Any, make_store: Callable[..., Any], kind: str
) -> None:
    """The worker lives on; an async runner is stopped, too."""
    from distributed import Client

    def sleep(params: dict[str, Any]) -> None:
        Path("pid").write_text(str(os.getpid()))
        time.sleep(60)

    async def sleep_async(params: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    with Client(processes) as client:
        workers = set(client.run(os.getpid).values())
        with pytest.raises(RunTimeoutError):
            make_store(kind, runner=here(sleep)).sweep(sets(1), client=client, timeout=1)
        assert int(Path("pid").read_text()) not in workers
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path("pid").read_text()), 0)
        with pytest.raises(RunTimeoutError):
            make_store(kind, runner=sleep_async).sweep(sets(1), client=client, timeout=0.2)
        assert set(client.run(os.getpid).values()) == workers


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("client", marks=pytest.mark.nightly),
        "cluster",
        pytest.param("restart", marks=pytest.mark.nightly),
    ],
)
def test_a_cluster_that_goes_away_under_a_sweep_is_an_error(end: str) -> None:
    """No hang; what was not finished is not stored, and the next sweep runs it."""
    from distributed import Client

    async def main() -> None:
        with await asyncio.to_thread(start_cluster, n_workers=1) as cluster:
            client = await asyncio.to_thread(Client, cluster)
            async with AsyncStore(
                here(hold), Point, file_suffix=".npy", db_url=databases.url()
            ) as store:
                sweep = asyncio.create_task(store.sweep(sets(3), client=client))
                await until(lambda: calls() == 1)
                ending = {
                    "client": client.close,
                    "cluster": cluster.close,
                    "restart": client.restart,
                }
                await asyncio.to_thread(ending[end])
                with pytest.raises(RunError, match=r"went away|restarted|closed"):
                    async with asyncio.timeout(DEADLINE):
                        await sweep
                Path("go").touch()
                assert len(await store.sweep(sets(3))) == 3
            await asyncio.to_thread(client.close)

    asyncio.run(main())
    assert databases.ask("SELECT count(*) FROM points") == [3]


def test_submit_options_pass_through(processes: Any, make_store: Callable[..., Any]) -> None:
    """Workers that were chosen run it all; resources are kept to."""
    from distributed import Client

    def note(params: dict[str, Any]) -> None:
        from distributed import get_worker

        Path(f"at-{params['n']}").write_text(get_worker().address)
        simulate(params)

    with Client(processes) as client:
        address = min(client.scheduler_info()["workers"])
        executor = Dask(client, workers=[address], resources={"GPU": 1}, priority=10)
        store = make_store(runner=here(note), executor=executor)
        assert len(store.sweep(sets(4))) == 4
    assert {path.read_text() for path in Path().glob("at-*")} == {address}


def test_options_that_cannot_work_are_refused(client: Any) -> None:
    """By their names."""
    for option in ("key", "pure", "actor", "prioritty", "func"):
        with pytest.raises(SettingsError, match=option):
            Dask(client, **{option: True})


def test_a_client_with_options_does_not_change(client: Any) -> None:
    """It says what it is, and is what an executor was made of."""
    dask = Dask(client, priority=1)
    with pytest.raises(AttributeError, match="make another one"):
        dask.client = None
    with pytest.raises(TypeError):
        dask.submit_options["priority"] = 2  # type: ignore[index]
    assert "priority=1" in repr(dask)
    with pytest.raises(SettingsError, match=r"client must be .*, not Dask"):
        Dask(dask)


def test_the_executor_follows_a_cluster_that_grows(make_store: Callable[..., Any]) -> None:
    """One long run is enough for it to see."""
    from distributed import Client

    async def main() -> None:
        with (
            await asyncio.to_thread(
                start_cluster, n_workers=1, threads_per_worker=3, processes=False
            ) as cluster,
            await asyncio.to_thread(Client, cluster) as client,
        ):
            executor = await DaskExecutor.connect(client)
            assert executor.workers == 3
            await asyncio.to_thread(cluster.scale, 2)
            await asyncio.to_thread(client.wait_for_workers, 2)
            await executor._measure()
            assert executor.workers == 6
            limited = await DaskExecutor.connect(client, 2)
            assert limited.workers == 2

    asyncio.run(main())


def test_a_runner_that_cannot_be_sent_is_refused(
    client: Any, make_store: Callable[..., Any], kind: str
) -> None:
    """Says which, and what in it; nothing has started."""
    lock = threading.Lock()

    def locked(params: dict[str, Any]) -> None:
        with lock:
            simulate(params)

    with pytest.raises(SettingsError, match=r"runner .*locked cannot be sent .* '_thread.lock'"):
        make_store(kind, runner=locked).sweep(sets(1), client=client)


class StubbornError(Exception):
    """An error that can be pickled, and not be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two numbers")


def test_an_error_that_cannot_be_unpickled_is_told_as_text(
    processes: Any, make_store: Callable[..., Any]
) -> None:
    """Its type and its message."""
    from distributed import Client

    def runner(params: dict[str, Any]) -> None:
        raise StubbornError(1, 2)

    with (
        Client(processes) as client,
        pytest.raises(RunError, match="StubbornError: of two numbers"),
    ):
        make_store(runner=runner).sweep(sets(1), client=client)


def test_a_module_that_the_worker_has_not_is_named(
    processes: Any, make_store: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner's own module, as a worker elsewhere may lack it."""
    from distributed import Client

    Path("only_here.py").write_text("def runner(params):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found, unused-ignore]

    with (
        Client(processes) as client,
        pytest.raises(RunError, match="no module 'only_here'"),
    ):
        make_store(runner=only_here.runner).sweep(sets(1), client=client)


def test_a_client_of_another_loop_is_refused_at_once(
    threads: Any, make_store: Callable[..., Any]
) -> None:
    """Its loop is waiting for this very call, and could never answer."""
    from distributed import Client

    async def main() -> None:
        async with Client(threads.scheduler_address, asynchronous=True) as client:
            with pytest.raises(SettingsError, match="another event loop"):
                make_store().sweep([{"n": 1}], client=client)

    asyncio.run(main())


def test_a_closed_client_is_refused(threads: Any, make_store: Callable[..., Any]) -> None:
    """With its state; nothing has run."""
    from distributed import Client

    with Client(threads) as client:
        pass
    with pytest.raises(SettingsError, match="client is closed"):
        make_store().sweep([{"n": 1}], client=client)
    assert calls() == 0


@pytest.mark.parametrize("client", ["tcp://127.0.0.1:8786", 5, Store])
def test_what_is_no_client_is_refused(client: Any, make_store: Callable[..., Any]) -> None:
    """An address is none; Dask is not imported to find out."""
    with pytest.raises(SettingsError, match=r"client must be a dask\.distributed\.Client"):
        make_store().sweep([{"n": 1}], client=client)


def fail(params: dict[str, Any]) -> None:
    """A runner that does."""
    raise ZeroDivisionError("too small a step")


@databases.both
def test_a_runners_failure_reaches_the_caller(client: Any, make_store: Callable[..., Any]) -> None:
    """As itself, with its note; and it is remembered."""
    with pytest.raises(ZeroDivisionError, match="too small") as caught:
        make_store(runner=fail).sweep([{"n": 1}], client=client)
    assert any("'n': 1" in note for note in caught.value.__notes__)
    assert databases.ask("SELECT state FROM entropic_runs") == ["failed"]


SLOW = """\
from distributed import Client

def slow(params):
    Path("begun").touch()
    while not Path("go on").exists():
        time.sleep(0.01)
    simulate(params)

with Client(ADDRESS) as client:
    make(slow, lease_ttl=TTL).sweep([{"n": 1}], client, TIMEOUT)
"""


@databases.both
@pytest.mark.parametrize("timeout", [pytest.param("", marks=pytest.mark.nightly), "timeout=60"])
def test_a_run_that_outlives_its_store_is_waited_for_and_stored(timeout: str) -> None:
    """However long its runner computes before it writes anything."""
    ttl = 1.0
    source = "from pathlib import Path\n" + SLOW.replace("TIMEOUT", timeout)
    with start_cluster(n_workers=1, processes=False, protocol="tcp://") as cluster:
        settings = scripts.arguments(ADDRESS=cluster.scheduler_address, TTL=ttl)
        with scripts.script(settings + source) as script:
            scripts.wait_for(Path("begun").exists)
            script.process.kill()
            script.ended()
        killed = time.time()
        (stage,) = Path("results/.entropic/staging").iterdir()
        scripts.wait_for(lambda: stage.stat().st_mtime > killed + ttl)
        with Store(
            simulate, Point, file_suffix=".npy", db_url=databases.url(), lease_ttl=ttl
        ) as store:
            assert store.recover() == Recovered()
            Path("go on").touch()
            scripts.wait_for((stage / ".sidecar.json").exists)
            (id,) = store.recover().published
            record = store.retrieve({"n": 1})
    assert record is not None
    assert record.id == id
    assert calls() == 1
