"""What a grid has beside its dimensions: the other parameters and the ids, along some of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entropic.export.axes import Axis
from entropic.export.missing import able_to_miss, are_exact_in_float, missing_value
from entropic.models import Base


@dataclass(frozen=True, slots=True)
class Coordinate:
    """The values of one name, and where they lie.

    Attributes:
        dims: The names of its dimensions.
        values: A numpy array: along them; or, where it is scattered, a value for each record.
        dtype: What holds these, and a missing one where points are missing.
        is_scattered: Whether it lies along all dimensions, with a value at each record's point.
    """

    dims: tuple[str, ...]
    values: Any
    dtype: Any
    is_scattered: bool

    @property
    def bytes_per_point(self) -> int:
        """What it takes for each point of the grid; nothing where it is along one dimension."""
        return int(self.dtype.itemsize) if self.is_scattered else 0

    def on_grid(self, points: Sequence[int], shape: tuple[int, ...]) -> Any:
        """Its values; scattered ones at their points of a grid, and missing at all others.

        Args:
            points: For each record, the index of its point, the last dimension's running fastest.
            shape: How long the dimensions of the grid are.
        """
        import numpy as np

        if not self.is_scattered:
            return self.values
        array = np.empty(math.prod(shape), self.dtype)
        if array.size > len(points):
            array[...] = missing_value(self.dtype)
        array[points] = self.values
        return array.reshape(shape)


def parameter_coordinate(axis: Axis, dims: Sequence[Axis], *, may_miss: bool) -> Coordinate:
    """A parameter that is no dimension, along as few of them as determine it."""
    if len(axis.labels) == 1:
        return Coordinate((), axis.labels[0], axis.labels.dtype, is_scattered=False)
    for dim in dims:
        places = dict(zip(dim.places, axis.places, strict=True))
        if all(places[at] == place for at, place in zip(dim.places, axis.places, strict=True)):
            order = [places[at] for at in range(len(dim.labels))]
            values = axis.labels[order]
            return Coordinate((dim.name,), values, values.dtype, is_scattered=False)
    dtype = _with_missing(axis.labels) if may_miss else axis.labels.dtype
    return Coordinate(_names(dims), axis.labels[axis.places], dtype, is_scattered=True)


def id_coordinate(records: Sequence[Base], dims: Sequence[Axis]) -> Coordinate:
    """The ids of the runs, along all dimensions."""
    import numpy as np

    ids = np.array([record.id for record in records], dtype=object)
    return Coordinate(_names(dims), ids, ids.dtype, is_scattered=True)


def _names(dims: Sequence[Axis]) -> tuple[str, ...]:
    return tuple(dim.name for dim in dims)


def _with_missing(labels: Any) -> Any:
    """The dtype of labels and of gaps between them; labels that differ stay different."""
    import numpy as np

    if labels.dtype.kind == "i" and not are_exact_in_float(labels.tolist()):
        return np.dtype(object)
    return able_to_miss(labels.dtype)
