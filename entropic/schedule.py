"""The pipeline's decisions, as a pure machine: events go in, actions come out.

It decides when to read more input, what to start and how far ahead of the workers and of whoever
takes the records, what a failure stops, and when to try again. It does no I/O, awaits nothing and
knows no clock; ``pipeline`` carries out what it says and tells it what became of it.
"""

import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

BATCH: Final = 500
"""The most parameter sets that are read, looked up and checked at once."""

OnError = Literal["raise", "finish", "skip"]
"""What a run that fails means for the others of its sweep."""

_AHEAD_SECONDS: Final = 0.25
_MOST_AHEAD: Final = 256
_SHARE: Final = 0.125
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 30.0


@dataclass(frozen=True, slots=True)
class Pull:
    """Read at most this many parameter sets of the input, and look them up."""

    most: int


@dataclass(frozen=True, slots=True)
class Start:
    """Start these runs, or join them where they are under way."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave these runs, unless their runner has been called already."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look these up once more: others are at the same sweep, and may have run them meanwhile."""

    ids: tuple[str, ...]


Action = Pull | Start | Leave | LookAgain


class Schedule:
    """The decisions of one request.

    Args:
        workers: How many runners can be at work at once.
        on_error: What a run that fails means for the others: ``"raise"`` starts nothing more;
            ``"finish"`` and ``"skip"`` go on.
        is_streamed: Whether records are taken one by one, so that the input is to be read only as
            fast as they are, and not to be remembered. Otherwise all are wanted, each distinct
            set once.
        on_demand: Whether runs make progress only while somebody waits for a record, so that none
            must be under way in between.
        choose: A random number below the one that it is given. Who meets others at the same sweep
            goes on at another place of it: else all would go for the same sets one after another.

    Attributes:
        on_error: As given.
    """

    def __init__(
        self,
        workers: int,
        *,
        on_error: OnError = "raise",
        is_streamed: bool = False,
        on_demand: bool = False,
        choose: Callable[[int], int] = random.randrange,
    ) -> None:
        self._workers = workers
        self.on_error = on_error
        self._is_streamed = is_streamed
        self._on_demand = on_demand
        self._choose = choose
        self._is_shared = False
        self._is_looking_again = False
        # Since that was last done: what was started, and turned out to be in others' hands.
        self._started = 0
        self._met = 0
        self._seen: set[str] = set()
        self._waiting: deque[str] = deque()
        self._claimed: deque[str] = deque()
        self._in_flight: set[str] = set()
        self._elsewhere: set[str] = set()
        self._is_pulling = False
        self._has_input = True
        self._is_halted = False
        self._has_dropped = False
        self._must_leave = False
        self._mean_seconds: float | None = None
        self._all_hits = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing of the input had to be left out."""
        return not self._has_dropped

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        under_way = self._in_flight or self._elsewhere
        is_busy = self._is_pulling or self._is_looking_again
        return not (under_way or is_busy or self._wants_input or self._left)

    @property
    def window(self) -> int:
        """How many runs may be under way: those at work, and those claimed ahead of them.

        One ahead for each worker while runs are long, or not known yet; for short runs as many
        as keep the workers busy for a while, so that they share transactions. When others are at
        the same sweep and it comes to its end, only a part of what is left, or they would stand
        idle before that is done.
        """
        if self._on_demand:
            return 1
        ahead = 1.0
        if self._mean_seconds is not None:
            ahead = max(1.0, _AHEAD_SECONDS / max(self._mean_seconds, 1e-6))
        most = min(self._workers * ahead, _MOST_AHEAD)
        if self._is_shared and not self._has_input:
            most = min(most, max(self._workers, _SHARE * self._left))
        return self._workers + int(most)

    def offered(self, ids: Sequence[str]) -> list[str]:
        """Parameter sets were read.

        Returns:
            Those ids that are to be looked up, in order: not those that are under way already,
            and, where all records are wanted at once, none that was there before.
        """
        new = [id for id in dict.fromkeys(ids) if id not in self._seen]
        self._seen.update(new)
        return new

    def looked_up(self, hits: Sequence[str], misses: Sequence[str], *, is_last: bool) -> None:
        """What was read has been looked up: the misses must run; ``is_last`` ends the input."""
        self._is_pulling = False
        self._has_input = self._has_input and not is_last
        self._forget(hits)
        self._all_hits = 0 if misses else self._all_hits + len(hits)
        if self._is_halted:
            self._has_dropped = self._has_dropped or bool(misses)
        else:
            self._waiting.extend(misses)

    def looked_again(self, hits: Sequence[str], claimed: Collection[str]) -> None:
        """What waits has been looked up once more.

        Args:
            hits: Those that are stored by now.
            claimed: Those that somebody is running: whatever else is left comes first.
        """
        self._is_looking_again = False
        self._started = self._met = 0
        self._forget(hits)
        stored = set(hits)
        left = [id for id in (*self._waiting, *self._claimed) if id not in stored]
        self._waiting = deque(id for id in left if id not in claimed)
        self._claimed = deque(id for id in left if id in claimed)

    def moved(self, id: str, *, is_elsewhere: bool) -> None:
        """A run that was started turns out to be another store's, and takes no place here.

        Or not any more: it is to be run here after all.
        """
        source, target = self._in_flight, self._elsewhere
        if not is_elsewhere:
            source, target = target, source
        if id in source:
            source.remove(id)
            target.add(id)
            self._met += is_elsewhere
        self._is_shared = self._is_shared or is_elsewhere

    def resized(self, workers: int) -> None:
        """So many runners can be at work at once from now on: a cluster grows and shrinks."""
        self._workers = workers

    def finished(self, id: str, seconds: float | None) -> None:
        """A run is stored; ``seconds`` that its runner took, where it was run here."""
        if seconds is None and id in self._in_flight:
            self._met += 1
        self._land(id)
        if seconds is not None:
            mean = self._mean_seconds
            self._mean_seconds = seconds if mean is None else 0.8 * mean + 0.2 * seconds

    def failing(self) -> None:
        """A runner has failed for good, and its run is about to end."""
        if self.on_error == "raise":
            self.halt()

    def failed(self, id: str) -> None:
        """A run has ended in failure."""
        self._land(id)
        self.failing()

    def dropped(self, id: str) -> None:
        """A run has been left before it began, or was interrupted."""
        self._land(id)
        self._has_dropped = True

    def halt(self) -> None:
        """Start nothing more, and leave what has not begun: a failure, or the store is closing."""
        self._must_leave = self._must_leave or not self._is_halted
        self._is_halted = True
        self._has_dropped = self._has_dropped or self._has_input or bool(self._left)
        self._waiting.clear()
        self._claimed.clear()

    def input_ended(self) -> None:
        """The input has failed, or nobody reads it any more."""
        self._is_pulling = False
        self._has_input = False

    def next(self, ready: int = 0, *, is_wanted: bool = True) -> list[Action]:
        """What to do now; empty while there is nothing but to wait for events.

        Args:
            ready: How many records wait to be taken.
            is_wanted: Whether somebody waits for one.
        """
        actions: list[Action] = []
        if self._must_leave:
            self._must_leave = False
            actions.append(Leave(tuple(sorted(self._in_flight | self._elsewhere))))
        if self._on_demand and (ready or not is_wanted):
            return actions
        starting: list[str] = []
        room = self.window - len(self._in_flight)
        # Not one at a time: each start is a claim, and those that start together share it.
        most = self.window if 2 * room >= self.window - self._workers else 0
        if len(self._in_flight) < most and self._is_outdated(most):
            self._is_looking_again = True
            actions.append(LookAgain((*self._waiting, *self._claimed)))
        if self._is_looking_again:
            most = 0
        if self._is_shared and self._waiting and len(self._in_flight) < most:
            self._waiting.rotate(self._choose(len(self._waiting)))
        while self._left and len(self._in_flight) < most:
            starting.append((self._waiting or self._claimed).popleft())
            self._in_flight.add(starting[-1])
        if starting:
            self._started += len(starting)
            actions.append(Start(tuple(starting)))
        reads = self._room(ready)
        if self._wants_input and not self._is_pulling and reads:
            self._is_pulling = True
            actions.append(Pull(reads))
        return actions

    def _is_outdated(self, most: int) -> bool:
        """Whether it pays to look again at what waits: half of what was tried was in vain."""
        has_many = len(self._waiting) > most
        return has_many and not self._is_looking_again and self._met * 2 >= max(self._started, 1)

    @property
    def _left(self) -> int:
        """How much is to be started yet."""
        return len(self._waiting) + len(self._claimed)

    @property
    def _wants_input(self) -> bool:
        return self._has_input and not self._is_halted

    def _room(self, ready: int) -> int:
        """How much input to read at once; 0 while there is enough of it.

        Of a stream, twice what may be under way; more, and more each time, only while all that
        comes is stored already. Not each time that one record is taken: a look-up costs the more
        a set, the fewer sets it is for.
        """
        if self._on_demand and (self._in_flight or self._left):
            return 0
        if not self._is_streamed:
            return BATCH if self._left < self.window else 0
        reach = min(2 * self.window + self._all_hits, BATCH)
        ahead = ready + self._left + len(self._in_flight)
        if len(self._elsewhere) >= BATCH:  # what others run is read past, but remembered
            return 0
        return reach - ahead if 2 * ahead <= reach else 0

    def _land(self, id: str) -> None:
        self._in_flight.discard(id)
        self._elsewhere.discard(id)
        self._forget([id])

    def _forget(self, ids: Sequence[str]) -> None:
        """Of an endless input, only what is under way is remembered."""
        if self._is_streamed:
            self._seen.difference_update(ids)


def retry_delay(attempts: int, jitter: float) -> float:
    """Seconds until a run that has failed so many times is tried again.

    Args:
        attempts: How many times it was run in vain, at least once.
        jitter: A random number between 0 and 1: many that failed together, because of a server
            for instance, should not all come back together.
    """
    longest: float = min(_FIRST_DELAY * 2 ** min(attempts - 1, 30), _LONGEST_DELAY)
    return longest * (0.5 + 0.5 * jitter)
