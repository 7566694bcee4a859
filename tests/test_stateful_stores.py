"""Stores that share runs, held against a model: paused, killed, overtaken, finishing late.

Their runs are held open until the story says how they end. A crash is a store of which no
statement ever reaches the database again, and whose claims bear the name of a process that has
been killed. Whole processes are killed elsewhere (``test_recovery``), and fewer of them.

One store acts at a time, so that a story that is told again is the same one.
"""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from entropic import AsyncStore, RemoteRunError, opening
from entropic.leases import Flight, Waiter, owners
from entropic.pipeline import claims, elsewhere, lookup
from tests import databases
from tests.happenings import Happenings
from tests.simulations import Point
from tests.test_stateful_claims import HOUR, advance, tell

pytestmark = [pytest.mark.usefixtures("database"), databases.either]

T = TypeVar("T")

LEASE = 1.0  # hours
STEP = 0.4  # of which no number is a lease
KEYS = (1, 2)
STORES = 3
ELSEWHERE = 2  # the one that runs on another machine

keys = st.sampled_from(KEYS)
# Which of those that there are, counted round: so no draw depends on what stores have done.
places = st.integers(0, 11)


class DiedError(Exception):
    """What a transaction ends with whose process is gone."""


class Owner:
    """A store, the process that its claims name, and the ways to stop it.

    Each statement waits until it is the store's turn.
    """

    def __init__(self, store: AsyncStore[Point], place: int, happenings: Happenings) -> None:
        self.store = store
        self.is_local = place != ELSEWHERE
        self.is_silent = self.is_dead = self.dies_publishing = False
        self.committing: set[str] = set()
        self.waiting: set[str] = set()
        self._turn = asyncio.Event()
        self._happenings = happenings
        self._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # it ends with this one
        self.name = self._named()

    async def open(self, patched: pytest.MonkeyPatch) -> None:
        """Open the store, and come between it and its database."""
        patched.setattr(opening, "new_owner", lambda: self.name)
        await self.store.__aenter__()
        assert self.store._opening._task is not None
        self.opened = self.store._opening._task.result()
        database, pipeline = self.opened.database, self.opened.pipeline
        self._complete = pipeline._cache.ledger.complete
        for subject, name, instead in (
            (database, "read", self._in_turn(database.read)),
            (database, "write", self._in_turn(database.write)),
            (pipeline._cache.ledger, "complete", self._completing),
            (pipeline._holder._claims, "ended", self._ending(pipeline._holder._claims.ended)),
        ):
            setattr(subject, name, instead)

    @property
    def is_awake(self) -> bool:
        """Whether it gets anything done."""
        return not (self.is_silent or self.is_dead)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """It is this one that acts."""
        assert self.is_awake
        self._turn.set()
        try:
            yield
        finally:
            self._turn.clear()

    async def beat(self) -> None:
        """One beat of its heart: those of its own are too rare for a story."""
        heartbeat = self.opened.heartbeat
        assert heartbeat is not None
        ledger = self.opened.pipeline._cache.ledger
        await ledger.renew(heartbeat.held, self.name, LEASE * HOUR)

    def kill(self) -> None:
        """Nothing of it is heard again, and its process is seen to be gone, where it can be."""
        self.is_dead = True
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()

    def _named(self) -> str:
        place = owners._place()
        assert place is not None
        if not self.is_local:
            place[0] = "another boot"
        pid = self._process.pid
        return json.dumps(["host", place, pid, owners._stat(pid)[1], "nonce"])

    def _in_turn(self, call: Callable[..., Coroutine[Any, Any, T]]) -> Any:
        async def called(*args: Any, **kwargs: Any) -> T:
            await self._turn.wait()
            return await call(*args, **kwargs)

        return called

    def _ending(self, ended: Callable[[str], Coroutine[Any, Any, T]]) -> Any:
        async def called(id: str) -> T:
            self.waiting.add(id)
            self._happenings.tell()
            try:
                return await ended(id)
            finally:
                self.waiting.discard(id)

        return called

    async def _completing(self, runs: Any, publish: Any, withdraw: Any) -> Any:
        """Publish and store; or publish and die, so that the rows are rolled back."""

        async def publish_and_die(ready: Any) -> Any:
            await publish(ready)
            raise DiedError

        self.committing |= {run.parameters.id for run in runs}
        self._happenings.tell()
        if not self.dies_publishing:
            return await self._complete(runs, publish, withdraw)
        with contextlib.suppress(DiedError):
            await self._complete(runs, publish_and_die)
        self.kill()
        self._happenings.tell()
        self._turn.clear()
        await self._turn.wait()
        raise DiedError


@dataclass(eq=False)
class Held:
    """A run whose runner has been called, until the story says how it ends."""

    owner: Owner
    key: int
    content: str
    expires: float
    stage: Path
    ending: asyncio.Future[bool]
    is_published: bool = False

    @property
    def token(self) -> int:
        """That of its claim."""
        return int(self.stage.name.split(".")[-2])

    @property
    def may_go_on(self) -> bool:
        """Whether its owner is seen to be there, paused perhaps."""
        return self.owner.is_local and not self.owner.is_dead

    def is_alive(self, now: float) -> bool:
        """Whether nobody may take it over."""
        is_seen_dead = self.owner.is_local and self.owner.is_dead
        return self.expires > now and not is_seen_dead


@dataclass(eq=False)
class Request:
    """A call under way."""

    owner: Owner
    key: int
    is_forced: bool
    task: asyncio.Task[Point]
    earlier: str | None
    may_fail: bool = False


@dataclass
class Known:
    """What the model knows of one parameter set.

    Attributes:
        content: Of its stored result.
        token: The last one that there was.
        published: That of what is stored, or of what was deleted.
        holder: Whose claim is the last, as long as it has not ended.
        sealed: Finished, and never stored.
    """

    content: str | None = None
    token: int = 0
    published: int = 0
    holder: Held | None = None
    sealed: list[Held] = field(default_factory=list)

    def is_current(self, held: Held) -> bool:
        """Whether nobody has come after it."""
        return held.token == self.token > self.published

    def is_taken(self, now: float) -> bool:
        """Whether somebody is at work."""
        return self.holder is not None and self.holder.is_alive(now)

    def left(self, now: float) -> str | None:
        """What was finished, and is anybody's to store: the last of it."""
        there = [held for held in self.sealed if held.token > self.published]
        if not there or self.is_taken(now):
            return None
        return max(there, key=lambda held: held.token).content


class StoresAgainstAModel(RuleBasedStateMachine):
    """Each finished run is stored once, nobody runs what somebody runs, and none is lost."""

    @initialize()
    def open_stores(self) -> None:
        """Several stores on one database and folder, on one loop."""
        databases.current().clear()
        self.folder = Path(tempfile.mkdtemp(dir="."))
        self.staging = self.folder / "results" / ".entropic" / "staging"
        self.patched = pytest.MonkeyPatch()
        for module, name in (
            (claims, "_LINGER_SECONDS"),
            (lookup, "_LOOK_SECONDS"),
            (elsewhere, "_FIRST_DELAY"),
            (elsewhere, "_LONGEST_DELAY"),
        ):
            self.patched.setattr(module, name, 0.001)
        self.patched.setattr(Flight, "wait", self.telling(Flight.wait))
        self.runner = asyncio.Runner()
        self.happenings = self.run(self.made_happenings())
        self.now = 0.0
        self.known = {key: Known() for key in KEYS}
        self.held: list[Held] = []
        self.requests: list[Request] = []
        self.lost: list[Held | Request] = []
        # Stages whose results were published, never stored, and deleted while their owner might
        # still have been at work: what tells of them stays until the set is run again.
        self.hollow: set[str] = set()
        self.faults: list[str] = []
        self.numbers = itertools.count(1)
        self.finished: set[str] = set()
        self.ever_stored: set[str] = set()
        self.is_over = False
        self.owners: list[Owner] = []
        for place in range(STORES):
            self.open_one(place)
        identity = self.owners[0].opened.pipeline._cache.identity
        self.ids = {key: identity.resolve({"n": key}).id for key in KEYS}

    async def made_happenings(self) -> Happenings:
        """On the loop."""
        return Happenings()

    def telling(self, wait: Callable[[Any, Waiter], Coroutine[Any, Any, None]]) -> Any:
        """Have it told that a call has joined a flight."""

        async def called(flight: Flight[Any], waiter: Waiter) -> None:
            moved = waiter.moved

            def told(is_elsewhere: bool) -> None:
                moved(is_elsewhere)
                self.happenings.tell()

            waiter.moved = told
            await wait(flight, waiter)

        return called

    def open_one(self, place: int) -> Owner:
        """One more store."""
        opened: list[Owner] = []
        store = AsyncStore(
            functools.partial(self.simulate, opened),
            Point,
            self.folder / "results",
            ".txt",
            databases.url(),
            lease_ttl=LEASE * HOUR,
            max_workers=8,
        )
        opened.append(Owner(store, place, self.happenings))
        self.owners.append(opened[0])
        self.run(opened[0].open(self.patched))
        return opened[0]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the stores work until this has ended."""
        return self.runner.run(work)

    def asked(self, owner: Owner, work: Coroutine[Any, Any, T]) -> T:
        """What one store answers at once."""
        with owner.turn():
            return self.run(work)

    async def simulate(self, owner: list[Owner], params: dict[str, Any]) -> None:
        """The runner of all: ends as the story says."""
        if self.is_over:
            raise ArithmeticError("the story is over")
        it = self.known[params["n"]]
        path = Path(params["result_file"])
        number = next(self.numbers)
        held = Held(
            owner[0],
            params["n"],
            f"content {number} " + "." * number,  # no two of one size
            self.now + LEASE,
            path.parent,
            asyncio.get_running_loop().create_future(),
        )
        self.check_start(held)
        it.holder, it.token = held, held.token
        self.held.append(held)
        self.happenings.tell()
        try:
            ends_well = await held.ending
        except asyncio.CancelledError:
            self.held.remove(held)
            if it.holder is held:
                it.holder = None
            raise
        if not ends_well:
            raise ArithmeticError("diverged")
        path.write_text(held.content)

    def check_start(self, held: Held) -> None:
        """Nobody else runs it, nobody has finished it, and its token is a new one."""
        it = self.known[held.key]
        if it.is_taken(self.now):
            self.faults.append(f"{held.key} was started while somebody runs it")
        if held.token <= it.token:
            self.faults.append(f"{held.key} was started under {held.token}, after {it.token}")
        calls = [r for r in self.requests if (r.owner, r.key) == (held.owner, held.key)]
        is_wanted_anew = any(call.is_forced for call in calls)
        if not is_wanted_anew and (it.content is not None or it.left(self.now) is not None):
            self.faults.append(f"{held.key} was run again, and had been finished")

    def stored(self, key: int, content: str) -> None:
        """The model's row: each finished run becomes one, once."""
        assert content not in self.ever_stored, "a run was stored twice"
        self.ever_stored.add(content)
        self.known[key].content = content

    def observe(self) -> None:
        """See what was taken over: who is first among those who may is not the model's to say."""
        rows = databases.ask(
            "SELECT id, token, published, digest FROM entropic_runs LEFT JOIN points USING (id)"
            " WHERE points.id IS NOT NULL OR published >= 0"
        )
        for id, token, published, found in rows:
            key = next(key for key in KEYS if self.ids[key] == id)
            it = self.known[key]
            assert token >= it.token, "a token came again"
            assert published >= it.published, "what was stored is older than it was"
            left = it.left(self.now)
            if token > it.token or published >= token:
                if it.holder is not None and token > it.token:
                    assert not it.is_taken(self.now), "a live owner's claim was taken"
                it.holder = None
            it.token, it.published = token, published
            if left is not None and left != it.content and found == digest(left):
                self.stored(key, left)
            it.sealed = [held for held in it.sealed if held.token > published]

    # Turns

    def settle(self, first: Owner | None = None) -> None:
        """Let everything happen that nothing keeps from it; then look at what calls returned."""
        order = [owner for owner in (first, *self.owners) if owner is not None]
        while waking := [o for o in order if o.is_awake and not self.is_settled(o)]:
            self.let_act(waking[0])
        self.look_at_answers()

    def let_act(self, owner: Owner) -> None:
        """It goes on as far as it comes without the others."""
        self.asked(owner, self.acted(owner))
        self.observe()
        assert self.faults == []
        self.look_at_answers()

    async def acted(self, owner: Owner) -> None:
        """The same, on the loop."""
        await self.happenings.until(
            lambda: not owner.is_awake or self.is_settled(owner), "the end of a turn"
        )

    def is_settled(self, owner: Owner) -> bool:
        """Whether all that its calls wait for is what the story holds open."""
        return all(r.task.done() or self.waits(r) for r in self.requests if r.owner is owner)

    def waits(self, request: Request) -> bool:
        """Whether a call waits for what the story holds open."""
        owner, key = request.owner, request.key
        flight = owner.opened.pipeline._flights.get(self.ids[key])
        same = [r for r in self.requests if (r.owner, r.key) == (owner, key) and not r.task.done()]
        if flight is None or len(flight._waiters) < len(same):  # one of them is still looking
            return False
        if any((held.owner, held.key) == (owner, key) for held in self.held):
            return True
        it = self.known[key]
        is_elsewhere = it.holder is not None and it.holder.owner is not owner
        return is_elsewhere and it.is_taken(self.now) and self.ids[key] in owner.waiting

    def look_at_answers(self) -> None:
        """What calls have returned since, as it is now."""
        for request in [r for r in self.requests if r.task.done()]:
            self.requests.remove(request)
            self.check_answer(request)

    def check_answer(self, request: Request) -> None:
        """It is the record of what is stored now, with its bytes; or a failure that there was."""
        if request.task.cancelled():
            return
        error = request.task.exception()
        if error is not None:
            if request.may_fail and isinstance(error, ArithmeticError | RemoteRunError):
                return
            raise error
        content = Path(request.task.result().result_file).read_text()
        assert content == self.known[request.key].content
        assert not (request.is_forced and content == request.earlier)

    # What stores are asked for

    def awake(self) -> list[Owner]:
        """Who gets anything done: somebody always does."""
        if not any(owner.is_awake for owner in self.owners):
            self.open_one(0)
            self.observe()
        return [owner for owner in self.owners if owner.is_awake]

    @rule(which=places, key=keys, wants_new=st.sampled_from([False, False, True]))
    def call(self, which: int, key: int, wants_new: bool) -> None:
        """A call begins: it hits, joins, waits, takes over, or calls the runner."""
        self.begin(pick(self.awake(), which), key, wants_new=wants_new)

    def begin(self, owner: Owner, key: int, *, wants_new: bool, always: bool = False) -> None:
        """Begin a call, and let it come as far as it does.

        Where others want the same set, it asks for a new run only if it need not wait for theirs:
        of those who wait, some would take what is left, and it would not.
        """
        is_forced = wants_new and (always or not any(r.key == key for r in self.requests))

        async def begin() -> asyncio.Task[Point]:
            call = owner.store.run if is_forced else owner.store.run_or_retrieve
            task = asyncio.create_task(call({"n": key}))
            task.add_done_callback(self.happenings.tell)
            return task

        earlier = self.known[key].content
        self.requests.append(Request(owner, key, is_forced, self.run(begin()), earlier))
        self.settle(owner)

    @rule(
        which=places,
        key=keys,
        then=st.sampled_from(
            ["store it", "store it", "fail", "pause", "die", "die after publishing"]
        ),
    )
    def finish(self, which: int, key: int, then: str) -> None:
        """A runner ends; its store goes on from there, or does not."""
        if not any(held.owner.is_awake for held in self.held):
            self.begin(pick(self.awake(), which), key, wants_new=True)
        if held := [held for held in self.held if held.owner.is_awake]:
            self.finishing(pick(held, which), then)

    def finishing(self, held: Held, then: str) -> None:
        """Let a runner end."""
        it, id = self.known[held.key], self.ids[held.key]
        is_current = it.is_current(held)
        self.held.remove(held)
        if then == "fail" or not held.stage.exists():  # given up by a recovery, when it was silent
            self.fails(held, ends_well=then != "fail")
            return
        self.finished.add(held.content)
        held.owner.committing.discard(id)
        held.ending.set_result(True)
        if then in ("pause", "die"):
            held.owner.is_silent = True
            self.run(self.happenings.until(lambda: id in held.owner.committing, "a sealed result"))
            it.sealed.append(held)
            if then == "die":
                self.bury(held.owner)
        elif then == "die after publishing":
            held.owner.dies_publishing = True
            held.is_published = is_current
            it.sealed.append(held)
            self.let_act(held.owner)
            self.bury(held.owner)
        else:
            if is_current:
                self.stored(held.key, held.content)
            elif held.token > it.published:  # overtaken; kept until something newer is stored
                it.sealed.append(held)
            self.settle(held.owner)
            assert held.token > it.published or not held.stage.exists()
        self.settle()

    def fails(self, held: Held, *, ends_well: bool) -> None:
        """A run fails: for all who wait for it, if nobody has overtaken it; else for nobody."""
        it = self.known[held.key]
        if it.is_current(held):
            it.holder = None
            for request in self.requests:
                request.may_fail |= request.key == held.key
        held.ending.set_result(ends_well)
        self.settle(held.owner)

    @rule(
        key=keys,
        others=st.permutations(range(STORES)),
        is_renewed=st.booleans(),
        wants_new=st.booleans(),
        first_ends=st.sampled_from(["store it", "fail"]),
        then=st.permutations(["the first", "the second"]),
    )
    def contend(
        self,
        key: int,
        others: list[int],
        is_renewed: bool,
        wants_new: bool,
        first_ends: str,
        then: list[str],
    ) -> None:
        """Two want one set, and the first is slow: overtaken, unless its lease was renewed."""
        it = self.known[key]
        awake = [self.awake()[n] for n in others if n < len(self.awake())]
        if len(awake) < 2 or any(request.key == key for request in self.requests):
            return
        first, second = awake[:2]
        self.begin(first, key, wants_new=wants_new or it.content is not None)
        slow = it.holder
        if slow is None or slow.owner is not first:  # somebody had left its result
            return
        self.wait(3, beats=is_renewed)
        self.begin(second, key, wants_new=True, always=not is_renewed)
        holder = it.holder
        assert holder is not None
        assert (holder is slow) == is_renewed
        if not is_renewed:
            endings = {"the first": (slow, first_ends), "the second": (holder, "store it")}
            for which in then:
                self.finishing(*endings[which])

    @rule(
        which=places,
        key=keys,
        left=st.sampled_from(["at work", "sealed", "published"]),
        for_good=st.booleans(),
        steps=st.sampled_from([0, 1, 3]),
        then=st.sampled_from(["retrieve", "recover", "call"]),
    )
    def leave(self, which: int, key: int, left: str, for_good: bool, steps: int, then: str) -> None:
        """One leaves a run as it is, and another comes, sooner or later."""
        it, owner = self.known[key], pick(self.awake(), which)
        self.begin(owner, key, wants_new=True)
        held = it.holder
        if held is None or held.owner is not owner:  # it waits for somebody
            return
        if left == "at work":
            owner.is_silent = True
            if for_good:
                self.bury(owner)
        elif left == "sealed":
            self.finishing(held, "die" if for_good else "pause")
        else:
            self.finishing(held, "die after publishing")
        self.wait(steps, beats=True)
        if then == "call":
            self.call(which, key, wants_new=False)
        elif then == "retrieve":
            self.retrieve(which, key)
        else:
            self.recover(which)

    @rule(which=places)
    def interrupt(self, which: int) -> None:
        """A call is cancelled; with the last one, its run ends, and is somebody else's."""
        if requests := [request for request in self.requests if request.owner.is_awake]:
            request = pick(requests, which)
            request.task.cancel()
            self.asked(request.owner, self.happenings.until(request.task.done, "its end"))
            # It waits but a moment for its claim to be given back.
            self.asked(request.owner, request.owner.opened.pipeline._holder.aclose())
            self.settle(request.owner)

    @rule(which=places, key=keys)
    def retrieve(self, which: int, key: int) -> None:
        """What is stored, with its bytes; or what was left, if somebody had begun to store it."""
        owner, it = pick(self.awake(), which), self.known[key]
        record = self.asked(owner, owner.store.retrieve({"n": key}))
        content = None if record is None else Path(record.result_file).read_text()
        self.observe()
        if content is None and it.is_taken(self.now) and it.sealed:
            return  # one has replaced the result, and not the row: only who is at work settles that
        assert content == it.content

    @rule(which=places, key=keys, remove_file=st.booleans())
    def delete(self, which: int, key: int, remove_file: bool) -> None:
        """The row goes, and all that was staged before; not what is under way."""
        it = self.known[key]
        owner = pick(self.awake(), which)
        was_there = self.asked(owner, owner.store.delete({"n": key}, remove_file=remove_file))
        assert was_there == (it.content is not None)
        if was_there:
            it.content = None
            if remove_file:  # which may be that of a row that was never stored
                if it.is_taken(self.now):
                    self.hollow |= {held.stage.name for held in it.sealed if held.is_published}
                it.sealed = [held for held in it.sealed if not held.is_published]
            expected = it.token - 1 if it.is_taken(self.now) else it.token
            self.observe()
            assert it.published == expected
            self.settle()

    @rule(which=places)
    def recover(self, which: int) -> None:
        """What was left finished is stored, by whoever comes first; who is paused is let be."""
        owner = pick(self.awake(), which)  # which may have to be opened, and recovers by that
        left = {key for key, it in self.known.items() if it.left(self.now) is not None}
        paused = {
            key: it.holder
            for key, it in self.known.items()
            if it.holder is not None and it.holder.may_go_on and key not in left
        }
        recovered = self.asked(owner, owner.store.recover())
        assert set(recovered.published) == {self.ids[key] for key in left}
        self.observe()
        assert all(self.known[key].holder is held for key, held in paused.items())
        self.check_nothing_is_left()
        self.settle()

    def check_nothing_is_left(self) -> None:
        """Somebody has recovered."""
        assert [it for it in self.known.values() if it.left(self.now) is not None] == []

    # What becomes of stores

    @rule(which=places, for_good=st.booleans())
    def stop(self, which: int, for_good: bool) -> None:
        """A store is paused, or dies, whatever it is at."""
        owner = pick(self.awake(), which)
        owner.is_silent = True
        if for_good:
            self.bury(owner)
        self.settle()

    def bury(self, owner: Owner) -> None:
        """It is dead, and whatever it was at is nobody's any more."""
        if not owner.is_dead:
            owner.kill()
        self.lost += [held for held in self.held if held.owner is owner]
        self.lost += [request for request in self.requests if request.owner is owner]
        self.held = [held for held in self.held if held.owner is not owner]
        self.requests = [request for request in self.requests if request.owner is not owner]

    @rule(which=places)
    def resume(self, which: int) -> None:
        """A paused one goes on where it was, however late it is."""
        if paused := [o for o in self.owners if o.is_silent and not o.is_dead]:
            self.wake(pick(paused, which))

    def wake(self, owner: Owner) -> None:
        """It goes on."""
        for key, it in self.known.items():
            for held in [held for held in it.sealed if held.owner is owner]:
                it.sealed.remove(held)
                if it.is_current(held):
                    self.stored(key, held.content)
        owner.is_silent = False
        self.settle(owner)

    @rule(place=st.integers(0, STORES - 1))
    def open_another(self, place: int) -> None:
        """It recovers what was left."""
        if len(self.awake()) < STORES:
            self.open_one(place)
            self.observe()
            self.check_nothing_is_left()
            self.settle()

    @rule(steps=st.sampled_from([1, 3]), beats=st.booleans())
    def wait(self, steps: int, beats: bool) -> None:
        """Time passes; who is awake renews its claims, except where it cannot."""
        for _ in range(steps):
            for owner in [owner for owner in self.owners if owner.is_awake and beats]:
                for it in self.known.values():
                    if it.holder is not None and it.holder.owner is owner:
                        it.holder.expires = self.now + LEASE
                self.asked(owner, owner.beat())
            self.pass_time(STEP)
            self.settle()

    def pass_time(self, hours: float) -> None:
        """Everything is that much older."""
        self.now += hours
        for path in self.staging.rglob("*"):
            about = path.stat()
            os.utime(path, (about.st_atime - hours * HOUR, about.st_mtime - hours * HOUR))
        advance(hours * HOUR)

    # What always is so

    @invariant()
    def the_rows_are_the_models(self) -> None:
        """Each with its result: what was stored stays, and is what it was."""
        rows = databases.ask(
            "SELECT id, digest, result_file FROM points JOIN entropic_runs USING (id)"
        )
        expected = {self.ids[key]: it.content for key, it in self.known.items() if it.content}
        assert {id: found for id, found, _ in rows} == {
            id: digest(content) for id, content in expected.items()
        }
        being_replaced = {
            self.ids[key]: {held.content for held in it.sealed} for key, it in self.known.items()
        }
        for id, _, path in rows:
            assert Path(path).read_text() in {expected[id], *being_replaced[id]}

    @invariant()
    def nothing_half_written_is_seen(self) -> None:
        """Whatever has a result's name is whole."""
        for path in (self.folder / "results").glob("*.txt"):
            assert path.read_text() in self.finished

    @invariant()
    def a_live_owners_stage_is_left_alone(self) -> None:
        """By all others; also that of an owner that is paused, as long as nobody wants its run."""
        for it in self.known.values():
            held = it.holder
            if held is not None and (it.is_taken(self.now) or held.may_go_on):
                assert held.stage.exists()

    # The end

    def teardown(self) -> None:
        """All die, one recovers; then the dead come back, and change nothing any more."""
        if not hasattr(self, "owners"):
            return
        try:
            if self.faults == []:
                self.end()
        finally:
            self.is_over = True
            for owner in self.owners:
                owner.kill()
                owner.is_dead = owner.is_silent = owner.dies_publishing = False
                self.asked(owner, owner.store.aclose())
            self.runner.close()
            self.patched.undo()
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """The last pages of the story."""
        for owner in self.owners:
            self.bury(owner)
        self.pass_time(10 * LEASE)
        left = {key: it.left(self.now) for key, it in self.known.items()}
        last = self.open_one(0)
        self.asked(last, last.store.recover())
        self.observe()
        for key, content in left.items():
            assert content in (None, self.known[key].content)
        self.check_end()
        self.is_over = True
        for held in [held for held in self.lost if isinstance(held, Held)]:
            held.ending.set_result(True)
        calls = [call for call in self.lost if isinstance(call, Request)]
        for owner in self.owners:
            owner.is_dead = owner.is_silent = owner.dies_publishing = False
            tasks = [call.task for call in calls if call.owner is owner]
            self.asked(owner, all_ended(tasks))
        self.check_end()

    def check_end(self) -> None:
        """What is stored is the model's; nothing is staged, and nobody has a claim."""
        self.the_rows_are_the_models()
        assert [path for path in self.staging.iterdir() if path.name not in self.hollow] == []
        assert databases.ask("SELECT id FROM entropic_runs WHERE owner IS NOT NULL") == []


def pick(options: Sequence[T], which: int) -> T:
    """One of them."""
    return options[which % len(options)]


def digest(content: str) -> str:
    """What the bookkeeping knows a result by."""
    return hashlib.sha256(content.encode()).hexdigest()


async def all_ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait until all have ended, whichever way."""
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.timeout(600)  # a failure is made small before it is shown
def test_stores_do_what_a_model_does() -> None:
    """The normal run: some dozens of stories."""
    tell(StoresAgainstAModel, 12, 30)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_stores_do_what_a_model_does_at_length() -> None:
    """The nightly run: many, and longer."""
    tell(StoresAgainstAModel, 700, 40)
