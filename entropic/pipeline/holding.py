"""A run in hand: its claim, from taking it to storing what it has brought, or giving it back.

What is done with it in between is left to ``runs``.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from entropic._shield import to_the_end, uncancel, undisturbed, until_done
from entropic.artifacts import Stage
from entropic.errors import (
    DatabaseBusyError,
    EntropicError,
    Failure,
    RowRefusedError,
    StoreClosedError,
)
from entropic.executors import Executor
from entropic.identity import ParameterSet, is_heavy
from entropic.leases import Flight
from entropic.ledger import Claim, State
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import GRACE_SECONDS, Claims, is_newer
from entropic.pipeline.failures import describe
from entropic.pipeline.publishing import Executed, Publisher
from entropic.pipeline.salvage import Salvage

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
class Run:
    """One run in hand; claim and stage are there once it has been taken.

    Attributes:
        is_last: Whether it is not tried again if it fails.
        is_renewed: Whether the heartbeat renews its claim.
        is_overtaken: Whether it has failed when the claim was no longer ours.
        is_heavy: Whether its parameters are so large that they are handled in a thread.
    """

    parameters: ParameterSet
    options: RunOptions
    is_last: bool
    is_renewed: bool = False
    is_overtaken: bool = False
    claim: Claim = field(init=False)
    stage: Stage = field(init=False)
    is_heavy: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_heavy = is_heavy(self.parameters.values)

    @property
    def has_claim(self) -> bool:
        """Whether it has been taken."""
        return hasattr(self, "stage")


class Holder(Generic[R]):
    """Holds the claims of this store's runs.

    Args:
        cache: Where runs are stored.
        claims: Of this store.
        publisher: Of this store.
        salvage: Of what earlier owners have left.
        owner: Whose claims they are.
    """

    def __init__(
        self,
        cache: Cache[R],
        claims: Claims[R],
        publisher: Publisher[R],
        salvage: Salvage[R],
        *,
        owner: str,
    ) -> None:
        self._cache = cache
        self._claims = claims
        self._publisher = publisher
        self._salvage = salvage
        self._owner = owner
        # What cancelled requests have still to give back, by run id.
        self._leaving: dict[str, asyncio.Task[None]] = {}

    async def claimed(
        self, flight: Flight[Any], run: Run, unless_newer_than: int | None
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

    async def left_behind(self, run: Run) -> Executed | None:
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

    async def sealed(self, run: Run) -> Executed | None:
        """What this run has finished, although nobody could say so."""
        return await self._cache.threads.run(
            self._salvage.sealed, run.parameters, run.claim, run.stage
        )

    async def store(self, run: Run, finished: Executed) -> Landed[R] | Failure | None:
        """Store what a run has brought; its claim is over.

        Returns:
            The failure, where the database refuses its row. ``None`` where it was overtaken.

        Raises:
            EntropicError: It could not be stored; it stays staged, for whoever asks next.
        """
        try:
            (entry,) = await undisturbed(self._publisher.store([finished]))
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
                await undisturbed(self.settle(run, about))
            if isinstance(error, RowRefusedError):  # which is nothing to the other runs
                return failure_of(run, error)
            raise
        self._release(run)
        self._claims.forget(run.parameters.id, run.claim.token)
        if entry.record is None or entry.published < run.claim.token:
            # Overtaken: by a run that was deleted meanwhile, or by one that is still under way.
            return None
        return Landed(entry.record, finished.outcome.elapsed_seconds)

    async def give_back(self, run: Run, failure: dict[str, Any] | None = None) -> None:
        """Discard what was staged, and give the claim back; nothing to do where there is none."""
        if run.has_claim:
            await self._cache.threads.run(self._publisher.discard, [run.stage])
            await self.settle(run, failure)

    async def settle(self, run: Run, failure: dict[str, Any] | None) -> None:
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

    async def has_lost_claim(self, run: Run) -> bool:
        """Whether the claim is no longer ours."""
        state = (await self._cache.ledger.states([run.parameters.id]))[run.parameters.id]
        return (state.token, state.owner) != (run.claim.token, self._owner)

    async def overtaken(self, flight: Flight[Any], run: Run) -> Landed[R] | None:
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
        if entry.result.name is not None:  # the path by which it is found from here
            entry.record.__dict__["result_file"] = self._cache.folder.given(entry.result.name)
        return Landed(entry.record, None)

    async def leave(
        self, run: Run, asked: asyncio.Future[list[Claim | State]] | None = None
    ) -> None:
        """Give a cancelled run's claim back, also one that has yet to come; store what is finished.

        It may take as long as somebody has the database locked; a cancellation waits only a
        moment for it.
        """

        async def give_back() -> None:
            if asked is not None:
                await asyncio.wait({asked})
                if asked.cancelled() or asked.exception():
                    self._claims.release(run.parameters.id)
                    return
                self._taken(run, *asked.result())
            await self._keep_or_give_back(run)

        id = run.parameters.id
        task = self._leaving[id] = asyncio.create_task(give_back())

        def ended(_: object) -> None:
            if self._leaving.get(id) is task:
                del self._leaving[id]

        task.add_done_callback(ended)
        await undisturbed(asyncio.wait({task}, timeout=GRACE_SECONDS))

    async def aclose(self) -> None:
        """Wait until all claims that cancelled runs left behind have been given back."""
        while self._leaving:
            await asyncio.wait(self._leaving.values())

    async def _take(self, run: Run, unless_newer_than: int | None) -> State | None:
        """Try to claim a run; ``None`` where that has worked, else how it is with it."""
        # A claim that a cancelled request is still to get must not be taken for this one's. One
        # look: what comes to be left meanwhile is this very request.
        if (leaving := self._leaving.get(run.parameters.id)) is not None:
            await asyncio.wait({leaving})
        asked = self._claims.ask(run.parameters.id, unless_newer_than)
        try:
            await until_done(asked)
            (answer,) = asked.result()
        except asyncio.CancelledError:
            await self.leave(run, asked)
            raise
        except Exception as error:
            self._claims.release(run.parameters.id)
            describe(self._cache.identity, run.parameters, error)  # tells it which run it is about
            raise
        return self._taken(run, answer)

    def _taken(self, run: Run, answer: Claim | State) -> State | None:
        if isinstance(answer, State):
            self._claims.release(run.parameters.id)
            return answer
        run.claim = answer
        run.is_renewed = True
        run.stage = self._cache.folder.stage(run.parameters.id, answer.token, self._cache.nonce)
        return None

    async def _keep_or_give_back(self, run: Run) -> None:
        """The interruption of a run may come when its result has just been sealed."""
        sealed = await self.sealed(run) if run.has_claim else None
        if sealed is None:
            await self.give_back(run)
            return
        try:
            await self.store(run, sealed)
        except EntropicError:  # it stays staged, for whoever asks next
            _logger.warning("run %s was not stored", run.parameters.id, exc_info=True)

    def _is_its_own(self, failure: Failure | None, run: Run) -> bool:
        """Whether a failure elsewhere is that of the same parameters, of whoever chose the id."""
        if failure is None or not run.parameters.has_own_id:
            return failure is not None
        try:
            return self._cache.identity.resolve(failure.params).digest == run.parameters.digest
        except EntropicError:  # large ones are not on record
            return False

    def _release(self, run: Run) -> None:
        """Have its claim renewed no more: once, be it given back again where that was cut short."""
        if run.is_renewed:
            run.is_renewed = False
            self._claims.release(run.parameters.id)


def failure_of(run: Run, error: Exception, traceback: str | None = None) -> Failure:
    """How a run has failed."""
    return Failure(dict(run.parameters.values), run.parameters.id, error, traceback or "", 1)
