"""The commands that change something: ``recover``, ``gc``, ``delete``.

Each reads first, through a connection that cannot write. What it then does, it does as a store.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

from entropic.artifacts import ResultsFolder
from entropic.cli import amounts, options, output
from entropic.cli.asking import confirm
from entropic.cli.columns import conditions
from entropic.cli.commands import Command, command
from entropic.cli.ending import AnswerError, UsageError, tell
from entropic.cli.session import Session, Subject, session
from entropic.errors import SchemaError
from entropic.identity import checked_id
from entropic.maintenance.clearing import Cleared, Plan, carry_out, choose
from entropic.maintenance.policy import Policy
from entropic.maintenance.recovering import is_known_by
from entropic.maintenance.seeing import first_lost
from entropic.maintenance.stores import keeper
from entropic.models import Base
from entropic.models.showing import spell_bytes
from entropic.pipeline import Pipeline
from entropic.recovery import Recovered


@command
async def recover(
    db: options.Db = options.DB,
    model: options.Model = None,
    results_dir: options.ResultsDir = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Store what a crash has left finished, discard what it has left unfinished.

    A store does so by itself when it opens. What somebody is at work on is left alone, and so are
    files that no row knows (strays), which are listed.
    """
    told = []
    async with session(db, lock_timeout, is_mended=True) as opened:
        subjects = [one for one in opened.subjects(model) if one.reflected.nonce is not None]
        folders = [(one, await opened.results_to_change(one, results_dir)) for one in subjects]
        for subject, _ in folders:
            await _check_known(subject)
        for path in dict.fromkeys(folder.spelled for _, folder in folders):
            confirm(yes, f"recover what was left in {path!r}?")
        for subject, folder in folders:
            async with _keeper(opened, subject, folder, lock_timeout) as pipeline:
                found = await pipeline.recover()
            told.append((subject.reflected.name, found))
    if as_json:
        output.write_json([_recovered(name, found) for name, found in told])
        return
    rows = [(what, one, name) for name, found in told for what, one in _each(found)]
    output.write_rows(("what", "which", "model"), rows)


@command
async def gc(
    db: options.Db = options.DB,
    model: options.Model = None,
    results_dir: options.ResultsDir = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="TIME", help="Runs older than this, such as 30d."),
    ] = None,
    keep_size: Annotated[
        str | None,
        typer.Option(
            "--keep-size",
            metavar="SIZE",
            help="The oldest runs, until all results of a model fit into this, such as 10GB.",
        ),
    ] = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Results of ours whose row has been deleted.")
    ] = False,
    failures_older_than: Annotated[
        str | None,
        typer.Option(
            "--failures-older-than", metavar="TIME", help="Failures on record; 0s for all."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Remove them; else they are only listed.")
    ] = False,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """List, and with --yes remove, what is old, too much or of no use.

    Rows go together with their results. What somebody is running is left alone, and so is what
    lies in a folder that cannot be seen; what has been run again since it was listed stays, and
    so do registered results, which are your own, and files that no row knows.
    """
    policy = Policy(
        amounts.seconds("--older-than", older_than),
        amounts.size("--keep-size", keep_size),
        orphans,
        amounts.seconds("--failures-older-than", failures_older_than),
    )
    if policy == Policy():
        raise UsageError(
            "gc needs to be told what may go: --older-than, --keep-size, --orphans,"
            " --failures-older-than"
        )
    plans: list[tuple[str, Plan]] = []
    cleared = []
    async with session(db, lock_timeout, is_mended=yes) as opened:
        subjects = [one for one in opened.subjects(model) if not await _is_empty(one)]
        # All of them first: nothing goes where one of them is not as it should be.
        folders = [(one, await opened.results_to_change(one, results_dir)) for one in subjects]
        for subject, folder in folders:
            plan = await choose(subject.ledger, folder, policy)
            plans.append((subject.reflected.name, plan))
            if yes and plan.chosen:
                async with _keeper(opened, subject, folder, lock_timeout) as pipeline:
                    cleared.append(await carry_out(pipeline, plan.chosen))
    _write_plans(plans, cleared if yes else None, as_json)


@command
async def delete(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Run ids.")] = None,
    db: options.Db = options.DB,
    model: options.Model = None,
    where: options.Where = None,
    remove_file: Annotated[
        bool,
        typer.Option("--remove-file", help="Remove the results, too, registered ones included."),
    ] = False,
    results_dir: options.ResultsDir = None,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Delete runs: by their ids, or by conditions; by both, those that meet both.

    The results stay, unless you say --remove-file.
    """
    if not (ids or where):
        raise UsageError("delete needs ids, or --where: which runs are to go?")
    asked = [checked_id(id) for id in ids or ()]
    async with session(db, lock_timeout, is_mended=True) as opened:
        subject = await _holder(opened, model, asked)
        wanted = conditions(subject.reflected, where or ())
        there = await _there(subject, asked, wanted)
        if not there:
            raise AnswerError(f"{opened.named} has no such run")
        results = " and their results" if remove_file else ""
        count = "1 run" if len(there) == 1 else f"{len(there):,} runs"
        async with _results(opened, subject, results_dir, needed=remove_file) as folder:
            if remove_file:
                await _check_seen(subject, folder, [id for id, _ in there])
            confirm(yes, f"delete {count} of {subject.reflected.name}{results}?")
            async with _keeper(opened, subject, folder, lock_timeout) as pipeline:
                gone = await pipeline.deleter.delete_all(there, remove_file=remove_file)
    if as_json:
        output.write_json({"model": subject.reflected.name, "deleted": gone})
    else:
        output.write_rows(("deleted",), [(id,) for id in gone])


_MOST_LOOKED_AT: Final = 100

COMMANDS: Final = (
    Command(
        recover,
        "entropic recover --db runs.sqlite3",
        "entropic recover --db runs.sqlite3 --results-dir /data/results --yes",
    ),
    Command(
        gc,
        "entropic gc --db runs.sqlite3 --older-than 30d",
        "entropic gc --db runs.sqlite3 --keep-size 10GB --orphans --yes",
        "entropic gc --db runs.sqlite3 --failures-older-than 1w --yes",
    ),
    Command(
        delete,
        "entropic delete f444a074a2e52bf9 --db runs.sqlite3",
        "entropic delete --db runs.sqlite3 --where 'dt>=0.1' --remove-file --yes",
    ),
)


@asynccontextmanager
async def _keeper(
    opened: Session, subject: Subject, folder: ResultsFolder, lock_timeout: float
) -> AsyncIterator[Pipeline[Base]]:
    """What changes a model's runs; whatever it warns of is told."""
    model = subject.reflected.model
    warnings = _Warnings(logging.WARNING)
    logger = logging.getLogger("entropic")
    logger.addHandler(warnings)
    try:
        async with AsyncExitStack() as stack:
            with _table_told(subject):
                keeping = keeper(model, folder, opened.url, lock_timeout=lock_timeout)
                pipeline = await stack.enter_async_context(keeping)
            yield pipeline
    finally:
        logger.removeHandler(warnings)


@contextmanager
def _table_told(subject: Subject) -> Iterator[None]:
    """Say of a table that cannot be opened what it has: there is no model to be changed."""
    try:
        yield
    except SchemaError as error:
        name, odd = subject.reflected.name, subject.reflected.as_stored
        if not odd:
            raise
        columns = ", ".join(f"{name}.{column} is {kind}" for column, kind in odd.items())
        raise SchemaError(
            f"the table {name!r} cannot be changed from here, as entropic 3 has no such columns:"
            f" {columns}; its rows can be read, and removed by your own store or with SQL"
        ) from error


class _Warnings(logging.Handler):
    """What the library warns of, such as a run that cannot be recovered, for whoever watches."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the message; where it came from is for a log."""
        tell(record.getMessage())


@asynccontextmanager
async def _results(
    opened: Session, subject: Subject, results_dir: Path | None, *, needed: bool
) -> AsyncIterator[ResultsFolder]:
    """A model's results folder; an empty one where it is gone, and no result is to be touched."""
    try:
        folder = await opened.results_to_change(subject, results_dir, removes=needed)
    except UsageError:
        if needed or results_dir is not None:
            raise
        with TemporaryDirectory() as nothing:
            yield ResultsFolder(nothing, "")
        return
    yield folder


async def _check_seen(subject: Subject, folder: ResultsFolder, ids: Sequence[str]) -> None:
    """Raise ``UsageError`` where the result of a run is in a folder that cannot be seen."""
    if found := await first_lost(subject.ledger, folder, ids):
        id, why = found
        raise UsageError(
            f"the result of {id} cannot be removed: {why}; without --remove-file, its row goes"
        )


async def _is_empty(subject: Subject) -> bool:
    """Whether there is nothing of a model that could go."""
    totals = await subject.ledger.survey.totals()
    return not (totals.runs or totals.attempts)


async def _holder(opened: Session, model: str | None, ids: Sequence[str]) -> Subject:
    """The model that is named, or the only one, or the only one that has these runs."""
    subjects = opened.subjects(model)
    if len(subjects) == 1 or not ids:
        return opened.subject(model)
    holders = [one for one in subjects if await _there(one, ids, [])]
    if len(holders) > 1:
        return opened.subject(model)
    return holders[0] if holders else subjects[0]


async def _there(
    subject: Subject, ids: Sequence[str], wanted: Sequence[Any]
) -> list[tuple[str, int]]:
    """The runs that are meant, each with the token of its result."""
    model = subject.reflected.model
    among = [model.id.in_(ids)] if ids else []
    return await subject.ledger.queries.tokens([*wanted, *among])


async def _check_known(subject: Subject) -> None:
    """Raise ``UsageError`` where what is staged could be stored as what it is not."""
    last = await subject.ledger.queries.entries([], "-created_at", limit=_MOST_LOOKED_AT)
    if not is_known_by(subject.reflected.identity, last):
        raise UsageError(
            f"what is stored of {subject.reflected.name} does not tell which types its parameters"
            " have in Python, so that a run could be stored as what it is not: open your own"
            " store, which recovers by itself"
        )


def _each(found: Recovered) -> list[tuple[str, str]]:
    return [
        *(("stored", id) for id in found.published),
        *(("discarded", id) for id in found.discarded),
        *(("stray", path) for path in found.strays),
    ]


def _recovered(name: str, found: Recovered) -> dict[str, Any]:
    return {
        "model": name,
        "stored": found.published,
        "discarded": found.discarded,
        "strays": found.strays,
    }


def _write_plans(
    plans: Sequence[tuple[str, Plan]], cleared: list[Cleared] | None, as_json: bool
) -> None:
    listed = [(name, one) for name, plan in plans for one in plan.chosen]
    skipped = [(name, run) for name, plan in plans for run in plan.skipped]
    size = sum(one.run.size for _, one in listed)
    names = ("reason", "id", "model", "bytes", "path")
    rows = [(one.reason, one.run.id, name, one.run.size, one.run.path) for name, one in listed]
    removed = [id for one in cleared or () for id in (*one.runs, *one.orphans)]
    forgotten = sum(one.failures for one in cleared or ())
    if as_json:
        output.write_json(
            {
                "dry_run": cleared is None,
                "chosen": [dict(zip(names, row, strict=True)) for row in rows],
                "skipped": [
                    {"id": run.id, "model": name, "told": run.lost} for name, run in skipped
                ],
                "bytes": size,
                "removed": removed,
                "failures_forgotten": forgotten,
            }
        )
        return
    output.write_rows(names, rows)
    for name, run in skipped:
        tell(f"{run.id} of {name} is skipped: {run.lost}")
    if cleared is None:
        told = f"{len(listed):,} to remove, {spell_bytes(size)}; --yes removes them"
    else:
        told = f"{len(removed):,} removed, {forgotten:,} failures forgotten"
    tell(f"{told}; {len(skipped):,} skipped" if skipped else told)
