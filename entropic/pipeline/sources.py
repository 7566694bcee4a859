"""Where parameter sets come from: any iterable, any async iterable, read a slice at a time."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Protocol

from entropic._portal import CallerItems, take_slice
from entropic.errors import ParamsError

Params = Mapping[str, Any]


class Source(Protocol):
    """An input, read only as far as it is needed."""

    async def take(self, most: int) -> list[Params]:
        """The next parameter sets, at most ``most``; an empty list at the end."""
        ...


class _Items:
    def __init__(self, items: Iterator[Params]) -> None:
        self._items = items

    async def take(self, most: int) -> list[Params]:
        taken = take_slice(self._items, most)
        await asyncio.sleep(0)  # the loop's other tasks have their turn between two slices
        return taken


class _AsyncItems:
    def __init__(self, items: AsyncIterator[Params]) -> None:
        self._items = items

    async def take(self, most: int) -> list[Params]:
        # One at a time: nobody can say whether the next one comes at once or in an hour.
        try:
            return [await anext(self._items)]
        except StopAsyncIteration:
            return []


def as_source(params: Iterable[Params] | AsyncIterable[Params] | Source) -> Source:
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
            f" set, or expand_grid(params) for a grid; got {params!r}"
        )
    if isinstance(params, str | bytes) or not isinstance(params, Iterable | AsyncIterable):
        raise ParamsError(f"sweep takes an iterable of dicts, not {params!r}")
