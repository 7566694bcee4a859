"""Short runs on the calling thread, which are handed over several at a time."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entropic._portal.callers import Caller, Wish
from tests import databases
from tests.scripts import run, wait_for
from tests.simulations import calls, mark_call

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("database"), databases.either]

LATE = 150
"""A set that comes when many before it were handed over together."""

MANY = [{"n": n} for n in range(2 * LATE)]


def short(params: dict[str, Any]) -> None:
    """Take less time than it takes to be handed over."""
    mark_call(params)
    Path(params["result_file"]).write_bytes(b"x")


def test_they_run_one_by_one_in_the_order_of_the_input(make_store: Callable[..., Any]) -> None:
    """All on the thread that called."""
    seen = []

    def runner(params: dict[str, Any]) -> None:
        seen.append((threading.get_ident(), params["n"]))
        short(params)

    store = make_store(runner=runner)
    assert [r.n for r in store.sweep(MANY)] == [p["n"] for p in MANY]
    assert seen == [(threading.get_ident(), p["n"]) for p in MANY]


def test_what_has_ended_is_stored_while_a_longer_run_goes_on(
    make_store: Callable[..., Any],
) -> None:
    """Its outcome was about to be told with that of those that came after it."""

    def runner(params: dict[str, Any]) -> None:
        if params["n"] == LATE:
            wait_for(lambda: databases.ask("SELECT count(*) FROM points") == [LATE])
        short(params)

    assert len(make_store(runner=runner).sweep(MANY)) == len(MANY)


def test_a_run_may_ask_for_those_that_are_in_line_behind_it(make_store: Callable[..., Any]) -> None:
    """On the thread that they are in line for."""

    def runner(params: dict[str, Any]) -> None:
        if params["n"] == LATE:
            assert len(store.sweep(MANY[LATE + 1 : LATE + 50])) == 49
        short(params)

    store = make_store(runner=runner)
    assert len(store.sweep(MANY)) == len(MANY) == calls()


def test_a_run_may_wait_for_a_thread_that_asks_for_them(make_store: Callable[..., Any]) -> None:
    """For several of them, one after the other."""

    def runner(params: dict[str, Any]) -> None:
        if params["n"] == LATE:
            thread = threading.Thread(target=store.sweep, args=[MANY[LATE + 1 : LATE + 50]])
            thread.start()
            thread.join()
        short(params)

    store = make_store(runner=runner)
    assert len(store.sweep(MANY)) == len(MANY) == calls()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_a_sweep_of_them(make_store: Callable[..., Any], threads: int) -> None:
    """Each set is run once, on one of the threads."""
    store = make_store(runner=short)
    with ThreadPoolExecutor(threads) as pool:
        for records in pool.map(store.sweep, [MANY] * threads):
            assert [r.n for r in records] == [p["n"] for p in MANY]
    assert calls() == len(MANY)


def test_nobody_overtakes_who_wants_a_free_thread() -> None:
    """Not even where there is room for others behind what is at work."""

    async def main() -> None:
        caller = Caller()
        caller._together = 3
        first, shared, third = Wish(0), Wish(1, is_sole=False), Wish(2)
        for wish in (first, shared, third):
            caller.grant(wish)
        assert first.turn is not None
        assert (shared.turn, third.turn) == (None, None)
        first.turn.pass_on()
        assert shared.turn is not None
        assert third.turn is not None

    asyncio.run(main())


@pytest.mark.parametrize("behind", [0, 1, 2, 40])
def test_nothing_begins_after_a_failure(make_store: Callable[..., Any], behind: int) -> None:
    """However many are in line behind it."""
    seen = []

    def runner(params: dict[str, Any]) -> None:
        seen.append(params["n"])
        if params["n"] == LATE:
            raise ArithmeticError("diverged")
        short(params)

    store = make_store(runner=runner)
    store.sweep({"n": -n} for n in range(1, 50))
    seen.clear()
    with pytest.raises(ArithmeticError, match="diverged"):
        store.sweep(MANY[LATE - 3 : LATE + 1 + behind])
    assert seen == [LATE - 3, LATE - 2, LATE - 1, LATE]


def test_a_failure_that_stops_nothing_changes_no_order(make_store: Callable[..., Any]) -> None:
    """What was in line behind it keeps its place."""
    seen = []

    def runner(params: dict[str, Any]) -> None:
        seen.append(params["n"])
        if params["n"] in (LATE, LATE + 20, LATE + 21):
            raise ArithmeticError("diverged")
        short(params)

    store = make_store(runner=runner)
    assert len(store.sweep(MANY, on_error="skip")) == len(MANY) - 3
    assert seen == [p["n"] for p in MANY]


def test_a_stream_that_is_read_slowly_runs_them_as_they_are_asked_for(
    make_store: Callable[..., Any],
) -> None:
    """Beside a sweep of another thread, which has many of them in line."""
    store = make_store(runner=short)
    with ThreadPoolExecutor(1) as pool:
        sweep = pool.submit(store.sweep, MANY)
        stream = store.as_completed(reversed(MANY))
        found = []
        for record in stream:
            found.append(record.n)
            if len(found) == 20:
                sweep.result()
        assert sorted(found) == [p["n"] for p in MANY]
    assert calls() == len(MANY)


def test_an_error_of_the_input_ends_what_is_in_line(make_store: Callable[..., Any]) -> None:
    """What has ended by then is kept, and told."""

    def sets() -> Any:
        yield from MANY[:LATE]
        raise ArithmeticError("no more")

    store = make_store(runner=short)
    with pytest.raises(ArithmeticError, match="no more"):
        store.sweep(sets())
    assert databases.ask("SELECT count(*) FROM points") == [calls()]
    assert len(store.sweep(MANY)) == len(MANY) == calls()


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit"])
def test_an_interrupt_leaves_what_is_in_line_and_keeps_what_has_ended(error: str) -> None:
    """In the middle of one of them; the next sweep runs the others."""
    printed, _ = run(
        f"""
from tests.test_turns import LATE, MANY, short

def runner(params):
    if params["n"] == LATE and not os.path.exists("interrupted"):
        open("interrupted", "x").close()
        raise {error}
    short(params)

store = make(runner)
try:
    store.sweep(MANY)
except {error}:
    say(calls(), sum(store.retrieve(params) is not None for params in MANY))
say(len(store.sweep(MANY)), calls())
"""
    )
    assert printed == ["150 150", "300 300"]


def test_a_signal_at_any_moment_loses_none_of_them() -> None:
    """Ctrl-C while they are run, told and stored."""
    printed, _ = run(
        """
from tests.test_turns import MANY, short

store = make(short)
store.retrieve({"n": 0})
left = 15
while left:
    threading.Timer(0.008 * left, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        store.sweep(MANY)
        rest()
    except KeyboardInterrupt:
        left -= 1
say(len(store.sweep(MANY)), 0 <= calls() - len(MANY) <= 15, os.listdir("results/.entropic/staging"))
"""
    )
    assert printed == ["300 True []"]
