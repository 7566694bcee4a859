"""What a worker process does: run the jobs that come through its socket, until that is closed.

Each job is two messages: the working directory to run it in, and the job itself. A second socket
says what nobody waits for: the worker, of each job, that its runner is called; the store's
process, by closing it, that it is gone.

It is started anew (an exec, no fork), and never imports the user's ``__main__``: a script without
a guard is not run a second time. Who starts it, and when, is left to ``processes``.
"""

import contextlib
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from typing import Final

from entropic import worker
from entropic.executors.parcels import Reply, open_and_run
from entropic.worker import Job, Outcome

START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); sockets = sys.argv[1:];"
    " del sys.argv[1:]; from entropic.executors.worker_process import main;"
    " main(*map(int, sockets))"
)
"""The program of a worker: Python's path and the numbers of its sockets are its arguments."""

READY: Final = b"ready"
"""What a worker says first."""

BEGUN: Final = b"!"
"""What it says through the second socket: the runner of its job is called."""

READ_AT_ONCE: Final = 1 << 16
"""Bytes: more than most messages have, so that each takes one way to the system."""

_END_SECONDS: Final = 3.0
_SENT_AT_ONCE: Final = 1 << 16
_LENGTH: Final = struct.Struct("!Q")


def framed(*messages: bytes) -> list[bytes]:
    """What to send for messages, each of any length; small ones in one: each wakes the reader."""
    parts = [part for message in messages for part in (_LENGTH.pack(len(message)), message)]
    return [b"".join(parts)] if sum(map(len, parts)) <= _SENT_AT_ONCE else parts


class Inbox:
    """Makes messages of what comes through a socket, in whatever parts; it reads nothing itself."""

    def __init__(self) -> None:
        self._come = bytearray()

    def add(self, part: bytes) -> None:
        """What has come."""
        self._come += part

    def take(self) -> bytes | None:
        """The next message; ``None`` while it is not whole."""
        if len(self._come) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._come)[0]
        if len(self._come) < end:
            return None
        found = bytes(memoryview(self._come)[_LENGTH.size : end])
        del self._come[:end]
        return found


def main(jobs: int, line: int) -> None:
    """Run jobs until the store's process closes the sockets, or is gone."""
    for descriptor in (jobs, line):
        os.set_inheritable(descriptor, False)  # not for the programs that a runner starts
    with socket.socket(fileno=jobs) as connection, socket.socket(fileno=line) as end:
        lifeline = _Lifeline(end)
        # A parent that is gone is nobody to write to.
        with contextlib.suppress(ConnectionError):
            _send(connection, READY)
            _serve(connection, lifeline)


def _serve(connection: socket.socket, lifeline: "_Lifeline") -> None:
    def run(job: Job) -> Outcome:
        lifeline.tell_begun()
        return worker.run_anywhere(job)

    inbox = Inbox()
    pid = os.getpid()
    while (folder := _receive(connection, inbox)) is not None:
        job = _receive(connection, inbox)
        if job is None or not lifeline.begin_job():
            return
        _work_in(folder)
        reply = Reply.of(open_and_run(job, run))
        _flush()  # what the runner printed is there before its record is
        if os.getpid() != pid:  # a child that the runner has forked: it has no say here
            os._exit(0)
        lifeline.end_job()
        _send(connection, pickle.dumps(reply))


class _Lifeline:
    """What ties a worker to the store's process: it ends with that, also while a runner is busy.

    Args:
        line: The socket whose other end the parent closes, or the system for it.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._is_busy = threading.Event()
        self._is_gone = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell_begun(self) -> None:
        """Tell the parent that the runner is called; nobody is woken by that."""
        with contextlib.suppress(ConnectionError):
            self._line.send(BEGUN)

    def begin_job(self) -> bool:
        """A job is at work from now on; ``False`` where it is not to be, as the parent is gone."""
        self._is_busy.set()
        return not self._is_gone.is_set()

    def end_job(self) -> None:
        """It has ended."""
        self._is_busy.clear()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            self._line.recv(1)  # it says nothing: this returns when it is gone
        self._is_gone.set()
        if not self._is_busy.is_set():
            # It ends meanwhile, unless a runner has left a thread; a parent that lives waits less.
            time.sleep(_END_SECONDS)
        # With the programs that the runner has started: they are of the same group.
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # There is none where the parent has none; and a runner may have closed it.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _send(connection: socket.socket, message: bytes) -> None:
    for part in framed(message):
        connection.sendall(part)


def _receive(connection: socket.socket, inbox: Inbox) -> bytes | None:
    """The next message; ``None`` when the other end is gone."""
    while (message := inbox.take()) is None:
        try:
            part = connection.recv(READ_AT_ONCE)
        except ConnectionError:
            return None
        if not part:
            return None
        inbox.add(part)
    return message


def _work_in(folder: bytes) -> None:
    """Follow the parent's working directory: a runner's relative paths mean what they do there."""
    with contextlib.suppress(OSError):  # it may be gone by now; then they lead nowhere there, too
        os.chdir(folder)
