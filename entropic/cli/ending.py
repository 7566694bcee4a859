"""How a command can end: its exit codes, and the line that says why."""

from typing import Final

import typer

from entropic.errors import SettingsError
from entropic.models.showing import printable

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


def tell(message: str) -> None:
    """Say something to whoever watches, beside the output."""
    if message:
        lines = "\n".join(map(printable, message.splitlines()))
        typer.echo(f"entropic: {lines}", err=True)
