"""Where runners run: one protocol, and the places that keep to it.

An executor takes a job and gives back its outcome; how many it takes at once is its slots. Which
job is run, and when, is left to ``pipeline``; what a job does, to ``worker``.
"""

import os

from entropic import worker
from entropic.executors.dask import DaskExecutor
from entropic.executors.local import CallerExecutor, LoopExecutor, ThreadExecutor
from entropic.executors.protocol import Executor
from entropic.executors.threads import Threads
from entropic.worker import Runner

__all__ = ["DaskExecutor", "Executor", "Threads", "available_cpus", "make_executor"]


def make_executor(executor: str, runner: Runner, max_workers: int | None) -> Executor:
    """The executor that a store's options ask for.

    Args:
        executor: ``"caller"`` or ``"thread"``.
        runner: The runner: an ``async def`` runs on the loop under each local choice.
        max_workers: How many runners at once; ``None`` for as many as there are CPUs.
    """
    workers = available_cpus() if max_workers is None else max_workers
    if worker.is_async(runner):
        return LoopExecutor(workers)
    return CallerExecutor() if executor == "caller" else ThreadExecutor(workers)


def available_cpus() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
