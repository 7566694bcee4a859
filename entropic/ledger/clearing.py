"""What is left of runs that have no row, forgotten: failures on record, results without an owner.

Tokens stay behind in any case, so that nothing that was staged before comes back.
"""

from collections.abc import Awaitable, Callable, Mapping

import sqlalchemy as sa

from entropic.database import Begin, Database, Transaction
from entropic.ledger.statements import RUN, Statements
from entropic.ledger.survey import Survey, Trace
from entropic.models import runs_table


class Clearing:
    """The statements that forget, of one model in one open database.

    Args:
        database: The open database.
        model: The model's name in the side tables.
        survey: Knows what is left.
        statements: The model's, there.
    """

    def __init__(
        self, database: Database, model: str, survey: Survey, statements: Statements
    ) -> None:
        self._database = database
        self._model = model
        self._survey = survey
        self._statements = statements

    async def disown(
        self,
        folder: str,
        tokens: Mapping[str, int],
        take: Callable[[list[Trace]], Awaitable[object]],
        restore: Callable[[], Awaitable[object]],
    ) -> list[Trace]:
        """Give up the names that runs without a row have in a results folder.

        Args:
            folder: The folder's id.
            tokens: The runs, and of each the token of its last owner: one that has another now,
                has a row again or is being run keeps its name.
            take: Called under the write lock with those that give theirs up: takes the results
                out of the folder.
            restore: Called where nothing can be given up after all: takes that back.

        Returns:
            Those that have given theirs up.

        Raises:
            DatabaseError: The database failed; nothing is given up.
        """
        keys = self._database.dialect.bind_keys(sorted(tokens))
        disowning = sa.update(runs_table).where(*self._is_one())
        disowning = disowning.values(folder=sa.null(), result_name=sa.null(), companions=sa.null())

        async def work(transaction: Transaction) -> list[Trace]:
            await transaction.hold(self._statements.hold, b_model=self._model, b_ids=keys)
            left = await self._survey.traces_in(transaction, folder)
            traces = [trace for trace in left if tokens.get(trace.id) == trace.token]
            ids = self._database.dialect.bind_keys([trace.id for trace in traces])
            # First: a database that cannot be written says so before a result is gone.
            await transaction.fetch(self._statements.compiled(disowning), b_ids=ids)
            transaction.go_on()
            await take(traces)
            return traces

        return await self._database.write(work, Begin.PUBLISHING, undo=restore)

    async def forget_failures(self, tokens: Mapping[str, int]) -> int:
        """Forget failures on record; how many.

        Args:
            tokens: The runs, and of each the token of its last owner: one that has another now
                has been tried again, and its failure stays.

        Raises:
            DatabaseError: The database failed; none is forgotten.
        """
        keys = self._database.dialect.bind_keys(sorted(tokens))
        failed = sa.select(RUN.id, RUN.token).where(*self._is_one(), RUN.error.is_not(None))
        forgetting = (
            sa.update(runs_table)
            .where(*self._is_one())
            .values(
                error=sa.null(),
                state=sa.case((RUN.state == "failed", "deleted"), else_=RUN.state),
            )
        )

        async def work(transaction: Transaction) -> int:
            await transaction.hold(self._statements.hold, b_model=self._model, b_ids=keys)
            found = await transaction.fetch(self._statements.compiled(failed), b_ids=keys)
            ids = [id for id, token in found if tokens[id] == token]
            bound = self._database.dialect.bind_keys(ids)
            await transaction.fetch(self._statements.compiled(forgetting), b_ids=bound)
            return len(ids)

        return await self._database.write(work)

    def _is_one(self) -> tuple[sa.ColumnElement[bool], ...]:
        is_asked = self._database.dialect.is_among(RUN.id, "b_ids")
        return (RUN.model == sa.literal(self._model, sa.String()), is_asked)
