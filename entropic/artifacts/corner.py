"""The private corner of a results folder: where runs are staged, and the folder's own id.

<results_dir>/.entropic/folder          the id
<results_dir>/.entropic/staging/        see the module stage
"""

import os
import stat
import uuid
from typing import Final

from entropic.artifacts.moves import move_to_free_name, read_plain
from entropic.errors import ResultsDirError

PRIVATE: Final = ".entropic"

_MOST_BYTES: Final = 1000  # of an id


def staging(results: str) -> str:
    """Where the runs of a results folder are staged."""
    return os.path.join(results, PRIVATE, "staging")


def make(results: str) -> str:
    """Make what is missing.

    Returns:
        The folder's own id.

    Raises:
        ResultsDirError: A link, or a file, is in the corner's place.
        OSError: The file system refused.
    """
    for path in (os.path.join(results, PRIVATE), staging(results)):
        try:
            os.mkdir(path, 0o770)
            _restrict(path, results)
        except FileExistsError:
            check_folder(path)
    return folder_id(results) or _give_id(results)


def folder_id(results: str) -> str | None:
    """The id of a results folder; ``None`` where it has none."""
    try:
        return read_plain(_id_path(results), _MOST_BYTES).decode("ascii") or None
    except (OSError, UnicodeError):
        return None


def _restrict(path: str, results: str) -> None:
    """0700, unless the results folder and the umask both share with the group."""
    if not os.stat(results).st_mode & os.stat(path).st_mode & stat.S_IWGRP:
        os.chmod(path, 0o700)


def check_folder(path: str) -> None:
    """Raise where one of the private corner's folders is none, but a link to elsewhere."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISDIR(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "not a folder"
        raise ResultsDirError(
            f"{path} is {what}; it must be a folder of entropic's own, so that nothing is written"
            " elsewhere; remove it",
            path=path,
        )


def _give_id(results: str) -> str:
    path = _id_path(results)
    draft = f"{path}.{uuid.uuid4().hex}"
    with open(draft, "x", encoding="ascii") as file:
        file.write(uuid.uuid4().hex)
        file.flush()
        os.fsync(file.fileno())
    try:
        move_to_free_name(draft, path)
    except FileExistsError:
        if _is_empty(path):  # lost in a power failure
            os.replace(draft, path)
        else:  # another store named it first
            os.unlink(draft)
    given = folder_id(results)
    if given is None:
        raise ResultsDirError(
            f"{path} is not the short text that entropic keeps there, the folder's own id; remove"
            " it, and the folder gets a new one",
            path=path,
        )
    return given


def _is_empty(path: str) -> bool:
    about = os.lstat(path)
    return stat.S_ISREG(about.st_mode) and not about.st_size


def _id_path(results: str) -> str:
    return os.path.join(results, PRIVATE, "folder")
