"""The command line: what it prints, how it ends, and what it leaves alone."""

import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from entropic import Store, __version__, mapped_column
from entropic.cli.app import app
from entropic.cli.ending import UsageError
from entropic.cli.output import widths
from entropic.cli.where import Condition, parsed
from tests import databases
from tests.columns import Degrees
from tests.models import model
from tests.outsiders import holding
from tests.scripts import wait_for
from tests.simulations import Point
from tests.test_reflection import OLD, everything

ROOT = Path(__file__).parents[1]


def write(params: dict[str, Any]) -> None:
    """A small simulation that cannot do 13."""
    if params.get("n") == 13:
        raise ValueError("cannot do\n13")
    Path(params["result_file"]).write_text(f"{params.get('n')}")


def entropic(*arguments: str, db: str | None = None, **options: Any) -> Result:
    """The command line, on the current database."""
    args = [arguments[0], "--db", db or databases.url(), *arguments[1:]]
    return CliRunner().invoke(app, args, catch_exceptions=False, **options)


def told(*arguments: str, **options: Any) -> Any:
    """The JSON that it prints, where all is well."""
    result = entropic(*arguments, "--json", **options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def lines(*arguments: str, **options: Any) -> list[list[str]]:
    """The cells that it prints into a pipe, where all is well."""
    result = entropic(*arguments, **options)
    assert result.exit_code == 0, result.stderr
    return [line.split("\t") for line in result.stdout.splitlines()]


def refused(*arguments: str, **options: Any) -> str:
    """What it says of what cannot be asked for; in one line, with code 2."""
    result = entropic(*arguments, **options)
    assert (result.exit_code, result.stdout) == (2, ""), result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


@contextmanager
def store_of(result_cls: Any = Point, **settings: Any) -> Iterator[Store[Any]]:
    """A store of small runs."""
    usual = {"file_suffix": ".txt", "db_url": databases.url()}
    with Store(write, result_cls, **{**usual, **settings}) as store:
        yield store


@pytest.fixture
def runs(database: databases.Place) -> list[Any]:
    """Four runs, with custom data, and one that has failed."""
    with store_of() as store:
        sets: list[dict[str, Any]] = [
            {"n": 1},
            {"n": 2, "dt": 0.1 + 0.2},
            {"n": 3, "label": "a b"},
            {"n": 40, "dt": 7},
        ]
        records = [
            store.run_or_retrieve(one, git_sha=f"abc{at}", step=at) for at, one in enumerate(sets)
        ]
        with pytest.raises(ValueError, match="13"):
            store.run_or_retrieve({"n": 13})
    return records


def test_ls_lists_the_models(runs: list[Any]) -> None:
    """Each with its runs, and those that failed or are under way."""
    with store_of(model("others", x=float)) as store:
        store.run_or_retrieve({"x": 1})
    others, points = told("ls")
    assert (others["model"], others["runs"], others["failed"]) == ("others", 1, 0)
    assert points == {
        "model": "points",
        "runs": 4,
        "running": 0,
        "failed": 1,
        "last": points["last"],
        "parameters": ["n", "dt", "label"],
    }
    head, *rows = lines("ls")
    assert head == ["model", "runs", "running", "failed", "last", "parameters"]
    assert rows[1][:4] == ["points", "4", "0", "1"]


def test_ls_names_a_table_that_is_gone(runs: list[Any]) -> None:
    """Beside what it prints."""
    with store_of(model("others", x=float)) as store:
        store.run_or_retrieve({"x": 1})
    databases.change("DROP TABLE others")
    result = entropic("ls", "--json")
    assert [one["model"] for one in json.loads(result.stdout)] == ["points"]
    assert "the table of 'others' is gone" in result.stderr


def test_the_version_is_that_of_the_package() -> None:
    """And help shows examples, of each command."""
    runner = CliRunner()
    assert runner.invoke(app, ["--version"]).stdout == f"entropic {__version__}\n"
    commands = typer.main.get_group(app).commands
    assert {"ls", "export", "delete"} < set(commands)
    for command in commands:
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert f"Examples:\n    entropic {command}" in shown.stdout
        assert "--json" in shown.stdout


def test_json_is_a_format_of_export(runs: list[Any]) -> None:
    """Said either way; another format beside it is refused."""
    by_format = entropic("export", "--format", "json").stdout
    assert entropic("export", "--json").stdout == by_format
    assert len(json.loads(by_format)) == len(runs)
    assert "say one of them" in refused("export", "--json", "-f", "csv")


def test_stats_counts_runs_bytes_and_seconds(runs: list[Any]) -> None:
    """Failed runs and all attempts, too; it tells of nothing that is not recorded."""
    (stats,) = told("stats")
    assert (stats["runs"], stats["failed"], stats["attempts"]) == (4, 1, 5)
    assert None not in stats.values()
    assert stats["bytes"] == sum(Path(r.result_file).stat().st_size for r in runs)
    assert stats["seconds_saved"] == pytest.approx(
        sum(r.custom_data["elapsed_seconds"] for r in runs), abs=0.001
    )
    assert "results\t5 B, as recorded\n" in entropic("stats").stdout


def test_stats_leaves_out_what_was_registered(runs: list[Any]) -> None:
    """Its file is its user's; how large results are is told as recorded."""
    Path("mine.txt").write_text("x" * 1000)
    with store_of() as store:
        store.register({"n": 5}, "mine.txt")
    (stats,) = told("stats")
    assert (stats["runs"], stats["registered"], stats["bytes"]) == (5, 1, 5)
    assert stats["runs_without_size"] == 0


WHERE = {
    "": [1, 2, 3, 40],
    "n=40": [40],
    "n != 40": [1, 2, 3],
    "n>=2 and n<40": [2, 3],
    "n < 2.5": [1, 2],
    "n>2.5": [3, 40],
    "dt=0.3": [2],
    "dt<0.5": [2],
    "dt<=7": [1, 2, 3, 40],
    "label='a b'": [3],
    'label="a b"': [3],
    "label=null": [1, 2, 40],
    "label!=null": [3],
    "custom.git_sha=abc2": [3],
    "custom.step>=2": [3, 40],
    "custom.step=2 AND dt=0.5": [3],
    "created_at>2020-01-01": [1, 2, 3, 40],
    "created_at<2020-01-01T12:00": [],
    "id=nobody": [],
}


def test_find_takes_conditions(runs: list[Any]) -> None:
    """The same rows on both databases."""
    for expression, expected in WHERE.items():
        where = ["--where", expression] if expression else []
        found = told("find", *where)
        assert [one["n"] for one in found] == expected, expression
        assert entropic("find", *where, "--count").stdout.strip() == str(len(expected))


def test_several_conditions_have_all_to_hold(runs: list[Any]) -> None:
    """Each --where narrows."""
    assert [one["n"] for one in told("find", "-w", "n>1", "-w", "n<40")] == [2, 3]


def test_find_sorts_limits_and_chooses_columns(runs: list[Any]) -> None:
    """In the order that is asked for."""
    found = lines("find", "--sort", "-dt,n", "--columns", "n,custom.git_sha,dt", "--limit", "2")
    assert found == [["n", "custom.git_sha", "dt"], ["40", "abc3", "7.0"], ["1", "abc0", "0.5"]]
    by_custom = told("find", "-s", "-custom.step", "-c", "n")
    assert by_custom == [{"n": 40}, {"n": 3}, {"n": 2}, {"n": 1}]


def test_what_is_found_is_as_it_is_stored(runs: list[Any]) -> None:
    """Every column but custom_data, times in ISO 8601."""
    found = told("find", "-w", "n=3")
    assert found == [
        {
            "id": runs[2].id,
            "n": 3,
            "dt": 0.5,
            "label": "a b",
            "created_at": runs[2].created_at.isoformat(),
            "result_file": runs[2].result_file,
        }
    ]


@databases.only_sqlite
def test_a_line_is_a_row_whatever_is_in_it(database: databases.Place) -> None:
    """Tabs, line ends and what a terminal would obey are escaped."""
    with store_of() as store:
        store.run_or_retrieve({"n": 1, "label": "a\tb\nc\x1b[31m"})
    assert lines("find", "-c", "label,n") == [["label", "n"], [r"a\tb\nc\x1b[31m", "1"]]
    assert told("find", "-c", "label") == [{"label": "a\tb\nc\x1b[31m"}]


@databases.only_sqlite
def test_what_is_piped_can_be_read_back(database: databases.Place) -> None:
    """A backslash that was typed is none that escapes."""
    labels = ["a\\tb", "a\tb", "\\", "\\\n"]
    with store_of() as store:
        found = store.sweep([{"n": 1, "label": label} for label in labels])
    cells = [cell for (cell,) in lines("find", "-c", "label")[1:]]
    assert cells == [r"a\\tb", r"a\tb", r"\\", r"\\\n"]
    assert [cell.encode().decode("unicode_escape") for cell in cells] == labels
    assert ["label", r"a\\tb"] in lines("show", found[0].id)


HOSTILE = "a\u2028b\u202ec\x9b31m"


@databases.only_sqlite
def test_what_a_terminal_would_obey_is_never_printed(database: databases.Place) -> None:
    """Line ends of Unicode, turned directions: neither as text, nor in JSON or a message."""
    with store_of() as store:
        record = store.run_or_retrieve({"n": 1, "label": HOSTILE}, note=HOSTILE)
    assert lines("find", "-c", "label,n") == [["label", "n"], [r"a\u2028b\u202ec\x9b31m", "1"]]
    assert told("find", "-c", "label") == [{"label": HOSTILE}]
    for arguments in (
        ["find", "-c", "label,custom.note"],
        ["find", "--json", "-c", "label"],
        ["show", record.id],
        ["show", record.id, "--json"],
        ["find", "-w", f"label={HOSTILE}", "-m", HOSTILE],
        ["find", "-c", HOSTILE],
    ):
        result = entropic(*arguments)
        printed = result.stdout + result.stderr
        assert all(c.isprintable() or c in "\t\n" for c in printed), (arguments, printed)


def test_show_tells_all_of_one_run(runs: list[Any]) -> None:
    """By its id, or by how that begins."""
    shown = told("show", runs[2].id[:6])
    assert shown["id"] == runs[2].id
    assert shown["parameters"] == {"n": 3, "dt": 0.5, "label": "a b"}
    assert shown["custom_data"] == runs[2].custom_data
    assert shown["found_at"] == runs[2].result_file
    assert shown["size"] == 1
    assert len(shown["digest"]) == 64
    assert ["label", "a b"] in lines("show", runs[2].id)
    Path(runs[2].result_file).unlink()
    assert told("show", runs[2].id)["found_at"] is None


def test_show_says_which_run_is_not_there_or_not_the_only_one(runs: list[Any]) -> None:
    """1 for none, 2 for several."""
    result = entropic("show", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no run 'nobody'" in result.stderr
    assert "several runs" in refused("show", "")


def test_failures_are_listed_with_their_tracebacks_if_asked(runs: list[Any]) -> None:
    """Type, message and params; a line each."""
    (failure,) = told("failures")
    assert failure["type"] == "builtins.ValueError"
    assert failure["message"] == "cannot do\n13"
    assert failure["params"] == {"n": 13, "dt": 0.5, "label": None}
    _, row = lines("failures")
    assert row[3:5] == ["builtins.ValueError", r"cannot do\n13"]
    text = entropic("failures", "--traceback").stdout
    assert 'raise ValueError("cannot do\\n13")' in text
    assert text.startswith(f"{failure['id']} of points (n=13, dt=0.5, label=None)\n")


@databases.only_sqlite
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "-w", "lable=1"], "points has no column 'lable': did you mean 'label'?"),
        (["find", "-c", "id,stpes"], "points has no column 'stpes': it has id, "),
        (["find", "-s", "-creatd_at"], "did you mean 'created_at'?"),
        (["find", "-w", "n"], "expected one of <= >= != <> == < > =, at its end"),
        (["find", "-w", "n=1 or n=2"], "expected 'and' and another condition, or the end, at 'or"),
        (["find", "-w", "n=1; DROP TABLE points"], "expected 'and'"),
        (["find", "-w", "n="], "expected a value"),
        (["find", "-w", "=1"], "expected the name of a column"),
        (["find", "-w", "n=abc"], "points.n is an int and cannot take 'abc'"),
        (["find", "-w", "n<1e300"], "points.n is an int"),
        (["find", "-w", "n=99999999999999999999"], "points.n is an int"),
        (["find", "--limit", "99999999999999999999"], "--limit"),
        (["find", "-w", "label=\udcff"], "no UTF-8"),
        (["show", "\udcff"], "no UTF-8"),
        (["find", "-w", "n=1.5"], "n is a whole number, and 1.5 is none"),
        (["find", "-w", "custom_data='{}'"], "custom_data is compared by its keys"),
        (["find", "-w", "custom_data!=1"], "custom_data is compared by its keys"),
        (["find", "-w", "created_at>9999-12-31T23:59:59-10:00"], "created_at is a time"),
        (["find", "--columns", ""], "--columns names no column"),
        (["find", "--sort", " , "], "--sort names no column"),
        (["export", "--columns", ""], "--columns names no column"),
        (["gc", "--keep-size", "9" * 400 + "B"], "--keep-size is more than can be counted: 999"),
        (["gc", "--older-than", "9" * 400 + "d"], "--older-than is more than can be counted"),
        (["find", "-w", "n<null"], "n < null is true of no row"),
        (["find", "-w", "created_at>soon"], "created_at is a time, such as 2026-01-31"),
        (["find", "-w", "custom.step<true"], "cannot be less or more than True"),
        (["find", "--model", "pionts"], "no model 'pionts': did you mean 'points'?"),
        (["find", "--limit", "-1"], "--limit"),
        (["find", "--nonsense"], "No such option: --nonsense"),
        (["gc"], "gc needs to be told what may go"),
        (["gc", "--older-than", "30"], "--older-than is a number and a unit"),
        (["gc", "--keep-size", "much"], "--keep-size is a number and a unit"),
        (["gc", "--older-than", "1d", "--results-dir", "nowhere"], "'nowhere' is no folder"),
        (["delete"], "delete needs ids, or --where"),
        (["delete", "../x"], "must be 1 to 64 letters"),
        (["export", "-f", "parquet"], "say where to with --output"),
        (["export", "-f", "hdf"], "hdf"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    runs: list[Any], arguments: list[str], message: str
) -> None:
    """With the nearest name where there is one; never a traceback."""
    assert message in refused(*arguments)


def test_a_database_that_is_not_there_is_not_made(folder: Path) -> None:
    """Nor one that is of something else, or of nothing."""
    Path("text").write_text("x" * 2000)
    shutil.copy(OLD / databases.PATH, "other.sqlite3")
    for db, code, message in (
        ("nowhere.sqlite3", 2, "there is no database"),
        ("sqlite://", 2, "in memory"),
        ("mysql://host/x", 2, "cannot use"),
        ("text", 3, "is no SQLite database"),
    ):
        result = entropic("ls", db=db)
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["other.sqlite3", "text"]


def test_no_password_is_shown() -> None:
    """Neither in the URL's user part nor in its query."""
    for url in (
        "postgresql://me:secret@127.0.0.1:1/x",
        "postgresql://127.0.0.1:1/x?password=secret",
    ):
        result = entropic("ls", db=url)
        assert result.exit_code == 3
        assert "secret" not in result.stdout + result.stderr


@databases.only_postgresql
def test_who_may_only_read_can_read(runs: list[Any]) -> None:
    """A role without any right to write; what it may not do is told in a line."""
    role = f"reader_{os.getpid()}"
    databases.change(
        f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    )
    url = sa.make_url(databases.url())
    # As a server in a socket's folder knows its users.
    db = url.set(username=role).render_as_string(hide_password=False)
    try:
        assert [one["n"] for one in told("find", db=db)] == [1, 2, 3, 40]
        assert told("ls", db=db)[0]["runs"] == 4
        assert entropic("verify", db=db).exit_code == 0
        result = entropic("delete", runs[0].id, "--yes", db=db)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "permission denied" in result.stderr
    finally:
        databases.change(f"DROP OWNED BY {role}; DROP ROLE {role}")


@databases.only_postgresql
@pytest.mark.usefixtures("database")
def test_times_without_a_zone_can_be_asked_for() -> None:
    """As a table that others made has them, and so had those of entropic 2."""
    databases.change(
        "CREATE TABLE odd (id VARCHAR PRIMARY KEY, result_file VARCHAR NOT NULL,"
        " created_at TIMESTAMP NOT NULL, custom_data JSON NOT NULL, at TIMESTAMP, tags TEXT[]);"
        "INSERT INTO odd VALUES ('a', 'r/a.npy', '2026-01-31', '{}', '2026-01-31', ARRAY['b'])"
    )
    for where, count in (
        ("at>2026-01-01", 1),
        ("at=2026-01-31", 1),
        ("at<2026-01-01", 0),
        ("created_at>2026-01-01", 1),
        ("tags='[\"b\"]'", 1),
    ):
        assert told("find", "-w", where, "--count") == count, where


@databases.only_sqlite
def test_what_a_crash_left_in_the_middle_is_undone_by_who_writes(runs: list[Any]) -> None:
    """Who reads says what to do, and changes nothing."""
    command = process("-c", MIDDLE, databases.PATH)
    assert command.wait(30) == -signal.SIGKILL
    assert Path(f"{databases.PATH}-journal").exists()
    before = everything(Path())
    for arguments in (["ls"], ["gc", "--older-than", "1d"]):
        result = entropic(*arguments, db=databases.PATH)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "in the middle of a transaction" in result.stderr
        assert "entropic recover --yes" in result.stderr
    assert everything(Path()) == before
    assert entropic("recover", "--yes", db=databases.PATH).exit_code == 0
    assert [one["n"] for one in told("find")] == [1, 2, 3, 40]


MIDDLE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = DELETE")
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE points SET n = n + 1, label = hex(randomblob(50000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


@databases.only_sqlite
def test_a_table_that_can_be_no_model_is_left_out(runs: list[Any]) -> None:
    """What others have in the database stops no command."""
    databases.change(
        "CREATE TABLE r (id TEXT PRIMARY KEY, created_at, result_file, custom_data, n)"
    )
    assert len(told("find")) == 4
    assert entropic("verify").exit_code == 0
    result = entropic("ls", "--json")
    assert [one["model"] for one in json.loads(result.stdout)] == ["points"]
    assert "the table 'r' is left out: no type is known of 'created_at', " in result.stderr


@databases.only_sqlite
def test_a_table_that_cannot_be_changed_says_what_it_has(database: databases.Place) -> None:
    """There is no model that could be changed back."""
    databases.change(
        "CREATE TABLE t (id VARCHAR(16) PRIMARY KEY, created_at DATETIME NOT NULL,"
        " result_file VARCHAR NOT NULL, custom_data JSON NOT NULL, v NUMERIC(10, 2) NOT NULL);"
        "INSERT INTO t VALUES ('abc', '2026-01-01', 'r/abc.npy', '{}', 1.25)"
    )
    result = entropic("delete", "abc", "--yes")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "t.v is NUMERIC(10, 2)" in result.stderr
    assert "by your own store or with SQL" in result.stderr
    assert "change the model" not in result.stderr
    assert len(told("find")) == 1


@databases.only_sqlite
def test_a_locked_database_is_waited_for_as_long_as_is_said(runs: list[Any]) -> None:
    """3 after that; one that somebody may be about to write is read."""
    with holding(databases.PATH, "BEGIN IMMEDIATE"):
        assert len(told("find")) == 4
    with holding(databases.PATH, "BEGIN EXCLUSIVE"):
        result = entropic("ls", "--lock-timeout", "0.05")
    assert result.exit_code == 3
    assert "stayed locked" in result.stderr


def problems(*arguments: str) -> dict[str, str | None]:
    """What verify finds, by kind, with the ids; its code says whether it found anything."""
    result = entropic("verify", "--json", *arguments)
    found = json.loads(result.stdout)
    assert result.exit_code == bool(found)
    return {one["problem"]: one["id"] for one in found}


def test_verify_finds_what_is_not_as_it_was_stored(runs: list[Any]) -> None:
    """A result that is gone, of another size, with another content; files without a row."""
    assert problems() == {}
    assert entropic("verify").stdout == ""
    gone, longer, other, _ = (Path(record.result_file) for record in runs)
    gone.unlink()
    longer.write_text("longer")
    other.write_text("x")
    Path("results/of somebody.txt").write_text("x")
    with store_of() as store:
        store.delete({"n": 40, "dt": 7})
    before = everything(Path())
    assert problems() == {
        "missing": runs[0].id,
        "size": runs[1].id,
        "digest": runs[2].id,
        "orphan": runs[3].id,
        "stray": None,
    }
    assert "digest" not in problems("--no-digests")
    head, *rows = [line.split("\t") for line in entropic("verify").stdout.splitlines()]
    assert head == ["problem", "id", "model", "path", "told"]
    assert ["missing", runs[0].id, "points", runs[0].result_file] in [row[:4] for row in rows]
    assert everything(Path()) == before


@databases.only_sqlite
def test_what_another_model_has_in_the_folder_is_no_stray(runs: list[Any]) -> None:
    """Whichever of them is asked about."""
    with store_of(model("others", x=float)) as store:
        store.run_or_retrieve({"x": 1})
    assert problems() == {}
    assert problems("--model", "points") == {}


@databases.only_sqlite
def test_orphans_are_found_where_no_row_is_left(runs: list[Any]) -> None:
    """By their names, which the bookkeeping still has."""
    with store_of() as store:
        for record in runs:
            store.delete(hash=record.id)
    assert set(problems()) == {"orphan"}
    assert len(told("gc", "--orphans", "--yes")["removed"]) == 4
    assert problems() == {}


@databases.only_sqlite
def test_results_are_found_from_elsewhere(
    runs: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the database, where it is not used from where it was; else they are asked for."""
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    db = str(folder / databases.PATH)
    assert entropic("verify", db=db).exit_code == 0
    (folder / "results").rename(folder / "moved")
    assert "say --results-dir" in refused("verify", db=db)
    assert entropic("verify", "--results-dir", "../moved", db=db).exit_code == 0


@databases.only_sqlite
def test_delete_asks_and_nobody_there_is_no_yes(runs: list[Any]) -> None:
    """Code 2, and nothing is changed."""
    assert "There is nobody to ask: say --yes" in refused("delete", runs[0].id)
    assert len(told("find")) == 4


def test_delete_by_ids_and_by_conditions(runs: list[Any]) -> None:
    """The result stays, unless it is to go, too."""
    assert told("delete", runs[0].id, "--yes") == {"model": "points", "deleted": [runs[0].id]}
    assert Path(runs[0].result_file).exists()
    gone = told("delete", "-w", "n>=3", "--yes", "--remove-file")["deleted"]
    assert sorted(gone) == sorted([runs[2].id, runs[3].id])
    assert not Path(runs[2].result_file).exists()
    assert [one["n"] for one in told("find")] == [2]
    result = entropic("delete", runs[0].id, "--yes")
    assert (result.exit_code, result.stdout) == (1, "")


@databases.only_sqlite
def test_rows_can_go_where_their_folder_is_gone(runs: list[Any]) -> None:
    """Nothing is made in its place."""
    shutil.rmtree("results")
    assert "say --results-dir" in refused("delete", runs[0].id, "--yes", "--remove-file")
    assert told("delete", "-w", "n>0", "--yes")["deleted"]
    assert told("find") == []
    assert not Path("results").exists()


def test_gc_lists_and_removes_only_if_told(runs: list[Any]) -> None:
    """What is older, the oldest until all fit, orphans, failures."""
    assert told("gc", "--older-than", "1d")["chosen"] == []
    planned = told("gc", "--keep-size", "3B")
    assert planned["dry_run"]
    assert [one["id"] for one in planned["chosen"]] == [runs[0].id, runs[1].id]
    assert len(told("find")) == 4
    done = told("gc", "--keep-size", "3B", "--failures-older-than", "0s", "--yes")
    assert sorted(done["removed"]) == sorted([runs[0].id, runs[1].id])
    assert done["failures_forgotten"] == 1
    assert told("failures") == []
    assert not Path(runs[0].result_file).exists()
    with store_of() as store:
        store.delete(hash=runs[2].id)
    assert told("gc", "--orphans", "--yes")["removed"] == [runs[2].id]
    assert problems() == {}
    assert [one["n"] for one in told("find")] == [40]


@databases.only_sqlite
def test_recover_stores_what_a_killed_process_had_finished(database: databases.Place) -> None:
    """Without its runner or its model."""
    with store_of(file_suffix=".npy") as store:
        store.run_or_retrieve({"n": 1})
    script = (
        "from pathlib import Path; from tests.test_cli import *; import os, signal\n"
        "from tests.simulations import simulate_and_then, end_process; import functools\n"
        "Store(functools.partial(simulate_and_then, end_process), Point, file_suffix='.npy',"
        f" db_url={databases.url()!r}).run({{'n': 3}})"
    )
    killed = process("-c", script)
    assert killed.wait(60) == -signal.SIGKILL
    assert len(told("find")) == 1
    assert "There is nobody to ask" in refused("recover")
    (recovered,) = told("recover", "--yes")
    _, found = told("find")
    assert recovered == {"model": "points", "stored": [found["id"]], "discarded": [], "strays": []}
    assert found["n"] == 3
    assert problems() == {}


@databases.only_sqlite
def test_recover_stores_nothing_whose_type_only_python_knows(database: databases.Place) -> None:
    """Nor what nothing is known of yet: 90 degrees would be kept as 90 radians."""
    with store_of(model(angle=(float, lambda: mapped_column(Degrees)))) as store:
        assert "open your own store" in refused("recover", "--yes", "--results-dir", "results")
        store.run_or_retrieve({"angle": 90})
    assert "open your own store" in refused("recover", "--yes")


@databases.only_sqlite
def test_export_writes_whole_rows(runs: list[Any]) -> None:
    """CSV and JSON to the output or a file, Parquet to a file."""
    rows = list(csv.DictReader(entropic("export").stdout.splitlines()))
    assert [row["n"] for row in rows] == ["1", "2", "3", "40"]
    assert float(rows[1]["dt"]) == 0.1 + 0.2
    assert json.loads(rows[2]["custom_data"]) == runs[2].custom_data
    found = json.loads(entropic("export", "-f", "json", "-w", "n=3").stdout)
    assert found[0]["custom_data"] == runs[2].custom_data
    assert entropic("export", "-f", "parquet", "-o", "runs.parquet").exit_code == 0
    frame = pl.read_parquet("runs.parquet")
    assert frame["n"].to_list() == [1, 2, 3, 40]
    assert frame["dt"].dtype == pl.Float64
    assert frame["created_at"].to_list()[0] == runs[0].created_at
    assert "is there already" in refused("export", "-f", "parquet", "-o", "runs.parquet")
    assert entropic("export", "-o", "runs.parquet", "--force").exit_code == 0
    assert not [path for path in Path().iterdir() if path.name.startswith(".runs")]


TYPED_PARAMETERS = {
    "n": int,
    "x": float | None,
    "flag": bool | None,
    "label": str | None,
    "moment": datetime | None,
    "day": date | None,
    "options": dict[str, Any],
}


@pytest.mark.usefixtures("database")
def test_a_parquet_file_has_the_columns_of_the_model() -> None:
    """Whichever runs there are, or none: those of to_polars."""
    nothing = {"x": None, "flag": None, "label": None, "moment": None, "day": None}
    one: dict[str, Any] = {"n": 1, **nothing, "options": {}}
    full: dict[str, Any] = {
        "n": 2,
        "x": 0.5,
        "flag": True,
        "label": "a",
        "moment": datetime(2026, 1, 31, tzinfo=UTC),
        "day": date(2026, 1, 31),
        "options": {"a": [1]},
    }
    with store_of(model(**TYPED_PARAMETERS)) as store:
        store.sweep([one, full])
        expected = store.to_polars()
    wheres = {"n>5": 0, "n=1": 1, "n=2": 1, "n>0": 2}
    for number, (where, count) in enumerate(wheres.items()):
        assert entropic("export", "-f", "parquet", "-o", f"{number}", "-w", where).exit_code == 0
        frame = pl.read_parquet(f"{number}")
        assert (frame.height, dict(frame.schema)) == (count, dict(expected.schema)), where
        assert count < 2 or frame.equals(expected)


@databases.only_sqlite
def test_a_parquet_file_has_a_column_for_each_key_of_custom_data(runs: list[Any]) -> None:
    """All of them, or those that are named; no two columns of one name."""
    assert entropic("export", "-f", "parquet", "-o", "all").exit_code == 0
    frame = pl.read_parquet("all")
    assert frame.columns[-3:] == ["elapsed_seconds", "git_sha", "step"]
    assert frame["step"].to_list() == [0, 1, 2, 3]
    some = ["-c", "n,custom.step,custom.none,created_at"]
    assert entropic("export", "-f", "parquet", "-o", "some", *some).exit_code == 0
    frame = pl.read_parquet("some")
    assert frame.columns == ["n", "custom.step", "custom.none", "created_at"]
    assert frame.dtypes[:2] == [pl.Int64(), pl.Int64()]
    assert frame["custom.none"].to_list() == [None] * 4
    twice = refused("export", "-f", "parquet", "-o", "twice", "-c", "n,n")
    assert "two columns are called 'n'" in twice
    assert not Path("twice").exists()


@databases.only_sqlite
def test_custom_data_that_others_wrote_stop_no_command(runs: list[Any]) -> None:
    """They need be no dict: there is no key then, and JSON and CSV have them whole."""
    databases.change("UPDATE points SET custom_data = '[1]' WHERE n = 1")
    databases.change("UPDATE points SET custom_data = 'null' WHERE n = 2")
    first, second, *_ = json.loads(entropic("export", "-f", "json").stdout)
    assert (first["custom_data"], second["custom_data"]) == ([1], None)
    assert entropic("export", "-f", "parquet", "-o", "all").exit_code == 0
    assert pl.read_parquet("all")["step"].to_list() == [None, None, 2, 3]
    some = ["-c", "custom.step"]
    assert entropic("export", "-f", "parquet", "-o", "some", *some).exit_code == 0
    assert pl.read_parquet("some")["custom.step"].to_list() == [None, None, 2, 3]


def test_a_database_of_entropic_2_is_read_as_it_is(folder: Path) -> None:
    """Nothing is changed; a deletion makes what it needs."""
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    before = everything(folder)
    db = databases.PATH
    assert [(one["model"], one["runs"]) for one in told("ls", db=db)] == [
        ("labelled", 4),
        ("results", 8),
    ]
    found = told("find", "-m", "results", "-w", "custom.git_sha=abc123", db=db)
    assert [one["steps"] for one in found] == [10]
    assert told("show", found[0]["id"], db=db)["found_at"] == found[0]["result_file"]
    assert json.loads(entropic("export", "-f", "json", "-m", "labelled", db=db).stdout)
    assert told("failures", db=db) == []
    assert entropic("verify", db=db).exit_code == 0
    assert everything(folder) == before
    gone = told("delete", found[0]["id"], "--yes", "--remove-file", db=db)
    assert gone == {"model": "results", "deleted": [found[0]["id"]]}
    assert len(told("find", "-m", "results", db=db)) == 7


@databases.only_sqlite
def test_a_column_that_is_called_as_no_attribute_can_be(database: databases.Place) -> None:
    """By the name of its parameter, or its own."""
    with store_of(model(alpha=(float, lambda: mapped_column("metadata")), n=int)) as store:
        store.run_or_retrieve({"alpha": 0.5, "n": 1})
    assert told("find", "-c", "alpha") == [{"alpha": 0.5}]
    assert told("find", "-w", "metadata=0.5", "-c", "n") == [{"n": 1}]


def process(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    """A Python of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen([sys.executable, *arguments], env=environment, **options)


PIPE = subprocess.PIPE


@databases.only_sqlite
def test_a_reader_that_has_gone_makes_no_noise(database: databases.Place) -> None:
    """As of `entropic find | head -1`; 141 says so."""
    with store_of() as store:
        store.sweep({"n": n, "label": "x" * 1000} for n in range(100, 220))
    command = process("-m", "entropic", "find", "--db", databases.PATH, stdout=PIPE, stderr=PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.read(10)
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait(30) == 141


@databases.only_sqlite
def test_an_interrupt_ends_with_130_and_no_traceback(runs: list[Any]) -> None:
    """While it waits for a lock."""
    source = (
        "import signal, sys, threading, os\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from entropic.cli import reading\n"
        "from entropic.__main__ import main\n"
        "import entropic.cli.app, entropic.database.sqlite\n"
        "print('ready', flush=True)\n"
        f"sys.argv[1:] = ['ls', '--db', {databases.PATH!r}, '--lock-timeout', '60']\n"
        "main()\n"
    )
    with holding(databases.PATH, "BEGIN EXCLUSIVE"):
        command = process("-c", source, stdout=PIPE, stderr=PIPE)
        assert command.stdout is not None
        command.stdout.readline()
        wait_for(lambda: databases.PATH in files_of(command.pid))
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate()
    assert (command.returncode, errors) == (130, b"")


@databases.only_sqlite
@pytest.mark.parametrize("arguments", [["delete", "-w", "n>0"], ["recover"]])
def test_an_interrupt_ends_a_question_at_once(runs: list[Any], arguments: list[str]) -> None:
    """With 130, and nothing is changed."""
    ours, theirs = pty.openpty()
    command = process(
        *("-m", "entropic", *arguments, "--db", databases.PATH),
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        text = b""
        while b"[y/N]" not in text:
            text += os.read(ours, 1000)
        assert interrupted(command) == 130
    finally:
        command.kill()
        command.wait()
        os.close(ours)
    assert len(told("find")) == 4


def interrupted(command: subprocess.Popen[bytes]) -> int:
    """The exit code after Ctrl-C; again, as a person does, where it came just before the reading.

    Python then learns of it, and the system call does not.
    """
    for _ in range(10):
        command.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return command.wait(3)
    return command.wait(1)


def files_of(pid: int) -> set[str]:
    """The names of the files that a process has open."""
    links = Path(f"/proc/{pid}/fd")
    return {os.path.basename(os.readlink(links / fd)) for fd in os.listdir(links)}


def test_without_the_extra_it_says_what_to_install() -> None:
    """With code 2; and the library itself needs none of it."""
    source = (
        "import sys; sys.modules['typer'] = None; import runpy; sys.argv = ['entropic', 'ls'];"
        "runpy.run_module('entropic', run_name='__main__')"
    )
    command = process("-c", source, stdout=PIPE, stderr=PIPE)
    output, errors = command.communicate(timeout=30)
    assert (command.returncode, output) == (2, b"")
    assert errors == b"entropic: the command line needs pip install 'entropic[cli]'\n"


def test_the_library_loads_none_of_it() -> None:
    """Neither typer nor rich."""
    source = (
        "import sys; from entropic import Store, Base, AsyncStore;"
        "print([m for m in ('typer', 'rich') if m in sys.modules])"
    )
    command = process("-c", source, stdout=PIPE)
    assert command.communicate(timeout=30)[0].strip() == b"[]"


@databases.only_sqlite
def test_a_closed_output_is_said(runs: list[Any]) -> None:
    """In a line, with code 2; nor does a closed input ask anybody."""
    shell = f"{sys.executable} -m entropic"
    for line, message in (
        (f"{shell} find --db {databases.PATH} >&-", b"the output is closed"),
        (f"{shell} delete -w 'n>0' --db {databases.PATH} <&-", b"There is nobody to ask"),
        (f"{shell} find --db {databases.PATH} >&- 2>&-", b""),
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            ["sh", "-c", line], env=environment, capture_output=True, check=False
        )
        assert ended.returncode == 2
        assert message in ended.stderr
        assert b"Traceback" not in ended.stderr


@databases.only_sqlite
def test_a_narrow_terminal_gets_fewer_columns(runs: list[Any]) -> None:
    """From the left, none of them cut to nothing; what is left out is named."""
    shown = on_a_terminal("-m", "entropic", "find", "--db", databases.PATH, columns=40)
    assert all(len(line) <= 40 for line in shown[:-1])
    assert shown[0].split() == ["id", "n", "dt", "label"]
    assert any(line.startswith(runs[0].id) for line in shown)
    assert shown[-1] == "the terminal is too narrow for 2 more: created_at, result_file"


@databases.only_sqlite
def test_a_terminal_gets_a_table_that_fits(runs: list[Any]) -> None:
    """Ids are whole; no line is longer than the terminal is wide."""
    shown = on_a_terminal("-m", "entropic", "find", "--db", databases.PATH, columns=60)
    assert all(len(line) <= 60 for line in shown)
    assert any(line.startswith(runs[0].id) for line in shown)
    assert any("0.3 " in line for line in shown)


PAGE = ROOT / "docs" / "how-to" / "command-line.md"

TYPED = """
import os, shlex, sys
from entropic.cli.app import app

for line in sys.argv[1:]:
    print(f"$ {line}", flush=True)
    program, *arguments = shlex.split(line)
    if program == "rm":
        os.remove(*arguments)
        continue
    try:
        app(arguments, prog_name="entropic")
    except SystemExit:
        pass
    sys.stderr.flush()
"""


def test_the_page_shows_what_is_printed(folder: Path) -> None:
    """Each console block of it, as a terminal of 100 columns shows it."""
    page = PAGE.read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```console\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    shown = [line for block in blocks[1:] for line in block.splitlines()]
    typed = [line.removeprefix("$ ") for line in shown if line.startswith("$ ")]
    assert process("-c", program).wait(60) == 0
    printed = on_a_terminal("-c", TYPED, *typed, columns=100)
    assert [same(line) for line in printed] == [same(line) for line in shown]


def same(line: str) -> str:
    """A line without what differs from time to time, and from machine to machine."""
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME", line)
    line = re.sub(r"(elapsed_seconds\S*|time saved) +[0-9.e-]+", r"\1 SECONDS", line)
    return re.sub(r"^host .*", "host", line).rstrip()


def on_a_terminal(*arguments: str, columns: int) -> list[str]:
    """The lines that a terminal shows of a Python, without its colours."""
    ours, theirs = pty.openpty()
    environment = {"COLUMNS": str(columns), "TERM": "xterm"}
    command = process(*arguments, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    text = b""
    while True:
        try:
            read = os.read(ours, 1000)
        except OSError:  # nobody has the other end any more
            break
        if not read:
            break
        text += read
    os.close(ours)
    assert command.wait(30) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()


@given(st.text())
def test_any_text_is_conditions_or_told_to_be_none(expression: str) -> None:
    """Nothing else is raised, and nothing executed."""
    with suppress(UsageError):
        assert parsed(expression)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z_.]{1,8}", fullmatch=True),
            st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
            st.text(),
        ),
        min_size=1,
    )
)
def test_conditions_are_read_as_they_are_written(conditions: list[tuple[str, str, str]]) -> None:
    """Whatever text is in the quotes."""
    quoted = [
        f"{name}{sign}'{text.replace(chr(39), chr(39) * 2)}'" for name, sign, text in conditions
    ]
    expected = [Condition(name, sign, text, is_quoted=True) for name, sign, text in conditions]
    assert parsed(" and ".join(quoted)) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5e3", -1500.0),
        ("true", True),
        ("NULL", None),
        ("abc-1", "abc-1"),
        ("'1'", "1"),
    ],
)
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    """A text in quotes is one, whatever it looks like."""
    (condition,) = parsed(f"x = {text}")
    assert condition.value == value
    assert type(condition.value) is type(value)


@given(st.lists(st.integers(1, 300), min_size=1), st.integers(20, 300))
def test_a_table_is_as_wide_as_it_may_be(needed: list[int], most: int) -> None:
    """No column gets more than it needs, the first what it needs, and together they fit."""
    given_widths = widths(needed, most)
    assert given_widths[0] == needed[0]
    assert all(1 <= one <= need for one, need in zip(given_widths, needed, strict=True))
    if sum(needed) <= most:
        assert given_widths == needed
    elif needed[0] + len(needed) - 1 <= most:
        assert sum(given_widths) == most
