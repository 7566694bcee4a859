"""One run among all who share a database: claims, waiting, takeovers, and sweeps that share."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, RemoteRunError, SettingsError, Store
from entropic.leases import is_gone, new_owner
from tests import scripts
from tests.outsiders import ask
from tests.scripts import wait_for
from tests.simulations import Point, calls, mark_call, simulate

URL = "sqlite:///runs.sqlite3"


def make(runner: Callable[..., Any] = simulate, kind: Any = AsyncStore, **settings: Any) -> Any:
    """A store of its own on the one database."""
    return kind(runner, Point, file_suffix=".npy", db_url=URL, **settings)


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
    say("got", store.run_or_retrieve({"n": 1}, by="the first").custom_data["by"])
except Exception as error:
    say("failed", type(error).__name__)
"""


@contextmanager
def holding(
    *, ttl: float = 3600, fails: bool = False, executor: str = "caller"
) -> Iterator[scripts.Script]:
    """Another process that runs ``{"n": 1}`` until it is released."""
    settings = scripts.arguments(TTL=ttl, FAILS=fails, EXECUTOR=executor)
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
    assert ask("runs.sqlite3", "SELECT state, token, owner FROM entropic_runs") == [
        ("done", 2, None)
    ]


def test_an_owner_that_was_paused_past_its_lease_gets_the_winners_record(folder: Path) -> None:
    """The second owner's row and bytes stand."""
    with holding(ttl=0.5) as other, make(write_second, Store, lease_ttl=0.5) as store:
        os.kill(other.process.pid, signal.SIGSTOP)
        record = store.run_or_retrieve({"n": 1}, by="the second")
        Path("released").touch()
        os.kill(other.process.pid, signal.SIGCONT)
        assert other.expect("got") == "the second"
        assert other.ended() == 0
        assert Path(record.result_file).read_text() == "the second"
        assert store.retrieve({"n": 1}).custom_data["by"] == "the second"
    assert os.listdir("results/.entropic/staging") == []


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
        leases.update(ask("runs.sqlite3", "SELECT lease_expires FROM entropic_runs"))
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


def test_a_wait_for_another_process_can_be_cancelled(folder: Path) -> None:
    """Within a second; what the other one does is its own."""

    async def main() -> None:
        async with make() as store:
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await store.run_or_retrieve({"n": 1})
            assert time.monotonic() - begun < 1.2

    with holding() as other:
        asyncio.run(main())
        Path("released").touch()
        other.expect("got", "the first")
    assert calls() == 1


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_takes_no_live_lease(folder: Path, hours: int) -> None:
    """Leases are the database's; what a client believes about the time does not count."""
    asking = f"""\
import datetime
now = time.time
time.time = lambda: now() + 3600 * {hours}
say(make().run_or_retrieve({{"n": 1}}).custom_data["by"])
"""
    with holding(ttl=60) as other:
        with scripts.script(asking) as script:
            wait_for(lambda: has_waited(script.process.pid))
            Path("released").touch()
            script.expect("the first")
        other.expect("got", "the first")
    assert calls() == 1


def has_waited(pid: int) -> bool:
    """Whether a process has the database open, and so has come far enough to ask."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return sum(link.endswith("runs.sqlite3") for link in links) >= 2


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
            env={"PYTHONPATH": str(scripts.ROOT), "PATH": ""},
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


def test_an_owner_is_known_by_more_than_its_pid() -> None:
    """PIDs come round again: a process that began at another time is another one."""
    mine = new_owner()
    assert not is_gone(mine)
    assert new_owner() != mine
    child = subprocess.run(
        [sys.executable, "-c", "from entropic.leases import new_owner; print(new_owner())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    dead = child.stdout.strip()
    assert is_gone(dead)
    host, boot, space, pid, started, nonce = json.loads(dead)
    recycled = json.dumps([host, boot, space, os.getpid(), started, nonce])
    assert is_gone(recycled)
    for other in (
        [host, "another boot", space, pid, started, nonce],
        [host, boot, "pid:[1]", pid, started, nonce],
    ):
        assert not is_gone(json.dumps(other))
    for foreign in ("register", "{}", "[1]", "", json.dumps([1, 2, 3, 4, 5, 6])):
        assert not is_gone(foreign)


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), True, "60", None])
def test_a_lease_that_cannot_be_kept_is_refused(ttl: Any) -> None:
    """A time, more than none and not for ever."""
    with pytest.raises(SettingsError, match="lease_ttl"):
        make(lease_ttl=ttl)
