"""Results on their way out: taken aside in one step each, and removed when nobody wants them back.

To remove a folder of many files takes long, and a transaction must not.

<results_dir>/.entropic/staging/<id>.<published>.<nonce>.deleted         a result
<results_dir>/.entropic/staging/<id>.<published>.<nonce>.deleted.files   its companions
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from entropic.artifacts.moves import move_to_free_name, remove
from entropic.artifacts.stage import COMPANIONS

_DELETED: Final = ".deleted"


class Removal:
    """What goes with one row.

    Args:
        staging: Where it is taken to. What lies on another file system is renamed where it is.
        id: The run id.
        published: The token of the result.
        nonce: Of the cache.

    Attributes:
        id: The run id.
        result: The path of the result, as its row gives it; ``None`` where there was none.
    """

    def __init__(self, staging: str, id: str, published: int, nonce: str) -> None:
        self.id = id
        self.result: str | None = None
        self._aside = os.path.join(staging, f"{id}.{published}.{nonce}{_DELETED}")
        self._taken: list[tuple[str, str]] = []

    def take(self, path: str, companions: str | None = None) -> None:
        """Take a result, and its companions, aside; what is gone already is no error.

        Raises:
            OSError: The file system refused; what was taken is to be put back.
        """
        self._take(path, self._aside)
        if companions is not None:
            self._take(companions, self._aside + COMPANIONS)

    def put_back(self) -> None:
        """Give everything its name again.

        Raises:
            OSError: The file system refused.
        """
        while self._taken:
            path, aside = self._taken[-1]
            move_to_free_name(aside, path)
            self._taken.pop()

    def finish(self) -> None:
        """Remove it, following no link.

        Raises:
            OSError: The file system refused.
        """
        for _, aside in self._taken:
            remove(aside)

    def _take(self, path: str, aside: str) -> None:
        if not os.path.lexists(path):
            return
        try:
            os.rename(path, aside)
        except OSError:  # another file system, or a folder of its user's that may not be moved
            folder, name = os.path.split(path)
            aside = os.path.join(folder, f".{name}{_DELETED}")
            os.rename(path, aside)
        self._taken.append((path, aside))


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that was taken aside by a deletion that was not brought to its end.

    Attributes:
        path: Where it is.
        id: The run id.
        published: The token of the result.
        are_companions: Whether it is the companions, and not the result.
    """

    path: str
    id: str
    published: int
    are_companions: bool


def removed(staging: str, nonce: str) -> Iterator[Removed]:
    """All that was taken aside in one cache.

    Raises:
        OSError: The file system refused.
    """
    for name in sorted(os.listdir(staging)):
        stem = name.removesuffix(COMPANIONS)
        id, _, published = stem.removesuffix(f".{nonce}{_DELETED}").rpartition(".")
        is_named = stem.endswith(f".{nonce}{_DELETED}") and published.isascii()
        if is_named and published.isdigit() and id:
            path = os.path.join(staging, name)
            yield Removed(path, id, int(published), are_companions=stem != name)
