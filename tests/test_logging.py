"""What the logger ``entropic`` tells: nothing by default; at INFO, each event with its run id."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entropic import Base, Mapped, Store, mapped_column
from tests.simulations import simulate


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged at INFO or above, by whomever, since it was last asked for."""
    caplog.set_level(logging.INFO)

    def take() -> list[str]:
        found = [f"{r.name} {r.levelname}: {r.getMessage()}" for r in caplog.records]
        caplog.clear()
        return found

    return take


def test_a_run_is_told_by_its_completion_and_its_publication(
    store: Any, messages: Callable[[], list[str]]
) -> None:
    """Two lines, each with the id; the seconds are the runner's, the path is the record's."""
    record = store.run_or_retrieve({"n": 3})
    elapsed = record.custom_data["elapsed_seconds"]
    told = [
        f"entropic INFO: run {record.id} completed in {elapsed:.4f} s",
        f"entropic INFO: published {record.result_file} (run {record.id})",
    ]
    assert messages() == told
    record = store.run({"n": 3})
    told[0] = f"entropic INFO: run {record.id} completed in"
    completed, published = messages()
    assert completed.startswith(told[0])
    assert published == told[1]


def test_a_hit_is_one_line(store: Any, messages: Callable[[], list[str]]) -> None:
    """From each method that can hit; a miss of ``retrieve`` is none."""
    assert store.retrieve({"n": 3}) is None
    assert messages() == []
    records = store.sweep({"n": n} for n in (1, 2, 3))
    messages()
    store.run_or_retrieve({"n": 1})
    store.retrieve({"n": 1})
    assert messages() == [f"entropic INFO: hit {records[0].id}"] * 2
    store.sweep({"n": n} for n in (1, 2, 3, 2, 1))
    assert messages() == [f"entropic INFO: hit {record.id}" for record in records]


def test_deletions_are_told(store: Any, messages: Callable[[], list[str]]) -> None:
    """Of a row, and of a result; nothing, where there is nothing to delete."""
    one, two = store.sweep([{"n": 1}, {"n": 2}])
    messages()
    store.delete({"n": 1})
    assert messages() == [f"entropic INFO: deleted the row of {one.id}"]
    store.delete(hash=two.id, remove_file=True)
    row, file = messages()
    assert row == f"entropic INFO: deleted the row of {two.id}"
    assert two.id in file
    assert two.result_file in file
    store.delete({"n": 1})
    assert messages() == []


def test_a_registration_is_told(store: Any, messages: Callable[[], list[str]]) -> None:
    """With the id and the path."""
    Path("made.npy").write_bytes(b"made")
    record = store.register({"n": 3}, "made.npy")
    assert messages() == [f"entropic INFO: registered made.npy as {record.id}"]


@pytest.mark.parametrize("kind", ["store", "async-threads"])
def test_a_failure_is_told_in_one_line(
    make_store: Callable[..., Any], messages: Callable[[], list[str]], kind: str
) -> None:
    """The exception itself reaches the caller: the log repeats no traceback."""

    def runner(params: dict[str, Any]) -> None:
        raise ValueError("it diverged")

    with pytest.raises(ValueError, match="it diverged"):
        make_store(kind, runner=runner).run_or_retrieve({"n": 3})
    (told,) = messages()
    assert re.fullmatch(
        r"entropic INFO: run [0-9a-f]{16} failed: builtins\.ValueError: it diverged", told
    )


def test_a_lost_result_is_one_warning(store: Any, messages: Callable[[], list[str]]) -> None:
    """It names the id and the path, whether it is then run again or not."""
    record = store.run_or_retrieve({"n": 3})
    os.unlink(record.result_file)
    messages()
    store.retrieve({"n": 3})
    (told,) = messages()
    assert told.startswith(f"entropic WARNING: the result of {record.id} ({record.result_file})")
    store.run_or_retrieve({"n": 3})
    warning, completed, published = messages()
    assert warning == told
    assert "completed" in completed
    assert "published" in published


def test_a_column_that_was_added_is_told(
    make_store: Callable[..., Any], messages: Callable[[], list[str]]
) -> None:
    """Once: the next store finds it there."""

    class Growing(Base):
        __tablename__ = "growing"
        n: Mapped[int]

    make_store(result_cls=Growing, runner=simulate_without_dt).run_or_retrieve({"n": 3})
    messages()
    grown = grown_model()
    make_store(result_cls=grown).retrieve({"n": 4})
    (told,) = messages()
    assert told.startswith("entropic INFO: ")
    assert "growing.dt" in told
    make_store(result_cls=grown).retrieve({"n": 4})
    assert messages() == []


def grown_model() -> type[Base]:
    """The model ``Growing``, defined again with a column more."""

    class Growing(Base):
        __tablename__ = "growing"
        n: Mapped[int]
        dt: Mapped[float] = mapped_column(default=0.5)

    return Growing


def simulate_without_dt(params: dict[str, Any]) -> None:
    """A runner of a model that has no ``dt`` yet."""
    simulate({"dt": 0.5, **params})


SCENARIO = """
import logging, os, sys
from pathlib import Path

from entropic import Store
from tests.simulations import Point, simulate

{setup}

def runner(params):
    if params["n"] == 0:
        raise ValueError("it diverged")
    simulate(params)

store = Store(runner, Point, "results", ".npy", "sqlite:///runs.sqlite3")
record = store.run_or_retrieve({{"n": 3}})
store.run_or_retrieve({{"n": 3}})
store.run({{"n": 3}})
try:
    store.run({{"n": 0}})
except ValueError:
    pass
os.unlink(record.result_file)
store.run_or_retrieve({{"n": 3}})
Path("made").write_bytes(b"made")
store.register({{"n": 4}}, "made")
store.delete({{"n": 4}}, remove_file=True)
store.close()
"""


def run_scenario(setup: str) -> subprocess.CompletedProcess[str]:
    """Everything that can be told, in a program of its own."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", SCENARIO.format(setup=setup)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_nothing_is_shown_by_default() -> None:
    """Not even a warning: a program that has set up no logging stays silent."""
    done = run_scenario("")
    assert (done.stdout, done.stderr) == ("", "")


def test_the_documented_setup_shows_what_happens() -> None:
    """A handler and a level on the logger ``entropic``, as the quickstart writes it."""
    setup = """
logging.getLogger("entropic").addHandler(logging.StreamHandler())
logging.getLogger("entropic").setLevel(logging.INFO)
"""
    lines = run_scenario(setup).stderr.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("run", "published", "hit", "run", "published", "run"),
        *("the", "run", "published", "registered", "deleted", "deleted"),
    ]
    id = lines[0].split()[1]
    assert all(id in line for line in (*lines[:5], *lines[6:9]))
    assert sum("made" in line for line in lines) == 2


def test_a_program_that_logs_everything_hears_of_runs_alone() -> None:
    """At INFO on the root, no library that is used underneath speaks up."""
    setup = 'logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s")'
    told = run_scenario(setup).stderr.splitlines()
    assert set(told) == {"entropic INFO", "entropic WARNING"}
    assert told.count("entropic WARNING") == 1
    assert len(told) == 12


def test_messages_are_formatted_by_whoever_shows_them(
    make_store: Callable[..., Store[Any]],
) -> None:
    """Their arguments come as they are, the run id among them: filters can use them."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.getLogger("entropic")
    keep = Keep()
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    try:
        record = make_store().run_or_retrieve({"n": 3})
    finally:
        logger.removeHandler(keep)
        logger.setLevel(logging.NOTSET)
    assert [r.levelname for r in records] == ["INFO", "INFO"]
    assert all(r.args and record.id in r.args for r in records)
