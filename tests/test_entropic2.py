"""A database and a results folder that entropic 2.3.0 wrote: opened, hit, swept, re-run, deleted.

``tests/make_legacy_database.py`` made them; ``rows.json`` beside them says what is in there.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import JSON

from entropic import Base, Store, expand_grid, mapped_column
from entropic.errors import IdConflictError
from tests.models import model
from tests.outsiders import ask, change
from tests.simulations import calls, mark_call

DATA = Path(__file__).parent / "data" / "entropic2"
ROWS: dict[str, list[dict[str, Any]]] = json.loads((DATA / "rows.json").read_text("utf-8"))
PATH = "runs.sqlite3"


SIM: dict[str, Any] = {"n": int, "steps": int, "dt": float}
LABEL: dict[str, Any] = {"label": str, "amplitude": float | None, "damped": bool}

SimResult = model("results", **SIM)
Labelled = model("labelled", **LABEL, options=(dict[str, Any] | None, mapped_column(JSON)))
# With the column type that entropic 3 gives a dict.
Relabelled = model("labelled", **LABEL, options=dict[str, Any] | None)

MODELS = {"results": [SimResult], "labelled": [Labelled, Relabelled]}

# 2.x hashed dt=1 and dt=1.0 apart: two rows of what is one set now. Asked for, it is the second.
TWIN, KEPT = "0d89f08dddb4bf73", "a4178249ffda2e79"
# Under the id of dt=0.0, by its own rounding.
TINY = "cfcd243c09d34ec7"


@pytest.fixture(autouse=True)
def data(folder: Path) -> None:
    """A copy of the data, as the working directory."""
    shutil.copytree(DATA, folder, dirs_exist_ok=True)


def simulate(params: dict[str, Any]) -> None:
    """Tell which run this is, in the file's content."""
    mark_call(params)
    np.save(params["result_file"], np.array([-1.0]))


@contextmanager
def opened(
    result_cls: type[Base], results_dir: Any = "./results", db: str | Path = PATH
) -> Iterator[Any]:
    """A store as the old one was, and the end of it."""
    with Store(simulate, result_cls, results_dir, ".npy", f"sqlite:///{db}") as store:
        yield store


def legacy(id: str) -> Any:
    """The array that 2.3.0 wrote for an id."""
    return np.random.default_rng(int(id, 16)).standard_normal(8)


def rows() -> list[Any]:
    """A case for each row, under each model of its table."""
    return [
        pytest.param(result_cls, row, id=f"{table}{at}-{row['id']}")
        for table, classes in MODELS.items()
        for at, result_cls in enumerate(classes)
        for row in ROWS[table]
    ]


@pytest.mark.parametrize(("result_cls", "row"), rows())
def test_every_row_is_a_hit(result_cls: type[Base], row: dict[str, Any]) -> None:
    """Under its id and with its file, for the params as they were passed then."""
    with opened(result_cls) as store:
        record = store.run_or_retrieve(row["params"])
        assert record.id == (KEPT if row["id"] == TWIN else row["id"])
        assert store.retrieve(row["params"]).id == record.id
        own = store.retrieve({"id": row["id"]})
        assert (own.id, own.custom_data) == (row["id"], row["custom_data"])
        assert own.created_at == datetime.fromisoformat(row["created_at"]).replace(tzinfo=UTC)
        assert own.created_at.utcoffset() is not None
        assert Path(own.result_file) == Path(row["result_file"])
        np.testing.assert_array_equal(np.load(own.result_file), legacy(row["id"]))
        for name, value in row["params"].items():
            assert getattr(own, name) == value
    assert calls() == 0


def test_the_old_table_keeps_its_form_and_rows() -> None:
    """Side tables are beside it; opening and reading change nothing in it."""
    before = ask(PATH, "SELECT * FROM results"), ask(PATH, "SELECT sql FROM sqlite_master")
    with opened(SimResult) as store:
        store.sweep(row["params"] for row in ROWS["results"])
    assert ask(PATH, "SELECT * FROM results") == before[0]
    assert ask(PATH, "SELECT sql FROM sqlite_master")[: len(before[1])] == before[1]
    assert ask(PATH, "SELECT model, from_2x FROM entropic_models") == [("results", 1)]
    defaults = ask(PATH, "SELECT parameter, identity_default FROM entropic_columns ORDER BY 1")
    assert defaults == [("dt", None), ("n", None), ("steps", None)]


def test_a_sweep_runs_only_what_is_missing() -> None:
    """Old rows and new ones, in first-seen order."""
    grid = expand_grid({"n": [100, 200], "steps": [5], "dt": [0.01, 0.02, 0.04]})
    with opened(SimResult) as store:
        records = store.sweep(grid)
        assert [(r.n, r.dt) for r in records] == [
            (n, dt) for n in (100, 200) for dt in (0.01, 0.02, 0.04)
        ]
        assert calls() == 2
        assert store.sweep(grid)[2].created_at == records[2].created_at
    assert calls() == 2


def test_a_row_can_be_rerun_in_place() -> None:
    """The same row and file, as 2.x gave it: also for an id of its own old rule."""
    with opened(SimResult) as store:
        for row in ROWS["results"]:
            if row["id"] == TWIN:
                continue
            record = store.run(row["params"], note="again")
            assert record.id == row["id"]
            assert Path(record.result_file) == Path(row["result_file"])
            assert record.created_at.isoformat() == row["created_at"] + "+00:00"
            assert record.custom_data["note"] == "again"
            np.testing.assert_array_equal(np.load(record.result_file), [-1.0])
            assert store.retrieve(row["params"]).custom_data == record.custom_data
    assert sorted(path.name for path in Path("results").glob("*.npy")) == sorted(
        Path(row["result_file"]).name for table in ROWS.values() for row in table
    )
    assert len(ask(PATH, "SELECT id FROM results")) == len(ROWS["results"])


@pytest.mark.parametrize("remove_file", [False, True])
def test_rows_can_be_deleted(remove_file: bool) -> None:
    """By params and by id, with their file or without."""
    with opened(SimResult) as store:
        for row in ROWS["results"]:
            by = {"hash": row["id"]} if row["id"] == TWIN else {"params": row["params"]}
            assert store.delete(**by, remove_file=remove_file)
            assert Path(row["result_file"]).exists() is not remove_file
            assert not store.delete(**by)
    assert ask(PATH, "SELECT * FROM results") == []
    assert len(ask(PATH, "SELECT * FROM labelled")) == len(ROWS["labelled"])


def test_a_deleted_row_can_be_run_again() -> None:
    """Its tokens begin where the tombstone left them."""
    params = ROWS["results"][0]["params"]
    with opened(SimResult) as store:
        store.delete(params, remove_file=True)
        record = store.run_or_retrieve(params)
    assert (record.id, Path(record.result_file)) == (
        ROWS["results"][0]["id"],
        Path(ROWS["results"][0]["result_file"]),
    )
    assert ask(PATH, "SELECT state, token, published FROM entropic_runs") == [("done", 1, 1)]


def test_ids_that_collided_are_told_apart_by_their_parameters() -> None:
    """2.x gave 1e-13, 2e-13 and 0.0 one id; only one of them was ever stored."""
    tiny = {"n": 100, "steps": 5, "dt": 1e-13}
    with opened(SimResult) as store:
        assert store.retrieve(tiny).id == TINY
        assert store.retrieve({**tiny, "dt": 2e-13}) is None
        other = store.run_or_retrieve({**tiny, "dt": 2e-13})
        assert other.id not in {row["id"] for row in ROWS["results"]}
        assert store.retrieve({**tiny, "dt": 2e-13}).id == other.id
        assert store.retrieve(tiny).id == TINY
        np.testing.assert_array_equal(np.load(store.retrieve(tiny).result_file), legacy(TINY))


def test_an_id_that_collides_with_another_set_is_never_overwritten() -> None:
    """The id of dt=0.0 is the same in 2.x and now, and 1e-13 has it."""
    zero = {"n": 100, "steps": 5, "dt": 0.0}
    with opened(SimResult) as store:
        assert store.retrieve(zero) is None
        with pytest.raises(IdConflictError, match=r"1e-13 there and 0\.0 here"):
            store.run_or_retrieve(zero)
        with pytest.raises(IdConflictError):
            store.run(zero)
        with pytest.raises(IdConflictError):
            store.delete(zero)
        np.testing.assert_array_equal(
            np.load(store.retrieve({"id": TINY}).result_file), legacy(TINY)
        )
        assert store.run_or_retrieve({**zero, "id": "zero"}).dt == 0.0


def test_new_runs_leave_no_default_out_of_their_ids() -> None:
    """As 2.x had it: in its tables, every parameter counts."""
    params = {"label": "new", "amplitude": None, "damped": True, "options": None}
    text = json.dumps(params, sort_keys=True, separators=(",", ":"))
    with opened(Labelled) as store:
        record = store.run_or_retrieve({"label": "new", "damped": True})
        assert record.id == hashlib.sha256(text.encode()).hexdigest()[:16]
        assert store.retrieve(params).id == record.id


# 2.x had models with defaults, too; it hashed what was passed.
Defaulted = model(
    "results",
    n=int,
    steps=(int, mapped_column(default=5)),
    dt=(float, mapped_column(default=0.01)),
)


def test_a_models_defaults_do_not_hide_old_rows() -> None:
    """Passed or left out, what is the default now finds the row that has it."""
    with opened(Defaulted) as store:
        whole = store.run_or_retrieve({"n": 100, "steps": 5, "dt": 0.01})
        assert store.run_or_retrieve({"n": 100}).id == whole.id == ROWS["results"][0]["id"]
    assert calls() == 0


Grown = model("results", **SIM, seed=(int, mapped_column(default=0)), solver=str | None)


@pytest.mark.parametrize(
    "extra", [{}, {"seed": 0}, {"solver": None}, {"seed": 0.0, "solver": None}], ids=str
)
def test_a_parameter_that_was_added_leaves_all_ids_valid(extra: dict[str, Any]) -> None:
    """Old rows have its default; they are found whether it is passed or not."""
    with opened(Grown) as store:
        for row in ROWS["results"]:
            if extra and row["id"] in (TWIN, TINY):
                continue
            record = store.retrieve({**row["params"], **extra})
            assert record.id == (KEPT if row["id"] == TWIN else row["id"])
            assert (record.seed, record.solver) == (0, None)
            assert store.retrieve({**row["params"], "seed": 1}) is None
        new = store.run_or_retrieve({"n": 1, "steps": 2, "dt": 0.5, **extra})
    assert new.id == hashlib.sha256(b'{"dt":0.5,"n":1,"steps":2}').hexdigest()[:16]
    assert calls() == 1


@pytest.mark.parametrize("spelled", ["relative", "absolute", "dotted"])
def test_results_are_found_from_another_working_directory(
    spelled: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the store's own results_dir, however it is spelled."""
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    results_dir = {
        "relative": "../results",
        "absolute": folder / "results",
        "dotted": "../elsewhere/../results/",
    }[spelled]
    with opened(SimResult, results_dir, folder / PATH) as store:
        for row in ROWS["results"]:
            record = store.retrieve({"id": row["id"]})
            assert record.result_file == str(Path(str(results_dir)) / f"{row['id']}.npy") or (
                spelled == "dotted" and record.result_file == f"{results_dir}{row['id']}.npy"
            )
            np.testing.assert_array_equal(np.load(record.result_file), legacy(row["id"]))
        assert store.delete(ROWS["results"][0]["params"], remove_file=True)
        assert not (folder / ROWS["results"][0]["result_file"]).exists()
    assert calls() == 0


def test_a_results_folder_may_have_moved(folder: Path) -> None:
    """Rows give the old path; the files are where the store looks."""
    (folder / "results").rename(folder / "archive")
    with opened(SimResult, "archive") as store:
        for row in ROWS["results"]:
            record = store.retrieve({"id": row["id"]})
            assert record.result_file == f"archive/{row['id']}.npy"
    assert calls() == 0


def test_a_result_that_is_gone_is_a_miss(folder: Path) -> None:
    """One file, and only that one, runs again; under its old id and name."""
    row = ROWS["results"][0]
    (folder / row["result_file"]).unlink()
    with opened(SimResult) as store:
        assert store.retrieve(row["params"]) is None
        record = store.run_or_retrieve(row["params"])
        assert (record.id, Path(record.result_file)) == (row["id"], Path(row["result_file"]))
        assert store.retrieve(ROWS["results"][1]["params"]).id == ROWS["results"][1]["id"]
    assert calls() == 1


def test_a_table_that_2x_made_and_never_filled_is_a_new_one() -> None:
    """Without rows there are no old ids to keep."""
    change(PATH, "DELETE FROM labelled")
    with opened(Labelled) as store:
        record = store.run_or_retrieve({"label": "a", "damped": True, "options": None})
    assert record.id == hashlib.sha256(b'{"damped":true,"label":"a"}').hexdigest()[:16]
    assert ask(PATH, "SELECT from_2x FROM entropic_models") == [0]


def test_a_row_is_rerun_in_place_from_another_working_directory(
    data: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that 2.x wrote is replaced, wherever the store is used from."""
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    row = ROWS["results"][0]
    with opened(SimResult, "../results", folder / PATH) as store:
        assert store.run(row["params"]).result_file == f"../results/{row['id']}.npy"


def test_an_added_default_that_is_passed_hides_no_old_row(data: None) -> None:
    """Also one that only its 2.x id finds."""
    row = next(row for row in ROWS["results"] if row["id"] == TINY)
    with opened(Grown) as store:
        record = store.retrieve({**row["params"], "seed": 0})
        assert record is not None
        assert record.id == TINY
