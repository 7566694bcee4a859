"""One run, step by step: claim, execute, publish and commit, or give the claim back.

Whether a run is needed, and who waits for it, is left to the callers; the claim, to ``holding``.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from entropic._shield import to_the_end, undisturbed
from entropic.errors import Failure, RunError
from entropic.identity import ParameterSet
from entropic.leases import Flight
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import Claimant
from entropic.pipeline.failures import describe, may_pass
from entropic.pipeline.holding import Holder, Landed, Run, RunOptions, failure_of
from entropic.pipeline.publishing import Executed, Publisher
from entropic.schedule import retry_delay
from entropic.worker import Job, Outcome, Runner, running

T = TypeVar("T")
R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")


class Runs(Generic[R]):
    """Carries runs out.

    Args:
        runner: The user's function.
        cache: Where they are stored.
        holder: Of this store's claims.
        publisher: Of this store.
        claimant: How this store claims runs.
        checksum: Whether results get a digest.
    """

    def __init__(
        self,
        runner: Runner,
        cache: Cache[R],
        holder: Holder[R],
        publisher: Publisher[R],
        *,
        claimant: Claimant,
        checksum: bool,
    ) -> None:
        self._runner = runner
        self._cache = cache
        self._holder = holder
        self._publisher = publisher
        self._owner = claimant.owner
        self._patience = claimant.ttl
        self._checksum = checksum

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
            run = Run(parameters, options, is_last=attempt > options.retries)
            ended = await self._holder.claimed(flight, run, unless_newer_than)
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
        self, flight: Flight[Any], run: Run, unless_newer_than: int | None
    ) -> Landed[R] | Failure | None:
        try:
            if unless_newer_than is not None and run.claim.published > unless_newer_than:
                await undisturbed(self._holder.give_back(run))
                return None
            left = await self._holder.left_behind(run) if unless_newer_than is not None else None
            ended = left or await self._execute(flight, run)
        except asyncio.CancelledError:
            await self._holder.leave(run)
            raise
        except Exception as error:
            # Not the runner's: the executor's, or the database's. The run has failed all the same.
            await undisturbed(
                self._holder.give_back(run, describe(self._cache.identity, run.parameters, error))
            )
            raise
        if isinstance(ended, Outcome) and ended.error is not None:
            return await self._failed(flight, run, ended, ended.error)
        landed = await self._finish(run, ended)
        if landed is not None:
            return landed
        flight.has_started = False  # the later owner's run may be left like any other
        return await self._holder.overtaken(flight, run)

    async def _failed(
        self, flight: Flight[Any], run: Run, outcome: Outcome, error: Exception
    ) -> Landed[R] | Failure | None:
        if run.is_overtaken or await undisturbed(self._holder.has_lost_claim(run)):
            await undisturbed(self._holder.give_back(run))
            return await self._holder.overtaken(flight, run)
        about = describe(self._cache.identity, run.parameters, error, outcome.traceback)
        # A result that was finished before the disk failed is left where it is.
        leave = self._holder.settle if outcome.is_finished else self._holder.give_back
        # A failure that is none yet is nobody else's, either.
        is_final = outcome.is_finished or _is_final(flight, run, error)
        # A cancellation must not be lost on a run that would be tried again.
        await (undisturbed if run.is_last else to_the_end)(leave(run, about if is_final else None))
        if outcome.is_finished:  # whatever runs next, the disk fails it, too
            raise error
        return failure_of(run, error, outcome.traceback)

    async def _execute(self, flight: Flight[Any], run: Run) -> Outcome | Executed:
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
                sealed = await undisturbed(self._holder.sealed(run))
                if sealed is None:
                    raise
                return sealed
            flight.cannot_stop = False
            flight.has_started = True  # an executor may not have been able to say so
            if isinstance(outcome.error, RunError):  # the worker's death, perhaps: no runner's own
                sealed = await undisturbed(self._holder.sealed(run))
                if sealed is not None:
                    return sealed
            if outcome.error is not None:
                if not outcome.has_stage:  # paused past its lease, perhaps: then it is no failure
                    run.is_overtaken = await undisturbed(self._holder.has_lost_claim(run))
                if not run.is_overtaken and (run.is_last or not may_pass(outcome.error)):
                    flight.failing()
            return outcome

    async def _off_loop(self, run: Run, function: Callable[[Run], T]) -> T:
        """In a thread where the parameters are large; here, where a hop would cost more."""
        if run.is_heavy:
            return await self._cache.threads.run(function, run)
        return function(run)

    def _job(self, run: Run) -> Job:
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

    async def _finish(self, run: Run, ended: Outcome | Executed) -> Landed[R] | Failure | None:
        if isinstance(ended, Executed):
            return await self._holder.store(run, ended)

        def executed(run: Run) -> Executed:
            custom_data = run.options.custom_data
            return self._publisher.executed(
                run.parameters, run.claim.token, custom_data, run.stage, ended
            )

        # A cancellation comes too late from here on.
        if run.is_heavy:
            finished = await undisturbed(self._cache.threads.submit(executed, run))
        else:
            finished = executed(run)
        return await self._holder.store(run, finished)


def _is_final(flight: Flight[Any], run: Run, error: Exception) -> bool:
    """Whether a failure is the run's end, and it is not tried again."""
    return run.is_last or not may_pass(error) or not flight.is_wanted
