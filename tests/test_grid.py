"""``expand_grid``: the full product, in order."""

import itertools
from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropic import expand_grid
from tests.columns import Color


def test_one_dict_for_each_combination_in_product_order() -> None:
    """The last key varies fastest; a single value counts as one candidate."""
    assert expand_grid({"n": [50, 100], "dt": [0.01, 0.005]}) == [
        {"n": 50, "dt": 0.01},
        {"n": 50, "dt": 0.005},
        {"n": 100, "dt": 0.01},
        {"n": 100, "dt": 0.005},
    ]
    assert [list(params) for params in expand_grid({"n": [1], "dt": [2]})] == [["n", "dt"]]


@given(st.dictionaries(st.text(), st.lists(st.integers(), max_size=3), max_size=4))
def test_it_is_the_product_of_the_candidates(grid: dict[str, list[int]]) -> None:
    """As many as itertools.product gives, in its order, each a dict of its own."""
    combinations = expand_grid(grid)
    assert [tuple(params.values()) for params in combinations] == [
        *itertools.product(*grid.values())
    ]
    assert all(list(params) == list(grid) for params in combinations)
    assert len({id(params) for params in combinations}) == len(combinations)


def test_an_empty_grid_has_one_combination_and_a_key_without_values_none() -> None:
    """As the empty product is one, and a product with nothing is nothing."""
    assert expand_grid({}) == [{}]
    assert expand_grid({"n": [1, 2], "dt": []}) == []


def test_any_iterable_serves_and_is_read_once() -> None:
    """Generators, ranges, sets, arrays, enums, dict views; a read-only mapping as the grid."""
    reads = 0

    def candidates() -> Iterator[int]:
        nonlocal reads
        reads += 1
        yield from (1, 2)

    grid: dict[str, Iterable[Any]] = {
        "a": candidates(),
        "b": range(2),
        "c": {5},
        "d": np.array([0.5, 1.5]),
        "e": Color,
        "f": {"x": 1}.keys(),
    }
    combinations = expand_grid(MappingProxyType(grid))
    assert len(combinations) == 2 * 2 * 1 * 2 * 2 * 1
    assert reads == 1
    last = {"a": 2, "b": 1, "c": 5, "d": 1.5, "e": Color.GREEN, "f": "x"}
    assert combinations[-1] == last


def test_the_grid_is_not_changed() -> None:
    """Nor are its lists shared with what comes out."""
    grid: dict[str, list[Any]] = {"n": [1, 2], "cfg": [{"a": 1}]}
    expand_grid(grid)[0]["n"] = 5
    assert grid == {"n": [1, 2], "cfg": [{"a": 1}]}


@pytest.mark.parametrize("value", [0.01, 5, None, "abc", b"abc", {"a": 1}, ...], ids=repr)
def test_a_value_that_is_no_list_is_refused_with_what_to_write(value: Any) -> None:
    """A string or a dict is never meant as its characters or keys."""
    with pytest.raises(TypeError, match="the values of 'dt' must be a list of candidates") as e:
        expand_grid({"n": [1], "dt": value})
    assert f"{{'dt': [{value!r}]}}" in str(e.value)


@pytest.mark.parametrize("grid", [None, [("n", [1])], "n", 5, {"n"}], ids=repr)
def test_a_grid_that_is_no_dict_is_refused(grid: Any) -> None:
    """The error names what it got."""
    with pytest.raises(TypeError, match=f"takes a dict of lists, not {type(grid).__name__}"):
        expand_grid(grid)


def test_an_array_without_dimensions_is_no_list() -> None:
    """NumPy calls it iterable until one tries."""
    with pytest.raises(TypeError, match="the values of 'dt' must be a list"):
        expand_grid({"dt": np.array(0.01)})
