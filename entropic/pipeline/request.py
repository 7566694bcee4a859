"""One call's way through the pipeline: it tells the schedule what happens, and does what it says.

Runs and the reading of the input are tasks; each puts its name into one line as it ends, so there
is one place where things happen after each other.
"""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter
from typing import Any, Generic, TypeVar

from entropic._shield import to_the_end
from entropic.errors import (
    EntropicError,
    Failure,
    IdConflictError,
    ResultsDirError,
    RunInterruptedError,
)
from entropic.identity import ParameterSet, shortened
from entropic.leases import Flights, Waiter
from entropic.models import Base, copied
from entropic.pipeline.holding import Landed
from entropic.pipeline.lookup import Answer, Lookup
from entropic.pipeline.sources import Source
from entropic.progress import Meter
from entropic.schedule import Leave, LookAgain, Pull, Schedule, Start

_logger = logging.getLogger("entropic")

R = TypeVar("R", bound=Base)


class Request(Generic[R]):
    """One call; gives its records, each with the place of its set in the input.

    Args:
        source: The input.
        lookup: How parameter sets become answers.
        obtain: Runs what was missing, or waits for the one who runs it.
        flights: The runs under way.
        schedule: What to do when.
        workers: How many runners can be at work at once, at the moment.
        meter: Told what happens.
        force: Whether to run what is stored, too.
        is_streamed: Whether each set of the input gets a record, not only each distinct one.

    Attributes:
        failed: How many runs have failed, where that ends nothing.
    """

    def __init__(
        self,
        source: Source,
        lookup: Lookup[R],
        obtain: Callable[[Answer[R], Waiter], Awaitable[Landed[R] | Failure]],
        flights: Flights[Any],
        schedule: Schedule,
        workers: Callable[[], int],
        meter: Meter,
        *,
        force: bool,
        is_streamed: bool,
    ) -> None:
        self._source = source
        self._lookup = lookup
        self._obtain = obtain
        self._flights = flights
        self._schedule = schedule
        self._workers = workers
        self._meter = meter
        self._force = force
        self._is_streamed = is_streamed
        self.failed = 0
        self._failures: list[tuple[int, Failure]] = []
        self._position = 0
        self._own_ids: dict[str, str] = {}
        self._missing: dict[str, Answer[R]] = {}
        self._places: dict[str, list[int]] = {}
        self._ready: deque[tuple[int, R]] = deque()
        self._is_wanted = False
        self._error: BaseException | None = None
        self._closing: Exception | None = None
        self._working: asyncio.Task[None] | None = None
        self._pulling: asyncio.Task[None] | None = None
        self._looking_again: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[Landed[R] | Failure]] = {}
        self._waiters: dict[str, Waiter] = {}
        self._ended: deque[str | asyncio.Task[None]] = deque()
        self._has_news = asyncio.Event()
        self._has_output = asyncio.Event()

    @property
    def failures(self) -> list[Failure]:
        """The runs that have failed, in first-seen order, where they are wanted in the end."""
        return [failure for _, failure in sorted(self._failures, key=lambda failed: failed[0])]

    async def collect(self) -> list[R]:
        """One record for each distinct set of the input, in first-seen order.

        Raises:
            Exception: The first failure, of a run or of the input, once all that was at work has
                ended.
        """
        self._is_wanted = True
        try:
            await self._work()
        finally:
            await self._source.aclose()
        self._check_end()
        return [record for _, record in sorted(self._ready, key=itemgetter(0))]

    async def next(self) -> list[tuple[int, R]]:
        """Some of the records that are ready, or none at the end; work goes on in between.

        Not all of them, where there are several: by the next time, more have been read.

        Raises:
            Exception: The first failure, after all records that there are.
        """
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        while not self._ready and not self._working.done():
            self._is_wanted = True
            self._has_news.set()
            self._has_output.clear()
            await self._has_output.wait()
        self._is_wanted = False
        if self._ready:
            self._has_news.set()  # there is room for more
            return [self._ready.popleft() for _ in range((len(self._ready) + 1) // 2)]
        self._working.result()
        self._check_end()
        return []

    async def aclose(self) -> None:
        """Leave what is still under way."""
        if self._working is not None and not self._working.done():
            self._working.cancel()
            await to_the_end(asyncio.wait({self._working}))
        await self._source.aclose()

    async def ended(self) -> None:
        """Wait until a stream's work has ended; its records may still be taken."""
        if self._working is not None:
            await asyncio.wait({self._working})

    def close(self, error: Exception) -> None:
        """Start nothing more and let what is at work end; the error is for what is then missing."""
        self._closing = error
        self._schedule.halt()
        self._has_news.set()

    async def _work(self) -> None:
        try:
            self._act()
            while not self._schedule.is_over:
                await self._has_news.wait()
                self._has_news.clear()
                while self._ended:
                    self._note(self._ended.popleft())
                self._act()
        finally:
            await self._leave()
            self._has_output.set()

    def _check_end(self) -> None:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # whose traceback leads here: neither is to keep the other
        if not self._schedule.is_complete:
            # Without a reason that is known, it is one all the same: nothing is left out silently.
            raise self._closing or RunInterruptedError("runs were interrupted from outside")

    def _act(self) -> None:
        self._schedule.resized(self._workers())
        for action in self._schedule.next(len(self._ready), is_wanted=self._is_wanted):
            match action:
                case Pull(most):
                    self._pulling = asyncio.create_task(self._pull(most))
                    self._pulling.add_done_callback(self._tell)
                case Start(ids):
                    for id in ids:
                        self._start(id)
                case LookAgain(ids):
                    self._looking_again = asyncio.create_task(self._look_again(ids))
                    self._looking_again.add_done_callback(self._tell)
                case Leave(ids):
                    for task in self._readers:  # nobody needs what an input yields an hour later
                        task.cancel()
                    for id in ids:
                        self._drop(id)

    @property
    def _readers(self) -> list[asyncio.Task[None]]:
        """What looks runs up: of the input, or once more."""
        return [task for task in (self._pulling, self._looking_again) if task is not None]

    def _start(self, id: str) -> None:
        waiter = Waiter(self._foresee_failure, functools.partial(self._move, id))
        self._waiters[id] = waiter
        task = asyncio.ensure_future(self._obtain(self._missing[id], waiter))
        self._running[id] = task
        task.add_done_callback(lambda _: self._tell(id))

    def _drop(self, id: str) -> None:
        """Leave a run, unless its runner has been called; executors may learn late that it has."""
        flight = self._flights.get(self._missing[id].parameters.id)
        if flight is None or not flight.has_started:
            self._waiters[id].is_withdrawn = True
            self._running[id].cancel()

    def _tell(self, ended: str | asyncio.Task[None]) -> None:
        self._ended.append(ended)
        self._has_news.set()

    def _foresee_failure(self) -> None:
        """A runner has failed: leave what has not started, before it gets that one's place."""
        self._schedule.failing()
        self._act()

    def _move(self, id: str, is_elsewhere: bool) -> None:
        """A run takes no place here while another store runs it."""
        self._schedule.moved(id, is_elsewhere=is_elsewhere)
        self._has_news.set()

    async def _pull(self, most: int) -> None:
        batch = await self._source.take(most)
        sets = await self._lookup.resolve(batch, self._position)
        places: dict[str, list[int]] = {}
        for position, parameters in enumerate(sets, self._position):
            if parameters.has_own_id:
                self._check_own_id(parameters)
            places.setdefault(parameters.id, []).append(position)
        self._position += len(batch)
        new = self._schedule.offered(list(places))
        if len(new) < len(sets):
            self._join({id: places[id] for id in places.keys() - set(new)})
            by_id = {parameters.id: parameters for parameters in reversed(sets)}
            sets = [by_id[id] for id in new]
        hits, misses = [], []
        is_told = _logger.isEnabledFor(logging.INFO)
        for id, answer in zip(new, await self._lookup.answer(sets), strict=True):
            record = answer.record
            if record is not None and not self._force:
                if is_told:
                    _logger.info("hit %s", answer.parameters.id)
                hits.append(id)
                self._put(places[id], record)
            elif answer.error is not None and not self._is_forced_through(answer.error):
                raise answer.error
            else:
                self._missing[id] = answer
                self._places[id] = places[id]
                misses.append(id)
        # A set that was there before counts as one, too: as many are done as there were.
        self._meter.hit(len(batch) - len(misses))
        self._forget(hits)
        self._schedule.looked_up(hits, misses, is_last=not batch)

    async def _look_again(self, ids: Sequence[str]) -> None:
        """Take notice of what others have run, or are running, before it is tried here."""
        hits: list[str] = []
        claimed: set[str] = set()
        # Not where a result is lost: that is on record already, and a miss.
        ids = [id for id in ids if not self._missing[id].is_lost]
        try:
            answers = await self._lookup.answer([self._missing[id].parameters for id in ids])
            for id, answer in zip(ids, answers, strict=True):
                if answer.record is not None and not self._force:
                    hits.append(id)
                    del self._missing[id]
                    self._put(self._places.pop(id), answer.record)
                elif answer.entry.is_claimed:
                    claimed.add(id)
            self._meter.ran(len(hits))
            self._forget(hits)
        finally:
            self._schedule.looked_again(hits, claimed)

    def _is_forced_through(self, error: EntropicError) -> bool:
        """Whether to run all the same: what is run anew does not need the folder that is gone."""
        return self._force and isinstance(error, ResultsDirError)

    def _join(self, places: dict[str, list[int]]) -> None:
        """Of what is under way already, a stream has a record for each set that asked for it."""
        if self._is_streamed:
            for id in places.keys() & self._places.keys():
                self._places[id].extend(places[id])

    def _put(self, places: Sequence[int], record: R) -> None:
        """A record is ready; a copy of its own for each set that asked for it."""
        self._ready.append((places[0], record))
        if self._is_streamed and len(places) > 1:
            self._ready.extend((place, copied(record)) for place in places[1:])
        self._has_output.set()

    def _check_own_id(self, parameters: ParameterSet) -> None:
        """An id of the caller's own must not stand for two sets of one input."""
        known = self._own_ids.setdefault(parameters.id, parameters.digest)
        if known != parameters.digest:
            raise IdConflictError(
                f"the id {parameters.id!r} stands for two parameter sets of this input,"
                f" {shortened(parameters.values)} being the second; choose another id",
                id=parameters.id,
            )

    def _note(self, ended: str | asyncio.Task[None]) -> None:
        """Take notice of what has ended: a run, by its id, or a task that has looked runs up."""
        if isinstance(ended, asyncio.Task):  # not the last one any more, perhaps
            is_broken = self._broke(ended) or ended.cancelled()
            if is_broken and ended is not self._looking_again:
                self._schedule.input_ended()
            return
        task = self._running.pop(ended)
        del self._missing[ended], self._waiters[ended]
        places = self._places.pop(ended)
        self._forget([ended])
        if self._broke(task) or task.cancelled():
            self._schedule.dropped(ended)
            return
        landed = task.result()
        if isinstance(landed, Failure):
            self._meter.failed()
            self._fail(landed, min(places))
            self._schedule.failed(ended)
            return
        self._meter.ran()
        self._put(places, landed.record)
        self._schedule.finished(ended, landed.seconds)

    def _broke(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task has come to an error that ends everything, and is not just a run's."""
        error = None if task.cancelled() else task.exception()
        if error is None:
            return False
        self._schedule.halt()
        if self._error is None:
            self._error = error
        return True

    def _fail(self, failure: Failure, place: int) -> None:
        if self._schedule.on_error == "raise":
            self._error = self._error or failure.exception
            return
        self.failed += 1
        if self._schedule.on_error == "finish":
            self._failures.append((place, failure))

    def _forget(self, ids: Sequence[str]) -> None:
        """A stream remembers only what is under way: its input may be endless."""
        if self._is_streamed:
            for id in ids:
                self._own_ids.pop(id, None)

    async def _leave(self) -> None:
        """Leave what is still under way; what has started and cannot be stopped goes on."""
        tasks: set[asyncio.Task[Any]] = {*self._running.values(), *self._readers}
        for waiter in self._waiters.values():
            waiter.is_withdrawn = False
        for task in tasks:
            task.cancel()
        if not all(task.done() for task in tasks):
            await to_the_end(asyncio.wait(tasks))
