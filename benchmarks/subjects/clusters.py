"""The Dask cluster that all subjects are given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dask.distributed import Client, LocalCluster


@contextmanager
def cluster() -> Iterator[Any]:
    """A client of two worker processes of a thread each."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="localhost:0") as workers,
        Client(workers) as client,
    ):
        yield client
