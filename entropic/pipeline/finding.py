"""Records by what they hold: as they are stored, whether their results are there or not."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from entropic.artifacts import ResultsFolder
from entropic.errors import ResultsDirError
from entropic.ledger import Entry, OrderBy, Where, of_record
from entropic.models import Base, Records
from entropic.pipeline.cache import Cache
from entropic.pipeline.deleting import Deleter
from entropic.pipeline.lookup import is_here, locate

R = TypeVar("R", bound=Base)


class Finder(Generic[R]):
    """Finds, counts and deletes by conditions.

    Args:
        cache: What is looked into.
        deleter: Removes rows.
    """

    def __init__(self, cache: Cache[R], deleter: Deleter[R]) -> None:
        self._cache = cache
        self._deleter = deleter

    async def find(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> Records[R]:
        """The records that meet all conditions, in order."""
        return await self._placed(
            await self._cache.ledger.queries.entries(where, order_by, limit, offset)
        )

    async def pages(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> AsyncGenerator[list[R], None]:
        """The same, some at a time; what is deleted meanwhile is left out."""
        queries = self._cache.ledger.queries
        async with aclosing(queries.pages(where, order_by, limit, offset)) as pages:
            async for entries in pages:
                yield await self._placed(entries)

    async def count(self, where: Sequence[Where]) -> int:
        """How many there are."""
        return await self._cache.ledger.queries.count(where)

    async def delete(self, where: Sequence[Where], *, remove_file: bool) -> int:
        """Remove them; how many. One that is run again before its turn stays."""
        runs = await self._cache.ledger.queries.tokens(where)
        return len(await self._deleter.delete_all(runs, remove_file=remove_file))

    async def _placed(self, entries: Sequence[Entry[R]]) -> Records[R]:
        return await self._cache.threads.run(placed, self._cache.folder, entries)


def placed(folder: ResultsFolder, entries: Sequence[Entry[R]]) -> Records[R]:
    """In a thread: the records of entries, with the paths of their results here and now."""
    for entry in entries:
        of_record(entry).__dict__["result_file"] = _path(folder, entry)
    return Records(map(of_record, entries))


def _path(folder: ResultsFolder, entry: Entry[R]) -> str:
    record = of_record(entry)
    if is_here(folder, entry):  # nobody looks whether it is there
        return folder.given(entry.result.name or "")
    try:
        return locate(folder, record.id, entry, of_any_size=True) or record.result_file
    except ResultsDirError:
        return record.result_file
