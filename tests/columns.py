"""Models of one parameter, of every type of column, and what the tests say of their values."""

import enum
import math
import types
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import sqlalchemy as sa

from entropic import Base, Mapped, mapped_column
from entropic.identity import Identity


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Phase(enum.StrEnum):
    SOLID = "solid"


class Mixed(enum.Enum):
    ONE = 1
    TEXT = "1"
    HALF = 0.5
    PAIR = (1, 2)
    DAY = date(2026, 1, 31)


class Opaque(enum.Enum):
    THING = object()


class Degrees(sa.TypeDecorator[float]):
    """Kept as radians, rounded to nine digits."""

    impl = sa.Float
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> float | None:
        return None if value is None else math.radians(value)

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> float | None:
        return None if value is None else round(math.degrees(value), 9)


class Whole(sa.TypeDecorator[int]):
    """A decorator that changes nothing."""

    impl = sa.Integer
    cache_ok = True


class Span(sa.TypeDecorator[tuple[int, int]]):
    """Two numbers as a text."""

    impl = sa.String(9)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else f"{value[0]}-{value[1]}"

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else tuple(int(part) for part in value.split("-"))


class Money(sa.TypeDecorator[Decimal]):
    impl = sa.Numeric(10, 2)
    cache_ok = True


def column(annotation: Any, *arguments: Any, **options: Any) -> Identity:
    """The identity of a model with one parameter, ``x``; none of its defaults is left out."""
    namespace: dict[str, Any] = {
        "__module__": __name__,
        "__tablename__": "singles",
        "__annotations__": {"x": Mapped[annotation]},
    }
    if arguments or options:
        namespace["x"] = mapped_column(*arguments, **options)
    return Identity(types.new_class("Single", (Base,), {}, lambda body: body.update(namespace)))


def fresh(model: type[Base]) -> Identity:
    """The identity of a model whose table is new: all of its defaults are identity defaults."""
    bare = Identity(model)
    defaults = {name: bare.model_default(name) for name in bare.parameters}
    return Identity(model, {name: text for name, text in defaults.items() if text is not None})


def id_of(identity: Identity, value: Any) -> str:
    """The id of a single value."""
    return identity.resolve({"x": value}).id


DAY = date(2026, 1, 31)
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
NAIVE = datetime(2026, 1, 31, 12, 0)
KEY = uuid.UUID("12345678-1234-5678-1234-567812345678")
NUMPY_ONES = [
    dtype(1)
    for dtype in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32),
        *(np.uint64, np.longlong, np.float16, np.float32, np.float64, np.longdouble),
    )
]
ONES = [1, 1.0, True, Decimal("1.00"), Fraction(2, 2), Level.LOW, np.array(1), *NUMPY_ONES]


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and so are their types."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)
