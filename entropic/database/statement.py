"""Statements in SQLAlchemy's Core, compiled once, and run on the driver's own connection.

SQLAlchemy's async execute takes four hops, the driver's one. What that leaves to do, types do:
values are converted on their way there, and rows on their way back.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from entropic._shield import in_own_thread
from entropic.database.dialect import Dialect
from entropic.errors import SchemaError

# Texts of some rows that take longer to read, as JSON, than a loop may be held up.
_LARGE_TEXT: Final = 128 * 1024


class Statement:
    """A statement compiled once for a dialect, with the conversions of its types.

    Args:
        element: The statement.
        compiler: SQLAlchemy's dialect, as its engine has set it up.
        dialect: Knows what the driver returns.

    Attributes:
        sql: Its text.
        constants: The values that it has from the beginning, by the names they are bound under.
    """

    def __init__(
        self, element: sa.sql.ClauseElement, compiler: sa.Dialect, dialect: Dialect
    ) -> None:
        compiled = element.compile(dialect=compiler)
        assert isinstance(compiled, sa.sql.compiler.SQLCompiler)
        self.sql = compiled.string
        self.constants = compiled.params
        self._bound = compiled.positiontup or []
        writers = [
            compiled.binds[name].type.dialect_impl(compiler).bind_processor(compiler)
            for name in self._bound
        ]
        self._writers = [(at, write) for at, write in enumerate(writers) if write is not None]
        returned: Any = getattr(element, "selected_columns", None)
        if returned is None:
            returned = getattr(element, "exported_columns", None) or ()
        self._names = [str(column) for column in returned]
        readers = [dialect.reader(column.type, compiler) for column in returned]
        # Of most columns, what the driver returns is as it should be.
        self._readers = [(at, read) for at, read in enumerate(readers) if read is not None]

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values in the statement's order, as the driver takes them."""
        given = {**self.constants, **values}
        bound = [given[name] for name in self._bound]
        for at, write in self._writers:
            bound[at] = write(bound[at])
        return tuple(bound)

    async def typed(self, fetched: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
        """Fetched rows as their columns type them, off the loop where that takes long.

        Raises:
            SchemaError: A column's type cannot read what is stored; names column, row and value.
        """
        rows = list(fetched)
        # Large texts are JSON, most likely.
        characters = 0
        for at, _ in self._readers:
            characters += sum([len(row[at]) for row in rows if type(row[at]) is str])
        if characters > _LARGE_TEXT:
            return await in_own_thread(self.rows, rows)
        return self.rows(rows)

    def rows(self, fetched: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """The same, at once: in a thread.

        Raises:
            SchemaError: As above.
        """
        typed: list[Sequence[Any]] = []
        try:
            for row in fetched:
                values = list(row)
                for at, read in self._readers:
                    values[at] = read(values[at])
                typed.append(values)
            return typed
        except Exception as error:  # whatever a type of SQLAlchemy's, or of the user's own, raises
            raise self._unreadable(fetched, error) from error

    def _unreadable(self, fetched: Iterable[Sequence[Any]], error: Exception) -> SchemaError:
        for row in fetched:
            for at, read in self._readers:
                name, value = self._names[at], row[at]
                try:
                    read(value)
                except Exception as reason:
                    shown = repr(value) if len(repr(value)) <= 120 else f"{repr(value)[:117]}..."
                    return SchemaError(
                        f"{name} holds {shown} in the row of {row[0]!r}, which the model cannot"
                        f" read ({reason}): change the model back, or mend the row"
                    )
        return SchemaError(f"a row cannot be read: {error}")
