"""What others have planted: in the database, in sidecars, in the results folder; and secrets.

Nothing that is read is executed. What cannot be right is an error that says so, or is left out.
"""

import json
import logging
import math
import os
import pickle
import shutil
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from entropic import EntropicError, RemoteRunError, Store
from entropic.artifacts import ResultsFolder
from entropic.artifacts import stage as stages
from entropic.errors import ResultsDirError
from entropic.leases import is_gone
from tests.outsiders import ask, change
from tests.simulations import Point, calls, simulate
from tests.test_recovery import STAGING, crash, planted, stage_of_a_crash

PATH = "runs.sqlite3"
CANARY = "c4n4ry"

DEEP = "[" * 200_000


class Exploit:
    """What a pickle can do to who loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def make(runner: Callable[..., Any] = simulate, **settings: Any) -> Store[Any]:
    """A store that waits for nobody for long."""
    usual: dict[str, Any] = {"file_suffix": ".npy", "db_url": f"sqlite:///{PATH}"}
    return Store(runner, Point, **{**usual, **settings})


def fails(params: dict[str, Any]) -> None:
    """A runner that leaves a failure on record."""
    raise ValueError("in vain")


def told(**changes: Any) -> str:
    """The record of a failure, changed."""
    error = {"params": '{"n": 1}', "type": "ValueError", "message": "in vain", "traceback": ""}
    return json.dumps({**error, **changes})


PLANTED: dict[str, Any] = {
    "a pickle": pickle.dumps(Exploit()),
    "text of a pickle": pickle.dumps(Exploit(), 0).decode(),
    "deep": DEEP,
    "a text": "x",
    "a number": 1,
    "a list": "[1]",
    "a JSON text": '"x"',
    "null": "null",
    "an empty object": "{}",
    "code": '__import__("os").mkdir("executed")',
    "other types": told(params=3, type=[], message={}, traceback=1),
    "deep params": told(params=DEEP),
    "no params": told(params="[1]"),
    "params of another model": told(params='{"what": {"n": [1]}}'),
}

COLUMNS = [
    ("entropic_runs", "error"),
    ("entropic_runs", "owner"),
    ("entropic_runs", "result_name"),
    ("entropic_runs", "registered_path"),
    ("entropic_runs", "attempts"),
    ("entropic_columns", "identity_default"),
    ("points", "custom_data"),
    ("points", "result_file"),
    ("points", "n"),
]


def filled() -> None:
    """A database with a run and a failure in it."""
    with make() as store:
        store.run({"n": 0})
    with make(fails) as store, pytest.raises(ValueError, match="in vain"):
        store.run({"n": 1})


CALLS: dict[str, Callable[[Store[Any], dict[str, Any]], Any]] = {
    "run": lambda store, params: store.run(params),
    "run_or_retrieve": lambda store, params: store.run_or_retrieve(params),
    "retrieve": lambda store, params: store.retrieve(params),
    "delete": lambda store, params: store.delete(params, remove_file=True),
    "sweep": lambda store, params: store.sweep([params, {"n": 1}]),
    "failures": lambda store, _: store.failures(),
    "recover": lambda store, _: store.recover(),
}


def outcome(step: str, store: Store[Any], params: dict[str, Any]) -> Any:
    """What a call returns, or raises on purpose."""
    try:
        return CALLS[step](store, params)
    except EntropicError as error:
        return error


@pytest.mark.parametrize(
    ("table", "column"),
    # By day without those that hold what another one of them holds.
    [
        pytest.param(*it, marks=pytest.mark.nightly)
        if it[1] in {"attempts", "registered_path", "n"}
        else it
        for it in COLUMNS
    ],
)
def test_what_is_planted_in_the_database_is_text(folder: Path, table: str, column: str) -> None:
    """Nothing of it is executed, and all that is ever raised is an error of entropic's."""
    filled()
    shutil.copy(PATH, "filled")
    for value in PLANTED.values():
        shutil.copy("filled", PATH)
        with closing(sqlite3.connect(PATH)) as database, database:
            database.execute(f"UPDATE {table} SET {column} = ?", [value])
        with make() as store:
            for step in ("failures", "retrieve", "recover", "sweep"):
                outcome(step, store, {"n": 0})
            outcome("retrieve", store, {"id": "an-id", "n": 0})
        assert not Path("executed").exists()


@pytest.mark.parametrize("error", ["1", "[]", "{}", "null", told(params=DEEP), told(type=1)])
def test_a_failure_that_says_nothing_is_still_a_failure(folder: Path, error: str) -> None:
    """One record that somebody else wrote hides none of the others."""
    filled()
    with make(fails) as store, pytest.raises(ValueError, match="in vain"):
        store.run({"n": 2})
    with closing(sqlite3.connect(PATH)) as database, database:
        id = database.execute("SELECT id FROM entropic_runs WHERE error IS NOT NULL").fetchone()
        database.execute("UPDATE entropic_runs SET error = ? WHERE id = ?", [error, *id])
    with make() as store:
        planted, other = sorted(store.failures(), key=lambda failure: (failure.id,) != id)
    assert planted.params in ({}, {"n": 1})
    assert isinstance(planted.exception, RemoteRunError)
    assert str(other.exception) == "in vain"


@pytest.mark.parametrize("owner", PLANTED.values(), ids=PLANTED)
def test_an_owner_that_cannot_be_a_process_is_not_gone(owner: Any) -> None:
    """Its lease decides."""
    assert not is_gone(owner)


@pytest.mark.parametrize(
    "name", ["../victim", "/victim", "a/../../victim", "..", ".entropic", "", "."]
)
def test_a_name_that_leads_elsewhere_is_not_believed(folder: Path, name: str) -> None:
    """What has a result's name is replaced and removed: nothing outside the folder is."""
    inner = folder / "inner"
    inner.mkdir()
    os.chdir(inner)
    victims = [inner / "victim", folder / "victim"]
    for victim in victims:
        victim.write_text("untouched")
    for step in ("run", "delete"):
        filled()
        change(PATH, f"UPDATE entropic_runs SET result_name = '{name}', size = NULL")
        with make() as store:
            outcome(step, store, {"n": 0})
    assert [victim.read_text() for victim in victims] == ["untouched"] * 2
    assert Path("results/.entropic/staging").is_dir()


@pytest.mark.parametrize("what", ["pipe", "huge", "link", "device", "folder", "no text"])
def test_an_id_of_a_folder_that_is_no_short_text_is_refused(folder: Path, what: str) -> None:
    """Neither waited for nor read without end; the error says what to remove."""
    with make() as store:
        store.run({"n": 0})
    path = Path("results/.entropic/folder")
    Path("elsewhere").write_text(path.read_text())
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "huge":
        with path.open("w") as file:
            file.truncate(1 << 40)
    elif what == "link":
        path.symlink_to(Path("elsewhere").resolve())
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsDirError, match="remove it"):
        make().retrieve({"n": 0})
    path.rmdir() if what == "folder" else path.unlink()
    with make() as store:
        assert store.run({"n": 0}).n == 0


SIDECARS: dict[str, dict[str, Any]] = {
    "a surrogate": {"host": "\ud800"},
    "a zero byte": {"host": "\0"},
    "a time without end": {"started_at": 10**400},
    "no time": {"started_at": math.nan},
    "for ever": {"elapsed_seconds": math.inf},
    "custom data that is no number": {"custom_data": {"a": math.nan}},
    "a digest that is no text": {"staged": {"digest": "\ud800"}},
    "a size without end": {"staged": {"size": 10**400}},
}


@pytest.mark.parametrize("changes", SIDECARS.values(), ids=SIDECARS)
def test_a_sidecar_that_no_database_takes_is_not_believed(
    folder: Path, changes: dict[str, Any]
) -> None:
    """The store opens all the same; and its run is run again."""
    stage = stage_of_a_crash()
    content = json.loads((stage / ".sidecar.json").read_text())
    planted(stage, **{**changes, "staged": {**content["staged"], **changes.get("staged", {})}})
    before = calls()
    with make() as store:
        assert store.recover().published == ()
        assert store.run_or_retrieve({"n": 1}).n == 1
    assert calls() == before + 1


def test_a_sidecar_cannot_make_a_pipe_a_result(folder: Path) -> None:
    """Whatever inode it names: only a file or a folder is a result, and nobody waits for one."""
    stage = stage_of_a_crash()
    (result,) = stage.glob("*.npy")
    result.unlink()
    os.mkfifo(result)
    os.link(result, Path("results") / result.name)
    about = {"size": 0, "is_folder": False, "companions": [], "digest": "0" * 64}
    planted(stage, staged={**about, "inode": result.stat().st_ino})
    with make() as store:
        assert store.recover().published == ()
        assert store.run_or_retrieve({"n": 1}).n == 1


def run_with_companions(params: dict[str, Any]) -> None:
    """A folder as the result, with a link inside; and a file beside it."""
    result = Path(params["result_file"])
    result.mkdir()
    (result / "part").write_text("inside")
    (result / "link").symlink_to(Path.cwd() / "outside")
    (result.parent / "log").write_text("beside")


@pytest.mark.parametrize(
    ("target", "runner"),
    [
        ("outside", run_with_companions),
        ("outside/file", simulate),
        ("outside/missing", run_with_companions),
        pytest.param("outside", simulate, marks=pytest.mark.nightly),
        pytest.param("outside/file", run_with_companions, marks=pytest.mark.nightly),
        pytest.param("outside/missing", simulate, marks=pytest.mark.nightly),
    ],
)
def test_planted_links_lead_nowhere(folder: Path, target: str, runner: Callable[..., Any]) -> None:
    """In all places of a run, and through all that is done with it: nothing outside changes."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    with make(runner) as store:
        id = store.run({"n": 1}).id
        store.delete({"n": 1}, remove_file=True)
    (nonce,) = ask(PATH, "SELECT nonce FROM entropic_models")
    results = Path("results")
    places = [
        results / f"{id}.npy",
        results / f"{id}.files",
        results / f"{id}.1.npy",
        *(STAGING / f"{id}.{token}.{nonce}" for token in range(1, 12)),
    ]
    for place in places:
        for steps in (("run", "run"), ("run_or_retrieve", "delete"), ("run", "recover", "delete")):
            with make(runner) as store:
                for step in steps:
                    plant(place, folder / target)
                    outcome(step, store, {"n": 1})
        if place.is_symlink():
            place.unlink()
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "untouched"
    with make(runner) as store:
        assert Path(store.run({"n": 1}).result_file).exists()


@pytest.mark.parametrize("corner", [".entropic", ".entropic/staging"])
def test_a_corner_that_becomes_a_link_is_not_staged_in(folder: Path, corner: str) -> None:
    """Planted while the store is open: the run says so, and nothing is written outside."""
    outside = folder / "outside"
    (outside / "staging").mkdir(parents=True)
    place = Path("results") / corner
    with make(simulate) as store:
        store.run({"n": 1})
        place.rename("aside")
        place.symlink_to(outside)
        with pytest.raises(ResultsDirError, match="is a symbolic link"):
            store.run({"n": 2})
        place.unlink()
        Path("aside").rename(place)
        assert store.run({"n": 2}).n == 2
    assert [path.name for path in outside.rglob("*")] == ["staging"]


def plant(place: Path, target: Path) -> None:
    """A link in the place of whatever is there."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    place.symlink_to(target)


def test_a_sidecars_draft_is_not_written_through_a_link(results: ResultsFolder) -> None:
    """One that was planted while the run was at work."""
    victim = Path("victim")
    victim.write_text("untouched")
    stage = results.stage("a", 1, "nonce")
    stages.make(stage)
    Path(f"{stage.sidecar}.draft").symlink_to(victim.resolve())
    with pytest.raises(FileExistsError):
        stages.seal(stage, {}, durable=False)
    assert victim.read_text() == "untouched"


@pytest.fixture
def results(folder: Path) -> ResultsFolder:
    """An open results folder."""
    opened = ResultsFolder("results", ".npy")
    opened.open()
    return opened


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_all_that_is_made_follows_the_umask(folder: Path, mask: int) -> None:
    """The database, results, companions and sidecars; the private corner is nobody else's."""
    before = os.umask(mask)
    try:
        modes: dict[str, int] = {}

        def looks(params: dict[str, Any]) -> None:
            simulate(params)
            stage = Path(params["result_file"]).parent
            (stage / "log").write_text("beside")
            modes["stage"] = mode(stage)

        with make(looks) as store:
            record = store.run({"n": 7})
            modes["database"] = mode(Path(PATH))
        crash("kill", "before publishing")
        (sidecar,) = STAGING.glob("*/.sidecar.json")
        modes["sidecar"] = mode(sidecar)
    finally:
        os.umask(before)
    companions = Path("results") / f"{record.id}.files"
    assert modes == {
        "stage": 0o777 & ~mask,
        "database": 0o644 & ~mask,
        "sidecar": 0o666 & ~mask,
    }
    assert mode(Path(record.result_file)) == 0o666 & ~mask
    assert mode(companions / "log") == 0o666 & ~mask
    assert mode(companions) == mode(Path("results")) == 0o777 & ~mask
    assert mode(Path("results/.entropic")) == mode(STAGING) == 0o700


def mode(path: Path) -> int:
    """The permissions of a path."""
    return stat.S_IMODE(path.stat().st_mode)


SECRET_URL = f"sqlite:///file:{PATH}?password={CANARY}&uri=true"


class Sending(ThreadPoolExecutor):
    """An executor that keeps what would be sent to another process."""

    sent: bytes = b""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.sent += pickle.dumps((fn, args, kwargs))
        return super().submit(fn, *args, **kwargs)


def test_a_secret_goes_to_no_worker_and_into_no_pickle(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs, records, failures and errors; nor a log at its most talkative. A store carries it."""
    for name in ("", "sqlalchemy.engine", "sqlalchemy.pool", "aiosqlite", "asyncio", "entropic"):
        caplog.set_level(logging.DEBUG, name)
    with Sending(1) as pool, make(executor=pool, db_url=SECRET_URL) as store:
        shown: list[Any] = [store.run({"n": 1}), store.sweep([{"n": 1}, {"n": 2}])]
        assert b"simulate" in pool.sent
        assert CANARY.encode() not in pool.sent
        with make(fails, executor=pool, db_url=SECRET_URL) as failing:
            with pytest.raises(ValueError, match="in vain") as caught:
                failing.run({"n": 3})
            shown += [failing.failures(), caught.value]
        shown.append(store.recover())
        assert CANARY not in repr(store)
    for it in shown:
        assert CANARY.encode() not in pickle.dumps(it)
        assert CANARY not in repr(it)
    assert CANARY not in caplog.text
    assert CANARY.encode() in pickle.dumps(make(db_url=SECRET_URL))
    assert CANARY not in "".join(map(str, ask(PATH, "SELECT * FROM entropic_runs")))


def show_arguments(params: dict[str, Any]) -> None:
    """A runner whose result are the arguments of its process and of that one's parents."""
    processes = [psutil.Process(), *psutil.Process().parents()]
    own = [process for process in processes if "python" in process.name()]
    text = "\n".join(" ".join(process.cmdline()) for process in own)
    Path(params["result_file"]).write_text(text)


def test_a_secret_is_in_no_workers_arguments(folder: Path) -> None:
    """Which every user of the machine can read."""
    with make(show_arguments, executor="process", max_workers=1, db_url=SECRET_URL) as store:
        text = Path(store.run({"n": 1}).result_file).read_text()
    assert text
    assert CANARY not in text
