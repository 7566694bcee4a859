"""The commands by their names."""

import sys
from typing import Annotated

import typer

from entropic.cli import checking, finding, reading, writing

app = typer.Typer(
    name="entropic",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 the answer is no (verify has found something, there is no such"
    " run); 2 bad usage; 3 the database or the file system failed; 130 interrupted.",
)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        # Not imported: within the package, its own names would hide which module is meant.
        typer.echo(f"entropic {sys.modules['entropic'].__version__}")
        raise typer.Exit


@app.callback()
def entropic(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Look at the runs of an entropic database, check them, and clear up."""


for module in (reading, finding, checking, writing):
    for command in module.COMMANDS:
        app.command(command.function.__name__, epilog=command.epilog)(command.function)
