"""How a command ends: its exit code, and the one line that says why."""

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, ParamSpec

import typer

from entropic.errors import EntropicError, ParamsError, SettingsError
from entropic.models.showing import printable

P = ParamSpec("P")

FOUND: Final = 1
"""The answer is no: ``verify`` has found something, or there is no such run."""

USAGE: Final = 2
"""What was asked for cannot be: an option, a column, a model, a database that is not there."""

FAILED: Final = 3
"""The database or the file system failed."""

INTERRUPTED: Final = 130
"""By Ctrl-C: 128 and the number of the signal, as a shell has it."""

CLOSED: Final = 141
"""Nobody reads any more what is written: the same."""


class UsageError(SettingsError):
    """What was asked for cannot be; says what can."""


class AnswerError(Exception):
    """The end of a command whose answer is no.

    Args:
        message: What to say of it; nothing where all has been said.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class Command:
    """A command, and how it is called.

    Args:
        function: What it does; its name is the command's.
        examples: Whole lines, as one would type them.
    """

    def __init__(self, function: Callable[..., None], *examples: str) -> None:
        self.function = function
        # The first character keeps the lines as they are.
        self.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)


def command(work: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A command from its coroutine: run to its end, which is an exit code and never a traceback."""

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        def whole() -> None:
            _check_texts(kwargs.values())
            asyncio.run(work(*args, **kwargs))
            sys.stdout.flush()

        code = _code(whole)
        if code:
            raise typer.Exit(code)

    return run


def _check_texts(values: Iterable[object]) -> None:
    """Raise ``UsageError`` where the shell has handed on what is no text."""
    for value in values:
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            try:
                str(text).encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"{text!r} has bytes that are no UTF-8, which no database could keep"
                ) from None


def _code(run: Callable[[], None]) -> int:
    """Run something; the exit code of how it ended, after the reason was told."""
    try:
        run()
    except (AnswerError, EntropicError) as error:
        tell(str(error))
        return _code_of(error)
    except BrokenPipeError:
        _leave_the_pipe()
        return CLOSED
    except OSError as error:
        tell(str(error))
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return 0


def _code_of(error: Exception) -> int:
    if isinstance(error, AnswerError):
        return FOUND
    return USAGE if isinstance(error, SettingsError | ParamsError) else FAILED


def tell(message: str) -> None:
    """Say something to whoever watches, beside the output."""
    if message:
        lines = "\n".join(map(printable, message.splitlines()))
        typer.echo(f"entropic: {lines}", err=True)


def _leave_the_pipe() -> None:
    """Keep Python from writing what is left into a pipe that nobody reads."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
