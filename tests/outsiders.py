"""What other programs do to a database: lock it, read it for long, use it at the same time."""

import asyncio
import logging
import multiprocessing
import sqlite3
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

# Children come from a server that has imported everything and has one thread: forking the test
# process itself, which has many, could hang them.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["numpy", "pytest", "entropic.store", "sqlalchemy.dialects.sqlite.aiosqlite", "aiosqlite"]
)


@contextmanager
def holding(path: str | Path, *statements: str) -> Iterator[Callable[[], None]]:
    """Hold what the statements take, on a connection of its own; gives a way to let go early."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()

        def release() -> None:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

        yield release
        release()


READING = ("BEGIN", "SELECT count(*) FROM sqlite_master")
"""Statements that leave their connection with a shared lock."""


def is_unlocked(path: str | Path) -> bool:
    """Whether nobody holds a lock of any kind at this moment."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def ask(path: str | Path, sql: str) -> list[Any]:
    """The rows that another program reads; the first column where there is one only."""
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        rows = connection.execute(sql).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def change(path: str | Path, sql: str) -> None:
    """What another program writes."""
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        connection.executescript(sql)


class Watch(logging.Handler):
    """Sees each time that something is logged in this process."""

    def __init__(self, message: str) -> None:
        super().__init__(logging.DEBUG)
        self._message = message
        self._loop = asyncio.get_running_loop()
        self._met = asyncio.Event()
        self.was_met = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._message in record.getMessage():
            self.was_met = True
            self._loop.call_soon_threadsafe(self._met.set)

    async def met(self) -> None:
        """Wait until it has happened, once more."""
        self._met.clear()
        await self.seen()

    async def seen(self) -> None:
        """Wait until it has happened, be it before."""
        async with asyncio.timeout(10):
            await self._met.wait()


def waiting() -> AbstractContextManager[Watch]:
    """Watch for somebody else's lock: the driver logs what each statement ended with."""
    return watching("aiosqlite", logging.DEBUG, "database is locked")


@contextmanager
def watching(name: str, level: int, message: str) -> Iterator[Watch]:
    """Watch a logger for a message."""
    logger = logging.getLogger(name)
    handler, before = Watch(message), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield handler
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def at_once(function: Callable[..., Any], argument_lists: list[tuple[Any, ...]]) -> list[Any]:
    """Call a function in many processes that all begin at the same moment; what each returned."""
    barrier = _context.Barrier(len(argument_lists))
    pairs = [_context.Pipe(duplex=False) for _ in argument_lists]
    children = [
        _context.Process(target=_child, args=(sender, barrier, function, arguments))
        for (_, sender), arguments in zip(pairs, argument_lists, strict=True)
    ]
    for child in children:
        child.start()
    for _, sender in pairs:
        sender.close()
    answers = [receiver.recv() for receiver, _ in pairs]
    for child in children:
        child.join()
        child.close()
    for receiver, _ in pairs:
        receiver.close()
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


class Child:
    """A process under way, and a line to it."""

    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        self._line, theirs = _context.Pipe()
        self._process = _context.Process(target=function, args=(*args, theirs))
        self._process.start()
        theirs.close()

    def recv(self) -> Any:
        """What it says next."""
        return self._line.recv()

    def send(self, message: Any) -> None:
        """Tell it something."""
        self._line.send(message)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        self._process.kill()

    def close(self) -> None:
        """See it off."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._line.close()


def running(function: Callable[..., None], *args: Any) -> closing[Child]:
    """A child process in ``function(*args, line)`` for as long as the block lasts."""
    return closing(Child(function, *args))


def _child(sender: Any, barrier: Any, function: Callable[..., Any], arguments: Any) -> None:
    try:
        barrier.wait(30)
        answer = function(*arguments)
        sender.send(asyncio.run(answer) if asyncio.iscoroutine(answer) else answer)
    except BaseException as error:
        sender.send(error)


class _Counted(Coroutine[Any, Any, Any]):
    def __init__(self, inner: Any, suspended: Callable[[], None]) -> None:
        self._inner = inner
        self._suspended = suspended

    def send(self, value: Any) -> Any:
        result = self._inner.send(value)
        self._suspended()
        return result

    def throw(self, *error: Any) -> Any:
        result = self._inner.throw(*error)
        self._suspended()
        return result

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self


@contextmanager
def at_suspension(moment: int, then: Callable[[], object]) -> Iterator[None]:
    """Have a function called at the n-th time, from 1, that a task started inside is suspended."""
    loop = asyncio.get_running_loop()
    count = 0

    def suspended() -> None:
        nonlocal count
        count += 1
        if count == moment:
            then()

    earlier = loop.get_task_factory()
    loop.set_task_factory(
        lambda loop, coro, **options: asyncio.Task(_Counted(coro, suspended), loop=loop, **options)
    )
    try:
        yield
    finally:
        loop.set_task_factory(earlier)


async def left_at(moment: int, call: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Start a call, and return at its n-th suspension: so that its loop can end there.

    Returns:
        Whether it was under way still.
    """
    reached = asyncio.Event()
    with at_suspension(moment, reached.set):
        tasks = [asyncio.create_task(work) for work in (call(), reached.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return not tasks[0].done()


async def listed(records: AsyncIterable[Any]) -> list[Any]:
    """All of a stream."""
    return [record async for record in records]


async def cancelled_at(
    moment: int, call: Callable[[], Coroutine[Any, Any, Any]], *, everything: bool = False
) -> bool:
    """Cancel a call at the n-th time that it, or a task it has started, is suspended.

    Args:
        moment: Which time, from 1.
        call: Makes the call.
        everything: Whether its tasks are cancelled, too, as a loop that shuts down does.

    Returns:
        Whether it took that long; if not, the call has ended by itself.
    """
    others = asyncio.all_tasks()
    reached = False

    def cancel() -> None:
        nonlocal reached
        reached = True
        for task in asyncio.all_tasks() - others if everything else {target}:
            task.cancel()

    with at_suspension(moment, cancel):
        target = asyncio.get_running_loop().create_task(call())
        await asyncio.wait({target})
        if started := asyncio.all_tasks() - others:
            await asyncio.wait(started)
    if not target.cancelled():
        target.result()
    return reached
