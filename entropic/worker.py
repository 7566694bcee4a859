"""What happens where a run runs: call the runner, time it, check its output, seal it.

A job comes in, one small outcome goes out; both can be pickled. Nothing here knows a database or
a store, and importing it loads no SQLAlchemy: a worker process stays light. It publishes nothing;
that is left to the store that holds the run's token.
"""

import asyncio
import contextvars
import copy
import functools
import inspect
import math
import os
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from entropic._shield import in_pool, to_the_end, undisturbed
from entropic.artifacts import Sidecar, Stage, Staged, explained, life
from entropic.artifacts import stage as stages
from entropic.errors import ResultsDirError, RunError, RunInterruptedError, RunTimeoutError

Runner = Callable[[dict[str, Any]], Any]
"""A simulation: writes one result to ``params["result_file"]``; its return value is ignored."""

Hop = Callable[..., Awaitable[Any]]

_IN_LOOPS_POOL: Final[Hop] = functools.partial(in_pool, None)

# A run this long is worth an fsync of its result; for a shorter one that costs more than running
# it again after a power failure.
DURABLE_SECONDS: Final = 0.1

# Of a traceback, those next to the error. Runs that ask for runs would format all the frames of all
# that they are inside of, each of them anew.
_MOST_FRAMES: Final = 50

_SHORT_TEXT: Final = 1000

running: contextvars.ContextVar[tuple[tuple[str, str], ...]] = contextvars.ContextVar(
    "running", default=()
)
"""The runs that the current code is inside of, outermost first: (cache, id) each."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run, as it travels to a worker.

    Attributes:
        runner: The user's function.
        params: The typed parameters, without ``id`` and ``result_file``.
        id: The run id.
        cache: Which cache the run belongs to: runs that ask for one another are told apart by it.
        stage: Where to write.
        token: The token that it is run under.
        owner: Whose it is.
        has_own_id: Whether the caller chose the id.
        values: The parameters, as the plain JSON of the sidecar.
        custom_data: What goes to the row.
        checksum: Whether to compute the result's digest.
        timeout: Seconds after which the executor stops the runner; ``None`` for never.
        patience: Seconds without a sign of life after which others give the run up, once its
            store is gone.
        chain: The runs that asked for this one, outermost first.
    """

    runner: Runner
    params: dict[str, Any]
    id: str
    cache: str
    stage: Stage
    checksum: bool
    token: int = 0
    owner: str = ""
    has_own_id: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    custom_data: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    patience: float = math.inf
    chain: tuple[tuple[str, str], ...] = ()

    @property
    def has_light_parameters(self) -> bool:
        """Whether its parameters are so small that handling them takes no time to speak of."""
        return all(map(_is_small, (*self.values.values(), *self.custom_data.values())))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: a staged result, or the runner's exception.

    Attributes:
        started_at: Seconds since 1970.
        elapsed_seconds: Of the runner alone, 4 decimals.
        host: The machine it ran on.
        staged: The result; ``None`` when the run failed.
        error: What the runner raised, or what was wrong with its result.
        traceback: The error's traceback as text.
        is_finished: Whether there is a result although there is an error: the runner ended well,
            and then the disk failed. What it wrote is still staged.
        has_stage: Whether its staging folder was still there when it failed: one that was taken for
            dead may have lost it.
    """

    started_at: float
    elapsed_seconds: float
    host: str
    staged: Staged | None = None
    error: Exception | None = None
    traceback: str | None = None
    is_finished: bool = False
    has_stage: bool = True


def is_async(runner: Runner) -> bool:
    """Whether the runner is an ``async def``, also behind a partial or a callable object."""
    call = getattr(runner, "__call__", None)  # noqa: B004  looked at, not called
    return inspect.iscoroutinefunction(runner) or inspect.iscoroutinefunction(call)


def run_job(job: Job, *, contain: bool = True) -> Outcome:
    """Run a job with a plain function as its runner.

    Args:
        job: The job.
        contain: Whether ``sys.exit``, or what looks like an interrupt that nobody sent, only
            fails the run. On the caller's own thread it goes through, as if the caller had called
            the runner.

    Returns:
        The outcome; a runner's exception is in it, not raised. Interrupts are raised.
    """
    clock = _Clock()
    token = running.set((*job.chain, (job.cache, job.id)))
    try:
        params = _prepare(job)
        clock.start()
        returned = job.runner(params)
        clock.stop()
        if inspect.isawaitable(returned):
            raise _forgotten_await(returned)
        return _finish(job, clock)
    except Exception as error:
        return replace(clock.failed(error), has_stage=os.path.isdir(job.stage.folder))
    except BaseException as error:
        if not contain or _is_ctrl_c(error):
            raise
        return clock.failed(_exited(error))
    finally:
        running.reset(token)


async def run_job_async(
    job: Job,
    hop: Hop = _IN_LOOPS_POOL,
    finishing: Callable[[], None] | None = None,
) -> Outcome:
    """Run a job with an ``async def`` as its runner.

    Args:
        job: The job.
        hop: Runs a function in a thread, all that would block the loop; as ``in_pool`` does.
        finishing: Called when the runner has ended well: from there on nothing stops the run.

    Returns:
        The outcome; a runner's exception is in it, not raised.

    Raises:
        asyncio.CancelledError: The run was cancelled, and its runner with it.
    """
    clock = _Clock()
    token = running.set((*job.chain, (job.cache, job.id)))
    try:
        # A thread goes on whatever is cancelled. Left alone, it would make the stage anew, or seal
        # it, once that has been discarded.
        params = await to_the_end(hop(_prepare, job))
        clock.start()
        await _in_time(job.runner(params), job.timeout)
        clock.stop()
        if finishing is not None:
            finishing()
        # To read a large result for its digest takes longer than it took to write it.
        finished: Outcome = await undisturbed(hop(_finish, job, clock))
        return finished
    except Exception as error:
        has_stage = await undisturbed(hop(os.path.isdir, job.stage.folder))
        return replace(clock.failed(error), has_stage=has_stage)
    except (SystemExit, KeyboardInterrupt) as error:
        if _is_ctrl_c(error):
            raise
        return clock.failed(_exited(error))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        interrupted = RunInterruptedError("the async runner cancelled itself")
        interrupted.__cause__ = error
        return clock.failed(interrupted)
    finally:
        running.reset(token)


async def _in_time(running: Awaitable[object], timeout: float | None) -> None:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            await running
    except TimeoutError as error:
        if not limit.expired() or timeout is None:  # the runner's own
            raise
        raise too_late(timeout) from error


def run_anywhere(job: Job) -> Outcome:
    """Run a job in a worker process, whichever kind its runner is."""
    if is_async(job.runner):
        return asyncio.run(run_job_async(job))
    return run_job(job)


def run_without_store(job: Job) -> Outcome:
    """Run a job in a worker that may outlive its store, and have it found at work all the time."""
    with showing_life(job):
        return run_anywhere(job)


@contextmanager
def showing_life(job: Job) -> Iterator[None]:
    """Touch the stage four times in the time of its job's patience, for as long as this lasts.

    A runner may compute for hours before it writes, and the store that recovers what others have
    left cannot ask a cluster that it does not know.
    """
    if math.isinf(job.patience):
        yield
        return
    with life.signs_of_life(job.stage.folder, job.patience / 4):
        yield


def too_late(timeout: float) -> RunTimeoutError:
    """The error of a run that was stopped after so many seconds."""
    return RunTimeoutError(f"the run took longer than timeout={timeout:g} seconds; it was stopped")


class _Clock:
    def __init__(self) -> None:
        self.elapsed: float | None = None
        self.start()

    def start(self) -> None:
        self.started_at = time.time()
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.elapsed = time.perf_counter() - self._started

    def failed(self, error: Exception, *, is_finished: bool = False) -> Outcome:
        if self.elapsed is None:
            self.stop()
        if isinstance(error, StopIteration):
            error = _stop_iteration(error)
        text = "".join(traceback.format_exception(error, limit=-_MOST_FRAMES))
        return Outcome(
            self.started_at,
            self.seconds,
            _HOST,
            error=error,
            traceback=text,
            is_finished=is_finished,
        )

    @property
    def seconds(self) -> float:
        return round(self.elapsed or 0.0, 4)


_HOST: Final = socket.gethostname()


def _prepare(job: Job) -> dict[str, Any]:
    """Make the stage; what the runner is given."""
    stages.make(job.stage)
    # A copy of its own, down to the lists: what the runner changes stays its own.
    params = copy.deepcopy(job.params)
    return {**params, "id": job.id, "result_file": job.stage.result}


def _finish(job: Job, clock: _Clock) -> Outcome:
    """Check what the runner left, and seal it."""
    durable = (clock.elapsed or 0.0) >= DURABLE_SECONDS
    try:
        staged = stages.check(job.stage, checksum=job.checksum, durable=durable)
        sidecar = Sidecar(
            nonce=job.cache,
            id=job.id,
            has_own_id=job.has_own_id,
            token=job.token,
            owner=job.owner,
            values=job.values,
            custom_data=job.custom_data,
            name=job.stage.name,
            elapsed_seconds=clock.seconds,
            started_at=clock.started_at,
            host=_HOST,
            staged=staged,
        )
        stages.seal(
            job.stage, sidecar.as_json(), durable=durable, is_light=job.has_light_parameters
        )
    except OSError as error:
        # Not the runner's failure, but the disk's: what the run was for may well be there.
        return clock.failed(_unsealed(job.stage, error), is_finished=True)
    return Outcome(clock.started_at, clock.seconds, _HOST, staged=staged)


def _is_small(value: object) -> bool:
    # Not identity's is_heavy: a worker loads no SQLAlchemy.
    if isinstance(value, str):
        return len(value) < _SHORT_TEXT
    return value is None or isinstance(value, bool | int | float)


def _unsealed(stage: Stage, error: OSError) -> ResultsDirError:
    unsealed = ResultsDirError(
        f"the run has finished, but its result could not be sealed: {explained(error)}"
        f" ({error.filename or stage.folder}); what the runner wrote is left in {stage.folder}",
        path=stage.folder,
    )
    unsealed.__cause__ = error
    return unsealed


def _stop_iteration(error: StopIteration) -> RunError:
    """A coroutine cannot raise one, and nor can a future: to them it means something else."""
    stopped = RunError(
        "the runner raised StopIteration, most likely by a next() without a default on an iterator"
        " that had come to its end"
    )
    stopped.__cause__ = error
    return stopped


def _forgotten_await(returned: Awaitable[Any]) -> RunError:
    if inspect.iscoroutine(returned):
        returned.close()
    return RunError(
        "the runner returned an awaitable instead of writing its result; declare it with"
        " `async def`, so that it is awaited"
    )


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether somebody may have pressed Ctrl-C: signals reach the main thread alone.

    In any other thread the runner itself raised it, and it would end the loop that waits.
    """
    on_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and on_main


def _exited(error: BaseException) -> RunInterruptedError:
    did = (
        f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {error!r}"
    )
    interrupted = RunInterruptedError(f"the runner {did}")
    interrupted.__cause__ = error
    return interrupted
