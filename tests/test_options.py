"""Keyword arguments are custom data, whatever their names: one that may be an option is told."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore
from tests.simulations import Point, simulate


def test_a_warning_points_at_the_line_that_called(make_store: Callable[..., Any]) -> None:
    """Not into asyncio, where nobody can do anything about it."""
    store = make_store("store")
    Path("made").write_text("result")
    for call in (
        lambda: store.run({"n": 3}, client=3),
        lambda: store.run_or_retrieve({"n": 3}, client=3),
        lambda: store.register({"n": 3}, "made", client=3),
    ):
        with pytest.warns(UserWarning, match="option 'client' is an argument of sweep") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
    assert store.retrieve({"n": 3}).custom_data == {"client": 3}


def test_an_async_store_points_there_too() -> None:
    """The coroutine that awaits is the one that called."""

    async def main() -> None:
        async with AsyncStore(simulate, Point, file_suffix=".npy") as store:
            with pytest.warns(UserWarning, match="option 'checksum'") as caught:
                record = await store.run_or_retrieve({"n": 3}, checksum="abc", note="kept")
            assert [warning.filename for warning in caught] == [__file__]
            assert record.custom_data["checksum"] == "abc"

    asyncio.run(main())


def test_other_names_are_no_options(store: Any) -> None:
    """Not even those of the methods' own arguments."""
    record = store.run_or_retrieve({"n": 3}, params=1, self=2, function=3, hash=4)
    assert record.custom_data.items() >= {"params": 1, "self": 2, "function": 3, "hash": 4}.items()
