"""``verify``: are the results there, and as they were stored."""

from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from entropic.artifacts import ResultsFolder
from entropic.cli import options, output
from entropic.cli.commands import Command, command
from entropic.cli.ending import AnswerError, UsageError
from entropic.cli.session import Session, Subject, session
from entropic.maintenance.checking import Fault, wrong_files, wrong_rows


@command
async def verify(
    db: options.Db = options.DB,
    model: options.Model = None,
    results_dir: options.ResultsDir = None,
    digests: Annotated[
        bool,
        typer.Option(
            "--digests/--no-digests",
            help="Read each result, and compare it with its SHA-256.",
        ),
    ] = True,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Compare what rows say with what is in the results folder; change nothing.

    It finds rows whose result is missing, of another size or with another content, results of
    deleted rows (orphan) and files that no row knows (stray). The exit code is 1 where it has
    found something, and 0 where all is well.
    """
    found: list[tuple[str | None, Fault]] = []
    async with session(db, lock_timeout) as opened:
        caches = await _caches(opened, model, results_dir)
        for subject, folder in caches:
            async for batch in wrong_rows(subject.ledger, folder, digests=digests):
                found += [(subject.reflected.name, one) for one in batch]
        # What one model does not know may be another's.
        every = caches if model is None else await _caches(opened, None, results_dir)
        chosen = {folder.path for _, folder in caches}
        shared = [(one.ledger, folder) for one, folder in every if folder.path in chosen]
        found += [(None, one) for one in await wrong_files(shared)]
        runs = [await subject.ledger.queries.count([]) for subject, _ in caches]
    _write(found, as_json)
    if found:
        raise AnswerError(f"found {len(found):,} in {sum(runs):,} runs")
    output.note(f"{sum(runs):,} runs are as they were stored")


COMMANDS: Final = (
    Command(
        verify,
        "entropic verify --db runs.sqlite3",
        "entropic verify --db runs.sqlite3 --results-dir /data/results --no-digests --json",
    ),
)


async def _caches(
    opened: Session, model: str | None, results_dir: Any
) -> list[tuple[Subject, ResultsFolder]]:
    """The models that have runs, or results of deleted ones, each with its folder."""
    found = []
    for subject in opened.subjects(model):
        if await subject.ledger.queries.count([]):
            found.append((subject, await opened.results(subject, results_dir)))
            continue
        with suppress(UsageError):
            folder = await opened.results(subject, results_dir)
            if await subject.ledger.survey.traces(folder.id):
                found.append((subject, folder))
    return found


def _write(found: list[tuple[str | None, Fault]], as_json: bool) -> None:
    names = ("problem", "id", "model", "path", "told")
    rows = [(one.kind, one.id, model, one.path, one.told) for model, one in found]
    if as_json:
        output.write_json([dict(zip(names, row, strict=True)) for row in rows])
    elif rows:
        output.write_rows(names, rows)
