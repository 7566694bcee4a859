"""What stands for nothing, in an array of any dtype."""

from collections.abc import Iterable
from typing import Any, Final


def able_to_miss(dtype: Any) -> Any:
    """The dtype that holds the same values, and a missing one, too.

    Ints and bools (1.0 and 0.0) become floats: float32 up to 16 bits, which it holds, as xarray
    does it; float64 else. Texts become objects.
    """
    import numpy as np

    if dtype.kind in "biu":
        return np.dtype("float32" if dtype.itemsize <= _BYTES_IN_FLOAT32 else "float64")
    return dtype if dtype.kind in "fcmMO" else np.dtype(object)


_BYTES_IN_FLOAT32: Final = 2


_EXACT_IN_FLOAT: Final = range(-(2**53), 2**53 + 1)


def are_exact_in_float(numbers: Iterable[int]) -> bool:
    """Whether float64 holds each of them, and each number next to it."""
    return all(number in _EXACT_IN_FLOAT for number in numbers)


def missing_value(dtype: Any) -> Any:
    """NaN; NaT among dates and time spans; NaN + NaNj among complex numbers."""
    import numpy as np

    if dtype.kind in "mM":
        return dtype.type("NaT")
    return complex(np.nan, np.nan) if dtype.kind == "c" else np.nan
