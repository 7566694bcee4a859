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
import os
import pickle
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final

from entropic import worker
from entropic._shield import in_own_thread, to_the_end
from entropic._slots import Slots
from entropic.errors import RunError, WorkerDiedError
from entropic.executors import worker_process
from entropic.executors.parcels import check_travels, dumps, failed, opened
from entropic.worker import Job, Outcome, Runner

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 2.0

# How often to look whether a silent worker still lives. Mostly its socket's end tells at once; but
# what its runner has forked may keep that open.
_GLANCE_SECONDS: Final = 0.2

# For so long, and so often, one whose socket has ended is looked at before it is killed.
_LAST_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.01

# Bytes: what is larger is unpickled in a thread. Only errors are.
_SMALL_ANSWER: Final = 1 << 16


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
        # There may be more workers than slots: a runner that has lent its slot still has its own.
        self._slots = Slots(workers)
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
        try:
            outcome = await process.run(job)
        except asyncio.CancelledError:
            await to_the_end(process.kill())
            raise
        if process.is_open and not self._is_closed:
            self._idle.append(process)
        else:
            process.close()
        return outcome

    def _take(self) -> "WorkerProcess":
        """A worker that waits for work, or a new one; one that has died meanwhile starts again."""
        return self._idle.pop() if self._idle else WorkerProcess()

    async def aclose(self) -> None:
        """End the processes."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for process in idle:
            process.close()
        for process in idle:
            await process.wait()


class WorkerProcess:
    """One worker process; it belongs to no loop, and serves one after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._lifeline: socket.socket | None = None
        self._inbox = worker_process.Inbox()
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

    async def run(self, job: Job) -> Outcome:
        """Run a job; where the process dies, or has to be stopped, that is the outcome.

        Raises:
            asyncio.CancelledError: The process may be at work all the same: to be killed.
        """
        is_fresh = self._connection is None
        try:
            packed = dumps(job) if job.is_light else await in_own_thread(dumps, job)
            await self._start()
            await self._send(_working_directory(), packed)
            answer = await self._answer(job.timeout)
        except TimeoutError:
            await self.kill()
            assert job.timeout is not None
            return failed(worker.too_late(job.timeout))
        except Exception as error:
            has_ended = isinstance(error, OSError) and await self._ends()
            self._end_group()
            has_begun = self._has_begun()  # and nothing begins after that
            await self.wait()
            if isinstance(error, OSError) and not (is_fresh or has_begun):
                self._process = None  # it died while it waited for work: nobody's fault
                return await self.run(job)
            return failed(self._explained(error, has_ended=has_ended))
        self._has_begun()  # so that it is not said of the next one
        is_small = len(answer) <= _SMALL_ANSWER
        return _unpacked(answer) if is_small else await in_own_thread(_unpacked, answer)

    async def kill(self) -> None:
        """End it now, with the programs that its runner has started: they are of its group."""
        self._end_group()
        await self.wait()

    def close(self) -> None:
        """Let it end when it is done."""
        for end in (self._connection, self._lifeline):
            if end is not None:
                end.close()
        self._connection = self._lifeline = None
        self._inbox = worker_process.Inbox()

    async def wait(self) -> None:
        """Wait until it has ended; one that will not is killed."""
        self.close()
        if self._process is not None:
            await to_the_end(in_own_thread(self._reap, self._process))

    def _reap(self, process: "subprocess.Popen[bytes]") -> None:
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._end_group()
            process.wait()

    def _end_group(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self.close()
        self._process = None  # nor may anything here end it

    async def _start(self) -> None:
        if self._connection is not None:
            return
        pairs = (socket.socketpair(), socket.socketpair())
        (self._connection, jobs), (self._lifeline, lifeline) = pairs
        for ours in (self._connection, self._lifeline):
            ours.setblocking(False)
        with jobs, lifeline:
            # To the end: what is cancelled meanwhile has to know what to kill.
            await to_the_end(in_own_thread(self._open, jobs, lifeline))
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._receive()
        except TimeoutError:
            raise WorkerDiedError(
                f"a worker process has not started within {_START_SECONDS:g} seconds"
            ) from None

    def _open(self, jobs: socket.socket, lifeline: socket.socket) -> None:
        self._process = _popen(jobs, lifeline)

    async def _send(self, *messages: bytes) -> None:
        loop = asyncio.get_running_loop()
        with self._watched() as connection:
            for part in worker_process.framed(*messages):
                await loop.sock_sendall(connection, part)

    async def _answer(self, timeout: float | None) -> bytes:
        """The answer to a job; its time begins when its runner is called."""
        if timeout is None:
            return await self._receive()
        loop, lifeline = asyncio.get_running_loop(), self._lifeline
        assert lifeline is not None
        limit = asyncio.timeout(None)

        def begin() -> None:
            loop.remove_reader(lifeline)
            limit.reschedule(loop.time() + timeout)

        loop.add_reader(lifeline, begin)
        try:
            async with limit:
                return await self._receive()
        finally:
            loop.remove_reader(lifeline)

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        with self._watched() as connection:
            while (message := self._inbox.take()) is None:
                part = await loop.sock_recv(connection, worker_process.READ_AT_ONCE)
                if not part:
                    raise ConnectionResetError
                self._inbox.add(part)
        return message

    @contextlib.contextmanager
    def _watched(self) -> Iterator[socket.socket]:
        """The connection; what waits for it ends soon after the process has."""
        loop, connection = asyncio.get_running_loop(), self._connection
        assert connection is not None
        next_glance: asyncio.TimerHandle

        def glance() -> None:
            nonlocal next_glance
            if self._has_ended():
                with contextlib.suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)  # what has come is still read
            else:
                next_glance = loop.call_later(_GLANCE_SECONDS, glance)

        next_glance = loop.call_later(_GLANCE_SECONDS, glance)
        try:
            yield connection
        finally:
            next_glance.cancel()

    def _has_begun(self) -> bool:
        """Whether the worker has called a runner since this was last asked."""
        if self._lifeline is None:
            return False
        try:
            return bool(self._lifeline.recv(worker_process.READ_AT_ONCE))
        except (BlockingIOError, ConnectionError):
            return False

    def _has_ended(self) -> bool:
        """Whether the process has; it is not waited for yet, so that its number stays its own."""
        assert self._process is not None
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            return self._process.poll() is not None
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        except ChildProcessError:  # the program has the system forget its children: SIGCHLD
            return True

    async def _ends(self) -> bool:
        """Whether a process that is not heard any more ends by itself; its socket goes first."""
        loop = asyncio.get_running_loop()
        over = loop.time() + _LAST_SECONDS
        while self._process is not None and not self._has_ended():
            if loop.time() > over:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    def _explained(self, error: Exception, *, has_ended: bool) -> Exception:
        if not isinstance(error, OSError):
            return error
        if self._process is not None:
            return WorkerDiedError(
                f"the worker process of the run {_how(self._process.returncode, has_ended)}; the"
                " other runs go on"
            )
        unable = RunError(f"a worker process could not be started: {error}")
        unable.__cause__ = error
        return unable


def _how(code: int | None, has_ended: bool) -> str:
    """In which way a worker process was lost."""
    if not has_ended:
        return (
            "was stopped, as it had closed the socket to its store: it seems that the runner closed"
            " files that are not its own"
        )
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # those in real time have numbers only
        name = f"signal {-code}"
    hint = ": the system may have been out of memory" if code == -signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


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
    outcome = asyncio.run(process.run(job))
    if process.is_alive:
        _spare.append(process)
    return outcome


def _working_directory() -> bytes:
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b""


def _unpacked(answer: bytes) -> Outcome:
    return opened(pickle.loads(answer))  # noqa: S301  from a worker of our own


def _popen(jobs: socket.socket, lifeline: socket.socket) -> subprocess.Popen[bytes]:
    # What multiprocessing hands on, too: -O, -I, -X dev, -W, ...
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    paths = [os.fspath(path) for path in sys.path]  # some put a Path there
    sockets = [jobs.fileno(), lifeline.fileno()]
    arguments = [json.dumps(paths), *map(str, sockets)]
    return subprocess.Popen(  # noqa: S603  this very interpreter
        [sys.executable, *options, "-c", worker_process.START, *arguments],
        # Nobody types into a worker; what it prints goes where the parent's goes.
        stdin=subprocess.DEVNULL,
        pass_fds=sockets,
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
