"""What a parameter set is: the canonical form, run ids, defaults, and what is refused."""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from numpy.typing import NDArray

from entropic import Base, Mapped, mapped_column
from entropic.errors import ModelError, ParamsError
from entropic.identity import (
    Identity,
    canonical_id,
    checked_custom_data,
    checked_id,
    is_heavy,
)
from entropic.identity.canonical import canonical, id_2x, plain
from tests.columns import (
    DAY,
    KEY,
    NAIVE,
    NOON,
    Color,
    Mixed,
    Opaque,
    Phase,
    column,
    fresh,
    id_of,
    is_same,
)
from tests.simulations import Point, SimResult
from tests.strategies import Trial, are_equal, holds, pairs, parameter_sets, thoroughly


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.1 + 0.2, 0.3),
        (1.1 * 1.1, 1.21),
        (0.0, -0.0),
        (1e22, 10**22),
        (123456789012345.0, 123456789012345.01),
        (1 / 3, math.nextafter(1 / 3, 1)),
        (5e-324, 5e-324),
    ],
)
def test_floats_that_agree_in_15_digits_are_equal(one: float, other: float) -> None:
    """Noise in the last bits makes no second run, in a column, in JSON and in an array."""
    assert id_of(column(float), one) == id_of(column(float), other)
    assert id_of(column(list[float]), [float(one)]) == id_of(column(list[float]), [float(other)])
    array = column(NDArray[np.float64])
    assert id_of(array, [float(one)]) == id_of(array, [float(other)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1e-13, 2e-13),
        (1.0, 1.0 + 1e-14),
        (0.123456789012345, 0.123456789012346),
        (5e-324, 1e-323),
        (sys.float_info.max, math.nextafter(sys.float_info.max, 0)),
        (math.inf, sys.float_info.max),
        (math.inf, -math.inf),
        (1e300, -1e300),
    ],
)
def test_floats_that_differ_in_15_digits_differ(one: float, other: float) -> None:
    """No false hit, however small or large the numbers."""
    assert id_of(column(float), one) != id_of(column(float), other)
    if math.isfinite(one) and math.isfinite(other):
        assert id_of(column(list[float]), [one]) != id_of(column(list[float]), [other])


def test_the_runner_gets_0_for_minus_0() -> None:
    """They are one run, so its result must not depend on which came first."""
    assert math.copysign(1, column(float).coerce("x", -0.0)) == 1
    assert math.copysign(1, column(float).coerce("x", np.float32(-0.0))) == 1


def test_json_tells_what_python_takes_as_equal() -> None:
    """In JSON nothing says that 1 stands for 1.0, True or "1"."""
    identity = column(dict[str, Any])
    alternatives: list[Any] = [1, 1.0, True, "1", [1], {"1": 1}, None, "null", 0, False, ""]
    assert len({id_of(identity, {"a": value}) for value in alternatives}) == len(alternatives)


def test_arrays_are_told_apart_by_content() -> None:
    """Not by their printed form, which leaves out the middle; the shape counts, too."""
    array = column(NDArray[np.float64])
    large = np.zeros(100_000)
    other = large.copy()
    other[50_000] = 1e-9
    assert repr(large) == repr(other)
    assert id_of(array, large) != id_of(array, other)
    assert id_of(array, large) == id_of(array, large.tolist())
    shapes = [(6,), (1, 6), (2, 3), (3, 2), (6, 1)]
    assert len({id_of(array, np.ones(shape)) for shape in shapes}) == len(shapes)
    json_column = column(list[Any])
    assert id_of(json_column, large) == id_of(json_column, large.tolist())
    assert id_of(json_column, large.reshape(10, -1)) == id_of(
        json_column, large.reshape(10, -1).tolist()
    )


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_matrix_is_an_array_of_two_dimensions() -> None:
    """A large one, too, whose rows are matrices again."""
    matrix = np.matrix(np.arange(10_000.0).reshape(2, 5000))
    assert column(list[Any]).coerce("x", matrix) == np.asarray(matrix).tolist()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([], "[]"),
        (
            {"b": 1, "a": [0.1 + 0.2, -0.0, 1e300, None, True]},
            '{"a":[0.3,0.0,1e+300,null,true],"b":1}',
        ),
        ({"é": "\u2028", "a": {"z": {}, "y": []}}, '{"a":{"y":[],"z":{}},"\\u00e9":"\\u2028"}'),
        ((1, (2, [3])), "[1,[2,[3]]]"),
        ({10, 9, 1}, "[1,10,9]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        ({(2, 1), (1, 2)}, "[[1,2],[2,1]]"),
        (Color.RED, '"red"'),
        ({Phase.SOLID: Mixed.PAIR}, '{"solid":[1,2]}'),
        (NAIVE, '"2026-01-31T12:00:00+00:00"'),
        (NOON.replace(microsecond=5), '"2026-01-31T12:00:00.000005+00:00"'),
        (DAY, '"2026-01-31"'),
        (KEY, f'"{KEY}"'),
        (Path("a/b"), '"a/b"'),
        (Decimal("1.500"), '"1.5"'),
        (Decimal("-0.0"), '"0"'),
        (Decimal("1E+3"), '"1000"'),
        (Decimal("1E-400"), '"1E-400"'),
        (np.arange(4).reshape(2, 2), "[[0,1],[2,3]]"),
        (np.array(["b", "a"]), '["b","a"]'),
        (np.array([1.5, 0.1 + 0.2]), "[1.5,0.3]"),
        (np.array([True, False]), "[true,false]"),
        (np.array([None, 1, "a"], object), '[null,1,"a"]'),
        (np.datetime64("2026-01-31"), '"2026-01-31"'),
        (np.datetime64("2026-01-31T12:00:00", "ns"), '"2026-01-31T12:00:00+00:00"'),
        (np.array(["2026-01-31"], "M8[D]"), '["2026-01-31"]'),
        (np.longdouble(1.5), "1.5"),
        (np.array([1.5], np.longdouble), "[1.5]"),
        (np.array(5), "5"),
    ],
    # A set's repr differs from process to process.
    ids=lambda value: "set" if isinstance(value, set | frozenset) else repr(value),
)
def test_the_canonical_form_of_nested_values(value: Any, text: str) -> None:
    """Compact JSON with sorted keys and floats at 15 digits; what JSON lacks has one spelling."""
    assert canonical(plain(value)) == text
    assert canonical(value) == text
    assert canonical(json.loads(text)) == text


def test_the_id_is_the_hash_of_the_canonical_form() -> None:
    """16 hexadecimal characters of SHA-256."""
    identity = fresh(SimResult)
    resolved = identity.resolve({"n": 100, "steps": 5000, "dt": 0.01})
    text = '{"dt":0.01,"n":100,"steps":5000}'
    assert identity.canonical(resolved.values) == text
    assert resolved.digest == hashlib.sha256(text.encode()).hexdigest()
    assert resolved.id == resolved.digest[:16]


def test_ids_do_not_depend_on_the_process() -> None:
    """Sets are iterated in an order of their own in every process."""
    program = (
        "from entropic.identity import canonical_id;"
        "print(canonical_id({'a': {'x', 'y', 'z', 'red'}, 'b': {1.5, 2, None}}))"
    )
    ids = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert ids == {f"{canonical_id({'a': {'x', 'y', 'z', 'red'}, 'b': {1.5, 2, None}})}\n"}


def test_numpy_is_not_needed() -> None:
    """Parameter sets resolve where numpy is not installed."""
    program = """
import sys
sys.modules["numpy"] = None
from typing import Any
from entropic import Base, Mapped
from entropic.identity import Identity, is_heavy

class Model(Base):
    __tablename__ = "models"
    n: Mapped[int]
    options: Mapped[dict[str, Any]]

params = {"n": 1.0, "options": {"a": [1, (2.5, {3})]}}
assert not is_heavy(params)
print(Identity(Model).resolve(params).id)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = canonical_id({"n": 1, "options": {"a": [1, [2.5, [3]]]}})
    assert done.stdout.strip() == expected


class Grid(Base):
    __tablename__ = "grids"

    n: Mapped[int]
    dt: Mapped[float]


class Config(Base):
    __tablename__ = "configs"

    cfg: Mapped[dict[str, Any]]


@pytest.mark.parametrize(
    ("model", "params", "id"),
    [
        (SimResult, {"n": 100, "steps": 5000, "dt": 0.01}, "f444a074a2e52bf9"),
        (Grid, {"n": 50, "dt": 0.005}, "73f4ac4d7fd3661d"),
        (Config, {"cfg": {"b": 1, "a": 0.1 + 0.2}}, "c750e4f9aeed2202"),
        (None, {}, "44136fa355b3678a"),
    ],
)
def test_the_known_ids(model: type[Base] | None, params: dict[str, Any], id: str) -> None:
    """They are those of entropic 2, with a model and by the pure function alone."""
    assert canonical_id(params) == id
    assert id_2x(params) == id
    if model is not None:
        assert fresh(model).resolve(params).id == id


LEGACY = json.loads((Path(__file__).parent / "data/entropic2/rows.json").read_text("utf-8"))


@pytest.mark.parametrize("row", [row for rows in LEGACY.values() for row in rows])
def test_the_ids_of_entropic_2(row: dict[str, Any]) -> None:
    """Those that release 2.3.0 gave to a database's rows."""
    assert id_2x(row["params"]) == row["id"]


@pytest.mark.parametrize("params", [row["params"] for row in LEGACY["results"]])
def test_sets_of_plain_values_keep_their_id_of_entropic_2(params: dict[str, Any]) -> None:
    """Without defaults, as the model types them, and with no more than 12 decimals."""
    typed = fresh(SimResult).resolve(params)
    is_kept = type(params["dt"]) is float and round(params["dt"], 12) == float(
        f"{params['dt']:.15g}"
    )
    assert (typed.id == id_2x(params)) is is_kept
    assert typed.id_2x is None


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"x": 1e-13}, '{"x":0.0}'),
        ({"x": 2e-13}, '{"x":0.0}'),
        ({"x": 1}, '{"x":1}'),
        ({"x": 1.0}, '{"x":1.0}'),
        ({"x": np.float64(0.1 + 0.2)}, '{"x":0.3}'),
        ({"x": np.int64(5)}, '{"x":"5"}'),
        ({"x": Color.RED}, '{"x":"red"}'),
        ({"x": [DAY, {"y": (1, Path("a"))}]}, '{"x":["2026-01-31",{"y":[1,"a"]}]}'),
        ({"x": None, "result_file": 1, "created_at": 2, "custom_data": 3}, '{"x":null}'),
        ({"x": "é"}, '{"x":"\\u00e9"}'),
    ],
)
def test_the_rule_of_entropic_2(params: dict[str, Any], text: str) -> None:
    """Params as they were passed: floats at 12 decimals, enums by value, the rest by str()."""
    assert id_2x(params) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_table_of_entropic_2_is_looked_up_by_both_ids() -> None:
    """The second id is that of the params as they were passed, and only there."""
    identity = Identity(SimResult, from_2x=True)
    params = {"n": 100, "steps": 5, "dt": 1}
    resolved = identity.resolve(params)
    assert resolved.id_2x == id_2x(params) == "0d89f08dddb4bf73"
    assert resolved.id == identity.resolve({**params, "dt": 1.0}).id == "a4178249ffda2e79"
    assert identity.resolve({**params, "id": "mine"}).id_2x is None


def test_in_a_table_of_entropic_2_defaults_count() -> None:
    """It put every parameter into the id that was passed."""
    identity = Identity(Point, from_2x=True)
    whole = identity.resolve({"n": 1, "dt": 0.5, "label": None})
    assert whole.id == whole.id_2x == canonical_id({"n": 1, "dt": 0.5, "label": None})
    short = identity.resolve({"n": 1})
    assert short.id == whole.id
    assert short.id_2x == canonical_id({"n": 1})


def test_a_default_is_left_out_however_it_is_spelled() -> None:
    """Given or not, it is the same run, whose id does not know the column."""
    identity = fresh(Point)
    ids = {
        identity.resolve({"n": 1, **given}).id
        for given in (
            {},
            {"dt": 0.5},
            {"dt": np.float32(0.5)},
            {"label": None},
            {"dt": Decimal("0.5")},
        )
    }
    assert ids == {canonical_id({"n": 1})}
    assert identity.resolve({"n": 1}).values == {"n": 1, "dt": 0.5, "label": None}
    assert identity.resolve({"n": 1, "dt": 1}).id == canonical_id({"n": 1, "dt": 1.0})
    assert identity.resolve({"n": 1, "label": ""}).id == canonical_id({"n": 1, "label": ""})


def test_a_changed_default_makes_no_false_hit() -> None:
    """The identity default stays what it was; what is left out has the model's default."""
    changed = Identity(Point, {"dt": "0.25", "label": "null"})
    assert changed.resolve({"n": 1, "dt": 0.25}).id == canonical_id({"n": 1})
    assert changed.resolve({"n": 1}).values["dt"] == 0.5
    assert changed.resolve({"n": 1}).id == canonical_id({"n": 1, "dt": 0.5})
    assert changed.resolve({"n": 1}).id == changed.resolve({"n": 1, "dt": 0.5}).id


def now() -> datetime:
    """A default that is called for each run."""
    return NOON


class Defaults(Base):
    __tablename__ = "defaults"

    literal: Mapped[float] = mapped_column(default=0.1 + 0.2)
    nullable: Mapped[int | None]
    nullable_with_default: Mapped[int | None] = mapped_column(default=3)
    member: Mapped[Color] = mapped_column(default=Color.RED)
    text: Mapped[Color] = mapped_column(default="green")
    options: Mapped[dict[str, Any]] = mapped_column(default={"b": 1, "a": [2]})
    array: Mapped[NDArray[np.float64]] = mapped_column(default=[1, 2])
    endless: Mapped[float] = mapped_column(default=math.inf)
    called: Mapped[datetime] = mapped_column(default=now)
    made: Mapped[dict[str, Any]] = mapped_column(default=dict)
    number: Mapped[int]


def test_identity_defaults_are_literal_ones() -> None:
    """In canonical form; NULL for a nullable column without any; none for callables."""
    identity = Identity(Defaults)
    assert {name: identity.model_default(name) for name in identity.parameters} == {
        "literal": "0.3",
        "nullable": "null",
        "nullable_with_default": "3",
        "member": '"red"',
        "text": '"green"',
        "options": '{"a":[2],"b":1}',
        "array": "[1.0,2.0]",
        "endless": "Infinity",
        "called": None,
        "made": None,
        "number": None,
    }


def test_what_is_left_out_has_the_models_default() -> None:
    """Callable defaults are called, and count in the id."""
    identity = fresh(Defaults)
    resolved = identity.resolve({"number": 1})
    array = resolved.values.pop("array")
    assert is_same(array, np.array([1.0, 2.0]))
    assert resolved.values == {
        "literal": 0.1 + 0.2,
        "nullable": None,
        "nullable_with_default": 3,
        "member": Color.RED,
        "text": Color.GREEN,
        "options": {"b": 1, "a": [2]},
        "endless": math.inf,
        "called": NOON,
        "made": {},
        "number": 1,
    }
    assert resolved.id == canonical_id({"number": 1, "called": NOON, "made": {}})
    explicit = identity.resolve({"number": 1, "nullable_with_default": None})
    assert explicit.id == canonical_id(
        {"number": 1, "called": NOON, "made": {}, "nullable_with_default": None}
    )


def test_a_default_that_is_shared_is_copied_for_each_run() -> None:
    """A run that changes its options changes no other's."""
    identity = fresh(Defaults)
    identity.resolve({"number": 1}).values["options"]["a"].append(3)
    assert identity.resolve({"number": 1}).values["options"] == {"b": 1, "a": [2]}


@pytest.mark.parametrize(
    "options",
    [
        {"server_default": "3"},
        {"default": sa.func.abs(3)},
        {"default": sa.Sequence("numbers")},
        {"default": sa.select(sa.literal(3)).scalar_subquery()},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("annotation", [int, int | None], ids=str)
def test_a_default_of_the_database_comes_too_late(annotation: Any, options: Any) -> None:
    """It has no identity default, and leaving the parameter out is an error that says why."""
    identity = column(annotation, **options)
    assert identity.model_default("x") is None
    assert identity.resolve({"x": 3}).values == {"x": 3}
    with pytest.raises(ParamsError, match=r"lack Single\.x: the database computes its default"):
        identity.resolve({})


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (int, 0.5),
        (int, "5"),
        (float, math.nan),
        (Color, "blue"),
        (str, 5),
        (NDArray[np.int8], [300]),
    ],
    ids=str,
)
def test_a_default_that_its_column_cannot_take_is_a_models_fault(
    annotation: Any, default: Any
) -> None:
    """It is found when the model is, not when the first run leaves it out."""
    with pytest.raises(ModelError, match=r"default cannot be: Single\.x is"):
        column(annotation, default=default)


def from_context(context: Any) -> int:
    """A default that only a statement under way can compute."""
    return int(context.get_current_parameters()["n"])


def test_a_default_function_that_fails_is_named() -> None:
    """Also one that needs SQLAlchemy's context; its own error is the cause."""
    for function in (from_context, lambda: 1 // 0):
        identity = column(int, default=function)
        with pytest.raises(ParamsError, match=r"Single\.x, and its default function failed") as e:
            identity.resolve({})
        assert isinstance(e.value.__cause__, AttributeError | ZeroDivisionError)
    with pytest.raises(ParamsError, match=r"Single\.x is an int and cannot take 'five'"):
        column(int, default=lambda: "five").resolve({})


def test_an_unknown_key_is_told_the_nearest_name() -> None:
    """With its value; where no name is near, all are listed."""
    identity = fresh(SimResult)
    with pytest.raises(
        ParamsError, match=r"no parameter 'step' .*5000.*did you mean 'steps'\?"
    ) as e:
        identity.resolve({"n": 100, "step": 5000, "dt": 0.01})
    assert (e.value.column, e.value.value) == ("step", 5000)
    with pytest.raises(ParamsError, match=r"no parameter 'viscosity' .* it has n, steps, dt"):
        identity.resolve({"n": 100, "steps": 5000, "dt": 0.01, "viscosity": 1})
    with pytest.raises(ParamsError, match="no parameter 1 "):
        identity.resolve({1: 2})  # type: ignore[dict-item]


def test_a_missing_parameter_is_named_with_what_was_given() -> None:
    """The message says that there is no default."""
    with pytest.raises(
        ParamsError, match=r"lack SimResult\.steps: .*no default; given: n, dt"
    ) as e:
        fresh(SimResult).resolve({"n": 100, "dt": 0.01})
    assert e.value.column == "steps"
    with pytest.raises(ParamsError, match=r"SimResult\.n: .*given: nothing"):
        fresh(SimResult).resolve({})


@pytest.mark.parametrize("params", [None, 5, "n=100", [("n", 100)], {"n"}, ...], ids=repr)
def test_params_that_are_no_mapping_are_refused(params: Any) -> None:
    """Whatever they are."""
    identity = fresh(SimResult)
    for refuse in (identity.resolve, identity.coerce_given):
        with pytest.raises(ParamsError, match="params must be a dict of SimResult's parameters"):
            refuse(params)


def test_reserved_keys_are_ignored() -> None:
    """Except for id, which is used."""
    identity = fresh(SimResult)
    params = {"n": 100, "steps": 5000, "dt": 0.01}
    reserved = {"result_file": object(), "created_at": 1, "custom_data": {1: 2}}
    assert identity.resolve({**params, **reserved}) == identity.resolve(params)
    own = identity.resolve({**params, **reserved, "id": "my.run-1_b"})
    assert own.id == "my.run-1_b"
    assert own.has_own_id
    assert own.values == params
    assert own.digest == identity.resolve(params).digest


@pytest.mark.parametrize("id", ["a", "A" * 64, "0", "a..b", "a.b-c_d", np.str_("abc"), Phase.SOLID])
def test_an_id_of_the_callers_own_is_taken(id: Any) -> None:
    """As a plain str."""
    assert checked_id(id) == id
    assert type(checked_id(id)) is str


@pytest.mark.parametrize(
    "id",
    [
        *("", "../../x", "..", ".", ".hidden", "a/b", "a\\b", "/etc/passwd", "-rf", "_a", "~"),
        *("A" * 65, "a\n", "a b", "a\0", "café", "a:b", "\ud800", "٣"),
        *(None, 5, b"abc", ["a"], Path("a")),
    ],
    ids=repr,
)
def test_an_id_that_could_leave_the_folder_is_refused(id: Any) -> None:
    """Nothing but a name that is a name everywhere."""
    with pytest.raises(ParamsError, match="it becomes a file's name") as caught:
        fresh(SimResult).resolve({"id": id, "n": 100, "steps": 5000, "dt": 0.01})
    assert caught.value.column == "id"


def test_a_request_by_id_needs_no_other_parameter() -> None:
    """Those that are given are coerced and checked all the same."""
    identity = fresh(SimResult)
    assert identity.coerce_given({"id": "a"}) == {}
    assert identity.coerce_given({"id": "a", "n": 5.0}) == {"n": 5}
    with pytest.raises(ParamsError, match=r"cannot take 5\.5"):
        identity.coerce_given({"id": "a", "n": 5.5})
    with pytest.raises(ParamsError, match="did you mean 'n'"):
        identity.coerce_given({"id": "a", "N": 5})


def test_differences_name_the_parameters_that_differ() -> None:
    """Those asked for, compared in canonical form."""
    identity = fresh(Point)
    stored = {"n": 1, "dt": 0.3, "label": None}
    assert identity.differences({"n": 1, "dt": 0.1 + 0.2, "label": None}, stored) == []
    assert identity.differences({"n": 2, "dt": 0.3, "label": ""}, stored) == ["n", "label"]
    assert identity.differences({"label": None}, stored) == []


def test_custom_data_becomes_plain_json() -> None:
    """NumPy scalars are numbers, tuples are lists."""
    checked = checked_custom_data(
        {"a": np.float32(0.5), "b": (1, np.int64(2)), "c": {"d": np.array([1.5])}, "e": NOON}
    )
    assert checked == {"a": 0.5, "b": [1, 2], "c": {"d": [1.5]}, "e": NOON.isoformat()}
    assert type(checked["a"]) is float
    assert json.loads(json.dumps(checked)) == checked


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "no JSON form"),
        (math.nan, "JSON cannot hold nan"),
        (math.inf, "JSON cannot hold inf"),
        (2**63, "64 bits"),
        (10**5000, "64 bits"),
        ("a\0", "NUL"),
        ("\ud800", "lone surrogate"),
        ({1: 2}, "no string"),
        (np.array([math.nan]), "NaN"),
        (np.array([object()]), "no JSON form"),
        (lambda: 1, "no JSON form"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_custom_data_that_is_no_json_is_refused(value: Any, why: str) -> None:
    """The error names the key."""
    with pytest.raises(ParamsError, match=f"custom_data\\['note'\\] cannot be .*{why}") as caught:
        checked_custom_data({"fine": 1, "note": value})
    assert caught.value.column == "custom_data"
    with pytest.raises(ParamsError, match="cannot be"):
        checked_custom_data({"note": [{"deep": value}]})


@pytest.mark.parametrize("key", [1, None, "a\0", "\ud800"], ids=repr)
def test_custom_data_has_text_for_keys(key: Any) -> None:
    """Those that both databases can keep."""
    with pytest.raises(ParamsError, match="custom_data"):
        checked_custom_data({key: 1})


def test_a_params_error_survives_pickling() -> None:
    """With the column and the value."""
    with pytest.raises(ParamsError) as caught:
        fresh(SimResult).resolve({"n": "5", "steps": 1, "dt": 1})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.column, copy.value) == (str(caught.value), "n", "5")


@pytest.mark.parametrize(
    ("params", "heavy"),
    [
        ({"n": 1, "cfg": {"a": [1] * 100}, "name": "x" * 10_000}, False),
        ({"a": np.zeros(100)}, False),
        ({"a": np.zeros(1000)}, True),
        ({"a": {"b": [np.zeros(1000)]}}, True),
        ({"a": [[0] * 100] * 100}, True),
        ({str(n): n for n in range(1000)}, True),
        (None, False),
    ],
)
def test_large_values_are_known_before_they_are_handled(params: Any, heavy: bool) -> None:
    """So that the loop hands them to a thread."""
    assert is_heavy(params) is heavy


def test_weighing_ends_for_a_value_that_contains_itself() -> None:
    """It is heavy, and refused in the thread."""
    endless: list[Any] = [1]
    endless.append(endless)
    assert is_heavy({"a": endless})


# In a table of entropic 2, where defaults count in the id, and in a new one.
TRIAL_2X, TRIAL = Identity(Trial), fresh(Trial)


@thoroughly
def test_sets_share_an_id_exactly_when_the_model_sees_them_as_equal(examples: int) -> None:
    """No false hit, no needless miss."""
    seen = set()

    def check(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
        one, other = pair
        expected = are_equal(one, other)
        seen.add(expected)
        for identity in (TRIAL, TRIAL_2X):
            first, second = identity.resolve(one), identity.resolve(other)
            assert (first.id == second.id) is expected
            assert (first.digest == second.digest) is expected
            assert (identity.differences(first.values, second.values) == []) is expected

    holds(4 * examples, check, pairs())
    assert seen == {True, False}


class Plain(Base):
    """Nothing but types of which most values need no coercion."""

    __tablename__ = "plain"

    flag: Mapped[bool]
    small: Mapped[int] = mapped_column(sa.SmallInteger())
    n: Mapped[int] = mapped_column(default=3)
    x: Mapped[float] = mapped_column(default=0.5)
    name: Mapped[str]
    code: Mapped[str] = mapped_column(sa.String(3), default="a")


@thoroughly
def test_values_that_need_no_coercion_are_as_if_coerced(examples: int) -> None:
    """The short way gives what the long one gives, ids and errors; in any order of keys."""
    identity = fresh(Plain)
    ways = set()
    numbers = st.integers() | st.floats() | st.integers(-4, 4).map(float) | st.booleans()
    texts = st.text(max_size=5) | st.sampled_from(["a", "é", "\0", "\ud800"]) | st.none()
    values = {
        "flag": st.booleans() | st.integers(0, 2),
        "small": st.integers(-(2**15), 2**15) | numbers,
        "n": st.integers(-(2**63) - 1, 2**63) | st.just(3) | numbers,
        "x": st.floats() | st.sampled_from([0.5, -0.0, 1e22, 0.1 + 0.2, 5e-324]) | numbers,
        "name": texts,
        "code": texts,
    }

    def outcome(params: Any) -> Any:
        try:
            return identity.resolve(params)
        except ParamsError as error:
            return str(error)

    def check(params: dict[str, Any]) -> None:
        for one in (params, dict(reversed(params.items()))):
            coerced = outcome(MappingProxyType(one))  # no dict: that goes the long way
            assert repr(outcome(one)) == repr(coerced)  # to Python 0.0 is -0.0, and True is 1
        ways.add(identity._exact(params) is not None)

    fit = {
        "flag": st.booleans(),
        "small": st.integers(-(2**15), 2**15 - 1),
        "n": st.integers(-(2**63), 2**63 - 1),
        "x": st.floats() | st.integers(-9, 9).map(lambda tenths: tenths / 10),
        "name": st.text(st.characters(codec="ascii")),
        "code": st.text("abc", max_size=3),
    }
    sets = (
        st.fixed_dictionaries(values),
        st.fixed_dictionaries({}, optional=values),
        st.fixed_dictionaries(fit),
    )
    holds(examples, check, st.one_of(sets))
    assert ways == {True, False}


@thoroughly
def test_resolving_is_idempotent(examples: int) -> None:
    """Of the coerced values, and of their portable form after a journey through JSON."""

    def check(params: dict[str, Any]) -> None:
        for identity in (TRIAL, TRIAL_2X):
            resolved = identity.resolve(params)
            assert identity.resolve(resolved.values).digest == resolved.digest
            portable = json.loads(json.dumps(identity.portable(resolved.values)))
            assert identity.resolve(portable).digest == resolved.digest

    holds(examples, check, parameter_sets())


@thoroughly
def test_the_order_of_keys_never_matters(examples: int) -> None:
    """Neither in params nor within JSON."""

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return [turned(item) for item in value] if isinstance(value, list) else value

    def check(params: dict[str, Any]) -> None:
        assert TRIAL.resolve(turned(params)).digest == TRIAL.resolve(params).digest
        assert id_2x(turned(params)) == id_2x(params)

    holds(examples, check, parameter_sets())


@thoroughly
def test_the_canonical_form_is_stable_json(examples: int) -> None:
    """Any JSON parser reads it, and it is what a plain encoder writes of what was read."""

    def check(params: dict[str, Any]) -> None:
        text = TRIAL.canonical(TRIAL.resolve(params).values)
        read = json.loads(text)
        assert json.dumps(read, sort_keys=True, separators=(",", ":")) == text
        assert read.keys() <= TRIAL.parameters.keys()

    holds(examples, check, parameter_sets())


class Stubborn:
    """It has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.builds(lambda: 10**5000)  # hypothesis cannot print it either
    | st.sampled_from([*Mixed, Opaque.THING, object(), Stubborn(), ENDLESS, {1, 2}, "\ud800"])
    | st.sampled_from([np.int64(5), np.float32(0.1), np.array([1.0, math.nan])]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.sampled_from(Mixed), inner)
    ),
    max_leaves=8,
)


@thoroughly
def test_the_id_of_entropic_2_never_raises(examples: int) -> None:
    """What it could not hash has none."""

    def check(params: dict[Any, Any]) -> None:
        id = id_2x(params)
        assert id is None or len(id) == 16
        assert id_2x(params) == id

    holds(examples, check, st.dictionaries(st.text() | st.integers(), anything, max_size=4))


@pytest.mark.parametrize(
    "value",
    [np.array(0.5), np.float64(3), np.int32(1)],
    ids=["array", "float64", "int32"],
)
def test_a_number_of_numpys_is_light(value: Any) -> None:
    """One without dimensions is neither walked nor sent to a thread; beside others, it counts."""
    assert not is_heavy({"x": value, "nested": {"y": [value]}})
    assert is_heavy({"x": [value] * 300})
    assert is_heavy({"x": value, "y": np.zeros(300)})


class Micro(Base):
    __tablename__ = "micros"

    µ: Mapped[float]  # noqa: PLC2401  what the test is about


def test_a_key_is_the_name_that_python_makes_of_it() -> None:
    """The micro sign and the Greek letter are one name in source code, and so they are here."""
    identity = Identity(Micro)
    asked, greek = {"\u00b5": 1}, {"\u03bc": 1}
    assert identity.resolve(asked) == identity.resolve(greek)
    assert identity.coerce_given(asked) == {"\u03bc": 1.0}
    with pytest.raises(ParamsError, match="twice"):
        identity.resolve({**asked, **greek})
    with pytest.raises(ParamsError, match="no parameter '\u00b6'"):
        identity.resolve({"\u00b6": 1})
