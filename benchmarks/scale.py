"""What a large cache in PostgreSQL costs: a million rows, and up to eight processes at once.

    python -m benchmarks.scale [--rows 1000000]

It starts a server of its own (from the development dependencies), fills it, and prints a table.
Every row's result is one registered file: a million files would measure the file system.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entropic import Base, Mapped, Store
from entropic.identity import Identity

ROUNDS = 5
WARM = 20_000
COLD = 1_000


class Row(Base):
    __tablename__ = "rows"

    n: Mapped[int]
    dt: Mapped[float]


def touch(params: dict[str, Any]) -> None:
    Path(params["result_file"]).write_text("x")


def store(url: str) -> Store[Row]:
    return Store(touch, Row, file_suffix=".txt", db_url=url)


async def fill(url: str, path: str, first: int, last: int) -> None:
    """Store so many rows, as ``register`` would."""
    import asyncpg

    identity, now = Identity(Row), datetime.now(UTC)
    connection = await asyncpg.connect(url)
    await connection.set_type_codec(
        "json", encoder=str.encode, decoder=bytes.decode, schema="pg_catalog", format="binary"
    )
    for start in range(first, last, 50_000):
        ids = [
            (identity.resolve({"n": n, "dt": 0.5}).id, n)
            for n in range(start, min(start + 50_000, last))
        ]
        rows = [(id, "made.txt", now, "{}", n, 0.5) for id, n in ids]
        await connection.copy_records_to_table("rows", records=rows)
        await connection.copy_records_to_table(
            "entropic_runs",
            records=[("rows", id, "done", 1, 1, 1, path, 1) for id, _ in ids],
            columns=_COLUMNS,
        )
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


_COLUMNS = ["model", "id", "state", "token", "published", "attempts", "registered_path", "size"]


def warm(url: str, rows: int, part: int, ready: Any) -> float:
    with store(url) as open_store:
        open_store.retrieve({"n": 0, "dt": 0.5})
        first = part * WARM
        ready.wait()
        begun = time.perf_counter()
        for _ in open_store.as_completed({"n": (first + n) % rows, "dt": 0.5} for n in range(WARM)):
            pass
        return time.perf_counter() - begun


def cold(url: str, rows: int, part: int, ready: Any) -> float:
    with store(url) as open_store:
        open_store.retrieve({"n": 0, "dt": 0.5})
        first = rows + 10_000_000 * part + int(time.time()) % 10_000 * COLD
        ready.wait()
        begun = time.perf_counter()
        open_store.sweep({"n": first + n, "dt": 0.25} for n in range(COLD))
        return time.perf_counter() - begun


def _in_child(work: Callable[..., float], arguments: Any, answers: Any) -> None:
    answers.put(work(*arguments))


def at_once(work: Callable[..., float], url: str, rows: int, processes: int) -> float:
    """Seconds that the slowest of so many processes took."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(processes), context.SimpleQueue()
    children = [
        context.Process(target=_in_child, args=(work, (url, rows, part, ready), answers))
        for part in range(processes)
    ]
    for child in children:
        child.start()
    took: list[float] = [answers.get() for _ in children]
    for child in children:
        child.join()
    return max(took)


async def sizes(url: str) -> list[tuple[str, int]]:
    import asyncpg

    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT relname, pg_total_relation_size(oid) FROM pg_class"
        " WHERE relname IN ('rows', 'entropic_runs')"
    )
    await connection.close()
    return [(row[0], row[1]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    from tests.servers import Server

    with tempfile.TemporaryDirectory() as folder, Server() as server:
        os.chdir(folder)
        Path("made.txt").write_text("x")
        with closing(store(server.url)) as first:
            first.failures()
        print("| stored rows | processes | warm, µs a row | cold, µs a run |")
        print("| --- | --- | --- | --- |")
        stored = 0
        for target in (1_000, rows):
            asyncio.run(fill(server.url, os.path.abspath("made.txt"), stored, target))
            stored = target
            counts = (1, 2, 4, 8) if target == rows else (1,)
            # In turns, so that noise meets all of them alike.
            samples = [
                (processes, count, at_once(work, server.url, stored, processes))
                for _ in range(ROUNDS)
                for processes in counts
                for work, count in ((warm, WARM), (cold, COLD))
            ]
            for processes in counts:
                figures = [
                    statistics.median(took for n, of, took in samples if (n, of) == (processes, c))
                    / (c * processes)
                    for c in (WARM, COLD)
                ]
                print(f"| {stored:,} | {processes} |", *(f"{f * 1e6:.0f} |" for f in figures))
        for name, size in asyncio.run(sizes(server.url)):
            print(f"{name}: {size / stored:.0f} bytes a row, with its index")
        os.chdir("/")


if __name__ == "__main__":
    main()
