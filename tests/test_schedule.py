"""The pipeline's decisions, as a pure machine: no I/O, no clock, every order of events."""

import random
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from entropic.schedule import BATCH, Leave, Pull, Schedule, Start


class World:
    """Carries out what a schedule says, with events in any order."""

    def __init__(self, inputs: list[str], hits: set[str], failing: set[str], workers: int) -> None:
        self.inputs = deque(inputs)
        self.hits = hits
        self.failing = failing
        self.schedule = Schedule(workers)
        self.workers = workers
        self.pull: int | None = None
        self.running: list[str] = []
        self.started: list[str] = []
        self.left: list[str] = []
        self.most_running = 0
        self.failures = 0

    def act(self) -> None:
        """Do all that is to be done now."""
        for action in self.schedule.next():
            match action:
                case Pull(most):
                    assert self.pull is None, "two pulls at a time"
                    self.pull = most
                case Start(ids):
                    assert not self.failures, "started after a failure"
                    self.running.extend(ids)
                    self.started.extend(ids)
                    self.most_running = max(self.most_running, len(self.running))
                    assert len(self.running) <= self.schedule.window
                case Leave(ids):
                    assert set(ids) <= set(self.running)
                    self.left.extend(ids)

    def happen(self, choice: random.Random, seconds: float) -> None:
        """One of the things under way ends."""
        ends: list[str | None] = [*self.running]
        if self.pull is not None:
            ends.append(None)
        ended = choice.choice(ends)
        if ended is None:
            assert self.pull is not None
            count = min(len(self.inputs), choice.randint(1, self.pull))
            taken = [self.inputs.popleft() for _ in range(count)]
            new = self.schedule.offered(taken)
            self.pull = None
            self.schedule.looked_up([i for i in new if i not in self.hits], is_last=not taken)
        else:
            self.running.remove(ended)
            if ended in self.failing:
                self.failures += 1
                self.schedule.failed(ended)
            else:
                self.schedule.finished(ended, seconds)


ids = st.integers(0, 30).map(str)


@given(
    inputs=st.lists(ids, max_size=60),
    hits=st.sets(ids),
    failing=st.sets(ids, max_size=2),
    workers=st.integers(1, 8),
    seconds=st.floats(0, 100),
    choice=st.randoms(use_true_random=False),
)
def test_whatever_the_order_each_distinct_miss_runs_once(
    inputs: list[str],
    hits: set[str],
    failing: set[str],
    workers: int,
    seconds: float,
    choice: random.Random,
) -> None:
    """Every distinct miss is started once, unless something failed before; and it always ends."""
    world = World(inputs, hits, failing, workers)
    world.act()
    while not world.schedule.is_over:
        world.happen(choice, seconds)
        world.act()
    distinct = list(dict.fromkeys(inputs))
    misses = [id for id in distinct if id not in hits]
    assert not world.running
    assert world.pull is None
    assert len(set(world.started)) == len(world.started)
    if world.failures:
        assert set(world.started) <= set(misses)
    else:
        assert world.started == misses
        assert list(world.schedule.order) == distinct
        assert not world.left


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
    schedule.looked_up(schedule.offered([str(n) for n in range(BATCH)]), is_last=False)
    assert schedule.next() == [Start(("0", "1"))]
    schedule.finished("0", 60.0)
    assert schedule.next() == [Start(("2",))]


def test_a_failure_leaves_what_has_not_started() -> None:
    """Once, for all that is in flight; the waiting ones are forgotten."""
    schedule = Schedule(workers=1)
    schedule.next()
    schedule.looked_up(schedule.offered(["a", "b", "c"]), is_last=True)
    assert schedule.next() == [Start(("a", "b"))]
    schedule.failed("a")
    assert schedule.next() == [Leave(("b",))]
    assert not schedule.is_over
    schedule.finished("b", None)
    assert schedule.next() == []
    assert schedule.is_over


def test_a_failure_that_is_foreseen_leaves_once() -> None:
    """The runner has failed, and its run is still being put on record: it is waited for."""
    schedule = Schedule(workers=1)
    schedule.next()
    schedule.looked_up(schedule.offered(["a", "b", "c"]), is_last=True)
    schedule.next()
    schedule.failing()
    schedule.failing()
    assert schedule.next() == [Leave(("a", "b"))]
    schedule.finished("b", None)
    assert not schedule.is_over
    schedule.failed("a")
    assert schedule.next() == []
    assert schedule.is_over


def test_an_input_that_fails_ends_the_request_when_its_runs_have() -> None:
    """What is under way is waited for."""
    schedule = Schedule(workers=1)
    schedule.next()
    schedule.looked_up(schedule.offered(["a"]), is_last=False)
    actions = schedule.next()
    assert actions == [Start(("a",)), Pull(BATCH)]
    schedule.failed(None)
    assert schedule.next() == [Leave(("a",))]
    schedule.finished("a", 1.0)
    assert schedule.is_over
