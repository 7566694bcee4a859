"""The arguments of a store and of its calls, checked: what cannot work is refused at once."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, get_args

from entropic.artifacts import COMPANIONS, ResultsFolder
from entropic.errors import ParamsError, SettingsError
from entropic.executors import NAMES, check_executor, check_stops_late_runs, check_workers, is_dask
from entropic.identity import checked_custom_data, shortened
from entropic.schedule import OnError
from entropic.worker import is_async


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a store runs, or how one call does; what is ``None`` is as the store says.

    Attributes:
        executor: Where runners run.
        max_workers: How many at once.
        retries: How many times more a run that fails is tried.
        timeout: Seconds after which a run is stopped.
    """

    executor: Any = None
    max_workers: int | None = None
    retries: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.executor is not None:
            check_executor(self.executor)
        check_count(self.max_workers, least=1, name="max_workers")
        check_count(self.retries, least=0, name="retries")
        if self.timeout is not None:
            check_seconds(self.timeout, name="timeout")

    @classmethod
    def of_call(cls, client: Any, executor: Any, *others: Any) -> Self:
        """Those of a sweep, where ``client=`` of the documented API is the same as ``executor=``.

        Raises:
            SettingsError: Both were given, or the client is none.
        """
        if client is None:
            return cls(executor, *others)
        if executor is not None:
            raise SettingsError("client and executor say the same thing: pass one of them")
        if not is_dask(client):
            raise SettingsError(
                f"client must be a dask.distributed.Client, not {type(client).__name__}; other"
                " places to run are an executor"
            )
        return cls(client, *others)

    def or_else(self, of_store: "RunSettings") -> "RunSettings":
        """These, and those of the store where a call says nothing; an executor is left open."""
        return RunSettings(
            self.executor,
            self.max_workers,
            of_store.retries if self.retries is None else self.retries,
            of_store.timeout if self.timeout is None else self.timeout,
        )


def check_own_executor(settings: RunSettings, runner: Any, names: tuple[str, ...] = NAMES) -> None:
    """Raise ``SettingsError`` where a store cannot run its runner as it is told to."""
    check_executor(settings.executor, names)
    is_thread = settings.executor in ("caller", "thread") and not is_async(runner)
    check_stops_late_runs(settings.executor, settings.timeout, can=not is_thread)
    check_workers(settings.executor, runner, settings.max_workers)


def check_runner(runner: object) -> None:
    """Raise ``SettingsError`` unless it can be called."""
    if not callable(runner):
        raise SettingsError(
            f"runner must be a function of one dict of params, not {shortened(runner)}"
        )


def check_on_error(on_error: object) -> None:
    """Raise ``SettingsError`` unless it is a policy."""
    if on_error not in get_args(OnError):
        choices = ", ".join(map(repr, get_args(OnError)))
        raise SettingsError(f"on_error must be one of {choices}, not {shortened(on_error)}")


def check_count(count: object, *, least: int, name: str) -> None:
    """Raise ``SettingsError`` unless it is a whole number, or ``None``."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise SettingsError(
            f"{name} must be a whole number, {least} or more, not {shortened(count)}"
        )


def check_seconds(
    seconds: object, *, name: str, or_zero: bool = False, is_finite: bool = False
) -> None:
    """Raise ``SettingsError`` unless it is a time.

    Args:
        seconds: What is checked.
        name: What it is called.
        or_zero: Whether no time at all is one, too.
        is_finite: Whether for ever is none.
    """
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    least = 0.0 if or_zero else math.ulp(0.0)  # the smallest number above it
    most = sys.float_info.max if is_finite else math.inf
    if is_number and least <= seconds <= most:  # type: ignore[operator]
        return
    what = "0 seconds or more" if or_zero else "more than 0 seconds"
    finite = ", and finite" if is_finite else ""
    raise SettingsError(f"{name} must be {what}{finite}, not {shortened(seconds)}")


def check_suffix(suffix: object) -> None:
    """Raise ``SettingsError`` unless names can end with it."""
    if not isinstance(suffix, str) or "/" in suffix or os.sep in suffix or "\0" in suffix:
        raise SettingsError(
            f"file_suffix must be the end of a file's name, not {shortened(suffix)}"
        )
    if not _is_unicode(suffix):
        raise SettingsError(f"file_suffix {shortened(suffix)} {_NO_UNICODE}")
    if suffix == COMPANIONS:
        raise SettingsError(
            f"file_suffix {shortened(suffix)} is what the folders of other files are called; use"
            " another"
        )


def results_folder(results_dir: object, suffix: str) -> ResultsFolder:
    """The folder; raises ``SettingsError`` unless it can be one."""
    if not isinstance(results_dir, str | os.PathLike) or not _is_path(results_dir):
        raise SettingsError(f"results_dir must be a path, not {shortened(results_dir)}")
    if not _is_unicode(os.fspath(results_dir)):
        raise SettingsError(f"results_dir {shortened(os.fspath(results_dir))} {_NO_UNICODE}")
    return ResultsFolder(results_dir, suffix)


def result_path(path: object) -> str | os.PathLike[str]:
    """The same; raises ``ParamsError`` unless it can be a path."""
    if not (isinstance(path, str | os.PathLike) and _is_path(path)):
        raise ParamsError(f"result_file must be the path of a result, not {shortened(path)}")
    if not _is_unicode(os.path.abspath(path)):
        raise ParamsError(f"result_file {shortened(os.path.abspath(path))} {_NO_UNICODE}")
    return path


def _is_path(path: str | os.PathLike[str]) -> bool:
    text = os.fspath(path)
    return bool(text) and "\0" not in text


def _is_unicode(path: str) -> bool:
    """Whether a database can keep a path."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


_NO_UNICODE: Final = (
    "has bytes that are no UTF-8, which no database could keep: choose another name"
)


def plain_custom_data(custom_data: Any) -> dict[str, Any]:
    """Custom data in plain JSON; raises ``ParamsError`` where it has no such form."""
    if not isinstance(custom_data, Mapping):
        raise ParamsError(f"custom_data must be a dict, not {shortened(custom_data)}")
    return checked_custom_data(custom_data)
