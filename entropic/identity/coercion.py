"""How each type of column coerces a value without loss, and writes it canonically.

A type whose canonical form is a text also takes exactly that text (a date as ``2026-01-31``, an
enum by its value), so params that went through JSON are still the same run.
"""

import copy
import difflib
import enum
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from entropic.errors import ModelError
from entropic.identity.arrays import is_number_type, number_array
from entropic.identity.canonical import (
    Unfit,
    alone,
    canonical,
    checked_text,
    checked_utc,
    decimal_text,
    float_json,
    is_numpy,
    numpy_item,
    plain,
    short_float_json,
    text_json,
)
from entropic.models import (
    EnumValue,
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
        is_scalar: Whether values that are equal have one canonical form.
        exact: The type of most values that need no coercion, where they are soon told.
        exact_json: The canonical JSON of a value of exactly that type; ``None`` where it may have
            to be coerced.
    """

    type_name: str
    coerce: Callable[[Any], Any]
    canonical: Callable[[Any], str]
    is_scalar: bool = False
    exact: type | None = None
    exact_json: Callable[[Any], str | None] = lambda _: None


def rule_for(parameter: Parameter) -> Rule:
    """The rule of a parameter's column.

    Raises:
        ModelError: No value of this type has a canonical form.
    """
    kind = parameter.column.type
    try:
        rule = _rule(kind)
    except Unfit as reason:
        raise ModelError(f"{parameter.column} cannot be a parameter: {reason}") from None
    if rule is not None:
        return rule
    raise ModelError(
        f"the parameter {parameter.name!r} has the column type {kind!r}, which has no canonical"
        " form; use bool, int, float, str, Decimal, date, datetime, UUID, Path, an Enum, a Literal,"
        " dict, list or a numpy array"
    )


def _rule(kind: Any) -> Rule | None:
    if isinstance(kind, _WITHOUT_RULE):
        return None
    return next((make(kind) for types, make in _RULES if isinstance(kind, types)), None)


def _bool(_: Any) -> Rule:
    def coerce(value: Any) -> bool:
        if value is True or value is False:
            return value
        number = _number(value)
        if number in (0, 1):
            return bool(number)
        raise Unfit("only True, False, 1 and 0 are bools")

    def write(value: Any) -> str:
        return "true" if value else "false"

    return Rule("a bool", coerce, write, is_scalar=True, exact=bool, exact_json=write)


def _int(kind: Any) -> Rule:
    bits = (
        16 if isinstance(kind, sa.SmallInteger) else 64 if isinstance(kind, sa.BigInteger) else 32
    )
    limit = 2 ** (bits - 1)

    def coerce(value: Any) -> int:
        if type(value) is int and -limit <= value < limit:
            return value
        number = _number(value)
        # Compared before it is converted: int(Decimal("1e999999999")) would never end.
        if not -limit <= number < limit:
            raise Unfit(f"it does not fit {bits} bits")
        if number != (whole := int(number)):
            raise Unfit("it is no whole number")
        return whole

    def exact_json(value: int) -> str | None:
        return str(value) if -limit <= value < limit else None

    def write(value: Any) -> str:
        return str(int(value))

    return Rule("an int", coerce, write, is_scalar=True, exact=int, exact_json=exact_json)


def _float(kind: Any) -> Rule:
    precision = getattr(kind, "precision", None)
    if isinstance(kind, sa.REAL) or (precision is not None and precision <= _SINGLE_BITS):
        raise Unfit("PostgreSQL rounds it to single precision; use Double, as Mapped[float] does")
    return Rule(
        "a float",
        _as_float,
        float_json,
        is_scalar=True,
        exact=float,
        exact_json=short_float_json,
    )


_SINGLE_BITS: Final = 24


def _as_float(value: Any) -> float:
    if type(value) is float and value == value:  # noqa: PLR0124  NaN is not
        return value + 0.0
    number = _number(value)
    try:
        result = float(number)
    except OverflowError:
        raise Unfit("it is too large for a float") from None
    # A decimal is what its nearest float prints as; any other number must be that float.
    exact = Decimal(repr(result)) if isinstance(number, Decimal) else result
    if exact != number:
        raise Unfit(f"a float would round it to {result!r}")
    return result + 0.0  # the runner gets 0.0 for -0.0, which is the same run


def _number(value: Any) -> Any:
    if is_numpy(value) and value.ndim == 0:
        value = numpy_item(value)
    if isinstance(value, enum.Enum):
        value = value.value
    if not isinstance(value, Real | Decimal):
        hint = " (a text is not parsed)" if isinstance(value, str) else ""
        raise Unfit(f"it is no number{hint}")
    # Decimal's signalling NaN cannot even be compared.
    if value.is_nan() if isinstance(value, Decimal) else value != value:  # noqa: PLR0124
        raise Unfit("NaN equals nothing, so it could never be found again")
    return value


def _decimal(_: Any) -> Rule:
    def coerce(value: Any) -> Decimal:
        try:
            number = value if isinstance(value, Decimal) else Decimal(_decimal_source(value))
        except InvalidOperation:
            raise Unfit("it is no decimal number") from None
        return Decimal(decimal_text(number))

    return Rule("a Decimal", coerce, lambda value: text_json(decimal_text(value)))


def _decimal_source(value: Any) -> str | int:
    if isinstance(value, str):
        return value
    number = _number(value)
    if isinstance(number, Integral):
        return int(number)
    return repr(number) if isinstance(number, float) else str(number)


def _str(kind: Any) -> Rule:
    length = getattr(kind, "length", None)
    if isinstance(kind, sa.CHAR | sa.NCHAR):
        raise Unfit("PostgreSQL fills it up with blanks; use String, as Mapped[str] does")

    def coerce(value: Any) -> str:
        text = _as_text(value)
        # SQLite would keep it all and PostgreSQL refuse it: after the run.
        if length is not None and len(text) > length:
            raise Unfit(f"it is longer than the column's {length} characters")
        return text

    def exact_json(text: str) -> str | None:
        is_short = length is None or len(text) <= length
        return text_json(text) if is_short and text.isascii() and "\0" not in text else None

    return Rule("a str", coerce, text_json, is_scalar=True, exact=str, exact_json=exact_json)


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


_MICROSECOND_DIGITS: Final = 6

_TOO_FINE: Final = re.compile(r"[.,]\d{6}0*[1-9]")


def _datetime(kind: Any) -> Rule:
    keeps_zone = bool(getattr(kind, "timezone", True))
    digits = getattr(kind, "precision", None)
    if digits is not None and digits < _MICROSECOND_DIGITS:
        raise Unfit("PostgreSQL rounds it to fewer digits than microseconds have; leave precision")

    def coerce(value: Any) -> datetime:
        if isinstance(value, str):
            # fromisoformat() drops what it cannot hold.
            if _TOO_FINE.search(value):
                raise Unfit("it is finer than microseconds")
            value = _parsed(datetime.fromisoformat, value)
        if is_numpy(value) and value.ndim == 0:
            value = numpy_item(value)
            if type(value) is date:  # a day is its midnight, to numpy
                value = datetime.combine(value, time())
        if not isinstance(value, datetime):
            raise Unfit("it is no datetime")
        moment = checked_utc(value)
        return moment if keeps_zone else moment.replace(tzinfo=None)

    return Rule("a datetime", coerce, lambda value: text_json(as_utc(value).isoformat()))


def _date(_: Any) -> Rule:
    def coerce(value: Any) -> date:
        if isinstance(value, str):
            value = _parsed(date.fromisoformat, value)
        if is_numpy(value) and value.ndim == 0:
            value = numpy_item(value)
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
    members: dict[str, Any] = {}
    # Without a class it is a Literal, or names alone.
    for member in kind.enums if kind.enum_class is None else kind.enum_class:
        twin = members.setdefault(_enum_json(member), member)
        if twin is not member:
            raise Unfit(f"{twin!r} and {member!r} are the same in JSON")
    if not members:
        raise Unfit("its type has no members to choose from")
    choices = [getattr(member, "value", member) for member in members.values()]

    def coerce(value: Any) -> Any:
        found = members.get(canonical(plain(value)))
        if found is not None:
            return found
        guess = nearest(str(value), map(str, choices))
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise Unfit(f"it is none of {choices}{hint}")

    type_name = f"one of {choices}" if kind.enum_class is None else f"a {kind.enum_class.__name__}"
    return Rule(type_name, coerce, _enum_json)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was most likely meant: misspelled, cut short, or in another case."""
    lower = {valid.lower(): valid for valid in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    longer = [valid for valid in lower if name and valid.startswith(name.lower())]
    return next((lower[guess] for guess in (*near, *longer)), None)


def hint(name: str, names: Iterable[str]) -> str:
    """What to say of a name that is none of some: the nearest, or all there are."""
    known = list(names)
    guess = nearest(name, known)
    return f"did you mean {guess!r}?" if guess else f"it has {', '.join(known)}"


def _enum_json(member: Any) -> str:
    try:
        return canonical(plain(member))
    except Unfit as reason:
        raise Unfit(f"the value of {member!r} has no canonical form: {reason}") from None


def _array(kind: NumpyArray) -> Rule:
    if kind.dtype is not None and not is_number_type(kind.dtype):
        raise Unfit(f"an array of {kind.dtype} has no JSON form")
    return Rule("a numpy array", lambda value: number_array(value, kind.dtype), canonical)


def _items(kind: Any) -> Rule:
    """The rule of PostgreSQL's arrays: that of their items, in lists of as many dimensions."""
    rule = _rule(kind.item_type)
    if rule is None:
        raise Unfit(f"its items, {kind.item_type!r}, have no canonical form")
    dimensions = kind.dimensions or 1
    if dimensions > _MOST_DIMENSIONS:
        raise Unfit(f"PostgreSQL has no arrays of more than {_MOST_DIMENSIONS} dimensions")
    for _ in range(dimensions):
        rule = _list_of(rule, tuple if kind.as_tuple else list)
    return rule


_MOST_DIMENSIONS: Final = 6


def _list_of(item: Rule, make: type[list[Any]] | type[tuple[Any, ...]]) -> Rule:
    def coerce(value: Any) -> list[Any] | tuple[Any, ...]:
        if is_numpy(value) and value.ndim:
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise Unfit("it is no list")
        coerced = [item.coerce(one) for one in value]
        lengths = {len(one) for one in coerced if isinstance(one, list | tuple)}
        if len(lengths) > 1:
            raise Unfit("its lists are not equally long")
        if 0 in lengths:
            raise Unfit("it holds an empty list, which PostgreSQL does not keep in an array")
        return make(coerced)

    def write(value: Any) -> str:
        return f"[{','.join(map(item.canonical, value))}]"

    return Rule(f"a list, of which each is {item.type_name}", coerce, write)


def _json(kind: Any) -> Rule:
    if kind.__visit_name__ == "JSONB":
        raise Unfit("JSONB rewrites numbers (1e300 becomes an integer); use JSON, or Mapped[dict]")
    return Rule("JSON", lambda value: alone(plain(value)), canonical)


def _custom(kind: Any) -> Rule:
    """The rule of a user's own column type: what would come back from the database is the value.

    So that 1 and 1.0 are the same for a decorated float, and no row differs from its request.
    """
    bind, result = _way(kind, "process_bind_param"), _way(kind, "process_result_value")
    stored = _rule(kind.impl_instance)
    if stored is None and not isinstance(kind.impl_instance, sa.LargeBinary):
        raise Unfit(f"it is kept as {kind.impl_instance!r}, which has no canonical form")
    # A type with a processor of its own (PickleType is one) keeps what it is given.
    has_processor = type(kind).bind_processor is not sa.TypeDecorator.bind_processor

    def coerce(value: Any) -> Any:
        if not has_processor:
            try:
                bound = bind(value)
                if stored is not None and bound is not None:
                    bound = stored.coerce(bound)
                value = result(bound)
            except Unfit:
                raise
            except Exception as reason:
                raise Unfit(f"the type refused it ({reason!r:.200})") from None
        plain(value)
        return copy.deepcopy(value)  # the caller's may change while the run waits

    return Rule(f"a {type(kind).__name__}", coerce, canonical)


def _way(kind: Any, name: str) -> Callable[[Any], Any]:
    """One way of a user's type to or from the database; as it is where there is none."""
    if getattr(type(kind), name) is getattr(sa.TypeDecorator, name):
        return lambda value: value
    method = getattr(kind, name)
    dialect = DefaultDialect()
    return lambda value: method(value, dialect)


# What Mapped[timedelta] becomes: a decorated DateTime, but a timedelta has no canonical form.
_WITHOUT_RULE: Final = (sa.Interval,)

# In the order in which they are tried: the special before the general. Numeric is missing on
# purpose: SQLite rounds it to a float, where Mapped[Decimal] keeps every digit.
_RULES: Final[Sequence[tuple[type | tuple[type, ...], Callable[[Any], Rule]]]] = (
    (ExactDecimal, _decimal),
    (PathText, _path),
    (EnumValue, _enum),
    (NumpyArray, _array),
    (sa.ARRAY, _items),
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
