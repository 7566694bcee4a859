"""Jobs as they travel to workers outside this process, and outcomes as they come back.

Both cross as bytes that are opened inside the worker, or here, and not by the pool that carries
them: what cannot be opened then fails its own run with a message, and breaks no pool.
"""

import contextvars
import pickle
import socket
import sys
import time
from dataclasses import replace
from typing import Any

from entropic import worker
from entropic.errors import RemoteRunError, RunError, SettingsError
from entropic.worker import Job, Outcome, Runner


class Parcel:
    """A job that is run by calling it, here or wherever it has been sent.

    It is pickled only if it is sent: where it is called in the process that made it, the runner
    is the very object that the user gave, in the context of its caller.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._context = contextvars.copy_context()

    def __call__(self) -> Outcome:
        """Run the job in this process."""
        return self._context.run(worker.run_anywhere, self._job)

    def __reduce__(self) -> tuple[Any, ...]:
        """As bytes of its own."""
        return SentParcel, (dumps(self._job),)


class SentParcel:
    """A job that has come from another process.

    Args:
        content: The job as bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __call__(self) -> "Reply":
        """Run the job in this process."""
        return Reply.of(open_and_run(self._content))


class Reply:
    """An outcome on its way back.

    Args:
        content: The outcome as bytes.
        fallback: One to use if those cannot be read where they arrive.
    """

    def __init__(self, content: bytes, fallback: Outcome | None = None) -> None:
        self._content = content
        self._fallback = fallback

    @classmethod
    def of(cls, outcome: Outcome) -> "Reply":
        """Pack an outcome, also one whose error cannot be pickled."""
        if outcome.error is None:
            return cls(pickle.dumps(outcome))
        fallback = replace(outcome, error=_as_text(outcome.error, outcome.traceback))
        try:
            content = dumps(outcome)
            pickle.loads(content)  # noqa: S301  our own, written a line before
        except Exception:
            content = pickle.dumps(fallback)
        return cls(content, fallback)

    def open(self) -> Outcome:
        """The outcome."""
        try:
            outcome = pickle.loads(self._content)  # noqa: S301  from a worker that the user runs
        except Exception:
            if self._fallback is None:
                raise
            return self._fallback
        assert isinstance(outcome, Outcome)
        return outcome


def opened(answer: Any) -> Outcome:
    """The outcome in what a parcel returned, here or elsewhere."""
    outcome = answer.open() if isinstance(answer, Reply) else answer
    assert isinstance(outcome, Outcome)
    return outcome


def open_and_run(content: bytes, run: Any = worker.run_without_store) -> Outcome:
    """Run the job that arrived as bytes; one that cannot be opened has failed."""
    try:
        job = pickle.loads(content)  # noqa: S301  from a store that the user runs
    except Exception as error:
        return failed(_unopened(error))
    outcome: Outcome = run(job)
    return outcome


def failed(error: Exception) -> Outcome:
    """The outcome of a job whose runner was not called, or left no word."""
    return Outcome(time.time(), 0.0, socket.gethostname(), error=error, traceback=str(error))


def dumps(value: object) -> bytes:
    """As bytes; functions of a script or a notebook, closures and lambdas too."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(value)
    # What multiprocessing calls the script in a child of it. Like __main__, it is nobody else's.
    script = sys.modules.get("__mp_main__")
    if script is not None and script.__name__ == "__mp_main__":
        cloudpickle.register_pickle_by_value(script)
    content: bytes = cloudpickle.dumps(value)
    return content


def check_travels(runner: Runner, where: str) -> None:
    """Raise ``SettingsError`` unless a runner can be sent to another process.

    Args:
        runner: The user's function.
        where: What it would be sent to.
    """
    try:
        dumps(runner)
    except Exception as error:
        name = getattr(runner, "__qualname__", None) or repr(runner)
        raise SettingsError(
            f"the runner {name} cannot be sent to {where}, as it cannot be pickled:"
            f" {type(error).__name__}: {error}; define it in a module, and make what cannot be"
            " pickled (locks, connections, open files) inside of it"
        ) from error


def _as_text(error: Exception, traceback: str | None) -> RemoteRunError:
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be shown"
    return RemoteRunError(f"{name}: {message}", type_name=name, traceback=traceback)


def _unopened(error: Exception) -> RunError:
    host = socket.gethostname()
    if isinstance(error, ModuleNotFoundError):
        return RunError(
            f"the worker on {host} has no module {error.name!r}, which the runner or its params"
            " need; install it there, or let the worker's PYTHONPATH lead to it"
        )
    return RunError(
        f"the worker on {host} could not unpickle the runner and its params:"
        f" {type(error).__name__}: {error}; have the same versions there as here"
    )
