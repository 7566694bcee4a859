"""The formats that runs are written in, and who writes them: takes records, gives columns."""

import csv
import enum
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

from entropic.cli import output
from entropic.cli.columns import Column, rows_of
from entropic.cli.ending import UsageError
from entropic.export import needed, write_parquet
from entropic.models import Base


class Format(enum.StrEnum):
    """What ``export`` can write."""

    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class Writer(Protocol):
    """Takes records, some at a time."""

    def write(self, records: Sequence[Base]) -> None:
        """Some more."""
        ...

    def end(self) -> None:
        """There are no more."""
        ...


class Lines:
    """A line of names, and one for each record, with tabs.

    Args:
        columns: What of each.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        output.write_lines([[column.name for column in columns]])

    def write(self, records: Sequence[Base]) -> None:
        """Some more."""
        output.write_lines(rows_of(self._columns, records))

    def end(self) -> None:
        """Lines have no end."""


class Json:
    """A list of objects.

    Args:
        file: Where to.
        columns: What of each record.
    """

    def __init__(self, file: TextIO, columns: Sequence[Column]) -> None:
        self._list = output.JsonList(file)
        self._columns = columns

    def write(self, records: Sequence[Base]) -> None:
        """Some more."""
        for record in records:
            self._list.add({column.name: column.of(record) for column in self._columns})

    def end(self) -> None:
        """Close the list."""
        self._list.end()


@contextmanager
def opened(
    kind: Format, out: Path | None, columns: Sequence[Column], *, force: bool
) -> Iterator[Writer]:
    """What writes a format, to a file or to the output; the file is there when it is whole.

    A link stays one, and what it leads to is written; so does a pipe, or a device.

    Raises:
        UsageError: The file is there, or is a folder; or the format needs what is not installed,
            or a file.
    """
    if out is not None and out.is_dir():
        raise UsageError(f"{out} is a folder: say which file")
    if out is not None and out.is_file() and not force:
        raise UsageError(f"{out} is there already: --force overwrites it")
    if kind is Format.PARQUET:
        needed("polars", "a Parquet file")
        if out is None:
            raise UsageError("Parquet is no text: say where to with --output FILE")
    if out is None:
        writer = _of_text(kind, sys.stdout, columns)
        yield writer
        writer.end()
        return
    drafted = _handed_on if out.exists() and not out.is_file() else _whole
    with drafted(out) as draft:
        if kind is Format.PARQUET:
            writer = _Parquet(draft, columns)
            yield writer
            writer.end()
            return
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = _of_text(kind, file, columns)
            yield writer
            writer.end()


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A draft of a file, which gets its name at the end, or goes."""
    target = Path(os.path.realpath(out))
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(_mode(target))
        draft.replace(target)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


@contextmanager
def _handed_on(out: Path) -> Iterator[Path]:
    """A draft of what goes into a pipe or a device in the end."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft"
        yield draft
        with draft.open("rb") as whole, out.open("wb") as file:
            shutil.copyfileobj(whole, file)


def _mode(target: Path) -> int:
    """Who may do what with a file: as with the one in its place, or as with any new one."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _of_text(kind: Format, file: TextIO, columns: Sequence[Column]) -> Writer:
    return _Csv(file, columns) if kind is Format.CSV else Json(file, columns)


class _Csv:
    def __init__(self, file: TextIO, columns: Sequence[Column]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._columns = columns
        self._writer.writerow([column.name for column in columns])

    def write(self, records: Sequence[Base]) -> None:
        rows = rows_of(self._columns, records)
        self._writer.writerows([[_plain(value) for value in row] for row in rows])

    def end(self) -> None:
        """A CSV has no end."""


class _Parquet:
    """Whole columns, so that all records are kept until the end."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._path = path
        self._columns = columns
        self._records: list[Base] = []

    def write(self, records: Sequence[Base]) -> None:
        self._records += records

    def end(self) -> None:
        found = [one for column in self._columns for one in column.typed(self._records)]
        for name, times in Counter(one.name for one in found).items():
            if times > 1:
                raise UsageError(f"--columns: two columns are called {name!r}")
        write_parquet(found, self._path)


def _plain(value: Any) -> Any:
    """A value in a CSV: exact, and empty where there is none."""
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    if isinstance(value, datetime | date):
        return value.isoformat()
    return output.cell(value)
