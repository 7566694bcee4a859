"""How runs share transactions: short ones do, and a long one is on record as soon as it ends."""

import asyncio
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, Store
from entropic.pipeline.batching import Batcher
from tests import databases
from tests.scripts import DEADLINE
from tests.simulations import Point, simulate

pytestmark = pytest.mark.usefixtures("database")


def run_and_note(params: dict[str, Any]) -> None:
    """A run of 30 ms that notes when it has ended, on the clock that all processes share."""
    time.sleep(0.03)
    simulate(params)
    Path(f"ended-{params['n']}").write_text(repr(time.monotonic()))


def watch(count: int, seen: dict[int, float]) -> None:
    """Note when another connection first sees each row."""
    over = time.monotonic() + DEADLINE
    with databases.current().asking() as ask:
        while len(seen) < count and time.monotonic() < over:
            for n in ask("SELECT n FROM points"):
                seen.setdefault(n, time.monotonic())
            time.sleep(0.002)


@databases.either
@pytest.mark.parametrize("executor", ["caller", "thread", "process"])
def test_a_finished_run_is_on_record_at_once(folder: Path, executor: str) -> None:
    """Within 100 ms of its end, while others still run: half of them well within it."""
    seen: dict[int, float] = {}
    url = databases.url()
    workers = 1 if executor == "caller" else 2
    with Store(
        run_and_note, Point, file_suffix=".npy", db_url=url, executor=executor, max_workers=workers
    ) as store:
        store.run({"n": -1})
        watching = threading.Thread(target=watch, args=(21, seen))
        watching.start()
        store.sweep({"n": n} for n in range(20))
        watching.join()
    late = [seen[n] - float(Path(f"ended-{n}").read_text()) for n in range(20)]
    assert statistics.median(late) < 0.1, late


def test_short_runs_share_transactions(folder: Path) -> None:
    """Three hundred claims and three hundred commits, in far fewer transactions."""
    databases.current().count_transactions()

    async def main() -> int:
        async with AsyncStore(simulate, Point, file_suffix=".npy", db_url=databases.url()) as store:
            before = databases.current().transactions()
            await store.sweep({"n": n} for n in range(300))
            return databases.current().transactions() - before

    assert asyncio.run(main()) < 100


@databases.only_sqlite  # or none
@pytest.mark.anyio
async def test_a_task_cancelled_before_it_began_is_replaced() -> None:
    """A loop that ends cancels it with all others; those who wait are answered all the same."""

    async def call(items: list[int]) -> list[int]:
        return items

    batcher = Batcher[int, int](call, 1)
    others = asyncio.all_tasks()
    asking = asyncio.create_task(batcher.ask([1]))
    await asyncio.sleep(0)
    (working,) = asyncio.all_tasks() - others - {asking}
    working.cancel()
    async with asyncio.timeout(10):
        assert await asking == [1]
        assert await batcher.ask([2]) == [2]


@databases.only_sqlite  # or none
def test_who_asks_while_a_loop_ends_is_answered() -> None:
    """A loop that ends cancels all tasks, the one that answers among them."""
    answered: list[int] = []

    async def call(items: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return items

    async def main() -> None:
        batcher = Batcher[int, int](call, 1)

        async def leave(n: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:  # as a run gives its claim back
                answered.extend(await batcher.ask([n]))

        for n in range(3):
            asyncio.create_task(leave(n))  # noqa: RUF006  the loop ends with them
        asyncio.create_task(batcher.ask([3]))  # noqa: RUF006
        await asyncio.sleep(0)

    async def ended() -> None:
        async with asyncio.timeout(10):
            await asyncio.to_thread(asyncio.run, main())

    asyncio.run(ended())
    assert sorted(answered) == [0, 1, 2]
