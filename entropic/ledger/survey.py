"""What a model holds as a whole: how many runs, how large, in which folders, what is left over.

For those who keep house; a request asks for nothing of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from entropic.database import Database, Transaction
from entropic.identity import Identity
from entropic.ledger.reading import is_name
from entropic.ledger.statements import RUN, Statements

_MOST_SAMPLES: Final = 100


@dataclass(frozen=True, slots=True)
class Totals:
    """What is stored of a model.

    Attributes:
        runs: How many runs are stored.
        registered: How many of them were registered.
        first: When the first of them was stored.
        last: When the last one was.
        size: Bytes of their results, as far as those are recorded; not of registered ones, nor of
            what lies beside.
        sized: Of how many they are.
        elapsed_seconds: What their runners took, as far as that is recorded.
        attempts: How many runs were started, whatever became of them.
        running: How many are under way.
        failed: How many have failed, and not succeeded since.
    """

    runs: int
    registered: int
    first: datetime | None
    last: datetime | None
    size: int
    sized: int
    elapsed_seconds: float
    attempts: int
    running: int
    failed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A stored run, as an example of where results are.

    Attributes:
        id: The run id.
        folder: The id of its results folder; ``None`` where entropic 2 stored it.
        name: Its name there, the same.
        result_file: The path that its row gives.
    """

    id: str
    folder: str | None
    name: str | None
    result_file: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Bookkeeping of a run that has no row.

    Attributes:
        id: The run id.
        name: The name that is its own in its folder.
        companions: Whether other files were published beside it.
        size: Bytes, where they were recorded.
        token: That of its last owner.
    """

    id: str
    name: str
    companions: bool
    size: int | None
    token: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A failure on record.

    Attributes:
        id: The run id.
        token: That of its last owner.
        at: When it failed, in seconds since 1970; ``None`` where that is not on record.
        is_running: Whether somebody tries again now.
    """

    id: str
    token: int
    at: float | None
    is_running: bool


class Survey:
    """The statements about the whole of one model in one open database.

    Args:
        database: The open database.
        identity: The model's rules in it.
        model: The model's name in the side tables.
        statements: The model's, there.
    """

    def __init__(
        self, database: Database, identity: Identity, model: str, statements: Statements
    ) -> None:
        self._database = database
        self._model = model
        self._columns = sa.inspect(identity.model).columns
        self._statements = statements
        self._stored = self._statements.stored(model)
        self._is_live = self._statements.is_live
        self._has_row = sa.exists().where(self._columns["id"] == RUN.id)

    async def totals(self) -> Totals:
        """What is stored, counted.

        Raises:
            DatabaseError: The database failed.
        """
        count, created = sa.func.count(), self._columns["created_at"]
        ours = RUN.registered_path.is_(None)
        of_rows: Any = sa.select(
            count,
            sa.func.count(RUN.registered_path),
            sa.func.min(created),
            sa.func.max(created),
            sa.cast(sa.func.coalesce(sa.func.sum(RUN.size).filter(ours), 0), sa.BigInteger),
            sa.func.count(RUN.size).filter(ours),
            sa.func.coalesce(sa.func.sum(RUN.elapsed_seconds), 0.0),
        ).select_from(self._stored)
        of_runs: Any = sa.select(
            sa.cast(sa.func.coalesce(sa.func.sum(RUN.attempts), 0), sa.BigInteger),
            count.filter(self._is_live),
            count.filter(RUN.error.is_not(None)),
        ).where(RUN.model == self._model)
        (rows,), (runs,) = await self._rows(of_rows), await self._rows(of_runs)
        return Totals(*rows, *runs)

    async def samples(self) -> list[Sample]:
        """Where results are: the last runs, and one of each folder.

        Raises:
            DatabaseError: The database failed.
        """
        id, path = self._columns["id"], self._columns["result_file"]
        columns = (id, RUN.folder, RUN.result_name, path)
        chosen = sa.select(*columns).select_from(self._stored).where(RUN.registered_path.is_(None))
        last = chosen.order_by(self._columns["created_at"].desc(), id).limit(_MOST_SAMPLES)
        one_each = (
            sa.select(sa.func.min(id).label("id"))
            .select_from(self._stored)
            .where(RUN.registered_path.is_(None))
            .group_by(RUN.folder)
            .subquery()
        )
        rows = await self._rows(last)
        rows += await self._rows(chosen.where(id.in_(sa.select(one_each.c.id))).order_by(id))
        return [Sample(*row) for row in rows]

    async def traces(self, folder: str) -> list[Trace]:
        """Runs without a row whose result has, or had, a name of its own in a folder.

        Not those that are under way.

        Args:
            folder: The folder's id.

        Raises:
            DatabaseError: The database failed.
        """
        return _traces(await self._rows(self._traces(folder)))

    async def traces_in(self, transaction: Transaction, folder: str) -> list[Trace]:
        """The same, in a transaction.

        Raises:
            DatabaseError: The database failed.
        """
        return _traces(await transaction.fetch(self._statements.compiled(self._traces(folder))))

    async def failed(self) -> list[Failed]:
        """The failures on record: those after which the run has not succeeded.

        Raises:
            DatabaseError: The database failed.
        """
        failed = (
            sa.select(RUN.id, RUN.token, RUN.error, self._is_live)
            .where(RUN.model == self._model, RUN.error.is_not(None))
            .order_by(RUN.id)
        )
        return [
            Failed(id, token, _moment(error), bool(is_running))
            for id, token, error, is_running in await self._rows(failed)
        ]

    def _traces(self, folder: str) -> Any:
        return (
            sa.select(
                RUN.id,
                RUN.result_name,
                sa.func.coalesce(RUN.companions, sa.false()),
                RUN.size,
                RUN.token,
            )
            .where(
                RUN.model == self._model,
                RUN.folder == folder,
                RUN.result_name.is_not(None),
                ~self._is_live,
                ~self._has_row,
            )
            .order_by(RUN.id)
        )

    async def _rows(self, select: Any) -> list[Sequence[Any]]:
        return await self._database.read(self._statements.compiled(select))


def _traces(rows: Sequence[Sequence[Any]]) -> list[Trace]:
    """Those whose names can be theirs; what is removed has such a name."""
    return [Trace(*row) for row in rows if is_name(row[1], row[0])]


def _moment(error: object) -> float | None:
    at = error.get("at") if isinstance(error, dict) else None
    return float(at) if isinstance(at, int | float) else None
