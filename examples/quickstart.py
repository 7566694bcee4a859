"""The quickstart as a story: a first call, a hit, a small sweep, and the results read back.

    make demo, or: python examples/quickstart.py [FOLDER] (with numpy installed)

Everything is written to a temporary folder that is removed at the end, or to FOLDER, which is
kept. Run it twice with the same FOLDER: the second time, nothing is simulated.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from entropic import Base, Mapped, Store, __version__, expand_grid


class SimResult(Base):
    __tablename__ = "results"

    n: Mapped[int]
    steps: Mapped[int]
    dt: Mapped[float]


def my_sim(params: dict[str, Any]) -> None:
    simulated.append(params["id"])
    print(f"   my_sim: n={params['n']}, steps={params['steps']}, dt={params['dt']}")
    data = np.random.randn(params["n"], params["steps"])
    np.save(params["result_file"], data)


simulated: list[str] = []


def main() -> None:
    store = Store(
        runner=my_sim,
        result_cls=SimResult,
        results_dir="./results",
        db_url="sqlite:///./runs.sqlite3",
        file_suffix=".npy",
    )
    params = {"n": 100, "steps": 5000, "dt": 0.01}

    with step("1. A parameter set that is new is simulated, and its result stored"):
        record = store.run_or_retrieve(params)
        print(f"   record {record.id}, result {record.result_file}")

    with step("2. The same set again is a hit: the stored record, at once"):
        record = store.run_or_retrieve(params)
        print(f"   record {record.id}, result {record.result_file}")

    with step("3. A sweep over three values of dt simulates only what is new"):
        grid = expand_grid({"n": [100], "steps": [5000], "dt": [0.01, 0.005, 0.001]})
        records = store.sweep(grid)

    with step("4. The results are files: numpy reads them"):
        for record in records:
            data = np.load(record.result_file)
            print(f"   dt={record.dt:<5}  {data.shape} {data.dtype}, mean {data.mean():+.4f}")

    store.close()


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n{title}")
    before, started = len(simulated), time.perf_counter()
    yield
    milliseconds = (time.perf_counter() - started) * 1000
    print(f"   {len(simulated) - before} simulated, {milliseconds:.1f} ms in all")


def tell(folder: Path) -> None:
    os.chdir(folder)
    print(f"entropic {__version__}, in {folder}")
    main()
    results = [path.stat().st_size for path in Path("results").glob("*.npy")]
    print(f"\nruns.sqlite3 has the records, results/ {len(results)} files, {sum(results)} bytes.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        tell(Path(sys.argv[1]).resolve())
    else:
        before = Path.cwd()
        with tempfile.TemporaryDirectory(prefix="entropic-demo-") as temporary:
            tell(Path(temporary))
            os.chdir(before)
        print("That folder is removed now; to keep one: python examples/quickstart.py FOLDER")
