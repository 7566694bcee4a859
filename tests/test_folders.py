"""Where results are found: folders gone, moved, shared, planted with links or not writable."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropic import (
    AsyncStore,
    Base,
    Mapped,
    ParamsError,
    Recovered,
    ResultMissingError,
    ResultsDirError,
    SettingsError,
    Store,
    mapped_column,
)
from tests import databases
from tests.conftest import KINDS
from tests.simulations import Point, calls, mark_call, simulate

pytestmark = pytest.mark.usefixtures("database")


class Other(Base):
    """Another model whose runs have the same ids."""

    __tablename__ = "others"

    n: Mapped[int]
    dt: Mapped[float] = mapped_column(default=0.5)
    label: Mapped[str | None]


@pytest.fixture(autouse=True)
def calls_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are counted wherever the working directory is."""
    monkeypatch.setenv("ENTROPIC_TEST_CALLS", str(folder / "calls"))


def names(path: str | Path = "results") -> list[str]:
    """What a results folder shows."""
    return sorted(name for name in os.listdir(path) if name != ".entropic")


def bookkeeping() -> list[tuple[Any, ...]]:
    """Model, id and name of each published result."""
    return databases.ask("SELECT model, id, result_name FROM entropic_runs ORDER BY model, id")


def content(record: Any) -> list[float]:
    """What ``simulate`` wrote."""
    values: list[float] = np.load(record.result_file).tolist()
    return values


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").touch()


def _become_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


LOSSES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut-short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a-folder": _become_a_folder,
    "a-dangling-link": _become_a_dangling_link,
}


def test_a_result_in_another_folder_goes_with_its_row_be_it_whole_or_not(
    make_store: Callable[..., Any],
) -> None:
    """As one in this folder does."""
    (whole, cut) = make_store(results_dir="b").sweep([{"n": 1}, {"n": 2}])
    os.truncate(cut.result_file, 3)
    store = make_store(results_dir="a")
    for record in (whole, cut):
        assert store.delete(hash=record.id, remove_file=True)
    assert names("b") == []


def test_what_is_deleted_while_its_folder_is_away_is_known_when_that_is_back(
    make_store: Callable[..., Any],
) -> None:
    """The name in that folder stays the run's own, so that the file is not left to nobody."""
    with make_store(results_dir="b") as store:
        record = store.run_or_retrieve({"n": 1})
    os.rename("b", "away")
    assert make_store(results_dir="a").delete(hash=record.id, remove_file=True)
    assert [name for _, _, name in bookkeeping()] == [f"{record.id}.npy"]
    os.rename("away", "b")
    store = make_store(results_dir="b")
    assert store.recover().strays == (f"b/{record.id}.npy",)
    assert store.run_or_retrieve({"n": 1}).result_file == f"b/{record.id}.npy"


@databases.either
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_result_that_is_not_what_it_was_is_a_miss(
    make_store: Callable[..., Any], loss: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and runs again, under the same name; its row's created_at stays."""
    store = make_store(kind)
    record, kept = store.sweep([{"n": 3}, {"n": 4}])
    LOSSES[loss](Path(record.result_file))
    assert store.retrieve({"n": 3}) is None
    (warning,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert record.id in warning.getMessage()
    assert record.result_file in warning.getMessage()
    again, hit = store.sweep([{"n": 3}, {"n": 4}])
    assert (again.result_file, again.created_at) == (record.result_file, record.created_at)
    assert content(again) == [3.0, 0.5]
    assert hit.result_file == kept.result_file
    assert (calls(record.id), calls(kept.id)) == (2, 1)
    assert names() == sorted(Path(r.result_file).name for r in (again, hit))


def test_a_moved_result_behind_a_link_is_a_hit(make_store: Callable[..., Any]) -> None:
    """Somebody who needs the space moves a large result and leaves a link: that is good."""
    store = make_store()
    record = store.run_or_retrieve({"n": 3})
    shutil.move(record.result_file, "elsewhere.npy")
    Path(record.result_file).symlink_to(Path("elsewhere.npy").absolute())
    assert content(store.run_or_retrieve({"n": 3})) == [3.0, 0.5]
    assert calls() == 1


@pytest.mark.parametrize("kind", ["store", "async-threads"])
@pytest.mark.parametrize("case", ["moved", "misspelled", "unmounted", "open"])
def test_a_results_folder_that_is_gone_is_no_thousand_misses(
    folder: Path,
    make_store: Callable[..., Any],
    case: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is an error that says so, for each kind of request; nothing is run again."""
    store = make_store(kind)
    records = store.sweep({"n": n} for n in range(5))
    if case != "open":
        store.close()
    if case == "misspelled":  # relative to a directory that is not the one that was meant
        (folder / "other").mkdir()
        monkeypatch.chdir(folder / "other")
    else:
        os.rename("results", "elsewhere")
    if case == "unmounted":
        os.mkdir("results")
    again = (
        store if case == "open" else make_store(kind, db_url=databases.current().url_from(folder))
    )
    for request in (
        lambda: again.run_or_retrieve({"n": 3}),
        lambda: again.retrieve({"n": 3}),
        lambda: again.sweep({"n": n} for n in range(5)),
    ):
        with pytest.raises(ResultsDirError, match="mount it") as caught:
            request()
        assert "'./results'" in str(caught.value)
    assert calls() == len(records)
    monkeypatch.chdir(folder)
    if case != "misspelled":
        shutil.rmtree("results", ignore_errors=True)
        os.rename("elsewhere", "results")
    good = make_store(kind)
    assert [content(r) for r in good.sweep({"n": n} for n in range(5))] == [
        [float(n), 0.5] for n in range(5)
    ]
    assert calls() == len(records)


def test_rows_of_a_folder_that_is_gone_for_good_can_be_deleted(
    make_store: Callable[..., Any],
) -> None:
    """As the message says; with ``remove_file``, too."""
    make_store().sweep([{"n": 1}, {"n": 2}])
    os.rename("results", "elsewhere")
    store = make_store(results_dir="new")
    assert store.delete({"n": 1})
    assert store.delete({"n": 2}, remove_file=True)
    assert store.run_or_retrieve({"n": 1}).result_file.startswith("new/")
    assert calls() == 3


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("what", ["results", "results/.entropic"])
def test_an_older_result_is_not_taken_for_that_of_a_folder_that_is_gone(
    make_store: Callable[..., Any], what: str, checksum: bool
) -> None:
    """Another store has run the set again, into another folder; ours still has its own result."""

    def run(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text(text)

    text = "old"
    ours = make_store(runner=run, results_dir="ours", checksum=checksum)
    os.utime(ours.run({"n": 1}).result_file, (1e9, 1e9))
    text = "new"
    make_store(runner=run, results_dir="results", checksum=checksum).run({"n": 1})
    os.rename(what, "away")
    if what == "results":
        with pytest.raises(ResultsDirError, match="mount it"):
            ours.run_or_retrieve({"n": 1})
        os.rename("away", what)
    assert Path(ours.run_or_retrieve({"n": 1}).result_file).read_text() == "new"


def test_a_file_registered_under_the_runs_own_name_is_not_replaced(
    make_store: Callable[..., Any],
) -> None:
    """It is the user's from then on; a later run gets another name."""
    store = make_store()
    path = Path(store.run({"n": 1}).result_file)
    path.write_bytes(b"made elsewhere")
    store.register({"n": 1}, path)
    again = store.run({"n": 1})
    assert path.read_bytes() == b"made elsewhere"
    assert Path(again.result_file).name == f"{again.id}.1.npy"
    assert np.load(store.retrieve({"n": 1}).result_file).tolist() == [1.0, 0.5]
    assert store.delete({"n": 1}, remove_file=True)
    assert path.read_bytes() == b"made elsewhere"


def test_what_is_a_hit_is_no_stray(make_store: Callable[..., Any]) -> None:
    """A folder that was copied without its hidden corner."""
    record = make_store().run({"n": 1})
    shutil.rmtree("results/.entropic")
    store = make_store()
    assert store.retrieve({"n": 1}).id == record.id
    assert store.recover() == Recovered()
    Path("results/stray.npy").touch()
    assert [Path(p).name for p in store.recover().strays] == ["stray.npy"]


def test_a_moved_folder_is_found_under_its_new_name(make_store: Callable[..., Any]) -> None:
    """The database knows the folder, not its path; a copy without the hidden corner will do."""
    records = make_store().sweep({"n": n} for n in range(3))
    os.rename("results", "moved")
    moved = make_store(results_dir="moved")
    assert [r.result_file for r in moved.sweep({"n": n} for n in range(3))] == [
        f"moved/{r.id}.npy" for r in records
    ]
    os.mkdir("copy")
    for name in names("moved"):
        shutil.copy(f"moved/{name}", "copy")
    shutil.rmtree("moved")
    copied = make_store(results_dir="copy")
    assert [content(r) for r in copied.sweep({"n": n} for n in range(3))] == [
        [float(n), 0.5] for n in range(3)
    ]
    assert calls() == 3
    os.unlink(f"copy/{records[0].id}.npy")
    with pytest.raises(ResultsDirError, match="delete their rows"):
        copied.run_or_retrieve({"n": 0})


@databases.either
@pytest.mark.parametrize(
    "spelled",
    [
        "results",
        "./results/",
        "./results/../results",
        "../here/results",
        Path("results"),
        Path("results").absolute,
        "link",
        "link/inner",
    ],
    ids=str,
)
def test_a_store_gives_paths_as_its_results_dir_is_spelled(
    folder: Path, make_store: Callable[..., Any], spelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the spelling, it finds what another one has stored, and runs nothing again."""
    here = folder / "here"
    (here / "results").mkdir(parents=True)
    monkeypatch.chdir(here)
    if spelled == "link":
        Path("link").symlink_to("results")
    elif spelled == "link/inner":
        Path("link").symlink_to(folder)
        (folder / "inner").symlink_to(here / "results")
    spelled = spelled() if callable(spelled) else spelled
    first = make_store().run_or_retrieve({"n": 3})
    store = make_store(results_dir=spelled)
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == os.path.join(spelled, f"{first.id}.npy")
    assert content(record) == [3.0, 0.5]
    new = store.run_or_retrieve({"n": 4})
    assert new.result_file == os.path.join(spelled, f"{new.id}.npy")
    assert calls() == 2
    assert content(make_store().run_or_retrieve({"n": 4})) == [4.0, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_in_another_working_directory_gives_paths_that_work_there(
    folder: Path, make_store: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows hold the path as it was spelled; a store elsewhere finds the file through its own."""
    first = make_store(kind).run_or_retrieve({"n": 3})
    assert first.result_file.startswith("./results/")
    elsewhere = folder / "deep" / "er"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    settings = {"db_url": databases.current().url_from("../.."), "results_dir": "../../results"}
    store = make_store(kind, **settings)
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == f"../../results/{first.id}.npy"
    assert content(record) == [3.0, 0.5]
    assert store.delete({"n": 3}, remove_file=True)
    assert names(folder / "results") == []


def test_a_store_stays_with_its_folder_when_the_directory_changes(
    folder: Path, make_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means the directory in which the store was made, not a later one."""
    store = make_store()
    other = folder / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    store.run_or_retrieve({"n": 3})
    assert os.listdir(other) == []
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == str(folder / "results" / f"{record.id}.npy")
    assert content(record) == [3.0, 0.5]
    monkeypatch.chdir(folder)
    assert store.run_or_retrieve({"n": 3}).result_file == f"./results/{record.id}.npy"
    assert calls() == 1


def test_two_models_share_a_folder(make_store: Callable[..., Any]) -> None:
    """Equal ids, two results: the second one's name has a number, and its record says so."""
    one = make_store().run_or_retrieve({"n": 3})
    two = make_store(result_cls=Other).run_or_retrieve({"n": 3})
    assert two.id == one.id
    assert one.result_file == f"./results/{one.id}.npy"
    assert two.result_file == f"./results/{one.id}.1.npy"
    assert calls() == 2
    assert bookkeeping() == [
        ("others", one.id, f"{one.id}.1.npy"),
        ("points", one.id, f"{one.id}.npy"),
    ]
    # Each keeps to its own name, in hits and re-runs and when it is removed.
    other = make_store(result_cls=Other)
    assert other.run_or_retrieve({"n": 3}).result_file == two.result_file
    assert other.run({"n": 3}).result_file == two.result_file
    assert other.delete({"n": 3}, remove_file=True)
    assert names() == [f"{one.id}.npy"]
    assert content(make_store().retrieve({"n": 3})) == [3.0, 0.5]


def test_a_second_database_on_a_folder_overwrites_nothing(make_store: Callable[..., Any]) -> None:
    """It cannot know the first one's results, and so leaves every name that is taken."""

    def second(params: dict[str, Any]) -> None:
        simulate({**params, "n": -1})

    one = make_store().run_or_retrieve({"n": 3})
    before = os.stat(one.result_file)
    store = make_store(db_url="sqlite:///second.sqlite3", runner=second)
    for request in (store.run_or_retrieve, store.run, store.run_or_retrieve):
        two = request({"n": 3})
        assert two.result_file == f"./results/{one.id}.1.npy"
        assert content(two) == [-1.0, 0.5]
    after = os.stat(one.result_file)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    third = make_store(db_url="sqlite:///third.sqlite3").run_or_retrieve({"n": 3})
    assert third.result_file == f"./results/{one.id}.2.npy"
    assert content(make_store().run_or_retrieve({"n": 3})) == [3.0, 0.5]
    assert len(names()) == 3


def test_a_leftover_under_the_final_name_is_left_alone(make_store: Callable[..., Any]) -> None:
    """A file that no row speaks of, or a link: the result is published beside it."""
    id = make_store(db_url="sqlite://", results_dir="scratch").run_or_retrieve({"n": 3}).id
    os.mkdir("results")
    Path(f"results/{id}.npy").write_bytes(b"precious")
    Path("outside").write_bytes(b"outside")
    Path(f"results/{id}.1.npy").symlink_to(Path("outside").absolute())
    record = make_store().run_or_retrieve({"n": 3})
    assert record.result_file == f"./results/{id}.2.npy"
    assert Path(f"results/{id}.npy").read_bytes() == b"precious"
    assert Path("outside").read_bytes() == b"outside"
    assert Path(f"results/{id}.1.npy").is_symlink()


def test_a_link_planted_over_a_result_is_not_written_through(
    make_store: Callable[..., Any],
) -> None:
    """A re-run replaces the link itself; what it points to stays."""
    store = make_store()
    record = store.run_or_retrieve({"n": 3})
    Path("outside").write_bytes(b"outside")
    os.unlink(record.result_file)
    Path(record.result_file).symlink_to(Path("outside").absolute())
    again = store.run({"n": 3})
    assert again.result_file == record.result_file
    assert not Path(record.result_file).is_symlink()
    assert Path("outside").read_bytes() == b"outside"


def test_two_stores_on_one_database_with_folders_of_their_own(
    make_store: Callable[..., Any],
) -> None:
    """A result is a hit for both, by the path of the folder that holds it."""
    one = make_store(results_dir="one")
    two = make_store(results_dir="two")
    record = one.run_or_retrieve({"n": 3})
    assert record.result_file == f"one/{record.id}.npy"
    assert two.run_or_retrieve({"n": 3}).result_file == record.result_file
    assert two.run_or_retrieve({"n": 4}).result_file.startswith("two/")
    assert one.run_or_retrieve({"n": 4}).result_file.startswith("two/")
    assert calls() == 2
    # Gone from the one folder: the other store runs it, into its own.
    os.unlink(record.result_file)
    assert two.retrieve({"n": 3}) is None
    again = two.run_or_retrieve({"n": 3})
    assert again.result_file == f"two/{record.id}.npy"
    assert one.run_or_retrieve({"n": 3}).result_file == again.result_file
    assert calls() == 3
    assert one.delete({"n": 3}, remove_file=True)
    assert not os.path.exists(again.result_file)


@pytest.mark.parametrize("kind", ["store", "async-threads"])
def test_a_registered_file_is_found_from_anywhere(
    folder: Path, make_store: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relative path is kept; from another directory, the record gives one that works."""
    Path("made.npy").write_bytes(b"made here")
    make_store(kind).register({"n": 3}, "made.npy")
    other = folder / "other"
    other.mkdir()
    (other / "made.npy").write_bytes(b"not this!")
    monkeypatch.chdir(other)
    settings = {"db_url": databases.current().url_from(".."), "results_dir": "../results"}
    record = make_store(kind, **settings).run_or_retrieve({"n": 3})
    assert record.result_file == str(folder / "made.npy")
    assert Path(record.result_file).read_bytes() == b"made here"
    monkeypatch.chdir(folder)
    assert make_store(kind).run_or_retrieve({"n": 3}).result_file == "made.npy"
    assert calls() == 0


def test_a_registered_folder_is_a_hit_and_can_be_removed(make_store: Callable[..., Any]) -> None:
    """A result may be a folder, whoever made it; an empty one is none."""
    store = make_store()
    os.mkdir("made.zarr")
    with pytest.raises(ResultMissingError, match="empty"):
        store.register({"n": 3}, "made.zarr")
    Path("made.zarr/part").write_bytes(b"x")
    store.register({"n": 3}, "made.zarr")
    assert store.run_or_retrieve({"n": 3}).result_file == "made.zarr"
    assert store.delete({"n": 3}, remove_file=True)
    assert not os.path.exists("made.zarr")


def test_a_run_never_replaces_a_registered_file(make_store: Callable[..., Any]) -> None:
    """It is its user's, even where it lies under the run's own name."""
    store = make_store()
    id = make_store(db_url="sqlite://", results_dir="scratch").run_or_retrieve({"n": 3}).id
    os.makedirs("results")
    made = Path(f"results/{id}.npy")
    made.write_bytes(b"made by hand")
    store.register({"n": 3}, f"./results/{id}.npy")
    record = store.run({"n": 3})
    assert record.result_file == f"./results/{id}.1.npy"
    assert made.read_bytes() == b"made by hand"
    assert store.run_or_retrieve({"n": 3}).result_file == record.result_file


@pytest.mark.parametrize("loss", ["gone", "emptied", "cut-short", "grown"])
def test_a_registered_file_that_is_not_what_it_was_is_a_miss(
    make_store: Callable[..., Any], loss: str
) -> None:
    """The set is run, then, into a file of its own."""
    store = make_store()
    Path("made.npy").write_bytes(b"made here")
    store.register({"n": 3}, "made.npy")
    LOSSES[loss](Path("made.npy"))
    assert store.retrieve({"n": 3}) is None
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == f"./results/{record.id}.npy"
    assert content(record) == [3.0, 0.5]


@pytest.mark.parametrize("kind", ["store", "async-threads"])
@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("a-file", "it is a file"),
        ("a-file/below", "a part of the path is a file"),
        ("/proc/nothing/here", "cannot be used"),
        ("dangling", "symbolic link"),
        ("x" * 300, "cannot be used"),
    ],
    ids=["file", "below-a-file", "proc", "dangling-link", "too-long"],
)
def test_a_results_dir_that_cannot_be_one_is_told_before_anything_runs(
    make_store: Callable[..., Any], spelled: str, message: str, kind: str
) -> None:
    """The message names it as it was spelled; the next call tries again."""
    Path("a-file").write_bytes(b"mine")
    Path("dangling").symlink_to("nowhere")
    store = make_store(kind, results_dir=spelled)
    for _ in range(2):
        with pytest.raises(ResultsDirError, match=message) as caught:
            store.run_or_retrieve({"n": 3})
        assert repr(spelled) in str(caught.value)
    assert calls() == 0
    assert Path("a-file").read_bytes() == b"mine"
    if spelled == "a-file":
        os.unlink("a-file")
        assert store.run_or_retrieve({"n": 3}).result_file.startswith("a-file/")


@databases.only_sqlite  # whose URL is a path, too
@pytest.mark.parametrize(
    ("results_dir", "db_url"),
    [
        ("made/when/missing", databases.url()),
        ("with spaces/ünïcödé 結果", "sqlite:///with spaces & ünïcödé.sqlite3"),
        ("100%/#?", "sqlite:///100%25.sqlite3"),
        ("quo'te\"s\n", "sqlite:///quo'te.sqlite3"),
    ],
)
def test_a_path_may_be_any(
    make_store: Callable[..., Any], folder: Path, results_dir: str, db_url: str
) -> None:
    """Nested and missing, with spaces, quotes and letters of any script."""
    store = make_store(results_dir=results_dir, db_url=db_url)
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == f"{results_dir}/{record.id}.npy"
    assert content(record) == [3.0, 0.5]
    again = make_store(results_dir=folder / results_dir, db_url=db_url)
    assert content(again.run_or_retrieve({"n": 3})) == [3.0, 0.5]
    assert calls() == 1


@pytest.mark.parametrize("kind", ["store", "async-threads"])
@pytest.mark.parametrize("planted", [".entropic", ".entropic/staging"])
def test_a_planted_link_in_the_private_corner_is_an_error(
    make_store: Callable[..., Any], folder: Path, planted: str, kind: str
) -> None:
    """Nothing is run, nothing outside is changed; without it, the same store works."""
    outside = folder / "outside"
    (outside / "staging").mkdir(parents=True)
    (outside / "staging" / "precious").write_bytes(b"precious")
    link = folder / "results" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(outside if planted == ".entropic" else outside / "staging")
    store = make_store(kind)
    with pytest.raises(ResultsDirError, match="symbolic link") as caught:
        store.run_or_retrieve({"n": 3})
    assert str(link) in str(caught.value)
    assert calls() == 0
    found = [str(path.relative_to(outside)) for path in sorted(outside.rglob("*"))]
    assert found == ["staging", "staging/precious"]
    link.unlink()
    assert content(store.run_or_retrieve({"n": 3})) == [3.0, 0.5]


@databases.either
@pytest.mark.parametrize(
    "id",
    [
        "../x",
        "a/b",
        "/etc/x",
        "..",
        ".",
        ".hidden",
        "-rf",
        "_x",
        "a\\b",
        "a\0b",
        "a\n",
        "a b",
        "é",
        "",
        "x" * 65,
        7,
        None,
        b"a",
    ],
    ids=repr,
)
def test_an_id_that_could_leave_the_folder_is_refused(
    make_store: Callable[..., Any], folder: Path, id: Any
) -> None:
    """By each method, before anything is run or touched."""
    store = make_store()
    Path("made.npy").write_bytes(b"x")
    for request in (
        lambda: store.run_or_retrieve({"id": id, "n": 3}),
        lambda: store.run({"id": id, "n": 3}),
        lambda: store.retrieve({"id": id}),
        lambda: store.delete({"id": id}, remove_file=True),
        lambda: store.register({"id": id, "n": 3}, "made.npy"),
        lambda: store.sweep([{"id": id, "n": 3}]),
    ):
        with pytest.raises(ParamsError, match="becomes a file's name"):
            request()
    if id is not None:
        with pytest.raises(ParamsError, match="becomes a file's name"):
            store.delete(hash=id, remove_file=True)
    assert calls() == 0
    assert names() == []
    assert sorted({*os.listdir(folder)} - {databases.PATH}) == ["made.npy", "results"]


@databases.either
@pytest.mark.parametrize("id", ["a.files", "a.1", "a..", "A-_.9", "x" * 64, "con", "a.npy"])
@pytest.mark.parametrize("suffix", [".npy", ".tar.gz", "_out", ""])
def test_an_odd_id_names_its_own_file_and_no_other(
    make_store: Callable[..., Any], id: str, suffix: str
) -> None:
    """Beside a run whose names it resembles, with companions of both."""

    def runner(params: dict[str, Any]) -> None:
        mark_call(params)
        path = Path(params["result_file"])
        path.write_text(params["id"])
        path.with_name("log").write_text(params["id"])

    store = make_store(runner=runner, file_suffix=suffix)
    ids = ["a", id]
    for _ in range(2):
        for each in ids:
            store.run({"id": each, "n": 3})
    for each in ids:
        record = store.run_or_retrieve({"id": each, "n": 3})
        assert Path(record.result_file).read_text() == each
        stem = record.result_file.removesuffix(suffix)
        assert Path(f"{stem}.files/log").read_text() == each
    assert calls() == 4
    assert len(names()) == 4
    for left, each in enumerate(ids):
        assert store.delete(hash=each, remove_file=True)
        assert len(names()) == 2 - 2 * left
    assert os.listdir("results/.entropic/staging") == []


@pytest.mark.parametrize("store_class", [Store, AsyncStore])
@pytest.mark.parametrize("suffix", ["/x", "x/", "../x", ".files", "a\0b", None, 5, b".npy"])
def test_a_suffix_that_is_no_end_of_a_name_is_refused(
    store_class: Callable[..., Any], suffix: Any
) -> None:
    """When the store is made; ``.files`` is what companions' folders are called."""
    with pytest.raises(SettingsError, match="file_suffix"):
        store_class(simulate, Point, "./results", suffix)
    assert not os.path.exists("results")


@pytest.mark.parametrize("suffix", ["", ".tar.gz", "_out.npy", ".files.npy", ".é", ". "])
def test_a_suffix_may_be_any_end_of_a_name(make_store: Callable[..., Any], suffix: str) -> None:
    """Empty, of many parts, or without a dot."""
    store = make_store(file_suffix=suffix)
    record = store.run_or_retrieve({"n": 3})
    assert record.result_file == f"./results/{record.id}{suffix}"
    assert content(store.run_or_retrieve({"n": 3})) == [3.0, 0.5]
    assert store.run({"n": 3}).result_file == record.result_file
    assert names() == [f"{record.id}{suffix}"]


def test_a_store_with_another_suffix_finds_what_is_stored(make_store: Callable[..., Any]) -> None:
    """A hit keeps the name that it was published under; a re-run takes the new one."""

    def runner(params: dict[str, Any]) -> None:
        simulate(params)
        Path(params["result_file"]).with_name("log").write_text(str(calls()))

    record = make_store(runner=runner, file_suffix=".npy").run_or_retrieve({"n": 3})
    store = make_store(runner=runner, file_suffix=".dat")
    assert store.run_or_retrieve({"n": 3}).result_file == record.result_file
    assert calls() == 1
    again = store.run({"n": 3})
    assert again.result_file == f"./results/{record.id}.dat"
    assert Path(f"results/{record.id}.files/log").read_text() == "2"
    assert names() == [f"{record.id}.dat", f"{record.id}.files"]
    assert store.delete({"n": 3}, remove_file=True)
    assert names() == []


# Root may write everywhere: a child without that right shows what others see.
UNPRIVILEGED = """
import os, sys
from entropic import Store
from tests.simulations import Point, simulate

def runner(params):
    with open(params["result_file"], "wb") as file:
        file.write(b"result")

def make(results_dir, db_url="sqlite:///runs.sqlite3"):
    return Store(runner, Point, results_dir, ".npy", db_url)

make(sys.argv[1], "sqlite://").run_or_retrieve({"n": 0})  # imports what there is to import
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody can reach and write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path, folders, _ in os.walk(folder):
        for name in folders:
            os.chmod(os.path.join(path, name), 0o777)
    shutil.rmtree(folder)


def run_unprivileged(script: str, folder: Path, tmp_path: Path) -> str:
    """What a script prints that runs without the right to write everywhere."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED + script, str(tmp_path / "scratch")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_that_may_not_be_written_is_told_before_anything_runs(
    open_folder: Path, tmp_path: Path
) -> None:
    """The message names the path, and that it may not be written."""
    closed = open_folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    script = """
for path in ("closed", "closed/below"):
    try:
        make(path).run_or_retrieve({"n": 3})
    except Exception as error:
        print(type(error).__name__, error)
"""
    lines = run_unprivileged(script, open_folder, tmp_path).splitlines()
    assert len(lines) == 2
    for path, line in zip(("closed", "closed/below"), lines, strict=True):
        assert line.startswith(
            f"ResultsDirError the results folder {path!r} cannot be used: it may not be written"
        )
    assert list(closed.iterdir()) == []


def test_a_folder_that_became_read_only_keeps_what_it_has(
    open_folder: Path, tmp_path: Path
) -> None:
    """Hits go on; a finished run stays staged, to be published later; a removal says why not."""
    script = """
store = make("results")
record = store.run_or_retrieve({"n": 3})
os.chmod("results", 0o555)
print(open(store.run_or_retrieve({"n": 3}).result_file).read())
for request in (
    lambda: store.run_or_retrieve({"n": 4}),
    lambda: store.delete({"n": 3}, remove_file=True),
):
    try:
        request()
    except Exception as error:
        print(type(error).__name__, error)
print(store.retrieve({"n": 4}))
(stage,) = os.listdir("results/.entropic/staging")
print(sorted(os.listdir(f"results/.entropic/staging/{stage}"))[0])
print(os.path.exists(record.result_file))
"""
    lines = run_unprivileged(script, open_folder, tmp_path).splitlines()
    assert lines[0] == "result"
    for line in lines[1:3]:
        assert line.startswith("ResultsDirError the results folder 'results' cannot be used")
        assert "it may not be written" in line
    assert lines[3:] == ["None", ".sidecar.json", "True"]
