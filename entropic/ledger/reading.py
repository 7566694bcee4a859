"""From a row, as the statements return it, to what it says of a run."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from entropic.identity import Identity
from entropic.ledger.entries import Entry, Result
from entropic.models import RESERVED, Base, detached

R = TypeVar("R", bound=Base)


class RowReader(Generic[R]):
    """Reads rows of: the id asked for, the model's columns, the bookkeeping.

    Args:
        identity: The model's rules.
        record_class: What records are made of.
    """

    def __init__(self, identity: Identity, record_class: type[R]) -> None:
        self._class = record_class
        self._names = (*RESERVED, *identity.parameters)

    def entries(self, rows: Sequence[Sequence[Any]]) -> dict[str, Entry[R]]:
        """What they say, by the ids that were asked for, in the order of the rows."""
        first, last = 1 + len(RESERVED), 1 + len(self._names)
        entries = {}
        for row in rows:
            key, id = row[:2]
            record = None
            values: dict[str, Any] = {}
            if id is not None:
                record = detached(self._class, zip(self._names, row[1:last], strict=True))
                values = dict(zip(self._names[len(RESERVED) :], row[first:last], strict=True))
            token, published, is_claimed, *about = row[last:]
            result = Result(*about)
            if not is_name(result.name, key):
                result.name = None
            entries[key] = Entry(
                record, values, result, token or 0, published or 0, bool(is_claimed)
            )
        return entries


def is_name(name: object, id: str) -> bool:
    """Whether it can be the name of this run's result in its folder.

    What has this name is replaced and removed, so none is believed that leads elsewhere.
    """
    if name is None:
        return True
    return isinstance(name, str) and name.startswith(id) and "/" not in name and "\0" not in name
