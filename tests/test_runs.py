"""A run, step by step: what the runner is given, what it may leave, and what becomes of it."""

import contextlib
import functools
import hashlib
import inspect
import json
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropic import (
    Base,
    DatabaseError,
    Mapped,
    ResultMissingError,
    ResultsDirError,
    RunError,
    RunInterruptedError,
)
from entropic.artifacts import ResultsFolder
from entropic.models import runs_table
from entropic.worker import Job, run_anywhere, run_job
from tests import databases
from tests.conftest import KINDS
from tests.simulations import calls, mark_call

pytestmark = pytest.mark.usefixtures("database")

Runner = Callable[[dict[str, Any]], Any]


class Config(Base):
    """A model with values that a runner could change."""

    __tablename__ = "configs"

    n: Mapped[int]
    cfg: Mapped[dict[str, Any]]
    grid: Mapped[list[float]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of store."""
    kind: str = request.param
    return kind


def as_async(function: Runner) -> Runner:
    """The same runner, as an ``async def``."""

    async def runner(params: dict[str, Any]) -> None:
        function(params)

    return runner


@pytest.fixture
def store_of(make_store: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """Makes a store of each kind around a plain function."""

    def make(function: Runner, **settings: Any) -> Any:
        runner = as_async(function) if kind == "async-loop" else function
        return make_store(kind, runner=runner, **settings)

    return make


def bookkeeping() -> dict[str, Any]:
    """The side table's one row."""
    names = [column.name for column in runs_table.columns]
    (row,) = databases.ask(f"SELECT {', '.join(names)} FROM entropic_runs")
    kept = dict(zip(names, row, strict=True))
    return {**kept, "error": json.loads(kept["error"] or "null")}


def rows() -> int:
    """How many runs are stored."""
    (count,) = databases.ask("SELECT count(*) FROM points")
    return int(count)


def staging() -> list[str]:
    """What is being staged."""
    return os.listdir("results/.entropic/staging")


def published() -> list[str]:
    """The names in the results folder."""
    return sorted(name for name in os.listdir("results") if name != ".entropic")


def write(params: dict[str, Any], content: bytes = b"result") -> None:
    """The least runner."""
    Path(params["result_file"]).write_bytes(content)


def beside(params: dict[str, Any], name: str) -> Path:
    """A path beside the result."""
    return Path(params["result_file"]).with_name(name)


@databases.either
def test_a_run_writes_into_a_stage_of_its_own(store_of: Callable[..., Any], folder: Path) -> None:
    """An empty folder on the same file system; an absolute path that ends as the final one."""
    seen: list[dict[str, Any]] = []

    def runner(params: dict[str, Any]) -> None:
        path = Path(params["result_file"])
        seen.append({**params, "siblings": os.listdir(path.parent), "published": published()})
        write(params)

    store = store_of(runner)
    record = store.run_or_retrieve({"n": 3})
    store.run({"n": 3})
    for token, (params, siblings) in enumerate([(s, s.pop("siblings")) for s in seen], 1):
        stage = Path(params["result_file"]).parent
        assert stage.parent == folder / "results" / ".entropic" / "staging"
        assert stage.name.startswith(f"{record.id}.{token}.")
        assert Path(params["result_file"]).name == f"{record.id}.npy"
        assert siblings == []
    assert seen[0]["published"] == []
    assert published() == [f"{record.id}.npy"]
    assert staging() == []


def test_the_runner_is_given_the_params_as_the_model_types_them(
    store_of: Callable[..., Any],
) -> None:
    """All of them, defaults included, ``id`` and ``result_file``; nothing else."""
    seen: list[dict[str, Any]] = []

    def runner(params: dict[str, Any]) -> None:
        seen.append(dict(params))
        write(params)

    record = store_of(runner).run_or_retrieve({"n": np.int64(3), "dt": 1, "custom_data": "ignored"})
    (params,) = seen
    del params["result_file"]
    assert params == {"n": 3, "dt": 1.0, "label": None, "id": record.id}
    assert {name: type(value) for name, value in params.items() if value is not None} == {
        "n": int,
        "dt": float,
        "id": str,
    }


def test_what_the_runner_does_to_its_params_changes_nothing(store_of: Callable[..., Any]) -> None:
    """Neither the caller's dict, nor the record, nor the row: its copy goes down to the lists."""

    def runner(params: dict[str, Any]) -> None:
        path = params.pop("result_file")
        params["cfg"]["deep"]["x"] = "changed"
        params["grid"].append(99.0)
        params["n"] = -1
        del params["id"]
        Path(path).write_bytes(b"result")

    asked = {"n": 3, "cfg": {"deep": {"x": 1}}, "grid": [1.0]}
    store = store_of(runner, result_cls=Config)
    record = store.run_or_retrieve(asked)
    assert asked == {"n": 3, "cfg": {"deep": {"x": 1}}, "grid": [1.0]}
    for seen in (record, store.retrieve(asked)):
        assert (seen.n, seen.cfg, seen.grid) == (3, {"deep": {"x": 1}}, [1.0])


@databases.either
def test_the_runners_return_value_is_ignored(store_of: Callable[..., Any]) -> None:
    """Whatever it is."""

    def runner(params: dict[str, Any]) -> object:
        write(params)
        return object()

    assert store_of(runner).run_or_retrieve({"n": 3}).n == 3


def test_a_result_may_be_a_folder(store_of: Callable[..., Any]) -> None:
    """As zarr and OpenFOAM make them: published whole, a hit, replaced whole by a re-run."""

    def runner(params: dict[str, Any]) -> None:
        version = calls()
        mark_call(params)
        chunks = Path(params["result_file"], "c", "0")
        chunks.mkdir(parents=True)
        Path(params["result_file"], "zarr.json").write_text(json.dumps(version))
        (chunks / f"chunk-{version}").write_bytes(b"chunk")

    store = store_of(runner, file_suffix=".zarr")
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == f"./results/{record.id}.zarr"
    assert store.run_or_retrieve({"n": 3}).result_file == record.result_file
    assert calls() == 1
    again = store.run({"n": 3})
    assert again.result_file == record.result_file
    assert json.loads(Path(again.result_file, "zarr.json").read_text()) == 1
    assert os.listdir(Path(again.result_file, "c", "0")) == ["chunk-1"]
    assert published() == [f"{record.id}.zarr"]
    assert staging() == []
    assert store.delete({"n": 3}, remove_file=True)
    assert published() == []


def test_a_rerun_between_a_rows_reading_and_its_results_is_no_miss(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is the old one, the file has another size already, and nobody is at work any more."""

    def write(params: dict[str, Any]) -> None:
        mark_call(params)
        Path(params["result_file"]).write_text("x" * calls())

    store, other = make_store(runner=write), make_store(runner=write)
    store.run({"n": 1})
    other.retrieve({"n": 1})
    has = ResultsFolder.has

    def rerun_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(ResultsFolder, "has", has)
        other.run({"n": 1})
        return has(self, *args, **kwargs)

    monkeypatch.setattr(ResultsFolder, "has", rerun_first)
    record = store.retrieve({"n": 1})
    assert Path(record.result_file).read_text() == "xx"


def test_a_reader_never_sees_a_result_that_is_missing_or_half_new(
    make_store: Callable[..., Any],
) -> None:
    """While a result, a folder, is run again and again: always the old one or the new one."""

    def runner(params: dict[str, Any]) -> None:
        version = next(versions)
        os.mkdir(params["result_file"])
        for part in range(3):
            Path(params["result_file"], f"{version}.{part}").write_bytes(b"x")

    versions = iter(range(1000))
    store = make_store(runner=runner, file_suffix="")
    path = store.run_or_retrieve({"n": 3}).result_file
    is_over = threading.Event()
    seen: list[set[str]] = []

    def poll() -> None:
        while not is_over.is_set():
            # Names lead through the folder's own: the version that is there at this moment.
            seen.append({name.partition(".")[0] for name in os.listdir(path)})

    reader = threading.Thread(target=poll)
    reader.start()
    for _ in range(30):
        store.run({"n": 3})
    is_over.set()
    reader.join(10)
    assert len(seen) > 30
    # A folder that is being discarded may have lost its files already; never are there two.
    assert all(len(found) <= 1 for found in seen)


@databases.either
def test_companions_come_and_go_with_the_result(store_of: Callable[..., Any]) -> None:
    """Other files of the runner's lie in ``<id>.files/``; a re-run replaces them."""
    left: dict[str, bytes] = {}

    def runner(params: dict[str, Any]) -> None:
        write(params)
        for name, content in left.items():
            beside(params, name).write_bytes(content)

    def found() -> dict[str, bytes]:
        path = Path(f"results/{record.id}.files")
        return {f.name: f.read_bytes() for f in path.iterdir()} if path.exists() else {}

    store = store_of(runner)
    left = {"log.txt": b"first", "plot.png": b"png"}
    record = store.run_or_retrieve({"n": 3})
    assert found() == left
    assert bookkeeping()["companions"] == 1
    left = {"log.txt": b"second"}
    store.run({"n": 3})
    assert found() == left
    left = {}
    store.run({"n": 3})
    assert published() == [f"{record.id}.npy"]
    assert bookkeeping()["companions"] == 0
    left = {"log.txt": b"third"}
    store.run({"n": 3})
    assert store.delete({"n": 3}, remove_file=True)
    assert published() == []
    assert staging() == []


def test_a_failed_rerun_leaves_the_old_result_and_row(store_of: Callable[..., Any]) -> None:
    """Half a new result is nobody's; the old one stays a hit."""

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        if calls() > 1:
            write(params, b"half of a new")
            beside(params, "log").write_bytes(b"new")
            raise ValueError("at half way")
        write(params, b"old")
        beside(params, "log").write_bytes(b"old")

    store = store_of(runner)
    record = store.run_or_retrieve({"n": 3}, note="old")
    with pytest.raises(ValueError, match="at half way"):
        store.run({"n": 3}, note="new")
    hit = store.run_or_retrieve({"n": 3})
    assert calls() == 2
    assert (hit.custom_data, hit.created_at) == (record.custom_data, record.created_at)
    assert Path(hit.result_file).read_bytes() == b"old"
    assert Path(f"results/{record.id}.files/log").read_bytes() == b"old"
    assert staging() == []
    kept = bookkeeping()
    assert (kept["state"], kept["owner"], kept["attempts"]) == ("done", None, 2)
    assert kept["error"]["message"] == "at half way"


def leave_nothing(params: dict[str, Any]) -> None:
    """Write nothing at all."""


def leave_another_name(params: dict[str, Any]) -> None:
    """Write to names of its own."""
    beside(params, "out.dat").write_bytes(b"result")
    beside(params, "log.txt").write_bytes(b"log")


def leave_numpys_name(params: dict[str, Any]) -> None:
    """Use ``numpy.save``, which appends its own suffix."""
    np.save(params["result_file"], np.zeros(3))


def leave_an_empty_file(params: dict[str, Any]) -> None:
    """Open the file, and write nothing."""
    Path(params["result_file"]).touch()


def leave_an_empty_folder(params: dict[str, Any]) -> None:
    """Make a folder with a folder in it, and nothing else."""
    Path(params["result_file"], "c").mkdir(parents=True)


def leave_a_folder_of_empty_files(params: dict[str, Any]) -> None:
    """Make a folder whose files are empty."""
    Path(params["result_file"]).mkdir()
    Path(params["result_file"], "part").touch()


def leave_a_link(params: dict[str, Any]) -> None:
    """Write elsewhere, and leave a symbolic link."""
    Path("elsewhere.npy").write_bytes(b"result")
    Path(params["result_file"]).symlink_to(Path("elsewhere.npy").absolute())


def leave_a_dangling_link(params: dict[str, Any]) -> None:
    """Leave a symbolic link to nothing."""
    Path(params["result_file"]).symlink_to("nowhere")


def leave_a_fifo(params: dict[str, Any]) -> None:
    """Leave a named pipe, which a reader would wait for."""
    os.mkfifo(params["result_file"])


def leave_no_stage(params: dict[str, Any]) -> None:
    """Clean up too much."""
    Path(params["result_file"]).parent.rmdir()


@databases.either
@pytest.mark.parametrize(
    ("leave", "suffix", "message"),
    [
        (leave_nothing, ".npy", "nor anything else"),
        (leave_another_name, ".npy", "it wrote log.txt, out.dat: write to exactly"),
        (leave_numpys_name, ".h5", r"\.h5\.npy: .* file_suffix='\.npy'"),
        (leave_numpys_name, "", r"it wrote [0-9a-f]{16}\.npy: .* file_suffix='\.npy'"),
        (leave_an_empty_file, ".npy", "an empty file"),
        (leave_an_empty_folder, ".npy", "folder without content"),
        (leave_a_folder_of_empty_files, ".npy", "folder without content"),
        (leave_a_link, ".npy", r"a symbolic link .* register\(\)"),
        (leave_a_dangling_link, ".npy", "a symbolic link"),
        (leave_a_fifo, ".npy", "neither a file nor a folder"),
        (leave_no_stage, ".npy", "the folder itself is gone"),
    ],
)
def test_a_run_without_a_usable_result_says_what_there_is(
    make_store: Callable[..., Any], leave: Runner, suffix: str, message: str
) -> None:
    """No record, no file, no claim; the message says what was written, and what to do."""
    store = make_store(runner=leave, file_suffix=suffix)
    with pytest.raises(ResultMissingError, match=message) as caught:
        store.run_or_retrieve({"n": 3})
    assert caught.value.params == {"n": 3, "dt": 0.5, "label": None}
    kept = bookkeeping()
    assert caught.value.id == kept["id"]
    assert (kept["state"], kept["owner"]) == ("failed", None)
    assert kept["error"]["type"] == "entropic.errors.ResultMissingError"
    assert (rows(), published(), staging()) == (0, [], [])
    if Path("elsewhere.npy").exists():
        assert Path("elsewhere.npy").read_bytes() == b"result"


class DivergedError(Exception):
    """A runner's own, which takes more than a message."""

    def __init__(self, step: int, *, worst: float) -> None:
        super().__init__(f"diverged at {step}")
        self.step = step
        self.worst = worst


def test_a_runners_exception_reaches_the_caller_as_itself(store_of: Callable[..., Any]) -> None:
    """The very object, with a note that names params and id; and nothing of the run is left."""
    raised: list[Exception] = []

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        write(params)
        beside(params, "log").write_bytes(b"log")
        if calls() < 3:
            raised.append(DivergedError(7, worst=1e300))
            raise raised[-1]

    store = store_of(runner)
    for attempt in (1, 2):
        with pytest.raises(DivergedError, match="diverged at 7") as caught:
            store.run_or_retrieve({"n": 3}, note="x")
        assert caught.value is raised[-1]
        assert (caught.value.step, caught.value.worst) == (7, 1e300)
        kept = bookkeeping()
        (note,) = caught.value.__notes__
        assert kept["id"] in note
        assert "'n': 3, 'dt': 0.5, 'label': None" in note
        assert store.retrieve({"n": 3}) is None
        assert (rows(), published(), staging()) == (0, [], [])
        assert (kept["state"], kept["owner"], kept["lease_expires"]) == ("failed", None, None)
        assert (kept["token"], kept["attempts"], kept["published"]) == (attempt, attempt, 0)
        assert kept["error"]["type"] == "tests.test_runs.DivergedError"
        assert kept["error"]["message"] == "diverged at 7"
        assert "raise raised[-1]" in kept["error"]["traceback"]
        assert f"{__name__.replace('.', '/')}.py" in kept["error"]["traceback"]
    record = store.run_or_retrieve({"n": 3})
    kept = bookkeeping()
    assert (kept["state"], kept["error"], kept["attempts"]) == ("done", None, 3)
    assert kept["published"] == kept["token"] == 3
    assert published() == [f"{record.id}.files", f"{record.id}.npy"]


def test_the_traceback_leads_into_the_runner(store_of: Callable[..., Any]) -> None:
    """What the user sees first is the line of theirs that raised."""

    def runner(params: dict[str, Any]) -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError) as caught:
        store_of(runner).run_or_retrieve({"n": 3})
    last = inspect.getinnerframes(caught.tb)[-1]
    assert (last.function, last.filename) == ("runner", __file__)


def test_sys_exit_ends_the_script_when_the_runner_runs_on_its_thread(
    make_store: Callable[..., Any],
) -> None:
    """As if the caller had called the runner: it goes through, and leaves no claim behind."""

    def runner(params: dict[str, Any]) -> None:
        write(params)
        raise SystemExit(3)

    store = make_store("store", runner=runner)
    with pytest.raises(SystemExit) as caught:
        store.run_or_retrieve({"n": 3})
    assert caught.value.code == 3
    store.close()
    kept = bookkeeping()
    assert (kept["state"], kept["owner"], kept["error"]) == ("interrupted", None, None)
    assert (rows(), published(), staging()) == (0, [], [])


EXIT = (SystemExit("enough"), r"called sys\.exit\('enough'\)")
INTERRUPT = (KeyboardInterrupt(), r"raised KeyboardInterrupt\(\)")


@databases.either
@pytest.mark.parametrize(
    ("kind", "interrupt", "message"),
    [
        ("store-threads", *EXIT),
        ("store-threads", *INTERRUPT),
        ("async-threads", *EXIT),
        ("async-threads", *INTERRUPT),
        # On the main thread's own loop, an interrupt is somebody's Ctrl-C, and goes through.
        ("async-loop", *EXIT),
    ],
    indirect=["kind"],
)
def test_an_exit_in_a_worker_only_fails_the_run(
    store_of: Callable[..., Any], interrupt: BaseException, message: str
) -> None:
    """It ends neither the loop nor the program, and the next request is served."""

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        write(params)
        if calls() == 1:
            raise interrupt

    store = store_of(runner)
    with pytest.raises(RunInterruptedError, match=message) as caught:
        store.run_or_retrieve({"n": 3})
    assert caught.value.__cause__ is interrupt
    kept = bookkeeping()
    assert (kept["state"], kept["owner"]) == ("failed", None)
    assert (rows(), published(), staging()) == (0, [], [])
    assert store.run_or_retrieve({"n": 3}).n == 3


def test_an_interrupt_in_an_async_runner_does_not_end_the_loop(
    make_store: Callable[..., Any],
) -> None:
    """The background loop is never the main thread's: nobody pressed Ctrl-C there."""

    async def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        write(params)
        if calls() == 1:
            raise KeyboardInterrupt

    store = make_store(runner=runner)
    with pytest.raises(RunInterruptedError):
        store.run_or_retrieve({"n": 3})
    assert store.run_or_retrieve({"n": 3}).n == 3


def test_a_forgotten_async_is_an_error_that_says_so(make_store: Callable[..., Any]) -> None:
    """A plain function that returns what should have been awaited; nothing is left behind."""

    async def simulation(params: dict[str, Any]) -> None:
        write(params)

    def runner(params: dict[str, Any]) -> object:
        return simulation(params)

    store = make_store(runner=runner)
    with pytest.raises(RunError, match="async def"):
        store.run_or_retrieve({"n": 3})
    assert bookkeeping()["state"] == "failed"


def test_an_async_runner_is_known_behind_a_partial(make_store: Callable[..., Any]) -> None:
    """Nor is a callable object with an async ``__call__`` mistaken for a plain function."""

    async def simulation(content: bytes, params: dict[str, Any]) -> None:
        write(params, content)

    class Simulation:
        async def __call__(self, params: dict[str, Any]) -> None:
            write(params, b"of an object")

    record = make_store(runner=functools.partial(simulation, b"of a partial")).run({"n": 3})
    assert Path(record.result_file).read_bytes() == b"of a partial"
    record = make_store(runner=Simulation()).run({"n": 4})
    assert Path(record.result_file).read_bytes() == b"of an object"


class SlowToCopy:
    """A value whose copy takes its time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SlowToCopy":
        until = time.perf_counter() + 0.1
        while time.perf_counter() < until:
            pass
        return self


@databases.either
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_elapsed_seconds_covers_the_runner_alone(is_async: bool) -> None:
    """Neither the copy of the params before it, nor the check of the result after it."""

    def runner(params: dict[str, Any]) -> None:
        with open(params["result_file"], "wb") as file:
            file.truncate(200_000_000)  # takes a moment to hash, and none to write

    folder = ResultsFolder("results", ".npy")
    folder.open()
    job = Job(
        runner=as_async(runner) if is_async else runner,
        params={"slow": SlowToCopy()},
        id="a",
        cache="cache",
        stage=folder.stage("a", 1, "nonce"),
        checksum=True,
    )
    start = time.perf_counter()
    outcome = run_anywhere(job)
    whole = time.perf_counter() - start
    assert outcome.staged is not None
    assert whole > 0.1
    assert outcome.elapsed_seconds < whole / 2


@databases.either
def test_elapsed_seconds_is_what_the_runner_took(store_of: Callable[..., Any]) -> None:
    """Measured by the runner itself; of a re-run, it is the new one's."""
    took: list[float] = []

    def runner(params: dict[str, Any]) -> None:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.02 * (2 - len(took)):
            pass
        write(params)
        took.append(time.perf_counter() - start)

    store = store_of(runner)
    for request in (store.run_or_retrieve, store.run):
        elapsed = request({"n": 3}).custom_data["elapsed_seconds"]
        assert elapsed == round(elapsed, 4)
        assert took[-1] - 1e-4 <= elapsed < took[-1] + 0.5
        assert bookkeeping()["elapsed_seconds"] == elapsed


def test_the_digest_is_that_of_the_file(store_of: Callable[..., Any]) -> None:
    """SHA-256, size, host and start are on record; of a re-run, they are the new one's."""
    store = store_of(functools.partial(write, content=b"first"))
    before = time.time()
    record = store.run_or_retrieve({"n": 3})
    kept = bookkeeping()
    content = Path(record.result_file).read_bytes()
    assert kept["digest"] == hashlib.sha256(content).hexdigest()
    assert kept["size"] == len(content)
    assert before <= kept["started_at"] <= time.time()
    assert kept["host"]
    assert kept["result_name"] == f"{record.id}.npy"


def test_without_checksum_there_is_no_digest(make_store: Callable[..., Any]) -> None:
    """Everything else is recorded all the same, and a hit is a hit."""
    store = make_store(checksum=False)
    record = store.run_or_retrieve({"n": 3})
    kept = bookkeeping()
    assert kept["digest"] is None
    assert kept["size"] == os.path.getsize(record.result_file)
    store.run_or_retrieve({"n": 3})
    assert calls() == 1


def test_a_runner_may_change_directory(
    make_store: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path it is given is absolute; wherever it stays, the store goes on."""
    (folder / "work").mkdir()
    monkeypatch.setenv("ENTROPIC_TEST_CALLS", str(folder / "calls"))

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        os.chdir(folder / "work" if params["n"] == 1 else Path(params["result_file"]).parent)
        write(params, str(params["n"]).encode())

    store = make_store(runner=runner)
    for n in (1, 2, 3):  # the second and third one stay in a stage that is then removed
        record = store.run_or_retrieve({"n": n})
        hit = store.run_or_retrieve({"n": n})
        # Absolute, from where the runner has gone: the path as spelled does not lead there.
        assert record.result_file == hit.result_file == str(folder / f"results/{record.id}.npy")
        assert Path(hit.result_file).read_bytes() == str(n).encode()
    assert calls() == 3
    os.chdir(folder)
    assert store.retrieve({"n": 1}).result_file.startswith("./results/")
    assert published() == sorted(f"{store.retrieve({'n': n}).id}.npy" for n in (1, 2, 3))


def sidecar() -> dict[str, Any]:
    """The sidecar of the one run that is staged."""
    (stage,) = staging()
    text = Path("results/.entropic/staging", stage, ".sidecar.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def check_sidecar(found: dict[str, Any], content: bytes) -> None:
    """It holds all that publishing and storing the run takes."""
    kept = bookkeeping()
    assert (found["id"], found["has_own_id"]) == (kept["id"], False)
    assert found["token"] == kept["token"] == 1
    assert found["owner"]
    assert found["nonce"]
    assert found["values"] == {"n": 3, "dt": 0.1, "label": None}
    assert found["custom_data"] == {"note": "x"}
    assert found["elapsed_seconds"] >= 0
    assert found["started_at"] > 0
    assert found["host"]
    assert found["name"].startswith(kept["id"])
    assert found["staged"].pop("inode") > 0
    assert found["staged"].pop("mtime_ns") > 0
    assert found["staged"] == {
        "size": len(content),
        "is_folder": False,
        "companions": ["log"],
        "digest": hashlib.sha256(content).hexdigest(),
    }


def run_with_companion(params: dict[str, Any]) -> None:
    """Leave a result and a log."""
    write(params)
    beside(params, "log").write_bytes(b"log")


def test_the_sidecar_is_there_before_the_result_is_published(
    make_store: Callable[..., Any], folder: Path
) -> None:
    """A run that cannot be published keeps its result, staged, with all that it takes."""
    # The final name is taken, and the next one, with its number, is longer than a name may be.
    suffix = "x" * (255 - 16)
    store = make_store(runner=run_with_companion, file_suffix=suffix)
    id = make_store("store", db_url="sqlite://", results_dir="other").run({"n": 3, "dt": 0.1}).id
    leftover = folder / "results" / (id + suffix)
    leftover.parent.mkdir()
    leftover.write_bytes(b"theirs")
    with pytest.raises(ResultsDirError, match=r"results folder '\./results' cannot be used"):
        store.run_or_retrieve({"n": 3, "dt": 0.1}, note="x")
    assert rows() == 0
    assert leftover.read_bytes() == b"theirs"
    found = sidecar()
    check_sidecar(found, b"result")
    (stage,) = staging()
    assert (folder / "results/.entropic/staging" / stage / found["name"]).read_bytes() == b"result"


def test_the_sidecar_outlives_a_commit_that_fails(make_store: Callable[..., Any]) -> None:
    """Its row is refused, and the result is staged again with all that storing it takes."""
    store = make_store(runner=run_with_companion)
    store.retrieve({"n": 3})
    databases.current().refuse("points", "true", "no more room")
    with pytest.raises(DatabaseError, match="no more room"):
        store.run_or_retrieve({"n": 3, "dt": 0.1}, note="x")
    assert rows() == 0
    assert published() == []
    check_sidecar(sidecar(), b"result")
    databases.current().refuse_no_more("points")
    record = store.run_or_retrieve({"n": 3, "dt": 0.1})
    assert Path(record.result_file).read_bytes() == b"result"
    assert bookkeeping()["state"] == "done"


def test_a_run_of_a_tenth_of_a_second_is_synced_before_it_is_committed(
    make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Result, sidecar and the results folder's names; a shorter one costs no sync at all."""
    synced: list[tuple[str, int | None]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        count = None
        with contextlib.suppress(sqlite3.OperationalError):  # locked
            (count,) = databases.ask("SELECT count(*) FROM points", patience=0)
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), count))
        fsync(descriptor)

    def runner(params: dict[str, Any]) -> None:
        until = time.perf_counter() + params["dt"]
        while time.perf_counter() < until:
            pass
        write(params)

    store = make_store(runner=runner)
    store.retrieve({"n": 3})
    monkeypatch.setattr(os, "fsync", noted)
    short = store.run_or_retrieve({"n": 3, "dt": 0.0})
    if short.custom_data["elapsed_seconds"] < 0.1:  # or else this machine is very busy
        assert synced == []
    synced.clear()
    record = store.run_or_retrieve({"n": 3, "dt": 0.1})
    names = [Path(path).name for path, _ in synced]
    result = names.index(f"{record.id}.npy")
    draft = names.index(".sidecar.json.draft")
    assert result < draft < names.index("results")
    # On SQLite nobody else can read while files get their final names: those counts are missing.
    assert {count for _, count in synced} - {None} == {1}


def test_a_runner_in_a_thread_of_its_own_leaves_nothing_when_the_stage_is_taken(
    make_store: Callable[..., Any], folder: Path
) -> None:
    """A link planted under the next staging name: the run fails, and nothing outside changes."""
    seen: list[str] = []

    def runner(params: dict[str, Any]) -> None:
        seen.append(str(Path(params["result_file"]).parent))
        write(params)

    outside = folder / "outside"
    outside.mkdir()
    (outside / "keep").write_bytes(b"outside")
    store = make_store(runner=runner)
    store.run_or_retrieve({"n": 3})
    token_1 = Path(seen[0])
    id, _, nonce = token_1.name.split(".")
    planted = token_1.with_name(f"{id}.2.{nonce}")
    planted.symlink_to(outside)
    with pytest.raises(ResultsDirError, match="staging folder"):
        store.run({"n": 3})
    assert len(seen) == 1
    assert [f.name for f in outside.iterdir()] == ["keep"]
    assert Path(store.run({"n": 3}).result_file).read_bytes() == b"result"


def test_running_a_job_needs_no_store(folder: Path) -> None:
    """What a worker does is a function of its job: the outcome tells all."""
    results = ResultsFolder(folder / "results", ".npy")
    results.open()
    job = Job(
        runner=write,
        params={"n": 3},
        id="a",
        cache="cache",
        stage=results.stage("a", 1, "nonce"),
        custom_data={"about": "it"},
        checksum=False,
    )
    outcome = run_job(job)
    assert outcome.error is None
    assert outcome.staged is not None
    assert (outcome.staged.size, outcome.staged.digest) == (6, None)
    assert json.loads(Path(job.stage.sidecar).read_text())["custom_data"] == {"about": "it"}
    again = run_job(job)
    assert isinstance(again.error, ResultsDirError)
    assert again.traceback is not None
    assert "ResultsDirError" in again.traceback


def test_a_result_that_cannot_be_sealed_is_kept(store_of: Callable[..., Any]) -> None:
    """The runner has done its work: its result stays staged, and the error says where."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    is_full = True

    def runner(params: dict[str, Any]) -> None:
        write(params)
        if is_full:  # room for a result as small as that, and for no sidecar
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))

    store = store_of(runner, db_url="sqlite://")
    try:
        with pytest.raises(ResultsDirError, match="its result could not be sealed") as caught:
            store.run_or_retrieve({"n": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (stage,) = staging()
    kept = os.path.abspath(f"results/.entropic/staging/{stage}")
    assert caught.value.path == kept
    assert kept in str(caught.value)
    assert "too large" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    (result,) = Path(kept).glob("*.npy")
    assert result.read_bytes() == b"result"
    assert published() == []
    is_full = False
    store.run_or_retrieve({"n": 1})
    assert len(published()) == 1


def test_a_runners_stop_iteration_is_an_error_that_says_so(
    make_store: Callable[..., Any],
) -> None:
    """No coroutine can raise it, so it comes as the cause of an error that can be raised."""

    def runner(params: dict[str, Any]) -> None:
        next(iter(()))

    for kind in ("store", "store-threads", "async-threads"):
        store = make_store(kind, runner=runner)
        with pytest.raises(RunError, match="the runner raised StopIteration") as caught:
            store.run_or_retrieve({"n": 1})
        assert isinstance(caught.value.__cause__, StopIteration)
        assert caught.value.params == {"n": 1, "dt": 0.5, "label": None}
        assert staging() == []
