"""Threads that wait, and runs that want one of them, held against what has to be so.

Real threads serve, and each function waits on its thread until the story says how it ends. What
the story does is done on one loop, and it goes on when nothing more happens by itself.
"""

import asyncio
import itertools
import queue
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from entropic._portal import callers, turns
from entropic._portal.callers import Caller, current
from entropic._shield import until_done
from tests.happenings import Happenings
from tests.test_stateful_claims import tell

THREADS = 3

# Which of those that there are, counted round: so no draw depends on what threads have done.
places = st.integers(0, 11)


@dataclass(eq=False)
class Thread:
    """One that waits for its call, and serves meanwhile.

    Attributes:
        at_work: What its function runs for; it waits for the story.
        is_away: Whether it has a record, and goes its own way until it wants the next; it goes as
            soon as it is done with what it is at.
        is_interrupted: Whether somebody has pressed Ctrl-C.
    """

    caller: Caller
    thread: threading.Thread
    at_work: "Run | None" = None
    is_away: bool = False
    is_over: bool = False
    is_interrupted: bool = False
    back: "queue.SimpleQueue[None]" = field(default_factory=queue.SimpleQueue)

    @property
    def serves(self) -> bool:
        """Whether it takes a function."""
        return not (self.is_away or self.is_over)


@dataclass(eq=False)
class Run:
    """A task that wants its function run on a thread of those that wait for it.

    Attributes:
        waiters: The tasks that wait for it, each with its thread.
        starter: The first of them.
        may_begin: How often its function may have begun: once more for each interrupt.
        is_told: Whether the story has said how it ends, and it does not know yet.
        holding_up: The thread that its failure holds up, until it has passed its turn on.
    """

    number: int
    waiters: dict[asyncio.Task[None], Thread] = field(default_factory=dict)
    starter: "asyncio.Task[None] | None" = None
    begun: int = 0
    may_begin: int = 1
    is_told: bool = False
    has_ended: bool = False
    gate: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    holding_up: Thread | None = None
    task: "asyncio.Task[None]" = field(init=False)


class TurnsAgainstWhatHasToBe(RuleBasedStateMachine):
    """No thread is idle while a run waits for it, and none begins what it should not.

    Attributes:
        most_together: How many runs a thread has had in line at most, in any of the stories.
    """

    most_together = 0

    @initialize()
    def start_threads(self) -> None:
        """Several, each in a call of its own."""
        self.patched = pytest.MonkeyPatch()
        # Of what takes no longer than a step of the story, several are handed over at a time.
        self.patched.setattr(callers, "_TOGETHER_SECONDS", 0.05)
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.happenings = self.runner.run(self.made_happenings())
        self.numbers = itertools.count(1)
        self.runs: list[Run] = []
        self.faults: list[str] = []
        self.threads: list[Thread] = []
        self.lock = threading.Lock()
        for _ in range(THREADS):
            self.start_thread()

    async def made_happenings(self) -> Happenings:
        """On the loop."""
        return Happenings()

    def start_thread(self) -> None:
        """One more."""
        thread = Thread(Caller(), threading.Thread())
        thread.thread = threading.Thread(target=self.serve, args=[thread], daemon=True)
        self.threads.append(thread)
        thread.thread.start()

    def serve(self, thread: Thread) -> None:
        """What each does, as the portal has it."""
        try:
            while not thread.is_over:
                thread.caller.serve(lambda: thread.is_over or thread.is_away)
                if thread.is_away:
                    thread.back.get()
        except KeyboardInterrupt:
            self.loop.call_soon_threadsafe(self.left, thread)

    def left(self, thread: Thread) -> None:
        """It was interrupted: its call ends, and leaves what it waits for."""
        thread.is_over, thread.is_away = True, False
        thread.caller.leave(is_interrupted=True)
        self.leave_all(thread)
        self.happenings.tell()

    def leave_all(self, thread: Thread) -> None:
        """All that wait on its behalf."""
        for run in self.runs:
            for task, waiting in run.waiters.items():
                if waiting is thread:
                    task.cancel()

    # What runs do

    def work(self, run: Run) -> str:
        """On a thread: say so, and wait for the story."""
        (thread,) = [t for t in self.threads if t.thread is threading.current_thread()]
        with self.lock:
            run.begun += 1
            thread.at_work = run
            if run.begun > run.may_begin:
                self.faults.append(f"{run.number} began again")
            if any(other.holding_up is thread for other in self.runs):
                self.faults.append(f"{run.number} began before a failure was heard of")
        self.loop.call_soon_threadsafe(self.happenings.tell)
        ending = run.gate.get()
        with self.lock:
            thread.at_work = None
            run.is_told = False
            if ending != "well":
                run.holding_up = thread
            if ending == "interrupted":
                run.may_begin += 1
            else:
                run.has_ended = True
        if ending == "interrupted":
            raise KeyboardInterrupt
        if ending == "raises":
            raise ArithmeticError
        return ending

    async def fly(self, run: Run) -> None:
        """As a flight does: again, where its thread has left it, and its starter has not."""
        while True:
            try:
                async with turns.callers_turn():
                    for _ in range(run.number % 3):  # it has something to prepare, perhaps
                        await asyncio.sleep(0)
                    try:
                        await turns.run_in_turn(
                            lambda: self.work(run), lambda: None, lambda ending: ending != "well"
                        )
                    except ArithmeticError:
                        pass
                    finally:
                        run.holding_up = None
                return
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling() or run.starter not in run.waiters:
                    raise

    async def wait_for(self, run: Run) -> None:
        """As a request does: its thread may be used; the last to leave stops it."""
        try:
            with turns.volunteering(run.task):
                await until_done(run.task)
        finally:
            task = asyncio.current_task()
            assert task is not None
            del run.waiters[task]
            if not run.waiters:
                run.task.cancel()

    def join(self, run: Run, thread: Thread) -> None:
        """One more waits for it, on behalf of a thread."""
        task = asyncio.create_task(self.wait_for(run))
        run.waiters[task] = thread
        run.starter = run.starter or task
        task.add_done_callback(self.happenings.tell)

    # The story

    def do(self, action: Any, *args: Any) -> None:
        """Do something on the loop, and let happen what follows from it."""

        async def done() -> None:
            action(*args)
            await self.happenings.until(self.is_settled, "the end of what follows")

        self.runner.run(done())

    def is_settled(self) -> bool:
        """Whether all that has ended is told, and each thread has what it could do."""
        with self.lock:
            if any(run.is_told or any(t.cancelling() for t in run.waiters) for run in self.runs):
                return False
            ended = [run for run in self.runs if run.has_ended or not run.waiters]
            if not all(run.task.done() or self.is_at_work(run) for run in ended):
                return False
            if any(thread.is_interrupted and not thread.is_over for thread in self.threads):
                return False
            return not any(self.could_begin(thread) for thread in self.threads)

    def could_begin(self, thread: Thread) -> bool:
        """Whether it is idle while somebody wants it: that must come to an end."""
        if not thread.serves or thread.at_work is not None:
            return False
        return any(
            thread in run.waiters.values() and not run.has_ended and not self.is_at_work(run)
            for run in self.runs
        )

    def is_at_work(self, run: Run) -> bool:
        """Whether its function waits for the story."""
        return any(thread.at_work is run for thread in self.threads)

    def tell(self, run: Run, ending: str) -> None:
        """Say how its function ends."""
        run.is_told = True
        run.gate.put(ending)

    def serving(self) -> list[Thread]:
        """Who takes something: somebody always does."""
        if not any(thread.serves for thread in self.threads):
            self.start_thread()
        return [thread for thread in self.threads if thread.serves]

    def calling(self) -> list[Thread]:
        """Whose calls are under way: those of a stream also while it is elsewhere."""
        self.serving()
        return [thread for thread in self.threads if thread.is_away or thread.serves]

    @rule(which=places, count=st.sampled_from([1, 1, 2, 8]))
    def begin(self, which: int, count: int) -> None:
        """Some runs are asked for at once, in the call of one thread."""
        thread = pick(self.calling(), which)

        def start() -> None:
            current.set(thread.caller)
            for _ in range(count):
                run = Run(next(self.numbers))
                run.task = asyncio.create_task(self.fly(run))
                run.task.add_done_callback(self.happenings.tell)
                self.runs.append(run)
                self.join(run, thread)

        self.do(start)

    @rule(which=places, whose=places)
    def ask_too(self, which: int, whose: int) -> None:
        """Another thread asks for what is under way; or the same one once more."""
        runs = [run for run in self.runs if not run.task.done()]
        if not runs:
            return
        run, thread = pick(runs, which), pick(self.calling(), whose)

        def ask() -> None:
            current.set(thread.caller)
            self.join(run, thread)

        self.do(ask)

    @rule(which=places, ending=st.sampled_from(["well", "well", "well", "fails", "raises"]))
    def end(self, which: int, ending: str) -> None:
        """A function ends."""
        if busy := [thread for thread in self.threads if thread.at_work is not None]:
            run = pick(busy, which).at_work
            assert run is not None
            self.do(self.tell, run, ending)

    @rule(which=places)
    def interrupt(self, which: int) -> None:
        """Somebody presses Ctrl-C: the call ends, and another takes over what it has not begun."""
        if busy := [thread for thread in self.threads if thread.at_work is not None]:
            thread = pick(busy, which)
            assert thread.at_work is not None
            thread.is_interrupted = True
            self.do(self.tell, thread.at_work, "interrupted")

    @rule(which=places)
    def leave(self, which: int) -> None:
        """Somebody does not want a run any more."""
        if waiting := [(run, task) for run in self.runs for task in run.waiters]:
            _, task = pick(waiting, which)
            self.do(task.cancel)

    @rule(which=places)
    def go(self, which: int) -> None:
        """A thread has a record; its call goes on without it."""
        thread = pick(self.serving(), which)

        def go() -> None:
            thread.is_away = True
            thread.caller.go()

        self.do(go)

    @rule(which=places)
    def come_back(self, which: int) -> None:
        """It wants the next one."""
        if away := [thread for thread in self.threads if thread.is_away and thread.at_work is None]:
            thread = pick(away, which)

            def come_back() -> None:
                thread.is_away = False
                thread.caller.come_back()
                thread.back.put(None)

            self.do(come_back)

    # What always is so

    @invariant()
    def nothing_began_that_should_not(self) -> None:
        """Twice, or before a failure was heard of."""
        assert self.faults == []

    @invariant()
    def turns_are_counted(self) -> None:
        """One for each run that has one, and no more."""
        for thread in self.threads:
            kind = type(self)
            kind.most_together = max(kind.most_together, thread.caller._turns)
            granted = [
                volunteers
                for volunteers in turns._volunteers.values()
                if volunteers._wish is not None
                and volunteers._wish.turn is not None
                and volunteers._wish.turn._caller is thread.caller
            ]
            assert thread.caller._turns == len(granted)

    def teardown(self) -> None:
        """All leave; nothing is kept of anything."""
        if not hasattr(self, "runner"):
            return
        try:
            self.do(self.leave_everything)
            while busy := [thread for thread in self.threads if thread.at_work is not None]:
                assert busy[0].at_work is not None
                self.do(self.tell, busy[0].at_work, "well")
            assert all(run.task.done() for run in self.runs)
            assert turns._volunteers == {}
            for thread in self.threads:
                caller = thread.caller
                assert (caller._turns, caller._errands, caller._holding_up) == (0, [], None)
                assert [wish for *_, wish in caller._wishes if not wish.is_over] == []
        finally:
            for thread in self.threads:
                thread.is_over = True
                thread.back.put(None)
                thread.caller.leave(is_interrupted=False)
                thread.thread.join(10)
                assert not thread.thread.is_alive()
            self.runner.close()
            self.patched.undo()

    def leave_everything(self) -> None:
        """All that wait."""
        for run in self.runs:
            for task in run.waiters:
                task.cancel()


def pick(options: Any, which: int) -> Any:
    """One of them."""
    return options[which % len(options)]


@pytest.mark.timeout(600)  # a failure is made small before it is shown
def test_threads_and_runs_find_each_other() -> None:
    """The normal run: a hundred stories."""
    tell(TurnsAgainstWhatHasToBe, 100, 40)
    assert TurnsAgainstWhatHasToBe.most_together > 1


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_threads_and_runs_find_each_other_at_length() -> None:
    """The nightly run: many, and longer."""
    tell(TurnsAgainstWhatHasToBe, 2000, 60)
