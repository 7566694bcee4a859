"""``Base.custom(key)``: what is kept under a key of ``custom_data``, in a condition.

The same rows on every database: a comparison is with values of its own kind, and nothing else
matches. So a text is not compared with a number, which PostgreSQL would refuse and SQLite would
answer by a rule of its own; and texts are in the order of their code points, whatever the
server's collation.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from entropic.errors import ParamsError

T = TypeVar("T")

Condition = sa.ColumnElement[bool]


class CustomValue:
    """A value of ``custom_data``, to be compared: with a text, a number, a bool or ``None``.

    ``None`` is a key that is missing, and JSON's null. Any other comparison is true of no row in
    which the key is missing, as those of SQL are.

    Args:
        key: The key, taken literally.
    """

    __hash__ = None  # type: ignore[assignment]  # equality is a condition here

    def __init__(self, key: str) -> None:
        if not isinstance(key, str):
            raise ParamsError(f"a key of custom_data is a str, not {key!r}", column="custom_data")
        self._key = key

    def __repr__(self) -> str:
        return f"custom({self._key!r})"

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is true or false of a row: compare it, as in {self!r} == 1")

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return self._is_missing() if value is None else self._compared(operator.eq, value)

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        is_there = ~self._is_missing()
        if value is None:
            return is_there
        # One of another kind is another one, too.
        return is_there & ~self._compared(operator.eq, value)

    def __lt__(self, value: str | float) -> Condition:
        return self._ordered(operator.lt, value)

    def __le__(self, value: str | float) -> Condition:
        return self._ordered(operator.le, value)

    def __gt__(self, value: str | float) -> Condition:
        return self._ordered(operator.gt, value)

    def __ge__(self, value: str | float) -> Condition:
        return self._ordered(operator.ge, value)

    def in_(self, values: Iterable[object]) -> Condition:
        """Whether it is one of some values."""
        kinds: dict[type, list[Any]] = {str: [], float: [], bool: [], type(None): []}
        for value in values:
            kind, plain = self._of_kind(value)
            kinds[kind].append(plain)
        # One look for each kind, and not for each value.
        return sa.or_(
            _is_so(self._text().in_(kinds[str])),
            _is_so(self.number().in_(kinds[float])),
            _is_so(self._member(_Boolean).in_(kinds[bool])),
            self._is_missing() if kinds[type(None)] else sa.false(),
        )

    def not_in(self, values: Iterable[object]) -> Condition:
        """Whether it is there, and none of some values."""
        return ~self._is_missing() & ~self.in_(values)

    def is_(self, value: bool | None) -> Condition:
        """Whether it is ``None``, ``True`` or ``False``."""
        return self == value

    def is_not(self, value: bool | None) -> Condition:
        """Whether it is there, and not that."""
        return self != value

    def startswith(self, text: str) -> Condition:
        """Whether it is a text that begins so, in these very letters."""
        return self._found(text, lambda at: at == 1)

    def contains(self, text: str) -> Condition:
        """Whether it is a text with this one in it, in these very letters."""
        return self._found(text, lambda at: at > 0)

    def asc(self) -> "CustomOrder":
        """For ``order_by``: what is missing first, then numbers, then texts."""
        return CustomOrder((self._text().asc().nulls_first(), self.number().asc().nulls_first()))

    def desc(self) -> "CustomOrder":
        """For ``order_by``: the other way round."""
        return CustomOrder((self._text().desc().nulls_last(), self.number().desc().nulls_last()))

    def number(self) -> sa.ColumnElement[Any]:
        """It, where it is a number; else NULL."""
        return self._member(_Number)

    def _ordered(self, compare: Callable[[Any, Any], Any], value: object) -> Condition:
        if isinstance(value, bool) or value is None:
            raise ParamsError(
                f"{self!r} cannot be less or more than {value!r}: compare it with a number or a"
                " text, or by == and !=",
                column="custom_data",
                value=value,
            )
        return self._compared(compare, value)

    def _compared(self, compare: Callable[[Any, Any], Any], value: object) -> Condition:
        kind, plain = self._of_kind(value)
        if kind is bool:
            return _is_so(compare(self._member(_Boolean), plain))
        return _is_so(compare(self._text() if kind is str else self.number(), plain))

    def _of_kind(self, value: object) -> tuple[type, Any]:
        """Which of the kinds a value is of, and how it is bound."""
        if hasattr(value, "dtype") and hasattr(value, "item"):  # a number of numpy's
            value = value.item()
        match value:
            case None:
                return type(None), None
            case bool():
                return bool, sa.literal(int(value), sa.Integer())
            case int():
                return float, _numeric(int(value))
            case float() if math.isfinite(value):
                return float, _numeric(float(value))
            case str():
                return str, sa.literal(str(value), sa.String())
        raise ParamsError(
            f"{self!r} can be compared with a text, a finite number, a bool or None, and not with"
            f" {value!r}",
            column="custom_data",
            value=value,
        )

    def _found(self, text: str, judge: Callable[[Any], Any]) -> Condition:
        if not isinstance(text, str):
            raise ParamsError(f"{self!r} can be searched for a text, and not for {text!r}")
        return _is_so(judge(_Position(self._text(), sa.literal(text, sa.String()))))

    def _is_missing(self) -> Condition:
        return ~_is_so(self._member(_IsThere) == 1)

    def _text(self) -> "_Member[str]":
        return self._member(_Text)

    def _member(self, kind: Callable[[Any, Any], T]) -> T:
        # The column of whichever table is asked: Base itself has none.
        return kind(sa.column("custom_data"), sa.literal(self._key, sa.Text()))


def _is_so(condition: Any) -> Condition:
    """True or false, where SQL would have NULL: then ``~`` means the other rows."""
    return sa.func.coalesce(condition, sa.false())


@dataclass(frozen=True, slots=True)
class CustomOrder:
    """An order of rows by a value of ``custom_data``.

    Attributes:
        elements: What to order by, in turn.
    """

    elements: tuple[sa.UnaryExpression[Any], ...]


def _numeric(value: float) -> sa.ColumnElement[Any]:
    """A number with every digit that it has, on either database."""
    return sa.cast(sa.literal(repr(value), sa.String()), sa.Numeric())


class _Member(FunctionElement[T]):
    """What ``custom_data`` has under a key, where it is of some kind; else NULL.

    Attributes:
        in_sqlite: The value, of a row of ``json_each``, and the condition of the kind.
        in_postgresql: The same, of a JSON ``{value}`` and its ``{text}``.
    """

    inherit_cache = True
    in_sqlite: tuple[str, str]
    in_postgresql: tuple[str, str]


class _Text(_Member[str]):
    inherit_cache = True
    type = sa.String()
    in_sqlite = "value", "type = 'text'"
    in_postgresql = '{text} COLLATE "C"', "json_typeof({value}) = 'string'"


class _Number(_Member[Any]):
    inherit_cache = True
    type = sa.Numeric()
    in_sqlite = "value", "type IN ('integer', 'real')"
    in_postgresql = "CAST({text} AS NUMERIC)", "json_typeof({value}) = 'number'"


class _Boolean(_Member[int]):
    inherit_cache = True
    type = sa.Integer()
    in_sqlite = "value", "type IN ('true', 'false')"
    in_postgresql = "CAST(CAST({text} AS BOOLEAN) AS INTEGER)", "json_typeof({value}) = 'boolean'"


class _IsThere(_Member[int]):
    inherit_cache = True
    type = sa.Integer()
    in_sqlite = "1", "type <> 'null'"
    in_postgresql = "1", "json_typeof({value}) <> 'null'"


class _Position(FunctionElement[int]):
    """Where a text is first found in another one, from 1 on; 0 where it is not."""

    inherit_cache = True
    type = sa.Integer()


# SQLAlchemy's own way to say one thing to each database. Its JSON operators take a key for a part
# of a path on SQLite, and raise on PostgreSQL where one row has a text and is compared with a
# number.


@compiles(_Member)  # where it is only shown
@compiles(_Member, "sqlite")
def _member_in_sqlite(element: _Member[Any], compiler: SQLCompiler, **options: Any) -> str:
    column, key = (compiler.process(clause, **options) for clause in element.clauses)
    value, is_so = element.in_sqlite
    # entropic 2 stored NaN, which is no JSON and would be an error of the whole statement.
    members = f"json_each(CASE WHEN json_valid({column}) THEN {column} END)"
    return f"(SELECT {value} FROM {members} WHERE key = {key} AND {is_so})"  # noqa: S608  no input


@compiles(_Member, "postgresql")
def _member_in_postgresql(element: _Member[Any], compiler: SQLCompiler, **options: Any) -> str:
    column, key = (compiler.process(clause, **options) for clause in element.clauses)
    column = f"CAST({column} AS JSON)"
    parts = {"value": f"({column} -> {key})", "text": f"({column} ->> {key})"}
    value, is_so = (part.format(**parts) for part in element.in_postgresql)
    return f"(CASE WHEN {is_so} THEN {value} END)"


@compiles(_Position)
@compiles(_Position, "sqlite")
def _position_in_sqlite(element: _Position, compiler: SQLCompiler, **options: Any) -> str:
    return f"instr({compiler.process(element.clauses, **options)})"


@compiles(_Position, "postgresql")
def _position_in_postgresql(element: _Position, compiler: SQLCompiler, **options: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **options)})"
