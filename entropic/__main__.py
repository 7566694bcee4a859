"""``python -m entropic``, and the command ``entropic``: the command line, where it is installed."""

import io
import os
import sys


def main() -> None:
    """Run the command line; end the process with its exit code."""
    try:
        from entropic.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write("entropic: the command line needs pip install 'entropic[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if sys.stderr is None:  # closed by the shell, as is said by >&-
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  as long as the process lives
    if sys.stdout is None:
        sys.stderr.write("entropic: the output is closed: send it somewhere\n")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # rather than a traceback
    app(prog_name="entropic")


if __name__ == "__main__":
    main()
