"""What is asked and told of runs, for one model in one database; opening has its own statements.

A run's row is in the user's table; its bookkeeping is in ``entropic_runs``. Tokens are handed out
here and never restart: each claim, registration and re-run has a higher one than all before it,
so a late owner can be told from the current one. Files are left to ``artifacts``.
"""

import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from entropic._shield import in_own_thread
from entropic.database import Begin, Database, Transaction
from entropic.errors import EntropicError, Failure, IdConflictError, RemoteRunError, SchemaError
from entropic.identity import Identity, ParameterSet, is_heavy, shortened
from entropic.ledger.entries import (
    Claim,
    Entry,
    Finished,
    OrderBy,
    Published,
    Result,
    State,
    Where,
    is_fenced,
    of_record,
)
from entropic.ledger.reading import RowReader
from entropic.ledger.statements import RESULT_COLUMNS, statements_for
from entropic.models import Base, detached

__all__ = [
    "Claim",
    "Entry",
    "Finished",
    "Ledger",
    "OrderBy",
    "Published",
    "Result",
    "State",
    "Where",
    "is_fenced",
    "of_record",
]

if TYPE_CHECKING:
    from entropic.ledger.clearing import Clearing
    from entropic.ledger.queries import Queries
    from entropic.ledger.survey import Survey

R = TypeVar("R", bound=Base)
T = TypeVar("T")
RunT = TypeVar("RunT", bound=Finished)


class Ledger(Generic[R]):
    """The statements of one model in one open database.

    Args:
        database: The open database.
        identity: The model's rules in it.
        model: The model's name in the side tables.
        record_class: What records are made of.
        is_bare: Whether the database has no side tables, so that it can only be read.
    """

    def __init__(
        self,
        database: Database,
        identity: Identity,
        model: str,
        record_class: type[R],
        *,
        is_bare: bool = False,
    ) -> None:
        self._database = database
        self._identity = identity
        self._model = model
        self._class = record_class
        self._reader = RowReader(identity, record_class)
        self._statements = statements_for(database, identity, is_bare=is_bare)

    @cached_property
    def queries(self) -> "Queries[R]":
        """Asks for rows by what they hold."""
        from entropic.ledger.queries import Queries  # not loaded by who only runs and retrieves

        about = (self._database, self._identity, self._model)
        return Queries(*about, self._reader, self._statements)

    @cached_property
    def survey(self) -> "Survey":
        """Tells what there is as a whole."""
        from entropic.ledger.survey import Survey  # nor this

        return Survey(self._database, self._identity, self._model, self._statements)

    @cached_property
    def clearing(self) -> "Clearing":
        """Forgets what is left of runs without a row."""
        from entropic.ledger.clearing import Clearing

        return Clearing(self._database, self._model, self.survey, self._statements)

    async def look_up(self, ids: Sequence[str]) -> dict[str, Entry[R]]:
        """What there is under each of these ids; every id is in the answer.

        Raises:
            DatabaseError: The database failed.
        """
        keys = self._database.dialect.bind_keys(ids)
        rows = await self._database.read(self._statements.look_up, b_model=self._model, b_ids=keys)
        return self._reader.entries(rows)

    async def look_up_and(
        self, ids: Sequence[str], function: Callable[[dict[str, Entry[R]]], T]
    ) -> T:
        """The same, given to a function in a thread; what that returns.

        Raises:
            DatabaseError: The database failed.
        """
        return await self._database.read_and(
            self._statements.look_up,
            lambda rows: function(self._reader.entries(rows)),
            b_model=self._model,
            b_ids=self._database.dialect.bind_keys(ids),
        )

    async def states(self, ids: Sequence[str]) -> dict[str, State]:
        """How it is with each of these runs; every id is in the answer.

        Raises:
            DatabaseError: The database failed.
        """
        keys = self._database.dialect.bind_keys(ids)
        rows = await self._database.read(self._statements.states, b_model=self._model, b_ids=keys)
        states = dict.fromkeys(ids, State())
        for id, token, published, owner, is_live, state, attempts, error in rows:
            has_failed = state == "failed" and error is not None
            failure = self._failure(id, attempts, error) if has_failed else None
            states[id] = State(token, published, owner, bool(is_live), failure)
        return states

    async def listen(self, changed: Callable[[], None]) -> None:
        """Have a function called when somebody has stored, failed or given back a run; as it goes.

        Raises:
            DatabaseError: The database failed.
        """
        await self._database.listen(lambda model: changed() if model == self._model else None)

    async def renew(self, ids: Sequence[str], owner: str, ttl: float) -> None:
        """Give those claims that are still the owner's a new lease.

        Raises:
            DatabaseError: The database failed, or stayed locked.
        """
        keys = self._database.dialect.bind_keys(sorted(ids))
        values = {"b_model": self._model, "b_owner": owner, "b_ttl": ttl, "b_ids": keys}
        await self._database.write(lambda t: t.fetch(self._statements.renew, **values))

    async def claim(
        self, ids: Sequence[str], owner: str, ttl: float, gone: Sequence[str] = ()
    ) -> dict[str, Claim]:
        """Take the right to run those of these ids that nobody has.

        Args:
            ids: The run ids.
            owner: Who takes it.
            ttl: Seconds for which it lasts, unless it is renewed.
            gone: Owners that are known to be dead: theirs are taken over.

        Returns:
            The claims; ids that somebody else has are not among them.

        Raises:
            DatabaseError: The database failed; nothing is claimed.
        """
        dialect = self._database.dialect
        # Sorted, here and wherever several rows are written: who takes their locks in one order
        # waits for others, and never they for him, too.
        keys, dead = dialect.bind_keys(sorted(ids)), dialect.bind_keys(gone)

        async def work(transaction: Transaction) -> dict[str, Claim]:
            rows = await transaction.fetch(
                self._statements.claim,
                b_model=self._model,
                b_ids=keys,
                b_owner=owner,
                b_ttl=ttl,
                b_gone=dead,
            )
            return {id: Claim(token, published) for id, token, published in rows}

        return await self._database.write(work)

    async def complete(
        self,
        runs: Sequence[RunT],
        publish: Callable[
            [list[tuple[RunT, Entry[R]]]], Awaitable[list[Published | EntropicError]]
        ],
        withdraw: Callable[[], Awaitable[object]] | None = None,
    ) -> dict[str, Entry[R] | EntropicError]:
        """Publish and store finished runs, all in one transaction.

        Args:
            runs: The runs; each id once.
            publish: Called under the write lock with those runs that nobody has overtaken, each
                with what there is under its id. It gives them their final names, or returns the
                error that kept it from doing so.
            withdraw: Called where the rows cannot be stored after all: takes back what
                ``publish`` has done.

        Returns:
            For each id what is stored now; or the error that kept this one run from being
            stored. A run that a later owner has overtaken is dropped: its entry has that one's
            token, and what is stored may still be older.

        Raises:
            DatabaseError: The database failed; no row is stored.
        """
        ordered = sorted(runs, key=lambda run: run.parameters.id)
        ids = [run.parameters.id for run in ordered]

        async def work(transaction: Transaction) -> dict[str, Entry[R] | EntropicError]:
            await self._hold(transaction, ids)
            before = await self._entries_in(transaction, ids)
            done: dict[str, Entry[R] | EntropicError] = {}
            ready: list[tuple[RunT, Entry[R]]] = []
            for run in ordered:
                entry = before[run.parameters.id]
                if conflict := await self._conflict(run.parameters, entry):
                    done[run.parameters.id] = conflict
                elif is_fenced(entry, run.token):
                    done[run.parameters.id] = entry
                else:
                    ready.append((run, entry))
            transaction.go_on()
            stored = []
            for (run, _), published in zip(ready, await publish(ready), strict=True):
                if isinstance(published, EntropicError):
                    done[run.parameters.id] = published
                else:
                    stored.append((run, published))
            done |= await self._store(transaction, stored, before)
            return done

        return await self._database.write(work, Begin.PUBLISHING, undo=withdraw, tell=self._model)

    async def register(self, run: Finished, published: Published) -> Entry[R]:
        """Store a row for a result that was made elsewhere; it replaces the one that was there.

        Raises:
            IdConflictError: The id holds other parameters.
            DatabaseError: The database failed; nothing is stored.
        """
        id = run.parameters.id

        async def work(transaction: Transaction) -> Entry[R]:
            # A claim like any other, so that an older run that is still under way is fenced; and
            # before anything is read, so that nobody else changes it any more.
            keys = self._database.dialect.bind_keys([id])
            ((_, token, _),) = await transaction.fetch(
                self._statements.seize,
                b_model=self._model,
                b_ids=keys,
                b_owner="register",
                b_ttl=0.0,
            )
            before = await self._entries_in(transaction, [id])
            if conflict := await self._conflict(run.parameters, before[id]):
                raise conflict
            # The name that an earlier run had in the folder stays the id's own.
            known = before[id].result
            result = published.result._replace(
                folder=known.folder, name=known.name, companions=known.companions
            )
            stored = [(replace(run, token=token), replace(published, result=result))]
            return (await self._store(transaction, stored, before))[id]

        return await self._database.write(work, tell=self._model)

    async def fail(self, failures: Sequence[tuple[str, int, dict[str, Any] | None]]) -> None:
        """Give claims back: (id, token, what went wrong) each; ``None`` for an interruption.

        Raises:
            DatabaseError: The database failed.
        """
        rows = [
            {
                "b_model": self._model,
                "b_id": id,
                "b_token": token,
                "b_state": "interrupted" if error is None else "failed",
                "b_error": error,
            }
            for id, token, error in sorted(failures, key=lambda failure: failure[:2])
        ]
        await self._database.write(
            lambda t: t.execute_many((self._statements.fail, rows)), tell=self._model
        )

    async def relinquish(self, ids: Sequence[str], owner: str) -> None:
        """Give back what an owner still has of these runs, whatever its tokens are.

        Raises:
            DatabaseError: The database failed.
        """
        keys = self._database.dialect.bind_keys(sorted(ids))

        async def work(transaction: Transaction) -> None:
            await transaction.hold(self._statements.hold, b_model=self._model, b_ids=keys)
            await transaction.fetch(
                self._statements.relinquish, b_model=self._model, b_ids=keys, b_owner=owner
            )

        await self._database.write(work, tell=self._model)

    async def failures(self) -> list[Failure]:
        """The failures on record, by run id: those after which the run has not succeeded.

        Raises:
            DatabaseError: The database failed.
        """
        rows = await self._database.read(self._statements.failures, b_model=self._model)
        return [self._failure(id, attempts, error) for id, attempts, error in rows]

    async def registered(self) -> set[str]:
        """The absolute paths of all results that were registered.

        Raises:
            DatabaseError: The database failed.
        """
        rows = await self._database.read(self._statements.registered, b_model=self._model)
        return {path for (path,) in rows}

    async def delete(
        self,
        runs: Mapping[str, int | None],
        forget: Callable[[list[Entry[R]]], Awaitable[list[Result]]],
        gone: Sequence[str] = (),
        restore: Callable[[], Awaitable[object]] | None = None,
        *,
        spares_claimed: bool = False,
    ) -> list[Entry[R]]:
        """Remove rows, all in one transaction; their tokens stay behind.

        So nothing that was staged before comes back.

        Args:
            runs: The run ids, each with the token of the result that is to go; ``None`` for
                whichever is there.
            forget: Called under the write lock. It takes the results away, if that is asked for,
                and says what stays known of each: the folder, and the name that is the run's own
                there.
            gone: Owners that are known to be dead: theirs are not under way any more.
            restore: Called where the rows cannot be removed after all: takes back what ``forget``
                has done.
            spares_claimed: Whether what is being run again stays.

        Returns:
            What was there.

        Raises:
            DatabaseError: The database failed; no row is removed.
        """
        ordered = sorted(runs)
        dead = self._database.dialect.bind_keys(gone)

        async def work(transaction: Transaction) -> list[Entry[R]]:
            await self._hold(transaction, ordered)
            there = (await self._entries_in(transaction, ordered)).values()
            entries = [entry for entry in there if _is_that(entry, runs)]
            if spares_claimed:
                entries = [entry for entry in entries if not entry.is_claimed]
            if not entries:
                return []
            # First: a database that cannot be written says so before a result is gone.
            keys = self._database.dialect.bind_keys([of_record(e).id for e in entries])
            await transaction.fetch(self._statements.delete, b_ids=keys)
            transaction.go_on()
            results = await forget(entries)
            buried = [
                {
                    "b_model": self._model,
                    "b_id": of_record(entry).id,
                    "b_folder": result.folder,
                    "b_result_name": result.name,
                    "b_gone": dead,
                }
                for entry, result in zip(entries, results, strict=True)
            ]
            await transaction.execute_many((self._statements.bury, buried))
            return entries

        return await self._database.write(work, Begin.PUBLISHING, undo=restore, tell=self._model)

    def digest(self, id: str, entry: Entry[R]) -> str:
        """The digest of stored parameters.

        Raises:
            SchemaError: They cannot be the model's.
        """
        try:
            return self._identity.digest(entry.values)
        except Exception as error:  # SQLite keeps any text in any column
            raise _unreadable(id, entry) from error

    def conflict(self, parameters: ParameterSet, entry: Entry[R]) -> IdConflictError | None:
        """The error to raise where an id holds other parameters than those asked for.

        Raises:
            SchemaError: It holds what cannot be parameters of the model.
        """
        try:
            if entry.record is None or self._identity.is_same(parameters, entry.record.__dict__):
                return None
        except Exception as error:
            raise _unreadable(parameters.id, entry) from error
        names = self._identity.differences(parameters.values, entry.values)
        differing = ", ".join(
            f"{name} is {shortened(entry.values[name])} there and"
            f" {shortened(parameters.values[name])} here"
            for name in names
        )
        return IdConflictError(
            f"the id {parameters.id!r} holds a run with other parameters ({differing}); nothing"
            " was overwritten: choose another id, or delete that run first",
            id=parameters.id,
        )

    def _failure(self, id: str, attempts: int, error: object) -> Failure:
        about = _told(error)
        params = self._identity.from_portable(about["params"])
        remote = RemoteRunError(
            about["message"],
            type_name=about["type"],
            traceback=about["traceback"],
            id=id,
            params=params,
        )
        return Failure(params, id, remote, about["traceback"], attempts)

    async def _conflict(self, parameters: ParameterSet, entry: Entry[R]) -> IdConflictError | None:
        """The same, in a thread where the stored values are large."""
        if is_heavy(entry.values):
            return await in_own_thread(self.conflict, parameters, entry)
        return self.conflict(parameters, entry)

    async def _hold(self, transaction: Transaction, ids: Sequence[str]) -> None:
        """Keep others from these runs until the end; first the bookkeeping, then the rows."""
        keys = self._database.dialect.bind_keys(ids)
        await transaction.hold(self._statements.hold, b_model=self._model, b_ids=keys)
        await transaction.hold(self._statements.hold_rows, b_ids=keys)

    async def _entries_in(
        self, transaction: Transaction, ids: Sequence[str]
    ) -> dict[str, Entry[R]]:
        keys = self._database.dialect.bind_keys(ids)
        return self._reader.entries(
            await transaction.fetch(self._statements.look_up, b_model=self._model, b_ids=keys)
        )

    async def _store(
        self,
        transaction: Transaction,
        stored: Sequence[tuple[Finished, Published]],
        before: Mapping[str, Entry[R]],
    ) -> dict[str, Entry[R]]:
        now = datetime.now(UTC)
        rows, settled, done = [], [], {}
        for run, published in stored:
            id = run.parameters.id
            earlier = before[id].record
            reserved = {
                "id": id,
                "result_file": published.path,
                "created_at": now if earlier is None else earlier.created_at,
                "custom_data": copy.deepcopy(dict(run.custom_data)),
            }
            rows.append(_bound({**reserved, **run.stored}))
            about = {
                column: getattr(published.result, name)
                for column, name in zip(_RESULT_NAMES, _RESULT_FIELDS, strict=True)
            }
            settled.append(_bound({"model": self._model, "id": id, "token": run.token, **about}))
            record = detached(self._class, {**reserved, **run.parameters.values})
            done[id] = Entry(record, published.result, run.token, run.token, is_claimed=False)
        await transaction.execute_many(
            (self._statements.store, rows), (self._statements.settle, settled)
        )
        return done


def _is_that(entry: Entry[Any], runs: Mapping[str, int | None]) -> bool:
    """Whether it has the result that is meant."""
    return entry.record is not None and runs[entry.record.id] in (None, entry.published)


def _unreadable(id: str, entry: Entry[Any]) -> SchemaError:
    return SchemaError(
        f"the row of {id!r} holds parameters that the model cannot read"
        f" ({shortened(entry.values)}): change the model back, or mend the row"
    )


def _told(error: object) -> dict[str, str]:
    """What a failure's record says; nothing where somebody else has written it."""
    found = error if isinstance(error, dict) else {}
    texts = {name: found.get(name) for name in ("params", "type", "message", "traceback")}
    return {name: text if isinstance(text, str) else "" for name, text in texts.items()}


_RESULT_NAMES: Final = tuple(column.name for column in RESULT_COLUMNS)
_RESULT_FIELDS: Final = Result._fields


def _bound(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"b_{name}": value for name, value in values.items()}
