"""Python's garbage collector, told to wait a moment."""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pauses:
    """By its threshold, and not by turning it off: who does that meanwhile wants it to stay so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._threshold = gc.get_threshold()

    def begin(self) -> None:
        with self._lock:
            self._count += 1  # first: a fork may come between any two of these
            if self._count == 1:
                self._threshold = gc.get_threshold()
                gc.set_threshold(0)

    def end(self) -> None:
        with self._lock:
            if self._count == 1:
                self._restore()
            self._count -= 1

    def forget(self) -> None:
        """In a forked child, where the threads are not that have begun them."""
        if self._count:
            self._restore()
        self._lock = threading.Lock()
        self._count = 0

    def _restore(self) -> None:
        if not gc.get_threshold()[0]:  # and nobody has set another one
            gc.set_threshold(*self._threshold)


_pauses = _Pauses()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pauses.forget)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage while much is made that is none.

    The collector looks at it again and again, and whenever that has happened often enough, at all
    that there is: of a sweep of 100,000 stored sets, that was a quarter of the time. It waits for
    the last of those who ask for it at the same time.
    """
    _pauses.begin()
    try:
        yield
    finally:
        _pauses.end()
