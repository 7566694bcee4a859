"""Renames, removals and syncs that do just one thing, at once or not at all."""

import ctypes
import errno
import os
import shutil
import stat
from typing import Final


def fsync(path: str) -> None:
    """Write a file, or a folder's names, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Remove a file or a folder, following no link; what is gone already is no error."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def move_to_free_name(source: str, target: str, *, is_folder: bool = False) -> None:
    """Rename, unless the target exists: ``os.rename`` would overwrite a file that came between."""
    if is_folder:
        os.mkdir(target)  # a rename over an empty folder is atomic; over anything else it fails
        os.rename(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(source, target)
    else:
        os.unlink(source)


_NO_HARD_LINKS: Final = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


def replace(source: str, target: str, aside: str) -> None:
    """Put the source in the target's place in one step; an old folder ends up in ``aside``.

    A rename cannot replace a folder that has content, so the two change places. Where the
    system cannot do that, there is a moment without the target.
    """
    if not os.path.lexists(target):
        os.rename(source, target)
    elif not os.path.isdir(source) and not os.path.isdir(target):
        os.replace(source, target)
    elif not _exchange(source, target):
        os.rename(target, os.path.join(aside, f".replaced.{os.path.basename(target)}"))
        os.rename(source, target)


_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def _exchange(one: str, other: str) -> bool:
    """Linux's renameat2: the two paths change places atomically; ``False`` where there is none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done = rename(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return bool(done == 0)
