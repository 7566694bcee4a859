"""Signs of life: the stages of runs that are at work are touched, so that nobody gives them up.

One thread does it for all stages side by side; a thread for each run took longer to start than all
else that is done for a short one. Runs in another results folder have another thread: a disk that
does not answer keeps nobody else's runs from being seen.
"""

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final


@contextmanager
def signs_of_life(folder: str, seconds: float) -> Iterator[None]:
    """Touch a stage's folder every so many seconds, for as long as this lasts.

    Args:
        folder: The stage's; it need not have been made yet.
        seconds: Finite.
    """
    signs = _folders.signs(os.path.dirname(folder))
    sign = _Sign(folder, seconds, time.monotonic() + seconds)
    signs.add(sign)
    try:
        yield
    finally:
        signs.remove(sign)


@dataclass(slots=True, eq=False)
class _Sign:
    folder: str
    seconds: float
    due: float

    def give(self) -> None:
        with suppress(OSError):  # not made yet, or gone: what that means, the run will say
            os.utime(self.folder)


class _Signs:
    """Those of stages side by side; its thread ends once it finds none of them at work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._signs: set[_Sign] = set()
        self._next = 0.0  # when the thread looks again
        self._thread: threading.Thread | None = None

    def add(self, sign: _Sign) -> None:
        with self._changed:
            self._signs.add(sign)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="entropic-life", daemon=True)
                self._thread.start()
            elif sign.due < self._next:
                self._changed.notify()

    def remove(self, sign: _Sign) -> None:
        # Nobody is woken: the thread looks in vain, once, and that seldom.
        with self._changed:
            self._signs.remove(sign)

    def _run(self) -> None:
        while due := self._wait():
            for sign in due:
                sign.give()

    def _wait(self) -> list[_Sign]:
        """Those that are to be touched now, once there are any; none at the end."""
        with self._changed:
            while self._signs:
                now = time.monotonic()
                if due := [sign for sign in self._signs if sign.due <= now]:
                    for sign in due:
                        sign.due = now + sign.seconds
                    return due
                self._next = min(sign.due for sign in self._signs)
                self._changed.wait(min(self._next - now, threading.TIMEOUT_MAX))
            self._thread = None
            return []


class _Folders:
    """The signs of each folder of stages, for as long as somebody gives them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signs: weakref.WeakValueDictionary[str, _Signs] = weakref.WeakValueDictionary()

    def signs(self, folder: str) -> _Signs:
        with self._lock:
            signs = self._signs.get(folder)
            if signs is None:
                signs = self._signs[folder] = _Signs()
            return signs

    def forget(self) -> None:
        """In a forked child: the threads are not there, and their locks may never be free."""
        self._lock = threading.Lock()
        self._signs = weakref.WeakValueDictionary()


_folders: Final = _Folders()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_folders.forget)
