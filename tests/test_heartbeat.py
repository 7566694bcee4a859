"""The heartbeat: one connection for as long as claims are held, and none for longer."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from entropic import AsyncStore, RunError
from entropic.leases import Heartbeat, Renew
from tests import databases, outsiders, scripts
from tests.scripts import wait_for
from tests.simulations import Point, calls, mark_call, simulate
from tests.test_owners import no_descriptors

pytestmark = pytest.mark.timeout(60)


def make(runner: Callable[..., Any] = simulate, **settings: Any) -> AsyncStore[Point]:
    """A store of its own on the test's database."""
    usual = {"file_suffix": ".npy", "db_url": databases.url(), "lease_ttl": 0.4}
    return AsyncStore(runner, Point, **{**usual, **settings})


async def until_released(params: dict[str, Any]) -> None:
    """A runner that ends when it is let."""
    mark_call(params)
    while not Path("released").exists():
        await asyncio.sleep(0.01)
    Path(params["result_file"]).write_text("the first")


class Leases:
    """The different leases that were seen of the claims that are held."""

    def __init__(self) -> None:
        self._seen: set[float] = set()

    def look(self) -> int:
        """How many there were by now."""
        held = "SELECT lease_expires FROM entropic_runs WHERE owner IS NOT NULL"
        self._seen.update(databases.ask(held))
        return len(self._seen)

    async def grow(self, by: int) -> None:
        """Wait for some more."""
        most = self.look() + by
        async with asyncio.timeout(scripts.DEADLINE):
            while self.look() < most:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def held(store: AsyncStore[Point], n: int = 1) -> AsyncIterator[Leases]:
    """A run at work for as long as the block lasts, and its leases; its result is kept."""
    Path("released").unlink(missing_ok=True)
    running = asyncio.create_task(store.run_or_retrieve({"n": n}))
    try:
        leases = Leases()
        before = calls()
        async with asyncio.timeout(scripts.DEADLINE):
            while calls() == before:
                await asyncio.sleep(0.01)
        yield leases
    finally:
        Path("released").touch()
        await running


@contextmanager
def connecting() -> Iterator[list[object]]:
    """Hears of each connection that is made in this process."""
    made: list[object] = []

    def heard(connection: object, _: object) -> None:
        made.append(connection)

    sa.event.listen(sa.Pool, "connect", heard)
    try:
        yield made
    finally:
        sa.event.remove(sa.Pool, "connect", heard)


def beating(besides: Sequence[threading.Thread] = ()) -> list[threading.Thread]:
    """The threads of heartbeats, besides some: of a test before, which may take a while to end."""
    threads = [it for it in threading.enumerate() if it.name == "entropic-heartbeat"]
    return [thread for thread in threads if thread not in besides]


def test_many_beats_take_one_connection(database: databases.Place) -> None:
    """It is made for the first of them, and holds no lock in between."""

    async def main() -> None:
        async with make(until_released) as store:
            with connecting() as made:
                async with held(store) as leases:
                    before = len(made)
                    await leases.grow(8)
                    assert len(made) == before + 1
                    assert database.is_sound()

    asyncio.run(main())


def test_nothing_stays_when_nothing_is_held(database: databases.Place) -> None:
    """Neither thread nor connection; the next run has both again."""
    others = beating()

    async def main() -> None:
        async with make(until_released) as store:
            for n in range(2):
                async with held(store, n) as leases:
                    await leases.grow(3)
                    (thread,) = beating(besides=others)
                async with asyncio.timeout(scripts.DEADLINE):
                    while thread.is_alive():
                        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert beating(besides=others) == []


def test_a_run_that_is_shorter_than_a_beat_connects_to_nothing(database: databases.Place) -> None:
    """As most are."""

    async def main() -> None:
        async with make(lease_ttl=60) as store:
            await store.retrieve({"n": 0})
            with connecting() as made:
                await store.sweep({"n": n} for n in range(5))
            assert len(made) <= 2  # the store's own

    asyncio.run(main())


def test_claims_outlive_the_loss_of_all_connections() -> None:
    """Terminated by the server between two beats: the next one connects anew, in time."""
    with databases.made("postgresql"):
        sessions = "FROM pg_stat_activity WHERE application_name = 'entropic'"

        async def main() -> None:
            async with make(until_released, lease_ttl=4) as store, make(lease_ttl=4) as other:
                async with held(store) as leases:
                    asking = asyncio.create_task(other.run_or_retrieve({"n": 1}))
                    for _ in range(2):
                        await leases.grow(1)
                        assert databases.ask(f"SELECT count(pg_terminate_backend(pid)) {sessions}")
                    await leases.grow(4)
                record = await asking
                assert Path(record.result_file).read_text() == "the first"

        asyncio.run(main())
    assert calls() == 1


def test_a_database_that_was_locked_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """Sooner than usual, as soon as it lets us."""

    async def main() -> None:
        async with make(until_released) as store, held(store) as leases:
            await leases.grow(2)
            with outsiders.holding(databases.PATH, "BEGIN IMMEDIATE"):
                await asyncio.to_thread(wait_for, lambda: "were not renewed" in caplog.text)
            await leases.grow(3)

    asyncio.run(main())


# An event loop that could not be made warns, and fails, when it is collected: Python's own doing.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_descriptors_that_ran_out_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """Without them there is no loop, and no connection."""

    async def main() -> None:
        async with make(until_released) as store, held(store) as leases:
            with no_descriptors():
                wait_for(lambda: "were not renewed" in caplog.text)
            await leases.grow(3)

    asyncio.run(main())
    caplog.clear()
    gc.collect()


CLOSED = """\
async def run(params):
    mark_call(params)
    await asyncio.sleep(600)
async def started():
    while not calls() or "entropic-heartbeat" not in [t.name for t in threading.enumerate()]:
        await asyncio.sleep(0.01)
store = AsyncStore(run, Point, file_suffix=".npy", db_url=DB_URL, lease_ttl=0.4)
loop = asyncio.new_event_loop()
asking = loop.create_task(store.run_or_retrieve({"n": 1}))
loop.run_until_complete(started())
say("runs")
loop.close()
say("closed")
while "entropic-heartbeat" in [t.name for t in threading.enumerate()]:
    time.sleep(0.01)
say("beats no more")
rest()
"""


def test_a_loop_that_is_closed_lets_its_claims_go(database: databases.Place) -> None:
    """Nobody is left who could finish its runs: another store takes them over."""

    async def take_over() -> None:
        async with make() as store, asyncio.timeout(10):
            assert (await store.run_or_retrieve({"n": 1})).n == 1

    with scripts.script(CLOSED) as script:
        script.expect("runs")
        script.expect("closed")
        asyncio.run(take_over())
        script.expect("beats no more")
    assert calls() == 2


@asynccontextmanager
async def stuck() -> AsyncIterator[Renew]:
    """A database that does not answer."""

    async def renew(ids: Sequence[str]) -> None:
        Path("asked").touch()
        await asyncio.Event().wait()

    yield renew


async def held_by_the_stuck() -> Heartbeat:
    """A heartbeat that has been waiting for an answer ever since its first beat."""
    heartbeat = Heartbeat(stuck, 0.1)
    heartbeat.hold("a")
    await asyncio.to_thread(wait_for, Path("asked").exists)
    return heartbeat


def test_a_beat_under_way_is_stopped() -> None:
    """A store is closed at once, whatever its database does."""

    async def main() -> None:
        thread = (await held_by_the_stuck()).stop()
        assert thread is not None
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()

    asyncio.run(main())


def test_a_heartbeat_that_nobody_has_ends() -> None:
    """That of a store that is collected without being closed."""

    async def main() -> None:
        heartbeat = await held_by_the_stuck()
        assert beating()
        del heartbeat
        gc.collect()
        await asyncio.to_thread(wait_for, lambda: not beating())

    asyncio.run(main())


def test_a_thread_that_cannot_be_started_fails_the_call_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is claimed and nothing is run; the next call has its heartbeat."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "entropic-heartbeat":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def main() -> None:
        async with make(until_released) as store:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refused)
                with pytest.raises(RunError, match="can't start new thread"):
                    await store.run_or_retrieve({"n": 1})
            assert databases.ask("SELECT * FROM entropic_runs") == []
            async with held(store) as leases:
                await leases.grow(4)

    asyncio.run(main())
    assert calls() == 1


@pytest.mark.parametrize("ttl", [1e300, threading.TIMEOUT_MAX * 5])
def test_a_lease_may_be_longer_than_any_thread_waits(database: databases.Place, ttl: float) -> None:
    """It is as good as one for ever."""
    others = beating()

    async def main() -> None:
        async with make(until_released, lease_ttl=ttl) as store, held(store):
            (thread,) = beating(besides=others)
            begun = time.monotonic()
            await asyncio.to_thread(thread.join, 0.2)
            assert time.monotonic() - begun >= 0.2  # it has not died

    asyncio.run(main())


FORKED = """\
def run(params):
    mark_call(params)
    while not os.path.exists(f"released-{params['n']}"):
        time.sleep(0.01)
    open(params["result_file"], "w").write("x")
store = make(run, lease_ttl=0.4, executor="thread")
other = threading.Thread(target=store.run_or_retrieve, args=[{"n": 1}], daemon=True)
other.start()
while not calls():
    time.sleep(0.01)
while "entropic-heartbeat" not in [t.name for t in threading.enumerate()]:
    time.sleep(0.01)
say("running")
if os.fork():
    while True:
        time.sleep(1)
say("forked", os.getppid(), [t.name for t in threading.enumerate() if "heartbeat" in t.name])
store.run_or_retrieve({"n": 2})
say("done")
os._exit(0)
"""


def test_a_forked_child_does_not_beat_for_its_parent(database: databases.Place) -> None:
    """Its own claims it keeps; those of the parent, which is killed, are let go."""

    def leases() -> dict[str, float]:
        return dict(databases.ask("SELECT owner, lease_expires FROM entropic_runs ORDER BY owner"))

    with scripts.script(FORKED) as script:
        script.expect("running")
        script.expect("forked", script.process.pid, [])
        wait_for(lambda: len(leases()) == 2)
        script.process.kill()
        script.process.wait()
        before = leases()
        own: set[float] = set()

        def goes_on() -> bool:
            now = leases()
            own.update(lease for owner, lease in now.items() if lease != before[owner])
            return len(own) >= 4

        wait_for(goes_on)
        assert sum(lease == before[owner] for owner, lease in leases().items()) == 1
        Path("released-2").touch()
        script.expect("done")
