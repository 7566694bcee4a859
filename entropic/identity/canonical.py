"""Values as JSON: plain for storing, canonical for comparing, and as entropic 2 wrote them.

*Plain* keeps every digit and turns what JSON lacks into what it has: enums by value, tuples and
arrays as lists, sets sorted, dates as ISO 8601, UUIDs, paths and decimals as text. *Canonical* is
the compact text of that with sorted keys and floats at 15 significant digits.
"""

import enum
import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Set
from datetime import date, datetime
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final

from entropic.models import as_utc

INT64: Final = range(-(2**63), 2**63)

# tolist() holds the interpreter; this many elements take well under a millisecond.
_SLICE: Final = 4096


class Unfit(Exception):  # noqa: N818  never seen by users: the caller adds the column's name
    """A value that cannot be taken, and why."""


def plain(value: Any) -> Any:
    """A value in nothing but dicts with string keys, lists, strings, numbers, bools and ``None``.

    Raises:
        Unfit: JSON, or one of the databases, cannot hold it so that it reads back equal.
    """
    return _plain(value, 0)


def _plain(value: Any, depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912  a table of types
    if depth > 100:
        raise Unfit("it is nested more than 100 levels deep, or contains itself")
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return _plain(value.value, depth)
        case str():
            return checked_text(value)
        case int():
            return checked_int64(int(value))
        case float():
            return checked_finite(float(value))
        case Mapping():
            return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case Set():
            return sorted((_plain(item, depth + 1) for item in value), key=canonical)
        case datetime():
            return as_utc(value).isoformat()
        case date():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case PurePath():
            return checked_text(str(value))
        case Decimal():
            return decimal_text(value)
    if is_numpy(value):
        return _plain_numpy(value, depth)
    raise Unfit(f"a {type(value).__name__} has no JSON form: pass its fields, or a text, instead")


def _key(key: object) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return checked_text(key)
    raise Unfit(f"the key {key!r} is no string, and JSON has no other keys")


def is_numpy(value: object) -> bool:
    """Whether this is a numpy array or scalar; numpy is not imported to find out."""
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist")


def _plain_numpy(value: Any, depth: int) -> Any:
    if value.ndim == 0:
        return _plain(value.item(), depth)
    if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        check_array(value)
        return _nested(value)
    if value.dtype.kind in "fSUO":
        return [_plain(item, depth + 1) for item in value]
    raise Unfit(f"an array of {value.dtype} has no JSON form")


def check_array(array: Any) -> None:
    """Raise ``Unfit`` unless JSON and both databases can hold every number of the array."""
    if not array.size:
        return
    lowest, highest = array.min().item(), array.max().item()
    if array.dtype.kind in "iu" and not (lowest in INT64 and highest in INT64):
        raise Unfit("it holds an integer beyond 64 bits")
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise Unfit("it holds NaN or infinity, which JSON cannot")


def _nested(array: Any) -> list[Any]:
    """``tolist()`` in slices, so that other threads get their turn while a large array is read."""
    if array.size <= _SLICE:
        nested: list[Any] = array.tolist()
        return nested
    if array.ndim == 1:
        return [x for at in range(0, len(array), _SLICE) for x in array[at : at + _SLICE].tolist()]
    return [_nested(row) for row in array]


def checked_text(text: str) -> str:
    """The text, if both databases can keep it."""
    if "\0" in text:
        raise Unfit("it contains a NUL character, which PostgreSQL cannot keep")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit("it contains a lone surrogate, which is no Unicode text") from None
    return str(text)


def checked_int64(number: int) -> int:
    """The integer, if it fits 64 bits."""
    if number not in INT64:
        raise Unfit("it does not fit 64 bits")
    return number


def checked_finite(number: float) -> float:
    """The float, if JSON can hold it."""
    if not math.isfinite(number):
        raise Unfit(f"JSON cannot hold {number}")
    return number


def decimal_text(number: Decimal) -> str:
    """One text for each value: ``1.0``, ``1.00`` and ``1`` are ``1``."""
    if not number.is_finite():
        raise Unfit("it must be finite")
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return "0"
    exponent += len(significant) - len(stripped)
    shortest = Decimal((sign, tuple(map(int, stripped)), exponent))
    # Written out while that is readable; 1E+400 is not worth 400 zeros.
    return format(shortest, "f") if -40 <= exponent <= 40 else str(shortest)


def text_json(text: str) -> str:
    """A string as canonical JSON: ASCII, as entropic 2 wrote it."""
    return json.dumps(text)


def float_json(number: float) -> str:
    """A float as canonical JSON: 15 significant digits, so that 0.1 + 0.2 is 0.3."""
    if not math.isfinite(number):
        return "Infinity" if number > 0 else "-Infinity"
    rounded = float(f"{number:.15g}")
    if math.isinf(rounded):  # the largest floats would round over the edge
        rounded = number
    return repr(rounded + 0.0)  # -0.0 + 0.0 is 0.0


def canonical(value: Any) -> str:
    """The canonical JSON of a plain value, or of anything that ``plain`` takes."""
    pieces: list[str] = []
    _write(value, pieces)
    return "".join(pieces)


def _write(value: Any, pieces: list[str]) -> None:
    # Exact types first: they are what a stored or coerced value is made of.
    kind = type(value)
    if kind is float:
        pieces.append(float_json(checked_finite(value)))
    elif kind is str:
        pieces.append(text_json(value))
    elif kind is bool:
        pieces.append("true" if value else "false")
    elif kind is int:
        pieces.append(str(value))
    elif value is None:
        pieces.append("null")
    elif kind is list:
        _write_list(value, pieces)
    elif kind is dict and all(type(key) is str for key in value):
        separator = "{"
        for key in sorted(value):
            pieces.append(f"{separator}{text_json(key)}:")
            _write(value[key], pieces)
            separator = ","
        pieces.append("}" if value else "{}")
    else:
        _write(plain(value), pieces)


def _write_list(items: list[Any], pieces: list[str]) -> None:
    separator = "["
    for item in items:
        pieces.append(separator)
        _write(item, pieces)
        separator = ","
    pieces.append("]" if items else "[]")


def json_pieces(value: Any) -> Iterator[str]:
    """A plain value as JSON text with every digit, in pieces.

    ``json.dumps`` would hold the interpreter for the whole of a large list.
    """
    if type(value) is list and value:
        separator = "["
        for at in range(0, len(value), _SLICE):
            for item in value[at : at + _SLICE]:
                yield separator
                yield from json_pieces(item)
                separator = ", "
        yield "]"
    else:
        yield json.dumps(value)


_RESERVED_2X: Final = frozenset({"result_file", "created_at", "custom_data"})


def id_2x(params: Mapping[str, Any]) -> str | None:
    """The id that entropic 2 gave these params as they were passed; ``None`` where it had none.

    Its rule, found by trying the published 2.3.0: compact JSON with sorted keys of the params;
    floats rounded to 12 decimals, enums by value, whatever JSON lacks by ``str``.
    """
    kept = {key: value for key, value in params.items() if key not in _RESERVED_2X}
    try:
        text = json.dumps(_plain_2x(kept), sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain_2x(value: Any) -> Any:
    if isinstance(value, float):
        return round(float(value), 12)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {key: _plain_2x(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_2x(item) for item in value]
    if isinstance(value, enum.Enum):
        return _plain_2x(value.value)
    return str(value)
