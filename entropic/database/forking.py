"""Keeps a process from being forked while SQLite holds a lock.

SQLite notes its locks on a file in the memory of the process. A child that is forked meanwhile has
the note, and nobody who would ever remove it: it takes the file for locked for good.
"""

import asyncio
import os
import threading
from typing import Final

_PATIENCE_SECONDS: Final = 5.0  # a commit may wait for a disk; a fork must not hang for ever
_LOOK_SECONDS: Final = 0.001


class Forking:
    """Counts what is not to be forked; and lets nothing of it begin while somebody forks."""

    def __init__(self) -> None:
        self._forget()

    async def enter(self) -> None:
        """Begin something that is not to be forked, once nobody forks."""
        while True:
            with self._idle:
                if not self._is_forking:
                    self._count += 1
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    def leave(self) -> None:
        """It has ended."""
        with self._idle:
            self._count -= 1
            if not self._count:
                self._idle.notify_all()

    def hold_back(self) -> None:
        """Somebody forks: wait for what is under way, unless it is this very thread's to end."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with self._idle:
                self._is_forking = True
                self._idle.wait_for(lambda: not self._count, _PATIENCE_SECONDS)

    def go_on(self) -> None:
        """The parent has forked."""
        with self._idle:
            self._is_forking = False

    def _forget(self) -> None:
        # In a child, nothing is under way: the threads that had begun it are the parent's.
        self._idle = threading.Condition()
        self._count = 0
        self._is_forking = False

    def watch(self) -> None:
        """From now on, whenever this process is forked."""
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(
                before=self.hold_back, after_in_parent=self.go_on, after_in_child=self._forget
            )


forking: Final = Forking()
"""The process's own."""

forking.watch()
