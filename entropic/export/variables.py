"""One variable of a grid: its array, made when it is known how large, and filled point by point."""

import math
from typing import Any

from entropic.errors import ExportError
from entropic.export.loaded import Part
from entropic.export.missing import able_to_miss, missing_value
from entropic.identity import shortened
from entropic.models import Base


class Variable:
    """One variable on all points of a grid; takes no memory until it is told to.

    Args:
        name: Its name.
        part: What the first result has of it, by which all others have to go.
        size: How many points the grid has.
        first: The record of the first result.
    """

    def __init__(self, name: str, part: Part, size: int, first: Base) -> None:
        self.name = name
        self.dims = part.dims
        self.shape = part.array.shape
        self.attrs = dict(part.attrs)
        self.is_coordinate = part.is_coordinate
        self.first = first
        self._size = size
        self._array: Any = None
        self._is_filled: Any = None

    @property
    def bytes_per_point(self) -> int:
        """What it takes; nothing until it is made."""
        return 0 if self._array is None else self.bytes_with(self._array.dtype)

    def bytes_with(self, dtype: Any) -> int:
        """What it would take for each point with a dtype."""
        return int(math.prod(self.shape) * dtype.itemsize)

    def has(self, dtype: Any) -> bool:
        """Whether it is made, with this dtype."""
        return self._array is not None and bool(self._array.dtype == dtype)

    def make(self, dtype: Any) -> None:
        """Take the memory: untouched until it is filled, and so none of it is taken twice.

        Where it is made already, with another dtype, what it holds is kept.
        """
        import numpy as np

        if self._array is not None:
            self._array = self._array.astype(dtype)
            return
        self._array = np.empty((self._size, *self.shape), dtype)
        self._is_filled = np.zeros(self._size, bool)

    def dtype_with(self, part: Part, record: Base, *, may_miss: bool) -> Any:
        """The dtype that holds a record's part and all before it.

        Args:
            part: What is to be put there next.
            record: Its record.
            may_miss: Whether it is known that points will be missing.

        Raises:
            ExportError: It has another shape than the first one, or a type that has nothing in
                common with those before.
        """
        if (part.dims, part.array.shape) != (self.dims, self.shape):
            raise other_shape(self, part, record)
        if self._array is not None:
            return self._common(part, record)
        return able_to_miss(part.array.dtype) if may_miss else _kept(part.array.dtype)

    def put(self, point: int, part: Part) -> None:
        """Copy a part, for which it has a dtype, to its point."""
        self._array[point] = part.array[()]  # of an object alone, not the array around it
        self._is_filled[point] = True

    def finished_dtype(self) -> Any:
        """The dtype that holds all, and what was not filled as missing."""
        dtype = self._array.dtype
        return dtype if self._is_filled.all() else able_to_miss(dtype)

    def finished(self) -> Any:
        """The array, with what was not filled as missing; its dtype has to be able to."""
        if not self._is_filled.all():
            self._array[~self._is_filled] = missing_value(self._array.dtype)
        return self._array

    def _common(self, part: Part, record: Base) -> Any:
        import numpy as np

        ours, theirs = self._array.dtype, _kept(part.array.dtype)
        try:
            return np.promote_types(ours, theirs)
        except TypeError:
            raise ExportError(
                f"load() gave {shortened(self.name)} as {theirs} for {record!r}, and as {ours} for"
                f" {self.first!r}: give all results the same type",
                ids=(self.first.id, record.id),
            ) from None


def other_shape(known: Variable, part: Part, record: Base) -> ExportError:
    """That a part does not have the shape of its variable."""
    one, other = (
        f"{shape} along {shortened(dims)}" if dims else f"{shape}"
        for shape, dims in ((known.shape, known.dims), (part.array.shape, part.dims))
    )
    return ExportError(
        f"load() gave {shortened(known.name)} the shape {one} for {known.first!r}, and {other} for"
        f" {record!r}: make them alike in load (cut, fill up, interpolate), or choose by a filter"
        " those that are",
        ids=(known.first.id, record.id),
    )


def _kept(dtype: Any) -> Any:
    """Texts are objects, as each could be longer than those before it."""
    return able_to_miss(dtype) if dtype.kind not in "biu" else dtype
