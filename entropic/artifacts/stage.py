"""What a worker does with files: make a stage, check what the runner left in it, seal it.

<results_dir>/.entropic/staging/<id>.<token>.<nonce>/
    <id><suffix>                        the result
    ...                                 what else the runner writes
    .files/                             the same, put together once it has finished
    .sidecar.json                       at the end: all that publishing it takes
"""

import hashlib
import itertools
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from entropic.artifacts.corner import check_folder
from entropic.artifacts.moves import fsync, fsync_opened, opened
from entropic.errors import ResultMissingError, ResultsDirError

COMPANIONS: Final = ".files"
"""What the folder of a result's companions is called, after the result's stem."""

_WRITTEN_AT_ONCE: Final = 1 << 20
_READ_AT_ONCE: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Stage:
    """Where one run writes.

    Attributes:
        folder: The run's own folder, absolute.
        name: The result's name in it: the id and the suffix.
    """

    folder: str
    name: str

    @property
    def nonce(self) -> str:
        """The mark of the cache that it belongs to."""
        return self.folder.rpartition(".")[2]

    @property
    def has_sidecar(self) -> bool:
        """Whether there is a sidecar, whatever it says."""
        return os.path.lexists(self.sidecar)

    @property
    def result(self) -> str:
        """The path that the runner is given."""
        return os.path.join(self.folder, self.name)

    @property
    def sidecar(self) -> str:
        """Where the run's sidecar goes once it has finished."""
        return os.path.join(self.folder, ".sidecar.json")

    @property
    def companions(self) -> str:
        """Where the runner's other files are put together."""
        return os.path.join(self.folder, COMPANIONS)


@dataclass(frozen=True, slots=True)
class Staged:
    """What a run left in its stage.

    Attributes:
        size: Bytes of the result; of all its files, where it is a folder.
        is_folder: Whether the result is a folder.
        companions: Names of the other files that the runner left beside it.
        digest: SHA-256 of the result, in hexadecimal; ``None`` where it was not asked for.
        inode: The result's number in the file system, which it keeps when it is renamed.
        mtime_ns: When it was last written to, in nanoseconds: numbers come round again.
    """

    size: int
    is_folder: bool
    companions: tuple[str, ...]
    digest: str | None
    inode: int
    mtime_ns: int

    def is_at(self, path: str) -> bool:
        """Whether this very result is at a path; its content is not looked at."""
        try:
            there = os.lstat(path)
        except OSError:
            return False
        is_it = (there.st_ino, there.st_mtime_ns) == (self.inode, self.mtime_ns)
        return is_it and self._is_like(there)

    def is_copy_at(self, path: str) -> bool:
        """Whether something of its kind, and of a file's size, is there, by whatever number."""
        try:
            return self._is_like(os.lstat(path))
        except OSError:
            return False

    def is_whole_at(self, path: str) -> bool:
        """Whether what is there has its size, and its content where its digest is known.

        It reads all of it: not under a lock.
        """
        try:
            if not self._is_like(os.lstat(path)):
                return False
            files, _ = _tree(path)
            if sum(os.lstat(found).st_size for found in files) != self.size:
                return False
            return self.digest is None or self.digest == _digest(path, files)
        except OSError:
            return False

    def _is_like(self, there: os.stat_result) -> bool:
        if self.is_folder:
            return stat.S_ISDIR(there.st_mode)
        return stat.S_ISREG(there.st_mode) and there.st_size == self.size


def make(stage: Stage) -> None:
    """Make a run's staging folder.

    Raises:
        ResultsDirError: It cannot be made, its folder is a link to elsewhere, or it is there
            already: tokens never repeat, so whatever lies there is not ours to write into.
    """
    staging = os.path.dirname(stage.folder)
    for folder in (os.path.dirname(staging), staging):  # links may have been planted since
        with suppress(FileNotFoundError):
            check_folder(folder)
    try:
        os.mkdir(stage.folder)
    except FileNotFoundError as error:
        raise ResultsDirError(
            f"the staging folder {stage.folder} cannot be made: the results folder is no longer"
            " there, or not the one that the store opened; put it back, or close the store, so"
            " that it opens anew",
            path=stage.folder,
        ) from error
    except OSError as error:
        what_to_do = (
            "move away what is there"
            if isinstance(error, FileExistsError)
            else "its folder must be writable, and its disk have room"
        )
        raise ResultsDirError(
            f"the staging folder {stage.folder} cannot be made: {error.strerror}; {what_to_do}",
            path=stage.folder,
        ) from error


def check(stage: Stage, *, checksum: bool, durable: bool) -> Staged:
    """Look at what a runner left, and put its companions together; done by the worker.

    Args:
        stage: Where the runner wrote.
        checksum: Whether to compute the digest, now that the result is in the page cache.
        durable: Whether to write the result through to the disk.

    Raises:
        ResultMissingError: There is no result, or an empty one; says what is there instead.
    """
    entries = _entries(stage)
    if stage.name not in entries:
        raise ResultMissingError(_missing(stage, entries))
    about = os.lstat(stage.result)
    mode = about.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
        raise ResultMissingError(
            f"the runner left {what} at params['result_file'] ({stage.result}); it must write the"
            " result itself there; a file that lies elsewhere can be indexed by register()"
        )
    files, folders = _tree(stage.result) if stat.S_ISDIR(mode) else ([stage.result], [])
    size = sum(os.lstat(path).st_size for path in files) if folders else about.st_size
    if size == 0:
        what = "folder without content" if stat.S_ISDIR(mode) else "file"
        raise ResultMissingError(
            f"the runner left an empty {what} at params['result_file'] ({stage.result})"
        )
    companions = [entry for entry in entries if entry != stage.name]
    if companions:
        _gather(stage, companions)
    digest = _digest(stage.result, files) if checksum else None
    if durable:
        more_files, more_folders = _tree(stage.companions) if companions else ([], [])
        for path in (*files, *folders, *more_files, *more_folders):
            fsync(path)
    return Staged(
        size, stat.S_ISDIR(mode), tuple(companions), digest, about.st_ino, about.st_mtime_ns
    )


def seal(
    stage: Stage, sidecar: Mapping[str, Any], *, durable: bool, is_light: bool = False
) -> None:
    """Write the sidecar, whole or not at all.

    From here on the run is finished, and can be published by anyone who finds it.

    Args:
        stage: Where the runner wrote.
        sidecar: What to write, as plain JSON.
        durable: Whether to write it through to the disk.
        is_light: Whether it takes no time to speak of to make a text of it.
    """
    draft = stage.sidecar + ".draft"
    # Few writes: at each one the interpreter is let go for a moment, and a thread that does so all
    # the time keeps the others from it (they wait five milliseconds anew each time).
    # Made anew, so that nothing is written where a link in its place leads.
    with open(draft, "x", encoding="utf-8", buffering=_WRITTEN_AT_ONCE) as file:
        if is_light:
            file.write(json.dumps(sidecar))  # by far faster, and nobody else is let in meanwhile
        else:
            json.dump(sidecar, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if not durable:
        os.rename(draft, stage.sidecar)
        return
    with opened(stage.folder) as folder:
        os.rename(draft, stage.sidecar)
        fsync_opened(folder)  # whoever found it sealed may have moved it already
    fsync(os.path.dirname(stage.folder))


def _entries(stage: Stage) -> list[str]:
    try:
        return sorted(os.listdir(stage.folder))
    except FileNotFoundError:
        raise ResultMissingError(
            f"the runner left nothing at params['result_file'] ({stage.result}): the folder itself"
            " is gone; write the result there, and leave the folder to entropic"
        ) from None


def _gather(stage: Stage, companions: list[str]) -> None:
    """Put a run's companions into one folder, whatever they are called."""
    taken = {*companions, stage.name}
    name = next(n for i in itertools.count() if (n := f"{COMPANIONS}.{i}") not in taken)
    gathered = os.path.join(stage.folder, name)
    os.mkdir(gathered)
    for entry in companions:
        os.rename(os.path.join(stage.folder, entry), os.path.join(gathered, entry))
    os.rename(gathered, stage.companions)


def _missing(stage: Stage, entries: list[str]) -> str:
    message = f"the runner wrote no file at params['result_file'] ({stage.result})"
    if not entries:
        return f"{message}, nor anything else in that folder"
    wrote = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    for entry in entries:
        if entry.startswith(stage.name):
            added = entry.removeprefix(stage.name)
            return (
                f"{message}; it wrote {entry}: what it writes with appends {added!r} to other"
                f" names (numpy.save does), so give the store file_suffix={added!r}"
            )
    return f"{message}; it wrote {wrote}: write to exactly params['result_file']"


def _tree(path: str) -> tuple[list[str], list[str]]:
    """The regular files and the folders at or below a path, sorted; links are not followed."""
    if not os.path.isdir(path):
        return [path], []
    files, folders = [], []
    for folder, inner, names in os.walk(path):
        inner.sort()
        folders.append(folder)
        paths = (os.path.join(folder, name) for name in sorted(names))
        files += [found for found in paths if stat.S_ISREG(os.lstat(found).st_mode)]
    return files, folders


def digest(result: str) -> str:
    """The SHA-256 of a result, as it is kept of each.

    Raises:
        OSError: It cannot be read.
    """
    return _digest(result, _tree(result)[0])


def _digest(result: str, files: list[str]) -> str:
    """SHA-256 of a file; of a folder, that of its files' relative names and digests."""
    if files == [result]:
        return _file_digest(result)
    whole = hashlib.sha256()
    for path in files:
        name = os.fsencode(os.path.relpath(path, result))
        whole.update(b"%b\0%b\0" % (name, _file_digest(path).encode()))
    return whole.hexdigest()


def _file_digest(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        begin = file.read(_READ_AT_ONCE)
        if len(begin) < _READ_AT_ONCE:  # file_digest makes itself a quarter of a megabyte of room
            rest = file.read()  # there is none, but of a file that others read for us
            return hashlib.sha256(begin + rest).hexdigest()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
