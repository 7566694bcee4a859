"""What owners that are gone have left: taken over, published and stored, or discarded.

``recovery`` says what is to be done. It is done as with any run: under a claim, by the one way to
publish, so that ten processes can do it at once.
"""

import asyncio
import logging
import os
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from entropic._shield import undisturbed
from entropic.artifacts import Removed, Sidecar, Stage
from entropic.errors import (
    DatabaseBusyError,
    EntropicError,
    StoreClosedError,
)
from entropic.identity import ParameterSet, shortened
from entropic.ledger import Claim, Entry, State
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import GRACE_SECONDS, Claimant, Claims
from entropic.pipeline.publishing import Executed, Publisher, own_name
from entropic.pipeline.strays import strays
from entropic.recovery import Leftovers, Recovered, read_sealed, sort
from entropic.schedule import BATCH
from entropic.worker import Outcome

R = TypeVar("R", bound=Base)
T = TypeVar("T")

_logger = logging.getLogger("entropic")

_MOST_LOOKED_AT: Final = 100  # stages of earlier owners, who mostly have failed


class Salvage(Generic[R]):
    """Saves the finished runs of owners that are gone.

    Args:
        cache: Whose they are.
        runs: The claims of the store's runs; what it has still to give back may be recovered.
        claimant: How it claims: as an owner of its own, so that it and the store's runs, and two
            recoveries at once, are no more in each other's way than those of two stores.
        publisher: Of this store.
    """

    def __init__(
        self,
        cache: Cache[R],
        runs: Claims[R],
        claimant: Claimant,
        publisher: Publisher[R],
    ) -> None:
        self._cache = cache
        self._runs = runs
        self._claims: Claims[R] = Claims(cache.ledger, claimant)
        self._publisher = publisher
        self._patience = claimant.ttl  # of an unfinished stage that nobody writes to
        self._under_claims: set[asyncio.Task[Any]] = set()

    async def recover(self) -> Recovered:
        """Store what others have finished and left, discard what they have not; find strays."""
        if not self._cache.folder.is_writable:
            await self._cache.threads.run(self._cache.folder.make_ready)
        published, discarded, _ = await self._clear()
        unknown = await self._strays(await self._cache.threads.run(self._cache.folder.names))
        if unknown:  # what was just being published has its row by now
            unknown = await self._strays(unknown)
        paths = tuple(self._cache.folder.given(name) for name in unknown)
        return Recovered(tuple(published), tuple(dict.fromkeys(discarded)), paths)

    async def tidy(self, only: Collection[str] | None = None) -> bool:
        """The same, on the way to something else: what keeps it from it is no failure of that.

        Args:
            only: The ids of the runs that alone are looked at; ``None`` for all.

        Returns:
            Whether anything finished had been left: it is stored now, by this store or another.
        """
        if not self._cache.folder.is_writable:
            return False
        try:
            _, _, were_left = await self._clear(only)
        except StoreClosedError:
            return False
        except EntropicError:
            _logger.warning("what a crash may have left was not recovered", exc_info=True)
            return False
        return were_left

    async def aclose(self) -> None:
        """Let end what is under way, and give back what it still has."""
        while self._under_claims:
            await asyncio.wait(self._under_claims)
        await self._claims.aclose()

    def take_over(self, parameters: ParameterSet, claim: Claim, stage: Stage) -> Executed | None:
        """Make the last finished stage of the earlier owners this owner's; in a thread."""
        oldest = max(claim.published, claim.token - 1 - _MOST_LOOKED_AT)
        for token in range(claim.token - 1, oldest, -1):
            theirs = self._cache.folder.stage(parameters.id, token, self._cache.nonce)
            sidecar = read_sealed(theirs, parameters.id, token)
            found = self._parameters(sidecar) if sidecar is not None else None
            if sidecar is None or found is None or found.digest != parameters.digest:
                continue
            if not self._cache.folder.can_resume(theirs, sidecar.staged, sidecar.id):
                _logger.warning(
                    "the finished run %s cannot be recovered: its result is no longer in %s, or"
                    " not what it was",
                    sidecar.id,
                    theirs.folder,
                )
                continue
            if self._cache.folder.take_over(theirs, stage):
                return self._executed(sidecar, parameters, claim, stage)
        return None

    def sealed(self, parameters: ParameterSet, claim: Claim, stage: Stage) -> Executed | None:
        """What this owner has finished, although nobody could say so; in a thread."""
        sidecar = read_sealed(stage, parameters.id, claim.token)
        if sidecar is None or not self._cache.folder.can_resume(stage, sidecar.staged, sidecar.id):
            return None
        return self._executed(sidecar, parameters, claim, stage)

    def _executed(
        self, sidecar: Sidecar, parameters: ParameterSet, claim: Claim, stage: Stage
    ) -> Executed:
        outcome = Outcome(
            sidecar.started_at, sidecar.elapsed_seconds, sidecar.host, staged=sidecar.staged
        )
        return self._publisher.executed(
            parameters, claim.token, sidecar.custom_data, stage, outcome, may_have_name=True
        )

    async def _clear(
        self, only: Collection[str] | None = None
    ) -> tuple[list[str], list[str], bool]:
        """Publish and store what owners that are gone have finished; discard what they have not.

        Args:
            only: The ids of the runs that alone are looked at; ``None`` for all.

        Returns:
            The ids of what was stored, and of what was discarded; whether anything finished had
            been left, which another store may have been faster to store.

        Raises:
            ResultsDirError: The results folder cannot be read.
            DatabaseError: The database failed.
        """
        await self._end_deletions(only)
        staged = await self._cache.threads.run(self._cache.folder.staged, self._cache.nonce)
        staged = [stage for stage in staged if only is None or stage[0] in only]
        if not staged:
            return [], [], False
        await self._runs.give_back_owed()
        await self._claims.give_back_owed()
        ids = sorted({id for id, _, _ in staged})
        states: dict[str, State] = {}
        for start in range(0, len(ids), BATCH):
            states |= await self._cache.ledger.states(ids[start : start + BATCH])
        left: Leftovers = await self._cache.threads.run(
            sort, staged, states, self._cache.folder, self._patience
        )
        useless = [*left.useless, *await self._in_order(self._fenced(left))]
        await self._cache.threads.run(self._publisher.discard, [stage for _, stage in useless])
        for id, stage in useless:
            _logger.info("discarded what was staged of %s (%s)", id, stage.folder)
        stored: list[str] = []
        finished = list(left.finished.values())
        for start in range(0, len(finished), BATCH):
            part = finished[start : start + BATCH]
            stored += await self._in_order(self._recovered(part, list(left.dead)))
        return stored, [id for id, _ in useless], bool(finished)

    async def _in_order(self, work: Coroutine[Any, Any, T]) -> T:
        """Do to its end what takes claims, so that it gives them back.

        It may take as long as somebody has the database locked; a cancellation waits only a
        moment for it.
        """
        task = asyncio.create_task(work)
        self._under_claims.add(task)
        task.add_done_callback(self._under_claims.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await undisturbed(asyncio.wait({task}, timeout=GRACE_SECONDS))
            raise

    async def _fenced(self, left: Leftovers) -> list[tuple[str, Stage]]:
        """Of what is still somebody's, what nobody can publish any more, as it has a later claim.

        It is not discarded before that: its owner may wake up and finish it.
        """
        fenced = []
        ids = list(left.held)
        for start in range(0, len(ids), BATCH):
            claims = await self._claims.take_free(ids[start : start + BATCH], list(left.dead))
            fenced += [(id, left.held[id]) for id in claims if not left.held[id].has_sidecar]
            await self._claims.give_back([(id, claim.token, None) for id, claim in claims.items()])
        return fenced

    async def _end_deletions(self, only: Collection[str] | None) -> None:
        """Remove what owners that are gone have deleted; put back what they were still about to."""
        folder = self._cache.folder
        found = await self._cache.threads.run(folder.removed, self._cache.nonce, self._patience)
        removed = [one for one in found if only is None or one.id in only]
        for start in range(0, len(removed), BATCH):
            part = removed[start : start + BATCH]
            entries = await self._cache.ledger.look_up([one.id for one in part])
            for one in part:
                path = self._place(one, entries[one.id])
                is_back = await self._cache.threads.run(folder.end_removal, one, path)
                _logger.info("%s %s", "put back" if is_back else "deleted", path or one.path)

    def _place(self, one: Removed, entry: Entry[R]) -> str | None:
        """Where a result belongs whose deletion has not been committed."""
        if entry.record is None or entry.published != one.published:
            return None
        name = own_name(self._cache.folder, one.id, entry)
        own = None if name is None else os.path.join(self._cache.folder.path, name)
        return entry.result.registered_path or own or entry.record.result_file

    async def _recovered(self, sidecars: Sequence[Sidecar], dead: Sequence[str]) -> list[str]:
        """Store finished runs, each under a claim of its own; the ids of those that were."""
        by_id = {sidecar.id: sidecar for sidecar in sidecars}
        claims = await self._claims.take_free(list(by_id), dead)
        try:
            stored, back = await self._store(by_id, claims)
        except BaseException as error:
            self._claims.owe([(id, claim.token, None) for id, claim in claims.items()])
            if isinstance(error, Exception) and not isinstance(error, DatabaseBusyError):
                await self._claims.give_back_owed()
            raise
        if back:
            await self._claims.give_back([(id, claims[id].token, None) for id in back])
        return stored

    async def _store(
        self, by_id: Mapping[str, Sidecar], claims: Mapping[str, Claim]
    ) -> tuple[list[str], list[str]]:
        """The ids of what was stored, and of those claimed runs that were not."""

        def take_over() -> list[Executed]:
            found = (self._recoverable(by_id[id], claim) for id, claim in claims.items())
            return [run for run in found if run is not None]

        runs = await self._cache.threads.run(take_over)
        stored = []
        back = claims.keys() - {run.parameters.id for run in runs}
        for run, answer in zip(runs, await self._publisher.store(runs), strict=True):
            if isinstance(answer, EntropicError):
                _logger.warning("run %s was not recovered: %s", run.parameters.id, answer)
                back.add(run.parameters.id)
                continue
            self._claims.forget(run.parameters.id, run.token)
            if answer.published == run.token:
                _logger.info("recovered %s", run.parameters.id)
                stored.append(run.parameters.id)
        return stored, sorted(back)

    def _recoverable(self, sidecar: Sidecar, claim: Claim) -> Executed | None:
        parameters = self._parameters(sidecar)
        if parameters is None:
            return None
        stage = self._cache.folder.stage(sidecar.id, claim.token, self._cache.nonce)
        return self.take_over(parameters, claim, stage)

    def _parameters(self, sidecar: Sidecar) -> ParameterSet | None:
        """What was run; ``None`` where a sidecar cannot be right, or the model has changed."""
        try:
            if sidecar.has_own_id:
                return self._cache.identity.resolve({**sidecar.values, "id": sidecar.id})
            found = self._cache.identity.resolve(sidecar.values)
            if sidecar.id in (found.id, found.id_2x):
                return replace(found, id=sidecar.id)
            why: object = f"its id is not that of {shortened(sidecar.values)}"
        except EntropicError as error:
            why = error
        _logger.warning("the finished run %s cannot be recovered: %s", sidecar.id, why)
        return None

    async def _strays(self, names: Sequence[str]) -> list[str]:
        """Those names in the results folder that no row knows."""
        return await strays(self._cache.ledger, self._cache.folder, names, self._cache.threads.run)
