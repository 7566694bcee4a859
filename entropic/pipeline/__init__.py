"""Carries out what ``schedule`` says: from an input of parameter sets to records.

One pipeline: a single request is a sweep of one. What is to run next is ``schedule``'s decision;
who runs it among this store's requests, and what a forced one waits for, is decided here.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from entropic.artifacts import ResultsFolder
from entropic.errors import (
    Failure,
    IdConflictError,
    RunInterruptedError,
    StoreClosedError,
    SweepError,
)
from entropic.executors import Executors, Threads
from entropic.identity import Identity, ParameterSet, shortened
from entropic.leases import Flight, Flights, Waiter, new_owner, waiting
from entropic.ledger import Ledger
from entropic.models import Base, copied
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import Claimant, Claims
from entropic.pipeline.deleting import Deleter
from entropic.pipeline.finding import Finder
from entropic.pipeline.holding import Holder, Landed, RunOptions
from entropic.pipeline.lookup import Answer, Lookup
from entropic.pipeline.publishing import Publisher
from entropic.pipeline.registering import Registrar
from entropic.pipeline.request import Request
from entropic.pipeline.runs import Runs
from entropic.pipeline.salvage import Salvage
from entropic.pipeline.sources import Params, Source, Wanted, as_source
from entropic.progress import Meter
from entropic.recovery import Recovered
from entropic.schedule import OnError, Schedule
from entropic.worker import Runner, running

# Hops to files are short, and most of them wait for a disk.
_IO_THREADS: Final = 4

__all__ = ["Claimant", "Params", "Pipeline", "RunOptions", "Source", "Wanted", "as_source"]

if TYPE_CHECKING:
    from entropic.pipeline.planning import Planner

R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")


class Pipeline(Generic[R]):
    """The ways of one open store, between its database, its folder and its executor.

    Args:
        runner: The user's function.
        executors: Where it can run.
        identity: The model's rules.
        ledger: The stored rows.
        folder: The stored results.
        nonce: Names this cache among those of the process and of the folder.
        claimant: How this store claims runs.
        checksum: Whether results get a digest.

    Attributes:
        registrar: Stores rows for results that were made elsewhere.
        deleter: Removes rows.
        finder: Gives rows by what they hold.
    """

    def __init__(
        self,
        runner: Runner,
        executors: Executors,
        identity: Identity,
        ledger: Ledger[R],
        folder: ResultsFolder,
        *,
        nonce: str,
        claimant: Claimant,
        checksum: bool,
    ) -> None:
        threads = Threads(_IO_THREADS, "entropic-files")
        cache = Cache(identity, ledger, folder, threads, nonce)
        self._cache = cache
        self._executors = executors
        self._is_closed = False
        self._calls = 0
        self._is_idle = asyncio.Event()
        self._requests: set[Request[R]] = set()
        self._flights: Flights[Landed[R] | Failure | None] = Flights()
        self._lookup = Lookup(cache)
        self._claims = claims = Claims(ledger, claimant)
        self._publisher = publisher = Publisher(cache, claims.linger)
        rescuer = replace(claimant, owner=new_owner(), heartbeat=None)
        self._salvage = Salvage(cache, claims, rescuer, publisher)
        self.registrar = Registrar(cache, self._lookup)
        self.deleter = Deleter(cache, self._lookup, claims, self._salvage)
        self.finder = Finder(cache, self.deleter)
        self._holder = Holder(cache, claims, publisher, self._salvage, owner=claimant.owner)
        self._runs = Runs(
            runner, cache, self._holder, publisher, claimant=claimant, checksum=checksum
        )

    @functools.cached_property
    def planner(self) -> "Planner[R]":
        """Says what would be run, and why."""
        from entropic.pipeline.planning import Planner  # not loaded by who only runs

        return Planner(self._cache, self._lookup)

    async def collect(
        self,
        source: Source,
        options: RunOptions,
        *,
        on_error: OnError,
        meter: Meter,
        force: bool = False,
    ) -> list[R]:
        """One record for each distinct parameter set of an input, in first-seen order.

        Args:
            source: The parameter sets.
            options: How to run what is missing.
            on_error: What a run that fails means for the others.
            meter: Told how far it has come.
            force: Whether to run what is stored, too.

        Raises:
            SweepError: Runs have failed, and ``on_error`` is ``"finish"``.
            Exception: What the first runner that failed raised, after those that were at work
                have ended and been kept; or what the input raised.
            EntropicError: A parameter set cannot be run, a run left no result, the folder or the
                database failed.
        """
        schedule = Schedule(options.executor.workers, on_error=on_error)
        request = self._request(source, options, schedule, meter, force=force, is_streamed=False)
        self._requests.add(request)
        try:
            records = await request.collect()
        finally:
            self._requests.discard(request)
        _tell_of(request, records)
        return records

    async def stream(
        self, source: Source, options: RunOptions, *, on_error: OnError, meter: Meter
    ) -> AsyncGenerator[list[R], None]:
        """One record for each parameter set of an input, as they are ready; else as ``collect``.

        Several at once, where several are ready. What is under way goes on while nobody waits for
        the next ones.
        """
        self._check_open()
        schedule = Schedule(
            options.executor.workers,
            on_error=on_error,
            is_streamed=True,
            on_demand=options.executor.needs_the_caller,
        )
        request = self._request(source, options, schedule, meter, force=False, is_streamed=True)
        self._requests.add(request)
        try:
            while outputs := await request.next():
                yield [record for _, record in outputs]
        finally:
            await request.aclose()
            self._requests.discard(request)
        _tell_of(request, ())

    def _request(
        self,
        source: Source,
        options: RunOptions,
        schedule: Schedule,
        meter: Meter,
        *,
        force: bool,
        is_streamed: bool,
    ) -> Request[R]:
        return Request(
            source,
            self._lookup,
            functools.partial(self._obtain, options=options, force=force),
            self._flights,
            schedule,
            lambda: options.executor.workers,
            meter,
            force=force,
            is_streamed=is_streamed,
        )

    async def stored(self, params: Params) -> tuple[ParameterSet, R | None]:
        """A parameter set as the model types it, and its record; ``None`` where it is to be run.

        Raises:
            EntropicError: It cannot be run, and is not stored.
        """
        answer = await self._lookup.quietly(params)
        return answer.parameters, _hit(answer)

    async def retrieve(self, params: Params) -> R | None:
        """The record of a parameter set; ``None`` on a miss."""
        # Perhaps a re-run was killed between the two, be it long ago: its result is recovered.
        answer = await self._lookup.one(params, lambda id: self._salvage.tidy([id]))
        if answer is None or isinstance(answer.error, IdConflictError):
            return None
        return _hit(answer)

    @property
    def is_inside_run(self) -> bool:
        """Whether the current code is inside a run of this store."""
        runs = (id for cache, id in running.get() if cache == self._cache.nonce)
        return any(self._flights.get(id) is not None for id in runs)

    async def failures(self) -> list[Failure]:
        """The failures on record, by run id."""
        return await self._cache.ledger.failures()

    async def forget_failures(self, tokens: Mapping[str, int]) -> int:
        """Forget failures on record, unless the runs were tried again since; how many."""
        return await self._cache.ledger.clearing.forget_failures(tokens)

    async def recover(self) -> Recovered:
        """Store what others have finished and left, discard what they have not; find strays."""
        return await self._salvage.recover()

    async def tidy(self) -> None:
        """The same, on the way to something else: what keeps it from it is no failure of that."""
        await self._salvage.tidy()

    def begin_call(self) -> None:
        """A call is under way: what it uses is not given back before it has ended.

        Raises:
            StoreClosedError: It came too late.
        """
        self._check_open()
        self._calls += 1

    def end_call(self) -> None:
        """A call has ended."""
        self._calls -= 1
        if not self._calls:
            self._is_idle.set()

    async def stop(self) -> None:
        """Stop what can be stopped, and let the rest end: every run, and every call."""
        self._is_closed = True
        for request in self._requests:
            request.close(StoreClosedError())
        await self._flights.stop()
        await self._holder.aclose()
        for request in list(self._requests):
            await request.ended()
        while self._calls:
            self._is_idle.clear()
            await self._is_idle.wait()
        await self._publisher.aclose()
        await self._lookup.aclose()
        await self._salvage.aclose()
        await self._claims.aclose()

    def release(self) -> None:
        """Give everything back."""
        self._cache.threads.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreClosedError

    async def _obtain(
        self,
        answer: Answer[R],
        waiter: Waiter,
        *,
        options: RunOptions,
        force: bool,
    ) -> Landed[R] | Failure:
        """Run what was missing, or wait for the one who runs it already."""
        while True:
            self._check_open()
            parameters = answer.parameters
            flight = self._flights.get(parameters.id)
            is_mine = flight is None
            with waiting(running.get(), (self._cache.nonce, parameters.id)):
                if flight is None:
                    run = functools.partial(
                        self._run,
                        parameters=parameters,
                        options=options,
                        unless_newer_than=None if force else answer.entry.published,
                    )
                    flight = self._flights.start(
                        parameters.id, parameters.digest, run, is_forced=force
                    )
                _check_same(flight, parameters)
                if force and not is_mine:  # whether that one fails does not matter here
                    await flight.wait(Waiter(_nothing, waiter.moved))
                else:
                    await flight.wait(waiter)
            landed = self._landed(flight, parameters, is_mine=is_mine, force=force)
            if landed is not None:
                return landed
            # Somebody else's run was interrupted, or the row has changed: look again.
            (answer,) = await self._lookup.answer([parameters])
            if answer.error is not None:
                raise answer.error
            if answer.record is not None and not force:
                return Landed(answer.record, None)

    async def _run(
        self, flight: Flight[Any], *, options: RunOptions, **about: Any
    ) -> Landed[R] | Failure | None:
        self._executors.share(options.executor)
        try:
            return await self._runs.run(flight, options=options, **about)
        finally:
            await self._executors.release(options.executor)

    def _landed(
        self,
        flight: Flight[Landed[R] | Failure | None],
        parameters: ParameterSet,
        *,
        is_mine: bool,
        force: bool,
    ) -> Landed[R] | Failure | None:
        """What a flight that has ended is to one of its waiters; ``None`` to look again."""
        if flight.task.cancelled():
            self._check_open()
            if is_mine:
                raise RunInterruptedError(
                    f"the run {parameters.id} was interrupted",
                    id=parameters.id,
                    params=parameters.values,
                )
            return None
        if force and not is_mine:  # that was somebody else's run; this one is still to come
            return None
        landed = flight.task.result()
        if is_mine or not isinstance(landed, Landed):
            return landed
        # A record of one's own: it is the caller's to change.
        return Landed(copied(landed.record), None)


def _hit(answer: Answer[R]) -> R | None:
    """The record of what was looked up; raises where neither a hit nor a miss can be said."""
    if answer.error is not None:
        raise answer.error
    if answer.record is not None:
        _logger.info("hit %s", answer.parameters.id)
    return answer.record


def _nothing() -> None:
    """What somebody else's failure means."""


def _check_same(flight: Flight[Any], parameters: ParameterSet) -> None:
    if flight.digest != parameters.digest:
        raise IdConflictError(
            f"the id {parameters.id!r} is being run with other parameters than"
            f" {shortened(parameters.values)}; choose another id",
            id=parameters.id,
        )


def _tell_of(request: Request[Any], records: Sequence[Base]) -> None:
    """Raise or log, as was asked for, that runs have failed."""
    if not request.failed:
        return
    count = f"{request.failed} run{'s' if request.failed > 1 else ''} failed"
    if not request.failures:
        _logger.warning("%s and left out; the store's failures() lists them", count)
        return
    raise SweepError(
        f"{count}; all others are stored",
        [failure.exception for failure in request.failures],
        records=records,
        failures=request.failures,
    )
