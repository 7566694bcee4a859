"""What would happen: ``plan`` and ``explain`` say it, and run nothing."""

import asyncio
import threading
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from entropic import AsyncStore, Base, IdConflictError, Mapped, ParamsError, Plan, SettingsError
from entropic.models.showing import spell_bytes, spell_seconds
from entropic.outlook import eta_seconds
from tests import databases
from tests.simulations import Point, calls, simulate


class Settled(Base):
    """Parameters that a database can compare, and one that it cannot."""

    __tablename__ = "settled"

    n: Mapped[int]
    dt: Mapped[float]
    word: Mapped[str | None]
    config: Mapped[dict[str, Any] | None]


def fails_for_two(params: dict[str, Any]) -> None:
    """As one does whose parameters make no sense."""
    if params["n"] == 2:
        raise ValueError("n is two")
    simulate(params)


def write(params: dict[str, Any]) -> None:
    """A small result."""
    Path(params["result_file"]).write_text("x")


def test_a_plan_counts_what_a_sweep_would_meet(make_store: Any, database: databases.Place) -> None:
    """Hits, failures and misses, each distinct set once; the sweep then does just that."""
    store = make_store(runner=fails_for_two)
    store.sweep([{"n": n} for n in range(4)], on_error="skip")
    Path(store.retrieve({"n": 3}).result_file).unlink()
    before = calls()
    sets = [{"n": n} for n in (0, 1, 1.0, 2, 3, 4, 5)]
    plan = store.plan(iter(sets))
    assert (plan.hits, plan.in_flight, plan.failed, plan.misses) == (2, 0, 1, 3)
    assert plan.eta_seconds is not None
    assert plan.eta_seconds > 0
    assert calls() == before
    assert repr(plan).startswith(
        "6 sets: 2 stored, 4 to run\n1 of those have failed before\nabout "
    )
    store.sweep(sets, on_error="skip")
    assert calls() == before + 3
    assert store.plan(sets[:2]) == Plan(2, 0, 0, 0, 0.0)
    assert repr(store.plan(sets[:2])) == "2 sets: 2 stored, 0 to run"


def test_a_plan_without_any_run_on_record_has_no_estimate(make_store: Any) -> None:
    """And says so; an async iterable, and options, are as of a sweep."""
    store = make_store()
    plan = store.plan([{"n": 1}], max_workers=1)
    assert plan == Plan(0, 0, 0, 1, None)
    assert "no run is on record" in repr(plan)
    with pytest.raises(ParamsError, match="one dict"):
        store.plan({"n": 1})
    with pytest.raises(ParamsError, match="cannot take 'x'") as caught:
        store.plan([{"n": 1}, {"n": "x"}])
    assert "position 1" in caught.value.__notes__[0]
    with pytest.raises(SettingsError, match="executor must be"):
        store.plan([{"n": 1}], executor="nowhere")


@pytest.mark.parametrize(
    ("to_run", "in_flight", "workers", "mean", "eta"),
    [
        (0, 0, 4, None, 0.0),
        (0, 3, 4, 2.0, 2.0),
        (1, 0, 4, 2.0, 2.0),
        (9, 0, 4, 2.0, 6.0),
        (9, 0, 4, None, None),
    ],
)
def test_time_left_is_shared_out_among_the_workers(
    to_run: int, in_flight: int, workers: int, mean: float | None, eta: float | None
) -> None:
    """By whole runs."""
    assert eta_seconds(to_run, in_flight, workers, mean) == eta


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [(0.004, "0.004 seconds"), (75, "75 seconds"), (90, "1.5 minutes"), (7200, "2.0 hours")],
)
def test_durations_are_for_people(seconds: float, spelled: str) -> None:
    """With a unit that fits."""
    assert spell_seconds(seconds) == spelled


@pytest.mark.parametrize(
    ("count", "spelled"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2 * 10**9, "2.0 GB"),
        (10**15, "1.0 PB"),
        (10**18 - 1, "1000.0 PB"),
        (10**400, "about 10^400 B"),
    ],
)
def test_sizes_are_for_people(count: int, spelled: str) -> None:
    """In powers of 1000, be they beyond all floats."""
    assert spell_bytes(count) == spelled


def test_runs_of_others_are_in_flight(database: databases.Place) -> None:
    """Those of another store; whoever runs one is named."""

    async def main() -> None:
        may_end, has_begun = threading.Event(), threading.Event()

        def slow(params: dict[str, Any]) -> None:
            has_begun.set()
            assert may_end.wait(30)
            simulate(params)

        url = databases.url()
        async with (
            AsyncStore(slow, Point, file_suffix=".npy", db_url=url) as one,
            AsyncStore(simulate, Point, file_suffix=".npy", db_url=url) as other,
        ):
            running = asyncio.ensure_future(one.run_or_retrieve({"n": 1}))
            await asyncio.to_thread(has_begun.wait, 30)
            try:
                plan = await other.plan([{"n": 1}, {"n": 2}])
                assert (plan.in_flight, plan.misses) == (1, 1)
                assert "1 being run by others" in repr(plan)
                found = await other.explain({"n": 1})
                assert (found.verdict, found.would_run) == ("running", False)
                assert "is being run by process " in repr(found)
            finally:
                may_end.set()
            record = await running
            found = await other.explain({"n": 1})
            assert found.record is not None
            assert found.record.id == record.id

    asyncio.run(main())


def test_an_explanation_says_what_is_there(make_store: Any, database: databases.Place) -> None:
    """Stored, failed or lost; nothing is run or logged as a hit."""
    store = make_store(runner=fails_for_two)
    record = store.run_or_retrieve({"n": 1})
    found = store.explain({"n": 1.0})
    assert (found.verdict, found.would_run, found.id) == ("stored", False, record.id)
    assert repr(found) == f"{record.id} is stored: nothing would run\n  {record.result_file}"
    with pytest.raises(ValueError, match="n is two"):
        store.run_or_retrieve({"n": 2})
    found = store.explain({"n": 2})
    assert (found.verdict, found.would_run) == ("failed", True)
    assert "it has failed (attempt 1)\n" in repr(found)
    assert "n is two" in repr(found)
    Path(record.result_file).unlink()
    found = store.explain({"n": 1})
    assert (found.verdict, found.would_run, found.record.id) == ("lost", True, record.id)
    assert calls() == 1
    assert store.explain({"n": 5, "id": "mine"}).verdict == "new"
    with pytest.raises(IdConflictError):
        store.explain({"n": 5, "id": record.id})


def test_what_is_new_is_compared_with_the_nearest(
    make_store: Any, database: databases.Place
) -> None:
    """Those that differ in the fewest parameters, and there by the least."""
    store = make_store(runner=write, result_cls=Settled, file_suffix=".txt")
    base = {"n": 100, "dt": 0.01, "word": "a", "config": {"k": [1]}}
    assert repr(store.explain(base)).endswith("would run: nothing is stored of these parameters")
    store.sweep(
        [
            {**base, "n": 400},
            {**base, "n": 110},
            {**base, "n": 101, "dt": 0.02},
            {**base, "dt": 0.010001},
            {**base, "config": {"k": [2]}, "word": None, "n": 7},
        ]
    )
    found = store.explain(base)
    assert [near.differences for near in found.nearest] == [
        {"dt": (0.010001, 0.01)},
        {"n": (110, 100)},
        {"n": (400, 100)},
    ]
    lines = repr(found).splitlines()
    assert lines[0].endswith("would run: nothing is stored of these parameters")
    assert lines[1] == "  nearest of what is stored:"
    assert lines[2].endswith(": dt is 0.010001, not 0.01")
    other = {**base, "n": 7, "config": {"k": [3]}, "word": None}
    assert store.explain(other).nearest[0].differences == {"config": ({"k": [2]}, {"k": [3]})}


class Words(Base):
    """No number at all."""

    __tablename__ = "words"

    word: Mapped[str]
    exact: Mapped[Decimal | None]
    day: Mapped[date | None]
    config: Mapped[dict[str, Any] | None]


def test_sets_without_numbers_have_neighbours(make_store: Any, database: databases.Place) -> None:
    """By decimals, dates and JSON, too."""

    def write_word(params: dict[str, Any]) -> None:
        Path(params["result_file"]).write_text("x")

    store = make_store(runner=write_word, result_cls=Words, file_suffix=".txt")
    assert store.explain({"word": "a"}).nearest == []
    days = [date(2026, 1, day) for day in (1, 5, 28)]
    store.sweep({"word": "w", "exact": Decimal(n), "day": days[0]} for n in range(60))
    store.sweep({"word": "w", "exact": Decimal(-1), "day": day} for day in days)
    store.sweep({"word": f"c{n}", "config": {"k": [n]}} for n in range(50))
    found = store.explain({"word": "w", "exact": Decimal("50.1"), "day": days[0]})
    assert found.nearest[0].differences == {"exact": (Decimal(50), Decimal("50.1"))}
    found = store.explain({"word": "w", "exact": Decimal(-1), "day": date(2026, 1, 6)})
    assert found.nearest[0].record.day == days[1]
    found = store.explain({"word": "new", "config": {"k": [7]}})
    assert found.nearest[0].differences == {"word": ("c7", "new")}


def test_an_outlook_is_a_few_lines_whatever_is_in_it(make_store: Any) -> None:
    """Large values and long messages are cut."""

    def fails_at_length(params: dict[str, Any]) -> None:
        raise ValueError("line one\x1b[31m\n" + "another line\n" * 3000)

    store = make_store(runner=write, result_cls=Settled, file_suffix=".txt")
    base: dict[str, Any] = {"n": 1, "dt": 0.5, "word": None}
    store.run_or_retrieve({**base, "config": {"k": list(range(20_000))}})
    text = repr(store.explain({**base, "config": {"k": list(range(20_001))}}))
    assert len(text) < 500
    store = make_store(runner=fails_at_length)
    store.sweep([{"n": 1}], on_error="skip")
    text = repr(store.explain({"n": 1}))
    assert text.splitlines()[1:] == ["  ValueError: line one\\x1b[31m ..."]


@pytest.mark.parametrize("asked", [0.0, 5e-324, 1.7e308, -1e160, float("inf"), 1e-300])
def test_numbers_of_any_size_have_neighbours(
    make_store: Any, database: databases.Place, asked: float
) -> None:
    """No difference leaves the range of a float, which PostgreSQL would refuse."""
    store = make_store(runner=write, result_cls=Settled, file_suffix=".txt")
    numbers = [0.0, 1e-323, 1.0, -1.6e308, 1.6e308, float("-inf")]
    store.sweep({"n": 2**63 - 1, "dt": dt} for dt in numbers if dt != asked)
    found = store.explain({"n": -(2**63), "dt": asked})
    assert len(found.nearest) == 3
    assert all(set(near.differences) == {"n", "dt"} for near in found.nearest)
