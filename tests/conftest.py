"""Fixtures: a working directory for each test, and stores of every kind behind one face."""

import asyncio
import functools
import gc
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from entropic import AsyncStore, Store
from entropic.worker import is_async as is_async_runner
from tests import byday, databases
from tests.simulations import Point, simulate, simulate_async

T = TypeVar("T")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class SyncFace:
    """An ``AsyncStore`` that is called as a ``Store`` is: so that one test serves for both."""

    def __init__(self, store: AsyncStore[Any], runner: asyncio.Runner) -> None:
        self.store = store
        self._runner = runner

    def run_here(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the store's loop."""
        return self._runner.run(work)

    def __getattr__(self, name: str) -> Any:
        if name in ("as_completed", "iter_find"):
            return functools.partial(self._streamed, name)
        method = getattr(self.store, "aclose" if name == "close" else name)
        if not inspect.iscoroutinefunction(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._runner.run(method(*args, **kwargs))

        return call

    def _streamed(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return self._one_by_one(getattr(self.store, name)(*args, **kwargs))

    def _one_by_one(self, records: AsyncGenerator[Any, None]) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(records, None)

        try:
            while (record := self._runner.run(step())) is not None:
                yield record
        finally:
            self._runner.run(_close(records))


async def _close(records: AsyncGenerator[Any, None]) -> None:
    await records.aclose()


@pytest.fixture(scope="session", autouse=True)
def no_database_left() -> Iterator[None]:
    """None on the server, after the tests."""
    yield
    databases.drop_all()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses ``database`` where its mark says, or on each; ``store`` brings its own."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "database" not in metafunc.fixturenames or any("database" in mark.args[0] for mark in marks):
        return
    if "store" in metafunc.fixturenames:
        metafunc.parametrize("database", ["sqlite"], ids=[pytest.HIDDEN_PARAM], indirect=True)
    else:
        mark = metafunc.definition.get_closest_marker("databases") or databases.both.mark
        metafunc.parametrize("database", mark.args, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave some cases to the night; see ``byday``."""
    byday.leave_to_the_night(items)


@pytest.fixture
def database(request: pytest.FixtureRequest, folder: Path) -> Iterator[databases.Place]:
    """Each database that several processes can share; the current one for this test."""
    with databases.made(request.param) as place:
        yield place


KINDS = ("store", "store-threads", "async-threads", "async-loop")


@pytest.fixture
def make_store() -> Iterator[Callable[..., Any]]:
    """Makes stores, of any kind, and closes them after the test.

    ``make_store(kind="store", **settings)``; ``Point`` and a small simulation by default.
    """
    opened: list[Any] = []
    with asyncio.Runner() as runner:

        def make(kind: str = "store", **settings: Any) -> Any:
            is_async = kind == "async-loop"
            settings = {
                "runner": simulate_async if is_async else simulate,
                "result_cls": Point,
                "file_suffix": ".npy",
                "db_url": databases.url(),
                **settings,
            }
            store: Any
            if kind.startswith("async"):
                store = SyncFace(AsyncStore(**settings), runner)
            else:
                executor = "thread" if kind == "store-threads" else "caller"
                is_caller = executor == settings.get("executor", executor) == "caller"
                if is_caller and not is_async_runner(settings["runner"]):
                    settings.pop("max_workers", None)  # there is but one calling thread
                store = Store(**{"executor": executor, **settings})
            opened.append(store)
            return store

        yield make
        for store in opened:
            store.close()


# Each kind on a file; one synchronous and one asynchronous kind on each other database, where only
# the connection differs.
SUBJECTS = [
    *(f"{kind}-sqlite" for kind in KINDS),
    *(f"{kind}-{name}" for kind in ("store", "async-threads") for name in ("memory", "postgresql")),
]


@pytest.fixture(params=SUBJECTS)
def store(
    request: pytest.FixtureRequest, folder: Path, make_store: Callable[..., Any]
) -> Iterator[Any]:
    """A store of every kind on every database, as a synchronous one: the contract's subject."""
    kind, _, name = request.param.rpartition("-")
    with databases.made(name):
        made = make_store(kind)
        yield made
        made.close()


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector, which tests call often, need not look at it."""
    gc.collect()
    gc.freeze()
