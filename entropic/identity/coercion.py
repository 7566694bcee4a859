"""How each type of column coerces a value without loss, and writes it canonically.

A type whose canonical form is a text also takes exactly that text (a date as ``2026-01-31``, an
enum by its value), so params that went through JSON are still the same run.
"""

import difflib
import enum
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from numbers import Number
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from entropic.errors import ModelError
from entropic.identity.canonical import (
    Unfit,
    canonical,
    check_array,
    checked_text,
    decimal_text,
    float_json,
    is_numpy,
    plain,
    text_json,
)
from entropic.models import (
    ExactDecimal,
    NumpyArray,
    Parameter,
    PathText,
    PlainJson,
    UtcDateTime,
    as_utc,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule:
    """What one column takes.

    Attributes:
        type_name: The type as an error message names it.
        coerce: A value as the column types it; raises ``Unfit`` with the reason.
        canonical: The canonical JSON of a coerced or stored value.
    """

    type_name: str
    coerce: Callable[[Any], Any]
    canonical: Callable[[Any], str]


def rule_for(parameter: Parameter) -> Rule:
    """The rule of a parameter's column.

    Raises:
        ModelError: No value of this type has a canonical form.
    """
    kind = parameter.column.type
    for types, make in _RULES:
        if isinstance(kind, types):
            return make(kind)
    raise ModelError(
        f"the parameter {parameter.name!r} has the column type {kind!r}, which has no canonical"
        " form; use bool, int, float, str, Decimal, date, datetime, UUID, Path, an Enum, a Literal,"
        " dict, list or a numpy array"
    )


def _bool(_: Any) -> Rule:
    def coerce(value: Any) -> bool:
        number = _number(value)
        if number in (0, 1):
            return bool(number)
        raise Unfit("only True, False, 1 and 0 are bools")

    return Rule("a bool", coerce, lambda value: "true" if value else "false")


def _int(kind: Any) -> Rule:
    bits = (
        16 if isinstance(kind, sa.SmallInteger) else 64 if isinstance(kind, sa.BigInteger) else 32
    )
    limit = 2 ** (bits - 1)

    def coerce(value: Any) -> int:
        number = _number(value)
        if not math.isfinite(number) or number != (whole := int(number)):
            raise Unfit("it is no whole number")
        if not -limit <= whole < limit:
            raise Unfit(f"it does not fit {bits} bits")
        return whole

    return Rule("an int", coerce, lambda value: str(int(value)))


def _float(_: Any) -> Rule:
    return Rule("a float", _as_float, float_json)


def _as_float(value: Any) -> float:
    number = _number(value)
    try:
        result = float(number)
    except OverflowError:
        raise Unfit("it is too large for a float") from None
    if math.isnan(result):
        raise Unfit("NaN equals nothing, so it could never be found again")
    # A decimal is what its nearest float prints as; any other number must be that float.
    exact = Decimal(repr(result)) if isinstance(number, Decimal) else result
    if exact != number:
        raise Unfit(f"a float would round it to {result!r}")
    return result


def _number(value: Any) -> Any:
    if is_numpy(value) and value.ndim == 0:
        value = value.item()
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Decimal) and value.is_nan():
        raise Unfit("NaN equals nothing, so it could never be found again")
    if isinstance(value, Number) and not isinstance(value, complex):
        return value
    hint = " (a text is not parsed)" if isinstance(value, str) else ""
    raise Unfit(f"it is no number{hint}")


def _decimal(_: Any) -> Rule:
    def coerce(value: Any) -> Decimal:
        try:
            number = value if isinstance(value, Decimal) else Decimal(_decimal_source(value))
        except InvalidOperation:
            raise Unfit("it is no decimal number") from None
        return Decimal(decimal_text(number))

    return Rule("a Decimal", coerce, lambda value: text_json(decimal_text(value)))


def _decimal_source(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = _number(value)
    return repr(number) if isinstance(number, float) else str(number)


def _str(kind: Any) -> Rule:
    length = getattr(kind, "length", None)

    def coerce(value: Any) -> str:
        text = _as_text(value)
        # SQLite would keep it all and PostgreSQL refuse it: after the run.
        if length is not None and len(text) > length:
            raise Unfit(f"it is longer than the column's {length} characters")
        return text

    return Rule("a str", coerce, text_json)


def _as_text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return checked_text(value)
    raise Unfit("it is no text; write it as one if that is what it stands for")


def _path(_: Any) -> Rule:
    return Rule("a path", lambda v: Path(_as_text(v)), lambda v: text_json(str(v)))


def _uuid(kind: Any) -> Rule:
    def coerce(value: Any) -> uuid.UUID | str:
        try:
            found = value if isinstance(value, uuid.UUID) else uuid.UUID(_as_text(value))
        except ValueError:
            raise Unfit("it is no UUID") from None
        return found if kind.as_uuid else str(found)

    return Rule("a UUID", coerce, lambda value: text_json(str(value)))


def _datetime(kind: Any) -> Rule:
    keeps_zone = bool(getattr(kind, "timezone", True))

    def coerce(value: Any) -> datetime:
        if isinstance(value, str):
            value = _parsed(datetime.fromisoformat, value)
        if is_numpy(value):
            value = value.item()
        if not isinstance(value, datetime):
            raise Unfit("it is no datetime")
        moment = as_utc(value)
        return moment if keeps_zone else moment.replace(tzinfo=None)

    return Rule("a datetime", coerce, lambda value: text_json(as_utc(value).isoformat()))


def _date(_: Any) -> Rule:
    def coerce(value: Any) -> date:
        if isinstance(value, str):
            value = _parsed(date.fromisoformat, value)
        if isinstance(value, date) and not isinstance(value, datetime):
            return value
        raise Unfit("it is no date (a datetime has a time, too)")

    return Rule("a date", coerce, lambda value: text_json(value.isoformat()))


def _parsed(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError:
        raise Unfit("it is not in ISO 8601") from None


def _enum(kind: Any) -> Rule:
    if kind.enum_class is None:  # a Literal, or names alone
        members: dict[str, Any] = {text_json(name): name for name in kind.enums}
        type_name = f"one of {list(kind.enums)}"
    else:
        members = {_enum_json(member): member for member in kind.enum_class}
        type_name = f"a {kind.enum_class.__name__}"

    def coerce(value: Any) -> Any:
        found = members.get(canonical(value))
        if found is not None:
            return found
        choices = [getattr(member, "value", member) for member in members.values()]
        guess = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise Unfit(f"it is none of {choices}{hint}")

    return Rule(type_name, coerce, _enum_json)


def _enum_json(member: Any) -> str:
    try:
        return canonical(member)
    except Unfit as reason:
        raise ModelError(f"the value of {member!r} cannot be part of a run id: {reason}") from None


def _array(kind: NumpyArray) -> Rule:
    def coerce(value: Any) -> Any:
        import numpy as np

        try:
            array = np.array(value)  # a copy: the caller's may change while the run waits
            typed = array if kind.dtype is None else array.astype(kind.dtype)
        except (TypeError, ValueError) as reason:
            raise Unfit(f"it is no array ({reason})") from None
        if array.dtype.kind not in "biuf":
            raise Unfit(f"an array of {array.dtype} is neither numbers nor bools")
        if not np.array_equal(typed, array):
            raise Unfit(f"its values would change as {kind.dtype}, or are NaN")
        check_array(typed)
        return typed

    return Rule("a numpy array", coerce, canonical)


def _json(_: Any) -> Rule:
    def coerce(value: Any) -> Any:
        found = plain(value)
        # SQLite keeps a number that stands alone in a JSON column as a number: 5.0 comes back 5.
        return int(found) if isinstance(found, float) and found.is_integer() else found

    return Rule("JSON", coerce, canonical)


def _custom(kind: Any) -> Rule:
    """The rule of a user's own column type: only the user knows what it takes."""

    def coerce(value: Any) -> Any:
        canonical(value)
        return value

    return Rule(f"a {type(kind).__name__}", coerce, canonical)


# In the order in which they are tried: the special before the general. Numeric is missing on
# purpose: SQLite rounds it to a float, where Mapped[Decimal] keeps every digit.
_RULES: Final[Sequence[tuple[type | tuple[type, ...], Callable[[Any], Rule]]]] = (
    (ExactDecimal, _decimal),
    (PathText, _path),
    (NumpyArray, _array),
    ((PlainJson, sa.JSON), _json),
    ((UtcDateTime, sa.DateTime), _datetime),
    (sa.TypeDecorator, _custom),
    (sa.Boolean, _bool),
    (sa.Integer, _int),
    (sa.Float, _float),
    (sa.Enum, _enum),
    (sa.String, _str),
    (sa.Date, _date),
    (sa.Uuid, _uuid),
)
