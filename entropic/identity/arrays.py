"""What an array column takes: numbers and bools, unchanged by its ``dtype`` and by JSON."""

from typing import Any

from entropic.identity.canonical import Unfit, alone, check_array, check_unmasked, is_numpy


def number_array(value: Any, dtype: str | None) -> Any:
    """A copy of the value as a numpy array, as it comes back from the database.

    Args:
        value: An array, or what numpy makes one of.
        dtype: The name of the column's ``dtype``, if it has one.

    Raises:
        Unfit: Something of it would be lost.
    """
    import numpy as np

    if isinstance(value, np.ndarray) and not is_numpy(value):
        raise Unfit("it may be more than its numbers, a unit say: pass np.asarray(...) of it")
    check_unmasked(value)
    try:
        array = np.array(value)  # a copy: the caller's may change while the run waits
    except (TypeError, ValueError, OverflowError) as reason:
        raise Unfit(f"it is no array ({reason})") from None
    if array.dtype.kind not in "biuf":
        raise Unfit(f"an array of {array.dtype!s:.120} is neither numbers nor bools")
    check_array(array)
    # JSON lists tell no further lengths once one of them is empty.
    if 0 in array.shape[:-1]:
        raise Unfit(f"its shape {array.shape} is lost in JSON, as it has no elements")
    if dtype is not None:
        return _cast(array, dtype)
    kept = array if is_number_type(array.dtype.str) else _cast(array, "float64")
    return kept if kept.ndim else np.array(alone(kept.item()))


def is_number_type(dtype: str) -> bool:
    """Whether JSON holds every digit of the numbers of a ``dtype``."""
    import numpy as np

    found = np.dtype(dtype)
    return found.kind in "biuf" and found.itemsize <= 8


def _cast(array: Any, dtype: str) -> Any:
    import numpy as np

    with np.errstate(all="ignore"):  # what does not fit is found by comparing
        cast = array.astype(dtype)
        # Both ways: compared as floats, 2**53 and 2**53 + 1 are equal.
        is_same = np.array_equal(cast, array) and np.array_equal(cast.astype(array.dtype), array)
    if not is_same:
        raise Unfit(f"its values would change as {cast.dtype}")
    return cast
