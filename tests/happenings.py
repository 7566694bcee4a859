"""Waiting, on a loop, for what others bring about."""

import asyncio
from collections.abc import Callable


class Happenings:
    """Tells whoever waits for something that it may have come."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self, _: object = None) -> None:
        """Something has happened."""
        self._event.set()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let others work until something is so."""
        try:
            async with asyncio.timeout(20):
                while not condition():
                    self._event.clear()
                    await self._event.wait()
        except TimeoutError:
            raise AssertionError(f"{what} never came") from None
