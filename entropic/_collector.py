"""Python's garbage collector, told to wait a moment."""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pauses:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._was_on = False

    def begin(self) -> None:
        with self._lock:
            if not self._count:
                self._was_on = gc.isenabled()
                gc.disable()
            self._count += 1

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count and self._was_on:
                gc.enable()

    def forget(self) -> None:
        """In a forked child, where the threads are not that have begun them."""
        if self._count and self._was_on:
            gc.enable()
        self.__init__()  # type: ignore[misc]


_pauses = _Pauses()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pauses.forget)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage for some milliseconds, in which much is made that is none.

    The collector looks at it again and again, and whenever that has happened often enough, at all
    that there is: of a sweep of 100,000 stored sets, that was a quarter of the time.
    """
    _pauses.begin()
    try:
        yield
    finally:
        _pauses.end()
