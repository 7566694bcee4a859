"""Asking whoever is there whether it may be done."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from entropic.cli.ending import AnswerError, UsageError


def confirm(yes: bool, question: str) -> None:
    """Ask whoever is there; who is not must have said so.

    Args:
        yes: Whether that was said.
        question: What to ask.

    Raises:
        UsageError: Nobody can be asked.
        AnswerError: The answer is no.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{question} There is nobody to ask: say --yes")
    with _interruptible():
        is_wanted = typer.confirm(question, err=True)
    if not is_wanted:
        raise AnswerError("nothing was changed")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interrupt end the block at once.

    asyncio's own handler cancels a task, which does not happen before that comes back to its loop.
    """
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
