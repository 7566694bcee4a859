"""Results on a grid of their parameters: how it is laid out, how it is filled.

Two steps, so that whoever loads the results may do so in threads: ``grid_layout`` says where each
record belongs, ``Grid.fill`` puts a result there. The arrays are made when the first result shows
how large they are, and each result is copied into its place: none is held twice.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from entropic.errors import ExportError, SettingsError
from entropic.export.axes import Axis, id_axis, parameter_axis
from entropic.export.loaded import Loaded, Part, taken_apart
from entropic.export.missing import able_to_miss, missing_value
from entropic.export.packages import needed
from entropic.identity.coercion import nearest
from entropic.models import Base, parameters

if TYPE_CHECKING:
    import xarray as xr

R = TypeVar("R", bound=Base)

MAX_MISSING_BYTES: Final = 2**30
"""How many bytes points without a run may take, unless a caller says otherwise."""

_ID_BYTES: Final = 8


def xarray_grid(
    model: type[R],
    records: Iterable[R],
    load: Callable[[R], Any],
    *,
    dims: str | Sequence[str] | None = None,
    max_missing_bytes: int = MAX_MISSING_BYTES,
) -> "xr.Dataset":
    """The results of records, on a labelled grid of their parameters.

    Args:
        model: The model.
        records: Its records.
        load: Returns a record's result; see ``Grid.fill``.
        dims: See ``grid_layout``.
        max_missing_bytes: See ``grid_layout``.

    Returns:
        See ``Grid.dataset``.

    Raises:
        SettingsError: xarray is not installed, or ``dims`` names no parameter.
        ExportError: The results have no common grid, or one that is too large.
    """
    grid = grid_layout(model, records, dims=dims, max_missing_bytes=max_missing_bytes)
    for record in grid.records:
        grid.fill(record, load_result(load, record))
    return grid.dataset()


def load_result(load: Callable[[R], Any], record: R) -> Any:
    """What ``load`` returns; its error, with a note that names the record."""
    try:
        return load(record)
    except Exception as error:
        error.add_note(f"load() was called for {record!r}")
        raise


def grid_layout(
    model: type[R],
    records: Iterable[R],
    *,
    dims: str | Sequence[str] | None = None,
    max_missing_bytes: int = MAX_MISSING_BYTES,
) -> "Grid[R]":
    """An empty grid for the results of records.

    Args:
        model: The model.
        records: Its records.
        dims: The parameters that are the grid's dimensions, in this order, or ``"id"`` for one
            dimension of runs; by default all parameters that differ among the records. Those
            that are no dimension are coordinates all the same: along the dimension that
            determines them, or along all.
        max_missing_bytes: How many bytes the points without a run may take.

    Raises:
        SettingsError: xarray is not installed, or ``dims`` names no parameter.
        ExportError: Two records have the same point, or the grid is too large; names them, and
            how large it would be.
    """
    needed("xarray")
    kept = list({record.id: record for record in records}.values())
    axes = {p.name: parameter_axis(p, kept) for p in parameters(model)}
    chosen = _chosen_dims(model, axes, dims)
    if "id" in chosen:
        axes = {"id": id_axis(kept), **axes}
    elif dims is None:
        chosen = [name for name, axis in axes.items() if not kept or len(axis.labels) > 1]
    return Grid(kept, [axes[name] for name in chosen], axes, max_missing_bytes)


def _chosen_dims(
    model: type[Base], axes: dict[str, Axis], dims: str | Sequence[str] | None
) -> list[str]:
    chosen = [dims] if isinstance(dims, str) else list(dims or ())
    for name in chosen:
        if name not in axes and name != "id":
            guess = nearest(str(name), axes)
            hint = f"; did you mean {guess!r}?" if guess else f", which has {', '.join(axes)}"
            raise SettingsError(f"dims names {name!r}, no parameter of {model.__name__}{hint}")
    if len(set(chosen)) < len(chosen):
        raise SettingsError(f"dims names a parameter twice: {chosen}")
    return chosen


class Grid(Generic[R]):
    """A grid of parameters that is being filled with results; made by ``grid_layout``.

    Args:
        records: The records that it is for.
        dims: The axes that are its dimensions.
        axes: All axes, by name.
        max_missing_bytes: How many bytes the points without a run may take.

    Attributes:
        records: The records that it is for, each once.

    Raises:
        ExportError: Two records have the same point, or it is too large.
    """

    def __init__(
        self,
        records: Sequence[R],
        dims: Sequence[Axis],
        axes: dict[str, Axis],
        max_missing_bytes: int,
    ) -> None:
        self.records = records
        self._dims = tuple(axis.name for axis in dims)
        self._axes = axes
        self._shape = tuple(len(axis.labels) for axis in dims)
        self._size = math.prod(self._shape)
        self._missing = max(self._size - len(records), 0)
        self._max_missing_bytes = max_missing_bytes
        self._check_size(0)
        self._points = _points(dims, len(records))
        self._point_of = {r.id: at for r, at in zip(records, self._points, strict=True)}
        self._check_distinct()
        self._variables: dict[str, _Variable] = {}
        self._labels: dict[str, tuple[xr.Variable, R]] = {}
        self._sizes: dict[str, tuple[int, R]] = {}
        self._lock = threading.Lock()

    def fill(self, record: R, result: Any) -> None:
        """Put a result in its place; from any thread.

        Args:
            record: One of those that the grid was laid out for.
            result: An array or a number, which is then the variable ``result``, with the
                dimensions ``dim_0``, ``dim_1`` and so on. A dict of those, each a variable, with
                the dimensions ``<name>_dim_0`` and so on. A pair ``(dims, array)`` in such a
                dict names the dimensions. An ``xarray.DataArray`` or ``Dataset`` (or a frame of
                pandas) keeps its names, dimensions, labels and attributes. Masked elements are
                missing; a variable that is not there is missing at this point.

        Raises:
            ExportError: It does not fit to those before: another shape, other labels; names both
                records. Or it is none of the above.
        """
        point = self._point_of.get(record.id)
        if point is None:
            raise ExportError(
                f"{record!r} is none of the records that the grid is for", ids=(record.id,)
            )
        loaded = taken_apart(record, result)  # outside of the lock: it may read, or compute
        with self._lock:
            self._check(record, loaded)
            for name, part in loaded.parts.items():
                if name not in self._axes:
                    self._variable(name, part, record).put(point, part, record)

    def dataset(self) -> "xr.Dataset":
        """The grid, as it has been filled so far.

        Points without a result are NaN (NaT; NaN + NaNj). Where a variable has such points, ints
        and bools are floats, and texts objects. A parameter that is no dimension is a coordinate,
        too; so is ``id``, which is NaN where there is no run.
        """
        import xarray as xr

        arrays = {
            name: xr.Variable(
                (*self._dims, *variable.dims),
                variable.finished().reshape((*self._shape, *variable.shape)),
                variable.attrs,
            )
            for name, variable in self._variables.items()
        }
        own = {name for name, variable in self._variables.items() if variable.is_coordinate}
        return xr.Dataset(
            {name: array for name, array in arrays.items() if name not in own},
            {
                **self._coords(),
                **{name: labels for name, (labels, _) in self._labels.items()},
                **{name: arrays[name] for name in own},
            },
        )

    def _coords(self) -> dict[str, Any]:
        coords: dict[str, Any] = {name: (name, self._axes[name].labels) for name in self._dims}
        for name, axis in self._axes.items():
            if name not in self._dims:
                coords[name] = self._along(axis)
        if "id" not in self._axes:
            coords["id"] = (self._dims, self._ids())
        return coords

    def _along(self, axis: Axis) -> tuple[tuple[str, ...], Any]:
        """A parameter that is no dimension, along as few of them as determine it."""
        if len(axis.labels) == 1:
            return (), axis.labels[0]
        for name in self._dims:
            places = dict(zip(self._axes[name].places, axis.places, strict=True))
            if all(
                places[at] == place
                for at, place in zip(self._axes[name].places, axis.places, strict=True)
            ):
                order = [places[at] for at in range(len(self._axes[name].labels))]
                return (name,), axis.labels[order]
        dtype = able_to_miss(axis.labels.dtype) if self._missing else axis.labels.dtype
        return self._dims, self._scattered(axis.labels[axis.places], dtype, missing_value(dtype))

    def _ids(self) -> Any:
        import numpy as np

        ids = np.array([record.id for record in self.records], dtype=object)
        return self._scattered(ids, ids.dtype, np.nan)

    def _scattered(self, values: Any, dtype: Any, missing: Any) -> Any:
        import numpy as np

        array = np.empty(self._size, dtype)
        if self._missing:
            array[...] = missing
        array[self._points] = values
        return array.reshape(self._shape)

    def _variable(self, name: str, part: Part, record: R) -> "_Variable":
        variable = self._variables.get(name)
        if variable is None:
            dtype = able_to_miss(part.array.dtype) if self._missing else part.array.dtype
            variable = _Variable(name, part, dtype, self._size, record)
            total = [v.bytes_per_point for v in (*self._variables.values(), variable)]
            self._check_size(sum(total))
            variable.make()
            self._variables[name] = variable
        return variable

    def _check(self, record: R, loaded: Loaded) -> None:
        for name in (*loaded.labels, *(d for part in loaded.parts.values() for d in part.dims)):
            if name in self._axes or name == "id":
                raise ExportError(
                    f"load() gave a dimension {name!r} for {record!r}, as the grid has a"
                    " coordinate of that name: rename it in load, or select from it",
                    ids=(record.id,),
                )
        for name, part in loaded.parts.items():
            if name == "id" or (name in self._axes and (part.dims or not part.is_coordinate)):
                raise ExportError(
                    f"load() gave a variable {name!r} for {record!r}, as the grid has a"
                    " coordinate of that name: rename it in load, or leave it out",
                    ids=(record.id,),
                )
        for name, part in loaded.parts.items():
            for dim, size in zip(part.dims, part.array.shape, strict=True):
                known_size, first = self._sizes.setdefault(dim, (size, record))
                if known_size != size:
                    self._refuse_size(name, part, dim, record)
        for name, labels in loaded.labels.items():
            known, first = self._labels.setdefault(name, (labels, record))
            if not known.equals(labels):  # type: ignore[no-untyped-call]
                raise ExportError(
                    f"load() gave other labels along {name!r} for {record!r} than for {first!r}:"
                    " give all results the same in load (interpolate, or drop them with"
                    f" drop_vars({name!r}))",
                    ids=(first.id, record.id),
                )

    def _refuse_size(self, name: str, part: Part, dim: str, record: R) -> None:
        size, first = self._sizes[dim]
        known = self._variables.get(name)
        if known is not None:
            raise _other_shape(known, part, record)
        raise ExportError(
            f"load() gave {name!r} the shape {part.array.shape} for {record!r}, and there are"
            f" {size} along {dim!r} since {first!r}: give the dimension another name",
            ids=(first.id, record.id),
        )

    def _check_size(self, bytes_per_point: int) -> None:
        missing = self._missing * (bytes_per_point + _ID_BYTES)
        total = self._size * (bytes_per_point + _ID_BYTES)
        if missing <= self._max_missing_bytes and total <= _memory():
            return
        sizes = " x ".join(f"{name}: {n}" for name, n in zip(self._dims, self._shape, strict=True))
        told = (
            f"the grid would have {self._size:,} points ({sizes}) for {len(self.records):,}"
            f" records, and take {_gigabytes(total)}"
        )
        if missing <= self._max_missing_bytes:
            raise ExportError(
                f"{told}, more than this machine's memory: narrow it by a filter, or let load"
                " return less"
            )
        raise ExportError(
            f"{told}, of which {_gigabytes(missing)} for points without a run: narrow it by a"
            " filter, name the parameters that are its dimensions (dims=[...]; the others become"
            " coordinates), lay it out by run (dims='id'), or allow it (max_missing_bytes=...)"
        )

    def _check_distinct(self) -> None:
        seen: dict[int, R] = {}
        for record, point in zip(self.records, self._points, strict=True):
            twin = seen.setdefault(point, record)
            if twin is not record:
                raise self._same_point(twin, record)

    def _same_point(self, one: R, other: R) -> ExportError:
        at = [self.records.index(one), self.records.index(other)]
        apart = [n for n, axis in self._axes.items() if axis.places[at[0]] != axis.places[at[1]]]
        advice = (
            f"they differ in {', '.join(apart)}: add it to dims, or choose one by a filter"
            if apart
            else "their parameters are the same, and one has an id of its own: leave it out by a"
            " filter, or lay them out by run (dims='id')"
        )
        return ExportError(
            f"two records have the same point of the grid, {one!r} and {other!r}; {advice}",
            ids=(one.id, other.id),
        )


def _points(dims: Sequence[Axis], count: int) -> list[int]:
    """For each record, the index of its point, the last dimension's running fastest."""
    points = [0] * count
    for axis in dims:
        size = len(axis.labels)
        points = [point * size + place for point, place in zip(points, axis.places, strict=True)]
    return points


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _memory() -> float:
    """This machine's memory, in bytes; as much as anyone may want where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


class _Variable:
    """One variable on all points of the grid."""

    def __init__(self, name: str, part: Part, dtype: Any, size: int, first: Base) -> None:
        self.name = name
        self.dims = part.dims
        self.shape = part.array.shape
        self.attrs = dict(part.attrs)
        self.is_coordinate = part.is_coordinate
        self.first = first
        self._dtype = _kept(dtype)
        self._size = size
        self._array: Any = None
        self._is_filled: Any = None

    @property
    def bytes_per_point(self) -> int:
        return int(math.prod(self.shape) * self._dtype.itemsize)

    def make(self) -> None:
        """Take the memory: untouched until it is filled, and so none of it is taken twice."""
        import numpy as np

        self._array = np.empty((self._size, *self.shape), self._dtype)
        self._is_filled = np.zeros(self._size, bool)

    def put(self, point: int, part: Part, record: Base) -> None:
        if (part.dims, part.array.shape) != (self.dims, self.shape):
            raise _other_shape(self, part, record)
        dtype = self._common(part, record)
        if dtype != self._array.dtype:
            self._array = self._array.astype(dtype)
        self._array[point] = part.array
        self._is_filled[point] = True

    def finished(self) -> Any:
        """The array, with what was not filled as missing."""
        if self._is_filled.all():
            return self._array
        dtype = able_to_miss(self._array.dtype)
        self._array = self._array.astype(dtype, copy=False)
        self._array[~self._is_filled] = missing_value(dtype)
        return self._array

    def _common(self, part: Part, record: Base) -> Any:
        import numpy as np

        ours, theirs = self._array.dtype, _kept(part.array.dtype)
        try:
            return np.promote_types(ours, theirs)
        except TypeError:
            raise ExportError(
                f"load() gave {self.name!r} as {theirs} for {record!r}, and as {ours} for"
                f" {self.first!r}: give all results the same type",
                ids=(self.first.id, record.id),
            ) from None


def _kept(dtype: Any) -> Any:
    """Texts are objects, as each could be longer than those before it."""
    return able_to_miss(dtype) if dtype.kind not in "biu" else dtype


def _other_shape(known: _Variable, part: Part, record: Base) -> ExportError:
    one, other = (
        f"{shape} along {dims}" if dims else f"{shape}"
        for shape, dims in ((known.shape, known.dims), (part.array.shape, part.dims))
    )
    return ExportError(
        f"load() gave {known.name!r} the shape {one} for {known.first!r}, and {other} for"
        f" {record!r}: make them alike in load (cut, fill up, interpolate), or choose by a filter"
        " those that are",
        ids=(known.first.id, record.id),
    )
