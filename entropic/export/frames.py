"""Records as a frame of pandas or of polars."""

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from entropic.export.columns import Column, Kind, columns
from entropic.export.packages import needed
from entropic.identity.canonical import Unfit, plain
from entropic.models import Base

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

R = TypeVar("R", bound=Base)


def pandas_frame(model: type[R], records: Iterable[R]) -> "pd.DataFrame":
    """Records as a ``pandas.DataFrame``, a row for each, in their order.

    The columns are id, the parameters in the model's order, result_file, created_at and each key
    of the custom data (a key that is a column's name is ``custom_data.<key>``). Their dtypes
    follow from the model: int64, float64, bool, str and datetime64[us, UTC] (of a date and of a
    datetime without a zone: datetime64[us]), or Int64 and boolean where the column is nullable.
    Enums are their values. Decimals, UUIDs, paths, arrays and JSON stay the objects they are.

    Raises:
        SettingsError: pandas is not installed.
    """
    pandas = needed("pandas")
    found = {column.name: _pandas_series(column) for column in columns(model, list(records))}
    frame: pd.DataFrame = pandas.DataFrame(found)
    return frame


_PANDAS: Final = {
    Kind.INT: "int64",
    Kind.FLOAT: "float64",
    Kind.BOOL: "bool",
    Kind.TEXT: "str",
    Kind.UTC: "datetime64[us, UTC]",
    Kind.NAIVE: "datetime64[us]",
    Kind.DAY: "datetime64[us]",
    Kind.OBJECT: "object",
}
_PANDAS_NULLABLE: Final = {**_PANDAS, Kind.INT: "Int64", Kind.BOOL: "boolean"}


def _pandas_series(column: Column) -> Any:
    dtypes = _PANDAS_NULLABLE if column.is_nullable else _PANDAS
    return needed("pandas").Series(column.values, dtype=dtypes[column.kind])


def polars_frame(model: type[R], records: Iterable[R]) -> "pl.DataFrame":
    """Records as a ``polars.DataFrame``, a row for each, in their order.

    The columns are those of ``pandas_frame``. Their dtypes follow from the model: Int64, Float64,
    Boolean, String, Date and Datetime in microseconds, with the zone UTC where the column has
    one. Enums are their values. What polars can neither compare nor save is String: decimals,
    UUIDs and paths as their text, arrays and JSON as JSON text.

    Raises:
        SettingsError: polars is not installed.
    """
    return polars_table(columns(model, list(records)))


def polars_table(found: Iterable[Column]) -> "pl.DataFrame":
    """Columns as a ``polars.DataFrame``.

    Raises:
        SettingsError: polars is not installed.
    """
    polars = needed("polars")
    dtypes = {
        Kind.INT: polars.Int64(),
        Kind.FLOAT: polars.Float64(),
        Kind.BOOL: polars.Boolean(),
        Kind.TEXT: polars.String(),
        Kind.UTC: polars.Datetime("us", "UTC"),
        Kind.NAIVE: polars.Datetime("us"),
        Kind.DAY: polars.Date(),
        Kind.OBJECT: polars.String(),
    }
    frame: pl.DataFrame = polars.DataFrame(
        [polars.Series(column.name, flat(column), dtypes[column.kind]) for column in found]
    )
    return frame


def flat(column: Column) -> list[Any]:
    """The values of a column, objects as texts: a dict, a list or an array as JSON."""
    if column.kind is not Kind.OBJECT:
        return column.values
    return [None if value is None else _text(value) for value in column.values]


def _text(value: Any) -> str:
    if isinstance(value, Decimal | UUID | PurePath):
        return str(value)
    try:
        return json.dumps(plain(value))
    except Unfit:  # a row that was written by something else
        return str(value)
