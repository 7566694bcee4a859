"""Values, amounts and times as people are shown them: in few characters, which are only seen."""

import math
from typing import Final

_LONGEST: Final = 40  # characters of one value among others
_BYTES: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_SECONDS: Final = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
_COUNTABLE: Final = 10**18


def shown(value: object) -> str:
    """A value as it is shown among others: in few characters, whatever it is."""
    return cut(repr(value), _LONGEST)


def printable(text: str) -> str:
    """A text that does nothing to a terminal but be shown, in one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cut(text: str, most: int = _LONGEST) -> str:
    """A text, or its beginning."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def spell_count(count: int) -> str:
    """How many, be it more than a float can be large."""
    return f"{count:,}" if count < _COUNTABLE else f"about 10^{math.log10(count):.0f}"


def spell_bytes(count: int) -> str:
    """A size, in powers of 1000: ``1.5 GB``."""
    if count < 1000 or count >= _COUNTABLE:
        return f"{spell_count(count)} B"
    exponent = min(int(math.log10(count)) // 3, len(_BYTES) - 1)
    return f"{count / 1000**exponent:.1f} {_BYTES[exponent]}"


def spell_seconds(seconds: float) -> str:
    """A duration: ``1.5 minutes``."""
    for unit, length in _SECONDS:
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"
