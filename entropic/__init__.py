"""entropic: an async-first run cache for simulations.

A model says what the parameters are, a runner makes one result file of them, and a store runs
each distinct parameter set once, ever.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from entropic._collector import uncollected

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped as Mapped
    from sqlalchemy.orm import mapped_column as mapped_column

    from entropic.async_store import AsyncStore as AsyncStore
    from entropic.errors import DatabaseBusyError as DatabaseBusyError
    from entropic.errors import DatabaseError as DatabaseError
    from entropic.errors import EntropicError as EntropicError
    from entropic.errors import ExportError as ExportError
    from entropic.errors import Failure as Failure
    from entropic.errors import IdConflictError as IdConflictError
    from entropic.errors import ModelError as ModelError
    from entropic.errors import ParamsError as ParamsError
    from entropic.errors import RemoteRunError as RemoteRunError
    from entropic.errors import ResultMissingError as ResultMissingError
    from entropic.errors import ResultsDirError as ResultsDirError
    from entropic.errors import RowRefusedError as RowRefusedError
    from entropic.errors import RunCycleError as RunCycleError
    from entropic.errors import RunError as RunError
    from entropic.errors import RunInterruptedError as RunInterruptedError
    from entropic.errors import RunTimeoutError as RunTimeoutError
    from entropic.errors import SchemaError as SchemaError
    from entropic.errors import SettingsError as SettingsError
    from entropic.errors import StoreClosedError as StoreClosedError
    from entropic.errors import SweepError as SweepError
    from entropic.errors import WorkerDiedError as WorkerDiedError
    from entropic.errors import WrongLoopError as WrongLoopError
    from entropic.executors.dask import Dask as Dask
    from entropic.grid import expand_grid as expand_grid
    from entropic.models import Base as Base
    from entropic.models import Records as Records
    from entropic.outlook import Explanation as Explanation
    from entropic.outlook import Nearest as Nearest
    from entropic.outlook import Plan as Plan
    from entropic.progress import Progress as Progress
    from entropic.recovery import Recovered as Recovered
    from entropic.store import Store as Store

__version__ = "3.0.0.dev0"

# Where each public name lives. They are imported when they are asked for, so that a worker that
# needs one module does not load SQLAlchemy.
_HOMES = {
    "AsyncStore": "entropic.async_store",
    "Base": "entropic.models",
    "Dask": "entropic.executors.dask",
    "Explanation": "entropic.outlook",
    "Mapped": "sqlalchemy.orm",
    "Nearest": "entropic.outlook",
    "Plan": "entropic.outlook",
    "Progress": "entropic.progress",
    "Records": "entropic.models",
    "Recovered": "entropic.recovery",
    "Store": "entropic.store",
    "expand_grid": "entropic.grid",
    "mapped_column": "sqlalchemy.orm",
    **dict.fromkeys(
        (
            "DatabaseBusyError",
            "DatabaseError",
            "EntropicError",
            "ExportError",
            "Failure",
            "IdConflictError",
            "ModelError",
            "ParamsError",
            "RemoteRunError",
            "ResultMissingError",
            "ResultsDirError",
            "RowRefusedError",
            "RunCycleError",
            "RunError",
            "RunInterruptedError",
            "RunTimeoutError",
            "SchemaError",
            "SettingsError",
            "StoreClosedError",
            "SweepError",
            "WorkerDiedError",
            "WrongLoopError",
        ),
        "entropic.errors",
    ),
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604  names all the same

logging.getLogger("entropic").addHandler(logging.NullHandler())


if not TYPE_CHECKING:  # which would then believe in any name

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with uncollected():  # or looking at what SQLAlchemy makes takes a fifth of the time
            value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
