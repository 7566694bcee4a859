"""Real signals, to real processes in the middle of their sweeps and streams.

What had finished is on record, and whatever else there was, the next call uses the store.
"""

import os
import signal
import time
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from entropic import Store
from tests import databases, scripts
from tests.scripts import wait_for
from tests.simulations import Point, calls, simulate

pytestmark = pytest.mark.usefixtures("database")

# Two sets finish; the third says so and stays at work until it is released.
SWEEP = """\
SETS = [{"n": n} for n in range(5)]

def run(params):
    if params["n"] == 2:
        say("in", os.getpid())
        while not os.path.exists("released"):
            time.sleep(0.02)
    simulate(params)

def scripted():
    store = make(run, executor=EXECUTOR, max_workers=1)
    for _ in getattr(store, CALL)(SETS):
        pass

def tick():
    asyncio.get_running_loop().call_later(0.05, tick)

async def served():
    tick()  # asyncio sees an interrupt that came just before its loop fell asleep when it wakes
    usual = {"file_suffix": ".npy", "db_url": DB_URL}
    async with AsyncStore(run, Point, executor=EXECUTOR, max_workers=1, **usual) as store:
        if CALL == "sweep":
            await store.sweep(SETS)
        else:
            async for _ in store.as_completed(SETS):
                pass

scripted() if KIND == "Store" else asyncio.run(served())
"""

PLACES = [
    *product(["Store"], ["caller", "thread", "process"], ["sweep", "as_completed"]),
    *product(["AsyncStore"], ["thread", "process"], ["sweep", "as_completed"]),
]

SIGNALS = ["interrupt", "interrupt twice", "terminate"]
NIGHTLY = pytest.mark.nightly

# Which worker a signal stops is nothing to the database: there it needs but one of each kind.
ON_POSTGRESQL = [("Store", "caller", "as_completed"), ("AsyncStore", "thread", "sweep")]


def places() -> list[Any]:
    """Each on each database, and each signal, but not all of them by day."""
    return [
        pytest.param(name, *place, sent, marks=() if is_by_day(name, place, sent) else NIGHTLY)
        for name, place, sent in product(databases.NAMES, PLACES, SIGNALS)
    ]


def is_by_day(name: str, place: tuple[str, str, str], sent: str) -> bool:
    """A stream ends as a sweep does: by day, one signal is enough for it."""
    if name == "postgresql":
        return place in ON_POSTGRESQL and sent != "interrupt twice"
    return "sweep" in place or sent == "interrupt"


@pytest.mark.parametrize(
    ("database", "kind", "executor", "call", "sent"), places(), indirect=["database"]
)
def test_a_signal_leaves_what_the_next_call_uses(
    folder: Path, kind: str, executor: str, call: str, sent: str
) -> None:
    """What had finished is kept, be it recovered; workers are gone, and only the rest is run."""
    settings = scripts.arguments(KIND=kind, EXECUTOR=executor, CALL=call)
    with scripts.script(settings + SWEEP) as script:
        runner = int(script.expect("in"))
        wait_for(lambda: stored() == [0, 1])
        script.process.send_signal(signal.SIGTERM if sent == "terminate" else signal.SIGINT)
        if sent == "interrupt twice":
            script.interrupt()
        if executor == "thread":  # no signal ends a thread; Python waits for it at its exit
            Path("released").touch()
        begun = time.monotonic()
        expected = -(signal.SIGTERM if sent == "terminate" else signal.SIGINT)
        assert script.ended() == expected, script.errors()
        assert time.monotonic() - begun < 2
    wait_for(lambda: runner == script.process.pid or not psutil.pid_exists(runner))
    finished = stored()
    assert finished[:2] == [0, 1]
    ran: list[int] = []

    def run(params: dict[str, int]) -> None:
        ran.append(params["n"])
        simulate(params)

    with Store(run, Point, file_suffix=".npy", db_url=databases.url()) as store:
        records = store.sweep({"n": n} for n in range(5))
    assert [record.n for record in records] == list(range(5))
    # What ended in a thread as Python did is finished, too, though it was not stored.
    if executor != "thread":
        assert sorted(ran + finished) == list(range(5))
    assert calls() == 5
    assert all(Path(record.result_file).is_file() for record in records)
    # What is killed outright, or finishes in a thread as Python exits, is recovery's to clear.
    if sent == "interrupt" and executor != "thread":
        assert os.listdir("results/.entropic/staging") == []


def stored() -> list[int]:
    """What any other program sees in the database."""
    try:
        return databases.ask("SELECT n FROM points ORDER BY n")
    except databases.ERRORS:  # not yet made
        return []
