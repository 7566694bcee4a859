"""Rows that a user registers: results that were made elsewhere."""

import errno
import logging
import os
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from entropic.artifacts import find
from entropic.errors import ResultMissingError
from entropic.ledger import Finished, Published, Result
from entropic.models import Base
from entropic.pipeline.cache import Cache
from entropic.pipeline.lookup import Lookup
from entropic.pipeline.sources import Params

R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")


class Registrar(Generic[R]):
    """Registers.

    Args:
        cache: Where.
        lookup: Finds what is stored.
    """

    def __init__(self, cache: Cache[R], lookup: Lookup[R]) -> None:
        self._cache = cache
        self._lookup = lookup

    async def register(
        self, params: Params, result_file: str | os.PathLike[str], custom_data: Mapping[str, Any]
    ) -> R:
        """Store a row for a result that was made elsewhere."""
        (parameters,) = await self._lookup.resolve([params])
        published = await self._cache.threads.run(_registered, os.fspath(result_file))
        (answer,) = await self._lookup.answer([parameters])
        parameters = answer.parameters
        stored = await self._cache.threads.run(self._cache.identity.stored, parameters.values)
        entry = await self._cache.ledger.register(
            Finished(parameters, stored, 0, custom_data), published
        )
        _logger.info("registered %s as %s", published.path, parameters.id)
        assert entry.record is not None
        return entry.record


def _registered(path: str) -> Published:
    """In a thread: the result that a user made, as it is now."""
    if not os.path.lexists(path):
        raise FileNotFoundError(
            errno.ENOENT, "there is no result file to register; write it first", path
        )
    found = find(path)
    if found is None:
        raise ResultMissingError(f"the result to register, {path!r}, is empty or cannot be read")
    return Published(path, Result(registered_path=os.path.abspath(path), size=found.size))
