"""What would be run, and why: looked up as a sweep does, and nothing is run or changed."""

from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

from entropic.identity import ParameterSet
from entropic.leases import described
from entropic.ledger import Entry, State
from entropic.models import Base
from entropic.outlook import Explanation, Nearest, Plan, Verdict, eta_seconds, farness
from entropic.pipeline.cache import Cache
from entropic.pipeline.finding import placed
from entropic.pipeline.lookup import Answer, Lookup
from entropic.pipeline.sources import Params, Source
from entropic.recovery import is_at_work
from entropic.schedule import BATCH

R = TypeVar("R", bound=Base)

_NEAREST: Final = 3

# What the database takes for the nearest: of numbers alone it tells how far they are.
_CANDIDATES: Final = 200


class Planner(Generic[R]):
    """Says what a request would meet.

    Args:
        cache: What would be looked into.
        lookup: Finds what is stored.
    """

    def __init__(self, cache: Cache[R], lookup: Lookup[R]) -> None:
        self._cache = cache
        self._lookup = lookup

    async def plan(self, source: Source, workers: int) -> Plan:
        """What a sweep would meet.

        Args:
            source: The parameter sets.
            workers: How many would run at once.
        """
        verdicts: dict[str, Verdict] = {}
        try:
            position = 0
            while taken := await source.take(BATCH):
                sets = await self._lookup.resolve(taken, position)
                position += len(taken)
                new = [one for one in sets if one.id not in verdicts]
                verdicts |= await self._verdicts(list({one.id: one for one in new}.values()))
        finally:
            await source.aclose()
        counted = list(verdicts.values())
        in_flight, failed = counted.count("running"), counted.count("failed")
        misses = counted.count("new") + counted.count("lost")
        mean = await self._cache.ledger.queries.mean_seconds()
        eta = eta_seconds(misses + failed, in_flight, workers, mean)
        return Plan(counted.count("stored"), in_flight, failed, misses, eta)

    async def explain(self, params: Params) -> Explanation[R]:
        """Why a set would run, or would not."""
        (wanted,) = await self._lookup.resolve([params])
        (answer,) = await self._lookup.glance([wanted])
        if answer.error is not None:
            raise answer.error
        id, values = answer.parameters.id, answer.parameters.values
        state = (await self._cache.ledger.states([id]))[id]
        verdict = _verdict(answer, state)
        if verdict == "new":
            return Explanation(id, values, verdict, nearest=await self._nearest(wanted))
        return Explanation(
            id,
            values,
            verdict,
            answer.record or answer.entry.record,
            state.failure if verdict == "failed" else None,
            described(state.owner) if verdict == "running" and state.owner else None,
        )

    async def _verdicts(self, sets: Sequence[ParameterSet]) -> dict[str, Verdict]:
        answers = await self._lookup.glance(sets)
        missing = [answer.parameters.id for answer in answers if answer.record is None]
        states = await self._cache.ledger.states(missing) if missing else {}
        verdicts: dict[str, Verdict] = {}
        for wanted, answer in zip(sets, answers, strict=True):
            if answer.error is not None:
                raise answer.error
            state = states.get(answer.parameters.id, State())
            verdicts[wanted.id] = _verdict(answer, state)
        return verdicts

    async def _nearest(self, wanted: ParameterSet) -> list[Nearest[R]]:
        identity, values = self._cache.identity, wanted.values
        stored = await self._cache.threads.run(identity.stored, values)
        found = await self._cache.ledger.queries.nearest(values, stored, _CANDIDATES)
        judged = await self._cache.threads.run(self._judged, wanted, found)
        return sorted(judged, key=lambda one: farness(one.differences))[:_NEAREST]

    def _judged(self, wanted: ParameterSet, found: Sequence[Entry[R]]) -> list[Nearest[R]]:
        return [
            Nearest(record, self._differences(wanted, entry))
            for record, entry in zip(placed(self._cache.folder, found), found, strict=True)
        ]

    def _differences(self, wanted: ParameterSet, entry: Entry[R]) -> dict[str, tuple[Any, Any]]:
        names = self._cache.identity.differences(wanted.values, entry.values)
        return {name: (entry.values[name], wanted.values[name]) for name in names}


def _verdict(answer: Answer[Any], state: State) -> Verdict:
    if answer.record is not None:
        return "stored"
    if is_at_work(state):
        return "running"
    if answer.is_lost:
        return "lost"
    return "new" if state.failure is None else "failed"
