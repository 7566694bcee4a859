"""What the library must know about a database: one implementation a file, and no other place asks.

A *dialect* knows the SQL, the driver's errors and the URL's options; a *session* is one open
connection through that driver.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")

Reader = Callable[[Any], Any] | None
"""Converts what the driver returns of one column; ``None`` where nothing is to be done."""


class Begin(enum.Enum):
    """Kinds of transactions.

    Attributes:
        READING: All that is read is of one moment.
        WRITING: For a few rows.
        PUBLISHING: The same, while files are moved that no rollback moves back: what the commit
            could have to wait for is waited for at the beginning.
        TABLES: Makes and changes tables; one at a time among all who use the database.
    """

    READING = enum.auto()
    WRITING = enum.auto()
    PUBLISHING = enum.auto()
    TABLES = enum.auto()


class Fault(enum.Enum):
    """What an error of the driver means for the statement, or the transaction, that met it.

    Attributes:
        LOCKED: Somebody has the lock; the statement itself can be tried again.
        ABORTED: Undone for somebody else's sake; the whole transaction can be tried again.
        LOST: The connection has gone.
        FINAL: Trying again would meet the same.
    """

    LOCKED = enum.auto()
    ABORTED = enum.auto()
    LOST = enum.auto()
    FINAL = enum.auto()


class Session(Protocol):
    """One open connection; one task at a time uses it.

    Attributes:
        connection: SQLAlchemy's.
        waits_for_locks: Whether a statement in a transaction may have to wait for others.
    """

    connection: AsyncConnection
    waits_for_locks: bool

    @property
    def is_usable(self) -> bool:
        """Whether it is still open, as far as is known."""
        ...

    async def fetch(self, sql: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Run a statement; its rows."""
        ...

    async def fetch_and(
        self, sql: str, values: Sequence[Any], function: Callable[[list[Any]], T]
    ) -> T:
        """Run a statement and call a function with its rows, in a thread; what that returns."""
        ...

    async def execute_many(self, batches: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Run statements one after the other, each for every one of its rows of values."""
        ...

    async def begin(self, kind: Begin) -> None:
        """Begin a transaction."""
        ...

    async def commit(self, told: str | None) -> None:
        """Commit it, and tell whoever listens."""
        ...

    async def roll_back(self) -> None:
        """Undo what is not committed; after a commit it does nothing."""
        ...

    async def outcome_key(self) -> Any:
        """What names the transaction under way, for ``has_committed``; ``None`` if nothing does."""
        ...

    async def has_committed(self, key: Any) -> bool | None:
        """Whether a transaction of another session has; ``None`` where nobody knows."""
        ...

    async def listen(self, told: Callable[[str], None]) -> None:
        """Have a function called with what others tell, for as long as the session lasts."""
        ...

    async def disconnect(self) -> None:
        """Close the driver's connection, whatever is cancelled meanwhile, if it is open still."""
        ...


class Dialect(Protocol):
    """One kind of database.

    Attributes:
        is_private: Whether nobody else can see the database: it is in memory.
        readers: How many connections read at once.
        writers: How many write; 0 where the one that reads does.
        now: The database's own clock, in seconds since 1970.
        tells: Whether sessions can tell one another of what they have committed.
        longest_name: How many bytes the name of a table or column may have; ``None`` for any.
    """

    is_private: bool
    readers: int
    writers: int
    now: sa.ColumnElement[float]
    tells: bool
    longest_name: int | None

    def engine(self) -> AsyncEngine:
        """An engine whose connections begin no transaction by themselves."""
        ...

    async def session(self, connection: AsyncConnection) -> Session:
        """The session of a new connection."""
        ...

    async def aclose(self) -> None:
        """Close what the engine has lost: a loop that ends cancels it as it makes a connection."""
        ...

    async def prepare(self, session: Session, is_new: bool) -> None:
        """Settle what belongs to the whole database; an existing one stays as it is."""
        ...

    def schema_of(self, connection: sa.Connection, name: str, schema: str | None) -> str:
        """The schema in which a table is, or would be made; ``schema`` if one is asked for."""
        ...

    def reader(self, kind: sa.types.TypeEngine[Any], compiler: sa.Dialect) -> Reader:
        """How a column of a type is read."""
        ...

    def keys(self, name: str) -> sa.TableValuedAlias:
        """A table of the keys bound under a name, any number of them as one value."""
        ...

    def is_among(self, column: sa.ColumnElement[str], name: str) -> sa.ColumnElement[bool]:
        """Whether a column is one of the keys bound under a name; found by its index."""
        ...

    def joined(
        self,
        left: sa.FromClause,
        found: sa.Select[Any],
        *,
        is_outer: bool,
    ) -> tuple[sa.FromClause, Sequence[sa.ColumnElement[Any]]]:
        """Each row of one side with the one row, at most, that a select finds for it by an index.

        Returns:
            The join, and the columns of what is found in it.
        """
        ...

    def bind_keys(self, keys: Sequence[str]) -> Any:
        """The value to bind for some keys."""
        ...

    def is_narrower(self, found: Any, wanted: sa.types.TypeEngine[Any]) -> bool:
        """Whether a column as it was found refuses, or changes, values of the type that is wanted.

        Of the same family, as far as is known.
        """
        ...

    def literal(self, value: Any, kind: sa.types.TypeEngine[Any]) -> str:
        """A value as SQL text, for a column's default: what binding it would store."""
        ...

    def by_code_points(self, text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """A text, to be compared and ordered by its code points."""
        ...

    def by_decimal_value(self, text: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """A decimal that is kept as text, to be compared and ordered by its value, exactly."""
        ...

    def insert(self, table: sa.FromClause) -> Any:
        """An insert that can also update, or do nothing, on a conflict."""
        ...

    def fault(self, error: BaseException) -> Fault | None:
        """What an error means; ``None`` for one that is not the driver's."""
        ...

    def translate(self, error: BaseException) -> Exception:
        """An error of the driver, as one that says what to do."""
        ...
