"""Tasks of a Dask client, submitted and answered many at a time.

Each way to the scheduler and back costs about as much for ten tasks as for one. What an answer
means is left to ``dask``.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from entropic._shield import to_the_end
from entropic.executors.dask_client import OPEN, on_loop_of

# How often to look for more that has ended, and how many times, before the answers are fetched.
_LINGER_SECONDS: Final = 0.01
_LINGER_TIMES: Final = 5

# A worker that has died with a finished task's answer: it is run again, and delays the others that
# are fetched with it no longer than this.
_PATIENCE_SECONDS: Final = 0.5

# Dask warns of what is submitted at once from ten times this size on.
_MOST_BYTES: Final = 1 << 20


class Task:
    """One task.

    Attributes:
        key: Its name in the scheduler.
        content: Its function's argument.
        answer: What it returned, or the exception that it ended with; raises what the client
            refused it with; cancelled where the client has gone away.
        future: The client's; ``None`` until it has been submitted.
    """

    __slots__ = ("answer", "content", "future", "key")

    def __init__(self, key: str, content: bytes) -> None:
        self.key = key
        self.content = content
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.future: Any = None


class Tasks:
    """Tasks of a client, which may have a loop, and a thread, of its own.

    Args:
        client: A Dask client.
        function: What each is to call.
        submit_options: For each of them.
        lingers: Whether to wait a moment for more that ends, where more is under way: to be used
            where the workers have tasks ahead, and do not wait for those that follow an answer.
    """

    def __init__(
        self,
        client: Any,
        function: Callable[[bytes], Any],
        submit_options: Mapping[str, Any],
        *,
        lingers: bool,
    ) -> None:
        self._client = client
        self._function = function
        self._options = submit_options
        self._times = _LINGER_TIMES if lingers else 0
        self._loop = asyncio.get_running_loop()
        self._new: list[Task] = []
        # All below belongs to the client's loop.
        self._completed: Any = None
        self._waiting: dict[str, Task] = {}
        self._fetching: set[asyncio.Task[None]] = set()
        self._collecting: asyncio.Task[None] | None = None

    def add(self, key: str, content: bytes) -> Task:
        """A task that is submitted with all others that are added in this turn of the loop."""
        task = Task(key, content)
        if not self._new:
            self._loop.call_soon(self._submit)
        self._new.append(task)
        return task

    async def cancel(self, task: Task) -> None:
        """Have the scheduler forget it; its answer is not waited for."""
        if task.future is not None and self._client.status in OPEN:
            with contextlib.suppress(Exception):  # it may be closing
                await to_the_end(on_loop_of(self._client, _cancel(task.future), seconds=5.0))
        task.answer.cancel()

    def _submit(self) -> None:
        tasks = [task for task in self._new if not task.answer.done()]  # or cancelled meanwhile
        self._new.clear()
        for batch in _batches(tasks):
            try:
                futures = self._client.map(
                    self._function,
                    [task.content for task in batch],
                    key=[task.key for task in batch],
                    pure=False,
                    **self._options,
                )
            except Exception as error:
                for task in batch:
                    task.answer.set_exception(error)
                continue
            for task, future in zip(batch, futures, strict=True):
                task.future = future
            self._hand_over(batch)

    def _hand_over(self, tasks: list[Task]) -> None:
        loop = self._client.loop.asyncio_loop
        if loop is self._loop:
            self._follow(tasks)
            return
        with contextlib.suppress(RuntimeError):  # closed: who looks at the client sees it, too
            loop.call_soon_threadsafe(self._follow, tasks)

    def _follow(self, tasks: list[Task]) -> None:
        from distributed import as_completed

        if self._completed is None:
            loop = self._client.loop
            self._completed = as_completed(loop=loop)  # type: ignore[no-untyped-call, unused-ignore]
        self._waiting.update((task.key, task) for task in tasks)
        self._completed.update([task.future for task in tasks])
        if self._collecting is None:
            self._collecting = asyncio.create_task(self._collect(), name="entropic collects")
            self._collecting.add_done_callback(self._collected)

    async def _collect(self) -> None:
        """Fetch the answers of tasks that have ended, until there are no more tasks."""
        async for first in self._completed:
            ended = [first]
            for _ in range(self._times):
                if 2 * len(ended) >= len(self._waiting):  # workers may soon have nothing to do
                    break
                await asyncio.sleep(_LINGER_SECONDS)
                ended += self._completed.next_batch(block=False)
            await self._fetch([self._waiting.pop(future.key) for future in ended])

    def _collected(self, collecting: "asyncio.Task[None]") -> None:
        self._collecting = None
        self._give_up_unless_well(collecting, list(self._waiting.values()))

    async def _fetch(self, tasks: list[Task]) -> None:
        fetching = asyncio.create_task(self._answer(tasks))
        self._fetching.add(fetching)
        fetching.add_done_callback(functools.partial(self._fetched, tasks))
        await asyncio.wait({fetching}, timeout=_PATIENCE_SECONDS)

    def _fetched(self, tasks: list[Task], fetching: "asyncio.Task[None]") -> None:
        self._fetching.discard(fetching)
        self._give_up_unless_well(fetching, tasks)

    def _give_up_unless_well(self, work: "asyncio.Task[None]", tasks: list[Task]) -> None:
        """A loop that ends cancels its tasks: nobody else would end what waits for them."""
        if work.cancelled() or work.exception() is not None:
            self._tell(_give_up, tasks)

    async def _answer(self, tasks: list[Task]) -> None:
        """Fetch answers at once, or, where that takes too long or fails, each on its own."""
        together = asyncio.ensure_future(_answers([task.future for task in tasks]))
        await asyncio.wait({together}, timeout=_PATIENCE_SECONDS)
        answers = together.result() if together.done() else None
        if answers is None:
            await asyncio.gather(*map(self._answer_alone, tasks))
            return
        self._settle(zip(tasks, answers, strict=True))

    async def _answer_alone(self, task: Task) -> None:
        self._settle([(task, await _answer(task.future))])

    def _settle(self, answers: Iterable[tuple[Task, Any]]) -> None:
        told = list(answers)
        for task, _ in told:
            task.future.release()
        self._tell(_set_answers, told)

    def _tell(self, function: Callable[[Any], None], about: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
            self._loop.call_soon_threadsafe(function, about)


def _batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    batch: list[Task] = []
    size = 0
    for task in tasks:
        if batch and size + len(task.content) > _MOST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += len(task.content)
    if batch:
        yield batch


def _set_answers(answers: list[tuple[Task, Any]]) -> None:
    for task, answer in answers:
        if not task.answer.done():
            task.answer.set_result(answer)


def _give_up(tasks: list[Task]) -> None:
    for task in tasks:
        task.answer.cancel()


async def _answers(futures: list[Any]) -> list[Any] | None:
    """What tasks returned, with one request for all of them; ``None`` where that fails.

    Not to be cancelled: Dask may have joined the requests of others to it.
    """
    if any(future.status != "finished" for future in futures):
        return None
    try:
        answers: list[Any] = await futures[0].client.gather(futures, asynchronous=True)
    except (Exception, asyncio.CancelledError):
        return None
    return answers


async def _answer(future: Any) -> Any:
    """What a task returned, or the exception that it ended with."""
    try:
        return await future
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return error


async def _cancel(future: Any) -> None:
    await future.cancel(reason="entropic", msg="the run is not needed any more")
