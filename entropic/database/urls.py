"""Database URLs: from what a user writes to what the async engine takes; secrets kept out."""

import importlib.util
import os
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from entropic.errors import SettingsError

_DRIVERS: Final = {"sqlite": "aiosqlite", "postgresql": "asyncpg", "postgres": "asyncpg"}
_EXTRAS: Final = {"asyncpg": "entropic[postgres]", "aiosqlite": "entropic"}
_SECRETS: Final = ("password", "passwd", "passfile", "sslpassword", "sslkey")


def async_url(db_url: str | sa.URL) -> sa.URL:
    """The URL with its async driver; a relative SQLite path is made absolute.

    Raises:
        SettingsError: It is no URL, names a database or driver that entropic cannot use, or its
            driver is not installed; says which extra to install.
    """
    try:
        url = sa.make_url(db_url)
    except (ArgumentError, TypeError):
        # The text itself stays out of the message: it may hold a password.
        raise SettingsError(
            "db_url is no database URL; write sqlite:///runs.sqlite3 (three slashes and a path)"
        ) from None
    database, _, driver = url.drivername.partition("+")
    expected = _DRIVERS.get(database)
    if expected is None:
        raise SettingsError(
            f"db_url names {database!r}, which entropic cannot use; use sqlite:///<path>"
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
    if database != "sqlite":
        raise SettingsError("this version of entropic keeps its runs in SQLite: sqlite:///<path>")
    return _absolute(url.set(drivername=f"{database}+{expected}"))


def masked(url: sa.URL) -> str:
    """The URL as text, without passwords: neither the user's nor one in the query."""
    kept = {key: "***" if key.lower() in _SECRETS else value for key, value in url.query.items()}
    return url.set(query=kept).render_as_string(hide_password=True)


def _absolute(url: sa.URL) -> sa.URL:
    path = url.database
    if not path or path == ":memory:" or path.startswith("file:"):
        return url
    return url.set(database=os.path.abspath(path))
