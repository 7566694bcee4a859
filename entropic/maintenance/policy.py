"""What ``gc`` removes, decided from what is known of each run: pure, nothing is touched."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["age", "size", "orphan", "failure"]
"""Why something goes: it is older than it may be; all together are larger than they may be; its
row was deleted before; it is a failure on record that is older than it may be."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What may stay.

    Attributes:
        older_than: Seconds: runs whose result is older go.
        keep_size: Bytes that all results together may have: the oldest go until it is so.
        orphans: Whether results go whose row has been deleted.
        failures_older_than: Seconds: failures on record that are older go.
    """

    older_than: float | None = None
    keep_size: int | None = None
    orphans: bool = False
    failures_older_than: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """One stored run, or what is left of one.

    Attributes:
        id: The run id.
        token: That of its last owner: another one means that it was run again since.
        at: When its result was made, in seconds since 1970; of a failure, when it failed.
        size: Bytes of the result and what lies beside it.
        path: Where the result is.
        is_busy: Whether somebody is running it now.
        is_registered: Whether its result was made elsewhere, so that the file is its user's.
        lost: Why the folder of its result cannot be seen: the row is all that tells of it.
        started_at: When it was started, in seconds since 1970, where that is known: of those that
            were stored in the same moment, it tells which is older.
    """

    id: str
    token: int
    at: float | None = None
    size: int = 0
    path: str | None = None
    is_busy: bool = False
    is_registered: bool = False
    lost: str | None = None
    started_at: float | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Something that is to go.

    Attributes:
        reason: Why.
        run: What.
    """

    reason: Reason
    run: Kept


def runs_to_go(kept: Iterable[Kept], policy: Policy, now: float) -> list[Chosen]:
    """Those of some stored runs that are to go, the oldest first.

    What is being run is left alone, and so is what was registered, as its file is not ours, and
    what cannot be seen: without its row, nobody would know of its file any more.

    Args:
        kept: The stored runs.
        policy: What may stay.
        now: Seconds since 1970.
    """
    ours = [run for run in _ours(kept) if run.lost is None]
    old = [run for run in ours if is_older(run.at, policy.older_than, now)]
    young = [run for run in ours if not is_older(run.at, policy.older_than, now)]
    return [*(Chosen("age", run) for run in old), *_too_large(young, policy.keep_size)]


def runs_left_alone(kept: Iterable[Kept], policy: Policy, now: float) -> list[Kept]:
    """Those that might go, if they could be seen; the oldest first.

    Arguments are those of ``runs_to_go``.
    """
    may_be_too_much = policy.keep_size is not None
    return [
        run
        for run in _ours(kept)
        if run.lost is not None and (may_be_too_much or is_older(run.at, policy.older_than, now))
    ]


def failures_to_go(failed: Iterable[Kept], policy: Policy, now: float) -> list[Chosen]:
    """Those failures that are to go; one that nobody knows the age of goes only with all."""
    return [
        Chosen("failure", run)
        for run in failed
        if not run.is_busy and is_older(run.at, policy.failures_older_than, now)
    ]


def is_older(at: float | None, seconds: float | None, now: float) -> bool:
    """Whether what is of some moment is older than it may be; of none, only than 0 seconds.

    Args:
        at: In seconds since 1970.
        seconds: How old it may be; ``None`` for as old as it likes.
        now: Seconds since 1970.
    """
    if seconds is None:
        return False
    if at is None:
        return seconds <= 0
    return at < now - seconds


def _ours(kept: Iterable[Kept]) -> list[Kept]:
    ours = (run for run in kept if not (run.is_busy or run.is_registered))
    return sorted(ours, key=lambda run: (run.at or 0.0, run.started_at or 0.0, run.id))


def _too_large(by_age: Sequence[Kept], most: int | None) -> list[Chosen]:
    """The oldest of some runs, so that those that stay have no more bytes than they may."""
    if most is None:
        return []
    total = sum(run.size for run in by_age)
    chosen = []
    for run in by_age:
        if total <= most:
            break
        total -= run.size
        chosen.append(Chosen("size", run))
    return chosen
