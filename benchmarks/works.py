"""The catalogue: what is measured, how much of it, and who does it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Subject:
    """One who does a work: a function of a script under ``subjects/``.

    ``needs`` names the stored rows that it reads (a function of ``stored``), if it reads any.
    ``peer`` ones run in the environment of the peers.
    """

    label: str
    script: str
    function: str
    needs: str | None = None
    peer: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One work; all subjects are compared with the first one."""

    name: str
    title: str
    unit: str
    size: int
    small_size: int
    repeats: int
    subjects: tuple[Subject, ...]


_V2: Final = "entropic 2.3.0"


def _warm(rows: int, repeats: int) -> Work:
    return Work(
        f"warm-{rows}",
        f"Warm sweep of {rows:,} stored sets",
        "row",
        rows,
        200,
        repeats,
        (
            Subject("raw sqlite3 (the floor)", "bare", "warm", "stored"),
            Subject("entropic, Store", "stores", "warm", "stored"),
            Subject("entropic, AsyncStore", "async_stores", "warm", "stored"),
            Subject(_V2, "stores", "warm", "stored_by_peer", peer=True),
        ),
    )


WORKS: Final = (
    Work(
        "cold",
        "Cold sweep of runs that do nothing, on the calling thread",
        "run",
        1_000,
        20,
        5,
        (
            Subject("a plain loop", "bare", "trivial"),
            Subject("entropic, Store", "stores", "trivial"),
            Subject(_V2, "stores", "trivial", peer=True),
        ),
    ),
    Work(
        "caller",
        "Runs of 5 ms, on the calling thread",
        "run",
        200,
        10,
        5,
        (
            Subject("a plain loop", "bare", "caller"),
            Subject('entropic, executor="caller"', "stores", "caller"),
            Subject(_V2, "stores", "caller", peer=True),
        ),
    ),
    Work(
        "thread",
        "Runs of 5 ms, in two threads",
        "run",
        400,
        20,
        5,
        (
            Subject("ThreadPoolExecutor.map", "bare", "thread"),
            Subject('entropic, executor="thread"', "async_stores", "thread"),
        ),
    ),
    Work(
        "process",
        "Runs of 5 ms, in two processes",
        "run",
        400,
        20,
        5,
        (
            Subject("ProcessPoolExecutor.map", "bare", "process"),
            Subject('entropic, executor="process"', "async_stores", "process"),
        ),
    ),
    Work(
        "dask",
        "Runs of 10 ms, on two Dask workers",
        "run",
        300,
        10,
        5,
        (
            Subject("client.map", "bare", "dask"),
            Subject("entropic, client=", "stores", "dask"),
            Subject(_V2, "stores", "dask", peer=True),
        ),
    ),
    _warm(1_000, 7),
    _warm(100_000, 3),
    Work(
        "stream",
        "Stream of 1,000,000 stored sets",
        "row",
        1_000_000,
        500,
        1,
        (
            Subject("raw sqlite3 (the floor)", "bare", "stream", "stored"),
            Subject("entropic, AsyncStore.as_completed", "async_stores", "stream", "stored"),
            Subject("entropic, Store.as_completed", "async_stores", "sync_stream", "stored"),
            Subject(f"{_V2}, sweep", "stores", "warm", "stored_by_peer", peer=True),
        ),
    ),
)
