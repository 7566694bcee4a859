"""Expressions on a model, rewritten so that they mean the same rows on every database.

Texts are compared by their code points, decimals by their values, enums by all texts that a member
has ever been stored as; LIKE has no escape of its own; NULL comes before everything else. What
cannot be the same is refused, before anything is asked: arithmetic with dates and decimals, NaN.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql import coercions, functions, operators, roles, visitors
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, Tuple, UnaryExpression

from entropic.database import Dialect
from entropic.errors import ParamsError
from entropic.identity import shortened
from entropic.models import EnumValue, ExactDecimal, PlainJson

_EQUALITIES: Final = {operators.eq, operators.ne}
_ORDERINGS: Final = {operators.lt, operators.le, operators.gt, operators.ge}
_IN: Final = {operators.in_op, operators.not_in_op}
_BETWEEN: Final = {operators.between_op, operators.not_between_op}
_ARITHMETIC: Final = {
    operators.add,
    operators.sub,
    operators.mul,
    operators.truediv,
    operators.floordiv,
    operators.mod,
    operators.neg,
    operators.concat_op,
}
_LIKES: Final = {
    *(operators.like_op, operators.not_like_op, operators.ilike_op, operators.not_ilike_op),
    *(operators.contains_op, operators.not_contains_op),
    *(operators.startswith_op, operators.not_startswith_op),
    *(operators.endswith_op, operators.not_endswith_op),
    *(operators.icontains_op, operators.not_icontains_op),
    *(operators.istartswith_op, operators.not_istartswith_op),
    *(operators.iendswith_op, operators.not_iendswith_op),
}
_DIRECTIONS: Final = {
    operators.asc_op,
    operators.desc_op,
    operators.nulls_first_op,
    operators.nulls_last_op,
}

# In SQLite and in PostgreSQL's protocol it is 32,766 and one more.
_MOST_VALUES: Final = 30_000

# PostgreSQL has a backslash where nothing is said, and SQLite nothing; and both want one character.
_NO_ESCAPE: Final = "\x1f"


class Alike:
    """Rewrites expressions on one table.

    Args:
        table: The table.
        dialect: The kind of database.
    """

    def __init__(self, table: sa.Table, dialect: Dialect) -> None:
        self._table = table
        self._dialect = dialect

    def condition(self, one: object) -> sa.ColumnElement[bool]:
        """A condition on the table's rows.

        Raises:
            ParamsError: It is none, or means different rows on different databases.
        """
        clause: Any = None
        if not isinstance(one, bool | str | sa.SelectBase):
            with contextlib.suppress(ArgumentError, AttributeError):
                clause = coercions.expect(roles.WhereHavingRole, one)
        if not _is_condition(clause):
            raise ParamsError(
                f"a condition is an expression on the model that is true or false, such as"
                f" Model.{self._table.columns.keys()[-1]} == 1, or a dict, and not"
                f" {shortened(one)}",
                value=one,
            )
        rewritten: sa.ColumnElement[bool] = self._rewritten(clause)
        return rewritten

    def ordering(self, one: object) -> sa.ColumnElement[Any]:
        """An element of an order, with a place for NULL.

        Raises:
            ParamsError: It is none, or means different orders on different databases.
        """
        element: Any = coercions.expect(roles.OrderByRole, one)
        directions = []
        while isinstance(element, UnaryExpression) and element.modifier in _DIRECTIONS:
            directions.append(element.modifier)
            element = element.element
        if element.__visit_name__ == "textual_label_reference":  # sa.desc("dt")
            element = sa.column(element.element)
        element = self._rewritten(element)
        if isinstance(element, sa.TextClause):
            return element  # type: ignore[return-value]  # in the words of the user
        is_last = operators.desc_op in directions
        found: sa.ColumnElement[Any] = self.sortable(element, element.type)
        found = found.desc() if is_last else found.asc()
        if operators.nulls_last_op in directions:
            return found.nulls_last()
        if operators.nulls_first_op in directions:
            return found.nulls_first()
        # An index of PostgreSQL's serves only the order that it has by itself.
        if not getattr(element, "nullable", True):
            return found
        return found.nulls_last() if is_last else found.nulls_first()

    def sortable(self, element: Any, kind: sa.types.TypeEngine[Any]) -> Any:
        """An expression, in an order that is the same everywhere."""
        if isinstance(kind, ExactDecimal):  # which is kept as text
            return self._dialect.by_decimal_value(element)
        if isinstance(kind, sa.Enum) and kind.native_enum:  # in the order of its definition
            return self._dialect.by_code_points(sa.cast(element, sa.String()))
        is_text = isinstance(_kept_as(kind), sa.String)
        return self._dialect.by_code_points(element) if is_text else element

    def _rewritten(self, clause: Any) -> Any:
        try:
            for rewrite in (self._leaf, _in_full, self._extreme):
                clause = visitors.replacement_traverse(clause, {}, rewrite)
            return visitors.cloned_traverse(
                clause, {}, {"binary": self._compare_alike, "unary": _check_arithmetic}
            )
        except RecursionError:
            raise nested_too_deep() from None

    def _leaf(self, element: Any, **_: Any) -> Any:
        """The model's own columns, also for those of a class that it has replaced; plain values."""
        match element:
            case sa.Table() if element.fullname == self._table.fullname:
                return self._table
            case sa.Column():
                return self._own_column(element)
            case sa.ColumnClause() if element.table is None and not element.is_literal:
                return self._table.c.get(element.name)
            case BindParameter() if not element.expanding:
                return sa.literal(_plain(element.effective_value, element.type), element.type)
            case sa.Cast() if isinstance(element.type, sa.Date | sa.DateTime | sa.Time):
                raise ParamsError(
                    f"{element} is not the same on every database: compare the column itself with"
                    " a date or a datetime"
                )
        return None

    def _own_column(self, element: sa.Column[Any]) -> sa.Column[Any]:
        table: Any = element.table
        if getattr(table, "fullname", None) != self._table.fullname:
            name = getattr(table, "name", "%(")
            name = "an alias" if name.startswith("%(") else name  # SQLAlchemy's, until it is SQL
            raise ParamsError(
                f"a condition speaks of {name}.{element.name}, and rows are looked for in"
                f" {self._table.fullname} alone: use the model's own columns"
            )
        if element.name not in self._table.c:
            raise ParamsError(f"{self._table.fullname} has no column {element.name!r} now")
        return self._table.c[element.name]

    def _extreme(self, element: Any, **_: Any) -> Any:
        """The largest and the smallest by the same order."""
        if not isinstance(element, functions.max | functions.min):
            return None
        (argument,) = element.clauses
        sortable = self.sortable(argument, argument.type)
        return None if sortable is argument else type(element)(sortable)

    def _compare_alike(self, binary: BinaryExpression[Any]) -> None:
        _check_arithmetic(binary)
        for one, other in ((binary.left, binary.right), (binary.right, binary.left)):
            _plain(getattr(other, "value", None), one.type)
        if binary.operator in _LIKES and binary.modifiers.get("escape") is None:
            binary.modifiers = {**binary.modifiers, "escape": _NO_ESCAPE}
        sides = binary.left.type, binary.right.type
        is_decimal = any(isinstance(kind, ExactDecimal) for kind in sides)
        if binary.operator in _ORDERINGS or (is_decimal and binary.operator in _EQUALITIES):
            kind = next((k for k in sides if isinstance(k, ExactDecimal)), sides[0])
            binary.left = self.sortable(binary.left, kind)
            binary.right = self.sortable(binary.right, kind)


def check_count(values: int) -> None:
    """Raise ``ParamsError`` where conditions have more values than a statement can."""
    if values > _MOST_VALUES:
        raise ParamsError(
            f"the conditions compare with {values:,} values, and a statement can have"
            f" {_MOST_VALUES:,}: ask in several pieces"
        )


def nested_too_deep() -> ParamsError:
    """What a ``RecursionError`` means."""
    return ParamsError(
        "the conditions are nested too deep: use in_ for many values of one column, or ask in"
        " several pieces"
    )


def _is_condition(clause: Any) -> bool:
    """Whether it is true or false of a row, as far as its type says."""
    if clause is None or getattr(clause, "modifier", None) in _DIRECTIONS:
        return False
    kind = getattr(clause, "type", sa.types.NULLTYPE)
    return isinstance(kind, sa.Boolean | sa.types.NullType)


def _in_full(element: Any, **_: Any) -> Any:
    """What is one case less for what follows, as comparisons of single values.

    ``IN`` has a bound value for each of its list, which is how statements are run here.
    """
    if not isinstance(element, BinaryExpression):
        return None
    left, right, operator = element.left, element.right, element.operator
    if operator in _BETWEEN and len(ends := list(right.get_children())) == 2:
        within = _within(left, *ends, is_symmetric=bool(element.modifiers.get("symmetric")))
        return within if operator is operators.between_op else ~within
    if operator in _IN and getattr(right, "expanding", False):
        among = _among(left, list(right.value or ()), right.type)
        return among if operator is operators.in_op else ~among
    if operator in _EQUALITIES and isinstance(right, BindParameter):
        if isinstance(left, sa.Column) and isinstance(left.type, sa.JSON | PlainJson):
            raise ParamsError(
                f"{left.name} is JSON, which databases do not compare: find({{{left.name!r}: ...}})"
                " does, by its canonical form"
            )
        if isinstance(left.type, EnumValue) and left.type.member(right.value) is not None:
            is_it = _among(left, [right.value], left.type)
            return is_it if operator is operators.eq else ~is_it
    return None


def _within(left: Any, low: Any, high: Any, *, is_symmetric: bool) -> Any:
    within = (left >= low) & (left <= high)
    return within | ((left >= high) & (left <= low)) if is_symmetric else within


def _among(left: Any, values: list[Any], kind: sa.types.TypeEngine[Any]) -> Any:
    """Whether an expression has one of some values."""
    if not values:
        return sa.false()
    check_count(len(values))  # first: to put more into a statement takes long
    if isinstance(left, Tuple):
        parts = list(left.clauses)
        return sa.or_(
            *[sa.and_(*[c == v for c, v in zip(parts, of, strict=True)]) for of in values]
        )
    values = [_plain(value, left.type) for value in values]
    if isinstance(left.type, ExactDecimal):
        return sa.or_(*[left == value for value in values])
    if isinstance(left.type, EnumValue):
        texts = [text for value in values for text in _texts(left.type, value)]
        return sa.type_coerce(left, sa.String()).in_([sa.literal(t, sa.String()) for t in texts])
    return left.in_([sa.literal(value, kind) for value in values])


def _texts(kind: EnumValue, value: Any) -> list[str]:
    member = kind.member(value)
    return [str(value)] if member is None else kind.texts(member)


def _plain(value: Any, kind: sa.types.TypeEngine[Any]) -> Any:
    """A value as databases take it: SQLite would keep a number of numpy's as bytes."""
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(kind, sa.Date) and isinstance(value, datetime):
        raise ParamsError(f"a column of dates is compared with a date, and not with {value!r}")
    return value


def _check_arithmetic(element: Any) -> None:
    """Refuse to compute with what is no number to some database."""
    if element.operator in _ARITHMETIC and not all(map(_is_computable, _operands(element))):
        raise ParamsError(
            f"{element} is not the same on every database: decimals, dates and datetimes can be"
            " compared, and not computed with"
        )


def _is_computable(part: Any) -> bool:
    kind = part.type
    return not isinstance(kind, ExactDecimal) and not isinstance(
        _kept_as(kind), sa.Interval | sa.Date | sa.DateTime
    )


def _kept_as(kind: sa.types.TypeEngine[Any]) -> sa.types.TypeEngine[Any]:
    return kind.impl_instance if isinstance(kind, sa.TypeDecorator) else kind


def _operands(element: Any) -> Iterator[Any]:
    if isinstance(element, UnaryExpression):
        yield element.element
    else:
        yield from (element.left, element.right)
