"""An external solver, driven by an async runner: many at once, each stopped when it takes too long.

    python examples/external_program.py

The solver here is a small Python program; put your own in its place. What it prints is kept beside
its result. When a run is cancelled, or takes longer than the timeout, the program is killed.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from entropic import AsyncStore, Base, Mapped, SweepError

SOLVER = """
import sys, time
cells, seconds, path = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
print("solving", cells, "cells", flush=True)
time.sleep(seconds)
open(path, "w").write(str(cells ** 2))
"""


class Case(Base):
    __tablename__ = "cases"

    cells: Mapped[int]
    seconds: Mapped[float]


async def solve(params: dict[str, Any]) -> None:
    result = Path(params["result_file"])
    with open(result.with_name("solver.log"), "w") as log:
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SOLVER,
            str(params["cells"]),
            str(params["seconds"]),
            str(result),
            stdout=log,
            stderr=log,
        )
        try:
            status = await program.wait()
        finally:
            if program.returncode is None:  # cancelled, or too late
                program.kill()
                await program.wait()
    if status:
        raise RuntimeError(f"the solver ended with {status}; see its log")


async def main() -> None:
    cases = [{"cells": cells, "seconds": 0.1} for cells in range(8)]
    cases.append({"cells": 99, "seconds": 600.0})
    async with AsyncStore(
        solve, Case, file_suffix=".txt", db_url="sqlite:///runs.sqlite3", max_workers=4, timeout=2
    ) as store:
        try:
            await store.sweep(cases, on_error="finish")
        except SweepError as error:
            print(f"{len(error.records)} cases solved")
            for failure in error.failures:
                print(f"{failure.params['cells']} cells: {failure.exception}")
        record = await store.run_or_retrieve(cases[3])
        log = Path(record.result_file).with_suffix(".files") / "solver.log"
        print(Path(record.result_file).read_text(), "from the log:", log.read_text().strip())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="entropic-solver-") as folder:
        before = os.getcwd()
        os.chdir(folder)
        asyncio.run(main())
        os.chdir(before)
