"""A sweep on a Dask cluster; here a local one, of two worker processes.

    pip install 'dask[distributed]' numpy
    python examples/dask_sweep.py

On a real cluster, make a ``Client`` of its scheduler instead. Its workers need entropic, and must
see the results folder under the same path; the database stays with this process.
"""

import logging
import os
import tempfile
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

from entropic import Base, Dask, Mapped, Store


class Estimate(Base):
    __tablename__ = "estimates"

    seed: Mapped[int]
    points: Mapped[int]


def estimate_pi(params: dict[str, Any]) -> None:
    x, y = np.random.default_rng(params["seed"]).random((2, params["points"]))
    np.save(params["result_file"], 4 * np.mean(x * x + y * y < 1))


def main() -> None:
    sets = [{"seed": seed, "points": 100_000} for seed in range(40)]
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="localhost:0",
            # A worker whose heartbeat meets the closing cluster would call that an error.
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
        Store(
            estimate_pi,
            Estimate,
            file_suffix=".npy",
            db_url="sqlite:///runs.sqlite3",
            # Options of Client.submit; executor=client does without.
            executor=Dask(client, priority=10),
        ) as store,
    ):
        for when in ("at first", "once more"):
            seen: list[Any] = []
            # Each record as soon as it is there: the mean gets better all the time.
            values = [
                float(np.load(record.result_file))
                for record in store.as_completed(sets, progress=seen.append)
            ]
            print(f"{when}: {seen[-1].runs} simulated; pi is about {np.mean(values):.3f}")


# Dask's local workers import this file: without the guard, each would start a cluster of its own.
if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="entropic-dask-") as folder:
        before = os.getcwd()
        os.chdir(folder)
        main()
        os.chdir(before)
