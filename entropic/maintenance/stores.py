"""What who keeps house has open: a cache whose model was made of a table, and no runner."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from entropic.artifacts import ResultsFolder
from entropic.models import Base
from entropic.opening import Opening, StoreSettings
from entropic.pipeline import Pipeline
from entropic.settings import RunSettings

R = TypeVar("R", bound=Base)

_LEASE_TTL: Final = 60.0  # seconds, as a store's


@asynccontextmanager
async def keeper(
    model: type[R], folder: ResultsFolder, db_url: sa.URL, *, lock_timeout: float
) -> AsyncIterator[Pipeline[R]]:
    """What a store has open, but that it runs nothing, and does nothing of itself on opening.

    Args:
        model: The model.
        folder: The results.
        db_url: The database.
        lock_timeout: Seconds to keep trying while another program has the database locked.

    Raises:
        EntropicError: It cannot be opened.
    """
    opening = Opening(
        StoreSettings(
            _run_nothing,
            model,
            ResultsFolder(folder.spelled, folder.suffix),  # that one was opened to be read
            db_url,
            RunSettings("thread"),
            checksum=True,
            lock_timeout=lock_timeout,
            lease_ttl=_LEASE_TTL,
            tidies=False,
        )
    )
    try:
        async with opening.using() as opened:
            yield opened.pipeline
    finally:
        await opening.aclose()


def _run_nothing(params: Mapping[str, Any]) -> None:
    raise NotImplementedError("there is no runner")
