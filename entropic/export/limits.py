"""How large a grid may be: a sparse sweep of many parameters is soon larger than any memory."""

import math
import os
from collections.abc import Mapping
from typing import Final

from entropic.errors import ExportError
from entropic.models.showing import spell_bytes, spell_count

MAX_MISSING_BYTES: Final = 2**30
"""How many bytes points without a run may take, unless a caller says otherwise."""


def check_size(
    sizes: Mapping[str, int], count: int, bytes_per_point: int, max_missing_bytes: int
) -> None:
    """Refuse a grid that would take too much memory.

    Args:
        sizes: How long each dimension is.
        count: How many points have a run.
        bytes_per_point: What each point takes.
        max_missing_bytes: How many bytes all points without a run may take.

    Raises:
        ExportError: It would take more, or more than the machine has; says how much, and what
            to do.
    """
    points = math.prod(sizes.values())
    total, missing = points * bytes_per_point, max(points - count, 0) * bytes_per_point
    told = (
        f"the grid would have {spell_count(points)} points ({_dims(sizes)}) for {count:,} records,"
        f" and take {spell_bytes(total)}"
    )
    if missing > max_missing_bytes:
        raise ExportError(
            f"{told}, of which {spell_bytes(missing)} for points without a run: narrow it by a"
            " filter, name the parameters that are its dimensions (dims=[...]; the others become"
            " coordinates), lay it out by run (dims='id'), or allow it (max_missing_bytes=...)"
        )
    if total > _memory():
        raise ExportError(
            f"{told}, more than this machine's memory: narrow it by a filter, or let load return"
            " less"
        )


def _dims(sizes: Mapping[str, int]) -> str:
    shown = " x ".join(f"{name}: {size}" for name, size in [*sizes.items()][:_MOST_DIMS])
    left = len(sizes) - _MOST_DIMS
    return f"{shown} and {left:,} more" if left > 0 else shown


_MOST_DIMS: Final = 10


def _memory() -> float:
    """This machine's memory, in bytes; without end where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf
