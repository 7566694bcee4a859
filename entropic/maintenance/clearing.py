"""``gc``: what can go is listed first, and then goes the way that a store deletes."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from entropic._shield import in_own_thread
from entropic.artifacts import ResultsFolder
from entropic.artifacts.finding import size_of
from entropic.ledger import Entry, Ledger, of_record
from entropic.maintenance.policy import (
    Chosen,
    Kept,
    Policy,
    Reason,
    failures_to_go,
    is_older,
    runs_left_alone,
    runs_to_go,
)
from entropic.maintenance.seeing import is_foreign, lost
from entropic.models import as_utc
from entropic.pipeline import Pipeline
from entropic.pipeline.lookup import found_at

# In one transaction, while nobody else can write.
_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to go of one model.

    Attributes:
        chosen: What is to go.
        skipped: What might go, and is left alone, as the folder of its result cannot be seen.
    """

    chosen: list[Chosen]
    skipped: list[Kept]


@dataclass(frozen=True, slots=True)
class Cleared:
    """What has gone.

    Attributes:
        runs: The ids of runs whose row and result were removed.
        orphans: The ids of runs without a row whose result was removed.
        failures: How many failures on record were forgotten.
    """

    runs: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    failures: int = 0


async def choose(
    ledger: Ledger[Any], folder: ResultsFolder, policy: Policy, now: float | None = None
) -> Plan:
    """What is to go, by a policy; nothing is changed.

    Args:
        ledger: The rows of one model.
        folder: Its results.
        policy: What may stay.
        now: Seconds since 1970; by default, the time.

    Raises:
        DatabaseError: The database failed.
    """
    at = time.time() if now is None else now
    plan = Plan([], [])
    chosen = plan.chosen
    if policy.older_than is not None or policy.keep_size is not None:
        kept = [run async for run in _kept(ledger, folder, policy, at)]
        chosen += runs_to_go(kept, policy, at)
        plan.skipped.extend(runs_left_alone(kept, policy, at))
    if policy.orphans and folder.id:
        chosen += await _orphans(ledger, folder)
    if policy.failures_older_than is not None:
        failed = await ledger.survey.failed()
        known = [Kept(one.id, one.token, one.at, is_busy=one.is_running) for one in failed]
        chosen += failures_to_go(known, policy, at)
    return plan


async def carry_out(pipeline: Pipeline[Any], chosen: Sequence[Chosen]) -> Cleared:
    """Remove what was chosen, a hundred at a time; what was run again since stays.

    Args:
        pipeline: Of the same model, over the same folder.
        chosen: What is to go.

    Returns:
        What has gone.

    Raises:
        ResultsDirError: A result could not be removed; it and its row stay.
        DatabaseError: The database failed; what was removed before stays so.
    """
    orphans: list[str] = []
    failures = 0
    deleter = pipeline.deleter
    old = [(run.id, run.token) for run in _runs(chosen, "age", "size")]
    runs = await deleter.delete_all(old, remove_file=True, spares_claimed=True)
    for tokens in _parts(chosen, "orphan"):
        orphans += await deleter.disown(tokens)
    for tokens in _parts(chosen, "failure"):
        failures += await pipeline.forget_failures(tokens)
    return Cleared(tuple(runs), tuple(orphans), failures)


async def _kept(
    ledger: Ledger[Any], folder: ResultsFolder, policy: Policy, now: float
) -> AsyncIterator[Kept]:
    async with aclosing(ledger.queries.pages([], "id")) as pages:
        async for page in pages:
            for run in await in_own_thread(_kept_of, page, folder, policy, now):
                yield run


def _kept_of(
    page: Sequence[Entry[Any]], folder: ResultsFolder, policy: Policy, now: float
) -> list[Kept]:
    """In a thread: it may look at files."""
    return [_one_kept(entry, folder, policy, now) for entry in page]


def _one_kept(entry: Entry[Any], folder: ResultsFolder, policy: Policy, now: float) -> Kept:
    record, result = of_record(entry), entry.result
    created = as_utc(record.created_at).timestamp()
    at = max(created, result.started_at or created)
    path = found_at(folder, record.id, entry)
    is_counted = policy.keep_size is not None or is_older(at, policy.older_than, now)
    return Kept(
        record.id,
        entry.published,
        at,
        _bytes(folder, record.id, entry, path) if is_counted and path is not None else 0,
        path,
        entry.is_claimed,
        result.registered_path is not None or is_foreign(entry),
        lost(folder, entry),
        result.started_at,
    )


def _bytes(folder: ResultsFolder, id: str, entry: Entry[Any], path: str) -> int:
    """What a run takes on the disk, as it is now."""
    size = size_of(path)
    if entry.result.companions:
        home, name = os.path.split(path)
        size += size_of(ResultsFolder(home, folder.suffix).companions(name, id))
    return size


async def _orphans(ledger: Ledger[Any], folder: ResultsFolder) -> list[Chosen]:
    traces = await ledger.survey.traces(folder.id)

    def there() -> list[Chosen]:
        return [
            Chosen("orphan", Kept(trace.id, trace.token, size=size_of(path), path=path))
            for trace in traces
            if os.path.lexists(path := folder.given(trace.name))
        ]

    return await in_own_thread(there)


def _runs(chosen: Sequence[Chosen], *reasons: Reason) -> list[Kept]:
    return [one.run for one in chosen if one.reason in reasons]


def _parts(chosen: Sequence[Chosen], reason: Reason) -> list[dict[str, int]]:
    """The runs that go for a reason, with their tokens, as many at a time as go at once."""
    runs = _runs(chosen, reason)
    parts = (runs[start : start + _AT_ONCE] for start in range(0, len(runs), _AT_ONCE))
    return [{run.id: run.token for run in part} for part in parts]
