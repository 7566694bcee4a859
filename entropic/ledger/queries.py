"""Rows by what they hold: the statements of ``find`` and its like.

What conditions mean is left to ``conditions``; where a result is found, to ``pipeline``.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa

from entropic.database import Database, Statement, Transaction
from entropic.errors import SchemaError
from entropic.identity import Identity, shortened
from entropic.ledger.conditions import Conditions, Selection, check_values
from entropic.ledger.entries import Entry, OrderBy, Where, of_record
from entropic.ledger.reading import RowReader
from entropic.ledger.statements import statements_for
from entropic.models import Base

R = TypeVar("R", bound=Base)
T = TypeVar("T")

_PAGE: Final = 500


class Queries(Generic[R]):
    """Asks for the rows of one model in one open database.

    Args:
        database: The open database.
        identity: The model's rules in it.
        model: The model's name in the side tables.
        reader: Reads its rows.
        is_bare: Whether the database has no side tables.
    """

    def __init__(
        self,
        database: Database,
        identity: Identity,
        model: str,
        reader: RowReader[R],
        *,
        is_bare: bool = False,
    ) -> None:
        self._database = database
        self._identity = identity
        self._model = model
        self._conditions = Conditions(identity, database.dialect.by_code_points)
        self._reader = reader
        self._statements = statements_for(database, identity, is_bare=is_bare)

    async def entries(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[Entry[R]]:
        """The rows that meet all conditions, in order.

        Raises:
            ParamsError: A condition, or the order, is none.
            DatabaseError: The database failed.
        """
        selection = await self._settled(self._conditions.selection(where))
        order = self._conditions.order(order_by)
        rows = self._statements.found(self._model).order_by(*order).limit(limit).offset(offset)
        return await self._read(rows, selection, self._entries)

    async def ids(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[str]:
        """The ids of those rows, in order.

        Raises:
            ParamsError: A condition, or the order, is none.
            DatabaseError: The database failed.
        """
        selection = await self._settled(self._conditions.selection(where))
        order = self._conditions.order(order_by)
        ids = self._statements.some("id").order_by(*order).limit(limit).offset(offset)
        return await self._read(ids, selection, _firsts)

    async def pages(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> AsyncGenerator[list[Entry[R]], None]:
        """The rows that meet all conditions, in order, some at a time.

        First the ids, and then the rows by their ids: a statement left open while its rows are
        taken would keep SQLite's writers waiting. What was deleted meanwhile, or meets the
        conditions no longer, is left out.

        Raises:
            ParamsError: A condition, or the order, is none.
            DatabaseError: The database failed.
        """
        ids = await self.ids(where, order_by, limit, offset)
        for start in range(0, len(ids), _PAGE):
            yield await self.among(ids[start : start + _PAGE], where)

    async def among(self, ids: Sequence[str], where: Sequence[Where] = ()) -> list[Entry[R]]:
        """The rows with some ids that meet all conditions, in the order of the ids.

        Raises:
            ParamsError: A condition is none.
            DatabaseError: The database failed.
        """
        selection = self._conditions.selection(where)
        rows = self._statements.found(self._model).where(self._statements.is_asked)
        found = await self._read(rows, selection, self._entries, ids)
        return self._equal_among(ids, found, selection)

    async def among_in(
        self, transaction: Transaction, ids: Sequence[str], where: Sequence[Where]
    ) -> list[Entry[R]]:
        """The same, in a transaction."""
        selection = self._conditions.selection(where)
        rows = self._statements.found(self._model).where(self._statements.is_asked)
        statement, keys = self._statement(rows, selection, ids)
        found = self._entries(await transaction.fetch(statement, b_ids=keys))
        return self._equal_among(ids, found, selection)

    async def nearest(self, values: Mapping[str, Any], limit: int) -> list[Entry[R]]:
        """The rows that differ from some values in the fewest parameters, and there by the least.

        Only as far as the database can tell: JSON and arrays differ in any case.

        Raises:
            DatabaseError: The database failed.
        """
        order = self._conditions.nearness(values)
        rows = self._statements.found(self._model).order_by(*order).limit(limit)
        return await self._read(rows, Selection(), self._entries)

    async def count(self, where: Sequence[Where]) -> int:
        """How many rows meet all conditions.

        Raises:
            ParamsError: A condition is none.
            DatabaseError: The database failed.
        """
        selection = await self._settled(self._conditions.selection(where))
        (number,) = await self._read(self._statements.some(), selection, _firsts)
        return int(number)

    async def _settled(self, selection: Selection) -> Selection:
        """The same rows, by what the database alone can judge."""
        if not selection.compared:
            return selection
        names = list(selection.compared)

        def equal(rows: list[Sequence[Any]]) -> list[str]:
            return [
                id
                for id, *values in rows
                if self._is_equal(dict(zip(names, values, strict=True)), selection.compared)
            ]

        ids = await self._read(self._statements.some("id", *names), selection, equal)
        return Selection([*selection.sql, self._statements.is_asked], ids=ids)

    def _is_equal(self, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        try:
            return not self._identity.differences(asked, stored)
        except Exception as error:  # SQLite keeps any text in any column
            raise SchemaError(
                f"a row holds parameters that the model cannot read ({shortened(stored)}):"
                " change the model back, or mend the row"
            ) from error

    def _equal_among(
        self, ids: Sequence[str], found: Sequence[Entry[R]], selection: Selection
    ) -> list[Entry[R]]:
        by_id = {of_record(entry).id: entry for entry in found}
        return [
            by_id[id]
            for id in ids
            if id in by_id and self._is_equal(by_id[id].values, selection.compared)
        ]

    def _entries(self, rows: list[Sequence[Any]]) -> list[Entry[R]]:
        return list(self._reader.entries(rows).values())

    async def _read(
        self,
        select: sa.Select[Any],
        selection: Selection,
        function: Callable[[list[Sequence[Any]]], T],
        ids: Sequence[str] = (),
    ) -> T:
        statement, keys = self._statement(select, selection, ids)
        return await self._database.read_and(statement, function, is_long=True, b_ids=keys)

    def _statement(
        self, select: sa.Select[Any], selection: Selection, ids: Sequence[str]
    ) -> tuple[Statement, Any]:
        """A statement of rows that are selected, and the ids to bind in it."""
        keys = self._database.dialect.bind_keys(selection.ids or ids)
        statement = self._statements.compiled(select.where(*selection.sql))
        check_values(statement, b_ids=keys)
        return statement, keys


def _firsts(rows: list[Sequence[Any]]) -> list[Any]:
    return [first for (first,) in rows]
