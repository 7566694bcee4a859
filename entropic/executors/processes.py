"""Worker processes as a place to run.

A pool of our own, after pebble 5.2 and loky 3.7 were tried. pebble starts workers through
multiprocessing: that runs the user's script a second time (and breaks the pool, if the script has
no guard), and refuses to work in a daemonic process, which a Dask worker is. With loky, one worker
that is killed takes all pending runs with it. What is left to do by ourselves is small: start a
program, send it bytes, wait.
"""

import asyncio
import contextlib
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from entropic import worker
from entropic._shield import to_the_end, until_done
from entropic._slots import Slots
from entropic.errors import RunError, RunInterruptedError, WorkerDiedError
from entropic.executors import worker_process
from entropic.executors.parcels import check_travels, dumps, failed, opened
from entropic.executors.threads import ElasticThreads
from entropic.worker import Job, Outcome, Runner

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 2.0

# How often to look whether a silent worker still lives. Mostly its socket's end tells at once; but
# what its runner has forked may keep that open.
_GLANCE_SECONDS: Final = 0.2


class ProcessExecutor:
    """Worker processes of this store's own, started when there is work for them.

    Args:
        workers: How many at once.
    """

    can_stop = True
    stops_late_runs = True
    needs_the_caller = False

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._slots = Slots(workers)
        # More than there are slots: a runner that has lent its slot still has its worker.
        self._threads = ElasticThreads("entropic-process")
        self._idle: list[WorkerProcess] = []
        self._is_closed = False

    @property
    def workers(self) -> int:
        """How many runners can be at work at once."""
        return self._workers

    def check(self, runner: Runner) -> None:
        """Raise ``SettingsError`` if the runner cannot travel to another process."""
        check_travels(runner, "a worker process")

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """One of the worker processes."""
        return self._slots.hold(depth)

    async def run(self, job: Job, began: Callable[[], None]) -> Outcome:
        """Run it in a process; cancelled, that process is killed."""
        began()
        process = self._take()
        running = self._threads.submit(process.run, job)
        try:
            await until_done(running)
        except asyncio.CancelledError:
            process.kill()
            await to_the_end(self._end(process, running))
            raise
        if process.is_open and not self._is_closed:
            self._idle.append(process)
        else:
            process.close()
        return running.result()

    def _take(self) -> "WorkerProcess":
        """A worker that waits for work, or a new one; one that has died meanwhile starts again."""
        return self._idle.pop() if self._idle else WorkerProcess()

    async def _end(self, process: "WorkerProcess", running: asyncio.Future[Outcome]) -> None:
        await asyncio.wait({running})
        await self._threads.run(process.wait)  # also where it had just finished

    async def aclose(self) -> None:
        """End the processes, and the threads that wait for them."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for process in idle:
            process.close()
        for process in idle:
            await self._threads.run(process.wait)
        self._threads.close()


class WorkerProcess:
    """One worker process; what is called here blocks, and belongs into a thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._inbox: worker_process.Inbox | None = None
        self._is_killed = False
        _processes.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it could take another job when it was last heard of."""
        return self._connection is not None and self._process is not None

    @property
    def is_alive(self) -> bool:
        """Whether it can take another job."""
        process = self._process
        return self.is_open and process is not None and process.poll() is None

    def run(self, job: Job) -> Outcome:
        """Run a job; where the process dies, or has to be stopped, that is the outcome."""
        is_fresh = self._connection is None
        has_begun = False
        try:
            packed = dumps(job)
            connection = self._start()
            worker_process.send(connection, _working_directory(), packed)
            answer = self._receive(connection, None)
            if answer == worker_process.BEGUN:  # and not that the job could not even be loaded
                has_begun = True
                answer = self._receive(connection, job.timeout)
        except TimeoutError:
            self.kill()
            self.wait()
            assert job.timeout is not None
            return failed(worker.too_late(job.timeout))
        except Exception as error:
            with self._lock:
                self._end_group()
            self.wait()
            if isinstance(error, OSError) and not (is_fresh or has_begun or self._is_killed):
                self._process = None  # it died while it waited for work: nobody's fault
                return self.run(job)
            return failed(self._explained(error))
        return opened(pickle.loads(answer))  # noqa: S301  from a worker of our own

    def kill(self) -> None:
        """End it now, with the programs that its runner has started: they are of its group."""
        with self._lock:
            self._is_killed = True
            self._end_group()

    def close(self) -> None:
        """Let it end when it is done."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def wait(self) -> None:
        """Wait until it has ended; one that will not is killed."""
        self.close()
        if self._process is None:
            return
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def _end_group(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self.close()
        self._process = None  # nor may anything here end it

    def _start(self) -> socket.socket:
        if self._connection is not None:
            return self._connection
        ours, theirs = socket.socketpair()
        self._connection, self._inbox = ours, worker_process.Inbox(ours)
        with theirs, self._lock:
            if self._is_killed:
                raise ConnectionAbortedError
            self._process = _popen(theirs)
        try:
            self._receive(ours, _START_SECONDS)
        except TimeoutError:
            raise WorkerDiedError(
                f"a worker process has not started within {_START_SECONDS:g} seconds"
            ) from None
        return ours

    def _receive(self, connection: socket.socket, seconds: float | None) -> bytes:
        over = math.inf if seconds is None else time.monotonic() + seconds

        def look_up() -> None:
            left = over - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._has_ended():
                raise ConnectionResetError
            connection.settimeout(min(left, _GLANCE_SECONDS))

        connection.settimeout(_GLANCE_SECONDS if seconds is None else min(seconds, _GLANCE_SECONDS))
        assert self._inbox is not None
        answer = self._inbox.receive(look_up)
        connection.settimeout(None)
        if answer is None:
            raise ConnectionResetError
        return answer

    def _has_ended(self) -> bool:
        """Whether the process has; it is not waited for yet, so that its number stays its own."""
        assert self._process is not None
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            return self._process.poll() is not None
        with self._lock:
            if self._process.returncode is not None:
                return True
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _explained(self, error: Exception) -> Exception:
        if not isinstance(error, OSError):
            return error
        if self._process is not None:
            return self._death(self._process)
        if self._is_killed:
            return RunInterruptedError("the run was stopped before its worker process had started")
        unable = RunError(f"a worker process could not be started: {error}")
        unable.__cause__ = error
        return unable

    def _death(self, process: "subprocess.Popen[bytes]") -> WorkerDiedError:
        code = process.returncode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            hint = ": the system may have been out of memory" if code == -signal.SIGKILL else ""
        else:
            how, hint = f"ended with exit code {code}", ""
        return WorkerDiedError(f"the worker process of the run {how}{hint}; the other runs go on")


def run_in_child(job: Job) -> Outcome:
    """Run a job in a process of its own, from any thread, so that it can be stopped.

    For workers that are threads of somebody else's process: those of a Dask cluster.
    """
    process = WorkerProcess()
    while _spare:
        with contextlib.suppress(IndexError):  # another thread was faster
            spare = _spare.pop()
            if spare.is_alive:
                process = spare
                break
    outcome = process.run(job)
    if process.is_alive:
        _spare.append(process)
    return outcome


def _working_directory() -> bytes:
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b""


def _popen(theirs: socket.socket) -> subprocess.Popen[bytes]:
    # What multiprocessing hands on, too: -O, -I, -X dev, -W, ...
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    paths = [os.fspath(path) for path in sys.path]  # some put a Path there
    arguments = [json.dumps(paths), str(theirs.fileno())]
    return subprocess.Popen(  # noqa: S603  this very interpreter
        [sys.executable, *options, "-c", worker_process.START, *arguments],
        # Nobody types into a worker; what it prints goes where the parent's goes.
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        # A terminal's Ctrl-C is for the parent: it says what becomes of its workers.
        process_group=0,
    )


_spare: Final[list[WorkerProcess]] = []
_processes: Final[weakref.WeakSet[WorkerProcess]] = weakref.WeakSet()


def _abandon() -> None:
    """In a forked child: what it keeps open would keep the workers alive after the parent."""
    _spare.clear()
    for process in list(_processes):
        process.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon)
