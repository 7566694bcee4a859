"""The commands that look for runs: ``find``, ``export``."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from entropic.cli import exporting, options, output
from entropic.cli.columns import Column, columns, conditions, order
from entropic.cli.commands import Command, command
from entropic.cli.session import Subject, session
from entropic.ledger import of_record

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
        pages = _pages(subject, chosen, wanted, by, limit)
        if as_json:
            await _write_json(chosen, pages)
        elif output.is_terminal():
            total = await subject.ledger.queries.count(wanted)
            most = output.ROWS_ON_A_TERMINAL if limit is None else limit
            await _write_table(chosen, _pages(subject, chosen, wanted, by, most))
            if not total:
                output.note("no runs")
            if limit is None and total > most:
                output.note(f"{most:,} of {total:,} runs; --limit {total} shows all")
        else:
            await _write_lines(chosen, pages)


@command
async def export(
    db: options.Db = options.DB,
    model: options.Model = None,
    where: options.Where = None,
    sort: Sort = None,
    shown: Columns = None,
    limit: Limit = None,
    kind: Annotated[
        exporting.Format, typer.Option("--format", "-f", help="What to write.")
    ] = exporting.Format.CSV,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to; else to the output."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Write stored runs, whole, for another program: as CSV, JSON or Parquet.

    Of CSV and Parquet, JSON columns are texts. Parquet needs pyarrow or polars, and a file.
    """
    async with session(db, lock_timeout) as opened:
        subject = opened.subject(model)
        wanted = conditions(subject.reflected, where or ())
        chosen = columns(subject.reflected, shown) if shown else _all_columns(subject)
        by = order(subject.reflected, sort)
        with exporting.opened(kind, out, [c.name for c in chosen], force=force) as writer:
            async for rows in _pages(subject, chosen, wanted, by, limit):
                writer.write(rows)


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

Row = Sequence[Any]


def _all_columns(subject: Subject) -> list[Column]:
    every = ("id", *subject.reflected.identity.parameters, "result_file", "created_at")
    return columns(subject.reflected, ",".join((*every, "custom_data")))


async def _pages(
    subject: Subject,
    chosen: Sequence[Column],
    wanted: Sequence[Any],
    by: Any,
    limit: int | None,
) -> AsyncIterator[list[Row]]:
    """What is shown of each run, some at a time."""
    async with aclosing(subject.ledger.queries.pages(wanted, by, limit)) as pages:
        async for entries in pages:
            records = map(of_record, entries)
            yield [[column.of(record) for column in chosen] for record in records]


async def _write_json(chosen: Sequence[Column], pages: AsyncIterator[list[Row]]) -> None:
    listed = output.JsonList()
    names = [column.name for column in chosen]
    async for rows in pages:
        for row in rows:
            listed.add(dict(zip(names, row, strict=True)))
    listed.end()


async def _write_table(chosen: Sequence[Column], pages: AsyncIterator[list[Row]]) -> None:
    rows = [row async for page in pages for row in page]
    output.write_rows([column.name for column in chosen], rows)


async def _write_lines(chosen: Sequence[Column], pages: AsyncIterator[list[Row]]) -> None:
    output.write_line(column.name for column in chosen)
    async for rows in pages:
        for row in rows:
            output.write_line(row)
