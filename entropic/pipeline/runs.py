"""One run, step by step: claim, execute, publish and commit, or give the claim back.

Claims, commits and failures of concurrent runs share transactions. Whether a run is needed, and
who waits for it, is left to the callers.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from entropic._shield import to_the_end, undisturbed
from entropic.artifacts import ResultsFolder, Sidecar, Stage, Staged
from entropic.errors import EntropicError, Failure, ResultsDirError, RunCycleError, RunError
from entropic.executors import Executor, Threads
from entropic.identity import Identity, ParameterSet, is_computed, is_heavy, shortened
from entropic.leases import Flight, Heartbeat
from entropic.ledger import Claim, Entry, Finished, Ledger, Published, Result, State
from entropic.models import Base
from entropic.pipeline.batching import Batcher
from entropic.pipeline.elsewhere import Elsewhere
from entropic.recovery import Leftovers, is_at_work, read_sealed, sort
from entropic.schedule import BATCH, retry_delay
from entropic.worker import DURABLE_SECONDS, Job, Outcome, Runner, running

T = TypeVar("T")
R = TypeVar("R", bound=Base)

_logger = logging.getLogger("entropic")

_GRACE_SECONDS: Final = 0.5
_CONTENDED_SECONDS: Final = 5.0  # after others were last met
_LINGER_SECONDS: Final = 0.04  # a finished run is to be on record within 100 ms
_LONGEST_TRACEBACK: Final = 20_000
_MOST_LOOKED_AT: Final = 100  # stages of earlier owners, who mostly have failed


@dataclass(frozen=True, slots=True)
class Landed(Generic[R]):
    """How a run ended well.

    Attributes:
        record: What is stored now: this run's record, or that of a later owner.
        seconds: What the runner took; ``None`` where it was not run here.
    """

    record: R
    seconds: float | None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a call wants its runs to be carried out.

    Attributes:
        executor: Where.
        custom_data: What goes to their rows beside ``elapsed_seconds``.
        retries: How many times more one that fails is tried.
        timeout: Seconds after which a runner is stopped.
    """

    executor: Executor
    custom_data: Mapping[str, Any]
    retries: int = 0
    timeout: float | None = None


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


@dataclass(frozen=True, slots=True)
class _Executed(Finished):
    """A finished run with what its executor left."""

    stage: Stage
    staged: Staged
    outcome: Outcome
    is_left: bool = False
    """Whether an earlier owner left it, who may have begun to publish it."""


@dataclass(slots=True)
class _Run:
    """One run in hand; claim and stage are there once it has been taken.

    Attributes:
        is_last: Whether it is not tried again if it fails.
    """

    parameters: ParameterSet
    options: RunOptions
    is_last: bool
    claim: Claim = field(init=False)
    stage: Stage = field(init=False)

    @property
    def has_claim(self) -> bool:
        return hasattr(self, "stage")


_Failure = tuple[str, int, dict[str, Any] | None]

# An id, and the token of the stored result that was looked at: ``None`` to run in any case.
_Wanted = tuple[str, int | None]


class Runs(Generic[R]):
    """Carries runs out.

    Args:
        runner: The user's function.
        identity: The model's rules.
        ledger: Where runs are claimed and stored.
        folder: Where results are staged and published.
        threads: Where files are touched.
        nonce: Tells this cache's staged runs from those of others on the same folder.
        claimant: How this store claims runs.
        checksum: Whether results get a digest.
    """

    def __init__(
        self,
        runner: Runner,
        identity: Identity,
        ledger: Ledger[R],
        folder: ResultsFolder,
        threads: Threads,
        *,
        nonce: str,
        claimant: Claimant,
        checksum: bool,
    ) -> None:
        self._runner = runner
        self._identity = identity
        self._ledger = ledger
        self._folder = folder
        self._threads = threads
        self._nonce = nonce
        self._claimant = claimant
        self._checksum = checksum
        self._leftovers: set[asyncio.Task[None]] = set()
        self._claims: Batcher[_Wanted, Claim | State] = Batcher(self._claim, BATCH)
        self._elsewhere = Elsewhere(ledger.states)
        self._contended_until = 0.0
        self._commits: Batcher[_Executed, Entry[R] | EntropicError] = Batcher(
            self._commit, BATCH, self._linger
        )
        self._failures: Batcher[_Failure, None] = Batcher(self._fail, BATCH)

    async def run(
        self,
        flight: Flight[Any],
        parameters: ParameterSet,
        options: RunOptions,
        *,
        unless_newer_than: int | None,
    ) -> Landed[R] | Failure | None:
        """Run one parameter set, again where it fails and that is asked for.

        Args:
            flight: Told when the runner is called.
            parameters: What to run.
            options: How.
            unless_newer_than: The token of the stored result that was looked at; a run that was
                stored since then makes this one needless. ``None`` to run in any case.

        Returns:
            The failure, where the run has failed for good, here or in another store. ``None``
            when somebody has stored the run since it was looked up, or a later owner's result
            has been stored and deleted: look again.

        Raises:
            EntropicError: The run could not be carried out, or not be stored.
            asyncio.CancelledError: The run was interrupted; its claim has been given back.
        """
        for attempt in itertools.count(1):
            run = _Run(parameters, options, is_last=attempt > options.retries)
            ended = await self._claimed(flight, run, unless_newer_than)
            if ended is not None:
                return ended.failure
            landed = await self._attempt(flight, run, unless_newer_than)
            if not isinstance(landed, Failure):
                return landed
            if run.is_last or not _may_pass(landed.exception) or not flight.is_wanted:
                return replace(landed, attempts=attempt)
            # Meanwhile nothing is at work, and nothing is lost by leaving.
            flight.has_started = False
            delay = retry_delay(attempt, random.random())
            _logger.info("run %s is tried again in %.1f s", parameters.id, delay)
            await asyncio.sleep(delay)
        raise AssertionError

    async def _attempt(
        self, flight: Flight[Any], run: _Run, unless_newer_than: int | None
    ) -> Landed[R] | Failure | None:
        try:
            if unless_newer_than is not None and run.claim.published > unless_newer_than:
                await undisturbed(self._give_back(run))
                return None
            left = await self._left_behind(run) if unless_newer_than is not None else None
            outcome = await self._execute(flight, run) if left is None else left.outcome
        except asyncio.CancelledError:
            await self._leave_in_order(run)
            raise
        except Exception as error:
            # Not the runner's: the executor's, or the database's. The run has failed all the same.
            await undisturbed(self._give_back(run, self._failure(run, error)))
            raise
        if left is not None:
            landed = await undisturbed(self._store(run, left))
            return landed or await self._overtaken(flight, run)
        if outcome.error is not None:
            about = self._failure(run, outcome.error, outcome.traceback)
            # A result that was finished before the disk failed is left where it is.
            leave = self._settle if outcome.is_finished else self._give_back
            # A cancellation must not be lost on a run that would be tried again.
            await (undisturbed if run.is_last else to_the_end)(leave(run, about))
            if outcome.is_finished:  # whatever runs next, the disk fails it, too
                raise outcome.error
            values = run.parameters.values
            return Failure(
                dict(values), run.parameters.id, outcome.error, outcome.traceback or "", 1
            )
        landed = await undisturbed(self._finish(run, outcome))
        if landed is not None:
            return landed
        flight.has_started = False  # the later owner's run may be left like any other
        return await self._overtaken(flight, run)

    async def aclose(self) -> None:
        """Wait until all claims that cancelled runs left behind have been given back."""
        while self._leftovers:
            await asyncio.wait(self._leftovers)
        await self._elsewhere.aclose()

    async def _claimed(
        self, flight: Flight[Any], run: _Run, unless_newer_than: int | None
    ) -> State | None:
        """Claim a run, once no other store runs it.

        Returns:
            ``None`` with the claim in hand; else how the run ended elsewhere: with a newer result
            than the one that was looked at, or in a failure, which is this request's outcome, too.
        """
        while (state := await self._take(run, unless_newer_than)) is not None:
            if not _is_newer(state, unless_newer_than):
                flight.is_elsewhere = True
                _logger.info("run %s is under way in another store; waiting", run.parameters.id)
                state = await self._elsewhere.ended(run.parameters.id)
                if state.failure is not None and unless_newer_than is not None:
                    return state
            if _is_newer(state, unless_newer_than):
                return replace(state, failure=None)
        flight.is_elsewhere = False
        return None

    async def _leave_in_order(self, run: _Run, taking: asyncio.Future[Any] | None = None) -> None:
        """Give a cancelled run's claim back, also one that has yet to come.

        It may take as long as somebody has the database locked; a cancellation waits only a
        moment for it.
        """

        async def give_back() -> None:
            if taking is not None:
                await asyncio.wait({taking})
            if taking is None or taking.exception() is None:
                await self._give_back(run)

        task = asyncio.create_task(give_back())
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)
        await undisturbed(asyncio.wait({task}, timeout=_GRACE_SECONDS))

    async def _take(self, run: _Run, unless_newer_than: int | None) -> State | None:
        """Try to claim a run; ``None`` where that has worked, else how it is with it."""

        async def take() -> State | None:
            (claim,) = await self._claims.ask([(run.parameters.id, unless_newer_than)])
            if isinstance(claim, State):
                return claim
            run.claim = claim
            run.stage = self._folder.stage(run.parameters.id, claim.token, self._nonce)
            if self._claimant.heartbeat is not None:
                self._claimant.heartbeat.hold(run.parameters.id)
            return None

        taking = asyncio.ensure_future(take())
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            await self._leave_in_order(run, taking)
            raise
        except Exception as error:
            self._failure(run, error)  # tells it which run it is about
            raise

    def _let_go(self, run_id: str) -> None:
        if self._claimant.heartbeat is not None:
            self._claimant.heartbeat.release(run_id)

    async def _execute(self, flight: Flight[Any], run: _Run) -> Outcome:
        executor = run.options.executor
        job = await self._off_loop(run, self._job)
        async with executor.slot(len(job.chain)):

            def began() -> None:
                flight.has_started = True
                flight.cannot_stop = not executor.can_stop

            outcome = await executor.run(job, began)
            flight.cannot_stop = False
            flight.has_started = True  # an executor may not have been able to say so
            if outcome.error is not None and (run.is_last or not _may_pass(outcome.error)):
                flight.failing()
            return outcome

    async def _off_loop(self, run: _Run, function: Callable[[_Run], T]) -> T:
        """In a thread where the parameters are large; here, where a hop would cost more."""
        if is_heavy(run.parameters.values):
            return await self._threads.run(function, run)
        return function(run)

    def _job(self, run: _Run) -> Job:
        return Job(
            runner=self._runner,
            params=run.parameters.values,
            id=run.parameters.id,
            cache=self._nonce,
            stage=run.stage,
            token=run.claim.token,
            owner=self._claimant.owner,
            values=self._identity.portable(run.parameters.values),
            custom_data=dict(run.options.custom_data),
            checksum=self._checksum,
            timeout=run.options.timeout,
            chain=running.get(),
        )

    async def _finish(self, run: _Run, outcome: Outcome) -> Landed[R] | None:
        assert outcome.staged is not None
        return await self._store(
            run,
            _Executed(
                run.parameters,
                await self._off_loop(run, lambda run: self._identity.stored(run.parameters.values)),
                run.claim.token,
                {"elapsed_seconds": outcome.elapsed_seconds, **run.options.custom_data},
                run.stage,
                outcome.staged,
                outcome,
            ),
        )

    async def _left_behind(self, run: _Run) -> _Executed | None:
        """The finished result of an earlier owner of this run, who did not come to store it."""
        if run.claim.token <= run.claim.published + 1:
            return None
        # Undisturbed: once it has been taken over, it is this run's, and is stored.
        return await undisturbed(
            self._threads.run(self._take_over, run.parameters, run.claim, run.stage)
        )

    def _take_over(self, parameters: ParameterSet, claim: Claim, stage: Stage) -> _Executed | None:
        """Make the last finished stage of the earlier owners this owner's; in a thread."""
        oldest = max(claim.published, claim.token - 1 - _MOST_LOOKED_AT)
        for token in range(claim.token - 1, oldest, -1):
            theirs = self._folder.stage(parameters.id, token, self._nonce)
            sidecar = read_sealed(theirs, parameters.id, token)
            if sidecar is None or not self._folder.can_resume(theirs, sidecar.staged, sidecar.id):
                continue
            found = self._parameters(sidecar)
            is_same = found is not None and found.digest == parameters.digest
            if is_same and self._folder.take_over(theirs, stage):
                about = sidecar.started_at, sidecar.elapsed_seconds, sidecar.host
                return _Executed(
                    parameters,
                    self._identity.stored(parameters.values),
                    claim.token,
                    {"elapsed_seconds": sidecar.elapsed_seconds, **sidecar.custom_data},
                    stage,
                    sidecar.staged,
                    Outcome(*about, staged=sidecar.staged),
                    is_left=True,
                )
        return None

    def _parameters(self, sidecar: Sidecar) -> ParameterSet | None:
        """What was run; ``None`` where a sidecar cannot be right, or the model has changed."""
        try:
            found = self._identity.resolve(sidecar.values)
            if sidecar.id in (found.id, found.id_2x):
                return replace(found, id=sidecar.id)
            if not is_computed(sidecar.id):  # the caller's own
                return self._identity.resolve({**sidecar.values, "id": sidecar.id})
            why: object = f"its id is not that of {shortened(sidecar.values)}"
        except EntropicError as error:
            why = error
        _logger.warning("the finished run %s cannot be recovered: %s", sidecar.id, why)
        return None

    async def recover(self) -> tuple[list[str], list[str]]:
        """Publish and store what owners that are gone have finished; discard what they have not.

        Returns:
            The ids of what was stored, and of what was discarded.

        Raises:
            ResultsDirError: The results folder cannot be read.
            DatabaseError: The database failed.
        """
        staged = await self._threads.run(self._folder.staged, self._nonce)
        if not staged:
            return [], []
        ids = sorted({id for id, _, _ in staged})
        states: dict[str, State] = {}
        for start in range(0, len(ids), BATCH):
            states |= await self._ledger.states(ids[start : start + BATCH])
        left: Leftovers = await self._threads.run(
            sort, staged, states, self._folder, self._claimant.ttl
        )
        await self._threads.run(self._discard, [stage for _, stage in left.useless])
        for id, stage in left.useless:
            _logger.info("discarded what was staged of %s (%s)", id, stage.folder)
        await self._failures.ask([(id, token, None) for id, token in left.held])
        stored: list[str] = []
        finished = list(left.finished.values())
        for start in range(0, len(finished), BATCH):
            stored += await self._recovered(finished[start : start + BATCH], list(left.dead))
        return stored, [id for id, _ in left.useless]

    async def _recovered(self, sidecars: Sequence[Sidecar], dead: Sequence[str]) -> list[str]:
        """Store finished runs, each under a claim of its own; the ids of those that were."""
        by_id = {sidecar.id: sidecar for sidecar in sidecars}
        claims = await self._take_free(list(by_id), dead)

        def take_over() -> list[_Executed]:
            found = (self._recoverable(by_id[id], claim) for id, claim in claims.items())
            return [run for run in found if run is not None]

        runs = await self._threads.run(take_over)
        stored = []
        back = claims.keys() - {run.parameters.id for run in runs}
        for run, answer in zip(runs, await self._commits.ask(runs), strict=True):
            if isinstance(answer, EntropicError):
                _logger.warning("run %s was not recovered: %s", run.parameters.id, answer)
                back.add(run.parameters.id)
            elif answer.published == run.token:
                _logger.info("recovered %s", run.parameters.id)
                stored.append(run.parameters.id)
        if back:
            await self._failures.ask([(id, claims[id].token, None) for id in sorted(back)])
        return stored

    def _recoverable(self, sidecar: Sidecar, claim: Claim) -> _Executed | None:
        parameters = self._parameters(sidecar)
        if parameters is None:
            return None
        stage = self._folder.stage(sidecar.id, claim.token, self._nonce)
        return self._take_over(parameters, claim, stage)

    async def _store(self, run: _Run, finished: _Executed) -> Landed[R] | None:
        try:
            (entry,) = await self._commits.ask([finished])
            if isinstance(entry, EntropicError):
                raise entry
        except Exception as error:
            # The run is finished: what could not be published stays staged, with its sidecar.
            await self._settle(run, self._failure(run, error))
            raise
        self._let_go(run.parameters.id)
        if entry.record is None or entry.published < run.claim.token:
            # Overtaken: by a run that was deleted meanwhile, or by one that is still under way.
            return None
        if entry.published == run.claim.token and entry.result.name is not None:
            entry.record.__dict__["result_file"] = self._folder.given(entry.result.name)
        return Landed(entry.record, finished.outcome.elapsed_seconds)

    async def _overtaken(self, flight: Flight[Any], run: _Run) -> Landed[R] | None:
        """This run came too late; the record of the later owner is what its requests get.

        Returns:
            ``None`` where there is none: look again.
        """
        flight.is_elsewhere = True
        try:
            state = await self._elsewhere.ended(run.parameters.id)
        finally:
            flight.is_elsewhere = False
        if state.published < run.claim.token:
            return None
        entry = (await self._ledger.look_up([run.parameters.id]))[run.parameters.id]
        if entry.record is None:
            return None
        if entry.result.name is not None:
            entry.record.__dict__["result_file"] = self._folder.given(entry.result.name)
        return Landed(entry.record, None)

    async def _claim(self, wanted: list[_Wanted]) -> list[Claim | State]:
        """Claim what nobody has; how it is with what others run, or have stored meanwhile.

        A claim takes the write lock. While others are about, who runs what is read beforehand, so
        that those who share a sweep do not queue up for claims that they will not get.
        """
        loop = asyncio.get_running_loop()
        ids = [id for id, _ in wanted]
        claims: dict[str, Claim] = {}
        if loop.time() >= self._contended_until:
            claims = await self._take_free(ids, ())
        others = [(id, seen) for id, seen in wanted if id not in claims]
        states: dict[str, State] = {}
        if others:
            self._contended_until = loop.time() + _CONTENDED_SECONDS
            states = await self._ledger.states([id for id, _ in others])
            free = [
                id
                for id, seen in others
                if not _is_newer(states[id], seen) and not is_at_work(states[id])
            ]
            if free:
                owners = {states[id].owner for id in free}
                claims |= await self._take_free(free, [owner for owner in owners if owner])
        return [claims.get(id) or states[id] for id in ids]

    async def _take_free(self, ids: Sequence[str], gone: Sequence[str]) -> dict[str, Claim]:
        owner = self._claimant.owner
        # What this store has claimed and could not give back is its own to take again.
        return await self._ledger.claim(ids, owner, self._claimant.ttl, [owner, *gone])

    def _linger(self) -> float:
        """Among others, commits are to be few: each keeps all others from the database."""
        is_contended = asyncio.get_running_loop().time() < self._contended_until
        return _LINGER_SECONDS if is_contended else 0.0

    async def _commit(self, runs: list[_Executed]) -> list[Entry[R] | EntropicError]:
        entries = await self._ledger.complete(runs, self._publish)
        answers = [entries[run.parameters.id] for run in runs]
        # What could not be published stays staged, with its sidecar: it is finished work.
        done = [r.stage for r, a in zip(runs, answers, strict=True) if _is_settled(a)]
        await self._threads.run(self._discard, done)
        for run, answer in zip(runs, answers, strict=True):
            _log(run, answer)
        return answers

    async def _publish(
        self, ready: list[tuple[_Executed, Entry[R]]]
    ) -> list[Published | EntropicError]:
        return await self._threads.run(self._publish_all, ready)

    def _publish_all(
        self, ready: list[tuple[_Executed, Entry[R]]]
    ) -> list[Published | EntropicError]:
        published: list[Published | EntropicError] = []
        for run, entry in ready:
            try:
                published.append(self._publish_one(run, entry))
            except ResultsDirError as error:
                published.append(error)
        if any(run.outcome.elapsed_seconds >= DURABLE_SECONDS for run, _ in ready):
            self._folder.sync()
        return published

    def _publish_one(self, run: _Executed, entry: Entry[R]) -> Published:
        ours = own_name(self._folder, run.parameters.id, entry)
        publish = self._folder.resume if run.is_left else self._folder.publish
        name = publish(
            run.stage,
            run.staged,
            run.parameters.id,
            ours,
            has_companions=bool(entry.result.companions),
        )
        result = Result(
            folder=self._folder.id,
            name=name,
            companions=bool(run.staged.companions),
            # A folder's size is not compared at each hit, so it is told by the digest alone.
            size=None if run.staged.is_folder else run.staged.size,
            digest=run.staged.digest,
            host=run.outcome.host,
            started_at=run.outcome.started_at,
            elapsed_seconds=run.outcome.elapsed_seconds,
        )
        return Published(self._folder.spell(name), result)

    def _failure(self, run: _Run, error: Exception, traceback: str | None = None) -> dict[str, Any]:
        """What goes on record of a failure; the error is told which run it is about."""
        id, values = run.parameters.id, run.parameters.values
        _add_note(error, f"while running {id} with {shortened(values, most=500)}")
        if isinstance(error, RunError) and error.id is None:  # not one of a run that this one needs
            error.id, error.params = id, dict(values)
        about = {
            # Large ones are not worth the time that writing them would take the loop.
            "params": None if is_heavy(values) else json.dumps(self._identity.portable(values)),
            "type": f"{type(error).__module__}.{type(error).__qualname__}",
            "message": _message(error),
            "traceback": (traceback or "")[-_LONGEST_TRACEBACK:],
        }
        _logger.info("run %s failed: %s: %s", id, about["type"], about["message"])
        return about

    async def _give_back(self, run: _Run, failure: dict[str, Any] | None = None) -> None:
        """Discard what was staged, and give the claim back; nothing to do where there is none."""
        if run.has_claim:
            await self._threads.run(self._discard, [run.stage])
            await self._settle(run, failure)

    async def _settle(self, run: _Run, failure: dict[str, Any] | None) -> None:
        """Put a failure, or (``None``) an interruption, on record.

        The caller must hear of the failure itself, not of this one.
        """
        self._let_go(run.parameters.id)
        try:
            await self._failures.ask([(run.parameters.id, run.claim.token, failure)])
        except Exception:
            _logger.warning(
                "the claim of %s could not be given back", run.parameters.id, exc_info=True
            )

    async def _fail(self, failures: list[_Failure]) -> list[None]:
        await self._ledger.fail(failures)
        return [None] * len(failures)

    def _discard(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            try:
                self._folder.discard(stage)
            except OSError:
                _logger.warning("could not remove %s", stage.folder, exc_info=True)


def own_name(folder: ResultsFolder, id: str, entry: Entry[Any]) -> str | None:
    """The name in the folder that is this run's own, or ``None`` when it has none yet."""
    result = entry.result
    if result.name is not None:
        return result.name if result.folder == folder.id else None
    # A row of entropic 2 has no bookkeeping; its result is ours where it says it is.
    if entry.record is None or result.registered_path is not None:
        return None
    name = id + folder.suffix
    stored = entry.record.result_file
    # A relative path was relative to wherever entropic 2 was used.
    is_here = not os.path.isabs(stored) or os.path.dirname(stored) == folder.path
    return name if is_here and os.path.basename(stored) == name else None


def _is_newer(state: State, seen: int | None) -> bool:
    """Whether a result has been stored since one was looked for."""
    return seen is not None and state.published > seen


def _may_pass(error: Exception) -> bool:
    """Whether another try may do better; a run that needs itself never gets it."""
    return not isinstance(error, RunCycleError)


def _is_settled(answer: object) -> bool:
    return not isinstance(answer, ResultsDirError)


def _add_note(error: Exception, note: str) -> None:
    # Exceptions may be frozen, or shared by several runs.
    with contextlib.suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _message(error: Exception) -> str:
    """What an exception says; some of the users' own fail even at that."""
    try:
        return str(error)
    except Exception:
        return f"({type(error).__name__}, which cannot be printed)"


def _log(run: _Executed, answer: Entry[Any] | EntropicError) -> None:
    id = run.parameters.id
    if isinstance(answer, EntropicError):
        _logger.info("run %s could not be stored: %s", id, answer)
    elif answer.record is None or answer.published > run.token:
        _logger.info("run %s came too late; the result of a later owner stands", id)
    else:
        _logger.info("run %s completed in %.4f s", id, run.outcome.elapsed_seconds)
        _logger.info("published %s (run %s)", answer.record.result_file, id)
