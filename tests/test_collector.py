"""The garbage collector waits, and goes on as it was."""

import gc
import threading

import pytest

from entropic._collector import uncollected
from tests.scripts import run


def test_it_waits_until_the_last_has_ended() -> None:
    """Pauses may be nested."""
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_error() -> None:
    """Whatever is raised."""
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_it_stays_off_where_the_user_has_turned_it_off() -> None:
    """It is theirs to turn on."""
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_threads_overlap() -> None:
    """Who ends first does not turn it on under the other's feet."""
    has_begun, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        with uncollected():
            has_begun.set()
            may_end.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    has_begun.wait()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        may_end.set()
        thread.join()
    assert gc.isenabled()


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    """It has the fork's thread alone."""
    printed, _ = run(
        """
from entropic._collector import uncollected

has_begun, may_end = threading.Event(), threading.Event()

def wait():
    with uncollected():
        has_begun.set()
        may_end.wait()

thread = threading.Thread(target=wait)
thread.start()
has_begun.wait()
child = os.fork()
if not child:
    is_on = gc.isenabled()
    with uncollected():
        is_off = not gc.isenabled()
    os._exit(0 if is_on and is_off and gc.isenabled() else 1)
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), gc.isenabled())
may_end.set()
thread.join()
say(gc.isenabled())
"""
    )
    assert printed == ["0 False", "True"]
