"""Finished runs, published and stored: results get their final names, rows their place.

Runs that end at the same time share a transaction. A row that the database refuses does not take
the others down with it.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from entropic._shield import undisturbed
from entropic.artifacts import ResultsFolder, Stage, Staged
from entropic.errors import EntropicError, IdConflictError, ResultsDirError, RowRefusedError
from entropic.identity import ParameterSet
from entropic.ledger import Entry, Finished, Published, Result
from entropic.models import Base
from entropic.pipeline.batching import Batcher
from entropic.pipeline.cache import Cache
from entropic.schedule import BATCH
from entropic.worker import DURABLE_SECONDS, Outcome

R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")


@dataclass(frozen=True, slots=True)
class Executed(Finished):
    """A finished run with what its executor left.

    Attributes:
        stage: Where it is staged.
        staged: What is.
        outcome: What the executor said of it.
        may_have_name: Whether its publication may have begun already: by an owner that was killed
            meanwhile, or in a transaction that was rolled back.
    """

    stage: Stage
    staged: Staged
    outcome: Outcome
    may_have_name: bool = False


class Publisher(Generic[R]):
    """Publishes and stores finished runs.

    Args:
        cache: Where they are stored.
        linger: How many seconds a transaction waits for more runs to share it; see ``Batcher``.
    """

    def __init__(
        self,
        cache: Cache[R],
        linger: Callable[[int, int], float],
    ) -> None:
        self._cache = cache
        self._commits: Batcher[Executed, Entry[R] | EntropicError] = Batcher(
            self._commit, BATCH, linger
        )

    def executed(
        self,
        parameters: ParameterSet,
        token: int,
        custom_data: Mapping[str, Any],
        stage: Stage,
        outcome: Outcome,
        *,
        may_have_name: bool = False,
    ) -> Executed:
        """What there is to store of a run that ended well; in a thread where values are large."""
        assert outcome.staged is not None
        return Executed(
            parameters,
            self._cache.identity.stored(parameters.values),
            token,
            {"elapsed_seconds": outcome.elapsed_seconds, **custom_data},
            stage,
            outcome.staged,
            outcome,
            may_have_name,
        )

    def store(self, runs: Sequence[Executed]) -> asyncio.Future[list[Entry[R] | EntropicError]]:
        """Publish and store finished runs, as a future that is no task; at least one.

        Returns:
            For each what is stored now, which is a later owner's where one has overtaken it; or
            the error that kept it from being stored. It stays staged, with its sidecar, unless
            something newer is stored, or its id is that of another run.

        Raises:
            DatabaseError: The database failed; none of these runs is stored.
        """
        return self._commits.request(runs)

    def discard(self, stages: Sequence[Stage]) -> None:
        """Remove what is staged; in a thread. What cannot be removed is logged."""
        for stage in stages:
            try:
                self._cache.folder.discard(stage)
            except OSError:
                _logger.warning("could not remove %s", stage.folder, exc_info=True)

    async def aclose(self) -> None:
        """Let end what is under way."""
        await self._commits.aclose()

    async def _commit(self, runs: list[Executed]) -> list[Entry[R] | EntropicError]:
        moved: list[tuple[Executed, str]] = []
        try:
            entries = await self._cache.ledger.complete(
                runs,
                functools.partial(self._publish, moved=moved),
                functools.partial(self._take_back, moved),
            )
        except RowRefusedError as error:
            if len(runs) == 1:
                return [error]
            return await self._commit_each(runs)
        answers = [entries[run.parameters.id] for run in runs]
        done = [r.stage for r, a in zip(runs, answers, strict=True) if _is_needless(r, a)]
        await self._cache.threads.run(self.discard, done)
        prefix = self._cache.folder.given_prefix()
        for run, answer in zip(runs, answers, strict=True):
            _log(run, answer)
            if isinstance(answer, EntropicError) or answer.published != run.token:
                continue
            if answer.record is not None and answer.result.name is not None:
                # The row has the path as it was spelled; the record, that which leads there now.
                answer.record.__dict__["result_file"] = prefix + answer.result.name
        return answers

    async def _commit_each(self, runs: list[Executed]) -> list[Entry[R] | EntropicError]:
        """One by one, to find the row that was refused; the results may have their names by now."""
        answers = []
        for run in runs:
            answers += await self._commit([replace(run, may_have_name=True)])
        return answers

    async def _publish(
        self, ready: list[tuple[Executed, Entry[R]]], *, moved: list[tuple[Executed, str]]
    ) -> list[Published | EntropicError]:
        # To its end, also where the loop ends meanwhile: only then is it known what has moved.
        return await undisturbed(self._cache.threads.submit(self._publish_all, ready, moved))

    def _publish_all(
        self, ready: list[tuple[Executed, Entry[R]]], moved: list[tuple[Executed, str]]
    ) -> list[Published | EntropicError]:
        published: list[Published | EntropicError] = []
        for run, entry in ready:
            try:
                one = self._publish_one(run, entry)
            except ResultsDirError as error:
                published.append(error)
            else:
                assert one.result.name is not None
                moved.append((run, one.result.name))
                published.append(one)
        if any(run.outcome.elapsed_seconds >= DURABLE_SECONDS for run, _ in ready):
            self._cache.folder.sync()
        return published

    async def _take_back(self, moved: list[tuple[Executed, str]]) -> None:
        await undisturbed(self._cache.threads.submit(self._withdraw, moved))

    def _withdraw(self, moved: list[tuple[Executed, str]]) -> None:
        for run, name in moved:
            try:
                self._cache.folder.withdraw(run.stage, run.staged, run.parameters.id, name)
            except ResultsDirError:  # then it is found where it is by whoever asks for it next
                _logger.warning("%s could not be staged again", name, exc_info=True)
        moved.clear()  # the transaction may be tried again

    def _publish_one(self, run: Executed, entry: Entry[R]) -> Published:
        ours = own_name(self._cache.folder, run.parameters.id, entry)
        publish = self._cache.folder.resume if run.may_have_name else self._cache.folder.publish
        name = publish(
            run.stage,
            run.staged,
            run.parameters.id,
            ours,
            has_companions=bool(entry.result.companions),
        )
        result = Result(
            folder=self._cache.folder.id,
            name=name,
            companions=bool(run.staged.companions),
            # A folder's size is not compared at each hit, so it is told by the digest alone.
            size=None if run.staged.is_folder else run.staged.size,
            digest=run.staged.digest,
            host=run.outcome.host,
            started_at=run.outcome.started_at,
            elapsed_seconds=run.outcome.elapsed_seconds,
        )
        return Published(self._cache.folder.spell(name), result)


def own_name(folder: ResultsFolder, id: str, entry: Entry[Any]) -> str | None:
    """The name in the folder that is this run's own, or ``None`` when it has none yet."""
    result = entry.result
    if result.name is not None:
        # What a user has registered is the user's, be it under the name that was the run's own.
        is_ours = result.registered_path != os.path.join(folder.path, result.name)
        return result.name if result.folder == folder.id and is_ours else None
    # A row of entropic 2 has no bookkeeping; its result is ours where it says it is.
    if entry.record is None or result.registered_path is not None:
        return None
    name = id + folder.suffix
    stored = entry.record.result_file
    # A relative path was relative to wherever entropic 2 was used.
    is_here = not os.path.isabs(stored) or os.path.dirname(stored) == folder.path
    return name if is_here and os.path.basename(stored) == name else None


def _is_needless(run: Executed, answer: Entry[Any] | EntropicError) -> bool:
    """Whether nobody needs what was staged any more; if not, it is finished work, and stays.

    So it does where a later owner has the run, and nothing newer is stored: that one may die.
    """
    if isinstance(answer, EntropicError):
        return isinstance(answer, IdConflictError)  # never to be stored under this id
    return answer.published >= run.token


def _log(run: Executed, answer: Entry[Any] | EntropicError) -> None:
    id = run.parameters.id
    if isinstance(answer, IdConflictError):
        _logger.warning("the result of run %s is dropped: %s", id, answer)
    elif isinstance(answer, EntropicError):
        _logger.info("run %s could not be stored: %s", id, answer)
    elif answer.record is None or answer.published != run.token:
        _logger.info("run %s came too late: a later owner has it", id)
    else:
        _logger.info("run %s completed in %.4f s", id, run.outcome.elapsed_seconds)
        _logger.info("published %s (run %s)", answer.record.result_file, id)
