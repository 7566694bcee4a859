"""What a crash leaves: finished runs are stored, others discarded, and nothing is ever run twice.

The crashes are real: processes that are killed, at named points of a run and at random ones.
"""

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropic import AsyncStore, DatabaseBusyError, Recovered, Store
from entropic.artifacts import read_sidecar
from entropic.artifacts import stage as stages
from entropic.artifacts.stage import Stage
from entropic.leases import is_gone
from entropic.ledger import Ledger
from entropic.pipeline.salvage import Salvage
from tests import databases, scripts
from tests.outsiders import cancelled_at, is_unlocked, left_at
from tests.scripts import wait_for
from tests.simulations import Point, calls, simulate

pytestmark = pytest.mark.usefixtures("database")

STAGING = Path("results/.entropic/staging")


def make(runner: Callable[..., Any] = simulate, **settings: Any) -> Store[Any]:
    """A store of this process."""
    return Store(runner, Point, **{"file_suffix": ".npy", "db_url": databases.url(), **settings})


CRASHING = """\
import entropic.artifacts.stage as stages
import entropic.ledger as ledger
import entropic.worker as worker
from entropic.artifacts import ResultsFolder
from entropic.database import Transaction

class Failed(OSError):
    pass

def crash():
    if HOW == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise Failed("as was arranged")

def before(owner, name):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        crash()
        return real(*args, **kwargs)
    setattr(owner, name, wrapped)

def after(owner, name):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        answer = real(*args, **kwargs)
        crash()
        return answer
    setattr(owner, name, wrapped)

def after_awaited(owner, name):
    real = getattr(owner, name)
    async def wrapped(*args, **kwargs):
        answer = await real(*args, **kwargs)
        crash()
        return answer
    setattr(owner, name, wrapped)

def run(params):
    simulate(params)
    if AGAIN:
        open(params["result_file"], "ab").write(b"x" * calls())  # each of another size
    if KIND == "folder":
        os.rename(params["result_file"], params["result_file"] + ".one")
        os.mkdir(params["result_file"])
        os.rename(params["result_file"] + ".one", params["result_file"] + "/one")
    if KIND == "companions":
        open(os.path.join(os.path.dirname(params["result_file"]), "log"), "w").write("beside")

store = make(run)
store.run_or_retrieve({"n": 0})
if AGAIN:
    store.run({"n": 1, **OWN})
{
    "after the stage": lambda: after(stages, "make"),
    "before the sidecar": lambda: before(stages, "seal"),
    "after the sidecar": lambda: after(stages, "seal"),
    "before publishing": lambda: before(ResultsFolder, "publish"),
    "after publishing": lambda: after(ResultsFolder, "publish"),
    "after the row": lambda: after_awaited(ledger.Ledger, "_store"),
    "after the commit": lambda: after_awaited(ledger.Ledger, "complete"),
}[WHERE]()
try:
    (store.run if AGAIN else store.run_or_retrieve)({"n": 1, **OWN}, by="the first")
except Exception as error:
    say("failed", type(error).__name__)
"""

POINTS = [
    ("after the stage", False),
    ("before the sidecar", False),
    ("after the sidecar", True),
    ("before publishing", True),
    ("after publishing", True),
    ("after the row", True),
    ("after the commit", True),
]


def crash(
    how: str,
    where: str,
    kind: str = "file",
    *,
    again: bool = False,
    own: dict[str, str] | None = None,
) -> None:
    """Let a process run ``{"n": 1}`` until a named point, where it fails or is killed."""
    settings = scripts.arguments(HOW=how, WHERE=where, KIND=kind, AGAIN=again, OWN=own or {})
    with scripts.script(settings + CRASHING) as script:
        if how == "kill":
            assert script.ended() == -signal.SIGKILL, script.errors()
        else:
            script.expect("failed")
            assert script.ended() == 0, script.errors()


def check_whole() -> None:
    """Every row has its file, every file its row, nothing is staged, and the database is sound."""
    assert databases.current().is_sound()
    rows = databases.ask("SELECT n, dt, result_file FROM points")
    assert databases.ask("SELECT id FROM entropic_runs WHERE owner IS NOT NULL") == []
    for n, dt, path in rows:
        if not Path(path).is_dir():
            assert np.load(path).tolist() == [n, dt]
    assert {Path(row[2]).name for row in rows} == {
        path.name for path in Path("results").glob("*.npy")
    }
    assert list(STAGING.iterdir()) == []


class Meeting:
    """Lets calls of a store's ledger through only when so many have come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
        self.came = 0
        self.answers: list[Any] = []
        self.go = asyncio.Event()
        real = getattr(Ledger, name)

        async def wait(*args: Any, **kwargs: Any) -> Any:
            answer = await real(*args, **kwargs)
            self.came += 1
            self.answers.append(answer)
            if self.came == count:
                self.go.set()
            await self.go.wait()
            return answer

        monkeypatch.setattr(Ledger, name, wait)


async def open_beside_a_crash(runner: Callable[..., Any] = simulate) -> AsyncStore[Any]:
    """An open store that has not yet seen what a killed process had finished."""
    stage = stage_of_a_crash()
    stage.rename("aside")
    store = AsyncStore(runner, Point, file_suffix=".npy", db_url=databases.url())
    await store.retrieve({"n": 0})
    Path("aside").rename(stage)
    return store


def test_two_recoveries_of_one_store_are_not_in_each_others_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have seen what was finished before either claims it: one of them gets it."""

    async def main() -> None:
        store = await open_beside_a_crash()
        Meeting(monkeypatch, "states", 2)
        claims = Meeting(monkeypatch, "claim", 2)
        async with asyncio.timeout(20), store:
            found = await asyncio.gather(store.recover(), store.recover())
        assert sum(len(granted) for granted in claims.answers) == 1
        assert sum(len(one.published) for one in found) == 1

    asyncio.run(main())
    check_whole()
    assert calls() == 2


def test_a_recovery_leaves_a_run_of_its_own_store_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that began when the recovery had already looked."""
    running, finish = threading.Event(), threading.Event()

    def run(params: dict[str, Any]) -> None:
        running.set()
        finish.wait(20)
        simulate(params)

    async def main() -> Any:
        store = await open_beside_a_crash(run)
        with monkeypatch.context() as patch:
            looking = Meeting(patch, "states", 100)
            async with asyncio.timeout(20), store:
                recovery = asyncio.create_task(store.recover())
                while not looking.came:
                    await asyncio.sleep(0.01)
                patch.undo()
                running_again = asyncio.create_task(store.run({"n": 1}, by="the second"))
                await asyncio.to_thread(running.wait, 20)
                looking.go.set()
                recovered = await recovery
                finish.set()
                return recovered, await running_again

    recovered, record = asyncio.run(main())
    assert recovered == Recovered()
    assert record.custom_data["by"] == "the second"
    assert databases.ask("SELECT count(*) FROM entropic_runs WHERE owner IS NOT NULL") == [0]


def held_by_living() -> list[str]:
    """The owners of claims, but for those that are known to be dead."""
    owners = databases.ask("SELECT owner FROM entropic_runs WHERE owner IS NOT NULL")
    return [owner for owner in owners if not is_gone(owner)]


def each_beside_a_crash(
    monkeypatch: pytest.MonkeyPatch, folder: Path, stride: int
) -> Iterator[int]:
    """Moments, and for each a working directory in which a killed process has finished a run."""
    for moment in itertools.count(1, stride):
        beside = folder / f"{moment}"
        beside.mkdir()
        monkeypatch.chdir(beside)
        stage_of_a_crash()
        yield moment


@databases.only_sqlite  # with one in each working directory
@pytest.mark.parametrize(
    ("at_its_end", "stride"), [(False, 3), (True, 6)], ids=["the call", "the loop"]
)
def test_a_recovery_that_is_left_at_any_moment_leaves_no_claim(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at_its_end: bool, stride: int
) -> None:
    """Nobody waits for the lease of a run that is finished; somebody stores it, and once."""

    async def cancel(moment: int) -> bool:
        (stage,) = STAGING.iterdir()
        stage.rename("aside")
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            await store.retrieve({"n": 0})
            Path("aside").rename(stage)
            in_time = await cancelled_at(moment, store.recover)
            assert held_by_living() == [], moment
            return in_time

    async def leave(moment: int) -> bool:
        store = AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url())
        return await left_at(moment, lambda: store.retrieve({"n": 0}))

    for moment in each_beside_a_crash(monkeypatch, folder, stride):
        in_time = asyncio.run((leave if at_its_end else cancel)(moment))
        assert held_by_living() == [], moment
        with make() as store:
            assert store.run_or_retrieve({"n": 1}).custom_data["by"] == "the first"
        check_whole()
        assert calls() == 2, moment
        if not in_time:
            break
    assert moment > 5


def test_a_finished_run_outlives_a_later_owner_that_dies(folder: Path) -> None:
    """Nothing newer is stored in its place: it is, under a claim that it takes anew."""

    def run(params: dict[str, Any]) -> None:
        simulate(params)
        databases.change(
            "UPDATE entropic_runs SET token = token + 1, owner = 'elsewhere',"
            f" lease_expires = {databases.current().now} + 0.5"
        )

    with make(run) as store:
        record = store.run_or_retrieve({"n": 1}, by="the first")
        assert record.custom_data["by"] == "the first"
    check_whole()
    assert calls() == 1


KINDS = [("file", False), ("folder", True)]
ALL_KINDS = list(product(["file", "folder", "companions"], [False, True]))
NIGHTLY = [
    pytest.param(*kind, marks=pytest.mark.nightly) for kind in ALL_KINDS if kind not in KINDS
]


@pytest.mark.parametrize(("kind", "again"), [*KINDS, *NIGHTLY])
@pytest.mark.parametrize(("where", "is_finished"), POINTS)
def test_a_run_that_was_killed_is_stored_if_it_had_finished(
    folder: Path, where: str, is_finished: bool, again: bool, kind: str
) -> None:
    """By whoever opens the store next, or asks for it; and it is not run again."""
    crash("kill", where, kind, again=again)
    before = calls()
    with make(lease_ttl=0.2) as store:
        record = store.retrieve({"n": 1})
        if is_finished:
            assert record is not None
            assert record.custom_data["by"] == "the first"
        elif not again:
            assert record is None
        record = store.run_or_retrieve({"n": 1})
        assert calls() == before + (not is_finished and not again)
        if kind == "companions" and is_finished:
            assert Path(f"results/{record.id}.files/log").read_text() == "beside"
        wait_for(lambda: store.recover() == Recovered() and not list(STAGING.iterdir()))
    check_whole()


@pytest.mark.parametrize(("where", "is_finished"), POINTS)
def test_a_run_that_failed_on_its_way_is_stored_if_it_had_finished(
    folder: Path, where: str, is_finished: bool
) -> None:
    """As if it had been killed; the process that met the failure may itself go on."""
    crash("raise", where)
    before = calls()
    with make(lease_ttl=0.2) as store:
        record = store.run_or_retrieve({"n": 1})
        assert calls() == before + (not is_finished)
        if is_finished:
            assert record.custom_data["by"] == "the first"
        assert np.load(record.result_file).tolist() == [1, 0.5]


def test_who_takes_a_dead_owners_run_over_takes_its_result(folder: Path) -> None:
    """Also where its store was open long before, so that nothing else would have recovered it."""
    with make() as store:
        store.run({"n": 0})
        crash("kill", "before publishing")
        before = calls()
        record = store.run_or_retrieve({"n": 1}, by="the second")
        assert (record.custom_data["by"], calls()) == ("the first", before)
        assert store.run({"n": 1}, by="the third").custom_data["by"] == "the third"
        assert calls() == before + 1
    check_whole()


@pytest.mark.parametrize("hours", [0, 1])
def test_a_rerun_killed_in_the_middle_of_publishing_is_retrieved(folder: Path, hours: int) -> None:
    """The old row does not fit the new result: what was finished is rolled forward at once.

    Also where its lease has passed, so that nobody seems to be at it any more.
    """
    with make() as store:
        store.run({"n": 0})
        crash("kill", "after publishing", again=True)
        databases.change(f"UPDATE entropic_runs SET lease_expires = lease_expires - {3600 * hours}")
        record = store.retrieve({"n": 1})
        assert record is not None
        assert record.custom_data["by"] == "the first"
    check_whole()


@pytest.mark.parametrize("id", ["mine", "a3f8c1d2e4b6f7a8"])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_finished_run_under_an_id_of_the_callers_own_is_stored(
    folder: Path, id: str, is_open: bool
) -> None:
    """Also where it looks like a computed one; by whoever opens the store, or asks for it."""
    store = make()
    if is_open:
        store.retrieve({"n": 0})
    crash("kill", "before publishing", own={"id": id})
    before = calls()
    with store:
        if not is_open:
            assert store.retrieve({"n": 1, "id": id}) is not None
        record = store.run_or_retrieve({"n": 1, "id": id})
        assert (record.id, record.custom_data["by"], calls()) == (id, "the first", before)
    check_whole()


def restored() -> None:
    """The results folder as it comes back from a copy: all its files have other numbers."""
    shutil.copytree("results", "copy", symlinks=True)
    shutil.rmtree("results")
    os.rename("copy", "results")


@pytest.mark.parametrize("kind", ["file", "folder", "companions"])
@pytest.mark.parametrize("checksum", [False, True])
def test_a_finished_run_in_a_restored_folder_is_stored(
    folder: Path, kind: str, checksum: bool
) -> None:
    """In its own stage there is no other result that it could be taken for."""
    crash("kill", "before publishing", kind)
    before = calls()
    if not checksum:
        (stage,) = STAGING.iterdir()
        staged = json.loads((stage / ".sidecar.json").read_text())["staged"]
        planted(stage, staged={**staged, "digest": None})
    restored()
    with make() as store:
        record = store.retrieve({"n": 1})
        assert record is not None
        assert record.custom_data["by"] == "the first"
        assert calls() == before
    check_whole()


def test_a_finished_run_that_is_not_what_it_was_is_told_and_run_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest does not fit any more."""
    stage = stage_of_a_crash()
    (result,) = stage.glob("*.npy")
    result.write_bytes(bytes(result.stat().st_size))
    restored()
    before = calls()
    with make() as store:
        assert store.retrieve({"n": 1}) is None
        assert "cannot be recovered" in caplog.text
        assert str(stage) in caplog.text
        store.run_or_retrieve({"n": 1})
        store.recover()
    assert calls() == before + 1
    check_whole()


@databases.only_sqlite
def test_no_result_is_read_while_the_database_is_locked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large. What a killed owner has published is looked at beforehand."""
    crash("kill", "after publishing")
    digest = stages._file_digest
    free = []

    def digested(path: str) -> str:
        free.append(is_unlocked("runs.sqlite3"))
        return digest(path)

    monkeypatch.setattr(stages, "_file_digest", digested)
    with make() as store:
        assert store.retrieve({"n": 1}) is not None
    assert free == [True]
    check_whole()


def test_what_was_deleted_is_not_recovered(folder: Path) -> None:
    """Nor is what was stored anew since: it is discarded."""
    with make() as store:
        crash("kill", "before publishing")
        assert store.run({"n": 1}, by="the second").custom_data["by"] == "the second"
        store.delete({"n": 1}, remove_file=True)
        assert list(STAGING.iterdir()) == []
        assert store.recover().published == ()
        assert store.retrieve({"n": 1}) is None
    check_whole()


@pytest.mark.parametrize("remove_file", [False, True])
def test_what_a_killed_rerun_left_goes_with_its_row(folder: Path, remove_file: bool) -> None:
    """Its owner had sealed it, and still holds its claim; but it is not under way any more."""
    with make() as store:
        crash("kill", "before publishing", again=True)
        assert store.delete({"n": 1}, remove_file=remove_file)
        assert list(STAGING.iterdir()) == []
        assert store.recover().published == ()
    with make() as store:
        assert store.retrieve({"n": 1}) is None
        before = calls()
        store.run_or_retrieve({"n": 1})
        assert calls() == before + 1


@databases.only_sqlite
def test_what_found_the_database_locked_goes_with_its_row(folder: Path) -> None:
    """A claim that is only yet to be given back is no run under way."""
    with closing(sqlite3.connect("runs.sqlite3", isolation_level=None)) as other:

        def run(params: dict[str, Any]) -> None:
            simulate(params)
            if calls() == 2:
                other.execute("BEGIN IMMEDIATE")

        with make(run, lock_timeout=0.1) as store:
            store.run({"n": 1})
            with pytest.raises(DatabaseBusyError):
                store.run({"n": 1})
            other.execute("ROLLBACK")
            assert store.delete({"n": 1})
            assert list(STAGING.iterdir()) == []
            assert store.recover().published == ()
            assert store.retrieve({"n": 1}) is None


DELETING = """\
from entropic.artifacts import Removal
from entropic.ledger import Ledger

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def run(params):
    if KIND == "file":
        return simulate(params)
    for name in ("one", "two"):
        os.makedirs(os.path.join(params["result_file"], name))
        open(os.path.join(params["result_file"], name, "part"), "w").write("content")
    open(os.path.join(os.path.dirname(params["result_file"]), "log"), "w").write("beside")

store = make(run, lease_ttl=0.2)
store.run({"n": 1})
if KIND == "registered":
    os.rename(store.retrieve({"n": 1}).result_file, "mine")
    store.register({"n": 1}, "mine")
if WHEN == "before its commit":
    take = Removal.take
    Removal.take = lambda *args: kill(take(*args))
else:
    Removal.finish = kill
store.delete({"n": 1}, remove_file=True)
"""


@pytest.mark.parametrize("kind", ["file", "folder", "registered"])
@pytest.mark.parametrize("when", ["before its commit", "after its commit"])
def test_a_deletion_that_was_killed_is_undone_or_ended(folder: Path, kind: str, when: str) -> None:
    """Row and result are both there, or neither; and nothing is left in the staging folder."""
    with scripts.script(scripts.arguments(KIND=kind, WHEN=when) + DELETING) as script:
        assert script.ended() == -signal.SIGKILL, script.errors()
    result = Path("mine" if kind == "registered" else f"results/{script_id()}.npy")
    assert not result.exists()
    with make(lease_ttl=0.2) as store:
        wait_for(lambda: store.recover() is not None and not list(STAGING.iterdir()))
        if when == "before its commit":
            record = store.retrieve({"n": 1})
            assert record is not None
            assert calls() == (kind == "file")
            if kind == "folder":
                assert Path(f"results/{record.id}.files/log").read_text() == "beside"
                assert len(list(result.glob("*/part"))) == 2
        else:
            assert store.retrieve({"n": 1}) is None
        assert result.exists() == (when == "before its commit")


def script_id() -> str:
    """The id of ``{"n": 1}``."""
    (id,) = databases.ask("SELECT id FROM entropic_runs")
    return str(id)


def test_a_live_owners_run_is_left_alone(folder: Path) -> None:
    """Whatever is staged of it, by whoever looks."""
    looked: list[Recovered] = []

    def run(params: dict[str, Any]) -> None:
        simulate(params)
        with make(lease_ttl=0.001) as other:
            looked.append(other.recover())

    with make(run) as store:
        assert store.run_or_retrieve({"n": 1}) is not None
    assert looked == [Recovered()]
    check_whole()


def test_an_unfinished_run_is_discarded_when_nobody_has_written_to_it_for_long(
    folder: Path,
) -> None:
    """A worker may outlive its store; so it is given the time of a lease."""
    crash("kill", "before the sidecar")
    (stage,) = STAGING.iterdir()
    with make() as store:
        assert store.recover() == Recovered()
        old = time.time() - 61
        for path in [*stage.iterdir(), stage]:
            os.utime(path, (old, old))
        assert store.recover() == Recovered(discarded=(stage.name.split(".")[0],))
    check_whole()


@databases.either
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_discards_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """How long nobody has written to a stage is told by the file system's clock alone."""
    crash("kill", "before the sidecar")
    right = time.time
    with make() as store, monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: right() + 3600 * hours)
        assert store.recover() == Recovered()
        (stage,) = STAGING.iterdir()
        old = right() - 61
        for path in [*stage.iterdir(), stage]:
            os.utime(path, (old, old))
        assert len(store.recover().discarded) == 1


@databases.either
def test_a_file_that_no_row_knows_is_reported_and_left(folder: Path) -> None:
    """Not one that was registered, nor one that has another ending."""
    with make() as store:
        record = store.run({"n": 1})
        mine = Path("results/mine.npy")
        mine.write_bytes(b"mine")
        Path("results/notes.txt").write_text("notes")
        stray = Path("results/stray.npy")
        stray.write_bytes(b"whose")
        store.register({"n": 2}, mine)
        assert store.recover() == Recovered(strays=("./results/stray.npy",))
        store.delete({"n": 1})
        assert set(store.recover().strays) == {"./results/stray.npy", record.result_file}
        assert stray.read_bytes() == b"whose"


RECOVERING = """\
say("ready")
with make() as store:
    store.recover()
    store.sweep({"n": n} for n in range(4))
say("done")
"""


def test_ten_processes_may_recover_at_once(folder: Path) -> None:
    """Each finished run is stored once, and none is run again."""
    crash("kill", "after publishing")
    before = calls()
    started = [scripts.Script(RECOVERING) for _ in range(10)]
    try:
        for script in started:
            script.expect("ready")
        for script in started:
            script.expect("done")
            assert script.ended() == 0
    finally:
        for script in started:
            script.process.kill()
            script.process.wait()
            assert script.process.stdout is not None
            script.process.stdout.close()
    assert calls() == before + 2
    check_whole()


SWEEPING = """\
def run(params):
    time.sleep(0.002)
    simulate(params)
workers = None if EXECUTOR == "caller" else 2
store = make(run, executor=EXECUTOR, lease_ttl=1.0, max_workers=workers)
say("ready")
for record in store.as_completed({"n": n} for n in range(BEGIN, BEGIN + 60)):
    say(record.n)
say("end")
"""


def kill_at_random(executor: str, rounds: int, seed: int) -> None:
    """Start sweeps and kill each of them at some moment; what was told to have come is there."""
    moments = random.Random(seed)
    told: set[int] = set()
    for turn in range(rounds):
        settings = scripts.arguments(EXECUTOR=executor, BEGIN=20 * turn)
        with scripts.script(settings + SWEEPING) as script:
            script.expect("ready")
            for _ in range(moments.randrange(40)):
                told.add(int(script.expect()))
            killing = moments.random() * 0.02
            over = time.monotonic() + killing
            while time.monotonic() < over:
                pass
            script.process.kill()
            assert script.process.stdout is not None
            told |= {int(line) for line in script.process.stdout if line.strip().isdigit()}
            script.ended()
        rows = rows_by_now()
        assert databases.current().is_sound()
        assert told <= rows.keys()
        for n, path in rows.items():
            assert np.load(path).tolist() == [n, 0.5]
    with make(lease_ttl=0.2) as store:
        wanted = [{"n": n} for n in range(20 * rounds + 40)]
        over = time.monotonic() + 10
        assert [record.n for record in store.sweep(wanted)] == [n["n"] for n in wanted]
        assert time.monotonic() < over
        wait_for(lambda: store.recover() == Recovered() and not list(STAGING.iterdir()))
    check_whole()


def rows_by_now() -> dict[int, str]:
    """What is stored; nothing, where the first of all was killed before it had made its tables."""
    try:
        return dict(databases.ask("SELECT n, result_file FROM points"))
    except databases.ERRORS:
        return {}


# Whose process is killed while workers outlive it is nothing to the database.
WITH_WORKERS = [
    ("sqlite", "process", 5),
    pytest.param("postgresql", "process", 8, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(
    ("database", "executor", "rounds"),
    [
        ("sqlite", "caller", 6),
        ("sqlite", "thread", 6),
        ("postgresql", "thread", 6),
        pytest.param("postgresql", "caller", 6, marks=pytest.mark.nightly),
        *WITH_WORKERS,
    ],
    indirect=["database"],
)
def test_kill_9_at_any_moment_loses_nothing(folder: Path, executor: str, rounds: int) -> None:
    """What was acknowledged is there, whole; the next sweep completes, and waits for no ghost."""
    kill_at_random(executor, rounds, seed=4)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("executor", ["caller", "thread", "process"])
def test_kill_9_at_any_moment_loses_nothing_many_times(folder: Path, executor: str) -> None:
    """Seventy times each."""
    kill_at_random(executor, 70, seed=random.randrange(1 << 30))


def stage_of_a_crash() -> Path:
    """The stage of a finished run whose process was killed."""
    crash("kill", "before publishing")
    (stage,) = STAGING.iterdir()
    return stage


def planted(stage: Path, **changes: Any) -> None:
    """Change what a sidecar says."""
    path = stage / ".sidecar.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


HOSTILE: dict[str, dict[str, Any]] = {
    "another id": {"id": "../../victim"},
    "another run's id": {"id": "0123456789abcdef"},
    "a foreign path": {"name": "../../victim"},
    "an absolute path": {"name": "/etc/hostname"},
    "a higher token": {"token": 10**9},
    "no number": {"token": "1"},
    "an id of its own": {"has_own_id": True},
    "another id of its own": {"has_own_id": True, "id": "0123456789abcdef"},
    "an unknown format": {"format": 2},
    "more than it may say": {"command": "rm -rf"},
    "other parameters": {"values": {"n": 7, "dt": 0.5, "label": None}},
    "unknown parameters": {"values": {"what": 1}},
    "foreign companions": {
        "staged": {
            "size": 144,
            "is_folder": False,
            "companions": ["../../../victim"],
            "digest": None,
            "inode": 0,
            "mtime_ns": 0,
        }
    },
}


@databases.either
@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_sidecar_changes_nothing_outside_the_folder(
    folder: Path, changes: dict[str, Any]
) -> None:
    """Its run is run again, or it is stored under its own name; and nobody else's is touched."""
    victim = folder / "victim"
    victim.write_text("untouched")
    stage = stage_of_a_crash()
    planted(stage, **changes)
    with make() as store:
        store.recover()
        record = store.run_or_retrieve({"n": 1})
        assert np.load(record.result_file).tolist() == [1, 0.5]
    assert victim.read_text() == "untouched"
    allowed = {f"{record.id}.npy", f"{record.id}.files", ".entropic"}
    zero = {path.name for path in Path("results").iterdir()} - allowed
    assert len(zero) == 1  # of {"n": 0}, which was there before


@databases.either
@pytest.mark.parametrize("what", ["deep", "huge", "link", "folder", "pipe"])
def test_a_sidecar_that_is_no_plain_file_is_not_read(folder: Path, what: str) -> None:
    """Nor one that would fill the memory, or the stack."""
    stage = stage_of_a_crash()
    path = stage / ".sidecar.json"
    content = path.read_text()
    path.unlink()
    if what == "deep":
        path.write_text("[" * 200_000)
    elif what == "huge":
        with path.open("w") as file:
            file.truncate(1 << 40)
    elif what == "link":
        Path("elsewhere.json").write_text(content)
        path.symlink_to(Path("elsewhere.json").resolve())
    elif what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    id, _, _ = stage.name.split(".")
    assert read_sidecar(Stage(str(stage.resolve()), f"{id}.npy")) is None
    with make() as store:
        before = calls()
        store.run_or_retrieve({"n": 1})
        assert calls() == before + 1


@databases.either
def test_a_link_in_the_staging_folder_is_not_followed(folder: Path) -> None:
    """Whatever it is called."""
    stage = stage_of_a_crash()
    real = folder / "real"
    stage.rename(real)
    stage.symlink_to(real)
    with make() as store:
        assert store.recover().published == ()
        before = calls()
        store.run_or_retrieve({"n": 1})
        assert calls() == before + 1
    assert (real / ".sidecar.json").exists()


def test_a_store_that_cannot_recover_opens_all_the_same(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is to be had; and a warning says what was left."""
    stage_of_a_crash()
    from entropic.artifacts import ResultsFolder
    from entropic.errors import ResultsDirError

    def refuse(*args: Any) -> None:
        raise ResultsDirError("refused", path="results")

    monkeypatch.setattr(ResultsFolder, "staged", refuse)

    async def main() -> None:
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            assert await store.retrieve({"n": 0}) is not None
            with pytest.raises(ResultsDirError, match="refused"):
                await store.recover()

    asyncio.run(main())
    assert "was not recovered" in caplog.text


def test_a_request_that_is_left_while_it_looks_for_what_was_left_starts_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for its run any more: the claim is given back, and no runner is called."""
    looking, let_go = threading.Event(), threading.Event()
    take_over = Salvage.take_over

    def slowly(*args: Any) -> Any:
        looking.set()
        assert let_go.wait(10)
        return take_over(*args)

    def fail(params: dict[str, Any]) -> None:
        raise ValueError("in vain")

    async def main() -> None:
        async with AsyncStore(fail, Point, file_suffix=".npy", db_url=databases.url()) as store:
            with pytest.raises(ValueError, match="in vain"):
                await store.run({"n": 1})
        monkeypatch.setattr(Salvage, "take_over", slowly)
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            asking = asyncio.create_task(store.run_or_retrieve({"n": 1}))
            await asyncio.to_thread(looking.wait, 10)
            asking.cancel()
            await asyncio.sleep(0)
            let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(main())
    assert calls() == 0
    assert databases.ask("SELECT state, owner FROM entropic_runs") == [("interrupted", None)]
