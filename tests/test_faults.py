"""What full disks, locks and cancellations do to a store: nothing is lost, and nothing stays held.

The faults are real: small file systems that run full, limits of the system, locks of other
processes, files that may not be written.
"""

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
)
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from entropic import (
    AsyncStore,
    DatabaseBusyError,
    DatabaseError,
    EntropicError,
    ResultsDirError,
    Store,
)
from tests import scripts
from tests.outsiders import (
    Watch,
    ask,
    change,
    holding,
    is_unlocked,
    listed,
    running,
    waiting,
)
from tests.simulations import Point, calls, mark_call, simulate
from tests.test_folders import open_folder, run_unprivileged

__all__ = ["open_folder"]  # a fixture

pytestmark = pytest.mark.anyio

PATH = "runs.sqlite3"
STAGING = Path("results/.entropic/staging")
HELD = "SELECT id FROM entropic_runs WHERE owner IS NOT NULL"


@pytest.fixture
def anyio_backend() -> str:
    """The store is made for asyncio."""
    return "asyncio"


class SmallDisk:
    """A file system of 512 kB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("ab") as file:
            about = os.statvfs(self.path)
            file.write(bytes(about.f_bavail * about.f_frsize))

    def clear(self) -> None:
        """Make room again."""
        self._ballast.unlink()

    def remount(self, mode: str) -> None:
        """Mount it anew, ``ro`` or ``rw``."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)


@pytest.fixture
def disk(folder: Path) -> Iterator[SmallDisk]:
    """A small file system at ``disk``."""
    path = folder / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def make(runner: Callable[..., Any], **settings: Any) -> Store[Any]:
    """A store on the database of this test."""
    usual = {"file_suffix": ".npy", "db_url": "sqlite:///runs.sqlite3"}
    return Store(runner, Point, **{**usual, **settings})


class Filling:
    """A runner whose calls have results of their own; it can use up all room first, or last."""

    def __init__(self, disk: SmallDisk) -> None:
        self._disk = disk
        self.is_to_fill = ""

    def __call__(self, params: dict[str, Any]) -> None:
        mark_call(params)
        if self.is_to_fill == "first":
            self._disk.fill()
        with open(params["result_file"], "wb") as file:
            file.write(b"call %d" % calls())
        if self.is_to_fill == "last":
            self._disk.fill()


def test_a_runner_that_meets_a_full_disk_fails_as_itself(disk: SmallDisk) -> None:
    """Its own error; what was stored is still to be had, and with room it works again."""
    runner = Filling(disk)
    database = "disk/runs.sqlite3"
    settings = {"results_dir": "disk/results", "db_url": f"sqlite:///{database}"}
    with make(runner, **settings) as store:
        old = store.run_or_retrieve({"n": 0})
        runner.is_to_fill = "first"
        for request in (lambda: store.run_or_retrieve({"n": 1}), lambda: store.run({"n": 0})):
            with pytest.raises(OSError, match="No space left on device") as caught:
                request()
            assert type(caught.value) is OSError
            assert Path(old.result_file).read_bytes() == b"call 1"
            assert store.run_or_retrieve({"n": 0}).created_at == old.created_at
            assert store.retrieve({"n": 1}) is None
            disk.clear()
            assert store.retrieve({"n": 1}) is None
        runner.is_to_fill = ""
        with make(runner, **settings) as other:
            assert other.run_or_retrieve({"n": 1}).n == 1
        assert store.run({"n": 0}).created_at == old.created_at
    assert ask(database, HELD) == []
    assert os.listdir("disk/results/.entropic/staging") == []


def test_a_result_that_cannot_be_sealed_on_a_full_disk_is_kept(disk: SmallDisk) -> None:
    """The error says so, and where it is; what was stored stays, and with room it works again."""
    runner = Filling(disk)
    with make(runner, results_dir="disk/results") as store:
        old = store.run_or_retrieve({"n": 0})
        runner.is_to_fill = "last"
        for request in (store.run_or_retrieve, store.run):
            with pytest.raises(ResultsDirError, match="the disk is full") as caught:
                request({"n": 1}, note="x" * 10_000)
            (kept,) = Path(caught.value.path or "").glob("*.npy")
            assert kept.read_bytes() == b"call %d" % calls()
            assert store.retrieve({"n": 1}) is None
            assert store.run_or_retrieve({"n": 0}).created_at == old.created_at
            assert ask("runs.sqlite3", HELD) == []
            disk.clear()
        runner.is_to_fill = ""
        with make(runner, results_dir="disk/results") as other:
            record = other.run_or_retrieve({"n": 1})
        again = store.run({"n": 1})
        assert again.created_at == record.created_at
        assert Path(again.result_file).read_bytes() == b"call 5"


@pytest.mark.parametrize("is_open", [True, False])
def test_a_finished_run_whose_row_finds_no_room_is_stored_when_there_is_some(
    disk: SmallDisk, is_open: bool
) -> None:
    """By the next request, of the store or of another; it is not run again."""
    runner = Filling(disk)
    database = "disk/runs.sqlite3"
    settings = {"db_url": f"sqlite:///{database}"}
    large = {"n": 1, "label": "x" * 20_000}
    with make(runner, **settings) as store:
        old = store.run_or_retrieve({"n": 0})
        runner.is_to_fill = "last"
        with pytest.raises(DatabaseError, match="the disk is full; free some room"):
            store.run_or_retrieve(large, by="the first")
        runner.is_to_fill = ""
        assert is_unlocked(database)
        assert sorted(Path("results").glob("*")) == [
            Path("results/.entropic"),
            Path(old.result_file),
        ]
        assert store.run_or_retrieve({"n": 0}).created_at == old.created_at
        assert store.retrieve(large) is None
        with pytest.raises(DatabaseError, match="the disk is full"):
            store.run_or_retrieve({"n": 2, "label": "y" * 20_000})
        disk.clear()
        if is_open:
            record = store.run_or_retrieve(large)
        else:
            store.run_or_retrieve({"n": 3})  # anything that shows it that there is room
            assert ask(database, HELD) == []
            with make(runner, **settings) as other:
                record = other.run_or_retrieve(large)
        assert record.custom_data["by"] == "the first"
        assert Path(record.result_file).read_bytes() == b"call 2"
        assert calls(record.id) == 1
    assert ask(database, HELD) == []
    assert list(STAGING.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "companions", "fewer companions"])
def test_a_rerun_whose_row_finds_no_room_leaves_the_old_result(disk: SmallDisk, kind: str) -> None:
    """Row and result are the old ones, until there is room; then both are the new ones."""

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        path = Path(params["result_file"])
        if kind == "folder":
            path.mkdir()
            path /= "part"
        path.write_bytes(b"call %d" % calls())
        if kind == "companions" or (kind == "fewer companions" and calls() == 1):
            Path(params["result_file"]).with_name("log").write_bytes(b"log %d" % calls())
        if calls() == 2:
            disk.fill()

    def content(record: Any) -> list[bytes]:
        folders = (Path(record.result_file), Path("results", f"{record.id}.files"))
        paths = [*folders, *(path for folder in folders for path in folder.glob("*"))]
        return [path.read_bytes() for path in paths if path.is_file()]

    settings = {"db_url": "sqlite:///disk/runs.sqlite3"}
    with make(runner, **settings) as store:
        old = store.run_or_retrieve({"n": 0}, by="the first")
        before = content(old)
        assert b"call 1" in before
        with pytest.raises(DatabaseError, match="the disk is full"):
            store.run({"n": 0}, by="the second", note="x" * 50_000)
        assert content(old) == before
        assert store.run_or_retrieve({"n": 0}).custom_data["by"] == "the first"
        disk.clear()
        assert store.recover().published == (old.id,)
        new = store.run_or_retrieve({"n": 0})
        assert (new.custom_data["by"], new.created_at) == ("the second", old.created_at)
        assert content(new) == [
            part.replace(b"1", b"2")
            for part in before
            if kind == "companions" or b"log" not in part
        ]
    assert calls() == 2
    assert ask("disk/runs.sqlite3", HELD) == []
    assert list(STAGING.iterdir()) == []


LIMITED = """\
import resource
from entropic import DatabaseError, ResultsDirError

SIZES = {"result": (2 << 20, 0), "sidecar": (10, 2 << 20), "row": (10, 700_000)}

def run(params):
    mark_call(params)
    with open(params["result_file"], "wb") as file:
        file.write(bytes(SIZES[WHERE][0] if params["n"] == 2 else 10))

store = make(run)
store.run({"n": 0})
old = store.run({"n": 1}, note="x" * SIZES[WHERE][1] if WHERE == "row" else "")
before = calls()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for request in (store.run_or_retrieve, store.run_or_retrieve, store.run):
    try:
        request({"n": 2}, note="x" * SIZES[WHERE][1])
    except Exception as error:
        say(type(error).__name__, str(error).replace("\\n", " "))
    assert store.run_or_retrieve({"n": 1}).created_at == old.created_at
    assert store.retrieve({"n": 2}) is None
    assert store.sweep([{"n": 0}, {"n": 1}])[1].custom_data == old.custom_data
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with make(run) as other:
    theirs = (other if ASKED == "another store" else store).run_or_retrieve({"n": 2})
assert store.run_or_retrieve({"n": 2}).created_at == theirs.created_at
assert os.path.getsize(theirs.result_file) == SIZES[WHERE][0]
say("called", calls(theirs.id))
store.close()
"""


@pytest.mark.parametrize("asked", ["the same store", "another store"])
@pytest.mark.parametrize(
    ("where", "message", "count"),
    [
        ("result", "OSError [Errno 27] File too large", 4),
        ("sidecar", "ResultsDirError the run has finished, but its result could not be sealed", 4),
        ("row", "DatabaseError the database", 2),
    ],
)
def test_a_limit_of_file_sizes_is_told_and_its_end_is_seen(
    folder: Path, where: str, message: str, count: int, asked: str
) -> None:
    """Whatever is too large, old results are hits, and without the limit the same call works."""
    lines, _ = scripts.run(scripts.arguments(WHERE=where, ASKED=asked) + LIMITED)
    assert len(lines) == 4
    for line in lines[:3]:
        assert line.startswith(message)
        assert "too large" in line or "see the disk" in line
    assert lines[3] == f"called {count}"
    assert ask("runs.sqlite3", HELD) == []


READ_ONLY = """
def tried(request):
    try:
        return request()
    except Exception as error:
        return f"{type(error).__name__} {error}"

def check(store):
    assert store.retrieve({"n": 0}).n == 0
    assert store.run_or_retrieve({"n": 0}).n == 0
    assert [r.n for r in store.sweep([{"n": 1}, {"n": 0}])] == [1, 0]
    assert sorted(r.n for r in store.as_completed([{"n": 1}, {"n": 0}])) == [0, 1]
    assert store.retrieve({"n": 2}) is None
    assert open(store.retrieve({"n": 0}).result_file).read() == "result"
    assert store.failures() == []
    for request in (
        lambda: store.run_or_retrieve({"n": 2}),
        lambda: store.run({"n": 0}),
        lambda: store.sweep([{"n": 0}, {"n": 2}]),
        lambda: store.delete({"n": 0}, remove_file=True),
    ):
        print(tried(request))
    assert store.retrieve({"n": 0}).n == 0

ran = []
def runner(params):
    ran.append(params)
    with open(params["result_file"], "w") as file:
        file.write("result")

def make(results_dir="results", db_url="sqlite:///runs.sqlite3"):
    return Store(runner, Point, results_dir, ".npy", db_url)

if MAKES:
    make().sweep([{"n": 0}, {"n": 1}])
    ran.clear()
    for path, mode in CLOSED.items():
        os.chmod(path, mode)
store = make(db_url=DB_URL)
check(store)
assert ran == []
if MAKES:
    for path in reversed(CLOSED):
        os.chmod(path, 0o700)
    again = store if "mode=ro" not in DB_URL and "runs.sqlite3" not in CLOSED else make()
    assert again.run_or_retrieve({"n": 2}).n == 2
    assert again.delete({"n": 0}, remove_file=True)
    assert len(ran) == 1
"""
FOLDERS = ("results/.entropic/staging", "results/.entropic", "results")
WRITABLE = "sqlite:///runs.sqlite3"


@pytest.mark.parametrize(
    ("closed", "db_url", "messages"),
    [
        (FOLDERS, WRITABLE, [ResultsDirError] * 4),
        (FOLDERS[2:], WRITABLE, [ResultsDirError] * 4),
        (("runs.sqlite3",), WRITABLE, [DatabaseError] * 4),
        ((), "sqlite:///file:runs.sqlite3?mode=ro&uri=true", [DatabaseError] * 4),
        ((*FOLDERS, "runs.sqlite3"), WRITABLE, [*[ResultsDirError] * 3, DatabaseError]),
    ],
    ids=["folder and corner", "folder", "database", "database by its URL", "both"],
)
def test_what_may_only_be_read_is_read(
    open_folder: Path,
    tmp_path: Path,
    closed: tuple[str, ...],
    db_url: str,
    messages: list[type[Exception]],
) -> None:
    """Hits are hits; a run is told what to make writable before it starts; nothing is deleted."""
    modes = {path: 0o444 if path == "runs.sqlite3" else 0o555 for path in closed}
    settings = scripts.arguments(CLOSED=modes, DB_URL=db_url, MAKES=True)
    lines = run_unprivileged(settings + READ_ONLY, open_folder, tmp_path).splitlines()
    check_refusals(lines, messages)


def test_what_is_another_users_is_read(
    open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who made it may write; all others, who cannot even look into its private corner, may read."""
    if os.getuid():
        pytest.skip("only root can act as another user")
    monkeypatch.chdir(open_folder)

    def runner(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_bytes(b"result")

    with make(runner) as store:
        store.sweep([{"n": 0}, {"n": 1}])
    settings = scripts.arguments(CLOSED={}, DB_URL=WRITABLE, MAKES=False)
    lines = run_unprivileged(settings + READ_ONLY, open_folder, tmp_path).splitlines()
    check_refusals(lines, [*[ResultsDirError] * 3, DatabaseError])


def check_refusals(lines: list[str], errors: list[type[Exception]]) -> None:
    """Each says what may not be written."""
    assert len(lines) == len(errors)
    for line, error in zip(lines, errors, strict=True):
        assert line.startswith(error.__name__)
        assert "may not be written" in line or "make the file and its folder writable" in line


def test_a_read_only_file_system_is_read(disk: SmallDisk) -> None:
    """Mounted read-only, with all that was stored on it; mounted anew, the same call works."""
    settings = {"results_dir": "disk/results", "db_url": "sqlite:///disk/runs.sqlite3"}
    runner = Filling(disk)
    with make(runner, **settings) as store:
        store.sweep([{"n": 0}, {"n": 1}])
    disk.remount("ro")
    with make(runner, **settings) as store:
        assert [record.n for record in store.sweep([{"n": 0}, {"n": 1}])] == [0, 1]
        with pytest.raises(ResultsDirError, match="on a read-only file system"):
            store.run_or_retrieve({"n": 2})
        with pytest.raises(DatabaseError, match="is read-only"):
            store.delete({"n": 0}, remove_file=True)
        assert calls() == 2
    disk.remount("rw")
    with make(runner, **settings) as store:
        assert store.sweep([{"n": 0}, {"n": 2}])[1].n == 2
    assert calls() == 3


REFUSE = """
CREATE TRIGGER refuse BEFORE UPDATE ON entropic_runs WHEN NEW.state = 'deleted'
BEGIN SELECT RAISE(ABORT, 'refused'); END
"""


@pytest.mark.parametrize("where", ["published", "registered", "on another disk"])
def test_a_deletion_that_the_database_refuses_leaves_the_result(
    disk: SmallDisk, where: str
) -> None:
    """With all that was published beside it; without the refusal, the same call removes both."""

    def runner(params: dict[str, Any]) -> None:
        path = Path(params["result_file"])
        path.mkdir()
        (path / "part").write_bytes(b"part")
        path.with_name("log").write_bytes(b"log")

    with make(runner) as store:
        record = store.run({"n": 0})
        paths = [Path(record.result_file, "part"), Path("results", f"{record.id}.files", "log")]
        if where != "published":
            mine = Path("mine.npy" if where == "registered" else "disk/mine.npy")
            mine.mkdir()
            paths = [mine / "part"]
            paths[0].write_bytes(b"mine")
            store.register({"n": 0}, mine)
        before = [path.read_bytes() for path in paths]
        change(PATH, REFUSE)
        with pytest.raises(EntropicError, match="refused"):
            store.delete({"n": 0}, remove_file=True)
        assert [path.read_bytes() for path in paths] == before
        assert store.retrieve({"n": 0}) is not None
        change(PATH, "DROP TRIGGER refuse")
        assert store.delete({"n": 0}, remove_file=True)
        assert not any(path.parent.exists() for path in paths)
        assert store.retrieve({"n": 0}) is None
    assert list(STAGING.iterdir()) == []
    assert os.listdir("disk") == []


def test_the_database_is_free_while_a_deleted_result_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of many files takes long to remove; others go on meanwhile."""

    def runner(params: dict[str, Any]) -> None:
        Path(params["result_file"]).mkdir()
        Path(params["result_file"], "part").write_bytes(b"part")

    unlink = os.unlink
    free = []

    def unlinked(*args: Any, **options: Any) -> None:
        if args[0] == "part":
            free.append(is_unlocked(PATH))
        unlink(*args, **options)

    with make(runner) as store:
        store.run({"n": 0})
        monkeypatch.setattr(os, "unlink", unlinked)
        assert store.delete({"n": 0}, remove_file=True)
    assert free == [True]


EXCLUSIVE = "BEGIN EXCLUSIVE"
WRITING = "BEGIN IMMEDIATE"


def hold(path: str, statement: str, line: Any) -> None:
    """In another process: hold a lock until told to let go."""
    with holding(path, statement):
        line.send("held")
        line.recv()
    line.send("let go")


@asynccontextmanager
async def locked(statement: str = EXCLUSIVE) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Another process has the database locked; gives a way to have it let go."""
    with running(hold, PATH, statement) as child:
        assert await asyncio.to_thread(child.recv) == "held"

        async def release() -> None:
            child.send("now")
            assert await asyncio.to_thread(child.recv) == "let go"

        yield release


def make_async(runner: Callable[..., Any] = simulate, **settings: Any) -> AsyncStore[Point]:
    """An asynchronous store."""
    usual = {"file_suffix": ".npy", "db_url": WRITABLE}
    return AsyncStore(runner, Point, **{**usual, **settings})


def all_calls(store: AsyncStore[Point]) -> dict[str, Callable[[], Coroutine[Any, Any, Any]]]:
    """A call of each kind that needs the database; ``{"n": 0}`` to ``{"n": 3}`` are stored."""
    return {
        "a hit": lambda: store.run_or_retrieve({"n": 0}),
        "a miss": lambda: store.run_or_retrieve({"n": 10}),
        "run": lambda: store.run({"n": 1}),
        "retrieve": lambda: store.retrieve({"n": 0}),
        "sweep": lambda: store.sweep([{"n": 0}, {"n": 11}, {"n": 12}]),
        "as_completed": lambda: listed(store.as_completed([{"n": 0}, {"n": 13}])),
        "delete": lambda: store.delete({"n": 2}, remove_file=True),
        "another delete": lambda: store.delete({"n": 3}),
        "register": lambda: store.register({"n": 14}, "made"),
        "failures": store.failures,
    }


async def started(
    store: AsyncStore[Point], lock: Watch
) -> tuple[dict[str, asyncio.Task[Any]], float]:
    """All calls at once, once they have met the lock; and when they were made."""
    began = time.monotonic()
    calls = {name: asyncio.create_task(call()) for name, call in all_calls(store).items()}
    await lock.met()
    return calls, began


async def test_every_call_waits_five_seconds_for_a_lock_and_succeeds() -> None:
    """Another process has the database to itself for so long; nobody is told that it is busy."""
    Path("made").write_text("elsewhere")
    async with make_async() as store:
        await store.sweep({"n": n} for n in range(4))
        async with locked() as release:
            with waiting() as lock:
                begun, _ = await started(store, lock)
                opening = make_async()
                begun["opening"] = asyncio.create_task(opening.run_or_retrieve({"n": 0}))
                done, _ = await asyncio.wait(begun.values(), timeout=5)
                assert done == set()
                await release()
                ended = dict(zip(begun, await asyncio.gather(*begun.values()), strict=True))
        assert [record.n for record in ended["sweep"]] == [0, 11, 12]
        assert sorted(record.n for record in ended["as_completed"]) == [0, 13]
        assert ended["delete"] is True
        assert ended["register"].result_file == "made"
        assert ended["retrieve"].n == ended["opening"].n == 0
        assert (calls(ended["a miss"].id), calls(ended["run"].id)) == (1, 2)
        await opening.aclose()
    assert ask(PATH, HELD) == []
    assert list(STAGING.iterdir()) == []


async def test_every_call_that_waits_for_a_lock_can_be_cancelled() -> None:
    """Within a second, all of them; afterwards each of them works."""
    Path("made").write_text("elsewhere")
    async with make_async() as store:
        await store.sweep({"n": n} for n in range(4))
        async with locked() as release:
            with waiting() as lock:
                begun, _ = await started(store, lock)
                cancelled = time.monotonic()
                for call in begun.values():
                    call.cancel()
                await asyncio.wait(begun.values())
                assert time.monotonic() - cancelled < 1
                assert all(call.cancelled() for call in begun.values())
            await release()
        await asyncio.gather(*(call() for call in all_calls(store).values()))
        assert (await store.run_or_retrieve({"n": 1})).n == 1
    assert ask(PATH, HELD) == []
    assert list(STAGING.iterdir()) == []


@pytest.mark.parametrize("statement", [EXCLUSIVE, WRITING])
async def test_every_call_that_waits_too_long_for_a_lock_is_told_whom_to_look_for(
    statement: str,
) -> None:
    """After ``lock_timeout``, however many wait; afterwards each of them works."""
    Path("made").write_text("elsewhere")
    only_read = {"a hit", "retrieve", "failures"} if statement == WRITING else set()
    async with make_async(lock_timeout=0.5) as store:
        await store.sweep({"n": n} for n in range(4))
        async with locked(statement) as release:
            with waiting() as lock:
                begun, since = await started(store, lock)
                await asyncio.wait(begun.values())
                assert time.monotonic() - since < 1.4
            await release()
        for name, call in begun.items():
            error = call.exception()
            if name in only_read:
                assert error is None
                continue
            assert type(error) is DatabaseBusyError, name
            for words in ("locked by another program", "fuser -v", str(Path(PATH).resolve())):
                assert words in str(error)
        await asyncio.gather(*(call() for call in all_calls(store).values()))
    assert ask(PATH, HELD) == []
    assert list(STAGING.iterdir()) == []


@pytest.mark.parametrize("again", [False, True], ids=["run_or_retrieve", "run"])
async def test_a_lock_that_stays_when_a_run_has_finished_loses_nothing(again: bool) -> None:
    """The caller is told after ``lock_timeout``; the next request stores it, and runs nothing."""
    finished, go_on = threading.Event(), threading.Event()

    def runner(params: dict[str, Any]) -> None:
        simulate(params)
        if params["n"]:
            finished.set()
            assert go_on.wait(30)

    async with make_async(runner, lock_timeout=0.5) as store:
        await store.run_or_retrieve({"n": 0})
        call = asyncio.create_task((store.run if again else store.run_or_retrieve)({"n": 1}, by=1))
        assert await asyncio.to_thread(finished.wait, 30)
        async with locked() as release:
            began = time.monotonic()
            go_on.set()
            with pytest.raises(DatabaseBusyError):
                await call
            assert time.monotonic() - began < 1
            await release()
        async with make_async(runner) as other:
            await store.run({"n": 0})  # anything that shows it that the lock is gone
            record = await other.run_or_retrieve({"n": 1}, by=2)
        assert record.custom_data["by"] == 1
        assert calls(record.id) == 1
    assert ask(PATH, HELD) == []
    assert list(STAGING.iterdir()) == []
