"""Grids of parameters: the full product, for the common sweep. Other shapes need no help."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any


def expand_grid(grid: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """One dict for each combination of the candidate values.

    Args:
        grid: For each parameter, its candidate values. Any iterable serves; each is read once.

    Returns:
        The combinations in the order of ``itertools.product``: the last key varies fastest. An
        empty grid has one combination, the empty dict; a key without values leaves none.

    Raises:
        TypeError: ``grid`` is no mapping, or a key's values are a string or not iterable: the
            classic ``{"dt": 0.01}`` where ``{"dt": [0.01]}`` was meant.
    """
    if not isinstance(grid, Mapping):
        raise TypeError(f"expand_grid takes a dict of lists, not {type(grid).__name__}")
    return [
        dict(zip(grid, combination, strict=True))
        for combination in itertools.product(*(_candidates(*item) for item in grid.items()))
    ]


def _candidates(key: str, values: Iterable[Any]) -> Iterable[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(
            f"the values of {key!r} must be a list of candidates, not {values!r};"
            f" for a single value write {{{key!r}: [{values!r}]}}"
        )
    return values
