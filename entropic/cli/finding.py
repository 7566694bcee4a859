"""The commands that look for runs: ``find``, ``export``."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from entropic.cli import formats, options, output
from entropic.cli.columns import Column, columns, conditions, order, rows_of
from entropic.cli.commands import Command, command
from entropic.cli.ending import UsageError
from entropic.cli.session import Subject, session
from entropic.ledger import of_record
from entropic.models import Base

_MOST: Final = 2**62  # what any database can count

Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        "-c",
        metavar="NAMES",
        help="What to show, in this order: columns and custom.KEY, with commas.",
    ),
]
Sort = Annotated[
    str | None,
    typer.Option(
        "--sort",
        "-s",
        metavar="NAMES",
        help="What to sort by; -NAME for the largest first. By default the oldest come first.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", "-n", min=0, max=_MOST, metavar="N", help="At most so many runs."),
]


@command
async def find(
    db: options.Db = options.DB,
    model: options.Model = None,
    where: options.Where = None,
    sort: Sort = None,
    shown: Columns = None,
    limit: Limit = None,
    count: Annotated[bool, typer.Option("--count", help="Print only how many there are.")] = False,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Find stored runs by what they hold.

    A terminal gets the first 100, cut to its width; a pipe gets all, a run a line, with tabs.
    """
    async with session(db, lock_timeout) as opened:
        subject = opened.subject(model)
        wanted = conditions(subject.reflected, where or ())
        if count:
            found = await subject.ledger.queries.count(wanted)
            output.write_json(found) if as_json else typer.echo(found)
            return
        chosen = columns(subject.reflected, shown)
        by = order(subject.reflected, sort)
        if output.is_terminal() and not as_json:
            await _write_table(subject, chosen, wanted, by, limit)
            return
        writer = formats.Json(sys.stdout, chosen) if as_json else formats.Lines(chosen)
        async for records in _pages(subject, wanted, by, limit):
            writer.write(records)
        writer.end()


@command
async def export(
    db: options.Db = options.DB,
    model: options.Model = None,
    where: options.Where = None,
    sort: Sort = None,
    shown: Columns = None,
    limit: Limit = None,
    kind: Annotated[
        formats.Format | None,
        typer.Option("--format", "-f", help="What to write; by default CSV."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; else to the output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Write stored runs, whole, for another program: as CSV, JSON or Parquet.

    In CSV and Parquet, what is JSON is text; a Parquet file has the columns of to_polars, so one
    for each key of custom_data. It needs polars, and --output.
    """
    if as_json and kind not in (None, formats.Format.JSON):
        raise UsageError(f"--json is --format json, and not {kind}: say one of them")
    chosen_kind = formats.Format.JSON if as_json else kind or formats.Format.CSV
    async with session(db, lock_timeout) as opened:
        subject = opened.subject(model)
        wanted = conditions(subject.reflected, where or ())
        chosen = _all_columns(subject) if shown is None else columns(subject.reflected, shown)
        by = order(subject.reflected, sort)
        with formats.opened(chosen_kind, out, chosen, force=force) as writer:
            async for records in _pages(subject, wanted, by, limit):
                writer.write(records)


COMMANDS: Final = (
    Command(
        find,
        "entropic find --db runs.sqlite3 --where 'dt<0.01' --sort -created_at",
        "entropic find --db runs.sqlite3 -w 'n>=10 and label=\"a b\"' -c id,n,custom.git_sha",
        "entropic find --db runs.sqlite3 -w custom.git_sha=abc123 --json | jq '.[].result_file'",
        "entropic find --db runs.sqlite3 -w 'created_at>=2026-01-31' --count",
    ),
    Command(
        export,
        "entropic export --db runs.sqlite3 --format csv > runs.csv",
        "entropic export --db runs.sqlite3 -f parquet -o runs.parquet -w 'dt<0.01'",
    ),
)


def _all_columns(subject: Subject) -> list[Column]:
    every = ("id", *subject.reflected.identity.parameters, "result_file", "created_at")
    return columns(subject.reflected, ",".join((*every, "custom_data")))


async def _pages(
    subject: Subject, wanted: Sequence[Any], by: Any, limit: int | None
) -> AsyncIterator[list[Base]]:
    """The records of some runs, some at a time."""
    async with aclosing(subject.ledger.queries.pages(wanted, by, limit)) as pages:
        async for entries in pages:
            yield [of_record(entry) for entry in entries]


async def _write_table(
    subject: Subject, chosen: Sequence[Column], wanted: Sequence[Any], by: Any, limit: int | None
) -> None:
    """For a terminal: some, and a remark that there are more."""
    total = await subject.ledger.queries.count(wanted)
    most = output.ROWS_ON_A_TERMINAL if limit is None else limit
    pages = _pages(subject, wanted, by, most)
    records = [record async for page in pages for record in page]
    output.write_rows([column.name for column in chosen], rows_of(chosen, records))
    if not total:
        output.note("no runs")
    if limit is None and total > most:
        output.note(f"{most:,} of {total:,} runs; --limit {total} shows all")
