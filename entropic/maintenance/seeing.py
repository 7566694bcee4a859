"""Whether the folder of a run's result can be seen at all.

Where it cannot (it is not mounted, or a wrong one was named), that the result is not found says
nothing, and the row is all that tells where it is.
"""

import os
from collections.abc import Sequence
from typing import Any, Final

from entropic._shield import in_own_thread
from entropic.artifacts import ResultsFolder
from entropic.artifacts.corner import folder_id
from entropic.artifacts.finding import holds_results
from entropic.errors import ResultsDirError
from entropic.ledger import Entry, Ledger, of_record
from entropic.pipeline.lookup import locate

_AT_ONCE: Final = 500


async def first_lost(
    ledger: Ledger[Any], folder: ResultsFolder, ids: Sequence[str]
) -> tuple[str, str] | None:
    """The first of some runs whose result's folder cannot be seen, and why; ``None`` of none.

    Args:
        ledger: The rows of one model.
        folder: Its results.
        ids: The runs.

    Raises:
        DatabaseError: The database failed.
    """
    for start in range(0, len(ids), _AT_ONCE):
        entries = await ledger.queries.among(ids[start : start + _AT_ONCE])
        if found := await in_own_thread(_first_lost, folder, entries):
            return found
    return None


def lost(folder: ResultsFolder, entry: Entry[Any]) -> str | None:
    """Why the folder of a stored run's result cannot be seen; ``None`` where it can.

    Args:
        folder: The results of its model.
        entry: What is stored.
    """
    record, result = of_record(entry), entry.result
    try:
        path = locate(folder, record.id, entry, of_any_size=True)
    except ResultsDirError as error:
        return str(error)
    if result.registered_path is not None:
        return None
    home = os.path.dirname(record.result_file) or "."
    if path is not None:
        is_known = result.name is not None or os.path.isabs(home)
        is_here = os.path.dirname(os.path.abspath(path)) == folder.path
        if is_known or is_here or not _ends_with(folder.path, home):
            return None
        return f"it is not in {folder.spelled!r}, and what is in {home!r} may be another's"
    if result.name is not None:
        is_seen = result.folder in (folder.id, folder_id(home))
    else:  # entropic 2 gave folders no ids
        is_seen = holds_results(home) or _ends_with(folder.path, home)
    return None if is_seen else f"its folder, {home!r}, cannot be seen"


def is_foreign(entry: Entry[Any]) -> bool:
    """Whether entropic 2 has registered a stored run's result: its name is its user's.

    Since entropic 3, that is on record.
    """
    record, result = of_record(entry), entry.result
    is_on_record = result.name is not None or result.registered_path is not None
    return not is_on_record and not os.path.basename(record.result_file).startswith(record.id)


def _first_lost(folder: ResultsFolder, entries: Sequence[Entry[Any]]) -> tuple[str, str] | None:
    """In a thread: it looks at files."""
    for entry in entries:
        if (why := lost(folder, entry)) is not None:
            return of_record(entry).id, why
    return None


def _ends_with(path: str, home: str) -> bool:
    """Whether a relative path can lead to a folder, from somewhere."""
    return f"{path}/".endswith(f"/{os.path.normpath(home)}/")
