"""Every statement: tokens that never restart, commits that come too late, and look-ups in bulk."""

import asyncio
import math
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from entropic import AsyncStore, Base, mapped_column
from entropic.database import Database
from entropic.errors import EntropicError, IdConflictError, ResultsDirError
from entropic.identity import Identity, ParameterSet
from entropic.ledger import Entry, Finished, Ledger, Published, Result
from entropic.schema import open_schema
from tests import databases
from tests.models import model
from tests.outsiders import at_once
from tests.simulations import simulate

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("database")]

Sim = model(n=int, dt=(float, mapped_column(default=0.5)), label=str | None)


@pytest.fixture
def anyio_backend() -> str:
    """The store is made for asyncio."""
    return "asyncio"


class Driven:
    """A ledger, and the short way to what a store would tell it."""

    def __init__(self, ledger: Ledger[Any], identity: Identity, database: Database) -> None:
        self.ledger = ledger
        self.identity = identity
        self.database = database
        self.published: list[str] = []

    def set(self, n: int = 1, **params: Any) -> ParameterSet:
        """A parameter set."""
        return self.identity.resolve({"n": n, **params})

    async def claim(self, parameters: ParameterSet, ttl: float = 60) -> int:
        """The token of a new claim."""
        claims = await self.ledger.claim([parameters.id], "somebody", ttl, gone=["somebody"])
        return claims[parameters.id].token

    def finished(self, parameters: ParameterSet, token: int, note: str = "") -> Finished:
        """A run that has ended well."""
        stored = self.identity.stored(parameters.values)
        return Finished(parameters, stored, token, {"note": note})

    async def publish(self, ready: list[tuple[Finished, Entry[Any]]]) -> list[Any]:
        """Give every result its name, and keep a list."""
        self.published += [run.custom_data["note"] for run, _ in ready]
        return [published(run.parameters.id) for run, _ in ready]

    async def complete(self, parameters: ParameterSet, token: int, note: str = "") -> Any:
        """Store a run; what is stored then."""
        done = await self.ledger.complete([self.finished(parameters, token, note)], self.publish)
        return done[parameters.id]

    async def delete(self, parameters: ParameterSet, gone: Sequence[str] = ()) -> Any:
        """Delete a run."""

        async def forget(entries: list[Entry[Any]]) -> list[Result]:
            return [entry.result for entry in entries]

        deleted = await self.ledger.delete({parameters.id: None}, forget, gone)
        return deleted[0] if deleted else None

    async def entry(self, parameters: ParameterSet) -> Any:
        """What there is."""
        return (await self.ledger.look_up([parameters.id]))[parameters.id]


def published(id: str) -> Published:
    """Where a result is."""
    return Published(f"./results/{id}.npy", Result(folder="folder", name=f"{id}.npy", size=3))


def runs(columns: str) -> list[Any]:
    """Some columns of the bookkeeping, as another program reads them."""
    return databases.ask(f"SELECT {columns} FROM entropic_runs ORDER BY id")


@asynccontextmanager
async def driven(result_cls: type[Base] = Sim, url: str | None = None) -> AsyncIterator[Driven]:
    """A ledger on an open database."""
    database = Database(url or databases.url(), lock_timeout=30)
    await database.open()
    try:
        schema = await open_schema(database, result_cls)
        ledger = Ledger(database, schema.identity, schema.model, result_cls)
        yield Driven(ledger, schema.identity, database)
    finally:
        await database.aclose()


async def test_tokens_never_restart() -> None:
    """Run, run again, delete, run, register, fail: each has a higher one than all before."""
    async with driven() as it:
        a = it.set()
        tokens = []
        for _ in range(2):
            tokens.append(await it.claim(a))
            await it.complete(a, tokens[-1])
        await it.delete(a)
        tokens.append(await it.claim(a))
        await it.complete(a, tokens[-1])
        await it.ledger.register(it.finished(a, 0), published(a.id))
        assert runs("token, published, owner, state") == [(4, 4, None, "done")]
        tokens.append(await it.claim(a))
        await it.ledger.fail([(a.id, tokens[-1], {"type": "ValueError"})])
        await it.delete(a)
        tokens.append(await it.claim(a))
        assert tokens == [1, 2, 3, 5, 6]
        assert runs("attempts") == [6]


async def test_tokens_of_a_store_never_restart(folder: Path) -> None:
    """The same, through its methods, and across its openings."""
    (folder / "made").write_text("elsewhere")
    seen = []
    for _ in range(2):
        store = AsyncStore(simulate, Sim, "results", ".npy", databases.url())
        async with store:
            for call in (
                store.run_or_retrieve({"n": 1}),
                store.run({"n": 1}),
                store.delete({"n": 1}),
                store.run_or_retrieve({"n": 1}),
                store.register({"n": 1}, "made"),
                store.delete({"n": 1}),
            ):
                await call
                seen += runs("token")
    assert seen == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]


def _claim_often(times: int, url: str) -> Any:
    async def work() -> list[int]:
        async with driven(url=url) as it:
            return [await it.claim(it.set()) for _ in range(times)]

    return work()


async def test_no_token_is_given_twice() -> None:
    """Whatever number of processes ask for it at once."""
    async with driven():
        tokens = await asyncio.to_thread(at_once, _claim_often, [(20, databases.url())] * 4)
    assert sorted(token for some in tokens for token in some) == [*range(1, 81)]


async def test_a_claim_tells_what_is_stored() -> None:
    """So that its owner can see whether somebody has stored the run since it was looked up."""
    async with driven() as it:
        a, b = it.set(1), it.set(2)
        await it.complete(a, await it.claim(a))
        claims = await it.ledger.claim([a.id, b.id], "me", 60)
        assert {id: (c.token, c.published) for id, c in claims.items()} == {
            a.id: (2, 1),
            b.id: (1, 0),
        }
        assert (await it.entry(a)).is_claimed
        assert (await it.entry(b)).is_claimed
        assert (await it.entry(b)).record is None


async def test_a_commit_that_comes_too_late_is_dropped() -> None:
    """It publishes nothing, and is given the row of the later owner that was faster."""
    async with driven() as it:
        a = it.set()
        late, current = await it.claim(a), await it.claim(a)
        stored = await it.complete(a, current, "current")
        entry = await it.complete(a, late, "late")
        assert it.published == ["current"]
        assert entry.published == current
        assert entry.record.custom_data == {"note": "current"}
        assert entry.record.created_at == stored.record.created_at
        assert (await it.entry(a)).record.custom_data == {"note": "current"}
        assert runs("token, published, state, owner") == [(2, 2, "done", None)]


async def test_a_commit_of_an_owner_that_was_overtaken_is_dropped() -> None:
    """Also while the later owner is still at work: it alone may publish."""
    async with driven() as it:
        a = it.set()
        early, later = await it.claim(a), await it.claim(a)
        entry = await it.complete(a, early, "early")
        assert (entry.record, entry.token, entry.published) == (None, later, 0)
        assert it.published == []
        assert runs("token, published, state, owner") == [(2, 0, "running", "somebody")]
        second = await it.complete(a, later, "later")
        assert second.record.custom_data == {"note": "later"}
        assert runs("token, published, state, owner") == [(2, 2, "done", None)]


async def test_who_runs_it_keeps_it_until_the_lease_has_passed() -> None:
    """A claim gets nothing that is live; a dead owner's, or one whose lease has passed, it does."""
    async with driven() as it:
        a, b = it.set(1), it.set(2)
        first = await it.ledger.claim([a.id, b.id], "one", 60)
        assert {id: claim.token for id, claim in first.items()} == {a.id: 1, b.id: 1}
        assert await it.ledger.claim([a.id, b.id], "two", 60) == {}
        assert await it.ledger.claim([a.id], "two", 60, gone=["three"]) == {}
        states = await it.ledger.states([a.id, b.id])
        assert {(s.token, s.owner, s.is_live) for s in states.values()} == {(1, "one", True)}
        taken = await it.ledger.claim([a.id, b.id], "two", 0, gone=["one"])
        assert {claim.token for claim in taken.values()} == {2}
        assert not (await it.ledger.states([a.id]))[a.id].is_live  # with no time to live
        assert not (await it.entry(a)).is_claimed
        assert (await it.ledger.claim([a.id], "four", 60))[a.id].token == 3


async def test_a_lease_is_renewed_for_its_owner_alone() -> None:
    """What somebody else has taken over meanwhile is no more the first one's to renew."""
    async with driven() as it:
        a, b = it.set(1), it.set(2)
        await it.ledger.claim([a.id, b.id], "one", 0)
        await it.ledger.claim([b.id], "two", 0)
        await it.ledger.renew([a.id, b.id], "one", 60)
        states = await it.ledger.states([a.id, b.id])
        assert (states[a.id].owner, states[a.id].is_live) == ("one", True)
        assert (states[b.id].owner, states[b.id].is_live) == ("two", False)


async def test_a_registered_result_fences_a_run_that_is_under_way() -> None:
    """The user's own file is not overwritten by what was started before."""
    async with driven() as it:
        a = it.set()
        late = await it.claim(a)
        await it.ledger.register(it.finished(a, 0, "registered"), published(a.id))
        entry = await it.complete(a, late, "late")
        assert it.published == []
        assert entry.record.custom_data == {"note": "registered"}


async def test_a_batch_stores_what_it_can() -> None:
    """One that is late, one in conflict, one that cannot be published; the others are stored."""
    async with driven() as it:
        late, mine, theirs, failing, fine = (
            it.set(1),
            it.set(2, id="taken"),
            it.set(3, id="taken"),
            it.set(4),
            it.set(5),
        )
        token = await it.claim(late)
        await it.complete(late, await it.claim(late), "later")
        await it.complete(theirs, await it.claim(theirs), "theirs")
        batch = [
            it.finished(late, token, "late"),
            it.finished(mine, await it.claim(mine), "mine"),
            it.finished(failing, await it.claim(failing), "failing"),
            it.finished(fine, await it.claim(fine), "fine"),
        ]

        async def publish(
            ready: list[tuple[Finished, Entry[Any]]],
        ) -> list[Published | EntropicError]:
            assert {run.custom_data["note"] for run, _ in ready} == {"failing", "fine"}
            return [
                ResultsDirError("no room")
                if run.parameters.id == failing.id
                else published(fine.id)
                for run, _ in ready
            ]

        done = await it.ledger.complete(batch, publish)
        assert str(done[failing.id]) == "no room"
        assert isinstance(done["taken"], IdConflictError)
        for parameters, note in ((late, "later"), (theirs, "theirs"), (fine, "fine")):
            assert (await it.entry(parameters)).record.custom_data == {"note": note}
        assert (await it.entry(failing)).record is None
        assert (await it.entry(failing)).is_claimed


async def test_a_conflict_on_an_own_id_is_found_in_the_transaction() -> None:
    """Two sets under one id of the caller's, the second claimed without another look."""
    async with driven() as it:
        one, two = it.set(1, id="mine"), it.set(2, id="mine")
        await it.complete(one, await it.claim(one), "one")
        error = await it.complete(two, await it.claim(two), "two")
        assert isinstance(error, IdConflictError)
        assert error.id == "mine"
        assert "n is 1 there and 2 here" in str(error)
        assert it.published == ["one"]
        with pytest.raises(IdConflictError, match="nothing was overwritten"):
            await it.ledger.register(it.finished(two, 0, "two"), published("mine"))
        assert (await it.entry(one)).record.n == 1
        # The same set under the same id is none.
        await it.ledger.register(it.finished(one, 0, "again"), published("mine"))
        assert (await it.entry(one)).record.custom_data == {"note": "again"}


async def test_nothing_is_stored_when_publishing_breaks_off() -> None:
    """The transaction is undone, and the claims are as they were."""
    async with driven() as it:
        a, b = it.set(1), it.set(2)
        batch = [it.finished(p, await it.claim(p)) for p in (a, b)]

        async def publish(ready: list[Any]) -> list[Any]:
            raise OSError("the cable")

        with pytest.raises(OSError, match="the cable"):
            await it.ledger.complete(batch, publish)
        assert databases.ask("SELECT * FROM sims") == []
        assert runs("state, token, published") == [("running", 1, 0)] * 2
        assert (await it.complete(a, 1)).record.n == 1


async def test_a_deleted_run_leaves_its_tokens() -> None:
    """And the name that its result has; nothing else of it."""
    async with driven() as it:
        a = it.set()
        await it.complete(a, await it.claim(a))
        entry = await it.delete(a)
        assert entry.record.n == 1
        assert databases.ask("SELECT * FROM sims") == []
        assert runs("state, token, published, owner, result_name, folder, error") == [
            ("deleted", 1, 1, None, f"{a.id}.npy", "folder", None)
        ]
        left = await it.entry(a)
        assert (left.record, left.values, left.published, left.is_claimed) == (None, {}, 1, False)
        assert left.result.name == f"{a.id}.npy"
        assert await it.delete(a) is None
        assert runs("state, token") == [("deleted", 1)]


async def test_deleting_what_is_not_there_leaves_no_trace() -> None:
    """Not even a tombstone."""
    async with driven() as it:
        assert await it.delete(it.set()) is None
        assert runs("id") == []


async def test_a_run_that_is_under_way_outlives_a_deletion() -> None:
    """It was not what was deleted: its claim stays, and its result is stored."""
    async with driven() as it:
        a = it.set()
        await it.complete(a, await it.claim(a), "old")
        token = await it.claim(a)
        await it.delete(a)
        assert runs("state, owner, published") == [("running", "somebody", token - 1)]
        entry = await it.complete(a, token, "new")
        assert entry.record.custom_data == {"note": "new"}
        assert runs("state, token, published, owner") == [("done", 2, 2, None)]


@pytest.mark.parametrize(("ttl", "gone"), [(60, ["somebody"]), (0, [])], ids=["dead", "silent"])
async def test_an_owner_that_is_gone_has_no_run_under_way(ttl: float, gone: list[str]) -> None:
    """What it may have finished goes with the row."""
    async with driven() as it:
        a = it.set()
        await it.complete(a, await it.claim(a), "old")
        token = await it.claim(a, ttl)
        await it.delete(a, gone)
        assert runs("state, token, published, owner, lease_expires") == [
            ("deleted", token, token, None, None)
        ]
        await it.complete(a, token, "new")
        assert it.published == ["old"]
        assert (await it.entry(a)).record is None


async def test_a_failure_is_remembered_until_the_next_success() -> None:
    """With the attempts that it took; no row, no claim."""
    async with driven() as it:
        a = it.set()
        for attempt in (1, 2):
            error = {"type": "ValueError", "message": f"attempt {attempt}"}
            await it.ledger.fail([(a.id, await it.claim(a), error)])
            assert runs("state, attempts, owner, error ->> 'message'") == [
                ("failed", attempt, None, f"attempt {attempt}")
            ]
            assert (await it.entry(a)).record is None
        await it.complete(a, await it.claim(a))
        assert runs("state, attempts, error") == [("done", 3, None)]


async def test_a_failed_rerun_leaves_the_row() -> None:
    """The run is done, as before; what went wrong is remembered beside it."""
    async with driven() as it:
        a = it.set()
        await it.complete(a, await it.claim(a), "old")
        await it.ledger.fail([(a.id, await it.claim(a), {"message": "no"})])
        entry = await it.entry(a)
        assert entry.record is not None
        assert entry.record.custom_data == {"note": "old"}
        assert runs("state, owner, error ->> 'message'") == [("done", None, "no")]


async def test_an_interruption_is_no_failure() -> None:
    """The claim is given back, and there is nothing to remember."""
    async with driven() as it:
        a = it.set()
        await it.ledger.fail([(a.id, await it.claim(a), None)])
        assert runs("state, owner, error") == [("interrupted", None, None)]
        assert not (await it.entry(a)).is_claimed


async def test_a_failure_that_comes_too_late_changes_nothing() -> None:
    """The claim of the later owner is not given back by the earlier."""
    async with driven() as it:
        a = it.set()
        late, current = await it.claim(a), await it.claim(a)
        await it.ledger.fail([(a.id, late, {"message": "late"})])
        assert runs("state, token, owner, error") == [("running", 2, "somebody", None)]
        await it.complete(a, current)
        await it.ledger.fail([(a.id, late, {"message": "late"})])
        assert runs("state, token, owner, error") == [("done", 2, None, None)]


async def test_what_is_stored_has_not_failed() -> None:
    """Whatever its owner was told of its commit; nor has it once it is deleted."""
    async with driven() as it:
        a = it.set()
        token = await it.claim(a)
        await it.complete(a, token)
        await it.ledger.fail([(a.id, token, {"message": "the answer was lost"})])
        assert runs("state, owner, error") == [("done", None, None)]
        await it.delete(a)
        await it.ledger.fail([(a.id, token, {"message": "the answer was lost"})])
        assert runs("state, owner, error") == [("deleted", None, None)]
        assert await it.ledger.failures() == []


async def test_what_is_known_of_a_result_reads_back_equal() -> None:
    """Every field of the bookkeeping."""
    result = Result(
        folder="f" * 32,
        name="2bfd14f43d17fc7c.0.npy",
        registered_path="/data/it's here.npy",
        companions=True,
        size=2**40,
        digest="0" * 64,
        host="café",
        started_at=1769862600.25,
        elapsed_seconds=0.0123,
    )
    assert None not in result
    async with driven() as it:
        a = it.set()
        run = it.finished(a, await it.claim(a))

        async def publish(ready: Sequence[Any]) -> list[Any]:
            return [Published("spelled/so.npy", result) for _ in ready]

        done = await it.ledger.complete([run], publish)
        entry = await it.entry(a)
        assert entry.result == result
        assert entry.record is not None
        assert entry.record.result_file == "spelled/so.npy"
        written = done[a.id]
        assert isinstance(written, Entry)
        assert written._replace(record=None) == entry._replace(record=None)
        assert vars(written.record).keys() == vars(entry.record).keys()
        for name, value in a.values.items():
            assert getattr(written.record, name) == value == getattr(entry.record, name)


EVERY_KIND: dict[str, tuple[Any, Any]] = {
    "whole": (int, -(2**63)),
    "real": (float, 0.1 + 0.2),
    "huge": (float, math.inf),
    "flag": (bool, True),
    "text": (str, "it's :n 100% ? café\n\\"),
    "moment": (datetime, datetime(2026, 1, 31, 12, 30, 0, 250, tzinfo=UTC)),
    "day": (date, date(2026, 1, 31)),
    "exact": (Decimal, Decimal("1.50000000000000000001")),
    "path": (Path, Path("it's/here")),
    "tag": (uuid.UUID, uuid.UUID(int=7)),
    "config": (dict[str, Any], {"a": [1, 2.5, None, {"b": "c"}], "d": 1e300}),
    "items": (list[float], [0.1, -0.0, 1e-300]),
    "nothing": (float | None, None),
}


async def test_every_kind_of_value_reads_back_equal() -> None:
    """So that a stored row is a hit for the values it was stored with."""
    kinds = {name: kind for name, (kind, _) in EVERY_KIND.items()}
    async with driven(model("kinds", **kinds)) as it:
        a = it.identity.resolve({name: value for name, (_, value) in EVERY_KIND.items()})
        await it.complete(a, await it.claim(a))
        entry = await it.entry(a)
        assert dict(entry.values) == a.values
        assert it.ledger.conflict(a, entry) is None
        assert entry.record is not None
        assert entry.record.created_at.tzinfo is UTC


async def test_ids_of_the_callers_own_are_looked_up_as_they_are() -> None:
    """They may hold dots and dashes, and differ in case alone."""
    async with driven() as it:
        sets = [it.set(n, id=id) for n, id in enumerate(["a.b-c_d", "A.B-C_D", "1", "01", "1.0"])]
        for parameters in sets:
            await it.complete(parameters, await it.claim(parameters))
        found = await it.ledger.look_up([parameters.id for parameters in sets])
        assert [found[parameters.id].values["n"] for parameters in sets] == [0, 1, 2, 3, 4]


def fill(rows: int) -> None:
    """Many rows and their bookkeeping."""
    numbers = (
        "WITH RECURSIVE numbers(value) AS"
        f" (SELECT 0 UNION ALL SELECT value + 1 FROM numbers WHERE value < {rows - 1})"
    )
    databases.change(
        f"""INSERT INTO sims (id, result_file, created_at, custom_data, n, dt) {numbers}
            SELECT 'id' || value, 'x', '2026-01-31 00:00:00', '{{}}', value, 0.5 FROM numbers;
            INSERT INTO entropic_runs (model, id, state, token, published, attempts) {numbers}
            SELECT 'sims', 'id' || value, 'done', 1, 1, 1 FROM numbers;""",
    )


async def test_a_hundred_thousand_ids_are_looked_up_in_one_statement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one bound value; each id is in the answer, and no list of parameters is too long."""
    async with driven() as it:
        fill(5000)
        ids = [f"id{n}" for n in range(100_000)]
        statements: list[str] = []
        (session,) = it.database._readers._idle
        fetch = session.fetch

        async def noted(sql: str, values: Sequence[Any]) -> Any:
            statements.append(sql)
            return await fetch(sql, values)

        monkeypatch.setattr(session, "fetch", noted)
        found = await it.ledger.look_up(ids)
    assert len(statements) == 1
    assert list(found) == ids
    assert [id for id, entry in found.items() if entry.record is not None] == ids[:5000]
    assert [id for id, entry in found.items() if entry.published] == ids[:5000]
    assert found["id4999"].values == {"n": 4999, "dt": 0.5, "label": None}


# The planner is SQLite's own; that of PostgreSQL has its test below.
@databases.only_sqlite
@pytest.mark.parametrize("analyzed", [False, True])
async def test_statements_find_their_rows_by_an_index(analyzed: bool) -> None:
    """None of them reads the whole of a table, whatever the planner has learned of it."""
    async with driven() as it:
        statements = databases.statements_of(it.database, it.identity)
    fill(1000)
    if analyzed:
        databases.change("ANALYZE")
    plans = {}
    for name, statement in statements.items():
        # What is unbound counts as NULL.
        rows = databases.ask(f"EXPLAIN QUERY PLAN {statement.sql.replace('?', 'NULL')}")
        plans[name] = [row[3] for row in rows]
    for name, plan in plans.items():
        assert [s for s in plan if "SCAN" in s and "VIRTUAL TABLE" not in s] == [], name
    searches = {
        name: {step.split()[1] for step in plan if step.startswith("SEARCH") and "INDEX" in step}
        for name, plan in plans.items()
    }
    assert searches == {
        "look_up": {"sims", "entropic_runs"},
        "states": {"entropic_runs"},
        "hold": {"entropic_runs"},
        "hold_rows": {"sims"},
        "claim": set(),  # inserts look at the index by themselves
        "seize": set(),
        "registered": {"entropic_runs"},
        "store": set(),
        "settle": {"entropic_runs"},
        "fail": {"sims", "entropic_runs"},
        "failures": {"entropic_runs"},
        "delete": {"sims"},
        "bury": set(),
        "renew": {"entropic_runs"},
        "relinquish": {"sims", "entropic_runs"},
    }


@databases.only_postgresql
@pytest.mark.parametrize("analyzed", [False, True])
async def test_statements_find_their_rows_by_an_index_on_postgresql(analyzed: bool) -> None:
    """Whatever they are given; but for those that list all there is of a kind."""
    async with driven() as it:
        statements = databases.statements_of(it.database, it.identity)
    fill(20_000)
    if analyzed:
        databases.change("ANALYZE")
    connection = await asyncpg.connect(databases.url())
    for name, statement in statements.items():
        unbound = [None] * len(set(re.findall(r"\$\d+", statement.sql)))
        plan = await connection.fetch(f"EXPLAIN (GENERIC_PLAN) {statement.sql}", *unbound)
        scans = [step for (step,) in plan if "Seq Scan" in step]
        assert scans == [] or name in ("failures", "registered"), (name, plan)
    await connection.close()


async def test_a_late_commit_does_not_bring_a_deleted_run_back() -> None:
    """Its token is older than that of the run that was deleted."""
    async with driven() as it:
        a = it.set()
        late, current = await it.claim(a), await it.claim(a)
        await it.complete(a, current, "current")
        await it.delete(a)
        await it.complete(a, late, "late")
        assert it.published == ["current"]
        assert (await it.entry(a)).record is None
        assert runs("state, published") == [("deleted", 2)]
