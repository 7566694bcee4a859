"""What every place to run has in common."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from entropic.worker import Job, Outcome, Runner


class Began(Protocol):
    """What an executor tells of a run that is under way."""

    def __call__(self, *, goes_on: bool = False) -> None:
        """The runner is about to be called.

        Args:
            goes_on: Called once more: from here on no cancellation stops it.
        """
        ...


class Executor(Protocol):
    """A place to run.

    Attributes:
        workers: How many runners can be at work at once.
        can_stop: Whether a cancellation stops a runner that is at work.
        stops_late_runs: Whether a job's ``timeout`` stops its runner.
        needs_the_caller: Whether it runs only while the thread that called waits.
    """

    can_stop: bool
    stops_late_runs: bool
    needs_the_caller: bool

    @property
    def workers(self) -> int:
        """See above."""
        ...

    def check(self, runner: Runner) -> None:
        """Raise ``SettingsError`` if this runner cannot run here; asked before anything starts."""
        ...

    def slot(self, depth: int) -> AbstractAsyncContextManager[None]:
        """Wait for room to run one job; the current task is the one that carries the run out.

        A runner that waits for another run lends its room meanwhile, so that none waits for ever.

        Args:
            depth: How many runs the job is inside of.
        """
        ...

    async def run(self, job: Job, began: Began) -> Outcome:
        """Run a job.

        Args:
            job: The job.
            began: To be called, on the loop's thread, when the runner is about to be called: what
                has begun is not dropped when its request is. Late perhaps, more than once, or not
                at all.

        Cancelled, it stops the runner and raises ``CancelledError`` where the runner can be
        stopped; where it cannot, it lets it finish and returns the outcome, so that no work is
        lost.
        """
        ...

    async def aclose(self) -> None:
        """Give back what the executor holds."""
        ...
