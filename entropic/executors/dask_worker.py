"""What a Dask worker does: run the job that it is given, once.

How it gets there, and what its answer means, is left to ``dask``.
"""

import math
import os

from entropic import worker
from entropic.artifacts import read_sidecar
from entropic.errors import WorkerDiedError
from entropic.executors.parcels import Reply, failed, open_and_run
from entropic.worker import Job, Outcome


def run_task(content: bytes) -> Reply:
    """What a Dask worker is asked to do: run the job that it is given, once."""
    return Reply.of(open_and_run(content, _run_once))


def _run_once(job: Job) -> Outcome:
    """Run a job, unless it was begun before: running it again is the caller's decision.

    Dask itself would run a task again whose worker has died, or whose answer died with it.
    """
    if os.path.exists(job.stage.folder):
        return _finished(job) or failed(
            WorkerDiedError("the Dask worker that ran it died, or was told to leave, meanwhile")
        )
    is_limited = job.timeout is not None and not math.isinf(job.timeout)
    if is_limited and not worker.is_async(job.runner):
        from entropic.executors.processes import run_in_child

        with worker.showing_life(job):
            return run_in_child(job)
    return worker.run_without_store(job)


def _finished(job: Job) -> Outcome | None:
    """The outcome of a run that had finished before its worker died, by its sidecar."""
    sealed = read_sidecar(job.stage)
    if sealed is None or (sealed.id, sealed.token) != (job.id, job.token):
        return None
    return Outcome(sealed.started_at, sealed.elapsed_seconds, sealed.host, staged=sealed.staged)
