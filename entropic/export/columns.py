"""Records as columns: which there are, and of which kind; what all exports have in common.

A column's kind follows from the model, so that an empty result has the columns of a full one.
Where the values are not of that kind after all (SQLite keeps 5.5 in a column of ints, a column
type of the user's makes anything), they are kept as objects: nothing is cast, and nothing lost.
"""

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from types import NoneType
from typing import Any, Final, Literal

import sqlalchemy as sa

from entropic.export.missing import are_exact_in_float
from entropic.models import (
    Base,
    EnumValue,
    ExactDecimal,
    Parameter,
    PathText,
    PlainJson,
    UtcDateTime,
    as_utc,
    parameters,
)


class Kind(enum.Enum):
    """What the values of a column are."""

    INT = enum.auto()
    FLOAT = enum.auto()
    BOOL = enum.auto()
    TEXT = enum.auto()
    UTC = enum.auto()
    NAIVE = enum.auto()
    DAY = enum.auto()
    OBJECT = enum.auto()


@dataclass(frozen=True, slots=True)
class Column:
    """The values of all records for one name.

    Attributes:
        name: Its name in a frame.
        kind: What the values are.
        values: One for each record; ``None`` where there is none.
        is_nullable: Whether there may be none.
    """

    name: str
    kind: Kind
    values: list[Any]
    is_nullable: bool


def columns(model: type[Base], records: Sequence[Base]) -> Iterator[Column]:
    """A column for each of id, the parameters, result_file and created_at, and the custom data.

    Custom data give a column for each key, after all others: ``elapsed_seconds`` first, which is
    there in any case, the rest as they are first seen. A key that is the name of a column of the
    model is ``custom_data.<key>``.
    """
    yield reserved_column("id", records)
    for parameter in parameters(model):
        yield parameter_column(parameter, records)
    yield reserved_column("result_file", records)
    yield reserved_column("created_at", records)
    yield from custom_columns(model, records)


def reserved_column(
    name: Literal["id", "result_file", "created_at"], records: Sequence[Base]
) -> Column:
    """The column of what every model has."""
    if name == "created_at":
        created = [as_utc(record.created_at) for record in records]
        return Column(name, Kind.UTC, created, is_nullable=False)
    return Column(name, Kind.TEXT, [getattr(r, name) for r in records], is_nullable=False)


def parameter_column(parameter: Parameter, records: Sequence[Base]) -> Column:
    """The column of a parameter; enums are their values."""
    values = [getattr(record, parameter.name) for record in records]
    kind = kind_of(parameter)
    if any(isinstance(value, enum.Enum) for value in values):
        values = [value.value if isinstance(value, enum.Enum) else value for value in values]
    types = set(map(type, values))
    is_nullable = bool(parameter.column.nullable) or NoneType in types
    if not _fits(kind, types, values):
        return Column(parameter.name, Kind.OBJECT, values, is_nullable)
    if kind in (Kind.UTC, Kind.NAIVE):
        values = [None if value is None else _moment(kind, value) for value in values]
    return Column(parameter.name, kind, values, is_nullable)


def custom_columns(model: type[Base], records: Sequence[Base]) -> Iterator[Column]:
    """A column for each key of the custom data."""
    kept = [_kept(record) for record in records]
    taken = {"id", "result_file", "created_at", "custom_data"}
    taken.update(parameter.name for parameter in parameters(model))
    for key in dict.fromkeys([ELAPSED, *(key for one in kept for key in one)]):
        name = key
        while name in taken:
            name = f"custom_data.{name}"
        taken.add(name)
        yield _custom_column(key, name, [one.get(key) for one in kept])


def custom_column(key: str, name: str, records: Sequence[Base]) -> Column:
    """The column of one key, under a name of the caller's."""
    return _custom_column(key, name, [_kept(record).get(key) for record in records])


def kind_of(parameter: Parameter) -> Kind:
    """What a parameter's values are, by the model."""
    return _kind(parameter.column.type)


def declared(parameter: Parameter) -> list[Any]:
    """The members of an enum or the texts of a ``Literal``, as they were declared; or nothing."""
    match parameter.column.type:
        case EnumValue(enum_class=members):
            return list(members)
        case sa.Enum() as kind:
            return list(kind.enums if kind.enum_class is None else kind.enum_class)
    return []


def _kind(kind: Any) -> Kind:
    if isinstance(kind, EnumValue | sa.Enum) and kind.enum_class is not None:
        return _kind_of({type(member.value) for member in kind.enum_class})
    if isinstance(kind, sa.DateTime):
        return Kind.UTC if kind.timezone else Kind.NAIVE
    if isinstance(kind, sa.Uuid):
        return Kind.OBJECT if kind.as_uuid else Kind.TEXT
    found = next((found for types, found in _KINDS if isinstance(kind, types)), None)
    if found is None and isinstance(kind, sa.TypeDecorator):
        return _kind(kind.impl_instance)  # as what it is kept, until its values say otherwise
    return found or Kind.OBJECT


_KINDS: Final[Sequence[tuple[type[Any] | tuple[type[Any], ...], Kind]]] = (
    ((PlainJson, ExactDecimal, PathText), Kind.OBJECT),
    (UtcDateTime, Kind.UTC),
    (sa.Boolean, Kind.BOOL),
    (sa.Integer, Kind.INT),
    (sa.Float, Kind.FLOAT),
    (sa.String, Kind.TEXT),
    (sa.Date, Kind.DAY),
)

# The kinds of custom data and of an enum's values: the first that holds all of them.
_TYPES: Final[dict[Kind, set[type]]] = {
    Kind.BOOL: {bool},
    Kind.INT: {int},
    Kind.FLOAT: {float, int},
    Kind.TEXT: {str},
    Kind.UTC: {datetime},
    Kind.NAIVE: {datetime},
    Kind.DAY: {date},
}

_INT64: Final = range(-(2**63), 2**63)


def _kind_of(types: Collection[type]) -> Kind:
    present = set(types) - {NoneType}
    simple = (Kind.BOOL, Kind.INT, Kind.FLOAT, Kind.TEXT)
    return next((kind for kind in simple if present and present <= _TYPES[kind]), Kind.OBJECT)


def _fits(kind: Kind, types: set[type], values: list[Any]) -> bool:
    if kind is Kind.OBJECT:
        return True
    if not types - {NoneType} <= _TYPES[kind]:
        return False
    if int not in types:
        return True
    numbers = (value for value in values if type(value) is int)
    if kind is Kind.INT:
        return all(number in _INT64 for number in numbers)
    return are_exact_in_float(numbers)


def _moment(kind: Kind, value: datetime) -> datetime:
    utc = as_utc(value)
    return utc if kind is Kind.UTC else utc.replace(tzinfo=None)


ELAPSED: Final = "elapsed_seconds"


def _kept(record: Base) -> Mapping[str, Any]:
    """The custom data; others may have written what is no dict."""
    found: Any = record.custom_data
    return found if isinstance(found, dict) else {}


def _custom_column(key: str, name: str, values: list[Any]) -> Column:
    types = set(map(type, values))
    is_unknown = types <= {NoneType}
    kind = Kind.FLOAT if key == ELAPSED and is_unknown else _kind_of(types)
    fitting = kind if _fits(kind, types, values) else Kind.OBJECT
    return Column(name, fitting, values, is_nullable=NoneType in types)
