"""The options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar="ENTROPIC_DB",
        metavar="FILE|URL",
        help="A SQLite file, or a database's URL.",
        show_envvar=True,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="TABLE", help="The model, by the name of its table."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LockTimeout = Annotated[
    float,
    typer.Option(
        "--lock-timeout", min=0.0, metavar="SECONDS", help="How long to wait for a locked database."
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help="Such as 'dt<0.01' or \"n>=10 and label='a'\"; several have all to hold.",
    ),
]
ResultsDir = Annotated[
    Path | None,
    typer.Option(
        "--results-dir", metavar="FOLDER", help="Where the results are, if not where rows say."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]

DB = "db.sqlite3"
"""What a store takes, too, where nothing is said."""

LOCK_TIMEOUT = 10.0
