"""What ``find`` is asked for: conditions and orders, as a user writes them, into SQL.

Pure: no statement is run here. What an expression has to look like to mean the same on every
database is left to ``alike``.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from entropic.database import Dialect, Statement
from entropic.errors import ParamsError
from entropic.identity import Identity, shortened
from entropic.identity.canonical import Unfit, checked_int64, checked_text, float_json
from entropic.identity.coercion import hint
from entropic.ledger.alike import Alike, check_count
from entropic.models import RESERVED, Base, EnumValue, PathText, PlainJson, UtcDateTime
from entropic.models.custom import CustomOrder, CustomValue

_RESERVED_TYPES: Final = {"id": str, "result_file": str, "created_at": datetime}


@dataclass(slots=True)
class Selection:
    """Which rows are asked for.

    Attributes:
        sql: What the database is to judge.
        compared: The parameters that only their canonical form tells equal, with the values that
            they are to have: to be judged here, row by row.
        ids: What is bound where ``sql`` asks for some ids.
    """

    sql: list[sa.ColumnElement[bool]] = field(default_factory=list)
    compared: dict[str, Any] = field(default_factory=dict)
    ids: Sequence[str] = ()


class Conditions:
    """Reads conditions and orders on one model's rows.

    Args:
        identity: The model's rules.
        dialect: The kind of database.
    """

    def __init__(self, identity: Identity, dialect: Dialect) -> None:
        self._identity = identity
        self._name = identity.model.__name__
        attributes = sa.inspect(identity.model).columns
        self._columns = {name: attributes[name] for name in (*RESERVED, *identity.parameters)}
        table = self._columns["id"].table
        assert isinstance(table, sa.Table)
        self._alike = Alike(table, dialect)

    def selection(self, where: Sequence[object]) -> Selection:
        """What is asked for by all of some conditions together.

        Raises:
            ParamsError: One is none, or speaks of what is no column of the model, or of a value
                that its column cannot have.
        """
        found = Selection()
        for one in where:
            if isinstance(one, Mapping):
                self._add_equal(found, one)
            else:
                found.sql.append(self._alike.condition(one))
        return found

    def order(self, order_by: object) -> list[sa.ColumnElement[Any]]:
        """What to order by, in turn; by age, where nothing is said. Ids settle what is left open.

        Raises:
            ParamsError: It is none, or speaks of what is no column of the model.
        """
        wanted = "created_at" if order_by is None else order_by
        each = wanted if isinstance(wanted, list | tuple) else [wanted]
        elements = [ordered for one in each for ordered in self._ordered(one)]
        return [*elements, self._columns["id"].asc()]

    def nearness(
        self, values: Mapping[str, Any], stored: Mapping[str, Any]
    ) -> list[sa.ColumnElement[Any]]:
        """Orders rows by how little they differ from values of the parameters.

        Args:
            values: The values.
            stored: The same, as they are stored.
        """
        differing, distances = [], []
        for name, value in values.items():
            column = self._columns[name]
            if isinstance(column.type, PlainJson) and value is not None:
                # As it would be written, which is not the only way to write it.
                equal: Any = sa.cast(column, sa.String()) == sa.literal(stored[name], sa.String())
            else:
                equal = column.is_(None) if value is None else _equal(column, value)
            if equal is not None:
                # NULL is not equal, and not NULL here.
                differing.append(sa.case((equal, 0), else_=1))
            if _is_measurable(value) and isinstance(column.type, sa.Integer | sa.Float):
                distances.append(_distance(column, float(value)))
        sums = [sum(parts[1:], parts[0]) for parts in (differing, distances) if parts]
        return [*sums, self._columns["id"].asc()]

    def _column(self, name: str) -> sa.Column[Any]:
        if name in self._columns:
            return self._columns[name]
        why = hint(name, self._columns)
        raise ParamsError(f"{self._name} has no column {shortened(name)}: {why}", column=name)

    def _ordered(self, one: object) -> Iterator[sa.ColumnElement[Any]]:
        match one:
            case str():
                name = one.removeprefix("-")
                column = self._column(name)
                yield self._alike.ordering(column if one == name else column.desc())
            case CustomValue():
                yield from one.asc().elements
            case CustomOrder():
                yield from one.elements
            case _ if hasattr(one, "__clause_element__") or isinstance(one, sa.sql.ClauseElement):
                yield self._alike.ordering(one)
            case _:
                raise ParamsError(
                    "order_by is a column of the model, its name ('-dt' for the largest first),"
                    f" or a list of these, and not {shortened(one)}",
                    value=one,
                )

    def _add_equal(self, found: Selection, values: Mapping[str, Any]) -> None:
        reserved = {name: values[name] for name in RESERVED if name in values}
        for name, value in reserved.items():
            found.sql.append(self._equal_reserved(name, value))
        given = {name: value for name, value in values.items() if name not in reserved}
        for name, value in self._identity.coerce_given(given).items():
            column = self._columns[name]
            condition = column.is_(None) if value is None else _equal(column, value)
            if condition is None:
                found.compared[name] = value
            else:
                found.sql.append(condition)

    def _equal_reserved(self, name: str, value: Any) -> sa.ColumnElement[bool]:
        if name == "custom_data" and isinstance(value, Mapping):
            return sa.and_(sa.true(), *[Base.custom(key) == one for key, one in value.items()])
        if name in _RESERVED_TYPES and isinstance(value, _RESERVED_TYPES[name]):
            return _bool(self._columns[name] == value)
        raise ParamsError(
            f"{name} cannot be {shortened(value)}: id and result_file are texts, created_at is a"
            " datetime, custom_data a dict",
            column=name,
            value=value,
        )


def check_values(statement: Statement) -> None:
    """Raise ``ParamsError`` where a statement compares with what no database can."""
    values = statement.constants.values()
    check_count(len(values))
    for value in values:
        if reason := _unfit(value):
            raise ParamsError(f"a condition cannot compare with {shortened(value)}: {reason}")
    try:
        statement.bind({"b_ids": None})
    except Exception as error:  # whatever a type raises of a value that is none of its own
        raise ParamsError(f"a condition compares with a value that it cannot: {error}") from error


def _unfit(value: Any) -> str | None:
    match value:
        case float() if math.isnan(value):
            return "NaN is neither smaller nor larger than a number"
        case Decimal() if not value.is_finite():
            return "no decimal of a run is infinite, or NaN"
        case int() if _refuses(checked_int64, value):
            return "it does not fit 64 bits"
        case str() if _refuses(checked_text, value):
            return "no text in a database has NUL or half a character in it"
    return None


def _refuses(check: Callable[[Any], object], value: Any) -> bool:
    try:
        check(value)
    except Unfit:
        return True
    return False


def _equal(column: sa.Column[Any], value: Any) -> sa.ColumnElement[bool] | None:
    """Whether a column has a value, by its canonical form; ``None`` if no database can tell."""
    match column.type:
        case EnumValue() as kind:
            texts = [sa.literal(text, sa.String()) for text in kind.texts(value)]
            return sa.type_coerce(column, sa.String()).in_(texts)
        case sa.Float(asdecimal=False) as kind if isinstance(kind, sa.Double) or not kind.precision:
            return _is_near(column, value)
        case sa.Integer() | sa.Boolean() | sa.String() | sa.Date() | sa.Uuid():
            return _bool(column == value)
        case UtcDateTime() | PathText():
            return _bool(column == value)
    return None


def _is_near(column: sa.Column[Any], value: float) -> sa.ColumnElement[bool]:
    """Whether it is one of the few floats that have the same 15 significant digits."""
    if math.isinf(value):
        return _bool(column == value)
    return _bool(column.between(_furthest(value, -math.inf), _furthest(value, math.inf)))


def _furthest(value: float, direction: float) -> float:
    """The last float in a direction that has the same canonical form."""
    same = float_json(value)
    while float_json(further := math.nextafter(value, direction)) == same:
        value = further
    return value


# Beyond, differences and products could leave the range of a float, which PostgreSQL refuses.
_MEASURABLE: Final = 1e150


def _is_measurable(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or 1 / _MEASURABLE < abs(value) < _MEASURABLE


def _distance(column: sa.Column[Any], value: float) -> sa.ColumnElement[Any]:
    """How far a number is away, in units of the one asked for; 1 where that cannot be said."""
    number: sa.ColumnElement[float] = sa.cast(column, sa.Double())
    is_measurable = number.between(-_MEASURABLE, _MEASURABLE)
    distance = sa.func.abs(number - value) * sa.literal(1 / abs(value) if value else 1.0)
    return sa.case((is_measurable, distance), else_=1.0)


def _bool(condition: Any) -> sa.ColumnElement[bool]:
    """The same, to a type checker: a column of any type says nothing of its comparisons."""
    assert isinstance(condition, sa.ColumnElement)
    return condition
