"""One run, step by step: claim, execute, publish and commit, or give the claim back.

Whether a run is needed, and who waits for it, is left to the callers.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from entropic._shield import to_the_end, uncancel, undisturbed
from entropic.artifacts import Stage
from entropic.errors import (
    DatabaseBusyError,
    EntropicError,
    Failure,
    RowRefusedError,
    RunError,
    StoreClosedError,
)
from entropic.executors import Executor
from entropic.identity import ParameterSet, is_heavy
from entropic.leases import Flight
from entropic.ledger import Claim, State
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import GRACE_SECONDS, Claimant, Claims, is_newer
from entropic.pipeline.failures import describe, may_pass
from entropic.pipeline.publishing import Executed, Publisher
from entropic.pipeline.salvage import Salvage
from entropic.schedule import retry_delay
from entropic.worker import Job, Outcome, Runner, running

T = TypeVar("T")
R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")


@dataclass(frozen=True, slots=True)
class Landed(Generic[R]):
    """How a run ended well.

    Attributes:
        record: What is stored now: this run's record, or that of a later owner.
        seconds: What the runner took; ``None`` where it was not run here.
    """

    record: R
    seconds: float | None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a call wants its runs to be carried out.

    Attributes:
        executor: Where.
        custom_data: What goes to their rows beside ``elapsed_seconds``.
        retries: How many times more one that fails is tried.
        timeout: Seconds after which a runner is stopped.
    """

    executor: Executor
    custom_data: Mapping[str, Any]
    retries: int = 0
    timeout: float | None = None


@dataclass(slots=True)
class _Run:
    """One run in hand; claim and stage are there once it has been taken.

    Attributes:
        is_last: Whether it is not tried again if it fails.
        is_renewed: Whether the heartbeat renews its claim.
    """

    parameters: ParameterSet
    options: RunOptions
    is_last: bool
    is_renewed: bool = False
    claim: Claim = field(init=False)
    stage: Stage = field(init=False)

    @property
    def has_claim(self) -> bool:
        return hasattr(self, "stage")


class Runs(Generic[R]):
    """Carries runs out.

    Args:
        runner: The user's function.
        cache: Where they are stored.
        claims: Of this store.
        publisher: Of this store.
        salvage: Of what earlier owners have left.
        claimant: How this store claims runs.
        checksum: Whether results get a digest.
    """

    def __init__(
        self,
        runner: Runner,
        cache: Cache[R],
        claims: Claims[R],
        publisher: Publisher[R],
        salvage: Salvage[R],
        *,
        claimant: Claimant,
        checksum: bool,
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._claims = claims
        self._publisher = publisher
        self._salvage = salvage
        self._owner = claimant.owner
        self._patience = claimant.ttl
        self._checksum = checksum
        # What cancelled requests have still to give back, by run id.
        self._leaving: dict[str, asyncio.Task[None]] = {}

    async def run(
        self,
        flight: Flight[Any],
        parameters: ParameterSet,
        options: RunOptions,
        *,
        unless_newer_than: int | None,
    ) -> Landed[R] | Failure | None:
        """Run one parameter set, again where it fails and that is asked for.

        Args:
            flight: Told when the runner is called.
            parameters: What to run.
            options: How.
            unless_newer_than: The token of the stored result that was looked at; a run that was
                stored since then makes this one needless. ``None`` to run in any case.

        Returns:
            The failure, where the run has failed for good, here or in another store. ``None``
            when somebody has stored the run since it was looked up, or a later owner's result
            has been stored and deleted: look again.

        Raises:
            EntropicError: The run could not be carried out, or not be stored.
            asyncio.CancelledError: The run was interrupted; its claim has been given back.
        """
        if not self._cache.folder.is_writable:  # or is it meanwhile?
            await self._cache.threads.run(self._cache.folder.make_ready)
        for attempt in itertools.count(1):
            run = _Run(parameters, options, is_last=attempt > options.retries)
            ended = await self._claimed(flight, run, unless_newer_than)
            landed: Landed[R] | Failure | None
            if ended is not None:
                landed = ended.failure
            else:
                landed = await self._attempt(flight, run, unless_newer_than)
            if not isinstance(landed, Failure):
                return landed
            if _is_final(flight, run, landed.exception):
                return landed if ended is not None else replace(landed, attempts=attempt)
            # Meanwhile nothing is at work, and nothing is lost by leaving.
            flight.has_started = False
            delay = retry_delay(attempt, random.random())
            _logger.info("run %s is tried again in %.1f s", parameters.id, delay)
            await asyncio.sleep(delay)
        raise AssertionError

    async def _attempt(
        self, flight: Flight[Any], run: _Run, unless_newer_than: int | None
    ) -> Landed[R] | Failure | None:
        try:
            if unless_newer_than is not None and run.claim.published > unless_newer_than:
                await undisturbed(self._give_back(run))
                return None
            left = await self._left_behind(run) if unless_newer_than is not None else None
            ended = left or await self._execute(flight, run)
        except asyncio.CancelledError:
            await self._leave_in_order(run)
            raise
        except Exception as error:
            # Not the runner's: the executor's, or the database's. The run has failed all the same.
            await undisturbed(
                self._give_back(run, describe(self._cache.identity, run.parameters, error))
            )
            raise
        if isinstance(ended, Outcome) and ended.error is not None:
            return await self._failed(flight, run, ended, ended.error)
        landed = await undisturbed(self._finish(run, ended))
        if landed is not None:
            return landed
        flight.has_started = False  # the later owner's run may be left like any other
        return await self._overtaken(flight, run)

    async def _failed(
        self, flight: Flight[Any], run: _Run, outcome: Outcome, error: Exception
    ) -> Landed[R] | Failure | None:
        if await undisturbed(self._has_lost_claim(run)):
            # Paused past its lease, perhaps: its stage may have gone with that.
            await undisturbed(self._give_back(run))
            return await self._overtaken(flight, run)
        about = describe(self._cache.identity, run.parameters, error, outcome.traceback)
        # A result that was finished before the disk failed is left where it is.
        leave = self._settle if outcome.is_finished else self._give_back
        # A failure that is none yet is nobody else's, either.
        is_final = outcome.is_finished or _is_final(flight, run, error)
        # A cancellation must not be lost on a run that would be tried again.
        await (undisturbed if run.is_last else to_the_end)(leave(run, about if is_final else None))
        if outcome.is_finished:  # whatever runs next, the disk fails it, too
            raise error
        return _failure(run, error, outcome.traceback)

    async def aclose(self) -> None:
        """Wait until all claims that cancelled runs left behind have been given back."""
        while self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _claimed(
        self, flight: Flight[Any], run: _Run, unless_newer_than: int | None
    ) -> State | None:
        """Claim a run, once no other store runs it.

        Returns:
            ``None`` with the claim in hand; else how the run ended elsewhere: with a newer result
            than the one that was looked at, or in a failure, which is this request's outcome, too.
        """
        while (state := await self._take(run, unless_newer_than)) is not None:
            if not is_newer(state, unless_newer_than):
                flight.is_elsewhere = True
                _logger.info("run %s is under way in another store; waiting", run.parameters.id)
                state = await self._claims.ended(run.parameters.id)
                if self._is_its_own(state.failure, run) and unless_newer_than is not None:
                    return state
            if is_newer(state, unless_newer_than):
                return replace(state, failure=None)
        flight.is_elsewhere = False
        return None

    async def _leave_in_order(self, run: _Run, taking: asyncio.Future[Any] | None = None) -> None:
        """Give a cancelled run's claim back, also one that has yet to come; store what is finished.

        It may take as long as somebody has the database locked; a cancellation waits only a
        moment for it.
        """

        async def give_back() -> None:
            if taking is not None:
                await asyncio.wait({taking})
            if taking is None or not (taking.cancelled() or taking.exception()):
                await self._keep_or_give_back(run)

        id = run.parameters.id
        task = self._leaving[id] = asyncio.create_task(give_back())

        def ended(_: object) -> None:
            if self._leaving.get(id) is task:
                del self._leaving[id]

        task.add_done_callback(ended)
        await undisturbed(asyncio.wait({task}, timeout=GRACE_SECONDS))

    async def _keep_or_give_back(self, run: _Run) -> None:
        """The interruption of a run may come when its result has just been sealed."""
        sealed = await self._sealed(run) if run.has_claim else None
        if sealed is None:
            await self._give_back(run)
            return
        try:
            await self._store(run, sealed)
        except EntropicError:  # it stays staged, for whoever asks next
            _logger.warning("run %s was not stored", run.parameters.id, exc_info=True)

    async def _sealed(self, run: _Run) -> Executed | None:
        """What this run has finished, although nobody could say so."""
        return await self._cache.threads.run(
            self._salvage.sealed, run.parameters, run.claim, run.stage
        )

    async def _take(self, run: _Run, unless_newer_than: int | None) -> State | None:
        """Try to claim a run; ``None`` where that has worked, else how it is with it."""

        async def take() -> State | None:
            # A claim that a cancelled request is still to get must not be taken for this one's. One
            # look: what comes to be left meanwhile is this very request, and waits for it.
            if (leaving := self._leaving.get(run.parameters.id)) is not None:
                await asyncio.wait({leaving})
            claim = await self._claims.take(run.parameters.id, unless_newer_than)
            if isinstance(claim, State):
                return claim
            run.claim = claim
            run.is_renewed = True
            run.stage = self._cache.folder.stage(run.parameters.id, claim.token, self._cache.nonce)
            return None

        taking = asyncio.ensure_future(take())
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            await self._leave_in_order(run, taking)
            raise
        except Exception as error:
            describe(self._cache.identity, run.parameters, error)  # tells it which run it is about
            raise

    async def _execute(self, flight: Flight[Any], run: _Run) -> Outcome | Executed:
        """Run it; finished is also what was sealed by a worker that could not say so any more."""
        executor = run.options.executor
        job = await self._off_loop(run, self._job)
        async with executor.slot(len(job.chain)):

            def began(*, goes_on: bool = False) -> None:
                flight.has_started = True
                flight.cannot_stop = goes_on or not executor.can_stop

            try:
                outcome = await executor.run(job, began)
            except Exception:  # the place to run is gone, and with it its answer
                sealed = await undisturbed(self._sealed(run))
                if sealed is None:
                    raise
                return sealed
            flight.cannot_stop = False
            flight.has_started = True  # an executor may not have been able to say so
            if isinstance(outcome.error, RunError):  # the worker's death, perhaps: no runner's own
                sealed = await undisturbed(self._sealed(run))
                if sealed is not None:
                    return sealed
            if outcome.error is not None and (run.is_last or not may_pass(outcome.error)):
                flight.failing()
            return outcome

    async def _off_loop(self, run: _Run, function: Callable[[_Run], T]) -> T:
        """In a thread where the parameters are large; here, where a hop would cost more."""
        if is_heavy(run.parameters.values):
            return await self._cache.threads.run(function, run)
        return function(run)

    def _job(self, run: _Run) -> Job:
        return Job(
            runner=self._runner,
            params=run.parameters.values,
            id=run.parameters.id,
            cache=self._cache.nonce,
            stage=run.stage,
            token=run.claim.token,
            owner=self._owner,
            has_own_id=run.parameters.has_own_id,
            values=self._cache.identity.portable(run.parameters.values),
            custom_data=dict(run.options.custom_data),
            checksum=self._checksum,
            timeout=run.options.timeout,
            patience=self._patience,
            chain=running.get(),
        )

    async def _finish(self, run: _Run, ended: Outcome | Executed) -> Landed[R] | Failure | None:
        if isinstance(ended, Executed):
            return await self._store(run, ended)

        def executed(run: _Run) -> Executed:
            custom_data = run.options.custom_data
            return self._publisher.executed(
                run.parameters, run.claim.token, custom_data, run.stage, ended
            )

        return await self._store(run, await self._off_loop(run, executed))

    async def _left_behind(self, run: _Run) -> Executed | None:
        """The finished result of an earlier owner of this run, who did not come to store it."""
        if run.claim.token <= run.claim.published + 1:
            return None
        found: Executed | None = None

        async def look() -> None:
            nonlocal found
            take_over = self._salvage.take_over
            found = await self._cache.threads.run(take_over, run.parameters, run.claim, run.stage)

        try:
            await to_the_end(look())
        except asyncio.CancelledError:
            if found is None:
                raise
            uncancel()  # it has been taken over, so it is this run's, and is stored
        return found

    async def _store(self, run: _Run, finished: Executed) -> Landed[R] | Failure | None:
        try:
            (entry,) = await self._publisher.store([finished])
            if isinstance(entry, EntropicError):
                raise entry
        except Exception as error:
            # The run is finished: what could not be published stays staged, with its sidecar.
            about: dict[str, Any] | None = describe(self._cache.identity, run.parameters, error)
            if isinstance(error, StoreClosedError):  # Python is ending: it is nobody's failure
                about = None
            if isinstance(error, DatabaseBusyError):  # whoever waits has waited long enough
                self._release(run)
                self._claims.owe([(run.parameters.id, run.claim.token, about)])
            else:
                await self._settle(run, about)
            if isinstance(error, RowRefusedError):  # which is nothing to the other runs
                return _failure(run, error)
            raise
        self._release(run)
        self._claims.forget(run.parameters.id, run.claim.token)
        if entry.record is None or entry.published < run.claim.token:
            # Overtaken: by a run that was deleted meanwhile, or by one that is still under way.
            return None
        if entry.published == run.claim.token and entry.result.name is not None:
            entry.record.__dict__["result_file"] = self._cache.folder.given(entry.result.name)
        return Landed(entry.record, finished.outcome.elapsed_seconds)

    async def _has_lost_claim(self, run: _Run) -> bool:
        """Whether the claim is no longer ours."""
        state = (await self._cache.ledger.states([run.parameters.id]))[run.parameters.id]
        return (state.token, state.owner) != (run.claim.token, self._owner)

    def _is_its_own(self, failure: Failure | None, run: _Run) -> bool:
        """Whether a failure elsewhere is that of the same parameters, of whoever chose the id."""
        if failure is None or not run.parameters.has_own_id:
            return failure is not None
        try:
            return self._cache.identity.resolve(failure.params).digest == run.parameters.digest
        except EntropicError:  # large ones are not on record
            return False

    async def _overtaken(self, flight: Flight[Any], run: _Run) -> Landed[R] | None:
        """This run came too late; the record of the later owner is what its requests get.

        Until there is one, what this run has finished stays staged, and is the next one's.

        Returns:
            ``None`` where there is none: look again.
        """
        flight.is_elsewhere = True
        try:
            state = await self._claims.ended(run.parameters.id)
        finally:
            flight.is_elsewhere = False
        if state.published < run.claim.token:
            return None
        await self._cache.threads.run(self._publisher.discard, [run.stage])
        entry = (await self._cache.ledger.look_up([run.parameters.id]))[run.parameters.id]
        if entry.record is None:
            return None
        if entry.result.name is not None:
            entry.record.__dict__["result_file"] = self._cache.folder.given(entry.result.name)
        return Landed(entry.record, None)

    async def _give_back(self, run: _Run, failure: dict[str, Any] | None = None) -> None:
        """Discard what was staged, and give the claim back; nothing to do where there is none."""
        if run.has_claim:
            await self._cache.threads.run(self._publisher.discard, [run.stage])
            await self._settle(run, failure)

    def _release(self, run: _Run) -> None:
        """Have its claim renewed no more: once, be it given back again where that was cut short."""
        if run.is_renewed:
            run.is_renewed = False
            self._claims.release(run.parameters.id)

    async def _settle(self, run: _Run, failure: dict[str, Any] | None) -> None:
        """Put a failure, or (``None``) an interruption, on record.

        The caller must hear of the failure itself, not of this one.
        """
        self._release(run)
        try:
            await self._claims.give_back([(run.parameters.id, run.claim.token, failure)])
        except Exception:
            _logger.warning(
                "the claim of %s could not be given back", run.parameters.id, exc_info=True
            )


def _is_final(flight: Flight[Any], run: _Run, error: Exception) -> bool:
    """Whether a failure is the run's end, and it is not tried again."""
    return run.is_last or not may_pass(error) or not flight.is_wanted


def _failure(run: _Run, error: Exception, traceback: str | None = None) -> Failure:
    return Failure(dict(run.parameters.values), run.parameters.id, error, traceback or "", 1)
