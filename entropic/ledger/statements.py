"""The ledger's statements, in SQLAlchemy's Core; compiled once for a model in a database.

Bound names begin with ``b_``: SQLAlchemy keeps bare column names for itself.
"""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from entropic.database import Database, Dialect
from entropic.identity import Identity
from entropic.models import RESERVED, runs_table

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


class Statements:
    """The statements of one model."""

    def __init__(self, database: Database, identity: Identity) -> None:
        dialect = database.dialect
        attributes = sa.inspect(identity.model).columns
        columns = {name: attributes[name] for name in (*RESERVED, *identity.parameters)}
        table = columns["id"].table
        keys = dialect.keys("b_ids")
        is_live = RUN.owner.is_not(None) & (RUN.lease_expires > dialect.now)
        self.look_up = database.statement(_look_up(dialect, keys, table, columns, is_live))
        self.states = database.statement(_states(dialect, keys, is_live))
        is_one = (RUN.model == _bound("b_model")) & dialect.is_among(RUN.id, "b_ids")
        self.hold = database.statement(_hold(RUN.id, is_one))
        self.hold_rows = database.statement(
            _hold(table.c.id, dialect.is_among(table.c.id, "b_ids"))
        )
        # A claim gets what is nobody's; to seize is to take it from whoever has it.
        gone = sa.select(dialect.keys("b_gone").c.value)
        is_free = ~sa.func.coalesce(is_live, sa.false()) | RUN.owner.in_(gone)
        insert = dialect.insert(runs_table)
        expires = dialect.now + _bound("b_ttl", sa.Double())
        self.claim = database.statement(_claim(insert, keys, expires, is_free))
        self.seize = database.statement(_claim(insert, keys, expires, None))
        self.renew = database.statement(_renew(is_one, expires))
        self.store = database.statement(_store(dialect.insert(table), columns))
        self.settle = database.statement(_settle())
        self.fail = database.statement(_fail(table))
        self.failures = database.statement(_failures())
        self.registered = database.statement(_registered())
        self.delete = database.statement(sa.delete(table).where(table.c.id == _bound("b_id")))
        self.bury = database.statement(_bury(dialect.insert(runs_table), is_free))


def _bound(name: str, kind: Any = None) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=kind or sa.String())


def _is_this_run() -> sa.ColumnElement[bool]:
    return (RUN.model == _bound("b_model")) & (RUN.id == _bound("b_id"))


def _look_up(
    dialect: Dialect,
    keys: sa.TableValuedAlias,
    table: sa.FromClause,
    columns: dict[str, sa.Column[Any]],
    is_live: sa.ColumnElement[bool],
) -> sa.Select[Any]:
    """For every id that is asked for, what there is: a row, bookkeeping, both or neither."""
    key = keys.c.value
    row = sa.select(*columns.values()).where(table.c.id == key)
    about = (RUN.token, RUN.published, is_live.label("is_live"), *RESULT_COLUMNS)
    joined, row_columns = dialect.joined(keys, row, is_outer=True)
    joined, about_columns = dialect.joined(joined, _bookkeeping(key, about), is_outer=True)
    return sa.select(key, *row_columns, *about_columns).select_from(joined)


def _states(
    dialect: Dialect, keys: sa.TableValuedAlias, is_live: sa.ColumnElement[bool]
) -> sa.Select[Any]:
    """How it is with each run that has bookkeeping."""
    key = keys.c.value
    live = is_live.label("is_live")
    about = (RUN.token, RUN.published, RUN.owner, live, RUN.state, RUN.attempts, RUN.error)
    joined, about_columns = dialect.joined(keys, _bookkeeping(key, about), is_outer=False)
    return sa.select(key, *about_columns).select_from(joined)


def _bookkeeping(
    key: sa.ColumnElement[str], about: Sequence[sa.ColumnElement[Any]]
) -> sa.Select[Any]:
    return sa.select(*about).where(RUN.model == _bound("b_model"), RUN.id == key)


def _hold(id: sa.ColumnElement[str], is_one: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Rows that nobody else may write until the end of the transaction; SQLite's lock does so."""
    return sa.select(id).where(is_one).order_by(id).with_for_update()


def _claim(
    insert: Any,
    keys: sa.TableValuedAlias,
    expires: sa.ColumnElement[float],
    is_free: sa.ColumnElement[bool] | None,
) -> Any:
    """A new owner, with the next token and a new lease, for every id that is free."""
    first = sa.select(
        _bound("b_model"),
        keys.c.value,
        sa.literal_column("'running'"),
        sa.literal_column("1"),
        sa.literal_column("0"),
        sa.literal_column("1"),
        _bound("b_owner"),
        expires,
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


def _renew(is_one: sa.ColumnElement[bool], expires: sa.ColumnElement[float]) -> sa.Update:
    """A new lease for those of the ids that are still the owner's.

    Not for those that a transaction holds: it is about to end the claim, or to give it to another.
    """
    is_ours = is_one & (RUN.owner == _bound("b_owner"))
    free = sa.select(RUN.id).where(is_ours).with_for_update(skip_locked=True)
    return sa.update(runs_table).where(is_ours, RUN.id.in_(free)).values(lease_expires=expires)


def _store(insert: Any, columns: dict[str, sa.Column[Any]]) -> Any:
    """A row; one that is there already keeps its created_at."""
    values = {c.name: _bound(f"b_{name}", c.type) for name, c in columns.items()}
    # Where a table is called so itself, PostgreSQL cannot tell which one is meant.
    source = values if insert.table.name == "excluded" else insert.excluded
    replaced = {c.name: source[c.name] for c in columns.values()}
    del replaced["id"], replaced["created_at"]
    return insert.values(values).on_conflict_do_update(index_elements=["id"], set_=replaced)


def _settle() -> sa.Update:
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


def _fail(table: sa.FromClause) -> sa.Update:
    """A claim given back; an earlier result of the run stays what it was."""
    is_stored = sa.exists().where(table.c.id == _bound("b_id"))
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


def _failures() -> sa.Select[Any]:
    has_failed = (RUN.model == _bound("b_model")) & RUN.error.is_not(None)
    return sa.select(RUN.id, RUN.attempts, RUN.error).where(has_failed).order_by(RUN.id)


def _registered() -> sa.Select[Any]:
    path = RUN.registered_path
    is_registered = (RUN.model == _bound("b_model")) & path.is_not(None)
    return sa.select(path).where(is_registered).order_by(RUN.id)


def _bury(insert: Any, is_free: sa.ColumnElement[bool]) -> Any:
    """What stays of a deleted run: its tokens, all of them settled, and the name it had."""
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
