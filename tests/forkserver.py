"""A fork server: it has imported what the tests' scripts import, and becomes each of them.

Starting Python and importing SQLAlchemy and numpy takes 0.3 s, a fork 0.01. A script is a process
of its own as before, with its own main module, working directory, environment and end.
"""

import builtins
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_LONGEST = 65536  # bytes of a request; the next one follows when it is answered
_NUMBER = 12  # bytes of an answer


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a stream: macOS has no socket of packets that tells when the other end closes."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _send_number(stream: socket.socket, number: int) -> None:
    stream.sendall(str(number).rjust(_NUMBER).encode())


def _receive_number(stream: socket.socket) -> int:
    return int(stream.recv(_NUMBER, socket.MSG_WAITALL))


class Forked:
    """One process that a server has forked; as much of ``subprocess.Popen`` as the tests use."""

    def __init__(self, answers: socket.socket, stdout: IO[str]) -> None:
        self.stdout: IO[str] | None = stdout
        self.returncode: int | None = None
        self._answers = answers
        self.pid = _receive_number(answers)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Tell it to end."""
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; what it returned, or the negative number of the signal."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = _receive_number(self._answers)
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._answers.close()
        return self.returncode


class ForkServer:
    """The server of one test process; it ends with it.

    Args:
        environment: In which it starts; each script has one of its own.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._ours, theirs = _pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
            )

    def run(self, script: Path, stderr: IO[str], environment: Mapping[str, str]) -> Forked:
        """Start a script in the current working directory, with this process's umask."""
        reading, writing = os.pipe()
        answers, theirs = _pair()
        mask = os.umask(0)
        os.umask(mask)
        request = {
            "script": str(script),
            "folder": os.getcwd(),
            "environment": dict(environment),
            "umask": mask,
        }
        with theirs, open(writing, "w"):
            fds = [theirs.fileno(), writing, stderr.fileno()]
            socket.send_fds(self._ours, [json.dumps(request).encode()], fds)
        return Forked(answers, open(reading))


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork at each request; it returns in the child alone, which is the script from then on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is for the scripts
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno())
    under_way: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(_LONGEST)
            _tell_of_ends(under_way)
        if requests not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(requests, _LONGEST, 3)
        if not message:
            sys.exit()
        answering, *outputs = fds
        answers = socket.socket(fileno=answering)
        if not (pid := os.fork()):
            break
        _send_number(answers, pid)
        under_way[pid] = answers
        for output in outputs:
            os.close(output)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in (requests, woken, waking, answers, *under_way.values()):
        each.close()
    return dict(json.loads(message))


def _tell_of_ends(under_way: dict[int, socket.socket]) -> None:
    for pid in list(under_way):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with under_way.pop(pid) as answers, contextlib.suppress(OSError):
                _send_number(answers, os.waitstatus_to_exitcode(status))


def _become(request: Mapping[str, Any]) -> tuple[types.CodeType, dict[str, Any]]:
    """Set up what Python would have for a script; its code, and the namespace to run it in."""
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    script = Path(request["script"])
    sys.argv = [str(script)]
    sys.path[0] = str(script.parent.resolve())
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(script.resolve()), __builtins__=builtins)
    sys.modules["__main__"] = main
    return compile(script.read_text(), str(script), "exec"), main.__dict__


if __name__ == "__main__":
    import tests.scripts

    # What every script imports.
    exec(compile(tests.scripts.PREAMBLE.split("\n# ")[0], "preamble", "exec"), {})
    # At the top: so a script ends as any other one, with its tracebacks and its exit code.
    exec(*_become(_serve(socket.socket(fileno=int(sys.argv[1])))))
