"""Database URLs: from what a user writes to what the async engine takes; secrets kept out."""

import importlib.util
import os
import re
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from entropic.errors import SettingsError

_DRIVERS: Final = {"sqlite": "aiosqlite", "postgresql": "asyncpg", "postgres": "asyncpg"}
_EXTRAS: Final = {"asyncpg": "entropic[postgres]", "aiosqlite": "entropic"}

# In names of options of any driver. Hiding one too many costs nothing.
_SECRET: Final = re.compile("pass|pwd|secret|token|key|auth|credential", re.IGNORECASE)


def async_url(db_url: str | os.PathLike[str] | sa.URL) -> sa.URL:
    """The URL with its async driver; a relative SQLite path is made absolute.

    Args:
        db_url: A URL, or the path of a SQLite database.

    Raises:
        SettingsError: It is no URL, names a database or driver that entropic cannot use, or its
            driver is not installed; says which extra to install.
    """
    url = _parsed(db_url)
    database, _, driver = url.drivername.partition("+")
    expected = _DRIVERS.get(database)
    if expected is None:
        raise SettingsError(
            f"db_url names {database!r}, which entropic cannot use; use sqlite:///<path> or"
            " postgresql://<user>@<host>/<database>"
        )
    if driver not in ("", expected, "pysqlite", "psycopg2", "psycopg"):
        raise SettingsError(
            f"db_url names the driver {driver!r}; entropic uses {expected!r}: leave the driver out"
        )
    if importlib.util.find_spec(expected) is None:
        raise SettingsError(
            f"db_url needs the driver {expected!r}, which is not installed:"
            f" pip install '{_EXTRAS[expected]}'"
        )
    if database == "sqlite":
        from entropic.database import sqlite

        return sqlite.settled(url.set(drivername="sqlite+aiosqlite"))
    from entropic.database import postgresql

    return postgresql.settled(url.set(drivername="postgresql+asyncpg"))


def reading_url(db_url: str | os.PathLike[str] | sa.URL, *, may_mend: bool = False) -> sa.URL:
    """The same for who only reads: nothing is written by it, and no database made.

    Args:
        db_url: A URL, or the path of a SQLite database.
        may_mend: Whether SQLite may undo what a crash has left in the middle of a transaction.

    Raises:
        SettingsError: As above; or there is no such database, as far as can be seen.
    """
    url = async_url(db_url)
    if url.get_backend_name() != "sqlite":
        return url  # a server makes no databases; to read takes no right to write
    from entropic.database import sqlite

    return sqlite.for_reading(url, may_mend=may_mend)


def file_of(url: sa.URL) -> str | None:
    """The file that a database is, settled before; ``None`` for one on a server."""
    if url.get_backend_name() != "sqlite":
        return None
    return (url.database or "").removeprefix("file:")


def masked(url: sa.URL) -> str:
    """The URL as text, without passwords: neither the user's nor one in the query."""
    hidden = {key: "***" for key in url.query if _SECRET.search(key)}
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
    return shown.replace("%2A%2A%2A", "***")


def _parsed(db_url: str | os.PathLike[str] | sa.URL) -> sa.URL:
    if isinstance(db_url, os.PathLike):
        return sa.URL.create("sqlite", database=os.fspath(db_url))
    try:
        return sa.make_url(db_url)
    except (ArgumentError, TypeError, ValueError):
        # The text itself stays out of the message: it may hold a password.
        raise SettingsError(
            "db_url is no database URL; write sqlite:///runs.sqlite3 (three slashes and a path)"
        ) from None
