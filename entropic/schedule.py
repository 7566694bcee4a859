"""The pipeline's decisions, as a pure machine: events go in, actions come out.

It decides when to read more input, what to start and how far ahead of the workers, and what a
failure stops. It does no I/O, awaits nothing and knows no clock; ``pipeline`` carries out what it
says and tells it what became of it.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

BATCH: Final = 500
"""The most parameter sets that are read, looked up and checked at once."""

_AHEAD_SECONDS: Final = 0.25
_MOST_AHEAD: Final = 256


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


Action = Pull | Start | Leave


class Schedule:
    """The decisions of one request.

    Args:
        workers: How many runners can be at work at once.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._order: dict[str, None] = {}
        self._waiting: deque[str] = deque()
        self._in_flight: set[str] = set()
        self._is_pulling = False
        self._has_input = True
        self._has_failed = False
        self._must_leave = False
        self._mean_seconds: float | None = None

    @property
    def order(self) -> Collection[str]:
        """The distinct ids, in first-seen order."""
        return self._order.keys()

    @property
    def has_input(self) -> bool:
        """Whether the input may have more than was read of it."""
        return self._has_input

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do or to wait for."""
        return not (self._in_flight or self._is_pulling or self._wants_input or self._waiting)

    @property
    def window(self) -> int:
        """How many runs may be under way: those at work, and those claimed ahead of them.

        One ahead for each worker while runs are long, or not known yet; for short runs as many
        as keep the workers busy for a while, so that they share transactions.
        """
        ahead = 1.0
        if self._mean_seconds is not None:
            ahead = max(1.0, _AHEAD_SECONDS / max(self._mean_seconds, 1e-6))
        return self._workers + int(min(self._workers * ahead, _MOST_AHEAD))

    def offered(self, ids: Sequence[str]) -> list[str]:
        """Parameter sets were read; returns those ids that are new, in order."""
        new = [id for id in dict.fromkeys(ids) if id not in self._order]
        self._order.update(dict.fromkeys(new))
        return new

    def looked_up(self, misses: Sequence[str], *, is_last: bool) -> None:
        """What was read has been looked up: these must run; ``is_last`` ends the input."""
        self._is_pulling = False
        self._has_input = not is_last
        if not self._has_failed:
            self._waiting.extend(misses)

    def finished(self, id: str, seconds: float | None) -> None:
        """A run is stored; ``seconds`` that its runner took, where that is known."""
        self._in_flight.discard(id)
        if seconds is not None:
            mean = self._mean_seconds
            self._mean_seconds = seconds if mean is None else 0.8 * mean + 0.2 * seconds

    def failing(self) -> None:
        """A runner has failed, and its run is about to end: nothing more is started."""
        self._must_leave = self._must_leave or not self._has_failed
        self._has_failed = True
        self._waiting.clear()

    def failed(self, id: str | None) -> None:
        """A run has ended in failure, or (``None``) the input has: nothing more is started."""
        if id is None:
            self._is_pulling = False
            self._has_input = False
        else:
            self._in_flight.discard(id)
        self.failing()

    def next(self) -> list[Action]:
        """What to do now; empty while there is nothing but to wait for events."""
        actions: list[Action] = []
        if self._must_leave:
            self._must_leave = False
            actions.append(Leave(tuple(sorted(self._in_flight))))
        starting: list[str] = []
        while self._waiting and len(self._in_flight) < self.window:
            starting.append(self._waiting.popleft())
            self._in_flight.add(starting[-1])
        if starting:
            actions.append(Start(tuple(starting)))
        if self._wants_input and not self._is_pulling and len(self._waiting) < self.window:
            self._is_pulling = True
            actions.append(Pull(BATCH))
        return actions

    @property
    def _wants_input(self) -> bool:
        return self._has_input and not self._has_failed
