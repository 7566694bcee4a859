"""Iterables of the caller's, read on the caller's own thread."""

import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, Final, Generic, TypeVar

from entropic._portal.callers import Wish
from entropic._portal.errands import Away, Returned
from entropic._portal.turns import current_caller

T = TypeVar("T")

_SLICE_SECONDS: Final = 0.01
_FIRST: Final = -1  # in line


class CallerItems(Generic[T]):
    """An iterable of the caller's, read in slices on the caller's own thread.

    A slice a hop: a hop costs about 0.1 ms, which an item on its own could not afford; and only
    what comes within a short time, so that the first run need not wait for a slow input.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._iterator: Iterator[T] | None = None

    def __length_hint__(self) -> int:
        length = length_hint(self._items, -1)
        return length if length >= 0 else NotImplemented

    @classmethod
    def wrap(cls, items: Any) -> Any:
        """An iterable as one that is read on this thread; an async one, or none, as it is.

        So is a list: to read it runs nobody's code, and needs no hop.
        """
        if type(items) in (list, tuple):
            return items
        is_plain = isinstance(items, Iterable) and not isinstance(items, Mapping | str | bytes)
        return cls(items) if is_plain else items

    async def take(self, most: int) -> list[T]:
        """The next items, at most ``most``; an empty list at the end."""
        while True:
            # It comes before those that are still in line: they would leave others without any.
            # With the thread's turn all the same: a generator may ask for runs that it yielded.
            wish = Wish(_FIRST)
            current_caller().grant(wish)
            turn = await wish.granted()
            try:
                return await turn.run(functools.partial(self._take, most), is_urgent=True)
            except (Away, Returned):
                pass
            finally:
                turn.pass_on()

    async def aclose(self) -> None:
        """Nothing to do: it is read only when the thread is asked to."""

    def _take(self, most: int) -> list[T]:
        if self._iterator is None:
            self._iterator = iter(self._items)
        return take_slice(self._iterator, most)


# What comes of these comes at once.
_AT_HAND: Final[tuple[type, ...]] = (type(iter([])), type(iter(())))


def take_slice(items: Iterator[T], most: int) -> list[T]:
    """The next items that come within some milliseconds, at least one and at most ``most``.

    Returns:
        An empty list at the end.
    """
    if isinstance(items, _AT_HAND):
        return list(itertools.islice(items, most))
    taken: list[T] = []
    deadline = time.monotonic() + _SLICE_SECONDS
    for item in items:
        taken.append(item)
        if len(taken) >= most or time.monotonic() >= deadline:
            break
    return taken
