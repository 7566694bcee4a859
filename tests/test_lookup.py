"""Looking up: many ask at once, and none of them is in another's way, or has another's record."""

import asyncio
import functools
import gc
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from entropic import AsyncStore, SchemaError, artifacts, mapped_column
from entropic.artifacts.mounts import is_local
from tests import databases
from tests.models import model
from tests.scripts import wait_for
from tests.simulations import Point, calls, mark_call, simulate

pytestmark = pytest.mark.usefixtures("database")

DEADLINE = 20.0


def write(params: dict[str, Any]) -> None:
    """The smallest simulation."""
    mark_call(params)
    Path(params["result_file"]).write_text("x")


def make(**settings: Any) -> AsyncStore[Any]:
    """A store of points."""
    usual = {"runner": simulate, "result_cls": Point, "file_suffix": ".npy"}
    return AsyncStore(**{**usual, "db_url": databases.url(), **settings})


@pytest.mark.parametrize("where", ["registered", "on a mount"])
def test_a_result_that_is_slow_to_look_at_keeps_nobody_waiting(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mount that does not answer: neither the other calls nor the end of the store."""
    far, answers = Path("far").absolute(), threading.Event()
    far.mkdir()
    looked = threading.Event()
    stat = os.stat

    def slow(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str) and os.path.abspath(path) == hangs:
            looked.set()
            assert answers.wait(DEADLINE)
        return stat(path, *args, **kwargs)

    if where == "on a mount":
        monkeypatch.setattr(artifacts, "is_local", lambda path: False)
    hangs = ""

    async def main() -> None:
        nonlocal hangs
        async with make() as store:
            (far / "made").write_text("x")
            await store.sweep([{"n": n} for n in range(1, 5)])
            if where == "registered":
                await store.register({"n": 0}, far / "made")
            path = (await store.run_or_retrieve({"n": 0})).result_file
            hangs = os.path.abspath(path)
            monkeypatch.setattr(os, "stat", slow)
            slowly = asyncio.create_task(store.retrieve({"n": 0}))
            await asyncio.to_thread(looked.wait, DEADLINE)
            async with asyncio.timeout(DEADLINE / 2):
                assert await store.retrieve({"n": 1}) is not None
                assert (await store.run_or_retrieve({"n": 2})).n == 2
                assert (await store.run({"n": 3})).n == 3
                assert [r.n for r in await store.sweep([{"n": 4}, {"n": 5}])] == [4, 5]
                assert await store.failures() == []
                assert await store.delete({"n": 4})
            assert not slowly.done()
            slowly.cancel()
        answers.set()

    asyncio.run(main())


def test_a_row_that_cannot_be_read_is_told_to_who_asks_for_it() -> None:
    """And not to all who ask at the same time."""
    sims = model(n=int, label=(str | None, mapped_column(sa.String)))

    async def main() -> None:
        async with make(runner=write, result_cls=sims) as store:
            sets = [{"n": n, "label": "x"} for n in range(6)]
            bad = (await store.sweep(sets))[3].id
            databases.change(f"UPDATE sims SET n = 'four' WHERE id = '{bad}'")
            for ask in (store.retrieve, store.run_or_retrieve):
                told = await asyncio.gather(*map(ask, sets), return_exceptions=True)
                assert [type(one) for one in told] == [*[sims] * 3, SchemaError, *[sims] * 2]

    if databases.current().name == "sqlite":  # the other keeps no text in a column of integers
        asyncio.run(main())


def test_a_default_function_is_called_once_for_a_set() -> None:
    """What was looked up is what is run."""
    count = itertools.count()
    seeded = model(n=int, seed=(int, mapped_column(default=lambda: next(count))))

    async def main() -> None:
        async with make(runner=write, result_cls=seeded) as store:
            assert [(await store.run_or_retrieve({"n": 1})).seed for _ in range(3)] == [0, 1, 2]
            assert (await store.run({"n": 1})).seed == 3

    asyncio.run(main())
    assert calls() == 4


def test_a_record_that_was_given_is_its_takers_alone() -> None:
    """What is dropped is gone, with all that was put on it."""

    async def main() -> None:
        async with make() as store:
            await store.sweep([{"n": n} for n in range(20)])
            for ask in (
                functools.partial(store.sweep, [{"n": n} for n in range(20)]),
                functools.partial(store.retrieve, {"n": 1}),
                functools.partial(store.run_or_retrieve, {"n": 1}),
            ):
                await collected(ask)

    async def collected(ask: Callable[[], Any]) -> None:
        got = await ask()
        seen = [weakref.ref(one) for one in (got if isinstance(got, list) else [got])]
        del got
        gc.collect()
        # A thread may still be at its last step.
        await asyncio.to_thread(wait_for, lambda: all(ref() is None for ref in seen))

    asyncio.run(main())


@databases.only_sqlite
def test_two_threads_that_touch_one_record_make_one_state() -> None:
    """What either of them has changed is known to it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for n in range(300):
            record = asyncio.run(_one()) if n == 0 else artifactless()
            ready = threading.Barrier(2)

            def change(name: str, value: Any, record: Any = record, ready: Any = ready) -> None:
                ready.wait()
                setattr(record, name, value)

            threads = [
                threading.Thread(target=change, args=change_of)
                for change_of in (("n", n + 1), ("label", "changed"))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            about = sa.inspect(record)
            assert about.detached
            assert all(about.attrs[name].history.has_changes() for name in ("n", "label"))
    finally:
        sys.setswitchinterval(interval)


async def _one() -> Point:
    async with make() as store:
        record: Point = await store.run_or_retrieve({"n": 0})
        return record


def artifactless() -> Point:
    """A record as a look-up makes it."""
    from entropic.models import detached

    return detached(Point, {"id": "a", "n": 0, "dt": 0.5, "label": None, "custom_data": {}})


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="only Linux tells")
@databases.only_sqlite
def test_what_is_on_a_disk_of_this_machine_is_told_from_the_rest() -> None:
    """Also before it is made."""
    assert is_local("/dev/shm")
    assert is_local("/dev/shm/not/made/yet")
    assert not is_local("/proc/self")
