"""The garbage collector waits, and goes on as it was."""

import gc
import threading

import pytest

from entropic._collector import uncollected
from tests.scripts import run


def is_waiting() -> bool:
    """Whether it collects nothing by itself."""
    return not gc.get_threshold()[0]


def test_it_waits_until_the_last_has_ended() -> None:
    """Pauses may be nested."""
    with uncollected():
        with uncollected():
            assert is_waiting()
        assert is_waiting()
    assert not is_waiting()


def test_it_goes_on_after_an_error() -> None:
    """Whatever is raised."""
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018
    assert not is_waiting()


def test_what_others_do_to_it_meanwhile_stays() -> None:
    """It is theirs to turn off, and to set."""
    before = gc.get_threshold()
    try:
        with uncollected():
            assert gc.isenabled()
            gc.disable()
        assert not gc.isenabled()
        with uncollected():
            gc.set_threshold(123, 4, 5)
        assert gc.get_threshold() == (123, 4, 5)
    finally:
        gc.enable()
        gc.set_threshold(*before)


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
        assert is_waiting()
    finally:
        may_end.set()
        thread.join()
    assert not is_waiting()


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
    before = gc.get_threshold()[0]
    with uncollected():
        meanwhile = gc.get_threshold()[0]
    os._exit(0 if before and not meanwhile and gc.get_threshold()[0] == before else 1)
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), gc.get_threshold()[0])
may_end.set()
thread.join()
say(gc.get_threshold()[0] > 0)
"""
    )
    assert printed == ["0 0", "True"]
