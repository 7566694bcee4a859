"""What each type of column takes, what it refuses, and what comes back from the database."""

import asyncio
import contextlib
import enum
import json
import math
import os
import pickle
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import (
    ARRAY,
    DOUBLE_PRECISION,
    ENUM,
    JSON,
    JSONB,
    TEXT,
    TIMESTAMP,
    UUID,
)

from entropic.database import Database, Transaction
from entropic.errors import ModelError, ParamsError
from entropic.identity import (
    Identity,
    canonical_id,
)
from entropic.models import ExactDecimal, NumpyArray, PathText, PlainJson
from tests import databases
from tests.columns import (
    DAY,
    KEY,
    NAIVE,
    NOON,
    ONES,
    Color,
    Degrees,
    Level,
    Mixed,
    Money,
    Opaque,
    Phase,
    Span,
    Whole,
    column,
    fresh,
    id_of,
    is_same,
)
from tests.simulations import SimResult
from tests.strategies import Trial, holds, parameter_sets, thoroughly

# Each type of column, a value as it types it, and other spellings of the same value.
SPELLINGS: dict[str, tuple[Identity, Any, list[Any]]] = {
    "bool": (column(bool), True, ONES),
    "int": (column(int), 1, ONES),
    "int16": (column(int, sa.SmallInteger), -(2**15), [float(-(2**15)), np.int16(-(2**15))]),
    "int32": (column(int, sa.Integer), 2**31 - 1, [2.0**31 - 1, np.uint32(2**31 - 1)]),
    "int64": (column(int), 2**63 - 1, [np.uint64(2**63 - 1), Decimal(2**63 - 1)]),
    "int64, lowest": (column(int), -(2**63), [-(2.0**63), np.int64(-(2**63))]),
    "float": (column(float), 1.0, ONES),
    "float, fraction": (
        column(float),
        0.1,
        [np.float64(0.1), Decimal("0.1"), Fraction(0.1), np.array(0.1), np.longdouble(0.1)],
    ),
    "float, small": (column(float), 0.5, [np.float16(0.5), np.float32(0.5), Fraction(1, 2)]),
    "float, infinite": (column(float), math.inf, [np.float32("inf"), Decimal("Infinity")]),
    "float, explicit": (column(float, sa.Float), 1.0, ONES),
    "str": (column(str), "solid", [Phase.SOLID, np.str_("solid"), PurePosixPath("solid")]),
    "str, length": (column(str, sa.String(3)), "né\u0301", [np.str_("né\u0301")]),
    "str, text": (column(str, sa.Text), "a" * 5000, []),
    "str, empty": (column(str), "", [np.str_("")]),
    "str, odd": (column(str), "it's\n\\x 50% \U0001f9ea é", []),
    "Decimal": (
        column(Decimal),
        Decimal("0.1"),
        [0.1, "0.1", "0.100", Decimal("0.10"), Decimal("1E-1"), np.float64(0.1), "1e-1"],
    ),
    "Decimal, whole": (column(Decimal), Decimal(1), [*ONES, "1", "1.00", Decimal("1E+0")]),
    "Decimal, zero": (column(Decimal), Decimal(0), [0, -0.0, Decimal("-0.00"), "0e9"]),
    "Decimal, large": (column(Decimal), Decimal("1E+400"), [10**400, "1e400"]),
    "date": (column(date), DAY, ["2026-01-31", "20260131", np.datetime64("2026-01-31")]),
    "datetime": (
        column(datetime),
        NOON,
        [
            NAIVE,
            NOON.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
            "2026-01-31T12:00:00",
            "2026-01-31 13:00+01:00",
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00.000000000Z",
            np.datetime64("2026-01-31T12"),
            np.datetime64("2026-01-31T12:00:00.000000000"),
        ],
    ),
    "datetime, midnight": (
        column(datetime),
        datetime(2026, 1, 31, tzinfo=UTC),
        [np.datetime64("2026-01-31"), "2026-01-31", datetime(2026, 1, 31)],
    ),
    "date, first": (column(date), date.min, ["0001-01-01"]),
    "date, last": (column(date), date.max, ["9999-12-31"]),
    "datetime, first": (column(datetime), datetime.min.replace(tzinfo=UTC), [datetime.min]),
    "datetime, last": (column(datetime), datetime.max.replace(tzinfo=UTC), [datetime.max]),
    "datetime, naive, last": (column(datetime, sa.DateTime()), datetime.max, []),
    "datetime, TIMESTAMP": (column(datetime, sa.TIMESTAMP(timezone=True)), NOON, [NAIVE]),
    "datetime, naive": (
        column(datetime, sa.DateTime()),
        NAIVE,
        [NOON, NOON.astimezone(timezone(timedelta(hours=5))), "2026-01-31T12:00"],
    ),
    "datetime, aware": (column(datetime, sa.DateTime(timezone=True)), NOON, [NAIVE]),
    "UUID": (column(uuid.UUID), KEY, [str(KEY), KEY.hex, f"{{{KEY}}}", KEY.urn, str(KEY).upper()]),
    "UUID, text": (column(str, sa.Uuid(as_uuid=False)), str(KEY), [KEY, KEY.hex]),
    "Path": (column(Path), Path("a/b"), ["a/b", PurePosixPath("a/b"), "a//b", "./a/b", "a/b/"]),
    "Enum of str": (column(Color), Color.RED, ["red", np.str_("red")]),
    "Enum of int": (column(Level), Level.HIGH, [2, np.int64(2), np.array(2)]),
    "StrEnum": (column(Phase), Phase.SOLID, ["solid"]),
    "Enum, mixed: int": (column(Mixed), Mixed.ONE, [1, np.uint8(1)]),
    "Enum, mixed: str": (column(Mixed), Mixed.TEXT, ["1"]),
    "Enum, mixed: float": (column(Mixed), Mixed.HALF, [0.5, np.float16(0.5)]),
    "Enum, mixed: tuple": (column(Mixed), Mixed.PAIR, [(1, 2), [1, 2], np.array([1, 2])]),
    "Enum, mixed: date": (column(Mixed), Mixed.DAY, [DAY, "2026-01-31"]),
    "Literal": (column(Literal["euler", "rk4"]), "rk4", [np.str_("rk4")]),
    "Enum, native": (column(Color, sa.Enum(Color)), Color.RED, ["red"]),
    "Enum of names": (
        column(str, sa.Enum("solid", "liquid", name="phase")),
        "solid",
        [Phase.SOLID],
    ),
    "dict": (
        column(dict[str, Any]),
        {"a": [1, 2.5, None, "red", True], "b": {}},
        [
            {"b": {}, "a": (np.int8(1), np.float64(2.5), None, Color.RED, np.True_)},
            OrderedDict(b=types.MappingProxyType({}), a=[1, 2.5, None, Color.RED, True]),
        ],
    ),
    "JSON, explicit": (column(dict[str, Any], sa.JSON), {"a": [1]}, [{"a": np.array([1])}]),
    "list": (column(list[int]), [1, 2], [(1, 2), np.array([1, 2])]),
    "tuple": (column(tuple[float, ...]), [0.5, 1.5], [(0.5, 1.5), np.array([0.5, 1.5])]),
    "set": (column(set[int]), [1, 10, 2], [{10, 2, 1}, frozenset({1, 2, 10})]),
    "JSON, a number": (column(dict[str, Any]), 5, [5.0, np.float32(5), np.int64(5)]),
    "JSON, a large number": (column(dict[str, Any]), 1e300, [np.float64(1e300)]),
    "JSON, 2**63": (column(dict[str, Any]), 2.0**63, [np.float32(2.0**63)]),
    "JSON, -2**63": (column(dict[str, Any]), -(2**63), [-(2.0**63)]),
    "JSON, a text": (column(dict[str, Any]), "5.0", [np.str_("5.0")]),
    "array": (
        column(NDArray[np.float64]),
        np.array([1.0, 2.0]),
        [[1, 2], (1.0, 2.0), np.array([1, 2], np.int8), np.array([1, 2], np.longdouble)],
    ),
    "array, float32": (
        column(NDArray[np.float32]),
        np.array([[0.5, 1.0]], np.float32),
        [[[0.5, 1]], np.array([[0.5, 1]], order="F"), np.array([[0.5, 1]], ">f8")],
    ),
    "array, int": (column(NDArray[np.int32]), np.array([1, 2], np.int32), [[1.0, 2.0], [True, 2]]),
    "array, bool": (column(NDArray[np.bool_]), np.array([True, False]), [[1, 0], [1.0, 0.0]]),
    "array, any type": (column(NDArray[Any]), np.array([1.5, 2.0]), [[1.5, 2]]),
    "array, no type": (
        column(np.ndarray),
        np.array([1.5]),
        [[1.5], np.array([1.5], np.longdouble)],
    ),
    "array, no dimension": (column(np.ndarray), np.array(5), [5.0, np.float32(5), 5]),
    "TypeDecorator": (column(float, Degrees), 90.0, [90, np.float32(90), 90.00000000001]),
    "TypeDecorator, bare": (column(int, Whole), 1, ONES),
    "TypeDecorator to text": (column(tuple[int, int], Span), (1, 2), [[1, 2], np.array([1, 2])]),
    "PickleType": (column(dict[str, Any], sa.PickleType), {"a": [1, 2]}, [{"a": (1, 2)}]),
}


@pytest.mark.parametrize(
    ("name", "spelling"),
    [(name, spelling) for name, (_, _, others) in SPELLINGS.items() for spelling in others],
    ids=lambda value: value if type(value) is str else type(value).__name__,
)
def test_every_spelling_of_a_value_is_the_same_run(name: str, spelling: Any) -> None:
    """The column's type decides: the runner gets its value, and the id is that value's."""
    identity, value, _ = SPELLINGS[name]
    spelled = identity.resolve({"x": spelling})
    if name != "PickleType":  # it keeps what it is given, tuples too
        assert is_same(spelled.values["x"], value)
    assert spelled.id == id_of(identity, value)
    assert spelled.digest.startswith(spelled.id)
    assert not spelled.has_own_id


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_value_as_the_column_types_it_stays_as_it_is(name: str) -> None:
    """Coercion is idempotent, and gives the value that the design names."""
    identity, value, _ = SPELLINGS[name]
    coerced = identity.coerce("x", value)
    assert is_same(coerced, value)
    assert is_same(identity.coerce("x", coerced), value)


@pytest.mark.parametrize("name", SPELLINGS)
def test_portable_values_are_taken_back(name: str) -> None:
    """What a sidecar keeps in JSON is the same run when it is read again."""
    identity, value, _ = SPELLINGS[name]
    resolved = identity.resolve({"x": value})
    read = json.loads(json.dumps(identity.portable(resolved.values)))
    again = identity.resolve(read)
    assert again.id == resolved.id
    assert name == "PickleType" or is_same(again.values["x"], value)


ReadBack = Callable[[Identity, Mapping[str, Any]], Any]


@pytest.fixture(scope="module", params=["memory", "postgresql"])
def read_back(request: pytest.FixtureRequest) -> Iterator[ReadBack]:
    """Stores values in each database, as the library does, and reads them again."""
    with databases.made(request.param) as place, asyncio.Runner() as runner:
        database = Database(place.url, lock_timeout=30)
        runner.run(database.open())
        yield lambda identity, values: runner.run(_there_and_back(database, identity, values))
        runner.run(database.aclose())


class UndoneError(Exception):
    """Makes a transaction leave nothing behind, a table neither."""


async def _there_and_back(
    database: Database, identity: Identity, values: Mapping[str, Any]
) -> dict[str, Any]:
    columns = {name: parameter.column for name, parameter in identity.parameters.items()}
    table = next(iter(columns.values())).table
    bound = {column.name: sa.bindparam(name, type_=column.type) for name, column in columns.items()}
    reserved = {"id": "a", "result_file": "a", "created_at": NOON, "custom_data": {}}
    insert = databases.compiled(database, sa.insert(table).values(reserved | bound))
    select = databases.compiled(database, sa.select(*columns.values()))
    rows: list[Sequence[Any]] = []

    async def work(transaction: Transaction) -> None:
        await transaction.run_sync(table.create)
        await transaction.execute_many((insert, [identity.stored(values)]))
        rows.extend(await transaction.fetch(select))
        raise UndoneError

    with contextlib.suppress(UndoneError):
        await database.write(work)
    return dict(zip(columns, rows[0], strict=True))


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_stored_value_reads_back_equal(name: str, read_back: ReadBack) -> None:
    """Same value, same type, same canonical form: a stored row is a hit."""
    identity, value, others = SPELLINGS[name]
    for spelling in (value, *others[:3]):
        resolved = identity.resolve({"x": spelling})
        stored = read_back(identity, resolved.values)
        assert identity.digest(stored) == resolved.digest
        assert identity.differences(resolved.values, stored) == []
        assert is_same(stored["x"], resolved.values["x"])


# What only PostgreSQL has: its rule, and the values of one column.
ONLY_POSTGRESQL: dict[str, tuple[Identity, list[Any]]] = {
    "integers": (column(list[int], sa.ARRAY(sa.BigInteger)), [[], [1], [2**63 - 1, -(2**63)]]),
    "floats": (column(list[float], ARRAY(sa.Double())), [[0.1, 1e300, -math.inf, 5e-324]]),
    "texts": (column(list[str], ARRAY(sa.String)), [["", "NULL", 'it\'s {"5%"},\\\n', "é"]]),
    "bools": (column(list[bool], ARRAY(sa.Boolean)), [[True, False]]),
    "dates": (column(list[date], ARRAY(sa.Date)), [[DAY, date.min]]),
    "datetimes": (column(list[datetime], ARRAY(sa.DateTime(timezone=True))), [[NOON]]),
    "UUIDs": (column(list[uuid.UUID], ARRAY(sa.Uuid)), [[KEY]]),
    "enums": (column(list[Color], ARRAY(sa.Enum(Color))), [[Color.RED, Color.GREEN]]),
    "JSON": (column(list[Any], ARRAY(sa.JSON)), [[{"a": 1e300}, [1, "x"], "5", 5]]),
    "decimals": (column(list[Decimal], ARRAY(ExactDecimal())), [[Decimal("0.1"), Decimal(1)]]),
    "grid": (column(list[Any], ARRAY(sa.Double(), dimensions=2)), [[[0.5, 1.0], [2.0, 3.0]], []]),
    "extremes": (
        column(list[datetime], ARRAY(sa.DateTime(timezone=True))),
        [[datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]],
    ),
    "tuples": (
        column(tuple[Any, ...], ARRAY(sa.BigInteger(), dimensions=2, as_tuple=True)),
        [((1, 2), (3, 4)), ()],
    ),
    "ENUM": (column(Color, ENUM(Color)), [Color.RED]),
    "UUID": (column(uuid.UUID, UUID(as_uuid=True)), [KEY]),
    "JSON of PostgreSQL": (column(dict[str, Any], JSON()), [{"a": [1e300, "5", None]}, "5", 5]),
    "DOUBLE_PRECISION": (column(float, DOUBLE_PRECISION()), [0.1, math.inf, 1.7e308]),
    "TIMESTAMP": (column(datetime, TIMESTAMP(timezone=True)), [NOON]),
    "TEXT": (column(str, TEXT()), ["A"]),
}


@pytest.mark.parametrize("read_back", ["postgresql"], indirect=True)
@pytest.mark.parametrize("name", ONLY_POSTGRESQL)
def test_types_of_postgresql_read_back_equal(name: str, read_back: ReadBack) -> None:
    """The same, also of what came through a sidecar."""
    identity, values = ONLY_POSTGRESQL[name]
    for value in values:
        resolved = identity.resolve({"x": value})
        stored = read_back(identity, resolved.values)
        assert identity.digest(stored) == resolved.digest
        assert is_same(stored["x"], value)
        assert pickle.dumps(stored["x"]) == pickle.dumps(resolved.values["x"])
        carried = json.loads(json.dumps(identity.portable(resolved.values)))
        assert is_same(identity.resolve(carried).values["x"], value)


LOSSY: list[tuple[Identity, Any, str]] = [
    (column(list[Any], ARRAY(sa.Double(), dimensions=2)), [[]], "an empty list"),
    (column(list[Any], ARRAY(sa.Double(), dimensions=2)), [[], []], "an empty list"),
    (column(bool), 2, "only True, False, 1 and 0 are bools"),
    (column(bool), 0.5, "only True, False, 1 and 0 are bools"),
    (column(bool), "true", "no number"),
    (column(int), 5.5, "no whole number"),
    (column(int), np.float32(5.5), "no whole number"),
    (column(int), Decimal("5.5"), "no whole number"),
    (column(int), Fraction(1, 3), "no whole number"),
    (column(int), "5", "a text is not parsed"),
    (column(int), b"5", "no number"),
    (column(int), [5], "no number"),
    (column(int), np.array([5]), "no number"),
    (column(int), 5j, "no number"),
    (column(int), np.complex64(5), "no JSON form"),
    (column(int), np.clongdouble(5), "no JSON form"),
    (column(int), None, "not nullable"),
    (column(int), math.nan, "NaN"),
    (column(int), math.inf, "does not fit 64 bits"),
    (column(int), 2**63, "does not fit 64 bits"),
    (column(int), -(2**63) - 1, "does not fit 64 bits"),
    (column(int), 2.0**63, "does not fit 64 bits"),
    (column(int), 10**400, "does not fit 64 bits"),
    (column(int), 10**5000, "does not fit 64 bits"),
    (column(int), Fraction(10**400, 3), "does not fit 64 bits"),
    (column(int), Decimal("1e999999999"), "does not fit 64 bits"),
    (column(int, sa.Integer), 2**31, "does not fit 32 bits"),
    (column(int, sa.SmallInteger), -(2**15) - 1, "does not fit 16 bits"),
    # The unit would be lost.
    (column(int), np.timedelta64(5, "ns"), "no JSON form"),
    (column(int), np.datetime64("2026-01-31T12:00", "ns"), "no number"),
    (column(float), np.timedelta64(5, "s"), "no JSON form"),
    (column(int), np.ma.masked, "masked"),
    (column(float), np.ma.masked, "masked"),
    (column(float), "0.1", "a text is not parsed"),
    (column(float), math.nan, "NaN equals nothing"),
    (column(float), np.float32("nan"), "NaN equals nothing"),
    (column(float), np.longdouble("nan"), "NaN equals nothing"),
    (column(float), Decimal("NaN"), "NaN equals nothing"),
    (column(float), Decimal("sNaN"), "NaN equals nothing"),
    (column(float), 2**53 + 1, "round it to 9007199254740992.0"),
    (column(float), Fraction(1, 3), "round it to 0.333"),
    (column(float), Decimal("0.10000000000000001"), "round it to 0.1"),
    (column(float), np.longdouble("0.1"), "does not hold all of its digits"),
    (column(float), 10**400, "too large"),
    (column(float), 10**5000, "too large"),
    (column(float), Decimal("1e400"), "round it to inf"),
    (column(float), 1 + 0j, "no number"),
    (column(float), DAY, "no number"),
    (column(str), 5, "no text"),
    (column(str), b"solid", "no text"),
    (column(str), Level.LOW, "no text"),
    (column(str, sa.String(3)), "four", "longer than the column's 3 characters"),
    (column(str), "a\0b", "NUL"),
    (column(str), "\ud800", "lone surrogate"),
    (column(Decimal), math.nan, "NaN"),
    (column(Decimal), math.inf, "finite"),
    (column(Decimal), Decimal("sNaN"), "finite"),
    (column(Decimal), "one", "no decimal number"),
    (column(Decimal), Fraction(1, 3), "no decimal number"),
    (column(Decimal), None, "not nullable"),
    (column(date), NOON, "a datetime has a time"),
    (column(date), "2026-02-30", "ISO 8601"),
    (column(date), "31.1.2026", "ISO 8601"),
    (column(date), np.datetime64("2026-01-31T12:00"), "a datetime has a time"),
    (column(date), np.datetime64("NaT"), "no date"),
    (column(date), np.datetime64("20260-01-31"), "between the years 1 and 9999"),
    (column(date), 20260131, "no date"),
    (column(datetime), DAY, "no datetime"),
    (column(datetime), 0, "no datetime"),
    (column(datetime), "noon", "ISO 8601"),
    (column(datetime), "2026-01-31T12:00:00.0000001", "finer than microseconds"),
    (column(datetime), "2026-01-31T12:00:00,1234560001Z", "finer than microseconds"),
    (column(datetime), np.datetime64("2026-01-31T12:00:00.000000001"), "finer than microseconds"),
    (column(datetime), np.datetime64("NaT", "us"), "no date between"),
    (column(datetime), datetime.max.replace(tzinfo=timezone(-timedelta(hours=5))), "years 1 and"),
    (column(datetime), datetime.min.replace(tzinfo=timezone(timedelta(hours=5))), "years 1 and"),
    (column(uuid.UUID), "1234", "no UUID"),
    (column(uuid.UUID), 5, "no text"),
    (column(Path), "a\0b", "NUL"),
    (column(Path), Path(os.fsdecode(b"caf\xe9")), "lone surrogate"),
    (column(Color), "rde", "did you mean 'red'?"),
    (column(Color), "RED", "none of ['red', 'green']; did you mean 'red'?"),
    (column(Color), Phase.SOLID, "none of ['red', 'green']"),
    (column(Color), 10**5000, "64 bits"),
    (column(Color), math.nan, "nan"),
    (column(Level), 3, "none of [1, 2]"),
    (column(Level), "LOW", "none of [1, 2]"),
    (column(Literal["euler", "rk4"]), "eular", "did you mean 'euler'?"),
    (column(Literal["euler", "rk4"]), None, "not nullable"),
    (column(dict[str, Any]), {"a": object()}, "object has no JSON form"),
    (column(dict[str, Any]), {"a": {1: 2}}, "the key 1 is no string"),
    (column(dict[str, Any]), {Level.LOW: 2}, "is no string"),
    (column(dict[str, Any]), {Color.RED: 1, "red": 2}, "same text"),
    (column(dict[str, Any]), {"a": math.nan}, "JSON cannot hold nan"),
    (column(dict[str, Any]), {"a": [math.inf]}, "JSON cannot hold inf"),
    (column(dict[str, Any]), {"a": 2**63}, "64 bits"),
    (column(dict[str, Any]), 10**5000, "64 bits"),
    (column(dict[str, Any]), {"a": "\0"}, "NUL"),
    (column(dict[str, Any]), {"\0": "a"}, "NUL"),
    (column(dict[str, Any]), {"a": "\udfff"}, "lone surrogate"),
    (column(dict[str, Any]), {"\udfff": 1}, "lone surrogate"),
    (column(dict[str, Any]), {"a": b"bytes"}, "bytes has no JSON form"),
    (column(dict[str, Any]), {"a": 1j}, "complex has no JSON form"),
    (column(dict[str, Any]), {"a": np.complex64(1)}, "complex64 has no JSON form"),
    (column(dict[str, Any]), {"a": np.timedelta64(5, "ns")}, "has no JSON form"),
    (column(dict[str, Any]), {"a": timedelta(1)}, "timedelta has no JSON form"),
    (column(dict[str, Any]), {"a": np.datetime64("NaT")}, "no date between"),
    (column(dict[str, Any]), {"a": np.array([1, 2], "m8[s]")}, "no JSON form"),
    (column(dict[str, Any]), {"a": np.array([(1, 2)], "i4,i4")}, "no JSON form"),
    (column(dict[str, Any]), {"a": np.array([(1, 2)], "i4,i4")[0]}, "no JSON form"),
    (column(dict[str, Any]), {"a": np.array([math.nan])}, "NaN"),
    (column(dict[str, Any]), {"a": np.array([2**63], np.uint64)}, "64 bits"),
    (column(dict[str, Any]), {"a": np.array([1j])}, "no JSON form"),
    (column(dict[str, Any]), {"a": np.array([object()])}, "object has no JSON form"),
    (column(dict[str, Any]), {"a": np.array([b"bytes"])}, "no JSON form"),
    (column(dict[str, Any]), {"a": np.longdouble("0.1")}, "all of its digits"),
    (column(dict[str, Any]), {"a": np.ma.array([1, 2], mask=[False, True])}, "masked"),
    (column(dict[str, Any]), {"a": np.ma.masked}, "masked"),
    (column(dict[str, Any]), {"a": Decimal("NaN")}, "finite"),
    (column(dict[str, Any]), {"a": (n for n in [1])}, "generator has no JSON form"),
    (column(dict[str, Any], sa.JSON), {"a": object()}, "no JSON form"),
    (column(NDArray[np.float64]), [[1, 2], [3]], "no array"),
    (column(NDArray[np.float64]), ["1", "2"], "neither numbers nor bools"),
    (column(NDArray[np.float64]), "12", "neither numbers nor bools"),
    (column(NDArray[np.float64]), {1, 2}, "neither numbers nor bools"),
    (column(NDArray[np.float64]), [1, None], "neither numbers nor bools"),
    (column(NDArray[np.float64]), np.array([object()]), "neither numbers nor bools"),
    (column(NDArray[np.float64]), [1j], "neither numbers nor bools"),
    (column(NDArray[np.float64]), [10**400], "neither numbers nor bools"),
    (column(NDArray[np.float64]), [np.datetime64("2026-01-31")], "neither numbers nor bools"),
    (column(NDArray[np.float64]), [1, math.nan], "NaN"),
    (column(NDArray[np.float64]), [1, math.inf], "infinity"),
    (column(NDArray[np.float64]), [2**53 + 1], "would change as float64"),
    (column(NDArray[np.float64]), [2**63 - 1], "would change as float64"),
    (column(NDArray[np.float32]), [0.1], "would change as float32"),
    (column(NDArray[np.float32]), [1e300], "would change as float32"),
    (column(NDArray[np.int64]), [1.5], "would change as int64"),
    (column(NDArray[np.int64]), [1e300], "would change as int64"),
    (column(NDArray[np.int64]), [math.nan], "NaN"),
    (column(NDArray[np.int8]), [128], "would change as int8"),
    (column(NDArray[np.uint8]), [-1], "would change as uint8"),
    (column(NDArray[np.bool_]), [2], "would change as bool"),
    (column(np.ndarray), [2**63], "64 bits"),
    (column(np.ndarray), np.array([np.longdouble("0.1")]), "would change as float64"),
    (column(np.ndarray), np.ma.array([1.0, 2.0], mask=[False, True]), "masked"),
    (column(np.ndarray), np.zeros((0, 3)), "its shape (0, 3) is lost"),
    (column(np.ndarray), np.zeros((2, 0, 3)), "its shape (2, 0, 3) is lost"),
    (column(int, Whole), 5.5, "no whole number"),
    (column(tuple[int, int], Span), (1,), "the type refused it (IndexError"),
    (column(tuple[int, int], Span), (10**6, 10**6), "longer than the column's 9 characters"),
    (column(dict[str, Any], sa.PickleType), {"a": object()}, "no JSON form"),
]


def _label(value: Any) -> str:
    """How a test is called after a value that may be long, or have no text at all."""
    if isinstance(value, Identity):
        return str(value.parameters["x"].column.type)
    return value if isinstance(value, str) and value.isprintable() else type(value).__name__


@pytest.mark.parametrize(("identity", "value", "why"), LOSSY, ids=_label)
def test_a_value_that_would_be_lost_is_refused(identity: Identity, value: Any, why: str) -> None:
    """The error is a ParamsError and a ValueError, and names column, value, type and reason."""
    with pytest.raises(ParamsError) as caught:
        identity.resolve({"x": value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.column == "x"
    assert caught.value.value is value
    message = str(caught.value)
    assert message.startswith("Single.x is ")
    assert f", of type {type(value).__name__}: " in message
    assert why in message
    assert len(message) < 600


def test_an_error_shows_the_value_and_the_columns_type() -> None:
    """The message as a user reads it."""
    with pytest.raises(ParamsError) as caught:
        fresh(SimResult).resolve({"n": 5.5, "steps": 1, "dt": 1})
    assert str(caught.value) == (
        "SimResult.n is an int and cannot take 5.5, of type float: it is no whole number"
    )


def test_an_error_does_not_print_a_huge_value() -> None:
    """A long value is cut, and one that cannot be printed is named by its type."""
    with pytest.raises(ParamsError, match=r"cannot take 'aaa.*\.\.\., of type str") as caught:
        column(int).resolve({"x": "a" * 100_000})
    assert len(str(caught.value)) < 300
    with pytest.raises(ParamsError, match="cannot take <int>, of type int"):
        column(int).resolve({"x": 10**5000})


class Instant(datetime):
    """A datetime that knows nanoseconds, as a pandas.Timestamp does."""

    nanosecond = 0

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and not self.nanosecond

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = datetime.__hash__

    def astimezone(self, tz: Any = None) -> "Instant":
        found = Instant.combine(super().astimezone(tz).date(), super().astimezone(tz).timetz())
        found.nanosecond = self.nanosecond
        return found


def test_a_subclass_of_datetime_is_taken_as_a_datetime() -> None:
    """The runner gets a datetime itself; nanoseconds are refused."""
    instant = Instant(2026, 1, 31, 12, tzinfo=UTC)
    assert is_same(column(datetime).coerce("x", instant), NOON)
    instant.nanosecond = 1
    with pytest.raises(ParamsError, match="finer than microseconds"):
        column(datetime).coerce("x", instant)
    with pytest.raises(ParamsError, match="finer than microseconds"):
        column(dict[str, Any]).coerce("x", {"t": instant})


class Metres(np.ndarray):
    """An array with a unit."""


def test_an_array_with_a_unit_is_refused() -> None:
    """Its numbers alone would be another run's, too."""
    lengths = np.array([1.0]).view(Metres)
    with pytest.raises(ParamsError, match=r"np\.asarray"):
        column(np.ndarray).coerce("x", lengths)
    with pytest.raises(ParamsError, match="Metres has no JSON form"):
        column(dict[str, Any]).coerce("x", {"a": lengths})


class Twin(enum.Enum):
    DATE = DAY
    TEXT = "2026-01-31"


class Notional(enum.Enum):
    NAN = math.nan


@pytest.mark.parametrize(
    ("annotation", "arguments"),
    [
        (bytes, ()),
        (timedelta, ()),
        (str, (sa.Time(),)),
        (Decimal, (sa.Numeric(10, 2),)),
        (Decimal, (Money(),)),
        (list[timedelta], (sa.ARRAY(sa.Interval),)),
        (dict[str, Any], (JSONB(),)),
        (str, (sa.CHAR(5),)),
        (float, (sa.REAL(),)),
        (float, (sa.Float(24),)),
        (datetime, (TIMESTAMP(precision=3),)),
        (datetime, (TIMESTAMP(timezone=True, precision=0),)),
        (list[datetime], (ARRAY(TIMESTAMP(precision=0)),)),
        (list[Any], (ARRAY(sa.Double(), dimensions=7),)),
        (enum.Enum, ()),
        (Twin, ()),
        (Opaque, ()),
        (Notional, ()),
        (NDArray[np.complex128], ()),
        (NDArray[np.datetime64], ()),
        (NDArray[np.str_], ()),
        (NDArray[np.object_], ()),
        (NDArray[np.longdouble], ()),
    ],
    ids=str,
)
def test_a_type_without_a_canonical_form_is_refused_at_once(
    annotation: Any, arguments: Any
) -> None:
    """The model is refused, by name, before there is any parameter set."""
    with pytest.raises(ModelError, match=r"'x'|singles\.x"):
        column(annotation, *arguments)


@pytest.mark.parametrize(
    "annotation",
    [NDArray[np.floating[Any]], NDArray[np.number[Any]], NDArray[np.generic], NDArray[Any]],
    ids=str,
)
def test_an_abstract_dtype_takes_every_number(annotation: Any) -> None:
    """The array keeps its own type."""
    identity = column(annotation)
    assert is_same(identity.coerce("x", [1.5]), np.array([1.5]))
    assert is_same(identity.coerce("x", [1]), np.array([1]))


@pytest.mark.parametrize(
    "annotation",
    [
        *(dict, dict[str, float], dict[str, list[int]], list, list[dict[str, int]]),
        *(tuple, tuple[int, str], tuple[float, ...], set, set[int], frozenset[str]),
        *(dict[str, Any] | None, list[int] | None, Mapping[str, Any]),
    ],
    ids=str,
)
def test_containers_are_json_in_any_parametrisation(annotation: Any) -> None:
    """The column is JSON, and takes JSON of any shape."""
    identity = column(annotation)
    assert type(identity.parameters["x"].column.type) is PlainJson
    assert identity.coerce("x", {"a": [1]}) == {"a": [1]}


@pytest.mark.parametrize(
    ("annotation", "kind", "python_type"),
    [
        (Path, PathText, "a path"),
        (Decimal, ExactDecimal, "a Decimal"),
        (NDArray[np.float32] | None, NumpyArray, "a numpy array"),
        (int, sa.BigInteger, "an int"),
        (float, sa.Double, "a float"),
    ],
)
def test_annotations_have_types_that_lose_nothing(
    annotation: Any, kind: type, python_type: str
) -> None:
    """Every digit and 64 bits; error messages name the Python type."""
    identity = column(annotation)
    assert type(identity.parameters["x"].column.type) is kind
    with pytest.raises(ParamsError, match=f"Single.x is {python_type} and cannot take"):
        identity.coerce("x", object())


def test_coerced_values_share_nothing_with_the_callers() -> None:
    """Changing a list or an array after the call changes no run."""
    values: list[tuple[Identity, Any]] = [
        (column(dict[str, Any]), {"a": [1]}),
        (column(dict[str, Any], sa.PickleType), {"a": [1]}),
    ]
    for identity, value in values:
        coerced = identity.coerce("x", value)
        value["a"].append(2)
        assert coerced == {"a": [1]}
    array = np.array([1.0])
    coerced = column(NDArray[np.float64]).coerce("x", array)
    array[0] = 2.0
    assert coerced[0] == 1.0


def test_a_value_that_contains_itself_is_refused() -> None:
    """Lists, dicts and object arrays that never end."""
    endless: list[Any] = []
    endless.append(endless)
    circle: dict[str, Any] = {}
    circle["self"] = circle
    cube = np.empty((), object)
    cube[()] = cube
    row = np.empty(1, object)
    row[0] = row
    for value in (endless, circle, cube, row):
        for identity in (column(dict[str, Any]), column(Color), column(int), column(np.ndarray)):
            with pytest.raises(ParamsError):
                identity.resolve({"x": value})
        with pytest.raises(ParamsError, match="contains itself"):
            canonical_id({"x": value})
    nested: Any = 1
    for _ in range(100):
        nested = [nested]
    assert column(dict[str, Any]).coerce("x", nested) == nested
    with pytest.raises(ParamsError, match="more than 100 levels"):
        column(dict[str, Any]).coerce("x", [nested])


@thoroughly
def test_stored_sets_read_back_equal(examples: int, read_back: ReadBack) -> None:
    """Whatever was resolved is a hit once it is in a database."""
    identity = fresh(Trial)

    def check(params: dict[str, Any]) -> None:
        resolved = identity.resolve(params)
        stored = read_back(identity, resolved.values)
        assert identity.digest(stored) == resolved.digest
        assert identity.differences(resolved.values, stored) == []

    holds(examples, check, parameter_sets())
