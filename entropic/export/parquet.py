"""Columns as a Parquet file."""

from collections.abc import Sequence
from pathlib import Path

from entropic.export.columns import Column
from entropic.export.frames import polars_table
from entropic.export.packages import needed


def write_parquet(columns: Sequence[Column], path: Path) -> None:
    """Write a file whose columns have the types of ``to_polars``.

    Args:
        columns: Of records, all of them equally long.
        path: Where to.

    Raises:
        SettingsError: polars is not installed.
        OSError: The file cannot be written.
    """
    needed("polars", "a Parquet file")
    polars_table(columns).write_parquet(path)
