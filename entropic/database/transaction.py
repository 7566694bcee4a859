"""What a write transaction can do, from its beginning to where it can only go on."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from entropic.database.dialect import Session
from entropic.database.statement import Statement

T = TypeVar("T")


class Transaction:
    """One write transaction.

    On SQLite it holds the one write lock from its first moment. On other databases it holds what
    it has written and what it has asked for with ``hold``.

    Args:
        session: Where it was begun.
        left: Set when nobody waits for it any more.
    """

    def __init__(self, session: Session, left: asyncio.Event) -> None:
        self._session = session
        self._left = left
        self._can_stop = session.waits_for_locks

    def go_on(self) -> None:
        """From here on it is carried to its end: what comes next moves files."""
        self._can_stop = False

    async def fetch(self, statement: Statement, **values: Any) -> list[Sequence[Any]]:
        """Run a statement and return its typed rows."""
        bound = statement.bind(values)
        return await statement.typed(await self._run(self._session.fetch(statement.sql, bound)))

    async def hold(self, statement: Statement, **values: Any) -> None:
        """Keep others from changing some rows until the end, where the lock does not do so."""
        if self._session.waits_for_locks:
            await self.fetch(statement, **values)

    async def execute_many(self, *batches: tuple[Statement, Sequence[Mapping[str, Any]]]) -> None:
        """Run statements one after the other, each once for every one of its rows of values."""
        bound = [(one.sql, [one.bind(row) for row in rows]) for one, rows in batches if rows]
        if bound:
            await self._run(self._session.execute_many(bound))

    async def run_sync(self, function: Callable[[sa.Connection], T]) -> T:
        """Run a function of a synchronous SQLAlchemy connection in the transaction."""
        return await self._session.connection.run_sync(function)

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """A statement that may wait for others' locks is left when nobody waits for it any more."""
        if not self._can_stop:
            return await work
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        return working.result()
