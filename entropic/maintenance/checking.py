"""``verify``: is all there that the rows say, as it was stored; and what is there beside.

It looks twice at whatever seems wrong: a run that is being stored has its file a moment before its
row. Nothing is changed.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from entropic._shield import in_own_thread
from entropic.artifacts import ResultsFolder, find
from entropic.artifacts.finding import digest_of
from entropic.errors import ResultsDirError
from entropic.ledger import Entry, Ledger, Result, of_record
from entropic.models import Base
from entropic.pipeline.lookup import locate
from entropic.pipeline.strays import strays

R = TypeVar("R", bound=Base)

Kind = Literal["missing", "size", "digest", "folder", "orphan", "stray"]
"""What is wrong.

``missing``: a row without its result. ``size``, ``digest``: a result that is not what was stored.
``folder``: the whole folder of a result is not there. ``orphan``: a result of ours whose row has
been deleted. ``stray``: a file that is called as results are, and that nobody knows.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as the rows say.

    Attributes:
        kind: What is wrong.
        id: The run id; ``None`` of a stray.
        path: Where the result is, or ought to be.
        told: The same in words.
    """

    kind: Kind
    id: str | None
    path: str
    told: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What is on the disk of a run.

    Attributes:
        path: Where; where it ought to be, if there is nothing.
        is_there: Whether there is anything.
        size: Its bytes; ``None`` of a folder.
        digest: Its SHA-256, where that was asked for; empty where it cannot be read.
        lost: Why the whole folder is not there.
    """

    path: str
    is_there: bool = False
    size: int | None = None
    digest: str | None = None
    lost: str | None = None


def judged(id: str, recorded: Result, seen: Seen) -> Fault | None:
    """What is wrong with a run, by what is on record and what is on the disk."""
    if seen.lost is not None:
        return Fault("folder", id, seen.path, seen.lost)
    if not seen.is_there:
        return Fault("missing", id, seen.path, "the row is there, and its result is not")
    if None not in (recorded.size, seen.size) and recorded.size != seen.size:
        told = f"it has {seen.size:,} bytes, and was stored with {recorded.size:,}"
        return Fault("size", id, seen.path, told)
    if None not in (recorded.digest, seen.digest) and recorded.digest != seen.digest:
        return Fault(
            "digest", id, seen.path, "its content is not what was stored, or cannot be read"
        )
    return None


async def wrong_rows(
    ledger: Ledger[R], folder: ResultsFolder, *, digests: bool
) -> AsyncIterator[list[Fault]]:
    """What is wrong with the stored runs of a model, a batch at a time; empty where nothing is.

    Args:
        ledger: The rows.
        folder: The results.
        digests: Whether to read all of each result, and compare it with its digest.

    Raises:
        DatabaseError: The database failed.
    """
    async with aclosing(ledger.queries.pages([], "id")) as pages:
        async for page in pages:
            suspects = await _looked_at(folder, page, digests=digests)
            ids = [one.id for one in suspects if one.id is not None]
            again = await ledger.queries.among(ids) if ids else []
            yield await _looked_at(folder, again, digests=digests)


async def wrong_files(
    caches: Iterable[tuple[Ledger[Any], ResultsFolder]],
) -> list[Fault]:
    """The files in some models' folders that have no row; of each folder, those that none knows.

    Raises:
        ResultsDirError: A folder cannot be read.
        DatabaseError: The database failed.
    """
    found: list[Fault] = []
    for of_folder in _by_folder(caches).values():
        names = {n for _, f in of_folder for n in await in_own_thread(f.names)}
        unknown = await _unknown(of_folder, sorted(names))
        if unknown:
            unknown = await _unknown(of_folder, unknown)
        ours = {
            trace.name: trace.id
            for ledger, folder in of_folder
            for trace in await ledger.survey.traces(folder.id)
        }
        found += [_of_name(name, of_folder[0][1], ours) for name in unknown]
    return found


async def _looked_at(
    folder: ResultsFolder, entries: Sequence[Entry[Any]], *, digests: bool
) -> list[Fault]:
    if not digests:
        return await in_own_thread(_look_at, folder, entries, False)
    found = []
    for entry in entries:  # one at a time: who interrupts it waits for one to be read, not for all
        found += await in_own_thread(_look_at, folder, [entry], True)
    return found


def _look_at(folder: ResultsFolder, entries: Iterable[Entry[Any]], digests: bool) -> list[Fault]:
    """In a thread: it may read all of the results."""
    found = []
    for entry in entries:
        id = of_record(entry).id
        # What is being run again is about to be replaced.
        if not entry.is_claimed and (
            one := judged(id, entry.result, _seen(folder, id, entry, digests=digests))
        ):
            found.append(one)
    return found


def _seen(folder: ResultsFolder, id: str, entry: Entry[Any], *, digests: bool) -> Seen:
    expected = entry.result.registered_path or of_record(entry).result_file
    try:
        path = locate(folder, id, entry, of_any_size=True)
    except ResultsDirError as error:
        return Seen(expected, lost=str(error))
    there = None if path is None else find(path)
    if path is None or there is None:
        return Seen(expected)
    wants_digest = digests and entry.result.digest is not None
    return Seen(path, True, there.size, (digest_of(path) or "") if wants_digest else None)


def _by_folder(
    caches: Iterable[tuple[Ledger[Any], ResultsFolder]],
) -> dict[str, list[tuple[Ledger[Any], ResultsFolder]]]:
    found: dict[str, list[tuple[Ledger[Any], ResultsFolder]]] = {}
    for cache in caches:
        found.setdefault(cache[1].path, []).append(cache)
    return found


async def _unknown(
    caches: Sequence[tuple[Ledger[Any], ResultsFolder]], names: Sequence[str]
) -> list[str]:
    """Those names that none of some models knows which share a folder."""
    left = list(names)
    for ledger, folder in caches:
        left = await strays(ledger, folder, left, in_own_thread)
    return left


def _of_name(name: str, folder: ResultsFolder, ours: Mapping[str, str]) -> Fault:
    path = folder.given(name)
    if name in ours:
        return Fault("orphan", ours[name], path, "the row of this result has been deleted")
    return Fault("stray", None, path, "no row knows this file")
