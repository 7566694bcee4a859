"""Everything that touches ``results_dir``: stage, publish, find, discard.

A run writes into a staging folder of its own; its result appears under its final name in one
rename, or never. Nothing here knows a database: which names are ours is told by the caller.

    <results_dir>/<id><suffix>              a result
    <results_dir>/<id>.files/               what else its runner left
    <results_dir>/.entropic/folder          the folder's own id
    <results_dir>/.entropic/staging/        see the module stage
"""

import contextlib
import errno
import itertools
import os
import stat
import uuid
from dataclasses import dataclass
from typing import Final

from entropic.artifacts.moves import fsync, move_to_free_name, remove, replace
from entropic.artifacts.stage import COMPANIONS, Stage, Staged
from entropic.errors import ResultsDirError

__all__ = ["COMPANIONS", "Found", "ResultsFolder", "Stage", "Staged", "find", "remove_registered"]

PRIVATE: Final = ".entropic"


class ResultsFolder:
    """One results folder: the names in it, and its private corner.

    Args:
        spelled: The path as the user spelled it; records give paths through it.
        suffix: What every result's name ends with.

    Attributes:
        id: The folder's own id, which moves with it; empty until it is opened.
    """

    def __init__(self, spelled: str | os.PathLike[str], suffix: str) -> None:
        self.spelled = os.fspath(spelled)
        self.suffix = suffix
        self.path = os.path.abspath(self.spelled)
        self.id = ""
        self._private = os.path.join(self.path, PRIVATE)
        self._staging = os.path.join(self._private, "staging")

    def open(self) -> None:
        """Make what is missing, and learn the folder's own id.

        Raises:
            ResultsDirError: The path is a file, cannot be made or written, or its private corner
                is a symbolic link.
        """
        try:
            os.makedirs(self.path, exist_ok=True)
            self._make_private()
            self.id = self._own_id()
        except OSError as error:
            raise self._unusable(error) from error

    def spell(self, name: str) -> str:
        """The path of a result, through ``results_dir`` as the user spelled it."""
        return os.path.join(self.spelled, name)

    def locate(
        self,
        id: str,
        stored: str,
        *,
        name: str | None,
        folder: str | None,
        registered: str | None,
        size: int | None,
    ) -> str | None:
        """The path under which a stored run's result is found here and now.

        Args:
            id: The run id.
            stored: The path that the row gives.
            name: The name that it was published under; ``None`` for a registered result, and for
                one of entropic 2.
            folder: The id of the folder that it was published in.
            registered: The absolute path of a registered result.
            size: Its bytes, where they were recorded.

        Returns:
            ``None`` when the result itself is gone, or is not as large as it was.

        Raises:
            ResultsDirError: Not the result but the folder is gone: not mounted, on another
                machine, or spelled differently. Its runs are no misses.
        """
        if registered is not None:
            candidates = [stored, registered]
        elif name is None:
            candidates = [self.spell(os.path.basename(stored)), stored]
        elif folder == self.id:
            candidates = [self.spell(name)]
        else:  # published in another folder; this may be a copy of it, without its id
            candidates = [stored, self.spell(name)]
        found = [f for f in map(find, candidates) if f is not None]
        for candidate in found:
            if size is None or candidate.size is None or candidate.size == size:
                return candidate.path
        is_elsewhere = name is not None and registered is None and folder != self.id
        if not found and (is_elsewhere or not any(map(_has_parent, candidates))):
            raise ResultsDirError(
                f"the run {id} is stored with its result in {os.path.dirname(stored) or '.'!r}, and"
                f" that folder is not {self.spelled!r} nor anywhere to be found: mount it, or give"
                " the store the right results_dir; if the results are gone for good, delete their"
                " rows (or the database)",
                path=stored,
            )
        return None

    def stage(self, id: str, token: int, nonce: str) -> Stage:
        """Where a run is to write; the worker makes the folder."""
        return Stage(os.path.join(self._staging, f"{id}.{token}.{nonce}"), id + self.suffix)

    def publish(self, stage: Stage, staged: Staged, id: str, ours: str | None) -> str:
        """Give a staged result, and its companions, their final names.

        Args:
            stage: Where it is.
            staged: What it is.
            id: The run id.
            ours: The name that this run's earlier result has; it is replaced in one step.

        Returns:
            The name in the results folder: ``<id><suffix>``, or ``<id>.<n><suffix>`` where
            that one is not ours.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            if ours is None:
                name = self._take_free_name(stage, staged, id)
            else:
                name = ours
                replace(stage.result, os.path.join(self.path, name), stage.folder)
            companions = os.path.join(self.path, self._companions_name(name))
            if staged.companions:
                replace(stage.companions, companions, stage.folder)
            elif ours is not None and os.path.lexists(companions):
                os.rename(companions, os.path.join(stage.folder, ".replaced.files"))
            return name
        except OSError as error:
            raise self._unusable(error) from error

    def discard(self, stage: Stage) -> None:
        """Remove a staging folder and what is in it; following no link."""
        remove(stage.folder)

    def remove(self, name: str) -> None:
        """Remove a published result and its companions; what is gone already is no error.

        Raises:
            ResultsDirError: The file system refused.
        """
        remove(os.path.join(self.path, name))
        remove(os.path.join(self.path, self._companions_name(name)))

    def sync(self) -> None:
        """Write the folder's names through to the disk."""
        fsync(self.path)

    def _make_private(self) -> None:
        for path in (self._private, self._staging):
            try:
                os.mkdir(path, 0o770)
                self._restrict(path)
            except FileExistsError:
                mode = os.lstat(path).st_mode
                if not stat.S_ISDIR(mode):
                    what = "a symbolic link" if stat.S_ISLNK(mode) else "not a folder"
                    raise ResultsDirError(
                        f"{path} is {what}; it must be a folder of entropic's own, so that"
                        " nothing is written elsewhere; remove it",
                        path=path,
                    ) from None

    def _restrict(self, path: str) -> None:
        """0700, unless the results folder and the umask both share with the group."""
        shared = os.stat(self.path).st_mode & os.stat(path).st_mode & stat.S_IWGRP
        if not shared:
            os.chmod(path, 0o700)

    def _own_id(self) -> str:
        try:
            return self._read_id()
        except FileNotFoundError:
            draft = os.path.join(self._private, f"folder.{uuid.uuid4().hex}")
            with open(draft, "w", encoding="ascii") as file:
                file.write(uuid.uuid4().hex)
            try:
                move_to_free_name(draft, os.path.join(self._private, "folder"))
            except FileExistsError:  # another store named it first
                os.unlink(draft)
            return self._read_id()

    def _read_id(self) -> str:
        with open(os.path.join(self._private, "folder"), encoding="ascii") as file:
            return file.read(64)

    def _take_free_name(self, stage: Stage, staged: Staged, id: str) -> str:
        for number in itertools.count():
            stem = f"{id}.{number}" if number else id
            name = stem + self.suffix
            if os.path.lexists(os.path.join(self.path, self._companions_name(name))):
                continue
            with contextlib.suppress(FileExistsError):
                move_to_free_name(
                    stage.result, os.path.join(self.path, name), is_folder=staged.is_folder
                )
                return name
        raise AssertionError("unreachable: itertools.count does not end")

    def _companions_name(self, name: str) -> str:
        return name.removesuffix(self.suffix) + COMPANIONS

    def _unusable(self, error: OSError) -> ResultsDirError:
        if isinstance(error, ResultsDirError):
            return error
        path = str(error.filename or self.path)
        what = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "it may not be written",
            errno.EPERM: "it may not be written",
            errno.EROFS: "it is on a read-only file system",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "it is a file",
        }.get(error.errno or 0, str(error))
        return ResultsDirError(
            f"the results folder {self.spelled!r} cannot be used: {what} ({path})", path=path
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A result on disk: whether it is there, and how large.

    Attributes:
        path: Where it was found.
        size: Its bytes; ``None`` for a folder, whose size is not looked up at each hit.
    """

    path: str
    size: int | None


def find(path: str) -> Found | None:
    """The result at a path: a file with content, or a folder that is not empty; else ``None``."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                return Found(path, None) if any(entries) else None
    except OSError:
        return None
    return Found(path, status.st_size) if status.st_size else None


def _has_parent(path: str) -> bool:
    return os.path.isdir(os.path.dirname(path) or ".")


def remove_registered(path: str) -> None:
    """Remove a result that lies where its user put it; what is gone already is no error."""
    remove(path)
