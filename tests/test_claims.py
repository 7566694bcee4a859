"""One run among all who share a database: claims, waiting, takeovers, and sweeps that share."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from entropic import AsyncStore, DatabaseError, Recovered, RemoteRunError, SettingsError, Store
from entropic.ledger import Ledger, State
from entropic.pipeline.elsewhere import Elsewhere
from tests import databases, outsiders, scripts
from tests.scripts import wait_for
from tests.simulations import Point, calls, mark_call, simulate

pytestmark = pytest.mark.usefixtures("database")


def make(runner: Callable[..., Any] = simulate, kind: Any = AsyncStore, **settings: Any) -> Any:
    """A store of its own on the one database."""
    return kind(runner, Point, file_suffix=".npy", db_url=databases.url(), **settings)


def until_released(params: dict[str, Any]) -> None:
    """A runner that ends when it is let."""
    mark_call(params)
    wait_for(lambda: Path("released").exists())
    Path(params["result_file"]).write_text("done")


HOLDING = """\
def run(params):
    mark_call(params)
    say("in", os.getpid())
    while not os.path.exists("released"):
        time.sleep(0.01)
    open(params["result_file"], "w").write("the first")
    if FAILS: raise ValueError("in vain")
store = make(run, lease_ttl=TTL, executor=EXECUTOR)
try:
    say("got", store.run_or_retrieve({"n": N}, by="the first").custom_data["by"])
except Exception as error:
    say("failed", type(error).__name__)
"""


@contextlib.contextmanager
def holding(
    n: int = 1, *, ttl: float = 3600, fails: bool = False, executor: str = "caller"
) -> Iterator[scripts.Script]:
    """Another process that runs ``{"n": 1}``, or another set, until it is released."""
    settings = scripts.arguments(N=n, TTL=ttl, FAILS=fails, EXECUTOR=executor)
    with scripts.script(settings + HOLDING) as script:
        script.expect("in")
        yield script


def write_second(params: dict[str, Any]) -> None:
    """The runner of who takes a run over."""
    mark_call(params)
    Path(params["result_file"]).write_text("the second")


@pytest.mark.parametrize("kind", [Store, AsyncStore])
def test_two_stores_that_want_one_set_run_it_once(folder: Path, kind: Any) -> None:
    """In one process, too; both get the record of the one run."""

    async def main() -> list[str]:
        async with make(until_released) as one, make(until_released) as two:
            both = [asyncio.create_task(s.run_or_retrieve({"n": 1})) for s in (one, two)]
            await asyncio.to_thread(wait_for, lambda: calls() == 1)
            Path("released").touch()
            return [record.id for record in await asyncio.gather(*both)]

    if kind is AsyncStore:
        first, second = asyncio.run(main())
    else:
        got: list[str] = []
        stores = [make(until_released, Store) for _ in range(2)]
        threads = [
            threading.Thread(target=lambda s=s: got.append(s.run_or_retrieve({"n": 1}).id))
            for s in stores
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: calls() == 1)
        Path("released").touch()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
        first, second = got
    assert first == second
    assert calls() == 1


def test_another_process_that_runs_it_is_waited_for(folder: Path) -> None:
    """Its record comes as soon as it lands."""
    with holding() as other, make(kind=Store) as store:
        asking = threading.Thread(target=lambda: got.append(store.run_or_retrieve({"n": 1})))
        got: list[Any] = []
        asking.start()
        Path("released").touch()
        other.expect("got", "the first")
        landed = time.monotonic()
        asking.join()
        assert time.monotonic() - landed < 2
    assert got[0].custom_data["by"] == "the first"
    assert Path(got[0].result_file).read_text() == "the first"
    assert calls() == 1


@pytest.mark.timeout(30)
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_postgresql_tells_waiters_at_once(
    database: databases.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would look again after an hour; also where the connection that listens was lost."""
    for delay in ("_FIRST_DELAY", "_LONGEST_DELAY"):
        monkeypatch.setattr(f"entropic.pipeline.elsewhere.{delay}", 3600.0)
    took: list[float] = []
    with make(kind=Store) as store:
        for n in range(5):
            Path("released").unlink(missing_ok=True)
            if n == 3:
                database.ask(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%'"
                )
            with holding(n) as other, ThreadPoolExecutor(1) as thread:
                asking = thread.submit(store.run_or_retrieve, {"n": n})
                wait_for(lambda: bool(listeners(database)))
                Path("released").touch()
                other.expect("got", "the first")
                landed = time.monotonic()
                assert asking.result().custom_data["by"] == "the first"
                took.append(time.monotonic() - landed)
    assert sorted(took)[2] < 0.05


def listeners(place: Any) -> list[Any]:
    """The sessions that were last told to listen."""
    return list(place.ask("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"))


def test_a_failure_elsewhere_is_that_of_all_who_waited(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As text, of which nothing is unpickled; the next request tries again."""
    caplog.set_level(logging.INFO, "entropic")
    with holding(fails=True) as other, make(kind=Store) as store:
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(store.run_or_retrieve, {"n": 1})
            wait_for(lambda: "is under way in another store" in caplog.text)
            Path("released").touch()
            other.expect("failed", "ValueError")
            error = asking.exception()
        assert isinstance(error, RemoteRunError)
        assert error.type_name == "builtins.ValueError"
        assert str(error) == "in vain"
        assert error.params == {"n": 1, "dt": 0.5, "label": None}
        assert "ValueError: in vain" in (error.traceback or "")
        assert store.run_or_retrieve({"n": 1}).n == 1
    assert calls() == 2


@pytest.mark.parametrize("executor", ["caller", "thread", "process"])
def test_a_dead_owners_run_is_taken_over_at_once(folder: Path, executor: str) -> None:
    """Killed, it needs no lease to pass: its process is seen to be gone."""
    with holding(executor=executor) as other, make(write_second, Store) as store:
        other.process.kill()
        other.process.wait()
        begun = time.monotonic()
        record = store.run_or_retrieve({"n": 1})
        assert time.monotonic() - begun < 5
        assert Path(record.result_file).read_text() == "the second"
    assert databases.ask("SELECT state, token, owner FROM entropic_runs") == [("done", 2, None)]


def test_an_owner_that_was_paused_past_its_lease_gets_the_winners_record(folder: Path) -> None:
    """The second owner's row and bytes stand."""
    with holding(ttl=0.5) as other, make(write_second, Store, lease_ttl=0.5) as store:
        stop(other)
        record = store.run_or_retrieve({"n": 1}, by="the second")
        go_on(other)
        assert other.expect("got") == "the second"
        assert other.ended() == 0
        assert Path(record.result_file).read_text() == "the second"
        assert store.retrieve({"n": 1}).custom_data["by"] == "the second"
    assert os.listdir("results/.entropic/staging") == []


def test_a_paused_owner_whose_stage_has_gone_gets_the_winners_record(folder: Path) -> None:
    """Its runner fails, as its folder was cleared away: that is not its caller's concern."""
    with holding(ttl=0.5) as other, make(write_second, Store, lease_ttl=0.5) as store:
        pause(other)
        store.run_or_retrieve({"n": 1}, by="the second")
        assert len(store.recover().discarded) == 1
        go_on(other)
        assert other.expect("got") == "the second"
    assert calls() == 2


SWEEPING = """\
def run(params):
    if not os.path.exists("released"):
        say("in")
    while not os.path.exists("released"):
        time.sleep(0.01)
    open(params["result_file"], "w").write("the first")
store = make(run, lease_ttl=0.5)
say("got", *(record.n for record in store.sweep({"n": n} for n in range(1, 6))))
"""


def test_a_paused_owner_whose_stage_has_gone_goes_on_with_its_sweep(folder: Path) -> None:
    """What failed there is not its run any more, and stops no other."""
    with scripts.script(SWEEPING) as other, make(write_second, Store, lease_ttl=0.5) as store:
        other.expect("in")
        pause(other)
        assert len(store.sweep([{"n": n} for n in range(1, 4)])) == 3
        assert len(store.recover().discarded) == 1
        go_on(other)
        assert other.expect("got") == "1 2 3 4 5"


def test_a_paused_owner_of_this_machine_keeps_its_stage(folder: Path) -> None:
    """Nobody wants its run: when it goes on, it finishes it."""
    with holding(ttl=0.5) as other, make(write_second, Store, lease_ttl=0.5) as store:
        pause(other)
        wait_for(has_lapsed)
        assert store.recover() == Recovered()
        go_on(other)
        assert other.expect("got") == "the first"
    assert calls() == 1


def test_a_paused_owner_of_another_machine_is_fenced_before_its_stage_goes(folder: Path) -> None:
    """It may have died there. If it has not, it runs again."""
    with holding(ttl=0.5) as other, make(write_second, Store, lease_ttl=0.5) as store:
        pause(other)
        wait_for(has_lapsed)
        elsewhere = json.dumps(["elsewhere", ["another boot", "pid:[1]", "time:[1]"], 1, "1", "0"])
        databases.change(f"UPDATE entropic_runs SET owner = '{elsewhere}'")
        assert len(store.recover().discarded) == 1
        assert databases.ask("SELECT token, owner FROM entropic_runs") == [(2, None)]
        go_on(other)
        other.expect("in")
        assert other.expect("got") == "the first"
    assert calls() == 2
    assert os.listdir("results/.entropic/staging") == []


def stop(owner: scripts.Script) -> None:
    """Stop an owner; not in the middle of a heartbeat, whose lock all others would wait for."""
    process = psutil.Process(owner.process.pid)

    def is_stopped_outside() -> bool:
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        if databases.is_locked():
            process.resume()
            return False
        return True

    wait_for(is_stopped_outside)


def pause(owner: scripts.Script) -> None:
    """Stop an owner, as if it had not written to its stage for an hour."""
    stop(owner)
    (stage,) = Path("results/.entropic/staging").iterdir()
    old = time.time() - 3600
    for path in [*stage.iterdir(), stage]:
        os.utime(path, (old, old))


def go_on(owner: scripts.Script) -> None:
    """Let a paused owner go on, and its runner end."""
    Path("released").touch()
    os.kill(owner.process.pid, signal.SIGCONT)


def has_lapsed() -> bool:
    """Whether the one claim's lease has passed."""
    ((expires,),) = [databases.ask("SELECT lease_expires FROM entropic_runs")]
    return bool(expires < time.time() - 0.1)


def test_an_owner_whose_loop_is_blocked_keeps_its_claims(folder: Path) -> None:
    """The heartbeat has a thread of its own: many leases pass, and none is lost."""

    async def blocks(params: dict[str, Any]) -> None:
        mark_call(params)
        Path("blocking").touch()
        wait_for(lambda: Path("released").exists())  # in a coroutine: the loop stands still
        Path(params["result_file"]).write_text("blocked")

    async def main() -> Any:
        async with make(blocks, lease_ttl=0.4) as store:
            return await store.run_or_retrieve({"n": 1})

    owner = threading.Thread(target=asyncio.run, args=[main()])
    owner.start()
    wait_for(Path("blocking").exists)
    leases: set[float] = set()

    def renewed() -> bool:
        leases.update(databases.ask("SELECT lease_expires FROM entropic_runs"))
        return len(leases) >= 6

    with make(simulate, Store, lease_ttl=0.4) as store:
        asking = threading.Thread(target=store.run_or_retrieve, args=[{"n": 1}])
        asking.start()
        wait_for(renewed)
        Path("released").touch()
        asking.join()
        owner.join()
        assert Path(store.retrieve({"n": 1}).result_file).read_text() == "blocked"
    assert calls() == 1


def test_a_claim_is_kept_from_its_commit_on(folder: Path) -> None:
    """Also where the loop is blocked before it has heard of it."""
    leases: set[float] = set()

    def renewed() -> bool:
        # On a file, the store may have it locked, and goes on only when this loop does.
        with contextlib.suppress(sqlite3.OperationalError):
            sql = "SELECT lease_expires FROM entropic_runs WHERE owner <> ''"
            leases.update(databases.ask(sql, patience=0.05))
        return len(leases) >= 5

    async def main() -> None:
        async with make(lease_ttl=0.4) as store:
            await store.retrieve({"n": 1})
            asking = asyncio.create_task(store.run_or_retrieve({"n": 1}))
            while not renewed() and not leases:
                await asyncio.sleep(0)
            wait_for(renewed)
            await asking

    asyncio.run(main())
    assert calls() == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # whose lock makes a line
def test_a_cancelled_claim_leaves_its_successors_alone(folder: Path) -> None:
    """The one is still in line when the other is asked for: each has its own, or none."""
    seen: list[Any] = []

    async def run(params: dict[str, Any]) -> None:
        mark_call(params)
        while len(os.listdir("calls")) < 2:
            await asyncio.sleep(0.01)
        while any(
            "give_back" in repr(task) for task in asyncio.all_tasks()
        ):  # of the cancelled one
            await asyncio.sleep(0.01)
        # Off the loop: another run's commit may have the database locked until the loop goes on.
        sql = "SELECT state FROM entropic_runs WHERE state <> 'done'"
        seen.extend(await asyncio.to_thread(databases.ask, sql))
        Path(params["result_file"]).write_text("x")

    async def main() -> None:
        async with make(run) as store:
            await store.retrieve({"n": 0})
            pipeline = (await store._opening.opened()).pipeline
            in_line = pipeline._holder._claims._taking._requests

            async def queued(n: int) -> asyncio.Task[Any]:
                """A request that has come as far as it can while the database is locked."""
                asking = asyncio.create_task(store.run_or_retrieve({"n": n}))
                async with asyncio.timeout(20):
                    while not in_line or not pipeline._flights._flights:
                        await asyncio.sleep(0.01)
                for _ in range(20):
                    await asyncio.sleep(0)
                return asking

            with outsiders.holding("runs.sqlite3", "BEGIN IMMEDIATE") as release:
                with outsiders.waiting() as lock:
                    first = asyncio.create_task(store.run_or_retrieve({"n": 0}))
                    await lock.met()
                left = await queued(1)
                left.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await left
                again = await queued(1)
                release()
                await asyncio.gather(first, again)

    asyncio.run(main())
    assert set(seen) == {"running"}
    assert calls() == 2


def test_a_lease_that_was_renewed_meanwhile_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had passed when it was looked at, and has not when it is claimed."""

    async def shift(seconds: float) -> None:
        sql = f"UPDATE entropic_runs SET lease_expires = lease_expires + {seconds}"
        await asyncio.to_thread(databases.change, sql)

    claim = Ledger.claim
    is_lapsed, was_claimed = asyncio.Event(), asyncio.Event()

    async def after_a_renewal(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_lapsed.is_set():
            await shift(+7200)
            is_lapsed.clear()
            was_claimed.set()
        return await claim(self, *args, **kwargs)

    async def main() -> None:
        async with make(until_released) as one, make(write_second) as two:
            first = asyncio.create_task(one.run_or_retrieve({"n": 1}))
            await asyncio.to_thread(wait_for, lambda: calls() == 1)
            monkeypatch.setattr(Ledger, "claim", after_a_renewal)
            with waiting_elsewhere() as news:
                second = asyncio.create_task(two.run_or_retrieve({"n": 1}))
                await news.seen()
            is_lapsed.set()
            await shift(-7200)
            async with asyncio.timeout(20):
                await was_claimed.wait()
            Path("released").touch()
            await asyncio.gather(first, second)

    asyncio.run(main())
    assert calls() == 1


def waiting_elsewhere() -> Any:
    """Watch for a store that waits for another one's run."""
    return outsiders.watching("entropic", logging.INFO, "under way in another store")


@pytest.mark.parametrize(("retries", "waiters"), [(1, 0), (0, 1)])
def test_a_failure_that_is_tried_again_ends_nobodys_waiting(
    folder: Path, retries: int, waiters: int
) -> None:
    """Neither where its owner tries again, nor where the one who waits would."""

    async def fails_at_first(params: dict[str, Any]) -> None:
        mark_call(params)
        if calls() == 1:
            await waits[0]()
            raise ValueError("in vain")
        Path(params["result_file"]).write_text("at last")

    waits: list[Callable[[], Any]] = []

    async def main() -> Any:
        one, two = make(fails_at_first, retries=retries), make(fails_at_first, retries=waiters)
        async with one, two:
            with waiting_elsewhere() as news:
                waits.append(news.seen)
                first = asyncio.create_task(one.run_or_retrieve({"n": 1}))
                await asyncio.to_thread(wait_for, lambda: calls() == 1)
                second = asyncio.create_task(two.run_or_retrieve({"n": 1}))
                return await asyncio.gather(first, second, return_exceptions=True)

    first, second = asyncio.run(main())
    assert Path(second.result_file).read_text() == "at last"
    assert isinstance(first, Point if retries else ValueError)
    assert calls() == 2


def test_the_failure_of_other_parameters_under_the_same_id_is_not_ones_own(folder: Path) -> None:
    """Whoever chose the id gets a run of the parameters that were asked for."""

    async def run(params: dict[str, Any]) -> None:
        mark_call(params)
        if params["n"] == 1:
            await waits[0]()
            raise ValueError("n = 1 is bad")
        Path(params["result_file"]).write_text("good")

    waits: list[Callable[[], Any]] = []

    async def main() -> Any:
        async with make(run) as one, make(run) as two:
            with waiting_elsewhere() as news:
                waits.append(news.seen)
                first = asyncio.create_task(one.run_or_retrieve({"n": 1, "id": "base"}))
                await asyncio.to_thread(wait_for, lambda: calls() == 1)
                second = asyncio.create_task(two.run_or_retrieve({"n": 2, "id": "base"}))
                return await asyncio.gather(first, second, return_exceptions=True)

    first, second = asyncio.run(main())
    assert isinstance(first, ValueError)
    assert (second.id, second.n) == ("base", 2)


def test_a_wait_for_another_process_can_be_cancelled(folder: Path) -> None:
    """Within a second; what the other one does is its own."""

    async def main() -> float:
        async with make() as store:
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await store.run_or_retrieve({"n": 1})
            return time.monotonic() - begun

    with holding() as other:
        # A few times: other programs of the machine may be in the way.
        assert any(asyncio.run(main()) < 1.2 for _ in range(3))
        Path("released").touch()
        other.expect("got", "the first")
    assert calls() == 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_takes_no_live_lease(folder: Path, hours: int) -> None:
    """Leases are the database's; what a client believes about the time does not count."""
    asking = f"""\
import logging
class Told(logging.Handler):
    def emit(self, record):
        if "in another store" in record.getMessage():
            say("waiting")
logging.getLogger("entropic").addHandler(Told(logging.INFO))
logging.getLogger("entropic").setLevel(logging.INFO)
now = time.time
time.time = lambda: now() + 3600 * {hours}
say(make().run_or_retrieve({{"n": 1}}).custom_data["by"])
"""
    with holding(ttl=60) as other:
        with scripts.script(asking) as script:
            script.expect("waiting")
            Path("released").touch()
            script.expect("the first")
        other.expect("got", "the first")
    assert calls() == 1


SHARED = """\
COUNT, SECONDS = {count}, {seconds}
def run(params):
    mark_call(params)
    time.sleep(SECONDS)
    open(params["result_file"], "w").write("x")
store = make(run)
store.retrieve({{"n": 0}})
say("ready")
while not os.path.exists("go"):
    time.sleep(0.001)
begun = time.monotonic()
records = store.sweep({{"n": n}} for n in range(COUNT))
assert [record.n for record in records] == list(range(COUNT))
say(begun, time.monotonic())
"""


def shared_sweep(processes: int, count: int, seconds: float) -> float:
    """The same sweep in several processes; seconds from when all were ready to the last end."""
    Path("shared.py").write_text(scripts.PREAMBLE + SHARED.format(count=count, seconds=seconds))
    started = [
        subprocess.Popen(
            [sys.executable, "shared.py"],
            stdout=subprocess.PIPE,
            text=True,
            env={**scripts.ENVIRONMENT, "ENTROPIC_TEST_DB_URL": databases.url()},
        )
        for _ in range(processes)
    ]
    try:
        outputs = [process.stdout for process in started if process.stdout is not None]
        for output in outputs:
            assert output.readline() == "ready\n"
        Path("go").touch()
        times = [tuple(map(float, output.readline().split())) for output in outputs]
        assert [process.wait(scripts.DEADLINE) for process in started] == [0] * processes
        return max(ended for _, ended in times) - min(begun for begun, _ in times)
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_processes_that_run_one_sweep_share_it(folder: Path) -> None:
    """Each set is run once, by one of them; each gets all records, in order."""
    took = shared_sweep(processes=4, count=80, seconds=0.05)
    assert calls() == 80
    assert took < 80 * 0.05 / 4 * 2.5  # far from each one's running all of it: that is 4


@pytest.mark.nightly
def test_eight_processes_are_near_the_ideal(folder: Path) -> None:
    """Four hundred sets of 50 ms: within 1.3 times of an eighth of the whole."""
    took = shared_sweep(processes=8, count=400, seconds=0.05)
    assert calls() == 400
    assert took < 400 * 0.05 / 8 * 1.3


@databases.only_sqlite
@pytest.mark.parametrize(
    "ttl", [0, -1, float("inf"), pytest.param(10**400, id="huge"), float("nan"), True, "60", None]
)
def test_a_lease_that_cannot_be_kept_is_refused(ttl: Any) -> None:
    """A time, more than none and not for ever."""
    with pytest.raises(SettingsError, match="lease_ttl"):
        make(lease_ttl=ttl)


@pytest.mark.anyio
@databases.only_sqlite  # or none
async def test_who_waits_for_the_same_run_is_told_whoever_else_leaves() -> None:
    """And each gets an error of its own: a note says which run it is about."""
    state = State(token=1, published=0, owner=None, is_live=False, failure=None)
    go_on = asyncio.Event()
    answers: list[Any] = [dict.fromkeys(["a", "b"], state), DatabaseError("gone")]

    async def states(_: Any) -> Any:
        await go_on.wait()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def listen(_: Any) -> None:
        """Nobody tells."""

    async def three() -> list[asyncio.Task[Any]]:
        go_on.clear()
        tasks = [asyncio.create_task(elsewhere.ended(id)) for id in ("a", "a", "b")]
        await asyncio.sleep(0)  # they have begun to wait
        tasks[0].cancel()
        await asyncio.wait({tasks[0]})
        go_on.set()
        return tasks

    elsewhere = Elsewhere(states, listen)
    async with asyncio.timeout(10):
        left, *others = await asyncio.gather(*await three(), return_exceptions=True)
        assert isinstance(left, asyncio.CancelledError)
        assert others == [state, state]
        _, one, other = await asyncio.gather(*await three(), return_exceptions=True)
        assert (str(one), str(other)) == ("gone", "gone")
        assert one is not other
        await elsewhere.aclose()
