"""Keeps this store's claims alive while their runs last.

It beats in a thread of its own, with a connection of its own: neither a blocked event loop nor a
busy database connection holds it up. Only a runner that keeps the interpreter to itself does.
Which statement renews a lease is left to ``ledger``.
"""

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from entropic.errors import RunError

_logger = logging.getLogger("entropic")

_BEATS: Final = 4  # in the time of a lease: three may fail before it is lost

Renew = Callable[[Sequence[str]], Awaitable[object]]
"""Renews the leases of some ids."""


class Heartbeat:
    """The heartbeat of one store; its thread lives while claims are held, and a little longer.

    It belongs to the loop that runs where it is made: it ends when that is closed, or when nobody
    has the heartbeat any more, as nobody is left then who could finish a run, or give it back.

    Args:
        connect: Connects to the database, on the loop of the heartbeat's own thread, for as long
            as the block lasts.
        ttl: Seconds that a lease lasts.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Renew]], ttl: float
    ) -> None:
        self._pulse = _Pulse(connect, min(ttl / _BEATS, threading.TIMEOUT_MAX))
        weakref.finalize(self, self._pulse.stop).atexit = False

    @property
    def held(self) -> Sequence[str]:
        """The ids whose claims are kept alive."""
        return list(self._pulse.held)

    def hold(self, id: str) -> None:
        """Keep the claim of an id alive until it is released.

        Raises:
            RunError: There is no thread for it; nothing is held.
        """
        self._pulse.hold(id)

    def release(self, id: str) -> None:
        """Let a claim go: it has been given back, or its run is stored."""
        self._pulse.release(id)

    def stop(self) -> threading.Thread | None:
        """Beat no more.

        Returns:
            The thread, which ends soon; ``None`` where there is none.
        """
        return self._pulse.stop()


class _Pulse:
    """What the thread knows: not the heartbeat itself, so that it can tell when that is gone."""

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Renew]], interval: float
    ) -> None:
        self.held: dict[str, int] = {}
        self._connect = connect
        self._interval = interval
        self._store_loop = weakref.ref(asyncio.get_running_loop())
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_beating = False
        self._stopped = threading.Event()
        self._cancel: Callable[[], object] | None = None

    def hold(self, id: str) -> None:
        with self._lock:
            if not self._is_beating:
                self._start()
            self.held[id] = self.held.get(id, 0) + 1

    def release(self, id: str) -> None:
        with self._lock:
            self.held[id] -= 1
            if not self.held[id]:
                del self.held[id]

    def stop(self) -> threading.Thread | None:
        # Without the lock: the garbage collector may call it anywhere, while that is held, too.
        if self._pid != os.getpid():  # a forked child has no such thread, and no say in its loop
            return None
        self._stopped.set()
        if (cancel := self._cancel) is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                cancel()
        return self._thread

    def _start(self) -> None:
        # A daemon: a run that is left behind must not keep a script from ending.
        thread = threading.Thread(target=self._run, name="entropic-heartbeat", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise RunError(
                f"no thread could be started to keep the run's claim alive ({error}); see the"
                " limits of the process (ulimit -u) and its memory"
            ) from error
        self._thread, self._is_beating = thread, True

    def _run(self) -> None:
        wait = self._interval
        while not self._stopped.wait(wait) and not self._has_ended():
            wait = self._interval
            try:
                with asyncio.Runner() as runner:
                    runner.get_loop()  # which may fail, as anything that needs a descriptor
                    runner.run(self._beat())
            except asyncio.CancelledError:
                return
            except Exception:
                # Locked for a while, perhaps, or not reachable: sooner again than usual.
                wait = self._interval / _BEATS
                _logger.warning(
                    "the leases of %d runs were not renewed", len(self.held), exc_info=True
                )

    async def _beat(self) -> None:
        """Renew, as long as anything is held, over one connection."""
        self._be_cancelled()
        async with self._connect() as renew:
            while ids := self._due():
                await renew(ids)
                await asyncio.sleep(self._interval)

    def _be_cancelled(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        if self._stopped.is_set():  # and whoever stopped it has not seen this
            task.cancel()

    def _due(self) -> list[str]:
        with self._lock:
            return list(self.held) if self._has_store() else []

    def _has_ended(self) -> bool:
        """Whether the thread is to end; the next claim starts another one."""
        with self._lock:
            self._is_beating = bool(self.held) and self._has_store()
            return not self._is_beating

    def _has_store(self) -> bool:
        """Whether the store's loop is there: all that was under way on a closed one is gone."""
        loop = self._store_loop()
        return loop is not None and not loop.is_closed()
