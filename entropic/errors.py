"""The errors entropic raises; this module imports nothing, so every other one may use it.

    EntropicError
    ├── SettingsError (ValueError)        an argument of a store cannot work
    │   └── ModelError                    the model cannot hold runs
    ├── ParamsError (ValueError)          a parameter set or custom data the model cannot take
    │   └── IdConflictError               an id is taken by a run with other parameters
    ├── RunError                          a run did not produce a result
    │   ├── ResultMissingError            the runner left no usable result
    │   ├── RunCycleError                 a run asked, directly or not, for itself
    │   ├── RunInterruptedError           a run was stopped before it ended
    │   ├── RunTimeoutError (TimeoutError)  it took longer than ``timeout`` and was stopped
    │   ├── WorkerDiedError               the process that ran it died
    │   └── RemoteRunError                a failure on record, or of another process, as text
    ├── SweepError (ExceptionGroup)       some runs of a sweep failed, and all others are kept
    ├── ResultsDirError (OSError)         the results folder cannot be used
    ├── DatabaseError                     the database refused or failed
    │   ├── DatabaseBusyError             it stayed locked past the deadline
    │   ├── RowRefusedError               it refused one row
    │   └── SchemaError                   its tables do not fit the model
    ├── ExportError (ValueError)          results cannot be laid out as asked
    ├── WrongLoopError (RuntimeError)     a store was called where it can only hang
    └── StoreClosedError (RuntimeError)   a store was closed under a call

A runner's own exception is never wrapped: it reaches the caller as itself, with a note. All
errors survive pickling: each takes its message as the one positional argument and keeps
everything else in its ``__dict__``, which is what the default protocol restores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


class EntropicError(Exception):
    """The root of all errors that entropic raises on its own account."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class SettingsError(EntropicError, ValueError):
    """An argument of a store cannot work: which one, its value, and what to pass instead."""


class ModelError(SettingsError):
    """The model cannot hold runs: not a ``Base`` subclass, no parameters, an unusable column."""


class ParamsError(EntropicError, ValueError):
    """A parameter set, or custom data, that the model cannot take.

    Attributes:
        column: The parameter at fault, where there is one.
        value: Its value as it was passed.
    """

    def __init__(self, message: str, *, column: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.column = column
        self.value = value


class IdConflictError(ParamsError):
    """An id that holds a run with other parameters; nothing is overwritten.

    Attributes:
        id: The id that was asked for.
    """

    def __init__(self, message: str, *, id: str | None = None) -> None:
        super().__init__(message, column="id", value=id)
        self.id = id


class RunError(EntropicError):
    """A run did not produce a result.

    Attributes:
        id: The run's id.
        params: What the runner was given, without ``id`` and ``result_file``.
    """

    def __init__(
        self, message: str, *, id: str | None = None, params: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.id = id
        self.params = dict(params) if params is not None else None


class ResultMissingError(RunError):
    """The runner returned without leaving a usable result; says what it wrote instead."""


class RunCycleError(RunError):
    """A run asked for its own result, directly or through other runs.

    Attributes:
        chain: The ids, from the run that was asked for first to the one that closed the circle.
    """

    def __init__(self, message: str, *, chain: tuple[str, ...] = (), id: str | None = None) -> None:
        super().__init__(message, id=id)
        self.chain = chain


class RunInterruptedError(RunError):
    """A run was stopped (interrupted, cancelled, ``sys.exit``) before it ended."""


class RunTimeoutError(RunError, TimeoutError):
    """A run took longer than ``timeout`` seconds, and was stopped."""


class WorkerDiedError(RunError):
    """The worker process that a run was in died: killed, out of memory, or a crash in C code."""


class RemoteRunError(RunError):
    """A failure that is known by its record alone; nothing is unpickled.

    Attributes:
        type_name: The exception's type, with its module.
        traceback: Its traceback as text.
    """

    def __init__(
        self,
        message: str,
        *,
        type_name: str | None = None,
        traceback: str | None = None,
        id: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, id=id, params=params)
        self.type_name = type_name
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that failed.

    Attributes:
        params: What the runner was given, without ``id`` and ``result_file``; on record, empty
            where they are large.
        id: The run id.
        exception: What was raised; a ``RemoteRunError`` where only its record is known.
        traceback: Its traceback as text.
        attempts: How many times this call ran it; on record, how many times it was ever run.
    """

    params: Mapping[str, Any]
    id: str
    exception: Exception
    traceback: str
    attempts: int


class SweepError(EntropicError, ExceptionGroup[Exception]):
    """Some runs of a sweep failed; all others have ended and are kept.

    It is an ``ExceptionGroup`` of what the runners raised: ``except*`` takes it apart.

    Attributes:
        records: The records of the sets that are stored, in first-seen order.
        failures: What failed, in first-seen order, too.
    """

    records: Sequence[Any]
    failures: Sequence[Failure]

    def __new__(
        cls, message: str, exceptions: Sequence[Exception], *_: object, **__: object
    ) -> Self:
        """As a group is made; it would not take what the constructor below takes."""
        return super().__new__(cls, message, exceptions)

    def __init__(
        self,
        message: str,
        exceptions: Sequence[Exception],
        *,
        records: Sequence[Any] = (),
        failures: Sequence[Failure] = (),
    ) -> None:
        ExceptionGroup.__init__(self, message, exceptions)
        self.records = records
        self.failures = failures

    def derive(self, excs: Sequence[Exception], /) -> "SweepError":  # type: ignore[override]
        """A group of some of the exceptions, as ``split`` and ``except*`` make it."""
        kept = [failure for failure in self.failures if failure.exception in excs]
        return SweepError(self.message, excs, records=self.records, failures=kept)


class ResultsDirError(EntropicError, OSError):
    """The results folder is missing, is not the one that holds the results, or is unusable.

    Attributes:
        path: The path at fault.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class DatabaseError(EntropicError):
    """The database refused or failed; nothing that was committed before is affected."""


class DatabaseBusyError(DatabaseError):
    """The database stayed locked by someone else for the whole of ``lock_timeout`` seconds."""


class RowRefusedError(DatabaseError):
    """The database refused a row: a constraint, a trigger, or a value too large.

    The result stays staged: once the database takes the row, the next request stores it.
    """


class SchemaError(DatabaseError):
    """The tables in the database do not fit the model; says which column, and what to do."""


class ExportError(EntropicError, ValueError):
    """Results cannot be laid out as asked: which ones, why, and what to do about it.

    Attributes:
        ids: The ids of the records at fault.
    """

    def __init__(self, message: str, *, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


class WrongLoopError(EntropicError, RuntimeError):
    """A store was called from a thread or event loop where the call could only hang."""


class StoreClosedError(EntropicError, RuntimeError):
    """The store was closed while the call was under way."""

    def __init__(self, message: str = "the store was closed while the call was under way") -> None:
        super().__init__(message)
