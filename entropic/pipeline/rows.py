"""Single rows: those that a user registers, and those that are to go."""

import asyncio
import errno
import functools
import logging
import os
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from entropic._shield import to_the_end, undisturbed
from entropic.artifacts import Removal, ResultsFolder, find
from entropic.errors import IdConflictError, ResultMissingError, ResultsDirError, SchemaError
from entropic.identity import checked_id
from entropic.leases import is_gone
from entropic.ledger import Entry, Finished, Published, Result
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.claims import Claims
from entropic.pipeline.lookup import Lookup, locate
from entropic.pipeline.publishing import own_name
from entropic.pipeline.salvage import Salvage
from entropic.pipeline.sources import Params

R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")


class Rows(Generic[R]):
    """Registers and deletes.

    Args:
        cache: What is registered and deleted in.
        lookup: Finds what is stored.
        claims: Of this store.
        salvage: Discards what was staged of what is deleted.
    """

    def __init__(
        self,
        cache: Cache[R],
        lookup: Lookup[R],
        claims: Claims[R],
        salvage: Salvage[R],
    ) -> None:
        self._cache = cache
        self._lookup = lookup
        self._claims = claims
        self._salvage = salvage

    async def register(
        self, params: Params, result_file: str | os.PathLike[str], custom_data: Mapping[str, Any]
    ) -> R:
        """Store a row for a result that was made elsewhere."""
        (parameters,) = await self._lookup.resolve([params])
        published = await self._cache.threads.run(_registered, os.fspath(result_file))
        (answer,) = await self._lookup.answer([parameters])
        parameters = answer.parameters
        stored = await self._cache.threads.run(self._cache.identity.stored, parameters.values)
        entry = await self._cache.ledger.register(
            Finished(parameters, stored, 0, custom_data), published
        )
        _logger.info("registered %s as %s", published.path, parameters.id)
        assert entry.record is not None
        return entry.record

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
        id = checked_id(id)
        removals: list[Removal] = []
        gone = await self._gone(id)
        try:
            entry = await self._cache.ledger.delete(
                id,
                functools.partial(self._forget, removals=removals if remove_file else None),
                gone,
                functools.partial(self._cache.threads.run, _put_back, removals),
            )
        except asyncio.CancelledError:
            # The transaction has ended all the same: what was not put back is nobody's any more.
            for removal in removals:
                await undisturbed(self._cache.threads.submit(_finish, removal))
            raise
        if entry is None:
            return False
        _logger.info("deleted the row of %s", id)
        for removal in removals:
            await to_the_end(self._cache.threads.submit(_finish, removal))
            if removal.result is not None:
                _logger.info("deleted the result of %s (%s)", id, removal.result)
        await self._salvage.tidy(id)
        return True

    async def _gone(self, id: str) -> list[str]:
        """The owner of a run, where it is known to be dead: it has none under way."""
        await self._claims.give_back_owed()  # nor has this store, of those that have ended
        owner = (await self._cache.ledger.states([id]))[id].owner
        return [owner] if owner is not None and is_gone(owner) else []

    async def _forget(self, entry: Entry[R], *, removals: list[Removal] | None) -> Result:
        """Under the write lock, so that no run is published meanwhile: what stays of a run.

        That is the name that is its own, except where its result is removed: another database may
        publish under that name from then on. It is only renamed here: to remove it may take long.

        Args:
            entry: What is stored of it.
            removals: Takes what there is to remove, if that is asked for.
        """
        assert entry.record is not None
        id = entry.record.id
        name = own_name(self._cache.folder, id, entry)
        if removals is not None:
            removals.append(self._cache.folder.removal(id, entry.published, self._cache.nonce))
            take = self._take_out
            removals[-1].result = await self._cache.threads.run(take, removals[-1], id, name, entry)
            if entry.result.registered_path is None:
                return Result()
        return entry.result if name is None else Result(folder=self._cache.folder.id, name=name)

    def _take_out(self, removal: Removal, id: str, name: str | None, entry: Entry[R]) -> str | None:
        if name is None or entry.result.registered_path is not None:
            return self._take_from_elsewhere(removal, id, entry)
        has_companions = bool(entry.result.companions)
        self._cache.folder.take_out(removal, name, id, has_companions=has_companions)
        return self._cache.folder.spell(name)

    def _take_from_elsewhere(self, removal: Removal, id: str, entry: Entry[R]) -> str | None:
        """Take a registered result, or one of another folder; its path, if it was found."""
        registered = entry.result.registered_path
        if registered is not None and os.path.lexists(registered):
            path: str | None = registered  # be it as large as it was, or not
        else:
            try:
                path = locate(self._cache.folder, id, entry)
            except ResultsDirError:
                return None  # the whole folder is gone, and the file with it
        if path is None:
            return None
        if registered is not None:
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


def _registered(path: str) -> Published:
    """In a thread: the result that a user made, as it is now."""
    if not os.path.lexists(path):
        raise FileNotFoundError(
            errno.ENOENT, "there is no result file to register; write it first", path
        )
    found = find(path)
    if found is None:
        raise ResultMissingError(f"the result to register, {path!r}, is empty or cannot be read")
    return Published(path, Result(registered_path=os.path.abspath(path), size=found.size))
