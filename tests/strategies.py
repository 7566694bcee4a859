"""Parameter sets for hypothesis, often in pairs that are nearly equal, and what equal means.

``are_equal`` says when a model sees two sets as equal. It is the tests' own word on it and calls
nothing of the library, so that a mistake there is not repeated here.
"""

import enum
import math
import sys
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from entropic import Base, Mapped, mapped_column

thoroughly = pytest.mark.parametrize(
    "examples",
    [
        pytest.param(80, id="quick"),
        pytest.param(4000, id="many", marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
    ],
)
"""Runs a property twice: with few examples in every run, with thousands at night."""


def holds(examples: int, check: Callable[..., None], *arguments: st.SearchStrategy[Any]) -> None:
    """Check a property on so many examples."""
    settings(max_examples=examples, deadline=None)(given(*arguments)(check))()


class Solver(enum.Enum):
    EULER = "euler"
    RK4 = "rk4"
    NONE = 0
    PAIR = (1, 2)


class Trial(Base):
    """A model with every type of column whose equality has something to it."""

    __tablename__ = "trials"

    n: Mapped[int]
    x: Mapped[float]
    name: Mapped[str]
    flag: Mapped[bool]
    solver: Mapped[Solver]
    start: Mapped[datetime]
    options: Mapped[dict[str, Any]]
    weights: Mapped[NDArray[np.float64]]
    order: Mapped[int] = mapped_column(default=2)
    note: Mapped[str | None]


DEFAULTS: dict[str, Any] = {"order": 2, "note": None}

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
integers = st.integers(-(2**62), 2**62) | st.sampled_from([0, 1, 2**53, 2**53 + 1, 2**63 - 1])
finite = st.sampled_from(
    [0.0, -0.0, 1.0, 0.1 + 0.2, 0.7, 1e-13, 1e15 + 0.3, 5e-324, 2.0**63, 1e300, sys.float_info.max]
) | st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1))
leaves = st.booleans() | integers | finite | texts | st.none()
json_values: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
arrays = st.lists(st.lists(finite, min_size=2, max_size=2), min_size=1, max_size=3) | st.lists(
    finite, max_size=4
)

# The values of each column, each in one spelling: naive datetimes are UTC, arrays are lists.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "n": integers,
    "x": finite | st.sampled_from([math.inf, -math.inf]),
    "name": texts,
    "flag": st.booleans(),
    "solver": st.sampled_from(Solver),
    "start": moments,
    "options": json_values.filter(lambda value: value is not None),
    "weights": arrays,
    "order": st.sampled_from([1, 2, 3]),
    "note": st.none() | texts,
}


@st.composite
def parameter_sets(draw: st.DrawFn) -> dict[str, Any]:
    """A set that ``Trial`` takes, each value in one of its spellings, in any order."""
    values = draw(st.fixed_dictionaries(VALUES))
    return draw(_spelled({name: values[name] for name in draw(st.permutations(sorted(values)))}))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two sets that ``Trial`` takes: the same, or nearly the same, or differing in a column."""
    columns = st.sampled_from(["options", "x", "options", "weights", *VALUES])  # the tricky ones
    names = draw(st.lists(columns, min_size=1, max_size=2, unique=True))
    first = {name: draw(VALUES[name]) for name in names}
    second = dict(first)
    # In one column alone: a second difference could hide that the first goes unseen.
    near = [first[names[0]], *_NUDGES[names[0]](first[names[0]])]
    second[names[0]] = draw(st.sampled_from(near) if draw(st.integers(0, 9)) else VALUES[names[0]])
    return _PLAIN | draw(_spelled(first)), _PLAIN | draw(_spelled(second))


@st.composite
def _spelled(draw: st.DrawFn, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in any spelling; defaults may be left out."""
    params = {}
    for name, value in values.items():
        if name in DEFAULTS and value == DEFAULTS[name] and draw(st.booleans()):
            continue
        params[name] = draw(st.sampled_from(_SPELLINGS[name](value)))
    return params


_PLAIN: dict[str, Any] = {
    "n": 7,
    "x": 0.5,
    "name": "a",
    "flag": True,
    "solver": Solver.RK4,
    "start": datetime(2026, 1, 31),
    "options": {"a": 7},
    "weights": [0.5],
}


def are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether ``Trial`` sees two parameter sets as equal."""
    return all(
        means(one.get(name, DEFAULTS.get(name))) == means(other.get(name, DEFAULTS.get(name)))
        for name, means in _MEANINGS.items()
    )


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _float_meaning(value: Any) -> Any:
    """The float at 15 significant digits; the largest have nothing to be rounded to."""
    number = float(_number(value))
    if math.isinf(number):
        return number
    exact = Decimal(number)
    rounded = Context(prec=15, rounding=ROUND_HALF_EVEN).create_decimal(exact)
    return exact if abs(rounded) > Decimal(sys.float_info.max) else rounded


def _solver_meaning(value: Any) -> Solver:
    return (
        value if isinstance(value, Solver) else Solver(tuple(value) if value == [1, 2] else value)
    )


def _start_meaning(value: Any) -> timedelta:
    """The time since the year 1 in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else _number(value)
    return moment.replace(tzinfo=None) - datetime.min - (moment.utcoffset() or timedelta())


def _options_meaning(value: Any) -> Any:
    """JSON tells ints from floats, but in a column a whole number that stands alone is an int."""
    number = _number(value)
    if isinstance(number, float) and number.is_integer() and -(2**63) <= number < 2**63:
        return _json_meaning(int(number))
    return _json_meaning(number)


def _json_meaning(value: Any) -> Any:
    value = _number(value)
    match value:
        case float():
            return "float", _float_meaning(value)
        case list() | tuple():
            return "list", [_json_meaning(item) for item in value]
        case dict():
            return "dict", {key: _json_meaning(item) for key, item in value.items()}
    return type(value).__name__, value


def _weights_meaning(value: Any) -> Any:
    array = np.asarray(value)
    return array.shape, [_float_meaning(number) for number in array.ravel().tolist()]


_MEANINGS: dict[str, Callable[[Any], Any]] = {
    "n": lambda value: Fraction(_number(value)),
    "x": _float_meaning,
    "name": str,
    "flag": bool,
    "solver": _solver_meaning,
    "start": _start_meaning,
    "options": _options_meaning,
    "weights": _weights_meaning,
    "order": lambda value: Fraction(_number(value)),
    "note": lambda value: value,
}


def _int_spellings(n: int) -> list[Any]:
    spellings = [n, np.int64(n), np.array(n), Decimal(n), Fraction(n)]
    if n < 2**63 - 1 and int(float(n)) == n:
        spellings.append(float(n))
    return [*spellings, bool(n)] if n in {0, 1} else spellings


def _float_spellings(x: float) -> list[Any]:
    spellings = [x, np.float64(x), np.array(x), np.longdouble(x), Decimal(repr(x))]
    with np.errstate(all="ignore"):
        if np.float32(x) == x:
            spellings.append(np.float32(x))
    if math.isfinite(x):
        spellings.append(Fraction(x))
        if x.is_integer():
            spellings.append(int(x))
    return spellings


def _start_spellings(moment: datetime) -> list[Any]:
    aware = moment.replace(tzinfo=UTC)
    elsewhere = aware.astimezone(timezone(timedelta(hours=5, minutes=45)))
    texts = [aware.isoformat(), elsewhere.isoformat(" ")]
    return [moment, aware, elsewhere, np.datetime64(moment, "us"), *texts]


def _json_spellings(value: Any) -> list[Any]:
    return [value, _respelled(value)]


def _respelled(value: Any) -> Any:
    match value:
        case bool():
            return np.bool_(value)
        case int():
            return np.int64(value)
        case float():
            return np.float64(value)
        case str():
            return np.str_(value)
        case list():
            return tuple(_respelled(item) for item in value)
        case dict():
            return {key: _respelled(item) for key, item in reversed(value.items())}
    return value


def _weights_spellings(weights: list[Any]) -> list[Any]:
    array = np.array(weights, dtype=np.float64)
    spellings = [weights, array, np.asfortranarray(array), array.astype(np.longdouble)]
    with np.errstate(all="ignore"):
        spellings += [
            other
            for other in (array.astype(np.float32), array.astype(np.int64))
            if np.array_equal(other, array) and np.array_equal(other.astype(np.float64), array)
        ]
    return spellings


_SPELLINGS: dict[str, Callable[[Any], list[Any]]] = {
    "n": _int_spellings,
    "x": _float_spellings,
    "name": lambda text: [text, np.str_(text)],
    "flag": lambda flag: [flag, int(flag), np.bool_(flag), float(flag)],
    "solver": lambda solver: [
        solver,
        list(solver.value) if solver is Solver.PAIR else solver.value,
    ],
    "start": _start_spellings,
    "options": _json_spellings,
    "weights": _weights_spellings,
    "order": _int_spellings,
    "note": lambda text: [text],
}


def _near_ints(n: int) -> list[int]:
    return [near for near in (n - 1, n + 1, -n) if -(2**63) <= near < 2**63]


def _near_floats(x: float) -> list[float]:
    near = [math.nextafter(x, math.inf), math.nextafter(x, -math.inf), -x]
    near += [x * factor for factor in (2, 1 + 1e-15, 1 + 4e-15, 1 + 2e-14, 1 + 1e-13)]
    return [number for number in near if math.isfinite(number)]


def _near_texts(text: str | None) -> list[str]:
    if text is None:
        return ["", "None", "null"]
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    return [text.swapcase(), f"{text} ", *forms]


def _near_moments(moment: datetime) -> list[datetime]:
    steps = [timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)]
    return [moment + step for step in steps]


def _near_json(value: Any) -> list[Any]:
    match value:
        case bool():
            return [int(value), not value, str(value)]
        case int():
            return [*_near_ints(value), float(value), str(value), [value], bool(value)]
        case float():
            return [*_near_floats(value), repr(value), [value]]
        case str():
            return [*_near_texts(value), [value]]
        case list() if value:
            nudged = [[near, *value[1:]] for near in _near_json(value[0])]
            return [value[::-1], value[1:], [value], *nudged]
        case dict() if value:
            key, first = next(iter(value.items()))
            rest = {k: v for k, v in value.items() if k != key}
            return [
                rest,
                {**rest, key + "_": first},
                *({**value, key: n} for n in _near_json(first)),
            ]
        case None:
            return [False, 0, "", "null", [], {}]
    return [[value], {"": value}]


def _near_arrays(weights: list[Any]) -> list[Any]:
    flat = np.array(weights, dtype=np.float64).ravel().tolist()
    if not flat:
        return [[0.0]]
    shape = np.shape(weights)
    nudged = [[number, *flat[1:]] for number in _near_floats(flat[0])]
    return [flat, [flat], *(np.reshape(near, shape).tolist() for near in nudged)]


_NUDGES: dict[str, Callable[[Any], list[Any]]] = {
    "n": _near_ints,
    "x": _near_floats,
    "name": _near_texts,
    "flag": lambda flag: [not flag],
    "solver": lambda solver: [other for other in Solver if other is not solver],
    "start": _near_moments,
    "options": _near_json,
    "weights": _near_arrays,
    "order": _near_ints,
    "note": _near_texts,
}
