"""Results on a grid of their parameters: how it is laid out, how it is filled.

Two steps, so that whoever loads the results may do so in threads: ``grid_layout`` says where each
record belongs, ``Grid.fill`` puts a result there. The arrays are made when the first result shows
how large they are, and each result is copied into its place: none is held twice. Whether they may
be as large is asked before each is made, and before it grows.
"""

import enum
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from entropic.errors import ExportError, SettingsError
from entropic.export.axes import Axis, id_axis, parameter_axis
from entropic.export.coordinates import Coordinate, id_coordinate, parameter_coordinate
from entropic.export.limits import MAX_MISSING_BYTES, check_size
from entropic.export.loaded import Loaded, Part, taken_apart
from entropic.export.packages import needed
from entropic.export.variables import Variable, other_shape
from entropic.identity import shortened
from entropic.identity.coercion import nearest
from entropic.models import Base, parameters

if TYPE_CHECKING:
    import xarray as xr

R = TypeVar("R", bound=Base)


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
            raise SettingsError(
                f"dims names {shortened(name)}, no parameter of {model.__name__}{hint}"
            )
    if len(set(chosen)) < len(chosen):
        raise SettingsError(f"dims names a parameter twice: {shortened(chosen)}")
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
        self._may_miss = self._size > len(records)
        self._coordinates = self._beside(dims)
        self._max_missing_bytes = max_missing_bytes
        self._check_size(0)
        self._points = _points(dims, len(records))
        self._point_of = {r.id: at for r, at in zip(records, self._points, strict=True)}
        self._check_distinct()
        self._variables: dict[str, Variable] = {}
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
                missing; a variable that is not there is missing at this point. A number that
                repeats a parameter is left out.

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
        for name in [n for n, part in loaded.parts.items() if self._is_known(record, n, part)]:
            del loaded.parts[name]
        with self._lock:
            self._check(record, loaded)
            room = [(self._room(n, part, record), part) for n, part in loaded.parts.items()]
            for variable, part in room:
                variable.put(point, part)

    def dataset(self) -> "xr.Dataset":
        """The grid, as it has been filled so far.

        Points without a result are NaN (NaT; NaN + NaNj). Where a variable has such points, ints
        (exact up to 2**53) and bools are floats, and texts objects. A parameter that is no
        dimension is a coordinate, too; so is ``id``, which is NaN where there is no run.

        Raises:
            ExportError: With what is missing it would take more than this machine's memory.
        """
        import xarray as xr

        for variable in self._variables.values():
            self._grow(variable, variable.finished_dtype())
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

    def _beside(self, dims: Sequence[Axis]) -> dict[str, Coordinate]:
        """What is a coordinate and no dimension."""
        found = {
            name: parameter_coordinate(axis, dims, may_miss=self._may_miss)
            for name, axis in self._axes.items()
            if name not in self._dims
        }
        return found if "id" in self._axes else found | {"id": id_coordinate(self.records, dims)}

    def _coords(self) -> dict[str, Any]:
        coords: dict[str, Any] = {name: (name, self._axes[name].labels) for name in self._dims}
        for name, coordinate in self._coordinates.items():
            coords[name] = (coordinate.dims, coordinate.on_grid(self._points, self._shape))
        return coords

    def _is_known(self, record: R, name: str, part: Part) -> bool:
        """Whether this repeats a parameter, as results often do; the grid has it already."""
        import numpy as np

        if name not in self._axes or part.dims:
            return False
        value = getattr(record, name)
        return np.array_equal(part.array, value.value if isinstance(value, enum.Enum) else value)

    def _room(self, name: str, part: Part, record: R) -> Variable:
        """The variable that a part belongs to, with a dtype that holds it."""
        variable = self._variables.get(name) or Variable(name, part, self._size, record)
        self._grow(variable, variable.dtype_with(part, record, may_miss=self._may_miss))
        self._variables[name] = variable
        return variable

    def _grow(self, variable: Variable, dtype: Any) -> None:
        if variable.has(dtype):
            return
        others = sum(v.bytes_per_point for v in self._variables.values() if v is not variable)
        self._check_size(others + variable.bytes_with(dtype))
        variable.make(dtype)

    def _check(self, record: R, loaded: Loaded) -> None:
        self._check_names(record, loaded)
        for name, part in loaded.parts.items():
            for dim, size in zip(part.dims, part.array.shape, strict=True):
                known_size, _ = self._sizes.setdefault(dim, (size, record))
                if known_size != size:
                    self._refuse_size(name, part, dim, record)
        for name, labels in loaded.labels.items():
            known, first = self._labels.setdefault(name, (labels, record))
            if not known.equals(labels):  # type: ignore[no-untyped-call]
                raise ExportError(
                    f"load() gave other labels along {shortened(name)} for {record!r} than for"
                    f" {first!r}: give all results the same in load (interpolate, or drop them with"
                    f" drop_vars({shortened(name)}))",
                    ids=(first.id, record.id),
                )

    def _check_names(self, record: R, loaded: Loaded) -> None:
        """Refuse two things of one name: xarray would, too, but only when all is loaded."""
        coordinates = {"id", *self._axes}
        dims = {*loaded.labels, *(dim for part in loaded.parts.values() for dim in part.dims)}
        for name in loaded.parts:
            if name in coordinates | dims | self._sizes.keys():
                raise _taken(record, "variable", name)
        for name in dims:
            if name in coordinates | self._variables.keys():
                raise _taken(record, "dimension", name)

    def _refuse_size(self, name: str, part: Part, dim: str, record: R) -> None:
        size, first = self._sizes[dim]
        known = self._variables.get(name)
        if known is not None:
            raise other_shape(known, part, record)
        raise ExportError(
            f"load() gave {shortened(name)} the shape {part.array.shape} for {record!r}, and there"
            f" are {size} along {shortened(dim)} since {first!r}: give the dimension another name",
            ids=(first.id, record.id),
        )

    def _check_size(self, bytes_of_variables: int) -> None:
        sizes = dict(zip(self._dims, self._shape, strict=True))
        beside = sum(coordinate.bytes_per_point for coordinate in self._coordinates.values())
        check_size(sizes, len(self.records), bytes_of_variables + beside, self._max_missing_bytes)

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


def _taken(record: Base, what: str, name: str) -> ExportError:
    return ExportError(
        f"load() gave a {what} {shortened(name)} for {record!r}, and there is a coordinate,"
        " dimension or variable of that name: give it another name in load, or leave it out",
        ids=(record.id,),
    )
