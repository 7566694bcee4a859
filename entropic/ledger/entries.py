"""What the ledger says of a run, and what it is told: values, without a statement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import sqlalchemy as sa

from entropic.errors import Failure
from entropic.identity import ParameterSet
from entropic.models import RESERVED, Base, columns_of

R = TypeVar("R", bound=Base)

# As a text: to put this union together takes two milliseconds of each import.
Where: TypeAlias = "sa.ColumnExpressionArgument[bool] | Mapping[str, Any]"
"""A condition on a model's rows, or a dict of values that they are to have."""

OrderBy = Any
"""A column, what ``asc`` and ``desc`` make of one, its name (``"-dt"``), or several of these."""


class Result(NamedTuple):  # a frozen dataclass takes six times as long to make, for each row
    """Where a run's result is, and what is known of it.

    Attributes:
        folder: The id of the results folder that it was published in.
        name: The name in that folder that is the run's own, even after its row was deleted.
        registered_path: The absolute path of a result that was registered.
        companions: Whether other files were published beside it.
        size: Its bytes; ``None`` where not recorded.
        digest: SHA-256 of it, in hexadecimal; ``None`` where not computed.
        host: The machine that it ran on.
        started_at: When it was started, in seconds since 1970.
        elapsed_seconds: Of the runner alone.
    """

    folder: str | None = None
    name: str | None = None
    registered_path: str | None = None
    companions: bool | None = None
    size: int | None = None
    digest: str | None = None
    host: str | None = None
    started_at: float | None = None
    elapsed_seconds: float | None = None


class Entry(NamedTuple, Generic[R]):
    """What the database holds under one id: a stored run, or only traces of one.

    Attributes:
        record: A plain detached instance of the model as it is stored; ``None`` without a row.
        result: The bookkeeping; all ``None`` for a row that entropic 2 left.
        token: The token of its last owner, or 0.
        published: The token of the stored result, or 0.
        is_claimed: Whether somebody is running it at this moment: its lease has not passed.
    """

    record: R | None
    result: Result
    token: int
    published: int
    is_claimed: bool

    @property
    def values(self) -> dict[str, Any]:
        """The stored parameters; empty without a row."""
        stored = {} if self.record is None else columns_of(self.record)
        return {name: value for name, value in stored.items() if name not in RESERVED}


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one id.

    Attributes:
        token: Higher than that of every owner before.
        published: The token of the result that is stored; one that was stored since the last
            look means that there is nothing to run.
    """

    token: int
    published: int


@dataclass(frozen=True, slots=True)
class State:
    """How it is with a run, without its row.

    Attributes:
        token: Of its last owner; 0 where nobody has ever run it.
        published: The token of the stored result, or 0.
        owner: Who runs it, or ``None``.
        is_live: Whether that owner's lease has not passed.
        failure: Where its last owner has failed, and nothing is stored.
    """

    token: int = 0
    published: int = 0
    owner: str | None = None
    is_live: bool = False
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has ended well and is to be published and stored.

    Attributes:
        parameters: What was run.
        stored: Its values as they go to the database.
        token: The token that it was run under.
        custom_data: What goes to the row's ``custom_data``.
    """

    parameters: ParameterSet
    stored: Mapping[str, Any]
    token: int
    custom_data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """Where a result has been put.

    Attributes:
        path: The path that the row gives.
        result: What is known of it.
    """

    path: str
    result: Result


def of_record(entry: Entry[R]) -> R:
    """The record of an entry that has one."""
    assert entry.record is not None
    return entry.record


def is_fenced(entry: Entry[Any], token: int) -> bool:
    """Whether a later owner has taken the run over, so that this one comes too late.

    Also where that one's result has been deleted since: what is deleted does not come back.
    """
    return entry.token != token or entry.published >= token
