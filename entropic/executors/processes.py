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
from entropic.errors import RunError, RunTimeoutError, WorkerDiedError
from entropic.executors import worker_process
from entropic.executors.parcels import check_travels, dumps, failed, opened
from entropic.worker import Job, Outcome, Runner

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 2.0

# How often to look whether a silent worker still lives. Mostly its socket's end tells at once; but
# what its runner has forked may keep that open.
_GLANCE_SECONDS: Final = 0.2

# For so long, and so often, one whose socket has ended is looked at before it is killed.
_EXIT_GRACE_SECONDS: Final = 1.0
_EXIT_POLL_SECONDS: Final = 0.01

# Bytes: what is larger is pickled and unpickled in threads.
_SMALL: Final = 1 << 16


# How one was lost that had not ended by itself.
_DEAF: Final = (
    "was stopped, as it had closed the socket to its store: it seems that the runner closed files"
    " that are not its own"
)


class _IdleDeathError(Exception):
    """A worker has died while it waited for work: nobody's fault, and nothing has begun."""


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
        self._processes = _Workers()
        self._packs_in_threads = False

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
        try:
            packed = await self._packed(job)
        except Exception as error:
            return failed(error)
        return await self._processes.run(packed, job.timeout)

    async def aclose(self) -> None:
        """End the processes."""
        await self._processes.aclose()

    async def _packed(self, job: Job) -> bytes:
        if self._packs_in_threads or not job.has_light_parameters:
            return await in_own_thread(dumps, job)
        packed = dumps(job)
        # A runner may have much with it, too: all but the first time.
        self._packs_in_threads = len(packed) > _SMALL
        return packed


class _Workers:
    """Workers that wait for work; more are started as they are needed."""

    def __init__(self) -> None:
        self._idle: list[WorkerProcess] = []
        self._is_closed = False

    async def run(self, packed: bytes, timeout: float | None) -> Outcome:
        """Run a job in one of them; cancelled, that one is killed."""
        while True:
            try:
                process = await self._taken()
            except RunError as error:
                return failed(error)
            try:
                outcome = await process.run(packed, timeout)
            except _IdleDeathError:
                continue
            except asyncio.CancelledError:
                await to_the_end(process.kill())
                raise
            if process.is_open and not self._is_closed:
                self._idle.append(process)
            else:
                process.close()
            return outcome

    async def aclose(self) -> None:
        """End those that wait; the others end when they have run what they are at."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for process in idle:
            process.close()
        for process in idle:
            await process.wait()

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._idle.clear()

    async def _taken(self) -> "WorkerProcess":
        try:
            return self._idle.pop()
        except IndexError:  # also where another thread was faster
            return await WorkerProcess.started()


class WorkerProcess:
    """One worker process; it belongs to no loop, and serves one after the other.

    Args:
        connection: The socket for jobs and answers.
        lifeline: The one that says of each job that it has begun; see ``worker_process``.
        process: The process.
    """

    def __init__(
        self,
        connection: socket.socket,
        lifeline: socket.socket,
        process: "subprocess.Popen[bytes]",
    ) -> None:
        self._connection = connection
        self._lifeline = lifeline
        self._process = process
        self._inbox = worker_process.Inbox()
        self._has_served = False
        self._is_forgotten = False
        _processes.add(self)

    @classmethod
    async def started(cls) -> "WorkerProcess":
        """A new one, once it is ready; cancelled, it is killed.

        Raises:
            RunError: It could not be started, or has died.
        """
        made = await cls._launched()
        try:
            async with asyncio.timeout(_START_SECONDS):
                await made._receive()
        except TimeoutError:
            await made.kill()
            raise WorkerDiedError(
                f"a worker process has not started within {_START_SECONDS:g} seconds"
            ) from None
        except OSError:
            _, death = await made._lost()
            raise death from None
        except asyncio.CancelledError:
            await to_the_end(made.kill())
            raise
        return made

    @classmethod
    async def _launched(cls) -> "WorkerProcess":
        (connection, jobs), (lifeline, other) = socket.socketpair(), socket.socketpair()
        made: list[WorkerProcess] = []

        def launch() -> None:
            made.append(cls(connection, lifeline, _popen(jobs, other)))

        for ours in (connection, lifeline):
            ours.setblocking(False)
        with jobs, other:
            try:
                # To the end: one that is cancelled meanwhile has to be killed.
                await to_the_end(in_own_thread(launch))
            except OSError as error:
                unable = RunError(f"a worker process could not be started: {error}")
                raise unable from error
            except asyncio.CancelledError:
                for process in made:
                    await to_the_end(process.kill())
                raise
            finally:
                if not made:
                    connection.close()
                    lifeline.close()
        return made[0]

    @property
    def is_open(self) -> bool:
        """Whether it could take another job when it was last heard of."""
        return self._connection.fileno() >= 0

    async def run(self, packed: bytes, timeout: float | None) -> Outcome:
        """Run a job; where the process dies, or has to be stopped, that is the outcome.

        Raises:
            _IdleDeathError: It had died before, and nothing has begun.
            asyncio.CancelledError: The process may be at work all the same: to be killed.
        """
        try:
            await self._send(_working_directory(), packed)
            answer = await self._answer(timeout)
        except RunTimeoutError as error:
            await self.kill()
            return failed(error)
        except OSError:
            has_begun, death = await self._lost()
            if self._has_served and not has_begun:
                raise _IdleDeathError from None
            return failed(death)
        self._take_begun()
        self._has_served = True
        return (
            _unpacked(answer) if len(answer) <= _SMALL else await in_own_thread(_unpacked, answer)
        )

    async def kill(self) -> None:
        """End it now, with the programs that its runner has started: they are of its group."""
        self._end_group()
        await self.wait()

    def close(self) -> None:
        """Let it end when it is done."""
        self._connection.close()
        self._lifeline.close()

    async def wait(self) -> None:
        """Wait until it has ended; one that will not is killed."""
        self.close()
        if not self._is_forgotten:
            await to_the_end(in_own_thread(self._reap))

    def _reap(self) -> None:
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._end_group()
            self._process.wait()

    def _end_group(self) -> None:
        # The number of one that has been waited for may be somebody else's by now.
        if not self._is_forgotten and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """In a forked child: it is the parent's, and nothing here may end it."""
        self.close()
        self._is_forgotten = True

    async def _send(self, *messages: bytes) -> None:
        loop = asyncio.get_running_loop()
        with self._watched() as connection:
            for part in worker_process.framed(*messages):
                await loop.sock_sendall(connection, part)

    async def _answer(self, timeout: float | None) -> bytes:
        """The answer to a job; its time begins when its runner is called.

        Raises:
            RunTimeoutError: It has not come in time.
        """
        if timeout is None:
            return await self._receive()
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)

        def begin() -> None:
            loop.remove_reader(self._lifeline)
            limit.reschedule(loop.time() + timeout)

        loop.add_reader(self._lifeline, begin)
        try:
            async with limit:
                return await self._receive()
        except TimeoutError as error:
            raise worker.too_late(timeout) from error
        finally:
            loop.remove_reader(self._lifeline)

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
        next_glance: asyncio.TimerHandle

        def glance() -> None:
            nonlocal next_glance
            if self._has_exited():
                with contextlib.suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)  # what has come is still read
            else:
                next_glance = loop.call_later(_GLANCE_SECONDS, glance)

        next_glance = loop.call_later(_GLANCE_SECONDS, glance)
        try:
            yield connection
        finally:
            next_glance.cancel()

    def _take_begun(self) -> bool:
        """Whether the worker has called a runner since this was last asked."""
        try:
            return bool(self._lifeline.recv(worker_process.READ_AT_ONCE))
        except OSError:  # it has said nothing; or it is gone, or not ours any more
            return False

    async def _lost(self) -> tuple[bool, WorkerDiedError]:
        """Give up a worker that is not heard any more: whether a runner had begun, and its end."""
        has_exited = await self._exits()
        self._end_group()
        has_begun = self._take_begun()  # and nothing begins after that
        await self.wait()
        how = self._end if has_exited else _DEAF
        return has_begun, WorkerDiedError(
            f"the worker process of the run {how}; the other runs go on"
        )

    async def _exits(self) -> bool:
        """Whether it ends by itself: its socket goes before it does."""
        loop = asyncio.get_running_loop()
        over = loop.time() + _EXIT_GRACE_SECONDS
        while not self._has_exited():
            if loop.time() > over:
                return False
            await asyncio.sleep(_EXIT_POLL_SECONDS)
        return True

    def _has_exited(self) -> bool:
        """Whether the process has; it is not waited for yet, so that its number stays its own."""
        if self._is_forgotten or self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            return self._process.poll() is not None
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        except ChildProcessError:  # the program has the system forget its children
            self._is_forgotten = True
            return True

    @property
    def _end(self) -> str:
        """How it has ended by itself."""
        code = self._process.returncode
        if self._is_forgotten or code is None:
            return "has ended, and how is not known, as this program ignores SIGCHLD"
        if code >= 0:
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
    try:
        packed = dumps(job)
    except Exception as error:
        return failed(error)
    return asyncio.run(_spare.run(packed, job.timeout))


def _working_directory() -> bytes:
    try:
        return os.getcwdb()
    except OSError:  # it is gone, or not to be seen
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


_spare: Final = _Workers()
_processes: Final[weakref.WeakSet[WorkerProcess]] = weakref.WeakSet()


def _abandon() -> None:
    """In a forked child: what it keeps open would keep the workers alive after the parent."""
    _spare.forget()
    for process in list(_processes):
        process.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon)
