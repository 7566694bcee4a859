"""Rows that are to go, their results with them if that is asked for."""

import asyncio
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from entropic._shield import to_the_end, undisturbed
from entropic.artifacts import Removal, ResultsFolder
from entropic.errors import IdConflictError, SchemaError
from entropic.identity import checked_id
from entropic.leases import is_gone
from entropic.ledger import Entry, Result, of_record
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import Claims
from entropic.pipeline.lookup import Lookup, found_at
from entropic.pipeline.publishing import own_name
from entropic.pipeline.salvage import Salvage
from entropic.pipeline.sources import Params

if TYPE_CHECKING:
    from entropic.ledger.survey import Trace

R = TypeVar("R", bound=Base)

# In one transaction, while nobody else can write.
_AT_ONCE: Final = 100

_logger = logging.getLogger("entropic")


class Deleter(Generic[R]):
    """Deletes.

    Args:
        cache: What is deleted in.
        lookup: Finds what is stored.
        claims: Of this store.
        salvage: Discards what was staged of what is deleted.
    """

    def __init__(
        self, cache: Cache[R], lookup: Lookup[R], claims: Claims[R], salvage: Salvage[R]
    ) -> None:
        self._cache = cache
        self._lookup = lookup
        self._claims = claims
        self._salvage = salvage

    async def delete(self, params: Params | None, id: str | None, *, remove_file: bool) -> bool:
        """Remove a row, and its result if that is asked for; whether there was one."""
        if id is None:
            assert params is not None
            answer = await self._lookup.one(params)
            if answer is None or answer.entry.record is None:
                return False
            if isinstance(answer.error, IdConflictError | SchemaError):
                raise answer.error
            id = answer.parameters.id
        return bool(await self.delete_some({checked_id(id): None}, remove_file=remove_file))

    async def delete_all(
        self,
        runs: Sequence[tuple[str, int]],
        *,
        remove_file: bool,
        spares_claimed: bool = False,
    ) -> list[str]:
        """Remove rows, some in each transaction; the ids of those that there were.

        Arguments are those of ``delete_some``.
        """
        deleted = []
        for start in range(0, len(runs), _AT_ONCE):
            deleted += await self.delete_some(
                dict(runs[start : start + _AT_ONCE]),
                remove_file=remove_file,
                spares_claimed=spares_claimed,
            )
        return deleted

    async def delete_some(
        self,
        runs: Mapping[str, int | None],
        *,
        remove_file: bool,
        spares_claimed: bool = False,
    ) -> list[str]:
        """Remove rows, all in one transaction; the ids of those that there were.

        Args:
            runs: The run ids, each with the token of the result that is to go; ``None`` for
                whichever is there.
            remove_file: Whether to remove the results, too.
            spares_claimed: Whether what is being run again stays.
        """
        removals: list[Removal] = []
        gone = await self._gone(list(runs))
        try:
            entries = await self._cache.ledger.delete(
                runs,
                functools.partial(self._forget, removals=removals if remove_file else None),
                gone,
                functools.partial(self._cache.threads.run, _put_back, removals),
                spares_claimed=spares_claimed,
            )
        except asyncio.CancelledError:
            await self._give_up(removals)
            raise
        deleted = [of_record(entry).id for entry in entries]
        for id in deleted:
            _logger.info("deleted the row of %s", id)
        await to_the_end(self._finish(removals))
        if deleted:
            await self._salvage.tidy(frozenset(deleted))
        return deleted

    async def disown(self, tokens: Mapping[str, int]) -> list[str]:
        """Remove results whose rows are gone, all in one transaction; the ids of their runs.

        Args:
            tokens: The runs, and of each the token of its last owner: what was run since stays.
        """
        removals: list[Removal] = []
        folder = self._cache.folder

        def take(traces: "Sequence[Trace]") -> None:
            for trace in traces:
                removal = folder.removal(trace.id, trace.token, self._cache.nonce)
                removals.append(removal)
                removal.result = folder.spell(trace.name)
                folder.take_out(
                    removal, trace.name, trace.id, has_companions=bool(trace.companions)
                )

        try:
            disowned = await self._cache.ledger.clearing.disown(
                folder.id,
                tokens,
                lambda traces: self._cache.threads.run(take, traces),
                functools.partial(self._cache.threads.run, _put_back, removals),
            )
        except asyncio.CancelledError:
            await self._give_up(removals)
            raise
        await to_the_end(self._finish(removals))
        return [trace.id for trace in disowned]

    async def _give_up(self, removals: Sequence[Removal]) -> None:
        """After a transaction that was cancelled, and has ended all the same.

        What was not put back is nobody's any more.
        """
        for removal in removals:
            await undisturbed(self._cache.threads.submit(_finish, removal))

    async def _finish(self, removals: Sequence[Removal]) -> None:
        for removal in removals:
            await self._cache.threads.run(_finish, removal)
            if removal.result is not None:
                _logger.info("deleted the result of %s (%s)", removal.id, removal.result)

    async def _gone(self, ids: Sequence[str]) -> list[str]:
        """The owners of runs that are known to be dead: they have none under way."""
        await self._claims.give_back_owed()  # nor has this store, of those that have ended
        states = (await self._cache.ledger.states(ids)).values()
        owners = {state.owner for state in states if state.owner is not None}
        return [owner for owner in owners if is_gone(owner)]

    async def _forget(
        self, entries: Sequence[Entry[R]], *, removals: list[Removal] | None
    ) -> list[Result]:
        """Under the write lock, so that no run is published meanwhile: what stays of each run.

        That is the name that is its own, except where its result is removed: another database may
        publish under that name from then on. It is only renamed here: to remove it may take long.

        Args:
            entries: What is stored of them.
            removals: Takes what there is to remove, if that is asked for.
        """
        return await self._cache.threads.run(self._forget_each, entries, removals)

    def _forget_each(
        self, entries: Sequence[Entry[R]], removals: list[Removal] | None
    ) -> list[Result]:
        return [self._forgotten(entry, removals) for entry in entries]

    def _forgotten(self, entry: Entry[R], removals: list[Removal] | None) -> Result:
        id = of_record(entry).id
        name = own_name(self._cache.folder, id, entry)
        if removals is not None:
            removal = self._cache.folder.removal(id, entry.published, self._cache.nonce)
            removals.append(removal)
            removal.result = self._take_out(removal, id, name, entry)
            if entry.result.registered_path is None:
                return self._left_elsewhere(entry) if removal.result is None else Result()
        return entry.result if name is None else Result(folder=self._cache.folder.id, name=name)

    def _left_elsewhere(self, entry: Entry[R]) -> Result:
        """What stays of a result in a folder that cannot be seen from here: it may come back."""
        folder, name = entry.result.folder, entry.result.name
        is_away = folder not in (None, self._cache.folder.id)
        return Result(folder=folder, name=name) if is_away else Result()

    def _take_out(self, removal: Removal, id: str, name: str | None, entry: Entry[R]) -> str | None:
        if name is None or entry.result.registered_path is not None:
            return self._take_from_elsewhere(removal, id, entry)
        has_companions = bool(entry.result.companions)
        self._cache.folder.take_out(removal, name, id, has_companions=has_companions)
        return self._cache.folder.spell(name)

    def _take_from_elsewhere(self, removal: Removal, id: str, entry: Entry[R]) -> str | None:
        """Take a registered result, or one of another folder; its path, if it was found."""
        path = found_at(self._cache.folder, id, entry)
        if path is None:  # or the whole folder is gone, and the file with it
            return None
        if entry.result.registered_path is not None:
            removal.take(path)
        else:
            folder, name = os.path.split(path)
            has_companions = bool(entry.result.companions)
            ResultsFolder(folder, self._cache.folder.suffix).take_out(
                removal, name, id, has_companions=has_companions
            )
        return path


def _put_back(removals: list[Removal]) -> None:
    while removals:  # the transaction may be tried again
        removal = removals.pop()
        try:
            removal.put_back()
        except OSError:
            _logger.warning("a result that stays could not be put back", exc_info=True)


def _finish(removal: Removal) -> None:
    try:
        removal.finish()
    except OSError:
        _logger.warning("a result could not be removed; it is out of the way", exc_info=True)
