"""What is the run's own, and what is somebody else's: deletions and re-runs touch only the one."""

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.simulations import simulate


def write_id(params: dict[str, Any]) -> None:
    """Write the run's id."""
    Path(params["result_file"]).write_text(params["id"])


def write_log(params: dict[str, Any]) -> None:
    """Write a result, and a log beside it."""
    write_id(params)
    Path(params["result_file"]).with_name("log").write_text("log")


def names(path: str = "results") -> list[str]:
    """What a results folder shows."""
    return sorted(name for name in os.listdir(path) if name != ".entropic")


def test_a_run_named_like_anothers_companions_is_left_alone(make_store: Callable[..., Any]) -> None:
    """``a.files`` is a run's own id here, and not what the run ``a`` may replace or remove."""
    store = make_store(runner=write_id, file_suffix="")
    store.run({"id": "a", "n": 3})
    other = store.run({"id": "a.files", "n": 3})
    store.run({"id": "a", "n": 3})
    assert Path(other.result_file).read_text() == "a.files"
    assert store.delete(hash="a", remove_file=True)
    assert Path(other.result_file).read_text() == "a.files"


def test_a_users_folder_beside_a_result_is_left_alone(make_store: Callable[..., Any]) -> None:
    """A run that left no companions has none, whatever is called so."""
    store = make_store()
    record = store.run({"n": 3})
    mine = Path(f"results/{record.id}.files")
    mine.mkdir()
    (mine / "notes").write_text("mine")
    store.run({"n": 3})
    assert store.delete({"n": 3}, remove_file=True)
    assert (mine / "notes").read_text() == "mine"


def test_companions_stay_the_runs_own_after_a_registration(make_store: Callable[..., Any]) -> None:
    """A later run takes its old place, its companions' included."""
    store = make_store(runner=write_log)
    record = store.run({"n": 3})
    Path("made").write_text("made")
    store.register({"n": 3}, "made")
    assert store.run({"n": 3}).result_file == record.result_file
    assert names() == [f"{record.id}.files", f"{record.id}.npy"]


def test_a_name_whose_result_was_removed_is_given_up(make_store: Callable[..., Any]) -> None:
    """Another database may have it then, and keeps it."""
    one = make_store()
    record = one.run_or_retrieve({"n": 3})
    assert one.delete({"n": 3}, remove_file=True)
    theirs = make_store(db_url="sqlite:///two.sqlite3", runner=write_id).run({"n": 3})
    assert theirs.result_file == record.result_file
    assert one.run_or_retrieve({"n": 3}).result_file == f"./results/{record.id}.1.npy"
    assert Path(theirs.result_file).read_text() == theirs.id


class Mute(Exception):  # noqa: N818  it is no error of anybody's but its own
    """An exception that fails even at telling what it is."""

    def __str__(self) -> str:
        raise RuntimeError("broken")


def test_an_exception_that_cannot_be_printed_is_raised_all_the_same(
    make_store: Callable[..., Any],
) -> None:
    """As itself; and its run leaves no claim and no stage behind."""

    def runner(params: dict[str, Any]) -> None:
        raise Mute

    with pytest.raises(Mute):
        make_store(runner=runner).run({"n": 3})
    with closing(sqlite3.connect("runs.sqlite3")) as connection:
        rows = connection.execute("SELECT state, owner FROM entropic_runs").fetchall()
    assert rows == [("failed", None)]
    assert os.listdir("results/.entropic/staging") == []


@pytest.mark.parametrize("now", ["grown by now", ""])
def test_a_registered_file_that_has_changed_is_removed_when_asked_for(
    make_store: Callable[..., Any], caplog: pytest.LogCaptureFixture, now: str
) -> None:
    """It is the file that was registered, be it as large as it was or not."""
    caplog.set_level(logging.INFO, "entropic")
    store = make_store()
    Path("made").write_text("made")
    store.register({"n": 3}, "made")
    Path("made").write_text(now)
    assert store.delete({"n": 3}, remove_file=True)
    assert not Path("made").exists()
    assert "(None)" not in caplog.text


def test_a_removal_that_finds_nothing_is_not_told_as_one(
    make_store: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The row goes, and that is all."""
    caplog.set_level(logging.INFO, "entropic")
    store = make_store()
    Path("made").write_text("made")
    store.register({"n": 3}, "made")
    Path("made").unlink()
    assert store.delete({"n": 3}, remove_file=True)
    assert "deleted the result" not in caplog.text


def test_a_result_in_another_folder_goes_with_its_companions(
    make_store: Callable[..., Any],
) -> None:
    """Removed by a store with a folder of its own."""
    make_store(runner=write_log, results_dir="one").run({"n": 3})
    assert make_store(runner=simulate, results_dir="two").delete({"n": 3}, remove_file=True)
    assert names("one") == []
