"""``python -m entropic``, and the command ``entropic``: the command line, where it is installed."""

import io
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # rather than a traceback
    app(prog_name="entropic")


if __name__ == "__main__":
    main()
