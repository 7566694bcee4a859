"""Messages of errors: whatever value is at fault, they stay short enough to be read."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from entropic import AsyncStore, EntropicError, ExportError, Store, expand_grid, mapped_column
from entropic.export import grid_layout, xarray_grid
from tests import databases
from tests.models import model
from tests.simulations import Point, simulate
from tests.test_export import sims

TEXT = "x" * 100_000
LIST = [TEXT, *range(100_000)]
PARAMS = {"n": 1, "label": TEXT}
FIELDS = np.zeros(2, [(f"field{number}", int) for number in range(1000)])
MOST = 1500  # characters


class Angle(sa.TypeDecorator[str]):
    """A type that says what it refuses."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Refuse all."""
        raise ValueError(value)


def refuse() -> int:
    """A default that says what it does not find."""
    raise LookupError(TEXT)


def check(call: Callable[[], Any]) -> None:
    """That an error tells something, and not all of the value."""
    with pytest.raises((EntropicError, TypeError, OSError)) as caught:
        call()
    assert 20 < len(str(caught.value)) < MOST


ON_A_STORE: dict[str, Callable[[Any], Any]] = {
    "params of no dict": lambda store: store.run(LIST),
    "a value": lambda store: store.run({"n": TEXT}),
    "a key": lambda store: store.run({TEXT: 1}),
    "keys that are given": lambda store: store.run({"label": "a"}),
    "an id": lambda store: store.run({"n": 1, "id": TEXT}),
    "a sweep of a dict": lambda store: store.sweep({"n": LIST}),
    "a sweep of a text": lambda store: store.sweep(TEXT),
    "a policy": lambda store: store.sweep([{"n": 1}], on_error=TEXT),
    "an executor": lambda store: store.sweep([{"n": 1}], executor=TEXT),
    "a number of workers": lambda store: store.sweep([{"n": 1}], max_workers=TEXT),
    "a time": lambda store: store.sweep([{"n": 1}], timeout=TEXT),
    "progress": lambda store: store.sweep([{"n": 1}], progress=TEXT),
    "custom data of no dict": lambda store: store.sweep([{"n": 1}], custom_data=TEXT),
    "custom data": lambda store: store.run({"n": 1}, note={"a": {1, TEXT}, "b": object()}),
    "a key of custom data": lambda store: store.run({"n": 1}, **{TEXT: object()}),
    "a key within custom data": lambda store: store.run({"n": 1}, note={(TEXT,): 1}),
    "an array of fields": lambda store: store.run({"n": 1}, note=FIELDS),
    "a field of an array": lambda store: store.run({"n": 1}, note=FIELDS[0]),
    "a result that is none": lambda store: store.register({"n": 1}, TEXT.encode()),
    "a column": lambda store: store.find({TEXT: 1}),
    "a condition": lambda store: store.find(TEXT),
    "an order": lambda store: store.find(order_by=TEXT),
    "a limit": lambda store: store.find(limit=TEXT),
    "two sets of one id": lambda store: store.sweep([{**PARAMS, "id": "a"}, {"n": 2, "id": "a"}]),
    "two sets of one id, the other first": lambda store: store.sweep(
        [{"n": 2, "id": "a"}, {**PARAMS, "id": "a"}]
    ),
}


@pytest.mark.parametrize("call", ON_A_STORE.values(), ids=ON_A_STORE)
def test_what_a_store_cannot_take_is_shown_cut(
    call: Callable[[Any], Any], make_store: Callable[..., Any]
) -> None:
    """Params, options, conditions."""
    store = make_store()
    check(lambda: call(store))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("runner", LIST),
        ("results_dir", LIST),
        ("file_suffix", f"/{TEXT}"),
        ("executor", TEXT),
        ("retries", TEXT),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_what_a_store_cannot_be_made_with_is_shown_cut(name: str, value: Any) -> None:
    """Its settings."""
    settings: dict[str, Any] = {"runner": simulate, "result_cls": Point, name: value}
    check(lambda: Store(**settings))


def test_params_of_a_run_that_is_stored_or_under_way_are_shown_cut(tmp_path: Path) -> None:
    """Where an id of the caller's own stands for them."""

    async def scenario() -> None:
        is_running, may_end = asyncio.Event(), asyncio.Event()

        async def runner(params: dict[str, Any]) -> None:
            is_running.set()
            await may_end.wait()
            Path(params["result_file"]).write_text("done")

        async with AsyncStore(runner, Point, db_url=databases.url()) as store:
            first = asyncio.create_task(store.run_or_retrieve({**PARAMS, "id": "a"}))
            await is_running.wait()
            for _ in ("under way", "stored"):
                with pytest.raises(EntropicError) as caught:
                    await store.run_or_retrieve({"n": 2, "label": TEXT + "y", "id": "a"})
                assert len(str(caught.value)) < MOST
                may_end.set()
                await first

    asyncio.run(scenario())


def test_a_warning_about_custom_data_shows_it_cut(make_store: Callable[..., Any]) -> None:
    """One of an option's name."""
    with pytest.warns(UserWarning, match="is kept as custom data") as caught:
        make_store().run({"n": 1}, timeout=TEXT)
    assert len(str(caught[0].message)) < MOST


def test_what_the_users_own_code_said_is_shown_cut(make_store: Callable[..., Any]) -> None:
    """A column's type, or a default function."""
    angles = model(n=int, angle=(str, lambda: mapped_column(Angle)))
    store = make_store(result_cls=angles)
    check(lambda: store.run({"n": 1, "angle": TEXT}))
    store = make_store(result_cls=model("counts", n=(int, lambda: mapped_column(default=refuse))))
    check(lambda: store.run({}))


def test_values_of_a_grid_of_parameters_are_shown_cut() -> None:
    """And so is the name that they have."""
    check(lambda: expand_grid({"n": TEXT}))
    check(lambda: expand_grid({TEXT: 1}))  # type: ignore[dict-item]  # the classic mistake


def test_what_an_export_cannot_take_is_shown_cut() -> None:
    """Dimensions, names, and what numpy says of them."""
    check(lambda: grid_layout(*sims(n=[1, 2]), dims=TEXT))
    check(lambda: grid_layout(*sims(n=[1, 2]), dims=["n"] * 10_000))
    results: list[dict[str, Any]] = [
        {TEXT: None},
        {TEXT: [[1], [1, 2]]},
        {"u": ((TEXT,), [[1]])},
        {"u": (TEXT, [1]), TEXT: 1},
        {"u": FIELDS},
    ]
    for result in results:
        check(functools.partial(xarray_grid, *sims(n=[1, 2]), functools.partial(_given, result)))


def test_a_grid_of_very_many_parameters_is_refused_as_too_large() -> None:
    """Of more points than a float can count."""
    sim, rows = sims(**{f"p{number}": list(range(20)) for number in range(300)})
    with pytest.raises(ExportError, match=r"about 10\^390 points.*and 290 more") as caught:
        grid_layout(sim, rows)
    assert len(str(caught.value)) < MOST


def _given(result: Any, record: Any) -> Any:
    return result
