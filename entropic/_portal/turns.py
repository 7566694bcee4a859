"""Who gets which calling thread: any of those that wait for a task can run what it wishes for.

Whoever waits for a task also offers it its thread, so that what is wanted on a thread never waits
for one that is itself waiting.
"""

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

from entropic._portal.callers import Caller, Wish, current
from entropic._portal.errands import Returned
from entropic.errors import WrongLoopError

T = TypeVar("T")


class _Volunteers:
    """The threads that wait for one task, and the turn that it wishes for, or has, on one of them.

    Attributes:
        users: How many are in it; the last to leave removes it.
    """

    def __init__(self) -> None:
        self.users = 0
        self._callers: list[Caller] = []
        self._number = next(_numbers)
        self._wish: Wish | None = None

    def add(self, caller: Caller) -> None:
        self._callers.append(caller)
        if self._wish is None:
            return
        self._wish.is_sole = self._is_sole
        if self._wish.turn is None:
            caller.grant(self._wish)
        elif not self._wish.is_sole:
            # What comes before it may be waiting for it: in this very call, most likely.
            self._wish.turn.give_back()

    def remove(self, caller: Caller) -> None:
        self._callers.remove(caller)
        if self._wish is not None:
            self._wish.is_sole = self._is_sole

    @property
    def _is_sole(self) -> bool:
        return len(self._callers) <= 1

    async def take_turn(self) -> None:
        """Wait for a turn on one of the threads, the first that is free."""
        self._wish = Wish(self._number, is_sole=self._is_sole)
        for caller in self._callers:
            caller.grant(self._wish)
        try:
            await self._wish.granted()
        except BaseException:
            self._wish = None
            raise

    def pass_on(self) -> None:
        """Be done with the turn, where there is one."""
        wish, self._wish = self._wish, None
        if wish is not None and wish.turn is not None:
            wish.turn.pass_on()

    async def run(
        self, function: Callable[[], T], began: Callable[[], None], holds_up: Callable[[T], bool]
    ) -> T:
        """Run a function in the turn, or in the next one where another thread is free earlier."""
        while True:
            assert self._wish is not None
            assert self._wish.turn is not None
            try:
                return await self._wish.turn.run(function, began, holds_up)
            except Returned:
                self.pass_on()
                await self.take_turn()


_volunteers: Final[dict[asyncio.Task[object], _Volunteers]] = {}

# The places in line of those that wish for a turn: who has to wish again keeps his.
_numbers: Final = itertools.count()

_own: Final[contextvars.ContextVar[_Volunteers]] = contextvars.ContextVar("own")
"""Those of the current task, while it has a turn."""


@contextmanager
def _volunteers_for(task: asyncio.Task[object]) -> Iterator[_Volunteers]:
    """What is known of a task while anybody is in it: it holds threads, and all that they hold."""
    volunteers = _volunteers.setdefault(task, _Volunteers())
    volunteers.users += 1
    try:
        yield volunteers
    finally:
        volunteers.users -= 1
        if not volunteers.users:
            del _volunteers[task]


@contextmanager
def volunteering(task: asyncio.Task[object]) -> Iterator[None]:
    """While the current call waits for a task, the task may use the thread that called.

    So a runner that asks, on that very thread, for a run that is in line for it is no deadlock,
    and a run does not wait for a busy thread while another one that wants it is idle.
    """
    caller = current.get()
    if caller is None:
        yield
        return
    with _volunteers_for(task) as volunteers:
        volunteers.add(caller)
        try:
            yield
        finally:
            volunteers.remove(caller)


@asynccontextmanager
async def callers_turn() -> AsyncIterator[None]:
    """Wait for a turn on one of the threads that wait for the current task.

    Raises:
        WrongLoopError: No thread is waiting: the task was not started by a portal.
    """
    current_caller()
    task = asyncio.current_task()
    assert task is not None
    with _volunteers_for(task) as volunteers:
        await volunteers.take_turn()
        before = _own.set(volunteers)
        try:
            yield
        finally:
            _own.reset(before)
            volunteers.pass_on()


async def run_in_turn(
    function: Callable[[], T],
    began: Callable[[], None],
    holds_up: Callable[[T], bool],
) -> T:
    """Run a function in the turn that the current task has been granted by ``callers_turn``.

    Args:
        function: The function.
        began: Called when it has begun, or is about to: perhaps late, more than once, or never.
        holds_up: Whether nothing more is to begin on the thread, after what the function has
            returned, until the turn is passed on.

    Raises:
        asyncio.CancelledError: The function was interrupted there, or the thread has gone.
    """
    return await _own.get().run(function, began, holds_up)


def current_caller() -> Caller:
    """The thread that waits for the current call.

    Raises:
        WrongLoopError: There is none.
    """
    caller = current.get()
    if caller is None:
        raise WrongLoopError("there is no calling thread to run on: this is not a Store's call")
    return caller
