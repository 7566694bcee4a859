"""Rows by what they hold: the statements of ``find`` and its like.

What conditions mean is left to ``conditions``; where a result is found, to ``pipeline``.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import sqlalchemy as sa

from entropic._shield import in_own_thread
from entropic.database import Database, Statement
from entropic.errors import DatabaseError, RowRefusedError, SchemaError
from entropic.identity import Identity, shortened
from entropic.ledger.alike import nested_too_deep
from entropic.ledger.conditions import Conditions, Selection, check_values
from entropic.ledger.entries import Entry, OrderBy, Where
from entropic.ledger.reading import RowReader
from entropic.ledger.statements import Statements
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
        statements: The model's, there.
    """

    def __init__(
        self,
        database: Database,
        identity: Identity,
        model: str,
        reader: RowReader[R],
        statements: Statements,
    ) -> None:
        self._database = database
        self._identity = identity
        self._model = model
        self._conditions = Conditions(identity, database.dialect)
        self._reader = reader
        self._statements = statements

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
        order = self._conditions.order(order_by)
        rows = self._statements.found(self._model).order_by(*order).limit(limit).offset(offset)
        return await self._read(rows, await self._selected(where), self._entries)

    async def tokens(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[tuple[str, int]]:
        """The ids of those rows, in order, each with the token of its result.

        Raises:
            ParamsError: A condition, or the order, is none.
            DatabaseError: The database failed.
        """
        order = self._conditions.order(order_by)
        ids = self._statements.tokens(self._model).order_by(*order).limit(limit).offset(offset)
        return await self._read(ids, await self._selected(where), _pairs)

    async def pages(
        self,
        where: Sequence[Where],
        order_by: OrderBy = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> AsyncGenerator[list[Entry[R]], None]:
        """The rows that meet all conditions, in order, some at a time.

        First the ids, and then the rows by their ids: a statement left open while its rows are
        taken would keep SQLite's writers waiting. What was deleted meanwhile is left out.

        Raises:
            ParamsError: A condition, or the order, is none.
            DatabaseError: The database failed.
        """
        found = await self.tokens(where, order_by, limit, offset)
        for start in range(0, len(found), _PAGE):
            yield await self.among([id for id, _ in found[start : start + _PAGE]])

    async def among(self, ids: Sequence[str]) -> list[Entry[R]]:
        """The rows with some ids, in the order of the ids.

        Raises:
            DatabaseError: The database failed.
        """
        keys = self._database.dialect.bind_keys(ids)
        found = await self._database.read_and(
            self._by_ids, self._reader.entries, is_long=True, b_ids=keys
        )
        return [found[id] for id in ids if id in found]

    @cached_property
    def _by_ids(self) -> Statement:
        return self._compiled(self._statements.found(self._model).where(self._statements.is_asked))

    async def count(self, where: Sequence[Where]) -> int:
        """How many rows meet all conditions.

        Raises:
            ParamsError: A condition is none.
            DatabaseError: The database failed.
        """
        return int(await self._read(self._statements.some(), await self._selected(where), _only))

    async def nearest(
        self, values: Mapping[str, Any], stored: Mapping[str, Any], limit: int
    ) -> list[Entry[R]]:
        """The rows that differ from some values in the fewest parameters, and there by the least.

        Only as far as the database can tell: of numbers alone it says by how much they differ.

        Args:
            values: The values.
            stored: The same, as they are stored.
            limit: How many at most.

        Raises:
            DatabaseError: The database failed.
        """
        order = self._conditions.nearness(values, stored)
        rows = self._statements.found(self._model).order_by(*order).limit(limit)
        return await self._read(rows, Selection(), self._entries)

    async def mean_seconds(self) -> float | None:
        """How long the runners of all stored runs took on average; ``None`` without any.

        Raises:
            DatabaseError: The database failed.
        """
        durations = self._statements.durations(self._model)
        ((known, told),) = await self._read(durations, Selection(), list)
        # entropic 2 kept it in custom data alone.
        mean = told if known is None else known
        return None if mean is None else float(mean)

    async def _selected(self, where: Sequence[Where]) -> Selection:
        """The rows that are asked for, by what the database alone can judge."""
        selection = self._conditions.selection(where)
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

    def _entries(self, rows: list[Sequence[Any]]) -> list[Entry[R]]:
        return list(self._reader.entries(rows).values())

    async def _read(
        self,
        select: sa.Select[Any],
        selection: Selection,
        function: Callable[[list[Sequence[Any]]], T],
    ) -> T:
        # In a thread: to compile thousands of values takes long.
        statement = await in_own_thread(self._compiled, select.where(*selection.sql))
        keys = self._database.dialect.bind_keys(selection.ids)
        try:
            return await self._database.read_and(statement, function, is_long=True, b_ids=keys)
        except RowRefusedError as error:  # which it is called where something is written
            raise DatabaseError(f"the database cannot answer: {error.__cause__}") from error

    def _compiled(self, select: sa.Select[Any]) -> Statement:
        try:
            statement = self._statements.compiled(select)
        except RecursionError:
            raise nested_too_deep() from None
        check_values(statement)
        return statement


def _pairs(rows: list[Sequence[Any]]) -> list[tuple[str, int]]:
    return [(id, token or 0) for id, token in rows]


def _only(rows: list[Sequence[Any]]) -> Any:
    ((value,),) = rows
    return value
