"""Renames, removals and syncs that do just one thing, at once or not at all."""

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import Final


def fsync(path: str) -> None:
    """Write a file, or a folder's names, through to the disk.

    Raises:
        OSError: The disk failed. A file system that cannot sync folders is no failure: a run is
            worth more than the certainty of its name.
    """
    with opened(path) as descriptor:
        fsync_opened(descriptor)


def fsync_opened(descriptor: int) -> None:
    """The same, for what may have another path by now."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if not (is_folder and error.errno in _NOT_SUPPORTED):
            raise


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_plain(path: str, most: int, folder: int | None = None) -> bytes:
    """A regular file's content: no link's, no pipe's or device's, and nothing without end.

    Args:
        path: The file.
        most: The most bytes that it may have.
        folder: The descriptor of the folder that a relative path begins at.

    Raises:
        OSError: There is none, or something else.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, dir_fd=folder), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            raise OSError(errno.EINVAL, "it is no plain file, or far too large", path)
        return file.read(most)


def remove(path: str) -> None:
    """Remove a file or a folder, following no link; what is gone already is no error."""
    try:
        if is_folder(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def is_folder(path: str) -> bool:
    """Whether the path itself is a folder; a link to one is not.

    Raises:
        FileNotFoundError: There is nothing.
    """
    return stat.S_ISDIR(os.lstat(path).st_mode)


def move_to_free_name(source: str, target: str) -> None:
    """Rename, unless the target exists: ``os.rename`` would overwrite a file that came between.

    Raises:
        FileExistsError: There is something under that name, be it a dangling link.
    """
    failed = _renameat2(source, target, _NO_REPLACE)
    if failed in _NOT_SUPPORTED:
        _move_to_made_name(source, target)
    elif failed:
        raise OSError(failed, os.strerror(failed), source, None, target)


def replace(source: str, target: str, aside: str) -> None:
    """Put the source in the target's place in one step; what was there ends up in ``aside``.

    A rename cannot replace a folder that has content, so the two change places. Where the
    system cannot do that, there is a moment without the target.
    """
    if not os.path.lexists(target):
        os.replace(source, target)
        return
    old = set_aside_name(target, aside)
    if not (is_folder(source) or is_folder(target)):
        _keep(target, old)
        os.replace(source, target)
        return
    if not _renameat2(source, target, _EXCHANGE):
        os.rename(source, old)  # the new result's place in the stage never shows the old one
        return
    os.rename(target, old)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(old, target)
        raise


def put_back(target: str, source: str, aside: str) -> None:
    """Undo ``replace``, or a move to a free name; what was replaced has its name again."""
    old = set_aside_name(target, aside)
    if not os.path.lexists(old):
        os.rename(target, source)
    elif not _renameat2(old, target, _EXCHANGE):
        os.rename(old, source)
    else:
        os.rename(target, source)
        os.rename(old, target)


def set_aside_name(target: str, aside: str) -> str:
    """Where a path ends up in ``aside`` when it is replaced or taken out of its folder."""
    return os.path.join(aside, REPLACED + os.path.basename(target))


def _keep(target: str, old: str) -> None:
    """A second name for a file that is to be replaced, where the file system can give it one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(old)  # of an owner that was killed between this and the rename
    with contextlib.suppress(OSError):
        os.link(target, old, follow_symlinks=False)


def _move_to_made_name(source: str, target: str) -> None:
    """``move_to_free_name``, by making the target first, which only one can do."""
    if is_folder(source):
        os.mkdir(target)  # a rename over an empty folder is atomic; over anything else it fails
        try:
            os.rename(source, target)
        except OSError:
            os.rmdir(target)
            raise
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(source, target)
    else:
        os.unlink(source)


REPLACED: Final = ".replaced."
"""What the name of something set aside begins with."""

_AT_FDCWD: Final = -100
_NO_REPLACE: Final = 1
_EXCHANGE: Final = 2

# How file systems, and sandboxes, say that they do not know a call.
_NOT_SUPPORTED: Final = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EMLINK,
    errno.EBADF,
}


def _renameat2(source: str, target: str, flag: int) -> int:
    """Linux's rename with flags.

    Returns:
        0, or the number of the error; ``ENOSYS`` where there is no such call.
    """
    rename = _library_call()
    if rename is None:
        return errno.ENOSYS
    paths = os.fsencode(source), os.fsencode(target)
    done = rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(flag))
    return ctypes.get_errno() if done else 0


@functools.cache
def _library_call() -> Callable[..., int] | None:
    try:
        rename: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    return rename
