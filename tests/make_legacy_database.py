"""Make the small entropic 2.3.0 database and results folder under ``tests/data/entropic2``.

The tests read a database that the 2.x releases wrote; this script is how it was made. It needs
the old release, so it is run by hand, in a throwaway environment, and never by the tests::

    python3.11 -m venv OLD
    OLD/bin/pip install entropic==2.3.0 numpy
    OLD/bin/python tests/make_legacy_database.py

It removes what an earlier run left there and writes, with the working directory set to the
folder so that every recorded path is relative:

* ``runs.sqlite3``: the tables ``results`` and ``labelled``, as 2.3.0 creates them;
* ``results/*.npy``: one small seeded array a row;
* ``rows.json``: for each table, in the order of insertion, the params as passed, the metadata
  passed, the id and the result file that 2.3.0 gave.

Ids, params and arrays come out the same each time. 2.3.0 also records when and for how long each
run ran; those two (``created_at`` and ``elapsed_seconds``) are set to fixed values afterwards, in
the form in which 2.3.0 writes them.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import JSON, create_engine, update

from entropic import Base, Mapped, Store, expand_grid, mapped_column

FOLDER = Path(__file__).resolve().parent / "data" / "entropic2"
DATABASE = "runs.sqlite3"
RESULTS = "results"
LISTING = "rows.json"
FIRST_RUN = datetime(2025, 3, 1, 12, 0, 0, 250_000)
ELAPSED_SECONDS = 0.0125


class SimResult(Base):
    """The model of the 2.x README: three plain columns."""

    __tablename__ = "results"

    n: Mapped[int]
    steps: Mapped[int]
    dt: Mapped[float]


class Labelled(Base):
    """A model with text, a flag, a column that may be null and a JSON column."""

    __tablename__ = "labelled"

    label: Mapped[str]
    amplitude: Mapped[float | None]
    damped: Mapped[bool]
    options: Mapped[dict[str, Any] | None] = mapped_column(JSON)


def simulate(params: dict[str, Any]) -> None:
    """Write eight random numbers, seeded by the run's id."""
    seed = int(params["id"], 16)
    np.save(params["result_file"], np.random.default_rng(seed).standard_normal(8))


# The params of each run, and the metadata given with it.
Rows = list[tuple[dict[str, Any], dict[str, Any]]]

SIMULATIONS: Rows = [
    *((params, {}) for params in expand_grid({"n": [100, 200], "steps": [5], "dt": [0.01, 0.02]})),
    ({"n": 100, "steps": 10, "dt": 0.1 + 0.2}, {"git_sha": "abc123", "note": "café"}),
    ({"n": 100, "steps": 5, "dt": 1e-13}, {"why": "2.x hashes this dt as 0.0"}),
    ({"n": 100, "steps": 5, "dt": 1}, {"tags": ["whole", "int"], "nested": {"depth": 1}}),
    ({"n": 100, "steps": 5, "dt": 1.0}, {"tags": ["whole", "float"]}),
]

LABELS: Rows = [
    (
        {
            "label": "café",
            "amplitude": 0.5,
            "damped": True,
            "options": {"solver": {"order": 4, "tol": 1e-06}, "grid": [1, 2.5, None]},
        },
        {},
    ),
    ({"label": "none", "amplitude": None, "damped": False, "options": None}, {"note": "nulls"}),
    ({"label": "absent", "damped": False}, {}),
    ({"label": "list", "amplitude": 2, "damped": True, "options": ["a", {"b": 0.1 + 0.2}]}, {}),
]


def fill(model: type[Base], rows: Rows) -> list[dict[str, Any]]:
    """Run each row into the model's table, and list what became of it."""
    store = Store(
        runner=simulate,
        result_cls=model,
        results_dir=f"./{RESULTS}",
        db_url=f"sqlite:///{DATABASE}",
        file_suffix=".npy",
    )
    listed = []
    for params, metadata in rows:
        record = store.run_or_retrieve(params, **metadata)
        listed.append(
            {
                "params": params,
                "custom_data": metadata,
                "id": record.id,
                "result_file": record.result_file,
            }
        )
    return listed


def settle(tables: dict[type[Base], list[dict[str, Any]]]) -> None:
    """Replace the two recorded values that depend on the clock by fixed ones."""
    moment = FIRST_RUN
    engine = create_engine(f"sqlite:///{DATABASE}")
    with engine.begin() as connection:
        for model, rows in tables.items():
            for row in rows:
                row["custom_data"] = {**row["custom_data"], "elapsed_seconds": ELAPSED_SECONDS}
                row["created_at"] = moment.isoformat()
                connection.execute(
                    update(model)
                    .where(model.id == row["id"])
                    .values(created_at=moment, custom_data=row["custom_data"])
                )
                moment += timedelta(minutes=1)
    engine.dispose()
    # Lay the pages out afresh, so that the file is the same byte for byte each time.
    with closing(sqlite3.connect(DATABASE)) as plain:
        plain.execute("VACUUM")


def main() -> None:
    """Make the folder afresh."""
    if version("entropic") != "2.3.0":
        raise SystemExit("this script needs entropic 2.3.0; its docstring says how to run it")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    os.chdir(FOLDER)
    tables: dict[type[Base], list[dict[str, Any]]] = {
        SimResult: fill(SimResult, SIMULATIONS),
        Labelled: fill(Labelled, LABELS),
    }
    settle(tables)
    listing = {model.__tablename__: rows for model, rows in tables.items()}
    text = json.dumps(listing, indent=2, ensure_ascii=False)
    Path(LISTING).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
