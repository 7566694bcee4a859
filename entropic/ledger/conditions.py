"""What ``find`` is asked for, in one form for every database: pure, no statement is run here.

Expressions on the model mean the same rows on SQLite and on PostgreSQL: texts are in the order of
their code points, decimals in that of their values, and NULL comes before everything else.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql import coercions, operators, roles, visitors
from sqlalchemy.sql.elements import BinaryExpression, UnaryExpression

from entropic.database import Statement
from entropic.errors import ParamsError
from entropic.identity import Identity, shortened
from entropic.identity.canonical import float_json
from entropic.identity.coercion import nearest
from entropic.models import RESERVED, Base, EnumValue, ExactDecimal, PathText, UtcDateTime
from entropic.models.custom import CustomOrder, CustomValue

_ORDERINGS: Final = {operators.lt, operators.le, operators.gt, operators.ge}

# In SQLite and in PostgreSQL's protocol it is 32,766 and one more.
_MOST_VALUES: Final = 30_000


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
        by_code_points: Has a text be compared by its code points, in the kind of database.
    """

    def __init__(
        self,
        identity: Identity,
        by_code_points: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[Any]],
    ) -> None:
        self._identity = identity
        self._by_code_points = by_code_points
        attributes = sa.inspect(identity.model).columns
        self._columns = {name: attributes[name] for name in (*RESERVED, *identity.parameters)}
        self._table = self._columns["id"].table

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
                found.sql.append(self._condition(one))
        return found

    def order(self, order_by: object) -> list[sa.ColumnElement[Any]]:
        """What to order by, in turn; by age, where nothing is said. Ids settle what is left open.

        Raises:
            ParamsError: It is none, or speaks of what is no column of the model.
        """
        wanted = ["created_at"] if order_by is None else order_by
        elements = [ordered for one in _each(wanted) for ordered in self._ordered(one)]
        return [*elements, self._columns["id"].asc()]

    def nearness(self, values: Mapping[str, Any]) -> list[sa.ColumnElement[Any]]:
        """Orders rows by how little they differ from values of the parameters."""
        differing, distances = [], []
        for name, value in values.items():
            column = self._columns[name]
            equal = column.is_(None) if value is None else _equal(column, value)
            if equal is not None:
                # NULL is not equal, and not NULL here.
                differing.append(sa.case((equal, 0), else_=1))
            if _is_measurable(value) and isinstance(column.type, sa.Integer | sa.Float):
                distances.append(_distance(column, float(value)))
        zero: sa.ColumnElement[Any] = sa.literal_column("0")
        return [sum(differing, zero), sum(distances, zero), self._columns["id"].asc()]

    def column(self, name: str) -> sa.Column[Any]:
        """The column of a parameter, or a reserved one.

        Raises:
            ParamsError: There is no such one; names the nearest.
        """
        if name in self._columns:
            return self._columns[name]
        guess = nearest(name, self._columns)
        hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(self._columns)}"
        raise ParamsError(
            f"{self._identity.model.__name__} has no column {shortened(name)}: {hint}", column=name
        )

    def _condition(self, one: object) -> sa.ColumnElement[bool]:
        if not _is_expression(one):
            raise ParamsError(
                f"a condition is an expression on {self._identity.model.__name__}, such as"
                f" {self._identity.model.__name__}.{next(iter(self._identity.parameters))} == 1,"
                f" or a dict, and not {shortened(one)}",
                value=one,
            )
        try:
            clause: sa.ColumnElement[bool] = coercions.expect(roles.WhereHavingRole, one)
        except ArgumentError as error:
            raise ParamsError(f"{shortened(one)} is no condition: {error}", value=one) from error
        condition: sa.ColumnElement[bool] = self._same_everywhere(clause)
        return condition

    def _same_everywhere(self, clause: Any) -> Any:
        """An expression on this very table, that means the same on every database."""
        clause = visitors.replacement_traverse(clause, {}, self._own_column)
        clause = visitors.replacement_traverse(clause, {}, _in_full)
        return visitors.cloned_traverse(clause, {}, {"binary": self._compare_alike})

    def _own_column(self, element: Any, **_: Any) -> sa.Column[Any] | None:
        """The model's own column, also for one of a class that the model has replaced."""
        if not isinstance(element, sa.Column) or element.table is None:
            return None
        table = element.table
        if getattr(table, "fullname", None) != self._table.fullname:
            raise ParamsError(
                f"a condition speaks of {table}.{element.name}, and rows are looked for in"
                f" {self._table.fullname}, the table of {self._identity.model.__name__}"
            )
        if element.name not in self._table.c:
            raise ParamsError(f"{self._identity.model.__name__} has no column {element.name!r} now")
        return self._table.c[element.name]

    def _compare_alike(self, binary: BinaryExpression[Any]) -> None:
        if binary.operator in _ORDERINGS:
            kind = binary.left.type
            binary.left = self._sortable(binary.left, kind)
            binary.right = self._sortable(binary.right, kind)

    def _sortable(self, element: Any, kind: sa.types.TypeEngine[Any]) -> Any:
        """The same, in an order that is the same everywhere."""
        if isinstance(kind, ExactDecimal):  # which is kept as text
            return sa.cast(element, sa.Numeric())
        if isinstance(kind, sa.Enum) and kind.native_enum:  # in the order of its definition
            return self._by_code_points(sa.cast(element, sa.String()))
        plain = kind.impl_instance if isinstance(kind, sa.TypeDecorator) else kind
        return self._by_code_points(element) if isinstance(plain, sa.String) else element

    def _ordered(self, one: object) -> Iterator[sa.ColumnElement[Any]]:
        match one:
            case str():
                name = one.removeprefix("-")
                column = self.column(name)
                yield from self._ordered(column.desc() if one != name else column.asc())
            case CustomValue():
                yield from one.asc().elements
            case CustomOrder():
                yield from one.elements
            case _ if _is_expression(one):
                yield self._placed(coercions.expect(roles.OrderByRole, one))
            case _:
                raise ParamsError(
                    "order_by is a column of the model, its name ('-dt' for the largest first),"
                    f" or a list of these, and not {shortened(one)}",
                    value=one,
                )

    def _placed(self, element: Any) -> sa.ColumnElement[Any]:
        """An element of an order, with a place for NULL."""
        modifiers = []
        while isinstance(element, UnaryExpression) and element.modifier in _MODIFIERS:
            modifiers.append(element.modifier)
            element = element.element
        element = self._same_everywhere(element)
        can_be_null = getattr(element, "nullable", True)
        is_last = operators.desc_op in modifiers
        found: sa.ColumnElement[Any] = self._sortable(element, element.type)
        found = found.desc() if is_last else found.asc()
        if operators.nulls_last_op in modifiers:
            return found.nulls_last()
        if operators.nulls_first_op in modifiers:
            return found.nulls_first()
        # An index of PostgreSQL's serves only the order that it has by itself.
        if not can_be_null:
            return found
        return found.nulls_last() if is_last else found.nulls_first()

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
        kinds = {"id": str, "result_file": str, "created_at": datetime}
        if name in kinds and isinstance(value, kinds[name]):
            return _bool(self._columns[name] == value)
        raise ParamsError(
            f"{name} cannot be {shortened(value)}: id and result_file are texts, created_at is a"
            " datetime, custom_data a dict",
            column=name,
            value=value,
        )


def check_values(statement: Statement, **values: Any) -> None:
    """Raise ``ParamsError`` where a statement compares with what it cannot."""
    try:
        number = len(statement.bind(values))
    except Exception as error:  # whatever a type raises of a value that is none of its own
        raise ParamsError(f"a condition compares with a value that it cannot: {error}") from error
    if number > _MOST_VALUES:
        raise ParamsError(
            f"the conditions compare with {number:,} values, and a statement can have"
            f" {_MOST_VALUES:,}: ask in several pieces"
        )


_MODIFIERS: Final = {
    operators.asc_op,
    operators.desc_op,
    operators.nulls_first_op,
    operators.nulls_last_op,
}


def _is_expression(one: object) -> bool:
    return hasattr(one, "__clause_element__") or isinstance(one, sa.sql.ClauseElement)


def _each(order_by: object) -> Sequence[object]:
    return order_by if isinstance(order_by, list | tuple) else [order_by]


def _in_full(element: Any, **_: Any) -> sa.ColumnElement[bool] | None:
    """``IN`` with a bound value for each of its list, and ``BETWEEN`` as two comparisons.

    The first is how statements are run here; the second is one case less for what follows.
    """
    if not isinstance(element, BinaryExpression):
        return None
    if element.operator in _BETWEEN and len(ends := list(element.right.get_children())) == 2:
        within = (element.left >= ends[0]) & (element.left <= ends[1])
        return within if element.operator is operators.between_op else ~within
    if element.operator not in _IN or not getattr(element.right, "expanding", False):
        return None
    listed = [sa.literal(value, element.right.type) for value in element.right.value or ()]
    is_in = element.operator is operators.in_op
    if not listed:
        return sa.false() if is_in else sa.true()
    return _bool(element.left.in_(listed) if is_in else element.left.not_in(listed))


_IN: Final = {operators.in_op, operators.not_in_op}
_BETWEEN: Final = {operators.between_op, operators.not_between_op}


def _equal(column: sa.Column[Any], value: Any) -> sa.ColumnElement[bool] | None:
    """Whether a column has a value, by its canonical form; ``None`` if no database can tell."""
    match column.type:
        case EnumValue() as kind:
            return sa.type_coerce(column, sa.String()).in_(
                [sa.literal(text, sa.String()) for text in kind.texts(value)]
            )
        case sa.Float(asdecimal=False) as kind if isinstance(kind, sa.Double) or not kind.precision:
            return _is_near(column, value)
        case sa.Integer() | sa.Boolean() | sa.Enum() | sa.Date() | UtcDateTime() | sa.Uuid():
            return _bool(column == value)
        case sa.String() | PathText():
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
