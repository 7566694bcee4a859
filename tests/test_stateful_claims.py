"""Claims held against small models, through everything that owners can do to one another.

Two machines: one of ledgers, each with connections of its own to one database, and one of stores,
whose runs are held open, left behind, overtaken and recovered.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from entropic.database import Database
from entropic.identity import Identity, ParameterSet
from entropic.ledger import Claim, Entry, Finished, Ledger, Published, Result, State
from entropic.schema import open_schema
from tests import databases
from tests.simulations import Point

pytestmark = pytest.mark.usefixtures("database")

T = TypeVar("T")

# Hours. No sum of steps is ever an end of a lease: the seconds that a story really takes cannot
# decide one.
STEPS = st.sampled_from([1, 2, 5])
LEASES = st.sampled_from([1.5, 4.5])
HOUR = 3600.0


def advance(seconds: float) -> None:
    """Let time pass in the database: every lease is that much nearer to its end.

    That is the same as a clock that has advanced, as the clock is compared with leases alone. So
    the statements are those of the product, and no clock of the test's own.
    """
    databases.change(f"UPDATE entropic_runs SET lease_expires = lease_expires - {seconds}")


@dataclass
class Known:
    """What the model knows of one id."""

    token: int = 0
    published: int = 0
    state: str | None = None
    owner: str | None = None
    expires: float = 0.0
    attempts: int = 0
    content: str | None = None
    error: str | None = None

    def is_live(self, now: float) -> bool:
        """Whether somebody holds its claim."""
        return self.owner is not None and self.expires > now


@dataclass(frozen=True)
class Granted:
    """A claim as its owner remembers it, for as long as it likes: owners may be paused."""

    n: int
    owner: str
    token: int


NUMBERS = (1, 2)
numbers = st.sampled_from(NUMBERS)
some_numbers = st.lists(numbers, min_size=1, unique=True)
LEDGERS = 3


class LedgersAgainstAModel(RuleBasedStateMachine):
    """Whatever owners do, and when: each statement does what it does to the model."""

    granted = Bundle("granted")

    @initialize()
    def open_ledgers(self) -> None:
        """Several ledgers, each with connections of its own."""
        databases.current().clear()
        self.runner = asyncio.Runner()
        self.databases = [self.database() for _ in range(LEDGERS)]
        self.ledgers: list[Ledger[Point]] = []
        for database in self.databases:
            self.run(database.open())
            schema = self.run(open_schema(database, Point))
            self.ledgers.append(Ledger(database, schema.identity, schema.model, Point))
            self.identity: Identity = schema.identity
            self.model = schema.model
        self.lives = [0] * LEDGERS
        self.now = 0.0
        self.known: dict[int, Known] = {}
        self.contents = 0
        self.tokens: dict[int, int] = {}
        self.turn = 0

    def database(self) -> Database:
        """One more opening of the one database."""
        return Database(databases.url(), lock_timeout=30)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.runner.run(work)

    def of(self, n: int) -> Known:
        """What the model knows of a run."""
        return self.known.setdefault(n, Known())

    def set(self, n: int) -> ParameterSet:
        """A parameter set."""
        return self.identity.resolve({"n": n})

    def id(self, n: int) -> str:
        """Its run id."""
        return self.set(n).id

    def owner(self, who: int) -> str:
        """An owner's name; another one after each crash."""
        return f"{who}.{self.lives[who]}"

    def dead(self) -> list[str]:
        """The names of all who have crashed."""
        return [f"{who}.{life}" for who, lives in enumerate(self.lives) for life in range(lives)]

    def finished(self, n: int, token: int) -> Finished:
        """A run that has ended, with content of its own."""
        self.contents += 1
        parameters = self.set(n)
        stored = self.identity.stored(parameters.values)
        return Finished(parameters, stored, token, {"content": f"content {self.contents}"})

    async def publish(self, ready: list[tuple[Finished, Entry[Point]]]) -> list[Any]:
        """Give results their names."""
        return [self.published(run) for run, _ in ready]

    def published(self, run: Finished) -> Published:
        """Where a result is, and which it is: its digest tells."""
        name = f"{run.parameters.id}.txt"
        return Published(f"./{name}", Result("here", name, digest=run.custom_data["content"]))

    async def forget(self, entries: list[Entry[Point]]) -> list[Result]:
        """All that stays known of a deleted run is its name."""
        return [Result(folder=e.result.folder, name=e.result.name) for e in entries]

    def took(self, n: int, owner: str, lease: float) -> Granted:
        """The model's claim."""
        it = self.of(n)
        it.token += 1
        it.attempts += 1
        it.state, it.owner, it.expires = "running", owner, self.now + lease
        return Granted(n, owner, it.token)

    def stored(self, n: int, token: int, content: str) -> None:
        """The model's row."""
        it = self.of(n)
        it.content, it.published, it.error = content, token, None
        it.state, it.owner = "done", None

    def is_fenced(self, claim: Granted) -> bool:
        """Whether somebody has come after this owner, or its own result is there already."""
        it = self.of(claim.n)
        return it.token != claim.token or it.published >= claim.token

    @rule(
        target=granted,
        who=st.integers(0, LEDGERS - 1),
        ns=some_numbers,
        lease=LEASES,
        knows=st.booleans(),
    )
    def claim(self, who: int, ns: list[int], lease: float, knows: bool) -> Any:
        """It takes what nobody has, what has expired, and what is known to be a dead owner's."""
        gone = self.dead() if knows else []
        claims = self.run(self.claiming(who, ns, lease, gone))
        return multiple(*self.check_claims(who, ns, lease, gone, claims))

    @rule(target=granted, ns=some_numbers, lease=LEASES, order=st.permutations(range(LEDGERS)))
    def race(self, ns: list[int], lease: float, order: Sequence[int]) -> Any:
        """All at once: each run that is free goes to one of them."""

        async def all_at_once() -> list[dict[str, Claim]]:
            return await asyncio.gather(*(self.claiming(who, ns, lease, []) for who in order))

        free = [n for n in ns if not self.of(n).is_live(self.now)]
        got = dict(zip(order, self.run(all_at_once()), strict=True))
        winners = [(n, who) for who, claims in got.items() for n in ns if self.id(n) in claims]
        assert sorted(n for n, _ in winners) == sorted(free)
        for who, claims in got.items():
            self.check_claims(who, [n for n in ns if self.id(n) in claims], lease, [], claims)
        # Who wins is chance, and a story that hypothesis tells again must be the same one: so it
        # goes on as if the first had won all.
        first = self.owner(order[0])
        for n in free:
            databases.change(
                f"UPDATE entropic_runs SET owner = '{first}' WHERE id = '{self.id(n)}'"
            )
            self.of(n).owner = first
        return multiple(*(Granted(n, first, self.of(n).token) for n in free))

    async def claiming(
        self, who: int, ns: list[int], lease: float, gone: list[str]
    ) -> dict[str, Claim]:
        """Claim runs."""
        ids = [self.id(n) for n in ns]
        return await self.ledgers[who].claim(ids, self.owner(who), lease * HOUR, gone)

    def check_claims(
        self, who: int, ns: list[int], lease: float, gone: list[str], claims: dict[str, Claim]
    ) -> list[Granted]:
        """Claims are those that the model grants."""
        granted = []
        for n in ns:
            it = self.of(n)
            if it.is_live(self.now) and it.owner not in gone:
                assert self.id(n) not in claims
            else:
                granted.append(self.took(n, self.owner(who), lease))
                assert claims[self.id(n)] == Claim(it.token, it.published)
        return granted

    @rule(who=st.integers(0, LEDGERS - 1), ns=some_numbers, lease=LEASES)
    def renew(self, who: int, ns: list[int], lease: float) -> None:
        """It lengthens one's own leases, also such as have passed and are nobody else's."""
        ids = [self.id(n) for n in ns]
        self.run(self.ledgers[who].renew(ids, self.owner(who), lease * HOUR))
        for n in ns:
            if self.of(n).owner == self.owner(who):
                self.of(n).expires = self.now + lease

    @rule(hours=STEPS)
    def wait(self, hours: int) -> None:
        """Leases pass."""
        self.pass_time(hours)

    def pass_time(self, hours: int) -> None:
        """Leases pass."""
        advance(hours * HOUR)
        self.now += hours

    @rule(target=granted, claim=granted, who=st.integers(0, LEDGERS - 1), lease=LEASES)
    def overtake(self, claim: Granted, who: int, lease: float) -> Any:
        """As soon as a lease has passed, its run is anybody's."""
        if self.of(claim.n).is_live(self.now):
            self.pass_time(5)
        claims = self.run(self.claiming(who, [claim.n], lease, []))
        return multiple(*self.check_claims(who, [claim.n], lease, [], claims))

    @rule(claim=granted, who=st.integers(0, LEDGERS - 1))
    def complete(self, claim: Granted, who: int) -> None:
        """Stored, unless somebody has come after this owner: then nothing changes."""
        self.completing([claim], who)

    @rule(one=granted, other=granted, who=st.integers(0, LEDGERS - 1))
    def complete_together(self, one: Granted, other: Granted, who: int) -> None:
        """In one transaction, each by itself."""
        self.completing([one, other] if one.n != other.n else [one], who)

    def completing(self, claims: list[Granted], who: int) -> None:
        """Complete claims, and look at what is said of each."""
        runs = [self.finished(claim.n, claim.token) for claim in claims]
        fenced = [self.is_fenced(claim) for claim in claims]
        done = self.run(self.ledgers[who].complete(runs, self.publish))
        for claim, run, is_fenced in zip(claims, runs, fenced, strict=True):
            if not is_fenced:
                self.stored(claim.n, claim.token, run.custom_data["content"])
            entry = done[run.parameters.id]
            assert isinstance(entry, Entry)
            self.check_entry(claim.n, entry)

    @rule(claim=granted, who=st.integers(0, LEDGERS - 1), has_failed=st.booleans())
    def give_back(self, claim: Granted, who: int, has_failed: bool) -> None:
        """A failure or an interruption, of the last owner alone; what is stored stays."""
        about = {"type": "builtins.ValueError", "message": str(claim.token), "traceback": ""}
        error = about if has_failed else None
        self.run(self.ledgers[who].fail([(self.id(claim.n), claim.token, error)]))
        it = self.of(claim.n)
        if it.token == claim.token and it.published < claim.token:
            it.owner = None
            it.error = str(claim.token) if has_failed else None
            it.state = "done" if it.content else "failed" if has_failed else "interrupted"

    @rule(n=numbers, who=st.integers(0, LEDGERS - 1), knows=st.booleans())
    def delete(self, n: int, who: int, knows: bool) -> None:
        """The row goes; tokens stay, and so does a run that is under way."""
        it = self.of(n)
        gone = self.dead() if knows else []
        deleted = self.run(self.ledgers[who].delete({self.id(n): None}, self.forget, gone))
        assert bool(deleted) == (it.content is not None)
        if it.content is None:
            return
        it.content = it.error = None
        if not it.is_live(self.now) or it.owner in gone:
            it.published, it.state, it.owner = it.token, "deleted", None
        else:
            it.published = it.token - 1

    @rule(n=numbers, who=st.integers(0, LEDGERS - 1))
    def register(self, n: int, who: int) -> None:
        """A row of a result made elsewhere; who runs it comes too late from then on."""
        run = self.finished(n, 0)
        self.took(n, "register", 0.0)
        entry = self.run(self.ledgers[who].register(run, self.published(run)))
        self.stored(n, self.of(n).token, run.custom_data["content"])
        self.check_entry(n, entry)

    @rule(who=st.integers(0, LEDGERS - 1))
    def crash(self, who: int) -> None:
        """It starts again under another name, and has forgotten its claims."""
        self.run(self.databases[who].aclose())
        self.lives[who] += 1
        self.run(self.databases[who].open())

    @rule(target=granted, left=granted, who=st.integers(0, LEDGERS - 1))
    def recover(self, left: Granted, who: int) -> Any:
        """A run that was finished, and left, is stored under a claim of who finds it."""
        it = self.of(left.n)
        state = self.run(self.ledgers[who].states([self.id(left.n)]))[self.id(left.n)]
        self.check_state(left.n, state)
        is_at_work = state.is_live and state.owner not in self.dead()
        if is_at_work or left.token <= state.published:
            return multiple()
        claims = self.run(self.claiming(who, [left.n], 1.5, self.dead()))
        (claim,) = self.check_claims(who, [left.n], 1.5, self.dead(), claims)
        self.completing([claim], who)
        assert it.published == claim.token
        return claim

    def check_entry(self, n: int, entry: Entry[Point]) -> None:
        """An entry says what the model says."""
        it = self.of(n)
        assert (entry.token, entry.published) == (it.token, it.published)
        assert entry.is_claimed == it.is_live(self.now)
        if it.content is None:
            assert entry.record is None
        else:
            assert entry.record is not None
            assert entry.record.custom_data == {"content": it.content}
            assert entry.result.digest == it.content

    def check_state(self, n: int, state: State) -> None:
        """So does a state."""
        it = self.of(n)
        expected = State(it.token, it.published, it.owner, it.is_live(self.now))
        assert replace(state, failure=None) == expected
        has_failed = it.state == "failed" and it.error is not None
        assert (state.failure is not None) == has_failed
        assert state.failure is None or str(state.failure.exception) == it.error

    @invariant()
    def each_ledger_says_what_the_model_says(self) -> None:
        """One of them after each step, in turn."""
        self.turn += 1
        ledger = self.ledgers[self.turn % LEDGERS]
        ids = {n: self.id(n) for n in NUMBERS}
        entries = self.run(ledger.look_up(list(ids.values())))
        states = self.run(ledger.states(list(ids.values())))
        for n, id in ids.items():
            self.check_entry(n, entries[id])
            self.check_state(n, states[id])
        failures = {failure.id: str(failure.exception) for failure in self.run(ledger.failures())}
        assert failures == {ids[n]: it.error for n, it in self.known.items() if it.error}
        left = f"(lease_expires - {databases.current().now}) / {HOUR}"
        rows = databases.ask(f"SELECT id, state, attempts, {left} FROM entropic_runs")
        known = {ids[n]: it for n, it in self.known.items() if it.state}
        assert {(*row, left and round(left, 1)) for *row, left in rows} == {
            (id, it.state, it.attempts, it.expires - self.now if it.owner else None)
            for id, it in known.items()
        }

    @invariant()
    def tokens_only_ever_increase(self) -> None:
        """Whatever was deleted between: as another program reads them."""
        tokens = dict(databases.ask("SELECT id, token FROM entropic_runs"))
        assert all(tokens[id] >= token for id, token in self.tokens.items())
        self.tokens = tokens

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "runner"):
            for database in self.databases:
                self.run(database.aclose())
            self.runner.close()


def tell(machine: Any, stories: int, steps: int) -> None:
    """Tell so many stories of at most so many steps."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=stories,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)  # a failure is made small before it is shown
def test_ledgers_do_what_a_model_does() -> None:
    """The normal run: some dozens of stories."""
    # Connecting anew, as owners do here, takes its time on a server.
    tell(LedgersAgainstAModel, 20 if databases.current().name == "sqlite" else 5, 30)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_ledgers_do_what_a_model_does_at_length() -> None:
    """The nightly run: many, and longer."""
    tell(LedgersAgainstAModel, 1500, 60)
