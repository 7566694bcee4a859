"""Records as frames, and their results on a grid: made of records alone, no store is asked."""

import enum
import json
import math
import subprocess
import sys
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sqlalchemy as sa
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from entropic import (
    Base,
    ExportError,
    Mapped,
    SettingsError,
    Store,
    errors,
    expand_grid,
    mapped_column,
)
from entropic.export import (
    grid_layout,
    load_result,
    needed,
    pandas_frame,
    polars_frame,
    write_parquet,
    xarray_grid,
)
from entropic.export.columns import columns
from entropic.models import detached
from tests import databases
from tests.columns import KEY, NOON, Color, Degrees, Level, Mixed, Span
from tests.models import model
from tests.simulations import Point, simulate

CREATED = datetime(2026, 1, 31, 12, 30, 15, 250000, tzinfo=UTC)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"
    HUGE = "huge"


class Everything(Base):
    """A column of each type that a model may have."""

    __tablename__ = "everything"

    number: Mapped[int]
    maybe: Mapped[int | None]
    ratio: Mapped[float]
    maybe_ratio: Mapped[float | None]
    flag: Mapped[bool]
    maybe_flag: Mapped[bool | None]
    text: Mapped[str]
    maybe_text: Mapped[str | None]
    moment: Mapped[datetime]
    maybe_moment: Mapped[datetime | None]
    naive: Mapped[datetime] = mapped_column(sa.DateTime())
    day: Mapped[date]
    color: Mapped[Color]
    level: Mapped[Level]
    mixed: Mapped[Mixed]
    scheme: Mapped[Literal["upwind", "central"]]
    price: Mapped[Decimal]
    key: Mapped[uuid.UUID]
    text_key: Mapped[uuid.UUID] = mapped_column(sa.Uuid(as_uuid=False))
    where: Mapped[Path]
    options: Mapped[dict[str, Any]]
    steps: Mapped[list[int]]
    weights: Mapped[NDArray[np.float64]]
    angle: Mapped[float] = mapped_column(Degrees)
    span: Mapped[Any] = mapped_column(Span)


FULL: dict[str, Any] = {
    "number": 2**53 + 1,
    "maybe": 2**53 + 1,
    "ratio": 0.25,
    "maybe_ratio": 0.5,
    "flag": True,
    "maybe_flag": False,
    "text": "ünï",
    "maybe_text": "there",
    "moment": NOON,
    "maybe_moment": NOON + timedelta(microseconds=1),
    "naive": datetime(2026, 2, 1),
    "day": date(2026, 1, 31),
    "color": Color.GREEN,
    "level": Level.HIGH,
    "mixed": Mixed.PAIR,
    "scheme": "upwind",
    "price": Decimal("12.3400000000000000001"),
    "key": KEY,
    "text_key": str(KEY),
    "where": Path("a/b"),
    "options": {"b": [1, None], "a": 0.1},
    "steps": [1, 2],
    "weights": np.array([[1.0, 2.0], [3.0, 4.0]]),
    "angle": 90.0,
    "span": (1, 2),
}
EMPTY = {
    **FULL,
    "maybe": None,
    "maybe_ratio": None,
    "maybe_flag": None,
    "maybe_text": None,
    "maybe_moment": None,
}
PANDAS_DTYPES = {
    "id": "str",
    "number": "int64",
    "maybe": "Int64",
    "ratio": "float64",
    "maybe_ratio": "float64",
    "flag": "bool",
    "maybe_flag": "boolean",
    "text": "str",
    "maybe_text": "str",
    "moment": "datetime64[us, UTC]",
    "maybe_moment": "datetime64[us, UTC]",
    "naive": "datetime64[us]",
    "day": "datetime64[us]",
    "color": "str",
    "level": "int64",
    "mixed": "object",
    "scheme": "str",
    "price": "object",
    "key": "object",
    "text_key": "str",
    "where": "object",
    "options": "object",
    "steps": "object",
    "weights": "object",
    "angle": "float64",
    "span": "object",
    "result_file": "str",
    "created_at": "datetime64[us, UTC]",
    "elapsed_seconds": "float64",
}
POLARS_DTYPES = {
    "id": pl.String(),
    "number": pl.Int64(),
    "maybe": pl.Int64(),
    "ratio": pl.Float64(),
    "maybe_ratio": pl.Float64(),
    "flag": pl.Boolean(),
    "maybe_flag": pl.Boolean(),
    "text": pl.String(),
    "maybe_text": pl.String(),
    "moment": pl.Datetime("us", "UTC"),
    "maybe_moment": pl.Datetime("us", "UTC"),
    "naive": pl.Datetime("us"),
    "day": pl.Date(),
    "color": pl.String(),
    "level": pl.Int64(),
    **dict.fromkeys(("mixed", "scheme", "price", "key", "text_key", "where"), pl.String()),
    **dict.fromkeys(("options", "steps", "weights"), pl.String()),
    "angle": pl.Float64(),
    "span": pl.String(),
    "result_file": pl.String(),
    "created_at": pl.Datetime("us", "UTC"),
    "elapsed_seconds": pl.Float64(),
}


def record(
    cls: type[Base], id: str = "a3f8c1d2e4b6f7a8", /, kept: Any = None, **values: Any
) -> Any:
    """A record as a store gives it."""
    return detached(
        cls,
        {
            "id": id,
            "result_file": f"./results/{id}.npy",
            "created_at": CREATED,
            "custom_data": {"elapsed_seconds": 0.5} if kept is None else kept,
            **values,
        },
    )


def records(cls: type[Base], *sets: dict[str, Any]) -> list[Any]:
    """Records with ids made up: ``run0``, ``run1`` and so on."""
    return [record(cls, f"run{number}", **values) for number, values in enumerate(sets)]


@pytest.mark.parametrize("sets", [[], [FULL], [EMPTY], [FULL, EMPTY]], ids=len)
def test_a_pandas_frame_has_the_dtypes_of_the_model(sets: list[dict[str, Any]]) -> None:
    """Whether there are records or none, and with or without missing values."""
    frame = pandas_frame(Everything, records(Everything, *sets))
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    # What a type of the user's makes is known by its values alone.
    assert dtypes == {**PANDAS_DTYPES, "span": "object" if sets else "str"}
    assert len(frame) == len(sets)


@pytest.mark.parametrize("sets", [[], [FULL], [EMPTY], [FULL, EMPTY]], ids=len)
def test_a_polars_frame_has_the_dtypes_of_the_model(sets: list[dict[str, Any]]) -> None:
    """Whether there are records or none, and with or without missing values."""
    frame = polars_frame(Everything, records(Everything, *sets))
    assert dict(frame.schema) == POLARS_DTYPES
    assert frame.height == len(sets)


@pytest.mark.parametrize("sets", [[], [FULL], [EMPTY], [FULL, EMPTY]], ids=len)
def test_a_parquet_file_is_the_polars_frame(sets: list[dict[str, Any]], tmp_path: Path) -> None:
    """Whether there are records or none."""
    rows = records(Everything, *sets)
    write_parquet(list(columns(Everything, rows)), tmp_path / "file")
    frame = pl.read_parquet(tmp_path / "file")
    assert dict(frame.schema) == POLARS_DTYPES
    assert frame.equals(polars_frame(Everything, rows))


def test_a_pandas_frame_holds_what_the_records_hold() -> None:
    """Each value, none of its digits lost; enums as their values."""
    full, empty = pandas_frame(Everything, records(Everything, FULL, EMPTY)).to_dict("records")
    assert full["id"] == "run0"
    assert full["result_file"] == "./results/run0.npy"
    assert full["created_at"] == CREATED
    assert full["elapsed_seconds"] == 0.5
    plain = {
        **FULL,
        "color": "green",
        "level": 2,
        "mixed": (1, 2),
        "day": pd.Timestamp(2026, 1, 31),
    }
    for name, value in plain.items():
        np.testing.assert_array_equal(full[name], value, err_msg=name)
    assert all(pd.isna(empty[name]) for name, value in EMPTY.items() if value is None)


def test_a_polars_frame_holds_what_the_records_hold() -> None:
    """What polars has no type for is text: JSON that can be decoded again."""
    frame = polars_frame(Everything, records(Everything, FULL, EMPTY))
    full, empty = frame.to_dicts()
    texts = {
        "color": "green",
        "level": 2,
        "mixed": "[1, 2]",
        "price": "12.3400000000000000001",
        "key": str(KEY),
        "where": "a/b",
        "options": '{"b": [1, null], "a": 0.1}',
        "steps": "[1, 2]",
        "weights": "[[1.0, 2.0], [3.0, 4.0]]",
        "span": "[1, 2]",
    }
    for name, value in {**FULL, **texts, "created_at": CREATED, "elapsed_seconds": 0.5}.items():
        assert full[name] == value, name
    assert [name for name in EMPTY if empty[name] is None] == [
        name for name in EMPTY if EMPTY[name] is None
    ]
    assert frame["steps"].str.json_decode(pl.List(pl.Int64))[0].to_list() == [1, 2]


FRAMES: list[Any] = [pandas_frame, polars_frame]


@pytest.mark.parametrize("make_frame", FRAMES)
def test_custom_data_are_columns_that_lose_nothing(make_frame: Callable[..., Any]) -> None:
    """A key that is a column's name already is told apart from it, however it is spelled."""
    rows = [
        record(Point, "one", n=1, dt=0.5, label=None, kept={"n": 7, "sha": "abc", "id": "x"}),
        record(Point, "two", n=2, dt=0.5, label="a", kept={"custom_data.n": 8, "nested": {"a": 1}}),
    ]
    frame = make_frame(Point, rows)
    assert list(frame.columns) == [
        *("id", "n", "dt", "label", "result_file", "created_at", "elapsed_seconds"),
        *("custom_data.n", "sha", "custom_data.id", "custom_data.custom_data.n", "nested"),
    ]
    assert list(frame["n"]) == [1, 2]
    assert list(frame["id"]) == ["one", "two"]
    assert frame["custom_data.n"][0] == 7
    assert frame["custom_data.id"][0] == "x"
    assert frame["custom_data.custom_data.n"][1] == 8
    assert frame["nested"][1] in ({"a": 1}, '{"a": 1}')


@pytest.mark.parametrize(
    ("values", "pandas_dtype", "polars_dtype"),
    [
        ([1, 2], "int64", pl.Int64()),
        ([1, None], "Int64", pl.Int64()),
        ([1, 0.5], "float64", pl.Float64()),
        ([2**63, 1], "object", pl.String()),
        ([2**53 + 1, 0.5], "object", pl.String()),
        ([True, False], "bool", pl.Boolean()),
        ([True, None], "boolean", pl.Boolean()),
        ([True, 1], "object", pl.String()),
        (["a", "b"], "str", pl.String()),
        (["a", 1], "object", pl.String()),
        ([[1], {"a": 1}], "object", pl.String()),
        ([None, None], "object", pl.String()),
    ],
)
def test_custom_data_have_the_dtype_that_holds_all_of_them(
    values: list[Any], pandas_dtype: str, polars_dtype: pl.DataType
) -> None:
    """Nothing is cast to what it is not."""
    rows = [record(Point, str(v), n=1, dt=0.5, label=None, kept={"k": v}) for v in values]
    frame = pandas_frame(Point, rows)
    assert str(frame["k"].dtype) == pandas_dtype
    assert [None if v is pd.NA else v for v in frame["k"]] == values
    assert polars_frame(Point, rows)["k"].dtype == polars_dtype


@pytest.mark.parametrize("value", [5.5, "5", 2**63])
def test_a_value_that_is_not_of_its_columns_type_is_kept(value: Any) -> None:
    """SQLite keeps 5.5 in a column of ints, if another program puts it there."""
    rows = [record(Point, n=value, dt=0.5, label=None)]
    assert pandas_frame(Point, rows)["n"].tolist() == [value]
    assert polars_frame(Point, rows)["n"].to_list() == [json.dumps(value)]
    other = record(Point, "other", n=5, dt=0.5, label=None)
    found = xarray_grid(Point, [*rows, other], lambda row: 1)
    assert found["n"].values.tolist() == [json.dumps(value), "5"]


def test_a_missing_value_in_a_column_that_has_none_is_missing() -> None:
    """A table of entropic 2 may hold one."""
    rows = records(Point, {"n": None, "dt": 0.5, "label": None}, {"n": 2, "dt": 1, "label": None})
    assert str(pandas_frame(Point, rows)["n"].dtype) == "Int64"
    assert polars_frame(Point, rows)["n"].to_list() == [None, 2]


def test_frames_of_a_store_are_the_same_for_rows_run_and_rows_read(
    make_store: Callable[..., Any], database: databases.Place
) -> None:
    """Records of runs, and those that another store reads from either database."""

    def write(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text("x")

    def frames() -> list[Any]:
        with make_store(runner=write, result_cls=Everything) as store:
            rows = store.sweep([FULL, EMPTY], custom_data={"sha": "abc"})
        return [pandas_frame(Everything, rows), polars_frame(Everything, rows)]

    ran, read = frames(), frames()
    dtypes = {name: str(dtype) for name, dtype in read[0].dtypes.items()}
    assert dtypes == {**PANDAS_DTYPES, "sha": "str"}
    assert dict(read[1].schema) == {**POLARS_DTYPES, "sha": pl.String()}
    assert read[1].equals(ran[1])
    pd.testing.assert_frame_equal(read[0], ran[0])


@pytest.fixture
def points() -> Iterator[Store[Point]]:
    """A store with results that tell their parameters."""
    with Store(simulate, Point, file_suffix=".npy", executor="caller") as store:
        yield store


def test_a_grid_of_a_store_has_each_result_at_its_parameters(points: Any) -> None:
    """Those that were not run are missing."""
    grid = expand_grid({"n": [2, 1], "dt": [0.1 + 0.2, 0.1]})
    rows = points.sweep(p for p in grid if p != {"n": 1, "dt": 0.1})
    found = xarray_grid(Point, rows, lambda row: np.load(row.result_file))
    assert found["result"].dims == ("n", "dt", "dim_0")
    assert found["n"].values.tolist() == [1, 2]
    assert found["result"].sel(n=2, dt=0.1).values.tolist() == [2, 0.1]
    assert found["result"].sel(n=1, dt=0.1).isnull().all()
    assert found["id"].sel(n=2, dt=0.1).item() == rows[1].id
    assert found["id"].isnull().sum() == 1
    assert found["label"].isnull()


def test_floats_that_are_one_run_are_one_label() -> None:
    """0.1 + 0.2 beside 0.3 are no two columns of which each is half empty."""
    rows = records(
        Point,
        {"n": 1, "dt": 0.1 + 0.2, "label": None},
        {"n": 2, "dt": 0.3, "label": None},
        {"n": 2, "dt": 0.6, "label": None},
    )
    found = xarray_grid(Point, rows, lambda row: row.n)
    assert found["dt"].values.tolist() == [0.3, 0.6]
    assert found["result"].sel(dt=0.3).values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("annotation", "values", "labels", "dtype"),
    [
        (int, [3, 1, 2], [1, 2, 3], "int64"),
        (int | None, [3, None, 1], [1, 3, math.nan], "float64"),
        (float, [0.5, -1, math.inf], [-1, 0.5, math.inf], "float64"),
        (bool, [True, False], [False, True], "bool"),
        (bool | None, [None, True, False], [False, True, math.nan], "object"),
        (str, ["b", "a"], ["a", "b"], "<U1"),
        (str | None, [None, "b", "a"], ["a", "b", math.nan], "object"),
        (Size, [Size.HUGE, Size.SMALL, Size.LARGE], ["small", "large", "huge"], "<U5"),
        (Level, [Level.HIGH, Level.LOW], [1, 2], "int64"),
        (Mixed, [Mixed.PAIR, Mixed.TEXT, Mixed.ONE], ["1", '"1"', "[1,2]"], "object"),
        (Literal["upwind", "central"], ["central", "upwind"], ["upwind", "central"], "<U7"),
        (datetime, [NOON], ["2026-01-31T12:00:00.000000"], "datetime64[us]"),
        (date, [date(2026, 2, 1), date(2026, 1, 1)], ["2026-01-01", "2026-02-01"], "date"),
        (Decimal, [Decimal("2.5"), Decimal("0.1")], [Decimal("0.1"), Decimal("2.5")], "object"),
        (Path, [Path("b"), Path("a/c")], ["a/c", "b"], "object"),
        (uuid.UUID, [uuid.UUID(int=2), uuid.UUID(int=1)], None, "object"),
        (dict[str, Any], [{"b": 1, "a": 0.1}, {}], ['{"a":0.1,"b":1}', "{}"], "object"),
        (NDArray[np.float64], [np.arange(2.0), np.zeros(1)], ["[0.0,1.0]", "[0.0]"], "object"),
    ],
)
def test_labels_are_what_can_be_selected_by(
    annotation: Any, values: list[Any], labels: Any, dtype: str
) -> None:
    """In order; what cannot be a label is one by its JSON text."""
    sim = model(x=annotation, n=int)
    rows = records(sim, *({"x": value, "n": 1} for value in values))
    found = xarray_grid(sim, rows, lambda row: row.id, dims="x")
    if labels is None:
        labels = [str(uuid.UUID(int=number)) for number in (1, 2)]
    expected = np.array(labels, dtype="datetime64[us]") if "date" in dtype else labels
    pd.testing.assert_index_equal(
        found.indexes["x"], pd.Index(np.array(expected, found["x"].dtype), name="x"), exact=False
    )
    assert str(found["x"].dtype) == ("datetime64[us]" if dtype == "date" else dtype)
    assert sorted(found["result"].values) == [row.id for row in rows]
    for label, id in zip(found["x"].values, found["id"].values, strict=True):
        if label == label:  # noqa: PLR0124  NaN is not
            assert found["result"].sel(x=label).item() == id


def sims(**columns: Any) -> tuple[Any, list[Any]]:
    """A model of ints, and a record for each place of the lists."""
    sim = model(**dict.fromkeys(columns, int))
    sets = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values())]  # noqa: B905
    return sim, records(sim, *sets)


def test_labels_that_floats_cannot_hold_stay_apart_from_each_other_and_from_none() -> None:
    """They are objects then: as floats, 2**53 and 2**53 + 1 would be one label."""
    sim = model(seed=int | None)
    seeds = [2**53 + 1, None, 2**53, -(2**63)]
    rows = records(sim, *({"seed": seed} for seed in seeds))
    found = xarray_grid(sim, rows, lambda row: row.id)
    assert found["seed"].values.tolist()[:3] == [-(2**63), 2**53, 2**53 + 1]
    assert np.isnan(found["seed"].values[3])
    assert found.indexes["seed"].is_unique
    assert [found["result"].sel(seed=seed).item() for seed in (2**53, 2**53 + 1)] == [
        "run2",
        "run0",
    ]


def test_a_coordinate_with_gaps_holds_the_ints_that_floats_cannot() -> None:
    """Objects as well, rather than the nearest float."""
    sim, rows = sims(n=[1, 1, 2], k=[1, 2, 1], seed=[2**53, 2**53 + 1, 5])
    found = xarray_grid(sim, rows, lambda row: row.n, dims=["n", "k"])["seed"]
    assert found.values.ravel().tolist()[:3] == [2**53, 2**53 + 1, 5]
    assert np.isnan(found.values[1, 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=2, unique=True))
def test_an_axis_of_ints_or_none_has_a_label_for_each(seeds: list[int | None]) -> None:
    """Whatever the ints are, and exactly they."""
    sim = model(seed=int | None)
    rows = records(sim, *({"seed": seed} for seed in seeds))
    labels = xarray_grid(sim, rows, lambda row: 0).indexes["seed"]
    assert labels.is_unique
    numbers = sorted(seed for seed in seeds if seed is not None)
    assert [int(label) for label in labels if label == label] == numbers  # noqa: PLR0124  NaN


def test_parameters_that_do_not_vary_are_no_dimensions() -> None:
    """They are coordinates all the same."""
    found = xarray_grid(*sims(n=[1, 2], steps=[5, 5]), lambda row: row.n)
    assert found["result"].dims == ("n",)
    assert found["steps"].shape == ()
    assert found["steps"].item() == 5
    assert found["id"].values.tolist() == ["run0", "run1"]


def test_a_single_record_is_a_point() -> None:
    """All parameters are coordinates of it, and the result's own dimensions remain."""
    found = xarray_grid(*sims(n=[1], steps=[5]), lambda row: np.arange(3))
    assert found["result"].dims == ("dim_0",)
    assert (found["n"].item(), found["steps"].item(), found["id"].item()) == (1, 5, "run0")


def test_no_records_are_an_empty_grid() -> None:
    """With the dimensions and dtypes of the model, and no variables."""
    found = xarray_grid(Point, [], lambda row: row.n)
    assert dict(found.sizes) == {"n": 0, "dt": 0, "label": 0}
    assert [str(found[name].dtype) for name in ("n", "dt")] == ["int64", "float64"]
    assert list(found.data_vars) == []
    assert dict(xarray_grid(Point, [], lambda row: row.n, dims="n").sizes) == {"n": 0}
    assert dict(xarray_grid(Point, [], lambda row: row.n, dims=[]).sizes) == {}


def test_a_parameter_that_follows_from_a_dimension_is_a_coordinate_along_it() -> None:
    """A zipped sweep is a line, rather than the diagonal of a square."""
    sim, rows = sims(n=[3, 1, 2], dt=[30, 10, 20], k=[1, 1, 0])
    found = xarray_grid(sim, rows, lambda row: row.n, dims="n")
    assert dict(found.sizes) == {"n": 3}
    assert found["dt"].dims == found["k"].dims == ("n",)
    assert found["dt"].values.tolist() == [10, 20, 30]
    assert found["k"].values.tolist() == [1, 0, 1]


def test_a_parameter_that_follows_from_all_dimensions_is_a_coordinate_along_all() -> None:
    """Missing where there is no run."""
    sim, rows = sims(n=[1, 1, 2], k=[1, 2, 1], seed=[7, 8, 9])
    found = xarray_grid(sim, rows, lambda row: row.n, dims=["k", "n"])
    assert found["seed"].dims == found["result"].dims == ("k", "n")
    np.testing.assert_array_equal(found["seed"].values, [[7, 9], [8, np.nan]])


def test_a_grid_by_run_has_one_dimension() -> None:
    """In the order of the records, with every parameter along it."""
    sim, rows = sims(n=[2, 1], dt=[10, 20])
    found = xarray_grid(sim, rows[::-1], lambda row: row.n, dims="id")
    assert found["result"].dims == found["n"].dims == ("id",)
    assert found["id"].values.tolist() == ["run1", "run0"]
    assert found["result"].sel(id="run0") == found["n"].sel(id="run0") == 2


def test_records_of_one_point_are_named() -> None:
    """With the parameter in which they differ, or that it is an id of their own."""
    sim, rows = sims(n=[1, 2, 1], seed=[7, 7, 8])
    with pytest.raises(ExportError, match=r"run0.*run2.*differ in seed: add it to dims") as caught:
        xarray_grid(sim, rows, lambda row: row.n, dims="n")
    assert caught.value.ids == ("run0", "run2")
    twins = records(sim, {"n": 1, "seed": 7}, {"n": 2, "seed": 7}, {"n": 1, "seed": 7})
    with pytest.raises(ExportError, match=r"run0.*run2.*parameters are the same") as caught:
        xarray_grid(sim, twins, lambda row: row.n)
    assert caught.value.ids == ("run0", "run2")
    assert xarray_grid(sim, twins, lambda row: row.n, dims="id").sizes["id"] == 3


def test_a_record_that_comes_twice_counts_once() -> None:
    """It is loaded once."""
    sim, rows = sims(n=[1, 2])
    found = xarray_grid(sim, rows + rows, lambda row: row.n)
    assert found["result"].values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ("m", "names 'm', no parameter of Sim"),
        (["dt", "stepz"], "names 'stepz', no parameter of Sim; did you mean 'steps'"),
        (["n", "n"], "names a parameter twice"),
    ],
)
def test_dims_that_are_none_are_refused(dims: Any, message: str) -> None:
    """With the name that was meant."""
    sim, rows = sims(n=[1, 2], dt=[1, 1], steps=[5, 6])
    with pytest.raises(SettingsError, match=message):
        grid_layout(sim, rows, dims=dims)


def test_a_sparse_grid_is_refused_before_anything_is_loaded() -> None:
    """It says how large it would be, and what to do."""
    count = 2000
    sim, rows = sims(n=list(range(count)), k=list(range(count)), seed=list(range(count)))
    with pytest.raises(ExportError, match=r"8,000,000,000 points \(n: 2000 x k: 2000") as caught:
        grid_layout(sim, rows)
    for advice in ("2,000 records", "64.0 GB", "dims='id'", "dims=", "max_missing_bytes="):
        assert advice in str(caught.value)
    assert xarray_grid(sim, rows, lambda row: row.n, dims="id").sizes == {"id": count}


def test_what_points_without_a_run_take_can_be_limited_and_allowed() -> None:
    """It is known when the first result shows how large they are."""
    sim, rows = sims(n=[1, 2, 3], k=[1, 2, 3])
    with pytest.raises(ExportError, match="for points without a run"):
        xarray_grid(sim, rows, lambda row: np.zeros(1000), max_missing_bytes=48_000)
    found = xarray_grid(sim, rows, lambda row: np.zeros(1000), max_missing_bytes=48_100)
    assert found["result"].shape == (3, 3, 1000)
    complete = rows[:1]
    assert xarray_grid(sim, complete, lambda row: np.zeros(9), max_missing_bytes=0).sizes


def test_coordinates_along_all_dimensions_count_among_what_points_without_a_run_take() -> None:
    """Known at layout: 80 such points, each with an id and 30 parameters, of 8 bytes."""
    corners = [(at, other) for at in range(10) for other in (at, (at + 1) % 10)]
    sampled = {f"p{number}": list(range(20)) for number in range(30)}
    sim, rows = sims(n=[n for n, _ in corners], k=[k for _, k in corners], **sampled)
    limit = 80 * 8 * 31
    with pytest.raises(ExportError, match="for points without a run"):
        grid_layout(sim, rows, dims=["n", "k"], max_missing_bytes=limit - 1)
    found = grid_layout(sim, rows, dims=["n", "k"], max_missing_bytes=limit).dataset()
    assert found["p0"].dims == found["id"].dims == ("n", "k")
    assert found.nbytes == (20 + 80) * 8 * 31 + 2 * found["n"].nbytes


def test_a_coordinate_along_one_dimension_takes_nothing_for_points_without_a_run() -> None:
    """It has no more values than there are labels."""
    places = list(range(10))
    sim, rows = sims(n=places, k=places, twice=[2 * at for at in places])
    grid = grid_layout(sim, rows, dims=["n", "k"], max_missing_bytes=90 * 8)
    assert grid.dataset()["twice"].dims == ("n",)


def test_a_variable_that_grows_is_held_to_the_limit_before_it_does() -> None:
    """Of 6 points without a run: ids, 8 bytes each; int8 as float32, then complex128."""
    sim, rows = sims(n=[1, 2, 3], k=[1, 2, 3])
    results = [np.zeros(1000, "int8"), *[np.full(1000, 1j)] * 2]
    limit = 6 * (8 + 16_000)
    grid = grid_layout(sim, rows, max_missing_bytes=limit - 1)
    grid.fill(rows[0], results[0])
    with pytest.raises(ExportError, match="for points without a run"):
        grid.fill(rows[1], results[1])
    assert grid.dataset()["result"].dtype == np.float32  # as it was
    grid = grid_layout(sim, rows, max_missing_bytes=limit)
    for row, result in zip(rows, results, strict=True):
        grid.fill(row, result)
    assert grid.dataset()["result"].dtype == np.complex128


def test_variables_that_grow_are_held_to_the_limit_together() -> None:
    """Each alone would be within it."""
    sim, rows = sims(n=[1, 2, 3], k=[1, 2, 3])
    grid = grid_layout(sim, rows, max_missing_bytes=6 * (8 + 16_000 + 8_000))
    grid.fill(rows[0], {"u": np.zeros(1000), "v": np.zeros(1000)})
    grid.fill(rows[1], {"u": np.full(1000, 1j), "v": np.zeros(1000)})
    with pytest.raises(ExportError, match="for points without a run"):
        grid.fill(rows[2], {"u": np.full(1000, 1j), "v": np.full(1000, 1j)})


def test_a_grid_beyond_the_machines_memory_is_refused() -> None:
    """Though it has no gaps."""
    sim, rows = sims(n=[1, 2])
    huge = np.broadcast_to(np.float64(0), (2**40,))
    with pytest.raises(ExportError, match="more than this machine's memory"):
        xarray_grid(sim, rows, lambda row: huge)


def test_a_dict_of_arrays_gives_a_variable_each() -> None:
    """Each has dimensions of its own, as equal sizes may be a coincidence."""
    found = xarray_grid(
        *sims(n=[1, 2]),
        lambda row: {"u": np.ones((2, 3)), "t": [0, 1], "energy": 0.5 * row.n},
    )
    assert found["u"].dims == ("n", "u_dim_0", "u_dim_1")
    assert found["t"].dims == ("n", "t_dim_0")
    assert found["energy"].dims == ("n",)
    assert found["energy"].values.tolist() == [0.5, 1.0]


def test_an_archive_of_numpy_is_a_dict(tmp_path: Path) -> None:
    """As np.load opens it."""
    np.savez(tmp_path / "a.npz", u=np.ones(2), v=np.zeros(3))
    found = xarray_grid(*sims(n=[1, 2]), lambda row: np.load(tmp_path / "a.npz"))
    assert {name: found[name].dims for name in found.data_vars} == {
        "u": ("n", "u_dim_0"),
        "v": ("n", "v_dim_0"),
    }


def test_dimensions_can_be_named() -> None:
    """As in xarray's own constructors; variables share them then."""
    found = xarray_grid(
        *sims(n=[1, 2]),
        lambda row: {"u": (("time", "space"), np.ones((2, 3))), "t": ("time", [0.0, 0.1])},
    )
    assert found["u"].dims == ("n", "time", "space")
    assert found["t"].dims == ("n", "time")


def test_what_xarray_has_labelled_stays_so() -> None:
    """Names, labels, units; a coordinate of each run becomes one along the grid."""

    def load(row: Any) -> xr.Dataset:
        return xr.Dataset(
            {"u": ("time", np.full(2, float(row.n)), {"units": "m/s"})},
            {"time": ("time", [0.0, 0.1], {"units": "s"}), "cost": row.n * 10, "n": row.n},
        )

    found = xarray_grid(*sims(n=[1, 2]), load)
    assert found["u"].dims == ("n", "time")
    assert found["u"].attrs == {"units": "m/s"}
    assert found["time"].attrs == {"units": "s"}
    assert found["u"].sel(n=2, time=0.1) == 2
    assert found.coords["cost"].values.tolist() == [10, 20]
    single = xarray_grid(*sims(n=[1, 2]), lambda row: load(row)["u"].sel(time=0.1))
    assert single["u"].dims == ("n",)
    assert single.coords["time"].values.tolist() == [0.1, 0.1]


def test_a_frame_keeps_its_columns_and_its_index() -> None:
    """One of pandas, read from a CSV say."""
    index = pd.Index([0.0, 0.5], name="time")
    found = xarray_grid(
        *sims(n=[1, 2]), lambda row: pd.DataFrame({"u": [row.n, 0], "v": [1.0, 2.0]}, index)
    )
    assert found["u"].dims == found["v"].dims == ("n", "time")
    assert found["u"].sel(n=2, time=0.0) == 2


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (np.ones(2), np.ones(3), r"the shape \(2,\).*run0.*\(3,\).*run1.*make them alike"),
        (np.ones(2), 1.0, r"the shape \(2,\).*run0.*\(\) for.*run1"),
        (
            {"u": ("x", [1, 2])},
            {"u": ("y", [1, 2])},
            r"\(2,\) along \('x',\).*run0.*\(2,\) along \('y',\)",
        ),
        (
            {"u": ("x", [1, 2])},
            {"v": ("x", [1, 2, 3])},
            r"'v' the shape \(3,\).*run1.*there are 2 along 'x' since.*run0",
        ),
        (
            xr.DataArray([1, 2], {"t": [0, 1]}),
            xr.DataArray([1, 2], {"t": [0, 2]}),
            r"other labels along 't' for.*run1.*than for.*run0",
        ),
        (np.array(["2026"], "datetime64[D]"), np.array([1.0]), "as float64 for .*run1.*type"),
    ],
)
def test_results_that_do_not_fit_together_are_named(one: Any, two: Any, message: str) -> None:
    """Both of them, with what is different, and what to do."""
    results = {"run0": one, "run1": two}
    with pytest.raises(ExportError, match=message) as caught:
        xarray_grid(*sims(n=[1, 2]), lambda row: results[row.id])
    assert caught.value.ids == ("run0", "run1")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned None for .*run0"),
        ([[1, 2], [3]], "is no array for .*run0"),
        (np.zeros(2, [("a", int)]), "a dict with an array for each field"),
        ({"n": 5}, "a variable 'n' for .*run0"),
        ({"n": [1]}, "a variable 'n' for .*run0"),
        ({"u": ("u", [1])}, "a variable 'u' for .*run0"),
        ({"u": ("x", [1]), "x": 1}, "a variable 'x' for .*run0"),
        ({"id": 1}, "a variable 'id' for .*run0"),
        ({"u": ("n", [1])}, "a dimension 'n' for .*run0"),
        ({"u": ("x", [[1]])}, r"the dimensions \('x',\).*run0.*shape \(1, 1\)"),
    ],
)
def test_a_result_that_has_no_place_is_refused(result: Any, message: str) -> None:
    """With the record that it was loaded for."""
    with pytest.raises(ExportError, match=message) as caught:
        xarray_grid(*sims(n=[1, 2]), lambda row: result)
    assert caught.value.ids == ("run0",)


def test_a_dimension_named_as_a_variable_of_before_is_refused() -> None:
    """And the other way round; xarray itself would say so when all results are loaded."""
    results: dict[str, Any] = {"run0": {"u": 1}, "run1": {"v": ("u", [1])}}
    for first in ("run0", "run1"):
        sim, rows = sims(n=[1, 2])
        grid = grid_layout(sim, rows)
        rows.sort(key=lambda row: row.id != first)
        grid.fill(rows[0], results[rows[0].id])
        with pytest.raises(ExportError, match="of that name"):
            grid.fill(rows[1], results[rows[1].id])


def test_a_result_may_repeat_its_parameters() -> None:
    """As archives often do, so that they can be read by themselves."""
    sim = model(n=int, color=Color)
    rows = records(sim, {"n": 1, "color": Color.RED}, {"n": 2, "color": Color.GREEN})
    found = xarray_grid(
        sim,
        rows,
        lambda row: {"n": np.int64(row.n), "color": row.color.value, "u": row.n},
        dims="n",
    )
    assert list(found.data_vars) == ["u"]
    assert found["color"].values.tolist() == ["red", "green"]


@pytest.mark.parametrize("gaps", [0, 1])
def test_results_are_not_held_twice(gaps: int) -> None:
    """Each is copied to its place, and gone before the next one is loaded."""
    sim, rows = sims(n=list(range(40)))
    size = 250_000
    grid = grid_layout(sim, rows)
    tracemalloc.start()
    try:
        for row in rows[gaps:]:
            grid.fill(row, np.full(size, 1.0))
        found = grid.dataset()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["result"].nbytes == 40 * size * 8
    assert peak < 1.1 * found["result"].nbytes


def test_a_load_that_is_async_is_refused() -> None:
    """Not kept as an object; and nothing is left that Python would warn was never awaited."""

    async def load(row: Any) -> Any:
        return row.n

    async def steps(row: Any) -> Any:
        yield row.n

    for one in (load, steps, lambda row: {"u": load(row)}):
        with pytest.raises(ExportError, match=r"load is async: .*run0") as caught:
            xarray_grid(*sims(n=[1, 2]), one)
        assert caught.value.ids == ("run0",)


def test_an_error_of_load_tells_the_record() -> None:
    """It reaches the caller as itself."""
    _, rows = sims(n=[1])
    with pytest.raises(ZeroDivisionError) as caught:
        load_result(lambda row: row.n / 0, rows[0])
    assert "run0" in caught.value.__notes__[0]
    assert issubclass(errors.ExportError, ValueError)


def test_a_record_of_elsewhere_is_refused() -> None:
    """The grid has no place for it."""
    sim, rows = sims(n=[1, 2])
    grid = grid_layout(sim, rows[:1])
    with pytest.raises(ExportError, match=r"run1.*none of the records"):
        grid.fill(rows[1], 1)


@pytest.mark.parametrize(
    ("result", "dtype", "missing"),
    [
        (np.int8(3), "float32", np.nan),
        (np.int64(3), "float64", np.nan),
        (True, "float32", np.nan),
        (np.float32(0.5), "float32", np.nan),
        (2j, "complex128", complex(np.nan, np.nan)),
        (np.datetime64("2026-01-31T12", "us"), "datetime64[us]", np.datetime64("NaT")),
        (np.timedelta64(5, "s"), "timedelta64[s]", np.timedelta64("NaT")),
        ("text", "object", np.nan),
        (np.array(Fraction(1, 3), object), "object", np.nan),
        (Decimal("0.1"), "object", np.nan),
    ],
)
@pytest.mark.parametrize("gap", ["no run", "not filled", "left out"])
def test_points_without_a_result_are_missing(
    result: Any, dtype: str, missing: Any, gap: str
) -> None:
    """Whether there is no run, or it was not loaded, or its result lacks the variable."""
    sim, rows = sims(n=[1, 1, 2, 2], k=[1, 2, 1, 2])
    grid = grid_layout(sim, rows[:3] if gap == "no run" else rows)
    for row in rows[:3]:
        grid.fill(row, {"u": result})
    if gap == "left out":
        grid.fill(rows[3], {})
    found = grid.dataset()["u"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.values[1, 1], missing)
    assert [found.values[at] for at in ((0, 0), (0, 1), (1, 0))] == [result] * 3
    assert found.isnull().values.tolist() == [[False, False], [False, True]]


def test_a_complete_grid_keeps_its_dtype() -> None:
    """Ints beyond 2**53 among them; and the widest where they differ."""
    sim, rows = sims(n=[1, 2])
    assert xarray_grid(sim, rows, lambda row: 2**53 + row.n)["result"].dtype == np.int64
    found = xarray_grid(sim, rows, lambda row: [row.n, 0.5][row.n - 1])["result"]
    assert found.values.tolist() == [1, 0.5]
    texts = xarray_grid(sim, rows, lambda row: "x" * 5 * row.n)["result"]
    assert texts.values.tolist() == ["xxxxx", "xxxxxxxxxx"]


def test_masked_elements_are_missing() -> None:
    """As in what the netCDF library reads."""
    masked = np.ma.masked_equal(np.array([1, 2, 3], "int16"), 2)
    found = xarray_grid(*sims(n=[1, 2]), lambda row: masked)["result"]
    np.testing.assert_array_equal(found.values[0], [1, np.nan, 3])
    whole = np.ma.array([1, 2])
    assert xarray_grid(*sims(n=[1, 2]), lambda row: whole)["result"].dtype == np.int64


def test_a_grid_is_filled_from_many_threads() -> None:
    """They begin at once, with variables of several dtypes that no one has made yet."""
    count = 64
    sim, rows = sims(n=list(range(count)))
    grid, start = grid_layout(sim, rows), threading.Barrier(8)

    def fill(share: int) -> None:
        start.wait()
        for row in rows[share::8]:
            grid.fill(row, {"u": np.full(100, row.n if row.n % 2 else row.n + 0.5), "n2": row.n})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    found = grid.dataset()
    expected = np.arange(count) + np.where(np.arange(count) % 2, 0, 0.5)
    np.testing.assert_array_equal(found["u"].values, np.tile(expected[:, None], 100))
    assert found["n2"].values.tolist() == list(range(count))


def test_a_grid_can_be_saved_and_has_what_was_saved(tmp_path: Path) -> None:
    """Labels, ids and gaps, in a file of netCDF 3 that scipy writes."""
    sim, rows = sims(n=[1, 1, 2], k=[1, 2, 1])
    found = xarray_grid(sim, rows, lambda row: np.ones(2) * row.n)
    found.to_netcdf(tmp_path / "grid.nc", engine="scipy", format="NETCDF3_64BIT")
    saved = xr.load_dataset(tmp_path / "grid.nc", engine="scipy")
    xr.testing.assert_equal(saved, found.assign_coords(id=saved["id"]))
    assert saved["id"].values.tolist() == [["run0", "run1"], ["run2", ""]]


SETS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.integers(-3, 3),
            "dt": st.sampled_from([0.1, 0.2, 0.3, 1e-13, 2e-13]),
            "label": st.sampled_from([None, "a", "b"]),
        }
    ),
    max_size=12,
    unique_by=lambda values: tuple(str(item) for item in sorted(values.items())),
)


@settings(max_examples=60, deadline=None)
@given(SETS, st.sampled_from([(), (1,), (2, 3)]), st.sampled_from(["int16", "float64", "c16"]))
def test_a_grid_read_back_at_each_point_is_what_was_loaded(
    sets: list[dict[str, Any]], shape: tuple[int, ...], dtype: str
) -> None:
    """And all else in it is missing."""
    rows = records(Point, *sets)
    arrays = {
        row.id: np.full(shape, number + 1, dtype) * (1 + np.arange(math.prod(shape)).reshape(shape))
        for number, row in enumerate(rows)
    }
    found = xarray_grid(Point, rows, lambda row: arrays[row.id])
    filled = 0
    for row in rows:
        at = {
            name: [
                place
                for place, label in enumerate(found[name].values)
                if label == getattr(row, name) or (getattr(row, name) is None and pd.isna(label))
            ]
            for name in ("n", "dt", "label")
            if name in found.dims
        }
        assert all(len(places) == 1 for places in at.values())
        point = found.isel({name: places[0] for name, places in at.items()})
        assert point["id"].item() == row.id
        np.testing.assert_array_equal(point["result"].values, arrays[row.id])
        filled += arrays[row.id].size
    assert not rows or int(found["result"].notnull().sum()) == filled


@pytest.mark.parametrize(
    ("package", "make"),
    [("pandas", pandas_frame), ("polars", polars_frame), ("xarray", grid_layout)],
)
def test_a_package_that_is_not_installed_is_named(
    package: str, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the extra that brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"pip install 'entropic\[{package}\]'"):
        make(Point, [])


def test_what_a_package_itself_lacks_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To install the extra again would not help."""
    (tmp_path / "polars.py").write_text("import of_its_own\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "polars")
    with pytest.raises(ModuleNotFoundError, match="of_its_own"):
        needed("polars")


def test_exporting_loads_no_package_that_is_not_asked_for() -> None:
    """Nor does an import of the module."""
    program = (
        "import entropic.export as export, sys; from tests.simulations import Point;"
        "export.{}(Point, []); print(*{{'pandas', 'polars', 'xarray'}} & set(sys.modules))"
    )
    for name, loaded in (("pandas_frame", "pandas"), ("polars_frame", "polars")):
        command = [sys.executable, "-c", program.format(name)]
        root = Path(__file__).parents[1]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(root), "PATH": ""},
        )
        assert ran.stdout.split() == [loaded]


def test_needed_gives_the_module() -> None:
    """So that a store can ask before it reads anything."""
    assert isinstance(needed("polars"), ModuleType)
