"""Records as frames, and their results on a grid: for pandas, polars and xarray.

Each of the three is an extra, and imported by the function that needs it alone; so is what writes
Parquet files. Which records, and
where they come from, is left to the stores. Nothing here awaits; all of it may run in a thread.
"""

from entropic.export.frames import pandas_frame, polars_frame
from entropic.export.grid import Grid, grid_layout, load_result, xarray_grid
from entropic.export.limits import MAX_MISSING_BYTES
from entropic.export.packages import Package, needed
from entropic.export.parquet import write_parquet

__all__ = [
    "MAX_MISSING_BYTES",
    "Grid",
    "Package",
    "grid_layout",
    "load_result",
    "needed",
    "pandas_frame",
    "polars_frame",
    "write_parquet",
    "xarray_grid",
]
