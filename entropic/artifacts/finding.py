"""Looking for results: is it there, is it whole, and is it the one that is meant.

Paths come as their users spelled them; nothing here is changed.
"""

import functools
import os
import stat
from dataclasses import dataclass
from typing import Final

from entropic.artifacts.corner import PRIVATE
from entropic.artifacts.stage import digest as content_digest
from entropic.errors import ResultsDirError

_CLOCKS_SECONDS: Final = 0.01  # a file system's clock is a few milliseconds behind


@dataclass(slots=True)  # frozen, to make one of each hit would take six times as long
class Found:
    """A result that is on disk.

    Attributes:
        size: Its bytes; ``None`` for a folder, whose size is not looked up at each hit.
    """

    size: int | None


def find(path: str) -> Found | None:
    """The result at a path: a file with content, or a folder that is not empty; else ``None``."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                return Found(None) if any(entries) else None
    except (OSError, ValueError):  # no path at all, which another program may have written
        return None
    return Found(status.st_size) if status.st_size else None


def locate_registered(id: str, stored: str, registered: str, size: int | None) -> str | None:
    """Where a registered result is: by the path that was given, where that still leads there."""
    candidates = [stored] if _absolute(stored) == registered else [registered, stored]
    for path in candidates:
        if is_whole(path, size):
            return path
    if any(os.path.isdir(os.path.dirname(path) or ".") for path in candidates):
        return None
    raise ResultsDirError(
        f"the run {id} is registered with a result in {os.path.dirname(registered)!r}, and that"
        " folder is not there: mount it, or register it again where it is now; if the result is"
        " gone for good, delete its row",
        path=registered,
    )


def is_whole(path: str, size: int | None) -> bool:
    """Whether there is a result, of that many bytes where the number is known."""
    found = find(path)
    return found is not None and (size is None or found.size == size)


def digest_of(path: str) -> str | None:
    """The SHA-256 of a result as it is now; ``None`` where it cannot be read."""
    try:
        return content_digest(path)
    except OSError:
        return None


def size_of(path: str) -> int:
    """The bytes of a file, or of all files in a folder; 0 where there is nothing."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return os.stat(path).st_size
    except OSError:
        return 0
    return sum(
        size_of(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names
    )


def is_from(path: str, digest: str | None, started_at: float | None) -> bool:
    """Whether a result is that of a run, as far as can be told: by its content, or by its age."""
    if digest is None:
        return written_since(path, started_at)
    try:
        status = os.stat(path)
        found = _digest_of(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return found == digest
    except OSError:
        return False


@functools.lru_cache(maxsize=1 << 16)
def _digest_of(path: str, *_: int) -> str:
    """Not at each hit: a large one takes long, and is the same as long as its status is."""
    return content_digest(path)


def written_since(path: str, started_at: float | None) -> bool:
    """Whether there is something, no older than a run that started then, where that is known."""
    try:
        written = os.lstat(path).st_mtime
        return started_at is None or written >= started_at - _CLOCKS_SECONDS
    except (OSError, ValueError):
        return False


def holds_results(folder: str) -> bool:
    """Whether there is anything in a folder but entropic's private corner."""
    try:
        with os.scandir(folder or ".") as entries:
            return any(entry.name != PRIVATE for entry in entries)
    except OSError:
        return False


def working_directory() -> str | None:
    """The working directory; ``None`` where it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _absolute(path: str) -> str | None:
    start = "/" if os.path.isabs(path) else working_directory()
    return None if start is None else os.path.normpath(os.path.join(start, path))
