"""Everything that touches ``results_dir``: stage, publish, find, discard.

A run writes into a staging folder of its own; its result appears under its final name in one
rename, or never. Nothing here knows a database: which names are ours is told by the caller.

    <results_dir>/<id><suffix>              a result
    <results_dir>/<id>.files/               what else its runner left
    <results_dir>/.entropic/                see the modules corner, stage and removal
"""

import contextlib
import errno
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Final

from entropic.artifacts import corner
from entropic.artifacts.corner import folder_id
from entropic.artifacts.finding import (
    Found,
    find,
    holds_results,
    is_from,
    is_whole,
    locate_registered,
    working_directory,
    written_since,
)
from entropic.artifacts.mounts import is_local
from entropic.artifacts.moves import (
    REPLACED,
    fsync,
    move_to_free_name,
    put_back,
    remove,
    replace,
    set_aside_name,
)
from entropic.artifacts.removal import Removal, Removed, removed
from entropic.artifacts.sidecar import Sidecar, read_sidecar
from entropic.artifacts.stage import COMPANIONS, Stage, Staged
from entropic.errors import ResultsDirError

__all__ = [
    "COMPANIONS",
    "Found",
    "Removal",
    "Removed",
    "ResultsFolder",
    "Sidecar",
    "Stage",
    "Staged",
    "explained",
    "find",
    "read_sidecar",
]

# Between a run's id and its suffix, where the name without it was not ours.
_NUMBER: Final = r"(\.\d+)?"


class ResultsFolder:
    """One results folder: the names in it, and its private corner.

    Args:
        spelled: The path as the user spelled it; records give paths through it.
        suffix: What every result's name ends with.

    Attributes:
        id: The folder's own id, which moves with it; empty until it is opened, and where it may
            not be read.
        is_writable: Whether runs can be stored in it, as it was when that was last looked at.
        is_local: Whether it is on a disk of this machine, as far as is known: to look at a file
            there takes no time to speak of.
    """

    def __init__(self, spelled: str | os.PathLike[str], suffix: str) -> None:
        self.spelled = os.fspath(spelled)
        self.suffix = suffix
        self.path = os.path.abspath(self.spelled)
        # Joined once: a sweep of hits gives each name both.
        self._prefix = os.path.join(self.path, "")
        self._spelled_prefix = os.path.join(self.spelled, "")
        self.id = ""
        self.is_writable = False
        self.is_local = False
        # Where the path as it was spelled leads to this folder: anywhere, or only here.
        self._cwd = None if os.path.isabs(self.spelled) else working_directory()
        self._staging = corner.staging(self.path)

    def open(self) -> None:
        """Make what is missing, and learn the folder's own id.

        One that is there and may not be written is good for all that needs no run.

        Raises:
            ResultsDirError: The path is a file, cannot be made, or its private corner is a
                symbolic link.
        """
        self.is_local = is_local(self.path)
        try:
            self.make_ready()
        except ResultsDirError as error:
            cause = error.__cause__
            is_closed = isinstance(cause, OSError) and cause.errno in _NOT_WRITABLE
            if not (is_closed and os.path.isdir(self.path)):
                raise
            self.id = folder_id(self.path) or ""

    def open_for_reading(self) -> None:
        """Learn the folder's own id, and make nothing."""
        self.is_local = is_local(self.path)
        self.id = folder_id(self.path) or ""

    def make_ready(self) -> None:
        """Make what runs need, where it is missing.

        Raises:
            ResultsDirError: It cannot be made, or may not be written.
        """
        self.is_writable = False  # as it may have been when the store was last open
        try:
            os.makedirs(self.path, exist_ok=True)
            self.id = corner.make(self.path)
            for path in (self.path, self._staging):
                if not os.access(path, os.W_OK | os.X_OK):
                    is_for_reading = os.statvfs(path).f_flag & os.ST_RDONLY
                    number = errno.EROFS if is_for_reading else errno.EACCES
                    raise OSError(number, os.strerror(number), path)
        except OSError as error:
            raise self._unusable(error) from error
        self.is_writable = True

    def spell(self, name: str) -> str:
        """The path of a result, through ``results_dir`` as the user spelled it."""
        return self._spelled_prefix + name

    def locate(
        self,
        id: str,
        stored: str,
        *,
        name: str | None,
        folder: str | None,
        registered: str | None,
        size: int | None,
        host: str | None = None,
        digest: str | None = None,
        started_at: float | None = None,
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
            host: The machine that wrote it, where that is known.
            digest: The SHA-256 of its content, where that was computed.
            started_at: When its run was started, in seconds since 1970, where that is known.

        Returns:
            ``None`` when the result itself is gone, or is not as large as it was.

        Raises:
            ResultsDirError: Not the result but the folder is gone: not mounted, on another
                machine, or spelled differently. Its runs are no misses.
        """
        if registered is not None:
            return locate_registered(id, stored, registered, size)
        if name is None:
            return self._locate_2x(id, stored, size)
        if folder == self.id:
            if self.has(name, size):
                return self.given(name)
            if folder_id(self.path) == self.id:
                return None
            raise self._lost(id, stored, host)
        return self._locate_elsewhere(id, stored, name, folder, size, host, digest, started_at)

    def stage(self, id: str, token: int, nonce: str) -> Stage:
        """Where a run is to write; the worker makes the folder."""
        return Stage(os.path.join(self._staging, f"{id}.{token}.{nonce}"), id + self.suffix)

    def publish(
        self,
        stage: Stage,
        staged: Staged,
        id: str,
        ours: str | None,
        *,
        has_companions: bool = True,
    ) -> str:
        """Give a staged result, and its companions, their final names.

        Args:
            stage: Where it is.
            staged: What it is.
            id: The run id.
            ours: The name that this run's earlier result has; it is replaced in one step, unless
                it has another suffix.
            has_companions: Whether that result has companions, which are ours, too.

        Returns:
            The name in the results folder: ``<id><suffix>``, or ``<id>.<n><suffix>`` where
            that one is not ours.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            if ours is not None and self._can_keep(ours, id, staged, has_companions):
                replace(stage.result, os.path.join(self.path, ours), stage.folder)
                if staged.companions:
                    replace(stage.companions, self.companions(ours, id), stage.folder)
                elif has_companions:
                    _set_aside(self.companions(ours, id), stage)
                return ours
            if ours is None:
                return self._take_free_name(stage, staged, id)
            return self._change_name(stage, staged, id, ours, has_companions)
        except OSError as error:
            raise self._unusable(error) from error

    def withdraw(self, stage: Stage, staged: Staged, id: str, name: str) -> None:
        """Take a publication back: it is staged again, and what it has replaced is in its place.

        Args:
            stage: Where it was.
            staged: What it is.
            id: The run id.
            name: The name that it was given.

        Raises:
            ResultsDirError: The file system refused.
        """
        path, companions = os.path.join(self.path, name), self.companions(name, id)
        try:
            # In this order: a result that is staged has its companions with it.
            if staged.companions and os.path.lexists(companions):
                put_back(companions, stage.companions, stage.folder)
            if staged.is_at(path):
                put_back(path, stage.result, stage.folder)
            for entry in os.listdir(stage.folder):
                if entry.startswith(REPLACED):
                    move_to_free_name(
                        os.path.join(stage.folder, entry),
                        os.path.join(self.path, entry.removeprefix(REPLACED)),
                    )
        except OSError as error:
            raise self._unusable(error) from error

    def resume(
        self,
        stage: Stage,
        staged: Staged,
        id: str,
        ours: str | None,
        *,
        has_companions: bool = True,
    ) -> str:
        """``publish``, for what an owner has left that was killed, perhaps while it did just that.

        Nothing is read here; whether the result is whole, ``can_resume`` says beforehand.

        Raises:
            ResultsDirError: The result is neither in its stage nor under a name that it can have
                been given; or the file system refused.
        """
        if staged.is_at(stage.result):
            return self.publish(stage, staged, id, ours, has_companions=has_companions)
        try:
            for name in self._given_names(id, ours):
                if staged.is_at(os.path.join(self.path, name)):
                    self._complete(stage, staged, id, name, ours, has_companions)
                    return name
        except OSError as error:
            raise self._unusable(error) from error
        if staged.is_copy_at(stage.result):  # the whole folder was restored from a copy
            return self.publish(stage, staged, id, ours, has_companions=has_companions)
        raise ResultsDirError(
            f"the result of the finished run {id} is no longer in {stage.folder}, nor in"
            f" {self.path}; remove that folder, and the next request runs it again",
            path=stage.folder,
        )

    def can_resume(self, stage: Stage, staged: Staged, id: str) -> bool:
        """Whether a staged result is still there, in its stage or under a final name.

        Whose a result under a final name is, its number tells; in a stage there is only its own.
        """
        has_all = not staged.companions or os.path.isdir(stage.companions)
        if has_all and staged.is_at(stage.result):
            return True
        paths = (os.path.join(self.path, name) for name in self._given_names(id, None))
        if any(staged.is_at(path) and staged.is_whole_at(path) for path in paths):
            return True
        return has_all and staged.is_whole_at(stage.result)

    def staged(self, nonce: str) -> list[tuple[str, int, Stage]]:
        """All that is staged of one cache: run id, token and stage of each, tokens ascending.

        Raises:
            ResultsDirError: The file system refused.
        """
        found = []
        try:
            with os.scandir(self._staging) as entries:
                for entry in entries:
                    id, _, rest = entry.name.removesuffix(f".{nonce}").rpartition(".")
                    is_named = entry.name.endswith(f".{nonce}") and rest.isascii()
                    if is_named and rest.isdigit() and id and entry.is_dir(follow_symlinks=False):
                        found.append((id, int(rest), Stage(entry.path, id + self.suffix)))
        except OSError as error:
            raise self._unusable(error) from error
        return sorted(found, key=lambda stage: stage[:2])

    def idle_seconds(self, stage: Stage) -> float:
        """How long ago anything was last written to a stage, by the file system's own clock.

        Raises:
            ResultsDirError: The file system refused.
        """
        latest = 0.0
        for folder, _, names in os.walk(stage.folder):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                with contextlib.suppress(FileNotFoundError):
                    latest = max(latest, os.lstat(path).st_mtime)
        return self._now() - latest

    def take_over(self, source: Stage, target: Stage) -> bool:
        """Make another owner's stage one's own; whether it was still there.

        From then on that owner can neither publish nor discard it.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            os.rename(source.folder, target.folder)
        except FileNotFoundError:  # somebody was faster
            return False
        except OSError as error:
            raise self._unusable(error) from error
        return True

    def names(self) -> list[str]:
        """What is called as results are, and is no part of the private corner.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            names = os.listdir(self.path)
        except OSError as error:
            raise self._unusable(error) from error
        return sorted(n for n in names if n.endswith(self.suffix) and not n.startswith("."))

    def ids(self, name: str) -> list[str]:
        """The ids of the runs whose results can be called so."""
        stem = name.removesuffix(self.suffix)
        numbered = re.fullmatch(r"(.+)\.\d+", stem)
        return [stem, numbered[1]] if numbered else [stem]

    def discard(self, stage: Stage) -> None:
        """Remove a staging folder and what is in it; following no link."""
        remove(stage.folder)

    def removal(self, id: str, published: int, nonce: str) -> Removal:
        """What is to take a run's results out; nothing has happened yet."""
        return Removal(self._staging, id, published, nonce)

    def take_out(self, removal: Removal, name: str, id: str, *, has_companions: bool) -> None:
        """Take a published result, and its companions, out of the folder.

        What is gone already is no error.

        Args:
            removal: Where they go.
            name: The name that it was published under.
            id: The run id.
            has_companions: Whether companions were published with it.

        Raises:
            ResultsDirError: The file system refused; what was taken is to be put back.
        """
        companions = self.companions(name, id) if has_companions else None
        try:
            removal.take(os.path.join(self.path, name), companions)
        except OSError as error:
            raise self._unusable(error) from error

    def removed(self, nonce: str, patience: float) -> list[Removed]:
        """What deletions of one cache have taken out so many seconds ago, and not yet removed.

        Raises:
            ResultsDirError: The file system refused.
        """
        left = []
        try:
            for one in removed(self._staging, nonce):
                with contextlib.suppress(FileNotFoundError):
                    # A rename changes this time alone.
                    if self._now() - os.lstat(one.path).st_ctime > patience:
                        left.append(one)
        except OSError as error:
            raise self._unusable(error) from error
        return left

    def end_removal(self, one: Removed, path: str | None) -> bool:
        """Remove what was taken out, or put it back; whether it is back in its place.

        Args:
            one: What was taken out.
            path: Where the result belongs; ``None`` where nobody needs it any more.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            if path is not None:
                home, name = os.path.split(path)
                beside = ResultsFolder(home, self.suffix).companions(name, one.id)
                with contextlib.suppress(FileExistsError):
                    move_to_free_name(one.path, beside if one.are_companions else path)
                    return True
            remove(one.path)
        except OSError as error:
            if os.path.lexists(one.path):  # else somebody was faster
                raise self._unusable(error) from error
        return False

    def sync(self) -> None:
        """Write the folder's names through to the disk.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            fsync(self.path)
        except OSError as error:
            raise self._unusable(error) from error

    def has(self, name: str, size: int | None) -> bool:
        """Whether a result has this name here, of that many bytes where the number is known."""
        return is_whole(self._prefix + name, size)

    def given(self, name: str) -> str:
        """The path to give for a name in this folder: as spelled, where that leads here."""
        return self.given_prefix() + name

    def given_prefix(self) -> str:
        """What all these paths begin with, at the moment."""
        spelled_leads_here = self._cwd is None or self._cwd == working_directory()
        return self._spelled_prefix if spelled_leads_here else self._prefix

    def _locate_elsewhere(
        self,
        id: str,
        stored: str,
        name: str,
        folder: str | None,
        size: int | None,
        host: str | None,
        digest: str | None,
        started_at: float | None,
    ) -> str | None:
        """A result that was published in a folder with another id."""
        home_id = folder_id(os.path.dirname(stored))
        if home_id == folder:
            return stored if is_whole(stored, size) else None
        # This may be a copy of that folder, without the hidden corner that holds its id; or that
        # corner was removed. But what is called so here may as well be an older result of the same
        # run, which another store has run again since, into a folder that is not there now.
        candidates = [(os.path.join(self.path, name), self.given(name))]
        if home_id is None:
            candidates.append((stored, stored))
        for path, given in candidates:
            if is_whole(path, size) and is_from(path, digest, started_at):
                return given
        if any(written_since(path, started_at) for path, _ in candidates):
            return None
        raise self._lost(id, stored, host)

    def _locate_2x(self, id: str, stored: str, size: int | None) -> str | None:
        """A result of entropic 2, whose rows know no folder: its name and path must do."""
        name = os.path.basename(stored)
        here = os.path.join(self.path, name), self.given(name)
        there = stored, stored
        # The name of a registered one is its user's: others may be called the same.
        for path, given in (here, there) if name.startswith(id) else (there, here):
            if is_whole(path, size):
                return given
        if holds_results(self.path) or holds_results(os.path.dirname(stored)):
            return None
        raise self._lost(id, stored)

    def _lost(self, id: str, stored: str, host: str | None = None) -> ResultsDirError:
        by = "" if host is None else f" by {host}"
        return ResultsDirError(
            f"the run {id} is stored with its result{by} in {os.path.dirname(stored) or '.'!r}, and"
            f" that folder is not {self.spelled!r} nor anywhere to be found: mount it, or give"
            " the store the right results_dir; if the results are gone for good, delete their"
            " rows (or the database)",
            path=stored,
        )

    def _take_free_name(self, stage: Stage, staged: Staged, id: str) -> str:
        for number in itertools.count():
            name = (f"{id}.{number}" if number else id) + self.suffix
            if os.path.lexists(self.companions(name, id)):
                continue
            path = os.path.join(self.path, name)
            with contextlib.suppress(FileExistsError):
                move_to_free_name(stage.result, path)
                try:
                    if staged.companions:
                        move_to_free_name(stage.companions, self.companions(name, id))
                except OSError:
                    os.rename(path, stage.result)  # both get a name, or neither
                    raise
                return name
        raise AssertionError("unreachable: itertools.count does not end")

    def _given_names(self, id: str, ours: str | None) -> Iterator[str]:
        """The names that a run may just have been given."""
        if ours is not None:
            yield ours
        for number in itertools.count():
            name = (f"{id}.{number}" if number else id) + self.suffix
            is_taken = os.path.lexists(os.path.join(self.path, name))
            if not is_taken and not os.path.lexists(self.companions(name, id)):
                return
            yield name

    def _complete(
        self,
        stage: Stage,
        staged: Staged,
        id: str,
        name: str,
        ours: str | None,
        has_companions: bool,
    ) -> None:
        """What was still to be done when the result had its name."""
        if staged.companions and os.path.lexists(stage.companions):
            replace(stage.companions, self.companions(name, id), stage.folder)
        elif name == ours and has_companions and not staged.companions:
            _set_aside(self.companions(ours, id), stage)
        if ours is not None and name != ours:
            _set_aside(os.path.join(self.path, ours), stage)

    def _change_name(
        self, stage: Stage, staged: Staged, id: str, ours: str, has_companions: bool
    ) -> str:
        """Publish under a free name, and take the earlier result out of the folder."""
        companions = self.companions(ours, id)
        aside = _set_aside(companions, stage) if has_companions else None
        try:
            name = self._take_free_name(stage, staged, id)
        except OSError:
            if aside is not None:
                os.rename(aside, companions)
            raise
        _set_aside(os.path.join(self.path, ours), stage)
        return name

    def _can_keep(self, ours: str, id: str, staged: Staged, has_companions: bool) -> bool:
        """Whether a new result can take the place of the earlier one."""
        if not re.fullmatch(_NUMBER + re.escape(self.suffix), ours.removeprefix(id)):
            return False  # the store has another suffix now
        is_ours = has_companions or not os.path.lexists(self.companions(ours, id))
        return is_ours or not staged.companions

    def companions(self, name: str, id: str) -> str:
        """Where the companions of a result are: ``<id>.files`` or ``<id>.<n>.files``."""
        rest = name.removeprefix(id)
        if re.fullmatch(_NUMBER + re.escape(self.suffix), rest):
            stem = name.removesuffix(self.suffix)
        elif re.match(r"\.\d", rest):
            # The suffix was another one, and whether it began here or after a number nobody
            # knows. Rather than to touch another run's: a name that no run has.
            stem = f".{name}"
        else:
            stem = id
        return os.path.join(self.path, stem + COMPANIONS)

    def _now(self) -> float:
        """The file system's own time: another machine's clock may differ from that of this one.

        Raises:
            ResultsDirError: The file system refused.
        """
        try:
            with tempfile.TemporaryFile(dir=self._staging) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ResultsDirError:
        if isinstance(error, ResultsDirError):
            return error
        path = str(error.filename or self.path)
        what = self._dangling() or explained(error)
        return ResultsDirError(
            f"the results folder {self.spelled!r} cannot be used: {what} ({path})", path=path
        )

    def _dangling(self) -> str | None:
        if os.path.islink(self.path) and not os.path.exists(self.path):
            return f"it is a symbolic link to {os.readlink(self.path)!r}, which is not there"
        return None


_NOT_WRITABLE: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def explained(error: OSError) -> str:
    """What the file system refused, in words about the path that it refused it for."""
    return {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "a file would be too large for the disk, or for the limit of `ulimit -f`",
        errno.EACCES: "it may not be written",
        errno.EPERM: "it may not be written",
        errno.EROFS: "it is on a read-only file system",
        errno.ENOTDIR: "a part of the path is a file",
        errno.EEXIST: "it is a file",
    }.get(error.errno or 0, str(error))


def _set_aside(path: str, stage: Stage) -> str | None:
    """Take a path out of the folder, to be discarded with the stage; where it is then."""
    aside = set_aside_name(path, stage.folder)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    return aside
