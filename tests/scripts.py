"""Python scripts in processes of their own, as a user starts them."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import databases
from tests.forkserver import Forked, ForkServer

ROOT = Path(__file__).parents[1]

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONFAULTHANDLER": "1"}

PREAMBLE = """\
import asyncio, gc, os, pickle, signal, sys, threading, time
from entropic import AsyncStore, Store
from tests.simulations import Point, calls, mark_call, simulate, simulate_async

# A test run in the background of a shell hands on that interrupts are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

DB_URL = os.environ["ENTROPIC_TEST_DB_URL"]

def say(*words):
    print(*words, flush=True)

def rest():
    # In short parts: a signal that comes just before a sleep begins does not end that sleep, as
    # Python looks for signals between its own instructions only.
    for _ in range(1200):
        time.sleep(0.05)

def make(runner=simulate, **settings):
    usual = {"file_suffix": ".npy", "db_url": DB_URL}
    return Store(runner, Point, **{**usual, **settings})

"""

DEADLINE = 30.0
"""Seconds within which every script does what it is asked."""


class Script:
    """A script under way; what it prints is read line by line.

    Args:
        source: What follows the preamble.
        options: Of the interpreter.
        prefix: A program that starts it.
        db_url: The database that it uses; the current one where nothing is said.
        name: Tells it from others that are under way.
    """

    def __init__(
        self,
        source: str,
        *options: str,
        prefix: Sequence[str] = (),
        db_url: str | None = None,
        name: str = "script",
    ) -> None:
        script = Path(f"{name}.py")
        # Not while the same one is being started: that would read half of it.
        if not script.exists() or script.read_text() != PREAMBLE + source:
            script.write_text(PREAMBLE + source)
        self._errors = Path("stderr.txt" if name == "script" else f"{name}.stderr.txt")
        environment = {
            **ENVIRONMENT,
            **({"PATH": os.environ["PATH"]} if prefix else {}),
            "ENTROPIC_TEST_DB_URL": databases.url() if db_url is None else db_url,
        }
        self.process: subprocess.Popen[str] | Forked
        with self._errors.open("w") as errors:
            if prefix or options:
                self.process = subprocess.Popen(
                    [*prefix, sys.executable, *options, str(script)],
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                )
            else:
                self.process = _fork_server().run(script, errors, environment)

    def expect(self, *words: object) -> str:
        """Wait for its next line, which begins with these words; the rest of it."""
        start = " ".join(map(str, words))
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        assert line.startswith(start), f"{line!r}, not {start!r}; {self.errors()}"
        return line.removeprefix(start).strip()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        """Wait for its end; what it returned to the shell."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler tells where it hangs
            self.process.wait()
            raise AssertionError(f"it does not end:\n{self.errors()}") from None

    def errors(self) -> str:
        """What it has written to stderr."""
        return self._errors.read_text()


@functools.cache
def _fork_server() -> ForkServer:
    return ForkServer(ENVIRONMENT)


@contextmanager
def script(source: str, *options: str, **settings: Any) -> Iterator[Script]:
    """Start a script; it does not outlive the block."""
    started = Script(source, *options, **settings)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
        assert started.process.stdout is not None
        started.process.stdout.close()


def run(source: str, *options: str) -> tuple[list[str], float]:
    """Run a script to its end, which must be a good and silent one.

    Returns:
        The lines it printed, and the seconds that it took from its last line to its end.
    """
    with script(source, *options) as started:
        assert started.process.stdout is not None
        lines = []
        last = time.monotonic()
        for line in started.process.stdout:
            lines.append(line.rstrip("\n"))
            last = time.monotonic()
        code = started.ended()
        took = time.monotonic() - last
        errors = started.errors()
        assert (code, errors) == (0, ""), f"{code}, after printing {lines}:\n{errors}"
    return lines, took


def wait_for(condition: Callable[[], bool]) -> None:
    """Look until something is so."""
    over = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < over, "it has not come about"
        time.sleep(0.01)


def arguments(**values: Any) -> str:
    """Assignments for the top of a script."""
    return "".join(f"{name} = {value!r}\n" for name, value in values.items())
