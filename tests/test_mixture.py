"""Calls of all kinds at once, with failures, time limits and early leaving, in any order."""

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, SweepError
from entropic.schedule import OnError
from tests import databases
from tests.simulations import Point


class SeventhError(Exception):
    """What every seventh run raises."""


def fails(n: int) -> bool:
    """Whether the run of this number does."""
    return n % 7 == 3


async def call(store: AsyncStore[Point], chance: random.Random) -> None:
    """One call; whatever it returns in time must be right."""
    on_error: OnError = chance.choice(["raise", "finish", "skip"])
    first = chance.randrange(200)
    numbers = [first + chance.randrange(20) for _ in range(chance.randrange(1, 40))]
    sets = [{"n": n} for n in numbers]
    expected = [n for n in numbers if on_error != "skip" or not fails(n)]
    try:
        async with asyncio.timeout(chance.choice([0.001, 0.01, 0.05, 0.2, 30])):
            match chance.choice(["one", "sweep", "stream", "stream"]):
                case "one":
                    assert (await store.run_or_retrieve(sets[0])).n == numbers[0]
                case "sweep":
                    records = await store.sweep(sets, on_error=on_error, retries=first % 2)
                    assert [record.n for record in records] == list(dict.fromkeys(expected))
                case "stream":
                    await take(store, sets, on_error, expected, chance)
    except (TimeoutError, SeventhError):
        pass
    except SweepError:
        assert on_error == "finish"


async def take(
    store: AsyncStore[Point],
    sets: list[dict[str, Any]],
    on_error: OnError,
    expected: list[int],
    chance: random.Random,
) -> None:
    """A stream that is read to its end, or left before."""
    records = store.as_completed(iter(sets), on_error=on_error)
    most = chance.choice([3, 1000])
    taken = []
    async for record in records:
        taken.append(record.n)
        if len(taken) >= most:
            break
    else:
        assert sorted(taken) == sorted(expected)
    await records.aclose()


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("database", "seed", "rounds"),
    [
        ("sqlite", 1, 40),
        ("postgresql", 2, 25),
        *(pytest.param(name, 3, 5000, marks=pytest.mark.nightly) for name in databases.NAMES),
    ],
    indirect=["database"],
)
@pytest.mark.timeout(900)
def test_whatever_is_called_at_once_is_right_and_leaves_nothing(
    seed: int, rounds: int, folder: Path
) -> None:
    """No wrong record, no hang, no task, no staging folder."""
    chance = random.Random(seed)

    def run(params: dict[str, Any]) -> None:
        time.sleep(chance.random() * 0.005)
        if fails(params["n"]):
            raise SeventhError(params["n"])
        Path(params["result_file"]).write_text("result")

    async def run_async(params: dict[str, Any]) -> None:
        await asyncio.sleep(chance.random() * 0.01)
        if fails(params["n"]):
            raise SeventhError(params["n"])
        Path(params["result_file"]).write_text("result")

    async def main() -> None:
        for _ in range(rounds):
            async with (
                asyncio.timeout(60),
                AsyncStore(
                    chance.choice([run, run_async]),
                    Point,
                    file_suffix=".txt",
                    db_url=databases.url(),
                    max_workers=chance.choice([1, 2, 5]),
                ) as store,
            ):
                calls = (call(store, chance) for _ in range(chance.randrange(1, 8)))
                await asyncio.gather(*calls)
            assert os.listdir(folder / "results/.entropic/staging") == []
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
