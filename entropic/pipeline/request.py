"""One call's way through the pipeline: it tells the schedule what happens, and does what it says.

Runs and the reading of the input are tasks; each puts its name into one queue as it ends, so
there is one place where things happen after each other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from entropic._shield import to_the_end
from entropic.errors import EntropicError, IdConflictError, ResultsDirError
from entropic.identity import ParameterSet
from entropic.leases import Flights
from entropic.models import Base
from entropic.pipeline.lookup import Answer, Lookup
from entropic.pipeline.runs import Landed
from entropic.pipeline.sources import Source
from entropic.schedule import Leave, Pull, Schedule, Start

_logger = logging.getLogger("entropic")

R = TypeVar("R", bound=Base)


class Request(Generic[R]):
    """One call.

    Args:
        source: The input.
        lookup: How parameter sets become answers.
        obtain: Runs what was missing, or waits for the one who runs it; calls back as soon as
            its runner has failed.
        flights: The runs under way.
        workers: How many runners can be at work at once.
        force: Whether to run what is stored, too.
    """

    def __init__(
        self,
        source: Source,
        lookup: Lookup[R],
        obtain: Callable[[Answer[R], Callable[[], None]], Awaitable[Landed[R]]],
        flights: Flights[Any],
        *,
        workers: int,
        force: bool,
    ) -> None:
        self._source = source
        self._lookup = lookup
        self._obtain = obtain
        self._flights = flights
        self._force = force
        self._schedule = Schedule(workers)
        self._position = 0
        self._own_ids: dict[str, str] = {}
        self._records: dict[str, R] = {}
        self._missing: dict[str, Answer[R]] = {}
        self._error: BaseException | None = None
        self._closing: Exception | None = None
        self._is_cut_short = False
        self._pulling: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[Landed[R]]] = {}
        self._ended: asyncio.Queue[str | None] = asyncio.Queue()

    async def collect(self) -> list[R]:
        """One record for each distinct set of the input, in first-seen order.

        Raises:
            Exception: The first failure, of a run or of the input, once all that was at work has
                ended.
        """
        try:
            while True:
                for action in self._schedule.next():
                    self._act(action)
                if self._schedule.is_over:
                    break
                self._note(await self._ended.get())
                while not self._ended.empty():
                    self._note(self._ended.get_nowait())
        finally:
            await self._leave()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # whose traceback leads here: neither is to keep the other
        is_missing = self._is_cut_short or len(self._records) < len(self._schedule.order)
        if self._closing is not None and is_missing:
            raise self._closing
        return [self._records[id] for id in self._schedule.order]

    def _act(self, action: Pull | Start | Leave) -> None:
        match action:
            case Pull(most):
                self._pulling = asyncio.create_task(self._pull(most))
                self._pulling.add_done_callback(lambda _: self._ended.put_nowait(None))
            case Start(ids):
                for id in ids:
                    self._start(id)
            case Leave(ids):
                if self._pulling is not None:
                    self._pulling.cancel()  # nobody needs what an input yields an hour later
                for id in ids:
                    flight = self._flights.get(self._missing[id].parameters.id)
                    if flight is None or not flight.has_started:
                        self._running[id].cancel()

    def _start(self, id: str) -> None:
        task = asyncio.ensure_future(self._obtain(self._missing[id], self._stop))
        self._running[id] = task
        task.add_done_callback(lambda _: self._ended.put_nowait(id))

    def close(self, error: Exception) -> None:
        """Start nothing more and let what is at work end; the error is for what is then missing."""
        self._closing = error
        self._is_cut_short = self._schedule.has_input
        self._stop()

    def _stop(self) -> None:
        """A runner has failed: leave what has not started, before it gets that one's place."""
        self._schedule.failing()
        for action in self._schedule.next():
            self._act(action)

    async def _pull(self, most: int) -> None:
        batch = await self._source.take(most)
        sets = await self._lookup.resolve(batch, self._position)
        self._position += len(batch)
        self._check_own_ids(sets)
        by_id = {parameters.id: parameters for parameters in reversed(sets)}
        new = self._schedule.offered([parameters.id for parameters in sets])
        misses = []
        for id, answer in zip(
            new, await self._lookup.answer([by_id[id] for id in new]), strict=True
        ):
            if answer.error is not None and not self._is_forced_through(answer.error):
                raise answer.error
            if answer.record is not None and not self._force:
                _logger.info("hit %s", answer.parameters.id)
                self._records[id] = answer.record
            else:
                self._missing[id] = answer
                misses.append(id)
        self._schedule.looked_up(misses, is_last=not batch)

    def _is_forced_through(self, error: EntropicError) -> bool:
        """Whether to run all the same: what is run anew does not need the folder that is gone."""
        return self._force and isinstance(error, ResultsDirError)

    def _check_own_ids(self, sets: Sequence[ParameterSet]) -> None:
        """An id of the caller's own must not stand for two sets of one input."""
        for parameters in sets:
            if parameters.has_own_id:
                known = self._own_ids.setdefault(parameters.id, parameters.digest)
                if known != parameters.digest:
                    raise IdConflictError(
                        f"the id {parameters.id!r} stands for two parameter sets of this input,"
                        f" {parameters.values!r} being the second; choose another id",
                        id=parameters.id,
                    )

    def _note(self, ended: str | None) -> None:
        """Take notice of a task that has ended: a run's, or (``None``) that of the input."""
        if ended is None:
            assert self._pulling is not None
            if not self._note_failure(None, self._pulling) and self._pulling.cancelled():
                self._schedule.failed(None)
            return
        task = self._running.pop(ended)
        if not self._note_failure(ended, task):
            del self._missing[ended]
            landed = None if task.cancelled() else task.result()
            if landed is not None:
                self._records[ended] = landed.record
            self._schedule.finished(ended, None if landed is None else landed.seconds)

    def _note_failure(self, id: str | None, task: asyncio.Task[Any]) -> bool:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return False
        self._schedule.failed(id)
        if self._error is None:
            self._error = error
        return True

    async def _leave(self) -> None:
        """Leave what is still under way; what has started and cannot be stopped goes on."""
        tasks: set[asyncio.Task[Any]] = set(self._running.values())
        if self._pulling is not None:
            tasks.add(self._pulling)
        for task in tasks:
            task.cancel()
        if not all(task.done() for task in tasks):
            await to_the_end(asyncio.wait(tasks))
