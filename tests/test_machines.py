"""Several machines that share a database and a results folder.

Each is a network namespace with a cable of its own to the server, a PID namespace and a host's
name: to each other, their processes are those of another machine.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests import databases, scripts
from tests.scripts import wait_for
from tests.simulations import calls

pytestmark = [pytest.mark.timeout(120)]


def _can_make() -> bool:
    if os.getuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    name = f"entropic{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


needs_namespaces = pytest.mark.skipif(not _can_make(), reason="needs root, iproute2 and unshare")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machine:
    """A host with a cable to this one.

    Args:
        number: Tells it from others.
    """

    def __init__(self, number: int) -> None:
        self.name = f"ent{os.getpid() % 100000}x{number}"
        self._cable = f"v{self.name}"[:13]
        self.net = f"10.{100 + os.getpid() % 100}.{number}"

    def __enter__(self) -> "Machine":
        inner = f"{self._cable}i"
        with contextlib.ExitStack() as undoing:
            _ip("netns", "add", self.name)
            undoing.callback(_ip, "netns", "del", self.name)
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", inner)
            # By itself it goes with the namespace, at some time: not before the next test, perhaps.
            undoing.callback(_ip, "link", "del", self._cable)
            _ip("link", "set", inner, "netns", self.name)
            _ip("addr", "add", f"{self.net}.1/24", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            _ip("-n", self.name, "addr", "add", f"{self.net}.2/24", "dev", inner)
            _ip("-n", self.name, "link", "set", inner, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
            self._undoing = undoing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undoing.close()

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self._cable, "down")

    def mend(self) -> None:
        """Put it back."""
        _ip("link", "set", self._cable, "up")

    @contextlib.contextmanager
    def script(self, source: str, port: int) -> Iterator[scripts.Script]:
        """A script that runs there."""
        url = sa.make_url(databases.url())
        there = f"postgresql://{url.username}@{self.net}.1:{port}/{url.database}"
        prefix = ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--mount-proc"]
        prefix += ["--kill-child", "--uts", "sh", "-c", f'hostname {self.name}; exec "$0" "$@"']
        with scripts.script(source, prefix=prefix, db_url=there, name=self.name) as started:
            yield started


class Forwarder:
    """The server's socket, at a port that other machines reach."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("0.0.0.0", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                target.sendall(part)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """Where the machines find the server, with a database of the test's own."""
    with databases.made("postgresql") as place:
        host = sa.make_url(place.url).query.get("host")
        if host is None:
            pytest.skip("the server has no socket on this machine")
        forwarder = Forwarder(f"{host}/.s.PGSQL.5432")
        yield forwarder.port
        forwarder.close()


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two of them."""
    with Machine(1) as one, Machine(2) as two:
        yield one, two


SWEEP = """\
import socket
def run(params):
    mark_call(params)
    time.sleep(0.05)
    open(params["result_file"], "w").write(socket.gethostname())
store = make(run)
store.retrieve({"n": 0})
say("ready")
while not os.path.exists("go"):
    time.sleep(0.01)
records = store.sweep({"n": n} for n in range(60))
assert [record.n for record in records] == list(range(60))
say("hosts", *sorted({open(record.result_file).read() for record in records}))
"""

HOLDING = """\
def run(params):
    mark_call(params)
    say("in", os.getpid())
    while not os.path.exists("released"):
        time.sleep(0.01)
    open(params["result_file"], "w").write(BY)
store = make(run, lease_ttl=2.0)
say("got", store.run_or_retrieve({"n": 1}, by=BY).custom_data["by"])
"""

TAKING = """\
def run(params):
    mark_call(params)
    open(params["result_file"], "w").write("the second")
store = make(run, lease_ttl=2.0)
begun = time.monotonic()
say("got", store.run_or_retrieve({"n": 1}, by="the second").custom_data["by"])
"""


@needs_namespaces
def test_machines_share_a_sweep(port: int, machines: tuple[Machine, Machine]) -> None:
    """Each set is run by one of them, each runs some, and each gets all records in order."""
    one, two = machines
    with one.script(SWEEP, port) as first, two.script(SWEEP, port) as second:
        first.expect("ready")
        second.expect("ready")
        Path("go").touch()
        names = " ".join(sorted([one.name, two.name]))
        assert first.expect("hosts") == names
        assert second.expect("hosts") == names
    assert calls() == 60


@needs_namespaces
@pytest.mark.parametrize("how", ["killed", "paused", "cut off"])
def test_the_run_of_a_machine_that_falls_silent_is_taken_over(
    port: int, machines: tuple[Machine, Machine], how: str
) -> None:
    """When its lease has passed; if it comes back, it gets the winner's record."""
    one, two = machines
    with one.script(scripts.arguments(BY="the first") + HOLDING, port) as first:
        first.expect("in")
        group = first.process.pid
        if how == "cut off":
            one.cut()
        elif how == "killed":
            first.process.kill()
        else:
            subprocess.run(
                ["pkill", "-STOP", "-g", str(os.getpgid(group)), "-f", one.name], check=True
            )
        begun = time.monotonic()
        with two.script(TAKING, port) as second:
            assert second.expect("got") == "the second"
        assert time.monotonic() - begun < 20
        if how == "killed":
            return
        Path("released").touch()
        if how == "cut off":
            one.mend()
        else:
            subprocess.run(
                ["pkill", "-CONT", "-g", str(os.getpgid(group)), "-f", one.name], check=True
            )
        assert first.expect("got") == "the second"
    assert calls() == 2
    assert databases.ask("SELECT state, owner FROM entropic_runs") == [("done", None)]
    (result,) = Path("results").glob("*.npy")
    assert result.read_text() == "the second"
    wait_for(lambda: os.listdir("results/.entropic/staging") == [])


ELSEWHERE = """\
os.chdir(FOLDER)
store = make()
try:
    record = CALL
    say("got", record)
except Exception as error:
    say(type(error).__name__, error)
"""


@needs_namespaces
def test_a_machine_that_does_not_share_the_folder_is_told_whose_result_it_is(
    port: int, machines: tuple[Machine, Machine]
) -> None:
    """A result that another host has written is no deleted one: the error names that host."""
    one, two = machines
    for name in ("a", "b"):
        Path(name).mkdir()
    settings = scripts.arguments(FOLDER="a")
    source = ELSEWHERE.replace("CALL", 'store.run_or_retrieve({"n": 1}).n')
    with one.script(settings + source, port) as first:
        first.expect("got 1")
    settings = scripts.arguments(FOLDER="b")
    for call in ('store.retrieve({"n": 1})', 'store.sweep([{"n": 1}])'):
        with two.script(settings + ELSEWHERE.replace("CALL", call), port) as second:
            told = second.expect("ResultsDirError")
            assert one.name in told
