"""From a row, as the statements return it, to what it says of a run."""

from collections.abc import Sequence
from operator import itemgetter
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
        last = 1 + len(self._names)
        columns, about = slice(1, last), slice(last + 3, None)
        self._parts = itemgetter(0, 1, columns, last, last + 1, last + 2, about)

    def entries(self, rows: Sequence[Sequence[Any]]) -> dict[str, Entry[R]]:
        """What they say, by the ids that were asked for, in the order of the rows."""
        names, parts = self._names, self._parts
        entries = {}
        for row in rows:
            key, id, stored, token, published, is_claimed, about = parts(row)
            record = None
            if id is not None:
                record = detached(self._class, zip(names, stored, strict=True))
            result = Result._make(about)
            if not is_name(result.name, key):
                result = result._replace(name=None)
            entries[key] = Entry(record, result, token or 0, published or 0, bool(is_claimed))
        return entries


def is_name(name: object, id: str) -> bool:
    """Whether it can be the name of this run's result in its folder.

    What has this name is replaced and removed, so none is believed that leads elsewhere.
    """
    if name is None:
        return True
    return isinstance(name, str) and name.startswith(id) and "/" not in name and "\0" not in name
