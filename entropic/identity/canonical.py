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
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final

from entropic.models import as_utc

INT64: Final = range(-(2**63), 2**63)

# tolist() holds the interpreter; this many elements take well under a millisecond.
_SLICE: Final = 4096
_HASHED_AT_ONCE: Final = 2047


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
            return _plain_mapping(value, depth)
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case Set():
            return sorted((_plain(item, depth + 1) for item in value), key=canonical)
        case datetime():
            return checked_utc(value).isoformat()
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
    raise Unfit(f"{type(value).__name__} has no JSON form: pass its fields, or a text, instead")


def alone(value: Any) -> Any:
    """A plain value as a JSON column gives it back where it is all that the column holds.

    SQLite keeps a number there as a number: 5.0 comes back as 5.
    """
    if isinstance(value, float) and value.is_integer() and int(value) in INT64:
        return int(value)
    return value


def _plain_mapping(mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    found = {_key(key): _plain(item, depth + 1) for key, item in mapping.items()}
    if len(found) != len(mapping):
        raise Unfit("two of its keys are the same text in JSON")
    return found


def _key(key: object) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return checked_text(key)
    raise Unfit(f"the key {key!r:.120} is no string, and JSON has no other keys")


def is_numpy(value: object) -> bool:
    """Whether this is a numpy array or scalar; numpy is not imported to find out."""
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist")


def _plain_numpy(value: Any, depth: int) -> Any:
    if value.ndim == 0:
        return _plain(numpy_item(value), depth + 1)
    check_unmasked(value)
    import numpy as np

    array = np.asarray(value)  # the rows of a matrix are matrices
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        check_array(array)
        return _nested(array)
    if array.dtype.kind in "fMUO":
        return [_plain(item, depth + 1) for item in array]
    raise Unfit(f"an array of {array.dtype!s:.120} has no JSON form")


def numpy_item(value: Any) -> Any:
    """The Python object that a numpy scalar, or an array without dimensions, stands for.

    Raises:
        Unfit: There is none that says as much.
    """
    check_unmasked(value)
    kind = value.dtype.kind
    if kind == "M":
        return _datetime64_item(value)
    if kind not in "biufUO":
        # A timedelta64 among them: its item() is a bare number, whatever the unit.
        raise Unfit(f"a {value.dtype!s:.120} has no JSON form")
    if kind == "f" and value.dtype.itemsize > 8:
        number = float(value)
        if number != value and not math.isnan(number):
            raise Unfit("a float does not hold all of its digits")
        return number
    return value.item()


def _datetime64_item(value: Any) -> date | datetime:
    # Finer than microseconds, item() is a bare number of them.
    coarse = value.dtype.name in {f"datetime64[{unit}]" for unit in "YMWD"}
    moment = value if coarse else value.astype("datetime64[us]")
    item = moment.item()
    if not isinstance(item, date):
        raise Unfit("it is no date between the years 1 and 9999")
    if moment != value:
        raise Unfit("it is finer than microseconds")
    return item


def check_unmasked(value: Any) -> None:
    """Raise ``Unfit`` if this is a numpy array with masked elements: they have no value."""
    mask = getattr(value, "mask", None)
    if mask is not None and mask.any():
        raise Unfit("it has masked elements: fill them in")


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
    if type(text) is str and text.isascii():
        return text
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


def checked_utc(moment: datetime) -> datetime:
    """The same instant in UTC, as a ``datetime`` itself and not a subclass of it."""
    try:
        utc = as_utc(moment)
        exact = datetime(*utc.timetuple()[:6], utc.microsecond, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Unfit("it is no instant between the years 1 and 9999 in UTC") from None
    if exact != utc:  # as a pandas.Timestamp can be
        raise Unfit("it is finer than microseconds")
    return exact


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


# What json.dumps calls, which looks at all its options first.
_encoder: Final = json.JSONEncoder()


def text_json(text: str) -> str:
    """A string as canonical JSON: ASCII, as entropic 2 wrote it."""
    return _encoder.encode(text)


# With its point, and a digit before it, such a text has 15 significant digits at most.
_SURELY_SHORT: Final = 16
_ODD_FLOATS: Final = frozenset(("nan", "inf", "-inf", "-0.0"))


def short_float_json(number: float) -> str | None:
    """The canonical JSON of a float that Python writes in a few digits; ``None`` for others."""
    text = repr(number)
    return text if len(text) <= _SURELY_SHORT and text not in _ODD_FLOATS else None


def float_json(number: float) -> str:
    """A float as canonical JSON: 15 significant digits, so that 0.1 + 0.2 is 0.3."""
    short = short_float_json(number)
    if short is not None:
        return short
    if not math.isfinite(number):
        return "Infinity" if number > 0 else "-Infinity"
    rounded = float(f"{number:.15g}")
    if math.isinf(rounded):  # the largest floats would round over the edge
        rounded = number
    return repr(rounded + 0.0)  # -0.0 + 0.0 is 0.0


def canonical(value: Any) -> str:
    """The canonical JSON of a plain value, or of a checked one that ``plain`` takes."""
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
    for at in range(0, len(items), _SLICE):
        begin = len(pieces)
        for item in items[at : at + _SLICE]:
            pieces.append(separator)
            _write(item, pieces)
            separator = ","
        # Joined as they come: to join, and to free, a million pieces in one go takes 50 ms.
        pieces[begin:] = ["".join(pieces[begin:])]
    pieces.append("]" if items else "[]")


def json_pieces(value: Any) -> Iterator[str]:
    """A plain value as JSON text with every digit, in pieces.

    ``json.dumps`` would hold the interpreter for the whole of a large value.
    """
    if type(value) is dict and any(map(_is_nested, value.values())):
        separator = "{"
        for key, item in value.items():
            yield f"{separator}{json.dumps(key)}: "
            yield from json_pieces(item)
            separator = ", "
        yield "}"
    elif type(value) is list and value:
        separator = "["
        for at in range(0, len(value), _SLICE):
            items = value[at : at + _SLICE]
            if not any(map(_is_nested, items)):
                yield separator + json.dumps(items)[1:-1]
                separator = ", "
                continue
            for item in items:
                yield separator
                yield from json_pieces(item)
                separator = ", "
        yield "]"
    else:
        yield json.dumps(value)


def _is_nested(value: Any) -> bool:
    return type(value) is list or type(value) is dict


_RESERVED_2X: Final = frozenset({"result_file", "created_at", "custom_data"})


def id_2x(params: Mapping[str, Any]) -> str | None:
    """The id that entropic 2 gave these params as they were passed; ``None`` where it had none.

    Its rule, found by trying the published 2.3.0: compact JSON with sorted keys of the params;
    floats rounded to 12 decimals, enums by value, whatever JSON lacks by ``str``.
    """
    kept = {key: value for key, value in params.items() if key not in _RESERVED_2X}
    try:
        text = json.dumps(_plain_2x(kept), sort_keys=True, separators=(",", ":"))
    except Exception:  # whatever its text or its keys raised, entropic 2 failed there, too
        return None
    return sha256(text)[:16]


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


def sha256(text: str) -> str:
    """The digest of a text, in hexadecimal.

    hashlib lets the interpreter go for more than so many bytes at once, for some microseconds. A
    thread that hashes one such text after another thereby keeps all others from it: each time they
    wake, it is taken again, and their five milliseconds begin anew.
    """
    if len(text) <= _HASHED_AT_ONCE and text.isascii():
        return hashlib.sha256(text.encode()).hexdigest()
    encoded = memoryview(text.encode())
    digest = hashlib.sha256()
    for start in range(0, len(encoded), _HASHED_AT_ONCE):
        digest.update(encoded[start : start + _HASHED_AT_ONCE])
    return digest.hexdigest()
