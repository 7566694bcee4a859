"""The names that a user writes, as what they stand for in a model: columns, conditions, orders."""

import json
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from entropic.cli.ending import UsageError
from entropic.cli.where import Condition, Plain, parsed
from entropic.errors import ParamsError
from entropic.export import columns as exported
from entropic.identity import hint
from entropic.models import RESERVED, Base, as_utc
from entropic.reflection import AsStored, Reflected

CUSTOM: Final = "custom."
"""What the names of values in ``custom_data`` begin with."""


@dataclass(frozen=True, slots=True)
class Column:
    """What is shown of each record under one name.

    Attributes:
        name: As the user wrote it.
        of: The value, of a record.
        typed: The same of all records, with the types of the model; custom data are a column for
            each key.
    """

    name: str
    of: Callable[[Base], Any]
    typed: Callable[[Sequence[Base]], list[exported.Column]]


def rows_of(columns: Sequence[Column], records: Iterable[Base]) -> list[list[Any]]:
    """What is shown of some records."""
    return [[column.of(record) for column in columns] for record in records]


def columns(reflected: Reflected, names: str | None) -> list[Column]:
    """The columns of a list of names; of none, all that say what a run is.

    Raises:
        UsageError: One of them is unknown; names the nearest.
    """
    chosen = _default(reflected) if names is None else _split("--columns", names)
    return [_column(reflected, name) for name in chosen]


def conditions(reflected: Reflected, expressions: Iterable[str]) -> list[Any]:
    """Some expressions, as SQLAlchemy has them.

    Raises:
        UsageError: An expression is none, or its value cannot be the column's.
    """
    return [
        _compared(reflected, condition)
        for expression in expressions
        for condition in parsed(expression)
    ]


def order(reflected: Reflected, names: str | None) -> list[Any] | None:
    """What to order by: names, each with a minus before it for the other way round.

    Returns:
        ``None`` where nothing is said.

    Raises:
        UsageError: One of them is unknown.
    """
    if names is None:
        return None
    elements = []
    for name in _split("--sort", names):
        element = _element(reflected, name.removeprefix("-"))
        if _is_json(getattr(element, "type", None)):
            raise UsageError(f"--sort: {name.removeprefix('-')} is JSON, which has no order")
        elements.append(element.desc() if name.startswith("-") else element.asc())
    return elements


def attribute(reflected: Reflected, name: str) -> str:
    """The attribute that a column's name stands for.

    Raises:
        UsageError: There is none; names the nearest.
    """
    known = (*RESERVED, *reflected.identity.parameters)
    by_column = {p.column.name: key for key, p in reflected.identity.parameters.items()}
    if name in known:
        return name
    if name in by_column:
        return by_column[name]
    raise UsageError(f"{reflected.name} has no column {name!r}: {hint(name, known)}")


def _default(reflected: Reflected) -> list[str]:
    return ["id", *reflected.identity.parameters, "created_at", "result_file"]


def _split(option: str, names: str) -> list[str]:
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found:
        raise UsageError(f"{option} names no column")
    return found


def _column(reflected: Reflected, name: str) -> Column:
    if name.startswith(CUSTOM):
        key = name.removeprefix(CUSTOM)
        return Column(
            name,
            lambda record: _member(record.custom_data, key),
            lambda records: [exported.custom_column(key, name, records)],
        )
    key = attribute(reflected, name)
    return Column(
        name,
        operator.attrgetter(key),
        lambda records: _typed_columns(reflected, name, key, records),
    )


def _typed_columns(
    reflected: Reflected, name: str, key: str, records: Sequence[Base]
) -> list[exported.Column]:
    match key:
        case "custom_data":
            return list(exported.custom_columns(reflected.model, records))
        case "id" | "result_file" | "created_at":
            return [exported.reserved_column(key, records)]
    column = exported.parameter_column(reflected.identity.parameters[key], records)
    return [replace(column, name=name)]


def _member(custom_data: Any, key: str) -> Any:
    return custom_data.get(key) if isinstance(custom_data, dict) else None


def _element(reflected: Reflected, name: str) -> Any:
    if name.startswith(CUSTOM):
        return reflected.model.custom(name.removeprefix(CUSTOM))
    return getattr(reflected.model, attribute(reflected, name))


def _compared(reflected: Reflected, condition: Condition) -> Any:
    element = _element(reflected, condition.name)
    value: Any = condition.value
    if value is None:
        return _is_null(element, condition)
    if condition.name.startswith(CUSTOM):
        return _SIGNS[condition.sign](element, value)
    key = attribute(reflected, condition.name)
    if key == "custom_data":
        raise UsageError("--where: custom_data is compared by its keys, as in custom.git_sha=abc")
    if isinstance(element.type, sa.Integer) and isinstance(value, float):
        return _beside_whole(reflected, key, condition, value)
    typed = _typed(reflected, key, condition)
    if condition.sign == "=" and key in reflected.identity.parameters:
        return {key: typed}  # equal as run ids have it: 0.3 is 0.1 + 0.2, and JSON is compared
    if _is_json(element.type):
        raise UsageError(f"--where: {condition.name} is JSON, which can only be compared by '='")
    return _SIGNS[condition.sign](element, typed)


def _is_null(element: Any, condition: Condition) -> Any:
    if condition.sign == "=":
        return element.is_(None)
    if condition.sign == "!=":
        return element.is_not(None)
    raise UsageError(f"--where: {condition.name} {condition.sign} null is true of no row")


def _beside_whole(reflected: Reflected, key: str, condition: Condition, value: float) -> Any:
    """A whole number, compared with one that need not be."""
    compare = _SIGNS[condition.sign]
    if math.isfinite(value) and (compare not in (operator.eq, operator.ne) or value.is_integer()):
        upwards = compare in (operator.lt, operator.ge)
        whole = math.ceil(value) if upwards else math.floor(value)
        return compare(getattr(reflected.model, key), _coerced(reflected, key, whole))
    raise UsageError(f"--where: {condition.name} is a whole number, and {condition.text} is none")


def _typed(reflected: Reflected, key: str, condition: Condition) -> Any:
    """The value as the column types it."""
    if key == "created_at":
        return _moment(condition)
    column = getattr(reflected.model, key)
    if isinstance(column.type, AsStored):
        return condition.value
    if isinstance(column.type, sa.String) and not isinstance(column.type, sa.Enum):
        return condition.text
    if _is_json(column.type):
        return _coerced(reflected, key, _from_json(condition))
    if _is_time(column.type) or condition.is_quoted:
        return _coerced(reflected, key, condition.text)
    return _coerced(reflected, key, condition.value)


def _from_json(condition: Condition) -> Any:
    try:
        return json.loads(condition.text)
    except ValueError:
        return condition.value


def _coerced(reflected: Reflected, key: str, value: Plain) -> Any:
    try:
        return reflected.identity.coerce(key, value)
    except ParamsError as error:
        raise UsageError(f"--where: {error}") from None


def _moment(condition: Condition) -> datetime:
    try:
        return as_utc(datetime.fromisoformat(condition.text))
    except (ValueError, OverflowError):  # in UTC, it may be no year that there is
        raise UsageError(
            f"--where: {condition.name} is a time, such as 2026-01-31 or 2026-01-31T12:00 in UTC,"
            f" and {condition.text!r} is none"
        ) from None


def _is_json(kind: Any) -> bool:
    return isinstance(_plain(kind), sa.JSON | sa.ARRAY)


def _is_time(kind: Any) -> bool:
    return isinstance(_plain(kind), sa.Date | sa.DateTime)


def _plain(kind: Any) -> Any:
    while isinstance(kind, sa.TypeDecorator):
        kind = kind.impl_instance
    return kind


_SIGNS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
