"""The runs under way in this process: one flight for each run, shared by all who wait for it.

A flight belongs to its waiters: it is stopped when the last of them leaves. A run that waits for
another one is noted, so that a circle of runs is an error and no deadlock.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from entropic._portal import volunteering
from entropic._shield import to_the_end, uncancel, until_done
from entropic._slots import lent
from entropic.errors import RunCycleError

T = TypeVar("T")

Key = tuple[str, str]
"""A run anywhere in the process: its cache, and its id."""


@dataclass(slots=True, eq=False)
class Waiter:
    """Who waits for a flight.

    Attributes:
        failing: Called as soon as the runner has failed for good, while its place is still taken:
            who wants nothing more to start has to know before the next run gets that place.
        moved: Called with whether the run has turned out to be under way in another store, so
            that it takes no place here, or is to be run here after all.
        is_withdrawn: Whether it is only wanted if it has begun: a cancellation then leaves it
            before that, and after that waits for its end.
    """

    failing: Callable[[], None]
    moved: Callable[[bool], None]
    is_withdrawn: bool = False


class Flight(Generic[T]):
    """A run under way.

    Args:
        digest: Tells which parameter set is run: an id of the caller's own may be asked for with
            another one.
        is_forced: Whether it is to run what may be stored by then: as long as it has not begun,
            only for the one who starts it. Others would rather look again.

    Attributes:
        digest: As given.
        task: Carries the run out; cancelled when the run was interrupted.
        has_started: Whether the runner has been called; before that, nothing is lost by leaving.
        cannot_stop: Whether a runner is at work that no cancellation stops.
        is_stopping: Whether its store wants it to end.
    """

    def __init__(self, digest: str, *, is_forced: bool = False) -> None:
        self.digest = digest
        self._is_forced = is_forced
        self.task: asyncio.Task[T]
        self.has_started = False
        self._goes_on = asyncio.Event()
        self.is_stopping = False
        self._is_elsewhere = False
        self._waiters: list[Waiter] = []
        self._starter = asyncio.current_task()

    @property
    def cannot_stop(self) -> bool:
        """See above."""
        return self._goes_on.is_set()

    @cannot_stop.setter
    def cannot_stop(self, value: bool) -> None:
        if value:
            self._goes_on.set()
        else:
            self._goes_on.clear()

    @property
    def is_elsewhere(self) -> bool:
        """Whether another store runs it, and this flight only waits."""
        return self._is_elsewhere

    @is_elsewhere.setter
    def is_elsewhere(self, value: bool) -> None:
        if value != self._is_elsewhere:
            self._is_elsewhere = value
            for waiter in list(self._waiters):
                waiter.moved(value)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it: what cannot be stopped goes on without."""
        return bool(self._waiters) and not self.is_stopping

    @property
    def is_attended(self) -> bool:
        """Whether the one who started it still waits for it."""
        return self._starter is not None

    def failing(self) -> None:
        """The runner has failed for good."""
        for waiter in list(self._waiters):
            waiter.failing()

    async def wait(self, waiter: Waiter) -> None:
        """Wait until the flight has ended; a waiter that is cancelled leaves it.

        Meanwhile the flight may use what the waiter does not need: the thread that called, where
        there is one, and the slot of the run that the waiter is inside of.

        The last one to leave stops it, and waits until it has put things in order; except where
        it cannot be stopped: then it goes on by itself, and its result is kept. The starter of a
        forced one stops it, too, unless it has begun: the others then find it cancelled.

        Raises:
            asyncio.CancelledError: The waiter itself was cancelled.
        """
        async with lent():
            while not self.task.done():
                self._waiters.append(waiter)
                waiter.moved(self._is_elsewhere)
                try:
                    with volunteering(self.task):
                        await until_done(self.task)
                except asyncio.CancelledError:
                    await self._left(waiter)
                    if not waiter.is_withdrawn or self.task.cancelled() or self._waiters:
                        raise
                    waiter.is_withdrawn = False  # the next cancellation is somebody's own
                    uncancel()
                else:
                    await self._left(waiter)

    async def _left(self, waiter: Waiter) -> None:
        self._waiters.remove(waiter)
        waiter.moved(False)
        if self._starter is asyncio.current_task():
            self._starter = None
        is_given_up = self._is_forced and not self.is_attended and not self.has_started
        if (is_given_up or not self._waiters) and not self.task.done():
            self.task.cancel()
            await to_the_end(self._stopped())

    async def _stopped(self) -> None:
        """Wait until it has ended, or it turns out that it will not: executors may learn late."""
        going_on = asyncio.ensure_future(self._goes_on.wait())
        await asyncio.wait({self.task, going_on}, return_when=asyncio.FIRST_COMPLETED)
        going_on.cancel()


class Flights(Generic[T]):
    """The runs under way in one store, by id."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._are_stopping = False

    def get(self, id: str) -> Flight[T] | None:
        """The flight of a run, if it is under way."""
        return self._flights.get(id)

    def start(
        self,
        id: str,
        digest: str,
        run: Callable[[Flight[T]], Coroutine[Any, Any, T]],
        *,
        is_forced: bool = False,
    ) -> Flight[T]:
        """Start a run that is not under way; whoever starts it must wait for it."""
        assert id not in self._flights
        flight: Flight[T] = Flight(digest, is_forced=is_forced)
        self._flights[id] = flight
        flight.task = asyncio.create_task(self._fly(flight, run), name=f"entropic run {id}")

        def land(task: asyncio.Task[T]) -> None:
            del self._flights[id]
            if not task.cancelled():
                task.exception()  # seen: its waiters raise it, and there may be none left

        flight.task.add_done_callback(land)
        return flight

    async def stop(self) -> None:
        """Cancel every flight and wait until all have ended."""
        self._are_stopping = True
        while self._flights:
            tasks = [flight.task for flight in self._flights.values()]
            for flight in self._flights.values():
                flight.is_stopping = True
                flight.task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # their callbacks

    async def _fly(
        self, flight: Flight[T], run: Callable[[Flight[T]], Coroutine[Any, Any, T]]
    ) -> T:
        while True:
            flight.has_started = flight.cannot_stop = False
            try:
                return await run(flight)
            except asyncio.CancelledError:
                # Where a waiter's thread ran it and was interrupted, the starter's takes it over.
                # Without the starter it ends: its next owner has custom data of its own.
                task = asyncio.current_task()
                is_cancelled = task is None or task.cancelling()
                if is_cancelled or self._are_stopping or not flight.is_attended:
                    raise


# Across the stores of the process: runs of one store may ask for runs of another.
_waits_for: Final[dict[Key, list[Key]]] = {}
_lock = threading.Lock()


def _forget_waits() -> None:
    """In a forked child, whose parent's other threads did not come along."""
    global _lock  # noqa: PLW0603  one of them may have held it
    _lock = threading.Lock()
    _waits_for.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_waits)


@contextmanager
def waiting(chain: tuple[Key, ...], wanted: Key) -> Iterator[None]:
    """Note that the innermost run of ``chain`` waits for another one.

    Args:
        chain: The runs that the request comes from, outermost first; empty for a user's own.
        wanted: The run that it asks for.

    Raises:
        RunCycleError: The wanted run is waiting, directly or not, for one of the chain.
    """
    if not chain:
        yield
        return
    with _lock:
        if circle := _circle(chain, wanted):
            names = " → ".join(id for _, id in circle)
            raise RunCycleError(
                f"a run needs its own result: {names}; none of them can ever finish",
                chain=tuple(id for _, id in circle),
                id=wanted[1],
            )
        _waits_for.setdefault(chain[-1], []).append(wanted)
    try:
        yield
    finally:
        with _lock:
            waits = _waits_for[chain[-1]]
            waits.remove(wanted)
            if not waits:
                del _waits_for[chain[-1]]


def _circle(chain: tuple[Key, ...], wanted: Key) -> tuple[Key, ...] | None:
    """The circle that waiting for ``wanted`` would close, or ``None``."""
    if wanted in chain:
        return (*chain[chain.index(wanted) :], wanted)
    paths: list[tuple[Key, ...]] = [(wanted,)]
    seen = {wanted}
    while paths:
        path = paths.pop()
        for key in _waits_for.get(path[-1], ()):
            if key in chain:
                return (*chain[chain.index(key) :], *path, key)
            if key not in seen:
                seen.add(key)
                paths.append((*path, key))
    return None
