"""How records look: a line in a terminal, a table in a notebook, and so do lists of them.

A record is shown by its id, its parameters and the path of its result.
"""

import html
from collections.abc import Iterable, Mapping
from typing import Any, Final, SupportsIndex, TypeVar, overload

from entropic.models.showing import cut, printable

_LONGEST_VALUE: Final = 200  # characters of one value, in a line of its own
_MOST_ROWS: Final = 20
_STYLE: Final = ' style="text-align: left"'

R = TypeVar("R")


class Records(list[R]):
    """A list of records that shows itself as a table."""

    __slots__ = ()

    @overload
    def __getitem__(self, at: SupportsIndex, /) -> R: ...

    @overload
    def __getitem__(self, at: slice, /) -> "Records[R]": ...

    def __getitem__(self, at: Any, /) -> Any:
        found = super().__getitem__(at)
        return Records(found) if isinstance(at, slice) else found

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        return "\n".join([self._title(), *table, *self._rest()])

    def _repr_html_(self) -> str:
        rows = (_html_row(row, "td" if at else "th") for at, row in enumerate(self._rows()))
        table = f"<table><tbody>{''.join(rows)}</tbody></table>"
        rest = "".join(f"<p>{line}</p>" for line in self._rest())
        return f"<p>{html.escape(self._title())}</p>{table}{rest}"

    def _title(self) -> str:
        kinds = sorted({type(record).__name__ for record in self})
        of = f" of {' and '.join(kinds)}" if kinds else ""
        return f"{len(self):,} record{'' if len(self) == 1 else 's'}{of}"

    def _rest(self) -> list[str]:
        left = len(self) - _MOST_ROWS
        return [f"... and {left:,} more"] if left > 0 else []

    def _rows(self) -> list[list[str]]:
        """The names of the fields, and the cells of the first records."""
        shown: list[Mapping[str, Any]] = [_fields(record) for record in self[:_MOST_ROWS]]
        names = list(dict.fromkeys(name for fields in shown for name in fields))
        cells = [
            [_cell(fields[name]) if name in fields else "" for name in names] for fields in shown
        ]
        return [names, *cells] if shown else []


class NotLoaded:
    """Stands for a value that a session has not loaded."""

    def __repr__(self) -> str:
        return "<not loaded>"


def line_of(name: str, fields: Mapping[str, Any]) -> str:
    """A record in one line."""
    shown = (f"{name}={cut(repr(value), _LONGEST_VALUE)}" for name, value in fields.items())
    return f"{name}({', '.join(shown)})"


def html_of(name: str, fields: Mapping[str, Any]) -> str:
    """A record as a table of two columns."""
    rows = (
        f"<tr><th{_STYLE}>{html.escape(field)}</th>"
        f"<td{_STYLE}>{html.escape(cut(_text(value), _LONGEST_VALUE))}</td></tr>"
        for field, value in fields.items()
    )
    return f"<p>{html.escape(name)}</p><table><tbody>{''.join(rows)}</tbody></table>"


def _fields(record: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = record._fields()
    return fields


def _html_row(cells: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}{_STYLE}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _cell(value: object) -> str:
    # In one line, whatever is in it.
    return cut(printable(" ".join(_text(value).split())))


def _text(value: object) -> str:
    return value if type(value) is str else repr(value)
