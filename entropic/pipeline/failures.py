"""What is put on record of a run that failed, and what its error is told about it."""

import contextlib
import json
import logging
import time
from typing import Any, Final

from entropic.errors import RowRefusedError, RunCycleError, RunError
from entropic.identity import Identity, ParameterSet, is_heavy, shortened

_logger = logging.getLogger("entropic")

_LONGEST_TRACEBACK: Final = 20_000


def describe(
    identity: Identity, parameters: ParameterSet, error: Exception, traceback: str | None = None
) -> dict[str, Any]:
    """What goes on record of a failure; the error is told which run it is about."""
    id, values = parameters.id, parameters.values
    _add_note(error, f"while running {id} with {shortened(values, most=500)}")
    if isinstance(error, RunError) and error.id is None:  # not one of a run that this one needs
        error.id, error.params = id, dict(values)
    about = {
        # Large ones are not worth the time that writing them would take the loop.
        "params": None if is_heavy(values) else json.dumps(identity.portable(values)),
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": _message(error),
        "traceback": (traceback or "")[-_LONGEST_TRACEBACK:],
        "at": time.time(),  # seconds since 1970, so that old ones can be told
    }
    _logger.info("run %s failed: %s: %s", id, about["type"], about["message"])
    return about


def may_pass(error: Exception) -> bool:
    """Whether running again may do better.

    A run that needs itself never gets it, and a refused row is no fault of the run's.
    """
    return not isinstance(error, RunCycleError | RowRefusedError)


def _add_note(error: Exception, note: str) -> None:
    # Exceptions may be frozen, or shared by several runs.
    with contextlib.suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _message(error: Exception) -> str:
    """What an exception says; some of the users' own fail even at that."""
    try:
        return str(error)
    except Exception:
        return f"({type(error).__name__}, which cannot be printed)"
