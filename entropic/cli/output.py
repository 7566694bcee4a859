"""What a command prints: a table on a terminal, lines with tabs into a pipe, or JSON.

A table is cut to the terminal; what is piped is whole, a row a line, and has no colours.
"""

import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entropic.models.showing import printable

ROWS_ON_A_TERMINAL: Final = 100
"""How many rows a terminal gets, unless it asks for more."""


_GAP: Final = 2  # characters between columns

_LEAST: Final = 8  # of a column that is cut: fewer tell nothing


def is_terminal() -> bool:
    """Whether somebody watches."""
    return sys.stdout.isatty()


def write_rows(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Some rows of values, with a line of names above them; a terminal gets none of no rows."""
    if not is_terminal():
        write_lines([names, *rows])
        return
    listed = [list(row) for row in rows]
    if not listed:
        return
    columns = list(zip(*listed, strict=True))
    shown = [[Text(printable(_short(value))) for value in row] for row in [list(names), *listed]]
    needed = [max(text.cell_len for text in column) for column in zip(*shown, strict=True)]
    console = _console()
    whole = {0, *(at for at, name in enumerate(names) if name == "id")}
    count = fitting(needed, console.width, whole)
    given = widths(needed[:count], console.width - _GAP * (count - 1), whole)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for at, width in enumerate(given):
        is_number = any(map(_is_number, columns[at]))
        justify: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(
            shown[0][at], width=width, justify=justify, no_wrap=True, overflow="ellipsis"
        )
    for row in shown[1:]:
        table.add_row(*row[:count])
    console.print(table)
    if count < len(names):
        left_out = ", ".join(names[count:])
        note(f"the terminal is too narrow for {len(names) - count} more: {left_out}")


def fitting(needed: Sequence[int], most: int, whole: Collection[int] = (0,)) -> int:
    """How many columns there is room for, from the first on: cut, but not to nothing.

    Args:
        needed: What each would need.
        most: What there is, with the gaps between them.
        whole: The places of those that are never cut.
    """
    total = -_GAP
    for at, width in enumerate(needed):
        total += _GAP + (width if at in whole else min(width, _LEAST))
        if total > most:
            return max(at, 1)
    return len(needed)


def widths(needed: Sequence[int], most: int, whole: Collection[int] = (0,)) -> list[int]:
    """How wide columns are, so that together they have no more: the widest are cut, all alike.

    Args:
        needed: What each would need.
        most: What there is.
        whole: The places of those that are never cut, as an id cut short is of no use.
    """
    rest = [width for at, width in enumerate(needed) if at not in whole]
    left = most - sum(needed) + sum(rest)
    cut = max(rest, default=0)
    while cut > 1 and sum(min(width, cut) for width in rest) > left:
        cut -= 1
    spare = left - sum(min(width, cut) for width in rest)  # what dividing has left over
    given = []
    for at, width in enumerate(needed):
        if at in whole or width <= cut:
            given.append(width)
            continue
        given.append(cut + (spare > 0))
        spare -= 1
    return given


def write_fields(fields: Mapping[str, Any]) -> None:
    """One thing, a line for each of its fields."""
    if not is_terminal():
        for name, value in fields.items():
            sys.stdout.write(f"{_escaped(name)}\t{_escaped(value)}\n")
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(Text(printable(name)), Text(printable(cell(value))))
    _console().print(table)


def write_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(_json_text(value, indent=2) + "\n")


class JsonList:
    """A JSON list that is written as its items come: there may be many.

    Args:
        file: Where to.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._count = 0

    def add(self, item: Any) -> None:
        """One more."""
        text = _json_text(item)
        self._file.write(f"{',' if self._count else '['}\n  {text}")
        self._count += 1

    def end(self) -> None:
        """Close it."""
        self._file.write("\n]\n" if self._count else "[]\n")


def _json_text(value: Any, indent: int | None = None) -> str:
    """Texts as they are, but for what does something to a terminal: that JSON can escape."""
    text = json.dumps(as_json(value), indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def write_lines(rows: Iterable[Sequence[Any]]) -> None:
    """Some lines of what is piped."""
    for row in rows:
        sys.stdout.write("\t".join(_escaped(value) for value in row) + "\n")


def _escaped(value: Any) -> str:
    """A value as text that can be read back: what is escaped begins with the only backslash."""
    return printable(cell(value).replace("\\", "\\\\"))


def write_text(text: str) -> None:
    """Some lines of text, whatever is in them."""
    sys.stdout.write("\n".join(map(printable, text.splitlines())) + "\n")


def as_json(value: Any) -> Any:  # noqa: PLR0911  a table of types
    """A value as JSON has it: times in ISO 8601, what is no number of JSON's as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case datetime() | date():
            return value.isoformat()
        case Mapping():
            return {str(key): as_json(one) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [as_json(one) for one in value]
        case bytes():
            return value.hex()
    return str(value)


def cell(value: Any) -> str:  # noqa: PLR0911  a table of types
    """A value as text, in one line."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case float():
            return repr(value)
        case datetime():
            return _moment_text(value)
        case Mapping() | list() | tuple():
            return _json_text(value)
    return str(as_json(value))


def _moment_text(moment: datetime) -> str:
    at = moment if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}{'' if moment.tzinfo is None else 'Z'}"


def _short(value: Any) -> str:
    """The same, in a table for people: a float by the 15 digits that its run id is made of."""
    return f"{value:.15g}" if isinstance(value, float) else cell(value)


def note(text: str) -> None:
    """A remark for whoever watches; not a part of the output."""
    if is_terminal():
        sys.stderr.write(f"{text}\n")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
