"""What a worker process does: run the jobs that come through its socket, until that is closed.

Each job is two messages: the working directory to run it in, and the job itself.

It is started anew (an exec, no fork), and never imports the user's ``__main__``: a script without
a guard is not run a second time. Who starts it, and when, is left to ``processes``.
"""

import contextlib
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Final

from entropic import worker
from entropic.executors.parcels import Reply, open_and_run
from entropic.worker import Job, Outcome

START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
    " from entropic.executors.worker_process import main; main(int(sys.argv.pop(1)))"
)
"""The program of a worker: Python's path and the socket's number are its arguments."""

READY: Final = b"ready"
BEGUN: Final = b"begun"
"""What a worker says before the reply: it has started; and, of each job, its runner is called."""

_SENT_AT_ONCE: Final = 1 << 16
_READ_AT_ONCE: Final = 1 << 14
_LENGTH: Final = struct.Struct("!Q")


def send(connection: socket.socket, *messages: bytes) -> None:
    """Send messages, each of any length."""
    parts = [part for message in messages for part in (_LENGTH.pack(len(message)), message)]
    if sum(map(len, parts)) <= _SENT_AT_ONCE:  # each sending wakes the other end
        parts = [b"".join(parts)]
    for part in parts:
        connection.sendall(part)


class Inbox:
    """The messages that come through a socket; what has come of the next ones is kept.

    Args:
        connection: The socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._come = bytearray()

    def receive(self, look_up: Callable[[], None] = lambda: None) -> bytes | None:
        """The next message; ``None`` when the other end is gone.

        Args:
            look_up: Called each time that the socket's timeout has passed without a word; what it
                raises ends the waiting.
        """
        length = self._read(_LENGTH.size, look_up)
        return None if length is None else self._read(_LENGTH.unpack(length)[0], look_up)

    def _read(self, count: int, look_up: Callable[[], None]) -> bytes | None:
        while (missing := count - len(self._come)) > 0:
            try:
                # More than is asked for: each way to the system lets another thread in.
                part = self._connection.recv(min(max(missing, _READ_AT_ONCE), 1 << 20))
            except TimeoutError:
                look_up()
                continue
            except ConnectionError:
                return None
            if not part:
                return None
            self._come += part
        found = bytes(memoryview(self._come)[:count])
        del self._come[:count]
        return found


def main(descriptor: int) -> None:
    """Run jobs until the store's process closes the socket, or is gone."""
    os.set_inheritable(descriptor, False)  # not for the programs that a runner starts
    with socket.socket(fileno=descriptor) as connection:
        jobs: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        is_busy = threading.Event()
        # A thread of its own reads: so the worker ends with its parent also while a runner is busy.
        threading.Thread(target=_listen, args=(connection, jobs, is_busy), daemon=True).start()
        send(connection, READY)

        def run(job: Job) -> Outcome:
            send(connection, BEGUN)
            return worker.run_anywhere(job)

        while (sent := jobs.get()) is not None:
            folder, job = sent
            _work_in(folder)
            reply = Reply.of(open_and_run(job, run))
            # What the runner printed is there before its record is.
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            is_busy.clear()
            send(connection, pickle.dumps(reply))


def _work_in(folder: bytes) -> None:
    """Follow the parent's working directory: a runner's relative paths mean what they do there."""
    with contextlib.suppress(OSError):  # it may be gone by now; then they lead nowhere there, too
        os.chdir(folder)


def _listen(
    connection: socket.socket,
    jobs: "queue.SimpleQueue[tuple[bytes, bytes] | None]",
    is_busy: threading.Event,
) -> None:
    inbox = Inbox(connection)
    while (folder := inbox.receive()) is not None and (job := inbox.receive()) is not None:
        is_busy.set()
        jobs.put((folder, job))
    if is_busy.is_set():
        # With the programs that the runner has started: they are of the same group.
        os.killpg(os.getpgrp(), signal.SIGKILL)
    jobs.put(None)
