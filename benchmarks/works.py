"""The catalogue: what is measured, how much of it, and who does it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Subject:
    """One who does a work: a function of a script under ``subjects/``.

    ``needs`` names the stored rows that it reads, if it reads any: ``rows`` of them, or as many as
    the work has, made by the function ``filler`` of the stores. ``peer`` ones run in the
    environment of the peers.
    """

    label: str
    script: str
    function: str
    needs: str | None = None
    peer: bool = False
    rows: int | None = None
    filler: str = "fill"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a subject is to reach.

    ``most`` is of another subject's time; ``growth`` of memory, in bytes.
    """

    label: str
    against: str = ""
    most: float = 0.0
    growth: int | None = None


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
    goals: tuple[Goal, ...] = ()


_V2: Final = "entropic 2.3.0"
_FLOOR: Final = "raw sqlite3 (the floor)"
_PROMISED: Final = "a loop that keeps the promises"
_STORE: Final = "entropic, Store"
_ASYNC: Final = "entropic, AsyncStore"


def _warm(rows: int, repeats: int) -> Work:
    return Work(
        f"warm-{rows}",
        f"Warm sweep of {rows:,} stored sets",
        "row",
        rows,
        200,
        repeats,
        (
            Subject(_FLOOR, "bare", "warm", "stored"),
            Subject(_STORE, "stores", "warm", "stored"),
            Subject(_ASYNC, "async_stores", "warm", "stored"),
            Subject(_V2, "stores", "warm", "stored_by_peer", peer=True),
            Subject(_PROMISED, "bare", "promised_warm", "stored"),
        ),
        (Goal(_STORE, _V2, 1 / 3), Goal(_STORE, _FLOOR, 2.5)),
    )


def _among(name: str, title: str, function: str) -> Work:
    """A sweep of a thousand sets, among more and more rows."""
    return Work(
        name,
        title,
        "set",
        1_000,
        200,
        3,
        tuple(
            Subject(
                f"{rows:,} stored rows",
                "async_stores",
                function,
                f"rows-{rows}",
                rows=rows,
                filler="fill_rows",
            )
            for rows in (1_000, 100_000, 1_000_000)
        ),
        tuple(
            Goal(f"{rows:,} stored rows", "1,000 stored rows", 1.3) for rows in (100_000, 1_000_000)
        ),
    )


WORKS: Final = (
    Work(
        "cold",
        "Cold sweep of runs that do nothing, on the calling thread",
        "run",
        500,
        20,
        5,
        (
            Subject("a plain loop", "bare", "trivial"),
            Subject(_STORE, "stores", "trivial"),
            Subject(_V2, "stores", "trivial", peer=True),
            Subject(_PROMISED, "bare", "promised"),
            Subject("joblib.Memory", "peers", "joblib_cold", peer=True),
            Subject("diskcache", "peers", "diskcache_cold", peer=True),
        ),
        (Goal(_STORE, _V2, 1 / 2.5),),
    ),
    Work(
        "one-by-one",
        "New sets, one call each, of runs that do nothing",
        "call",
        60,
        5,
        5,
        (
            Subject(_V2, "stores", "one_by_one", peer=True),
            Subject(_STORE, "stores", "one_by_one"),
            Subject(f"{_V2}, with a WAL", "stores", "one_by_one_wal", peer=True),
            Subject(f"{_STORE}, with a WAL", "stores", "one_by_one_wal"),
        ),
        (Goal(_STORE, _V2, 1.3), Goal(f"{_STORE}, with a WAL", f"{_V2}, with a WAL", 1.0)),
    ),
    Work(
        "hits",
        "Stored sets, one call each",
        "call",
        500,
        20,
        5,
        (
            Subject(_FLOOR, "bare", "hits", "stored"),
            Subject(_STORE, "stores", "hits", "stored"),
            Subject(_ASYNC, "async_stores", "hits", "stored"),
            Subject(_V2, "stores", "hits", "stored_by_peer", peer=True),
            Subject("joblib.Memory", "peers", "joblib_hits", peer=True),
            Subject("diskcache", "peers", "diskcache_hits", peer=True),
        ),
        (Goal(_ASYNC, _V2, 1 / 7), Goal(_STORE, _V2, 1 / 4)),
    ),
    Work(
        "concurrent",
        "1,000 concurrent run_or_retrieve of stored sets, beside a loop of entropic 2.3.0",
        "call",
        1_000,
        20,
        5,
        (
            Subject(_ASYNC, "async_stores", "concurrent_hits", "stored"),
            Subject(_V2, "stores", "hits", "stored_by_peer", peer=True),
        ),
        (Goal(_ASYNC, _V2, 1 / 25),),
    ),
    Work(
        "caller",
        "Runs of 5 ms, on the calling thread",
        "run",
        200,
        10,
        3,
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
        3,
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
        (Goal('entropic, executor="process"', "ProcessPoolExecutor.map", 1.3),),
    ),
    Work(
        "dask",
        "Runs of 10 ms, on two Dask workers",
        "run",
        300,
        10,
        3,
        (
            Subject("client.map", "bare", "dask"),
            Subject("entropic, client=", "stores", "dask"),
            Subject(_V2, "stores", "dask", peer=True),
        ),
        (Goal("entropic, client=", "client.map", 1.2),),
    ),
    _warm(1_000, 7),
    _warm(100_000, 3),
    _among("warm-among", "Warm sweep of 1,000 sets, among more and more rows", "warm_thousand"),
    _among("cold-among", "Cold sweep of 1,000 sets, among more and more rows", "cold_thousand"),
    Work(
        "crowd",
        "Sweeps of stored and of new sets, half and half, on one SQLite file",
        "set",
        1_600,
        320,
        3,
        (
            Subject("one process", "crowds", "one"),
            Subject("eight processes", "crowds", "eight"),
        ),
        (Goal("eight processes", "one process", 1 / 0.7),),
    ),
    Work(
        "import",
        "Importing it",
        "import",
        1,
        1,
        7,
        (
            Subject("import sqlalchemy.ext.asyncio", "bare", "import_sqlalchemy"),
            Subject("from entropic import Store", "bare", "import_entropic"),
        ),
        (Goal("from entropic import Store", "import sqlalchemy.ext.asyncio", 1.3),),
    ),
    Work(
        "stream",
        "Stream of 1,000,000 stored sets",
        "row",
        1_000_000,
        500,
        1,
        (
            Subject(_FLOOR, "bare", "stream", "stored"),
            Subject("entropic, AsyncStore.as_completed", "async_stores", "stream", "stored"),
            Subject("entropic, Store.as_completed", "async_stores", "sync_stream", "stored"),
            Subject(f"{_V2}, sweep", "stores", "warm", "stored_by_peer", peer=True),
        ),
        (
            Goal("entropic, AsyncStore.as_completed", _FLOOR, 3.0),
            Goal("entropic, Store.as_completed", _FLOOR, 3.0),
            Goal("entropic, AsyncStore.as_completed", growth=150 * 2**20),
        ),
    ),
)
