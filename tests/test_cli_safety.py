"""The command line where it could do harm: copies, wrong folders, folders that are not mounted."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from entropic import Store
from tests import databases
from tests.simulations import Point
from tests.test_cli import entropic, refused, told
from tests.test_reflection import OLD, everything

DB = databases.PATH


def write(params: dict[str, Any]) -> None:
    """A small result."""
    Path(params["result_file"]).write_text("x" * params["n"])


def made(home: str, *results: str) -> list[Any]:
    """Two runs in each of some folders, of one database, all of them beside it."""
    os.makedirs(home, exist_ok=True)
    here = os.getcwd()
    os.chdir(home)
    records: list[Any] = []
    try:
        for at, folder in enumerate(results or ("results",)):
            with Store(write, Point, folder, ".txt", f"sqlite:///{DB}", executor="caller") as store:
                records += store.sweep([{"n": 2 * at + 1}, {"n": 2 * at + 2}])
    finally:
        os.chdir(here)
    return records


def results_in(folder: str) -> int:
    """How many results there are."""
    return len([name for name in os.listdir(folder) if name.endswith(".txt")])


def test_a_copied_project_is_cleared_up_and_never_the_original(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the original's folder, too: nothing tells which of the two is meant, so one must say."""
    made("one")
    shutil.copytree("one", "two")
    monkeypatch.chdir("one")
    before = everything(folder)
    for arguments in (
        ["gc", "--older-than", "0s", "--yes"],
        ["gc", "--orphans"],
        ["delete", "--where", "n>0", "--remove-file", "--yes"],
        ["recover", "--yes"],
    ):
        message = refused(*arguments, db=f"../two/{DB}")
        assert str(folder / "two" / "results") in message
        assert "'results'" in message
        assert "say --results-dir" in message
    assert everything(folder) == before
    shown = told("show", told("find", db=f"../two/{DB}")[0]["id"], db=f"../two/{DB}")
    assert shown["found_at"].startswith(str(folder / "two"))
    aimed = ["--older-than", "0s", "--results-dir", "../two/results", "--yes"]
    done = told("gc", *aimed, db=f"../two/{DB}")
    assert len(done["removed"]) == 2
    assert (results_in("results"), results_in("../two/results")) == (2, 0)
    assert entropic("verify", db=DB).exit_code == 0


def test_a_copy_of_a_project_with_whole_paths_is_one_of_two(folder: Path) -> None:
    """Its rows name the original's folder, and what lies beside the database is its copy."""
    made("one", str(folder / "one" / "results"))
    shutil.copytree("one", "two")
    assert "say --results-dir" in refused("gc", "--older-than", "0s", "--yes", db=f"two/{DB}")
    assert results_in("one/results") == results_in("two/results") == 2


def test_a_copy_from_entropic_2_is_one_of_two(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gave folders no ids: the names of the results tell."""
    shutil.copytree(OLD, "one")
    shutil.copytree(OLD, "two")
    monkeypatch.chdir("one")
    before = everything(folder)
    refused("gc", "--older-than", "0s", "--yes", "-m", "results", db=f"../two/{DB}")
    assert everything(folder) == before


def test_what_a_copy_from_entropic_2_lacks_is_not_taken_from_the_original(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the copy is named: the path of a row leads to the original, from there."""
    shutil.copytree(OLD, "one")
    shutil.copytree(OLD, "two")
    (taken, *_) = [one["result_file"] for one in told("find", "-m", "results", db=f"two/{DB}")]
    Path("two", taken).unlink()
    monkeypatch.chdir("one")
    before = everything(folder / "one")
    aimed = ["-m", "results", "--results-dir", str(Path("../two", taken).parent), "--yes"]
    done = told("gc", "--older-than", "0s", *aimed, db=f"../two/{DB}")
    assert [one["id"] for one in done["skipped"]] == [Path(taken).stem]
    assert done["removed"]
    assert everything(folder / "one") == before


def test_a_wrong_folder_is_refused(folder: Path) -> None:
    """No row goes, and nothing is made in it; without a row, a folder must be one of results."""
    made("one")
    Path("typo").mkdir()
    before = everything(folder)
    for arguments in (
        ["gc", "--older-than", "0s", "--yes"],
        ["gc", "--keep-size", "0", "--yes"],
        ["delete", "--where", "n>0", "--yes"],
        ["delete", "--where", "n>0", "--yes", "--remove-file"],
        ["recover", "--yes"],
    ):
        message = refused(*arguments, "--results-dir", "typo", db=f"one/{DB}")
        assert "'typo' is not the folder of the results of points" in message
        assert "which its rows have in 'results'" in message
    entropic("delete", "--where", "n>0", "--yes", db=f"one/{DB}")
    message = refused("gc", "--orphans", "--results-dir", "typo", "--yes", db=f"one/{DB}")
    assert "nor of any" in message
    assert os.listdir("typo") == []
    assert before.keys() == everything(folder).keys()


def test_a_wrong_folder_of_entropic_2_is_refused(folder: Path) -> None:
    """By the names that are not there."""
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    Path("typo").mkdir()
    Path("typo/other").write_text("x")
    before = everything(folder)
    refused("gc", "--older-than", "0s", "-m", "results", "--results-dir", "typo", "--yes", db=DB)
    assert everything(folder) == before


@pytest.mark.parametrize("has_place", [False, True])
@pytest.mark.parametrize("option", [["--older-than", "0s"], ["--keep-size", "0"]])
def test_gc_leaves_alone_what_it_cannot_see(
    folder: Path, option: list[str], *, has_place: bool
) -> None:
    """One of two folders is not mounted: its runs are listed as skipped, with the reason."""
    hidden = made(".", "A", "B")[:2]
    os.rename("A", "unmounted")
    if has_place:
        os.mkdir("A")
    told_of = entropic("gc", *option, db=DB).stderr
    assert f"{hidden[0].id} of points is skipped" in told_of
    assert told_of.endswith("; 2 skipped\n")
    for yes in ([], ["--yes"]):
        done = told("gc", *option, *yes, db=DB)
        assert sorted(one["id"] for one in done["skipped"]) == sorted(r.id for r in hidden)
        assert all("'A'" in one["told"] for one in done["skipped"])
        assert not {one["id"] for one in done["chosen"]} & {r.id for r in hidden}
    assert "say --results-dir" in refused("gc", *option, "--yes", db=DB)
    if has_place:
        os.rmdir("A")
    os.rename("unmounted", "A")
    assert results_in("A") == 2
    assert len(told("find", db=DB)) == 2


def test_gc_leaves_alone_what_it_cannot_see_of_entropic_2(folder: Path) -> None:
    """A row whose path leads nowhere, beside a folder that is there."""
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    ids = [one["id"] for one in told("find", "-m", "results", db=DB)]
    hidden = ids[0]
    with sqlite3.connect(DB) as connection:
        connection.execute("UPDATE results SET result_file = 'A/' || id WHERE id = ?", [hidden])
    next(Path().glob(f"*/{hidden}.*")).unlink()
    done = told("gc", "--older-than", "0s", "-m", "results", "--yes", db=DB)
    assert [one["id"] for one in done["skipped"]] == [hidden]
    assert [one["id"] for one in told("find", "-m", "results", db=DB)][:1] == [hidden]


def test_gc_leaves_alone_what_entropic_2_has_registered(folder: Path) -> None:
    """Its name is not made of its id: the file is its user's; nor is its folder that of results."""
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    ids = [one["id"] for one in told("find", "-m", "results", db=DB)]
    with sqlite3.connect(DB) as connection:
        connection.execute(
            "UPDATE results SET result_file = 'mine/own.npy', created_at = '2030-01-01'"
            " WHERE id = ?",
            [ids[0]],
        )
    os.mkdir("mine")
    Path("mine/own.npy").write_text("mine")
    done = told("gc", "--older-than", "0s", "-m", "results", "--yes", db=DB)
    assert ids[0] not in done["removed"]
    assert len(done["removed"]) > 1
    assert os.listdir("mine") == ["own.npy"]


def test_delete_removes_no_row_whose_result_it_should_remove_and_cannot_see(folder: Path) -> None:
    """Without --remove-file, the row goes."""
    hidden = made(".", "A", "B")[0]
    os.rename("A", "unmounted")
    message = refused("delete", hidden.id, "--remove-file", "--yes", db=DB)
    assert f"the result of {hidden.id} cannot be removed" in message
    assert "without --remove-file" in message
    assert len(told("find", db=DB)) == 4
    assert told("delete", hidden.id, "--yes", db=DB)["deleted"] == [hidden.id]


def test_the_plan_counts_folders_and_what_lies_beside_results(folder: Path) -> None:
    """Also of what is old: bytes are those that are on the disk."""

    def run(params: dict[str, Any]) -> None:
        result = Path(params["result_file"])
        if params["n"] == 1:
            result.mkdir()
            (result / "part").write_text("x" * 100)
        else:
            result.write_text("x" * 10)
            result.with_name("log").write_text("x" * 1000)

    with Store(run, Point, file_suffix=".txt", db_url=f"sqlite:///{DB}") as store:
        store.run({"n": 1})
        store.run({"n": 2})
    planned = told("gc", "--older-than", "0s", db=DB)
    assert [one["bytes"] for one in planned["chosen"]] == [100, 1010]
    assert planned["bytes"] == 1110


def test_a_month_is_no_minute(folder: Path) -> None:
    """Units of time are lower-case; those of sizes may be either."""
    made(".")
    for text in ("1M", "1D", "2W", "3H"):
        message = refused("gc", "--older-than", text, "--yes", db=DB)
        assert "m (minutes), h (hours), d (days), w (weeks)" in message
        assert "no months" in message
    assert told("gc", "--keep-size", "1kb", db=DB)["chosen"] == []
    assert len(told("find", db=DB)) == 2


def test_export_writes_through_a_link(folder: Path) -> None:
    """What it leads to is replaced, and keeps its mode; the link stays."""
    made(".")
    Path("there").mkdir()
    target, link = Path("there/target.csv"), Path("link.csv")
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    assert "is there already" in refused("export", "-o", "link.csv", db=DB)
    for form in ("csv", "json", "parquet"):
        assert entropic("export", "-f", form, "-o", "link.csv", "--force", db=DB).exit_code == 0
        assert link.is_symlink()
        assert target.read_bytes() != b"old"
        assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir("there") == ["target.csv"]
    dangling = Path("dangling")
    dangling.symlink_to("there/new")
    assert entropic("export", "-o", "dangling", db=DB).exit_code == 0
    assert Path("there/new").is_file()
    assert dangling.is_symlink()


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_export_writes_into_what_is_no_file(folder: Path, form: str) -> None:
    """A pipe stays one; whoever reads it gets all."""
    made(".")
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = entropic("export", "-f", form, "-o", "pipe", "--force", db=DB)
        assert result.exit_code == 0, result.stderr
        read = os.read(reader, 100_000)
    finally:
        os.close(reader)
    assert Path("pipe").is_fifo()
    assert entropic("export", "-f", form, "-o", "whole", db=DB).exit_code == 0
    assert read == Path("whole").read_bytes()
    assert sorted(os.listdir()) == ["pipe", "results", DB, "whole"]
    assert "is a folder" in refused("export", "-f", form, "-o", "results", "--force", db=DB)


def test_a_folder_that_is_only_looked_at_gets_nothing(folder: Path) -> None:
    """No command that reads makes a private corner."""
    made(".")
    Path("typo").mkdir()
    for arguments in (["verify"], ["gc", "--orphans"], ["show", "f"]):
        entropic(*arguments, "--results-dir", "typo", db=DB)
    assert os.listdir("typo") == []
    assert json.loads(entropic("ls", "--json", db=DB).stdout)
