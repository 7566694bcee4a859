"""Where parameter sets come from: any iterable, any async iterable, read a slice at a time."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Protocol

from entropic._portal import CallerItems, take_slice
from entropic._shield import to_the_end
from entropic.errors import ParamsError
from entropic.identity import ParameterSet, shortened

Params = Mapping[str, Any]

Wanted = Params | ParameterSet
"""A parameter set as a user gives it, or as it has been looked up already."""


class Source(Protocol):
    """An input, read only as far as it is needed."""

    async def take(self, most: int) -> list[Wanted]:
        """The next parameter sets, at most ``most``; an empty list at the end."""
        ...

    async def aclose(self) -> None:
        """Read no more of it; the input itself is the user's, and stays open."""
        ...


class _Items:
    def __init__(self, items: Iterator[Wanted]) -> None:
        self._items = items

    async def take(self, most: int) -> list[Wanted]:
        taken = take_slice(self._items, most)
        await asyncio.sleep(0)  # the loop's other tasks have their turn between two slices
        return taken

    async def aclose(self) -> None:
        pass


class _AsyncItems:
    """Read by one task from its beginning to its end: some generators must not change theirs."""

    def __init__(self, items: AsyncIterator[Wanted]) -> None:
        self._items = items
        self._taken: list[Wanted] = []
        self._wanted = 0
        self._is_wanted = asyncio.Event()
        self._has_come = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def take(self, most: int) -> list[Wanted]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda _: self._has_come.set())
        self._wanted = most
        self._is_wanted.set()
        await self._has_come.wait()
        # What comes at once shares a look-up; nobody can say whether the next comes in an hour.
        count = 0
        while count < len(self._taken) < most:
            count = len(self._taken)
            await asyncio.sleep(0)
        self._wanted = 0
        taken, self._taken = self._taken[:most], self._taken[most:]
        if self._reading.done():
            if not taken:
                self._reading.result()
        elif not self._taken:
            self._has_come.clear()
        return taken

    async def aclose(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await to_the_end(asyncio.wait({self._reading}))

    async def _read(self) -> None:
        while True:
            while len(self._taken) >= self._wanted:
                self._is_wanted.clear()
                await self._is_wanted.wait()
            try:
                item = await anext(self._items)
            except StopAsyncIteration:
                return
            self._taken.append(item)
            self._has_come.set()


def as_source(params: Iterable[Wanted] | AsyncIterable[Wanted] | Source) -> Source:
    """An input as a source.

    Raises:
        ParamsError: It is no iterable of dicts but, most likely, a single one.
    """
    if isinstance(params, CallerItems):
        return params
    _check_iterable(params)
    if isinstance(params, AsyncIterable):
        return _AsyncItems(aiter(params))
    assert isinstance(params, Iterable)
    return _Items(iter(params))


def _check_iterable(params: object) -> None:
    """Raise ``ParamsError`` unless it can be an iterable of parameter sets."""
    if isinstance(params, Mapping):
        raise ParamsError(
            "sweep takes an iterable of dicts, and this is one dict: write [params] for a single"
            f" set, or expand_grid(params) for a grid; got {shortened(params)}"
        )
    if isinstance(params, str | bytes) or not isinstance(params, Iterable | AsyncIterable):
        raise ParamsError(f"sweep takes an iterable of dicts, not {shortened(params)}")
