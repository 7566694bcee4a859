"""Grids of parameters: the full product, for the common sweep. Other shapes need no help."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
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


def _candidates(key: str, values: Iterable[Any]) -> Iterator[Any]:
    if not isinstance(values, str | bytes | Mapping):
        # Tried, not asked of its type: a numpy array without dimensions claims to be iterable.
        with contextlib.suppress(TypeError):
            return iter(values)
    raise TypeError(
        f"the values of {key!r:.120} must be a list of candidates, not {values!r:.120};"
        f" for a single value write {{{key!r:.120}: [{values!r:.120}]}}"
    )
