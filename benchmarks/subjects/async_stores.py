"""What entropic 2.3.0 has not: ``AsyncStore``, other executors, streams."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from measuring import main, measured
from models import store_of
from simulations import five_ms, sets, trivial

from entropic import AsyncStore, Store


def thread(size: int) -> None:
    asyncio.run(_sweep("thread", size))


def process(size: int) -> None:
    asyncio.run(_sweep("process", size))


def warm(size: int) -> None:
    asyncio.run(_warm(size))


def hits(size: int) -> None:
    asyncio.run(_hits(size))


def concurrent_hits(size: int) -> None:
    asyncio.run(_concurrent_hits(size))


def warm_thousand(size: int) -> None:
    """A sweep of a thousand stored sets, of however many there are."""
    asyncio.run(_warm(min(size, 1_000)))


def cold_thousand(size: int) -> None:
    """A sweep of a thousand new sets, beside however many there are."""
    asyncio.run(_cold(min(size, 1_000)))


def stream(size: int) -> None:
    asyncio.run(_stream(size))


def sync_stream(size: int) -> None:
    with store_of(Store, _must_not_run) as store:
        assert store.retrieve({"n": 0, "dt": 0.5}) is not None
        count = 0
        with measured():
            for _ in store.as_completed(sets(size)):
                count += 1
    assert count == size


async def _sweep(executor: str, size: int) -> None:
    async with store_of(AsyncStore, five_ms, executor=executor, max_workers=2) as store:
        # The first runs, of other sets, start the workers and open the store.
        await store.sweep([{"n": -n, "dt": 0.5} for n in range(1, 21)])
        with measured():
            records = await store.sweep(sets(size))
    assert len(records) == size


async def _warm(size: int) -> None:
    async with _opened() as store:
        params = list(sets(size))
        with measured():
            records = await store.sweep(params)
    assert len(records) == size


async def _cold(size: int) -> None:
    first = time.time_ns()
    async with store_of(AsyncStore, trivial) as store:
        params = [{"n": first + n, "dt": 0.5} for n in range(size)]
        await store.run_or_retrieve({"n": -first, "dt": 0.5})
        with measured():
            records = await store.sweep(params)
    assert len(records) == size


async def _hits(size: int) -> None:
    async with _opened() as store:
        params = list(sets(size))
        assert await store.retrieve(params[0]) is not None
        with measured():
            for each in params:
                assert await store.retrieve(each) is not None


async def _concurrent_hits(size: int) -> None:
    async with _opened() as store:
        params = list(sets(size))
        assert await store.retrieve(params[0]) is not None
        with measured():
            records = await asyncio.gather(*map(store.run_or_retrieve, params))
    assert len(records) == size


async def _stream(size: int) -> None:
    async with _opened() as store:
        count = 0
        with measured():
            async for _ in store.as_completed(sets(size)):
                count += 1
    assert count == size


def _opened() -> Any:
    return store_of(AsyncStore, _must_not_run)


def _must_not_run(params: dict[str, Any]) -> None:
    raise AssertionError(f"not stored: {params}")


if __name__ == "__main__":
    functions: dict[str, Callable[[int], None]] = {
        "thread": thread,
        "process": process,
        "warm": warm,
        "hits": hits,
        "concurrent_hits": concurrent_hits,
        "warm_thousand": warm_thousand,
        "cold_thousand": cold_thousand,
        "stream": stream,
        "sync_stream": sync_stream,
    }
    main(functions)
