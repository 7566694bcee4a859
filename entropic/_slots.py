"""How many runners are at work at once; a run that waits for another one lends its slot.

A runner may ask for another run: if it kept its slot meanwhile, that one could wait for it
forever. Slots change hands between event loops, too: a run of one store may wait for a run of a
store on another loop. Where the runner then runs is left to ``executors``.
"""

import asyncio
import contextvars
import heapq
import itertools
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_held: Final[contextvars.ContextVar["_Slot | None"]] = contextvars.ContextVar("held", default=None)


class Slots:
    """So many slots; deeper runs get theirs first, as there are others that wait for them.

    Args:
        count: How many runners at once.
    """

    def __init__(self, count: int) -> None:
        # Guards every slot's state, too: whoever lends one may be on another loop.
        self.lock: Final = threading.Lock()
        self._count = count
        self._free = count
        self._numbers = itertools.count()
        self._tickets: list[tuple[int, int, int, _Ticket]] = []

    @asynccontextmanager
    async def hold(self, depth: int) -> AsyncIterator[None]:
        """Wait for a slot and hold it, except while what runs in it waits for another run.

        Args:
            depth: How many runs the one that wants it is inside of.
        """
        slot = _Slot(self, depth, next(self._numbers))
        try:
            await slot.take()
            token = _held.set(slot)
            try:
                yield
            finally:
                _held.reset(token)
        finally:
            slot.leave()

    def resize(self, count: int) -> None:
        """Have more slots, or fewer: those that are then too many go as they are given back."""
        with self.lock:
            self._free += count - self._count
            self._count = count
            while self._free > 0 and self._call_next():
                self._free -= 1

    def take(self, slot: "_Slot") -> "_Ticket | None":
        """Under the lock: a ticket to wait with, or ``None`` when there is a free slot."""
        if self._free > 0:
            self._free -= 1
            return None
        ticket = _Ticket(slot)
        # An old slot that is wanted back comes before those that never had one.
        place = (-slot.depth, slot.number, next(self._numbers), ticket)
        heapq.heappush(self._tickets, place)
        return ticket

    def give_back(self) -> None:
        """Under the lock: the slot goes to the next in line."""
        if self._free < 0 or not self._call_next():
            self._free += 1

    def _call_next(self) -> bool:
        """Give a slot to the next in line; ``False`` when there is none."""
        while self._tickets:
            *_, ticket = heapq.heappop(self._tickets)
            if ticket.is_wanted and ticket.call():
                ticket.slot.is_held = True
                return True
        return False


class _Ticket:
    """A place in the queue for a slot."""

    def __init__(self, slot: "_Slot") -> None:
        self.slot = slot
        self.is_wanted = True
        self._loop = asyncio.get_running_loop()
        self.called: asyncio.Future[None] = self._loop.create_future()

    def call(self) -> bool:
        """Let the one who waits go on; ``False`` when its loop is gone."""
        self.is_wanted = False
        try:
            if self._loop is asyncio._get_running_loop():  # nobody to be woken
                self._settle()
            else:
                self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # closed
            return False
        return True

    def _settle(self) -> None:
        if not self.called.done():
            self.called.set_result(None)


class _Slot:
    """One run's slot: held, lent, wanted back, or left.

    Attributes:
        depth: How many runs its own run is inside of.
        number: Its age.
        is_held: Whether it counts as one of the slots in use.
    """

    def __init__(self, slots: Slots, depth: int, number: int) -> None:
        self._slots = slots
        self.depth = depth
        self.number = number
        self.is_held = False
        self._has_left = False
        self._waits = 0
        self._ticket: _Ticket | None = None

    async def take(self) -> None:
        """Wait until it is held, or not wanted any more."""
        with self._slots.lock:
            if self._has_left or self._waits:
                return
            ticket = self._ticket = self._slots.take(self)
            self.is_held = ticket is None
        if ticket is not None:
            await ticket.called

    def lend(self) -> None:
        """The run begins to wait for another one; it may wait for several at once."""
        with self._slots.lock:
            self._waits += 1
            self._drop()

    async def reclaim(self) -> None:
        """One wait is over; after the last of them, wait for a slot to go on with."""
        self.forgo()
        await self.take()

    def forgo(self) -> None:
        """One wait was broken off: the run goes on at once, without a slot."""
        with self._slots.lock:
            self._waits -= 1

    def leave(self) -> None:
        """The run has ended."""
        with self._slots.lock:
            self._has_left = True
            self._drop()
            self._ticket = None  # which has the slot: neither is to wait for the collector

    def _drop(self) -> None:
        if self.is_held:
            self.is_held = False
            self._slots.give_back()
        elif self._ticket is not None and self._ticket.is_wanted:
            self._ticket.call()


@asynccontextmanager
async def lent() -> AsyncIterator[None]:
    """While the current run, if any, waits for another one, its slot is free for others."""
    slot = _held.get()
    if slot is None:
        yield
        return
    slot.lend()
    try:
        yield
    except BaseException:
        slot.forgo()
        raise
    await slot.reclaim()
