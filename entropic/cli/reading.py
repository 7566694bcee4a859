"""The commands that show what is stored: ``ls``, ``stats``, ``failures``, ``show``."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from entropic.cli import options, output
from entropic.cli.commands import Command, command
from entropic.cli.ending import AnswerError, UsageError, tell
from entropic.cli.session import Session, Subject, session
from entropic.errors import Failure
from entropic.ledger import Entry, State, of_record
from entropic.ledger.survey import Totals
from entropic.models.showing import spell_bytes, spell_seconds
from entropic.pipeline.lookup import found_at


@command
async def ls(
    db: options.Db = options.DB,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """List the models of a database, and how many runs each has."""
    async with session(db, lock_timeout) as opened:
        listed = [
            _line(subject, await subject.ledger.survey.totals())
            for subject in opened.subjects(None)
        ]
        for lost in opened.reflection.lost:
            tell(f"the table of {lost!r} is gone, and its bookkeeping is not")
        for name, why in opened.reflection.odd.items():
            tell(f"the table {name!r} is left out: {why}")
    if as_json:
        output.write_json(listed)
        return
    _write_table([{**one, "parameters": ", ".join(one["parameters"])} for one in listed])


@command
async def stats(
    db: options.Db = options.DB,
    model: options.Model = None,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Count what each model holds: runs, what they took, how large their results are.

    Time saved is what runners have taken for what is stored now: each sweep of all of it saves so
    much. Sizes are those of the results as recorded: without other files that lie beside them,
    and without registered results.
    """
    async with session(db, lock_timeout) as opened:
        told = {
            subject.reflected.name: await subject.ledger.survey.totals()
            for subject in opened.subjects(model)
        }
    if as_json:
        output.write_json([_stats(name, totals) for name, totals in told.items()])
        return
    for at, (name, totals) in enumerate(told.items()):
        if at:
            typer.echo()
        output.write_fields(_told_stats(name, totals))


@command
async def failures(
    db: options.Db = options.DB,
    model: options.Model = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", "-t", help="Print each traceback, too.")
    ] = False,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """List the runs that have failed, and not succeeded since."""
    listed = []
    async with session(db, lock_timeout) as opened:
        for subject in opened.subjects(model):
            name = subject.reflected.name
            listed += [_failure(name, f) for f in await subject.ledger.failures()]
    if as_json:
        output.write_json(listed)
    elif traceback:
        _write_tracebacks(listed)
    else:
        _write_table([{k: v for k, v in one.items() if k != "traceback"} for one in listed])


@command
async def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The run id, or how it begins.")],
    db: options.Db = options.DB,
    model: options.Model = None,
    results_dir: options.ResultsDir = None,
    as_json: options.AsJson = False,
    lock_timeout: options.LockTimeout = options.LOCK_TIMEOUT,
) -> None:
    """Show one run: its parameters, its result, and what is known of how it came about."""
    async with session(db, lock_timeout) as opened:
        subject, found = await _one_run(opened, model, id)
        entry = (await subject.ledger.look_up([found]))[found]
        state = (await subject.ledger.states([found]))[found]
        path = await _path(opened, subject, found, entry, results_dir)
    shown = _shown(subject, found, entry, state, path)
    if as_json:
        output.write_json(shown)
        return
    parameters = shown.pop("parameters")
    parts = {"id": shown.pop("id"), "model": shown.pop("model"), **parameters, **shown}
    output.write_fields({name: value for name, value in parts.items() if value is not None})


COMMANDS: Final = (
    Command(
        ls,
        "entropic ls",
        "entropic ls --db runs.sqlite3",
        "entropic ls --db postgresql://me@host/runs --json",
    ),
    Command(
        stats,
        "entropic stats --db runs.sqlite3",
        "entropic stats --db runs.sqlite3 --model results --json",
    ),
    Command(
        failures,
        "entropic failures --db runs.sqlite3",
        "entropic failures --db runs.sqlite3 --traceback | less",
    ),
    Command(
        show,
        "entropic show f444a074a2e52bf9 --db runs.sqlite3",
        "entropic show f444 --db runs.sqlite3 --json",
    ),
)


def _line(subject: Subject, totals: Totals) -> dict[str, Any]:
    return {
        "model": subject.reflected.name,
        "runs": totals.runs,
        "running": totals.running,
        "failed": totals.failed,
        "last": totals.last,
        "parameters": list(subject.reflected.identity.parameters),
    }


def _stats(name: str, totals: Totals) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "model": name,
        "runs": totals.runs,
        "registered": totals.registered,
        "running": totals.running,
        "failed": totals.failed,
        "attempts": totals.attempts,
        "seconds_saved": totals.elapsed_seconds,
        "bytes": totals.size,
        "runs_without_size": _unsized(totals),
        "first": totals.first,
        "last": totals.last,
    }


def _told_stats(name: str, totals: Totals) -> dict[str, Any]:
    unsized = _unsized(totals)
    beside = f" (and {unsized:,} runs whose size is not)" if unsized else ""
    return {
        "model": name,
        "runs": totals.runs,
        "registered": totals.registered,
        "running": totals.running,
        "failed": totals.failed,
        "attempts": totals.attempts,
        "time saved": f"{spell_seconds(totals.elapsed_seconds)} for each sweep of all",
        "results": f"{spell_bytes(totals.size)}, as recorded{beside}",
        "first": totals.first,
        "last": totals.last,
    }


def _unsized(totals: Totals) -> int:
    return totals.runs - totals.registered - totals.sized


def _failure(model: str, failure: Failure) -> dict[str, Any]:
    error: Any = failure.exception
    return {
        "id": failure.id,
        "model": model,
        "attempts": failure.attempts,
        "type": error.type_name,
        "message": str(error),
        "params": dict(failure.params),
        "traceback": failure.traceback,
    }


def _write_table(listed: list[dict[str, Any]]) -> None:
    if listed:
        output.write_rows(list(listed[0]), [list(one.values()) for one in listed])


def _write_tracebacks(listed: list[dict[str, Any]]) -> None:
    for one in listed:
        params = ", ".join(f"{name}={value!r}" for name, value in one["params"].items())
        text = one["traceback"].rstrip() or f"{one['type']}: {one['message']}"
        output.write_text(f"{one['id']} of {one['model']} ({params})\n{text}")
        typer.echo()


async def _one_run(opened: Session, model: str | None, id: str) -> tuple[Subject, str]:
    """The run of an id, or of the only one that begins so."""
    found = []
    for subject in opened.subjects(model):
        if await _has_row(subject, id):
            found.append((subject, id))
            continue
        begins = subject.reflected.model.id.startswith(id, autoescape=True)
        those = await subject.ledger.queries.tokens([begins], limit=3)
        found += [(subject, one) for one, _ in those]
    if not found:
        raise AnswerError(f"{opened.named} has no run {id!r}")
    if len(found) > 1:
        some = ", ".join(f"{one} ({subject.reflected.name})" for subject, one in found[:3])
        raise UsageError(f"{id!r} is the beginning of several runs' ids: {some}, ...")
    return found[0]


async def _has_row(subject: Subject, id: str) -> bool:
    return (await subject.ledger.look_up([id]))[id].record is not None


async def _path(
    opened: Session, subject: Subject, id: str, entry: Entry[Any], results_dir: Path | None
) -> str | None:
    """Where a run's result is here and now; ``None`` where it is not."""
    try:
        folder = await opened.results(subject, results_dir)
    except UsageError:
        if results_dir is not None:
            raise
        return None
    return found_at(folder, id, entry)


def _shown(
    subject: Subject, id: str, entry: Entry[Any], state: State, path: str | None
) -> dict[str, Any]:
    record, result = of_record(entry), entry.result
    return {
        "id": id,
        "model": subject.reflected.name,
        "parameters": dict(entry.values),
        "created_at": record.created_at,
        "result_file": record.result_file,
        "found_at": path,
        "is_registered": result.registered_path is not None,
        "is_running": entry.is_claimed,
        "size": result.size,
        "digest": result.digest,
        "companions": result.companions,
        "host": result.host,
        "started_at": _moment(result.started_at),
        "elapsed_seconds": result.elapsed_seconds,
        "token": state.token or None,
        "custom_data": record.custom_data,
    }


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
