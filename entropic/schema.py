"""Opening a database for a model: its tables, and its identity defaults.

What is missing is made, what is there is compared, and the defaults are settled once and for all.
Two processes may open at once: everything is looked at first, and what has to change is looked
at again under the write lock. Rows are left to ``ledger``.
"""

import logging
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from entropic.database import Begin, Database, Dialect, Transaction
from entropic.errors import SchemaError
from entropic.identity import Identity
from entropic.models import Base, ExactDecimal, columns_table, models_table

FORMAT: Final = 1
"""The version of the side tables and of the rules for ids."""

_SIDE_TABLES: Final = models_table.metadata

_logger = logging.getLogger("entropic")


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening has settled for a model.

    Attributes:
        identity: The model's rules in this database.
        model: The model's name in the side tables: that of its table, with the table's schema
            where the side tables are in another one.
        nonce: Marks what this cache stages in a results folder that others use, too.
    """

    identity: Identity
    model: str
    nonce: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the database holds of a model."""

    model: str
    is_empty: bool
    side_tables: frozenset[str]
    columns: dict[str, Any] | None
    keys: list[str]
    has_rows: bool
    entry: tuple[int, str, bool] | None
    defaults: dict[str, str | None]


async def open_schema(database: Database, model: type[Base]) -> Opened:
    """Make the database ready for a model.

    Returns:
        The model's identity in this database, and the cache's names.

    Raises:
        SchemaError: The table differs from the model in a way that cannot be mended without
            knowing what was meant; says which column, and what to do.
        ModelError: The model cannot hold runs.
        DatabaseError: The database failed.
    """
    table = _table_of(model, database.dialect)
    model_identity = Identity(model)

    async def look() -> _Seen:
        return await database.read_sync(lambda c: _look(c, database.dialect, table))

    seen = await look()
    if _is_settled(seen, model_identity, database.dialect):
        return _opened(seen, model)
    await database.prepare(seen.is_empty)

    async def settle(transaction: Transaction) -> None:
        await transaction.run_sync(
            lambda connection: _settle(connection, database.dialect, table, model_identity)
        )

    with _known_types():
        await database.write(settle, Begin.TABLES)
    # By the connection that reads: as long as it has not seen the new tables, and a lock keeps it
    # from looking, SQLite says that there is no such table, and not that it is busy.
    return _opened(await look(), model)


async def missing_ddl(database: Database, model: type[Base]) -> list[str]:
    """The statements that make what the database lacks, for whoever may make tables there.

    Returns:
        Them, in their order; none where nothing is missing.

    Raises:
        SchemaError: The table differs from the model in another way; or the database has no
            column type of this kind.
        DatabaseError: The database failed.
    """
    table = _table_of(model, database.dialect)
    identity = Identity(model)

    def plan(connection: sa.Connection) -> list[str]:
        seen = _look(connection, database.dialect, table)
        statements: list[str] = []

        def write(element: Any, *_: Any, **__: Any) -> None:
            statements.append(str(element.compile(dialect=connection.dialect)).strip())

        writer = MockConnection(connection.dialect, write)
        for side in _SIDE_TABLES.sorted_tables:
            if side.name not in seen.side_tables:
                side.create(writer, checkfirst=False)
        if seen.columns is None:
            _make_types(connection, table.columns, writer)
            writer.execute(CreateTable(table))
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                writer.execute(CreateIndex(index))
            return statements
        missing = _missing_columns(seen, identity, database.dialect)
        _make_types(connection, [identity.parameters[name].column for name in missing], writer)
        return statements + [
            _added_column(connection, database.dialect, table, identity, name) for name in missing
        ]

    with _known_types():
        return await database.read_sync(plan)


def _table_of(model: type[Base], dialect: Dialect) -> sa.Table:
    """A model's table; raises where no database of this kind could have it."""
    table = sa.inspect(model).local_table
    assert isinstance(table, sa.Table)
    if table.name.lower() in _SIDE_TABLES.tables:
        raise SchemaError(
            f"{table.name!r} is the name of a table of entropic's own: give {model.__name__}"
            " another __tablename__"
        )
    longest = dialect.longest_name
    for name in (table.schema or "", table.name, *(column.name for column in table.columns)):
        if longest is not None and len(name.encode()) > longest:
            raise SchemaError(
                f"the name {name!r} of {model.__name__}'s table has {len(name.encode())} bytes,"
                f" and this database keeps {longest}: give it a shorter one"
            )
    return table


@contextmanager
def _known_types() -> Iterator[None]:
    """Tell of a column type that only other databases have."""
    try:
        yield
    except CompileError as error:
        raise SchemaError(f"the database has no such column type: {error}") from error


def _opened(seen: _Seen, model: type[Base]) -> Opened:
    assert seen.entry is not None
    _, nonce, from_2x = seen.entry
    defaults = {name: text for name, text in seen.defaults.items() if text is not None}
    return Opened(Identity(model, defaults, from_2x=from_2x), seen.model, nonce)


def _look(connection: sa.Connection, dialect: Dialect, table: sa.Table) -> _Seen:
    inspector = sa.inspect(connection)
    model = _name_of(connection, dialect, table)
    sides = {side.name for side in _SIDE_TABLES.sorted_tables if inspector.has_table(side.name)}
    found: dict[str, Any] | None = None
    keys: list[str] = []
    has_rows = False
    if inspector.has_table(table.name, table.schema):
        _check_is_table(table, inspector.get_table_names(table.schema))
        found = {c["name"]: c for c in inspector.get_columns(table.name, table.schema)}
        keys = inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"]
        has_rows = connection.execute(
            sa.select(sa.exists(sa.select(sa.text("1")).select_from(table)))
        ).scalar_one()
    entry = None
    defaults: dict[str, str | None] = {}
    if models_table.name in sides:
        columns = models_table.c
        row = connection.execute(
            sa.select(columns.format, columns.nonce, columns.from_2x).where(columns.model == model)
        ).one_or_none()
        entry = None if row is None else (row.format, row.nonce, row.from_2x)
    if columns_table.name in sides:
        query = sa.select(columns_table.c.parameter, columns_table.c.identity_default)
        rows = connection.execute(query.where(columns_table.c.model == model))
        defaults = {row.parameter: row.identity_default for row in rows}
    is_empty = not inspector.get_table_names()
    return _Seen(model, is_empty, frozenset(sides), found, keys, bool(has_rows), entry, defaults)


def _name_of(connection: sa.Connection, dialect: Dialect, table: sa.Table) -> str:
    """A model's name in the side tables, which are where whoever asks finds them first.

    The same for all who find the same: not as a model spells it, but where its table is.
    """
    home = dialect.schema_of(connection, table.name, table.schema)
    of_sides = dialect.schema_of(connection, models_table.name, None)
    if home == of_sides:
        return dotted(table.name)
    if sa.inspect(connection).has_table(models_table.name, home):
        raise SchemaError(
            f"the bookkeeping of {home}.{table.name} is in its own schema, and this role finds that"
            f" of {of_sides} first: connect with a search_path that begins with {home} (in db_url:"
            f" ?options=-csearch_path%3D{home})"
        )
    return dotted(home, table.name)


def dotted(*names: str) -> str:
    """Names in one, which no others are."""
    quoted = ('"' + name.replace('"', '""') + '"' if "." in name else name for name in names)
    return ".".join(quoted)


def undotted(name: str) -> tuple[str | None, str]:
    """The schema and the table that a model's name in the side tables is made of."""
    parts = [
        quoted[1:-1].replace('""', '"') if quoted else bare for quoted, bare in _PART.findall(name)
    ]
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])


_PART: Final = re.compile(r'("(?:[^"]|"")*")|([^.]+)')


def _check_is_table(table: sa.Table, names: list[str]) -> None:
    if table.name in names:
        return
    what = next((f"one with {n!r}" for n in names if n.lower() == table.name.lower()), "a view")
    raise SchemaError(
        f"the database has no table {table.name!r} and can have none, as that name is {what} to"
        " it: give the model another __tablename__"
    )


def _is_settled(seen: _Seen, identity: Identity, dialect: Dialect) -> bool:
    """Whether there is nothing to make, to add or to write down."""
    if seen.entry is not None and seen.entry[0] > FORMAT:
        raise SchemaError(
            f"the database was used by a newer entropic (format {seen.entry[0]}, this one knows"
            f" {FORMAT}); update entropic"
        )
    if seen.columns is None or len(seen.side_tables) < len(_SIDE_TABLES.tables):
        return False
    missing = _missing_columns(seen, identity, dialect)
    return (
        seen.entry is not None
        and not missing
        and identity.parameters.keys() <= seen.defaults.keys()
    )


def _settle(
    connection: sa.Connection, dialect: Dialect, table: sa.Table, identity: Identity
) -> None:
    """Under the write lock: look again, then make, add and write down what is missing."""
    seen = _look(connection, dialect, table)
    if _is_settled(seen, identity, dialect):
        return
    _SIDE_TABLES.create_all(connection)
    added: list[str] = []
    if seen.columns is None:
        _make_types(connection, table.columns, connection)
        table.create(connection)
    else:
        added = _missing_columns(seen, identity, dialect)
        for name in added:
            _add_column(connection, dialect, table, identity, name)
    from_2x = _is_from_2x(seen)
    if seen.entry is None:
        connection.execute(
            sa.insert(models_table).values(
                model=seen.model, format=FORMAT, nonce=uuid.uuid4().hex[:8], from_2x=from_2x
            )
        )
    first_sight = seen.entry is None or not seen.defaults
    for name in identity.parameters:
        if name not in seen.defaults:
            default = identity.model_default(name)
            if first_sight and from_2x and name not in added:
                default = None  # entropic 2 put every parameter that was passed into the id
            elif not first_sight or name in added:
                default = default or "null"  # what the rows that were there before now hold
            connection.execute(
                sa.insert(columns_table).values(
                    model=seen.model, parameter=name, identity_default=default
                )
            )


def _add_column(
    connection: sa.Connection, dialect: Dialect, table: sa.Table, identity: Identity, name: str
) -> None:
    """Add the column of a parameter; rows that are there get the literal default."""
    column = identity.parameters[name].column
    _make_types(connection, [column], connection)
    # As the driver takes it: SQLAlchemy would look for parameters in the literal.
    connection.exec_driver_sql(_added_column(connection, dialect, table, identity, name))
    _logger.info("added the column %s.%s, which the model has gained", table.name, column.name)


def _make_types(
    connection: sa.Connection,
    columns: Iterable[sa.Column[Any]],
    writer: sa.Connection | MockConnection,
) -> None:
    """Make the enums of some columns, where those are types of the database and missing."""
    kinds = [_new_type(connection, column) for column in columns]
    for kind in {kind.name: kind for kind in kinds if kind is not None}.values():
        kind.create(writer, checkfirst=False)


def _new_type(connection: sa.Connection, column: sa.Column[Any]) -> sa.Enum | None:
    """The enum to make before a column of it.

    Raises:
        SchemaError: It is there, and lacks some of the model's members.
    """
    kind: Any = column.type
    while isinstance(kind, sa.TypeDecorator | sa.ARRAY):
        kind = kind.item_type if isinstance(kind, sa.ARRAY) else kind.impl_instance
    has_type: Any = getattr(connection.dialect, "has_type", None)
    if not (has_type and isinstance(kind, sa.Enum) and kind.native_enum):
        return None
    if not has_type(connection, kind.name, schema=kind.schema):
        return kind
    inspector: Any = sa.inspect(connection)
    found = [e for e in inspector.get_enums(kind.schema or "*") if e["name"] == kind.name]
    labels = next((e["labels"] for e in found if kind.schema or e["visible"]), ())
    if lacking := [repr(label) for label in kind.enums if label not in labels]:
        raise SchemaError(
            f"the database has an enum {kind.name!r} already, without {', '.join(lacking)}: give"
            f" that of {column.table.name}.{column.name} another name (sa.Enum(..., name=...)), or"
            f" add what it lacks (ALTER TYPE {kind.name} ADD VALUE ...)"
        )
    return None


def _added_column(
    connection: sa.Connection, dialect: Dialect, table: sa.Table, identity: Identity, name: str
) -> str:
    column = identity.parameters[name].column
    bare = sa.Column(column.name, column.type, nullable=column.nullable)
    sa.Table(table.name, sa.MetaData(), bare, schema=table.schema)
    added = str(CreateColumn(bare).compile(dialect=connection.dialect))
    value = identity.coerce(name, identity.parameters[name].literal_default)
    if value is not None:
        added += f" DEFAULT {dialect.literal(value, column.type)}"
    named = connection.dialect.identifier_preparer.format_table(table)
    return f"ALTER TABLE {named} ADD COLUMN {added}"


def _is_from_2x(seen: _Seen) -> bool:
    """Whether entropic 2 made the table: rows that nothing is written down of are its own."""
    return seen.entry[2] if seen.entry is not None else seen.has_rows and not seen.defaults


def _missing_columns(seen: _Seen, identity: Identity, dialect: Dialect) -> list[str]:
    """The parameters that the table lacks.

    Raises:
        SchemaError: Something else differs, or a missing column cannot be added.
    """
    table = sa.inspect(identity.model).local_table
    assert isinstance(table, sa.Table)
    columns = seen.columns or {}
    of_parameters = {p.column.name: name for name, p in identity.parameters.items()}
    missing = []
    for column in table.columns:
        found = columns.get(column.name)
        if found is not None:
            _check_column(table, column, found, dialect, from_2x=_is_from_2x(seen))
        elif column.name not in of_parameters:
            raise SchemaError(
                f"the table {table.name!r} has no column {column.name!r}: it was not made by"
                " entropic; give the model another __tablename__"
            )
        else:
            missing.append(of_parameters[column.name])
    if seen.keys != ["id"]:
        raise SchemaError(
            f"the table {table.name!r} has not id as its primary key, so one run could have two"
            " rows: it was not made by entropic; give the model another __tablename__"
        )
    _check_names(seen, identity, missing)
    for name in missing:
        parameter = identity.parameters[name]
        if not (parameter.has_literal_default or parameter.column.nullable):
            raise SchemaError(
                f"the model has gained {identity.model.__name__}.{name}, and nothing says which"
                f" value it has in the rows of {table.name!r} that are stored already: give it a"
                " default (mapped_column(default=...)), make it nullable, or give the model"
                " another __tablename__"
            )
    for name in columns.keys() - {column.name for column in table.columns}:
        raise SchemaError(
            f"the table {table.name!r} has a column {name!r} that {identity.model.__name__} lacks,"
            " so runs that differ in it could not be told apart: put the parameter back, or give"
            " the model another __tablename__"
        )
    return missing


def _check_names(seen: _Seen, identity: Identity, missing: list[str]) -> None:
    """Raise where a parameter has another name than its stored runs know it by."""
    if seen.entry is None:
        return
    earlier = ", ".join(repr(name) for name in seen.defaults if name not in identity.parameters)
    if not earlier:  # it was added by hand, as ddl() says
        return
    for name, parameter in identity.parameters.items():
        if name not in seen.defaults and name not in missing:
            raise SchemaError(
                f"{identity.model.__name__}.{name} was called {earlier} when the runs in its"
                f" column {parameter.column.name!r} were stored, and names are part of their ids:"
                " call it that again, or give the model another __tablename__"
            )


def _check_column(
    table: sa.Table,
    column: sa.Column[Any],
    found: dict[str, Any],
    dialect: Dialect,
    *,
    from_2x: bool,
) -> None:
    wanted, stored = family(column.type), family(found["type"])
    # A decimal that entropic 2 stored is a number, and its JSON may lie in a text column.
    fits = wanted == stored or (from_2x and {wanted, stored} == {"json", "text"})
    if not fits and not (isinstance(column.type, ExactDecimal) and stored == "number"):
        raise SchemaError(
            f"{table.name}.{column.name} is {_told(found['type'])} in the database and"
            f" {column.type!r} in the model: change the model back, or give it another"
            " __tablename__"
        )
    if dialect.is_narrower(found["type"], column.type):
        raise SchemaError(
            f"{table.name}.{column.name} is {_told(found['type'])} in the database, which does not"
            f" hold all values of {column.type!r} as they are, so that it could refuse a finished"
            f" run: widen it (ALTER TABLE {table.name} ALTER COLUMN {column.name} TYPE ...; for an"
            " enum, ALTER TYPE ... ADD VALUE), or give the model another __tablename__"
        )
    if column.nullable and not found["nullable"]:
        raise SchemaError(
            f"{table.name}.{column.name} has become nullable in the model, and the table refuses"
            " NULL: change the model back, or give it another __tablename__"
        )


def _told(kind: Any) -> str:
    """A column's type, for a message; as text, a native enum would be a ``VARCHAR``."""
    if isinstance(kind, sa.Enum) and kind.native_enum:
        return f"the enum {kind.name} of {', '.join(map(repr, kind.enums))}"
    return str(kind)


def family(kind: Any) -> str:
    """What a column's type is compared by: kinds that keep each other's values."""
    while isinstance(kind, sa.TypeDecorator):
        kind = kind.impl_instance
    for name, types in _FAMILIES.items():
        if isinstance(kind, types):
            return name
    return "other"


_FAMILIES: Final[dict[str, tuple[type, ...]]] = {
    "integer": (sa.Integer, sa.Boolean),
    "number": (sa.Numeric,),
    "float": (sa.Float,),
    "json": (sa.JSON,),
    "text": (sa.String, sa.Uuid),
    "date": (sa.Date,),
    "time": (sa.DateTime,),
}
