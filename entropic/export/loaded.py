"""What ``load`` has returned for a record, as arrays with names and dimensions."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from entropic.errors import ExportError
from entropic.export.missing import able_to_miss, missing_value
from entropic.identity import shortened
from entropic.models import Base

if TYPE_CHECKING:
    import xarray as xr

RESULT: Final = "result"
"""The variable's name where ``load`` gives none."""


@dataclass(frozen=True, slots=True)
class Part:
    """One array of a result.

    Attributes:
        dims: The names of its dimensions.
        array: A numpy array.
        attrs: What xarray keeps beside it, such as units.
        is_coordinate: Whether it is a coordinate of the result, though it labels no dimension.
    """

    dims: tuple[str, ...]
    array: Any
    attrs: Mapping[Any, Any] = field(default_factory=dict)
    is_coordinate: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """One result.

    Attributes:
        parts: Its arrays, by the names of the variables.
        labels: The labels of those dimensions that have some, by their names.
    """

    parts: dict[str, Part]
    labels: "dict[str, xr.Variable]"


def taken_apart(record: Base, result: Any) -> Loaded:
    """The arrays of a result, and its labels.

    Args:
        record: The record that it was loaded for.
        result: An array or a number; a dict of those, or of pairs ``(dims, array)``; an
            ``xarray.DataArray`` or ``Dataset``, or what has a ``to_xarray()``, as frames of
            pandas have.

    Raises:
        ExportError: It is none of these.
    """
    import xarray as xr

    if hasattr(result, "to_xarray"):
        result = result.to_xarray()
    loaded = Loaded({}, {})
    if isinstance(result, xr.Dataset):
        _take_coords(loaded, result.coords)
        result = result.data_vars
    if isinstance(result, Mapping):
        for name in result:
            _take(loaded, record, str(name), result[name], f"{name}_dim")
    else:
        name = result.name if isinstance(result, xr.DataArray) else None
        _take(loaded, record, RESULT if name is None else str(name), result, "dim")
    return loaded


def _take(loaded: Loaded, record: Base, name: str, value: Any, unnamed: str) -> None:
    import xarray as xr

    if isinstance(value, xr.DataArray):
        _take_coords(loaded, value.coords)
        loaded.parts[name] = _labelled(value)
        return
    named = isinstance(value, tuple) and len(value) > 1 and _are_dims(value[0])
    array = _array(record, name, value[1] if named else value)
    dims = tuple(f"{unnamed}_{number}" for number in range(array.ndim))
    if named:
        dims = (value[0],) if isinstance(value[0], str) else tuple(value[0])
    if len(dims) != array.ndim:
        raise ExportError(
            f"load() gave {shortened(name)} the dimensions {shortened(dims)} for {record!r}, and"
            f" an array of the shape {array.shape}: give as many names",
            ids=(record.id,),
        )
    loaded.parts[name] = Part(dims, array)


def _take_coords(loaded: Loaded, coords: Any) -> None:
    for name, coord in coords.items():
        if coord.dims == (name,):
            loaded.labels[str(name)] = coord.variable
        else:
            loaded.parts[str(name)] = _labelled(coord, is_coordinate=True)


def _labelled(value: "xr.DataArray", *, is_coordinate: bool = False) -> Part:
    return Part(tuple(map(str, value.dims)), value.values, value.attrs, is_coordinate)


def _are_dims(value: Any) -> bool:
    """Whether this is the first of a pair ``(dims, array)``, as xarray has it."""
    if isinstance(value, list | tuple):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, str)


def _array(record: Base, name: str, value: Any) -> Any:
    import numpy as np

    _refuse_async(record, value)
    if value is None:
        raise ExportError(
            f"load() returned None for {record!r}: return an array, or a dict of arrays; an empty"
            " dict leaves its point missing",
            ids=(record.id,),
        )
    if isinstance(value, np.ma.MaskedArray):
        return _unmasked(value)
    try:
        array = np.asarray(value)
    except ValueError as reason:
        raise ExportError(
            f"load() returned what is no array for {record!r} ({shortened(name)}: {reason})",
            ids=(record.id,),
        ) from None
    if array.dtype.kind == "V":
        raise ExportError(
            f"load() returned records of fields for {record!r} ({shortened(name)}:"
            f" {shortened(array.dtype)}): return a dict with an array for each field",
            ids=(record.id,),
        )
    return array


def _refuse_async(record: Base, value: Any) -> None:
    """Numpy would keep a coroutine as an object."""
    if not (inspect.isawaitable(value) or inspect.isasyncgen(value)):
        return
    if inspect.iscoroutine(value):
        value.close()  # or Python would warn that it was never awaited
    raise ExportError(
        f"load is async: it returned a {type(value).__name__} for {record!r}, which nobody has"
        " awaited; give a function that returns the result itself",
        ids=(record.id,),
    )


def _unmasked(array: Any) -> Any:
    """Masked elements are missing ones."""
    if not array.mask.any():
        return array.data
    able = array.astype(able_to_miss(array.dtype))
    return able.filled(missing_value(able.dtype))
