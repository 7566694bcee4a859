"""Times and sizes as people write them: ``30d``, ``10GB``."""

import math
import re
from collections.abc import Mapping
from typing import Final

from entropic.cli.ending import UsageError
from entropic.models.showing import cut

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000 ** (at + 1) for at, letter in enumerate("kmgtp")},
    **{f"{letter}ib": 1024 ** (at + 1) for at, letter in enumerate("kmgtp")},
}
_AMOUNT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def seconds(option: str, text: str | None) -> float | None:
    """A time in seconds; ``None`` where none is given.

    Raises:
        UsageError: It is no time.
    """
    if text is None:
        return None
    found = _AMOUNT.fullmatch(text)
    if found and found[2] != found[2].lower() and found[2].lower() in _SECONDS:
        raise UsageError(
            f"{option} has {found[2]!r} for a unit: say s (seconds), m (minutes), h (hours),"
            " d (days), w (weeks); there are no months"
        )
    return _amount(option, text, {**_SECONDS, "": 0} if text.strip() == "0" else _SECONDS, "30d")


def size(option: str, text: str | None) -> int | None:
    """A size in bytes; ``None`` where none is given.

    Raises:
        UsageError: It is no size.
    """
    return None if text is None else int(_amount(option, text, _BYTES, "10GB"))


def _amount(option: str, text: str, units: Mapping[str, int], example: str) -> float:
    found = _AMOUNT.fullmatch(text)
    unit = None if found is None else units.get(found[2].lower())
    if found is None or unit is None:
        known = ", ".join(name for name in units if name)
        raise UsageError(
            f"{option} is a number and a unit ({known}), as in {example}, not {text!r}"
        )
    amount = float(found[1]) * unit
    if not math.isfinite(amount):
        raise UsageError(f"{option} is more than can be counted: {cut(text)}")
    return amount
