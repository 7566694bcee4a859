"""Columns as a Parquet file, by whichever package there is that writes one."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from entropic.errors import SettingsError
from entropic.export.columns import Column, Kind
from entropic.export.frames import flat, polars_table

_PACKAGES: Final = ("pyarrow", "polars")


def check_parquet() -> None:
    """Raise ``SettingsError`` where no package is installed that writes Parquet."""
    if _package() is None:
        raise SettingsError("Parquet needs pip install pyarrow (or polars)")


def write_parquet(
    columns: Sequence[Column], path: Path, package: Literal["pyarrow", "polars"] | None = None
) -> None:
    """Write a file whose columns have the types of ``to_polars``, whichever package writes it.

    Args:
        columns: Of records, all of them equally long.
        path: Where to.
        package: What writes it; by default, what is installed.

    Raises:
        SettingsError: No package is installed that writes Parquet.
        OSError: The file cannot be written.
    """
    check_parquet()
    if (package or _package()) == "pyarrow":
        _write_by_pyarrow(columns, path)
    else:
        polars_table(columns).write_parquet(path)


def _package() -> str | None:
    return next((name for name in _PACKAGES if importlib.util.find_spec(name)), None)


def _write_by_pyarrow(columns: Sequence[Column], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        Kind.INT: pa.int64(),
        Kind.FLOAT: pa.float64(),
        Kind.BOOL: pa.bool_(),
        Kind.TEXT: pa.string(),
        Kind.UTC: pa.timestamp("us", "UTC"),
        Kind.NAIVE: pa.timestamp("us"),
        Kind.DAY: pa.date32(),
        Kind.OBJECT: pa.string(),
    }
    arrays = [pa.array(flat(column), types[column.kind]) for column in columns]
    pq.write_table(pa.table(arrays, [column.name for column in columns]), path)
