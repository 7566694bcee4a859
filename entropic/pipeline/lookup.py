"""Is it there already: from params to a record, a miss, or the reason why neither can be said."""

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

from entropic.artifacts import ResultsFolder
from entropic.errors import EntropicError, ParamsError, ResultsDirError, SchemaError
from entropic.identity import ParameterSet, checked_id, is_heavy
from entropic.ledger import Entry
from entropic.models import Base, copied
from entropic.pipeline.batching import Batcher
from entropic.pipeline.cache import Cache
from entropic.pipeline.sources import Wanted

R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")

# A re-run's file has its final name a moment before its row is committed: look again so often.
_LOOKS: Final = 50
_LOOK_SECONDS: Final = 0.02


class Answer(NamedTuple, Generic[R]):
    """What a look-up says of one parameter set.

    Attributes:
        parameters: The set; its id is the one that it is, or will be, stored under.
        entry: What the database holds under that id.
        record: The record, with a path that works here; ``None`` on a miss.
        error: Why neither a hit nor a miss can be said.
        is_unsettled: The row and its result do not fit together, and somebody is running it:
            most likely they are about to.
    """

    parameters: ParameterSet
    entry: Entry[R]
    record: R | None = None
    error: EntropicError | None = None
    is_unsettled: bool = False

    def is_doubtful(self, looks: int) -> bool:
        """Whether to look again, after so many looks before this one.

        At first, also where nobody runs it: that may have begun and ended between the reading of
        the row and the look for its result.
        """
        return self.is_unsettled or (self.is_lost and looks == 0)

    @property
    def is_lost(self) -> bool:
        """Whether there is a row, and not the result that belongs to it."""
        return self.entry.record is not None and self.record is None and self.error is None


class Lookup(Generic[R]):
    """Looks parameter sets up.

    Args:
        cache: Where they are.
    """

    def __init__(self, cache: Cache[R]) -> None:
        self._cache = cache
        self._near: Batcher[ParameterSet, Answer[R] | _Far[R]] = Batcher(
            self._look_up, most=2000, is_own=True
        )

    async def aclose(self) -> None:
        """Let end what is under way."""
        await self._near.aclose()

    async def resolve(self, batch: Sequence[Wanted], first: int = 0) -> list[ParameterSet]:
        """Coerce, check and identify parameter sets; the loop is not held up by large ones.

        Args:
            batch: The sets; one that has been resolved is as it is.
            first: The position in the whole input of the first one, for error messages.

        Raises:
            ParamsError: One of them cannot be run; names its position where there are many.
        """
        if is_heavy(*batch):
            return await self._cache.threads.run(self._resolve, batch, first)
        return self._resolve(batch, first)

    async def answer(self, sets: Sequence[ParameterSet]) -> list[Answer[R]]:
        """What there is for each of some parameter sets.

        Raises:
            DatabaseError: The database failed.
        """
        answers = await self._settled(sets)
        for answer in answers:
            if answer.record is None:
                _warn(answer)
        return answers

    async def quietly(self, params: Mapping[str, Any]) -> Answer[R]:
        """What there is for one parameter set, at first sight.

        A result that is lost is told, and one that may be about to come is waited for, by who looks
        next.

        Raises:
            ParamsError: It cannot be run.
            DatabaseError: The database failed.
        """
        (answer,) = await self.glance(await self.resolve([params]))
        return answer

    async def _settled(self, sets: Sequence[ParameterSet]) -> list[Answer[R]]:
        """The same, when what may be about to be settled has had time to be."""
        answers = await self.glance(sets)
        for look in range(_LOOKS):
            doubtful = [
                at
                for at, answer in enumerate(answers)
                if answer.record is None and answer.is_doubtful(look)
            ]
            if not doubtful:
                break
            if look:
                await asyncio.sleep(_LOOK_SECONDS)
            again = await self.glance([sets[at] for at in doubtful])
            for at, answer in zip(doubtful, again, strict=True):
                answers[at] = answer
        return answers

    async def one(
        self, params: Any, recover: Callable[[str], Awaitable[bool]] | None = None
    ) -> Answer[R] | None:
        """What there is for params of which, with an ``id``, the others may be left out.

        Args:
            params: The parameters.
            recover: Brings back what a crash may have left of a run, by its id, and says whether
                there was anything; called where a row has lost its result.

        Returns:
            ``None`` where the id holds other parameters than those given.

        Raises:
            ParamsError: The params cannot be anybody's.
            DatabaseError: The database failed.
        """
        if not isinstance(params, Mapping) or "id" not in params:
            (wanted,) = await self.resolve([params])
            return await self._recovered(wanted, recover)
        id = checked_id(params["id"])
        given = self._cache.identity.coerce_given(params)
        entry = (await self._cache.ledger.look_up([id]))[id]
        if entry.record is None:
            return None
        digest = self._cache.ledger.digest(id, entry)
        if self._cache.identity.differences(given, entry.values):
            return None
        stored = ParameterSet(id, dict(entry.values), digest, has_own_id=True)
        return await self._recovered(stored, recover)

    async def _recovered(
        self, wanted: ParameterSet, recover: Callable[[str], Awaitable[bool]] | None
    ) -> Answer[R]:
        (answer,) = await self._settled([wanted])
        if (answer.is_lost and recover is not None) and (
            await recover(answer.parameters.id) or answer.is_unsettled
        ):
            (answer,) = await self._settled([wanted])
        if answer.record is None:
            _warn(answer)
        return answer

    async def glance(self, sets: Sequence[ParameterSet]) -> list[Answer[R]]:
        """What there is for each, at this moment.

        Raises:
            DatabaseError: The database failed.
        """
        found = await self._near.ask(sets)
        if _Far in set(map(type, found)):
            # Each request by itself: nobody else waits for what may take long, or never end.
            return await self._cache.threads.run(self._judge_far, found)
        return cast("list[Answer[R]]", found)

    async def _look_up(self, sets: list[ParameterSet]) -> list[Answer[R] | "_Far[R]"]:
        ids = dict.fromkeys([s.id for s in sets])
        ids |= dict.fromkeys([s.id_2x for s in sets if s.id_2x is not None])
        # One way to a thread and back for all: it takes longer than what a few sets need there.
        judge = functools.partial(self._judge_near, sets)
        return await self._cache.ledger.look_up_and(list(ids), judge)

    def _judge_near(
        self, sets: Sequence[ParameterSet], entries: Mapping[str, Entry[R]]
    ) -> list[Answer[R] | "_Far[R]"]:
        """In the connection's thread, which others wait for: what takes no time to speak of."""
        chosen = [self._choose(wanted, entries) for wanted in sets]
        if len({wanted.id for wanted, _ in chosen}) < len(chosen):
            chosen = _each_its_own(chosen)
        folder = self._cache.folder
        are_light = not is_heavy(*[wanted.values for wanted in sets])
        prefix = folder.given_prefix()
        found: list[Answer[R] | _Far[R]] = []
        for wanted, entry in chosen:
            is_small = are_light or not is_heavy(wanted.values)
            if entry.record is None:
                found.append(Answer(wanted, entry))
            elif is_small and folder.is_local and is_here(folder, entry):
                found.append(self._judge(wanted, entry, prefix))
            else:
                found.append(_Far(wanted, entry))
        return found

    def _judge_far(self, found: Sequence[Answer[R] | "_Far[R]"]) -> list[Answer[R]]:
        return [
            self._judge(one.wanted, one.entry) if isinstance(one, _Far) else one for one in found
        ]

    def _resolve(self, batch: Sequence[Wanted], first: int) -> list[ParameterSet]:
        resolved = []
        for position, params in enumerate(batch, first):
            if isinstance(params, ParameterSet):
                resolved.append(params)
                continue
            try:
                resolved.append(self._cache.identity.resolve(params))
            except ParamsError as error:
                if position or len(batch) > 1:
                    error.add_note(f"in the parameter set at position {position} of the input")
                raise
        return resolved

    def _choose(
        self, wanted: ParameterSet, entries: Mapping[str, Entry[R]]
    ) -> tuple[ParameterSet, Entry[R]]:
        """The set under the id that it is, or will be, stored under, and what there is."""
        entry = entries[wanted.id]
        if entry.record is None and wanted.id_2x is not None:
            older = entries[wanted.id_2x]
            # Ids of entropic 2 collide: only the parameters say whether it is the same run.
            with contextlib.suppress(SchemaError):
                if older.record is None or self._cache.ledger.conflict(wanted, older):
                    return wanted, entry
            return replace(wanted, id=wanted.id_2x), older  # or it cannot be read, which is told
        return wanted, entry

    def _judge(self, wanted: ParameterSet, entry: Entry[R], prefix: str | None = None) -> Answer[R]:
        """In a thread: compare the stored parameters, and look for the result.

        Args:
            wanted: The set.
            entry: What is stored under its id: a row.
            prefix: What the paths in this store's folder begin with, where its result was published
                there; ``None`` to look wherever it may be.
        """
        assert entry.record is not None
        try:
            if conflict := self._cache.ledger.conflict(wanted, entry):
                return Answer(wanted, entry, error=conflict)
            folder, name, path = self._cache.folder, entry.result.name, None
            if prefix is not None and name is not None and folder.has(name, entry.result.size):
                path = prefix + name
            else:
                path = locate(folder, wanted.id, entry)
        except (ResultsDirError, SchemaError) as error:  # of this one alone, not of its batch
            return Answer(wanted, entry, error=error)
        if path is None:
            return Answer(wanted, entry, is_unsettled=entry.is_claimed)
        entry.record.__dict__["result_file"] = path
        return Answer(wanted, entry, entry.record)


@dataclass(slots=True)
class _Far(Generic[R]):
    """What is yet to be judged, in a thread of its own."""

    wanted: ParameterSet
    entry: Entry[R]


def _each_its_own(
    chosen: Sequence[tuple[ParameterSet, Entry[R]]],
) -> list[tuple[ParameterSet, Entry[R]]]:
    """Of a record that several have asked for, each gets one: it is theirs to change."""
    seen: set[str] = set()
    own = []
    for wanted, entry in chosen:
        is_taken = entry.record is not None and wanted.id in seen
        seen.add(wanted.id)
        own.append((wanted, _copy(entry) if is_taken else entry))
    return own


def _copy(entry: Entry[R]) -> Entry[R]:
    assert entry.record is not None
    return entry._replace(record=copied(entry.record))


def is_here(folder: ResultsFolder, entry: Entry[Any]) -> bool:
    """Whether a stored run was published in this very folder, under a name of its own."""
    result = entry.result
    is_ours = result.folder == folder.id and result.registered_path is None
    return is_ours and result.name is not None


def found_at(folder: ResultsFolder, id: str, entry: Entry[Any]) -> str | None:
    """Where a stored run's result is here and now, be it whole or not; ``None`` if nowhere."""
    registered = entry.result.registered_path
    if registered is not None and os.path.lexists(registered):
        return registered
    try:
        return locate(folder, id, entry, of_any_size=True)
    except ResultsDirError:
        return None


def locate(
    folder: ResultsFolder, id: str, entry: Entry[Any], *, of_any_size: bool = False
) -> str | None:
    """The path of a stored run's result here and now; ``None`` when it is gone or cut short.

    Args:
        folder: Where it most likely is.
        id: The run id.
        entry: What is stored of it.
        of_any_size: Whether one that is cut short counts, too.

    Raises:
        ResultsDirError: The whole folder that holds it is gone.
    """
    assert entry.record is not None
    return folder.locate(
        id,
        entry.record.result_file,
        name=entry.result.name,
        folder=entry.result.folder,
        registered=entry.result.registered_path,
        size=None if of_any_size else entry.result.size,
        host=entry.result.host,
        digest=entry.result.digest,
        started_at=entry.result.started_at,
    )


def _warn(answer: Answer[Any]) -> None:
    if answer.error is None and answer.entry.record is not None:
        _logger.warning(
            "the result of %s (%s) is gone or not as large as it was: a miss",
            answer.parameters.id,
            answer.entry.record.result_file,
        )
