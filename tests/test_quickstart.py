"""The quickstart, as it stands: each of its snippets, executed in order, as its reader would.

The snippets are kept as text and compiled, so that nothing mends them on the way: neither the
formatter nor the type checker.
"""

import ast
import asyncio
import gc
import inspect
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entropic

SETUP = """\
from pathlib import Path

import numpy as np

from entropic import Store, Base, Mapped


class SimResult(Base):
    __tablename__ = "results"

    n: Mapped[int]
    steps: Mapped[int]
    dt: Mapped[float]


def my_sim(params: dict) -> None:
    data = np.random.randn(params["n"], params["steps"])
    np.save(params["result_file"], data)


store = Store(
    runner=my_sim,
    result_cls=SimResult,
    results_dir="./results",
    db_url="sqlite:///./runs.sqlite3",
    file_suffix=".npy",
)

record = store.run_or_retrieve({"n": 100, "steps": 5000, "dt": 0.01})
data = np.load(record.result_file)
"""

RECORD = """\
record.id            # "a3f8c1d2e4b6f7a8" — 16-char hash, primary key
record.result_file   # "./results/a3f8c1d2e4b6f7a8.npy"
record.created_at    # datetime — UTC, set on insert
record.custom_data   # {"elapsed_seconds": 0.042}
record.n             # 100
record.dt            # 0.01
"""

RETRIEVE = """\
record = store.retrieve({"n": 100, "steps": 5000, "dt": 0.01})
"""

FORCE = """\
record = store.run({"n": 100, "steps": 5000, "dt": 0.01})
"""

DELETE = """\
store.delete({"n": 100, "steps": 5000, "dt": 0.01})
"""

DELETE_WITH_FILE = """\
store.delete({"n": 100, "steps": 5000, "dt": 0.01}, remove_file=True)
"""

REGISTER = """\
store.register(
    {"n": 100, "steps": 5000, "dt": 0.01},
    result_file="./results/my_existing_run.npy",
)
"""

SWEEP = """\
from entropic import expand_grid

records = store.sweep(
    expand_grid({"n": [100], "steps": [5000], "dt": [0.01, 0.005, 0.001]})
)
# runs 3 combinations: (n=100, steps=5000, dt=0.01), (…, dt=0.005), (…, dt=0.001)
"""

PRODUCT = """\
records = store.sweep(expand_grid({"n": [50, 100], "dt": [0.01, 0.005]}))
# runs 4 combinations: (50, 0.01), (50, 0.005), (100, 0.01), (100, 0.005)
"""

OTHER_SHAPES = """\
# zipped / diagonal sweep
records = store.sweep([{"n": n, "dt": dt} for n, dt in zip([50, 100], [0.01, 0.005])])

# filtered product (drop unstable regions)
records = store.sweep(p for p in expand_grid(grid) if p["dt"] * p["n"] < 1.0)
"""

DASK = """\
from dask.distributed import Client
with Client() as dask_client:
    records = store.sweep(
        expand_grid({"n": [50, 100], "dt": [0.01, 0.005]}), client=dask_client
    )
"""

CUSTOM_DATA = """\
record = store.run_or_retrieve(
    {"n": 100, "steps": 5000, "dt": 0.01},
    git_sha="abc123",
    note="initial sweep",
)
record.custom_data
# {"elapsed_seconds": 0.042, "git_sha": "abc123", "note": "initial sweep"}
"""

LOGGING = """\
import logging
logging.getLogger("entropic").addHandler(logging.StreamHandler())
logging.getLogger("entropic").setLevel(logging.INFO)
"""

# The reader's own: a store for the snippets whose grid has no ``steps``, and their ``grid``.
TWO_AXES = """\
class GridResult(Base):
    __tablename__ = "grid_results"

    n: Mapped[int]
    dt: Mapped[float]


def grid_sim(params: dict) -> None:
    np.save(params["result_file"], np.random.randn(params["n"]) * params["dt"])


store = Store(grid_sim, GridResult, file_suffix=".npy", db_url="sqlite:///./runs.sqlite3")
grid = {"n": [50, 100], "dt": [0.01, 0.005, 0.02]}
"""

PARAMS = {"n": 100, "steps": 5000, "dt": 0.01}
ID = "f444a074a2e52bf9"
RESULT = f"./results/{ID}.npy"

# Dask warns when another cluster on this machine has the port of its dashboard already.
busy_port_is_fine = pytest.mark.filterwarnings("ignore:Port [0-9]+ is already in use:UserWarning")


class Page:
    """Executes snippets in one namespace, and shows the value of a last expression."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def read(self, snippet: str) -> Any:
        """Execute a snippet; returns what its last line evaluates to, as a notebook shows it."""
        module = ast.parse(snippet)
        last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
        self._execute(compile(module, "<quickstart>", "exec", flags=self._flags))
        if not isinstance(last, ast.Expr):
            return None
        expression = ast.Expression(last.value)
        return self._execute(compile(expression, "<quickstart>", "eval", flags=self._flags))

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    def close(self) -> None:
        """Close the store that the page has open."""
        self.read("store.close()")

    _flags = 0

    def _execute(self, code: Any) -> Any:
        return eval(code, self.names)


class AsyncPage(Page):
    """Tells the same story with ``AsyncStore``: the same text, its calls awaited."""

    _flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    def __init__(self, runner: asyncio.Runner) -> None:
        super().__init__()
        self._runner = runner

    def read(self, snippet: str) -> Any:
        """Execute a snippet after turning its calls of a ``Store`` into awaited ones."""
        awaited = re.sub(r"\bstore\.(?=\w+\()", "await store.", snippet)
        return super().read(re.sub(r"\bStore\b", "AsyncStore", awaited))

    def close(self) -> None:
        """Close the store that the page has open."""
        self.read("store.aclose()")

    def _execute(self, code: Any) -> Any:
        result = super()._execute(code)
        return self._runner.run(result) if inspect.iscoroutine(result) else result


@pytest.fixture(params=["Store", "AsyncStore"])
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """A reader who has executed nothing yet."""
    with asyncio.Runner() as runner:
        page = Page() if request.param == "Store" else AsyncPage(runner)
        yield page
        page.close()


@pytest.fixture
def started(page: Page) -> Page:
    """A reader who has executed the first snippet, so that one run is stored."""
    page.read(SETUP)
    return page


@pytest.fixture
def two_axes(started: Page) -> Page:
    """A reader who goes on with a model of ``n`` and ``dt``."""
    started.read(SWEEP.splitlines()[0])
    started.close()
    started.read(TWO_AXES)
    return started


@pytest.fixture
def completed(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been run since the last look: ids, in the order of completion, which is any."""
    caplog.set_level(logging.INFO, logger="entropic")

    def look() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        found = [re.match(r"run (\S+) completed", message) for message in messages]
        return [match[1] for match in found if match]

    return look


def on_disk() -> list[str]:
    """The files under ``results/``, without entropic's private ones."""
    names = (path.name for path in Path("results").iterdir())
    return sorted(name for name in names if name != ".entropic")


def test_the_first_call_runs_the_simulation(
    page: Page, completed: Callable[[], list[str]], folder: Path
) -> None:
    """One file and one database appear where the store was told to put them."""
    page.read(SETUP)
    assert completed() == [ID]
    assert on_disk() == [f"{ID}.npy"]
    assert (folder / "runs.sqlite3").is_file()
    assert page["data"].shape == (100, 5000)
    assert page["data"].dtype == np.float64


def test_every_later_call_returns_the_cached_row(
    page: Page, completed: Callable[[], list[str]]
) -> None:
    """Executing the whole first snippet again, model and all, runs nothing."""
    page.read(SETUP)
    first, data = page["record"], page["data"]
    page.close()
    completed()
    page.read(SETUP)
    assert completed() == []
    assert page["record"].id == first.id
    assert page["record"].created_at == first.created_at
    assert page["record"].custom_data == first.custom_data
    np.testing.assert_array_equal(page["data"], data)


def test_the_record_is_an_instance_of_the_model(page: Page) -> None:
    """Four reserved columns and the parameters, of the types and values that are told."""
    before = datetime.now(UTC)
    page.read(SETUP)
    assert page.read(RECORD) == 0.01
    record = page["record"]
    assert type(record) is page["SimResult"]
    assert record.id == ID
    assert record.result_file == RESULT
    assert type(record.result_file) is str
    assert record.created_at.utcoffset() == timedelta(0)
    assert before <= record.created_at <= datetime.now(UTC)
    assert record.custom_data.keys() == {"elapsed_seconds"}
    elapsed = record.custom_data["elapsed_seconds"]
    assert type(elapsed) is float
    assert 0 < elapsed < (datetime.now(UTC) - before).total_seconds()
    assert round(elapsed, 4) == elapsed
    assert (record.n, record.steps, record.dt) == (100, 5000, 0.01)
    assert list(map(type, (record.n, record.steps, record.dt))) == [int, int, float]


def test_retrieve_gives_the_instance_on_a_hit_and_none_on_a_miss(
    started: Page, completed: Callable[[], list[str]]
) -> None:
    """It never runs anything."""
    first = started["record"]
    completed()
    started.read(RETRIEVE)
    assert type(started["record"]) is started["SimResult"]
    assert started["record"].id == first.id
    started.read(DELETE)
    started.read(RETRIEVE)
    assert started["record"] is None
    assert completed() == []


def test_run_always_invokes_the_runner_and_overwrites_row_and_file(
    started: Page, completed: Callable[[], list[str]]
) -> None:
    """The same id, path and created_at; other random numbers in the file."""
    first, data = started["record"], started["data"]
    completed()
    started.read(FORCE)
    second = started["record"]
    assert completed() == [ID]
    assert (second.id, second.result_file) == (ID, RESULT)
    assert second.created_at == first.created_at
    assert on_disk() == [f"{ID}.npy"]
    assert not np.array_equal(np.load(RESULT), data)


def test_delete_tells_whether_a_row_was_removed(started: Page) -> None:
    """The file stays unless it is asked for."""
    assert started.read(DELETE) is True
    assert on_disk() == [f"{ID}.npy"]
    assert started.read(DELETE) is False


def test_delete_with_remove_file_removes_the_file_too(started: Page) -> None:
    """True the first time, False when there is no row any more."""
    assert started.read(DELETE_WITH_FILE) is True
    assert on_disk() == []
    assert started.read(DELETE_WITH_FILE) is False


def test_a_run_after_a_deletion_takes_its_name_again(started: Page) -> None:
    """Whether its file was left there or not: it was this run's own."""
    started.read(DELETE)
    started.read(FORCE)
    assert started["record"].result_file == RESULT
    assert on_disk() == [f"{ID}.npy"]


def test_register_needs_the_file_to_exist(started: Page) -> None:
    """Nothing is stored of a file that is not there."""
    started.read(DELETE)
    with pytest.raises(FileNotFoundError, match="register"):
        started.read(REGISTER)
    started.read(RETRIEVE)
    assert started["record"] is None


def test_a_registered_file_is_reachable_like_any_other_run(
    started: Page, completed: Callable[[], list[str]]
) -> None:
    """Also where a run was stored before: the row is replaced, and its path is the given one."""
    completed()
    made = np.zeros(3)
    np.save("./results/my_existing_run.npy", made)
    registered = started.read(REGISTER)
    assert (registered.id, registered.custom_data) == (ID, {})
    started.read(RETRIEVE)
    assert started["record"].result_file == "./results/my_existing_run.npy"
    started.read(SETUP.splitlines()[-2])
    started.read(SETUP.splitlines()[-1])
    np.testing.assert_array_equal(started["data"], made)
    assert completed() == []


def test_a_sweep_reuses_what_is_cached_and_runs_the_rest(
    started: Page, completed: Callable[[], list[str]]
) -> None:
    """One record for each combination, in the order of the grid; the first was there already."""
    completed()
    started.read(SWEEP)
    records = started["records"]
    assert [(r.n, r.steps, r.dt) for r in records] == [
        (100, 5000, 0.01),
        (100, 5000, 0.005),
        (100, 5000, 0.001),
    ]
    assert sorted(completed()) == sorted(r.id for r in records[1:])
    assert all(type(r) is started["SimResult"] for r in records)
    assert on_disk() == sorted(f"{r.id}.npy" for r in records)
    started.read(SWEEP)
    assert completed() == []


def test_a_sweep_on_an_empty_store_runs_all_three_combinations(
    started: Page, completed: Callable[[], list[str]]
) -> None:
    """As the comment in the snippet says."""
    started.read(DELETE)
    completed()
    started.read(SWEEP)
    assert sorted(completed()) == sorted(r.id for r in started["records"])
    assert len(started["records"]) == 3


def test_a_multi_axis_product_runs_its_four_combinations(
    two_axes: Page, completed: Callable[[], list[str]]
) -> None:
    """In the order that the snippet's comment tells."""
    completed()
    two_axes.read(PRODUCT)
    records = two_axes["records"]
    assert [(r.n, r.dt) for r in records] == [(50, 0.01), (50, 0.005), (100, 0.01), (100, 0.005)]
    assert sorted(completed()) == sorted(r.id for r in records)
    assert records[1].id == "73f4ac4d7fd3661d"


def test_sweeps_of_any_other_shape_are_plain_iterables(
    two_axes: Page, completed: Callable[[], list[str]]
) -> None:
    """A list that zips two axes, and a generator that filters a product."""
    zipped, filtered = OTHER_SHAPES.split("\n\n")
    completed()
    two_axes.read(zipped)
    assert [(r.n, r.dt) for r in two_axes["records"]] == [(50, 0.01), (100, 0.005)]
    assert len(completed()) == 2
    two_axes.read(filtered)
    assert [(r.n, r.dt) for r in two_axes["records"]] == [(50, 0.01), (50, 0.005), (100, 0.005)]
    assert len(completed()) == 1
    two_axes.read(OTHER_SHAPES)
    assert completed() == []


@busy_port_is_fine
# Where another program has the port, Dask leaves a socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sweep_runs_on_the_workers_of_a_dask_client(
    two_axes: Page, completed: Callable[[], list[str]]
) -> None:
    """A runner that lives in the reader's own namespace travels to them; results come back."""
    completed()
    two_axes.read(DASK)
    records = two_axes["records"]
    assert [(r.n, r.dt) for r in records] == [(50, 0.01), (50, 0.005), (100, 0.01), (100, 0.005)]
    assert [np.load(r.result_file).shape for r in records] == [(50,), (50,), (100,), (100,)]
    assert sorted(completed()) == sorted(r.id for r in records)
    two_axes.read(PRODUCT)
    assert completed() == []
    gc.collect()


def test_keyword_arguments_land_in_custom_data(started: Page) -> None:
    """Beside elapsed_seconds, which an actual run adds."""
    started.read(DELETE)
    shown = started.read(CUSTOM_DATA)
    elapsed = shown.pop("elapsed_seconds")
    assert shown == {"git_sha": "abc123", "note": "initial sweep"}
    assert type(elapsed) is float


def test_keyword_arguments_are_ignored_on_a_hit(started: Page) -> None:
    """The row is what it was when it was run."""
    assert started.read(CUSTOM_DATA).keys() == {"elapsed_seconds"}


def test_run_and_register_take_custom_data_too(started: Page) -> None:
    """A registered row has what was passed and no elapsed_seconds."""
    params = f"({PARAMS}, "
    record = started.read(FORCE.replace("})", "}, note='again')").removeprefix("record = "))
    assert record.custom_data.keys() == {"elapsed_seconds", "note"}
    call = REGISTER.replace("my_existing_run", ID).replace("\n)", "\n    note='by hand')")
    assert started.read(call).custom_data == {"note": "by hand"}
    assert started.read(f"store.run{params} note='third')").custom_data["note"] == "third"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ('{"n": 5.5, "steps": 2, "dt": 1}', "SimResult.n .* 5.5"),
        ('{"n": 5, "steps": 2, "dt": float("nan")}', "SimResult.dt .* nan"),
        ('{"n": 5, "stps": 2, "dt": 1}', "did you mean 'steps'"),
        ('{"n": 5, "dt": 1}', "SimResult.steps"),
        ('{"n": 5, "steps": 2, "dt": 1}, note=object()', "'note'"),
    ],
    ids=["lossy", "nan", "unknown", "missing", "custom data"],
)
def test_a_slip_is_told_before_anything_runs(
    started: Page, completed: Callable[[], list[str]], call: str, told: str
) -> None:
    """Each error names what is at fault; nothing is run, stored or left in the folder."""
    completed()
    for method in ("run", "run_or_retrieve"):
        with pytest.raises(entropic.ParamsError, match=told):
            started.read(f"store.{method}({call})")
    assert completed() == []
    assert on_disk() == [f"{ID}.npy"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The library's logger, left as it was found."""
    logger = logging.getLogger("entropic")
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_logging_tells_hits_runs_and_file_operations(
    started: Page, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, with the run id; nothing before it was enabled."""
    assert capsys.readouterr() == ("", "")
    started.read(LOGGING)
    started.read(SETUP.splitlines()[-2])
    started.read(FORCE)
    Path("results/my_existing_run.npy").write_bytes(b"made elsewhere")
    started.read(DELETE_WITH_FILE)
    started.read(REGISTER)
    out, err = capsys.readouterr()
    assert out == ""
    lines = re.sub(r"\d+\.\d{4} s", "<seconds> s", err).splitlines()
    assert lines == [
        f"hit {ID}",
        f"run {ID} completed in <seconds> s",
        f"published {RESULT} (run {ID})",
        f"deleted the row of {ID}",
        f"deleted the result of {ID} ({RESULT})",
        f"registered ./results/my_existing_run.npy as {ID}",
    ]


def as_script(*snippets: str) -> "subprocess.CompletedProcess[str]":
    """The snippets as a file that a fresh interpreter executes."""
    Path("script.py").write_text("\n\n".join(snippets), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "script.py"],
        env={**os.environ, "PYTHONPATH": str(Path(entropic.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_quickstart_is_a_silent_script() -> None:
    """From first to last, as a file: it exits with 0, and prints nothing as nobody asked it to."""
    Path("results").mkdir()
    Path("results/my_existing_run.npy").write_bytes(b"made elsewhere")
    told = [SETUP, RECORD, RETRIEVE, FORCE, DELETE, DELETE_WITH_FILE, REGISTER, SWEEP, CUSTOM_DATA]
    done = as_script(*told, TWO_AXES, PRODUCT, OTHER_SHAPES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dask_works_in_a_script_whose_main_is_guarded() -> None:
    """Dask starts its workers by importing the script again, so a script needs the usual guard."""
    guarded = "if __name__ == '__main__':\n" + "".join(
        f"    {line}\n" for line in [*DASK.splitlines(), "print(len(records))"]
    )
    model = SETUP.partition("\n\nstore = ")[0]
    setup = f"{model}\n\n{TWO_AXES}\n\nfrom entropic import expand_grid"
    done = as_script(setup, guarded)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
