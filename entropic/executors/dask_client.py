"""A Dask client: whether it can be used, its loop, the size of its cluster.

What runs there is left to ``dask``.
"""

import asyncio
import inspect
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

from entropic.errors import SettingsError

T = TypeVar("T")

OPEN: Final = ("running", "connecting")
"""What the status of a client is that can be used."""

_OUR_OWN_OPTIONS: Final = ("key", "pure", "actor", "actors", "retries")


def check_client(client: Any) -> None:
    """Raise ``SettingsError`` where it is closed, or is not to be used from this loop."""
    if client.status not in OPEN:
        raise SettingsError(f"the Dask client is {client.status}; make a new one")
    # Its public attribute says whether this is its own loop; on another one it would block
    # this thread until that loop answers, which may be waiting for this call.
    if getattr(client, "_asynchronous", False) and not client.asynchronous:
        raise SettingsError(
            "the Dask client is asynchronous and belongs to another event loop; use it with an"
            " AsyncStore on its own loop, or make a synchronous client"
        )


def check_options(client: Any, options: Mapping[str, Any]) -> None:
    """Raise ``SettingsError`` unless these can be options of ``submit`` for every run."""
    known = inspect.signature(client.submit).parameters
    for name in options:
        if name in _OUR_OWN_OPTIONS:
            raise SettingsError(
                f"{name}={options[name]!r:.120} cannot be given to Dask: each run is a task of its"
                " own, which entropic names, and tries again where the store or the sweep says so"
                " (retries=); leave it out"
            )
        if name not in known or name in ("func", "args", "kwargs"):
            raise SettingsError(
                f"{name!r} is no option of client.submit; there are resources, priority, workers,"
                " allow_other_workers and fifo_timeout"
            )


async def threads_of(client: Any, submit_options: Mapping[str, Any]) -> int:
    """How many threads the workers have that runs with these options may go to."""
    workers = submit_options.get("workers")
    if submit_options.get("allow_other_workers"):
        workers = None

    async def ask() -> Any:
        return await client.scheduler.ncores(workers=_listed(workers))

    return sum((await on_loop_of(client, ask())).values())


async def on_loop_of(client: Any, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """Await something on a client's loop: this one, or that of a synchronous client's thread.

    That one stops when the client is closed, and then never answers.
    """
    loop = client.loop.asyncio_loop
    async with asyncio.timeout(seconds):
        if loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _listed(workers: Any) -> list[Any] | None:
    if workers is None:
        return None
    return list(workers) if isinstance(workers, list | tuple | set | frozenset) else [workers]
