"""The pipeline's decisions, as a pure machine: no I/O, no clock, every order of events."""

import random
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from entropic.schedule import (
    BATCH,
    Leave,
    LookAgain,
    OnError,
    Pull,
    Schedule,
    Start,
    retry_delay,
)


class World:
    """Carries out what a schedule says, with events in any order.

    Other stores run ``others`` meanwhile.
    """

    def __init__(
        self,
        inputs: list[str],
        hits: set[str],
        failing: set[str],
        schedule: Schedule,
        others: set[str] | None = None,
    ) -> None:
        self.inputs = deque(inputs)
        self.stored = set(hits)
        self.failing = failing
        self.others = others or set()
        self.schedule = schedule
        self.pull: int | None = None
        self.look: tuple[str, ...] | None = None
        self.running: list[str] = []
        self.elsewhere: set[str] = set()
        self.found: list[str] = []
        self.started: list[str] = []
        self.left: list[str] = []
        self.under_way: set[str] = set()
        self.ready = 0
        self.most_ready = 0
        self.failures = 0
        self.stops = False

    def act(self) -> None:
        """Do all that is to be done now."""
        for action in self.schedule.next(self.ready):
            match action:
                case Pull(most):
                    assert self.pull is None, "two pulls at a time"
                    assert 1 <= most <= BATCH
                    self.pull = most
                case Start(ids):
                    assert not self.stops, "started after a failure"
                    assert not set(ids) & set(self.running), "started twice"
                    assert not set(ids) & set(self.found), "started what is stored"
                    assert self.look is None, "started what may be stored"
                    self.running.extend(ids)
                    self.started.extend(ids)
                    assert len(set(self.running) - self.elsewhere) <= self.schedule.window
                case LookAgain(ids):
                    assert self.look is None, "two looks at a time"
                    assert len(set(ids)) == len(ids)
                    assert not set(ids) & set(self.running), "looks for what is under way"
                    self.look = ids
                case Leave(ids):
                    assert set(ids) <= set(self.running)
                    self.left.extend(ids)

    @property
    def can_happen(self) -> bool:
        """Whether anything is under way, or waits to be taken."""
        is_reading = self.pull is not None or self.look is not None
        return bool(self.running or self.ready or is_reading)

    def happen(self, choice: random.Random, seconds: float) -> None:
        """One of the things under way ends, or a record is taken."""
        ends: list[str] = [*self.running]
        ends += ["pull"] * (self.pull is not None) + ["take"] * (self.ready > 0)
        ends += ["look"] * (self.look is not None)
        ended = choice.choice(ends)
        if ended == "pull":
            self._read(choice)
        elif ended == "take":
            self.ready -= 1
        elif ended == "look":
            self._look(choice)
        elif ended in self.others - self.stored - self.elsewhere:
            self.elsewhere.add(ended)
            self.schedule.moved(ended, is_elsewhere=True)
        else:
            self._end(ended, seconds)
        self.most_ready = max(self.most_ready, self.ready)

    def _read(self, choice: random.Random) -> None:
        assert self.pull is not None
        count = min(len(self.inputs), choice.randint(1, self.pull))
        taken = [self.inputs.popleft() for _ in range(count)]
        new = self.schedule.offered(taken)
        self.pull = None
        hits = [id for id in new if id in self.stored]
        misses = [id for id in new if id not in self.stored]
        self.ready += len(hits)
        self.schedule.looked_up(hits, misses, is_last=not taken)

    def _look(self, choice: random.Random) -> None:
        assert self.look is not None
        looked, self.look = self.look, None
        stored = [id for id in looked if id in self.others and choice.random() < 0.5]
        if not self.stops:  # or they have been dropped by now
            self.found += stored
            self.stored.update(stored)
            self.ready += len(stored)
        claimed = {id for id in looked if id in self.others} - set(stored)
        self.schedule.looked_again(stored, claimed)

    def _end(self, id: str, seconds: float) -> None:
        self.running.remove(id)
        if id in self.others:
            self.elsewhere.discard(id)
            self.stored.add(id)
            self.ready += 1
            self.schedule.finished(id, None)
        elif id in self.failing:
            self.failures += 1
            self.stops = self.schedule.on_error == "raise"
            self.schedule.failed(id)
        else:
            self.stored.add(id)
            self.ready += 1
            self.schedule.finished(id, seconds)


ids = st.integers(0, 30).map(str)


@given(
    inputs=st.lists(ids, max_size=60),
    hits=st.sets(ids),
    failing=st.sets(ids, max_size=2),
    others=st.sets(ids),
    workers=st.integers(1, 8),
    seconds=st.floats(0, 100),
    on_error=st.sampled_from(["raise", "finish", "skip"]),
    is_streamed=st.booleans(),
    on_demand=st.booleans(),
    choice=st.randoms(use_true_random=False),
)
def test_whatever_the_order_each_distinct_miss_runs_once(
    inputs: list[str],
    hits: set[str],
    failing: set[str],
    others: set[str],
    workers: int,
    seconds: float,
    on_error: OnError,
    is_streamed: bool,
    on_demand: bool,
    choice: random.Random,
) -> None:
    """Every distinct miss is started once, unless a failure stops that; and it always ends.

    Or others have run it meanwhile. What has failed is tried again only by a stream, which does
    not remember it.
    """
    schedule = Schedule(
        workers, on_error=on_error, is_streamed=is_streamed, on_demand=is_streamed and on_demand
    )
    world = World(inputs, hits, failing, schedule, others)
    world.act()
    while not schedule.is_over:
        assert world.can_happen, "nothing is under way, and it is not over"
        world.happen(choice, seconds)
        world.act()
    misses = [id for id in dict.fromkeys(inputs) if id not in hits]
    assert not world.running
    assert world.pull is None
    started = world.started
    if not is_streamed:
        assert len(set(started)) == len(started)
    fail = failing - others
    assert len([id for id in started if id not in fail]) == len(set(started) - fail)
    if world.stops:
        assert set(started) <= set(misses)
        return
    assert {*started, *world.found} == set(misses)
    if not others:
        assert list(dict.fromkeys(started)) == misses
    assert schedule.is_complete
    assert not world.left


@given(
    hits=st.sets(st.integers(0, 5000), max_size=50),
    workers=st.integers(1, 8),
    seconds=st.floats(0, 100),
    choice=st.randoms(use_true_random=False),
)
def test_a_stream_reads_no_further_than_its_records_are_taken(
    hits: set[int], workers: int, seconds: float, choice: random.Random
) -> None:
    """What was read and has not been taken is bounded, however long the input is."""
    schedule = Schedule(workers, is_streamed=True)
    world = World([str(n) for n in range(5000)], {str(n) for n in hits}, set(), schedule)
    world.act()
    for _ in range(200):
        world.happen(choice, seconds)
        world.act()
        read = 5000 - len(world.inputs)
        taken_or_there = world.ready + len(world.running)
        assert taken_or_there <= BATCH + schedule.window
        assert read <= 200 + BATCH + schedule.window


def test_a_stream_of_hits_is_read_in_larger_and_larger_parts() -> None:
    """The first record comes at once, and a million of them cost few look-ups."""
    schedule = Schedule(2, is_streamed=True)
    sizes = []
    for start in range(0, 20_000, 1000):
        (pull,) = schedule.next()
        assert isinstance(pull, Pull)
        sizes.append(pull.most)
        hits = schedule.offered([str(start + n) for n in range(pull.most)])
        schedule.looked_up(hits, [], is_last=False)
    assert sizes[0] <= 8
    assert sizes == sorted(sizes)
    assert sizes[-1] == BATCH


def test_what_runs_on_demand_rests_while_nobody_waits() -> None:
    """Nothing is read or started while the thread that would do it is elsewhere."""
    schedule = Schedule(1, is_streamed=True, on_demand=True)
    assert schedule.next(is_wanted=False) == []
    assert schedule.next() == [Pull(2)]
    schedule.looked_up([], schedule.offered(["a", "b"]), is_last=False)
    assert schedule.next(is_wanted=False) == []
    assert schedule.next() == [Start(("a",))]
    schedule.finished("a", 0.001)
    assert schedule.next(ready=1) == []
    assert schedule.next(ready=0) == [Start(("b",))]


def shared(count: int) -> Schedule:
    """A schedule that has begun with many sets, and met others at the first two."""
    schedule = Schedule(1, choose=lambda _: 0)
    schedule.next()
    schedule.looked_up([], schedule.offered([str(n) for n in range(count)]), is_last=False)
    assert schedule.next() == [Start(("0", "1"))]
    for id in ("0", "1"):
        schedule.moved(id, is_elsewhere=True)
    return schedule


def test_where_others_are_met_all_that_waits_is_looked_up_again() -> None:
    """Once, and not two at a time; what somebody is running comes last."""
    schedule = shared(BATCH)
    assert schedule.next() == [LookAgain(tuple(str(n) for n in range(2, BATCH)))]
    assert schedule.next() == []
    schedule.looked_again([str(n) for n in range(10, BATCH)], {"2", "4"})
    for ids in (("3", "5"), ("6", "7"), ("8", "9"), ("2", "4")):
        assert schedule.next()[0] == Start(ids)
        for id in ids:
            schedule.finished(id, 1.0)


def test_where_others_are_seldom_met_nothing_is_looked_up_again() -> None:
    """A look at all that waits has to be worth it."""
    schedule = Schedule(workers=1, choose=lambda _: 0)
    schedule.next()
    schedule.looked_up([], schedule.offered([str(n) for n in range(BATCH)]), is_last=False)
    for _ in range(20):
        (start,) = schedule.next()
        assert isinstance(start, Start)
        for id in start.ids:
            schedule.finished(id, 1.0)
    (start,) = schedule.next()
    assert isinstance(start, Start)
    for id in start.ids:
        schedule.moved(id, is_elsewhere=True)
    assert isinstance(schedule.next()[0], Start)


def test_at_the_end_of_a_shared_sweep_others_are_left_something() -> None:
    """Few are claimed ahead of the one at work, however short runs are."""
    alone, schedule = Schedule(workers=1), shared(60)
    for each in (alone, schedule):
        each.looked_up([], [], is_last=True)
        each.finished("x", 0.001)
    assert isinstance(schedule.next()[0], LookAgain)
    schedule.looked_again([], ())
    assert schedule.window == 1 + 58 // 8
    assert alone.window > 200


@given(attempts=st.integers(1, 10_000), jitter=st.floats(0, 1))
def test_a_retry_waits_longer_each_time_but_not_for_ever(attempts: int, jitter: float) -> None:
    """Between half a delay and a whole one, which doubles up to half a minute."""
    delay = retry_delay(attempts, jitter)
    assert 0.05 <= delay <= 30
    assert retry_delay(attempts + 1, jitter) >= delay
    assert retry_delay(1, 1.0) * 2 == retry_delay(2, 1.0)


def test_long_runs_are_claimed_one_ahead_for_each_worker() -> None:
    """Others that run the same sweep must find something to do."""
    schedule = Schedule(workers=4)
    assert schedule.window == 8
    schedule.finished("a", 60.0)
    assert schedule.window == 8


def test_short_runs_are_claimed_far_ahead_but_not_without_end() -> None:
    """So that they share transactions; and memory stays bounded."""
    schedule = Schedule(workers=4)
    schedule.finished("a", 0.01)
    assert 50 < schedule.window <= 4 + 256
    for _ in range(100):
        schedule.finished("a", 0.0)
    assert schedule.window == 4 + 256


def test_input_is_not_read_while_enough_waits() -> None:
    """A million misses are not read into memory ahead of the runs."""
    schedule = Schedule(workers=1)
    assert schedule.next() == [Pull(BATCH)]
    schedule.looked_up([], schedule.offered([str(n) for n in range(BATCH)]), is_last=False)
    assert schedule.next() == [Start(("0", "1"))]
    schedule.finished("0", 60.0)
    assert schedule.next() == [Start(("2",))]


def test_a_failure_leaves_what_has_not_started() -> None:
    """Once, for all that is in flight; the waiting ones are forgotten."""
    schedule = Schedule(workers=1)
    schedule.next()
    schedule.looked_up([], schedule.offered(["a", "b", "c"]), is_last=True)
    assert schedule.next() == [Start(("a", "b"))]
    schedule.failed("a")
    assert schedule.next() == [Leave(("b",))]
    was_over = schedule.is_over
    schedule.dropped("b")
    assert schedule.next() == []
    assert [was_over, schedule.is_over] == [False, True]
    assert not schedule.is_complete


def test_a_failure_that_is_foreseen_leaves_once() -> None:
    """The runner has failed, and its run is still being put on record: it is waited for."""
    schedule = Schedule(workers=1)
    schedule.next()
    schedule.looked_up([], schedule.offered(["a", "b", "c"]), is_last=True)
    schedule.next()
    schedule.failing()
    schedule.failing()
    assert schedule.next() == [Leave(("a", "b"))]
    schedule.dropped("b")
    was_over = schedule.is_over
    schedule.failed("a")
    assert [was_over, schedule.is_over] == [False, True]


def test_an_input_that_fails_ends_the_request_when_its_runs_have() -> None:
    """What is under way is waited for."""
    schedule = Schedule(workers=1)
    schedule.next()
    schedule.looked_up([], schedule.offered(["a"]), is_last=False)
    actions = schedule.next()
    assert actions == [Start(("a",)), Pull(BATCH)]
    schedule.halt()
    schedule.input_ended()
    assert schedule.next() == [Leave(("a",))]
    schedule.finished("a", 1.0)
    assert schedule.is_over
