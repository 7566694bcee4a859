"""Stores for who keeps house: over a model that was made of a table, and without a runner."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import sqlalchemy as sa

from entropic.artifacts import ResultsFolder
from entropic.async_store import AsyncStore
from entropic.models import Base
from entropic.opening import Opening

R = TypeVar("R", bound=Base)


def keeper(
    model: type[R], folder: ResultsFolder, db_url: sa.URL, *, lock_timeout: float
) -> AsyncStore[R]:
    """A store that runs nothing, and does nothing of itself when it opens.

    Args:
        model: The model.
        folder: The results.
        db_url: The database.
        lock_timeout: Seconds to keep trying while another program has the database locked.

    Raises:
        SettingsError: An argument cannot work.
    """
    store = AsyncStore(
        _run_nothing,
        model,
        folder.spelled,
        folder.suffix,
        db_url.render_as_string(hide_password=False),
        lock_timeout=lock_timeout,
    )
    store._opening = Opening(replace(store._opening.settings, tidies=False))
    return store


def _run_nothing(params: Mapping[str, Any]) -> None:
    raise NotImplementedError("there is no runner")
