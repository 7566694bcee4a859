"""Keeps this store's claims alive while their runs last.

It beats in a thread of its own, with a connection of its own: neither a blocked event loop nor a
busy database connection holds it up. Only a runner that keeps the interpreter to itself does.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

_logger = logging.getLogger("entropic")

_BEATS: Final = 4  # in the time of a lease: three may fail before it is lost


class Heartbeat:
    """The heartbeat of one store; its thread starts with the first claim that is held.

    Args:
        renew: Renews the leases of some ids, on an event loop that lasts for this call alone.
        ttl: Seconds that a lease lasts.
    """

    def __init__(self, renew: Callable[[Sequence[str]], Awaitable[object]], ttl: float) -> None:
        self._renew = renew
        self._interval = ttl / _BEATS
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, id: str) -> None:
        """Keep the claim of an id alive until it is released."""
        with self._lock:
            self._held[id] = self._held.get(id, 0) + 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._beat, name="entropic-heartbeat", daemon=True
                )
                self._thread.start()

    def release(self, id: str) -> None:
        """Let a claim go: it has been given back, or its run is stored."""
        with self._lock:
            self._held[id] -= 1
            if not self._held[id]:
                del self._held[id]

    def stop(self) -> threading.Thread | None:
        """Beat no more.

        Returns:
            The thread, which ends soon; ``None`` where there is none.
        """
        self._stopping.set()
        return self._thread

    def _beat(self) -> None:
        wait = self._interval
        while not self._stopping.wait(wait):
            wait = self._interval
            with self._lock:
                ids = list(self._held)
            if not ids:
                continue
            try:
                asyncio.run(self._renewed(ids))
            except Exception:
                # Locked for a while, perhaps, or not reachable: sooner again than usual.
                wait = self._interval / _BEATS
                _logger.warning("the leases of %d runs were not renewed", len(ids), exc_info=True)

    async def _renewed(self, ids: Sequence[str]) -> None:
        await self._renew(ids)
