"""The ledger's statements, in SQLAlchemy's Core; compiled once for a model in a kind of database.

Bound names begin with ``b_``: SQLAlchemy keeps bare column names for itself.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from entropic.database import Database, Dialect, Statement
from entropic.identity import Identity
from entropic.models import RESERVED, Base, runs_table

RUN: Final = runs_table.c
RESULT_COLUMNS: Final = (
    RUN.folder,
    RUN.result_name,
    RUN.registered_path,
    RUN.companions,
    RUN.size,
    RUN.digest,
    RUN.host,
    RUN.started_at,
    RUN.elapsed_seconds,
)
"""What the bookkeeping knows of a result, in the order of the fields of ``Result``."""


def _compiled(build: Callable[["Statements"], sa.sql.ClauseElement]) -> Any:
    """Have a statement compiled when it is first asked for."""

    def compile_it(self: "Statements") -> Statement:
        return self.compiled(build(self))

    return cached_property(compile_it)


class Statements:
    """The statements of one model in one kind of database.

    Args:
        dialect: The kind of database.
        compiler: SQLAlchemy's dialect, as an engine for it has set it up.
        identity: The model's rules.
        is_bare: Whether the database has no side tables, as entropic 2 left it: all that reads
            finds them empty, and nothing can be written.
    """

    def __init__(
        self, dialect: Dialect, compiler: sa.Dialect, identity: Identity, *, is_bare: bool = False
    ) -> None:
        attributes = sa.inspect(identity.model).columns
        self._columns = {name: attributes[name] for name in (*RESERVED, *identity.parameters)}
        self._table = self._columns["id"].table
        self._dialect = dialect
        self._compiler = compiler
        self._is_bare = is_bare
        self._keys = dialect.keys("b_ids")
        self._expires = dialect.now + _bound("b_ttl", sa.Double())
        is_live = RUN.owner.is_not(None) & (RUN.lease_expires > dialect.now)
        self._is_live = is_live.label("is_live")
        # A claim gets what is nobody's; to seize is to take it from whoever has it.
        gone = sa.select(dialect.keys("b_gone").c.value)
        self.is_live = sa.func.coalesce(is_live, sa.false())
        self._is_free = ~self.is_live | RUN.owner.in_(gone)

    @_compiled
    def look_up(self) -> Any:
        """For every id that is asked for, what there is: a row, bookkeeping, both or neither."""
        key = self._keys.c.value
        row = sa.select(*self._columns.values()).where(self._table.c.id == key)
        about = (RUN.token, RUN.published, self._is_live, *RESULT_COLUMNS)
        joined, row_columns = self._dialect.joined(self._keys, row, is_outer=True)
        joined, about_columns = self._dialect.joined(
            joined, _bookkeeping(key, about), is_outer=True
        )
        return sa.select(key, *row_columns, *about_columns).select_from(joined)

    def found(self, model: str) -> sa.Select[Any]:
        """What ``look_up`` gives of a row that is there, of all rows."""
        key = self._columns["id"].label("key")
        about = (RUN.token, RUN.published, self._is_live, *RESULT_COLUMNS)
        rows = sa.select(key, *self._columns.values(), *about)
        return rows.select_from(self.stored(model))

    def stored(self, model: str) -> sa.Join:
        """All rows, each with its bookkeeping."""
        is_its = (RUN.model == sa.literal(model, sa.String())) & (RUN.id == self._columns["id"])
        return self._table.outerjoin(runs_table, is_its)

    def tokens(self, model: str) -> sa.Select[Any]:
        """The ids of all rows, each with the token of its result."""
        ids = sa.select(self._columns["id"], RUN.published)
        return ids.select_from(self.stored(model))

    def durations(self, model: str) -> sa.Select[Any]:
        """The mean duration of the runners, as the bookkeeping has it, and as custom data do."""
        is_its = RUN.model == sa.literal(model, sa.String())
        known = sa.select(sa.func.avg(RUN.elapsed_seconds)).where(is_its).scalar_subquery()
        number = Base.custom("elapsed_seconds").number()
        told: sa.ColumnElement[float] = sa.func.avg(number, type_=sa.Double())
        return sa.select(known, sa.select(told).select_from(self._table).scalar_subquery())

    def some(self, *names: str) -> sa.Select[Any]:
        """Some columns of all rows; without any, their number."""
        if not names:
            return sa.select(sa.func.count()).select_from(self._table)
        return sa.select(*(self._columns[name] for name in names))

    @property
    def is_asked(self) -> sa.ColumnElement[bool]:
        """Whether a row has one of the ids that are bound."""
        return self._dialect.is_among(self._columns["id"], "b_ids")

    def compiled(self, element: Any) -> Statement:
        """A statement that is run once or twice."""
        if self._is_bare:
            element = element.add_cte(no_bookkeeping())
        return Statement(element, self._compiler, self._dialect)

    @_compiled
    def states(self) -> Any:
        """How it is with each run that has bookkeeping."""
        key = self._keys.c.value
        about = (
            RUN.token,
            RUN.published,
            RUN.owner,
            self._is_live,
            RUN.state,
            RUN.attempts,
            RUN.error,
        )
        joined, columns = self._dialect.joined(self._keys, _bookkeeping(key, about), is_outer=False)
        return sa.select(key, *columns).select_from(joined)

    @_compiled
    def hold(self) -> Any:
        """Bookkeeping that nobody else may write until the end of the transaction.

        Here and below, SQLite's lock does so.
        """
        return _held(RUN.id, self._is_one())

    @_compiled
    def hold_rows(self) -> Any:
        """Rows that nobody else may write until the end of the transaction."""
        id = self._table.c.id
        return _held(id, self._dialect.is_among(id, "b_ids"))

    @_compiled
    def claim(self) -> Any:
        """A new owner, with the next token and a new lease, for every id that is free."""
        return self._claim(self._is_free)

    @_compiled
    def seize(self) -> Any:
        """The same for every id, whoever has it."""
        return self._claim(None)

    @_compiled
    def renew(self) -> Any:
        """A new lease for those of the ids that are still the owner's.

        Not for those that a transaction holds: it is about to end the claim, or to give it to
        another.
        """
        is_ours = self._is_one() & (RUN.owner == _bound("b_owner"))
        free = sa.select(RUN.id).where(is_ours).with_for_update(skip_locked=True)
        renewed = sa.update(runs_table).where(is_ours, RUN.id.in_(free))
        return renewed.values(lease_expires=self._expires)

    @_compiled
    def store(self) -> Any:
        """A row; one that is there already keeps its created_at."""
        insert = self._dialect.insert(self._table)
        columns = self._columns
        values = {c.name: _bound(f"b_{name}", c.type) for name, c in columns.items()}
        # Where a table is called so itself, PostgreSQL cannot tell which one is meant.
        source = values if insert.table.name == "excluded" else insert.excluded
        replaced = {c.name: source[c.name] for c in columns.values()}
        del replaced["id"], replaced["created_at"]
        return insert.values(values).on_conflict_do_update(index_elements=["id"], set_=replaced)

    @_compiled
    def settle(self) -> Any:
        """A run that is stored now; a claim that is newer than it stays as it is."""
        is_last = RUN.token == _bound("b_token", RUN.token.type)
        values = {column.name: _bound(f"b_{column.name}", column.type) for column in RESULT_COLUMNS}
        return (
            sa.update(runs_table)
            .where(_is_this_run())
            .values(
                state=sa.case((is_last, "done"), else_=RUN.state),
                owner=sa.case((is_last, sa.null()), else_=RUN.owner),
                lease_expires=sa.case((is_last, sa.null()), else_=RUN.lease_expires),
                published=_bound("b_token", RUN.published.type),
                error=sa.null(),
                **values,
            )
        )

    @_compiled
    def fail(self) -> Any:
        """A claim given back; an earlier result of the run stays what it was."""
        is_stored = sa.exists().where(self._table.c.id == _bound("b_id"))
        # What is settled has not failed, whatever its owner was told of its commit.
        is_open = RUN.published < RUN.token
        return (
            sa.update(runs_table)
            .where(_is_this_run(), RUN.token == _bound("b_token", RUN.token.type), is_open)
            .values(
                state=sa.case((is_stored, "done"), else_=_bound("b_state")),
                owner=sa.null(),
                lease_expires=sa.null(),
                error=_bound("b_error", RUN.error.type),
            )
        )

    @_compiled
    def relinquish(self) -> Any:
        """The claims that an owner still has given back, as by an interruption."""
        is_stored = sa.exists().where(self._table.c.id == RUN.id)
        return (
            sa.update(runs_table)
            .where(self._is_one(), RUN.owner == _bound("b_owner"))
            .values(
                state=sa.case((is_stored, "done"), else_="interrupted"),
                owner=sa.null(),
                lease_expires=sa.null(),
                error=sa.null(),
            )
        )

    @_compiled
    def failures(self) -> Any:
        """What has failed, and not succeeded since."""
        has_failed = (RUN.model == _bound("b_model")) & RUN.error.is_not(None)
        return sa.select(RUN.id, RUN.attempts, RUN.error).where(has_failed).order_by(RUN.id)

    @_compiled
    def registered(self) -> Any:
        """The paths that were registered."""
        path = RUN.registered_path
        is_registered = (RUN.model == _bound("b_model")) & path.is_not(None)
        return sa.select(path).where(is_registered).order_by(RUN.id)

    @_compiled
    def delete(self) -> Any:
        """Some rows go."""
        return sa.delete(self._table).where(self.is_asked)

    @_compiled
    def bury(self) -> Any:
        """What stays of a deleted run: its tokens, all of them settled, and the name it had."""
        insert, is_free = self._dialect.insert(runs_table), self._is_free
        return insert.values(
            model=_bound("b_model"),
            id=_bound("b_id"),
            state="deleted",
            token=0,
            published=0,
            attempts=0,
            folder=_bound("b_folder"),
            result_name=_bound("b_result_name"),
        ).on_conflict_do_update(
            index_elements=["model", "id"],
            set_={
                "state": sa.case((is_free, "deleted"), else_=RUN.state),
                # A run that is under way has not been deleted, and may still be stored.
                "published": sa.case((is_free, RUN.token), else_=RUN.token - 1),
                "owner": sa.case((is_free, sa.null()), else_=RUN.owner),
                "lease_expires": sa.case((is_free, sa.null()), else_=RUN.lease_expires),
                "folder": insert.excluded.folder,
                "result_name": insert.excluded.result_name,
                "registered_path": sa.null(),
                "error": sa.null(),
            },
        )

    def _claim(self, is_free: sa.ColumnElement[bool] | None) -> Any:
        insert = self._dialect.insert(runs_table)
        first = sa.select(
            _bound("b_model"),
            self._keys.c.value,
            sa.literal_column("'running'"),
            sa.literal_column("1"),
            sa.literal_column("0"),
            sa.literal_column("1"),
            _bound("b_owner"),
            self._expires,
        ).where(sa.true())  # without a WHERE, SQLite takes ON for the beginning of a join
        names = ["model", "id", "state", "token", "published", "attempts", "owner", "lease_expires"]
        return (
            insert.from_select(names, first, include_defaults=False)
            .on_conflict_do_update(
                index_elements=["model", "id"],
                set_={
                    "state": "running",
                    "token": RUN.token + 1,
                    "attempts": RUN.attempts + 1,
                    "owner": insert.excluded.owner,
                    "lease_expires": insert.excluded.lease_expires,
                },
                where=is_free,
            )
            .returning(RUN.id, RUN.token, RUN.published)
        )

    def _is_one(self) -> sa.ColumnElement[bool]:
        return (RUN.model == _bound("b_model")) & self._dialect.is_among(RUN.id, "b_ids")


# Compiling takes longer than all else that opening a store does. How an engine sets its dialect up
# depends on the kind of database alone.
_known: Final[WeakKeyDictionary[type[Base], dict[Any, Statements]]] = WeakKeyDictionary()


def statements_for(database: Database, identity: Identity, *, is_bare: bool = False) -> Statements:
    """The statements of a model in an open database."""
    of_model = _known.setdefault(identity.model, {})
    # A column may be added to a model that is mapped already.
    columns = tuple(sa.inspect(identity.model).columns)
    known = type(database.dialect), tuple(identity.parameters), columns, is_bare
    if known not in of_model:
        of_model[known] = Statements(database.dialect, database.compiler, identity, is_bare=is_bare)
    return of_model[known]


def no_bookkeeping() -> sa.CTE:
    """A table of bookkeeping without a row, for a statement that has no other."""
    nothing = [sa.cast(sa.null(), column.type).label(column.name) for column in RUN]
    return sa.select(*nothing).where(sa.false()).cte(runs_table.name)


def _bound(name: str, kind: Any = None) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=kind or sa.String())


def _is_this_run() -> sa.ColumnElement[bool]:
    return (RUN.model == _bound("b_model")) & (RUN.id == _bound("b_id"))


def _bookkeeping(
    key: sa.ColumnElement[str], about: Sequence[sa.ColumnElement[Any]]
) -> sa.Select[Any]:
    return sa.select(*about).where(RUN.model == _bound("b_model"), RUN.id == key)


def _held(id: sa.ColumnElement[str], is_one: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(id).where(is_one).order_by(id).with_for_update()
