"""What is in a results folder that no row knows."""

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from entropic.artifacts import ResultsFolder
from entropic.errors import ResultsDirError
from entropic.ledger import Entry, Ledger
from entropic.pipeline.lookup import locate
from entropic.pipeline.publishing import own_name
from entropic.schedule import BATCH


async def strays(
    ledger: Ledger[Any],
    folder: ResultsFolder,
    names: Sequence[str],
    in_thread: Callable[..., Awaitable[Any]],
) -> list[str]:
    """Those of some names in a results folder that no row of a model knows.

    Args:
        ledger: The rows.
        folder: Where the names are.
        names: As ``folder.names`` gives them.
        in_thread: Calls a function with its arguments in a thread.

    Raises:
        DatabaseError: The database failed.
    """
    registered = await ledger.registered()
    found: list[str] = []
    for start in range(0, len(names), BATCH):
        part = names[start : start + BATCH]
        ids = [id for name in part for id in folder.ids(name)]
        entries = await ledger.look_up(ids)
        unknown = [n for n in part if os.path.join(folder.path, n) not in registered]
        found += await in_thread(_unknown, folder, unknown, entries)
    return found


def _unknown(
    folder: ResultsFolder, names: Sequence[str], entries: Mapping[str, Entry[Any]]
) -> list[str]:
    return [name for name in names if not _is_known(folder, name, entries)]


def _is_known(folder: ResultsFolder, name: str, entries: Mapping[str, Entry[Any]]) -> bool:
    """Whether a name is that of a stored run's result, which may come of another folder."""
    for id in folder.ids(name):
        if entries[id].record is None:
            continue
        if own_name(folder, id, entries[id]) == name:
            return True
        with contextlib.suppress(ResultsDirError):
            path = locate(folder, id, entries[id], of_any_size=True)
            if path is not None and os.path.abspath(path) == os.path.join(folder.path, name):
                return True
    return False
