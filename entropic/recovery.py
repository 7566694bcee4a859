"""What a crash has left in the staging folder: what of it is finished, and what is of no use.

It decides, and changes nothing: the pipeline publishes what is finished, as it does with any run,
and discards the rest. What a live owner stages is never anybody else's business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from entropic.artifacts import ResultsFolder, Sidecar, Stage, read_sidecar
from entropic.leases import is_alive, is_gone
from entropic.ledger import State


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery has done and found.

    Attributes:
        published: The ids of finished runs that have been published and stored.
        discarded: The ids of runs that were not finished, or whose result nobody needs; what was
            staged of them has been removed.
        strays: Paths in the results folder that are called as results are, and that no row
            knows. They are left alone: they may be another cache's, or your own.
    """

    published: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()


@dataclass(slots=True)
class Leftovers:
    """What there is to do about what was left.

    Attributes:
        finished: The sidecars of finished runs, by run id: of each the last.
        dead: The owners that are known to be dead.
        useless: What is to be discarded, of owners who can publish it no more: run id and stage.
        held: The same, of those who still could: only under a claim.
    """

    finished: dict[str, Sidecar] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    useless: list[tuple[str, Stage]] = field(default_factory=list)
    held: dict[str, Stage] = field(default_factory=dict)


def sort(
    staged: Sequence[tuple[str, int, Stage]],
    states: Mapping[str, State],
    folder: ResultsFolder,
    patience: float,
) -> Leftovers:
    """Tell what is finished from what is of no use; it reads files, so it belongs into a thread.

    Args:
        staged: The run id, the token and the stage of all that is staged, tokens ascending.
        states: How it is with these runs.
        folder: The results folder.
        patience: Seconds since anything was written to an unfinished stage after which nobody is
            taken to be at work in it: a worker may outlive the store that it works for.

    Raises:
        ResultsDirError: The folder cannot be read.
    """
    left = Leftovers()
    for id, token, stage in staged:
        state = states[id]
        # A token that nobody has: of another database, or of this one before it was put back.
        if is_at_work(state) or token > state.token:
            continue
        owner = None if token < state.token else state.owner
        if owner is not None and is_gone(owner):
            left.dead.add(owner)
        sidecar = read_sealed(stage, id, token)
        if sidecar is not None and token > state.published:
            left.finished[id] = sidecar
            continue
        if not _is_useless(stage, sidecar, state, token):
            continue
        if sidecar is None and folder.idle_seconds(stage) <= patience:
            continue
        if owner is None:
            left.useless.append((id, stage))
        # One that has only fallen silent may be paused: there is no hurry.
        elif not is_alive(owner):
            left.held[id] = stage
    return left


def read_sealed(stage: Stage, id: str, token: int) -> Sidecar | None:
    """The sidecar of a stage, if it has one that speaks of this very run.

    It may have been staged under an earlier token, and then been taken over by its next owner.
    """
    sidecar = read_sidecar(stage)
    if sidecar is None or (sidecar.nonce, sidecar.id) != (stage.nonce, id):
        return None
    return sidecar if sidecar.token <= token else None


def is_at_work(state: State) -> bool:
    """Whether a run's owner is at work, as far as can be told from here."""
    return state.owner is not None and state.is_live and not is_gone(state.owner)


def _is_useless(stage: Stage, sidecar: Sidecar | None, state: State, token: int) -> bool:
    if sidecar is not None or token <= state.published:
        return True
    if stage.has_sidecar:  # one that says what cannot be: nobody knows what this is
        return False
    # What was given back and is still there was kept on purpose: an error has named its folder.
    return token < state.token or state.owner is not None
