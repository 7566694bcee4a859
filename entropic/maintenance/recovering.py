"""Whether a model that was made of a table knows the values that its runs were stored with.

Where a column's type is the user's own, the table does not say so: what is staged would be stored
as it is, and not as that type keeps it. Reading, checking and deleting need no such thing.
"""

from collections.abc import Iterable
from typing import Any

from entropic.identity import Identity
from entropic.ledger import Entry, of_record


def is_known_by(identity: Identity, entries: Iterable[Entry[Any]]) -> bool:
    """Whether the ids of stored runs are those of what is stored; of some, at least.

    Args:
        identity: The rules of a model that was made of a table.
        entries: What is stored. Of entropic 2 it says nothing, nor where a run has an id of its
            user's own.
    """
    verdicts = [
        _is_its(identity, entry)
        for entry in entries
        if entry.result.name is not None and _is_computed(of_record(entry).id)
    ]
    return bool(verdicts) and all(verdicts)


def _is_its(identity: Identity, entry: Entry[Any]) -> bool:
    try:
        return bool(identity.digest(entry.values)[:16] == of_record(entry).id)
    except Exception:  # whatever a rule meets where it does not expect it
        return False


def _is_computed(id: str) -> bool:
    return len(id) == 16 and set(id) <= set("0123456789abcdef")
