"""Column types that read back equal on every database.

Each has its reason: SQLite keeps neither zones nor decimals, JSON neither arrays nor their types.
"""

import enum
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from entropic.errors import SchemaError

_Processor = Callable[[Any], Any] | None


class UtcDateTime(sa.TypeDecorator[datetime]):
    """Aware UTC datetimes. SQLite keeps no zone; a naive value, going in or out, is UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else as_utc(value)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else as_utc(value)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> _Processor:
        read = super().result_processor(dialect, coltype)
        assert read is not None

        def process(value: Any) -> Any:
            # As SQLite keeps it, which otherwise takes seven times as long to read.
            if type(value) is str and len(value) == _LENGTH_IN_SQLITE:
                try:
                    return datetime.fromisoformat(value + "+00:00")
                except ValueError:
                    pass
            return read(value)

        return process


_LENGTH_IN_SQLITE: Final = len("2026-01-31 12:00:00.000000")


def as_utc(value: datetime) -> datetime:
    """The same instant in UTC; a datetime without a zone is taken to be UTC already."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(str):
    """JSON that is text already: written off the event loop, where writing it takes long."""

    __slots__ = ()


class PlainJson(sa.TypeDecorator[Any]):
    """JSON whose ``None`` is the database's NULL; large texts are read a piece at a time."""

    # JSON, not JSONB: PostgreSQL's JSONB turns 1e300 into an integer.
    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> _Processor:
        def process(value: Any) -> str | None:
            if value is None:
                return None
            return str(value) if isinstance(value, JsonText) else json.dumps(value)

        return process

    def literal_processor(self, dialect: sa.Dialect) -> Callable[[Any], str] | None:
        write = self.bind_processor(dialect)
        quote: Any = sa.String().literal_processor(dialect)  # type: ignore[no-untyped-call]
        assert write is not None

        def process(value: Any) -> str:
            return str(quote(write(value)))

        return process

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> _Processor:
        # Some drivers read JSON themselves: a text that they return is none any more.
        if self.impl_instance.dialect_impl(dialect).result_processor(dialect, coltype) is None:
            return None

        def process(text: Any) -> Any:
            # SQLite hands a number that stands alone in a JSON column back as a number.
            if not isinstance(text, str):
                return text
            try:
                return load_json(text)
            except ValueError as reason:
                shown = repr(text if len(text) <= 120 else f"{text[:117]}...")
                raise SchemaError(
                    f"the database holds {shown} where the model has JSON, and it is none"
                    f" ({reason})"
                ) from None

        return process


class NumpyArray(PlainJson):
    """A numpy array, kept as nested JSON lists.

    It comes back with its values, and with the ``dtype`` of its annotation
    (``Mapped[NDArray[np.float32]]``) or else as int64, float64 or bool.
    """

    cache_ok = True

    def __init__(self, dtype: str | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"NumpyArray({self.dtype!r})"

    def bind_processor(self, dialect: sa.Dialect) -> _Processor:
        process_json = super().bind_processor(dialect)
        assert process_json is not None

        def process(value: Any) -> Any:
            return process_json(value.tolist() if hasattr(value, "tolist") else value)

        return process

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> _Processor:
        process_json = super().result_processor(dialect, coltype)

        def process(text: Any) -> Any:
            if text is None:
                return None
            import numpy as np

            values = text if process_json is None else process_json(text)
            return np.asarray(values, dtype=self.dtype)

        return process


class ExactDecimal(sa.TypeDecorator[Decimal]):
    """A decimal number as text: SQLite has no type of its own that keeps every digit."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Decimal | None:
        # A table of entropic 2 has numbers here.
        return None if value is None else Decimal(str(value))


class PathText(sa.TypeDecorator[Path]):
    """A path as the text it was spelled with."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Path | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Path | None:
        return None if value is None else Path(value)


class LiteralText(sa.Enum):
    """One of the texts of a ``Literal``; its column takes longer ones, too, that may yet come."""


@compiles(LiteralText)
def _of_any_length(*_: Any, **__: Any) -> str:
    return "VARCHAR"


class EnumValue(sa.TypeDecorator[enum.Enum]):
    """A member of an enum as its value, which run ids are made of: a name may change.

    The values themselves where all are texts, or else their JSON. Names are read, too: entropic 2
    stored them.
    """

    impl = sa.String
    cache_ok = True

    def __init__(self, enum_class: type[enum.Enum]) -> None:
        super().__init__()
        self.enum_class = enum_class
        are_texts = all(isinstance(member.value, str) for member in enum_class)
        in_json = {_value_json(member.value): member for member in enum_class}
        as_text = {str(m.value): m for m in enum_class if isinstance(m.value, str)}
        # The last one wins. The enum may have got its first value that is no text, or lost its
        # last one, since a row was stored.
        forms = (as_text, in_json)
        chosen, other = forms if are_texts else forms[::-1]
        if len(chosen) < len(enum_class):  # two values with one text, such as Decimal("1.0")'s
            chosen = {member.name: member for member in enum_class}
        self._members = {**enum_class.__members__, **other, **chosen}
        self._texts = {member.name: text for text, member in chosen.items()}

    def __repr__(self) -> str:
        return f"EnumValue({self.enum_class.__name__})"

    def member(self, value: object) -> enum.Enum | None:
        """The member that a value is, or is the text of; ``None`` for another text."""
        return self._members.get(value) if type(value) is str else _member_of(value)

    def texts(self, member: enum.Enum) -> list[str]:
        """All that a row may have for a member."""
        return [text for text, of in self._members.items() if of is member]

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        # A text in a query of the user's own is a value, a name or a pattern.
        member = self.member(value)
        return value if member is None else self._texts[member.name]

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> enum.Enum | None:
        if value is None:
            return None
        member = self._members.get(value)
        if member is None:
            raise SchemaError(
                f"the database holds {value!r} for a {self.enum_class.__name__}, which has no"
                " member with this value or name: give it one again"
            )
        return member


def _member_of(value: object) -> enum.Enum | None:
    return value if isinstance(value, enum.Enum) else None


def _value_json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_json_part)
    except (TypeError, ValueError):
        return repr(value)


def _json_part(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=_value_json)
    if isinstance(value, enum.Enum):
        return value.value
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value.tolist() if hasattr(value, "tolist") else str(value)


# json.loads holds the interpreter for the whole of a text; past this size (some 5 ms) it is read
# in pieces instead, so that an event loop in the same process stays alive.
_LARGE_JSON: Final = 256 * 1024
_PIECE: Final = 64 * 1024


def load_json(text: str) -> Any:
    """``json.loads``, except that other threads get their turn while a large text is read."""
    if len(text) >= _LARGE_JSON:
        return _InPieces().decode(text)
    try:  # json.loads looks for blanks first and last, which takes longer than a small text does
        value, end = _scan(text, 0)
    except StopIteration:
        value, end = None, -1
    return value if end == len(text) else json.loads(text)


_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class _InPieces(json.JSONDecoder):
    """The standard library's decoder in Python, as it does not hold the interpreter.

    It is slow, so a list of nothing but numbers is left to the fast one, a piece at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = json.decoder.JSONObject  # type: ignore[attr-defined]
        self.parse_array = _list
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def _list(text_and_start: tuple[str, int], scan_once: Any) -> tuple[list[Any], int]:
    text, start = text_and_start
    end = text.index("]", start)
    if any(text.find(mark, start, end) >= 0 for mark in '"[{'):
        found: tuple[list[Any], int] = json.decoder.JSONArray(text_and_start, scan_once)  # type: ignore[attr-defined]
        return found
    numbers: list[Any] = []
    while start < end:
        cut = text.find(",", start + _PIECE, end)
        cut = end if cut < 0 else cut
        numbers += json.loads(f"[{text[start:cut]}]")
        start = cut + 1
    return numbers, end + 1
