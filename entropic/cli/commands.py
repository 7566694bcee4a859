"""A command from a coroutine: called by its name, run to its end, which is an exit code."""

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec

import typer

from entropic.cli.ending import (
    CLOSED,
    FAILED,
    FOUND,
    INTERRUPTED,
    USAGE,
    AnswerError,
    UsageError,
    tell,
)
from entropic.errors import EntropicError, ParamsError, SettingsError

P = ParamSpec("P")


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


def _leave_the_pipe() -> None:
    """Keep Python from writing what is left into a pipe that nobody reads."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
