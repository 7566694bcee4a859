"""The claims of one store: taken, waited for while others have them, given back.

Claims of concurrent runs share a statement, and so does what is given back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from entropic.errors import DatabaseBusyError, DatabaseError
from entropic.leases import Heartbeat, is_gone
from entropic.ledger import Claim, Ledger, State
from entropic.models import Base
from entropic.pipeline.batching import Batcher
from entropic.pipeline.elsewhere import Elsewhere
from entropic.recovery import is_at_work
from entropic.schedule import BATCH

R = TypeVar("R", bound=Base)

GRACE_SECONDS: Final = 0.5
"""How long a cancelled call waits for its claims to be given back: somebody may have the lock."""

_logger = logging.getLogger("entropic")

_CONTENDED_SECONDS: Final = 5.0  # after others were last met
_SHORT_LINGER_SECONDS: Final = 0.015
_LINGER_SECONDS: Final = 0.04  # a finished run is to be on record within 100 ms

# An id, and the token of the stored result that was looked at: ``None`` to run in any case.
_Wanted = tuple[str, int | None]

# An id, its token, and what went wrong: ``None`` for an interruption.
_Return = tuple[str, int, dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Claimant:
    """How a store claims runs.

    Attributes:
        owner: Its name in its claims.
        ttl: Seconds that a claim lasts, unless it is renewed.
        heartbeat: Renews them; ``None`` where nobody else can see the database.
    """

    owner: str
    ttl: float
    heartbeat: Heartbeat | None


class Claims(Generic[R]):
    """Takes claims and gives them back.

    Args:
        ledger: Where they are.
        claimant: How this store claims.
    """

    def __init__(self, ledger: Ledger[R], claimant: Claimant) -> None:
        self._ledger = ledger
        self._claimant = claimant
        self._taking: Batcher[_Wanted, Claim | State] = Batcher(self._take, BATCH)
        self._returning: Batcher[_Return, None] = Batcher(self._return, BATCH)
        self._owed: list[_Return] = []
        # What this store has claimed, or may have: by id, the token, or 0 where that is not known.
        self._out: dict[str, int] = {}
        self._elsewhere = Elsewhere(ledger.states, ledger.listen)
        self._contended_until = 0.0

    def ask(self, id: str, seen: int | None) -> asyncio.Future[list[Claim | State]]:
        """Ask for the claim of a run, as a future that is no task.

        Args:
            id: The run id.
            seen: The token of the stored result that was looked at; ``None`` to run in any case.

        Returns:
            One answer: the claim; or how it is with the run, where somebody else has it, or has
            stored it since. Whatever it is, it is to be released in the end: a claim is renewed
            until then, from its commit on, also while the loop is too busy to hear of it.

        Raises:
            DatabaseError: The database failed; nothing is claimed.
        """
        self._hold(id)
        return self._taking.request([(id, seen)])

    async def take_free(self, ids: Sequence[str], gone: Sequence[str]) -> dict[str, Claim]:
        """Claim what nobody has, for a moment: it is not renewed.

        Args:
            ids: The run ids.
            gone: Owners whose claims count for nothing.

        Raises:
            DatabaseError: The database failed; nothing is claimed.
        """
        self._out |= dict.fromkeys(ids, 0)
        claims = await self._ledger.claim(ids, self._claimant.owner, self._claimant.ttl, gone)
        for id in ids:
            self._out.pop(id, None)
        self._out |= {id: claim.token for id, claim in claims.items()}
        return claims

    async def ended(self, id: str) -> State:
        """Wait until nobody runs a run any more, and return how it is with it then.

        Raises:
            DatabaseError: The database failed.
        """
        return await self._elsewhere.ended(id)

    def _hold(self, id: str) -> None:
        if self._claimant.heartbeat is not None:
            self._claimant.heartbeat.hold(id)

    def release(self, id: str) -> None:
        """Renew a claim no more."""
        if self._claimant.heartbeat is not None:
            self._claimant.heartbeat.release(id)

    def forget(self, id: str, token: int) -> None:
        """A claim has ended: its run is stored, or a later owner has it, or it was given back."""
        if self._out.get(id) == token:
            del self._out[id]

    async def give_back(self, returned: Sequence[_Return]) -> None:
        """Give claims back: (id, token, what went wrong) each; ``None`` for an interruption.

        Raises:
            DatabaseError: The database failed. They are given back when it is next seen to work,
                or the store is closed; if it never is, their leases pass.
        """
        await self._returning.ask(returned)

    def owe(self, returned: Sequence[_Return]) -> None:
        """The same, later: for whoever must not wait for the database now."""
        self._owed += returned

    async def give_back_owed(self) -> None:
        """Give back what could not be given back when it was to be."""
        owed, self._owed = self._owed, []
        if owed:
            with contextlib.suppress(DatabaseError):
                await self._returning.ask(owed)

    def linger(self, finished: int, last: int) -> float:
        """Seconds that a commit waits for more runs to share it.

        Args:
            finished: How many runs wait to be stored.
            last: How many the last commit has stored: several, where runs end in less time than it
                takes.
        """
        if asyncio.get_running_loop().time() < self._contended_until:
            return _LINGER_SECONDS  # it keeps all others from the database, too
        are_more_under_way = len(self._out) > finished
        return _SHORT_LINGER_SECONDS if last > 1 and are_more_under_way else 0.0

    async def aclose(self) -> None:
        """Wait for nobody any more, and have nothing: not even what was claimed unheard."""
        await self._elsewhere.aclose()
        await self._taking.aclose()
        await self._returning.aclose()
        await self.give_back_owed()
        if self._out:
            try:
                await self._ledger.relinquish(list(self._out), self._claimant.owner)
            except DatabaseError:
                _logger.warning(
                    "claims could not be given back, and pass with their leases: %s",
                    ", ".join(sorted(self._out)),
                    exc_info=True,
                )

    async def _take(self, wanted: list[_Wanted]) -> list[Claim | State]:
        """Claim what nobody has; how it is with what others run, or have stored meanwhile.

        A claim takes the write lock. While others are about, who runs what is read beforehand, so
        that those who share a sweep do not queue up for claims that they will not get.
        """
        loop = asyncio.get_running_loop()
        ids = [id for id, _ in wanted]
        # What this store has claimed and could not give back is its own to take again: of each run
        # that is under way, only one task asks for its claim.
        own = self._claimant.owner
        claims: dict[str, Claim] = {}
        if loop.time() >= self._contended_until:
            claims = await self.take_free(ids, [own])
        others = [(id, seen) for id, seen in wanted if id not in claims]
        states: dict[str, State] = {}
        if others:
            self._contended_until = loop.time() + _CONTENDED_SECONDS
            states = await self._ledger.states([id for id, _ in others])
            free = [
                id
                for id, seen in others
                if not is_newer(states[id], seen) and not is_at_work(states[id])
            ]
            if free:
                # Not those whose leases had passed: by the time of the claim they may be renewed.
                owners = {owner for id in free if (owner := states[id].owner) is not None}
                gone = [owner for owner in owners if is_gone(owner)]
                claims |= await self.take_free(free, [own, *gone])
        if claims:  # so there is room, and no lock
            await self.give_back_owed()
        return [claims.get(id) or states[id] for id in ids]

    async def _return(self, returned: list[_Return]) -> list[None]:
        try:
            await self._fail(returned)
        except BaseException:
            self.owe(returned)
            raise
        for id, token, _ in returned:
            self.forget(id, token)
        return [None] * len(returned)

    async def _fail(self, returned: list[_Return]) -> None:
        try:
            await self._ledger.fail(returned)
        except DatabaseBusyError:
            raise
        except DatabaseError:
            if all(about is None for _, _, about in returned):
                raise
            # On a full disk, there may be room for anything but the texts of the errors.
            await self._ledger.fail([(id, token, None) for id, token, _ in returned])


def is_newer(state: State, seen: int | None) -> bool:
    """Whether a result has been stored since one was looked for."""
    return seen is not None and state.published > seen
