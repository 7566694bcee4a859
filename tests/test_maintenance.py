"""Keeping house without the command line: where results are, what is wrong, what goes."""

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropic import Store
from entropic.artifacts import ResultsFolder
from entropic.database import Database
from entropic.database.urls import async_url, reading_url
from entropic.ledger import Ledger, Result
from entropic.ledger.survey import Sample
from entropic.maintenance.checking import Fault, Seen, judged, wrong_files, wrong_rows
from entropic.maintenance.clearing import Cleared, Plan, carry_out, choose
from entropic.maintenance.folders import located, results_of, suffix_of
from entropic.maintenance.policy import Chosen, Kept, Policy, failures_to_go, runs_to_go
from entropic.maintenance.stores import keeper
from entropic.reflection import Reflected, reflect
from tests import databases
from tests.simulations import Point

DAY = 86400.0
NOW = 1000 * DAY


def write(params: dict[str, Any]) -> None:
    """A result and a companion, or a failure."""
    if params["n"] == 13:
        raise ValueError("13")
    if params["n"] == 7:
        Path(params["result_file"]).with_name("log").write_text("seven")
    Path(params["result_file"]).write_text("x" * params["n"])


def store(**settings: Any) -> Store[Point]:
    """A store of small results."""
    usual = {"file_suffix": ".txt", "db_url": databases.url()}
    return Store(write, Point, **{**usual, **settings})


Work = Callable[[Ledger[Any], ResultsFolder, Reflected], Coroutine[Any, Any, Any]]


def on_what_is_there(work: Work) -> Any:
    """What a function makes of the ledger and the folder, through a connection that reads."""

    async def main() -> Any:
        database = Database(reading_url(databases.url()), lock_timeout=5)
        await database.open()
        try:
            (found,) = (await reflect(database)).models.values()
            folder = ResultsFolder("./results", ".txt")
            folder.open_for_reading()
            ledger = Ledger(database, found.identity, found.name, found.model)
            return await work(ledger, folder, found)
        finally:
            await database.aclose()

    return asyncio.run(main())


def planned(policy: Policy, now: float | None = None) -> list[Chosen]:
    """What is to go."""
    plan: Plan = on_what_is_there(lambda ledger, folder, _: choose(ledger, folder, policy, now))
    assert plan.skipped == []
    return plan.chosen


def removed(chosen: list[Chosen]) -> Cleared:
    """What has gone of it."""

    async def work(_: Any, folder: ResultsFolder, found: Reflected) -> Cleared:
        url = async_url(databases.url())
        async with keeper(found.model, folder, url, lock_timeout=5) as made:
            return await carry_out(made, chosen)

    cleared: Cleared = on_what_is_there(work)
    return cleared


def wrong(*, digests: bool = True) -> list[Fault]:
    """What is wrong."""

    async def work(ledger: Ledger[Any], folder: ResultsFolder, _: Any) -> list[Fault]:
        rows = [f async for part in wrong_rows(ledger, folder, digests=digests) for f in part]
        return rows + await wrong_files([(ledger, folder)])

    found: list[Fault] = on_what_is_there(work)
    return found


ages = st.floats(0, 900 * DAY) | st.sampled_from([DAY, 2 * DAY])
kept = st.lists(
    st.builds(
        Kept,
        id=st.uuids().map(str),
        token=st.integers(1, 9),
        at=ages.map(lambda age: NOW - age),
        size=st.integers(0, 1000),
        is_busy=st.booleans(),
        is_registered=st.booleans(),
        started_at=st.none() | st.floats(0, NOW),
    ),
    unique_by=lambda run: run.id,
)


def age_of(run: Kept) -> Any:
    """What tells which of two runs is older: the smaller one is."""
    return run.at, run.started_at or 0.0, run.id


@given(kept, st.none() | ages, st.none() | st.integers(0, 5000))
def test_what_goes_is_old_or_too_much_and_nothing_else(
    runs: list[Kept], older_than: float | None, keep_size: int | None
) -> None:
    """Neither what is run, nor what is registered; what stays fits, and is younger."""
    chosen = runs_to_go(runs, Policy(older_than, keep_size), NOW)
    gone = {one.run.id for one in chosen}
    assert len(gone) == len(chosen)
    assert not any(one.run.is_busy or one.run.is_registered for one in chosen)
    ours = [run for run in runs if not (run.is_busy or run.is_registered)]
    stay = [run for run in ours if run.id not in gone]
    for one in chosen:
        if one.reason == "age":
            assert older_than is not None
            assert one.run.at is not None
            assert one.run.at < NOW - older_than
        else:
            assert one.reason == "size"
            assert all(age_of(one.run) < age_of(run) for run in stay)
    if older_than is not None:
        assert all(run.at is not None and run.at >= NOW - older_than for run in stay)
    if keep_size is not None:
        assert sum(run.size for run in stay) <= keep_size
    if older_than is None and keep_size is None:
        assert not chosen


@given(kept, st.integers(0, 5000))
def test_no_more_goes_than_has_to(runs: list[Kept], keep_size: int) -> None:
    """With the last one that went, what stays would be too much."""
    chosen = runs_to_go(runs, Policy(keep_size=keep_size), NOW)
    if chosen:
        gone = {one.run.id for one in chosen[:-1]}
        stay = [r for r in runs if not (r.is_busy or r.is_registered) and r.id not in gone]
        assert sum(run.size for run in stay) > keep_size


def test_a_failure_of_unknown_age_goes_only_with_all() -> None:
    """Those that were recorded before failures had a time."""
    unknown, old = Kept("a", 1), Kept("b", 1, at=NOW - 2 * DAY)
    busy = Kept("c", 1, at=0.0, is_busy=True)
    failed = [unknown, old, busy]
    assert failures_to_go(failed, Policy(failures_older_than=DAY), NOW) == [Chosen("failure", old)]
    everything = failures_to_go(failed, Policy(failures_older_than=0), NOW)
    assert [one.run.id for one in everything] == ["a", "b"]
    assert failures_to_go(failed, Policy(), NOW) == []


def test_a_run_is_judged_by_what_is_on_record() -> None:
    """What was never recorded cannot differ."""
    there = Seen("p", True, 5, "abc")
    assert judged("i", Result(size=5, digest="abc"), there) is None
    assert judged("i", Result(), there) is None
    assert judged("i", Result(size=5), Seen("p", True, None)) is None
    kinds = [
        judged("i", recorded, seen)
        for recorded, seen in (
            (Result(size=5), Seen("p")),
            (Result(size=6, digest="abc"), there),
            (Result(size=5, digest="abd"), there),
            (Result(size=5), Seen("p", lost="gone")),
        )
    ]
    assert [one and one.kind for one in kinds] == ["missing", "size", "digest", "folder"]


def test_the_folder_is_the_one_that_the_rows_mean(folder: Path) -> None:
    """By its id; another of the same name is not it. From here, or from the database's folder."""
    with Store(write, Point, "there/results", ".txt", "sqlite:///runs.sqlite3") as made:
        record = made.run_or_retrieve({"n": 1})
    id = Path("there/results/.entropic/folder").read_text()
    sample = Sample(record.id, id, f"{record.id}.txt", "results/x.txt")
    assert located([sample], None) is None
    assert located([sample], str(folder / "there")) == str(folder / "there/results")
    shutil.copytree("there/results", "results", ignore=shutil.ignore_patterns(".entropic"))
    assert located([sample], None) is None
    shutil.copytree("there/results/.entropic", "results/.entropic")
    assert located([sample], None) == "results"
    old = Sample("a", None, None, "results/nothing.txt")
    assert located([old], str(folder)) is None
    assert located([], None) == "./results"


@pytest.mark.usefixtures("database")
def test_results_are_where_the_rows_or_somebody_says() -> None:
    """Nowhere, if there is no folder. Of deleted rows, too, it is known what names end with."""

    async def work(ledger: Ledger[Any], _: ResultsFolder, found: Reflected) -> list[Any]:
        places = (None, "results", "nowhere", "file")
        each = [await results_of(ledger, found.nonce, None, one) for one in places]
        return [one and (one.spelled, one.suffix, bool(one.id)) for one in each]

    expected = [("./results", ".txt", True), ("results", ".txt", True), None, None]
    Path("file").write_text("no folder")
    with store() as made:
        made.run_or_retrieve({"n": 1})
        assert on_what_is_there(work) == expected
        made.delete({"n": 1})
    assert on_what_is_there(work) == expected
    shutil.rmtree("results")
    assert on_what_is_there(work) == [None] * 4


def test_the_suffix_is_what_most_names_end_with() -> None:
    """Numbered names, and those of another suffix, do not count."""
    names = ["a.npy", "b.1.npy", "c.h5", "d"]
    samples = [Sample(name[0], "f", name, f"results/{name}") for name in names]
    assert suffix_of(samples) == ".npy"
    assert suffix_of([]) == ""
    assert suffix_of([Sample("a", None, None, "r/a.tar.gz")]) == ".tar.gz"
    assert suffix_of([Sample("a", None, None, "r/mine.h5")]) == ""


@pytest.mark.usefixtures("database")
def test_what_is_as_it_was_stored_is_not_told() -> None:
    """Folders, companions and registered results, too."""
    Path("mine.txt").write_text("mine")

    def run(params: dict[str, Any]) -> None:
        if params["n"] == 2:
            Path(params["result_file"]).mkdir()
            (Path(params["result_file"]) / "part").write_text("part")
        else:
            write(params)

    with Store(run, Point, file_suffix=".txt", db_url=databases.url()) as made:
        for n in (1, 2, 7):
            made.run_or_retrieve({"n": n})
        made.register({"n": 100}, "mine.txt")
    assert wrong() == []
    Path("mine.txt").write_text("another")
    (part,) = Path("results").glob("*.txt/part")
    part.write_text("traP")
    assert sorted(one.kind for one in wrong()) == ["digest", "size"]


@pytest.mark.usefixtures("database")
def test_what_is_being_run_is_neither_wrong_nor_removed() -> None:
    """Its result is about to be replaced."""
    with store() as made:
        record = made.run_or_retrieve({"n": 3})
    claim = (
        "UPDATE entropic_runs SET owner = 'somebody', token = token + 1, state = 'running',"
        f" lease_expires = {databases.current().now} + 60"
    )
    before = planned(Policy(older_than=0), NOW * 100)
    databases.change(claim)
    Path(record.result_file).write_text("y")
    assert wrong() == []
    assert planned(Policy(older_than=0, keep_size=0), NOW * 100) == []
    assert removed(before) == Cleared()
    assert Path(record.result_file).exists()


@pytest.mark.usefixtures("database")
def test_what_was_run_again_since_it_was_chosen_stays() -> None:
    """A plan is of one moment."""
    with store() as made:
        one, two = made.sweep([{"n": 3}, {"n": 4}])
        chosen = planned(Policy(older_than=0), NOW * 100)
        made.run({"n": 3})
    assert removed(chosen) == Cleared(runs=(two.id,))
    assert Path(one.result_file).exists()
    assert not Path(two.result_file).exists()


@pytest.mark.usefixtures("database")
def test_a_run_goes_with_its_companions_and_takes_their_size() -> None:
    """As a store deletes it."""
    with store() as made:
        record = made.run_or_retrieve({"n": 7})
        made.run_or_retrieve({"n": 1})
    (chosen,) = planned(Policy(keep_size=11))
    assert (chosen.run.id, chosen.run.size) == (record.id, 7 + len("seven"))
    assert removed([chosen]).runs == (record.id,)
    assert sorted(path.suffix for path in Path("results").iterdir()) == ["", ".txt"]
    with store() as made:
        assert made.retrieve({"n": 7}) is None
        assert made.run_or_retrieve({"n": 7}).result_file == record.result_file


@pytest.mark.usefixtures("database")
def test_what_is_not_ours_is_never_removed() -> None:
    """A registered result, a stray, another cache's file."""
    Path("mine.txt").write_text("mine")
    with store() as made:
        made.register({"n": 100}, "mine.txt")
        made.run_or_retrieve({"n": 1})
        kept_id = made.run_or_retrieve({"n": 2}).id
        made.delete(hash=kept_id)
    Path("results/stray.txt").write_text("x")
    databases.change("UPDATE entropic_runs SET folder = 'another' WHERE state = 'deleted'")
    every = Policy(older_than=0, keep_size=0, orphans=True, failures_older_than=0)
    removed(planned(every, NOW * 100))
    assert Path("mine.txt").exists()
    names = {path.name for path in Path("results").iterdir()}
    assert names == {".entropic", "stray.txt", f"{kept_id}.txt"}


@pytest.mark.usefixtures("database")
def test_a_result_whose_row_was_deleted_goes_as_an_orphan() -> None:
    """With its companions; its name is not the run's own any more, and its token stays."""
    with store() as made:
        record = made.run_or_retrieve({"n": 7})
        made.delete(hash=record.id)
    assert [one.kind for one in wrong()] == ["orphan"]
    (chosen,) = planned(Policy(orphans=True))
    assert removed([chosen]) == Cleared(orphans=(record.id,))
    assert sorted(os.listdir("results")) == [".entropic"]
    assert not os.listdir("results/.entropic/staging")
    assert databases.ask("SELECT token, result_name FROM entropic_runs") == [(1, None)]
    assert planned(Policy(orphans=True)) == []


@pytest.mark.usefixtures("database")
def test_an_orphan_that_has_been_run_again_stays() -> None:
    """It is no orphan any more."""
    with store() as made:
        record = made.run_or_retrieve({"n": 3})
        made.delete(hash=record.id)
        chosen = planned(Policy(orphans=True))
        made.run_or_retrieve({"n": 3})
    assert removed(chosen) == Cleared()
    assert Path(record.result_file).exists()


@pytest.mark.usefixtures("database")
def test_failures_are_forgotten_unless_tried_again_since() -> None:
    """Old ones alone, if that is asked for; tokens stay."""
    with store() as made:
        with pytest.raises(ValueError, match="13"):
            made.run_or_retrieve({"n": 13})
        assert planned(Policy(failures_older_than=DAY)) == []
        chosen = planned(Policy(failures_older_than=0))
        with pytest.raises(ValueError, match="13"):
            made.run_or_retrieve({"n": 13})
        assert removed(chosen).failures == 0
        assert len(made.failures()) == 1
        assert removed(planned(Policy(failures_older_than=0))).failures == 1
        assert made.failures() == []
        assert databases.ask("SELECT token, state FROM entropic_runs") == [(2, "deleted")]
        with pytest.raises(ValueError, match="13"):
            made.run_or_retrieve({"n": 13})
        assert len(made.failures()) == 1
