"""Progress: counted, shown as a bar where somebody looks, or told to a function."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropic import Progress, SettingsError
from entropic.progress import make_meter
from tests.conftest import KINDS
from tests.scripts import ROOT
from tests.simulations import calls, simulate

pytestmark = pytest.mark.timeout(60)


def sets(count: int) -> list[dict[str, Any]]:
    """So many parameter sets."""
    return [{"n": n} for n in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_is_told_what_happens(kind: str, make_store: Callable[..., Any]) -> None:
    """Hits, runs and failures, of how many; the last state is that of the end."""

    def fail(params: dict[str, Any]) -> None:
        if params["n"] == 5:
            raise ZeroDivisionError
        simulate(params)

    async def fail_async(params: dict[str, Any]) -> None:
        fail(params)

    store = make_store(kind, runner=fail_async if kind == "async-loop" else fail)
    store.sweep(sets(3))
    seen: list[Progress] = []
    store.sweep([*sets(6), {"n": 4}], progress=seen.append, on_error="skip")
    last = seen[-1]
    assert (last.done, last.total) == (7, 7)
    assert (last.hits, last.runs, last.failures) == (4, 2, 1)
    assert last.eta_seconds == 0
    assert [state.done for state in seen] == sorted(state.done for state in seen)
    assert all(state.done == state.hits + state.runs + state.failures for state in seen)
    elapsed = [state.elapsed_seconds for state in seen]
    assert elapsed == sorted(elapsed)


def test_an_input_without_a_length_has_no_total(make_store: Callable[..., Any]) -> None:
    """Nor an estimate of the time that is left."""
    store = make_store()
    seen: list[Progress] = []
    for _ in store.as_completed((params for params in sets(3)), progress=seen.append):
        pass
    assert seen[-1].done == 3
    assert seen[-1].total is None
    assert seen[-1].eta_seconds is None


def test_an_error_of_the_function_goes_through(make_store: Callable[..., Any]) -> None:
    """What ran is kept."""

    def tell(progress: Progress) -> None:
        raise ZeroDivisionError

    store = make_store()
    with pytest.raises(ZeroDivisionError):
        store.sweep(sets(3), progress=tell)
    assert [record.n for record in store.sweep(sets(3))] == [0, 1, 2]
    assert calls() == 3


def test_the_estimate_is_not_fooled_by_hits() -> None:
    """A thousand hits in no time say nothing about what a run takes."""
    now = [0.0]
    seen: list[Progress] = []
    meter = make_meter(seen.append, 1010, clock=lambda: now[0])
    now[0] = 0.5
    meter.hit(1000)
    now[0] = 10.5
    meter.ran()
    now[0] = 20.5
    meter.failed()
    assert [state.eta_seconds for state in seen] == [None, 9 * 10, 8 * 10]
    assert meter.progress().elapsed_seconds == 20.5
    now[0] = 24.5
    assert meter.progress().eta_seconds == 8 * 10 - 4


@given(
    events=st.lists(st.sampled_from(["hit", "ran", "failed"]), max_size=30),
    steps=st.lists(st.floats(0, 100), min_size=30, max_size=30),
    total=st.none() | st.integers(0, 40),
)
def test_an_estimate_is_never_negative(
    events: list[str], steps: list[float], total: int | None
) -> None:
    """Also where more is done than there was to do."""
    now = [0.0]
    meter = make_meter(False, total, clock=lambda: now[0])
    for event, step in zip(events, steps, strict=False):
        now[0] += step
        getattr(meter, event)()
        state = meter.progress()
        assert state.eta_seconds is None or state.eta_seconds >= 0


@pytest.mark.parametrize("bad", ["never", 3, None, [1]])
@pytest.mark.parametrize("method", ["sweep", "as_completed"])
def test_what_is_no_progress_is_refused(
    method: str, bad: Any, make_store: Callable[..., Any]
) -> None:
    """With its value."""
    with pytest.raises(SettingsError, match="progress must be True, False, 'always' or a function"):
        getattr(make_store(), method)(sets(1), progress=bad)


SCRIPT = """
from entropic import Store
from tests.simulations import Point, simulate
store = Store(simulate, Point, file_suffix=".npy")
store.sweep([{"n": n} for n in range(2)])
store.sweep([{"n": n} for n in range(5)], progress=%s)
"""


def run_script(progress: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Sweep in a process of its own."""
    Path("script.py").write_text(SCRIPT % progress)
    return subprocess.run(
        [sys.executable, "script.py"],
        check=True,
        text=True,
        timeout=30,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        **settings,
    )


def test_a_bar_is_silent_where_there_is_no_terminal() -> None:
    """In a log it would be noise."""
    done = run_script("True", capture_output=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_bar_that_is_wanted_always_is_shown() -> None:
    """On standard error, with what has happened."""
    done = run_script("'always'", capture_output=True)
    assert done.stdout == ""
    last = done.stderr.rstrip().splitlines()[-1]
    assert "100%" in last
    assert "5/5" in last
    assert "2 hits, 3 runs, 0 failures" in last


def test_a_terminal_has_a_bar() -> None:
    """A real one."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    try:
        run_script("True", stderr=theirs)
    finally:
        os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # nobody is at its other end any more
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert "2 hits, 3 runs, 0 failures" in shown.decode()


def test_a_bar_without_tqdm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything runs."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(SettingsError, match=r"pip install entropic\[progress\]"):
        make_meter("always", 3)
