"""A model for each table of runs that a database holds, made from the table itself.

For those who have a database and no script: whatever works on a model works on these. A value
whose type only Python knows (a path, an enum, an array kept as JSON) is what the database stores.
Nothing is made or changed here.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import mapped_column

from entropic.database import Database, Dialect
from entropic.errors import ModelError, SchemaError
from entropic.identity import Identity
from entropic.models import RESERVED, Base, PlainJson, UtcDateTime, columns_table, models_table
from entropic.schema import FORMAT, dotted, family, undotted


@dataclass(frozen=True, slots=True)
class Reflected:
    """One model of a database.

    Attributes:
        name: What it is called in the side tables: its table, with the schema where that matters.
        model: The model, whose attributes are called as the parameters are where that is known,
            or else as the columns.
        identity: Its rules in this database.
        nonce: Marks what its cache stages; ``None`` where no store of entropic 3 has opened it.
        from_2x: Whether entropic 2 made the table.
        as_stored: The columns of a type that no parameter has, each with that type, as text.
    """

    name: str
    model: type[Base]
    identity: Identity
    nonce: str | None
    from_2x: bool
    as_stored: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reflection:
    """What a database holds.

    Attributes:
        models: Its models, by name.
        lost: The names of models whose table is gone, while their bookkeeping is not.
        odd: The names of tables that look like runs and can be no model, each with the reason.
        has_bookkeeping: Whether the side tables are there; those of entropic 2 had none.
    """

    models: Mapping[str, Reflected]
    lost: tuple[str, ...]
    odd: Mapping[str, str]
    has_bookkeeping: bool


async def reflect(database: Database) -> Reflection:
    """Look at what there is in an open database; nothing is written.

    Raises:
        SchemaError: A newer entropic has used it.
        DatabaseError: The database failed.
    """

    def look(connection: sa.Connection) -> Reflection:
        with warnings.catch_warnings():
            # Of types that it does not know: such tables are told by their names.
            warnings.simplefilter("ignore", sa.exc.SAWarning)
            return _Look(connection, database.dialect).reflection()

    return await database.read_sync(look)


class _Look:
    """One look at a database, all of one moment.

    Args:
        connection: Where.
        dialect: Knows which columns keep less than others.
    """

    def __init__(self, connection: sa.Connection, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect
        self._inspector: sa.Inspector = sa.inspect(connection)

    def reflection(self) -> Reflection:
        sides = [t.name for t in _SIDE_TABLES if self._inspector.has_table(t.name)]
        entries = self._entries() if models_table.name in sides else {}
        parameters = self._parameters() if columns_table.name in sides else {}
        models: dict[str, Reflected] = {}
        lost: list[str] = []
        odd: dict[str, str] = {}

        def add(name: str, columns: list[Any], *more: Any) -> None:
            if why := _untyped(columns):
                odd[name] = why
                return
            try:
                models[name] = self._reflected(name, columns, *more)
            except ModelError as error:
                odd[name] = str(error)

        for name, entry in entries.items():
            schema, table = undotted(name)
            columns = self._columns(table, schema)
            if columns is None:
                lost.append(name)
                continue
            defaults = parameters.get(name, {})
            add(name, columns, table, schema, defaults, entry)
        for name, table, columns in self._unknown(entries.keys()):
            add(name, columns, table, None, {}, (None, True))
        ordered = dict(sorted(models.items()))
        return Reflection(ordered, tuple(lost), odd, len(sides) == len(_SIDE_TABLES))

    def _entries(self) -> dict[str, tuple[str, bool]]:
        """The nonce of each model that the side tables know, and whether entropic 2 made it."""
        columns = models_table.c
        query = sa.select(columns.model, columns.format, columns.nonce, columns.from_2x)
        entries = {}
        for row in self._connection.execute(query):
            if row.format > FORMAT:
                raise SchemaError(
                    f"the database was used by a newer entropic (format {row.format}, this one"
                    f" knows {FORMAT}); update entropic"
                )
            entries[row.model] = (row.nonce, row.from_2x)
        return entries

    def _parameters(self) -> dict[str, dict[str, str | None]]:
        """For each model, the identity defaults by the names of its parameters."""
        found: dict[str, dict[str, str | None]] = {}
        columns = columns_table.c
        query = sa.select(columns.model, columns.parameter, columns.identity_default)
        for row in self._connection.execute(query):
            found.setdefault(row.model, {})[row.parameter] = row.identity_default
        return found

    def _columns(self, table: str, schema: str | None) -> list[Any] | None:
        """The columns of a table; ``None`` where there is none that could hold runs."""
        if not self._inspector.has_table(table, schema):
            return None
        columns: list[Any] = list(self._inspector.get_columns(table, schema))
        return columns if _hold_runs(columns) else None

    def _unknown(self, known: Any) -> Iterator[tuple[str, str, list[Any]]]:
        """Tables of runs that the side tables do not know: entropic 2 made them."""
        for (_, table), found in self._inspector.get_multi_columns().items():
            name, columns = dotted(table), list(found)
            if name in known or not _hold_runs(columns):
                continue
            if self._inspector.get_pk_constraint(table)["constrained_columns"] == ["id"]:
                yield name, table, columns

    def _reflected(
        self,
        name: str,
        columns: list[Any],
        table: str,
        schema: str | None,
        defaults: Mapping[str, str | None],
        entry: tuple[str | None, bool],
    ) -> Reflected:
        nonce, from_2x = entry
        attributes = _attributes(
            [c["name"] for c in columns if c["name"] not in RESERVED], defaults
        )
        mapped = {
            attributes[column["name"]]: mapped_column(
                column["name"], self._type(column["type"]), nullable=column["nullable"]
            )
            for column in columns
            if column["name"] in attributes
        }
        model = _made(table, schema, mapped)
        known = {k: text for k, text in defaults.items() if text is not None and k in mapped}
        identity = Identity(model, known, from_2x=from_2x)
        as_stored = {
            column["name"]: str(column["type"])
            for column in columns
            if column["name"] in attributes and isinstance(self._type(column["type"]), AsStored)
        }
        return Reflected(name, model, identity, nonce, from_2x, as_stored)

    def _type(self, found: Any) -> sa.types.TypeEngine[Any]:
        """The type of a parameter's column: that of a plain model, where it keeps the same."""
        kind: sa.types.TypeEngine[Any]
        for kind in (*_PLAIN.get(family(found), ()), found):
            if family(kind) != family(found) or self._dialect.is_narrower(found, kind):
                continue
            if isinstance(found, sa.Boolean) is isinstance(kind, sa.Boolean) and _has_rule(kind):
                return kind
        return AsStored()


class AsStored(sa.String):
    """A column of a type that no parameter has: its values are what the driver returns."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """None: whatever it is."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        """None: whatever it is."""


_SIDE_TABLES: Final = models_table.metadata.sorted_tables

_PLAIN: Final[Mapping[str, tuple[sa.types.TypeEngine[Any], ...]]] = {
    "integer": (sa.BigInteger(),),
    "float": (sa.Double(),),
    "json": (PlainJson(),),
    "time": (UtcDateTime(),),
}


def _hold_runs(columns: Sequence[Any]) -> bool:
    """Whether a table with these columns has what is reserved, and at least one parameter."""
    return set(RESERVED) < {column["name"] for column in columns}


def _untyped(columns: Sequence[Any]) -> str | None:
    """Why columns can be no parameters; ``None`` where they can."""
    names = [c["name"] for c in columns if isinstance(c["type"], sa.types.NullType)]
    return f"no type is known of {', '.join(map(repr, names))}" if names else None


def _made(table: str, schema: str | None, mapped: Mapping[str, Any]) -> type[Base]:
    namespace = {
        "__tablename__": table,
        "__module__": __name__,
        # Of its own: a user's model of the same table stays what it is.
        "metadata": sa.MetaData(),
        "__table_args__": {"schema": schema},
        **mapped,
    }
    return type(table, (Base,), namespace)


def _attributes(columns: list[str], parameters: Mapping[str, Any]) -> dict[str, str]:
    """What each column's attribute is called.

    As its parameter, by which its runs were stored. Those may have other names than their
    columns; which one has which is known where there is but one.
    """
    found = {column: column for column in columns}
    renamed = [column for column in columns if parameters and column not in parameters]
    others = [name for name in parameters if name not in columns]
    if len(renamed) == len(others) == 1:
        found[renamed[0]] = others[0]
    # A model has attributes of its own, which a column can be called like.
    return {column: f"{name}_" if hasattr(Base, name) else name for column, name in found.items()}


def _has_rule(kind: sa.types.TypeEngine[Any]) -> bool:
    """Whether a parameter can be of this type."""
    try:
        Identity(_made("probe", None, {"probe": mapped_column(kind, nullable=True)}))
    except ModelError:
        return False
    return True
